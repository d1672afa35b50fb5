//! Owns: the writers of heads.
//! Never: which fields a message needs.
//! Next: `body`, framed as the head says.

use super::grammar::{is_authority, is_token, is_uri, is_value};

/// The usual phrase of a status; empty for one without.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Whether `lines` is what the writers below take: whole field lines, each ended by CRLF.
pub fn are_lines(lines: &str) -> bool {
    lines.is_empty()
        || lines.strip_suffix("\r\n").is_some_and(|lines| {
            lines.split("\r\n").all(|line| {
                line.split_once(':').is_some_and(|(name, value)| {
                    is_token(name.as_bytes()) && is_value(value.as_bytes())
                })
            })
        })
}

/// Appends a request head. `lines` are whole field lines, each ended by CRLF; `content_length` is
/// written if it is given.
pub fn request_head(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    authority: &str,
    lines: &str,
    content_length: Option<usize>,
) {
    debug_assert!(is_token(method.as_bytes()) && is_authority(authority.as_bytes()));
    debug_assert!(!target.is_empty() && target.bytes().all(is_uri));
    debug_assert!(are_lines(lines));
    out.reserve(method.len() + target.len() + authority.len() + lines.len() + 64);
    for part in [method, " ", target, " HTTP/1.1\r\nHost: ", authority, "\r\n", lines] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(length) = content_length {
        length_line(out, length as u64);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the status line of a response.
pub(crate) fn status_line(out: &mut Vec<u8>, status: u16) {
    debug_assert!((100..=599).contains(&status));
    if status == 200 {
        // Nearly every answer.
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a Content-Length line.
pub(crate) fn length_line(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}
