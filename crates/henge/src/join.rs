//! How a node becomes a member: the token that gives the right to, and the one question and answer by which it is used.
//!
//! A token is made by a member, may be used once and expires. It carries the fingerprint of the cluster's certificate
//! authority, so that the secret is only ever shown to a member of that cluster; the cluster keeps a hash of it.

use base::checksum::crc32c;
use base::env::{Random, RandomExt};
use base::ids::ClusterId;
use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::env::net::frame::{self, Kind};
use crate::env::net::tls::{self, Fingerprint};
use crate::failure::{Context, Failure};

const TOKEN_PREFIX: &str = "henge1-";
const ID_LEN: usize = 8;
const SECRET_LEN: usize = 32;

/// Id, secret, fingerprint, cluster, CRC-32C of these.
const TOKEN_LEN: usize = ID_LEN + SECRET_LEN + 32 + 16 + 4;

/// How long it may take to connect to a member, and to be admitted.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const ADMISSION_MAX: Duration = Duration::from_secs(60);

/// A joining token. Secret: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: [u8; ID_LEN],
    secret: [u8; SECRET_LEN],
    pub fingerprint: Fingerprint,
    pub cluster: ClusterId,
}

impl Token {
    pub fn draw(random: &dyn Random, fingerprint: Fingerprint, cluster: ClusterId) -> Token {
        let mut token = Token { id: [0; ID_LEN], secret: [0; SECRET_LEN], fingerprint, cluster };
        random.fill(&mut token.id);
        random.fill(&mut token.secret);
        token
    }

    /// `henge1-` and 184 hexadecimal digits.
    pub fn to_text(&self) -> String {
        let mut raw = Vec::with_capacity(TOKEN_LEN);
        raw.extend_from_slice(&self.id);
        raw.extend_from_slice(&self.secret);
        raw.extend_from_slice(&self.fingerprint);
        raw.extend_from_slice(&self.cluster.0.to_be_bytes());
        raw.extend_from_slice(&crc32c(&[], &raw).to_be_bytes());
        format!("{TOKEN_PREFIX}{}", hex(&raw))
    }

    /// What is wrong never quotes the token.
    pub fn parse(text: &str) -> Result<Token, Failure> {
        let refuse =
            |why: &str| Failure(format!("the join token {why}; make one with `henge token create` on a member"));
        let digits = text.trim().strip_prefix(TOKEN_PREFIX).ok_or_else(|| refuse("does not begin with henge1-"))?;
        let raw = unhex(digits).filter(|raw| raw.len() == TOKEN_LEN).ok_or_else(|| refuse("is incomplete"))?;
        let (body, sum) = raw.split_at(TOKEN_LEN - 4);
        if crc32c(&[], body).to_be_bytes() != sum {
            return Err(refuse("has a typing error"));
        }
        let part = |from: usize, len: usize| &body[from..from + len];
        Ok(Token {
            id: part(0, ID_LEN).try_into().expect("the length fits"),
            secret: part(ID_LEN, SECRET_LEN).try_into().expect("the length fits"),
            fingerprint: part(ID_LEN + SECRET_LEN, 32).try_into().expect("the length fits"),
            cluster: ClusterId(u128::from_be_bytes(
                part(ID_LEN + SECRET_LEN + 32, 16).try_into().expect("the length fits"),
            )),
        })
    }

    pub fn id(&self) -> String {
        hex(&self.id)
    }

    /// What the cluster keeps.
    pub fn secret_hash(&self) -> [u8; 32] {
        hash(&self.secret)
    }

    pub fn secret(&self) -> Bytes {
        Bytes::copy_from_slice(&self.secret)
    }
}

/// SHA-256.
pub fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

pub fn hex(raw: &[u8]) -> String {
    raw.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.as_bytes().chunks(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

/// What one who wants to join says. Sent only after the other side's certificate was checked. Secret: no `Debug`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct JoinRequest {
    /// [`crate::env::net::hello::PROTOCOL_VERSION`] of the joiner.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    #[prost(string, tag = "2")]
    pub token_id: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub secret: Bytes,
    /// What only this joiner knows, hashed: asking again after a crash gets the same node id.
    #[prost(bytes = "bytes", tag = "4")]
    pub joiner: Bytes,
    /// HOST:PORT of its cluster port.
    #[prost(string, tag = "5")]
    pub advertise: String,
    #[prost(string, tag = "6")]
    pub locality: String,
    #[prost(uint32, tag = "7")]
    pub feature_level_max: u32,
}

/// The answer: a refusal, or all that a member knows. Secret: no `Debug`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct JoinAnswer {
    /// A sentence; all else is empty then.
    #[prost(string, tag = "1")]
    pub refused: String,
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "3")]
    pub cluster: Bytes,
    #[prost(uint32, tag = "4")]
    pub cluster_generation: u32,
    #[prost(string, tag = "5")]
    pub certificate_pem: String,
    #[prost(string, tag = "6")]
    pub key_pem: String,
    #[prost(message, repeated, tag = "7")]
    pub contacts: Vec<Contact>,
    #[prost(string, tag = "8")]
    pub access_key: String,
    #[prost(string, tag = "9")]
    pub secret_key: String,
    #[prost(string, tag = "10")]
    pub region: String,
    /// The member's wall-clock time, for a warning.
    #[prost(uint64, tag = "11")]
    pub wall_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Contact {
    #[prost(uint32, tag = "1")]
    pub node: u32,
    #[prost(string, tag = "2")]
    pub address: String,
}

impl JoinAnswer {
    pub fn refuse(why: impl Into<String>) -> JoinAnswer {
        JoinAnswer { refused: why.into(), ..JoinAnswer::default() }
    }
}

macro_rules! secret_debug {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}
secret_debug!(JoinRequest);
secret_debug!(JoinAnswer);

/// Asks the member at `address` (HOST:PORT) for admission. `own`: this node's cluster port.
pub async fn ask(address: &str, own: SocketAddr, token: &Token, request: JoinRequest) -> Result<JoinAnswer, Failure> {
    let unreachable = |why: &dyn std::fmt::Display| {
        Failure(format!(
            "--join {address} cannot be reached ({why}): is a node running there, and is this its cluster address?"
        ))
    };
    let stream = timeout(CONNECT_MAX, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(&"no answer"))?
        .map_err(|error| unreachable(&error))?;
    let ends = stream.peer_addr().and_then(|there| Ok((there, stream.local_addr()?)));
    let (there, here) = ends.map_err(|error| unreachable(&error))?;
    if is_own(there, here, own) {
        return Err(Failure(format!("--join {address} is this node itself; give the cluster address of a member")));
    }
    let (connector, mismatch) = tls::connector_by_fingerprint(token.fingerprint);
    // Any member may answer: its certificate is checked by the authority's fingerprint, not by name.
    let connecting = connector.connect(tls::server_name(base::ids::NodeId(0)), stream);
    let connected = timeout(CONNECT_MAX, connecting).await.map_err(|_| unreachable(&"it does not speak"))?;
    let mut stream = connected.map_err(|error| {
        if mismatch.load(Ordering::Relaxed) {
            return Failure(format!(
                "the node at {address} is of another cluster than the token (its certificate authority is another); \
                 nothing was sent to it"
            ));
        }
        unreachable(&error)
    })?;
    let exchange = async {
        frame::write_greeting(&mut stream, Kind::Join, request.encode_to_vec().into()).await?;
        loop {
            match frame::read_greeting(&mut stream).await? {
                (Kind::Ping, _) => {}
                (Kind::JoinAnswer, head) => return JoinAnswer::decode(head).map_err(io::Error::other),
                _ => return Err(io::Error::other("it answers something else")),
            }
        }
    };
    let silent = || format!("the node at {address} does not admit this one; asking again with the same token is safe");
    let answer = timeout(ADMISSION_MAX, exchange).await.context(silent)?.context(silent)?;
    match answer.refused.as_str() {
        "" => Ok(answer),
        why => Err(Failure(format!("the cluster refuses this node: {why}"))),
    }
}

/// Whether a connection from `here` to `there` ends at this node's own port.
fn is_own(there: SocketAddr, here: SocketAddr, own: SocketAddr) -> bool {
    there == own || (own.ip().is_unspecified() && there.port() == own.port() && there.ip() == here.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::system_random;

    #[test]
    fn tokens_round_trip_and_every_typing_error_is_noticed() {
        let token = Token::draw(&system_random(), [3; 32], ClusterId(5));
        let text = token.to_text();
        assert_eq!(text.len(), TOKEN_PREFIX.len() + 2 * TOKEN_LEN);
        assert!(Token::parse(&format!(" {text}\n")).unwrap() == token);
        assert_eq!(token.id().len(), 16);
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            let wrong = String::from_utf8(wrong).unwrap();
            let failure = Token::parse(&wrong).err().unwrap_or_else(|| panic!("{at}"));
            assert!(!failure.0.contains(&wrong), "secrets are not quoted");
        }
        for wrong in ["", "henge1-", &text[..text.len() - 2], &format!("{text}00"), "henge1-é"] {
            assert!(Token::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text: String, digits in "henge1-[0-9a-f]{0,200}") {
            let _ = (Token::parse(&text), Token::parse(&digits), Token::parse(&format!("{TOKEN_PREFIX}{text}")));
        }
    }

    #[test]
    fn itself_is_known_under_any_name() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let any = address("0.0.0.0:9002");
        assert!(is_own(address("127.0.0.1:9002"), address("127.0.0.1:5"), address("127.0.0.1:9002")));
        assert!(is_own(address("10.0.0.1:9002"), address("10.0.0.1:5"), any));
        assert!(!is_own(address("10.0.0.2:9002"), address("10.0.0.1:5"), any));
        assert!(!is_own(address("127.0.0.1:9012"), address("127.0.0.1:5"), address("127.0.0.1:9002")));
    }
}
