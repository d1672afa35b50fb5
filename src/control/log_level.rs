//! Owns: what a level of the log may say.
//! Never: setting it.
//! Next: `watching`, the threads beside the workers.

use tracing_subscriber::EnvFilter;

use super::diagnose::nearest;

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Checks a level, or directives such as `info,mcp_proxy=debug`.
///
/// A word alone must be a level: the log's own parser takes any other word for the name of a module,
/// whose log alone is then written, and nothing else of what goes wrong.
///
/// # Errors
/// What was found, and what is accepted.
pub(super) fn check(text: &str) -> Result<(), String> {
    let accepted = |found: &str, hint: String| {
        Err(format!(
            "found {found:?}, accepted: error, warn, info, debug, trace, off, or directives such \
             as \"info,mcp_proxy=debug\"{hint}"
        ))
    };
    let word = text.split(',').map(str::trim).find(|directive| {
        let is_word = !directive.contains(['=', '[']);
        is_word && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive))
    });
    if let Some(word) = word {
        let meant = nearest(word, LEVELS.into_iter());
        let hint = meant.map_or(String::new(), |meant| format!("; did you mean {meant:?}?"));
        return accepted(word, hint);
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(()),
        Err(_) => accepted(text, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_is_a_level() {
        for text in ["info", "OFF", "warn,mcp_proxy=debug", "mcp_proxy::worker=trace, error"] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for (text, part) in [
            ("wran", "found \"wran\", accepted: error, warn"),
            ("wran", "did you mean \"warn\"?"),
            ("info,mcp_proxy", "found \"mcp_proxy\""),
            ("", "found \"\""),
            ("info,", "found \"\""),
            ("x=y=z", "found \"x=y=z\""),
            ("mcp_proxy=loud", "found \"mcp_proxy=loud\""),
        ] {
            let told = check(text).unwrap_err();
            assert!(told.contains(part), "{text}: {told}");
        }
    }
}
