#!/usr/bin/env bash
# ROUNDS (5) times, under mixed load over all three gateways of at least 60 s: kill -9 of each node in turn and of all at
# once; every acknowledged operation verified from the log by another process; the longest gap in service; fsck at the end.
. "$(dirname "$0")/common.sh"
need python3 curl
rounds=${ROUNDS:-5} pause=${PAUSE:-6}
start_dev 3
wait_safe 1
: >"$work/events"
python3 "$(dirname "$0")/gaps.py" "$dev/cluster.json" "$work/events" >"$work/gaps" 2>&1 &
prober=$!
kills=0
for round in $(seq 1 "$rounds"); do
    log=$work/ack-$round.jsonl
    "$HENGE" bench mixed --size 16KiB --concurrency 12 --seconds $((8 * (pause + 3) )) --ack-log "$log" --data "$dev" >"$work/bench.log" 2>&1 &
    load=$!
    sleep 3
    for victim in 1 2 3 all; do
        nodes=$victim; [ "$victim" = all ] && nodes="1 2 3"
        echo "$(date +%s.%N) $victim" >>"$work/events"
        for node in $nodes; do "$HENGE" dev kill "$node" --data "$dev" >/dev/null & done; wait $(jobs -p | grep -v -e "^$load$" -e "^$prober$" -e "^$dev_pid$")
        kills=$((kills + 1))
        sleep "$pause"
        for node in $nodes; do "$HENGE" dev start "$node" --data "$dev" >/dev/null || die "node $node does not start"; done
        echo "$(date +%s.%N) back $victim" >>"$work/events"
        sleep "$pause"
    done
    wait "$load" || true
    verdict=$("$HENGE" bench verify "$log" --json --data "$dev") || { echo "$verdict"; die "verify after round $round"; }
    echo "round $round: $verdict"
    rm -f "$log"
done
kill -TERM "$prober"; wait "$prober" || true
cat "$work/gaps"
wait_safe 2
stop_dev
"$HENGE" fsck "$dev"/node1 "$dev"/node2 "$dev"/node3 || die "fsck"
echo "holds: $kills kills (each of three nodes, and all at once) under load, lost 0, wrong 0, safe again, fsck clean"
