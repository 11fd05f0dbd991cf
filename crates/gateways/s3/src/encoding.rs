//! Text forms of bytes: percent-encoding, hex, base64 (RFC 4648), and the tokens that clients carry for us.

/// Appends `bytes` percent-encoded as SigV4 and S3 do: all but `A-Z a-z 0-9 - _ . ~` (and `/` where `slash`) becomes
/// `%XX` in upper case.
pub fn percent_encode_into(out: &mut String, bytes: &[u8], slash: bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') || (slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// [`percent_encode_into`] to a new string; `/` stays.
pub fn percent_encode_path(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 16);
    percent_encode_into(&mut out, bytes, true);
    out
}

/// Decodes `%XX` once. `None` when an escape is cut or not hexadecimal. `plus`: `+` means a space (query strings).
pub fn percent_decode(text: &str, plus: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (hex_digit(bytes.next()?)?, hex_digit(bytes.next()?)?);
                out.push(high << 4 | low);
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    Some(out)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    }
    out
}

/// The `N` bytes that `2 * N` hex digits of either case name; `None` for anything else.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(out)
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = u32::from(group[0]) << 16
            | u32::from(*group.get(1).unwrap_or(&0)) << 8
            | u32::from(*group.get(2).unwrap_or(&0));
        for position in 0..4 {
            if position <= group.len() {
                out.push(char::from(BASE64[(word >> (18 - 6 * position)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

/// Decodes standard base64; `None` when the alphabet, the length, the padding or its spare bits are wrong.
pub fn unbase64(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let padding = bytes.iter().rev().take_while(|&&b| b == b'=').count();
    if padding > 2 {
        return None;
    }
    let digits = &bytes[..bytes.len() - padding];
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut word = 0u32;
        for &digit in group {
            word = word << 6 | u32::from(base64_digit(digit)?);
        }
        word <<= 6 * (4 - group.len());
        let decoded = word.to_be_bytes();
        let taken = group.len() - 1;
        if decoded[1 + taken..].iter().any(|&spare| spare != 0) {
            return None;
        }
        out.extend_from_slice(&decoded[1..1 + taken]);
    }
    Some(out)
}

fn base64_digit(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

/// A version id as clients see it: `null`, or 32 hex digits for its 16 bytes.
pub fn version_text(version: &[u8]) -> String {
    if version == b"null" { "null".to_owned() } else { hex(version) }
}

/// Parses [`version_text`]; `None` when no version could ever have this id.
pub fn version_bytes(text: &str) -> Option<bytes::Bytes> {
    if text == "null" {
        return Some(bytes::Bytes::from_static(b"null"));
    }
    unhex::<16>(text).map(|id| bytes::Bytes::copy_from_slice(&id))
}

/// The opaque continuation token of a listing that stopped after `key`: stateless, so it survives restarts and works
/// at every gateway.
pub fn continuation_token(key: &[u8]) -> String {
    let mut raw = Vec::with_capacity(key.len() + 5);
    raw.push(b'1');
    raw.extend_from_slice(&base::checksum::crc32c(b"list", key).to_le_bytes());
    raw.extend_from_slice(key);
    base64(&raw)
}

/// The key in a [`continuation_token`]; `None` when we did not make it.
pub fn continuation_key(token: &str) -> Option<Vec<u8>> {
    let raw = unbase64(token)?;
    let (head, key) = raw.split_at_checked(5)?;
    let genuine = head[0] == b'1' && head[1..] == base::checksum::crc32c(b"list", key).to_le_bytes();
    genuine.then(|| key.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percent_encoding_round_trips(bytes: Vec<u8>) {
            let text = percent_encode_path(&bytes);
            prop_assert!(text.is_ascii());
            prop_assert_eq!(percent_decode(&text, true), Some(bytes));
        }

        #[test]
        fn base64_round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(unbase64(&base64(&bytes)), Some(bytes));
        }

        #[test]
        fn hex_round_trips(bytes: [u8; 16]) {
            prop_assert_eq!(unhex::<16>(&hex(&bytes)), Some(bytes));
        }

        #[test]
        fn tokens_round_trip_and_garbage_is_refused(key: Vec<u8>, garbage in "[A-Za-z0-9+/]{0,40}") {
            prop_assert_eq!(continuation_key(&continuation_token(&key)), Some(key));
            prop_assert_eq!(continuation_key(&garbage), None);
        }

        #[test]
        fn decoders_never_panic(text: String) {
            let _ = (percent_decode(&text, true), unbase64(&text), unhex::<16>(&text), version_bytes(&text));
        }
    }

    #[test]
    fn known_forms() {
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
        assert_eq!(base64(b"fooba"), "Zm9vYmE=");
        assert_eq!(base64(b"foob"), "Zm9vYg==");
        assert_eq!(unbase64("Zm9vYh=="), None, "spare bits must be zero, so that one value has one form");
        assert_eq!(unbase64("A==="), None);
        assert_eq!(percent_encode_path(b"quux ab/\xc3\xa9+"), "quux%20ab/%C3%A9%2B");
        assert_eq!(percent_decode("%2", false), None);
        assert_eq!(percent_decode("%zz", false), None);
        assert_eq!(percent_decode("%252F", false), Some(b"%2F".to_vec()), "decoded once, never twice");
        assert_eq!(version_bytes("null").unwrap(), "null");
        assert_eq!(version_bytes(""), None);
    }
}
