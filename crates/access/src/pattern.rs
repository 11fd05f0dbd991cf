//! Texts of policies with wildcards (`*`, `?`) and variables (`${aws:username}`, `${aws:username, 'nobody'}`).
//!
//! What a variable brings in is compared as it stands: a user called `*` is no wildcard.

use crate::condition::Context;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    AnyChar,
    AnyRun,
    Variable { key: String, default: Option<String> },
}

/// How the text of a pattern is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub wildcards: bool,
    pub variables: bool,
    /// Compare without regard to the case of ASCII letters.
    pub fold_case: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
    fold_case: bool,
}

impl Pattern {
    /// What is wrong with the text is the error.
    pub fn read(text: &str, reading: Reading) -> Result<Pattern, &'static str> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            if reading.variables
                && let Some(inside) = rest.strip_prefix("${")
            {
                let (variable, after) = inside.split_once('}').ok_or("a variable is not closed")?;
                tokens.push(variable_token(variable)?);
                rest = after;
                continue;
            }
            rest = &rest[next.len_utf8()..];
            tokens.push(match next {
                // Runs of stars match what one star does.
                '*' if reading.wildcards && tokens.last() == Some(&Token::AnyRun) => continue,
                '*' if reading.wildcards => Token::AnyRun,
                '?' if reading.wildcards => Token::AnyChar,
                other => Token::Char(fold(other, reading.fold_case)),
            });
        }
        Ok(Pattern { tokens, fold_case: reading.fold_case })
    }

    /// Whether the text matches. `None`: the request does not have a variable that the pattern names, or the decision has
    /// cost too much.
    pub fn matches(&self, text: &str, context: &Context) -> Option<bool> {
        // A pattern that needs more characters than there are matches nothing: so what variables hold is never copied
        // beyond the length of the text.
        context.spend(self.tokens.len() + text.len())?;
        let mut needed = 0;
        for token in &self.tokens {
            needed += match token {
                Token::Variable { key, default } => context.single(key).or(default.as_deref())?.chars().count(),
                Token::AnyRun => 0,
                _ => 1,
            };
        }
        if needed > text.chars().count() {
            return Some(false);
        }
        let mut expanded: Vec<Token> = Vec::with_capacity(self.tokens.len());
        for token in &self.tokens {
            match token {
                Token::Variable { key, default } => {
                    let value = context.single(key).or(default.as_deref())?;
                    expanded.extend(value.chars().map(|c| Token::Char(fold(c, self.fold_case))));
                }
                plain => expanded.push(plain.clone()),
            }
        }
        let text: Vec<char> = text.chars().map(|c| fold(c, self.fold_case)).collect();
        matches(&expanded, &text, context)
    }

    /// Neither wildcards nor variables: it names one thing.
    pub fn is_fixed(&self) -> bool {
        self.tokens.iter().all(|token| matches!(token, Token::Char(_)))
    }
}

fn variable_token(variable: &str) -> Result<Token, &'static str> {
    // Escapes: the characters themselves.
    if let "*" | "?" | "$" = variable {
        return Ok(Token::Char(variable.chars().next().expect("one of three characters")));
    }
    let (key, default) = match variable.split_once(',') {
        None => (variable, None),
        Some((key, default)) => {
            let quoted = default.trim().strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
            (key, Some(quoted.ok_or("the default of a variable stands in single quotes")?.to_owned()))
        }
    };
    let key = key.trim().to_ascii_lowercase();
    if !key.contains(':') {
        return Err("a variable names a condition key");
    }
    if !crate::condition::is_known_key(&key) {
        return Err("a variable names a condition key that is not known");
    }
    Ok(Token::Variable { key, default })
}

fn fold(c: char, fold_case: bool) -> char {
    if fold_case { c.to_ascii_lowercase() } else { c }
}

/// Greedy with one point to come back to: at most pattern times text steps, whatever the stars, and no more than the
/// decision may cost.
fn matches(pattern: &[Token], text: &[char], context: &Context) -> Option<bool> {
    /// Steps between two looks at what was spent.
    const STRIDE: usize = 1024;
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    let mut steps = 0;
    while t < text.len() {
        steps += 1;
        if steps % STRIDE == 0 {
            context.spend(STRIDE)?;
        }
        match pattern.get(p) {
            // What ends with a star takes all that is left.
            Some(Token::AnyRun) if p + 1 == pattern.len() => return Some(true),
            Some(Token::AnyRun) => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(Token::AnyChar) => {
                p += 1;
                t += 1;
                continue;
            }
            Some(Token::Char(c)) if *c == text[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        // The last star takes one character more.
        let Some((star_p, star_t)) = star else { return Some(false) };
        p = star_p + 1;
        t = star_t + 1;
        star = Some((star_p, t));
    }
    Some(pattern[p..].iter().all(|token| *token == Token::AnyRun))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::Cost;
    use proptest::prelude::*;

    const ALL: Reading = Reading { wildcards: true, variables: true, fold_case: false };

    fn is_match(pattern: &str, text: &str) -> bool {
        Pattern::read(pattern, ALL).unwrap().matches(text, &Context::default()).unwrap()
    }

    /// The definition, by recursion.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => naive(&pattern[1..], text) || !text.is_empty() && naive(pattern, &text[1..]),
            (Some(b'?'), Some(_)) => naive(&pattern[1..], &text[1..]),
            (Some(a), Some(b)) if a == b => naive(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn wildcards_match_as_defined(pattern in "[ab*?]{0,10}", text in "[ab]{0,12}") {
            prop_assert_eq!(is_match(&pattern, &text), naive(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn garbage_never_panics(pattern: String, text: String) {
            if let Ok(pattern) = Pattern::read(&pattern, ALL) {
                let _ = pattern.matches(&text, &Context::default());
            }
        }
    }

    #[test]
    fn hostile_patterns_take_no_exponential_time() {
        let pattern = "a*".repeat(500) + "b";
        assert!(!is_match(&pattern, &"a".repeat(5_000)));
    }

    /// A policy could hold hundreds of patterns that expand to a long header, each compared with another long header.
    #[test]
    fn what_comparing_may_cost_is_bounded_over_a_whole_decision() {
        let mut context = Context::default();
        context.set("aws:referer", "a".repeat(5_000));
        let pattern = Pattern::read("*${aws:Referer}b*", ALL).unwrap();
        let text = "a".repeat(11_000);
        let answers: Vec<Option<bool>> = (0..100).map(|_| pattern.matches(&text, &context)).collect();
        assert_eq!(answers.last(), Some(&None), "it cannot be told any more");
        assert!(context.is_exhausted());
        assert_eq!(Pattern::read("a", ALL).unwrap().matches("a", &context), None, "nothing is, from then on");
        let fresh = Context::default();
        assert_eq!(Pattern::read("a", ALL).unwrap().matches("a", &fresh), Some(true));
        // A request that had one such decision made has no other, and one of a thousand cheap decisions goes on.
        let cost = Cost::default();
        (0..2_000).for_each(|_| cost.charge(&fresh));
        assert!(!cost.is_too_much());
        cost.charge(&context);
        assert!(cost.is_too_much());
        // The longest policy of plain patterns against the longest key stays far below.
        let plain = Pattern::read("arn:aws:s3:::b/*/x*y", ALL).unwrap();
        let key = format!("arn:aws:s3:::b/{}", "/x".repeat(512));
        assert!((0..20_480 / 20).all(|_| plain.matches(&key, &fresh).is_some()));
    }

    /// Variables are never copied beyond the length of the text that they are compared with.
    #[test]
    fn variables_that_are_longer_than_the_text_match_nothing() {
        let mut context = Context::default();
        context.set("aws:referer", "a".repeat(16_000));
        let pattern = Pattern::read(&"${aws:Referer}".repeat(1_000), ALL).unwrap();
        assert_eq!(pattern.matches("short", &context), Some(false));
        assert_eq!(pattern.matches(&"a".repeat(16_000), &context), Some(false));
    }

    #[test]
    fn variables_bring_in_plain_text() {
        let mut context = Context::default();
        context.set("aws:username", "a*");
        let home = Pattern::read("home/${aws:username}/*", ALL).unwrap();
        assert_eq!(home.matches("home/a*/x", &context), Some(true));
        assert_eq!(home.matches("home/ab/x", &context), Some(false), "a star in a name is no wildcard");
        assert_eq!(home.matches("home/a*/x", &Context::default()), None, "nobody has no home");
        let other = Pattern::read("home/${aws:username, 'guest'}/*", ALL).unwrap();
        assert_eq!(other.matches("home/guest/x", &Context::default()), Some(true));
        assert!(is_match("${*}${?}${$}", "*?$"));
        assert!(!is_match("${*}", "x"));
        for bad in ["${aws:username", "${nothing}", "${aws:nonsense}", "${aws:username, guest}"] {
            assert!(Pattern::read(bad, ALL).is_err(), "{bad}");
        }
    }

    #[test]
    fn letters_case_counts_unless_folded() {
        assert!(!is_match("s3:GetObject", "s3:getobject"));
        let folded = Pattern::read("S3:get*", Reading { fold_case: true, ..ALL }).unwrap();
        assert_eq!(folded.matches("s3:GetObject", &Context::default()), Some(true));
    }
}
