//! Who made the policy of a form. The signature covers the policy's text; the policy says what the form may be.

use super::claim::credential_parts;
use super::proof::{SigningKey, compare_policy, compare_policy_v2};
use super::{Authenticated, KeySource, no_match, unknown_key};
use crate::encoding::{unbase64, unhex};
use crate::error::{Code, Result, S3Error};
use crate::form::{Form, Signature};

/// Proves who signed the form's policy; `None` when nobody did.
pub async fn authenticate_form(form: &Form, keys: &impl KeySource, region: &str) -> Result<Option<Authenticated>> {
    let policy = form.policy().unwrap_or_default();
    let signer = match form.signature()? {
        Signature::None => return Ok(None),
        Signature::V2 { access_key, signature } => {
            let secret = keys.secret(access_key).await?.ok_or_else(unknown_key)?;
            let signature = unbase64(signature).and_then(|raw| <[u8; 20]>::try_from(raw).ok()).ok_or_else(no_match)?;
            compare_policy_v2(&secret.0, policy, &signature, access_key)
        }
        Signature::V4 { credential, signature } => {
            let invalid =
                |why: &str| S3Error::new(Code::InvalidArgument, format!("The form is not signed well: {why}."));
            let (access_key, scope) =
                credential_parts(credential).ok_or_else(|| invalid("the credential is invalid"))?;
            if scope.service != "s3" || scope.region != region {
                return Err(invalid(&format!("the credential must be for the service s3 and the region {region}")));
            }
            let date = form.get("x-amz-date").filter(|_| form.signed_ms().is_some());
            if !date.is_some_and(|date| date.starts_with(&scope.date)) {
                return Err(invalid("X-Amz-Date is no date, or not that of the credential"));
            }
            let secret = keys.secret(&access_key).await?.ok_or_else(unknown_key)?;
            let signature = unhex(signature).ok_or_else(no_match)?;
            compare_policy(&SigningKey::derive(&secret.0, &scope), policy, &signature, &access_key)
        }
    };
    signer.map(Some).ok_or_else(no_match)
}

#[cfg(test)]
mod tests {
    use super::super::{Scope, Secret};
    use super::*;
    use crate::encoding::{base64, hex};
    use futures_util::FutureExt;
    use hmac::{Hmac, KeyInit, Mac};

    struct OneKey;

    impl KeySource for OneKey {
        async fn secret(&self, access_key: &str) -> Result<Option<Secret>> {
            Ok((access_key == "access").then(|| Secret::new("secret".to_owned())))
        }
    }

    /// The access key, and how it signed.
    fn prove(fields: &[(&str, &str)]) -> std::result::Result<Option<String>, Code> {
        let proven = authenticate_form(&Form::of(fields), &OneKey, "us-east-1").now_or_never().unwrap();
        let words = |caller: Authenticated| format!("{} {}", caller.access_key(), caller.signature_version());
        proven.map(|caller| caller.map(words)).map_err(|error| error.code)
    }

    #[test]
    fn only_the_right_signature_proves_who_made_the_policy() {
        let scope = Scope { date: "20240102".into(), region: "us-east-1".into(), service: "s3".into() };
        let v4 = hex(&SigningKey::derive("secret", &scope).sign("cG9saWN5"));
        let signed = |policy: &str, credential: &str, date: &str, signature: &str| {
            prove(&[
                ("policy", policy),
                ("x-amz-algorithm", "AWS4-HMAC-SHA256"),
                ("x-amz-credential", credential),
                ("x-amz-date", date),
                ("x-amz-signature", signature),
            ])
        };
        let (credential, date) = ("access/20240102/us-east-1/s3/aws4_request", "20240102T000000Z");
        assert_eq!(signed("cG9saWN5", credential, date, &v4), Ok(Some("access AWS4-HMAC-SHA256".to_owned())));
        assert_eq!(signed("cG9saWN6", credential, date, &v4), Err(Code::SignatureDoesNotMatch));
        for (index, digit) in v4.char_indices() {
            let mut forged = v4.clone();
            forged.replace_range(index..=index, if digit == '0' { "1" } else { "0" });
            assert_eq!(signed("cG9saWN5", credential, date, &forged), Err(Code::SignatureDoesNotMatch));
        }
        assert_eq!(signed("cG9saWN5", credential, "20240103T000000Z", &v4), Err(Code::InvalidArgument));
        assert_eq!(signed("cG9saWN5", &credential.replace("us-", "eu-"), date, &v4), Err(Code::InvalidArgument));
        assert_eq!(signed("cG9saWN5", &credential.replace("s3", "iam"), date, &v4), Err(Code::InvalidArgument));
        assert_eq!(
            signed("cG9saWN5", &credential.replace("access", "other"), date, &v4),
            Err(Code::InvalidAccessKeyId)
        );
        assert_eq!(prove(&[("key", "k")]), Ok(None));
    }

    #[test]
    fn the_older_form_signature_is_compared_as_well() {
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(b"secret").unwrap();
        mac.update(b"cG9saWN5");
        let signature = base64(&mac.finalize().into_bytes());
        let signed = |access_key: &str, policy: &str, signature: &str| {
            prove(&[("policy", policy), ("awsaccesskeyid", access_key), ("signature", signature)])
        };
        assert_eq!(signed("access", "cG9saWN5", &signature), Ok(Some("access AWS".to_owned())));
        assert_eq!(signed("access", "cG9saWN6", &signature), Err(Code::SignatureDoesNotMatch));
        assert_eq!(signed("other", "cG9saWN5", &signature), Err(Code::InvalidAccessKeyId));
        for bad in ["", "AAAA", &signature.to_lowercase()] {
            assert_eq!(signed("access", "cG9saWN5", bad), Err(Code::SignatureDoesNotMatch), "{bad}");
        }
    }
}
