//! Owns: what is known of one message after a scan: its kind and where its parts stand.
//! Never: the bytes themselves.
//! Next: `token`, what a scan is made of.

use std::borrow::Cow;
use std::fmt;

use crate::error;

/// A range of a message's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Behind the last byte.
    pub end: u32,
}

impl Span {
    /// The range `start..end`, which must lie within 4 GiB (every message does, by
    /// [`crate::limits::MESSAGE_BYTES_MAX`] and by [`ScanFault::TooLong`]).
    pub fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && u32::try_from(end).is_ok());
        Span { start: start as u32, end: end as u32 }
    }

    /// Its bytes in the message that was scanned; a string has its quotes.
    ///
    /// # Panics
    /// When `message` is shorter than the one that was scanned.
    #[inline]
    pub fn of(self, message: &[u8]) -> &[u8] {
        &message[self.start as usize..self.end as usize]
    }

    /// Its text without quotes and escapes, if it is a JSON string.
    ///
    /// Compare this, never the raw bytes: some writers escape every slash (`"tools\/call"`).
    pub fn text(self, message: &[u8]) -> Option<Cow<'_, str>> {
        super::write::unquote(self.of(message))
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Where the same bytes stand after `edit` was replaced by `length` bytes: behind it they move,
    /// around it they grow or shrink.
    ///
    /// A range that `edit` cuts into, or that is `edit`, has no such place.
    fn after(self, edit: Span, length: u32) -> Span {
        let moved = |at: u32| if at >= edit.end { at - edit.end + edit.start + length } else { at };
        Span { start: moved(self.start), end: moved(self.end) }
    }
}

/// What a message is, by the members it has (JSON-RPC 2.0 §4, §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `method` and `id`.
    Request,
    /// `method` without `id`.
    Notification,
    /// `result` and `id`.
    Response,
    /// `error`; `id` is null or missing where the sender could not tell it.
    ErrorResponse,
}

/// One message: its kind, and where its parts stand.
///
/// Strings have their quotes, numbers their text. A part that is missing, or that has a type which
/// its meaning excludes (a `name` that is no string), is `None` and goes through untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Request, notification, response or error response.
    pub kind: Kind,
    /// Whether `params` has a member `task`: the request is to become one.
    pub task: bool,
    /// String or number; `null` in an error response alone.
    pub id: Option<Span>,
    /// String.
    pub method: Option<Span>,
    /// Object, array or null.
    pub params: Option<Span>,
    /// `params.name`, string.
    pub name: Option<Span>,
    /// `params.uri`, string.
    pub uri: Option<Span>,
    /// `params.arguments`, any value.
    pub arguments: Option<Span>,
    /// `params._meta`, object.
    pub meta: Option<Span>,
    /// The token that a request asks for progress with (`params._meta.progressToken`), or that a
    /// notification reports on (`params.progressToken`); string or number.
    pub progress_token: Option<Span>,
    /// `params.requestId`, string or number: what `notifications/cancelled` is about.
    pub request_id: Option<Span>,
    /// `result`, any value.
    pub result: Option<Span>,
    /// Whether `result.isError` is true: a tool says that it failed.
    pub tool_error: bool,
    /// `result.resultType`, any value: what an answer of the request era is (2026-07-28).
    pub result_type: Option<Span>,
    /// `error`, object.
    pub error: Option<Span>,
}

impl Envelope {
    /// The method's name without quotes and escapes.
    pub fn method_name<'m>(&self, message: &'m [u8]) -> Option<Cow<'m, str>> {
        self.method?.text(message)
    }

    /// Follows an edit of the message: the bytes of `edit`, which lie within one part (such as the
    /// prefix in `name`), were replaced by `length` others.
    ///
    /// Saves a second scan where the edit cannot change what the message is.
    pub fn follow(&mut self, edit: Span, length: u32) {
        let Envelope {
            kind: _,
            task: _,
            id,
            method,
            params,
            name,
            uri,
            arguments,
            meta,
            progress_token,
            request_id,
            result,
            tool_error: _,
            result_type,
            error,
        } = self;
        let parts = [
            id,
            method,
            params,
            name,
            uri,
            arguments,
            meta,
            progress_token,
            request_id,
            result,
            result_type,
            error,
        ];
        for span in parts.into_iter().flatten() {
            *span = span.after(edit, length);
        }
    }

    /// Follows the removal of the bytes of `cut`; see [`Envelope::follow`].
    pub fn cut(&mut self, cut: Span) {
        self.follow(cut, 0);
    }
}

/// Why a message was refused. The first group is what serde_json refuses too; the second is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanFault {
    /// Not UTF-8 (RFC 8259 §8.1).
    Utf8,
    /// Not JSON, or ended too early.
    Syntax,
    /// Nested as deep as [`crate::limits::JSON_DEPTH_MAX`].
    Depth,
    /// An id that overflows a double.
    NumberRange,
    /// An id with half of a surrogate pair in it (RFC 8259 §8.2).
    Surrogate,

    /// Over 4 GiB.
    TooLong,
    /// A number or an id over [`crate::limits::SCALAR_BYTES_MAX`].
    ScalarTooLong,
    /// A member of the envelope, or one that is acted on below it, stands there twice.
    Duplicate,
    /// Such a member's name is written with escapes.
    EscapedKey,
    /// Such a member's name is written in another case: some servers would take it for the member.
    Lookalike,
    /// JSON, but no JSON-RPC 2.0 message.
    Shape,
}

impl ScanFault {
    /// Its row in the table of errors.
    pub fn kind(self) -> error::Kind {
        match self {
            ScanFault::Utf8
            | ScanFault::Syntax
            | ScanFault::Depth
            | ScanFault::NumberRange
            | ScanFault::Surrogate
            | ScanFault::TooLong => error::Kind::Parse,
            ScanFault::ScalarTooLong
            | ScanFault::Duplicate
            | ScanFault::EscapedKey
            | ScanFault::Lookalike
            | ScanFault::Shape => error::Kind::InvalidRequest,
        }
    }

    /// What a client may read about it.
    pub const fn text(self) -> &'static str {
        match self {
            ScanFault::Utf8 => "not UTF-8",
            ScanFault::Syntax => "not JSON",
            ScanFault::Depth => "nested too deep",
            ScanFault::NumberRange => "an id out of range",
            ScanFault::Surrogate => "an id with half of a surrogate pair",
            ScanFault::TooLong => "too long",
            ScanFault::ScalarTooLong => "number or id too long",
            ScanFault::Duplicate => "duplicate member",
            ScanFault::EscapedKey => "escaped member name",
            ScanFault::Lookalike => "member name in the wrong case",
            ScanFault::Shape => "not a JSON-RPC 2.0 message",
        }
    }
}

impl fmt::Display for ScanFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for ScanFault {}

impl From<ScanFault> for error::Error {
    fn from(fault: ScanFault) -> error::Error {
        error::Error::new(fault.kind()).context(fault.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::{scan, splice};

    #[test]
    fn an_envelope_follows_an_edit() {
        let message = br#"{"id":1,"jsonrpc":"2.0","params":{"_meta":{"progressToken":5},"name":"a__b","arguments":{}},"method":"tools/call"}"#;
        let found = scan(message).unwrap();
        let name = found.name.unwrap();
        let inside = Span { start: name.start + 1, end: name.start + 4 };
        for new in [&b""[..], b"x", b"longer"] {
            let edited = splice(message, &[(inside, new)]);
            let mut followed = found;
            followed.follow(inside, new.len() as u32);
            assert_eq!(followed, scan(&edited).unwrap());
        }
        let mut cut = found;
        cut.cut(inside);
        assert_eq!(cut.name.unwrap().of(&splice(message, &[(inside, b"")])), br#""b""#);
        // The whole of a part.
        for part in [found.id, found.name, found.progress_token, found.method] {
            let part = part.unwrap();
            let edited = splice(message, &[(part, br#""other value""#)]);
            let mut followed = found;
            followed.follow(part, 13);
            assert_eq!(followed, scan(&edited).unwrap());
        }
    }
}
