//! What `fuzz/` reaches of the key-value store's files. Only compiled for it.

use bytes::Bytes;

use super::{block, filter, manifest, run};

/// Walks over a block further than any real one has entries.
const STEPS_MAX: usize = 10_000;

/// The first byte chooses the kind of content; the rest is as if its checksum had been right.
pub fn key_value(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 5 {
        0 => walk(Bytes::copy_from_slice(data)),
        1 => {
            let _ = run::list_index(&Bytes::copy_from_slice(data), &Bytes::new());
        }
        2 => {
            let Some((parts, data)) = data.split_first() else { return };
            if let Ok(mut parts) = run::decode_directory(data, u32::from(*parts)) {
                let _ = run::decode_firsts(data, &mut parts);
            }
        }
        3 => {
            let _ = manifest::decode(data, 7);
            let _ = manifest::decode_body(data, 1);
        }
        _ => {
            let _ = filter::may_contain(data, filter::hash(data));
        }
    }
}

fn walk(content: Bytes) {
    let Ok(mut cursor) = block::BlockCursor::new(content.clone()) else { return };
    let target = content.get(..8).unwrap_or_default();
    if cursor.seek(target).is_ok() && cursor.key().is_some() {
        let _ = cursor.cell();
    }
    if cursor.first().is_err() {
        return;
    }
    for _ in 0..STEPS_MAX {
        let Some(key) = cursor.key() else { return };
        let _ = cursor.cell().verifies(key);
        if cursor.advance().is_err() {
            return;
        }
    }
}
