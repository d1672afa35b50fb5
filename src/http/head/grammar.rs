//! Owns: which bytes may stand where: tokens, field values, authorities, numbers, versions.
//! Never: a whole line.
//! Next: `fields`, lines of them.

use super::{HeadFault, Version};

pub(super) fn read_version(version: &[u8]) -> Result<Version, HeadFault> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(HeadFault::Version),
        _ => Err(HeadFault::Malformed),
    }
}

/// Content-Length: digits only, below 2^63.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    let mut number = 0u64;
    for byte in value {
        if !byte.is_ascii_digit() {
            return None;
        }
        // 19 digits stay below 10^19 and so below 2^64.
        number = number * 10 + u64::from(byte - b'0');
    }
    (number < 1 << 63).then_some(number)
}

/// ASCII that was checked when it was read.
pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Without the optional white space around it (RFC 9110 §5.6.3).
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = value {
        if !is_blank(*first) {
            break;
        }
        value = rest;
    }
    while let [rest @ .., last] = value {
        if !is_blank(*last) {
            break;
        }
        value = rest;
    }
    value
}

const fn class(members: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < members.len() {
        table[members[at] as usize] = true;
        at += 1;
    }
    table
}

/// tchar (RFC 9110 §5.6.2).
static TCHAR: [bool; 256] = class(b"!#$%&'*+-.^_`|~");
/// Characters of a URI without its fragment (RFC 3986 §2); others have to be escaped.
static URI: [bool; 256] = class(b"-._~:/?[]@!$&'()*+,;=%");
/// Characters of a registered name (RFC 3986 §3.2.2).
static REG_NAME: [bool; 256] = class(b"-._~!$&'()*+,;=%");

pub(crate) fn is_tchar(byte: u8) -> bool {
    TCHAR[usize::from(byte)]
}

pub(super) fn is_uri(byte: u8) -> bool {
    URI[usize::from(byte)]
}

/// Whether `name` can be a method or a field name.
pub fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| is_tchar(*b))
}

/// Whether `value` can be a field value: no control characters but the tab (RFC 9110 §5.5).
pub fn is_value(value: &[u8]) -> bool {
    // Eight bytes at a time: values are short, so that vector code would spend its time in what
    // is left over. The last word may look at bytes again.
    let is_odd = |word: &[u8; 8]| controls(word) != 0;
    let fits = |byte: &u8| (*byte >= b' ' || *byte == b'\t') && *byte != 0x7f;
    match value.last_chunk() {
        Some(last) if !value.as_chunks().0.iter().any(is_odd) && !is_odd(last) => true,
        // Short, or with a tab in it, or bad.
        _ => value.iter().all(fits),
    }
}

/// Where the first control character stands, the tab and DEL among them.
pub(super) fn control_at(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let marks = controls(word);
        if marks != 0 {
            // A subtraction may borrow into the byte above a hit: only the lowest mark is exact.
            return Some(index * 8 + (marks.trailing_zeros() / 8) as usize);
        }
    }
    let at = rest.iter().position(|b| *b < b' ' || *b == 0x7f)?;
    Some(words.len() * 8 + at)
}

/// The high bit of each byte that is a control character.
#[inline]
fn controls(word: &[u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(*word);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let delete = word ^ (ONES * 0x7f);
    (control | delete.wrapping_sub(ONES) & !delete) & HIGHS
}

/// Whether `host` is `uri-host [":" port]`, with a host that is not empty and without user
/// information (RFC 9110 §7.2, §4.2.1).
pub fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', rest @ ..] => {
            let Some(end) = memchr::memchr(b']', rest) else { return false };
            let address = std::str::from_utf8(&rest[..end]).unwrap_or_default();
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (&rest[..end], &rest[end + 1..])
        }
        _ => {
            // What ends the name must be the colon, which is none of its characters.
            let end = host.iter().position(|b| !REG_NAME[usize::from(*b)]);
            host.split_at(end.unwrap_or(host.len()))
        }
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.len() <= 5
                && (digits.is_empty() || decimal(digits).is_some_and(|port| port <= 65535))
        }
        _ => false,
    };
    !name.is_empty() && port_fits
}
