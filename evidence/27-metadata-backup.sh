#!/usr/bin/env bash
# Three nodes. Their metadata is kept in a file while they serve and write; then it is destroyed on all of them, and put back
# on each. Everything written before the backup verifies, what came later is not there, the disks are clean by fsck, and
# the cluster goes on. A node that was left out is refused until it is restored; a damaged file changes nothing.
. "$(dirname "$0")/common.sh"
need python3 curl
export HERE=$(dirname "$(realpath "$0")")
start_dev 3
wait_safe 1
target=(--admin "$(admin_of 2)" --data "$dev")
"$HENGE" bench put --size 16KiB --concurrency 8 --objects "${OBJECTS:-5000}" --ack-log "$work/before.jsonl" --data "$dev" | tail -1
"$HENGE" bench put --size 5MiB --concurrency 2 --objects 20 --ack-log "$work/large.jsonl" --data "$dev" | tail -1

say "a backup while others write"
"$HENGE" bench mixed --size 4KiB --concurrency 4 --seconds 8 --ack-log "$work/during.jsonl" --data "$dev" >"$work/during.log" 2>&1 &
load_pid=$!
sleep 2
time "$HENGE" metadata backup "$work/backup" "${target[@]}"
wait $load_pid || die "the load beside the backup: $(tail -3 "$work/during.log")"
"$HENGE" metadata check "$work/backup" --json >"$work/check.json"
[ "$(stat -c %a "$work/backup")" = 600 ] || die "others may read the backup"
"$HENGE" metadata backup "$work/backup" "${target[@]}" >"$work/refusal" 2>&1 && die "an existing file was replaced"
tail -1 "$work/refusal"
"$HENGE" bench put --size 100KiB --concurrency 4 --objects 200 --ack-log "$work/later.jsonl" --data "$dev" | tail -1

say "the metadata of all nodes is destroyed"
stop_dev
for n in 1 2 3; do
    rm "$dev/node$n/disk0"/kv-*
    ls "$dev/node$n/disk0" | head -3
done
if "$HENGE" fsck "$dev"/node? >"$work/fsck" 2>&1; then die "fsck sees nothing"; fi
tail -2 "$work/fsck"

say "a damaged file changes nothing"
python3 - "$work/backup" "$work/hurt" <<'PY'
import sys
raw = bytearray(open(sys.argv[1], "rb").read())
raw[len(raw) // 2] ^= 4
open(sys.argv[2], "wb").write(raw)
PY
"$HENGE" metadata restore "$work/hurt" --data "$dev/node1" --yes >"$work/refusal" 2>&1 && die "a damaged file was restored"
tail -1 "$work/refusal"

say "restored on two nodes, then on the third"
for n in 1 2; do "$HENGE" metadata restore "$work/backup" --data "$dev/node$n" --yes; done
"$HENGE" metadata restore "$work/backup" --data "$dev/node1" --yes >"$work/refusal" 2>&1 && die "restored twice under one generation"
tail -1 "$work/refusal"
"$HENGE" metadata restore "$work/backup" --data "$dev/node3" --yes | tail -1
"$HENGE" fsck "$dev"/node? >"$work/fsck" 2>&1 || true
echo "before the start:"; tail -6 "$work/fsck"
start_dev 3
wait_safe 1
for log in before large; do "$HENGE" bench verify "$work/$log.jsonl" --json --data "$dev" || die "verify $log"; done
cat >"$work/later.py" <<'PY'
import json, os, sys
sys.path.insert(0, os.environ["HERE"])
from s3 import S3
s3 = S3(sys.argv[1], os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
status, _ = s3.request("PUT", "/fresh")
assert status == 200, status
assert s3.request("PUT", "/fresh/object", b"x" * 100_000)[0] == 200
assert s3.request("GET", "/fresh/object")[1] == b"x" * 100_000
print("a new bucket and a new object are taken and read")
PY
python3 "$work/later.py" "127.0.0.1:$((base_port + 10))"
if "$HENGE" bench verify "$work/later.jsonl" --data "$dev" >"$work/verify" 2>&1; then die "what came after the backup is there"; fi
tail -1 "$work/verify"
"$HENGE" status --data "$dev" | head -5
sleep 5
stop_dev
"$HENGE" fsck "$dev"/node? || die "fsck"

say "another certificate authority"
"$HENGE" authority make "$work/authority" | head -1
for n in 1 2 3; do "$HENGE" authority install "$work/authority" --data "$dev/node$n" >/dev/null; done
start_dev 3
wait_safe 1
"$HENGE" bench verify "$work/before.jsonl" --json --data "$dev" || die "verify with another authority"
grep -h "certificate authority" "$dev"/node?/log "$work/dev.log" 2>/dev/null | tail -1 || true
stop_dev
echo "holds: metadata came back from a file on three nodes that had lost it; nothing of before is missing; then all had another certificate authority"
