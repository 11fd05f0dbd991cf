#!/usr/bin/env bash
# Storage classes are pools: three nodes, a pool of two copies beside the usual one of three. Objects are put, copied and uploaded in parts into
# either class, and moved by a lifecycle rule while they are read and overwritten; the copies of chunks on the disks are counted
# each time. Then a node dies, and everything is read. A day of lifecycle lasts DAY (4) seconds here.
. "$(dirname "$0")/common.sh"
need python3 curl
export HENGE_DEBUG_LIFECYCLE_DAY_S=${DAY:-4}
start_dev 3
wait_safe 1
"$HENGE" pool create cold --class COLD --copies 2 --data "$dev"
"$HENGE" pool list --data "$dev"
python3 "$(dirname "$0")/61-storage-classes.py" "$dev/cluster.json" "$HENGE" || die "storage classes"
wait_safe 1 300
stop_dev
"$HENGE" fsck "$dev"/node[0-9] >"$work/fsck" 2>&1 || { tail -5 "$work/fsck"; die "fsck"; }
echo "holds: bytes are in the pool of their class, wherever they came from, and stay the same"
