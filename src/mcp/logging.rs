//! Owns: log levels, and log messages on their way to a client.
//! Never: who gets them.
//! Next: `tasks`.
//!
//! MCP 2025-11-25, Server Features, Logging; RFC 5424 §6.2.1.

use crate::jsonrpc::{self, Span, walk};
use crate::plan::BackendPlan;

/// How severe a message is; the least severe is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// `debug`
    Debug = 1,
    /// `info`
    Info,
    /// `notice`
    Notice,
    /// `warning`
    Warning,
    /// `error`
    Error,
    /// `critical`
    Critical,
    /// `alert`
    Alert,
    /// `emergency`
    Emergency,
}

impl Level {
    /// All, the least severe first.
    pub const ALL: [Level; 8] = [
        Level::Debug,
        Level::Info,
        Level::Notice,
        Level::Warning,
        Level::Error,
        Level::Critical,
        Level::Alert,
        Level::Emergency,
    ];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Notice => "notice",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
            Level::Alert => "alert",
            Level::Emergency => "emergency",
        }
    }

    /// The level of that name; `None` for any other.
    pub fn parse(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

/// The method of a log message.
pub const MESSAGE: &str = "notifications/message";

/// A log message of a backend as a client shall see it that asked for `least`: its logger names the
/// backend, unless the backend exposes its own names. `None`: it is below that level.
pub fn shaped(message: Vec<u8>, least: Option<Level>, backend: &BackendPlan) -> Option<Vec<u8>> {
    let Some(params) = walk::member(&message, "params") else { return Some(message) };
    let of = |name: &str| {
        let span = walk::member(params.of(&message), name)?;
        Some(Span { start: params.start + span.start, end: params.start + span.end })
    };
    if let Some(least) = least
        && let Some(level) = of("level").and_then(|level| level.text(&message))
        // What is no level is passed on: it is not ours to judge.
        && Level::parse(&level).is_some_and(|level| level < least)
    {
        return None;
    }
    if backend.prefix.is_empty() || message[params.start as usize] != b'{' {
        return Some(message);
    }
    match of("logger") {
        Some(logger) if message[logger.start as usize] == b'"' => {
            let inside = Span { start: logger.start + 1, end: logger.start + 1 };
            let mut name = Vec::with_capacity(backend.name.len() + 1);
            jsonrpc::quote_into(&backend.name, &mut name);
            name.push(b'/');
            Some(jsonrpc::splice(&message, &[(inside, &name)]))
        }
        // Null or worse.
        Some(_) => Some(message),
        None => {
            let object = params.of(&message);
            let empty = object[1..object.len() - 1].iter().all(u8::is_ascii_whitespace);
            let mut member = b"\"logger\":".to_vec();
            jsonrpc::quote(&backend.name, &mut member);
            if !empty {
                member.push(b',');
            }
            let behind = Span { start: params.start + 1, end: params.start + 1 };
            Some(jsonrpc::splice(&message, &[(behind, &member)]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(prefix: &str) -> BackendPlan {
        BackendPlan::bare(0, "git", prefix)
    }

    fn log(params: &str) -> Vec<u8> {
        format!(r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{params}}}"#).into()
    }

    fn seen(params: &str, least: Option<Level>, prefix: &str) -> Option<String> {
        let message = shaped(log(params), least, &backend(prefix))?;
        let params = walk::member(&message, "params")?;
        Some(String::from_utf8(params.of(&message).to_vec()).unwrap())
    }

    #[test]
    fn the_logger_names_the_backend() {
        for (params, wanted) in [
            (r#"{"level":"info","data":1}"#, r#"{"logger":"git","level":"info","data":1}"#),
            (r#"{"logger":"db","data":1.0}"#, r#"{"logger":"git/db","data":1.0}"#),
            (r#"{"logger":null}"#, r#"{"logger":null}"#),
            ("{}", r#"{"logger":"git"}"#),
            ("[1]", "[1]"),
        ] {
            assert_eq!(seen(params, None, "git__").as_deref(), Some(wanted));
            assert_eq!(seen(params, None, "").as_deref(), Some(params), "its own names");
        }
    }

    #[test]
    fn what_is_below_the_level_is_not_seen() {
        let warning = Some(Level::Warning);
        assert_eq!(seen(r#"{"level":"info"}"#, warning, ""), None);
        for params in [r#"{"level":"warning"}"#, r#"{"level":"alert"}"#, r#"{"level":"x"}"#, "{}"] {
            assert!(seen(params, warning, "").is_some(), "{params}");
        }
        assert!(Level::ALL.is_sorted());
        assert!(Level::ALL.iter().all(|level| Level::parse(level.as_str()) == Some(*level)));
    }
}
