#!/usr/bin/env bash
# FLIPS (100) single-bit flips each in chunk records in use, record and batch headers, Raft log and key-value store of one stopped
# node of three, in rounds of BATCH (10), another node each round: nothing wrong is served through any gateway, what is damaged
# is repaired, the cluster is `safe` again after every round, fsck over all directories is clean at the end.
. "$(dirname "$0")/common.sh"
need python3 curl
start_dev 3
wait_safe 1
python3 "$(dirname "$0")/17-flips-three.py" "$HENGE" "$dev" "${FLIPS:-100}" "${BATCH:-10}"
stop_dev
"$HENGE" fsck "$dev"/node1 "$dev"/node2 "$dev"/node3 || die "fsck"
echo "holds: nothing wrong served, no panic, safe after every round, fsck clean"
