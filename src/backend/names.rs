//! Owns: what a call is called upstream: ids and progress tokens, there and back.
//! Never: a guess: an id that is not exactly one that was asked belongs to nobody.
//! Next: `stdio`, the child itself.
//!
//! On a channel that several callers share, each call has an id of the proxy's own, unique on that
//! channel, and its progress token is the same number. MCP, Base Protocol, Requests: ids are
//! strings or numbers, `1` and `"1"` are two.

use crate::jsonrpc::{self, Envelope, Raw, Span};
use crate::rt;

/// What the caller calls its call.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Its request id.
    pub(super) id: Raw,
    /// Its progress token.
    pub(super) token: Option<Raw>,
}

impl Own {
    pub(super) fn of(body: &[u8], id: Span, token: Option<Span>) -> Own {
        Own { id: Raw::new(id.of(body)), token: token.map(|token| Raw::new(token.of(body))) }
    }

    /// The answer as its caller should see it: with its own id.
    pub(super) fn answer(&self, message: &[u8], id: Span) -> Vec<u8> {
        let mut out = rt::spare::buffer(message.len() + self.id.len());
        renamed(&mut out, message, id, None, &self.id);
        out
    }

    /// The progress notification as its caller should see it; `None` if it asked for none.
    pub(super) fn progress(&self, message: &[u8], token: Span) -> Option<Vec<u8>> {
        Some(jsonrpc::splice(message, &[(token, &**self.token.as_ref()?)]))
    }
}

/// Appends the request `body` with `upstream` as its id and as its progress token, if it has one.
pub(super) fn renamed(
    out: &mut Vec<u8>,
    body: &[u8],
    id: Span,
    token: Option<Span>,
    upstream: &[u8],
) {
    let (first, second) = match token {
        Some(token) if token.start < id.start => (token, Some(id)),
        other => (id, other),
    };
    let mut from = 0;
    for span in std::iter::once(first).chain(second) {
        out.extend_from_slice(&body[from..span.start as usize]);
        out.extend_from_slice(upstream);
        from = span.end as usize;
    }
    out.extend_from_slice(&body[from..]);
}

/// A number of ours that came back; `None` for anything that we never sent.
pub(super) fn number(raw: &[u8]) -> Option<u64> {
    if raw.is_empty() || raw.len() > 19 || raw[0] == b'0' && raw.len() > 1 {
        return None;
    }
    raw.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'9' => Some(number * 10 + u64::from(digit - b'0')),
        _ => None,
    })
}

/// Whether the id of an answer is the one that was asked. A server may write the same id in another
/// way (`"a"` as `"\u0061"`, `1` as `1.0`); a string is never a number.
pub(super) fn same(asked: &[u8], answered: &[u8]) -> bool {
    if asked == answered {
        return true;
    }
    match (jsonrpc::unquote(asked), jsonrpc::unquote(answered)) {
        (Some(asked), Some(answered)) => asked == answered,
        (None, None) => {
            // Integers beyond 2^53 are equal only digit by digit, which the bytes were not.
            let number = |raw: &[u8]| {
                let number = std::str::from_utf8(raw).ok()?.parse::<f64>().ok()?;
                (number.abs() < 9_007_199_254_740_992.0).then_some(number)
            };
            matches!((number(asked), number(answered)), (Some(a), Some(b)) if a == b)
        }
        _ => false,
    }
}

/// The notification that cancels the request of the raw id `upstream`.
pub(super) fn cancellation(upstream: &[u8], reason: Option<&str>) -> Vec<u8> {
    let mut params = Vec::with_capacity(64);
    params.extend_from_slice(br#"{"requestId":"#);
    params.extend_from_slice(upstream);
    if let Some(reason) = reason {
        params.extend_from_slice(br#","reason":"#);
        jsonrpc::quote(reason, &mut params);
    }
    params.push(b'}');
    let mut out = Vec::with_capacity(params.len() + 64);
    jsonrpc::notification(&mut out, "notifications/cancelled", Some(&params));
    out
}

/// The id of a response, unless it is null.
pub(super) fn answered_id(envelope: &Envelope, message: &[u8]) -> Option<Span> {
    envelope.id.filter(|id| id.of(message) != b"null")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::scan;

    #[test]
    fn a_request_goes_up_renamed_and_its_answer_comes_back_as_asked() {
        for body in [
            &br#"{"jsonrpc":"2.0","id":"a\"b","method":"tools/call","params":{"name":"x","_meta":{"progressToken":0}}}"#[..],
            br#"{"method":"tools/call","params":{"_meta":{"progressToken":0},"name":"x"},"jsonrpc":"2.0","id":"a\"b"}"#,
        ] {
            let envelope = scan(body).unwrap();
            let (id, token) = (envelope.id.unwrap(), envelope.progress_token);
            let own = Own::of(body, id, token);
            let mut up = Vec::new();
            renamed(&mut up, body, id, token, b"77");
            let seen = scan(&up).unwrap();
            assert_eq!(seen.id.unwrap().of(&up), b"77");
            assert_eq!(seen.progress_token.unwrap().of(&up), b"77");

            let answer = br#"{"jsonrpc":"2.0","id":77,"result":{}}"#;
            let down = own.answer(answer, scan(answer).unwrap().id.unwrap());
            assert_eq!(down, br#"{"jsonrpc":"2.0","id":"a\"b","result":{}}"#);
            let progress = br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":77,"progress":1}}"#;
            let down =
                own.progress(progress, scan(progress).unwrap().progress_token.unwrap()).unwrap();
            assert_eq!(down, br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":0,"progress":1}}"#);
        }
    }

    #[test]
    fn ids_compare_by_value_and_type() {
        for (asked, answered) in
            [("1", "1"), ("1", "1.0"), (r#""a""#, r#""\u0061""#), ("10", "1e1")]
        {
            assert!(same(asked.as_bytes(), answered.as_bytes()), "{asked} {answered}");
        }
        for (asked, answered) in [
            ("1", "2"),
            ("1", r#""1""#),
            (r#""1""#, "1"),
            ("1", "null"),
            (r#""a""#, r#""A""#),
            ("9007199254740993", "9007199254740993.0"),
            ("9007199254740993", "9007199254740992"),
        ] {
            assert!(!same(asked.as_bytes(), answered.as_bytes()), "{asked} {answered}");
        }
    }

    #[test]
    fn only_our_own_numbers_are_numbers() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"1234567890123456789"), Some(1234567890123456789));
        for raw in ["", "-1", "1.0", "\"1\"", "01", "1e3", "null", "12345678901234567890"] {
            assert_eq!(number(raw.as_bytes()), None, "{raw}");
        }
    }

    #[test]
    fn cancellations() {
        assert_eq!(
            cancellation(b"7", Some("no \"more\"")),
            br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7,"reason":"no \"more\""}}"#
        );
        let plain = cancellation(br#""a""#, None);
        assert_eq!(scan(&plain).unwrap().request_id.unwrap().of(&plain), br#""a""#);
    }
}
