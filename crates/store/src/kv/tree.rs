//! The runs of a store at one moment, and which of them to merge next. Pure: a tree never changes, a new one takes
//! its place.
//!
//! Level 0 holds runs as flushes made them; they overlap, and newer ones come first. The runs of a deeper level do
//! not overlap, and each level may hold ten times the bytes of the one above it.
//!
//! **What is merged next**, and what that costs:
//! 1. Level 0 has `l0_runs` runs or more, and its bytes are at least a quarter of those they overlap in level 1: all
//!    of them go down together. So each byte of level 0 rewrites at most four of level 1.
//! 2. Level 0 has that many, but they are small, as in a store that is flushed often: `l0_runs` neighbours of similar
//!    size become one run of level 0. So small flushes cost a logarithm, not a rewrite of level 1 each.
//! 3. Level 0 is crowded with runs of all sizes: the newer half of them, the smaller ones, become one.
//! 4. A deeper level is over its size: its run that overlaps the fewest bytes of the next level, for its own size,
//!    goes down. If it overlaps none, it moves without being rewritten.
//! 5. Deletions are a quarter of all rows below level 0: the runs in which they are most go down, until they meet
//!    what they delete, so that space comes back although a deletion is small.

use std::sync::Arc;

use super::block::Cell;
use super::cursor::{LevelCursor, Source};
use super::filter;
use super::manifest::LEVELS;
use super::run::{Run, RunMeta};
use super::{KvError, KvOptions};

/// How many times the mean of its neighbours a run's size may be to count as similar.
const SIMILAR: u64 = 3;
/// Which part of all rows may be deletions: one in so many.
const DELETIONS_SHARE: u64 = 4;
/// How many bytes of level 1 may be rewritten for one of level 0.
const REWRITE_MAX: u64 = 4;

#[derive(Clone)]
pub(super) struct Tree {
    levels: Vec<Arc<[Arc<Run>]>>,
}

/// A merge to do.
pub(super) struct Job {
    /// Newest first; each a list of runs in key order that do not overlap.
    pub(super) inputs: Vec<Vec<Arc<Run>>>,
    /// Where the result goes.
    pub(super) level: usize,
    /// Nothing below overlaps, and nothing is to be dropped: the one input moves as it is.
    pub(super) moves: bool,
}

impl Tree {
    pub(super) fn new(levels: Vec<Vec<Arc<Run>>>) -> Tree {
        assert_eq!(levels.len(), LEVELS, "a tree has all levels");
        Tree { levels: levels.into_iter().map(Arc::from).collect() }
    }

    pub(super) fn level(&self, level: usize) -> &[Arc<Run>] {
        &self.levels[level]
    }

    pub(super) fn levels(&self) -> impl Iterator<Item = &[Arc<Run>]> {
        self.levels.iter().map(|runs| &runs[..])
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.levels.iter().flat_map(|runs| runs.iter())
    }

    pub(super) fn metas(&self) -> Vec<Vec<RunMeta>> {
        self.levels().map(|runs| runs.iter().map(|run| run.meta.clone()).collect()).collect()
    }

    /// The newest cell of `key` in any run.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Cell>, KvError> {
        let hash = filter::hash(key);
        for run in self.level(0) {
            if let Some(cell) = run.get(key, hash)? {
                return Ok(Some(cell));
            }
        }
        for runs in &self.levels[1..] {
            let at = runs.partition_point(|run| &run.meta.last[..] < key);
            if let Some(run) = runs.get(at)
                && let Some(cell) = run.get(key, hash)?
            {
                return Ok(Some(cell));
            }
        }
        Ok(None)
    }

    /// Cursors at `from` over all runs that may hold keys of `from..to`, newest first.
    pub(super) fn sources(&self, from: &[u8], to: &[u8], out: &mut Vec<Source>) {
        for run in self.level(0).iter().filter(|run| run.meta.overlaps(from, to)) {
            out.push(Source::Level(Box::new(LevelCursor::new(Arc::from([run.clone()]), from))));
        }
        for runs in &self.levels[1..] {
            let at = runs.partition_point(|run| &run.meta.last[..] < from);
            if !runs.get(at).is_some_and(|run| run.meta.overlaps(from, to)) {
                continue;
            }
            out.push(Source::Level(Box::new(LevelCursor::new(runs.clone(), from))));
        }
    }

    /// This tree with a flushed run on top.
    pub(super) fn with_flushed(&self, run: Arc<Run>) -> Tree {
        let mut tree = self.clone();
        tree.levels[0] = std::iter::once(run).chain(self.level(0).iter().cloned()).collect();
        tree
    }

    /// This tree with the inputs of `job` replaced by `outputs`, which are in key order.
    pub(super) fn with_merged(&self, job: &Job, outputs: Vec<Arc<Run>>) -> Tree {
        let gone = |run: &Arc<Run>| job.inputs.iter().flatten().any(|input| Arc::ptr_eq(input, run));
        let mut levels: Vec<Vec<Arc<Run>>> = self.levels().map(<[Arc<Run>]>::to_vec).collect();
        if job.level == 0 {
            // The result takes the place of the newest input: runs flushed since stand before it, older ones behind.
            let at = levels[0].iter().position(gone).expect("the inputs are in the tree until they are replaced");
            levels[0].splice(at..at, outputs);
        } else {
            levels[job.level].extend(outputs);
        }
        let outputs_stay = |run: &Arc<Run>| !gone(run) || job.moves;
        for (at, runs) in levels.iter_mut().enumerate() {
            if at == job.level {
                runs.retain(outputs_stay)
            } else {
                runs.retain(|run| !gone(run))
            }
            if at > 0 {
                runs.sort_by(|a, b| a.meta.first.cmp(&b.meta.first));
            }
        }
        let tree = Tree::new(levels);
        tree.assert_ordered();
        tree
    }

    /// This tree with some runs replaced, each by one with a part of its rows or by none.
    pub(super) fn with_exchanged(&self, exchanges: &[(Arc<Run>, Option<Arc<Run>>)]) -> Tree {
        let exchanged = |run: &Arc<Run>| match exchanges.iter().find(|(old, _)| Arc::ptr_eq(old, run)) {
            Some((_, new)) => new.clone(),
            None => Some(run.clone()),
        };
        let tree = Tree::new(self.levels().map(|runs| runs.iter().filter_map(exchanged).collect()).collect());
        tree.assert_ordered();
        tree
    }

    /// The runs of each level below 0 rise and do not overlap.
    fn assert_ordered(&self) {
        for runs in &self.levels[1..] {
            assert!(runs.windows(2).all(|pair| pair[0].meta.last < pair[1].meta.first), "a level does not overlap");
        }
    }

    /// Whether a level below `level` may hold `key`; if not, a deletion of it that arrives at `level` is at its end.
    pub(super) fn holds_below(&self, level: usize, key: &[u8]) -> bool {
        self.levels[level + 1..].iter().any(|runs| {
            let at = runs.partition_point(|run| &run.meta.last[..] < key);
            runs.get(at).is_some_and(|run| run.meta.overlaps(key, key))
        })
    }

    /// The next merge, if one is due. Runs known to be damaged take no part.
    pub(super) fn next_job(&self, options: &KvOptions) -> Option<Job> {
        let too_large = |level: &usize| bytes(self.level(*level)) > options.level_bytes_max(*level);
        self.level0_job(options)
            .or_else(|| (1..LEVELS - 1).filter(too_large).find_map(|level| self.level_job(level, |_| true)))
            .or_else(|| self.deletions_job())
    }

    fn deletions_job(&self) -> Option<Job> {
        let many = |deletions: u64, entries: u64| deletions.saturating_mul(DELETIONS_SHARE) > entries;
        let below: Vec<&Arc<Run>> = self.levels[1..].iter().flat_map(|runs| runs.iter()).collect();
        let deletions = below.iter().map(|run| run.meta.deletions).sum();
        if !many(deletions, below.iter().map(|run| run.meta.entries).sum()) {
            return None;
        }
        let has_many = |run: &Run| many(run.meta.deletions, run.meta.entries);
        (1..LEVELS - 1).find_map(|level| self.level_job(level, has_many))
    }

    fn level0_job(&self, options: &KvOptions) -> Option<Job> {
        let top = self.level(0);
        if top.len() < options.l0_runs || top.iter().any(|run| run.is_damaged()) {
            return None;
        }
        let below = self.overlapped(1, top);
        let top_bytes = bytes(top);
        let worth_it = top_bytes.saturating_mul(REWRITE_MAX) >= bytes(&below);
        if !worth_it {
            let crowded = top.len() >= options.l0_runs_max / 2 + options.l0_runs;
            let newer_half = crowded.then(|| &top[..top.len() / 2]);
            let inputs = similar_neighbours(top, options.l0_runs).or(newer_half)?;
            return Some(Job { inputs: inputs.iter().map(|run| vec![run.clone()]).collect(), level: 0, moves: false });
        }
        if below.iter().any(|run| run.is_damaged()) {
            return None;
        }
        let inputs = top.iter().map(|run| vec![run.clone()]).chain([below]).collect();
        Some(Job { inputs, level: 1, moves: false })
    }

    /// Takes the run of `level` down that costs least, among those that are `eligible`.
    fn level_job(&self, level: usize, eligible: impl Fn(&Run) -> bool) -> Option<Job> {
        let runs = self.level(level);
        // Overlapped bytes per 1,024 own bytes; the smallest key decides between equals.
        let cost = |run: &Arc<Run>, below: &[Arc<Run>]| bytes(below).saturating_mul(1024) / run.meta.size_bytes.max(1);
        let (_, run, below) = runs
            .iter()
            .filter(|run| eligible(run))
            .map(|run| (run, self.overlapped(level + 1, std::slice::from_ref(run))))
            .filter(|(run, below)| !run.is_damaged() && !below.iter().any(|run| run.is_damaged()))
            .map(|(run, below)| (cost(run, &below), run, below))
            .min_by_key(|(cost, _, _)| *cost)?;
        let ends_here = || !self.levels[level + 2..].iter().any(|runs| overlaps_any(runs, run));
        let moves = below.is_empty() && (run.meta.deletions == 0 || !ends_here());
        Some(Job { inputs: vec![vec![run.clone()], below], level: level + 1, moves })
    }

    /// The runs of `level` that overlap the range from the first to the last key of `runs`.
    fn overlapped(&self, level: usize, runs: &[Arc<Run>]) -> Vec<Arc<Run>> {
        let first = runs.iter().map(|run| &run.meta.first).min();
        let last = runs.iter().map(|run| &run.meta.last).max();
        let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
        self.level(level).iter().filter(|run| run.meta.overlaps(first, last)).cloned().collect()
    }
}

/// The newest neighbours, at least `count`, that are of similar size.
fn similar_neighbours(runs: &[Arc<Run>], count: usize) -> Option<&[Arc<Run>]> {
    (0..runs.len()).find_map(|start| {
        let mut sum = 0;
        let similar = runs[start..].iter().enumerate().take_while(|(at, run)| {
            let joins = *at == 0 || run.meta.size_bytes * *at as u64 <= SIMILAR * sum;
            sum += run.meta.size_bytes;
            joins
        });
        let len = similar.count();
        (len >= count).then(|| &runs[start..start + len])
    })
}

fn bytes(runs: &[Arc<Run>]) -> u64 {
    runs.iter().map(|run| run.meta.size_bytes).sum()
}

fn overlaps_any(runs: &[Arc<Run>], run: &Run) -> bool {
    runs.iter().any(|other| other.meta.overlaps(&run.meta.first, &run.meta.last))
}
