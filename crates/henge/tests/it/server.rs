//! One server: what is acknowledged survives, who may see what, what it says of itself.

use crate::harness::{Server, TestDir, henge, request, stderr, stdout};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

#[test]
fn acknowledged_writes_survive_kill_9() {
    let directory = TestDir::new("survive");
    let log = directory.path().join("acks");
    let data = directory.path().join("data");
    let mut server = Server::start(&data);
    let cluster_before = server.cluster["cluster"].clone();
    for size in ["100", "4KiB", "3MiB"] {
        let put = server.command(&[
            "bench",
            "put",
            "--size",
            size,
            "--seconds",
            "0.3",
            "--concurrency",
            "4",
            "--ack-log",
            log.to_str().unwrap(),
        ]);
        assert!(put.status.success(), "{}", stderr(&put));
    }
    server.kill();
    let server = Server::start(&data);
    assert_eq!(server.cluster["cluster"], cluster_before);
    let verified = server.command(&["bench", "verify", log.to_str().unwrap(), "--json"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let judgement: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert!(judgement["keys"].as_u64().unwrap() > 0);
    assert_eq!(judgement["keys"], judgement["good"]);
}

#[test]
fn stops_in_good_order_and_starts_again() {
    let directory = TestDir::new("stop");
    let mut server = Server::start(directory.path());
    assert!(server.command(&["bucket", "create", "kept"]).status.success());
    assert_eq!(server.stop(), Some(0));
    let mut server = Server::start(directory.path());
    assert!(stdout(&server.command(&["bucket", "list"])).contains("kept"));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn files_with_secrets_are_the_owners_only() {
    let directory = TestDir::new("secrets");
    let server = Server::start(directory.path());
    for name in ["credentials", "cluster.json", "monitoring-token"] {
        let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let arguments = std::fs::read(format!("/proc/{}/cmdline", server.child.id())).unwrap();
    let secret = server.cluster["secret_key"].as_str().unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains(secret));
    let credentials = std::fs::read_to_string(directory.path().join("credentials")).unwrap();
    assert!(credentials.contains(secret) && credentials.contains("aws_secret_access_key"));
}

#[test]
fn wrong_credentials_pass_nowhere() {
    let directory = TestDir::new("wrong");
    let environment = [("HENGE_ROOT_USER", "the-root"), ("HENGE_ROOT_PASSWORD", "battery-staple")];
    let server = Server::start_with(directory.path(), &[], &environment);
    assert_eq!(server.cluster["access_key"], "the-root");
    assert!(!directory.path().join("credentials").exists(), "given credentials are not stored");
    let wrong = [("HENGE_ROOT_USER", "the-root"), ("HENGE_ROOT_PASSWORD", "wrong-secret")];
    let (s3, admin) = (server.s3_address(), server.admin_address());
    let bench = ["bench", "put", "--seconds", "0.1", "--s3", s3.as_str()];
    let refused = henge().args(bench).envs(wrong).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("SignatureDoesNotMatch"), "{}", stderr(&refused));
    for arguments in [["key", "list"], ["bucket", "list"]] {
        let refused = henge().args(arguments).args(["--admin", &admin]).envs(wrong).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        let allowed = henge().args(arguments).args(["--admin", &admin]).envs(environment).output().unwrap();
        assert!(allowed.status.success(), "{}", stderr(&allowed));
    }
    let unsigned = request(&s3, "GET", "/", None).unwrap();
    assert_eq!(unsigned.status, 403, "{}", unsigned.text);
}

#[test]
fn keys_are_made_used_and_deleted() {
    let directory = TestDir::new("keys");
    let server = Server::start(directory.path());
    let made = server.command(&["key", "create", "app", "--json"]);
    let key: Value = serde_json::from_slice(&made.stdout).unwrap();
    let environment = [
        ("HENGE_ROOT_USER", key["access_key"].as_str().unwrap()),
        ("HENGE_ROOT_PASSWORD", key["secret_key"].as_str().unwrap()),
    ];
    let s3 = server.s3_address();
    let bench = ["bench", "put", "--seconds", "0.1", "--s3", s3.as_str(), "--bucket", "apps-bucket"];
    let put = henge().args(bench).envs(environment).output().unwrap();
    assert!(put.status.success(), "{}", stderr(&put));
    // It is no root key.
    let refused = henge().args(["key", "list", "--admin", &server.admin_address()]).envs(environment).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stdout(&server.command(&["key", "list"])).contains("app"));
    let again = server.command(&["key", "create", "app"]);
    assert_eq!(again.status.code(), Some(1), "names are unique");
    assert!(server.command(&["key", "delete", "app"]).status.success());
    let refused = henge().args(bench).envs(environment).output().unwrap();
    assert!(stderr(&refused).contains("InvalidAccessKeyId"), "{}", stderr(&refused));
    assert_eq!(server.command(&["key", "delete", "app"]).status.code(), Some(1));
}

#[test]
fn health_metrics_and_status() {
    let directory = TestDir::new("health");
    let server = Server::start(directory.path());
    assert_eq!(server.admin("GET", "/health/live", None).unwrap().status, 200);
    assert_eq!(request(&server.s3_address(), "GET", "/health/ready", None).unwrap().status, 200);
    let metrics = server.admin("GET", "/metrics", None).unwrap();
    assert!(metrics.status == 200 && metrics.text.contains("henge_"), "{}", metrics.text);
    assert!(!metrics.text.contains(server.cluster["secret_key"].as_str().unwrap()));
    assert_eq!(server.admin("GET", "/v1/keys", None).unwrap().status, 401);

    let status = server.command(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(2), "one copy is at risk");
    let report: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&report["version"], &report["verdict"]), (&1.into(), &"at_risk".into()));
    assert!(report["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()));
    let node = &report["nodes"][0];
    assert_eq!((&node["id"], &node["state"], &node["generation"]), (&1.into(), &"up".into(), &1.into()));
    assert!(node["disks"][0]["total_bytes"].as_u64() > Some(0));
    assert!(report["groups"].as_array().is_some_and(|groups| groups.len() == 2));
    for field in ["total", "degraded", "last_copy", "corrupt", "lost"] {
        assert!(report["chunks"][field].is_u64(), "{field}");
    }
    assert!(report["repair"]["queued_bytes"].is_u64() && report["repair"].get("eta_s").is_some());
    let shown = server.command(&["status"]);
    assert!(stdout(&shown).starts_with("AT RISK"), "{}", stdout(&shown));
}

#[test]
fn metrics_need_rights_where_others_can_connect() {
    let directory = TestDir::new("far");
    // The later flag wins.
    let mut server = henge();
    server.args(["server", "--s3", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--cluster", "127.0.0.1:0", "--data"]);
    let mut child = server
        .arg(directory.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let admin = crate::harness::wait_for("the server's start", || {
        let text = std::fs::read_to_string(directory.path().join("cluster.json")).ok()?;
        let cluster: Value = serde_json::from_str(&text).unwrap();
        let address = cluster["nodes"][0]["admin"].as_str().unwrap().replace("0.0.0.0", "127.0.0.1");
        request(&address, "GET", "/health/ready", None).filter(|answer| answer.status == 200).map(|_| address)
    });
    let token = std::fs::read_to_string(directory.path().join("monitoring-token")).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    for path in ["/metrics", "/status"] {
        assert_eq!(request(&admin, "GET", path, None).unwrap().status, 401);
        assert_eq!(request(&admin, "GET", path, Some("Bearer nonsense")).unwrap().status, 401);
        assert_eq!(request(&admin, "GET", path, Some(&bearer)).unwrap().status, 200);
    }
    assert_eq!(request(&admin, "GET", "/v1/keys", Some(&bearer)).unwrap().status, 401, "looking is not changing");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn serves_https() {
    let directory = TestDir::new("https");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let data = directory.path().join("data");
    let flags = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let server = Server::start_with(&data, &flags, &[]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = std::net::TcpStream::connect(server.s3_address()).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    use std::io::{Read, Write};
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // The server may close without the closing alert.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    // Plain HTTP on that port is no way in.
    assert!(request(&server.s3_address(), "GET", "/health/ready", None).is_none_or(|answer| answer.status != 200));
}
