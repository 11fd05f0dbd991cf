#!/usr/bin/env python3
"""Writes and reads a small object through each gateway, over and over, and notes when it worked. On SIGTERM prints, for
each event in EVENTS (lines `seconds-since-epoch what`), the longest time after it, until the next, in which no gateway
served a write or a read. Usage: gaps.py CLUSTER_JSON EVENTS"""
import http.client, json, os, signal, statistics, sys, threading, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

cluster = json.load(open(sys.argv[1]))
served, stop = [], threading.Event()


def probe(node):
    s3 = S3(node["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=3)
    turn = 0
    while not stop.is_set():
        turn += 1
        body = b"%d %d" % (node["id"], turn)
        try:
            put = s3.request("PUT", f"/gaps/node-{node['id']}", body)[0]
            status, got = s3.request("GET", f"/gaps/node-{node['id']}")
            if put == 200 and status == 200 and got == body:
                served.append(time.time())
                continue
        except (OSError, http.client.HTTPException):
            s3.reconnect()
        time.sleep(0.01)


def report(*_):
    stop.set()
    times = sorted(served)
    events = [line.split(None, 1) for line in open(sys.argv[2])]
    events = [(float(at), what.strip()) for at, what in events] + [(time.time(), "end")]
    gaps = {}
    for (at, what), (until, _) in zip(events, events[1:]):
        if what == "all" or (what.startswith("back") and what != "back all"):
            continue
        inside = [at] + [t for t in times if at < t < until] + [until]
        gap = max(b - a for a, b in zip(inside, inside[1:]))
        gaps.setdefault("all nodes started again" if what == "back all" else "one node killed", []).append(gap)
    for kind, values in gaps.items():
        print(f"gap in service, {kind}: {len(values)} times, p50 {statistics.median(values):.2f} s, max {max(values):.2f} s")
    print(json.dumps({kind: values for kind, values in gaps.items()}))
    os._exit(0)


signal.signal(signal.SIGTERM, report)
S3(cluster["nodes"][0]["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"]).request("PUT", "/gaps")
for node in cluster["nodes"]:
    threading.Thread(target=probe, args=(node,), daemon=True).start()
while True:
    time.sleep(1)
