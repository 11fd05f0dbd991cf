//! Volumes: their file names, and the list of live volumes that opens each journal volume.

use base::codec::{DecodeError, Reader, Writer};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum VolumeKind {
    Journal = 1,
    Bulk = 2,
}

/// What a file name says. The name is a hint for people and for ordering; the truth is inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeName {
    Live(VolumeKind, u64),
    /// Emptied, waiting for its next incarnation; the number is its last one.
    Free(u64),
}

impl VolumeName {
    pub fn parse(name: &str) -> Option<VolumeName> {
        let (prefix, number) = name.rsplit_once('-')?;
        if number.len() != 16 || !number.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        let incarnation = u64::from_str_radix(number, 16).ok()?;
        match prefix {
            "journal" => Some(VolumeName::Live(VolumeKind::Journal, incarnation)),
            "bulk" => Some(VolumeName::Live(VolumeKind::Bulk, incarnation)),
            "free" => Some(VolumeName::Free(incarnation)),
            _ => None,
        }
    }
}

impl std::fmt::Display for VolumeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VolumeName::Live(VolumeKind::Journal, incarnation) => write!(f, "journal-{incarnation:016x}"),
            VolumeName::Live(VolumeKind::Bulk, incarnation) => write!(f, "bulk-{incarnation:016x}"),
            VolumeName::Free(incarnation) => write!(f, "free-{incarnation:016x}"),
        }
    }
}

/// The last end that an unsealed bulk volume may be listed with: it is still being written.
pub const END_OPEN: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedVolume {
    pub kind: VolumeKind,
    pub incarnation: u64,
    /// Bytes up to which the volume counts, or [`END_OPEN`].
    pub end: u64,
}

/// The payload of a `VolumeList`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VolumeList {
    /// The journal volume before this one (0: none), where it was cut, and its last batch's checksum.
    pub follows_incarnation: u64,
    pub follows_end: u64,
    pub follows_checksum: u32,
    /// No incarnation from here on was in use when this was written.
    pub next_incarnation: u64,
    pub volumes: Vec<ListedVolume>,
}

impl VolumeList {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 17 * self.volumes.len());
        out.put_u64(self.follows_incarnation);
        out.put_u64(self.follows_end);
        out.put_u32(self.follows_checksum);
        out.put_u64(self.next_incarnation);
        out.put_u32(self.volumes.len() as u32);
        for volume in &self.volumes {
            out.put_u8(volume.kind as u8);
            out.put_u64(volume.incarnation);
            out.put_u64(volume.end);
        }
        out
    }

    pub fn decode(data: &[u8]) -> Result<VolumeList, DecodeError> {
        let mut reader = Reader::new(data);
        let follows_incarnation = reader.u64("followed incarnation")?;
        let follows_end = reader.u64("followed end")?;
        let follows_checksum = reader.u32("followed checksum")?;
        let next_incarnation = reader.u64("next incarnation")?;
        let count = reader.u32("volume count")? as usize;
        if reader.remaining() != count.saturating_mul(17) {
            return Err(reader.error("volume count"));
        }
        let mut volumes = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = match reader.u8("volume kind")? {
                1 => VolumeKind::Journal,
                2 => VolumeKind::Bulk,
                _ => return Err(reader.error("volume kind")),
            };
            let incarnation = reader.u64("incarnation")?;
            volumes.push(ListedVolume { kind, incarnation, end: reader.u64("volume end")? });
        }
        Ok(VolumeList { follows_incarnation, follows_end, follows_checksum, next_incarnation, volumes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_round_trip(follows: (u64, u64, u32), next: u64, volumes: Vec<(bool, u64, u64)>) {
            let list = VolumeList {
                follows_incarnation: follows.0,
                follows_end: follows.1,
                follows_checksum: follows.2,
                next_incarnation: next,
                volumes: volumes
                    .into_iter()
                    .map(|(bulk, incarnation, end)| ListedVolume {
                        kind: if bulk { VolumeKind::Bulk } else { VolumeKind::Journal },
                        incarnation,
                        end,
                    })
                    .collect(),
            };
            prop_assert_eq!(VolumeList::decode(&list.encode()), Ok(list));
        }

        #[test]
        fn decoding_never_panics(data: Vec<u8>, name: String) {
            let _ = VolumeList::decode(&data);
            let _ = VolumeName::parse(&name);
        }

        #[test]
        fn names_round_trip(incarnation: u64) {
            for name in [
                VolumeName::Live(VolumeKind::Journal, incarnation),
                VolumeName::Live(VolumeKind::Bulk, incarnation),
                VolumeName::Free(incarnation),
            ] {
                prop_assert_eq!(VolumeName::parse(&name.to_string()), Some(name));
            }
        }
    }
}
