#!/usr/bin/env python3
"""See 17-flips-three.sh. Usage: 17-flips-three.py HENGE DEV_DIRECTORY FLIPS BATCH"""
import hashlib, http.client, json, os, random, subprocess, sys, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

henge, dev, flips, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
random.seed(int(os.environ.get("SEED", "1")))
cluster = json.load(open(os.path.join(dev, "cluster.json")))
hosts = [node["s3"] for node in cluster["nodes"]]
OBJECTS = 84


def body(number):
    size = [100, 900, 4096, 4096, 50_000, 300_000, 5_000_000][number % 7]
    return hashlib.shake_128(b"object %d" % number).digest(size)


def request(host, method, path, content=b"", patience=20.0):
    """The first answer that is no 5xx, or the last one after `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            status, got = S3(host, cluster["access_key"], cluster["secret_key"], timeout=40).request(method, path, content)
        except (OSError, http.client.HTTPException) as error:
            status, got = 0, str(error).encode()
        if 0 < status < 500 or time.monotonic() > end:
            return status, got
        time.sleep(0.1)


def run(*words):
    return subprocess.run([henge, *words, "--data", dev], capture_output=True, text=True)


def verify(stored, through):
    for number in range(stored):
        status, got = request(through, "GET", f"/flips/object-{number:03}")
        if status != 200 or got != body(number):
            sys.exit(f"DOES NOT HOLD: object {number} through {through}: {status}, {len(got)} bytes: {got[:600] if status != 200 else str()}")


def places(node, stored):
    """Byte ranges (path, start, end) of one node's files by kind, found by looking for what the records must contain."""
    found = {"chunk records": [], "headers": [], "raft log": [], "key-value": []}
    for folder, _, files in os.walk(os.path.join(dev, f"node{node}")):
        for name in files:
            path = os.path.join(folder, name)
            if os.path.getsize(path) == 0 or name.endswith((".log", ".json", ".pem")):
                continue
            raw = open(path, "rb").read()
            if name.startswith("kv-"):
                found["key-value"].append((path, 0, len(raw)))
            elif len(raw) >= 1 << 20:
                for number in range(stored):
                    content = body(number)
                    at = raw.find(content[:64])
                    if len(content) > 1024 and at >= 0:
                        found["chunk records"].append((path, at, at + min(len(content), 16384)))
                        found["headers"].append((path, max(0, at - 256), at))
                    needle, at = b"object-%03d" % number, -1
                    while (at := raw.find(needle, at + 1)) >= 0:
                        found["raft log"].append((path, max(0, at - 96), at + 96))
    return found


def wait_safe(through, seconds=120):
    end = time.monotonic() + seconds
    admin = cluster["nodes"][through - 1]["admin"]
    while True:
        answer = subprocess.run([henge, "status", "--admin", admin, "--data", dev], capture_output=True, text=True)
        if answer.returncode == 0:
            return
        if time.monotonic() > end:
            sys.exit(f"DOES NOT HOLD: not safe after {seconds} s:\n{answer.stdout}{answer.stderr}")
        time.sleep(0.2)


def main():
    assert request(hosts[0], "PUT", "/flips")[0] == 200
    stored = OBJECTS
    for number in range(stored):
        assert request(hosts[number % 3], "PUT", f"/flips/object-{number:03}", body(number))[0] == 200
    kinds = os.environ.get("KINDS", "chunk records,headers,raft log,key-value").split(",")
    for kind in kinds:
        rounds = (flips + batch - 1) // batch
        refused, healing = 0, []
        for turn in range(rounds):
            victim = turn % 3 + 1
            if kind == "key-value":
                # A clean stop writes the key-value store out, so that there is something to damage.
                run("dev", "stop", str(victim))
            else:
                run("dev", "kill", str(victim))
            ranges = places(victim, stored)[kind]
            assert ranges, f"node {victim} has no {kind}"
            for _ in range(batch):
                path, start, end = random.choice(ranges)
                with open(path, "r+b") as file:
                    offset = random.randrange(start, end)
                    file.seek(offset)
                    old = file.read(1)[0]
                    file.seek(offset)
                    file.write(bytes([old ^ (1 << random.randrange(8))]))
            # What is written meanwhile has to reach the damaged node as well.
            assert request(hosts[victim % 3], "PUT", f"/flips/object-{stored:03}", body(stored))[0] == 200
            stored += 1
            begun = time.monotonic()
            started = run("dev", "start", str(victim))
            if started.returncode != 0:
                sys.exit(f"DOES NOT HOLD: node {victim} with flips in {kind} does not start: {started.stdout}{started.stderr}")
            verify(stored, hosts[victim - 1])
            wait_safe(victim)
            healing.append(time.monotonic() - begun)
            verify(stored, hosts[victim % 3])
        print(f"{kind}: {rounds * batch} flips in {rounds} rounds, all {stored} objects right through every gateway, "
              f"safe again after {sorted(healing)[len(healing) // 2]:.1f} s (median), {max(healing):.1f} s (longest)", flush=True)
    for host in hosts:
        verify(stored, host)


main()
