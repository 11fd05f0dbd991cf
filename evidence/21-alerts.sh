#!/usr/bin/env bash
# The alert rules are sound and do in their unit tests what they say; Prometheus scrapes three nodes, fires for a dead node
# and for lost redundancy, and both alerts end after the heal; and for a full disk of a fourth server until it has room again.
hint="apt-get install prometheus" . "$(dirname "$0")/common.sh"
need python3 curl promtool prometheus
deploy=$root/deploy/prometheus
promtool check rules "$deploy/henge.rules.yml"
promtool test rules "$deploy/henge.rules.test.yml"
start_server "$work/alone" --disk "$work/small=1GiB"
small_endpoint=$endpoint small_admin=$admin small_key=$AWS_ACCESS_KEY_ID small_secret=$AWS_SECRET_ACCESS_KEY
start_dev 3
wait_safe 1
port=${PROMETHEUS_PORT:-29390}
cat >"$work/prometheus.yml" <<YML
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [$deploy/henge.rules.yml]
scrape_configs:
  - job_name: henge
    static_configs:
      - targets: ["$(admin_of 1)", "$(admin_of 2)", "$(admin_of 3)", "$small_admin"]
YML
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" --web.listen-address=127.0.0.1:$port >"$work/prometheus.log" 2>&1 &
prometheus_pid=$!
trap 'exit_code=$?; kill $prometheus_pid 2>/dev/null || true; finish' EXIT
firing() {
    curl -fs "http://127.0.0.1:$port/api/v1/alerts" 2>/dev/null | python3 -c '
import json, sys
alerts = json.load(sys.stdin)["data"]["alerts"]
print(" ".join(sorted({a["labels"]["alertname"] for a in alerts if a["state"] == "firing"})))' 2>/dev/null
}
wait_alerts() { # wait_alerts SECONDS WANTED...: until exactly these fire (with none: nothing fires)
    local end=$((SECONDS + $1)) want
    shift
    while :; do
        local now=" $(firing) " ok=1
        for want in "$@"; do [[ $now == *" $want "* ]] || ok=; done
        [ $# -gt 0 ] || [ -z "${now// /}" ] || ok=
        [ -z "$ok" ] || { echo "firing:$now"; return 0; }
        [ $SECONDS -lt $end ] || { echo "firing:$now, wanted: $*"; tail -3 "$work/prometheus.log"; return 1; }
        sleep 1
    done
}
up() { curl -fs "http://127.0.0.1:$port/api/v1/query?query=sum(up)" | python3 -c 'import json,sys; r=json.load(sys.stdin)["data"]["result"]; sys.exit(0 if r and r[0]["value"][1]=="4" else 1)' 2>/dev/null; }
for _ in $(seq 1 60); do up && break; sleep 1; done
up || die "Prometheus does not scrape four servers"
say "a cluster of three and a server of its own are scraped"
wait_alerts 90 || die "an alert fires although all is well"
say "node 3 is killed"
"$HENGE" dev kill 3 --data "$dev" >/dev/null
wait_alerts 150 HengeNodeDown HengeRedundancyLost HengeNodeUnreachable || die "the alerts do not fire"
"$HENGE" status --admin "$(admin_of 1)" --data "$dev" || true
say "node 3 is started again"
"$HENGE" dev start 3 --data "$dev" >/dev/null
wait_safe 1
wait_alerts 120 || die "the alerts do not end"
say "a disk fills up"
change() { # change METHOD FIRST LAST: objects of 8 MiB
    python3 - "$root/evidence" "${small_endpoint#http://}" "$small_key" "$small_secret" "$@" <<'PY'
import os, sys
sys.path.insert(0, sys.argv[1])
from s3 import S3
s3 = S3(*sys.argv[2:5], timeout=120)
method, first, last = sys.argv[5], int(sys.argv[6]), int(sys.argv[7])
s3.request("PUT", "/fill")
done = 0
for number in range(first, last):
    status, _ = s3.request(method, f"/fill/{number}", os.urandom(8 << 20) if method == "PUT" else b"")
    done += status in (200, 204)
    if status == 507 or status == 503:
        break
print(f"{method}: {done} objects of 8 MiB")
PY
}
change PUT 0 128
wait_alerts 150 HengeDiskFull || die "no alert of the full disk"
say "half of it is deleted"
change DELETE 0 64
wait_alerts 180 || die "the alert of the full disk does not end"
"$HENGE" events --admin "$(admin_of 1)" --data "$dev" --since 10m | tail -25
echo "holds: rules checked and tested, HengeNodeDown, HengeRedundancyLost and HengeNodeUnreachable fired and ended; HengeDiskFull too"
