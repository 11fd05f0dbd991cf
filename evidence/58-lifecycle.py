#!/usr/bin/env python3
"""See 58-lifecycle.sh. Usage: 58-lifecycle.py CLUSTER_JSON HENGE"""
import datetime, http.client, json, os, random, re, subprocess, sys, threading, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

OBJECTS, HOT, DAY = int(os.environ["OBJECTS"]), int(os.environ.get("HOT", "200")), int(os.environ["HENGE_DEBUG_LIFECYCLE_DAY_S"])
PAGE = 1000
cluster, henge = json.load(open(sys.argv[1])), sys.argv[2]
node, data = cluster["nodes"][0], os.path.dirname(sys.argv[1])


def connect():
    return S3(node["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=60)


def check(condition, *what):
    if not condition:
        print("DOES NOT HOLD:", *what, flush=True)
        os._exit(1)


def texts(document, element):
    return re.findall(f"<{element}>([^<]*)</{element}>", document.decode())


def rule(s3, bucket, inside):
    document = (f"<LifecycleConfiguration><Rule><ID>r</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status>{inside}"
                "</Rule></LifecycleConfiguration>").encode()
    status, answer = s3.request("PUT", f"/{bucket}", document, query="lifecycle=")
    check(status == 200, "the rule", answer)


def listed(bucket):
    # A connection of its own: those that are silent for long are closed.
    s3, names, after = connect(), [], ""
    while True:
        status, page = s3.request("GET", f"/{bucket}", query=f"list-type=2&max-keys={PAGE}&start-after={after}")
        check(status == 200, "a listing", page)
        found = texts(page, "Key")
        names += found
        if len(found) < PAGE:
            return names
        after = found[-1].replace("/", "%2F")


def expiry():
    s3 = connect()
    check(s3.request("PUT", "/life")[0] == 200, "the bucket")
    rule(s3, "life", "<Expiration><Days>1</Days></Expiration>")
    load = [henge, "bench", "put", "--objects", str(OBJECTS), "--size", "100", "--concurrency", "32", "--bucket", "life", "--data", data]
    began = time.monotonic()
    bench = subprocess.Popen(load, stdout=subprocess.PIPE, text=True)
    stop, counts = threading.Event(), {"read": 0, "gone": 0, "overwritten": 0}

    def overwrite(number):
        """Keeps some keys alive: each is written again before its day is over."""
        mine, own = connect(), [f"/life/hot/{n}" for n in range(number, HOT, 4)]
        written = {}
        while not stop.is_set():
            for path in own:
                fresh = path in written and time.monotonic() - written[path] < 0.8 * DAY
                if fresh:
                    status, body = mine.request("GET", path)
                    alive = time.monotonic() - written[path] < DAY
                    check(not alive or status == 200 and body == path.encode(), "written again, and gone", path, status)
                begin = time.monotonic()
                check(mine.request("PUT", path, path.encode())[0] == 200, "an overwrite", path)
                written[path] = begin
                counts["overwritten"] += 1
            time.sleep(max(0.0, DAY / 4 - 1) * random.random())

    def read(number):
        """An object is there, whole, or it was due."""
        mine, seen = connect(), {}
        while not stop.is_set():
            status, page = mine.request("GET", "/life", query=f"list-type=2&max-keys=50&start-after={random.choice('0123456789abcdef')}")
            check(status == 200, "a listing while objects expire", status)
            now = time.time()
            for key, modified in zip(texts(page, "Key"), texts(page, "LastModified")):
                written = datetime.datetime.fromisoformat(modified.replace("Z", "+00:00")).timestamp()
                status, body = mine.request("GET", f"/life/{key}")
                due = time.time() >= written + DAY - 0.01
                check(status == 200 and body or status == 404 and due, "gone too early", key, status, time.time() - written)
                counts["read" if status == 200 else "gone"] += 1
    threads = [threading.Thread(target=overwrite, args=(n,), daemon=True) for n in range(4)]
    threads += [threading.Thread(target=read, args=(n,), daemon=True) for n in range(2)]
    [thread.start() for thread in threads]
    out = bench.communicate()[0]
    loaded = time.monotonic()
    check(bench.returncode == 0, "the load", out)
    print(f"{OBJECTS} objects stored in {loaded - began:.0f} s: {out.splitlines()[1]}", flush=True)
    end = loaded + DAY + max(120, OBJECTS / 200)
    while True:
        left = [name for name in listed("life") if not name.startswith("hot/")]
        if not left:
            break
        check(time.monotonic() < end, f"{len(left)} objects are left {time.monotonic() - loaded - DAY:.0f} s after the last was due")
        time.sleep(1)
    gone = time.monotonic()
    stop.set()
    [thread.join() for thread in threads]
    hot = [name for name in listed("life") if name.startswith("hot/")]
    check(len(hot) == HOT, "hot keys are missing", len(hot))
    print(f"all gone {max(0.0, gone - loaded - DAY):.0f} s after the last was due (a day is {DAY} s); meanwhile {counts['read']} reads, "
          f"{counts['gone']} of them found what was due gone, {counts['overwritten']} overwrites of {HOT} keys, none of which was lost", flush=True)


def lock():
    """The root user, governance bypassed, lifecycle: none removes or shortens a compliance retention or lifts a legal hold by deleting."""
    s3 = connect()
    check(s3.request("PUT", "/locked", extra={"x-amz-bucket-object-lock-enabled": "true"})[0] == 200, "the bucket")
    rule(s3, "locked", "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>")
    now = datetime.datetime.now(datetime.timezone.utc)
    at = lambda seconds: (now + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    retention = lambda mode, seconds: f"<Retention><Mode>{mode}</Mode><RetainUntilDate>{at(seconds)}</RetainUntilDate></Retention>".encode()
    bypass, year = {"x-amz-bypass-governance-retention": "true"}, 365 * 86400
    kept = {}
    for mode in ("COMPLIANCE", "GOVERNANCE", "HOLD", "FREE"):
        check(s3.request("PUT", f"/locked/{mode}", b"first")[0] == 200, mode)
        kept[mode] = s3.headers["x-amz-version-id"]
        query = f"versionId={kept[mode]}"
        if mode == "HOLD":
            check(s3.request("PUT", f"/locked/{mode}", b"<LegalHold><Status>ON</Status></LegalHold>", query=f"legal-hold=&{query}")[0] == 200, mode)
        elif mode != "FREE":
            check(s3.request("PUT", f"/locked/{mode}", retention(mode, year), query=f"retention=&{query}")[0] == 200, mode)
        # A newer version, so that the first is noncurrent and due a day later.
        check(s3.request("PUT", f"/locked/{mode}", b"second")[0] == 200, mode)
    time.sleep(2.5 * DAY)
    s3.reconnect()
    end = time.monotonic() + 60
    while s3.request("GET", "/locked/FREE", query=f"versionId={kept['FREE']}")[0] != 404:
        check(time.monotonic() < end, "lifecycle never came to the version without a lock")
        time.sleep(0.5)
    query = f"versionId={kept['COMPLIANCE']}"
    refused = [
        s3.request("DELETE", "/locked/COMPLIANCE", extra=bypass, query=query),
        s3.request("PUT", "/locked/COMPLIANCE", retention("COMPLIANCE", year - 86400), bypass, f"retention=&{query}"),
        s3.request("PUT", "/locked/COMPLIANCE", retention("GOVERNANCE", 2 * year), bypass, f"retention=&{query}"),
        s3.request("PUT", "/locked/COMPLIANCE", b"<Retention/>", bypass, f"retention=&{query}"),
        s3.request("DELETE", "/locked/HOLD", extra=bypass, query=f"versionId={kept['HOLD']}"),
        s3.request("DELETE", "/locked/GOVERNANCE", query=f"versionId={kept['GOVERNANCE']}"),
    ]
    check(all(status == 403 for status, _ in refused), "the root user was not refused", refused)
    status, _ = s3.request("PUT", "/locked", b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>", query="versioning=")
    check(status == 409, "versioning of a bucket with locks was suspended", status)
    check(s3.request("DELETE", "/locked")[0] == 409, "a bucket with locked versions was deleted")
    for mode in ("COMPLIANCE", "GOVERNANCE", "HOLD"):
        status, body = s3.request("GET", f"/locked/{mode}", query=f"versionId={kept[mode]}")
        check((status, body) == (200, b"first"), "a locked version is gone", mode, status)
    check(s3.request("PUT", "/locked/COMPLIANCE", retention("COMPLIANCE", 2 * year), query=f"retention=&{query}")[0] == 200, "longer is allowed")
    check(s3.request("DELETE", "/locked/GOVERNANCE", extra=bypass, query=f"versionId={kept['GOVERNANCE']}")[0] == 204, "a bypass of governance")
    print(f"object lock: {len(refused)} ways round it refused to the root user, and lifecycle passed over what is locked", flush=True)


expiry()
lock()
