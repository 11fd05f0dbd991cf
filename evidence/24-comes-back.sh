#!/usr/bin/env bash
# Five nodes in three zones under load. A node comes back with an empty disk; one after DELETES (1,000) deletes, which stay deleted; a
# second process is started on a disk in use; a copied data directory is started beside its original. Each does the right
# thing or refuses with a sentence; everything acknowledged verifies, and fsck over all disks is clean.
# Kills, pauses of 30 s, one-way cuts and splits are in `cargo xtask chaos` (kill-leaders, pause-leaders, cuts, splits).
. "$(dirname "$0")/common.sh"
need python3 curl
port=${BASE_PORT:-29900} deletes=${DELETES:-1000} mib=${MIB:-64}
declare -A pids
trap 'exit_code=$?; kill -9 ${pids[@]} 2>/dev/null || true; finish' EXIT
zones=(- a a b b c c)
command_of() { # command_of N: the addresses of node N
    local base=$((port + 10 * ($1 - 1)))
    echo "--locality region=here,zone=${zones[$1]} --s3 127.0.0.1:$base --admin 127.0.0.1:$((base + 1)) --cluster 127.0.0.1:$((base + 2))"
}
ready() {
    for _ in $(seq 1 3000); do curl -fs "http://127.0.0.1:$((port + 10 * ($1 - 1) + 1))/health/ready" >/dev/null && return 0; sleep 0.02; done
    tail -3 "$work/n$1.log"; die "node $1 is not ready"
}
serve() { # serve N [FLAGS...]
    local n=$1
    shift
    "$HENGE" server --data "$work/n$n" $(command_of $n) "$@" >>"$work/n$n.log" 2>&1 &
    pids[$n]=$!
    ready $n
}
join() { HENGE_JOIN_TOKEN=$("$HENGE" token create --data "$work/n1" | tail -1) serve "$1" --join 127.0.0.1:$((port + 2)); }
down() { kill "-${2:-KILL}" "${pids[$1]}"; wait "${pids[$1]}" 2>/dev/null || true; unset "pids[$1]"; }
safe() { # safe SECONDS
    local start=$SECONDS
    until "$HENGE" status --data "$work/n1" >"$work/status" 2>&1; do
        [ $((SECONDS - start)) -lt "$1" ] || { cat "$work/status"; die "not safe"; }
        sleep 0.3
    done
    echo "safe after $((SECONDS - start)) s"
}
refused() { # refused WHAT COMMAND...: it ends by itself, not with success, and says why
    local what=$1
    shift
    if timeout 40 "$@" >"$work/refusal" 2>&1; then die "$what was not refused"; fi
    [ $? -ne 124 ] || die "$what: no answer"
    echo "$what: $(tail -1 "$work/refusal")"
}
serve 1
read_cluster "$work/n1"
for n in 2 3 4 5; do join $n; done
safe 240
"$HENGE" bench put --size 1MiB --concurrency 4 --objects "$mib" --ack-log "$work/large.jsonl" --data "$work/n1" | tail -1
"$HENGE" bench mixed --size 16KiB --concurrency 4 --seconds "${LOAD_S:-60}" --ack-log "$work/during.jsonl" --data "$work/n1" >"$work/during.log" 2>&1 &
load_pid=$!

say "node 4 comes back with an empty disk"
down 4
rm -rf "$work/n4"
sleep 2
join 6
"$HENGE" node remove 4 --lost --data "$work/n1"
safe 300

say "node 3 comes back after $deletes deletes"
cat >"$work/deletes.py" <<'PY'
import os, sys
sys.path.insert(0, os.environ["HERE"])
from s3 import S3
what, host, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
s3 = S3(host, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
def key(i): return f"/gone/object-{i}"
if what == "put":
    assert s3.request("PUT", "/gone")[0] == 200
wrong = 0
for i in range(count):
    if what == "put":
        assert s3.request("PUT", key(i), b"x" * [10, 5000, 70_000][i % 3])[0] == 200
    elif what == "delete":
        assert s3.request("DELETE", key(i))[0] == 204
    else:
        wrong += s3.request("GET", key(i))[0] != 404
if what == "check":
    status, listing = s3.request("GET", "/gone", query="list-type=2")
    assert status == 200 and b"<Key>" not in listing, listing[:300]
print(f"{what}: {count} objects through {host}" + (f", {wrong} came back" if what == "check" else ""))
sys.exit(wrong > 0)
PY
export HERE=$(dirname "$(realpath "$0")")
python3 "$work/deletes.py" put 127.0.0.1:$port "$deletes"
down 3
python3 "$work/deletes.py" delete 127.0.0.1:$port "$deletes"
sleep "${AWAY_S:-20}"
serve 3
safe 300
for n in 1 3 5; do python3 "$work/deletes.py" check 127.0.0.1:$((port + 10 * (n - 1))) "$deletes" || die "deleted objects came back on node $n"; done

say "a second process on the same disk, a copied disk"
refused "a second process on the directory of node 5" "$HENGE" server --data "$work/n5" --s3 127.0.0.1:0 --admin 127.0.0.1:0 --cluster 127.0.0.1:0
down 5 TERM
cp -a "$work/n5" "$work/copy"
serve 5
"$HENGE" server --data "$work/copy" --s3 127.0.0.1:0 --admin 127.0.0.1:0 --cluster 127.0.0.1:0 >"$work/copy.log" 2>&1 &
copy=$!
for _ in $(seq 1 "${COPY_S:-40}"); do
    kill -0 $copy 2>/dev/null && kill -0 "${pids[5]}" 2>/dev/null || break
    sleep 1
done
original=stays
kill -0 "${pids[5]}" 2>/dev/null || original=goes
if kill -0 $copy 2>/dev/null; then
    kill -9 $copy
    [ $original = goes ] || die "the copied directory and its original serve side by side"
fi
wait $copy 2>/dev/null || true
echo "the copy: $(tail -1 "$work/copy.log")"
echo "the original $original: $(tail -1 "$work/n5.log")"
if [ $original = goes ]; then wait "${pids[5]}" 2>/dev/null || true; serve 5; fi
wait $load_pid || true
tail -2 "$work/during.log"
safe 300
for log in large during; do "$HENGE" bench verify "$work/$log.jsonl" --json --data "$work/n1" || die "verify $log"; done
python3 "$work/deletes.py" check 127.0.0.1:$port "$deletes"
for n in "${!pids[@]}"; do kill -TERM ${pids[$n]}; done
for n in "${!pids[@]}"; do wait ${pids[$n]} 2>/dev/null || true; unset "pids[$n]"; done
"$HENGE" fsck "$work/n1" "$work/n2" "$work/n3" "$work/n5" "$work/n6" || die "fsck"
echo "holds: an empty disk, $deletes deletes in absence, two processes, a copied disk; nothing lost, nothing came back"
