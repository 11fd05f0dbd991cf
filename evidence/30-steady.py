#!/usr/bin/env python3
"""See 30-steady.sh. Usage: 30-steady.py CLUSTER_JSON HENGE MINUTES"""
import base64, json, os, subprocess, sys, time, urllib.request

cluster, henge, minutes = json.load(open(sys.argv[1])), sys.argv[2], float(sys.argv[3])
data = os.path.dirname(sys.argv[1])
# Bytes of an object, requests at once.
LOADS = (("300", 4), ("4KiB", 16), ("1MiB", 2))
BESIDE = {"compaction, MiB": ("henge_store_compacted_bytes_total", 1 << 20), "scrub, MiB": ("henge_store_scrubbed_bytes_total", 1 << 20),
          "flushes of key-value stores": ("henge_metadata_flushes_total", 1), "garbage chunks": ("henge_garbage_chunks_total", 1),
          "journal, MiB": ("henge_store_journal_bytes_total", 1 << 20)}


def fail(why):
    sys.exit(f"DOES NOT HOLD: {why}")


def totals():
    """Counters of all nodes, summed over their labels."""
    sums = {}
    for node in cluster["nodes"]:
        request = urllib.request.Request(f"http://{node['admin']}/metrics")
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{cluster['access_key']}:{cluster['secret_key']}".encode()).decode())
        for line in urllib.request.urlopen(request, timeout=30).read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
                sums[name] = sums.get(name, 0) + float(value)
    return sums


def memory_mib():
    return sum(int(open(f"/proc/{node['pid']}/statm").read().split()[1]) * 4096 for node in cluster["nodes"]) >> 20


before, idle = totals(), memory_mib()
seconds = minutes * 60
loads = [subprocess.Popen([henge, "bench", "mixed", "--size", size, "--concurrency", str(at_once), "--seconds", str(seconds), "--json", "--bucket",
                           f"steady-{size.lower()}", "--data", data], stdout=subprocess.PIPE, text=True) for size, at_once in LOADS]
memory = []
began = time.monotonic()
while any(load.poll() is None for load in loads):
    time.sleep(1)
    memory.append(memory_mib())
    if len(memory) % 60 == 0:
        print(f"{len(memory) // 60:4} min: {memory[-1]} MiB for three nodes", flush=True)
    if time.monotonic() - began > seconds + 300:
        fail("the load does not end")
for (size, at_once), load in zip(LOADS, loads):
    told = load.stdout.read()
    if load.wait() != 0:
        fail(f"{size}: exit {load.returncode}: {told}")
    run = json.loads(told)
    least, median = run.get("least_ops_per_s", 0), run.get("median_ops_per_s", 0)
    print(f"{size}, {at_once} at once: {run['ops']} operations; in ten seconds each: median {median:.0f} per s, fewest {least:.0f} "
          f"({100 * least / max(median, 1):.0f} %); p50 {run['p50_us'] / 1000:.1f} ms, p99 {run['p99_us'] / 1000:.1f} ms, "
          f"p99.9 {run['p999_us'] / 1000:.1f} ms, most {run['max_us'] / 1000:.0f} ms; failed {run['failed']}, unknown {run['unknown']}, wrong {run['wrong']}")
    if run["wrong"] or run["unknown"] or run["failed"] or run["not_sent"]:
        fail(f"{size}: {told}")
    if least < 0.5 * median or not least:
        fail(f"{size}: ten seconds with less than half of the median, or a run too short to tell")
after = totals()
for what, (metric, unit) in BESIDE.items():
    count = (after.get(metric, 0) - before.get(metric, 0)) / unit
    print(f"{what}: {count:.0f}")
    if minutes >= 10 and count < 1:
        fail(f"no {what} beside the load: it says nothing of them")
tenth = max(len(memory) // 10, 1)
early, late = sorted(memory[tenth:2 * tenth] or memory)[0], max(memory[-tenth:])
print(f"memory of three nodes: idle {idle} MiB, after a tenth of the time {early} MiB, in the last tenth at most {late} MiB")
# It rises and falls by some 60 MiB a node with what is not flushed (log and memtable): like is compared with like.
(low_before, high_before), (low, high) = [(min(span), max(span)) for span in (memory[2 * tenth:5 * tenth] or memory, memory[-3 * tenth:])]
print(f"from a fifth to the half of the time {low_before} to {high_before} MiB, in the last three tenths {low} to {high} MiB")
# Caches and pools fill within minutes: a short run says nothing.
if minutes >= 10 and (low > low_before * 1.1 or high > high_before * 1.1):
    fail("memory grows: more than a tenth")
if minutes >= 10 and late > early * 1.3 + 64:
    fail("memory rises and falls too much, or grows")
