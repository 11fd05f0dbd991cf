#!/usr/bin/env python3
"""See 61-storage-classes.sh. Usage: 61-storage-classes.py CLUSTER_JSON HENGE"""
import http.client, json, os, random, re, subprocess, sys, threading, time, urllib.parse, urllib.request
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

DAY_S = int(os.environ["HENGE_DEBUG_LIFECYCLE_DAY_S"])
MIB, CHUNKS, SMALL, HOT = 1 << 20, 10, 200, 20
dev = os.path.dirname(sys.argv[1])
cluster, henge = json.load(open(sys.argv[1])), sys.argv[2]
hosts = [node["s3"] for node in cluster["nodes"]]
chance = random.Random(61)
large = chance.randbytes(CHUNKS * 4 * MIB)


def check(condition, *what):
    if not condition:
        print("DOES NOT HOLD:", *what, flush=True)
        os._exit(1)


def send(method, path, body=b"", extra=None, query="", give_up=60):
    end, why = time.monotonic() + give_up, None
    while time.monotonic() < end:
        s3 = S3(chance.choice(hosts), cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=20)
        try:
            status, answer = s3.request(method, path, body, extra, query, unsigned=True)
            if status < 500:
                return status, answer, s3.headers
            why = (status, answer[:200])
        except (OSError, http.client.HTTPException) as error:
            why = error
        time.sleep(0.1)
    check(False, "no answer to", method, path, query, why)


def copies():
    """Copies of chunks on all disks."""
    total = 0
    for node in cluster["nodes"]:
        text = urllib.request.urlopen(f"http://{node['admin']}/metrics").read().decode()
        total += sum(map(int, re.findall(r"^henge_disk_chunks\{[^}]*\} (\d+)", text, re.M)))
    return total


def settled(expected, what, give_up=120):
    end = time.monotonic() + give_up
    while copies() != expected and time.monotonic() < end:
        time.sleep(0.5)
    check(copies() == expected, f"{what}: {copies()} copies of chunks instead of {expected}")
    print(f"{what}: {expected} copies of chunks on the disks", flush=True)


def class_of(key):
    status, _, headers = send("HEAD", f"/classes/{key}")
    check(status == 200, "HEAD", key, status)
    return headers.get("x-amz-storage-class", "STANDARD")


def listed(prefix=""):
    found = {}
    prefix = urllib.parse.quote(prefix, safe="")
    for query in ("list-type=2&prefix=" + prefix, "prefix=" + prefix + "&versions="):
        status, document, _ = send("GET", "/classes", query=query)
        document = document.decode()
        check(status == 200, "a listing", status, document[:200])
        here = dict(re.findall(r"<Key>([^<]*)</Key>.*?<StorageClass>([^<]*)</StorageClass>", document))
        # While versions move, the second listing may know more.
        check(not found or found.keys() == here.keys(), "two listings differ", query)
        found = here
    return found


def put(key, body, storage_class=None):
    status, answer, _ = send("PUT", f"/classes/{key}", body, {"x-amz-storage-class": storage_class} if storage_class else {})
    check(status == 200, "PUT", key, status, answer[:200])


def is_whole(key, body):
    status, answer, _ = send("GET", f"/classes/{key}")
    check(status == 200 and answer == body, "bytes differ", key, status)


def rules(text):
    document = f"<LifecycleConfiguration>{text}</LifecycleConfiguration>".encode()
    return send("PUT", "/classes", document, query="lifecycle=")[0]


def transition(prefix, days, storage_class):
    return (f"<Rule><Prefix>{prefix}</Prefix><Status>Enabled</Status><Transition><Days>{days}</Days>"
            f"<StorageClass>{storage_class}</StorageClass></Transition></Rule>")


def upload(key, storage_class):
    extra = {"x-amz-storage-class": storage_class}
    upload = re.search(b"<UploadId>([^<]*)", send("POST", f"/classes/{key}", extra=extra, query="uploads=")[1]).group(1).decode()
    half, parts = len(large) // 2, ""
    for number, body in ((1, large[:half]), (2, large[half:])):
        etag = send("PUT", f"/classes/{key}", body, query=f"partNumber={number}&uploadId={upload}")[2]["etag"]
        parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
    document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    check(send("POST", f"/classes/{key}", document, query=f"uploadId={upload}")[0] == 200, "complete", key)


check(send("PUT", "/classes")[0] == 200, "the bucket")
status, answer, _ = send("PUT", "/classes/x", b"x", {"x-amz-storage-class": "GLACIER"})
check(status == 400 and b"InvalidStorageClass" in answer, "a class without a pool", status, answer[:200])
check(rules(transition("", 1, "GLACIER")) == 400, "a rule to a class without a pool")

base = copies()
put("usual", large)
settled(base + 3 * CHUNKS, "put into STANDARD")
put("cold", large, "COLD")
settled(base + 5 * CHUNKS, "put into COLD")
send("PUT", "/classes/copied", extra={"x-amz-copy-source": "/classes/usual", "x-amz-storage-class": "COLD"})
settled(base + 7 * CHUNKS, "copied from STANDARD into COLD")
send("PUT", "/classes/cold", extra={"x-amz-copy-source": "/classes/cold", "x-amz-storage-class": "STANDARD"})
settled(base + 8 * CHUNKS, "copied from COLD onto itself as STANDARD")
upload("parts", "COLD")
settled(base + 10 * CHUNKS, "uploaded in parts into COLD")
expected = {"usual": "STANDARD", "cold": "STANDARD", "copied": "COLD", "parts": "COLD"}
check(listed() == expected, listed())
for key, storage_class in expected.items():
    check(class_of(key) == storage_class, key, class_of(key))
    is_whole(key, large)

# Lifecycle: there, and back, while objects are read and some are written again.
upload("move/parts", "STANDARD")
put("move/large", large)
bodies = {f"move/{number}": chance.randbytes(chance.choice((100, 5000, 300_000))) for number in range(SMALL)}
for key, body in bodies.items():
    put(key, body)
chunked = sum(len(body) > 1024 for body in bodies.values())
settled(base + 16 * CHUNKS + 3 * chunked, f"{SMALL} small and two large objects to be moved")
check(rules(transition("move/", 1, "COLD")) == 200, "the rule")
stop, served, lock = threading.Event(), [0, 0], threading.Lock()


def read_all_along():
    mine = random.Random(threading.get_ident())
    while not stop.is_set():
        key = mine.choice(list(bodies))
        if key in hot:
            # Whatever is read is one of the two; which is told below.
            check(send("GET", f"/classes/{key}")[0] == 200, "GET", key)
        else:
            is_whole(key, bodies[key])
        served[0] += 1


hot = {f"move/{number}" for number in range(HOT)}
readers = [threading.Thread(target=read_all_along, daemon=True) for _ in range(3)]
[reader.start() for reader in readers]
end = time.monotonic() + 3 * DAY_S
while time.monotonic() < end:
    for key in sorted(hot):
        bodies[key] = chance.randbytes(5000)
        put(key, bodies[key])
        served[1] += 1
        check(class_of(key) in ("STANDARD", "COLD"), key)
begin, end = time.monotonic(), time.monotonic() + 300
staying = lambda: [key for key, name in listed("move/").items() if name != "COLD"]
while staying() and time.monotonic() < end:
    time.sleep(0.5)
check(not staying(), "not all has moved", staying())
print(f"all of it has moved {time.monotonic() - begin:.0f} s after the last overwrite", flush=True)
stop.set()
[reader.join() for reader in readers]
for key, body in [*bodies.items(), ("move/large", large), ("move/parts", large)]:
    is_whole(key, body)
chunked = sum(len(body) > 1024 for body in bodies.values())
settled(base + 14 * CHUNKS + 2 * chunked, f"moved to COLD, beside {served[0]} reads and {served[1]} overwrites")
status, part, headers = send("GET", "/classes/move/parts", query="partNumber=2")
check(status == 206 and part == large[len(large) // 2:] and headers["x-amz-mp-parts-count"] == "2", "a part after the move", status)

subprocess.run([henge, "dev", "kill", "2", "--data", dev], check=True, stdout=subprocess.DEVNULL)
for key, body in [*bodies.items(), *((key, large) for key in ("usual", "cold", "copied", "parts", "move/large", "move/parts"))]:
    is_whole(key, body)
put("while-away", large, "COLD")
is_whole("while-away", large)
subprocess.run([henge, "dev", "start", "2", "--data", dev], check=True, stdout=subprocess.DEVNULL)
print("with one node dead everything is read, and COLD is written", flush=True)
