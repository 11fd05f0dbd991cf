//! Cross-origin resource sharing: the rules of a bucket, answers to preflights, and the headers that let a browser's
//! script read an answer.
//!
//! Source: "Using cross-origin resource sharing (CORS)", Amazon S3 User Guide; the Fetch Standard, section 3.2.

use crate::error::{Code, Result, S3Error};
use crate::request::{Reply, empty, insert, malformed_xml};
use crate::xml::{self, Element, Writer};
use client::{BucketInfo, ConfigurationKind};
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method, StatusCode};

/// The most rules of a bucket, and the longest id of one, as in S3.
const RULES_MAX: usize = 100;
const ID_MAX: usize = 255;
/// Names and patterns in one rule, and characters of each: a bound on the work of a match.
const PATTERNS_MAX: usize = 100;
const PATTERN_LENGTH_MAX: usize = 1024;

const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "HEAD"];

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    id: Option<String>,
    origins: Vec<String>,
    methods: Vec<String>,
    headers: Vec<String>,
    exposed: Vec<String>,
    max_age_s: Option<u32>,
}

/// The rules of a `CORSConfiguration`.
pub fn read(configuration: &Element) -> Result<Vec<Rule>> {
    let rules: Vec<Rule> = configuration.all("CORSRule").map(read_rule).collect::<Result<_>>()?;
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(malformed_xml("there must be 1 to 100 rules"));
    }
    Ok(rules)
}

fn read_rule(rule: &Element) -> Result<Rule> {
    let texts = |name: &'static str| -> Result<Vec<String>> {
        let texts: Vec<String> = rule.all(name).map(|element| element.text.trim().to_owned()).collect();
        let fits = |text: &String| !text.is_empty() && text.len() <= PATTERN_LENGTH_MAX;
        if texts.len() > PATTERNS_MAX || !texts.iter().all(fits) {
            return Err(malformed_xml("a rule has too many, too long or empty elements"));
        }
        Ok(texts)
    };
    let read = Rule {
        id: rule.child_text("ID").map(str::to_owned),
        origins: texts("AllowedOrigin")?,
        methods: texts("AllowedMethod")?,
        headers: texts("AllowedHeader")?,
        exposed: texts("ExposeHeader")?,
        max_age_s: match rule.child_text("MaxAgeSeconds").map(str::parse) {
            Some(Ok(seconds)) => Some(seconds),
            Some(Err(_)) => return Err(malformed_xml("MaxAgeSeconds is not a number of seconds")),
            None => None,
        },
    };
    if read.origins.is_empty() || read.methods.is_empty() {
        return Err(malformed_xml("a rule allows at least one origin and one method"));
    }
    if read.id.as_ref().is_some_and(|id| id.chars().count() > ID_MAX) {
        return Err(malformed_xml("the id of a rule has at most 255 characters"));
    }
    if let Some(method) = read.methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
        let message = format!("Found unsupported HTTP method in CORS config. Unsupported method is {method}");
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let patterns = read.origins.iter().chain(&read.headers);
    if let Some(pattern) = patterns.into_iter().find(|pattern| pattern.matches('*').count() > 1) {
        let message = format!("AllowedOrigin or AllowedHeader {pattern:?} can not have more than one wildcard.");
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    if read.exposed.iter().any(|name| name.contains('*')) {
        let message = "ExposeHeader contains a wildcard. We currently do not support wildcard for ExposeHeader.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    Ok(read)
}

/// As a document: what is kept and what GetBucketCors answers.
pub fn to_xml(rules: &[Rule]) -> String {
    Writer::answer("CORSConfiguration", |xml| {
        for rule in rules {
            xml.element("CORSRule", |xml| {
                let lists = [
                    ("AllowedOrigin", &rule.origins),
                    ("AllowedMethod", &rule.methods),
                    ("AllowedHeader", &rule.headers),
                    ("ExposeHeader", &rule.exposed),
                ];
                if let Some(id) = &rule.id {
                    xml.text("ID", id);
                }
                for (name, texts) in lists {
                    texts.iter().for_each(|text| xml.text(name, text));
                }
                if let Some(seconds) = rule.max_age_s {
                    xml.number("MaxAgeSeconds", u64::from(seconds));
                }
            });
        }
    })
}

/// The rules of a bucket; none when it has none, or none that can be read.
fn rules_of(bucket: &BucketInfo) -> Vec<Rule> {
    let kept = bucket.configuration(ConfigurationKind::Cors);
    let read = |value: &[u8]| read(&xml::read(value).ok()?).ok();
    kept.and_then(|kept| read(&kept.value)).unwrap_or_default()
}

/// What a script asks for.
struct Asked<'a> {
    origin: &'a str,
    method: &'a str,
    headers: Vec<String>,
}

impl<'a> Asked<'a> {
    /// `None` when the request is not a script's of another origin.
    fn read(method: &'a Method, headers: &'a HeaderMap) -> Option<Asked<'a>> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let named = text(&ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or_default();
        let named = named.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty());
        let is_preflight = *method == Method::OPTIONS;
        Some(Asked {
            origin: text(&ORIGIN)?,
            method: match text(&ACCESS_CONTROL_REQUEST_METHOD) {
                Some(method) => method,
                None if is_preflight => return None,
                None => method.as_str(),
            },
            headers: if is_preflight { named.collect() } else { Vec::new() },
        })
    }
}

impl Rule {
    fn allows(&self, asked: &Asked<'_>) -> bool {
        self.origins.iter().any(|pattern| matches(pattern, asked.origin))
            && self.methods.iter().any(|method| method == asked.method)
            && asked
                .headers
                .iter()
                .all(|name| self.headers.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), name)))
    }

    fn write(&self, asked: &Asked<'_>, reply: &mut Reply) {
        let any = self.origins.iter().any(|pattern| pattern == "*");
        insert(reply, ACCESS_CONTROL_ALLOW_ORIGIN, if any { "*" } else { asked.origin });
        insert(reply, ACCESS_CONTROL_ALLOW_METHODS, &self.methods.join(", "));
        if !asked.headers.is_empty() {
            insert(reply, ACCESS_CONTROL_ALLOW_HEADERS, &asked.headers.join(", "));
        }
        if !self.exposed.is_empty() {
            insert(reply, ACCESS_CONTROL_EXPOSE_HEADERS, &self.exposed.join(", "));
        }
        if let Some(seconds) = self.max_age_s {
            insert(reply, ACCESS_CONTROL_MAX_AGE, &seconds.to_string());
        }
        if !any {
            insert(reply, ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
        }
        let vary = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method";
        reply.headers_mut().append(VARY, HeaderValue::from_static(vary));
    }
}

/// A pattern has at most one `*`, which stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.len() >= head.len() + tail.len() && text.starts_with(head) && text.ends_with(tail),
    }
}

/// The answer to OPTIONS. `bucket`: `None` when there is none of this name, which must not be told to strangers.
pub fn preflight(headers: &HeaderMap, bucket: Option<&BucketInfo>) -> Result<Reply> {
    let Some(asked) = Asked::read(&Method::OPTIONS, headers) else {
        let message = "Insufficient information. Origin and Access-Control-Request-Method request headers are needed.";
        return Err(S3Error::new(Code::BadRequest, message));
    };
    let rules = bucket.map(rules_of).unwrap_or_default();
    let Some(rule) = rules.iter().find(|rule| rule.allows(&asked)) else {
        let message = if rules.is_empty() {
            "CORSResponse: CORS is not enabled for this bucket."
        } else {
            "CORSResponse: This CORS request is not allowed. This is usually because the evaluation of Origin, request \
             method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the \
             resource's CORS spec."
        };
        return Err(S3Error::new(Code::AccessForbidden, message));
    };
    let mut reply = empty(StatusCode::OK);
    rule.write(&asked, &mut reply);
    Ok(reply)
}

/// Lets the script that asked read the answer, if the bucket's rules do. Errors, too, are answers.
pub fn decorate(method: &Method, headers: &HeaderMap, bucket: &BucketInfo, reply: &mut Reply) {
    let Some(asked) = Asked::read(method, headers) else { return };
    if let Some(rule) = rules_of(bucket).iter().find(|rule| rule.allows(&asked)) {
        rule.write(&asked, reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(inside: &str) -> std::result::Result<Vec<Rule>, Code> {
        let document = format!("<CORSConfiguration>{inside}</CORSConfiguration>");
        read(&xml::read(document.as_bytes()).unwrap()).map_err(|error| error.code)
    }

    fn rule(inside: &str) -> String {
        format!("<CORSRule>{inside}</CORSRule>")
    }

    const GET: &str = "<AllowedMethod>GET</AllowedMethod>";

    #[test]
    fn rules_round_trip_and_are_bounded() {
        let whole = rule(&format!(
            "<ID>a</ID><AllowedOrigin>http://*.b</AllowedOrigin>{GET}<AllowedHeader>x-*</AllowedHeader>\
             <ExposeHeader>etag</ExposeHeader><MaxAgeSeconds>7</MaxAgeSeconds>"
        ));
        let read = rules(&whole).unwrap();
        assert_eq!(super::read(&xml::read(to_xml(&read).as_bytes()).unwrap()).unwrap(), read);
        let origin = "<AllowedOrigin>*</AllowedOrigin>";
        for (bad, code) in [
            (String::new(), Code::MalformedXML),
            (rule(GET), Code::MalformedXML),
            (rule(origin), Code::MalformedXML),
            (rule(&format!("{origin}<AllowedMethod>PATCH</AllowedMethod>")), Code::InvalidRequest),
            (rule(&format!("<AllowedOrigin>*.*</AllowedOrigin>{GET}")), Code::InvalidRequest),
            (rule(&format!("{origin}{GET}<AllowedHeader>*-*</AllowedHeader>")), Code::InvalidRequest),
            (rule(&format!("{origin}{GET}<ExposeHeader>*</ExposeHeader>")), Code::InvalidRequest),
            (rule(&format!("{origin}{GET}<MaxAgeSeconds>x</MaxAgeSeconds>")), Code::MalformedXML),
            (rule(&format!("{origin}{GET}")).repeat(101), Code::MalformedXML),
        ] {
            assert_eq!(rules(&bad), Err(code), "{bad}");
        }
    }

    #[test]
    fn a_rule_allows_its_origins_methods_and_headers() {
        let inside = format!("<AllowedOrigin>start*end</AllowedOrigin>{GET}<AllowedHeader>X-*</AllowedHeader>");
        let rule = rules(&rule(&inside)).unwrap().remove(0);
        let allows = |origin: &str, method: &str, names: &[&str]| {
            let headers = names.iter().map(|name| (*name).to_owned()).collect();
            rule.allows(&Asked { origin, method, headers })
        };
        assert!(allows("startend", "GET", &[]) && allows("start1end", "GET", &["x-a", "x-b"]));
        assert!(!allows("0start1end", "GET", &[]));
        assert!(!allows("starend", "GET", &[]), "the pattern's halves never share letters");
        assert!(!allows("startend", "PUT", &[]));
        assert!(!allows("startend", "GET", &["x-a", "y"]));
    }

    #[test]
    fn a_preflight_must_say_what_it_asks_for() {
        let refused = |headers: &HeaderMap| preflight(headers, None).err().map(|error| error.code);
        assert_eq!(refused(&HeaderMap::new()), Some(Code::BadRequest));
        let origin = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("a"))]);
        assert_eq!(refused(&origin), Some(Code::BadRequest));
        let mut both = origin;
        both.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"));
        assert_eq!(refused(&both), Some(Code::AccessForbidden));
    }
}
