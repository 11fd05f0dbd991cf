# restic: backup, check of all data, restore, forget.
command -v restic >/dev/null || exit 77
restic version
export RESTIC_PASSWORD=conformance RESTIC_REPOSITORY="s3:$ENDPOINT/restic"
mkdir -p tree && for i in $(seq 1 50); do head -c $((i * 10000)) /dev/urandom >"tree/$i"; done
restic --quiet init
restic --quiet backup tree
echo more >tree/more
restic --quiet backup tree
restic --quiet check --read-data
restic --quiet restore latest --target back
diff -r tree back/tree
restic --quiet forget --keep-last 1 --prune
