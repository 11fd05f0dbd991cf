//! The metadata of a whole cluster in one file: taken while it serves, put back when it is lost.
//!
//! ```text
//! magic "HNGEBKUP" (8)  version u16  zero u16          integers little-endian
//! frames, each:  length u32  CRC-32C u32  one Piece (Protocol Buffers)
//!                the checksum covers the frame's number (u64, from 0) and the piece: none can be missing or moved
//! pieces:        Head  (GroupHead  Rows*)+  End        or Failed instead of what follows
//! ```
//!
//! It holds rows, not the bytes of objects: what was deleted or overwritten after it was taken has no chunks any more.
//! And it holds secrets: those of access keys, and the key of the cluster's certificate authority.

mod check;
mod restore;
mod take;

pub use check::{GroupSummary, Summary, check};
pub use restore::{Target, finish, restore};
pub(crate) use take::take;

use base::checksum::crc32c;
use bytes::Bytes;
use client::wire::SnapshotRow;
use prost::Message;
use std::io::Read;

const MAGIC: &[u8; 8] = b"HNGEBKUP";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 12;
/// A page of rows, with the longest row on top, takes far less.
const PIECE_BYTES_MAX: usize = 32 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Head(Head),
    #[prost(message, tag = "2")]
    Group(GroupHead),
    #[prost(message, tag = "3")]
    Rows(Rows),
    #[prost(message, tag = "4")]
    End(End),
    /// Why nothing follows.
    #[prost(string, tag = "5")]
    Failed(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    cluster: Bytes,
    /// By the clock of the node that took it: for people.
    #[prost(uint64, tag = "2")]
    taken_ms: u64,
    #[prost(uint64, repeated, tag = "3")]
    groups: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GroupHead {
    #[prost(uint64, tag = "1")]
    group: u64,
    /// The group's own row: applied index and term, members, level, range.
    #[prost(bytes = "bytes", tag = "2")]
    state: Bytes,
}

/// In the order of their keys, also from one of these to the next.
#[derive(Clone, PartialEq, prost::Message)]
struct Rows {
    #[prost(message, repeated, tag = "1")]
    rows: Vec<SnapshotRow>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct End {
    /// Of all groups.
    #[prost(uint64, tag = "1")]
    rows: u64,
}

fn header() -> Bytes {
    let mut out = MAGIC.to_vec();
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend([0; 2]);
    out.into()
}

fn frame(number: u64, kind: Kind) -> Bytes {
    let piece = Piece { kind: Some(kind) }.encode_to_vec();
    let mut out = Vec::with_capacity(8 + piece.len());
    out.extend((piece.len() as u32).to_le_bytes());
    out.extend(crc32c(&number.to_le_bytes(), &piece).to_le_bytes());
    out.extend(piece);
    out.into()
}

/// Reads a file piece by piece.
struct Pieces<R> {
    input: R,
    next: u64,
    /// Of all checksums so far.
    digest: u32,
}

impl<R: Read> Pieces<R> {
    fn open(mut input: R) -> Result<Pieces<R>, String> {
        let mut header = [0; HEADER_BYTES];
        input.read_exact(&mut header).map_err(|error| format!("it is no backup of henge's metadata: {error}"))?;
        let (magic, rest) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err("it is no backup of henge's metadata".into());
        }
        let version = u16::from_le_bytes([rest[0], rest[1]]);
        if version != FORMAT_VERSION {
            return Err(format!(
                "it has format version {version}, this binary knows {FORMAT_VERSION}: use a newer henge"
            ));
        }
        Ok(Pieces { input, next: 0, digest: 0 })
    }

    /// Fails where the file ends before its end is said.
    fn next(&mut self) -> Result<Kind, String> {
        let number = self.next;
        let mut head = [0; 8];
        let cut = |error: std::io::Error| format!("it ends in frame {number}, before its end: {error}");
        self.input.read_exact(&mut head).map_err(cut)?;
        let (len, crc) = head.split_at(4);
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let crc = u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]);
        if len > PIECE_BYTES_MAX {
            return Err(format!("frame {number} is damaged: it would be {len} bytes long"));
        }
        let mut piece = Vec::new();
        let read = self.input.by_ref().take(len as u64).read_to_end(&mut piece);
        if read.map_err(|error| format!("frame {number} cannot be read: {error}"))? < len {
            return Err(format!("it ends in frame {number}, before its end"));
        }
        if crc32c(&number.to_le_bytes(), &piece) != crc {
            return Err(format!("frame {number} is damaged: its checksum does not fit"));
        }
        self.next += 1;
        self.digest = crc32c(&self.digest.to_le_bytes(), &crc.to_le_bytes());
        let piece =
            Piece::decode(Bytes::from(piece)).map_err(|error| format!("frame {number} is malformed: {error}"))?;
        match piece.kind {
            Some(Kind::Failed(why)) => Err(format!("it was not completed: {why}")),
            Some(kind) => Ok(kind),
            None => Err(format!("frame {number} is of a kind that this binary does not know: use a newer henge")),
        }
    }

    fn ends_here(&mut self) -> Result<(), String> {
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err("something follows its end".into()),
            Err(error) => Err(format!("its end cannot be read: {error}")),
        }
    }
}

/// A file whose checksums fit, of pieces that each stand in `raw` behind a length (u16, little-endian).
#[cfg(fuzzing)]
pub(crate) fn framed(mut raw: &[u8]) -> Vec<u8> {
    let mut out = header().to_vec();
    let mut number = 0u64;
    while let Some((len, rest)) = raw.split_first_chunk::<2>() {
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*len))));
        out.extend((piece.len() as u32).to_le_bytes());
        out.extend(crc32c(&number.to_le_bytes(), piece).to_le_bytes());
        out.extend(piece);
        (number, raw) = (number + 1, rest);
    }
    out
}
