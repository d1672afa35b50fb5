//! Owns: edits of the arguments of a call, key by key, in the bytes they came in.
//! Never: a tree; what no edit names keeps every byte, number text and order too.
//! Next: `pattern`, and match names with.

use crate::jsonrpc::{self, Span, walk};

/// A key and its value as JSON.
pub type Pair = (String, Box<[u8]>);

/// An edit of one object.
#[derive(Default)]
pub struct Edits {
    /// Ascending: where, and what stands there then.
    cuts: Vec<(Span, Vec<u8>)>,
    /// Put behind the last member.
    added: Vec<u8>,
}

impl Edits {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.cuts.is_empty() && self.added.is_empty()
    }

    /// Replaces a range; ranges must ascend.
    pub fn replace(&mut self, span: Span, new: Vec<u8>) {
        self.cuts.push((span, new));
    }

    /// Adds a member.
    pub fn add(&mut self, key: &str, value: &[u8]) {
        self.added.push(b',');
        jsonrpc::quote(key, &mut self.added);
        self.added.push(b':');
        self.added.extend_from_slice(value);
    }

    /// The edited object.
    pub fn apply(&self, object: &[u8]) -> Vec<u8> {
        let end = object.iter().rposition(|&b| b == b'}').unwrap_or(object.len());
        let empty = walk::members_of_checked(object).is_none_or(|mut all| all.next().is_none());
        let added = if empty { self.added.get(1..).unwrap_or(&[]) } else { &self.added[..] };
        let mut edits: Vec<(Span, &[u8])> =
            self.cuts.iter().map(|(span, new)| (*span, &new[..])).collect();
        edits.push((Span::new(end, end), added));
        jsonrpc::splice(object, &edits)
    }
}

/// Puts pairs to an object: those of `force` win over what is there, those of `fill` give way.
/// `None` if nothing changes, as for what is no object; no arguments at all are an empty object.
pub fn merge(arguments: Option<&[u8]>, fill: &[Pair], force: &[Pair]) -> Option<Vec<u8>> {
    let object = arguments.unwrap_or(b"{}");
    let mut edits = Edits::default();
    let (mut filled, mut forced) = (vec![false; fill.len()], vec![false; force.len()]);
    for (key, value) in walk::members_of_checked(object)? {
        let key = key.of(object);
        if let Some(at) = fill.iter().position(|(name, _)| walk::key_is(key, name)) {
            filled[at] = true;
        }
        if let Some(at) = force.iter().position(|(name, _)| walk::key_is(key, name)) {
            // Of a member that stands there twice a server may take either one: both change.
            forced[at] = true;
            edits.replace(value, force[at].1.to_vec());
        }
    }
    for ((key, value), done) in force.iter().zip(&forced) {
        if !done {
            edits.add(key, value);
        }
    }
    for ((key, value), done) in fill.iter().zip(&filled) {
        if !done && !force.iter().any(|(name, _)| name == key) {
            edits.add(key, value);
        }
    }
    (!edits.is_empty()).then(|| edits.apply(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<Pair> {
        list.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().into())).collect()
    }

    fn merged(arguments: &str, fill: &[(&str, &str)], force: &[(&str, &str)]) -> String {
        let arguments = (!arguments.is_empty()).then_some(arguments.as_bytes());
        let new = merge(arguments, &pairs(fill), &pairs(force));
        new.map_or("same".to_owned(), |new| String::from_utf8(new).unwrap())
    }

    #[test]
    fn what_is_there_keeps_every_byte() {
        let there = r#"{ "z": 9007199254740993, "a" :1e300,"é":"\u00e9" }"#;
        assert_eq!(
            merged(there, &[("b", "1")], &[]),
            r#"{ "z": 9007199254740993, "a" :1e300,"é":"\u00e9" ,"b":1}"#
        );
        assert_eq!(merged(there, &[("z", "1")], &[]), "same");
        assert_eq!(
            merged(there, &[], &[("a", "true")]),
            r#"{ "z": 9007199254740993, "a" :true,"é":"\u00e9" }"#
        );
    }

    #[test]
    fn precedence() {
        assert_eq!(merged(r#"{"a":1}"#, &[("a", "2")], &[]), "same");
        assert_eq!(merged(r#"{"a":1}"#, &[], &[("a", "2")]), r#"{"a":2}"#);
        assert_eq!(merged("{}", &[("a", "2")], &[("a", "3")]), r#"{"a":3}"#);
        assert_eq!(merged("{}", &[], &[]), "same");
    }

    #[test]
    fn nothing_objects_and_others() {
        assert_eq!(merged("", &[("a", "2")], &[("b", "3")]), r#"{"b":3,"a":2}"#);
        assert_eq!(merged("{ }", &[("a", "2")], &[]), r#"{ "a":2}"#);
        for other in ["[1]", "\"x\"", "7", "true"] {
            assert_eq!(merged(other, &[("a", "2")], &[("a", "3")]), "same");
        }
    }

    /// A client that writes a key twice, or with escapes, does not get around a forced value.
    #[test]
    fn disguised_keys() {
        assert_eq!(merged(r#"{"a":1,"a":2}"#, &[], &[("a", "9")]), r#"{"a":9,"a":9}"#);
        assert_eq!(merged(r#"{"\u0061":1}"#, &[], &[("a", "9")]), r#"{"\u0061":9}"#);
    }
}
