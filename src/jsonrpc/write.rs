//! Owns: JSON text that the proxy writes itself, and cuts in messages that it passes on.
//! Never: a change of bytes that no edit names.
//! Next: `world`, where a message finds its session.

use std::borrow::Cow;

use super::message::Span;
use super::{text, token};

/// A copy of `message` in which each range is replaced; ranges ascend and do not overlap.
///
/// An empty range inserts.
pub fn splice(message: &[u8], edits: &[(Span, &[u8])]) -> Vec<u8> {
    let grown: usize = edits.iter().map(|(_, new)| new.len()).sum();
    let cut: usize = edits.iter().map(|(old, _)| old.len()).sum();
    let mut out = Vec::with_capacity((message.len() + grown).saturating_sub(cut));
    let mut from = 0;
    for (old, new) in edits {
        debug_assert!(from <= old.start as usize, "edits must ascend");
        out.extend_from_slice(&message[from..old.start as usize]);
        out.extend_from_slice(new);
        from = old.end as usize;
    }
    out.extend_from_slice(&message[from..]);
    out
}

/// The text of a raw JSON string, quotes and escapes resolved; `None` if it is no JSON string.
///
/// Borrowed where nothing is escaped.
pub fn unquote(raw: &[u8]) -> Option<Cow<'_, str>> {
    let [b'"', inside @ .., b'"'] = raw else { return None };
    let inside = std::str::from_utf8(inside).ok()?;
    let mut at = text::plain_end(inside.as_bytes(), 0, &mut 0);
    if at == inside.len() {
        return Some(Cow::Borrowed(inside));
    }
    let mut text = String::with_capacity(inside.len());
    let mut from = 0;
    while at < inside.len() {
        let rest = &inside.as_bytes()[at..];
        let (length, character) = match rest[0] {
            b'\\' => match token::escape(rest) {
                token::Escape::Whole(length, character) => (length, character),
                token::Escape::Partial | token::Escape::Bad => return None,
            },
            _ => return None,
        };
        text.push_str(&inside[from..at]);
        text.push(character);
        from = at + length;
        at = text::plain_end(inside.as_bytes(), from, &mut 0);
    }
    text.push_str(&inside[from..]);
    Some(Cow::Owned(text))
}

/// Appends `text` as a JSON string.
pub fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    quote_into(text, out);
    out.push(b'"');
}

/// Appends `text` as the inside of a JSON string, without quotes.
pub fn quote_into(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut from = 0;
    loop {
        let at = text::plain_end(bytes, from, &mut 0);
        out.extend_from_slice(&bytes[from..at]);
        let Some(&special) = bytes.get(at) else { return };
        match special {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', special]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[digit(special >> 4), digit(special & 15)]);
            }
        }
        from = at + 1;
    }
}

/// These texts as an array of JSON strings.
pub fn strings(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<u8> {
    let mut out = b"[".to_vec();
    for text in texts {
        if out.len() > 1 {
            out.push(b',');
        }
        quote(text.as_ref(), &mut out);
    }
    out.push(b']');
    out
}

/// Appends an error response; `id` and `data` are raw JSON (`b"null"` where no id is known).
pub fn error(out: &mut Vec<u8>, id: &[u8], code: i32, message: &str, data: Option<&[u8]>) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id);
    out.extend_from_slice(br#","error":{"code":"#);
    out.extend_from_slice(itoa::Buffer::new().format(code).as_bytes());
    out.extend_from_slice(br#","message":"#);
    quote(message, out);
    if let Some(data) = data {
        out.extend_from_slice(br#","data":"#);
        out.extend_from_slice(data);
    }
    out.extend_from_slice(b"}}");
}

/// Appends a response; `id` and `result` are raw JSON.
pub fn result(out: &mut Vec<u8>, id: &[u8], result: &[u8]) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id);
    out.extend_from_slice(br#","result":"#);
    out.extend_from_slice(result);
    out.push(b'}');
}

/// Appends a request; `id` and `params` are raw JSON.
pub fn request(out: &mut Vec<u8>, id: &[u8], method: &str, params: Option<&[u8]>) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id);
    out.push(b',');
    method_and_params(out, method, params);
}

/// Appends a notification; `params` is raw JSON.
pub fn notification(out: &mut Vec<u8>, method: &str, params: Option<&[u8]>) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","#);
    method_and_params(out, method, params);
}

fn method_and_params(out: &mut Vec<u8>, method: &str, params: Option<&[u8]>) {
    out.extend_from_slice(br#""method":"#);
    quote(method, out);
    if let Some(params) = params {
        out.extend_from_slice(br#","params":"#);
        out.extend_from_slice(params);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::{Kind, scan};

    #[test]
    fn a_splice_changes_nothing_else() {
        let message = br#"{"jsonrpc":"2.0","id":7,"z":1e2,"method":"tools/call","params":{"name":"a__b", "x":9007199254740993}}"#;
        let found = scan(message).unwrap();
        let out =
            splice(message, &[(found.id.unwrap(), b"\"u1\""), (found.name.unwrap(), b"\"b\"")]);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            r#"{"jsonrpc":"2.0","id":"u1","z":1e2,"method":"tools/call","params":{"name":"b", "x":9007199254740993}}"#
        );
        assert_eq!(splice(message, &[]), message);
        assert_eq!(splice(b"ab", &[(Span::new(1, 1), b"x")]), b"axb");
        assert_eq!(splice(b"ab", &[(Span::new(0, 2), b"")]), b"");
    }

    #[test]
    fn quoting_round_trips_and_agrees_with_serde_json() {
        let all: String =
            (0..0x300u32).filter_map(char::from_u32).chain("😀\u{2028}".chars()).collect();
        for text in [&all, "", "a", "\"", "\\", "tools/call", "x\u{0}y"] {
            let mut raw = Vec::new();
            quote(text, &mut raw);
            assert_eq!(serde_json::from_slice::<String>(&raw).unwrap(), *text);
            assert_eq!(unquote(&raw).unwrap(), *text);
            let theirs = serde_json::to_vec(text).unwrap();
            assert_eq!(unquote(&theirs).unwrap(), *text);
        }
    }

    #[test]
    fn unquoting() {
        assert!(matches!(unquote(br#""plain""#), Some(Cow::Borrowed("plain"))));
        assert_eq!(unquote(br#""a\/b\ud83d\ude00""#).unwrap(), "a/b😀");
        for bad in [
            &br#"""#[..],
            b"",
            b"1",
            br#""\ud83d""#,
            br#""\x""#,
            br#""a"b""#,
            b"\"\n\"",
            b"\"\xFF\"",
        ] {
            assert_eq!(unquote(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_written_scans() {
        let mut out = Vec::new();
        error(&mut out, b"null", -32700, "Parse \"error\"", Some(b"{}"));
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse \"error\"","data":{}}}"#
        );
        assert_eq!(scan(&out).unwrap().kind, Kind::ErrorResponse);
        out.clear();
        result(&mut out, b"\"a\"", b"{}");
        assert_eq!(scan(&out).unwrap().kind, Kind::Response);
        out.clear();
        request(&mut out, b"1", "ping", None);
        assert_eq!(scan(&out).unwrap().kind, Kind::Request);
        out.clear();
        notification(&mut out, "notifications/cancelled", Some(br#"{"requestId":1}"#));
        let found = scan(&out).unwrap();
        assert_eq!(found.kind, Kind::Notification);
        assert_eq!(found.request_id.unwrap().of(&out), b"1");
    }
}
