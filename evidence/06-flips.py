#!/usr/bin/env python3
"""See 06-flips.sh. Usage: 06-flips.py HENGE WORKDIR FLIPS"""
import hashlib, http.client, json, os, random, shutil, signal, subprocess, sys, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

henge, work, flips = sys.argv[1], sys.argv[2], int(sys.argv[3])
random.seed(int(os.environ.get("SEED", "1")))
ENV = dict(os.environ, HENGE_ROOT_USER="evidence", HENGE_ROOT_PASSWORD="evidence-secret")
pristine, data = os.path.join(work, "pristine"), os.path.join(work, "data")
log_path = os.path.join(work, "flips.log")


class Server:
    def __init__(self, directory):
        cluster = os.path.join(directory, "cluster.json")
        if os.path.exists(cluster):
            os.remove(cluster)
        self.log = open(log_path, "wb")
        self.process = subprocess.Popen(
            [henge, "server", "--data", directory, "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", "127.0.0.1:0"],
            env=ENV, stdout=self.log, stderr=self.log)
        self.up = False
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            if os.path.exists(cluster):
                self.node = json.load(open(cluster))["nodes"][0]
                self.up = True
                break
            time.sleep(0.005)

    def status(self):
        connection = http.client.HTTPConnection(self.node["admin"], timeout=20)
        connection.request("GET", "/status")
        return json.loads(connection.getresponse().read())

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()
        return open(log_path, errors="replace").read()


def body(number):
    size = [100, 900, 4096, 4096, 50_000, 300_000, 5_000_000][number % 7]
    return hashlib.shake_128(b"object %d" % number).digest(size)


OBJECTS = 84


def prepare():
    """A node stopped by kill -9 after some writes, once with its key-value store flushed by a clean stop before."""
    server = Server(pristine)
    assert server.up, open(log_path).read()
    s3 = S3(server.node["s3"], "evidence", "evidence-secret")
    assert s3.request("PUT", "/flips")[0] == 200
    for number in range(OBJECTS // 2):
        assert s3.request("PUT", f"/flips/object-{number:03}", body(number))[0] == 200
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()
    server = Server(pristine)
    s3 = S3(server.node["s3"], "evidence", "evidence-secret")
    for number in range(OBJECTS // 2, OBJECTS):
        assert s3.request("PUT", f"/flips/object-{number:03}", body(number))[0] == 200
    time.sleep(0.5)
    server.stop()


def places():
    """Byte ranges (file, start, end) by kind, found by looking for what the records must contain."""
    found = {"chunk records": [], "headers": [], "raft log": [], "key-value": [], "identity": []}
    for folder, _, files in os.walk(pristine):
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), pristine)
            if name in ("cluster.json", "credentials", "lock") or "token" in name:
                continue
            raw = open(os.path.join(pristine, path), "rb").read()
            if name.startswith("kv-"):
                found["key-value"].append((path, 0, len(raw)))
            elif len(raw) < 1 << 20:
                found["identity"].append((path, 0, len(raw)))
            else:
                for number in range(OBJECTS):
                    content = body(number)
                    at = raw.find(content[:64])
                    if len(content) > 1024 and at >= 0:
                        found["chunk records"].append((path, at, at + min(len(content), 16384)))
                        # Before the payload: the record's header and checksums, the directory and the batch header.
                        found["headers"].append((path, max(0, at - 256), at))
                    needle, at = b"object-%03d" % number, -1
                    while (at := raw.find(needle, at + 1)) >= 0:
                        found["raft log"].append((path, max(0, at - 96), at + 96))
    return found


def try_one(kind, path, offset, bit):
    if os.path.exists(data):
        shutil.rmtree(data)
    subprocess.run(["cp", "-r", "--sparse=always", pristine, data], check=True)
    target = os.path.join(data, path)
    with open(target, "r+b") as file:
        file.seek(offset)
        old = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([old ^ (1 << bit)]))
    server = Server(data)
    where = f"{kind}: {path} byte {offset} bit {bit}"
    wrong, missing = [], []
    if server.up:
        s3 = S3(server.node["s3"], "evidence", "evidence-secret", timeout=60)
        for number in range(OBJECTS):
            try:
                status, got = s3.request("GET", f"/flips/object-{number:03}")
            except (OSError, http.client.HTTPException):
                s3.reconnect()
                status, got = 0, b""
            if status == 200 and got != body(number):
                wrong.append(number)
            elif status != 200:
                missing.append((number, status))
        verdict = server.status()
    text = server.stop()
    if "panicked" in text:
        return "PANIC", where + "\n" + text[-2000:]
    if wrong:
        return "WRONG", f"{where}: objects {wrong}"
    if not server.up:
        words = text.strip().splitlines()
        if server.process.returncode == 1 and words:
            return "refused to start, says why", where + ": " + words[-1]
        return "UNCLEAR", f"{where}: exit {server.process.returncode}: {text[-500:]}"
    if missing:
        named = verdict["verdict"] in ("lost", "unavailable") and verdict["reasons"]
        return ("served the rest, names the loss" if named else "UNREPORTED"), f"{where}: {missing[:5]} {verdict['verdict']} {verdict['reasons'][:2]}"
    reported = any("damag" in reason.lower() or "corrupt" in reason.lower() for reason in verdict["reasons"])
    return ("all served, damage reported" if reported else "all served, flip in unused or superseded bytes"), where


def main():
    prepare()
    bad = 0
    for kind, ranges in places().items():
        assert ranges, f"found no {kind}"
        outcomes, examples = {}, {}
        for _ in range(flips):
            path, start, end = random.choice(ranges)
            outcome, where = try_one(kind, path, random.randrange(start, end), random.randrange(8))
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            examples.setdefault(outcome, where)
            if outcome.isupper():
                bad += 1
                print(f"{outcome}: {where}", flush=True)
        print(f"{kind}: {flips} flips: {outcomes}", flush=True)
        for outcome, where in examples.items():
            print(f"    {outcome}, for example: {where}")
    if bad:
        print(f"DOES NOT HOLD: {bad} flips were served wrong, panicked or went unreported")
        sys.exit(1)
    print(f"holds: {flips} flips in each of 5 kinds of bytes: nothing wrong served, no panic, every loss reported")


main()
