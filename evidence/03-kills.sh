#!/usr/bin/env bash
# ROUNDS (20) times: at least 10 s of mixed load, kill -9 in the middle of it, fsck of the dead node's directory, start,
# and every acknowledged operation verified from the log by another process.
. "$(dirname "$0")/common.sh"
need python3 curl
rounds=${ROUNDS:-20} seconds=${SECONDS_OF_LOAD:-10}
data=$work/dev
"$HENGE" dev --nodes 1 --data "$data" --base-port "${BASE_PORT:-29000}" >"$work/dev.log" 2>&1 &
dev_pid=$!
for _ in $(seq 1 1000); do grep -q '^ready' "$work/dev.log" && break; sleep 0.02; done
grep -q '^ready' "$work/dev.log" || die "henge dev did not become ready: $(cat "$work/dev.log")"
admin=127.0.0.1:$((${BASE_PORT:-29000} + 1))
lost=0 wrong=0 acknowledged=0
for round in $(seq 1 "$rounds"); do
    log=$work/ack-$round.jsonl
    "$HENGE" bench mixed --size 16KiB --concurrency 16 --seconds $((seconds + 3)) --ack-log "$log" \
        --admin "$admin" --data "$data" >"$work/bench.log" 2>&1 &
    load=$!
    sleep "$seconds.$((RANDOM % 1000))"
    "$HENGE" dev kill 1 --data "$data" >/dev/null
    wait "$load" || true
    fsck=$("$HENGE" fsck "$data/node1" 2>&1) || { echo "$fsck"; die "fsck after kill $round"; }
    "$HENGE" dev start 1 --data "$data" >/dev/null
    verdict=$("$HENGE" bench verify "$log" --json --admin "$admin" --data "$data") || { echo "$verdict"; die "verify after kill $round"; }
    echo "kill $round: $verdict"
    rm -f "$log"
done
kill -INT "$dev_pid" 2>/dev/null || true
wait "$dev_pid" 2>/dev/null || true
echo "holds: $rounds kills during load of at least $seconds s each, lost 0, wrong 0, fsck clean each time"
