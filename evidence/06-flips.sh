#!/usr/bin/env bash
# FLIPS (100) single-bit flips each in chunk records in use, record and batch headers, Raft log, key-value store and identity of a
# stopped node: nothing wrong is served, nothing panics, and a clear error or report names what is lost.
. "$(dirname "$0")/common.sh"
need python3 curl
python3 "$(dirname "$0")/06-flips.py" "$HENGE" "$work" "${FLIPS:-100}"
