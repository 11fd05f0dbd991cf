#!/usr/bin/env bash
# One object of GIB (20) gibibytes in PARTS (2,000) parts, uploaded through three gateways while a node is killed and comes back: read whole, in
# ranges and by part, copied part by part, and deleted; every byte is compared. Memory of the nodes is reported. (The limit of 5 TiB is
# held to by a test: cargo test -p meta an_object_has_at_most_5_tib.) COMPRESSIBLE=1: each block of 4 KiB repeats 32 bytes of its own, for a
# compressing disk in memory (docs/evidence.md).
. "$(dirname "$0")/common.sh"
need python3 curl
export GIB=${GIB:-20} PARTS=${PARTS:-2000}
free_gib=$(df --output=avail -BG "$work" | tail -1 | tr -dc 0-9)
wanted_gib=$(python3 -c "print(int($GIB * 6 * 1.2) + 2)")
[ "$free_gib" -ge "$wanted_gib" ] || die "$wanted_gib GiB are needed in $work (three copies, twice), and $free_gib are free: set TMPDIR or a smaller GIB"
start_dev 3
wait_safe 1
python3 "$(dirname "$0")/59-large-object.py" "$dev/cluster.json" "$HENGE" || die "a large object"
wait_safe 1 600
stop_dev
"$HENGE" fsck "$dev"/node[0-9] >"$work/fsck" 2>&1 || { tail -5 "$work/fsck"; die "fsck"; }
echo "holds: $GIB GiB in $PARTS parts, with a node killed meanwhile"
