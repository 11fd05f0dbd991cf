//! What `fuzz/` reaches of a node's own files and of what its peers say. Only compiled for it.

use base::env::Frame;
use bytes::Bytes;

use crate::{backup, group, home, repair, transport};

/// The first byte chooses what the rest is.
pub fn files(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 5 {
        0 => {
            let _ = group::decode_hard_state(data);
        }
        1 => {
            let _ = home::decode_contacts(&home::sealed(data.to_vec()));
        }
        2 => {
            if let Ok(entries) = repair::exchange::decode(data) {
                assert_eq!(repair::exchange::encode(&entries).len(), data.len(), "a page has one length");
            }
        }
        3 => {
            let _ = transport::decode(&Frame { head: Bytes::copy_from_slice(data), bulk: Vec::new() });
        }
        _ => {
            let _ = backup::check(&backup::framed(data)[..]);
        }
    }
}
