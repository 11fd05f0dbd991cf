//! Latencies of any number of operations in fixed memory: 32 buckets per power of two, so at most 3 % off (after
//! HdrHistogram).

use std::time::Duration;

const SUB_BUCKETS_LOG2: u32 = 5;
const SUB_BUCKETS: usize = 1 << SUB_BUCKETS_LOG2;
/// Covers 2^40 microseconds, which is 12 days.
const BUCKETS: usize = 40 * SUB_BUCKETS;

#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    max_us: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], max_us: 0 }
    }

    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket_of(us)] += 1;
        self.max_us = self.max_us.max(us);
    }

    pub fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.max_us = self.max_us.max(other.max_us);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The latency in microseconds that `percent` of all operations kept below, about.
    pub fn percentile_us(&self, percent: f64) -> u64 {
        let wanted = (self.count() as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return lower_end_us(bucket).min(self.max_us);
            }
        }
        self.max_us
    }

    pub fn max_us(&self) -> u64 {
        self.max_us
    }
}

fn bucket_of(us: u64) -> usize {
    if us < SUB_BUCKETS as u64 {
        return us as usize;
    }
    let shift = us.ilog2() - SUB_BUCKETS_LOG2;
    let sub = (us >> shift) as usize - SUB_BUCKETS;
    ((shift as usize + 1) * SUB_BUCKETS + sub).min(BUCKETS - 1)
}

fn lower_end_us(bucket: usize) -> u64 {
    match bucket / SUB_BUCKETS {
        0 => bucket as u64,
        row => ((bucket % SUB_BUCKETS + SUB_BUCKETS) as u64) << (row - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_near_the_truth() {
        let mut histogram = Histogram::new();
        for us in 1..=100_000u64 {
            histogram.record(Duration::from_micros(us));
        }
        for (percent, truth) in [(50.0, 50_000.0), (99.0, 99_000.0), (99.9, 99_900.0)] {
            let told = histogram.percentile_us(percent) as f64;
            assert!((told / truth - 1.0f64).abs() < 0.035, "{percent}: {told}");
        }
        assert_eq!((histogram.count(), histogram.max_us()), (100_000, 100_000));
        let mut other = Histogram::new();
        other.merge(&histogram);
        assert_eq!(other.percentile_us(0.0), 1);
    }

    #[test]
    fn every_bucket_begins_where_it_says() {
        for bucket in 0..BUCKETS - SUB_BUCKETS {
            assert_eq!(bucket_of(lower_end_us(bucket)), bucket);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }
}
