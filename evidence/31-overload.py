#!/usr/bin/env python3
"""See 31-overload.sh. Usage: 31-overload.py CLUSTER_JSON HENGE SECONDS"""
import json, os, subprocess, sys

cluster, henge, seconds = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
data = os.path.dirname(sys.argv[1])
REFUSED_AT_ONCE = 4096
MEMORY_MIB_MAX = 1024


def memory_mib():
    return sum(int(open(f"/proc/{node['pid']}/statm").read().split()[1]) * 4096 for node in cluster["nodes"]) >> 20


def put(at_once):
    command = [henge, "bench", "put", "--concurrency", str(at_once), "--seconds", seconds, "--json", "--bucket", "overload", "--data", data]
    run = json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout)
    print(f"{at_once:5} at once: {run['ops_per_s']:6.0f} PUTs per s, p50 {run['p50_us'] / 1000:.1f} ms, p99 {run['p99_us'] / 1000:.1f} ms, "
          f"most {run['max_us'] / 1000:.0f} ms, refused {run['failed']}, unknown {run['unknown']}; memory {memory_mib()} MiB", flush=True)
    if run["wrong"] or run["unknown"] or run["not_sent"]:
        sys.exit(f"DOES NOT HOLD: outcomes are unknown, or a node takes no connections: {run}")
    return run["ops_per_s"], run["failed"]


put(64)
rates = {at_once: put(at_once)[0] for at_once in (16, 64, 128, 256)}
most = max(rates.values())
# What saturates: the least concurrency that gives nearly the most.
saturating = min(at_once for at_once, rate in rates.items() if rate >= 0.9 * most)
share = 100 * put(4 * saturating)[0] / most
print(f"{saturating} at once saturate; four times as many get {share:.0f} % of the most")
if share < 80:
    sys.exit("DOES NOT HOLD: throughput falls under overload")
# More than the nodes let wait: they must refuse, and go on serving whom they let in.
rate, refused = put(REFUSED_AT_ONCE)
print(f"{REFUSED_AT_ONCE} at once get {100 * rate / most:.0f} % of the most; {refused} times the answer was 503 SlowDown")
if not refused or rate < 0.8 * most:
    sys.exit("DOES NOT HOLD: nobody is refused, or throughput falls with refusals")
if memory_mib() > MEMORY_MIB_MAX:
    sys.exit(f"DOES NOT HOLD: memory is not bounded: {memory_mib()} MiB")
