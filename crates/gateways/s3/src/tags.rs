//! Tags of objects and buckets: from the header and the XML of requests, and back.
//!
//! Source: "Categorizing your storage using tags", Amazon S3 User Guide.

use crate::encoding::percent_decode;
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::request::malformed_xml;
use crate::xml::{Element, Writer};
use client::Header;
use http::HeaderMap;

/// The most tags of an object and of a bucket.
pub const OF_OBJECT_MAX: usize = 10;
pub const OF_BUCKET_MAX: usize = 50;

/// The longest key and value in characters.
const KEY_MAX: usize = 128;
const VALUE_MAX: usize = 256;

/// `x-amz-tagging: key=value&key=value`.
pub fn of_headers(headers: &HeaderMap) -> Result<Vec<Header>> {
    let Some(value) = headers.get(names::TAGGING) else { return Ok(Vec::new()) };
    let text = value.to_str().map_err(|_| invalid("the x-amz-tagging header is not ASCII"))?;
    let decode = |text: &str| percent_decode(text, true).and_then(|bytes| String::from_utf8(bytes).ok());
    let mut tags = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(name), Some(value)) = (decode(key), decode(value)) else {
            return Err(invalid("the x-amz-tagging header cannot be decoded"));
        };
        tags.push(Header { name, value });
    }
    checked(tags, OF_OBJECT_MAX)
}

/// The tags of a `Tagging` element.
pub fn of_xml(tagging: &Element, max: usize) -> Result<Vec<Header>> {
    let set = tagging.child("TagSet").ok_or_else(|| malformed_xml("it has no TagSet"))?;
    let tag = |tag: &Element| {
        let name = tag.child("Key").ok_or_else(|| malformed_xml("a tag has no key"))?.text.clone();
        let value = tag.child("Value").ok_or_else(|| malformed_xml("a tag has no value"))?.text.clone();
        Ok(Header { name, value })
    };
    if set.children.iter().any(|child| child.name != "Tag") {
        return Err(malformed_xml("a TagSet holds nothing but tags"));
    }
    checked(set.all("Tag").map(tag).collect::<Result<_>>()?, max)
}

/// A `Tagging` document.
pub fn to_xml(tags: &[Header]) -> String {
    Writer::answer("Tagging", |xml| {
        xml.element("TagSet", |xml| {
            for tag in tags {
                xml.element("Tag", |xml| {
                    xml.text("Key", &tag.name);
                    xml.text("Value", &tag.value);
                });
            }
        });
    })
}

/// Tags that may stand together, sorted by key.
fn checked(mut tags: Vec<Header>, max: usize) -> Result<Vec<Header>> {
    if tags.len() > max {
        return Err(invalid(&format!("there are at most {max} tags")));
    }
    for tag in &tags {
        let too_long = tag.name.chars().count() > KEY_MAX || tag.value.chars().count() > VALUE_MAX;
        if tag.name.is_empty() || too_long {
            return Err(invalid("a key has 1 to 128 characters, a value at most 256"));
        }
        if tag.name.starts_with("aws:") {
            return Err(invalid("keys that begin with aws: are reserved"));
        }
    }
    tags.sort_by(|a, b| a.name.cmp(&b.name));
    if tags.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return Err(invalid("a key is given twice"));
    }
    Ok(tags)
}

fn invalid(why: &str) -> S3Error {
    S3Error::new(Code::InvalidTag, format!("The tags you provided are not valid: {why}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn read(text: &str) -> std::result::Result<Vec<(String, String)>, Code> {
        let headers = HeaderMap::from_iter([(names::TAGGING, HeaderValue::from_str(text).unwrap())]);
        let tags = of_headers(&headers).map_err(|error| error.code)?;
        Ok(tags.into_iter().map(|tag| (tag.name, tag.value)).collect())
    }

    proptest! {
        #[test]
        fn tags_round_trip_as_xml(tags in proptest::collection::btree_map("[^a]{1,9}", any::<String>(), 0..9)) {
            let tags: Vec<Header> = tags.into_iter().map(|(name, value)| Header { name, value }).collect();
            prop_assume!(tags.iter().all(|tag| tag.value.chars().count() <= VALUE_MAX));
            let document = crate::xml::read(to_xml(&tags).as_bytes()).unwrap();
            prop_assert_eq!(of_xml(&document, OF_OBJECT_MAX).unwrap(), tags);
        }
    }

    #[test]
    fn the_header_is_parsed_and_bounded() {
        let pairs: Vec<(String, String)> =
            [("a", "1"), ("b c", "d e"), ("f", "")].map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        assert_eq!(read("f&a=1&b%20c=d+e").unwrap(), pairs);
        let many = (0..11).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join("&");
        for bad in ["a=1&a=2", "=1", "a=%zz", "aws:x=1", &"k".repeat(129), &format!("k={}", "v".repeat(257)), &many] {
            assert_eq!(read(bad), Err(Code::InvalidTag), "{bad}");
        }
    }

    #[test]
    fn xml_that_is_no_tag_set_is_refused() {
        let of = |text: &str| of_xml(&crate::xml::read(text.as_bytes()).unwrap(), 1).map_err(|error| error.code);
        let tag = |key: &str| format!("<Tag><Key>{key}</Key><Value/></Tag>");
        let set = |inside: &str| format!("<Tagging><TagSet>{inside}</TagSet></Tagging>");
        assert!(of(&set(&tag("a"))).is_ok() && of(&set("")).is_ok());
        assert_eq!(of(&set(&(tag("a") + &tag("b")))), Err(Code::InvalidTag));
        for bad in ["<Tagging/>", &set("<Tag><Key>a</Key></Tag>"), &set("<Other/>")] {
            assert_eq!(of(bad), Err(Code::MalformedXML), "{bad}");
        }
    }
}
