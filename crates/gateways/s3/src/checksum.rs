//! Checksums that clients ask for: MD5 for ETags, and the five of `x-amz-checksum-*`.
//!
//! Source: "Checking object integrity", Amazon S3 User Guide.

use crate::encoding::{base64, hex, unbase64, unhex};
use crate::error::{Code, Result, S3Error};
use client::Checksum;
use crc_fast::CrcAlgorithm;
use http::HeaderMap;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The header names of checksums are this and the algorithm's name in lower case.
const HEADER_PREFIX: &str = "x-amz-checksum-";

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub const ALL: [Algorithm; 5] =
        [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Sha1, Algorithm::Sha256];

    /// As in header names and in [`Checksum::algorithm`].
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "crc32",
            Algorithm::Crc32c => "crc32c",
            Algorithm::Crc64Nvme => "crc64nvme",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
        }
    }

    /// As in `x-amz-checksum-algorithm` and in XML values.
    pub fn upper_name(self) -> String {
        self.name().to_ascii_uppercase()
    }

    /// As an XML element.
    pub fn element(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "ChecksumCRC32",
            Algorithm::Crc32c => "ChecksumCRC32C",
            Algorithm::Crc64Nvme => "ChecksumCRC64NVME",
            Algorithm::Sha1 => "ChecksumSHA1",
            Algorithm::Sha256 => "ChecksumSHA256",
        }
    }

    pub fn header(self) -> String {
        format!("{HEADER_PREFIX}{}", self.name())
    }

    /// By its name in either case.
    pub fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// The value of a header such as `x-amz-checksum-algorithm`.
    pub fn wanted(name: &str) -> Result<Algorithm> {
        Algorithm::named(name).ok_or_else(|| {
            let message = "Checksum algorithm provided is unsupported. Use CRC32, CRC32C, CRC64NVME, SHA1 or SHA256.";
            S3Error::new(Code::InvalidRequest, message).field("ArgumentValue", name)
        })
    }

    fn crc(self) -> Option<(CrcAlgorithm, usize)> {
        match self {
            Algorithm::Crc32 => Some((CrcAlgorithm::Crc32IsoHdlc, 4)),
            Algorithm::Crc32c => Some((CrcAlgorithm::Crc32Iscsi, 4)),
            Algorithm::Crc64Nvme => Some((CrcAlgorithm::Crc64Nvme, 8)),
            Algorithm::Sha1 | Algorithm::Sha256 => None,
        }
    }

    /// Length of the raw value in bytes.
    fn length(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
        }
    }

    /// The raw bytes of a base64 value of the right length.
    fn value(self, text: &str) -> Option<Vec<u8>> {
        unbase64(text).filter(|raw| raw.len() == self.length())
    }
}

/// Whether a checksum of a multipart object covers its bytes, or the checksums of its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumType {
    Composite,
    FullObject,
}

impl ChecksumType {
    pub fn as_str(self) -> &'static str {
        match self {
            ChecksumType::Composite => "COMPOSITE",
            ChecksumType::FullObject => "FULL_OBJECT",
        }
    }

    pub fn of(checksum: &Checksum) -> ChecksumType {
        if checksum.composite { ChecksumType::Composite } else { ChecksumType::FullObject }
    }

    /// The type of an upload: what was asked for, or the default of its algorithm.
    pub fn of_upload(algorithm: Algorithm, asked: Option<&str>) -> Result<ChecksumType> {
        let is_sha = matches!(algorithm, Algorithm::Sha1 | Algorithm::Sha256);
        match asked {
            None if algorithm == Algorithm::Crc64Nvme => Ok(ChecksumType::FullObject),
            None => Ok(ChecksumType::Composite),
            Some("COMPOSITE") if algorithm != Algorithm::Crc64Nvme => Ok(ChecksumType::Composite),
            Some("FULL_OBJECT") if !is_sha => Ok(ChecksumType::FullObject),
            Some(other) => {
                let name = algorithm.upper_name();
                let message = format!("The {other} checksum type cannot be used with the {name} checksum algorithm.");
                Err(S3Error::new(Code::InvalidRequest, message))
            }
        }
    }
}

enum Hasher {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

/// Hashes content while it passes.
pub struct Hashes {
    md5: fast_md5::Md5,
    others: Vec<(Algorithm, Hasher)>,
}

/// What [`Hashes`] came to.
pub struct Sums {
    pub md5: [u8; 16],
    /// Base64 values, full object.
    pub checksums: Vec<Checksum>,
}

impl Sums {
    /// The ETag of content that was written in one piece: its MD5 in hex.
    pub fn etag(&self) -> String {
        hex(&self.md5)
    }
}

impl Hashes {
    pub fn new(algorithms: &[Algorithm]) -> Hashes {
        let hasher = |algorithm: Algorithm| match (algorithm.crc(), algorithm) {
            (Some((crc, _)), _) => Hasher::Crc(crc_fast::Digest::new(crc)),
            (None, Algorithm::Sha1) => Hasher::Sha1(Sha1::new()),
            (None, _) => Hasher::Sha256(Sha256::new()),
        };
        let others = algorithms.iter().map(|&algorithm| (algorithm, hasher(algorithm))).collect();
        Hashes { md5: fast_md5::Md5::new(), others }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        for (_, hasher) in &mut self.others {
            match hasher {
                Hasher::Crc(digest) => digest.update(bytes),
                Hasher::Sha1(digest) => digest.update(bytes),
                Hasher::Sha256(digest) => digest.update(bytes),
            }
        }
    }

    pub fn finish(self) -> Sums {
        let checksum = |(algorithm, hasher): (Algorithm, Hasher)| {
            let raw = match hasher {
                Hasher::Crc(digest) => crc_bytes(digest.finalize(), algorithm.length()),
                Hasher::Sha1(digest) => digest.finalize().to_vec(),
                Hasher::Sha256(digest) => digest.finalize().to_vec(),
            };
            Checksum { algorithm: algorithm.name().to_owned(), value: base64(&raw), composite: false }
        };
        Sums { md5: self.md5.finalize(), checksums: self.others.into_iter().map(checksum).collect() }
    }
}

fn crc_bytes(value: u64, length: usize) -> Vec<u8> {
    value.to_be_bytes()[8 - length..].to_vec()
}

/// What a client promised about its content: verified before anything is committed.
#[derive(Debug, Default)]
pub struct Promised {
    md5: Option<[u8; 16]>,
    /// Values from headers.
    values: Vec<(Algorithm, String)>,
    /// Values that will come as trailers.
    trailers: Vec<Algorithm>,
    /// Asked for without a value.
    asked: Option<Algorithm>,
}

impl Promised {
    /// From `content-md5`, `x-amz-checksum-*`, `x-amz-trailer` (already split) and `x-amz-sdk-checksum-algorithm`.
    pub fn read(headers: &HeaderMap, announced: &[String]) -> Result<Promised> {
        const PREFIX: &str = "x-amz-checksum-";
        let mut promised = Promised::default();
        if let Some(value) = headers.get(crate::names::CONTENT_MD5) {
            let raw = value.to_str().ok().and_then(unbase64).and_then(|raw| <[u8; 16]>::try_from(raw).ok());
            let invalid = || S3Error::new(Code::InvalidDigest, "The Content-MD5 you specified was invalid.");
            promised.md5 = Some(raw.ok_or_else(invalid)?);
        }
        for algorithm in Algorithm::ALL {
            let header = algorithm.header();
            if let Some(value) = headers.get(&header) {
                let text = value.to_str().ok().filter(|text| algorithm.value(text).is_some());
                let text = text
                    .ok_or_else(|| S3Error::new(Code::BadDigest, format!("Value for {header} header is invalid.")))?;
                promised.values.push((algorithm, text.to_owned()));
            }
            if announced.contains(&header) {
                promised.trailers.push(algorithm);
            }
        }
        let known = |name: &str| {
            Algorithm::ALL.iter().any(|algorithm| algorithm.header() == name)
                || ["algorithm", "type", "mode"].iter().any(|word| name.strip_prefix(PREFIX) == Some(word))
        };
        let promises = headers.keys().map(|name| name.as_str()).chain(announced.iter().map(String::as_str));
        if let Some(name) = promises.filter(|name| name.starts_with(PREFIX)).find(|name| !known(name)) {
            // A promise that nobody would verify.
            return Err(S3Error::new(Code::InvalidRequest, format!("The checksum {name} is not supported.")));
        }
        if promised.values.len() + promised.trailers.len() > 1 {
            let message = "Expecting a single x-amz-checksum- header. Multiple checksum types are not allowed.";
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        let asked = headers.get(crate::names::SDK_CHECKSUM_ALGORITHM).and_then(|value| value.to_str().ok());
        promised.asked = asked.map(Algorithm::wanted).transpose()?;
        Ok(promised)
    }

    /// All that must be computed.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        let given = self.values.iter().map(|(algorithm, _)| *algorithm);
        let mut all: Vec<Algorithm> = given.chain(self.trailers.iter().copied()).chain(self.asked).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether what arrived is what was promised. `trailer` answers the value of a trailer.
    pub fn verify<'a>(&self, sums: &Sums, trailer: impl Fn(&str) -> Option<&'a str>) -> Result<()> {
        if self.md5.is_some_and(|md5| md5 != sums.md5) {
            let message = "The Content-MD5 you specified did not match what we received. Nothing was stored.";
            return Err(S3Error::new(Code::BadDigest, message));
        }
        let from_trailers = self.trailers.iter().map(|&algorithm| (algorithm, trailer(&algorithm.header())));
        let from_headers = self.values.iter().map(|(algorithm, value)| (*algorithm, Some(value.as_str())));
        for (algorithm, value) in from_headers.chain(from_trailers) {
            let computed = sums.checksums.iter().find(|sum| sum.algorithm == algorithm.name());
            let computed = computed.expect("all promised algorithms are computed").value.as_str();
            if value != Some(computed) {
                let name = algorithm.upper_name();
                let message =
                    format!("The {name} you specified did not match the calculated checksum. Nothing was stored.");
                return Err(S3Error::new(Code::BadDigest, message));
            }
        }
        Ok(())
    }
}

/// The ETag of a multipart object: MD5 over the MD5s of its parts, and their number. `None` when an ETag is not the
/// MD5 of a part.
pub fn multipart_etag<'a>(etags: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut md5 = fast_md5::Md5::new();
    let mut count = 0;
    for etag in etags {
        md5.update(&unhex::<16>(etag)?);
        count += 1;
    }
    Some(format!("{}-{count}", hex(&md5.finalize())))
}

/// The checksum of a multipart object from its parts' base64 values and lengths. `None` when a part has none.
pub fn combine(algorithm: Algorithm, kind: ChecksumType, parts: &[(Option<&str>, u64)]) -> Option<Checksum> {
    let mut values = Vec::with_capacity(parts.len());
    for (value, length) in parts {
        values.push((algorithm.value((*value)?)?, *length));
    }
    let value = match kind {
        ChecksumType::Composite => {
            let joined: Vec<u8> = values.into_iter().flat_map(|(raw, _)| raw).collect();
            let mut hashes = Hashes::new(&[algorithm]);
            hashes.update(&joined);
            let sums = hashes.finish();
            format!("{}-{}", sums.checksums.first()?.value, parts.len())
        }
        ChecksumType::FullObject => {
            let (crc, length) = algorithm.crc()?;
            let mut whole = None;
            for (raw, part_length) in values {
                let part = raw.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
                whole = Some(match whole {
                    None => part,
                    Some(before) => crc_fast::checksum_combine(crc, before, part, part_length),
                });
            }
            base64(&crc_bytes(whole?, length))
        }
    };
    Some(Checksum { algorithm: algorithm.name().to_owned(), value, composite: kind == ChecksumType::Composite })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(algorithm: Algorithm, bytes: &[u8]) -> String {
        let mut hashes = Hashes::new(&[algorithm]);
        hashes.update(bytes);
        hashes.finish().checksums.remove(0).value
    }

    proptest! {
        #[test]
        fn a_full_object_crc_is_combined_from_its_parts(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6)) {
            for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
                let sums: Vec<String> = parts.iter().map(|part| sum(algorithm, part)).collect();
                let named: Vec<(Option<&str>, u64)> =
                    sums.iter().zip(&parts).map(|(sum, part)| (Some(sum.as_str()), part.len() as u64)).collect();
                let whole = combine(algorithm, ChecksumType::FullObject, &named).unwrap();
                prop_assert_eq!(whole.value, sum(algorithm, &parts.concat()));
            }
        }
    }

    #[test]
    fn known_check_values() {
        let check = b"123456789";
        assert_eq!(sum(Algorithm::Crc32, check), base64(&0xcbf4_3926u32.to_be_bytes()));
        assert_eq!(sum(Algorithm::Crc32c, check), base64(&0xe306_9283u32.to_be_bytes()));
        assert_eq!(sum(Algorithm::Crc64Nvme, check), base64(&0xae8b_1486_0a79_9888u64.to_be_bytes()));
        assert_eq!(sum(Algorithm::Sha1, b""), "2jmj7l5rSw0yVb/vlWAYkK/YBwk=");
        assert_eq!(sum(Algorithm::Sha256, b""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(Hashes::new(&[]).finish().etag(), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn composite_checksums_and_etags_count_their_parts() {
        let (a, b) = (sum(Algorithm::Sha256, b"a"), sum(Algorithm::Sha256, b"b"));
        let composite = combine(Algorithm::Sha256, ChecksumType::Composite, &[(Some(&a), 1), (Some(&b), 1)]).unwrap();
        // Python: b64encode(sha256(sha256(b"a").digest() + sha256(b"b").digest()).digest())
        assert_eq!(composite.value, "5aAf7hTg7VxIcU8iGA8lrYNltT+XefedxKPX6Tlj+Uo=-2");
        assert!(composite.composite);
        assert_eq!(combine(Algorithm::Sha256, ChecksumType::Composite, &[(Some(&a), 1), (None, 1)]), None);
        assert_eq!(combine(Algorithm::Sha256, ChecksumType::FullObject, &[(Some(&a), 1)]), None);
        // Python: md5(bytes.fromhex("0cc175b9c0f1b6a831c399e269772661") * 2).hexdigest()
        let part = "0cc175b9c0f1b6a831c399e269772661";
        assert_eq!(multipart_etag([part, part].into_iter()).unwrap(), "7b3c799ee8b11a11c798c8b41bed8502-2");
        assert_eq!(multipart_etag(["x"].into_iter()), None);
    }

    #[test]
    fn a_promise_is_kept_or_refused() {
        let read = |headers: &[(&'static str, &str)], announced: &[&str]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            Promised::read(&map, &announced.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        let verify = |promised: &Promised, content: &[u8], trailer: Option<&'static str>| {
            let mut hashes = Hashes::new(&promised.algorithms());
            hashes.update(content);
            promised.verify(&hashes.finish(), |_| trailer).map_err(|error| error.code)
        };
        let md5 = base64(&fast_md5::digest(b"a"));
        let promised = read(&[("content-md5", &md5)], &[]).unwrap();
        assert_eq!(verify(&promised, b"a", None), Ok(()));
        assert_eq!(verify(&promised, b"b", None), Err(Code::BadDigest));
        let crc = sum(Algorithm::Crc32, b"a");
        let promised = read(&[("x-amz-checksum-crc32", &crc)], &[]).unwrap();
        assert_eq!(verify(&promised, b"a", None), Ok(()));
        assert_eq!(verify(&promised, b"b", None), Err(Code::BadDigest));
        let promised = read(&[], &["x-amz-checksum-crc32"]).unwrap();
        let right: &'static str = crc.clone().leak();
        assert_eq!(verify(&promised, b"a", Some(right)), Ok(()));
        assert_eq!(verify(&promised, b"b", Some(right)), Err(Code::BadDigest));
        assert_eq!(verify(&promised, b"a", None), Err(Code::BadDigest));
        for (header, value, code) in [
            ("content-md5", "x", Code::InvalidDigest),
            ("content-md5", "", Code::InvalidDigest),
            ("x-amz-checksum-crc32", "AAAA", Code::BadDigest),
            ("x-amz-sdk-checksum-algorithm", "CRC16", Code::InvalidRequest),
        ] {
            assert_eq!(read(&[(header, value)], &[]).unwrap_err().code, code, "{header}: {value}");
        }
        assert!(read(&[("x-amz-checksum-crc32", &crc)], &["x-amz-checksum-sha1"]).is_err());
    }

    #[test]
    fn types_that_do_not_fit_their_algorithm_are_refused() {
        let of = |algorithm, asked| ChecksumType::of_upload(algorithm, asked).ok();
        assert_eq!(of(Algorithm::Crc64Nvme, None), Some(ChecksumType::FullObject));
        assert_eq!(of(Algorithm::Crc32, None), Some(ChecksumType::Composite));
        assert_eq!(of(Algorithm::Crc32, Some("FULL_OBJECT")), Some(ChecksumType::FullObject));
        assert_eq!(of(Algorithm::Sha256, Some("FULL_OBJECT")), None);
        assert_eq!(of(Algorithm::Crc64Nvme, Some("COMPOSITE")), None);
    }
}
