//! Connections whose bulk bytes travel unencrypted, outside of TLS: for networks that are trusted, where both nodes were
//! started with `--cluster-bulk-plaintext`.
//!
//! The two prove to each other who they are as on any connection, by mutual TLS, and take keys from it (RFC 8446, section
//! 7.5), one for each direction. Then TLS ends. Of each frame, header and head are sealed with AES-256-GCM under the number
//! of the frame in its direction: nobody else can say anything, repeat it or leave something out, and what is not bulk stays
//! secret. The bulk bytes follow as they are. Their CRC-32C is sealed with the head, which notices what went wrong by
//! accident. One who alters packets on purpose can alter bulk bytes so that no checksum notices, here or later.
//!
//! | length | field |
//! |---|---|
//! | 4 | bytes that are sealed, with the tag; authenticated with them |
//! | | sealed: CRC-32C of the bulk bytes (4), header and head as in [`super::frame`]; then the tag (16) |
//! | | bulk bytes |

use base::checksum::Crc32c;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionCommon;
use std::io;

use super::frame::{HEAD_BYTES_MAX, HEADER_LEN};

pub const TAG_LEN: usize = 16;
/// What is sealed of a frame without head, with the tag.
pub const SEALED_BYTES_MIN: usize = 4 + HEADER_LEN + TAG_LEN;
/// What is sealed at most, with the tag.
pub const SEALED_BYTES_MAX: usize = SEALED_BYTES_MIN + HEAD_BYTES_MAX;

const LABEL: &[u8] = b"EXPORTER-henge-bulk";
const FROM_CALLER: &[u8] = b"from the caller";
const FROM_ANSWERER: &[u8] = b"from the answerer";

/// The keys of one side of a connection.
pub struct Keys {
    pub sealing: Sealing,
    pub opening: Sealing,
}

impl Keys {
    /// Of the side that called, or of the one that answers. Both have the same session.
    pub fn of<Data>(session: &ConnectionCommon<Data>, is_caller: bool) -> io::Result<Keys> {
        let (mine, theirs) = if is_caller { (FROM_CALLER, FROM_ANSWERER) } else { (FROM_ANSWERER, FROM_CALLER) };
        Ok(Keys { sealing: Sealing::of(session, mine)?, opening: Sealing::of(session, theirs)? })
    }
}

/// One direction of a connection.
pub struct Sealing {
    key: LessSafeKey,
    /// Frames so far: no nonce is used twice.
    frames: u64,
}

impl Sealing {
    fn of<Data>(session: &ConnectionCommon<Data>, direction: &[u8]) -> io::Result<Sealing> {
        let secret = session.export_keying_material([0; 32], LABEL, Some(direction)).map_err(io::Error::other)?;
        Ok(Sealing::new(&secret))
    }

    pub fn new(secret: &[u8; 32]) -> Sealing {
        let key = UnboundKey::new(&AES_256_GCM, secret).expect("32 bytes are a key of AES-256");
        Sealing { key: LessSafeKey::new(key), frames: 0 }
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.frames.to_be_bytes());
        self.frames = self.frames.checked_add(1).expect("2^64 frames do not fit into the life of a connection");
        Nonce::assume_unique_for_key(nonce)
    }

    /// Appends length, sealed `header_and_head` and tag to `out`.
    pub fn seal(&mut self, header_and_head: &[&[u8]], bulk: &[Bytes], out: &mut Vec<u8>) {
        let inner_len = 4 + header_and_head.iter().map(|part| part.len()).sum::<usize>();
        let sealed_len = u32::try_from(inner_len + TAG_LEN).expect("heads are bounded").to_le_bytes();
        out.extend_from_slice(&sealed_len);
        let from = out.len();
        out.extend_from_slice(&crc_of(bulk).to_le_bytes());
        header_and_head.iter().for_each(|part| out.extend_from_slice(part));
        let nonce = self.next_nonce();
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(sealed_len), &mut out[from..]);
        out.extend_from_slice(tag.expect("far below the limit of GCM").as_ref());
    }

    /// Opens what was sealed, at least [`SEALED_BYTES_MIN`] bytes, in place: CRC-32C of the bulk bytes, and header and head.
    pub fn open<'a>(&mut self, sealed_len: [u8; 4], sealed: &'a mut [u8]) -> io::Result<(u32, &'a [u8])> {
        let nonce = self.next_nonce();
        let forged = |_| io::Error::new(io::ErrorKind::InvalidData, "a frame does not verify");
        let opened: &'a [u8] = self.key.open_in_place(nonce, Aad::from(sealed_len), sealed).map_err(forged)?;
        let (crc, rest) = opened.split_at_checked(4).ok_or_else(|| forged(ring::error::Unspecified))?;
        Ok((u32::from_le_bytes(crc.try_into().expect("four bytes")), rest))
    }
}

pub fn crc_of(bulk: &[Bytes]) -> u32 {
    let mut crc = Crc32c::new(&[]);
    bulk.iter().for_each(|piece| crc.update(piece));
    crc.finish()
}

#[cfg(test)]
mod tests {
    use super::super::tls::{self, Authority, CERTIFICATE_LIFE};
    use super::*;
    use base::ids::NodeId;
    use rustls::{ClientConnection, ServerConnection};
    use std::time::SystemTime;

    fn sealed(sealing: &mut Sealing, bulk: &[Bytes]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        sealing.seal(&[b"header", b"head"], bulk, &mut out);
        out.split_off(6)
    }

    fn open(opening: &mut Sealing, raw: &[u8]) -> io::Result<(u32, Vec<u8>)> {
        let (len, mut rest) = (raw[..4].try_into().unwrap(), raw[4..].to_vec());
        assert_eq!(u32::from_le_bytes(len) as usize, rest.len());
        opening.open(len, &mut rest).map(|(crc, opened)| (crc, opened.to_vec()))
    }

    #[test]
    fn only_the_next_frame_of_the_same_key_opens_and_no_byte_of_it_may_differ() {
        let bulk = [Bytes::from_static(b"1234"), Bytes::from_static(b"56789")];
        let mut sealing = Sealing::new(&[7; 32]);
        let (first, second) = (sealed(&mut sealing, &bulk), sealed(&mut sealing, &[]));
        assert!(!first.windows(4).any(|window| window == b"head"));
        let mut opening = Sealing::new(&[7; 32]);
        // CRC-32C of "123456789": the check value of RFC 3720's polynomial.
        assert_eq!(open(&mut opening, &first).unwrap(), (0xe306_9283, b"headerhead".to_vec()));
        assert_eq!(open(&mut opening, &second).unwrap(), (0, b"headerhead".to_vec()));
        assert!(open(&mut Sealing::new(&[7; 32]), &second).is_err(), "out of turn");
        assert!(open(&mut opening, &first).is_err(), "again");
        assert!(open(&mut Sealing::new(&[8; 32]), &first).is_err(), "another key");
        for at in 4..first.len() {
            let mut altered = first.clone();
            altered[at] ^= 1;
            assert!(open(&mut Sealing::new(&[7; 32]), &altered).is_err(), "byte {at}");
        }
        // A peer with the right key that seals less than it must.
        let mut out = Vec::new();
        let tag = Sealing::new(&[7; 32]).key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from([19, 0, 0, 0]),
            &mut [1, 2, 3],
        );
        out.extend_from_slice(tag.unwrap().as_ref());
        assert!(Sealing::new(&[7; 32]).open([19, 0, 0, 0], &mut out).is_err());
    }

    /// Key and nonce must never be the same for both directions.
    #[test]
    fn each_side_opens_what_the_other_seals_and_never_its_own() {
        let authority = Authority::make().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let issue = |node| authority.issue(NodeId(node), CERTIFICATE_LIFE, now).unwrap();
        let mut caller = ClientConnection::new(issue(1).client, tls::server_name(NodeId(2))).unwrap();
        let mut answerer = ServerConnection::new(issue(2).server).unwrap();
        while caller.is_handshaking() || answerer.is_handshaking() {
            let mut wire = Vec::new();
            while caller.wants_write() {
                caller.write_tls(&mut wire).unwrap();
            }
            answerer.read_tls(&mut wire.as_slice()).unwrap();
            answerer.process_new_packets().unwrap();
            wire.clear();
            while answerer.wants_write() {
                answerer.write_tls(&mut wire).unwrap();
            }
            caller.read_tls(&mut wire.as_slice()).unwrap();
            caller.process_new_packets().unwrap();
        }
        let keys = || (Keys::of(&caller, true).unwrap(), Keys::of(&answerer, false).unwrap());
        let ((mut near, mut far), (mut again, _)) = (keys(), keys());
        let (there, back) = (sealed(&mut near.sealing, &[]), sealed(&mut far.sealing, &[]));
        assert_ne!(there, back);
        assert!(open(&mut far.opening, &there).is_ok() && open(&mut near.opening, &back).is_ok());
        assert!(open(&mut again.opening, &there).is_err(), "its own words, sent back");
    }
}
