//! Owns: hosts, origins and URLs as a configuration writes them.
//! Never: looking names up.
//! Next: `tls`.
//!
//! RFC 3986; WHATWG URL §3.5; RFC 6454 for origins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::in_tool_names;

pub(super) fn listen_ip(host: &str) -> Option<IpAddr> {
    if host.eq_ignore_ascii_case("localhost") {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    unbracketed(host).parse().ok()
}

pub(super) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// An origin in the form in which browsers send it.
pub(super) fn origin(text: &str) -> Result<String, &'static str> {
    const ACCEPTED: &str = "an origin as browsers send it, \"scheme://host[:port]\"";
    let lower = text.to_ascii_lowercase();
    let (scheme, rest) = lower.split_once("://").ok_or(ACCEPTED)?;
    let legal =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
    if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(legal) {
        return Err(ACCEPTED);
    }
    let (host, port) = split_port(rest).ok_or(ACCEPTED)?;
    if !is_host(host) {
        return Err(ACCEPTED);
    }
    // Browsers leave the scheme's own port out.
    Ok(match (scheme, port) {
        ("http", Some(80)) | ("https", Some(443)) | (_, None) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

/// A host, with or without port, in lower case.
pub(super) fn host(text: &str) -> Result<String, &'static str> {
    const ACCEPTED: &str = "\"host\" or \"host:port\"";
    let lower = text.to_ascii_lowercase();
    match split_port(&lower) {
        Some((host, _)) if is_host(host) => Ok(lower),
        _ => Err(ACCEPTED),
    }
}

/// `host[:port]`, an IPv6 address in brackets; `None` if the port is none.
pub(super) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_len = match authority.starts_with('[') {
        true => authority.find(']')? + 1,
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_len);
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, None)),
        None => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some((host, Some(digits.parse().ok().filter(|port| *port > 0)?)))
        }
        Some(_) => None,
    }
}

/// A name of letters, digits and hyphens in labels (underscores too, as container networks have
/// them), an IPv4 address, or an IPv6 address in brackets.
pub(super) fn is_host(host: &str) -> bool {
    const HOST_CHARS_MAX: usize = 253;
    const LABEL_CHARS_MAX: usize = 63;
    if host.starts_with('[') {
        return host.ends_with(']') && unbracketed(host).parse::<Ipv6Addr>().is_ok();
    }
    let labels = host.strip_suffix('.').unwrap_or(host);
    // What ends in a number is meant as an IPv4 address (WHATWG URL §3.5), and must be one.
    let last = labels.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    host.len() <= HOST_CHARS_MAX
        && labels.split('.').all(|label| {
            (1..=LABEL_CHARS_MAX).contains(&label.len()) && label.chars().all(in_tool_names)
        })
}

/// A URL of a backend.
#[derive(Debug, PartialEq)]
pub(in crate::control) struct Url {
    pub(in crate::control) https: bool,
    /// Lower case, IPv6 without brackets.
    pub(in crate::control) host: String,
    pub(in crate::control) port: u16,
    /// Path and query.
    pub(in crate::control) target: String,
}

impl Url {
    pub(in crate::control) fn parse(text: &str) -> Result<Url, String> {
        let (scheme, rest) = text.split_once("://").ok_or("found no scheme")?;
        match scheme.to_ascii_lowercase().as_str() {
            "http" => Url::after_scheme(false, rest).map_err(str::to_owned),
            "https" => Url::after_scheme(true, rest).map_err(str::to_owned),
            other if other.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                Err(format!("found the scheme {other}"))
            }
            _ => Err("found no scheme".to_owned()),
        }
    }

    fn after_scheme(https: bool, rest: &str) -> Result<Url, &'static str> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err(
                "found a user name or password in it (bearer_token and headers are for that)",
            );
        }
        let (host, port) = split_port(authority).ok_or("found a port that is none")?;
        if host.is_empty() {
            return Err("found no host");
        }
        if !is_host(host) {
            return Err("found a host that is none");
        }
        if target.contains('#') {
            return Err("found a fragment (#)");
        }
        let legal = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b);
        if !target.bytes().all(legal) || !escapes_are_whole(target) {
            return Err("found a character in the path or query that must be written as %XX");
        }
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Url {
            https,
            host: unbracketed(host).to_ascii_lowercase(),
            port: port.unwrap_or(if https { 443 } else { 80 }),
            target: format!("{slash}{target}"),
        })
    }

    /// As the Host header names it: without the scheme's own port.
    pub(in crate::control) fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.https, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

pub(super) fn escapes_are_whole(target: &str) -> bool {
    target
        .split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit))
}
