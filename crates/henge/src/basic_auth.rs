//! HTTP Basic authentication (RFC 7617): how client commands prove to the admin port that they know the root secret.

use crate::credentials::Credentials;

/// The value of the `Authorization` header.
pub fn header_value(credentials: &Credentials) -> String {
    let pair = format!("{}:{}", credentials.access_key, credentials.secret_key);
    format!("Basic {}", base64(pair.as_bytes()))
}

/// RFC 4648, section 4, with padding.
fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(data.len().div_ceil(3) * 4);
    for group in data.chunks(3) {
        let mut bytes = [0; 3];
        bytes[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for position in 0..4 {
            let sextet = (bits >> (18 - 6 * position)) as usize & 63;
            out.push(if position <= group.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfcs() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        let credentials = Credentials { access_key: "Aladdin".into(), secret_key: "open sesame".into() };
        assert_eq!(header_value(&credentials), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
