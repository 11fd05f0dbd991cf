#!/usr/bin/env bash
# One access key floods a gateway with FLOOD (1,000) requests at once; another key's requests are all served meanwhile, in what time is reported.
# The flood is answered 503 SlowDown with Retry-After where it is too much, and the memory of the process stays bounded.
. "$(dirname "$0")/common.sh"
need python3 curl
mkdir -p "$work/data"
start_server "$work/data"
OTHER_KEY=$("$HENGE" key create other --json --data "$work/data" --admin "$admin")
export OTHER_KEY FLOOD=${FLOOD:-1000}
python3 "$(dirname "$0")/60-flood.py" "$work/data/cluster.json" "$HENGE" || die "a flood"
stop_server
echo "holds: a flood of one key leaves others served"
