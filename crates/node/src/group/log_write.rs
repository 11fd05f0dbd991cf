//! One round of the log, in pieces that the store takes.
//!
//! A follower that comes back is sent all that it lacks in one go. Only when the last piece is durable is anything
//! acknowledged; a crash in between leaves a log that ends earlier, of which nobody was told otherwise.

use store::RaftWrite;

const PIECE_BYTES_MAX: usize = 1 << 20;
const PIECE_ENTRIES_MAX: usize = 8 << 10;

const _: () = assert!(PIECE_BYTES_MAX < store::RAFT_WRITE_LEN_MAX && PIECE_ENTRIES_MAX < store::RAFT_WRITE_ENTRIES_MAX);

/// The first piece carries all that comes before the entries, the last one what comes after them. An entry that is longer
/// than a piece is one by itself. Entries behind a reset were never acknowledged: those that were are kept by a trim instead.
pub fn in_pieces(mut write: RaftWrite) -> Vec<RaftWrite> {
    let (group, peer) = (write.group, write.peer);
    let entries = std::mem::take(&mut write.entries);
    let trim_to = write.trim_to.take();
    let mut pieces = vec![write];
    let mut bytes = 0;
    for entry in entries {
        let last = pieces.last().expect("there is a first piece");
        let is_full = last.entries.len() == PIECE_ENTRIES_MAX || bytes + entry.data.len() > PIECE_BYTES_MAX;
        if is_full && !last.entries.is_empty() {
            pieces.push(RaftWrite { group, peer, ..RaftWrite::default() });
            bytes = 0;
        }
        bytes += entry.data.len();
        pieces.last_mut().expect("there is a first piece").entries.push(entry);
    }
    pieces.last_mut().expect("there is a first piece").trim_to = trim_to;
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::{GroupId, LogIndex, PeerId, Term};
    use bytes::Bytes;
    use store::RaftEntry;

    fn write(lens: &[usize]) -> RaftWrite {
        let entry = |(at, len): (usize, &usize)| {
            let index = LogIndex(at as u64 + 1);
            RaftEntry { index, term: Term(1), data: Bytes::from(vec![1; *len]) }
        };
        let entries = lens.iter().enumerate().map(entry).collect();
        let reset = Some((LogIndex(0), Term(0)));
        RaftWrite {
            group: GroupId(1),
            peer: PeerId(2),
            hard_state: Some(Bytes::new()),
            reset,
            entries,
            trim_to: Some(LogIndex(1)),
        }
    }

    #[test]
    fn a_round_of_the_usual_size_is_one_piece() {
        for lens in [&[][..], &[10, 20, 30], &[PIECE_BYTES_MAX], &[3 * PIECE_BYTES_MAX]] {
            assert_eq!(in_pieces(write(lens)), [write(lens)]);
        }
    }

    #[test]
    fn many_or_long_entries_are_several_pieces_that_begin_with_the_reset_and_end_with_the_trim() {
        for lens in [vec![1; 3 * PIECE_ENTRIES_MAX + 1], vec![PIECE_BYTES_MAX / 3; 10], vec![PIECE_BYTES_MAX + 1; 4]] {
            let whole = write(&lens);
            let pieces = in_pieces(whole.clone());
            assert_eq!(pieces.len(), 4);
            assert!(pieces[0].reset.is_some() && pieces[0].hard_state.is_some());
            assert!(pieces[1..].iter().all(|piece| piece.reset.is_none() && piece.hard_state.is_none()));
            assert!(pieces[..3].iter().all(|piece| piece.trim_to.is_none()) && pieces[3].trim_to == whole.trim_to);
            assert!(pieces.iter().all(|piece| (piece.group, piece.peer) == (whole.group, whole.peer)));
            let entries: Vec<RaftEntry> = pieces.into_iter().flat_map(|piece| piece.entries).collect();
            assert_eq!(entries, whole.entries);
        }
    }
}
