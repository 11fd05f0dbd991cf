//! The query string, decoded once.

use crate::encoding::percent_decode;
use crate::error::{Code, Result, S3Error};

/// Names and values in the order of the request.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub fn read(raw: &str) -> Result<Query> {
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(text, true).and_then(|bytes| String::from_utf8(bytes).ok());
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                return Err(S3Error::new(Code::InvalidURI, "The query string could not be decoded."));
            };
            if pairs.iter().any(|(given, _)| *given == name) {
                let message = format!("The query parameter {name:?} is given more than once.");
                return Err(S3Error::new(Code::InvalidArgument, message));
            }
            pairs.push((name, value));
        }
        Ok(Query { pairs })
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A parameter that is a whole number; `None` when it is absent or empty.
    pub fn number(&self, name: &str) -> Result<Option<u32>> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse::<u32>().ok().filter(|&n| n <= i32::MAX as u32).map(Some).ok_or_else(|| {
                S3Error::new(Code::InvalidArgument, format!("The value of {name} must be a whole number from 0 on."))
                    .field("ArgumentName", name)
                    .field("ArgumentValue", text)
            }),
        }
    }
}
