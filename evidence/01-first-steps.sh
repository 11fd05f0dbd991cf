#!/usr/bin/env bash
# The README's first command; then `henge server` and the aws CLI: bucket, 4 KiB, 200 MiB in parts, list, get, compare,
# delete. Prints the time from the start of the process to the first successful PUT.
hint="pip install awscli" . "$(dirname "$0")/common.sh"
need aws curl python3
say "demo"
"$HENGE" demo
say "from start to first PUT"
python3 - "$HENGE" "$work/first" <<'PY' | tee "$work/first-put"
import json, os, subprocess, sys, time
binary, data = sys.argv[1], sys.argv[2]
env = dict(os.environ, HENGE_ROOT_USER="evidence", HENGE_ROOT_PASSWORD="evidence-secret")
begun = time.monotonic()
server = subprocess.Popen([binary, "server", "--data", data, "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                           "--cluster", "127.0.0.1:0"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    path = os.path.join(data, "cluster.json")
    while not os.path.exists(path):
        time.sleep(0.002)
    node = json.load(open(path))["nodes"][0]
    import datetime, hashlib, hmac, http.client
    def put(path, body):
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest()
        head = {"host": node["s3"], "x-amz-content-sha256": digest, "x-amz-date": stamp}
        names = ";".join(sorted(head))
        canonical = "\n".join(["PUT", path, ""] + [f"{k}:{head[k]}" for k in sorted(head)] + ["", names, digest])
        scope = f"{day}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = b"AWS4evidence-secret"
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        sign = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        head["authorization"] = f"AWS4-HMAC-SHA256 Credential=evidence/{scope}, SignedHeaders={names}, Signature={sign}"
        connection = http.client.HTTPConnection(node["s3"])
        connection.request("PUT", path, body, head)
        return connection.getresponse().status
    while True:
        try:
            if put("/first", b"") == 200:
                break
        except OSError:
            pass
        time.sleep(0.002)
    assert put("/first/object", b"x" * 4096) == 200
    print(f"{time.monotonic() - begun:.3f} s from start to first PUT on a fresh directory")
finally:
    server.kill()
PY
say "aws CLI"
start_server "$work/data"
s3="aws --endpoint-url $endpoint s3"
head -c 4096 /dev/urandom >"$work/small"
head -c 209715200 /dev/urandom >"$work/large"
$s3 mb s3://photos
$s3 cp --no-progress "$work/small" s3://photos/small
$s3 cp --no-progress "$work/large" s3://photos/dir/large
$s3 ls --recursive s3://photos
$s3 cp --no-progress s3://photos/small "$work/small.back" && cmp "$work/small" "$work/small.back"
$s3 cp --no-progress s3://photos/dir/large "$work/large.back" && cmp "$work/large" "$work/large.back"
$s3 rm --recursive s3://photos
$s3 rb s3://photos
[ -z "$($s3 ls)" ] || die "the bucket is still listed"
stop_server
echo "holds: demo, aws CLI with 4 KiB and 200 MiB; $(cat "$work/first-put")"
