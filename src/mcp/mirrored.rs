//! Owns: fields of a request's head that repeat parts of its body, to write and to check.
//! Never: which request has which (`exchange`, `backend`).
//! Next: `session`, which the older era has.
//!
//! MCP 2026-07-28, Streamable HTTP, Request Metadata: `Mcp-Method`, `Mcp-Name`, and an
//! `Mcp-Param-*` for each argument whose schema says `x-mcp-header`. Policy goes by the body; a field
//! is only held against it.

use std::borrow::Cow;

use crate::jsonrpc::{self, walk};
use crate::limits;

use super::header;

const OPEN: &str = "=?base64?";
const CLOSE: &str = "?=";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A value as it may stand in a field: plain if that can be read back, else in Base64.
pub fn encode(value: &str) -> Cow<'_, str> {
    let safe = |byte: u8| (0x20..=0x7E).contains(&byte) || byte == b'\t';
    let edges = value.starts_with([' ', '\t']) || value.ends_with([' ', '\t']);
    let marked = value.starts_with(OPEN) && value.ends_with(CLOSE);
    if !edges && !marked && value.bytes().all(safe) {
        return Cow::Borrowed(value);
    }
    let digits = base64(value.as_bytes());
    Cow::Owned(format!("{OPEN}{digits}{CLOSE}"))
}

fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 4 / 3 + 4);
    for chunk in bytes.chunks(3) {
        let mut bits = 0u32;
        for (at, byte) in chunk.iter().enumerate() {
            bits |= u32::from(*byte) << (16 - 8 * at);
        }
        for at in 0..4 {
            let digit = ALPHABET[((bits >> (18 - 6 * at)) & 63) as usize];
            out.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// The value that a field stands for; `None` if it is malformed.
pub fn decode(field: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(field).ok()?;
    let Some(digits) = text.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE)) else {
        return text.is_ascii().then_some(Cow::Borrowed(text));
    };
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let padding = digits.iter().rev().take_while(|digit| **digit == b'=').count();
    let plain = &digits[..digits.len() - padding];
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for chunk in plain.chunks(4) {
        let mut bits = 0u32;
        for (at, digit) in chunk.iter().enumerate() {
            let value = ALPHABET.iter().position(|known| known == digit)?;
            bits |= (value as u32) << (18 - 6 * at);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..chunk.len().max(1)]);
    }
    // One text has one form: padding that is missing, or bits behind the end, make none.
    if base64(&bytes).as_bytes() != digits {
        return None;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// An argument of a tool that is repeated in a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The names that lead to it from the arguments.
    path: Vec<String>,
    /// What the field's name ends in.
    token: String,
    /// It is an integer.
    integer: bool,
}

/// The arguments that a tool's entry in a list says are repeated, none if a rule for them is broken:
/// no client would send a field then.
pub fn of_tool(entry: &[u8]) -> Vec<Mirrored> {
    if memchr::memmem::find(entry, b"x-mcp-header").is_none() {
        return Vec::new();
    }
    let schema = serde_json::from_slice::<serde_json::Value>(entry)
        .ok()
        .and_then(|mut entry| entry.get_mut("inputSchema").map(serde_json::Value::take));
    let mut found = Vec::new();
    let mut path = Vec::new();
    let sound = schema.is_some_and(|schema| collect(&schema, &mut path, true, &mut found));
    if sound { found } else { Vec::new() }
}

/// False if an annotation stands where none may stand, or is none.
fn collect(
    schema: &serde_json::Value,
    path: &mut Vec<String>,
    reachable: bool,
    found: &mut Vec<Mirrored>,
) -> bool {
    use serde_json::Value;
    let Value::Object(members) = schema else { return true };
    if let Some(token) = members.get("x-mcp-header") {
        let Some(token) = token.as_str() else { return false };
        let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
        let fit = reachable
            && !path.is_empty()
            && is_token(token)
            && matches!(kind, "string" | "integer" | "boolean")
            && found.len() < limits::MIRRORED_MAX
            && !found.iter().any(|other: &Mirrored| other.token.eq_ignore_ascii_case(token));
        if !fit {
            return false;
        }
        let integer = kind == "integer";
        found.push(Mirrored { path: path.clone(), token: token.to_owned(), integer });
    }
    members.iter().all(|(key, value)| match (key.as_str(), value) {
        ("properties", Value::Object(properties)) => properties.iter().all(|(name, property)| {
            path.push(name.clone());
            let sound = collect(property, path, reachable, found);
            path.pop();
            sound
        }),
        // Data, not schemas.
        ("default" | "examples" | "const" | "enum", _) => true,
        (
            "patternProperties" | "dependentSchemas" | "$defs" | "definitions",
            Value::Object(all),
        ) => all.values().all(|schema| collect(schema, path, false, found)),
        (_, Value::Array(list)) => list.iter().all(|one| collect(one, path, false, found)),
        (_, value) => collect(value, path, false, found),
    })
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

impl Mirrored {
    /// The name of the field.
    pub fn field(&self) -> String {
        format!("{}{}", header::PARAM, self.token)
    }

    /// Whether a field of that name is this one.
    pub fn is(&self, field: &[u8]) -> bool {
        let (prefix, token) = (header::PARAM.as_bytes(), self.token.as_bytes());
        field.len() == prefix.len() + token.len()
            && field[..prefix.len()].eq_ignore_ascii_case(prefix)
            && field[prefix.len()..].eq_ignore_ascii_case(token)
    }

    /// The argument as it stands in a field before it is encoded, of checked arguments; `None` where
    /// there is none, or one that no field can repeat.
    pub fn value<'a>(&self, arguments: &'a [u8]) -> Option<Cow<'a, str>> {
        let mut at = arguments;
        for name in &self.path {
            let (_, value) =
                walk::members_of_checked(at)?.find(|(key, _)| walk::key_is(key.of(at), name))?;
            at = value.of(at);
        }
        match at.first()? {
            b'"' => jsonrpc::unquote(at),
            b't' | b'f' | b'-' | b'0'..=b'9' => std::str::from_utf8(at).ok().map(Cow::Borrowed),
            _ => None,
        }
    }

    /// Whether a decoded field says the same as the argument: integers are compared by value.
    pub fn agrees(&self, field: &str, value: &str) -> bool {
        let whole = |text: &str| {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            let digits = whole.strip_prefix('-').unwrap_or(whole);
            let sound = !digits.is_empty()
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && fraction.bytes().all(|byte| byte == b'0');
            sound.then(|| whole.parse::<i128>().ok()).flatten()
        };
        field == value
            || (self.integer && whole(field).is_some_and(|number| whole(value) == Some(number)))
    }
}

/// Appends the field lines for the arguments of a call.
pub fn write(mirrored: &[Mirrored], arguments: Option<&[u8]>, lines: &mut String) {
    let Some(arguments) = arguments else { return };
    for one in mirrored {
        if let Some(value) = one.value(arguments) {
            line(&one.field(), &value, lines);
        }
    }
}

/// Appends one field line.
pub fn line(name: &str, value: &str, lines: &mut String) {
    for part in [name, ": ", &encode(value), "\r\n"] {
        lines.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_the_specification_shows_them() {
        for (value, field) in [
            ("us-west1", "us-west1"),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("", ""),
            ("a b", "a b"),
        ] {
            assert_eq!(encode(value), field);
            assert_eq!(decode(field.as_bytes()).unwrap(), value);
        }
        // Encoded though it need not be.
        assert_eq!(decode(b"=?base64?Zm9v?=").unwrap(), "foo");
        for bad in [
            &b"=?base64?Zm9?="[..],
            b"=?base64?Zm9=?=",
            b"=?base64?Zm9vZh==?=",
            b"=?base64?!!!!?=",
            b"=?base64?/w==?=",
            b"=?base64?====?=",
            b"=?base64?A===?=",
            b"caf\xe9",
            "café".as_bytes(),
        ] {
            assert_eq!(decode(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
        // In another case the mark is no mark.
        assert_eq!(decode(b"=?BASE64?Zm9v?=").unwrap(), "=?BASE64?Zm9v?=");
    }

    #[test]
    fn every_text_comes_back() {
        for length in 0..70 {
            let value: String = (0..length).map(|n| char::from_u32(n * 97 + 1).unwrap()).collect();
            assert_eq!(decode(encode(&value).as_bytes()).unwrap(), value);
        }
    }

    #[test]
    fn annotations_and_their_arguments() {
        let entry = br#"{"name":"t","inputSchema":{"type":"object","properties":{
            "region":{"type":"string","x-mcp-header":"Region"},
            "deep":{"type":"object","properties":{"n":{"type":"integer","x-mcp-header":"N"}}},
            "flag":{"type":"boolean","x-mcp-header":"Flag","default":{"x-mcp-header":1}}}}}"#;
        let found = of_tool(entry);
        assert_eq!(found.len(), 3);
        let mut lines = String::new();
        write(&found, Some(br#"{"region":"\u00e9","deep":{"n":42},"flag":null}"#), &mut lines);
        assert_eq!(lines, "Mcp-Param-Region: =?base64?w6k=?=\r\nMcp-Param-N: 42\r\n");
        assert!(found[0].is(b"mcp-param-REGION") && !found[0].is(b"mcp-param-regio"));
        let n = found.iter().find(|one| one.token == "N").unwrap();
        assert!(n.agrees("42.0", "42") && n.agrees("42", "42.00") && !n.agrees("43", "42"));
        assert!(!n.agrees("", "42") && !n.agrees("4.2", "42"));
        assert!(!found[0].agrees("42.0", "42"));
    }

    #[test]
    fn a_schema_that_breaks_a_rule_has_no_fields() {
        for properties in [
            r#"{"a":{"type":"number","x-mcp-header":"A"}}"#,
            r#"{"a":{"type":"string","x-mcp-header":""}}"#,
            r#"{"a":{"type":"string","x-mcp-header":"A B"}}"#,
            r#"{"a":{"type":"string","x-mcp-header":1}}"#,
            r#"{"a":{"type":"string","x-mcp-header":"A"},"b":{"type":"string","x-mcp-header":"a"}}"#,
            r#"{"a":{"type":"array","items":{"type":"string","x-mcp-header":"A"}}}"#,
            r#"{"a":{"anyOf":[{"type":"string","x-mcp-header":"A"}]}}"#,
        ] {
            let entry = format!(r#"{{"name":"t","inputSchema":{{"properties":{properties}}}}}"#);
            assert_eq!(of_tool(entry.as_bytes()), [], "{properties}");
        }
    }
}
