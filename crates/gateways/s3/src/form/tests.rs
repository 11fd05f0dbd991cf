use super::*;
use crate::auth::BodyProof;
use crate::payload::Length;
use base::env::{BoxFuture, Clock, MonoTime, WallTime};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use proptest::prelude::*;
use std::sync::Arc;

struct Still;

impl Clock for Still {
    fn now(&self) -> MonoTime {
        MonoTime(0)
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn sleep_until(&self, _: MonoTime) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }
}

/// The form and its file, of a body that comes in pieces of this length.
fn read_in(body: &[u8], piece: usize) -> std::result::Result<(Form, Bytes), Code> {
    let pieces: Vec<_> = body
        .chunks(piece)
        .map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let raw = RawBody::new(StreamBody::new(futures_util::stream::iter(pieces)).map_err(Into::into));
    let payload = Payload::new(raw, BodyProof::None, Length::AtMost(1 << 30), Vec::new(), Arc::new(Still));
    let read = Form::read(payload, "XX").now_or_never().expect("nothing here waits");
    let (form, file) = read.map_err(|error| error.code)?;
    let whole = file.collect().now_or_never().expect("nothing here waits");
    let whole =
        whole.map_err(|error| error.downcast_ref::<S3Error>().map_or(Code::InternalError, |error| error.code))?;
    Ok((form, whole.to_bytes()))
}

fn read(body: &str) -> std::result::Result<(Form, Bytes), Code> {
    read_in(body.as_bytes(), 7)
}

fn part(name: &str, value: &str) -> String {
    format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

fn file(content: &str) -> String {
    let head = "Content-Disposition: form-data; name=\"file\"; filename=\"C:\\dir/a.txt\"\r\nContent-Type: x/y";
    format!("--XX\r\n{head}\r\n\r\n{content}\r\n--XX--\r\n")
}

fn form(fields: &[(&str, &str)]) -> Form {
    Form::of(fields)
}

proptest! {
    #[test]
    fn any_file_comes_out_as_it_went_in(content: Vec<u8>, noise in "[\r\nX-]{0,20}", piece in 1usize..40) {
        let content = [content.as_slice(), noise.as_bytes()].concat();
        prop_assume!(find(&content, b"\r\n--XX").is_none());
        let shell = part("key", "k") + &file("|");
        let (head, tail) = shell.split_once('|').unwrap();
        let body = [head.as_bytes(), &content, tail.as_bytes()].concat();
        let (form, file) = read_in(&body, piece).unwrap();
        prop_assert_eq!(form.key().unwrap(), "k");
        prop_assert_eq!(file, content);
    }

    /// What ends a field is found wherever the pieces of the body are cut.
    #[test]
    fn any_field_comes_out_as_it_went_in(noise in "[\r\nXa-]{0,60}", piece in 1usize..12) {
        prop_assume!(find(noise.as_bytes(), b"\r\n--XX").is_none() && !noise.ends_with('\r'));
        let body = part("key", &noise) + &file("f");
        let (form, file) = read_in(body.as_bytes(), piece).unwrap();
        prop_assert_eq!(form.get("key").unwrap(), noise);
        prop_assert_eq!(file, "f");
    }

    #[test]
    fn garbage_never_panics(body in "(--XX|\r\n|Content-Disposition: form-data; name=\"?[a-z]?\"?|;|=|file|--|.){0,30}", json in "[\\[\\]{}\":,a-z0-9$-]{0,60}") {
        let _ = read(&body);
        let _ = policy::check(json.as_bytes(), &form(&[]), "b", "k", 0);
    }
}

#[test]
fn fields_come_before_the_file_and_what_follows_is_ignored() {
    let (form, content) = read(&(part("KEY", "up/${filename}") + &part("acl", "private") + &file("body"))).unwrap();
    assert_eq!(
        (form.key().unwrap().as_str(), form.get("acl"), content.as_ref()),
        ("up/a.txt", Some("private"), &b"body"[..])
    );
    let behind = part("key", "k") + &file("").replace("--XX--", "--XX\r\nanything\r\n--XX--");
    assert_eq!(read(&behind).unwrap().1, "");
}

#[test]
fn forms_that_are_cut_or_without_a_file_are_refused() {
    let whole = part("key", "k") + &file("body");
    for (body, code) in [
        (part("key", "k") + "--XX--\r\n", Code::InvalidArgument),
        (part("a", "1") + &part("A", "2") + &file(""), Code::MalformedPOSTRequest),
        (whole.replace("--XX--\r\n", ""), Code::MalformedPOSTRequest),
        ("x".to_owned() + &whole, Code::MalformedPOSTRequest),
        (whole.replace("form-data", "mixed"), Code::MalformedPOSTRequest),
        (part("a", &"x".repeat(HEAD_LENGTH_MAX)) + &file(""), Code::MaxPostPreDataLengthExceededError),
        (whole.clone() + &"x".repeat(TAIL_LENGTH_MAX), Code::MalformedPOSTRequest),
    ] {
        assert_eq!(read(&body).map(|_| ()), Err(code), "{}", &body[..body.len().min(200)]);
    }
    for cut in 0..whole.len() - "--\r\n".len() {
        assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_form_names_one_way_to_prove_itself() {
    let of = |fields: &[(&str, &str)]| match form(fields).signature() {
        Ok(Signature::None) => Ok(0),
        Ok(Signature::V2 { .. }) => Ok(2),
        Ok(Signature::V4 { .. }) => Ok(4),
        Err(error) => Err(error.code),
    };
    let (policy, v2) = (("policy", "p"), [("awsaccesskeyid", "a"), ("signature", "s")]);
    let v4 = [
        ("x-amz-algorithm", "AWS4-HMAC-SHA256"),
        ("x-amz-credential", "c"),
        ("x-amz-date", "d"),
        ("x-amz-signature", "s"),
    ];
    assert_eq!(of(&[]), Ok(0));
    assert_eq!(of(&[policy, v2[0], v2[1]]), Ok(2));
    assert_eq!(of(&[policy, v4[0], v4[1], v4[2], v4[3]]), Ok(4));
    for bad in [
        vec![policy],
        v2.to_vec(),
        vec![policy, v2[0]],
        vec![policy, v2[1]],
        v4.to_vec(),
        vec![policy, v4[0], v4[1], v4[2]],
        [&[policy][..], &v4, &v2].concat(),
    ] {
        assert_eq!(of(&bad), Err(Code::InvalidArgument), "{bad:?}");
    }
    assert_eq!(of(&[policy, ("x-amz-algorithm", "AWS4-HMAC-SHA1"), v4[1], v4[2], v4[3]]), Err(Code::InvalidArgument));
}

/// What a policy with these conditions says of a form with a key, of more fields, at a time.
fn check(conditions: &str, fields: &[(&str, &str)], now_ms: u64) -> std::result::Result<RangeInclusive<u64>, Code> {
    let document = format!("{{\"expiration\": \"2026-01-01T00:00:00Z\", \"conditions\": {conditions}}}");
    let fields = [&[("key", "user/${filename}")], fields].concat();
    let form = form(&fields);
    policy::check(document.as_bytes(), &form, "bucket", &form.key().unwrap(), now_ms).map_err(|error| error.code)
}

const BASE: &str = r#"{"bucket": "bucket"}, ["starts-with", "$key", "user/"]"#;

#[test]
fn every_condition_must_hold() {
    let with = |more: &str, fields: &[(&str, &str)]| check(&format!("[{BASE}{more}]"), fields, 0);
    assert_eq!(with("", &[]), Ok(0..=u64::MAX));
    assert_eq!(with(r#", ["Content-Length-Range", 1, 9], ["content-length-range", 3, 20]"#, &[]), Ok(3..=9));
    let acl = r#", {"AcL": "private"}"#;
    assert!(with(acl, &[("acl", "private")]).is_ok());
    for fields in [&[][..], &[("acl", "public-read")], &[("acl", "private"), ("x-amz-meta-a", "b")]] {
        assert_eq!(with(acl, fields), Err(Code::AccessDenied), "{fields:?}");
    }
    assert!(with("", &[("x-ignore-a", "1"), ("x-amz-checksum-crc32", "x"), ("signature", "s")]).is_ok());
    assert_eq!(check(r#"[{"bucket": "other"}, ["starts-with", "$key", ""]]"#, &[], 0), Err(Code::AccessDenied));
    assert_eq!(check(r#"[{"bucket": "bucket"}, ["eq", "$key", "user/"]]"#, &[], 0), Err(Code::AccessDenied));
    assert_eq!(check(r#"[["starts-with", "$key", ""]]"#, &[], 0), Err(Code::AccessDenied), "the bucket is not named");
    assert_eq!(check(&format!("[{BASE}]"), &[("bucket", "x")], 0), Ok(0..=u64::MAX), "a field never moves the object");
    assert_eq!(check(&format!("[{BASE}]"), &[], 1_767_225_600_000), Err(Code::AccessDenied), "expired");
}

#[test]
fn documents_that_are_no_policy_are_refused() {
    for conditions in [
        "{}",
        "[{}]",
        "[[]]",
        "[1]",
        r#"[{"acl": 1}]"#,
        r#"[["eq", "acl", "private"]]"#,
        r#"[["matches", "$acl", "private"]]"#,
        r#"[["content-length-range", 0]]"#,
        r#"[["content-length-range", -1, 0]]"#,
    ] {
        assert_eq!(check(conditions, &[], 0), Err(Code::InvalidPolicyDocument), "{conditions}");
    }
    for document in ["", "[]", "{\"conditions\": []}", "{\"expiration\": \"2026-01-01 00:00\", \"conditions\": []}"] {
        let checked = policy::check(document.as_bytes(), &form(&[]), "b", "k", 0);
        assert_eq!(checked.unwrap_err().code, Code::InvalidPolicyDocument, "{document}");
    }
}

#[test]
fn fields_become_headers_and_never_internal_ones() {
    let headers = form(&[
        ("acl", "private"),
        ("content-type", "a/b"),
        ("x-amz-meta-a", "1"),
        ("tagging", "<Tagging><TagSet><Tag><Key>a b</Key><Value>&amp;</Value></Tag></TagSet></Tagging>"),
        ("authorization", "x"),
        ("host", "y"),
        ("range", "bytes=0-0"),
    ])
    .headers()
    .unwrap();
    let pairs: std::collections::BTreeMap<&str, &str> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let wanted =
        [("content-type", "a/b"), ("x-amz-acl", "private"), ("x-amz-meta-a", "1"), ("x-amz-tagging", "a%20b=%26")];
    assert_eq!(pairs, wanted.into());
    assert!(form(&[("x-amz-meta-a", "1\r\nx: y")]).headers().is_err());
}

#[test]
fn a_redirect_goes_to_the_web_and_nowhere_else() {
    let of = |fields: &[(&str, &str)]| form(fields).success();
    assert_eq!(of(&[]), Success::Status(204));
    assert_eq!(of(&[("success_action_status", "201")]), Success::Document);
    assert_eq!(of(&[("success_action_status", "404")]), Success::Status(204));
    assert_eq!(of(&[("redirect", "http://a/b")]), Success::Redirect("http://a/b".to_owned()));
    assert_eq!(
        of(&[("success_action_redirect", "javascript:x"), ("success_action_status", "200")]),
        Success::Status(200)
    );
}

#[test]
fn only_a_post_of_form_data_is_a_form() {
    let of = |method: &str, kind: &str| {
        let request = http::Request::builder().method(method).header(CONTENT_TYPE, kind).body(()).unwrap();
        boundary(&request.into_parts().0)
    };
    assert_eq!(of("POST", "multipart/form-data; charset=x; boundary=\"XX\"").as_deref(), Some("XX"));
    assert_eq!(of("POST", "multipart/form-data").as_deref(), Some(""));
    assert_eq!(of("PUT", "multipart/form-data; boundary=XX"), None);
    assert_eq!(of("POST", "application/xml"), None);
}
