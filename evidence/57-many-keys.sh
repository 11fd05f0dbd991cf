#!/usr/bin/env bash
# KEYS (10 million) small objects in one bucket, in FOLDERS (1,000) folders: how long a page of 1,000 takes from the start, from the middle, of
# versions, and with a delimiter over all folders (p50, p99), what the process holds in memory, and what a PUT costs the server before and
# after. Holds when every PUT succeeds, every page has what it must have, in order, all pages together have every key, listing takes no
# more memory than a page does, and a PUT costs at most 1.5 times what it did. The times are reported, not gated: the machine's are.
. "$(dirname "$0")/common.sh"
need python3 curl
keys=${KEYS:-10000000} folders=${FOLDERS:-1000}
mkdir -p "$work/data"
start_server "$work/data"
memory() { awk '/VmRSS|VmHWM/{printf "%s %.0f MiB  ", $1, $2/1024}' "/proc/$node_pid/status"; }
# So many PUTs, none of which may fail.
put() {
    "$HENGE" bench put --size 100 --concurrency "${CONCURRENCY:-64}" --bucket many --data "$work/data" --objects "$@" >"$work/put" || die "the load failed"
    grep -q "^ok $1, failed 0, unknown 0, not sent 0, wrong 0" "$work/put" || die "not all PUTs succeeded: $(tail -1 "$work/put")"
}
ticks() { awk '{print $14 + $15}' "/proc/$node_pid/stat"; }
# us of the server's processor time for each of 50,000 PUTs.
cost() {
    local before
    before=$(ticks)
    put 50000
    echo $((($(ticks) - before) * 1000000 / $(getconf CLK_TCK) / 50000))
}
say "idle: $(memory)"
put 10000
few=$(cost) || { echo "$few"; exit 1; }
say "a PUT beside 10000 keys: $few us of the server's CPU; $(tr '\n' ' ' <"$work/put")"
put "$keys" --folders "$folders"
say "$(tr '\n' ' ' <"$work/put")"
say "after $keys keys: $(memory), $(du -sh "$work/data" | cut -f1) on disk"
many=$(cost) || { echo "$many"; exit 1; }
say "a PUT beside $keys more: $many us; $(tr '\n' ' ' <"$work/put")"
[ $((many * 2)) -le $((few * 3)) ] || die "a PUT costs more than 1.5 times what it did"
python3 "$(dirname "$0")/57-many-keys.py" "$work/data/cluster.json" "$keys" "$folders" || die "a listing"
say "after the listings: $(memory)"
kill_server
begin=$(date +%s.%N)
start_server "$work/data"
say "served again $(python3 -c "import time; print(f'{time.time() - $begin:.1f}')") s after kill -9: $(memory)"
ROUNDS=5 python3 "$(dirname "$0")/57-many-keys.py" "$work/data/cluster.json" "$keys" "$folders" || die "a listing after the restart"
stop_server
echo "holds: $keys keys in one bucket are listed in order from anywhere"
