//! Owns: where messages to a server of the older transport are posted, as its first event says.
//! Never: another origin than the one that was configured; I/O.
//! Next: `relay`, what servers send by themselves.
//!
//! MCP 2024-11-05, Transports, HTTP with SSE: the URI of the `endpoint` event is a reference against
//! the URL of the stream (RFC 3986 §5.2). It comes from the server, so it may choose a path and a
//! query and nothing else: credentials go with every message.

use super::failure::Failure;
use crate::error::Kind;
use crate::limits;
use crate::plan::HttpPlan;

/// The request target (path and query) of the endpoint.
///
/// # Errors
/// It is none, or one of another origin.
pub(super) fn resolve(plan: &HttpPlan, named: &[u8]) -> Result<String, Failure> {
    let refused = |cause: &str| {
        Failure::new(Kind::BadAnswer, format!("the endpoint that the server names: {cause}"))
    };
    let named = named.trim_ascii();
    if named.is_empty() || named.len() > limits::ENDPOINT_BYTES_MAX {
        return Err(refused("empty or too long"));
    }
    let legal = |b: &u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(b);
    if !named.iter().all(legal) {
        return Err(refused("a character that no URI has"));
    }
    let text = std::str::from_utf8(named).map_err(|_| refused("not ASCII"))?;
    let text = text.split('#').next().unwrap_or_default();
    let https = plan.tls.is_some();
    let rest = match scheme(text) {
        Some((scheme, rest)) => {
            let ours = if https { "https" } else { "http" };
            if !scheme.eq_ignore_ascii_case(ours) || !rest.starts_with("//") {
                return Err(refused("another scheme"));
            }
            rest
        }
        None => text,
    };
    let Some(rest) = rest.strip_prefix("//") else {
        return Ok(against(&plan.target, rest));
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    if !is_ours(plan, authority, if https { 443 } else { 80 }) {
        return Err(refused("another origin"));
    }
    Ok(if target.starts_with('/') { without_dots(target) } else { format!("/{target}") })
}

/// What stands before a colon, if that is a scheme (RFC 3986 §3.1).
fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let starts = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    (starts && scheme.bytes().all(legal)).then_some((scheme, rest))
}

fn is_ours(plan: &HttpPlan, authority: &str, default: u16) -> bool {
    let host_len = match authority.starts_with('[') {
        true => authority.find(']').map_or(authority.len(), |at| at + 1),
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_len);
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => Some(default),
        Some("") => Some(default),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case(&plan.host) && port == Some(plan.port)
}

/// A reference without scheme and authority against the target of the stream.
fn against(base: &str, reference: &str) -> String {
    let path = base.split('?').next().unwrap_or_default();
    if reference.is_empty() {
        return base.to_owned();
    }
    if reference.starts_with('/') {
        return without_dots(reference);
    }
    if reference.starts_with('?') {
        return format!("{path}{reference}");
    }
    let folder = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    without_dots(&format!("{folder}{reference}"))
}

/// RFC 3986 §5.2.4, for a target that begins with a slash.
fn without_dots(target: &str) -> String {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::http_plan;

    #[test]
    fn references_are_resolved_within_the_origin() {
        let mut plan = http_plan(8000);
        plan.host = "backend.example".into();
        plan.target = "/api/sse?key=1".into();
        for (named, target) in [
            ("/messages?sessionId=a-1", "/messages?sessionId=a-1"),
            ("/messages/?session_id=ab%2f", "/messages/?session_id=ab%2f"),
            ("messages", "/api/messages"),
            ("?id=1", "/api/sse?id=1"),
            ("../m/./x/../y?a=../b", "/m/y?a=../b"),
            ("../../../m", "/m"),
            ("./", "/api/"),
            ("http://backend.example:8000/m?x#part", "/m?x"),
            ("HTTP://Backend.Example:8000?x", "/?x"),
            ("//backend.example:8000/m", "/m"),
            (" /padded ", "/padded"),
            ("/a:b", "/a:b"),
        ] {
            assert_eq!(resolve(&plan, named.as_bytes()).unwrap(), target, "{named}");
        }
        plan.port = 80;
        assert_eq!(resolve(&plan, b"http://backend.example/m").unwrap(), "/m");
    }

    #[test]
    fn another_origin_is_refused_however_it_is_written() {
        let mut plan = http_plan(8000);
        plan.host = "backend.example".into();
        for named in [
            "http://other.example:8000/m",
            "http://backend.example/m",
            "http://backend.example:8001/m",
            "https://backend.example:8000/m",
            "//other.example/m",
            "http:/m",
            "javascript:1",
            "http://backend.example:8000@other.example/m",
            "http://user@backend.example:8000/m",
            "http://backend.example.:8000/m",
            "http://backend.example:08x/m",
            "\\\\other.example\\m",
            "/a b",
            "/a\r\nX: y",
            "/\u{e4}",
            "",
        ] {
            let failure = resolve(&plan, named.as_bytes()).expect_err(named);
            assert_eq!(failure.kind, Kind::BadAnswer);
        }
        let long = format!("/{}", "x".repeat(limits::ENDPOINT_BYTES_MAX));
        assert!(resolve(&plan, long.as_bytes()).is_err());
    }
}
