//! Requests by operation and status, with the time to the first byte of the answer.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

use crate::operation::Operation;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabel {
    operation: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OperationLabel {
    operation: String,
}

/// What one gateway has answered.
#[derive(Clone)]
pub struct S3Meter {
    requests: Family<RequestLabel, Counter>,
    seconds: Family<OperationLabel, Histogram, fn() -> Histogram>,
}

impl Default for S3Meter {
    fn default() -> S3Meter {
        // From half a millisecond to 16 s.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        S3Meter { requests: Family::default(), seconds: Family::new_with_constructor(seconds) }
    }
}

impl S3Meter {
    pub fn register(&self, registry: &mut Registry) {
        let requests = self.requests.clone();
        registry.register("s3_requests", "Requests answered, by operation and HTTP status", requests);
        let seconds = self.seconds.clone();
        registry.register("s3_request_seconds", "From a request's head to the first byte of its answer", seconds);
    }

    /// `operation`: `None` when the request was refused before one could tell.
    pub(crate) fn record(&self, operation: Option<Operation>, code: u16, took: Duration) {
        let operation = operation.map_or("none".into(), |operation| format!("{operation:?}"));
        self.requests.get_or_create(&RequestLabel { operation: operation.clone(), code }).inc();
        self.seconds.get_or_create(&OperationLabel { operation }).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_operation_and_code() {
        let meter = S3Meter::default();
        meter.record(Some(Operation::ListBuckets), 200, Duration::from_millis(3));
        meter.record(Some(Operation::ListBuckets), 200, Duration::from_millis(3));
        meter.record(None, 403, Duration::from_micros(10));
        let mut registry = Registry::with_prefix("henge");
        meter.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("henge_s3_requests_total{operation=\"ListBuckets\",code=\"200\"} 2"), "{text}");
        assert!(text.contains("henge_s3_requests_total{operation=\"none\",code=\"403\"} 1"), "{text}");
        assert!(text.contains("henge_s3_request_seconds_count{operation=\"ListBuckets\"} 2"), "{text}");
    }
}
