"""A few lines of S3 (SigV4) over http.client, for the scripts of this folder."""
import datetime, hashlib, hmac, http.client, urllib.parse


class S3:
    def __init__(self, host, access_key, secret_key, region="us-east-1", timeout=30):
        self.host, self.access_key, self.secret_key, self.region, self.timeout = host, access_key, secret_key, region, timeout
        self.reconnect()

    def reconnect(self):
        self.connection = http.client.HTTPConnection(self.host, timeout=self.timeout)

    def request(self, method, path, body=b"", extra=None, query="", unsigned=False):
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = "UNSIGNED-PAYLOAD" if unsigned else hashlib.sha256(body).hexdigest()
        head = {"host": self.host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        # What begins with x-amz- changes what a request means, and must be signed.
        head.update({k.lower(): v for k, v in (extra or {}).items() if k.lower().startswith("x-amz-")})
        names = ";".join(sorted(head))
        path = urllib.parse.quote(path)
        canonical = "\n".join([method, path, query] + [f"{k}:{head[k]}" for k in sorted(head)] + ["", names, digest])
        scope = f"{day}/{self.region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + self.secret_key).encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        sign = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        head["authorization"] = (f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
                                 f"SignedHeaders={names}, Signature={sign}")
        self.connection.request(method, path + ("?" + query if query else ""), body, {**head, **(extra or {})})
        response = self.connection.getresponse()
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read()
