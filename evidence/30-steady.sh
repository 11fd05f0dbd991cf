#!/usr/bin/env bash
# MINUTES (30) of mixed load on three nodes, overwriting and deleting all the time, so that compaction, flushes of the key-value stores, trimming of
# the logs and the scrub run beside it: operations per second in each ten seconds (fewest against median), p99, p99.9, memory over time, every
# answer checked, fsck clean. Reported; it must hold that nothing is wrong, no ten seconds are without service and memory does not grow.
# MINUTES=2 for a first look.
. "$(dirname "$0")/common.sh"
need python3 curl
start_dev 3
wait_safe 1
python3 "$(dirname "$0")/30-steady.py" "$dev/cluster.json" "$HENGE" "${MINUTES:-30}" || die "steady load"
wait_safe 1 300
stop_dev
"$HENGE" fsck "$dev"/node[0-9] >"$work/fsck" 2>&1 || { tail -5 "$work/fsck"; die "fsck"; }
echo "holds: ${MINUTES:-30} minutes of mixed load"
