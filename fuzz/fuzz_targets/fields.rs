//! Laws of the small texts that come in fields and identifiers:
//! - a trace context is read exactly if it has the shape of W3C Trace Context, and is written again as
//!   it was;
//! - Accept is read as RFC 9110 §12.5.1 says it, and never depends on how clients usually write it;
//! - a page or a Host that passes for loopback is on loopback for a plain reader too;
//! - a token is shown only by what is a bearer's field, whole;
//! - what is written into a field reads back, and what is read of an identifier is written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::auth::bearer::shown;
use mcp_proxy::http::head::is_value;
use mcp_proxy::limits::TOKEN_BYTES_MAX;
use mcp_proxy::mcp::event::EventId;
use mcp_proxy::mcp::header::{accepted, is_json};
use mcp_proxy::mcp::logging::Level;
use mcp_proxy::mcp::method::Method;
use mcp_proxy::mcp::mirrored::{decode, encode};
use mcp_proxy::mcp::session::SessionId;
use mcp_proxy::plan::{HostRule, OriginRule};
use mcp_proxy::telemetry::trace::{Context, PARENT_LEN};

fuzz_target!(|data: &[u8]| {
    trace(data);
    accept(data);
    loopback(data);
    tokens(data);
    identifiers(data);
    mirrored(data);
});

fn trace(text: &[u8]) {
    let ours = Context::parse(text);
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|b| *b == b'0');
    let parts: Vec<&[u8]> = text.split(|b| *b == b'-').collect();
    let good = text.is_ascii()
        && match parts.as_slice() {
            [version, trace, span, flags, more @ ..] => {
                let sizes = [version.len(), trace.len(), span.len(), flags.len()];
                sizes == [2, 32, 16, 2]
                    && [version, trace, span, flags].iter().all(|part| hex(part))
                    && **version != *b"ff"
                    && !zero(trace)
                    && !zero(span)
                    && (more.is_empty() || **version != *b"00")
            }
            _ => false,
        };
    assert_eq!(ours.is_some(), good);
    if let Some(context) = ours {
        let written = context.write();
        assert_eq!(written.as_bytes()[3..53], text[3..53]);
        assert_eq!(Context::parse(written.as_bytes()), Some(context));
        assert_eq!(written.len(), PARENT_LEN);
    }
}

fn accept(data: &[u8]) {
    let fields: Vec<&[u8]> = data.split(|b| *b == b'\n').collect();
    let ours = accepted(fields.iter().copied());
    assert_eq!(
        ours,
        (takes(&fields, "application", "json"), takes(&fields, "text", "event-stream"))
    );
    // Several fields are one list.
    let joined = fields.join(&b","[..]);
    if std::str::from_utf8(&joined).is_ok() {
        assert_eq!(accepted(std::iter::once(joined.as_slice())), ours);
    }
    assert_eq!(accepted(std::iter::empty()), (true, true));
    assert_eq!(is_json(data), is_json(&data.to_ascii_uppercase()));
}

/// The most specific range that a type falls under decides.
fn takes(fields: &[&[u8]], kind: &str, sub: &str) -> bool {
    let mut best: Option<(u8, bool)> = None;
    for field in fields.iter().filter_map(|field| std::str::from_utf8(field).ok()) {
        for range in field.split(',') {
            let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
            let media = parts.next().unwrap_or_default();
            let specific = match media.split_once('/') {
                Some((left, right)) if (left, right) == (kind, sub) => 2,
                Some((left, "*")) if left == kind => 1,
                Some(("*", "*")) => 0,
                _ => continue,
            };
            let refused =
                parts.any(|part| matches!(&*part, "q=0" | "q=0." | "q=0.0" | "q=0.00" | "q=0.000"));
            best = match best {
                Some((other, taken)) if other > specific => Some((other, taken)),
                Some((other, taken)) if other == specific => Some((other, taken || !refused)),
                _ => Some((specific, !refused)),
            };
        }
    }
    best.is_some_and(|(_, taken)| taken)
}

/// Whether an authority is a loopback name with a port or without.
fn is_loopback(authority: &str) -> bool {
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (authority, None),
    };
    let four = name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    port.is_none_or(|port| port.parse::<u16>().is_ok() && !port.starts_with('+'))
        && (four || matches!(name, "localhost" | "[::1]"))
}

fn loopback(data: &[u8]) {
    let text = std::str::from_utf8(data).unwrap_or("no text").to_ascii_lowercase();
    assert_eq!(HostRule::Loopback.allows(data), is_loopback(&text));
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    assert_eq!(OriginRule::Loopback.allows(data), host.is_some_and(is_loopback));
    let listed = ["https://a.example".to_owned()];
    let whole = text == listed[0];
    assert_eq!(OriginRule::Listed(listed.to_vec()).allows(data), whole);
}

fn tokens(data: &[u8]) {
    let fields: Vec<&[u8]> = data.split(|b| *b == b'\n').collect();
    let ours = shown(fields.iter().copied());
    let [field] = fields.as_slice() else {
        assert!(ours.is_err());
        return;
    };
    let theirs = std::str::from_utf8(field).ok().and_then(|field| {
        let (scheme, rest) = field.split_once(' ')?;
        let token = rest.trim_start_matches([' ', '\t', '\r', '\n', '\x0c']);
        let graphic = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        let good = graphic && token.len() <= TOKEN_BYTES_MAX;
        (scheme.eq_ignore_ascii_case("bearer") && good).then_some(token.as_bytes())
    });
    assert_eq!(ours.ok().flatten(), theirs);
}

fn identifiers(data: &[u8]) {
    if let Some(id) = SessionId::parse(data) {
        assert_eq!(id.to_string().as_bytes(), data);
        let shown = format!("{id:?}{}", id.public());
        assert!(!shown.contains(std::str::from_utf8(&data[8..]).expect("digits")));
    }
    if let Some(id) = EventId::parse(data) {
        assert_eq!(EventId::parse(id.to_string().as_bytes()), Some(id));
        assert!(id.to_string().len() <= data.len());
    }
    let method = Method::parse(data);
    assert!(method == Method::Other || method.as_str().as_bytes() == data);
    if let Some(level) = std::str::from_utf8(data).ok().and_then(Level::parse) {
        assert_eq!(level.as_str().as_bytes(), data);
    }
}

fn mirrored(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let field = encode(text);
        assert!(is_value(field.as_bytes()), "{field:?}");
        assert_eq!(field.trim_matches([' ', '\t']), field, "its edges would be cut");
        assert_eq!(decode(field.as_bytes()).as_deref(), Some(text));
    }
    if let Some(value) = decode(data) {
        // There may be several ways to write it, but only one reading.
        assert_eq!(decode(encode(&value).as_bytes()).as_deref(), Some(&*value));
    }
}
