//! Owns: as much of HTTP/1.1 as the two ends of a load need, for messages that they know.
//! Never: strictness; what it does not know is an error of the measurement.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
    /// The body is an event stream.
    pub(crate) events: bool,
    /// Range of the value of `Mcp-Session-Id`.
    pub(crate) session: Option<(usize, usize)>,
}

/// The head at the start of `bytes`, once it is whole.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let len = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let mut head =
        Head { len, body: None, chunked: false, close: false, events: false, session: None };
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', &bytes[..len]) {
        let line = &bytes[start..end];
        let at = |name: &str| {
            let is =
                line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name.as_bytes());
            let blanks = || line[name.len()..].iter().take_while(|&&b| b == b' ').count();
            is.then(|| (start + name.len() + blanks(), end - 1))
        };
        // Most lines are none of these: one byte decides.
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                if let Some((from, to)) = at("content-length:") {
                    head.body =
                        std::str::from_utf8(&bytes[from..to]).ok().and_then(|n| n.parse().ok());
                } else if let Some((from, to)) = at("content-type:") {
                    head.events = bytes[from..to].starts_with(b"text/event-stream");
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

/// A whole response at the start of `bytes`.
pub(crate) struct Whole<'a> {
    pub(crate) head: Head,
    pub(crate) status: u16,
    pub(crate) body: std::borrow::Cow<'a, [u8]>,
    /// Bytes of all of it.
    pub(crate) len: usize,
}

/// The response at the start of `bytes`, once it is whole.
pub(crate) fn response(bytes: &[u8]) -> Option<Whole<'_>> {
    let head = head(bytes)?;
    let rest = &bytes[head.len..];
    let (len, body) = match head.body {
        Some(len) => (len, rest.get(..len)?.into()),
        None if head.chunked => {
            let (len, body) = chunked(rest)?;
            (len, body.into())
        }
        None => (0, (&rest[..0]).into()),
    };
    let len = head.len + len;
    Some(Whole { status: status(bytes), head, body, len })
}

/// An answer, for those who do not measure.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) session: Option<String>,
    pub(crate) events: bool,
    pub(crate) body: Vec<u8>,
}

/// One kept connection, one request at a time.
pub(crate) struct Line {
    addr: SocketAddr,
    stream: Option<TcpStream>,
}

impl Line {
    pub(crate) fn new(addr: SocketAddr) -> Line {
        Line { addr, stream: None }
    }

    fn stream(&mut self) -> io::Result<TcpStream> {
        match self.stream.take() {
            Some(stream) => Ok(stream),
            None => {
                let stream = TcpStream::connect(self.addr)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(35)))?;
                Ok(stream)
            }
        }
    }

    /// The answer to a request; on a new connection where the last one ended.
    pub(crate) fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        let mut stream = self.stream()?;
        stream.write_all(request)?;
        let mut bytes = Vec::new();
        let mut piece = [0; 65536];
        loop {
            match stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => bytes.extend_from_slice(&piece[..n]),
            }
            if let Some(whole) = response(&bytes) {
                let session = whole.head.session;
                let session =
                    session.map(|(from, to)| String::from_utf8_lossy(&bytes[from..to]).into());
                let answer = Answer {
                    status: whole.status,
                    session,
                    events: whole.head.events,
                    body: whole.body.into_owned(),
                };
                if !whole.head.close {
                    self.stream = Some(stream);
                }
                return Ok(answer);
            }
        }
    }

    /// Sends a request whose answer never ends: the connection, once the head of it is there.
    pub(crate) fn open(&mut self, request: &[u8]) -> io::Result<(u16, TcpStream)> {
        let mut stream = self.stream()?;
        stream.write_all(request)?;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while head(&bytes).is_none() {
            match stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => bytes.extend_from_slice(&piece[..n]),
            }
        }
        Ok((status(&bytes), stream))
    }

    /// The connection itself, if it is still there.
    pub(crate) fn into_stream(self) -> Option<TcpStream> {
        self.stream
    }
}
