//! An S3 client that sends what it is told, byte by byte, and shows the answer as it came.

use crate::harness::{Server, stdout};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

/// A client that signs every request, and shows the answer as it came.
pub struct S3 {
    pub address: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

pub struct Answer {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text of the first element called `name`.
    pub fn element(&self, name: &str) -> Option<String> {
        self.elements(name).into_iter().next()
    }

    pub fn elements(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let pieces = text.split(&open).skip(1);
        pieces.filter_map(|piece| piece.split(&close).next().map(str::to_owned)).collect()
    }

    /// Status and error code.
    pub fn outcome(&self) -> (u16, String) {
        (self.status, self.element("Code").unwrap_or_default())
    }
}

impl S3 {
    pub fn of(server: &Server) -> S3 {
        let field = |name: &str| server.cluster[name].as_str().unwrap().to_owned();
        S3 {
            address: server.s3_address(),
            access_key: field("access_key"),
            secret_key: field("secret_key"),
            region: field("region"),
        }
    }

    /// A new access key, with a policy of its own or without.
    pub fn of_new_key(server: &Server, name: &str, policy: Option<&std::path::Path>) -> S3 {
        let mut args = vec!["key", "create", name];
        if let Some(policy) = policy {
            args.extend(["--policy", policy.to_str().unwrap()]);
        }
        let printed = stdout(&server.command(&args));
        let value = |variable: &str| {
            let rest = printed.lines().find_map(|line| line.strip_prefix("export ")?.strip_prefix(variable));
            rest.unwrap_or_else(|| panic!("{printed}")).trim_start_matches('=').to_owned()
        };
        let (access_key, secret_key) = (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"));
        S3 { access_key, secret_key, ..S3::of(server) }
    }

    /// A request that nobody has signed.
    pub fn anonymous(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\n{lines}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        read_answer(stream, method)
    }

    pub fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"")
    }

    pub fn put(&self, target: &str, body: &[u8]) -> Answer {
        self.send("PUT", target, &[], body)
    }

    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let hash = hex(&Sha256::digest(body));
        self.send_raw(method, target, headers, &hash, body.len(), body)
    }

    /// A request without a body whose connection stays open as far as this client is concerned. The answer, if the server
    /// ends the connection within two seconds.
    pub fn send_and_stay(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Option<Answer> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = self.head(method, target, headers, &hex(&Sha256::digest(b"")), 0);
        stream.write_all(head.replace("Connection: close\r\n", "").as_bytes()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let mut raw = Vec::new();
        let ended = std::io::Read::read_to_end(&mut stream, &mut raw).is_ok();
        ended.then(|| answer_in(raw, method))
    }

    /// Claims `hash` and `length` of the body, whatever they are, and sends `body`.
    pub fn send_raw(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        hash: &str,
        length: usize,
        body: &[u8],
    ) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = self.head(method, target, headers, hash, length);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        if body.len() < length {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        read_answer(stream, method)
    }

    fn head(&self, method: &str, target: &str, headers: &[(&str, &str)], hash: &str, length: usize) -> String {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let date = amz_date(now_s);
        let mut signed: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        signed.push(("host".into(), self.address.clone()));
        signed.push(("x-amz-content-sha256".into(), hash.into()));
        signed.push(("x-amz-date".into(), date.clone()));
        signed.sort();
        let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        pairs.sort();
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{method}\n{path}\n{}\n{lines}\n{names}\n{hash}", pairs.join("&"));
        let scope = format!("{}/{}/s3/aws4_request", &date[..8], self.region);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
        let secret = format!("AWS4{}", self.secret_key);
        let key = [&date[..8], &self.region, "s3", "aws4_request"]
            .iter()
            .fold(secret.into_bytes(), |key, part| hmac(&key, part.as_bytes()));
        let signature = hex(&hmac(&key, text.as_bytes()));
        let lines: String = signed.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "{method} {target} HTTP/1.1\r\n{lines}Authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, \
             SignedHeaders={names}, Signature={signature}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
            self.access_key
        )
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `yyyymmddThhmmssZ` (days to a date after Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn amz_date(now_s: u64) -> String {
    let days = now_s / 86_400 + 719_468;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + days / 146_097 * 400 + u64::from(month <= 2);
    let (day, second) = (of_year - (153 * shifted + 2) / 5 + 1, now_s % 86_400);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn read_answer(mut stream: TcpStream, method: &str) -> Answer {
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    answer_in(raw, method)
}

fn answer_in(raw: Vec<u8>, method: &str) -> Answer {
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n").expect("the answer has a head");
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let split = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: Vec<(String, String)> = lines.filter_map(split).collect();
    let answer = Answer { status, headers, body: raw[end + 4..].to_vec() };
    let length: Option<usize> = answer.header("content-length").map(|text| text.parse().unwrap());
    if method != "HEAD" && status != 304 && status != 204 {
        assert_eq!(length, Some(answer.body.len()), "the answer is as long as it says");
    } else {
        assert!(answer.body.is_empty(), "this answer has no body");
    }
    answer
}
