#!/usr/bin/env bash
# Three nodes go over to another version, one after the other, under S3 load on every gateway; one of them goes back to the old
# version and forward again. OLD: the henge before, built from OLD_COMMIT when not given; HENGE: the henge after. No
# request fails after its retries. While versions are mixed both lead groups, new commands are refused with a reason, and
# everything else works through old and new gateways; then the feature level rises, and the old version is refused. At
# the end every object verifies through every gateway, and fsck is clean.
. "$(dirname "$0")/common.sh"
need python3 curl git
port=${BASE_PORT:-28800} mixed_s=${MIXED_S:-15} OLD_COMMIT=${OLD_COMMIT:-04f6ae7}
declare -A pids version
load_pid=
cleanup() {
    exit_code=$?
    kill -9 ${pids[@]} $load_pid 2>/dev/null || true
    [ ! -d "$work/old" ] || git -C "$root" worktree remove --force "$work/old" || true
    finish
}
trap cleanup EXIT
if [ -z "${OLD:-}" ]; then
    say "building $OLD_COMMIT"
    git -C "$root" worktree add --quiet --detach "$work/old" "$OLD_COMMIT"
    (cd "$work/old" && CARGO_TARGET_DIR="$work/old/target" cargo build --release --quiet --package henge)
    OLD=$work/old/target/release/henge
fi
binary() { if [ "$1" = old ]; then echo "$OLD"; else echo "$HENGE"; fi; }
admin() { echo "127.0.0.1:$((port + 10 * ($1 - 1) + 1))"; }
serve() { # serve N VERSION [FLAGS...]
    local n=$1 base=$((port + 10 * ($1 - 1))) which=$2
    shift 2
    "$(binary "$which")" server --data "$work/n$n" --s3 127.0.0.1:$base --admin 127.0.0.1:$((base + 1)) --cluster 127.0.0.1:$((base + 2)) "$@" \
        >>"$work/n$n.log" 2>&1 &
    pids[$n]=$! version[$n]=$which
    for _ in $(seq 1 3000); do curl -fs "http://$(admin "$n")/health/ready" >/dev/null && return 0; sleep 0.02; done
    tail -3 "$work/n$n.log"; die "node $n is not ready"
}
safe() { # safe SECONDS
    local start=$SECONDS
    until "$HENGE" status --data "$work/n1" >"$work/status" 2>&1; do
        [ $((SECONDS - start)) -lt "$1" ] || { cat "$work/status"; die "not safe"; }
        sleep 0.3
    done
}
# What the load's figures are counted by. Line: milliseconds, the versions of nodes 1 to 3, a name.
step() { say "$*"; echo "$(date +%s%3N) ${version[1]} ${version[2]} ${version[3]} $*" >>"$work/steps"; }
swap() { # swap N VERSION: stops node N in good order and starts it as the other version
    step "node $1: ${version[$1]} -> $2"
    kill -TERM ${pids[$1]}
    wait ${pids[$1]} || die "node $1 did not end in good order: $(tail -1 "$work/n$1.log")"
    serve "$1" "$2"
    safe 120
}
level_events() { "$HENGE" events --json --data "$work/n1" | python3 -c '
import json, sys
print("\n".join(e["text"] for e in json.load(sys.stdin) if e["kind"] == "upgraded"))'; }
# Everything that operators do, through each node, by either binary.
operate() {
    local n which name
    for n in 1 2 3; do
        for which in old new; do
            name=$1-$n-$which
            set -- "$1" --admin "$(admin "$n")" --data "$work/n$n"
            "$(binary $which)" key create "$name" "${@:2}" >/dev/null || die "key create through node $n (${version[$n]}) by $which"
            "$(binary $which)" key delete "$name" "${@:2}" >/dev/null || die "key delete through node $n"
            "$(binary $which)" bucket create "b-$name" "${@:2}" >/dev/null || die "bucket create through node $n"
            "$(binary $which)" bucket set "b-$name" --versioning enabled "${@:2}" >/dev/null || die "bucket set through node $n"
            "$(binary $which)" fence next lock "${@:2}" >/dev/null || die "fence next through node $n"
            "$(binary $which)" token create "${@:2}" >/dev/null || die "token create through node $n"
            "$(binary $which)" node list "${@:2}" | grep -c 'up' | grep -qx 3 || die "node list through node $n"
            "$(binary $which)" events "${@:2}" >/dev/null || die "events through node $n"
            "$(binary $which)" status "${@:2}" >/dev/null || die "status through node $n"
        done
    done
    echo "keys, buckets, fences, tokens, lists, events and status through ${version[1]}, ${version[2]}, ${version[3]}, by both binaries: done"
}
refused() { # refused N SENTENCE: the new command through node N
    local said
    said=$("$HENGE" root set-secret --admin "$(admin "$1")" --data "$work/n1" 2>&1) && die "root set-secret was taken through node $1"
    echo "through node $1 (${version[$1]}): $said"
    [[ $said == *"$2"* ]] || die "that is no clear sentence"
}
mixed() { # mixed NAME: a time with both versions, in which the new command is refused and all else works
    local n
    step "$1"
    for n in 1 2 3; do
        if [ "${version[$n]}" = new ]; then refused $n "run an older henge"; else refused $n "which does not know this command"; fi
    done
    operate "$(echo "$1" | tr -c 'a-z0-9\n' '-')"
    [ -z "$(level_events)" ] || die "the feature level rose while versions are mixed: $(level_events)"
    sleep "$mixed_s"
    safe 120
}
serve 1 old
for n in 2 3; do HENGE_JOIN_TOKEN=$("$OLD" token create --data "$work/n1" | tail -1) serve $n old --join 127.0.0.1:$((port + 2)); done
safe 240
eval "$("$OLD" key create load --data "$work/n1" | grep '^export')"
python3 "$root/evidence/26-rolling-upgrade.py" "$work" "127.0.0.1:$port" "127.0.0.1:$((port + 10))" "127.0.0.1:$((port + 20))" >"$work/load.log" 2>&1 &
load_pid=$!
step "all old"
"$OLD" bench put --size 256KiB --objects 400 --ack-log "$work/before.jsonl" --data "$work/n1" | tail -1
sleep 5
swap 2 new
mixed "one new"
swap 1 new
mixed "two new"
swap 2 old
mixed "one went back"
swap 2 new
mixed "two new again"
swap 3 new
step "all new"
for _ in $(seq 1 300); do [ -z "$(level_events)" ] || break; sleep 0.1; done
level_events | grep . || die "the feature level does not rise"
operate after
sleep 5
step "the new command"
old_secret=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["secret_key"])' "$work/n1/cluster.json")
user=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["access_key"])' "$work/n1/cluster.json")
"$HENGE" root set-secret --data "$work/n2" >/dev/null || die "root set-secret"
for n in 1 2 3; do
    for _ in $(seq 1 100); do "$HENGE" key list --data "$work/n$n" >/dev/null 2>&1 && break; sleep 0.1; done
    "$HENGE" key list --data "$work/n$n" >/dev/null || die "the new secret does not work on node $n"
    said=$(HENGE_ROOT_USER=$user HENGE_ROOT_PASSWORD=$old_secret "$HENGE" key list --admin "$(admin $n)" 2>&1) && die "node $n takes the old secret"
    AWS_ACCESS_KEY_ID=$user AWS_SECRET_ACCESS_KEY=$old_secret python3 - "$root/evidence" "127.0.0.1:$((port + 10 * (n - 1)))" <<'PY' || die "S3 on node $n takes the old secret"
import os, sys
sys.path.insert(0, sys.argv[1])
from s3 import S3
status, body = S3(sys.argv[2], os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]).request("GET", "/")
sys.exit(not (status == 403 and b"SignatureDoesNotMatch" in body))
PY
done
echo "root set-secret works; the old secret is refused on all ports: $said"
step "the old version is refused"
before=$("$HENGE" node list --json --data "$work/n1" | python3 -c 'import json, sys; print([n for n in json.load(sys.stdin) if n["id"] != 3])')
kill -TERM ${pids[3]}; wait ${pids[3]} || die "node 3 did not end in good order"
unset "pids[3]"
said=$("$OLD" server --data "$work/n3" --s3 127.0.0.1:$((port + 20)) --admin "$(admin 3)" --cluster 127.0.0.1:$((port + 22)) 2>&1) && die "the old version serves"
said=$(echo "$said" | grep '^henge: ' | tail -1)
echo "$said"
[[ $said == *"start a newer henge"* ]] || die "that is no clear sentence"
after=$("$HENGE" node list --json --data "$work/n1" | python3 -c 'import json, sys; print([n for n in json.load(sys.stdin) if n["id"] != 3])')
[ "$before" = "$after" ] || die "the refused start changed the map: $before, then $after"
serve 3 new
safe 120
step "all new again"
sleep 5
touch "$work/stop"
wait $load_pid || { cat "$work/load.log"; load_pid=; die "the load"; }
load_pid=
"$HENGE" bench verify "$work/before.jsonl" --json --data "$work/n1" || die "verify"
for n in 1 2 3; do kill -TERM ${pids[$n]}; done
for n in 1 2 3; do wait ${pids[$n]} || die "node $n did not end in good order"; unset "pids[$n]"; done
"$HENGE" fsck "$work/n1" "$work/n2" "$work/n3" || die "fsck"
cat "$work/load.log"
echo "holds: a rolling upgrade, with a way back, without a failed request; every object verifies, fsck clean"
