#!/usr/bin/env bash
# Five nodes in three zones, under load: one is killed for good. Time to suspicion, fencing and the first write, the longest gap in
# service, time to full redundancy after it was given up; `henge status` at five moments; at the end every object verifies, and
# the disks themselves (stopped, read by fsck) have every copy, no two of a chunk in one zone. Then a sixth node joins, one
# is drained and removed, under load. MIB (512) is written before, in objects of 4 KiB to 64 MiB.
. "$(dirname "$0")/common.sh"
need python3 curl
port=${BASE_PORT:-29700} mib=${MIB:-512}
declare -A pids
trap 'exit_code=$?; kill -9 ${pids[@]} 2>/dev/null || true; finish' EXIT
zones=(- a a b b c c)
serve() { # serve N [FLAGS...]
    local n=$1 base=$((port + 10 * ($1 - 1)))
    shift
    "$HENGE" server --data "$work/n$n" --locality "region=here,zone=${zones[$n]}" --s3 127.0.0.1:$base --admin 127.0.0.1:$((base + 1)) \
        --cluster 127.0.0.1:$((base + 2)) "$@" >>"$work/n$n.log" 2>&1 &
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
    echo "safe after $((SECONDS - start)) s"
}
status() { say "status: $*"; "$HENGE" status --data "$work/n1" || true; }
load() { # load SECONDS NAME: in the background, through node 1; sets load_pid
    "$HENGE" bench mixed --size 64KiB --concurrency 4 --seconds "$1" --ack-log "$work/$2.jsonl" --data "$work/n1" >"$work/$2.log" 2>&1 &
    load_pid=$!
}
moved() { # bytes that nodes have pulled from others so far
    local sum=0 n
    for n in "$@"; do
        local pulled=$(curl -fs "http://127.0.0.1:$((port + 10 * (n - 1) + 1))/metrics" | sed -n 's/^henge_repair_bytes_total \([0-9]*\).*/\1/p')
        sum=$((sum + ${pulled:-0}))
    done
    echo "$sum"
}
serve 1
read_cluster "$work/n1"
for n in 2 3 4 5; do join $n; done
safe 240
status "five nodes"
# A quarter in objects of 1 MiB, a quarter of 16 MiB, half of 64 MiB; and some thousand small ones.
store() { "$HENGE" bench put --size "$1" --objects "$2" --concurrency 4 --ack-log "$work/before-$1.jsonl" --data "$work/n1" | tail -1; }
store 4KiB 5000
store 1MiB $((mib / 4))
store 16MiB $((mib / 64 + 1))
store 64MiB $((mib / 128 + 1))
load 40 during
sleep 3
say "node 4 is killed for good"
killed_ms=$(date +%s%3N)
kill -9 ${pids[4]}; unset "pids[4]"
sleep 1.5
status "a second and a half after the kill"
sleep 5
"$HENGE" node remove 4 --lost --data "$work/n1"
given_up=$SECONDS
sleep 1
status "given up"
safe 600
echo "full redundancy $((SECONDS - given_up)) s after it was given up, $(moved 1 2 3 5) bytes pulled"
status "after the repair"
wait $load_pid || true
python3 - "$killed_ms" <(echo; "$HENGE" events --json --data "$work/n1") "$work/during.jsonl" <<'PY'
import json, sys
killed = int(sys.argv[1])
events = [e for e in json.loads(open(sys.argv[2]).read()) if e["time_ms"] >= killed]
for kind in ("suspected", "confirmed", "fenced", "elected", "lost", "moving", "moved"):
    first = next((e for e in events if e["kind"] == kind and e["node"] in (4, None) or e["kind"] == kind == "elected"), None)
    print(f"{kind:10} {first['time_ms'] - killed if first else '-':>6} ms after the kill" + (f": {first['text']}" if first else ""))
acks = (json.loads(line) for line in open(sys.argv[3]))
writes = sorted(ack["t_ms"] for ack in acks if ack["op"] != "get" and ack["result"] == "ok")
after = [at for at in writes if at > killed]
gap, since = max((b - a, a) for a, b in zip(writes, writes[1:]))
print(f"first write {after[0] - killed} ms after the kill; the longest time without one, of all the load: {gap} ms, {since - killed} ms after the kill")
PY
say "the timeline"
"$HENGE" events --since 5m --data "$work/n1" | tail -15
for log in before-4KiB before-1MiB before-16MiB before-64MiB during; do "$HENGE" bench verify "$work/$log.jsonl" --json --data "$work/n1" || die "verify $log"; done
say "a sixth node joins; node 2 is drained and removed, under load"
before=$(moved 1 2 3 5)
load 30 later
join 6
"$HENGE" node remove 2 --data "$work/n1"
for _ in $(seq 1 600); do ! is_removed 2 || break; sleep 0.5; done
"$HENGE" node list --data "$work/n1"
is_removed 2 || die "node 2 is not removed"
kill -TERM ${pids[2]} 2>/dev/null || true; wait ${pids[2]} 2>/dev/null || true; unset "pids[2]"
safe 300
echo "moved for the sixth node and without the second: $(($(moved 1 3 5 6) - before)) bytes"
wait $load_pid || true
for log in before-4KiB before-1MiB before-16MiB before-64MiB during later; do "$HENGE" bench verify "$work/$log.jsonl" --json --data "$work/n1" || die "verify $log"; done
status "at the end"
for n in "${!pids[@]}"; do kill -TERM ${pids[$n]}; done
for n in "${!pids[@]}"; do wait ${pids[$n]} 2>/dev/null || true; unset "pids[$n]"; done
"$HENGE" fsck "$work/n1" "$work/n3" "$work/n5" "$work/n6" || die "fsck"
echo "holds: a node killed for good, one added, one drained and removed; nothing lost; every copy in a zone of its own"
