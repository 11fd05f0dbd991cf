//! Payloads of Raft records that hold more than one thing.

use base::codec::{DecodeError, Reader, Writer};
use base::ids::{GroupId, LogIndex, PeerId, Term};

/// Most entries that one base record may hold.
pub const BASE_ENTRIES_MAX: usize = 1 << 20;
/// Bytes in front of an entry's data: its term and length.
const BASE_ENTRY_HEAD_LEN: usize = 12;

/// An entry inside a base record: its term, and where in the payload its data lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseEntry {
    pub term: Term,
    pub offset: u32,
    pub len: u32,
}

/// The payload of a base record, decoded: hard state and entries are ranges of the payload. The first entry has the
/// index after the base.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BasePayload {
    pub hard_state: Option<(u32, u32)>,
    pub entries: Vec<BaseEntry>,
}

/// Encodes hard state and entries (term, data).
pub fn encode_base<'a>(hard_state: Option<&[u8]>, entries: impl ExactSizeIterator<Item = (Term, &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u8(u8::from(hard_state.is_some()));
    let hard_state = hard_state.unwrap_or_default();
    out.put_u32(hard_state.len() as u32);
    out.put_bytes(hard_state);
    out.put_u32(entries.len() as u32);
    for (term, data) in entries {
        out.put_u64(term.0);
        out.put_u32(data.len() as u32);
        out.put_bytes(data);
    }
    out
}

pub fn decode_base(data: &[u8]) -> Result<BasePayload, DecodeError> {
    parse_base(data, None)
}

/// A base record's payload without the entries' data: all that replaying it looks at.
pub fn outline_of_base(payload: &[u8], base: &BasePayload) -> Vec<u8> {
    let first = base.entries.first().map_or(payload.len(), |entry| entry.offset as usize - BASE_ENTRY_HEAD_LEN);
    let mut out = payload[..first].to_vec();
    for entry in &base.entries {
        out.put_u64(entry.term.0);
        out.put_u32(entry.len);
    }
    out
}

/// Decodes what [`outline_of_base`] left of a payload of `payload_len` bytes: the same as the whole would have given.
pub fn decode_base_outline(outline: &[u8], payload_len: u32) -> Result<BasePayload, DecodeError> {
    parse_base(outline, Some(payload_len))
}

fn parse_base(data: &[u8], outline_of: Option<u32>) -> Result<BasePayload, DecodeError> {
    let mut reader = Reader::new(data);
    let present = reader.u8("hard state flag")?;
    let len = reader.u32("hard state length")?;
    let offset = reader.offset() as u32;
    reader.take(len as usize, "hard state")?;
    let hard_state = (present == 1).then_some((offset, len));
    if present > 1 || (present == 0 && len != 0) {
        return Err(reader.error("hard state flag"));
    }
    let count = reader.u32("entry count")? as usize;
    if count > BASE_ENTRIES_MAX {
        return Err(reader.error("entry count"));
    }
    let mut entries = Vec::with_capacity(count.min(reader.remaining() / BASE_ENTRY_HEAD_LEN));
    let mut left_out: u64 = 0;
    for _ in 0..count {
        let term = Term(reader.u64("entry term")?);
        let len = reader.u32("entry length")?;
        let offset = u32::try_from(reader.offset() as u64 + left_out).map_err(|_| reader.error("entry length"))?;
        match outline_of {
            Some(_) => left_out += u64::from(len),
            None => drop(reader.take(len as usize, "entry data")?),
        }
        entries.push(BaseEntry { term, offset, len });
    }
    let payload_len = reader.offset() as u64 + left_out;
    if reader.remaining() != 0 || outline_of.is_some_and(|expected| u64::from(expected) != payload_len) {
        return Err(reader.error("base record end"));
    }
    Ok(BasePayload { hard_state, entries })
}

/// The payload of a trim record: the log's last index when it was written.
pub fn encode_trim(last: LogIndex) -> Vec<u8> {
    last.0.to_le_bytes().to_vec()
}

pub fn decode_trim(data: &[u8]) -> Result<LogIndex, DecodeError> {
    let mut reader = Reader::new(data);
    let last = LogIndex(reader.u64("last index")?);
    if reader.remaining() == 0 { Ok(last) } else { Err(reader.error("trim record end")) }
}

/// A line of a `RaftList`: the group was here, under this peer, and this was its last record's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedGroup {
    pub group: GroupId,
    pub peer: PeerId,
    pub number: u64,
}

pub fn encode_raft_list(groups: &[ListedGroup]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + 24 * groups.len());
    out.put_u32(groups.len() as u32);
    for listed in groups {
        out.put_u64(listed.group.0);
        out.put_u64(listed.peer.0);
        out.put_u64(listed.number);
    }
    out
}

pub fn decode_raft_list(data: &[u8]) -> Result<Vec<ListedGroup>, DecodeError> {
    let mut reader = Reader::new(data);
    let count = reader.u32("group count")? as usize;
    if reader.remaining() != count.saturating_mul(24) {
        return Err(reader.error("group count"));
    }
    let mut groups = Vec::with_capacity(count);
    for _ in 0..count {
        groups.push(ListedGroup {
            group: GroupId(reader.u64("group")?),
            peer: PeerId(reader.u64("peer")?),
            number: reader.u64("record number")?,
        });
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn base_round_trips(
            hard_state in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
            entries in proptest::collection::vec((any::<u64>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..20),
        ) {
            let bytes = encode_base(
                hard_state.as_deref(),
                entries.iter().map(|(term, data)| (Term(*term), data.as_slice())),
            );
            let base = decode_base(&bytes).unwrap();
            let slice = |offset: u32, len: u32| bytes[offset as usize..(offset + len) as usize].to_vec();
            prop_assert_eq!(base.hard_state.map(|(offset, len)| slice(offset, len)), hard_state);
            let decoded: Vec<_> = base.entries.iter().map(|e| (e.term.0, slice(e.offset, e.len))).collect();
            prop_assert_eq!(decoded, entries);
            let outline = outline_of_base(&bytes, &base);
            prop_assert_eq!(decode_base_outline(&outline, bytes.len() as u32), Ok(base.clone()));
            prop_assert!(decode_base_outline(&outline, bytes.len() as u32 + 1).is_err());
            if let Some((at, len)) = base.hard_state {
                prop_assert_eq!(slice(at, len), outline[at as usize..(at + len) as usize].to_vec());
            }
        }

        #[test]
        fn trims_round_trip(last: u64) {
            prop_assert_eq!(decode_trim(&encode_trim(LogIndex(last))), Ok(LogIndex(last)));
        }

        #[test]
        fn lists_round_trip(groups: Vec<(u64, u64, u64)>) {
            let groups: Vec<_> = groups
                .into_iter()
                .map(|(group, peer, number)| ListedGroup { group: GroupId(group), peer: PeerId(peer), number })
                .collect();
            prop_assert_eq!(decode_raft_list(&encode_raft_list(&groups)), Ok(groups));
        }

        #[test]
        fn decoders_never_panic(data: Vec<u8>) {
            let _ = decode_base(&data);
            let _ = decode_base_outline(&data, data.len() as u32);
            let _ = decode_raft_list(&data);
            let _ = decode_trim(&data);
        }
    }
}
