#!/usr/bin/env bash
# 1,000 clients of one key that send a byte a second or nothing: other keys are served meanwhile, memory is bounded, and the slow ones are
# cut off.
. "$(dirname "$0")/common.sh"
need python3 curl
mkdir -p "$work/data"
start_server "$work/data"
OTHER_KEY=$("$HENGE" key create other --json --data "$work/data" --admin "$admin")
export OTHER_KEY
python3 "$(dirname "$0")/56-slow-clients.py" "$work/data/cluster.json" || die "slow clients"
stop_server
echo "holds: slow clients harm nobody but themselves"
