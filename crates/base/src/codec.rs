//! Little cursors for formats that are written down as byte maps. All integers are little-endian unless the name
//! says `_be`. Reading never panics: what does not fit is a [`DecodeError`] that says where.

use std::fmt;

/// What could not be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    pub what: &'static str,
    pub offset: usize,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.offset)
    }
}

impl std::error::Error for DecodeError {}

/// Reads a byte map from the front.
pub struct Reader<'a> {
    data: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Reader<'a> {
        Reader { data, offset: 0 }
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn remaining(&self) -> usize {
        self.data.len() - self.offset
    }

    pub fn error(&self, what: &'static str) -> DecodeError {
        DecodeError { what, offset: self.offset }
    }

    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        if len > self.remaining() {
            return Err(self.error(what));
        }
        let taken = &self.data[self.offset..self.offset + len];
        self.offset += len;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        Ok(u128::from_le_bytes(self.array(what)?))
    }

    pub fn u32_be(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub fn u64_be(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }
}

/// Appends to a byte map.
pub trait Writer {
    fn put_bytes(&mut self, data: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put_bytes(&[value]);
    }
    fn put_u16(&mut self, value: u16) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_u128(&mut self, value: u128) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_u32_be(&mut self, value: u32) {
        self.put_bytes(&value.to_be_bytes());
    }
    fn put_u64_be(&mut self, value: u64) {
        self.put_bytes(&value.to_be_bytes());
    }
}

impl Writer for Vec<u8> {
    fn put_bytes(&mut self, data: &[u8]) {
        self.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_round_trip(a: u8, b: u16, c: u32, d: u64, e: u128) {
            let mut out = Vec::new();
            out.put_u8(a);
            out.put_u16(b);
            out.put_u32(c);
            out.put_u64_be(d);
            out.put_u128(e);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.u8("a"), Ok(a));
            prop_assert_eq!(reader.u16("b"), Ok(b));
            prop_assert_eq!(reader.u32("c"), Ok(c));
            prop_assert_eq!(reader.u64_be("d"), Ok(d));
            prop_assert_eq!(reader.u128("e"), Ok(e));
            prop_assert_eq!(reader.remaining(), 0);
            prop_assert!(reader.u8("end").is_err());
        }
    }
}
