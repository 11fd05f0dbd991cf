//! The one place where signatures are compared.

use super::canonical::{CanonicalRequest, Scope};
use super::claim::Claim;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use std::sync::Arc;

type HmacSha256 = Hmac<Sha256>;

/// A caller whose signature was compared and matched. Its field is private to this module, so that nothing else can
/// make one: a handler that asks for an `Authenticated` cannot be reached without the comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    proven: Arc<Identity>,
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    access_key: String,
    scheme: Scheme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    V4,
    /// Only of forms.
    V2,
}

impl Authenticated {
    pub fn access_key(&self) -> &str {
        &self.proven.access_key
    }

    /// As conditions on `s3:signatureversion` name it.
    pub fn signature_version(&self) -> &'static str {
        match self.proven.scheme {
            Scheme::V4 => "AWS4-HMAC-SHA256",
            Scheme::V2 => "AWS",
        }
    }

    fn new(access_key: &str, scheme: Scheme) -> Authenticated {
        Authenticated { proven: Arc::new(Identity { access_key: access_key.to_owned(), scheme }) }
    }
}

/// The key of one access key, day, region and service. It shows itself to nobody.
pub struct SigningKey([u8; 32]);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

impl SigningKey {
    pub fn derive(secret: &str, scope: &Scope) -> SigningKey {
        let date = hmac(format!("AWS4{secret}").as_bytes(), scope.date.as_bytes());
        let region = hmac(&date, scope.region.as_bytes());
        let service = hmac(&region, scope.service.as_bytes());
        SigningKey(hmac(&service, b"aws4_request"))
    }

    #[cfg(test)]
    pub fn sign(&self, text: &str) -> [u8; 32] {
        hmac(&self.0, text.as_bytes())
    }

    /// Compares in constant time.
    pub fn verifies(&self, text: &str, signature: &[u8; 32]) -> bool {
        let mut mac = keyed(&self.0);
        mac.update(text.as_bytes());
        mac.verify_slice(signature).is_ok()
    }
}

/// Compares the signature of `claim` with the right one for the request. The path is tried in S3's own encoding, and
/// then as it stood on the wire, because some clients sign what they send.
pub(super) fn compare(key: &SigningKey, request: &CanonicalRequest<'_>, claim: &Claim) -> Option<Authenticated> {
    let matches = [request.text(), request.text_with_raw_path()].into_iter().flatten().any(|canonical| {
        key.verifies(&super::canonical::string_to_sign(&canonical, &claim.timestamp, &claim.scope), &claim.signature)
    });
    matches.then(|| Authenticated::new(&claim.access_key, Scheme::V4))
}

/// Compares the signature of a form's policy, Version 4.
pub(super) fn compare_policy(
    key: &SigningKey,
    policy: &str,
    signature: &[u8; 32],
    access_key: &str,
) -> Option<Authenticated> {
    key.verifies(policy, signature).then(|| Authenticated::new(access_key, Scheme::V4))
}

/// Compares the signature of a form's policy, Version 2, in constant time.
pub(super) fn compare_policy_v2(
    secret: &str,
    policy: &str,
    signature: &[u8; 20],
    access_key: &str,
) -> Option<Authenticated> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(policy.as_bytes());
    let genuine = mac.verify_slice(signature).is_ok();
    genuine.then(|| Authenticated::new(access_key, Scheme::V2))
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = keyed(key);
    mac.update(data);
    mac.finalize().into_bytes().into()
}
