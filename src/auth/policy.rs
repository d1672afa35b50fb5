//! Owns: what roles and scoped tokens let a caller see.
//! Never: who has which role (`jwt`, `bearer`); the filters of a backend (`middleware::filter`).
//! Next: `desk`, what a worker keeps of it all.
//!
//! Patterns match the names that clients see. Without any allow list a role allows everything; with
//! one, kinds without a list of their own are closed, and an empty list allows nothing. Of several
//! roles all that any of them allows is allowed; what one of them denies is taken off last.

use std::sync::Arc;

use crate::jsonrpc::{self, walk};
use crate::mcp::catalog::ListKind;
use crate::middleware::filter::in_every_form;
use crate::middleware::pattern::Patterns;

/// What one role, or one scoped token, allows.
#[derive(Debug, Default)]
pub struct Role {
    /// Its name, or that of the token.
    pub name: String,
    /// `allow_tools`
    pub allow_tools: Option<Patterns>,
    /// `deny_tools`
    pub deny_tools: Patterns,
    /// `allow_resources`
    pub allow_resources: Option<Patterns>,
    /// `allow_prompts`
    pub allow_prompts: Option<Patterns>,
    /// `admin`
    pub admin: bool,
}

impl Role {
    fn has_lists(&self) -> bool {
        self.allow_tools.is_some() || self.allow_resources.is_some() || self.allow_prompts.is_some()
    }

    fn allows(&self, what: ListKind, name: &str) -> bool {
        let list = match what {
            ListKind::Tools => &self.allow_tools,
            ListKind::Resources | ListKind::Templates => &self.allow_resources,
            ListKind::Prompts => &self.allow_prompts,
        };
        match list {
            Some(patterns) => patterns.matches(name),
            None => !self.has_lists(),
        }
    }
}

/// What a caller with some roles may see.
#[derive(Clone, Debug)]
pub struct Rights {
    /// Equal for equal sets of roles.
    key: u64,
    roles: Vec<Arc<Role>>,
}

impl Rights {
    /// Those of the roles whose bits are set in `key`; `None` = everything.
    pub fn of(roles: &[Arc<Role>], key: u64) -> Option<Rights> {
        let bit = |index: usize| key.checked_shr(index as u32).unwrap_or(0) & 1 == 1;
        let with = roles.iter().enumerate().filter(|(index, _)| bit(*index));
        Rights::with(with.map(|(_, role)| role.clone()).collect(), key)
    }

    /// Those of one role, told from others by `key`; `None` = everything.
    pub fn of_one(role: Role, key: u64) -> Option<Rights> {
        Rights::with(vec![Arc::new(role)], key)
    }

    fn with(roles: Vec<Arc<Role>>, key: u64) -> Option<Rights> {
        let open = roles.iter().any(|role| !role.has_lists())
            && roles.iter().all(|role| role.deny_tools.0.is_empty());
        (!open).then_some(Rights { key, roles })
    }

    /// What tells it from other rights.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Whether the caller may see and use what has this name, URI or template text. Who may not is
    /// answered as if there were no such thing.
    pub fn shows(&self, what: ListKind, name: &str) -> bool {
        let allowed = |name: &str| self.roles.iter().any(|role| role.allows(what, name));
        match what {
            // A server may read `a/../b` as `b`: allowed is what is allowed in either form.
            ListKind::Resources => in_every_form(name, allowed),
            ListKind::Templates | ListKind::Prompts => allowed(name),
            ListKind::Tools => {
                allowed(name) && !self.roles.iter().any(|role| role.deny_tools.matches(name))
            }
        }
    }

    /// The result of a list request without what the caller may not see. Everything else of it
    /// stays as it is.
    pub fn list(&self, what: ListKind, result: &[u8]) -> Vec<u8> {
        let Some(members) = walk::members_of_checked(result) else { return result.to_vec() };
        let list = members
            .filter(|(key, _)| walk::key_is(key.of(result), what.member()))
            .map(|(_, value)| value)
            .next();
        let Some(list) = list else { return result.to_vec() };
        let array = list.of(result);
        let mut shown = Vec::with_capacity(array.len());
        shown.push(b'[');
        for element in walk::elements_of_checked(array).into_iter().flatten() {
            let entry = element.of(array);
            let name = walk::member(entry, what.key());
            let name = name.and_then(|name| name.text(entry));
            if name.is_some_and(|name| self.shows(what, &name)) {
                if shown.len() > 1 {
                    shown.push(b',');
                }
                shown.extend_from_slice(entry);
            }
        }
        shown.push(b']');
        jsonrpc::splice(result, &[(list, &shown)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::pattern::Pattern;

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns(texts.iter().map(|text| Pattern::parse(text).unwrap()).collect())
    }

    fn role(allow: Option<&[&str]>, deny: &[&str]) -> Role {
        Role { allow_tools: allow.map(patterns), deny_tools: patterns(deny), ..Role::default() }
    }

    #[test]
    fn one_role() {
        assert!(Rights::of_one(Role::default(), 1).is_none());
        let rights = Rights::of_one(role(Some(&["a__*"]), &["a__x*"]), 1).unwrap();
        for (name, shown) in [("a__b", true), ("a__x", false), ("b__b", false), ("A__b", false)] {
            assert_eq!(rights.shows(ListKind::Tools, name), shown, "{name}");
        }
        // With one list the kinds without a list are closed.
        for what in [ListKind::Prompts, ListKind::Resources, ListKind::Templates] {
            assert!(!rights.shows(what, "a__b"));
        }
        let rights = Rights::of_one(role(Some(&[]), &[]), 1).unwrap();
        assert!(!rights.shows(ListKind::Tools, "a"));
        let rights = Rights::of_one(role(None, &["a"]), 1).unwrap();
        assert!(!rights.shows(ListKind::Tools, "a"));
        assert!(rights.shows(ListKind::Tools, "b") && rights.shows(ListKind::Prompts, "a"));
    }

    #[test]
    fn several_roles_are_a_union_less_what_is_denied() {
        let roles = [
            Arc::new(role(Some(&["a*"]), &[])),
            Arc::new(role(Some(&["b*"]), &["abc"])),
            Arc::new(role(None, &[])),
        ];
        let shows = |key: u64, name: &str| {
            Rights::of(&roles, key).is_none_or(|rights| rights.shows(ListKind::Tools, name))
        };
        assert!(shows(0b001, "abc") && !shows(0b001, "b") && !shows(0b010, "a"));
        assert!(shows(0b011, "a") && shows(0b011, "b") && !shows(0b011, "abc"));
        assert!(!shows(0b011, "c") && shows(0b101, "c"));
        assert!(Rights::of(&roles, 0b101).is_none());
        assert!(!shows(0b111, "abc") && shows(0b111, "c"));
        // Nobody has no role by this way; who has, sees nothing.
        assert!(!shows(0, "a"));
    }

    #[test]
    fn uris_are_judged_in_every_spelling() {
        let role = Role { allow_resources: Some(patterns(&["file:///pub/*"])), ..Role::default() };
        let rights = Rights::of_one(role, 1).unwrap();
        for (uri, shown) in [
            ("file:///pub/a", true),
            ("file:///pub/../etc/passwd", false),
            ("file:///pub/%2e%2e/etc/passwd", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(rights.shows(ListKind::Resources, uri), shown, "{uri}");
        }
        assert!(rights.shows(ListKind::Templates, "file:///pub/{name}"));
    }

    #[test]
    fn lists_keep_what_is_shown_as_it_is() {
        let rights = Rights::of_one(role(Some(&["a*", "é"]), &["ab"]), 1).unwrap();
        let list = r#"{"tools":[{"x":1.50,"name":"a"},{"name":"b"},{"name":"ab"},{"title":"a"},{"name":"\u0061c"},{"name":"é"}],"more": 1}"#;
        let shown = rights.list(ListKind::Tools, list.as_bytes());
        assert_eq!(
            String::from_utf8(shown).unwrap(),
            r#"{"tools":[{"x":1.50,"name":"a"},{"name":"\u0061c"},{"name":"é"}],"more": 1}"#
        );
        let none = rights.list(ListKind::Prompts, br#"{"prompts":[{"name":"a"}]}"#);
        assert_eq!(none, br#"{"prompts":[]}"#);
    }
}
