//! Owns: `[[backends.param_overrides]]`: parameters of a tool that look different here.
//! Never: values that clients cannot know of (`inject`).
//! Next: `reuse`.
//!
//! ```toml
//! [[backends.param_overrides]]
//! tool = "search"
//! hide = ["api_key"]                 # gone from the schema, refused in calls
//! defaults = { limit = 10 }          # sent when the client sends nothing
//! rename = { q = "query" }           # the backend's own name = what clients see
//! ```
//! The schema in the list follows: hidden parameters are gone, renamed ones have their new name,
//! and those with a default are not required and show it. A name that another parameter of the tool
//! has is given to none: a schema with one key twice would say nothing.

use std::borrow::Cow;
use std::collections::HashMap;

use super::arguments::{Edits, Pair};
use super::{Request, Row};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Span, walk};
use crate::mcp::catalog::{Draft, ListKind};

/// The overrides of one backend, by tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params(pub HashMap<String, Override, ahash::RandomState>);

/// The overrides of one tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Override {
    /// Parameters that are not there, by their own names.
    pub hide: Vec<String>,
    /// Values of parameters that were not sent, by their own names.
    pub defaults: Vec<Pair>,
    /// Own name, and the one that clients see.
    pub rename: Vec<(String, String)>,
}

/// What becomes of one parameter in what clients see.
enum Seen<'o> {
    Gone,
    As(&'o str),
    Same,
}

impl Override {
    /// Adds the keys of another table for the same tool.
    pub fn extend(&mut self, more: Override) {
        self.hide.extend(more.hide);
        self.defaults.extend(more.defaults);
        self.rename.extend(more.rename);
    }

    /// The new names that count, with the own ones; those of `left_out` do not.
    fn renames(&self, left_out: u64) -> impl Iterator<Item = &(String, String)> {
        let counts = move |at: usize| at >= 64 || left_out & 1 << at == 0;
        self.rename.iter().enumerate().filter(move |(at, _)| counts(*at)).map(|(_, names)| names)
    }

    fn seen(&self, raw: &[u8], left_out: u64) -> Seen<'_> {
        if self.hide.iter().any(|name| walk::key_is(raw, name)) {
            return Seen::Gone;
        }
        match self.renames(left_out).find(|(own, _)| walk::key_is(raw, own)) {
            Some((_, shown)) => Seen::As(shown),
            None => Seen::Same,
        }
    }

    /// Which new names another parameter has, one bit each.
    fn left_out(&self, schema: &[u8]) -> u64 {
        let properties = walk::members_of_checked(schema).and_then(|mut all| {
            all.find(|(key, _)| walk::key_is(key.of(schema), "properties")).map(|(_, value)| value)
        });
        let Some(object) = properties.map(|span| span.of(schema)) else { return 0 };
        let Some(members) = walk::members_of_checked(object) else { return 0 };
        let keys: Vec<&[u8]> = members.map(|(key, _)| key.of(object)).collect();
        let mut left_out = 0;
        // One that keeps its name may stand in the way of another one.
        loop {
            let before = left_out;
            for (at, (own, shown)) in self.rename.iter().enumerate().take(64) {
                let keeps = |key: &&&[u8]| {
                    walk::key_is(key, shown) && matches!(self.seen(key, left_out), Seen::Same)
                };
                let is_there = keys.iter().any(|key| walk::key_is(key, own));
                if is_there && keys.iter().any(|key| keeps(&key)) {
                    left_out |= 1 << at;
                }
            }
            if left_out == before {
                return left_out;
            }
        }
    }

    fn default_of(&self, raw: &[u8]) -> Option<&[u8]> {
        let pair = self.defaults.iter().find(|(name, _)| walk::key_is(raw, name));
        pair.map(|(_, value)| &value[..])
    }

    /// The schema as clients see it.
    fn schema(&self, schema: &[u8], left_out: u64) -> Option<Vec<u8>> {
        let mut edits = Edits::default();
        for (key, value) in walk::members_of_checked(schema)? {
            let (key, raw) = (key.of(schema), value.of(schema));
            if walk::key_is(key, "properties") {
                edits.replace(value, self.properties(raw, left_out)?);
            } else if walk::key_is(key, "required")
                && let Some(required) = self.required(raw, left_out)
            {
                edits.replace(value, required);
            }
        }
        Some(edits.apply(schema))
    }

    fn properties(&self, object: &[u8], left_out: u64) -> Option<Vec<u8>> {
        let mut out = vec![b'{'];
        for (key, value) in walk::members_of_checked(object)? {
            let (key, value) = (key.of(object), value.of(object));
            let seen = self.seen(key, left_out);
            if matches!(seen, Seen::Gone) {
                continue;
            }
            if out.len() > 1 {
                out.push(b',');
            }
            match seen {
                Seen::As(name) => jsonrpc::quote(name, &mut out),
                _ => out.extend_from_slice(key),
            }
            out.push(b':');
            match self.default_of(key).and_then(|default| with_default(value, default)) {
                Some(value) => out.extend_from_slice(&value),
                None => out.extend_from_slice(value),
            }
        }
        out.push(b'}');
        Some(out)
    }

    fn required(&self, array: &[u8], left_out: u64) -> Option<Vec<u8>> {
        let mut out = vec![b'['];
        for name in walk::elements_of_checked(array)? {
            let raw = name.of(array);
            if self.default_of(raw).is_some() {
                continue;
            }
            let mut quoted = Vec::new();
            match self.seen(raw, left_out) {
                Seen::Gone => continue,
                Seen::As(name) => jsonrpc::quote(name, &mut quoted),
                Seen::Same => quoted.extend_from_slice(raw),
            }
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(&quoted);
        }
        out.push(b']');
        Some(out)
    }

    /// The arguments as the backend takes them; `None` = as they are.
    fn arguments(
        &self,
        arguments: Option<&[u8]>,
        tool: &str,
        left_out: u64,
    ) -> Result<Option<Vec<u8>>> {
        let object = arguments.unwrap_or(b"{}");
        let Some(members) = walk::members_of_checked(object) else { return Ok(None) };
        let mut edits = Edits::default();
        let mut sent = vec![false; self.defaults.len()];
        for (span, _) in members {
            let key = span.of(object);
            let renamed = self.renames(left_out).find(|(_, shown)| walk::key_is(key, shown));
            let own = match renamed {
                Some((own, _)) => {
                    let mut quoted = Vec::new();
                    jsonrpc::quote(own, &mut quoted);
                    edits.replace(span, quoted.clone());
                    Cow::Owned(quoted)
                }
                // A parameter that is hidden, or has another name here, is none.
                None if !matches!(self.seen(key, left_out), Seen::Same) => {
                    let name = span.text(object).unwrap_or_default();
                    let text = format!("{tool} has no parameter {name:?}");
                    return Err(Error::new(Kind::InvalidParams).context(text));
                }
                None => Cow::Borrowed(key),
            };
            for (at, (name, _)) in self.defaults.iter().enumerate() {
                sent[at] |= walk::key_is(&own, name);
            }
        }
        for ((key, value), sent) in self.defaults.iter().zip(sent) {
            if !sent {
                edits.add(key, value);
            }
        }
        Ok((!edits.is_empty()).then(|| edits.apply(object)))
    }
}

/// A property's schema with another `default`; `None` if it is no object.
fn with_default(schema: &[u8], default: &[u8]) -> Option<Vec<u8>> {
    let mut edits = Edits::default();
    let found = walk::members_of_checked(schema)?
        .find(|(key, _)| walk::key_is(key.of(schema), "default"))
        .map(|(_, value)| value);
    match found {
        Some(span) => edits.replace(span, default.to_vec()),
        None => edits.add("default", default),
    }
    Some(edits.apply(schema))
}

impl Row for Params {
    const LISTS: bool = true;
    const CALLS: bool = true;

    fn entry(&self, draft: &mut Draft<'_>) -> bool {
        let Some(change) = self.0.get(draft.own).filter(|_| draft.what == ListKind::Tools) else {
            return true;
        };
        let schema: Option<Span> = walk::members_of_checked(&draft.entry).and_then(|mut all| {
            all.find(|(key, _)| walk::key_is(key.of(&draft.entry), "inputSchema"))
                .map(|(_, value)| value)
        });
        let left_out = schema.map_or(0, |span| change.left_out(span.of(&draft.entry)));
        if left_out != 0 {
            draft.hints.leave_out(left_out);
            for (at, (own, shown)) in change.rename.iter().enumerate().take(64) {
                if left_out & 1 << at != 0 {
                    let tool = draft.own;
                    tracing::warn!(
                        tool,
                        own,
                        shown,
                        "a parameter keeps its name: there is another"
                    );
                }
            }
        }
        if let Some(span) = schema
            && let Some(new) = change.schema(span.of(&draft.entry), left_out)
        {
            draft.entry = Cow::Owned(jsonrpc::splice(&draft.entry, &[(span, &new)]));
        }
        true
    }

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        let Some(change) = self.0.get(&ask.own).filter(|_| ask.what == ListKind::Tools) else {
            return Ok(());
        };
        match change.arguments(ask.arguments(), ask.called, ask.hints().left_out())? {
            Some(new) => ask.set_arguments(&new),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, shaped};
    use super::*;

    fn row() -> Params {
        let change = Override {
            hide: vec!["key".into()],
            defaults: vec![("limit".into(), (*b"10").into()), ("key".into(), (*b"\"k\"").into())],
            rename: vec![("q".into(), "query".into())],
        };
        Params([("search".to_owned(), change)].into_iter().collect())
    }

    #[test]
    fn schemas_follow() {
        let tool = r#"{"name":"search","inputSchema":{"type":"object","properties":{"q":{"type":"string","maxLength":1e99}, "limit":{"default":1},"key":{},"other":true},"required":["q","limit","key","other"]},"x":1}"#;
        let (_, entry) = shaped(&row(), ListKind::Tools, tool).unwrap();
        assert_eq!(
            entry,
            r#"{"name":"search","inputSchema":{"type":"object","properties":{"query":{"type":"string","maxLength":1e99},"limit":{"default":10},"other":true},"required":["query","other"]},"x":1}"#
        );
        let other = tool.replace("search", "find");
        assert_eq!(shaped(&row(), ListKind::Tools, &other).unwrap().1, other);
    }

    #[test]
    fn calls_follow() {
        for (sent, reaches) in [
            (r#"{"query":9007199254740993}"#, r#"{"q":9007199254740993,"limit":10,"key":"k"}"#),
            (r#"{"limit":3, "z":1}"#, r#"{"limit":3, "z":1,"key":"k"}"#),
            ("{}", r#"{"limit":10,"key":"k"}"#),
        ] {
            let mut case = Case::tool("search", sent);
            case.run(&row()).unwrap();
            assert!(case.text().contains(reaches), "{}", case.text());
        }
    }

    #[test]
    fn hidden_and_old_names_are_refused() {
        for sent in [r#"{"key":"mine"}"#, r#"{"q":1}"#, "{\"\\u006bey\":1}"] {
            let error = Case::tool("search", sent).run(&row()).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidParams, "{sent}");
        }
        Case::tool("other", r#"{"key":"mine"}"#).run(&row()).unwrap();
    }

    /// The schema had one key twice, and what clients sent reached one of two parameters.
    #[test]
    fn a_name_that_another_parameter_has_is_not_given() {
        let rename = |pairs: &[(&str, &str)], hide: &[&str]| {
            let rename = pairs.iter().map(|(own, to)| ((*own).to_owned(), (*to).to_owned()));
            let hide = hide.iter().map(|name| (*name).to_owned()).collect();
            Override { hide, rename: rename.collect(), ..Override::default() }
        };
        let schema = br#"{"properties":{"a":1,"b":2,"c":3}}"#;
        for (pairs, hide, left_out, shown) in [
            (&[("a", "b")][..], &[][..], 1, r#"{"a":1,"b":2,"c":3}"#),
            (&[("a", "b")], &["b"], 0, r#"{"b":1,"c":3}"#),
            (&[("a", "b"), ("b", "a")], &[], 0, r#"{"b":1,"a":2,"c":3}"#),
            // The one behind keeps its name, so the one before has to.
            (&[("a", "b"), ("b", "c")], &[], 3, r#"{"a":1,"b":2,"c":3}"#),
            (&[("a", "x"), ("z", "b")], &[], 0, r#"{"x":1,"b":2,"c":3}"#),
        ] {
            let row = rename(pairs, hide);
            assert_eq!(row.left_out(schema), left_out, "{pairs:?}");
            let seen = String::from_utf8(row.schema(schema, left_out).unwrap()).unwrap();
            assert_eq!(seen, format!(r#"{{"properties":{shown}}}"#), "{pairs:?}");
        }
        let row = Params([("t".to_owned(), rename(&[("a", "b")], &[]))].into_iter().collect());
        let mut case = Case::tool("t", r#"{"a":1,"b":2}"#);
        case.known = Some("t");
        case.hints.leave_out(1);
        case.run(&row).unwrap();
        assert!(case.text().contains(r#""arguments":{"a":1,"b":2}"#), "{}", case.text());
    }
}
