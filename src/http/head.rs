//! Owns: message heads of HTTP/1.1: a strict parser that can be fed at any split, and the writers.
//! Never: sockets, clocks or bodies; a head that could be read in two ways is refused, not repaired.
//! Next: `grammar`, which bytes may stand where.
//!
//! RFC 9112 §2-§4, §6 and RFC 9110 §5, §7.2, §10.1.1. `request` and `response` read their first line
//! and what only they need; the lines between are `fields`', and what may stand in them `grammar`'s.

mod fields;
mod grammar;
mod request;
mod response;
mod write;

pub(crate) use grammar::is_tchar;
pub use grammar::{is_authority, is_token, is_value};
pub use request::RequestHead;
pub use response::ResponseHead;
pub use write::{are_lines, reason, request_head};
pub(crate) use write::{length_line, status_line};

use std::fmt;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// A line that does not end in CRLF, or that does not follow the grammar.
    Malformed,
    /// A request line over [`REQUEST_LINE_BYTES_MAX`](crate::limits::REQUEST_LINE_BYTES_MAX).
    LineTooLong,
    /// A head over [`HEAD_BYTES_MAX`](crate::limits::HEAD_BYTES_MAX).
    TooLarge,
    /// More than [`HEADERS_MAX`](crate::limits::HEADERS_MAX) fields.
    TooManyFields,
    /// A version that is neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// CONNECT or TRACE: no tunnels, no echoes.
    Method,
    /// No Host, several, an illegal one, or one that contradicts the request target.
    Host,
    /// A Content-Length that is malformed or given more than once.
    Length,
    /// Content-Length beside Transfer-Encoding, several Transfer-Encodings, or one in HTTP/1.0.
    Framing,
    /// A transfer coding other than `chunked` alone.
    Coding,
    /// An expectation other than `100-continue`.
    Expectation,
}

impl HeadFault {
    /// The status with which a server refuses such a request.
    pub const fn status(self) -> u16 {
        match self {
            HeadFault::Malformed | HeadFault::Host | HeadFault::Length | HeadFault::Framing => 400,
            HeadFault::LineTooLong => 414,
            HeadFault::Expectation => 417,
            HeadFault::TooLarge | HeadFault::TooManyFields => 431,
            HeadFault::Method | HeadFault::Coding => 501,
            HeadFault::Version => 505,
        }
    }
}

impl fmt::Display for HeadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeadFault::Malformed => "malformed head",
            HeadFault::LineTooLong => "request line too long",
            HeadFault::TooLarge => "head too large",
            HeadFault::TooManyFields => "too many fields",
            HeadFault::Version => "version not supported",
            HeadFault::Method => "method not served",
            HeadFault::Host => "missing, repeated or illegal Host",
            HeadFault::Length => "malformed or repeated Content-Length",
            HeadFault::Framing => "contradictory framing",
            HeadFault::Coding => "transfer coding not supported",
            HeadFault::Expectation => "expectation not supported",
        })
    }
}

impl std::error::Error for HeadFault {}

/// Request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// HEAD: answered without a body.
    Head,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// Any other token; CONNECT and TRACE never get this far.
    Other,
}

/// Protocol version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: one request a connection unless asked otherwise, no chunks, no 1xx.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// Content-Length, in bytes.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// A response without either: its body ends with the connection.
    UntilClose,
}

#[cfg(test)]
mod tests;
