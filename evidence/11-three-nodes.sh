#!/usr/bin/env bash
# The demo (three nodes and a kill in the middle), and three servers by hand as README says: tokens, `safe`, refusals.
. "$(dirname "$0")/common.sh"
need python3 curl
say "demo"
"$HENGE" demo
say "three servers by hand"
port=29500
declare -a pids
trap 'kill -9 ${pids[@]:-} 2>/dev/null; finish' EXIT
serve() { # serve N [FLAGS...]
    local n=$1 base=$((port + 10 * ($1 - 1)))
    shift
    "$HENGE" server --data "$work/n$n" --s3 127.0.0.1:$base --admin 127.0.0.1:$((base + 1)) --cluster 127.0.0.1:$((base + 2)) "$@" \
        >>"$work/n$n.log" 2>&1 &
    pids+=($!)
    for _ in $(seq 1 500); do
        curl -fs "http://127.0.0.1:$((base + 1))/health/ready" >/dev/null && return 0
        kill -0 "${pids[-1]}" 2>/dev/null || { tail -3 "$work/n$n.log"; return 1; }
        sleep 0.02
    done
    return 1
}
token() { "$HENGE" token create --data "$work/n1" --admin 127.0.0.1:$((port + 1)) | tail -1; }
serve 1 || die "node 1"
used=$(token)
HENGE_JOIN_TOKEN=$used serve 2 --join 127.0.0.1:$((port + 2)) || die "node 2"
token >"$work/token"
serve 3 --join 127.0.0.1:$((port + 2)) --token-file "$work/token" || die "node 3"
end=$((SECONDS + 60))
until "$HENGE" status --data "$work/n2"; do [ $SECONDS -lt $end ] || die "not safe"; sleep 0.5; done
"$HENGE" node list --data "$work/n3"
say "refusals"
refused() { # refused NAME COMMAND...: must fail with one sentence and leave nothing behind
    local name=$1
    shift
    if out=$("$@" 2>&1); then die "$name was accepted: $out"; fi
    [ ! -e "$work/no" ] || [ -z "$(find "$work/no" -name node -type f)" ] || die "$name left a node behind"
    echo "$name: $(echo "$out" | tail -1)"
    rm -rf "$work/no"
}
new() { env HENGE_JOIN_TOKEN="$1" timeout 30 "$HENGE" server --data "$work/no" --s3 127.0.0.1:0 --admin 127.0.0.1:0 --cluster 127.0.0.1:"${3:-0}" --join "$2"; }
refused "a used token" new "$used" 127.0.0.1:$((port + 2))
refused "no token at all" new "" 127.0.0.1:$((port + 2))
refused "a made-up token" new "henge1-nonsense" 127.0.0.1:$((port + 2))
short=$("$HENGE" token create --expires 1s --data "$work/n1" | tail -1); sleep 2
refused "an expired token" new "$short" 127.0.0.1:$((port + 2))
refused "nobody there" new "$(token)" 127.0.0.1:1
refused "itself" new "$(token)" 127.0.0.1:29599 29599
refused "a directory of the cluster, used twice" timeout 30 "$HENGE" server --data "$work/n1" --s3 127.0.0.1:0 --admin 127.0.0.1:0 --cluster 127.0.0.1:0
refused "removing one of three" "$HENGE" node remove 3 --data "$work/n1"
echo "holds: demo; three nodes by hand are safe; refusals are sentences and leave nothing behind"
