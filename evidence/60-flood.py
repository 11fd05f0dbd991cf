#!/usr/bin/env python3
"""See 60-flood.sh. Usage: 60-flood.py CLUSTER_JSON HENGE"""
import json, os, subprocess, sys, threading, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

FLOOD, SECONDS, MEMORY_MIB_MAX = int(os.environ["FLOOD"]), int(os.environ.get("SECONDS_", "20")), 1536
cluster, henge = json.load(open(sys.argv[1])), sys.argv[2]
node, data = cluster["nodes"][0], os.path.dirname(sys.argv[1])
other = json.loads(os.environ["OTHER_KEY"])
s3 = S3(node["s3"], other["access_key"], other["secret_key"], cluster["region"], timeout=30)


def memory_mib():
    return int(open(f"/proc/{node['pid']}/statm").read().split()[1]) * 4096 >> 20


def serve(seconds):
    """PUTs and GETs of the other key, one after the other: how long each took in ms."""
    took, peak, end = [], 0, time.monotonic() + seconds
    s3.reconnect()
    while time.monotonic() < end:
        begin = time.monotonic()
        for method, body in (("PUT", b"q" * 1000), ("GET", b"")):
            status, answer = s3.request(method, "/others/quick", body)
            if status != 200:
                sys.exit(f"DOES NOT HOLD: {method} of the other key is answered {status} {answer[:200]}")
        took.append((time.monotonic() - begin) * 1000)
        peak = max(peak, memory_mib())
    took.sort()
    return took, peak


def probe(seconds, answers):
    """What the key that floods is told."""
    flooder = S3(node["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=60)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status, _ = flooder.request("PUT", "/flood/probe", b"x")
        if status not in (200, 503) or status == 503 and "retry-after" not in flooder.headers:
            print(f"DOES NOT HOLD: the flood is answered {status} {flooder.headers}", flush=True)
            os._exit(1)
        answers[status] = answers.get(status, 0) + 1
        if status == 503:
            # Its body was not read, so the connection is closed.
            flooder.reconnect()
        time.sleep(0.02)


def show(what, took, peak):
    print(f"{what}: {len(took)} pairs of PUT and GET of the other key, p50 {took[len(took) // 2]:.1f} ms, "
          f"p99 {took[len(took) * 99 // 100]:.1f} ms, most {took[-1]:.0f} ms; memory at most {peak} MiB", flush=True)


assert s3.request("PUT", "/others")[0] == 200
show("alone", *serve(3))
before = memory_mib()
for size in ("4KiB", "8MiB"):
    flood = subprocess.Popen([henge, "bench", "put", "--size", size, "--concurrency", str(FLOOD), "--seconds", str(SECONDS), "--timeout", "60s",
                              "--json", "--bucket", "flood", "--data", data], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2)
    answers = {}
    probing = [threading.Thread(target=probe, args=(SECONDS - 4, answers), daemon=True) for _ in range(8)]
    [thread.start() for thread in probing]
    took, peak = serve(SECONDS - 4)
    out, _ = flood.communicate()
    [thread.join() for thread in probing]
    figures = json.loads(out) if out.startswith("{") else {}
    refused = figures.get("failed", 0) + figures.get("unknown", 0)
    show(f"flood of {FLOOD} PUTs of {size} at once ({figures.get('ops')} done, {refused} refused; others of that key: {answers})", took, peak)
    if peak - before > MEMORY_MIB_MAX:
        sys.exit(f"DOES NOT HOLD: {peak - before} MiB more memory")
