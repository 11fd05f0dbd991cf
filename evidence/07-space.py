#!/usr/bin/env python3
"""See 07-space.sh. Usage: 07-space.py CLUSTER_JSON DISK_DIRECTORY"""
import hashlib, json, os, sys, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

cluster = json.load(open(sys.argv[1]))
s3 = S3(cluster["nodes"][0]["s3"], cluster["access_key"], cluster["secret_key"], timeout=120)
MIB, OBJECT = 1 << 20, 8 << 20


def taken():
    used = sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for folder, _, names in os.walk(sys.argv[2]) for name in names)
    return used // MIB


def content(number):
    return hashlib.shake_128(b"%d" % number).digest(OBJECT)


def fail(text):
    print(f"DOES NOT HOLD: {text}")
    sys.exit(1)


assert s3.request("PUT", "/space")[0] == 200
bodies = [content(number) for number in range(16)]
for turn in range(10):
    for number in range(128):
        status, text = s3.request("PUT", f"/space/{turn}-{number}", bodies[number % 16])
        if status != 200:
            fail(f"write {number} of round {turn} failed: {status} {text[:300]}")
    for number in range(128):
        status, _ = s3.request("DELETE", f"/space/{turn}-{number}")
        if status != 204:
            fail(f"delete {number} of round {turn}: {status}")
    print(f"round {turn}: the directory takes {taken()} MiB", flush=True)

stored, refusal = 0, None
while stored < 1000:
    status, text = s3.request("PUT", f"/space/fill-{stored}", bodies[stored % 16])
    if status != 200:
        refusal = (status, text)
        break
    stored += 1
if refusal is None or refusal[0] not in (503, 507) or b"<Code>" not in refusal[1]:
    fail(f"the full disk answered {refusal}")
print(f"full after {stored * OBJECT // MIB} MiB: {refusal[0]} {refusal[1][:200].decode(errors='replace')}", flush=True)
for number in range(0, stored, 7):
    status, got = s3.request("GET", f"/space/fill-{number}")
    if status != 200 or got != bodies[number % 16]:
        fail(f"read {number} of the full disk: {status}")
for number in range(0, stored, 2):
    if s3.request("DELETE", f"/space/fill-{number}")[0] != 204:
        fail(f"delete {number} on the full disk")
begun = time.monotonic()
while True:
    status, text = s3.request("PUT", "/space/again", bodies[0])
    if status == 200:
        break
    if time.monotonic() - begun > 120:
        fail(f"writes are refused two minutes after deletes: {status} {text[:200]}")
    time.sleep(0.2)
print(f"writes work again {time.monotonic() - begun:.1f} s after the deletes; the directory takes {taken()} MiB", flush=True)
for number in range(1, stored, 2):
    status, got = s3.request("GET", f"/space/fill-{number}")
    if status != 200 or got != bodies[number % 16]:
        fail(f"object {number} after the deletes: {status}")
