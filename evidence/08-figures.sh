#!/usr/bin/env bash
# Reported, not gated: the disk beside fio, PUT and GET through S3 with henge's own load, idle memory, size of the binary, disk taken by
# an empty node (must be at most 300 MiB), flushes and bytes of one PUT from the metrics.
hint="apt-get install fio" . "$(dirname "$0")/common.sh"
need python3 curl
seconds=${SECONDS_OF_LOAD:-4}
start_server "$work/data"
sleep 1
empty=$(du -sm "$work/data" | cut -f1)
echo "empty node: $empty MiB on disk, $(awk '/VmRSS/{print $2/1024 " MiB"}' /proc/$server_pid/status) resident; binary $(($(stat -c %s "$HENGE") >> 20)) MiB"
[ "$empty" -le 300 ] || die "an empty node takes $empty MiB"
cost() { # cost NAME SIZE CONCURRENCY OP
    before=$(curl -fs "http://$admin/metrics"); cpu=$(awk '{print $14+$15}' /proc/$server_pid/stat)
    result=$("$HENGE" bench "$4" --size "$2" --concurrency "$3" --seconds "$seconds" --json --admin "$admin" --data "$work/data")
    after=$(curl -fs "http://$admin/metrics"); cpu=$(($(awk '{print $14+$15}' /proc/$server_pid/stat) - cpu))
    BEFORE=$before AFTER=$after python3 - "$1" "$result" "$cpu" <<'PY'
import json, os, sys
def total(text, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and not line.startswith("#"))
result = json.loads(sys.argv[2])
ops = result.get("ops") or result.get("operations") or result.get("ok") or 1
delta = {n: total(os.environ["AFTER"], n) - total(os.environ["BEFORE"], n) for n in
         ("henge_store_flushes_total", "henge_store_journal_bytes_total", "henge_store_bulk_bytes_total", "henge_store_copied_bytes_total")}
print(f"{sys.argv[1]}: {json.dumps(result)}")
print(f"    per operation: {int(sys.argv[3]) * 10000 / ops:.0f} us of server CPU, " + ", ".join(f"{name[12:-6]} {value / ops:.2f}" for name, value in delta.items()))
PY
}
cost "PUT 4 KiB c=1" 4KiB 1 put
cost "PUT 4 KiB c=16" 4KiB 16 put
cost "PUT 4 KiB c=64" 4KiB 64 put
cost "GET 4 KiB c=16" 4KiB 16 get
cost "PUT 1 MiB c=16" 1MiB 16 put
cost "GET 1 MiB c=16" 1MiB 16 get
stop_server
say "disk, henge's own access"
"$HENGE" bench disk --seconds "$seconds" --data "$work"
if command -v fio >/dev/null; then
    say "disk, fio"
    fio --name=append --directory="$work" --rw=write --bs=4k --size=256m --fdatasync=1 --runtime="$seconds" --time_based --output-format=terse |
        awk -F';' '{print "append 4 KiB + fdatasync: " $49 " per s"}'
    fio --name=seq --directory="$work" --rw=write --bs=1m --size=1g --direct=1 --iodepth=8 --ioengine=libaio --runtime="$seconds" --time_based --output-format=terse |
        awk -F';' '{print "sequential 1 MiB direct, QD 8: " $48/1024 " MiB/s"}'
fi
echo "reported: empty node $empty MiB on disk"
