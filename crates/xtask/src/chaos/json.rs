//! Just enough JSON to read what henge's commands print: no dependency that every gate would have to compile.

/// A value, as RFC 8259 has them. Numbers are those of henge's reports: whole, or rounded.
#[derive(Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

impl Json {
    /// `None` when the text is no JSON value.
    pub fn parse(text: &str) -> Option<Json> {
        let mut reader = Reader { rest: text };
        let value = reader.value(DEPTH_MAX)?;
        reader.skip_space();
        reader.rest.is_empty().then_some(value)
    }

    /// The field of a map.
    pub fn field(&self, name: &str) -> Option<&Json> {
        let Json::Map(fields) = self else { return None };
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.field(name)? {
            Json::Number(number) => Some(*number as u64),
            _ => None,
        }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        match self.field(name)? {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self, name: &str) -> &[Json] {
        match self.field(name) {
            Some(Json::List(items)) => items,
            _ => &[],
        }
    }
}

/// Deeper nesting is no report of henge's.
const DEPTH_MAX: usize = 32;

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest;
        true
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        for (word, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))] {
            if self.take(word) {
                return Some(value);
            }
        }
        if self.take("[") {
            return self.items("]", |reader| reader.value(depth)).map(Json::List);
        }
        if self.take("{") {
            let fields = self.items("}", |reader| {
                let name = reader.string()?;
                reader.take(":").then_some(())?;
                Some((name, reader.value(depth)?))
            });
            return fields.map(Json::Map);
        }
        if self.rest.starts_with('"') { self.string().map(Json::Text) } else { self.figure() }
    }

    fn items<T>(&mut self, end: &str, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        if self.take(end) {
            return Some(items);
        }
        loop {
            items.push(item(self)?);
            if self.take(end) {
                return Some(items);
            }
            self.take(",").then_some(())?;
        }
    }

    fn figure(&mut self) -> Option<Json> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        number.parse().ok().map(Json::Number)
    }

    fn string(&mut self) -> Option<String> {
        self.take("\"").then_some(())?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(out);
                }
                '\\' => match chars.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'u' => {
                        let digits: String = (0..4).filter_map(|_| chars.next().map(|(_, digit)| digit)).collect();
                        out.push(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}'));
                    }
                    other => out.push(other),
                },
                other => out.push(other),
            }
        }
        None
    }
}

/// A text as a JSON string.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let text = r#" {"verdict":"safe","groups":[{"id":0,"leader":null},{"id":1,"leader":3}],"x":-1.5e1,"e":[],"m":{},"t":true} "#;
        let json = Json::parse(text).unwrap();
        assert_eq!(json.text("verdict"), Some("safe"));
        assert_eq!(json.list("groups")[1].number("leader"), Some(3));
        assert_eq!(json.list("groups")[0].number("leader"), None);
        assert_eq!(json.field("x"), Some(&Json::Number(-15.0)));
        assert_eq!((json.list("e").len(), json.field("m")), (0, Some(&Json::Map(vec![]))));
    }

    #[test]
    fn strings_survive_quoting() {
        for text in ["", "plain", "a \"b\" \\ c\n\t", "\u{1}é"] {
            assert_eq!(Json::parse(&quote(text)), Some(Json::Text(text.into())));
        }
    }

    #[test]
    fn what_is_no_json_is_none() {
        for text in ["", "{", "[1,]", "{\"a\"}", "\"open", "1 2", "nope", &"[".repeat(100)] {
            assert_eq!(Json::parse(text), None, "{text}");
        }
    }
}
