//! What `fuzz/` reaches of the formats on disk. Only compiled for it.

use base::buffer::BLOCK;
use base::checksum::crc32c;
use base::ids::DiskId;

use crate::format::batch::{self, BatchHeader, DIRECTORY_LINE_LEN, HEADER_LEN};
use crate::format::record::{self, Kind, Locator};
use crate::format::summary::{Lines, SummaryEnd, decode_lines, encode_lines, parse_summary_name};
use crate::format::volume::{VolumeList, VolumeName};
use crate::format::{FORMAT_VERSION, Seed, raft};
use crate::identity;

pub use crate::kv::fuzzing::key_value;

const SEED: Seed = Seed { disk: DiskId(7), incarnation: 3 };

/// `data` as a batch at the start of a volume. Random bytes would never pass the checksums, so the header's is made
/// right, and those of the directory, of the record headers and of the body as the first byte says.
pub fn batch(data: &[u8]) {
    let Some((right, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    seal(&mut bytes, *right);
    let Ok(header) = BatchHeader::decode(&bytes, SEED, 0) else { return };
    assert_eq!(header.len as usize, bytes.len());
    for record in batch::parse(&bytes, &header, SEED).records {
        if let Ok((_, payload)) = record.content {
            decode_payload(record.kind, &bytes[payload]);
        }
    }
    let _ = BatchHeader::decode_copy(&bytes[bytes.len() - BLOCK..], SEED, header.end());
}

/// The byte map is in `docs/formats.md`.
fn seal(bytes: &mut [u8], right: u8) {
    let len = bytes.len();
    let copy_at = len - HEADER_LEN;
    let put = |bytes: &mut [u8], at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(bytes, 0, b"HBAT");
    put(bytes, 4, &FORMAT_VERSION.to_le_bytes());
    put(bytes, 6, &[right >> 3 & 1, 0]);
    put(bytes, 8, &SEED.incarnation.to_le_bytes());
    put(bytes, 24, &[0; 8]);
    put(bytes, 36, &(len as u32).to_le_bytes());
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let line_len = DIRECTORY_LINE_LEN + if right >> 3 & 1 == 1 { record::HEADER_LEN } else { 0 };
    let count = word(bytes, 40) % (copy_at / line_len);
    put(bytes, 40, &(count as u32).to_le_bytes());
    let directory_at = copy_at - count * DIRECTORY_LINE_LEN;
    if right & 1 != 0 {
        for line in 0..count {
            let at = word(bytes, directory_at + line * DIRECTORY_LINE_LEN + 4) % len;
            if right >> 3 & 1 == 1 {
                let copy_at = directory_at - (count - line) * record::HEADER_LEN;
                let end = copy_at + record::HEADER_LEN - 4;
                let crc = crc32c(&SEED.header(at as u64), &bytes[copy_at..end]).to_le_bytes();
                put(bytes, end, &crc);
            }
            if let Some(header) = bytes.get(at..at + record::HEADER_LEN - 4) {
                let crc = crc32c(&SEED.header(at as u64), header).to_le_bytes();
                if at + record::HEADER_LEN <= directory_at {
                    put(bytes, at + record::HEADER_LEN - 4, &crc);
                }
            }
        }
    }
    if right & 2 != 0 {
        let crc = crc32c(&[], &bytes[directory_at..copy_at]).to_le_bytes();
        put(bytes, 52, &crc);
    }
    if right & 4 != 0 {
        let crc = crc32c(&[], &bytes[HEADER_LEN..copy_at]).to_le_bytes();
        put(bytes, 48, &crc);
    }
    let crc = crc32c(&SEED.header(0), &bytes[..HEADER_LEN - 4]).to_le_bytes();
    put(bytes, HEADER_LEN - 4, &crc);
}

/// The lines of a summary, cut as the first byte says, and applied to nothing; then as a block whose checksum is right.
pub fn summary(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let mut lines = Lines::default();
    let mut visit = |line: crate::format::summary::Line<'_>| {
        decode_payload(line.header.kind, line.kept);
        let _ = raft::decode_base_outline(line.kept, line.header.payload_len);
    };
    for piece in data.chunks(usize::from(*cut) + 1) {
        if lines.take(piece, &mut visit).is_err() {
            break;
        }
    }
    let _ = decode_lines(data, SEED, 0);
    let _ = SummaryEnd::decode(data, SEED, 0);
    let _ = std::str::from_utf8(data).map(parse_summary_name);
    let block = encode_lines(SEED, 0, &data[..data.len().min(8192)]);
    assert_eq!(decode_lines(&block, SEED, 0), Ok(&data[..data.len().min(8192)]));
    let mut end = block.to_vec();
    end[10] = 2;
    let used = end.len().min(32 + data.len().min(8192));
    let crc = crc32c(&SEED.header(0), &end[4..used]).to_le_bytes();
    end[..4].copy_from_slice(&crc);
    let _ = SummaryEnd::decode(&end, SEED, 0);
}

/// The first byte chooses the kind of payload.
pub fn payloads(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match Kind::from_u8(*kind) {
        Some(kind) => decode_payload(kind, data),
        None => {
            let _ = identity::decode_file(data);
            let _ = std::str::from_utf8(data).map(VolumeName::parse);
        }
    }
    let _ = record::verify_record(data, SEED, 0);
}

fn decode_payload(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::VolumeList => {
            let _ = VolumeList::decode(payload).map(|list| list.encode());
        }
        Kind::RaftList => {
            let _ = raft::decode_raft_list(payload).map(|list| raft::encode_raft_list(&list));
        }
        _ => {
            let _ = Locator::decode(payload).map(|locator| locator.encode());
            let _ = raft::decode_base(payload);
            let _ = raft::decode_trim(payload);
        }
    }
}
