#!/usr/bin/env python3
"""See 57-many-keys.sh. Usage: 57-many-keys.py CLUSTER_JSON KEYS FOLDERS"""
import json, os, random, re, sys, time, urllib.parse
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

ROUNDS = int(os.environ.get("ROUNDS", "100"))
MEMORY_MIB_MAX = 128
cluster, keys, folders = json.load(open(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
node = cluster["nodes"][0]
s3 = S3(node["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=120)


def memory_mib(which):
    return int(re.search(rf"{which}:\s+(\d+) kB", open(f"/proc/{node['pid']}/status").read())[1]) >> 10


def ticks():
    return sum(int(field) for field in open(f"/proc/{node['pid']}/stat").read().rsplit(")", 1)[1].split()[11:13])


def fetch(**parameters):
    query = "&".join(f"{name.replace('_', '-')}={urllib.parse.quote(str(value), safe='')}" for name, value in sorted(parameters.items()))
    status, body = s3.request("GET", "/many", query=query)
    if status != 200:
        sys.exit(f"DOES NOT HOLD: {query}: {status} {body[:300]}")
    return body.decode()


def texts(document, element):
    return re.findall(f"<{element}>([^<]*)</{element}>", document)


# All keys of a load lie below one folder of its own; this one's in folders of it.
run = next(found for found in texts(fetch(delimiter="/"), "Prefix") if found and len(texts(fetch(prefix=found, delimiter="/"), "Prefix")) > 1)


def in_order(names, least, count):
    if len(names) != count or names != sorted(names) or names and names[0] < least:
        sys.exit(f"DOES NOT HOLD: {len(names)} names instead of {count}, from {names[:1]} to {names[-1:]}, at least {least}")


def somewhere():
    """A key in the middle half, behind which there is a page."""
    folder = random.randrange(folders // 4, folders * 3 // 4)
    return f"{run}{folder:06}/{random.randrange(keys):012}"


def start():
    in_order(texts(fetch(list_type=2, max_keys=1000, prefix=run), "Key"), run, min(keys, 1000))


def middle():
    after = somewhere()
    in_order(texts(fetch(list_type=2, max_keys=1000, prefix=run, start_after=after), "Key"), after, min(keys // 4, 1000))


def versions():
    after = somewhere()
    in_order(texts(fetch(versions="", max_keys=1000, prefix=run, key_marker=after), "Key"), after, min(keys // 4, 1000))


def delimiter():
    found = texts(fetch(list_type=2, max_keys=1000, prefix=run, delimiter="/"), "Prefix")
    found.remove(run)
    in_order(found, run, min(folders, keys, 1000))


def one():
    after = somewhere()
    in_order(texts(fetch(list_type=2, max_keys=1, prefix=run, start_after=after), "Key"), after, 1)


before = memory_mib("VmRSS")
open(f"/proc/{node['pid']}/clear_refs", "w").write("5")  # the peak begins anew
for kind in (start, middle, versions, delimiter, one):
    took, cpu = [], ticks()
    for _ in range(ROUNDS):
        begin = time.monotonic()
        kind()
        took.append((time.monotonic() - begin) * 1000)
    took.sort()
    cpu = (ticks() - cpu) * 10 / ROUNDS
    print(f"{kind.__name__}: p50 {took[len(took) // 2]:.1f} ms, p99 {took[len(took) * 99 // 100]:.1f} ms, "
          f"{cpu:.1f} ms of the server's CPU", flush=True)
begin, count, last, token = time.monotonic(), 0, "", {}
while True:
    page = fetch(list_type=2, max_keys=1000, prefix=run, **token)
    names = texts(page, "Key")
    if names != sorted(names) or names and names[0] <= last:
        sys.exit("DOES NOT HOLD: the pages are not in order")
    count, last = count + len(names), names[-1]
    following = texts(page, "NextContinuationToken")
    if not following:
        break
    token = {"continuation_token": following[0]}
if count != keys:
    sys.exit(f"DOES NOT HOLD: all pages together have {count} keys")
print(f"all {count} keys page by page: {time.monotonic() - begin:.1f} s")
grown = memory_mib("VmHWM") - before
if grown > MEMORY_MIB_MAX:
    sys.exit(f"DOES NOT HOLD: listing took {grown} MiB of memory")
