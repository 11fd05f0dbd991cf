#!/usr/bin/env python3
"""See 59-large-object.sh. Usage: 59-large-object.py CLUSTER_JSON HENGE"""
import hashlib, http.client, json, os, random, re, subprocess, sys, threading, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

GIB, PARTS = float(os.environ["GIB"]), int(os.environ["PARTS"])
THREADS, RANGES, COPY_PARTS = 4, 200, 20
cluster, henge = json.load(open(sys.argv[1])), sys.argv[2]
dev, hosts = os.path.dirname(sys.argv[1]), [node["s3"] for node in cluster["nodes"]]
total = int(GIB * (1 << 30))
size = -(-total // PARTS)
sizes = [size] * (PARTS - 1) + [total - size * (PARTS - 1)]
assert min(sizes[:-1]) >= 5 << 20 and sizes[-1] > 0, "parts of at least 5 MiB: fewer PARTS or more GIB"
BLOCK, UNIT = 4096, 32
COMPRESSIBLE = bool(os.environ.get("COMPRESSIBLE"))
block = b"" if COMPRESSIBLE else random.Random(7).randbytes(size)


def check(condition, *what):
    if not condition:
        print("DOES NOT HOLD:", *what, flush=True)
        os._exit(1)


def content(part):
    """Of part 1, 2 ...: each differs from the others everywhere."""
    if COMPRESSIBLE:
        blocks = range(-(-sizes[part - 1] // BLOCK))
        return b"".join(map(compressible, [part] * len(blocks), blocks))[:sizes[part - 1]]
    at = part * 4099 % size
    return (part.to_bytes(8, "big") + block[at:] + block[:at])[:sizes[part - 1]]


def compressible(part, number):
    """A block that no other equals: one unit says which it is, and where it begins; the others repeat, and differ from every
    other block's."""
    name = part << 32 | number
    unit = (name * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)).to_bytes(16, "big") + name.to_bytes(16, "big")
    return unit[::-1] + unit * (BLOCK // UNIT - 1)


def slice_of(begin, end):
    out = []
    while begin < end:
        part, offset = begin // size + 1, begin % size
        piece = content(part)[offset:offset + end - begin]
        out.append(piece)
        begin += len(piece)
    return b"".join(out)


def send(number, method, path, body=b"", extra=None, query="", give_up=120):
    """Through gateway `number`, then the next, until there is an answer that is no 5xx."""
    end, why = time.monotonic() + give_up, None
    while time.monotonic() < end:
        s3 = S3(hosts[number % 3], cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=60)
        try:
            status, answer = s3.request(method, path, body, extra, query, unsigned=True)
            if status < 500:
                return status, answer, s3.headers
            why = (status, answer[:300])
        except (OSError, http.client.HTTPException) as error:
            why = error
        number += 1
        time.sleep(0.1)
    check(False, "no answer to", method, path, query, why)


def text(document, element):
    return re.search(f"<{element}>([^<]*)</{element}>", document.decode()).group(1)


def memory():
    """Of the nodes that run: now, and the most so far."""
    found = []
    for node in json.load(open(sys.argv[1]))["nodes"]:
        try:
            status = open(f"/proc/{node['pid']}/status").read()
            found.append("/".join(str(int(re.search(name + r":\s+(\d+)", status).group(1)) >> 10) for name in ("VmRSS", "VmHWM")))
        except OSError:
            found.append("-")
    return f"memory now/most of the nodes: {', '.join(found)} MiB"


def in_threads(count, work):
    """Runs work(number, index) for all indices below count."""
    lock, following = threading.Lock(), iter(range(count))

    def run(number):
        while True:
            with lock:
                index = next(following, None)
            if index is None:
                return
            work(number, index)
    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(THREADS)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]


def complete(path, upload, etags):
    parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in enumerate(etags, 1))
    document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    begin = time.monotonic()
    status, answer, _ = send(0, "POST", path, document, query=f"uploadId={upload}")
    check(status == 200 and b"<Error>" not in answer, "complete", status, answer[:300])
    return text(answer, "ETag").replace("&quot;", ""), time.monotonic() - begin


def store():
    upload = text(send(0, "POST", "/large/object", query="uploads=")[1], "UploadId")
    sums, etags, done, faults = [b""] * PARTS, [""] * PARTS, [0], []

    def part(number, index):
        body = content(index + 1)
        sums[index] = hashlib.md5(body).digest()
        status, answer, headers = send(number, "PUT", "/large/object", body, query=f"partNumber={index + 1}&uploadId={upload}")
        check(status == 200 and headers["etag"].strip('"') == sums[index].hex(), "part", index + 1, status, answer[:300])
        etags[index] = headers["etag"]
        done[0] += 1
        if done[0] == PARTS // 3:
            subprocess.run([henge, "dev", "kill", "2", "--data", dev], check=True, stdout=subprocess.DEVNULL)
            faults.append("killed")
        if done[0] == PARTS * 2 // 3:
            subprocess.run([henge, "dev", "start", "2", "--data", dev], check=True, stdout=subprocess.DEVNULL)
            faults.append("started")
    begin = time.monotonic()
    in_threads(PARTS, part)
    took = time.monotonic() - begin
    check(faults == ["killed", "started"], "the node", faults)
    etag, completing = complete("/large/object", upload, etags)
    check(etag == f"{hashlib.md5(b''.join(sums)).hexdigest()}-{PARTS}", "the ETag", etag)
    print(f"{total} bytes in {PARTS} parts: {took:.0f} s ({total / took / 1e6:.0f} MB/s), completed in {completing:.2f} s; node 2 was killed "
          f"and came back meanwhile; {memory()}", flush=True)


def compare(path):
    """The whole object, streamed through gateways in turn, a sixteenth at a time."""
    begin = time.monotonic()

    def piece(number, index):
        start, end = total * index // 16, total * (index + 1) // 16
        # In steps that a client holds in memory.
        while start < end:
            stop = min(end, start + (32 << 20))
            status, body, _ = send(number + index, "GET", path, extra={"Range": f"bytes={start}-{stop - 1}"})
            check(status == 206 and body == slice_of(start, stop), "bytes differ", path, start, stop, status)
            start = stop
    in_threads(16, piece)
    took = time.monotonic() - begin
    print(f"{path}: every byte is right, {took:.0f} s ({total / took / 1e6:.0f} MB/s); {memory()}", flush=True)


def ranges():
    took = []
    for turn in range(RANGES):
        # Around the ends of parts, and anywhere.
        middle = size * random.randrange(1, PARTS) if turn % 2 else random.randrange(total)
        begin, end = max(0, middle - random.randrange(1, 100_000)), min(total, middle + random.randrange(1, 100_000))
        at = time.monotonic()
        status, body, headers = send(turn, "GET", "/large/object", extra={"Range": f"bytes={begin}-{end - 1}"})
        took.append((time.monotonic() - at) * 1000)
        check(status == 206 and body == slice_of(begin, end), "a range", begin, end, status)
        check(headers["content-range"] == f"bytes {begin}-{end - 1}/{total}", headers["content-range"])
    for number in (1, PARTS // 2, PARTS):
        status, body, headers = send(number, "GET", "/large/object", query=f"partNumber={number}")
        check(status == 206 and body == content(number) and headers["x-amz-mp-parts-count"] == str(PARTS), "part", number, status)
    took.sort()
    print(f"{RANGES} ranges of up to 200 kB: p50 {took[len(took) // 2]:.1f} ms, p99 {took[len(took) * 99 // 100]:.1f} ms; three parts by number", flush=True)


def copy():
    begin = time.monotonic()
    upload = text(send(0, "POST", "/large/copy", query="uploads=")[1], "UploadId")
    etags = [""] * COPY_PARTS

    def part(number, index):
        first, last = total * index // COPY_PARTS, total * (index + 1) // COPY_PARTS - 1
        source = {"x-amz-copy-source": "/large/object", "x-amz-copy-source-range": f"bytes={first}-{last}"}
        status, answer, _ = send(number, "PUT", "/large/copy", extra=source, query=f"partNumber={index + 1}&uploadId={upload}", give_up=300)
        check(status == 200, "a part's copy", index + 1, status, answer[:300])
        etags[index] = text(answer, "ETag").replace("&quot;", '"')
    in_threads(COPY_PARTS, part)
    complete("/large/copy", upload, etags)
    took = time.monotonic() - begin
    print(f"copied in {COPY_PARTS} parts: {took:.0f} s ({total / took / 1e6:.0f} MB/s); {memory()}", flush=True)


check(send(0, "PUT", "/large")[0] == 200, "the bucket")
store()
compare("/large/object")
ranges()
copy()
compare("/large/copy")
begin = time.monotonic()
check(send(0, "DELETE", "/large/object")[0] == 204, "delete")
status, body, _ = send(1, "GET", "/large/copy", extra={"Range": "bytes=0-99"})
check(status == 206 and body == slice_of(0, 100), "the copy after its source was deleted", status)
print(f"deleted in {time.monotonic() - begin:.2f} s; its copy is whole", flush=True)
