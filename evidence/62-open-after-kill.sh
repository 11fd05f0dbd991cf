#!/usr/bin/env bash
# RECORDS (1,000,000) chunks of SIZE (4KiB) are stored by a process that is killed while it goes on storing: how long the disk takes to open
# again, and what memory the index takes. Holds when every acknowledged chunk is there, nothing is damaged, sealed volumes were opened
# by their summaries, and it took at most 10 s. The volume that was being written is read whole, whatever the number. Takes about RECORDS x SIZE of space.
. "$(dirname "$0")/common.sh"
need python3
"$HENGE" bench disk --data "$work" --seconds 0.5 --records "${RECORDS:-1000000}" --size "${SIZE:-4KiB}" --json >"$work/rows.json" || die "the measurement failed"
python3 - "$work/rows.json" <<'PY'
import json, sys
row = [row for row in json.load(open(sys.argv[1])) if "records" in row][0]
records, seconds = row["records"], row["p50_us"] / 1e6
print(f"{records} chunks in {seconds:.2f} s, {row['resident_bytes'] / records:.0f} bytes of memory each, "
      f"{row['summarised']} of {row['volumes']} volumes by their summaries")
if row["summarised"] < row["volumes"] - 3 or seconds > 10:
    sys.exit("DOES NOT HOLD")
print("holds")
PY
