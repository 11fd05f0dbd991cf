//! Root credentials and the monitoring token: where they come from, where they are kept, and how they are compared.
//!
//! They are never printed by `Debug`, never logged, never in arguments; only [`show_once`] writes them, to a terminal.

use base::env::{Random, RandomExt};
use std::fmt;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};
use crate::private_file;

/// Environment variables that set the root credentials.
pub const USER_VARIABLE: &str = "HENGE_ROOT_USER";
pub const PASSWORD_VARIABLE: &str = "HENGE_ROOT_PASSWORD";

const ACCESS_KEY_LEN: usize = 20;
const SECRET_KEY_LEN: usize = 40;

/// What AWS and others accept; shorter ones are typing errors or worse.
const ACCESS_KEY_LEN_MIN: usize = 3;
const SECRET_KEY_LEN_MIN: usize = 8;
const KEY_LEN_MAX: usize = 128;

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Where root credentials were found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Environment,
    File,
    /// Made and stored just now.
    Made,
}

/// The root credentials of the node in `data`: the environment's, or those of an earlier start, or fresh ones.
pub fn load_or_make(data: &Path, random: &dyn Random) -> Result<(Credentials, Origin), Failure> {
    if let Some(credentials) = from_environment()? {
        return Ok((credentials, Origin::Environment));
    }
    if let Some(kept) = kept(data)? {
        return Ok((kept, Origin::File));
    }
    let access_key = draw(random, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", ACCESS_KEY_LEN);
    let made = Credentials { access_key, secret_key: draw_secret(random) };
    store(data, &made)?;
    Ok((made, Origin::Made))
}

/// Those in the file of the node in `data`; `None` when it has none.
pub fn kept(data: &Path) -> Result<Option<Credentials>, Failure> {
    let path = file_of(data);
    let text = private_file::read(&path).context(|| format!("{} cannot be read", path.display()))?;
    let unusable = || {
        Failure(format!(
            "{} has no aws_access_key_id and aws_secret_access_key of usable length; restore it, or remove it to have new \
             root credentials made",
            path.display()
        ))
    };
    text.map(|text| parse(&text).ok_or_else(unusable)).transpose()
}

/// A secret that nobody has had.
pub fn draw_secret(random: &dyn Random) -> String {
    draw(random, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", SECRET_KEY_LEN)
}

/// Keeps root credentials for later starts of the node in `data`.
pub fn store(data: &Path, credentials: &Credentials) -> Result<(), Failure> {
    let path = file_of(data);
    private_file::replace(&path, format(credentials).as_bytes())
        .context(|| format!("{} cannot be written", path.display()))
}

/// From `HENGE_ROOT_USER` and `HENGE_ROOT_PASSWORD`; `None` when neither is set.
pub fn from_environment() -> Result<Option<Credentials>, Failure> {
    let read = |variable| match std::env::var(variable) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure(format!("{variable} is not valid UTF-8"))),
    };
    match (read(USER_VARIABLE)?, read(PASSWORD_VARIABLE)?) {
        (None, None) => Ok(None),
        (Some(access_key), Some(secret_key)) => {
            let credentials = Credentials { access_key, secret_key };
            if usable(&credentials) { Ok(Some(credentials)) } else { Err(Failure(unusable_in_environment())) }
        }
        _ => Err(Failure(format!("set both {USER_VARIABLE} and {PASSWORD_VARIABLE}, or neither"))),
    }
}

fn unusable_in_environment() -> String {
    format!("{USER_VARIABLE} {}, and {PASSWORD_VARIABLE} {}", rule_of_access_keys(), rule_of_secrets())
}

fn rule_of_access_keys() -> String {
    format!("must have {ACCESS_KEY_LEN_MIN} to {KEY_LEN_MAX} visible ASCII characters without '/', ':', '=' and ','")
}

fn rule_of_secrets() -> String {
    format!("{SECRET_KEY_LEN_MIN} to {KEY_LEN_MAX} visible ASCII characters")
}

/// Whether they may be the root user's; says what they must be like.
pub fn check(credentials: &Credentials) -> Result<(), Failure> {
    if usable(credentials) {
        return Ok(());
    }
    Err(Failure(format!("the access key {}, and the secret {}", rule_of_access_keys(), rule_of_secrets())))
}

fn usable(credentials: &Credentials) -> bool {
    let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    let access = &credentials.access_key;
    let secret = &credentials.secret_key;
    (ACCESS_KEY_LEN_MIN..=KEY_LEN_MAX).contains(&access.len())
        && (SECRET_KEY_LEN_MIN..=KEY_LEN_MAX).contains(&secret.len())
        && visible(access)
        && visible(secret)
        // These separate the parts of an `Authorization` header.
        && !access.contains(['/', ':', '=', ','])
}

/// Where a node keeps the credentials that were made for it.
pub fn file_of(data: &Path) -> PathBuf {
    data.join("credentials")
}

/// In the form of the AWS shared credentials file.
fn format(credentials: &Credentials) -> String {
    format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        credentials.access_key, credentials.secret_key
    )
}

fn parse(text: &str) -> Option<Credentials> {
    let value_of = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let credentials =
        Credentials { access_key: value_of("aws_access_key_id")?, secret_key: value_of("aws_secret_access_key")? };
    usable(&credentials).then_some(credentials)
}

fn draw(random: &dyn Random, alphabet: &[u8], len: usize) -> String {
    (0..len).map(|_| char::from(alphabet[random.below(alphabet.len() as u64) as usize])).collect()
}

/// The read-only bearer token for metrics and status, for scrapers that should not know the root secret.
pub fn load_or_make_monitoring_token(data: &Path, random: &dyn Random) -> Result<String, Failure> {
    let path = monitoring_token_file_of(data);
    if let Some(text) = private_file::read(&path).context(|| format!("{} cannot be read", path.display()))? {
        let token = text.trim().to_owned();
        if token.len() >= SECRET_KEY_LEN_MIN {
            return Ok(token);
        }
        return Err(Failure(format!("{} holds no token; remove it to have a new one made", path.display())));
    }
    let token = draw(random, b"abcdefghijklmnopqrstuvwxyz0123456789", SECRET_KEY_LEN);
    private_file::replace(&path, format!("{token}\n").as_bytes())
        .context(|| format!("{} cannot be written", path.display()))?;
    Ok(token)
}

pub fn monitoring_token_file_of(data: &Path) -> PathBuf {
    data.join("monitoring-token")
}

/// Tells the operator how to use fresh credentials: as lines to paste, if this is a terminal, else where they are.
pub fn show_once(credentials: &Credentials, data: &Path, s3: SocketAddr, region: &str, https: bool) {
    let path = file_of(data);
    if !std::io::stdout().is_terminal() {
        println!("root credentials were made and kept in {}", path.display());
        return;
    }
    let scheme = if https { "https" } else { "http" };
    println!("Root credentials were made. They are kept in {} and not shown again. To use them:\n", path.display());
    println!("  export AWS_ACCESS_KEY_ID={}", credentials.access_key);
    println!("  export AWS_SECRET_ACCESS_KEY={}", credentials.secret_key);
    println!("  export AWS_DEFAULT_REGION={region}");
    println!("  export AWS_ENDPOINT_URL={scheme}://{s3}");
    println!("  aws s3 mb s3://my-bucket\n");
}

/// Whether two secrets are equal, in a time that tells nothing but their lengths.
pub fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |difference, (x, y)| difference | std::hint::black_box(x ^ y));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::ScratchDir;

    struct Counting(std::sync::atomic::AtomicU64);

    impl Random for Counting {
        fn next_u64(&self) -> u64 {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
    }

    #[test]
    fn made_once_and_kept_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = ScratchDir::new("credentials");
        let random = Counting(1.into());
        let (made, origin) = load_or_make(directory.path(), &random).unwrap();
        assert_eq!(origin, Origin::Made);
        assert_eq!((made.access_key.len(), made.secret_key.len()), (20, 40));
        assert_eq!(load_or_make(directory.path(), &random).unwrap(), (made.clone(), Origin::File));
        let mode = std::fs::metadata(file_of(directory.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(&made.secret_key));
        std::fs::write(file_of(directory.path()), "nothing").unwrap();
        assert!(load_or_make(directory.path(), &random).unwrap_err().0.contains("aws_access_key_id"));
    }

    #[test]
    fn secrets_compare() {
        assert!(equal_in_constant_time(b"abc", b"abc"));
        assert!(!equal_in_constant_time(b"abc", b"abd"));
        assert!(!equal_in_constant_time(b"abc", b"ab"));
    }
}
