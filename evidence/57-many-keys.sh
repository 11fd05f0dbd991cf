#!/usr/bin/env bash
# KEYS (10 million) small objects in one bucket, in FOLDERS (1,000) folders: how long a page of 1,000 takes from the start, from the middle, of
# versions, and with a delimiter over all folders (p50, p99), and what the process holds in memory. Holds when every page has what it
# must have, in order, and listing takes no more memory than a page does. The times are reported, not gated: the machine's are.
. "$(dirname "$0")/common.sh"
need python3 curl
keys=${KEYS:-10000000} folders=${FOLDERS:-1000}
mkdir -p "$work/data"
start_server "$work/data"
memory() { awk '/VmRSS|VmHWM/{printf "%s %.0f MiB  ", $1, $2/1024}' "/proc/$node_pid/status"; }
say "idle: $(memory)"
say "$("$HENGE" bench put --objects "$keys" --folders "$folders" --size 100 --concurrency "${CONCURRENCY:-64}" --bucket many --data "$work/data" | tr '\n' ' ')"
say "after $keys keys: $(memory), $(du -sh "$work/data" | cut -f1) on disk"
python3 "$(dirname "$0")/57-many-keys.py" "$work/data/cluster.json" "$keys" "$folders" || die "a listing"
say "after the listings: $(memory)"
kill_server
begin=$(date +%s.%N)
start_server "$work/data"
say "served again $(python3 -c "import time; print(f'{time.time() - $begin:.1f}')") s after kill -9: $(memory)"
ROUNDS=5 python3 "$(dirname "$0")/57-many-keys.py" "$work/data/cluster.json" "$keys" "$folders" || die "a listing after the restart"
stop_server
echo "holds: $keys keys in one bucket are listed in order from anywhere"
