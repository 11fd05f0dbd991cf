# s3fs-fuse: a mount, written, read, renamed and emptied. Needs FUSE.
command -v s3fs >/dev/null && [ -e /dev/fuse ] || exit 77
s3fs --version | sed -n 1p
(umask 077; printf '%s:%s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" >passwd)
mkdir -p mnt
s3fs s3fs mnt -o passwd_file=passwd,url="$ENDPOINT",use_path_request_style,create,endpoint=us-east-1 2>/dev/null || {
    command -v aws >/dev/null && aws --endpoint-url "$ENDPOINT" s3 mb s3://s3fs >/dev/null
    s3fs s3fs mnt -o passwd_file=passwd,url="$ENDPOINT",use_path_request_style,endpoint=us-east-1
}
trap 'fusermount -u mnt || umount mnt' EXIT
head -c 25000000 /dev/urandom >file
mkdir mnt/d
cp file mnt/d/file
cmp file mnt/d/file
mv mnt/d/file mnt/d/renamed
cmp file mnt/d/renamed
echo x >>mnt/d/small
[ "$(ls mnt/d | wc -l)" = 2 ]
rm -r mnt/d
[ -z "$(ls mnt)" ]
