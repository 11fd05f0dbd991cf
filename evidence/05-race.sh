#!/usr/bin/env bash
# Starts a server and runs 05-race.py against it.
. "$(dirname "$0")/common.sh"
need python3 curl
start_server "$work/data"
python3 "$(dirname "$0")/05-race.py" "$work/data/cluster.json"
