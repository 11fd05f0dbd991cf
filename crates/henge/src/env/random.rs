//! Random bits from the kernel's generator (getrandom(2)), good enough for credentials.

use base::env::Random;
use std::sync::Mutex;

/// One system call fetches this many bytes; getrandom(2) never returns fewer than asked for up to 256.
const BUFFER_BYTES: usize = 256;

pub struct SystemRandom {
    buffer: Mutex<Buffer>,
}

struct Buffer {
    bytes: [u8; BUFFER_BYTES],
    used: usize,
}

impl SystemRandom {
    pub fn new() -> SystemRandom {
        SystemRandom { buffer: Mutex::new(Buffer { bytes: [0; BUFFER_BYTES], used: BUFFER_BYTES }) }
    }
}

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        let mut buffer = self.buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if buffer.used == BUFFER_BYTES {
            fill(&mut buffer.bytes);
            buffer.used = 0;
        }
        let start = buffer.used;
        let mut out = [0; 8];
        out.copy_from_slice(&buffer.bytes[start..start + 8]);
        // What was handed out is forgotten here, so that a later look at this memory tells no key.
        buffer.bytes[start..start + 8].fill(0);
        buffer.used += 8;
        u64::from_le_bytes(out)
    }
}

fn fill(out: &mut [u8; BUFFER_BYTES]) {
    loop {
        // SAFETY: the pointer and length describe `out`, which is exclusively borrowed.
        let got = unsafe { libc::getrandom(out.as_mut_ptr().cast(), out.len(), 0) };
        if got == BUFFER_BYTES as isize {
            return;
        }
        let error = std::io::Error::last_os_error();
        assert!(
            got >= 0 || error.kind() == std::io::ErrorKind::Interrupted,
            "without the kernel's randomness no credential can be made: {error}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn never_repeats_across_refills() {
        let random = SystemRandom::new();
        let drawn: BTreeSet<u64> = (0..1000).map(|_| random.next_u64()).collect();
        assert_eq!(drawn.len(), 1000);
    }
}
