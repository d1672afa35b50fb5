//! Owns: `[backends.hedging]`: when a second attempt is sent beside a slow first one.
//! Never: a clock, the attempts themselves (`backend::around`).
//! Next: `retry`.
//!
//! ```toml
//! [backends.hedging]
//! delay_ms = 200      # so long the attempts sent so far may take
//! max_hedges = 1
//! tools = ["quote_*"] # hedged although they are not annotated read-only or idempotent
//! ```
//! The first success wins and the others are cancelled; an error is the answer only when all have
//! failed. Where a retry budget is set, hedges are taken from it.

use std::time::Duration;

use super::pattern::Patterns;

/// The settings of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Hedge {
    /// Pause before each further attempt.
    pub delay: Duration,
    /// Further attempts of one call at most.
    pub max_hedges: u32,
    /// Tools that are hedged whatever their annotations.
    pub tools: Patterns,
}

impl Hedge {
    /// Whether a call is hedged: `safe` = it is a read, or its tool is annotated as repeatable.
    pub fn applies(&self, safe: bool, tool: Option<&str>) -> bool {
        self.max_hedges > 0 && (safe || tool.is_some_and(|tool| self.tools.matches(tool)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Pattern;
    use super::*;

    #[test]
    fn reads_annotated_tools_and_listed_ones() {
        let tools = Patterns(vec![Pattern::parse("quote_*").unwrap()]);
        let hedge = Hedge { delay: Duration::ZERO, max_hedges: 1, tools };
        assert!(hedge.applies(true, None) && hedge.applies(true, Some("x")));
        assert!(hedge.applies(false, Some("quote_a")) && !hedge.applies(false, Some("pay")));
        assert!(!Hedge { max_hedges: 0, ..hedge }.applies(true, None));
    }
}
