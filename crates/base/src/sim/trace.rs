//! The running hash of everything that happened: two runs with equal hashes were, for all practical purposes, the
//! same run. A difference is found by recording both runs and comparing the lists.

use crate::env::MonoTime;

/// What kind of thing happened. The two numbers beside it are told per kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceKind {
    /// A task ran: its slot, and how many tasks that slot had before.
    Task,
    /// A timer fired: its sequence number.
    Timer,
    /// A disk operation was started: node, digest of the operation.
    DiskStart,
    /// A disk operation completed: node, operation number.
    DiskDone,
    /// A message was sent: sender and receiver, digest of the message.
    Send,
    /// A message arrived: sender and receiver, digest of the message.
    Deliver,
    /// A node crashed: node, incarnation.
    Crash,
    /// A node started: node, incarnation.
    Start,
    /// A fault was injected: node, which.
    Fault,
}

/// One thing that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceEvent {
    pub at: MonoTime,
    pub kind: TraceKind,
    pub a: u64,
    pub b: u64,
}

#[derive(Default)]
pub(super) struct Trace {
    hash: u64,
    recorded: Option<Vec<TraceEvent>>,
}

impl Trace {
    pub(super) fn push(&mut self, now_nanos: u64, kind: TraceKind, a: u64, b: u64) {
        self.hash = fold(fold(fold(self.hash, now_nanos ^ ((kind as u64) << 56)), a), b);
        if let Some(recorded) = &mut self.recorded {
            recorded.push(TraceEvent { at: MonoTime(now_nanos), kind, a, b });
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn record(&mut self) {
        self.recorded.get_or_insert_default();
    }

    pub(super) fn recorded(&self) -> Vec<TraceEvent> {
        self.recorded.clone().unwrap_or_default()
    }
}

/// One step of a fast hash (as in FxHash): order matters, quality suffices to tell runs apart.
pub(super) fn fold(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// A digest of the length and of both ends of `data`: enough to see that two runs wrote or sent different things.
pub(super) fn digest(mut hash: u64, data: &[u8]) -> u64 {
    const END_LEN: usize = 64;
    hash = fold(hash, data.len() as u64);
    for piece in data[..data.len().min(END_LEN)].chunks(8) {
        hash = fold(hash, word(piece));
    }
    for piece in data[data.len().saturating_sub(END_LEN)..].chunks(8) {
        hash = fold(hash, word(piece));
    }
    hash
}

/// As [`digest`], of data in pieces. How it is cut does not matter: that may follow where an allocator put it.
pub(super) fn digest_pieces(hash: u64, pieces: &[bytes::Bytes]) -> u64 {
    const END_LEN: usize = 64;
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let head: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter()).take(END_LEN).copied().collect();
    let tail: Vec<u8> = pieces.iter().rev().flat_map(|piece| piece.iter().rev()).take(END_LEN).copied().collect();
    digest(digest(fold(hash, len as u64), &head), &tail)
}

fn word(piece: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..piece.len()].copy_from_slice(piece);
    u64::from_le_bytes(bytes)
}
