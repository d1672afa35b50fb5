//! Owns: the HTTP fields of Streamable HTTP: who may call, and in which media types.
//! Never: sockets; who a caller is.
//! Next: `envelope`, what a request says of itself instead in the newer era.
//!
//! MCP 2025-11-25, Basic, Transports; RFC 6454 (Origin), RFC 9110 §12.5.1 (Accept).

use crate::plan::{HostRule, OriginRule};

/// The field that names a session.
pub const SESSION: &str = "Mcp-Session-Id";
/// The field that names the revision of a request.
pub const VERSION: &str = "MCP-Protocol-Version";
/// The field that repeats a request's method (2026-07-28).
pub const METHOD: &str = "Mcp-Method";
/// The field that repeats what a request is about: a name, or the URI of a resource (2026-07-28).
pub const NAME: &str = "Mcp-Name";
/// Begins the name of a field that repeats an argument (2026-07-28).
pub const PARAM: &str = "Mcp-Param-";

/// The field in which the program that embeds the proxy says for whom it speaks: `IP:PORT`. Only on
/// connections that it has made itself; anywhere else it is a field like any other.
pub const CLIENT: &str = "mcp-proxy-client";

/// Whether a loopback name stands in an authority: `localhost`, 127.0.0.0/8 or `[::1]`.
fn loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || matches!(host, "127.0.0.1" | "[::1]")
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|addr| addr.is_loopback())
}

/// Splits `host[:port]`; `None` if it is neither.
fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(end);
    if host.is_empty() {
        return None;
    }
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some((host, None)),
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().map(|port| (host, Some(port)))
        }
        Some(_) => None,
    }
}

/// Whether a `Host` is what local clients send as a rule; what is not is read.
fn is_plain_loopback(host: &[u8]) -> bool {
    let port = match host {
        [b'1', b'2', b'7', b'.', b'0', b'.', b'0', b'.', b'1', port @ ..] => port,
        [b'l', b'o', b'c', b'a', b'l', b'h', b'o', b's', b't', port @ ..] => port,
        _ => return false,
    };
    match port {
        [] => true,
        [b':', digits @ ..] if matches!(digits.len(), 1..=5) => {
            let number = digits.iter().try_fold(0u32, |number, digit| {
                digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0'))
            });
            number.is_some_and(|number| number <= 65535)
        }
        _ => false,
    }
}

impl HostRule {
    /// Whether a request for this `Host` is served: anything else would let a page that rebinds
    /// its name to a loopback address talk to the proxy.
    pub fn allows(&self, host: &[u8]) -> bool {
        if matches!(self, HostRule::Loopback) && is_plain_loopback(host) {
            return true;
        }
        let Ok(host) = std::str::from_utf8(host) else { return false };
        match self {
            HostRule::Any => true,
            HostRule::Loopback => authority(host).is_some_and(|(name, _)| loopback(name)),
            HostRule::Listed(list) => authority(host).is_some_and(|(name, _)| {
                list.iter().any(|item| match authority(item) {
                    Some((_, Some(_))) => item.eq_ignore_ascii_case(host),
                    _ => item.eq_ignore_ascii_case(name),
                })
            }),
        }
    }
}

impl OriginRule {
    /// Whether a page of this origin may call. Compared whole; `null` never matches.
    pub fn allows(&self, origin: &[u8]) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else { return false };
        match self {
            OriginRule::Listed(list) => list.iter().any(|item| item.eq_ignore_ascii_case(origin)),
            OriginRule::Loopback => {
                let lower = origin.to_ascii_lowercase();
                lower
                    .strip_prefix("http://")
                    .or_else(|| lower.strip_prefix("https://"))
                    .and_then(authority)
                    .is_some_and(|(name, _)| loopback(name))
            }
        }
    }
}

/// What clients of MCP send as `Accept`.
pub const USUAL_ACCEPT: &[u8] = b"application/json, text/event-stream";

/// Whether the `Accept` fields take JSON, and whether they take event streams.
///
/// What clients send as a rule is known by its bytes; anything else is read.
pub fn accepted<'a>(fields: impl Iterator<Item = &'a [u8]> + Clone) -> (bool, bool) {
    let mut usual = fields.clone();
    if let (Some(USUAL_ACCEPT), None) = (usual.next(), usual.next()) {
        return (true, true);
    }
    (accepts(fields.clone(), "application", "json"), accepts(fields, "text", "event-stream"))
}

/// Whether the media ranges of one or more `Accept` fields take `kind/sub`: of those that it falls
/// under, the most specific one decides. Weights are read only for `q=0`, which refuses.
fn accepts<'a>(fields: impl Iterator<Item = &'a [u8]>, kind: &str, sub: &str) -> bool {
    let mut fields = fields.peekable();
    if fields.peek().is_none() {
        return true;
    }
    // How specific the best range is, and whether it takes.
    let mut best: Option<(u8, bool)> = None;
    for range in fields.filter_map(|f| std::str::from_utf8(f).ok()).flat_map(|f| f.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let Some((left, right)) = media.split_once('/') else { continue };
        let specific = match (left, right) {
            ("*", "*") => 0,
            _ if !left.eq_ignore_ascii_case(kind) => continue,
            (_, "*") => 1,
            _ if right.eq_ignore_ascii_case(sub) => 2,
            _ => continue,
        };
        best = best.max(Some((specific, !parts.any(is_refusal))));
    }
    best.is_some_and(|(_, taken)| taken)
}

/// Whether a parameter of a media range is the weight 0 (RFC 9110 §12.4.2).
fn is_refusal(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.eq_ignore_ascii_case("q") && matches!(value, "0" | "0." | "0.0" | "0.00" | "0.000")
    })
}

/// Whether a `Content-Type` is JSON in UTF-8 (or says no charset).
pub fn is_json(content_type: &[u8]) -> bool {
    if content_type == b"application/json" {
        return true;
    }
    let Ok(text) = std::str::from_utf8(content_type) else { return false };
    let mut parts = text.split(';').map(str::trim);
    parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/json"))
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
                value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (host, ok) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9", true),
            ("[::1]:8080", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost:", false),
            ("localhost:80x", false),
            ("", false),
        ] {
            assert_eq!(HostRule::Loopback.allows(host.as_bytes()), ok, "{host}");
        }
        let listed = HostRule::Listed(vec!["mcp.example".into(), "b.example:444".into()]);
        assert!(listed.allows(b"MCP.example:8443") && listed.allows(b"b.example:444"));
        assert!(!listed.allows(b"b.example") && !listed.allows(b"other.example"));
    }

    #[test]
    fn origins() {
        for (origin, ok) in [
            ("http://localhost:5173", true),
            ("https://127.0.0.1", true),
            ("http://[::1]:1", true),
            ("null", false),
            ("http://evil.example", false),
            ("http://localhost.evil.example", false),
            ("http://localhost@evil.example", false),
            ("file://localhost", false),
        ] {
            assert_eq!(OriginRule::Loopback.allows(origin.as_bytes()), ok, "{origin}");
        }
    }

    #[test]
    fn media_ranges() {
        let one = |text: &'static str| std::iter::once(text.as_bytes());
        assert!(accepts(one("text/event-stream, application/json"), "application", "json"));
        assert!(accepts(one("*/*"), "text", "event-stream"));
        assert!(accepts(one("application/*;q=0.5"), "application", "json"));
        assert!(!accepts(one("application/json;q=0"), "application", "json"));
        assert!(!accepts(one("application/json"), "text", "event-stream"));
        assert!(accepts(std::iter::empty(), "text", "event-stream"));
        for (field, both) in [
            ("application/json, text/event-stream", (true, true)),
            ("text/event-stream,application/json", (true, true)),
            ("application/json", (true, false)),
            ("text/event-stream;q=0, */*", (true, false)),
            ("*/*;q=0, application/json", (true, false)),
            ("text/*;Q=0., */*", (true, false)),
            ("text/*;q=0.001", (false, true)),
        ] {
            assert_eq!(accepted(one(field)), both, "{field}");
        }
        assert_eq!(accepted(std::iter::empty()), (true, true));
        assert!(is_json(b"application/json; charset=UTF-8") && !is_json(b"text/plain"));
        assert!(!is_json(b"application/json; charset=latin1"));
    }
}
