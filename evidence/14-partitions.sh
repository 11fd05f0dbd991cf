#!/usr/bin/env bash
# Three nodes in network namespaces (needs root). Each node in turn is cut off both ways, then so that it hears nothing,
# then so that nobody hears it: the two others serve, the one refuses and says why; after the heal all agree again.
hint="apt-get install nftables iproute2" . "$(dirname "$0")/common.sh"
need python3 curl ip nft
declare -A pids
clean() { kill -9 ${pids[@]} 2>/dev/null; for n in 1 2 3; do ip netns del henge$n 2>/dev/null; done; ip link del hengebr 2>/dev/null; finish; }
trap clean EXIT
ip link add hengebr type bridge
ip addr add 10.77.0.254/24 dev hengebr
ip link set hengebr up
for n in 1 2 3; do
    ip netns add henge$n
    ip link add henge$n type veth peer name eth0 netns henge$n
    ip link set henge$n master hengebr up
    ip -n henge$n addr add 10.77.0.$n/24 dev eth0
    ip -n henge$n link set eth0 up
    ip -n henge$n link set lo up
done
serve() { # serve N [FLAGS...]
    local n=$1
    shift
    ip netns exec henge$n "$HENGE" server --data "$work/n$n" --s3 10.77.0.$n:9000 --admin 10.77.0.$n:9001 --cluster 10.77.0.$n:9002 "$@" \
        >>"$work/n$n.log" 2>&1 &
    pids[$n]=$!
    for _ in $(seq 1 1000); do curl -fs "http://10.77.0.$n:9001/health/ready" >/dev/null && return 0; sleep 0.02; done
    tail -3 "$work/n$n.log"; die "node $n is not ready"
}
serve 1
read_cluster "$work/n1"
export HENGE_ROOT_USER=$AWS_ACCESS_KEY_ID HENGE_ROOT_PASSWORD=$AWS_SECRET_ACCESS_KEY
for n in 2 3; do HENGE_JOIN_TOKEN=$("$HENGE" token create --admin 10.77.0.1:9001 | tail -1) serve $n --join 10.77.0.1:9002; done
safe() { for _ in $(seq 1 600); do "$HENGE" status --admin 10.77.0.$1:9001 >"$work/status" 2>&1 && return 0; sleep 0.2; done; cat "$work/status"; die "not safe through node $1"; }
safe 1
cat >"$work/op.py" <<'PY'
import http.client, os, sys, time
sys.path.insert(0, os.environ["HERE"])
from s3 import S3
what, node, key, wanted, patience = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5])
end = time.monotonic() + patience
begun = time.monotonic()
status, text = 0, b""
while True:
    try:
        s3 = S3(f"10.77.0.{node}:9000", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], timeout=40)
        if what == "bucket": status, text = s3.request("PUT", "/cut")
        elif what == "put": status, text = s3.request("PUT", f"/cut/{key}", key.encode())
        else:
            status, text = s3.request("GET", f"/cut/{key}")
            if status == 200 and text != key.encode(): sys.exit(f"node {node}: {key} is {text!r}")
    except (OSError, http.client.HTTPException) as error: status, text = 0, str(error).encode()
    if str(status).startswith(wanted) or time.monotonic() > end: break
    time.sleep(0.05)
print(f"{what} {key} through node {node}: {status} after {time.monotonic() - begun:.2f} s {text[:200] if status != 200 else ''}")
sys.exit(0 if str(status).startswith(wanted) else 1)
PY
export HERE=$(dirname "$(realpath "$0")")
op() { python3 "$work/op.py" "$@" || die "$*"; }
cut() { # cut N CHAIN DIRECTION: drops what node N exchanges with the two others
    ip netns exec henge$1 nft add table inet cut
    ip netns exec henge$1 nft add chain inet cut $2 "{ type filter hook $2 priority 0 ; }"
    for other in 1 2 3; do [ $other = $1 ] || ip netns exec henge$1 nft add rule inet cut $2 ip $3 10.77.0.$other drop; done
}
op bucket 1 - 200 10
for n in 1 2 3; do
    for kind in "both ways" "deaf" "mute"; do
        others=$(for other in 1 2 3; do [ $other = $n ] || echo $other; done)
        say "node $n cut off: $kind"
        [ "$kind" = mute ] || cut $n input saddr
        [ "$kind" = deaf ] || cut $n output daddr
        for other in $others; do op put $other "$n-${kind/ /-}-$other" 200 10; done
        op put $n "$n-${kind/ /-}-refused" 503 60
        "$HENGE" status --admin 10.77.0.$n:9001 2>&1 | head -3 || true
        ip netns exec henge$n nft delete table inet cut
        for other in $others; do op get $n "$n-${kind/ /-}-$other" 200 20; done
        op put $n "$n-${kind/ /-}-healed" 200 20
        safe $n
    done
done
echo "holds: nine cuts; the majority served, the single node refused, all agree after the heal"
