#!/usr/bin/env bash
# Each of three nodes paused (SIGSTOP) for PAUSE (30) s under load, the leaders of both groups among them: every
# acknowledged operation verified; after its pause each node has come back under a new generation.
. "$(dirname "$0")/common.sh"
need python3 curl
pause=${PAUSE:-30}
start_dev 3
wait_safe 1
generation() { { "$HENGE" status --json --admin "$(admin_of $(($1 % 3 + 1)))" --data "$dev" || true; } | python3 -c "
import json, sys
print(next(node['generation'] for node in json.load(sys.stdin)['nodes'] if node['id'] == $1))"; }
"$HENGE" bench mixed --size 16KiB --concurrency 12 --seconds $((3 * (pause + 12))) --ack-log "$work/ack.jsonl" --data "$dev" >"$work/bench.log" 2>&1 &
load=$!
sleep 3
for node in 1 2 3; do
    before=$(generation $node)
    leads=$("$HENGE" status --data "$dev" --admin "$(admin_of $node)" | grep -c "leader $node " || true)
    "$HENGE" dev pause $node --data "$dev" >/dev/null
    sleep "$pause"
    "$HENGE" dev resume $node --data "$dev" >/dev/null
    sleep 6
    after=$(generation $node)
    echo "node $node (led $leads groups) was paused for $pause s: generation $before before, $after after"
    [ "$after" -gt "$before" ] || die "node $node was not fenced"
done
wait "$load" || true
verdict=$("$HENGE" bench verify "$work/ack.jsonl" --json --data "$dev") || { echo "$verdict"; die "verify"; }
echo "$verdict"
wait_safe 1
stop_dev
"$HENGE" fsck "$dev"/node1 "$dev"/node2 "$dev"/node3 || die "fsck"
echo "holds: three pauses of $pause s, lost 0, wrong 0, each node fenced and back, safe, fsck clean"
