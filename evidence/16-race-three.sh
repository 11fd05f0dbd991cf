#!/usr/bin/env bash
# 32 clients race `If-None-Match: *` on one key over three gateways, ROUNDS (1,000) rounds, while a node that leads is
# killed every 10 s: exactly one winner each, no round without one.
. "$(dirname "$0")/common.sh"
need python3 curl
start_dev 3
wait_safe 1
(
    while sleep 10; do
        for admin_node in 1 2 3; do
            leader=$("$HENGE" status --json --admin "$(admin_of $admin_node)" --data "$dev" 2>/dev/null |
                python3 -c 'import json, sys; print(next(g["leader"] or 1 for g in json.load(sys.stdin)["groups"] if g["id"] == 1))' 2>/dev/null) && break
        done
        "$HENGE" dev kill "${leader:-1}" --data "$dev" >/dev/null && echo "leader $leader killed" >>"$work/killed"
        sleep 2
        "$HENGE" dev start "${leader:-1}" --data "$dev" >/dev/null || true
    done
) &
killer=$!
result=0
python3 "$(dirname "$0")/16-race-three.py" "$dev/cluster.json" || result=$?
kill "$killer"; wait "$killer" 2>/dev/null || true
echo "$(wc -l <"$work/killed") leaders were killed meanwhile"
for node in 1 2 3; do "$HENGE" dev start $node --data "$dev" >/dev/null 2>&1 || true; done
stop_dev
[ $result = 0 ] || die "the race"
echo "holds: exactly one winner in every round"
