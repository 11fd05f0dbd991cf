#!/usr/bin/env bash
# Goodput under overload, on three nodes: PUTs of 4 KiB with 16, 64, 128 and 256 at once, then with four times as many as saturate, then with
# 4,096, more than may wait. Holds when 80 % of the most is left both times, the last is answered with 503 SlowDown in part, and
# memory stays bounded. SECONDS_=5 for a first look.
. "$(dirname "$0")/common.sh"
need python3 curl
start_dev 3
wait_safe 1
python3 "$(dirname "$0")/31-overload.py" "$dev/cluster.json" "$HENGE" "${SECONDS_:-15}" || die "overload"
wait_safe 1 300
stop_dev
echo "holds: overload keeps its throughput"
