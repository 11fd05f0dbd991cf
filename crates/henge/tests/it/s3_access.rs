//! Who may do what, with several keys against the real server: what policies see of a request, and what belongs to whom.

use crate::harness::{Server, TestDir};
use crate::s3_client::{Answer, S3};

/// A server, its root user, and two keys without a policy of their own.
struct Scene {
    directory: TestDir,
    server: Server,
    root: S3,
    alice: S3,
    bob: S3,
}

fn scene(purpose: &str) -> Scene {
    let directory = TestDir::new(purpose);
    let server = Server::start(&directory.path().join("data"));
    let [alice, bob] = ["alice", "bob"].map(|name| S3::of_new_key(&server, name, None));
    Scene { root: S3::of(&server), directory, server, alice, bob }
}

fn ok(answer: Answer) -> Answer {
    assert!(matches!(answer.status, 200 | 204), "{} {}", answer.status, answer.text());
    answer
}

fn denied(answer: &Answer) {
    assert_eq!(answer.outcome(), (403, "AccessDenied".to_owned()), "{}", answer.text());
}

/// One statement about everybody, on a bucket and all in it.
fn statement(effect: &str, action: &str, condition: &str) -> String {
    format!(
        r#"{{"Effect": "{effect}", "Principal": "*", "Action": "{action}", "Condition": {{{condition}}},
            "Resource": ["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/*"]}}"#
    )
}

fn set_policy(owner: &S3, statements: &[String]) {
    let policy = format!(r#"{{"Version": "2012-10-17", "Statement": [{}]}}"#, statements.join(","));
    ok(owner.put("/bucket?policy", policy.as_bytes()));
}

const LOCKABLE: (&str, &str) = ("x-amz-bucket-object-lock-enabled", "true");

fn tagging(value: &str) -> Vec<u8> {
    format!("<Tagging><TagSet><Tag><Key>team</Key><Value>{value}</Value></Tag></TagSet></Tagging>").into_bytes()
}

fn hold(status: &str) -> Vec<u8> {
    format!("<LegalHold><Status>{status}</Status></LegalHold>").into_bytes()
}

#[test]
fn whoever_writes_an_object_owns_its_bytes_but_neither_its_lock_nor_its_tags() {
    let Scene { alice, bob, .. } = &scene("writer");
    let grant = format!("id={}", bob.access_key);
    ok(alice.send("PUT", "/bucket", &[LOCKABLE, ("x-amz-grant-write", &grant)], b""));
    ok(bob.send("PUT", "/bucket/bobs", &[("x-amz-tagging", "team=a")], b"b"));
    ok(alice.put("/bucket/hers", b"a"));
    assert_eq!(ok(bob.get("/bucket/bobs")).body, b"b");
    denied(&alice.get("/bucket/bobs"));
    ok(alice.put("/bucket/bobs?legal-hold", &hold("ON")));
    denied(&bob.put("/bucket/bobs?legal-hold", &hold("OFF")));
    for key in ["bobs", "hers"] {
        denied(&bob.put(&format!("/bucket/{key}?tagging"), &tagging("b")));
        denied(&bob.send("DELETE", &format!("/bucket/{key}?tagging"), &[], b""));
    }
    ok(alice.put("/bucket/bobs?tagging", &tagging("c")));
}

#[test]
fn buckets_belong_to_the_key_that_made_them() {
    let Scene { root, alice, bob, .. } = &scene("owner");
    ok(alice.put("/bucket", b""));
    ok(bob.put("/bobs", b""));
    for (method, target) in
        [("DELETE", "/bucket"), ("GET", "/bucket"), ("PUT", "/bucket/key"), ("GET", "/bucket?policy")]
    {
        denied(&bob.send(method, target, &[], b""));
        denied(&bob.anonymous(method, target, &[], b""));
    }
    assert_eq!(ok(bob.get("/")).elements("Name"), ["bobs"]);
    assert_eq!(ok(root.get("/")).elements("Name"), ["bobs", "bucket"]);
    assert_eq!(bob.put("/bucket", b"").outcome(), (409, "BucketAlreadyExists".to_owned()));
}

#[test]
fn conditions_see_what_a_document_sets_and_not_headers_without_effect() {
    let Scene { alice, bob, .. } = &scene("document");
    ok(alice.send("PUT", "/bucket", &[LOCKABLE], b""));
    ok(alice.put("/bucket/key", b"x"));
    set_policy(
        alice,
        &[
            statement("Allow", "s3:PutObjectTagging", r#""StringEquals": {"s3:RequestObjectTag/team": "a"}"#),
            statement("Allow", "s3:PutObjectLegalHold", r#""StringEquals": {"s3:object-lock-legal-hold": "ON"}"#),
            statement(
                "Allow",
                "s3:PutObjectRetention",
                r#""NumericLessThan": {"s3:object-lock-remaining-retention-days": "20000"},
            "StringEquals": {"s3:object-lock-mode": "GOVERNANCE"}"#,
            ),
        ],
    );
    ok(bob.put("/bucket/key?tagging", &tagging("a")));
    denied(&bob.put("/bucket/key?tagging", &tagging("b")));
    denied(&bob.send("PUT", "/bucket/key?tagging", &[("x-amz-tagging", "team=a")], &tagging("b")));
    ok(bob.put("/bucket/key?legal-hold", &hold("ON")));
    denied(&bob.put("/bucket/key?legal-hold", &hold("OFF")));
    denied(&bob.send("PUT", "/bucket/key?legal-hold", &[("x-amz-object-lock-legal-hold", "ON")], &hold("OFF")));
    let retention = |mode: &str, year: u32| {
        let until = format!("{year}-01-01T00:00:00Z");
        format!("<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>").into_bytes()
    };
    denied(&bob.put("/bucket/key?retention", &retention("GOVERNANCE", 2222)));
    denied(&bob.put("/bucket/key?retention", &retention("COMPLIANCE", 2060)));
    ok(bob.put("/bucket/key?retention", &retention("GOVERNANCE", 2060)));
}

#[test]
fn conditions_see_the_version_wherever_a_request_names_it() {
    let Scene { alice, .. } = &scene("version");
    ok(alice.put("/bucket", b""));
    let on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    ok(alice.put("/bucket?versioning", on));
    let written = |body: &[u8]| ok(alice.put("/bucket/key", body)).header("x-amz-version-id").unwrap().to_owned();
    let (kept, free) = (written(b"1"), written(b"2"));
    let named = format!(r#""StringEquals": {{"s3:VersionId": "{kept}"}}"#);
    set_policy(
        alice,
        &[
            statement("Deny", "s3:DeleteObjectVersion", &named),
            statement("Deny", "s3:GetObjectVersion", &named),
            statement("Deny", "s3:GetObject", r#""StringEquals": {"s3:x-amz-copy-source": "bucket/secret"}"#),
        ],
    );
    denied(&alice.get(&format!("/bucket/key?versionId={kept}")));
    let copy = |version: &str| {
        let source = format!("/bucket/key?versionId={version}");
        alice.send("PUT", "/bucket/copy", &[("x-amz-copy-source", &source)], b"")
    };
    denied(&copy(&kept));
    ok(copy(&free));
    ok(alice.put("/bucket/secret", b"s"));
    for source in ["bucket/secret", "/bucket/secret", "bucket/%73ecret"] {
        denied(&alice.send("PUT", "/bucket/copy", &[("x-amz-copy-source", source)], b""));
    }
    denied(&alice.send("DELETE", &format!("/bucket/key?versionId={kept}"), &[], b""));
    let object = |version: &str| format!("<Object><Key>key</Key><VersionId>{version}</VersionId></Object>");
    let document = format!("<Delete>{}{}</Delete>", object(&kept), object(&free));
    let deleted = ok(alice.send("POST", "/bucket?delete", &[], document.as_bytes()));
    assert_eq!((deleted.elements("Deleted").len(), deleted.elements("Code")), (1, vec!["AccessDenied".to_owned()]));
    assert_eq!(ok(alice.get("/bucket?versions&prefix=key")).elements("VersionId"), [kept]);
}

#[test]
fn making_ones_bucket_again_switches_on_no_lock_that_its_policy_denies() {
    let Scene { alice, .. } = &scene("again");
    ok(alice.put("/bucket", b""));
    set_policy(alice, &[statement("Deny", "s3:PutBucketObjectLockConfiguration", "")]);
    denied(&alice.send("PUT", "/bucket", &[LOCKABLE], b""));
    assert_eq!(alice.get("/bucket?object-lock").status, 404);
    assert_eq!(ok(alice.get("/bucket?versioning")).element("Status"), None, "nor versions");
    ok(alice.send("DELETE", "/bucket?policy", &[], b""));
    ok(alice.send("PUT", "/bucket", &[LOCKABLE], b""));
    ok(alice.get("/bucket?object-lock"));
}

#[test]
fn a_list_of_deletes_is_read_only_of_those_who_may_delete_something() {
    let Scene { alice, .. } = &scene("deletes");
    let document = b"<Delete><Object><Key>key</Key></Object></Delete>";
    for (bucket, headers) in [("/private", &[][..]), ("/public", &[("x-amz-acl", "public-read-write")])] {
        ok(alice.send("PUT", bucket, headers, b""));
        ok(alice.put(&format!("{bucket}/key"), b"x"));
    }
    let delete = |bucket: &str| alice.anonymous("POST", &format!("{bucket}?delete"), &[], document);
    denied(&delete("/private"));
    // What is no document at all is refused the same: nobody has looked.
    denied(&alice.anonymous("POST", "/private?delete", &[], b"<"));
    ok(alice.get("/private/key"));
    assert_eq!(ok(delete("/public")).elements("Deleted").len(), 1);
    assert_eq!(alice.get("/public/key").status, 404);
}

#[test]
fn nobody_in_particular_sets_headers_of_answers() {
    let Scene { alice, .. } = &scene("overrides");
    ok(alice.put("/bucket", b""));
    ok(alice.send("PUT", "/bucket/key", &[("x-amz-acl", "public-read")], b"x"));
    let get = |query: &str| alice.anonymous("GET", &format!("/bucket/key{query}"), &[], b"");
    assert_eq!(ok(get("")).body, b"x");
    let refused = get("?response-content-type=text%2Fhtml");
    assert_eq!(refused.outcome(), (400, "InvalidRequest".to_owned()), "a page of somebody else's making");
    assert_eq!(alice.anonymous("HEAD", "/bucket/key?response-expires=x", &[], b"").status, 400);
    assert_eq!(
        ok(alice.get("/bucket/key?response-content-type=text%2Fhtml")).header("content-type"),
        Some("text/html")
    );
}

#[test]
fn an_access_list_that_a_policy_denies_is_refused_wherever_it_is_set() {
    let Scene { alice, directory, server, .. } = &scene("lists");
    ok(alice.put("/bucket", b""));
    ok(alice.put("/bucket/key", b"x"));
    let public = r#""StringLike": {"s3:x-amz-acl": "public*"}"#;
    let set = |acl: &str| {
        let acl = ("x-amz-acl", acl);
        [
            alice.send("PUT", "/bucket/new", &[acl], b"x"),
            alice.send("PUT", "/bucket/copy", &[acl, ("x-amz-copy-source", "bucket/key")], b""),
            alice.send("POST", "/bucket/big?uploads", &[acl], b""),
            alice.send("PUT", "/bucket/key?acl", &[acl], b""),
        ]
    };
    set_policy(alice, &[statement("Deny", "s3:PutObjectAcl", public)]);
    set("public-read").iter().for_each(denied);
    set("private").into_iter().for_each(|answer| drop(ok(answer)));
    set_policy(alice, &[statement("Deny", "s3:PutObject*", public)]);
    set("public-read-write").iter().for_each(denied);
    // In the policy of a key, for buckets that it makes.
    let file = directory.path().join("policy.json");
    let text = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Deny", "Action": ["s3:PutBucketAcl", "s3:PutBucketObjectLockConfiguration"], "Resource": "*"}]}"#;
    std::fs::write(&file, text).unwrap();
    let carol = S3::of_new_key(server, "carol", Some(&file));
    denied(&carol.send("PUT", "/carols", &[("x-amz-acl", "public-read")], b""));
    denied(&carol.send("PUT", "/carols", &[LOCKABLE], b""));
    ok(carol.put("/carols", b""));
}

#[test]
fn tags_that_come_along_with_a_copy_are_set_by_right() {
    let Scene { alice, bob, .. } = &scene("copy-tags");
    ok(alice.put("/bucket", b""));
    ok(alice.send("PUT", "/bucket/key", &[("x-amz-tagging", "team=a")], b"x"));
    let read = ["GetObject", "GetObjectTagging", "PutObject"].map(|name| statement("Allow", &format!("s3:{name}"), ""));
    set_policy(alice, &read);
    let copy = |more: &[(&str, &str)]| {
        let mut headers = vec![("x-amz-copy-source", "bucket/key")];
        headers.extend(more);
        bob.send("PUT", "/bucket/copy", &headers, b"")
    };
    denied(&copy(&[]));
    ok(copy(&[("x-amz-tagging-directive", "REPLACE")]));
    let tagged = statement("Allow", "s3:PutObjectTagging", r#""StringEquals": {"s3:RequestObjectTag/team": "b"}"#);
    set_policy(alice, &[&read[..], &[tagged]].concat());
    // Ignored without REPLACE: it must not speak for the tags that come along.
    denied(&copy(&[("x-amz-tagging", "team=b")]));
    ok(copy(&[("x-amz-tagging", "team=b"), ("x-amz-tagging-directive", "REPLACE")]));
}

#[test]
fn a_policy_that_costs_too_much_to_compare_denies() {
    let Scene { alice, .. } = &scene("costly");
    ok(alice.put("/bucket", b""));
    ok(alice.put("/bucket/key", b"x"));
    let texts: Vec<String> = (0..600).map(|n| format!("\"*${{aws:Referer}}b{n}*\"")).collect();
    let costly = format!(r#""StringLike": {{"aws:UserAgent": [{}]}}"#, texts.join(","));
    set_policy(alice, &[statement("Deny", "s3:GetObject", &costly)]);
    ok(alice.get("/bucket/key"));
    let (referer, agent) = ("a".repeat(5_000), "a".repeat(9_000));
    denied(&alice.send("GET", "/bucket/key", &[("referer", &referer), ("user-agent", &agent)], b""));
}

#[test]
fn another_root_user_takes_the_place_of_the_old_one() {
    let directory = TestDir::new("root");
    let data = directory.path().join("data");
    let start = |name: &str| {
        let environment = [("HENGE_ROOT_USER", name), ("HENGE_ROOT_PASSWORD", "long-enough-password")];
        Server::start_with(&data, &[], &environment)
    };
    let mut server = start("first-root");
    let first = S3::of(&server);
    ok(first.put("/bucket", b""));
    ok(first.put("/bucket/key", b"x"));
    assert_eq!(server.stop(), Some(0));
    let server = start("second-root");
    let second = S3::of(&server);
    assert_eq!((first.access_key.as_str(), second.access_key.as_str()), ("first-root", "second-root"));
    assert_eq!(ok(second.get("/bucket/key")).body, b"x");
    let first = S3 { address: second.address.clone(), ..first };
    assert_eq!(first.get("/bucket/key").outcome(), (403, "InvalidAccessKeyId".to_owned()));
}
