//! The public access block of a bucket: four switches against opening it to everybody by mistake.

use crate::error::Result;
use crate::request::malformed_xml;
use crate::xml::{Element, Writer};
use bytes::Bytes;
use client::{BucketInfo, ConfigurationKind};

/// Source: "Blocking public access to your Amazon S3 storage", Amazon S3 User Guide. Nothing is blocked unless it was
/// set: new buckets are open to nobody but their owner anyway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PublicAccessBlock {
    /// Lists that grant something to users at large are refused.
    pub block_public_acls: bool,
    /// What lists grant to users at large does not count.
    pub ignore_public_acls: bool,
    /// Policies that are public are refused.
    pub block_public_policy: bool,
    /// A policy that is public allows nothing to others than the owner.
    pub restrict_public_buckets: bool,
}

const NAMES: [&str; 4] = ["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"];

impl PublicAccessBlock {
    /// The block of a bucket; all off when it has none.
    pub fn of(bucket: &BucketInfo) -> PublicAccessBlock {
        match bucket.configuration(ConfigurationKind::PublicAccessBlock) {
            Some(kept) => PublicAccessBlock::decode(&kept.value),
            None => PublicAccessBlock::default(),
        }
    }

    fn switches(self) -> [bool; 4] {
        [self.block_public_acls, self.ignore_public_acls, self.block_public_policy, self.restrict_public_buckets]
    }

    fn of_switches([a, b, c, d]: [bool; 4]) -> PublicAccessBlock {
        PublicAccessBlock {
            block_public_acls: a,
            ignore_public_acls: b,
            block_public_policy: c,
            restrict_public_buckets: d,
        }
    }

    /// Byte map: one byte for each switch, `0` or `1`.
    pub fn encode(self) -> Bytes {
        self.switches().iter().map(|on| if *on { b'1' } else { b'0' }).collect()
    }

    /// What cannot be read blocks everything.
    fn decode(value: &[u8]) -> PublicAccessBlock {
        let mut switches = [true; 4];
        if value.len() == switches.len() {
            for (switch, byte) in switches.iter_mut().zip(value) {
                *switch = *byte != b'0';
            }
        }
        PublicAccessBlock::of_switches(switches)
    }

    /// Reads a `PublicAccessBlockConfiguration`. What it does not name is off.
    pub fn read(document: &Element) -> Result<PublicAccessBlock> {
        let mut switches = [false; 4];
        for (switch, name) in switches.iter_mut().zip(NAMES) {
            *switch = match document.child_text(name).map(str::to_ascii_lowercase).as_deref() {
                Some("true") => true,
                None | Some("false") => false,
                Some(_) => return Err(malformed_xml("a switch is true or false")),
            };
        }
        Ok(PublicAccessBlock::of_switches(switches))
    }

    pub fn write(self) -> String {
        Writer::answer("PublicAccessBlockConfiguration", |xml| {
            for (on, name) in self.switches().into_iter().zip(NAMES) {
                xml.flag(name, on);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_fails_closed() {
        for bits in 0..16u8 {
            let block = PublicAccessBlock::of_switches([0, 1, 2, 3].map(|bit| bits >> bit & 1 == 1));
            assert_eq!(PublicAccessBlock::decode(&block.encode()), block);
            assert_eq!(PublicAccessBlock::read(&crate::xml::read(block.write().as_bytes()).unwrap()).unwrap(), block);
        }
        assert_eq!(PublicAccessBlock::decode(b"01"), PublicAccessBlock::of_switches([true; 4]));
    }
}
