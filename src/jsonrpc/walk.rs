//! Owns: a way through one object or array, member by member, as ranges of its bytes.
//! Never: a tree; what is not asked for is only stepped over.
//! Next: `raw`, parts that are kept.

use super::message::{ScanFault, Span};
use super::scan::{self, Elements, Scanner};

/// The members of the object that is all of `document`, which is checked whole first.
///
/// A key is raw, with quotes and escapes: compare [`Span::text`], or [`key_is`].
///
/// # Errors
/// Not JSON (see [`ScanFault`]); [`ScanFault::Shape`] if it is no object.
pub fn members(document: &[u8]) -> Result<Members<'_>, ScanFault> {
    let mut scanner = checked(document, b'{')?;
    scanner.take(b'{');
    Ok(Members { scanner, open: true })
}

/// The elements of the array that is all of `document`, which is checked whole first.
///
/// # Errors
/// Not JSON (see [`ScanFault`]); [`ScanFault::Shape`] if it is no array.
pub fn elements(document: &[u8]) -> Result<Elements<'_>, ScanFault> {
    let mut scanner = checked(document, b'[')?;
    scanner.take(b'[');
    Ok(Elements::behind_bracket(scanner))
}

/// As [`members`], of an object within a document that was checked before: without another look
/// at the whole. Of bytes that were not, it yields some part.
pub fn members_of_checked(object: &[u8]) -> Option<Members<'_>> {
    let mut scanner = Scanner::checked(object);
    scanner.take(b'{').then_some(Members { scanner, open: true })
}

/// As [`elements`], of an array within a document that was checked before.
pub fn elements_of_checked(array: &[u8]) -> Option<Elements<'_>> {
    let mut scanner = Scanner::checked(array);
    scanner.take(b'[').then(|| Elements::behind_bracket(scanner))
}

fn checked(document: &[u8], bracket: u8) -> Result<Scanner<'_>, ScanFault> {
    scan::checked(document, |scanner| {
        scanner.space();
        let start = scanner.clone();
        scanner.value(0)?;
        scanner.end()?;
        if start.peek() == Some(bracket) { Ok(start) } else { Err(ScanFault::Shape) }
    })
}

/// The value of the first member of an object whose name is `name`, written with escapes or not.
pub fn member(object: &[u8], name: &str) -> Option<Span> {
    members(object).ok()?.find(|(key, _)| key_is(key.of(object), name)).map(|(_, value)| value)
}

/// Whether a raw key or string, with its quotes, says `name`.
pub fn key_is(raw: &[u8], name: &str) -> bool {
    match raw {
        [b'"', inside @ .., b'"'] if inside == name.as_bytes() => true,
        [b'"', inside @ .., b'"'] if inside.contains(&b'\\') => {
            super::token::unescaped(inside).eq(name.chars())
        }
        _ => false,
    }
}

/// Key and value of each member of an object that was checked.
#[derive(Clone, Debug)]
pub struct Members<'m> {
    scanner: Scanner<'m>,
    open: bool,
}

impl Iterator for Members<'_> {
    type Item = (Span, Span);

    fn next(&mut self) -> Option<(Span, Span)> {
        if !self.open {
            return None;
        }
        self.scanner.space();
        if self.scanner.take(b'}') {
            self.open = false;
            return None;
        }
        self.scanner.take(b',');
        self.scanner.space();
        let key = self.scanner.key().ok()?;
        Some((key, self.scanner.value(1).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_in_their_order() {
        let object = br#" { "a" : [1, {"b":2}] , "\u0062":"}" ,"a":3}"#;
        let all: Vec<_> = members(object)
            .unwrap()
            .map(|(key, value)| (key.text(object).unwrap(), value.of(object)))
            .collect();
        assert_eq!(all[0], ("a".into(), &br#"[1, {"b":2}]"#[..]));
        assert_eq!(all[1], ("b".into(), &br#""}""#[..]));
        assert_eq!(all[2], ("a".into(), &b"3"[..]));
        assert_eq!(all.len(), 3);
        assert_eq!(member(object, "b").unwrap().of(object), br#""}""#);
        assert_eq!(member(object, "c"), None);
        assert_eq!(members(b"{}").unwrap().next(), None);
    }

    #[test]
    fn others_are_refused() {
        assert_eq!(members(b"[]").err(), Some(ScanFault::Shape));
        assert_eq!(elements(b"{}").err(), Some(ScanFault::Shape));
        assert_eq!(members(b"{} x").err(), Some(ScanFault::Syntax));
        assert_eq!(elements(b"[{]").err(), Some(ScanFault::Syntax));
    }

    #[test]
    fn keys() {
        assert!(key_is(br#""name""#, "name"));
        assert!(key_is(br#""n\u0061me""#, "name"));
        assert!(!key_is(br#""Name""#, "name"));
        assert!(!key_is(b"name", "name"));
        assert!(!key_is(br#"""#, ""));
    }
}
