#!/usr/bin/env bash
# Races through three gateways at once, ROUNDS (1,000) of each kind, while a node that leads is killed every 10 s:
# creation, chains of If-Match, complete against abort against overwrite, retention against deletion, a policy taken back
# against its use (a tenth of the rounds), lifecycle against overwrites. KINDS chooses some.
. "$(dirname "$0")/common.sh"
need python3 curl
export HENGE_DEBUG_LIFECYCLE_DAY_S=4
start_dev 3
wait_safe 1
OTHER_KEY=$("$HENGE" key create other --json --data "$dev" --admin "$(admin_of 1)")
export OTHER_KEY
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
touch "$work/killed"
result=0
python3 "$(dirname "$0")/55-races.py" "$dev/cluster.json" || result=$?
kill "$killer"; wait "$killer" 2>/dev/null || true
echo "$(wc -l <"$work/killed") leaders were killed meanwhile"
for node in 1 2 3; do "$HENGE" dev start $node --data "$dev" >/dev/null 2>&1 || true; done
stop_dev
[ $result = 0 ] || die "a race"
echo "holds: every race has one outcome, and every answer was true"
