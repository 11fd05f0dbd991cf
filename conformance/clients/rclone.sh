# rclone: a tree there and back, checked, server-side copy, a link, purge.
command -v rclone >/dev/null || exit 77
rclone version | sed -n 1p
export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_H_TYPE=s3 RCLONE_CONFIG_H_PROVIDER=Other RCLONE_CONFIG_H_ENDPOINT="$ENDPOINT"
export RCLONE_CONFIG_H_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" RCLONE_CONFIG_H_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" RCLONE_CONFIG_H_REGION=us-east-1
mkdir -p tree/d && for i in $(seq 1 200); do echo "$i" >"tree/d/file $i"; done
head -c 30000000 /dev/urandom >tree/large
rclone mkdir h:rclone
rclone sync --s3-upload-cutoff 5M --s3-chunk-size 5M tree h:rclone/tree
rclone check tree h:rclone/tree 2>/dev/null
rclone copy h:rclone/tree h:rclone/second
rclone sync h:rclone/second back
diff -r tree back
curl -fs "$(rclone link h:rclone/tree/large)" | cmp - tree/large
rclone purge h:rclone
