//! Owns: what a tool says about itself (MCP 2025-11-25, Schema, ToolAnnotations).
//! Never: trust; these are hints of the backend's, on which an operator's rules may rely.
//! Next: `cache`, how long lists hold.

use crate::jsonrpc::walk;

/// The hints of one tool, with the protocol's defaults for what it leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    read_only: Option<bool>,
    destructive: Option<bool>,
    idempotent: Option<bool>,
    /// See [`Hints::left_out`].
    left_out: u64,
}

impl Hints {
    /// New names of its parameters that it cannot have, since another parameter is called so: one bit
    /// for each of the configured ones, in their order.
    pub fn left_out(self) -> u64 {
        self.left_out
    }

    /// See [`Hints::left_out`].
    pub fn leave_out(&mut self, left_out: u64) {
        self.left_out = left_out;
    }

    /// Reads the entry of a tool list.
    pub fn of(tool: &[u8]) -> Hints {
        let mut hints = Hints::default();
        let Some(members) = walk::members_of_checked(tool) else { return hints };
        for (key, value) in members {
            if !walk::key_is(key.of(tool), "annotations") {
                continue;
            }
            let annotations = value.of(tool);
            let Some(members) = walk::members_of_checked(annotations) else { continue };
            for (key, value) in members {
                let said = match value.of(annotations) {
                    b"true" => Some(true),
                    b"false" => Some(false),
                    _ => None,
                };
                let key = key.of(annotations);
                if walk::key_is(key, "readOnlyHint") {
                    hints.read_only = said;
                } else if walk::key_is(key, "destructiveHint") {
                    hints.destructive = said;
                } else if walk::key_is(key, "idempotentHint") {
                    hints.idempotent = said;
                }
            }
        }
        hints
    }

    /// It changes nothing. Default: it may.
    pub fn read_only(self) -> bool {
        self.read_only == Some(true)
    }

    /// It may destroy something: not read-only, and not said to only add. Default: it may.
    pub fn destructive(self) -> bool {
        !self.read_only() && self.destructive != Some(false)
    }

    /// Calling it twice is as calling it once. Default: it is not.
    pub fn repeatable(self) -> bool {
        self.read_only() || self.idempotent == Some(true)
    }

    /// It says itself that it changes or destroys something.
    pub fn says_it_writes(self) -> bool {
        self.read_only == Some(false) || self.destructive == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_words() {
        let of = |annotations: &str| {
            Hints::of(format!(r#"{{"name":"a","annotations":{annotations}}}"#).as_bytes())
        };
        for silent in [Hints::of(br#"{"name":"a"}"#), of("null"), of("{}"), of("[1]")] {
            assert!(!silent.read_only() && silent.destructive() && !silent.repeatable());
            assert!(!silent.says_it_writes());
        }
        let reader = of(r#"{"readOnlyHint":true,"destructiveHint":true}"#);
        assert!(reader.read_only() && !reader.destructive() && reader.repeatable());
        let adder = of(r#"{"destructiveHint":false}"#);
        assert!(!adder.read_only() && !adder.destructive() && !adder.repeatable());
        let setter = of(r#"{"idempotentHint":true,"readOnlyHint":false}"#);
        assert!(setter.destructive() && setter.repeatable() && setter.says_it_writes());
        // What is no boolean says nothing.
        assert!(!of(r#"{"readOnlyHint":"true"}"#).read_only());
        // Written with escapes it is the same word.
        assert!(of("{\"readOnly\\u0048int\":true}").read_only());
    }
}
