//! Owns: patterns of names and URIs as the configuration writes them.
//! Never: what a match means.
//! Next: `custom`, the row of the embedding program.
//!
//! A glob, unless it begins with `re:`: `*` is any run of characters, `/` too, `?` is one character,
//! `[a-z_]` one of a set, `[!a-z]` one that is not. Behind `re:` stands a regular expression that
//! must match the whole.

use std::fmt;

use regex::Regex;

/// One pattern; equal if written equally.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    form: Form,
}

#[derive(Clone)]
enum Form {
    /// `*` alone.
    All,
    /// No special character.
    Exact,
    Glob(Vec<Part>),
    Regex(Regex),
}

#[derive(Clone)]
enum Part {
    Char(char),
    One,
    Run,
    Set { not: bool, ranges: Vec<(char, char)> },
}

/// Bytes that a compiled expression may take.
const REGEX_BYTES_MAX: usize = 1024 * 1024;

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What was found and what is accepted.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let form = if let Some(expression) = text.strip_prefix("re:") {
            let whole = format!("^(?:{expression})$");
            // On its own first: `a)|(b` would escape from the brackets.
            let built = Regex::new(expression).and_then(|_| {
                let mut builder = regex::RegexBuilder::new(&whole);
                // A line break in a name is no way around a pattern.
                builder.size_limit(REGEX_BYTES_MAX).dot_matches_new_line(true).build()
            });
            match built {
                Ok(regex) => Form::Regex(regex),
                Err(error) => {
                    let words = error.to_string();
                    let last = words.lines().last().unwrap_or_default().trim();
                    let last = last.strip_prefix("error: ").unwrap_or(last);
                    return Err(format!(
                        "found {text:?}, accepted: a regular expression after re: ({last})"
                    ));
                }
            }
        } else {
            glob(text).map_err(|what| {
                format!("found {text:?}, {what}; accepted: a name with *, ? and [sets], or re:...")
            })?
        };
        Ok(Pattern { text: text.to_owned(), form })
    }

    /// Whether it matches the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        match &self.form {
            Form::All => true,
            Form::Exact => self.text == name,
            Form::Glob(parts) => run(parts, name),
            Form::Regex(regex) => regex.is_match(name),
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is `*`.
    pub fn is_all(&self) -> bool {
        matches!(self.form, Form::All)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// Several patterns, one of which must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patterns(pub Vec<Pattern>);

impl Patterns {
    /// Whether one of them matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether one other than `*` matches: who writes a name out means it.
    pub fn names(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| !pattern.is_all() && pattern.matches(name))
    }
}

fn glob(text: &str) -> Result<Form, &'static str> {
    if text.is_empty() {
        return Err("which matches nothing");
    }
    if text == "*" {
        return Ok(Form::All);
    }
    if !text.contains(['*', '?', '[']) {
        return Ok(Form::Exact);
    }
    let mut parts = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => {
                if matches!(parts.last(), Some(Part::Run)) {
                    continue;
                }
                Part::Run
            }
            '?' => Part::One,
            '[' => {
                let not = chars.next_if(|c| matches!(c, '!' | '^')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let low = match chars.next() {
                        None => return Err("a set without its ]"),
                        // First in the set it stands for itself.
                        Some(']') if !ranges.is_empty() => break,
                        Some(low) => low,
                    };
                    let mut ahead = chars.clone();
                    let high = match (ahead.next(), ahead.next()) {
                        (Some('-'), Some(high)) if high != ']' => {
                            chars = ahead;
                            high
                        }
                        _ => low,
                    };
                    if high < low {
                        return Err("a range that ends before it begins");
                    }
                    ranges.push((low, high));
                }
                Part::Set { not, ranges }
            }
            c => Part::Char(c),
        });
    }
    Ok(Form::Glob(parts))
}

/// Goes back to the last `*` only: the product of both lengths at worst.
fn run(parts: &[Part], name: &str) -> bool {
    let (mut at, mut rest) = (0, name.chars());
    let mut back: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        let fits = match parts.get(at) {
            Some(Part::Run) => {
                back = Some((at + 1, rest.clone()));
                at += 1;
                continue;
            }
            None if rest.as_str().is_empty() => return true,
            None => false,
            Some(part) => match rest.next() {
                None => return false,
                Some(c) => match part {
                    Part::Char(own) => *own == c,
                    Part::One | Part::Run => true,
                    Part::Set { not, ranges } => {
                        ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *not
                    }
                },
            },
        };
        if fits {
            at += 1;
            continue;
        }
        match &mut back {
            Some((part, tail)) => {
                if tail.next().is_none() {
                    return false;
                }
                at = *part;
                rest = tail.clone();
            }
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn globs() {
        for (pattern, yes, no) in [
            ("*", &["", "a", "a/b"][..], &[][..]),
            ("read", &["read"], &["", "read_file", "Read", "xread"]),
            ("read_*", &["read_", "read_file", "read_a/b"], &["read", "xread_"]),
            ("*_file", &["read_file", "_file", "a_file_file"], &["file", "read_file2"]),
            ("a*b*c", &["abc", "aXbXc", "abbcc", "abcbc"], &["ab", "acb", "abcd"]),
            ("?", &["a", "ä", "😀"], &["", "ab"]),
            ("a?c", &["abc", "a/c"], &["ac", "abbc"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x", "ab"]),
            ("[!a-c]x", &["dx"], &["ax", "x"]),
            ("[]]", &["]"], &["a"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("file:///*", &["file:///a/b", "file:///"], &["file://a"]),
            ("**", &["", "a"], &[]),
        ] {
            for name in yes {
                assert!(matches(pattern, name), "{pattern} {name}");
            }
            for name in no {
                assert!(!matches(pattern, name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn expressions_match_the_whole() {
        assert!(matches("re:read|write", "write"));
        assert!(!matches("re:read|write", "write_file"));
        assert!(!matches("re:ead", "read"));
        assert!(matches("re:.*_v[0-9]+", "a_v12"));
        assert!(matches("re:(?i)READ", "read"));
    }

    #[test]
    fn bad_patterns() {
        for bad in ["", "[a", "[", "[]", "[z-a]", "re:(", "re:a)|(b", "re:[", "re:a{1000}{1000}"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    /// A glob must not take exponential time.
    #[test]
    fn many_stars() {
        let pattern = "a*".repeat(50) + "b";
        assert!(!matches(&pattern, &"a".repeat(2_000)));
    }

    #[test]
    fn naming_a_tool_is_more_than_a_star() {
        let parse = |text: &str| Pattern::parse(text).unwrap();
        let patterns = Patterns(vec![parse("*"), parse("write_*")]);
        assert!(patterns.matches("read") && !patterns.names("read"));
        assert!(patterns.names("write_file"));
        assert_eq!(patterns, patterns.clone());
    }
}
