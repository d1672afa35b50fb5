//! Owns: `[[backends.aliases]]`: other names for a backend's tools and prompts.
//! Never: prefixes (`mcp::name`).
//! Next: `filter`.
//!
//! ```toml
//! [[backends.aliases]]
//! from = "read_file"   # the backend's own name
//! to = "read"          # what clients see and call, behind the prefix
//! ```
//! `from` is gone: listed and callable is `to` alone. Of two entries with one name the first of the
//! backend's list keeps it.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Request, Row};
use crate::error::Result;
use crate::mcp::catalog::{Draft, ListKind};

/// The aliases of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alias {
    by_own: HashMap<String, String, ahash::RandomState>,
    by_shown: HashMap<String, String, ahash::RandomState>,
}

impl Alias {
    /// Adds an alias.
    ///
    /// # Errors
    /// One of both names has been used before: which.
    pub fn add(&mut self, from: &str, to: &str) -> std::result::Result<(), String> {
        if self.by_own.contains_key(from) {
            return Err(from.to_owned());
        }
        if self.by_shown.contains_key(to) {
            return Err(to.to_owned());
        }
        self.by_own.insert(from.to_owned(), to.to_owned());
        self.by_shown.insert(to.to_owned(), from.to_owned());
        Ok(())
    }
}

impl Row for Alias {
    const LISTS: bool = true;
    const CALLS: bool = true;

    fn entry(&self, draft: &mut Draft<'_>) -> bool {
        if matches!(draft.what, ListKind::Tools | ListKind::Prompts)
            && let Some(to) = self.by_own.get(draft.own)
        {
            draft.shown = Cow::Owned(to.clone());
        }
        true
    }

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        if !matches!(ask.what, ListKind::Tools | ListKind::Prompts) {
            return Ok(());
        }
        let own = match (&ask.known, self.by_shown.get(&ask.own)) {
            // The list decides, so that a call does what the list shows.
            (Some(known), _) => known.own.to_owned(),
            (None, Some(from)) => from.clone(),
            (None, None) if self.by_own.contains_key(&ask.own) => return Err(ask.unknown()),
            (None, None) => return Ok(()),
        };
        if own != ask.own {
            ask.set_name(&own)?;
            ask.own = own;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, shaped};
    use super::*;
    use crate::error::Kind;

    fn alias(pairs: &[(&str, &str)]) -> Alias {
        let mut alias = Alias::default();
        for (from, to) in pairs {
            alias.add(from, to).unwrap();
        }
        alias
    }

    #[test]
    fn a_name_is_taken_once() {
        let mut alias = alias(&[("a", "b")]);
        assert_eq!(alias.add("a", "c"), Err("a".into()));
        assert_eq!(alias.add("x", "b"), Err("b".into()));
        alias.add("b", "a").unwrap();
    }

    #[test]
    fn lists_show_the_new_name() {
        let row = alias(&[("a", "b")]);
        assert_eq!(shaped(&row, ListKind::Tools, r#"{"name":"a"}"#).unwrap().0, "b");
        assert_eq!(shaped(&row, ListKind::Prompts, r#"{"name":"c"}"#).unwrap().0, "c");
    }

    #[test]
    fn calls_reach_the_own_name_and_the_old_one_is_gone() {
        let row = alias(&[("a", "b")]);
        let mut case = Case::tool("b", r#"{"x":1.0}"#);
        case.run(&row).unwrap();
        assert_eq!(case.own, "a");
        assert!(case.text().contains(r#""name":"a","arguments":{"x":1.0}"#));
        let error = Case::tool("a", "{}").run(&row).unwrap_err();
        assert_eq!(error.kind(), Kind::UnknownTool);
        Case::tool("c", "{}").run(&row).unwrap();
    }

    #[test]
    fn two_names_can_change_places() {
        let row = alias(&[("a", "b"), ("b", "a")]);
        for (called, own) in [("a", "b"), ("b", "a")] {
            let mut case = Case::tool(called, "{}");
            case.run(&row).unwrap();
            assert_eq!(case.own, own);
        }
    }

    #[test]
    fn the_list_decides() {
        // The backend lists its own "b" before "a": it keeps the name.
        let row = alias(&[("a", "b")]);
        let mut case = Case::tool("b", "{}");
        case.known = Some("b");
        case.run(&row).unwrap();
        assert_eq!(case.own, "b");
    }
}
