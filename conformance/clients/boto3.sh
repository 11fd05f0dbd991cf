# boto3: what an application does, through its transfer manager and by hand.
python3 -c 'import boto3' 2>/dev/null || exit 77
python3 - <<'PY'
import boto3, botocore, botocore.config, io, os, urllib.request
print("boto3", boto3.__version__, "botocore", botocore.__version__)
config = botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "path"})
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], config=config)
s3.create_bucket(Bucket="boto3")
s3.put_object(Bucket="boto3", Key="a/ü b+c", Body=b"hello", Metadata={"who": "me"}, Tagging="k=v")
got = s3.get_object(Bucket="boto3", Key="a/ü b+c")
assert got["Body"].read() == b"hello" and got["Metadata"] == {"who": "me"} and got["TagCount"] == 1
large = os.urandom(40 << 20)
s3.upload_fileobj(io.BytesIO(large), "boto3", "large")
back = io.BytesIO()
s3.download_fileobj("boto3", "large", back)
assert back.getvalue() == large
s3.copy({"Bucket": "boto3", "Key": "large"}, "boto3", "copy")
assert s3.head_object(Bucket="boto3", Key="copy")["ContentLength"] == len(large)
url = s3.generate_presigned_url("get_object", Params={"Bucket": "boto3", "Key": "copy"})
assert urllib.request.urlopen(url).read() == large
form = s3.generate_presigned_post("boto3", "up/${filename}", Fields={"acl": "private"}, Conditions=[{"acl": "private"}])
boundary = "henge-boundary"
body = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in form["fields"].items())
body += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\n\r\ncontent\r\n--{boundary}--\r\n'
request = urllib.request.Request(form["url"], body.encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"})
assert urllib.request.urlopen(request).status == 204
assert s3.get_object(Bucket="boto3", Key="up/f.txt")["Body"].read() == b"content"
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="boto3", PaginationConfig={"PageSize": 2})
keys = [item["Key"] for page in pages for item in page["Contents"]]
assert keys == sorted(keys) and len(keys) == 4
assert len(s3.delete_objects(Bucket="boto3", Delete={"Objects": [{"Key": key} for key in keys]})["Deleted"]) == 4
s3.delete_bucket(Bucket="boto3")
PY
