//! XML, as little of it as S3 needs: a writer, and a reader that is bounded in size and depth and knows no document
//! types, so that no entity can be declared, expanded or fetched.

/// The deepest nesting of elements that is read.
const DEPTH_MAX: usize = 8;

/// The name space of S3's answers.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// Writes a document element by element.
pub struct Writer {
    out: String,
}

impl Writer {
    /// Starts a document.
    pub fn document() -> Writer {
        Writer { out: String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n") }
    }

    /// A whole answer: `root` in S3's name space with `content`.
    pub fn answer(root: &str, content: impl FnOnce(&mut Writer)) -> String {
        let mut writer = Writer::document();
        writer.out.push('<');
        writer.out.push_str(root);
        writer.out.push_str(" xmlns=\"");
        writer.out.push_str(NAMESPACE);
        writer.out.push_str("\">");
        content(&mut writer);
        writer.close(root);
        writer.finish()
    }

    pub fn element(&mut self, name: &str, content: impl FnOnce(&mut Writer)) {
        self.open(name);
        content(self);
        self.close(name);
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        self.escape(text);
        self.close(name);
    }

    pub fn number(&mut self, name: &str, number: u64) {
        self.text(name, &number.to_string());
    }

    pub fn flag(&mut self, name: &str, flag: bool) {
        self.text(name, if flag { "true" } else { "false" });
    }

    /// Markup that needs no escaping, such as an element with attributes.
    pub fn raw(&mut self, markup: &str) {
        self.out.push_str(markup);
    }

    pub fn finish(self) -> String {
        self.out
    }

    fn open(&mut self, name: &str) {
        self.out.push('<');
        self.out.push_str(name);
        self.out.push('>');
    }

    fn close(&mut self, name: &str) {
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push('>');
    }

    /// Control characters become character references: XML 1.0 cannot hold them otherwise (clients that have such
    /// keys ask for `encoding-type=url`).
    fn escape(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                control if control.is_control() && control != '\n' && control != '\t' => {
                    self.out.push_str(&format!("&#x{:x};", u32::from(control)));
                }
                other => self.out.push(other),
            }
        }
    }
}

/// An element that was read: its name without a prefix, its text, and its child elements in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The first child called `name`.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child called `name`, without surrounding white space.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.trim())
    }

    /// All children called `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

/// Elements of one document: 10,000 parts with all their checksums fit.
const ELEMENTS_MAX: usize = 100_000;

/// What is wrong with a document, in a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads a document. Its size is bounded by the caller.
pub fn read(document: &[u8]) -> Result<Element, Malformed> {
    let text = std::str::from_utf8(document).map_err(|_| Malformed("it is not UTF-8"))?;
    let mut reader = Reader { rest: text.trim_start_matches('\u{feff}') };
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0;
    while let Some(token) = reader.next()? {
        match token {
            Token::Text(text) => match open.last_mut() {
                Some(element) => element.text.push_str(&text),
                None if text.trim().is_empty() => {}
                None => return Err(Malformed("there is text outside the root element")),
            },
            Token::Open { name, empty } => {
                if root.is_some() {
                    return Err(Malformed("there is more than one root element"));
                }
                elements += 1;
                if elements > ELEMENTS_MAX {
                    return Err(Malformed("it has too many elements"));
                }
                if open.len() >= DEPTH_MAX {
                    return Err(Malformed("it is nested too deeply"));
                }
                open.push(Element { name: name.to_owned(), ..Element::default() });
                if empty {
                    close(&mut open, &mut root);
                }
            }
            Token::Close(name) => {
                if open.last().is_none_or(|element| element.name != name) {
                    return Err(Malformed("a closing tag does not match"));
                }
                close(&mut open, &mut root);
            }
        }
    }
    if !open.is_empty() {
        return Err(Malformed("it ends inside an element"));
    }
    root.ok_or(Malformed("it has no root element"))
}

fn close(open: &mut Vec<Element>, root: &mut Option<Element>) {
    let element = open.pop().expect("the caller checked that an element is open");
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None => *root = Some(element),
    }
}

enum Token<'a> {
    Text(String),
    Open { name: &'a str, empty: bool },
    Close(&'a str),
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, Malformed> {
        loop {
            if self.rest.is_empty() {
                return Ok(None);
            }
            if !self.rest.starts_with('<') {
                let end = self.rest.find('<').unwrap_or(self.rest.len());
                let (text, rest) = self.rest.split_at(end);
                self.rest = rest;
                return Ok(Some(Token::Text(unescape(text)?)));
            }
            if let Some(rest) = self.rest.strip_prefix("<!--") {
                self.skip(rest, "-->")?;
            } else if let Some(rest) = self.rest.strip_prefix("<?") {
                self.skip(rest, "?>")?;
            } else if let Some(rest) = self.rest.strip_prefix("<![CDATA[") {
                let text = self.skip(rest, "]]>")?;
                return Ok(Some(Token::Text(text.to_owned())));
            } else if self.rest.starts_with("<!") {
                return Err(Malformed("document types and entities are not accepted"));
            } else if let Some(rest) = self.rest.strip_prefix("</") {
                let name = self.skip(rest, ">")?;
                return Ok(Some(Token::Close(local_name(name.trim_end())?)));
            } else {
                return self.open_tag().map(Some);
            }
        }
    }

    /// Moves behind the first `end` in `from` and returns what stands before it.
    fn skip(&mut self, from: &'a str, end: &str) -> Result<&'a str, Malformed> {
        let (skipped, rest) = from.split_once(end).ok_or(Malformed("it ends inside a tag"))?;
        self.rest = rest;
        Ok(skipped)
    }

    fn open_tag(&mut self) -> Result<Token<'a>, Malformed> {
        let inside = &self.rest[1..];
        let mut quote = None;
        let end = inside.find(|c: char| match (quote, c) {
            (Some(open), _) => {
                if c == open {
                    quote = None;
                }
                false
            }
            (None, '"' | '\'') => {
                quote = Some(c);
                false
            }
            (None, _) => c == '>',
        });
        let end = end.ok_or(Malformed("it ends inside a tag"))?;
        self.rest = &inside[end + 1..];
        let (tag, empty) = match inside[..end].strip_suffix('/') {
            Some(tag) => (tag, true),
            None => (&inside[..end], false),
        };
        // Attributes carry nothing that S3 requests need (name spaces, `xsi:type`).
        let name = tag.split(|c: char| c.is_ascii_whitespace()).next().unwrap_or_default();
        Ok(Token::Open { name: local_name(name)?, empty })
    }
}

fn local_name(name: &str) -> Result<&str, Malformed> {
    let local = name.rsplit(':').next().unwrap_or(name);
    let valid =
        !local.is_empty() && local.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if valid { Ok(local) } else { Err(Malformed("a tag has no valid name")) }
}

fn unescape(text: &str) -> Result<String, Malformed> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let (name, behind) = after.split_once(';').ok_or(Malformed("a reference is not closed"))?;
        out.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => character(name).ok_or(Malformed("a reference is unknown"))?,
        });
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// The character of a reference `#N` or `#xN`.
fn character(name: &str) -> Option<char> {
    let number = name.strip_prefix('#')?;
    let code = match number.strip_prefix(['x', 'X']) {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16).ok()?,
        None if number.bytes().all(|b| b.is_ascii_digit()) => number.parse().ok()?,
        _ => return None,
    };
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(text: String) {
            let document = Writer::answer("Root", |xml| xml.text("Key", &text));
            let root = read(document.as_bytes()).unwrap();
            prop_assert_eq!(&root.child("Key").unwrap().text, &text);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, text in "[<>/a!\\[\\]&;#x\"'?-]{0,60}") {
            let _ = (read(&bytes), read(text.as_bytes()));
        }
    }

    #[test]
    fn a_delete_request_is_read() {
        let document = b"<?xml version='1.0'?>\n<!-- c --><s3:Delete xmlns:s3=\"a>b\"><Quiet>true</Quiet>\
            <Object><Key>a &amp; &#x62;</Key></Object><Object><Key><![CDATA[<c>]]></Key><VersionId/></Object></s3:Delete>";
        let root = read(document).unwrap();
        assert_eq!(root.name, "Delete");
        assert_eq!(root.child_text("Quiet"), Some("true"));
        let keys: Vec<&str> = root.all("Object").filter_map(|o| o.child_text("Key")).collect();
        assert_eq!(keys, ["a & b", "<c>"]);
    }

    #[test]
    fn entities_depth_and_broken_structure_are_refused() {
        let bomb = b"<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>".as_slice();
        let deep = format!("{}{}", "<a>".repeat(DEPTH_MAX + 1), "</a>".repeat(DEPTH_MAX + 1));
        for bad in [
            bomb,
            deep.as_bytes(),
            b"",
            b"x",
            b"<a>",
            b"<a></b>",
            b"<a/><b/>",
            b"<a>&x;</a>",
            b"<a>&amp</a>",
            b"<a",
            b"<>",
        ] {
            assert!(read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(read(b"<a/>").is_ok());
    }
}
