#!/usr/bin/env bash
# 1 GiB written and deleted ten times on a disk of 3 GiB: space comes back, writes never fail. Then the disk filled to the brim:
# a clean error, reads and deletes work, writes work again after deletes.
. "$(dirname "$0")/common.sh"
need python3 curl
start_server "$work/data" --disk "$work/disk=3GiB"
python3 "$(dirname "$0")/07-space.py" "$work/data/cluster.json" "$work/disk"
stop_server
"$HENGE" fsck "$work/data" "$work/disk"
echo "holds: ten rounds of 1 GiB on 3 GiB without a failed write; full disk: clean error, reads and deletes work, writes again after deletes"
