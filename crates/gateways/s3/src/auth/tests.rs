//! The examples of the Amazon S3 API Reference ("Signature calculation examples"), signature by signature. They hold
//! the verifier and the signer to something that neither of them made up.

use super::*;
use crate::date::parse_amz_date;
use crate::encoding::unhex;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue};

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const DATE: &str = "20130524T000000Z";

struct Keys;

impl KeySource for Keys {
    async fn secret(&self, access_key: &str) -> Result<Option<Secret>> {
        Ok((access_key == ACCESS_KEY).then(|| Secret::new(SECRET_KEY.to_owned())))
    }
}

/// The headers in `signed` are sent and signed, `signature` is claimed; does it pass?
fn header_passes(
    method: &str,
    path: &str,
    query: &str,
    signed: &[(&'static str, &str)],
    signature: &str,
) -> Result<BodyProof> {
    let mut headers: HeaderMap = signed
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect();
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request,SignedHeaders={},Signature={signature}",
        names.join(";")
    );
    headers.insert("authorization", authorization.parse().unwrap());
    passes(method, path, query, &headers)
}

fn passes(method: &str, path: &str, query: &str, headers: &HeaderMap) -> Result<BodyProof> {
    let request = Signed { method: &method.parse().unwrap(), raw_path: path, raw_query: query, headers };
    let now_ms = parse_amz_date(DATE).unwrap();
    let outcome = authenticate(request, &Keys, now_ms, "us-east-1").now_or_never().expect("the keys answer at once");
    let (caller, proof) = outcome?;
    // Nobody is admitted as nobody: what nobody may do is decided later.
    let Caller::Signed(signed) = caller else { return Err(crate::authorize::denied()) };
    assert_eq!(signed.access_key(), ACCESS_KEY);
    Ok(proof)
}

#[test]
fn the_examples_of_the_reference_pass() {
    let host = ("host", "examplebucket.s3.amazonaws.com");
    let (sha256, date) = (("x-amz-content-sha256", EMPTY_SHA256), ("x-amz-date", DATE));
    let get = [host, ("range", "bytes=0-9"), sha256, date];
    let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
    assert!(header_passes("GET", "/test.txt", "", &get, signature).is_ok());
    let put = [
        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        host,
        ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
        date,
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ];
    let signature = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd";
    let proof = header_passes("PUT", "/test$file.text", "", &put, signature).unwrap();
    let BodyProof::Sha256(hash) = proof else { panic!("the body is hashed") };
    assert_eq!(hash.as_slice(), Sha256::digest("Welcome to Amazon S3.").as_slice());
    assert!(header_passes("PUT", "/test%24file.text", "", &put, signature).is_ok());
    let signature = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543";
    assert!(header_passes("GET", "/", "lifecycle", &[host, sha256, date], signature).is_ok());
    let signature = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
    assert!(header_passes("GET", "/", "prefix=J&max-keys=2", &[host, sha256, date], signature).is_ok());
}

#[test]
fn the_presigned_example_passes_and_nothing_of_it_can_be_changed() {
    let headers: HeaderMap = [("host", "examplebucket.s3.amazonaws.com")]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .into_iter()
        .collect();
    let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3\
        %2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
        &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    assert!(passes("GET", "/test.txt", query, &headers).is_ok());
    for (from, to) in [("86400", "86401"), ("SignedHeaders=host", "SignedHeaders=host;range"), ("aeee", "aeef")] {
        assert!(passes("GET", "/test.txt", &query.replace(from, to), &headers).is_err(), "{from} -> {to}");
    }
    assert!(passes("GET", "/test.tx", query, &headers).is_err());
    assert!(passes("PUT", "/test.txt", query, &headers).is_err());
    assert!(passes("GET", "/test.txt", &format!("versionId=1&{query}"), &headers).is_err());
}

/// Chunks of 64 KiB and 1 KiB of `a`, as both chunked examples have them.
fn chunk_hashes() -> [[u8; 32]; 3] {
    [Sha256::digest(vec![b'a'; 65_536]).into(), Sha256::digest(vec![b'a'; 1024]).into(), Sha256::digest(b"").into()]
}

fn example_chain(seed: &str) -> ChunkChain {
    let scope = Scope { date: "20130524".into(), region: "us-east-1".into(), service: "s3".into() };
    ChunkChain::new(SigningKey::derive(SECRET_KEY, &scope), DATE, &scope, unhex(seed).unwrap())
}

#[test]
fn the_chunked_example_passes_in_its_order_only() {
    let seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    let headers = [
        ("content-encoding", "aws-chunked"),
        ("content-length", "66824"),
        ("host", "s3.amazonaws.com"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("x-amz-date", DATE),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ];
    let proof = header_passes("PUT", "/examplebucket/chunkObject.txt", "", &headers, seed).unwrap();
    let BodyProof::ChunkedSigned { mut chain, trailers: false } = proof else { panic!("signed chunks, no trailers") };
    let signatures = [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ]
    .map(|text| unhex::<32>(text).unwrap());
    for (signature, hash) in signatures.iter().zip(&chunk_hashes()) {
        assert!(chain.accept_chunk(signature, hash));
    }
    assert!(!example_chain(seed).accept_chunk(&signatures[1], &chunk_hashes()[1]), "a chunk cannot be left out");
}

#[test]
fn the_example_with_a_signed_trailer_passes() {
    let seed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";
    let headers = [
        ("content-encoding", "aws-chunked"),
        ("host", "s3.amazonaws.com"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
        ("x-amz-date", DATE),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-trailer", "x-amz-checksum-crc32c"),
    ];
    let proof = header_passes("PUT", "/examplebucket/chunkObject.txt", "", &headers, seed).unwrap();
    let BodyProof::ChunkedSigned { mut chain, trailers: true } = proof else { panic!("signed chunks and trailers") };
    let signatures = [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ];
    for (signature, hash) in signatures.iter().zip(&chunk_hashes()) {
        assert!(chain.accept_chunk(&unhex(signature).unwrap(), hash));
    }
    let trailer = unhex("d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435").unwrap();
    assert!(chain.accept_trailers(&trailer, "x-amz-checksum-crc32c:sOO8/Q==\n"));
}

#[test]
fn secrets_do_not_show_themselves() {
    let secret = Secret::new(SECRET_KEY.to_owned());
    let scope = Scope { date: "20130524".into(), region: "us-east-1".into(), service: "s3".into() };
    let shown = format!(
        "{secret:?} {:?} {:?}",
        SigningKey::derive(SECRET_KEY, &scope),
        crate::sign::Signer::new(ACCESS_KEY, SECRET_KEY, "r")
    );
    assert!(!shown.contains(&SECRET_KEY[..8]), "{shown}");
}
