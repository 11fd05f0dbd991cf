# Sourced by the scripts of this folder: builds henge, makes a private directory that is removed at the end, and helps
# to start and stop a server on free ports.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
if [ -z "${HENGE:-}" ]; then
    (cd "$root" && cargo build --release --quiet)
    HENGE=$target/release/henge
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/henge-evidence.XXXXXX")
server_pid=
finish() {
    local code=${exit_code:-$?}
    [ -z "$server_pid" ] || kill -9 "$server_pid" 2>/dev/null || true
    [ -z "${dev_pid:-}" ] || stop_dev
    [ -n "${KEEP:-}" ] || rm -rf "$work"
    exit $code
}
trap finish EXIT
say() { echo "== $*"; }
die() { echo "DOES NOT HOLD: $*"; exit 1; }
need() { for tool in "$@"; do command -v "$tool" >/dev/null || die "$tool is not installed: ${hint:-install it first}"; done; }

# start_server DIR [FLAGS...]: sets server_pid, endpoint, and the usual AWS variables.
start_server() {
    local dir=$1
    shift
    rm -f "$dir/cluster.json"
    "$HENGE" server --data "$dir" --s3 127.0.0.1:0 --admin 127.0.0.1:0 --cluster 127.0.0.1:0 "$@" >>"$work/server.log" 2>&1 &
    server_pid=$!
    for _ in $(seq 1 2000); do
        [ -f "$dir/cluster.json" ] && read_cluster "$dir" && curl -fs "http://$admin/health/ready" >/dev/null && return 0
        kill -0 "$server_pid" 2>/dev/null || { tail -5 "$work/server.log"; return 1; }
        sleep 0.01
    done
    return 1
}
# read_cluster DIR: endpoints and credentials from cluster.json.
read_cluster() {
    eval "$(python3 - "$1/cluster.json" <<'PY'
import json, sys
c = json.load(open(sys.argv[1]))
n = c["nodes"][0]
print(f'endpoint=http://{n["s3"]} admin={n["admin"]} node_pid={n["pid"]}')
print(f'export AWS_ACCESS_KEY_ID={c["access_key"]} AWS_SECRET_ACCESS_KEY={c["secret_key"]} AWS_DEFAULT_REGION={c["region"]}')
PY
    )"
}
kill_server() { kill -9 "$server_pid"; wait "$server_pid" 2>/dev/null || true; server_pid=; }
stop_server() { kill -TERM "$server_pid"; wait "$server_pid"; server_pid=; }

# start_dev NODES: a cluster of several nodes in $work/dev; sets dev_pid, dev and the ports' base.
start_dev() {
    dev=$work/dev base_port=${BASE_PORT:-29000}
    "$HENGE" dev --nodes "$1" --data "$dev" --base-port "$base_port" >"$work/dev.log" 2>&1 &
    dev_pid=$!
    for _ in $(seq 1 3000); do grep -q '^ready' "$work/dev.log" && break; sleep 0.02; done
    grep -q '^ready' "$work/dev.log" || die "henge dev did not become ready: $(cat "$work/dev.log")"
    read_cluster "$dev"
}
admin_of() { echo "127.0.0.1:$((base_port + 10 * ($1 - 1) + 1))"; }
# wait_safe NODE [SECONDS]: until the cluster says through that node that everything has all its copies.
wait_safe() {
    local end=$((SECONDS + ${2:-120}))
    until "$HENGE" status --admin "$(admin_of "$1")" --data "$dev" >"$work/status" 2>&1; do
        [ $SECONDS -lt $end ] || { cat "$work/status"; die "not safe within ${2:-120} s"; }
        sleep 0.2
    done
}
# is_removed NODE, as node 1 in $work/n1 sees it. (`| grep -q` ends before all is written, and then the pipe fails.)
is_removed() { [[ "$("$HENGE" node list --data "$work/n1")" == *"node $1  removed"* ]]; }
stop_dev() { kill -INT "$dev_pid" 2>/dev/null || true; wait "$dev_pid" 2>/dev/null || true; dev_pid=; }
