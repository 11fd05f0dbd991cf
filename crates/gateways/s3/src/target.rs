//! What a request is about: the one place where a path is decoded. Authorization, storage and messages all see this
//! result, so that no second decoding can disagree (`%2F`, `..`, double encoding are plain bytes of a key).

use crate::encoding::percent_decode;
use crate::error::{Code, Result, S3Error};
use bytes::Bytes;

/// The longest key in bytes of UTF-8.
pub const KEY_LENGTH_MAX: usize = 1024;

/// Bucket and key of a request. No bucket: the service. No key: the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Target {
    pub bucket: String,
    /// UTF-8.
    pub key: Bytes,
}

impl Target {
    /// `raw_path`: still encoded. `host`: the Host header; `domain`: the name whose subdomains are buckets.
    pub fn read(raw_path: &str, host: Option<&str>, domain: Option<&str>) -> Result<Target> {
        let invalid = |why: &str| S3Error::new(Code::InvalidURI, format!("Could not parse the specified URI: {why}."));
        let path = percent_decode(raw_path, false).ok_or_else(|| invalid("a percent escape is broken"))?;
        let path = String::from_utf8(path).map_err(|_| invalid("it is not UTF-8"))?;
        let path = path.strip_prefix('/').ok_or_else(|| invalid("it does not start with a slash"))?;
        let hosted = host.zip(domain).and_then(|(host, domain)| hosted_bucket(host, domain));
        let (bucket, key) = match hosted {
            Some(bucket) => (bucket, path),
            None => {
                let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
                (of_unnamed_tenant(bucket).to_owned(), key)
            }
        };
        Target::new(bucket, key)
    }

    /// Checks bucket name and key.
    pub fn new(bucket: String, key: &str) -> Result<Target> {
        if bucket.is_empty() {
            let message = "Could not parse the specified URI: a key needs a bucket.";
            return if key.is_empty() { Ok(Target::default()) } else { Err(S3Error::new(Code::InvalidURI, message)) };
        }
        check_bucket_name(&bucket)?;
        if key.len() > KEY_LENGTH_MAX {
            return Err(S3Error::new(Code::KeyTooLongError, "Your key is too long.")
                .field("Size", key.len().to_string())
                .field("MaxSizeAllowed", KEY_LENGTH_MAX.to_string()));
        }
        if key.contains('\0') {
            return Err(S3Error::new(Code::InvalidURI, "A key must not contain the NUL character."));
        }
        Ok(Target { bucket, key: Bytes::copy_from_slice(key.as_bytes()) })
    }

    pub fn key_text(&self) -> &str {
        std::str::from_utf8(&self.key).expect("keys are made from strings")
    }
}

/// Clients of Ceph's gateway may write `TENANT:BUCKET`. There is one tenant here, and it has no name.
fn of_unnamed_tenant(bucket: &str) -> &str {
    bucket.strip_prefix(':').filter(|name| !name.is_empty()).unwrap_or(bucket)
}

/// The bucket in a virtual-hosted name `bucket.domain[:port]`.
fn hosted_bucket(host: &str, domain: &str) -> Option<String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.to_ascii_lowercase();
    let bucket = name.strip_suffix(&domain.to_ascii_lowercase())?.strip_suffix('.')?;
    (!bucket.is_empty()).then(|| bucket.to_owned())
}

/// "Bucket naming rules", Amazon S3 User Guide.
pub fn is_bucket_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && edge(bytes.first())
        && edge(bytes.last())
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err()
        && !name.starts_with("xn--")
        && !name.ends_with("-s3alias")
}

fn check_bucket_name(name: &str) -> Result<()> {
    if is_bucket_name(name) {
        return Ok(());
    }
    let message = "The specified bucket is not valid: 3 to 63 lower-case letters, digits, dots and hyphens.";
    Err(S3Error::new(Code::InvalidBucketName, message).field("BucketName", name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(path: &str) -> Result<(String, String)> {
        Target::read(path, Some("localhost:9000"), Some("s3.example.com"))
            .map(|target| (target.bucket.clone(), target.key_text().to_owned()))
    }

    proptest! {
        #[test]
        fn any_key_survives_encoding(key in "[^\0]{1,200}") {
            let path = format!("/bucket/{}", crate::encoding::percent_encode_path(key.as_bytes()));
            prop_assert_eq!(read(&path).unwrap(), ("bucket".to_owned(), key));
        }

        #[test]
        fn garbage_never_panics(path: String, host: String) {
            let _ = Target::read(&path, Some(&host), Some("s3.example.com"));
        }
    }

    #[test]
    fn the_one_tenant_has_no_name() {
        for path in ["/:bucket/key", "/%3Abucket/key"] {
            assert_eq!(read(path).unwrap(), ("bucket".to_owned(), "key".to_owned()));
        }
        for path in ["/tenant:bucket/key", "/::bucket/key", "/:/key", "/:"] {
            assert_eq!(read(path).unwrap_err().code, Code::InvalidBucketName, "{path}");
        }
    }

    #[test]
    fn a_path_is_decoded_once_and_never_normalized() {
        for (path, key) in [
            ("/bucket/a%2Fb", "a/b"),
            ("/bucket/a%252Fb", "a%2Fb"),
            ("/bucket/../x", "../x"),
            ("/bucket/%2e%2e/x", "../x"),
            ("/bucket//a//b/", "/a//b/"),
            ("/bucket/", ""),
            ("/bucket/a+b", "a+b"),
        ] {
            assert_eq!(read(path).unwrap(), ("bucket".to_owned(), key.to_owned()), "{path}");
        }
        for (path, code) in [
            ("/bucket/a%00b", Code::InvalidURI),
            ("/bucket/%ff", Code::InvalidURI),
            ("/bucket/%4", Code::InvalidURI),
            ("/Bucket/a", Code::InvalidBucketName),
            ("/..%2Fetc/a", Code::InvalidBucketName),
            ("/192.168.0.1/a", Code::InvalidBucketName),
            ("//a", Code::InvalidURI),
            ("*", Code::InvalidURI),
        ] {
            assert_eq!(read(path).unwrap_err().code, code, "{path}");
        }
        let long = format!("/bucket/{}", "k".repeat(KEY_LENGTH_MAX + 1));
        assert_eq!(read(&long).unwrap_err().code, Code::KeyTooLongError);
        assert!(read(&long[..long.len() - 1]).is_ok());
    }

    #[test]
    fn a_subdomain_names_the_bucket() {
        let hosted =
            |host: &str| Target::read("/a/b", Some(host), Some("s3.example.com")).map(|t| (t.bucket.clone(), t.key));
        assert_eq!(hosted("My-Bucket.S3.example.com:9000").unwrap(), ("my-bucket".to_owned(), "a/b".into()));
        assert_eq!(hosted("s3.example.com").unwrap_err().code, Code::InvalidBucketName, "path style: `a` is too short");
        assert_eq!(hosted("evils3.example.com").unwrap_err().code, Code::InvalidBucketName, "no dot, no subdomain");
    }
}
