//! S3 over a real socket: what the protocol promises, and what a broken client must not achieve.

use crate::harness::{Server, TestDir, stdout};
use crate::s3_client::{S3, hex};
use sha2::{Digest, Sha256};

fn started(purpose: &str) -> (TestDir, Server, S3) {
    let directory = TestDir::new(purpose);
    let server = Server::start(&directory.path().join("data"));
    let s3 = S3::of(&server);
    assert_eq!(s3.put("/bucket", b"").status, 200);
    (directory, server, s3)
}

#[test]
fn an_object_comes_back_whole_in_parts_and_on_condition() {
    let (_directory, _server, s3) = started("object");
    let content: Vec<u8> = (0..300_000u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let headers = [("content-type", "text/plain"), ("x-amz-meta-colour", "green")];
    let put = s3.send("PUT", "/bucket/a%20b/c", &headers, &content);
    assert_eq!(put.status, 200, "{}", put.text());
    let etag = put.header("etag").unwrap();
    let got = s3.get("/bucket/a%20b/c");
    assert_eq!((got.status, got.body == content), (200, true));
    assert_eq!(got.header("content-type"), Some("text/plain"));
    assert_eq!(got.header("x-amz-meta-colour"), Some("green"));
    let head = s3.send("HEAD", "/bucket/a%20b/c", &[], b"");
    assert_eq!((head.header("content-length"), head.header("etag")), (Some("300000"), Some(etag)));
    for (range, expected) in
        [("bytes=0-0", 0..1), ("bytes=-5", 299_995..300_000), ("bytes=262140-262150", 262_140..262_151)]
    {
        let part = s3.send("GET", "/bucket/a%20b/c", &[("range", range)], b"");
        assert_eq!((part.status, part.body == content[expected]), (206, true), "{range}");
    }
    let get_if = |name: &str, value: &str| s3.send("GET", "/bucket/a%20b/c", &[(name, value)], b"").outcome().0;
    assert_eq!(get_if("range", "bytes=300000-"), 416);
    // A client that goes on with a part of what it has must not get a part of something else.
    for (validator, status) in [(etag, 206), ("\"other\"", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)] {
        let headers = [("if-range", validator), ("range", "bytes=5-9")];
        let part = s3.send("GET", "/bucket/a%20b/c", &headers, b"");
        assert_eq!((part.status, part.body.len()), (status, if status == 206 { 5 } else { 300_000 }), "{validator}");
    }
    assert_eq!(get_if("if-none-match", etag), 304);
    assert_eq!(get_if("if-match", "\"other\""), 412);
    assert_eq!(s3.send("DELETE", "/bucket/a%20b/c", &[], b"").status, 204);
    assert_eq!(s3.get("/bucket/a%20b/c").outcome(), (404, "NoSuchKey".to_owned()));
    assert_eq!(s3.send("HEAD", "/bucket/a%20b/c", &[], b"").status, 404);
}

/// botocore sends `Expect: 100-continue` with an empty body, is given the answer at once, and takes what it reads next on
/// that connection for a part of it: the next PUT would wait for its timeout. So there is no next one.
#[test]
fn an_empty_body_that_waits_for_100_ends_its_connection() {
    let (_directory, _server, s3) = started("expect");
    let put = |headers: &[(&str, &str)]| s3.send_and_stay("PUT", "/bucket/folder/", headers);
    let empty = put(&[("expect", "100-continue")]).expect("the server closes");
    assert_eq!((empty.status, empty.header("connection")), (200, Some("close")));
    let refused = put(&[("expect", "100-continue"), ("if-none-match", "*")]).expect("the server closes");
    assert_eq!((refused.status, refused.header("connection")), (412, Some("close")));
    assert!(put(&[]).is_none(), "others may go on");
}

#[test]
fn errors_name_code_resource_and_request() {
    let (_directory, _server, s3) = started("errors");
    let missing = s3.get("/bucket/%3Cmissing%3E");
    assert_eq!(missing.outcome(), (404, "NoSuchKey".to_owned()));
    assert_eq!(missing.element("Resource").as_deref(), Some("/bucket/&lt;missing&gt;"));
    assert_eq!(missing.element("RequestId").as_deref(), missing.header("x-amz-request-id"));
    for (method, target, status, code) in [
        ("GET", "/no-such-bucket", 404, "NoSuchBucket"),
        ("GET", "/bucket?policy", 404, "NoSuchBucketPolicy"),
        ("PUT", "/bucket?lifecycle", 400, "MalformedXML"),
        ("PUT", "/bucket?encryption", 501, "NotImplemented"),
        ("PUT", "/bucket/key?renameObject", 501, "NotImplemented"),
        ("GET", "/Bad_Name", 400, "InvalidBucketName"),
        ("GET", "/bucket?max-keys=-1", 400, "InvalidArgument"),
        ("GET", "/bucket/key?versionId=x", 400, "InvalidArgument"),
        ("POST", "/bucket?delete", 400, "MalformedXML"),
    ] {
        assert_eq!(s3.send(method, target, &[], b"").outcome(), (status, code.to_owned()), "{method} {target}");
    }
    assert_eq!(s3.get("/bucket/key").status, 404, "a refused PUT has stored nothing");
    assert_eq!(s3.put("/bucket/key", b"x").status, 200);
    assert_eq!(s3.send("DELETE", "/bucket", &[], b"").outcome(), (409, "BucketNotEmpty".to_owned()));
}

#[test]
fn broken_bodies_store_nothing() {
    let (_directory, _server, s3) = started("broken");
    let hash = hex(&Sha256::digest(b"0123456789"));
    let put = |headers: &[(&str, &str)], hash: &str, length: usize, body: &[u8]| {
        s3.send_raw("PUT", "/bucket/key", headers, hash, length, body).outcome()
    };
    assert_eq!(put(&[], &hash, 10, b"01234").0, 400, "cut off");
    assert_eq!(put(&[], "UNSIGNED-PAYLOAD", 10, b"01234").0, 400, "cut off");
    assert_eq!(put(&[], &hash, 10, b"0123456788"), (400, "XAmzContentSHA256Mismatch".to_owned()));
    let md5 = [("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")];
    assert_eq!(put(&md5, &hash, 10, b"0123456789"), (400, "BadDigest".to_owned()));
    let crc = [("x-amz-checksum-crc32", "AAAAAA==")];
    assert_eq!(put(&crc, &hash, 10, b"0123456789"), (400, "BadDigest".to_owned()));
    let framed = [("x-amz-decoded-content-length", "5"), ("x-amz-trailer", "x-amz-checksum-crc32")];
    let body = |checksum: &str| format!("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{checksum}\r\n\r\n").into_bytes();
    let mode = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
    let wrong = body("AAAAAA==");
    assert_eq!(put(&framed, mode, wrong.len(), &wrong), (400, "BadDigest".to_owned()));
    let right = body("NhCmhg==");
    assert_eq!(put(&framed, mode, right.len(), &right[..12]).0, 400, "cut off");
    assert_eq!(s3.get("/bucket/key").status, 404, "none of them stored anything");
    assert_eq!(put(&framed, mode, right.len(), &right).0, 200);
    assert_eq!(s3.get("/bucket/key").text(), "hello");
    assert_eq!(put(&[], &hash, 10, b"01234").0, 400);
    assert_eq!(s3.get("/bucket/key").text(), "hello", "the old object stands");
}

#[test]
fn a_multipart_upload_becomes_one_object_once() {
    let (_directory, _server, s3) = started("multipart");
    let created = s3.send("POST", "/bucket/big?uploads", &[], b"");
    let upload = created.element("UploadId").unwrap();
    let parts = [vec![1u8; 5 << 20], vec![2u8; 5 << 20], vec![3u8; 1000]];
    let mut list = String::new();
    for (number, part) in (1..).zip(&parts) {
        let put = s3.put(&format!("/bucket/big?partNumber={number}&uploadId={upload}"), part);
        let etag = put.header("etag").unwrap();
        list.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
    }
    assert_eq!(s3.get("/bucket/big").status, 404, "invisible until it is complete");
    assert_eq!(s3.get(&format!("/bucket/big?uploadId={upload}")).elements("PartNumber"), ["1", "2", "3"]);
    let document = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let complete = || s3.send("POST", &format!("/bucket/big?uploadId={upload}"), &[], document.as_bytes());
    let (first, again) = (complete(), complete());
    assert_eq!(first.status, 200, "{}", first.text());
    assert!(first.element("ETag").unwrap().ends_with("-3&quot;"), "{}", first.text());
    assert_eq!((again.status, again.element("ETag")), (200, first.element("ETag")));
    assert!(s3.get("/bucket/big").body == parts.concat());
    assert!(s3.get("/bucket/big?partNumber=2").body == parts[1]);
    let copy = s3.send("PUT", "/bucket/copy", &[("x-amz-copy-source", "/bucket/big")], b"");
    assert_eq!(copy.status, 200, "{}", copy.text());
    assert!(s3.get("/bucket/copy").body == parts.concat());
    let other = s3.send("POST", "/bucket/other?uploads", &[], b"").element("UploadId").unwrap();
    assert_eq!(s3.send("DELETE", &format!("/bucket/other?uploadId={other}"), &[], b"").status, 204);
    let late = s3.put(&format!("/bucket/other?partNumber=1&uploadId={other}"), b"late");
    assert_eq!(late.outcome(), (404, "NoSuchUpload".to_owned()));
}

#[test]
fn listings_go_on_where_they_stopped() {
    let (_directory, _server, s3) = started("listing");
    let keys = ["a", "b/1", "b/2", "c", "d/1", "e"];
    for key in keys {
        assert_eq!(s3.put(&format!("/bucket/{key}"), b"").status, 200);
    }
    let pages = |query: &str| {
        let (mut names, mut token) = (Vec::new(), String::new());
        loop {
            let page = s3.get(&format!("/bucket?list-type=2&max-keys=2&{query}{token}"));
            assert_eq!(page.status, 200, "{}", page.text());
            names.extend(page.elements("Key"));
            names.extend(
                page.elements("CommonPrefixes").iter().map(|p| p.replace("<Prefix>", "").replace("</Prefix>", "")),
            );
            match page.element("NextContinuationToken") {
                Some(next) => {
                    token = format!(
                        "&continuation-token={}",
                        next.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
                    )
                }
                None => break names,
            }
        }
    };
    assert_eq!(pages(""), keys);
    let mut folded = pages("delimiter=%2F");
    folded.sort();
    assert_eq!(folded, ["a", "b/", "c", "d/", "e"]);
    let objects: String = keys.iter().map(|key| format!("<Object><Key>{key}</Key></Object>")).collect();
    let delete = s3.send("POST", "/bucket?delete", &[], format!("<Delete>{objects}</Delete>").as_bytes());
    assert_eq!(delete.elements("Deleted").len(), keys.len(), "{}", delete.text());
    assert_eq!(pages(""), Vec::<String>::new());
}

#[test]
fn of_many_that_create_a_key_one_wins() {
    let (_directory, _server, s3) = started("race");
    for round in 0..10 {
        let target = format!("/bucket/key-{round}");
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..16u8)
                .map(|racer| {
                    let (s3, target) = (&s3, &target);
                    scope.spawn(move || s3.send("PUT", target, &[("if-none-match", "*")], &[racer]).status)
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 409, 412].contains(status)), "{statuses:?}");
        let winner = statuses.iter().position(|&status| status == 200).unwrap();
        assert_eq!(s3.get(&target).body, [winner as u8]);
    }
}

#[test]
fn a_client_that_lost_its_lock_is_fenced_out() {
    let (_directory, server, s3) = started("fence");
    let next = || stdout(&server.command(&["fence", "next", "lock"])).trim().to_owned();
    let (first, second) = (next(), next());
    assert_ne!(first, second);
    let put = |fence: &str, key: &str| s3.send("PUT", &format!("/bucket/{key}"), &[("x-henge-fence", fence)], b"x");
    assert_eq!(put(&first, "a").status, 200);
    assert_eq!(put(&second, "b").status, 200);
    let late = put(&first, "a");
    assert_eq!(late.outcome(), (412, "FenceTokenStale".to_owned()), "{}", late.text());
    let stale = [("x-henge-fence", first.as_str())];
    assert_eq!(s3.send("DELETE", "/bucket/a", &stale, b"").outcome().0, 412);
    let copy = [("x-amz-copy-source", "/bucket/b"), stale[0]];
    assert_eq!(s3.send("PUT", "/bucket/a", &copy, b"").outcome().0, 412);
    let document = b"<Delete><Object><Key>a</Key></Object></Delete>";
    assert_eq!(s3.send("POST", "/bucket?delete", &stale, document).elements("Code"), ["FenceTokenStale"]);
    for bad in ["lock", "lock:", ":1", "lock:-1"] {
        assert_eq!(put(bad, "a").outcome(), (400, "InvalidArgument".to_owned()), "{bad}");
    }
    assert_eq!(s3.send("PUT", "/bucket/a", &[("x-henge-fense", "lock:9")], b"x").status, 400, "a misspelt promise");
    let set = |fence: &str| assert!(server.command(&["bucket", "set", "bucket", "--fence", fence]).status.success());
    set("required");
    assert_eq!(s3.put("/bucket/a", b"y").outcome(), (428, "FenceTokenRequired".to_owned()));
    assert_eq!(put(&second, "a").status, 200);
    assert!(stdout(&server.command(&["bucket", "list"])).contains("fence token"));
    set("optional");
    assert_eq!(s3.put("/bucket/a", b"y").status, 200);
    assert_eq!(put("lock:18446744073709551615", "a").status, 200);
    assert_eq!(put(&second, "a").status, 412);
    assert!(server.command(&["fence", "reset", "bucket", "lock"]).status.success());
    assert_eq!(put(&second, "a").status, 200);
}

#[test]
fn a_request_chooses_its_consistency() {
    let (_directory, server, s3) = started("consistency");
    let put = |rule: &str| s3.send("PUT", "/bucket/a", &[("x-henge-acknowledge", rule)], b"x");
    for rule in ["all", "majority", "one"] {
        assert_eq!(put(rule).status, 200, "{rule}");
    }
    let strict = put("all-strict");
    assert_eq!(strict.outcome(), (503, "ServiceUnavailable".to_owned()), "one node never makes three copies");
    assert!(strict.text().contains("all-strict") && strict.text().contains("Nothing was changed"), "{}", strict.text());
    assert_eq!(put("most").status, 400);
    let read = |consistency: &str, target: &str| s3.send("GET", target, &[("x-henge-consistency", consistency)], b"");
    let stale = read("eventual", "/bucket/a");
    assert_eq!((stale.status, stale.text().as_str()), (200, "x"));
    assert!(stale.header("x-henge-staleness-ms").unwrap().parse::<u64>().unwrap() < 60_000);
    assert!(read("eventual", "/bucket?list-type=2").header("x-henge-staleness-ms").is_some());
    assert!(read("eventual", "/bucket/absent").header("x-henge-staleness-ms").is_some());
    assert_eq!(read("strong", "/bucket/a").header("x-henge-staleness-ms"), None);
    assert_eq!(read("weak", "/bucket/a").status, 400);
    let set = server.command(&["bucket", "set", "bucket", "--acknowledge", "all-strict"]);
    assert!(stdout(&set).contains("all-strict"), "{}", stdout(&set));
    assert_eq!(s3.put("/bucket/b", b"y").status, 503);
    assert_eq!(put("all").status, 200, "a request may ask for less");
}
