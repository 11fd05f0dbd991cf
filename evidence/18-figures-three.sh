#!/usr/bin/env bash
# Reported, not gated: three nodes with mutual TLS between them beside the disk's limit: idle memory, PUT and GET at several sizes and
# concurrencies (median of REPEAT, 5), CPU, flushes and bytes written a PUT. S3LOAD=/path/to/s3load uses that load generator as well.
hint="apt-get install fio" . "$(dirname "$0")/common.sh"
need python3 curl
seconds=${SECONDS_OF_LOAD:-3} repeat=${REPEAT:-5}
start_dev 3
wait_safe 1
sleep 2
pids=$(python3 -c 'import json, sys; print(" ".join(str(n["pid"]) for n in json.load(open(sys.argv[1]))["nodes"]))' "$dev/cluster.json")
endpoints=$(python3 -c 'import json, sys; print(",".join(n["s3"] for n in json.load(open(sys.argv[1]))["nodes"]))' "$dev/cluster.json")
resident() { for pid in $pids; do awk '/VmRSS/{print $2}' /proc/$pid/status; done | awk '{s+=$1} END{printf "%.0f MiB", s/1024}'; }
echo "three idle nodes: $(resident) resident"
if command -v fio >/dev/null; then
    fio --name=append --directory="$work" --rw=write --bs=4k --size=256m --fdatasync=1 --runtime=$seconds --time_based --output-format=terse |
        awk -F';' '{print "fio: append 4 KiB + fdatasync " $49 "/s"}'
    fio --name=seq --directory="$work" --rw=write --bs=1m --size=1g --direct=1 --iodepth=8 --ioengine=libaio --runtime=$seconds --time_based --output-format=terse |
        awk -F';' '{print "fio: sequential 1 MiB direct, QD 8 " int($48/1024) " MiB/s"}'
    rm -f "$work"/append.* "$work"/seq.*
fi
if [ -n "${S3LOAD:-}" ]; then
    row() { # row SIZES CONCURRENCIES
        "$S3LOAD" --endpoint "$endpoints" --region us-east-1 --access "$AWS_ACCESS_KEY_ID" --secret "$AWS_SECRET_ACCESS_KEY" --bucket bench \
            --create-bucket --pids "${pids// /,}" --repeat "$repeat" --seconds "$seconds" --sizes "$1" --conc "$2" --ops put,get | grep MEDIAN
    }
    row 4k 1,16,64
    row 1m 16
    row 64m 16
fi
metrics() { for n in 1 2 3; do curl -fs "http://$(admin_of $n)/metrics"; done; }
ticks() { for pid in $pids; do awk '{print $14+$15}' /proc/$pid/stat; done | awk '{s+=$1} END{print s}'; }
for row in "put 4KiB 1" "put 4KiB 16" "put 4KiB 64" "get 4KiB 16" "put 1MiB 16" "get 1MiB 16"; do
    read -r op size concurrency <<<"$row"
    before=$(metrics) cpu=$(ticks)
    result=$("$HENGE" bench "$op" --size "$size" --concurrency "$concurrency" --seconds "$seconds" --json --data "$dev")
    cpu=$(($(ticks) - cpu))
    BEFORE=$before AFTER=$(metrics) python3 - "$row" "$result" "$cpu" <<'PY'
import json, os, sys
def total(text, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and not line.startswith("#"))
result = json.loads(sys.argv[2])
ops = result.get("ops") or result.get("operations") or result.get("ok") or 1
names = ("henge_store_flushes_total", "henge_store_journal_bytes_total", "henge_store_bulk_bytes_total", "henge_store_copied_bytes_total")
delta = {n: (total(os.environ["AFTER"], n) - total(os.environ["BEFORE"], n)) / ops for n in names}
print(f"{sys.argv[1]}: {json.dumps(result)}")
print(f"    per operation, all three nodes: {int(sys.argv[3]) * 10000 / ops:.0f} us of CPU, " + ", ".join(f"{n[12:-6]} {v:.2f}" for n, v in delta.items()))
PY
done
echo "reported: $(resident) resident after the load"
