#!/usr/bin/env bash
# OBJECTS (1,000) objects on one node; two nodes join; `safe`; the first node's directory is destroyed; everything
# verifies; a new node takes its place, `safe` again.
. "$(dirname "$0")/common.sh"
need python3 curl
port=29600 objects=${OBJECTS:-1000}
declare -A pids
trap 'kill -9 ${pids[@]} 2>/dev/null; finish' EXIT
serve() { # serve N [FLAGS...]
    local n=$1 base=$((port + 10 * ($1 - 1)))
    shift
    "$HENGE" server --data "$work/n$n" --s3 127.0.0.1:$base --admin 127.0.0.1:$((base + 1)) --cluster 127.0.0.1:$((base + 2)) "$@" \
        >>"$work/n$n.log" 2>&1 &
    pids[$n]=$!
    for _ in $(seq 1 1000); do curl -fs "http://127.0.0.1:$((base + 1))/health/ready" >/dev/null && return 0; sleep 0.02; done
    tail -3 "$work/n$n.log"; die "node $n is not ready"
}
join() { HENGE_JOIN_TOKEN=$("$HENGE" token create --data "$work/n$2" | tail -1) serve "$1" --join 127.0.0.1:$((port + 10 * ($2 - 1) + 2)); }
safe() {
    local start=$SECONDS
    until "$HENGE" status --data "$work/n$1" >"$work/status" 2>&1; do
        [ $((SECONDS - start)) -lt 180 ] || { cat "$work/status"; die "not safe"; }
        sleep 0.3
    done
    echo "safe after $((SECONDS - start)) s"
}
serve 1
read_cluster "$work/n1"
cat >"$work/objects.py" <<'PY'
import hashlib, json, os, sys
sys.path.insert(0, os.environ["HERE"])
from s3 import S3
def body(i): return hashlib.shake_128(b"object %d" % i).digest([0, 100, 5000, 20_000, 300_000][i % 5])
what, host, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
s3 = S3(host, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
if what == "put":
    assert s3.request("PUT", "/grow")[0] == 200
for i in range(count):
    if what == "put":
        assert s3.request("PUT", f"/grow/object-{i}", body(i))[0] == 200
    else:
        status, got = s3.request("GET", f"/grow/object-{i}")
        assert status == 200 and got == body(i), f"object {i} through {host}: {status}, {len(got)} bytes"
print(f"{what}: {count} objects through {host}")
PY
export HERE=$(dirname "$(realpath "$0")")
python3 "$work/objects.py" put 127.0.0.1:$port "$objects"
join 2 1
join 3 1
safe 2
kill -9 "${pids[1]}"; rm -rf "$work/n1"; unset "pids[1]"
for n in 2 3; do python3 "$work/objects.py" verify 127.0.0.1:$((port + 10 * (n - 1))) "$objects"; done
sleep 2
"$HENGE" node remove 1 --lost --data "$work/n2"
join 4 2
safe 4
for n in 2 3 4; do python3 "$work/objects.py" verify 127.0.0.1:$((port + 10 * (n - 1))) "$objects"; done
for pid in "${pids[@]}"; do kill -TERM "$pid"; done; wait
"$HENGE" fsck "$work"/n2 "$work"/n3 "$work"/n4 || die "fsck"
echo "holds: $objects objects of one node reached three copies, outlived it, and have three copies again; fsck clean"
