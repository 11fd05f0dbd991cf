#!/usr/bin/env bash
# Goodput under overload, on three nodes: PUTs of 4 KiB with 16, 64, 128 and 256 at once, then with four times as many as gave the most; how much
# of the most is left (aim: 80 %), what was refused with 503, how long the slowest answer took, memory. SECONDS_=5 for a first look.
. "$(dirname "$0")/common.sh"
need python3 curl
start_dev 3
wait_safe 1
python3 "$(dirname "$0")/31-overload.py" "$dev/cluster.json" "$HENGE" "${SECONDS_:-15}" || die "overload"
wait_safe 1 300
stop_dev
echo "holds: overload keeps its throughput"
