//! Owns: the backend of the measurement, an MCP server that costs next to nothing.
//! Never: a parser; it knows what the clients of this harness and the proxy send. One thread.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use memchr::memmem;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::generate::TAG_DIGITS;
use crate::wire;

/// Answers to JSON-RPC messages, made once per size of result.
struct Answers {
    padding: HashMap<usize, Vec<u8>>,
}

const INITIALIZE: &str = r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"stub","version":"1.0.0"}}"#;
const TOOLS: &str = r#"{"tools":[{"name":"echo","description":"Answers with as many bytes as it is asked for.","inputSchema":{"type":"object","properties":{"tag":{"type":"string"},"size":{"type":"integer"},"pad":{"type":"string"}}},"annotations":{"readOnlyHint":true}}]}"#;
const PREFIX: &str = r#"{"jsonrpc":"2.0","id":"#;
const CONTENT: &str = r#","result":{"content":[{"type":"text","text":""#;
const END: &str = r#""}]}}"#;

impl Answers {
    fn new() -> Answers {
        Answers { padding: HashMap::new() }
    }

    /// Appends the answer to `message` to `out`; nothing for a notification.
    fn to(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let Some(id) = value(message, b"\"id\":") else { return };
        let method = value(message, b"\"method\":").unwrap_or_default();
        out.extend_from_slice(PREFIX.as_bytes());
        out.extend_from_slice(id);
        let result = match method {
            b"\"tools/call\"" => {
                // The caller's tag comes back in the result, so that it can tell its own answer.
                let tag = value(message, b"\"tag\":").unwrap_or(b"\"\"");
                let size = value(message, b"\"size\":").and_then(|n| std::str::from_utf8(n).ok());
                let size = size.and_then(|n| n.parse().ok()).unwrap_or(0);
                out.extend_from_slice(CONTENT.as_bytes());
                out.extend_from_slice(&tag[1..tag.len() - 1]);
                // As the client sees it: on a shared channel the id here is the proxy's own.
                let frame = PREFIX.len() + CONTENT.len() + END.len() + TAG_DIGITS + tag.len() - 2;
                let padding = self.padding.entry(size).or_insert_with(|| vec![b'x'; size]);
                out.extend_from_slice(&padding[..size.saturating_sub(frame)]);
                out.extend_from_slice(END.as_bytes());
                return;
            }
            b"\"initialize\"" => INITIALIZE,
            b"\"tools/list\"" => TOOLS,
            b"\"ping\"" => "{}",
            _ => {
                out.extend_from_slice(br#","error":{"code":-32601,"message":"Method not found"}}"#);
                return;
            }
        };
        out.extend_from_slice(b",\"result\":");
        out.extend_from_slice(result.as_bytes());
        out.push(b'}');
    }
}

/// The first number or string (without escapes) behind `key`, as it is written.
fn value<'a>(message: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let rest = &message[memmem::find(message, key)? + key.len()..];
    let rest = rest.trim_ascii_start();
    let len = match rest.first()? {
        b'"' => memchr::memchr(b'"', &rest[1..])? + 2,
        _ => rest.iter().take_while(|&&b| b.is_ascii_digit() || b == b'-').count(),
    };
    (len > 0).then(|| &rest[..len])
}

/// One JSON-RPC message a line.
pub(crate) fn stdio() -> io::Result<()> {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let mut answers = Answers::new();
    let (mut bytes, mut filled) = (vec![0; 256 * 1024], 0);
    let mut out = Vec::new();
    loop {
        if filled == bytes.len() {
            bytes.resize(filled * 2, 0);
        }
        match stdin.read(&mut bytes[filled..])? {
            0 => return Ok(()),
            n => filled += n,
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &bytes[..filled]) {
            let before = out.len();
            answers.to(&bytes[start..end], &mut out);
            if out.len() > before {
                out.push(b'\n');
            }
            start = end + 1;
        }
        bytes.copy_within(start..filled, 0);
        filled -= start;
        stdout.write_all(&out)?;
        stdout.flush()?;
        out.clear();
    }
}

/// One client of the HTTP stub.
struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
    written: usize,
}

/// Streamable HTTP with JSON answers; 405 to GET, as servers without a stream of their own.
pub(crate) fn http() -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    // std's backlog of 128 would be too short for 256 clients at once.
    let mut listener = listener()?;
    println!("{}", listener.local_addr()?.port());
    let accept = Token(usize::MAX - 1);
    poll.registry().register(&mut listener, accept, Interest::READABLE)?;
    let mut connections: HashMap<usize, Connection> = HashMap::new();
    let (mut next, mut sessions) = (0, 0);
    let mut answers = Answers::new();
    let mut body = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == accept {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(next), interest)?;
                    let (bytes, out) = (vec![0; 4096], Vec::new());
                    let connection = Connection { stream, bytes, filled: 0, out, written: 0 };
                    connections.insert(next, connection);
                    next += 1;
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&event.token().0) else { continue };
            let ok = (!event.is_readable()
                || connection.read(&mut answers, &mut body, &mut sessions))
                && connection.write();
            if !ok {
                connections.remove(&event.token().0);
            }
        }
    }
}

fn listener() -> io::Result<TcpListener> {
    // mio listens with a backlog of 1024.
    TcpListener::bind("127.0.0.1:0".parse().expect("an address"))
}

impl Connection {
    /// Reads and answers what is there; false = closed.
    fn read(&mut self, answers: &mut Answers, body: &mut Vec<u8>, sessions: &mut u64) -> bool {
        loop {
            if self.filled == self.bytes.len() {
                self.bytes.resize(self.filled * 2, 0);
            }
            let room = self.bytes.len() - self.filled;
            let n = match self.stream.read(&mut self.bytes[self.filled..]) {
                Ok(0) => return false,
                Ok(n) => n,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            };
            self.filled += n;
            let mut start = 0;
            while let Some(len) = self.answer(start, answers, body, sessions) {
                start += len;
            }
            self.bytes.copy_within(start..self.filled, 0);
            self.filled -= start;
            // A short read has emptied the socket: epoll tells of more (epoll(7), Q9).
            if n < room {
                return true;
            }
        }
    }

    /// Answers the request at `start`, if it is whole: its length.
    fn answer(
        &mut self,
        start: usize,
        answers: &mut Answers,
        body: &mut Vec<u8>,
        sessions: &mut u64,
    ) -> Option<usize> {
        let bytes = &self.bytes[start..self.filled];
        let head = wire::head(bytes)?;
        let len = head.len + head.body.unwrap_or(0);
        let message = bytes.get(head.len..len)?;
        body.clear();
        match bytes[0] {
            b'P' => answers.to(message, body),
            b'D' => {
                self.out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                return Some(len);
            }
            _ => {
                self.out.extend_from_slice(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST, DELETE\r\nContent-Length: 0\r\n\r\n");
                return Some(len);
            }
        }
        if body.is_empty() {
            self.out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
            return Some(len);
        }
        self.out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n");
        if head.session.is_none() {
            *sessions += 1;
            let _ = write!(self.out, "Mcp-Session-Id: stub-{sessions}\r\n");
        }
        self.out.extend_from_slice(b"Content-Length: ");
        self.out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
        self.out.extend_from_slice(b"\r\n\r\n");
        self.out.extend_from_slice(body);
        Some(len)
    }

    /// Writes what waits; false = closed.
    fn write(&mut self) -> bool {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        self.out.clear();
        self.written = 0;
        true
    }
}
