//! What Prometheus scrapes: counters kept while serving, and gauges filled in from the status at each scrape.

use base::env::MonoTime;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use protocol::detector::Opinion;
use std::sync::atomic::AtomicU64;
use store::EngineStats;

use crate::control;
use crate::disks::NodeDisk;
use crate::repair::Urgency;
use crate::service::Service;
use crate::status::{Status, Verdict};

/// Counters of one node.
#[derive(Default)]
pub struct Counters {
    pub damaged_rows: Counter,
    pub garbage_chunks: Counter,
    pub orphan_chunks: Counter,
    pub expired: Counter,
    pub transitioned: Counter,
    pub kv_flushes: Counter,
    /// Requests of sessions that were fenced.
    pub stale_generations: Counter,
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabel {
    node: u32,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UrgencyLabel {
    urgency: &'static str,
}

type Seconds<L> = Family<L, Gauge<f64, AtomicU64>>;

/// All metrics in the text exposition format; `lagging`: chunks acknowledged while copies of them are under way; `more`
/// registers those of others, such as gateways.
pub fn text(service: &Service, status: &Status, lagging: usize, more: &dyn Fn(&mut Registry)) -> String {
    let mut registry = Registry::with_prefix("henge");
    register_counters(&mut registry, service);
    let help = "Chunks that were acknowledged while copies are under way (majority, one)";
    gauge(&mut registry, "lagging_stores", help, lagging as u64);
    register_status(&mut registry, status);
    register_placement(&mut registry, service);
    register_nodes(&mut registry, service);
    register_groups(&mut registry, service);
    for disk in &service.disks.all {
        register_disk(&mut registry, service, disk);
    }
    more(&mut registry);
    let mut out = String::new();
    // Writing into a string fails only when a metric cannot be formatted; then the rest is still worth having.
    let _ = encode(&mut out, &registry);
    out
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn register_counters(registry: &mut Registry, service: &Service) {
    let counters = &*service.counters;
    registry.register("metadata_rows_damaged", "Reads that met damaged metadata", counters.damaged_rows.clone());
    registry.register("garbage_chunks", "Chunks deleted after nothing named them", counters.garbage_chunks.clone());
    registry.register("orphan_chunks", "Chunks removed that were never committed", counters.orphan_chunks.clone());
    registry.register(
        "transitioned",
        "Versions that lifecycle moved to another storage class",
        counters.transitioned.clone(),
    );
    registry.register("expired", "Keys and uploads that lifecycle rules came to", counters.expired.clone());
    registry.register("metadata_flushes", "Flushes of the key-value store", counters.kv_flushes.clone());
    registry.register("stale_generations", "Requests of fenced sessions, refused", counters.stale_generations.clone());
    let repair = &service.repair.counters;
    registry.register("repair_chunks", "Chunks pulled from other nodes", repair.pulled_chunks.clone());
    registry.register("repair_bytes", "Bytes of chunks pulled from other nodes", repair.pulled_bytes.clone());
    registry.register("repair_buried_chunks", "Copies deleted as others had", repair.buried_chunks.clone());
    registry.register("repair_evicted_chunks", "Copies that left with their group", repair.evicted_chunks.clone());
    registry.register("events", "What happened, by kind, as this node saw it", service.events.counts());
    service.traffic.register(registry);
}

fn register_status(registry: &mut Registry, status: &Status) {
    let verdict = match status.verdict {
        Verdict::Safe => 0,
        Verdict::AtRisk => 1,
        Verdict::Unavailable => 2,
        Verdict::Lost => 3,
    };
    gauge(registry, "verdict", "0 safe, 1 at risk, 2 unavailable, 3 lost", verdict);
    gauge(registry, "map_version", "Version of the cluster map", status.epoch);
    gauge(registry, "chunks", "Chunks stored", status.chunks.total);
    gauge(registry, "chunks_degraded", "Chunks with fewer copies than their pool asks for", status.chunks.degraded);
    gauge(registry, "chunks_corrupt", "Copies found damaged", status.chunks.corrupt);
    gauge(registry, "chunks_lost", "Chunks without a good copy", status.chunks.lost);
}

/// Redundancy, as the map and the comparisons of this node's copies show it.
fn register_placement(registry: &mut Registry, service: &Service) {
    let map = service.map.borrow().clone();
    let settled = u64::from(control::is_settled(&map));
    gauge(registry, "placement_settled", "1 when every placement group is open and where it belongs", settled);
    gauge(
        registry,
        "placement_copies_to_move",
        "Copies of groups to be made where they belong",
        control::to_move(&map),
    );
    let health = service.repair.health(&map, service.node);
    let groups = Family::<StateLabel, Gauge>::default();
    let states = [
        ("healthy", health.healthy),
        ("degraded", health.degraded),
        ("moving", health.moving),
        ("last_copy", health.last_copy),
        ("all", health.groups),
    ];
    for (state, count) in states {
        groups.get_or_create(&StateLabel { state }).set(count as i64);
    }
    registry.register("placement_groups", "Placement groups with a copy on this node", groups);
    let (chunks, bytes) = (Family::<UrgencyLabel, Gauge>::default(), Family::<UrgencyLabel, Gauge>::default());
    for urgency in Urgency::ALL {
        let owed = health.queue[urgency as usize];
        let label = UrgencyLabel { urgency: urgency.as_str() };
        chunks.get_or_create(&label).set(owed.chunks as i64);
        bytes.get_or_create(&label).set(owed.bytes as i64);
    }
    registry.register("repair_queue_chunks", "Copies that this node still lacks", chunks);
    registry.register_with_unit("repair_queue", "What this node still lacks", Unit::Bytes, bytes);
    let speed = health.pulled_bytes_per_s;
    gauge(registry, "repair_bytes_per_second", "How fast missing copies came lately", speed);
}

/// The other nodes, as this one sees them.
fn register_nodes(registry: &mut Registry, service: &Service) {
    let map = service.map.borrow().clone();
    let nodes = Family::<StateLabel, Gauge>::default();
    for state in ["up", "down", "lost", "draining", "removed", "joining"] {
        let count = map.nodes.iter().filter(|row| crate::status::state_name(row.state()) == state).count();
        nodes.get_or_create(&StateLabel { state }).set(count as i64);
    }
    registry.register("nodes", "Nodes of the cluster, by what it decided about them", nodes);
    let now = service.env.now();
    let observations = service.control.observations();
    let offset = Seconds::<NodeLabel>::default();
    for (node, offset_ms) in observations.clock_offsets_ms() {
        offset.get_or_create(&NodeLabel { node: node.0 }).set(offset_ms as f64 / 1000.0);
    }
    registry.register("clock_offset_seconds", "How far the clock of a node is ahead of this node's", offset);
    let (states, deadline) = (Family::<PeerLabel, Gauge>::default(), Seconds::<NodeLabel>::default());
    let silence = Seconds::<NodeLabel>::default();
    let detector = observations.detector();
    for (node, opinion) in detector.opinions() {
        for (state, this) in [
            ("trusted", Opinion::Trusted),
            ("suspect", Opinion::Suspect),
            ("silent", Opinion::Silent),
            ("cut", Opinion::Cut),
        ] {
            states.get_or_create(&PeerLabel { node: node.0, state }).set(i64::from(opinion == this));
        }
        let label = NodeLabel { node: node.0 };
        let heard = detector.heard(node).unwrap_or(MonoTime(0));
        silence.get_or_create(&label).set(now.since(heard).as_secs_f64());
        deadline.get_or_create(&label).set(detector.deadline(node).unwrap_or_default().as_secs_f64());
    }
    registry.register("detector_state", "1 for what this node thinks of another that it observes", states);
    registry.register("detector_deadline_seconds", "How long word of a node may be overdue, once", deadline);
    registry.register("detector_silence_seconds", "Since word of a node last came", silence);
}

fn register_groups(registry: &mut Registry, service: &Service) {
    let family = Family::<GroupLabel, Gauge>::default;
    let (term, leads, led, applied) = (family(), family(), family(), family());
    let (log, voters) = (family(), family());
    for group in service.replicas.all() {
        let kind = if group.id == base::ids::GROUP_ZERO { "map" } else { "objects" };
        let label = GroupLabel { group: group.id.0, kind: kind.into() };
        let works = group.failed().is_none();
        term.get_or_create(&label).set(group.term().0 as i64);
        leads.get_or_create(&label).set(i64::from(group.is_leader()));
        led.get_or_create(&label).set(i64::from(works && group.leader().is_some()));
        applied.get_or_create(&label).set(group.applied().0 as i64);
        log.get_or_create(&label).set(group.log_bytes() as i64);
        voters.get_or_create(&label).set(group.voter_nodes().len() as i64);
    }
    registry.register("group_term", "Raft term of the group", term);
    registry.register("group_leader", "1 where this node leads the group", leads);
    registry.register("group_has_leader", "1 while this node's replica works and knows who leads", led);
    registry.register("group_applied_index", "Last log entry that this replica has applied", applied);
    registry.register("group_log_bytes", "Bytes of log entries that are kept", log);
    registry.register("group_voters", "Replicas that vote", voters);
}

fn register_disk(registry: &mut Registry, service: &Service, disk: &NodeDisk) {
    let label = DiskLabel { disk: disk.label.clone() };
    let sub = registry.sub_registry_with_label(("disk".into(), label.disk.clone().into()));
    let usage = disk.usage();
    gauge(sub, "disk_capacity_bytes", "What the disk may hold", usage.capacity_bytes);
    gauge(sub, "disk_used_bytes", "What is taken on the disk", usage.used_bytes);
    let is_out = u64::from(!matches!(disk.state().0, "up" | "full"));
    gauge(sub, "disk_out_of_service", "1 when the disk has failed", is_out);
    let map = service.map.borrow().clone();
    let row = map.disks.iter().find(|row| client::disk_id(&row.id) == Some(disk.id));
    gauge(
        sub,
        "disk_slow",
        "1 while the disk is far slower than its peers",
        u64::from(row.is_some_and(|row| row.slow)),
    );
    let tail: Gauge<f64, AtomicU64> = Gauge::default();
    tail.set(disk.meter.tail(service.env.now()).unwrap_or_default().as_secs_f64());
    sub.register("disk_tail_seconds", "The latency of stores that is met in every second of work", tail);
    let meter = &disk.meter;
    sub.register("disk_store_seconds", "From a store of a chunk to its flush", meter.store_seconds.clone());
    sub.register("disk_read_seconds", "From a read of a chunk to its verified bytes", meter.read_seconds.clone());
    sub.register("disk_errors", "Stores and reads that the disk failed", meter.errors.clone());
    if let Ok(engine) = &disk.engine {
        let stats = engine.stats();
        gauge(sub, "disk_chunks", "Copies of chunks on the disk", stats.chunks);
        gauge(
            sub,
            "disk_tombstones",
            "Chunks that were deleted or have left, which the disk still remembers",
            stats.tombstones,
        );
        gauge(sub, "disk_volumes", "Volumes on the disk", stats.volumes);
        gauge(sub, "disk_cached_bytes", "Memory that contents of the disk's chunks take", stats.cached_bytes);
        let scrubbed = meter.last_scrub_ms(stats.scrub_passes, &service.env) / 1000;
        gauge(sub, "disk_last_scrub_timestamp_seconds", "When all of the disk was last verified, or opened", scrubbed);
        register_engine(registry, &label, &stats);
    }
}

fn register_engine(registry: &mut Registry, label: &DiskLabel, stats: &EngineStats) {
    let rows: [(&str, &str, u64); 17] = [
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
        ("store_cache_hits", "Looks for a chunk in memory that found it", stats.cache_hits),
        ("store_cache_misses", "Looks for a chunk in memory that did not find it", stats.cache_misses),
    ];
    let sub = registry.sub_registry_with_label(("disk".into(), label.disk.clone().into()));
    for (name, help, value) in rows {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        sub.register(name, help, counter);
    }
}
