#!/usr/bin/env python3
"""See 55-races.sh. Races through all gateways of a cluster; each round is judged by what is there afterwards.
Usage: 55-races.py CLUSTER_JSON"""
import datetime, hashlib, http.client, json, os, sys, threading, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

ROUNDS = int(os.environ.get("ROUNDS", "1000"))
KINDS = os.environ.get("KINDS", "create chain multipart lock policy lifecycle").split()
DAY_SECONDS = int(os.environ.get("HENGE_DEBUG_LIFECYCLE_DAY_S", "4"))
cluster = json.load(open(sys.argv[1]))
hosts = [node["s3"] for node in cluster["nodes"]]
local = threading.local()


def connect(number, key=None):
    access_key, secret_key = key or (cluster["access_key"], cluster["secret_key"])
    return S3(hosts[number % len(hosts)], access_key, secret_key, cluster["region"], timeout=10)


def send(number, method, path, body=b"", extra=None, query="", key=None, give_up=60):
    """Sends through gateway `number` (then the next ...) until there is an answer that is no 5xx. Answers status, body,
    headers, and whether an earlier try may have been done."""
    unsure, end, at = False, time.monotonic() + give_up, number
    while time.monotonic() < end:
        try:
            s3 = connect(at, key)
            status, answer = s3.request(method, path, body, extra, query)
            if status < 500:
                return status, answer, s3.headers, unsure
            unsure = True
        except (OSError, http.client.HTTPException):
            unsure, at = True, at + 1
        time.sleep(0.05)
    sys.exit(f"DOES NOT HOLD: no answer to {method} {path} for {give_up} s")


def race(*actions):
    """Runs the actions at the same moment; answers what each answered."""
    barrier, results = threading.Barrier(len(actions)), [None] * len(actions)

    def run(i):
        barrier.wait()
        results[i] = actions[i]()
    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(actions))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return results


def check(condition, *what):
    if not condition:
        print("DOES NOT HOLD:", *what)
        os._exit(1)


def create():
    """`If-None-Match: *` from six clients: one winner, whose bytes are there."""
    unsure_rounds = 0
    for turn in range(ROUNDS):
        path, star = f"/races/create-{turn}", {"If-None-Match": "*"}
        got = race(*[lambda i=i: send(i, "PUT", path, b"%d" % i, star) for i in range(6)])
        stored = send(turn, "GET", path)
        winners = [i for i, r in enumerate(got) if r[0] == 200]
        maybe = [i for i, r in enumerate(got) if r[0] == 412 and r[3]]
        unsure_rounds += bool(maybe)
        there = int(stored[1]) if stored[0] == 200 else None
        check(there is not None and (winners == [there] or not winners and there in maybe), "create", turn, got, stored)
    return f"{unsure_rounds} rounds had an unsure answer"


def chain():
    """If-Match chains: a counter that three clients raise; no step is lost or taken twice."""
    send(0, "PUT", "/races/chain", b"0")
    sure, unsure = [0], [0]
    lock = threading.Lock()

    def raise_by(number, steps):
        for _ in range(steps):
            while True:
                status, body, headers, _ = send(number, "GET", "/races/chain")
                check(status == 200, "chain: the counter is gone", status)
                put = send(number, "PUT", "/races/chain", b"%d" % (int(body) + 1), {"If-Match": headers["etag"]})
                if put[3]:
                    with lock:
                        unsure[0] += 1
                if put[0] == 200:
                    break
            with lock:
                sure[0] += 1
    race(*[lambda i=i: raise_by(i, ROUNDS // 3) for i in range(3)])
    final = int(send(0, "GET", "/races/chain")[1])
    # An answer that was lost may have raised the counter and then been told 412.
    check(sure[0] <= final <= sure[0] + unsure[0], "chain", sure, final, unsure)
    return f"{sure[0]} steps, the counter is at {final}, {unsure[0]} answers were unsure"


def upload(number, path, body):
    status, answer, _, _ = send(number, "POST", path, query="uploads=")
    upload_id = answer.decode().split("<UploadId>")[1].split("<")[0]
    etag = send(number, "PUT", path, body, query=f"partNumber=1&uploadId={upload_id}")[2].get("etag")
    document = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    return upload_id, document.encode()


def multipart():
    """Complete against abort against an overwrite: whole objects only, and each answer is true."""
    outcomes = {}
    for turn in range(ROUNDS):
        path, parts, plain = f"/races/multi-{turn}", b"P" * 70_000, b"plain %d" % turn
        upload_id, document = upload(turn, path, parts)
        query = f"uploadId={upload_id}"
        complete, abort, put = race(
            lambda: send(turn, "POST", path, document, query=query),
            lambda: send(turn + 1, "DELETE", path, query=query),
            lambda: send(turn + 2, "PUT", path, plain))
        status, body, _, _ = send(turn, "GET", path)
        check(put[0] == 200 and status == 200 and body in (parts, plain), "multipart", turn, complete, abort, put, status)
        check(body == plain or complete[0] == 200 or complete[3], "multipart: parts without complete", turn)
        both = complete[0] == 200 and abort[0] == 204 and not (complete[3] or abort[3])
        check(not both, "multipart: completed and aborted", turn)
        check(send(turn, "GET", path, query=query)[0] == 404, "multipart: the upload lives on", turn)
        key = (complete[0], abort[0], body == plain)
        outcomes[key] = outcomes.get(key, 0) + 1
    return f"(complete, abort, plain stays): {outcomes}"


def lock():
    """A compliance retention against the deletion of the version: one of the two."""
    wins = {"lock": 0, "delete": 0}
    send(0, "PUT", "/raceslock", extra={"x-amz-bucket-object-lock-enabled": "true"})
    for turn in range(ROUNDS):
        path = f"/raceslock/k{turn}"
        version = send(turn, "PUT", path, b"x")[2]["x-amz-version-id"]
        until = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = f"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>".encode()
        retain, delete = race(
            lambda: send(turn, "PUT", path, document, query=f"retention=&versionId={version}"),
            lambda: send(turn + 1, "DELETE", path, query=f"versionId={version}"))
        there = send(turn + 2, "GET", path, query=f"versionId={version}")[0]
        if there == 200:
            check(retain[0] == 200 and delete[0] == 403, "lock: it stands", turn, retain, delete)
            bypass = {"x-amz-bypass-governance-retention": "true"}
            again = send(turn, "DELETE", path, extra=bypass, query=f"versionId={version}")[0]
            check(again == 403, "lock: root removed a compliance version", turn, again)
            wins["lock"] += 1
        else:
            check(there == 404 and (retain[0] == 404 or retain[3]) and delete[0] == 204, "lock: it is gone", turn, retain, delete)
            wins["delete"] += 1
    return str(wins)


def policy():
    """A policy is taken back while another key uses it through all gateways: soon nobody gets in, and nobody again."""
    other = json.loads(os.environ["OTHER_KEY"])
    key = (other["access_key"], other["secret_key"])
    send(0, "PUT", "/racespolicy")
    send(0, "PUT", "/racespolicy/k", b"secret")
    allow = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": key[0]},
                        "Action": "s3:GetObject", "Resource": "arn:aws:s3:::racespolicy/*"}]}).encode()
    slowest = 0.0
    for turn in range(max(1, ROUNDS // 10)):
        check(send(turn, "PUT", "/racespolicy", allow, query="policy=")[0] == 204, "policy: put", turn)
        end = time.monotonic() + 20
        while any(send(i, "GET", "/racespolicy/k", key=key)[0] != 200 for i in range(len(hosts))):
            check(time.monotonic() < end, "policy: never allowed", turn)
        check(send(turn + 1, "DELETE", "/racespolicy", query="policy=")[0] == 204, "policy: delete", turn)
        begin, shut = time.monotonic(), set()
        while len(shut) < len(hosts):
            for i in range(len(hosts)):
                status = send(i, "GET", "/racespolicy/k", key=key)[0]
                check(not (i in shut and status == 200), "policy: open again", turn, i)
                if status == 403:
                    shut.add(i)
            check(time.monotonic() - begin < 20, "policy: still open after 20 s", turn)
        slowest = max(slowest, time.monotonic() - begin)
    return f"shut at every gateway within {slowest:.2f} s"


def lifecycle():
    """Lifecycle against overwrites: what was written again lives its whole new life."""
    document = (b"<LifecycleConfiguration><Rule><ID>r</ID><Prefix></Prefix><Status>Enabled</Status>"
                b"<Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>")
    send(0, "PUT", "/raceslife")
    check(send(0, "PUT", "/raceslife", document, query="lifecycle=")[0] == 200, "lifecycle: put")
    gone = [0]

    def one(number):
        for turn in range(max(1, ROUNDS // 100)):
            path = f"/raceslife/k{number}"
            send(number, "PUT", path, b"old")
            time.sleep(DAY_SECONDS - 0.3 + 0.06 * (turn % 15))
            begin = time.monotonic()
            status = send(number, "PUT", path, b"new %d" % turn)[0]
            check(status == 200, "lifecycle: overwrite", status)
            status, body, _, _ = send(number + 1, "GET", path)
            alive = time.monotonic() - begin < DAY_SECONDS - 1
            check(not alive or status == 200 and body == b"new %d" % turn, "lifecycle: a fresh object is gone", number, turn)
        end = time.monotonic() + 10 * DAY_SECONDS + 60
        while send(number, "GET", path)[0] != 404:
            check(time.monotonic() < end, "lifecycle: never expires", path)
            time.sleep(0.2)
        gone[0] += 1
    race(*[lambda i=i: one(i) for i in range(12)])
    return f"{gone[0]} keys expired in the end"


send(0, "PUT", "/races")
for kind in KINDS:
    begin = time.monotonic()
    note = globals()[kind]()
    print(f"{kind}: holds, {time.monotonic() - begin:.0f} s; {note}", flush=True)
