# s3cmd: multipart put, get, sync, copy, sign, delete.
command -v s3cmd >/dev/null || exit 77
s3cmd --version
host=${ENDPOINT#http://}
printf '[default]\naccess_key = %s\nsecret_key = %s\nhost_base = %s\nhost_bucket = %s\nuse_https = False\nsignature_v2 = False\n' \
    "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" "$host" "$host" >s3cfg
c="s3cmd --config s3cfg --no-progress --quiet"
head -c 30000000 /dev/urandom >file
mkdir -p tree/d && cp s3cfg tree/d/small && echo x >"tree/with space"
$c mb s3://s3cmd
$c put --multipart-chunk-size-mb=8 file s3://s3cmd/file
$c cp s3://s3cmd/file s3://s3cmd/copy
$c get --force s3://s3cmd/copy file.back
cmp file file.back
$c sync tree/ s3://s3cmd/tree/
mkdir -p back && $c sync s3://s3cmd/tree/ back/
diff -r tree back
[ "$(s3cmd --config s3cfg ls --recursive s3://s3cmd | wc -l)" = 4 ]
s3cmd --config s3cfg info s3://s3cmd/file >/dev/null
$c del --recursive --force s3://s3cmd
$c rb s3://s3cmd
