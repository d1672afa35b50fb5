//! Owns: as much of HTTP/1.1 as the two ends of a load need, for messages that they know.
//! Never: strictness; what it does not know is an error of the measurement.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use memchr::memmem;

/// A message head in a buffer.
pub(crate) struct Head {
    /// Bytes of the head with the empty line.
    pub(crate) len: usize,
    /// Bytes of the body where `Content-Length` tells; else `None`.
    pub(crate) body: Option<usize>,
    pub(crate) chunked: bool,
    pub(crate) close: bool,
    /// Range of the value of `Mcp-Session-Id`.
    pub(crate) session: Option<(usize, usize)>,
}

/// The head at the start of `bytes`, once it is whole.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let len = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let mut head = Head { len, body: None, chunked: false, close: false, session: None };
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', &bytes[..len]) {
        let line = &bytes[start..end];
        let at = |name: &str| {
            let is =
                line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name.as_bytes());
            is.then(|| {
                (
                    start
                        + name.len()
                        + line[name.len()..].iter().take_while(|&&b| b == b' ').count(),
                    end - 1,
                )
            })
        };
        // Most lines are none of these: one byte decides.
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                if let Some((from, to)) = at("content-length:") {
                    head.body =
                        std::str::from_utf8(&bytes[from..to]).ok().and_then(|n| n.parse().ok());
                } else if let Some((from, to)) = at("connection:") {
                    head.close = bytes[from..to].eq_ignore_ascii_case(b"close");
                }
            }
            Some(b't') => head.chunked |= at("transfer-encoding:").is_some(),
            Some(b'm') => head.session = at("mcp-session-id:").or(head.session),
            _ => {}
        }
        start = end + 1;
    }
    Some(head)
}

/// The status of a response head.
pub(crate) fn status(bytes: &[u8]) -> u16 {
    let text = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    text.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The length of a chunked body with its frame, once it is whole, and the body.
pub(crate) fn chunked(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let line = memmem::find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if bytes.len() < at + size + 2 {
            return None;
        }
        body.extend_from_slice(&bytes[at..at + size]);
        at += size + 2;
        if size == 0 {
            return Some((at, body));
        }
    }
}

/// Headers that every request carries, as the SDKs send them.
pub(crate) fn request(authority: &str, session: Option<&str>, body: &str) -> Vec<u8> {
    let session = session.map_or(String::new(), |id| {
        format!("Mcp-Session-Id: {id}\r\nMcp-Protocol-Version: 2025-11-25\r\n")
    });
    format!(
        "POST /mcp HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{session}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub(crate) const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"loadtest","version":"1"}}}"#;
pub(crate) const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// One request on a connection of its own: the session that the answer names, and its body.
pub(crate) fn once(
    authority: &str,
    session: Option<&str>,
    body: &str,
) -> io::Result<(Option<String>, Vec<u8>)> {
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(35)))?;
    stream.write_all(&request(authority, session, body))?;
    let mut bytes = Vec::new();
    let mut piece = [0; 65536];
    loop {
        if let Some(head) = head(&bytes) {
            let session = head
                .session
                .map(|(from, to)| String::from_utf8_lossy(&bytes[from..to]).into_owned());
            let rest = &bytes[head.len..];
            match head.body {
                Some(body) if rest.len() >= body => return Ok((session, rest[..body].to_vec())),
                None if head.chunked => {
                    if let Some((_, body)) = chunked(rest) {
                        return Ok((session, body));
                    }
                }
                _ => {}
            }
        }
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}
