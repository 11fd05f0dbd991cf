#!/usr/bin/env bash
# The alert rules are sound and do in their unit tests what they say; Prometheus scrapes three nodes, fires for a dead node
# and for lost redundancy, and both alerts end after the heal.
hint="apt-get install prometheus" . "$(dirname "$0")/common.sh"
need python3 curl promtool prometheus
deploy=$root/deploy/prometheus
promtool check rules "$deploy/henge.rules.yml"
promtool test rules "$deploy/henge.rules.test.yml"
start_dev 3
wait_safe 1
port=${PROMETHEUS_PORT:-29390}
cat >"$work/prometheus.yml" <<YML
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [$deploy/henge.rules.yml]
scrape_configs:
  - job_name: henge
    static_configs:
      - targets: ["$(admin_of 1)", "$(admin_of 2)", "$(admin_of 3)"]
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
up() { curl -fs "http://127.0.0.1:$port/api/v1/query?query=sum(up)" | python3 -c 'import json,sys; r=json.load(sys.stdin)["data"]["result"]; sys.exit(0 if r and r[0]["value"][1]=="3" else 1)' 2>/dev/null; }
for _ in $(seq 1 60); do up && break; sleep 1; done
up || die "Prometheus does not scrape three nodes"
say "three nodes are scraped"
wait_alerts 90 || die "an alert fires although all is well"
say "node 3 is killed"
"$HENGE" dev kill 3 --data "$dev" >/dev/null
wait_alerts 150 HengeNodeDown HengeRedundancyLost HengeNodeUnreachable || die "the alerts do not fire"
"$HENGE" status --admin "$(admin_of 1)" --data "$dev" || true
say "node 3 is started again"
"$HENGE" dev start 3 --data "$dev" >/dev/null
wait_safe 1
wait_alerts 120 || die "the alerts do not end"
"$HENGE" events --admin "$(admin_of 1)" --data "$dev" --since 10m | tail -25
echo "holds: rules checked and tested, HengeNodeDown, HengeRedundancyLost and HengeNodeUnreachable fired and ended"
