#!/usr/bin/env bash
# OBJECTS (100,000) objects expire by a lifecycle rule while they are read, and while HOT (200) of them are overwritten again and again: whoever
# is due goes, whatever was written again lives its whole new life, nothing goes early. A day lasts DAY (60) seconds here. Then object
# lock against the root user and against lifecycle: nobody removes or shortens what compliance keeps.
. "$(dirname "$0")/common.sh"
need python3 curl
export HENGE_DEBUG_LIFECYCLE_DAY_S=${DAY:-60} OBJECTS=${OBJECTS:-100000}
mkdir -p "$work/data"
start_server "$work/data"
python3 "$(dirname "$0")/58-lifecycle.py" "$work/data/cluster.json" "$HENGE" || die "lifecycle or object lock"
say "memory: $(awk '/VmRSS|VmHWM/{printf "%s %.0f MiB  ", $1, $2/1024}' "/proc/$node_pid/status")"
stop_server
"$HENGE" fsck "$work/data" >"$work/fsck" 2>&1 || { tail -5 "$work/fsck"; die "fsck"; }
echo "holds: what is due goes, what was written again lives, and compliance keeps what it keeps"
