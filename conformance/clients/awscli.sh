# The AWS command line: buckets, put, get, list, sync both ways, multipart, presign, tags, delete.
command -v aws >/dev/null || exit 77
aws --version
# Version 1 of the command line presigns with Signature Version 2 unless it is told otherwise.
export AWS_CONFIG_FILE=$PWD/config
printf '[default]\ns3 =\n  signature_version = s3v4\n  addressing_style = path\n' >"$AWS_CONFIG_FILE"
s3="aws --endpoint-url $ENDPOINT s3"
api="aws --endpoint-url $ENDPOINT s3api"
$s3 mb s3://awscli >/dev/null
mkdir -p tree/a tree/b
for i in $(seq 1 20); do head -c $((i * 1000)) /dev/urandom >"tree/a/file $i"; done
head -c 20000000 /dev/urandom >tree/b/large
$s3 sync --no-progress tree s3://awscli/tree >/dev/null
$s3 sync --no-progress s3://awscli/tree back >/dev/null
diff -r tree back
[ "$($s3 ls --recursive s3://awscli/tree | wc -l)" = 21 ]
$s3 cp --no-progress s3://awscli/tree/b/large s3://awscli/copy >/dev/null
$s3 cp --no-progress s3://awscli/copy - | cmp - tree/b/large
curl -fs "$($s3 presign s3://awscli/copy)" | cmp - tree/b/large
$api put-object-tagging --bucket awscli --key copy --tagging 'TagSet=[{Key=a,Value=b}]'
[ "$($api get-object-tagging --bucket awscli --key copy --query 'TagSet[0].Value' --output text)" = b ]
$api put-object --bucket awscli --key sum --body tree/a/file\ 1 --checksum-algorithm CRC64NVME >/dev/null || \
    $api put-object --bucket awscli --key sum --body tree/a/file\ 1 --checksum-algorithm SHA256 >/dev/null
$s3 rm --recursive s3://awscli >/dev/null
$s3 rb s3://awscli >/dev/null
