//! What Prometheus scrapes: counters kept while serving, and gauges filled in from the status at each scrape.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use store::EngineStats;

use crate::control;
use crate::service::Service;
use crate::status::{Status, Verdict};

/// Counters of one node.
#[derive(Default)]
pub struct Counters {
    pub damaged_rows: Counter,
    pub garbage_chunks: Counter,
    pub orphan_chunks: Counter,
    pub expired: Counter,
    pub kv_flushes: Counter,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DiskLabel {
    disk: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabel {
    node: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GroupLabel {
    group: u64,
    kind: String,
}

type DiskGauge = Family<DiskLabel, Gauge>;

/// All metrics in the text exposition format.
pub fn text(service: &Service, status: &Status) -> String {
    let (counters, disks) = (&*service.counters, &*service.disks);
    let mut registry = Registry::with_prefix("henge");
    registry.register("metadata_rows_damaged", "Reads that met damaged metadata", counters.damaged_rows.clone());
    registry.register("garbage_chunks", "Chunks deleted after nothing named them", counters.garbage_chunks.clone());
    registry.register("orphan_chunks", "Chunks removed that were never committed", counters.orphan_chunks.clone());
    registry.register("expired", "Keys and uploads that lifecycle rules came to", counters.expired.clone());
    registry.register("metadata_flushes", "Flushes of the key-value store", counters.kv_flushes.clone());
    let repair = &service.repair.counters;
    registry.register("repair_chunks", "Chunks pulled from other nodes", repair.pulled_chunks.clone());
    registry.register("repair_bytes", "Bytes of chunks pulled from other nodes", repair.pulled_bytes.clone());
    registry.register("repair_buried_chunks", "Copies deleted as others had", repair.buried_chunks.clone());
    registry.register("repair_evicted_chunks", "Copies that left with their group", repair.evicted_chunks.clone());
    register_status(&mut registry, status);
    let offset = Family::<NodeLabel, Gauge<f64, AtomicU64>>::default();
    for (node, offset_ms) in service.control.observations().clock_offsets_ms() {
        offset.get_or_create(&NodeLabel { node: node.0 }).set(offset_ms as f64 / 1000.0);
    }
    registry.register("clock_offset_seconds", "How far the clock of a node is ahead of this node's", offset);
    let settled: Gauge = Gauge::default();
    settled.set(i64::from(control::is_settled(&service.map.borrow())));
    registry.register("placement_settled", "1 when every placement group is open and where it belongs", settled);
    for disk in &disks.all {
        let label = DiskLabel { disk: disk.label.clone() };
        if let Ok(engine) = &disk.engine {
            register_engine(&mut registry, &label, &engine.stats());
        }
    }
    let mut out = String::new();
    // Writing into a string fails only when a metric cannot be formatted; then the rest is still worth having.
    let _ = encode(&mut out, &registry);
    out
}

fn register_status(registry: &mut Registry, status: &Status) {
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let verdict = match status.verdict {
        Verdict::Safe => 0,
        Verdict::AtRisk => 1,
        Verdict::Unavailable => 2,
        Verdict::Lost => 3,
    };
    gauge(registry, "verdict", "0 safe, 1 at risk, 2 unavailable, 3 lost", verdict);
    gauge(registry, "map_version", "Version of the cluster map", status.epoch as i64);
    gauge(registry, "chunks", "Chunks stored", status.chunks.total as i64);
    gauge(
        registry,
        "chunks_degraded",
        "Chunks with fewer copies than their pool asks for",
        status.chunks.degraded as i64,
    );
    gauge(registry, "chunks_corrupt", "Copies found damaged", status.chunks.corrupt as i64);
    gauge(registry, "chunks_lost", "Chunks without a good copy", status.chunks.lost as i64);
    let (capacity, used) = (DiskGauge::default(), DiskGauge::default());
    for disk in status.nodes.iter().flat_map(|node| &node.disks) {
        let label = DiskLabel { disk: disk.path.clone() };
        capacity.get_or_create(&label).set(disk.total_bytes as i64);
        used.get_or_create(&label).set(disk.used_bytes as i64);
    }
    registry.register("disk_capacity_bytes", "What the disk may hold", capacity);
    registry.register("disk_used_bytes", "What is taken on the disk", used);
    let term = Family::<GroupLabel, Gauge>::default();
    for group in &status.groups {
        term.get_or_create(&GroupLabel { group: group.id, kind: group.kind.to_string() }).set(group.term as i64);
    }
    registry.register("group_term", "Raft term of the group", term);
}

fn register_engine(registry: &mut Registry, label: &DiskLabel, stats: &EngineStats) {
    let rows: [(&str, &str, u64); 15] = [
        ("store_flushes", "Flushes of volumes", stats.flushes),
        ("store_batches", "Batches written to the journal", stats.batches),
        ("store_records", "Records written to the journal", stats.records),
        ("store_journal_bytes", "Bytes written to journal volumes", stats.journal_bytes),
        ("store_bulk_bytes", "Bytes written to bulk volumes", stats.bulk_bytes),
        ("store_copied_bytes", "Payload bytes copied in memory on their way to the disk", stats.copied_bytes),
        ("store_read_bytes", "Bytes read for users", stats.read_bytes),
        ("store_puts", "Chunks stored", stats.puts),
        ("store_gets", "Chunk reads", stats.gets),
        ("store_deletes", "Tombstones written", stats.deletes),
        ("store_conflicts", "Stores refused because the id named other bytes", stats.conflicts),
        ("store_damaged", "Records found damaged", stats.damaged),
        ("store_compacted_bytes", "Bytes rewritten by compaction", stats.compacted_bytes),
        ("store_scrub_passes", "Scrub passes completed", stats.scrub_passes),
        ("store_scrubbed_bytes", "Bytes verified by scrubs", stats.scrubbed_bytes),
    ];
    let sub = registry.sub_registry_with_label(("disk".into(), label.disk.clone().into()));
    for (name, help, value) in rows {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        sub.register(name, help, counter);
    }
}
