# The MinIO client library for Python. `pip install minio` first.
python3 -c 'import minio' 2>/dev/null || exit 77
python3 - <<'PY'
import io, os, urllib.request
import minio
from minio.commonconfig import CopySource, Tags
from minio.deleteobjects import DeleteObject
print("minio", minio.__version__)
arguments = dict(access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"], secure=False, region="us-east-1")
host = os.environ["ENDPOINT"].removeprefix("http://")
try:
    client = minio.Minio(host, **arguments)
except TypeError:
    client = minio.Minio(endpoint=host, **arguments)
b = dict(bucket_name="minio-py")
client.make_bucket(**b)
large = os.urandom(20 << 20)
client.put_object(**b, object_name="large", data=io.BytesIO(large), length=-1, part_size=5 << 20)
assert client.get_object(**b, object_name="large").read() == large
tags = Tags.new_object_tags()
tags["k"] = "v"
client.put_object(**b, object_name="small", data=io.BytesIO(b"x"), length=1, tags=tags)
assert client.get_object_tags(**b, object_name="small") == {"k": "v"}
client.copy_object(**b, object_name="copy", source=CopySource(bucket_name="minio-py", object_name="large"))
assert client.stat_object(**b, object_name="copy").size == len(large)
assert urllib.request.urlopen(client.presigned_get_object(**b, object_name="copy")).read() == large
names = [item.object_name for item in client.list_objects(**b, recursive=True)]
assert names == ["copy", "large", "small"]
assert not list(client.remove_objects(**b, delete_object_list=[DeleteObject(name) for name in names]))
client.remove_bucket(**b)
PY
