#!/usr/bin/env bash
# NODES (1), one of them dead if there are more: boto3, rclone (a tree of 10,000 files there and back, `rclone check`), s3cmd, restic (backup, check, restore).
hint="pip install boto3; apt-get install rclone s3cmd restic" . "$(dirname "$0")/common.sh"
# A CA bundle of the environment breaks some versions of rclone, which need none here.
unset AWS_CA_BUNDLE
need rclone s3cmd restic python3 curl
if [ "${NODES:-1}" = 1 ]; then
    start_server "$work/data"
else
    # With one of the nodes dead all the time.
    start_dev "$NODES"
    wait_safe 1
    "$HENGE" dev kill "$NODES" --data "$dev"
    sleep 1
fi
host=${endpoint#http://}

say "boto3"
python3 - "$endpoint" <<'PY'
import boto3, botocore.config, botocore.exceptions, io, os, sys
# Without this, boto3 signs URLs with version 2, which henge refuses.
s3 = boto3.client("s3", endpoint_url=sys.argv[1], config=botocore.config.Config(signature_version="s3v4"))
s3.create_bucket(Bucket="boto")
s3.put_object(Bucket="boto", Key="a/ü b+c", Body=b"hello", Metadata={"who": "me"}, ContentType="text/x-test")
got = s3.get_object(Bucket="boto", Key="a/ü b+c")
assert got["Body"].read() == b"hello" and got["Metadata"] == {"who": "me"} and got["ContentType"] == "text/x-test"
assert s3.get_object(Bucket="boto", Key="a/ü b+c", Range="bytes=1-3")["Body"].read() == b"ell"
large = os.urandom(40 << 20)
s3.upload_fileobj(io.BytesIO(large), "boto", "large")
back = io.BytesIO()
s3.download_fileobj("boto", "large", back)
assert back.getvalue() == large
for algorithm in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
    try:
        s3.put_object(Bucket="boto", Key=f"sum/{algorithm}", Body=b"x" * 5000, ChecksumAlgorithm=algorithm)
    except botocore.exceptions.MissingDependencyException:
        print(f"(this botocore cannot compute {algorithm} itself)")
try:
    s3.put_object(Bucket="boto", Key="large", Body=b"", IfNoneMatch="*")
    raise SystemExit("a creator won against an existing object")
except botocore.exceptions.ClientError as error:
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
# botocore waits for a 100 before an empty body, too, and takes what comes next on that connection for a part of it.
for number in range(3):
    s3.put_object(Bucket="boto", Key="folder/", Body=b"")
    assert s3.put_object(Bucket="boto", Key=f"folder/{number}", Body=b"x", IfNoneMatch="*")["ETag"]
s3.put_bucket_versioning(Bucket="boto", VersioningConfiguration={"Status": "Enabled"})
first = s3.put_object(Bucket="boto", Key="v", Body=b"1")["VersionId"]
s3.put_object(Bucket="boto", Key="v", Body=b"2")
s3.delete_object(Bucket="boto", Key="v")
assert s3.get_object(Bucket="boto", Key="v", VersionId=first)["Body"].read() == b"1"
s3.copy_object(Bucket="boto", Key="copy", CopySource={"Bucket": "boto", "Key": "large"})
assert s3.head_object(Bucket="boto", Key="copy")["ContentLength"] == len(large)
url = s3.generate_presigned_url("get_object", Params={"Bucket": "boto", "Key": "copy"})
import urllib.request
assert urllib.request.urlopen(url).read() == large
for page in s3.get_paginator("list_object_versions").paginate(Bucket="boto"):
    for item in page.get("Versions", []) + page.get("DeleteMarkers", []):
        s3.delete_object(Bucket="boto", Key=item["Key"], VersionId=item["VersionId"])
s3.delete_bucket(Bucket="boto")
print("boto3: ok")
PY

say "rclone, 10,000 files"
python3 - "$work/tree" <<'PY'
import os, random, sys
random.seed(1)
for i in range(10000):
    folder = os.path.join(sys.argv[1], f"d{i % 100:02}", f"e{i % 7}")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"file {i}.bin"), "wb") as out:
        out.write(random.randbytes(random.choice([0, 10, 1000, 4096, 20000])))
PY
export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_H_TYPE=s3 RCLONE_CONFIG_H_PROVIDER=Other RCLONE_CONFIG_H_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" RCLONE_CONFIG_H_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" \
    RCLONE_CONFIG_H_ENDPOINT="$endpoint" RCLONE_CONFIG_H_REGION=us-east-1
rclone mkdir h:tree
rclone sync --transfers 16 --checkers 16 "$work/tree" h:tree
rclone check --one-way --checkers 16 "$work/tree" h:tree
rclone sync --transfers 16 --checkers 16 h:tree "$work/tree.back"
rclone check "$work/tree" "$work/tree.back"
diff -r "$work/tree" "$work/tree.back"
echo "rclone: 10,000 files there and back are the same"

say "s3cmd"
cat >"$work/s3cfg" <<CFG
[default]
access_key = $AWS_ACCESS_KEY_ID
secret_key = $AWS_SECRET_ACCESS_KEY
host_base = $host
host_bucket = $host
use_https = False
signature_v2 = False
CFG
c="s3cmd --config $work/s3cfg --no-progress"
head -c 30000000 /dev/urandom >"$work/file"
$c mb s3://cmd
$c put --multipart-chunk-size-mb=8 "$work/file" s3://cmd/file >/dev/null
$c put "$work/s3cfg" s3://cmd/dir/small >/dev/null
$c ls --recursive s3://cmd
$c cp s3://cmd/file s3://cmd/copy >/dev/null
$c get --force s3://cmd/copy "$work/file.back" >/dev/null
cmp "$work/file" "$work/file.back"
$c info s3://cmd/file >"$work/info" && head -3 "$work/info"
$c del --recursive --force s3://cmd >/dev/null
$c rb s3://cmd
echo "s3cmd: ok"

say "restic"
export RESTIC_PASSWORD=evidence RESTIC_REPOSITORY="s3:$endpoint/restic"
restic --quiet init
restic --quiet backup "$work/tree"
restic --quiet check --read-data
restic --quiet restore latest --target "$work/restored"
diff -r "$work/tree" "$work/restored$work/tree"
echo "restic: backup, check --read-data, restore: the same"
if [ "${NODES:-1}" = 1 ]; then
    stop_server
    "$HENGE" fsck "$work/data"
else
    "$HENGE" dev start "$NODES" --data "$dev"
    wait_safe 1 300
    stop_dev
    "$HENGE" fsck "$dev"/node[0-9]
fi
echo "holds: boto3, rclone with 10,000 files, s3cmd, restic on ${NODES:-1} node(s); fsck clean"
