#!/usr/bin/env bash
# How fast copies are made again, beside fio's sequential write in the same run: five nodes on this machine's one disk, GIB (1) of
# objects of 16 MiB. One node is killed and given up without user load: bytes pulled a second against fio / copies, at least
# RATIO (0.6). A second one under load: the p99 of users' PUTs and GETs against that before, at most TIMES (2).
# REPORT=1 only reports.
hint="apt-get install fio" . "$(dirname "$0")/common.sh"
need python3 curl fio
port=${BASE_PORT:-29800} gib=${GIB:-1} load_s=${LOAD_S:-10}
declare -A pids
trap 'exit_code=$?; kill -9 ${pids[@]} 2>/dev/null || true; finish' EXIT
serve() { # serve N [FLAGS...]
    local n=$1 base=$((port + 10 * ($1 - 1)))
    shift
    "$HENGE" server --data "$work/n$n" --s3 127.0.0.1:$base --admin 127.0.0.1:$((base + 1)) --cluster 127.0.0.1:$((base + 2)) "$@" \
        >>"$work/n$n.log" 2>&1 &
    pids[$n]=$!
    for _ in $(seq 1 3000); do curl -fs "http://127.0.0.1:$((base + 1))/health/ready" >/dev/null && return 0; sleep 0.02; done
    tail -3 "$work/n$n.log"; die "node $n is not ready"
}
join() { HENGE_JOIN_TOKEN=$("$HENGE" token create --data "$work/n1" | tail -1) serve "$1" --join 127.0.0.1:$((port + 2)); }
safe() { # safe SECONDS
    local start=$SECONDS
    until "$HENGE" status --data "$work/n1" >"$work/status" 2>&1; do
        [ $((SECONDS - start)) -lt "$1" ] || { cat "$work/status"; die "not safe"; }
        sleep 0.3
    done
}
lose() { # lose N: for good
    kill -9 "${pids[$1]}"; wait "${pids[$1]}" 2>/dev/null || true; unset "pids[$1]"; rm -rf "$work/n$1"
    until "$HENGE" node remove "$1" --lost --data "$work/n1" >"$work/lost" 2>&1; do
        SECONDS_LEFT=$((${SECONDS_LEFT:-60} - 1)); [ $SECONDS_LEFT -gt 0 ] || { cat "$work/lost"; die "node $1 cannot be given up"; }
        sleep 1
    done
}
cat >"$work/watch.py" <<'PY'
# Samples the bytes pulled by all nodes until nothing has come for three seconds; answers bytes and the seconds in which they came.
import sys, time, urllib.request
admins = sys.argv[1:]
def pulled():
    total = 0
    for admin in admins:
        text = urllib.request.urlopen(f"http://{admin}/metrics", timeout=5).read().decode()
        total += sum(int(float(l.split()[-1])) for l in text.splitlines() if l.startswith("henge_repair_bytes_total"))
    return total
base = last = pulled()
first = ended = None
start = time.monotonic()
while True:
    time.sleep(0.1)
    now, bytes_ = time.monotonic(), pulled()
    if bytes_ != last:
        first, ended, last = first or now - 0.1, now, bytes_
    if (ended and now - ended > 3) or (not ended and now - start > 120):
        break
print(last - base, max((ended or 0) - (first or 0), 0.001))
PY
admins() { for n in "${!pids[@]}"; do echo 127.0.0.1:$((port + 10 * (n - 1) + 1)); done; }
bench() { "$HENGE" bench "$1" --size 64KiB --concurrency 4 --seconds "$load_s" --json --data "$work/n1"; }
p99() { python3 -c 'import json, sys; r = json.load(sys.stdin); print(r["p99_us"] / 1000)'; }
serve 1
read_cluster "$work/n1"
for n in 2 3 4 5; do join $n; done
safe 300
"$HENGE" bench put --size 16MiB --concurrency 4 --objects $((gib * 64)) --ack-log "$work/bodies.jsonl" --data "$work/n1" | tail -1
safe 300
fio_mib=$(fio --name=seq --directory="$work" --rw=write --bs=1m --size=1g --direct=1 --iodepth=8 --ioengine=libaio --end_fsync=1 \
    --runtime=5 --time_based --output-format=terse | awk -F';' '{print int($48/1024)}')
rm -f "$work"/seq.*
echo "fio: sequential write, 1 MiB direct, QD 8: $fio_mib MiB/s; with three copies $((fio_mib / 3)) MiB/s"
say "node 5 is lost, nobody else uses the cluster"
( trap - EXIT; exec python3 "$work/watch.py" $(admins | grep -v ":$((port + 41))$") ) >"$work/quiet" &
watcher=$!
lose 5
wait $watcher
read -r bytes seconds <"$work/quiet"
safe 600
say "node 4 is lost under load"
before=$(bench mixed | p99)
( trap - EXIT; exec python3 "$work/watch.py" $(admins | grep -v ":$((port + 31))$") ) >"$work/busy" &
watcher=$!
lose 4
during=$(bench mixed | p99)
wait $watcher
read -r busy_bytes busy_seconds <"$work/busy"
safe 600
"$HENGE" bench verify "$work/bodies.jsonl" --data "$work/n1" | tail -1
python3 - "$fio_mib" "$bytes" "$seconds" "$busy_bytes" "$busy_seconds" "$before" "$during" "${RATIO:-0.6}" "${TIMES:-2}" "${REPORT:-}" <<'PY'
import sys
fio, bytes_, seconds, busy_bytes, busy_seconds, before, during, ratio, times = map(float, sys.argv[1:10])
mib = bytes_ / seconds / 2**20
print(f"without load: {bytes_ / 2**20:.0f} MiB in {seconds:.1f} s: {mib:.0f} MiB/s, {mib / (fio / 3):.2f} of fio / 3")
print(f"with load: {busy_bytes / 2**20:.0f} MiB in {busy_seconds:.1f} s: {busy_bytes / busy_seconds / 2**20:.0f} MiB/s; "
      f"p99 of users {before:.1f} ms before, {during:.1f} ms during: {during / before:.1f} times")
holds = mib / (fio / 3) >= ratio and during / before <= times
print("holds" if holds else "DOES NOT HOLD")
sys.exit(0 if holds or sys.argv[10] else 1)
PY
