//! Owns: `[backends.default_args]` and `[[backends.inject_args]]`.
//! Never: parameters that look different to clients (`params`).
//! Next: `around`, the rows that stand around a call.
//!
//! ```toml
//! [backends.default_args]        # put to every tool call of this backend
//! timeout = 30
//!
//! [[backends.inject_args]]       # put to the calls of one tool
//! tool = "query"
//! args = { read_only = true, max_rows = 1000 }
//! overwrite = false              # true: also over what the client sent
//! ```
//! Weakest first: `default_args`, `inject_args`, the client's own value, `inject_args` with
//! `overwrite = true`; of several for one tool the last. Per top-level key.

use std::collections::HashMap;

use super::arguments::{Pair, merge};
use super::{Request, Row};
use crate::error::Result;
use crate::mcp::catalog::ListKind;

/// What is put to the calls of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inject {
    /// To tools that have nothing of their own.
    other: Vec<Pair>,
    tools: HashMap<String, Merge, ahash::RandomState>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Merge {
    fill: Vec<Pair>,
    force: Vec<Pair>,
}

fn put(pairs: &mut Vec<Pair>, (key, value): Pair) {
    match pairs.iter_mut().find(|(name, _)| *name == key) {
        Some(pair) => pair.1 = value,
        None => pairs.push((key, value)),
    }
}

impl Inject {
    /// With `default_args`.
    pub fn new(default_args: Vec<Pair>) -> Inject {
        Inject { other: default_args, tools: HashMap::default() }
    }

    /// Adds one `inject_args`.
    pub fn add(&mut self, tool: &str, args: Vec<Pair>, overwrite: bool) {
        let fresh = || Merge { fill: self.other.clone(), force: Vec::new() };
        let merge = self.tools.entry(tool.to_owned()).or_insert_with(fresh);
        for pair in args {
            put(if overwrite { &mut merge.force } else { &mut merge.fill }, pair);
        }
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.other.is_empty() && self.tools.is_empty()
    }
}

impl Row for Inject {
    const CALLS: bool = true;

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        if ask.what != ListKind::Tools {
            return Ok(());
        }
        let (fill, force) = match self.tools.get(&ask.own) {
            Some(Merge { fill, force }) => (&fill[..], &force[..]),
            None => (&self.other[..], &[][..]),
        };
        match merge(ask.arguments(), fill, force) {
            Some(new) => ask.set_arguments(&new),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Case;
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<Pair> {
        list.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().into())).collect()
    }

    #[test]
    fn precedence_weakest_first() {
        let mut row = Inject::new(pairs(&[("a", "1"), ("b", "1"), ("c", "1")]));
        row.add("t", pairs(&[("b", "2"), ("c", "2"), ("d", "2")]), false);
        row.add("t", pairs(&[("d", "4")]), true);
        let mut case = Case::tool("t", r#"{"c":3,"d":3}"#);
        case.run(&row).unwrap();
        assert!(case.text().contains(r#"{"c":3,"d":4,"a":1,"b":2}"#), "{}", case.text());
        let mut case = Case::tool("other", r#"{"c":3,"d":3}"#);
        case.run(&row).unwrap();
        assert!(case.text().contains(r#"{"c":3,"d":3,"a":1,"b":1}"#), "{}", case.text());
    }

    #[test]
    fn a_call_without_arguments_gets_some() {
        let row = Inject::new(pairs(&[("a", "[1]")]));
        for mut case in [Case::bare_tool("t"), Case::tool("t", "null"), Case::tool("t", "{}")] {
            case.run(&row).unwrap();
            assert!(case.text().contains(r#""name":"t","arguments":{"a":[1]}"#), "{}", case.text());
        }
        let mut case = Case::prompt("t", "{}");
        case.run(&row).unwrap();
        assert!(!case.text().contains("[1]"));
    }
}
