//! Owns: a minimal HTTP/1.1 client that sends any bytes and reads strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// One connection, kept alive.
pub(crate) struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Done,
    Left(usize),
    Chunked,
    UntilClose,
}

/// Status line and fields of an answer, names in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    fields: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(field, _)| field == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} came twice: {self:?}");
        value
    }

    pub(crate) fn is_event_stream(&self) -> bool {
        self.field("content-type").is_some_and(|value| value.starts_with("text/event-stream"))
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }
}

impl Conn {
    pub(crate) fn open(addr: SocketAddr) -> Conn {
        Conn::try_open(addr).unwrap_or_else(|| panic!("nobody listens on {addr}"))
    }

    /// `None` if nobody listens.
    pub(crate) fn try_open(addr: SocketAddr) -> Option<Conn> {
        let stream = TcpStream::connect(addr).ok()?;
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("timeout");
        Some(Conn { stream, buffer: Vec::new(), start: 0, framing: Framing::Done })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("send");
    }

    /// Fails when the other side is gone.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Some more bytes; false at the end or when the other side is gone.
    fn fill(&mut self) -> bool {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        let mut room = [0; 16 * 1024];
        match self.stream.read(&mut room) {
            Ok(0) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&room[..read]);
                true
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    panic!("no byte for {DEADLINE:?}")
                }
                _ => false,
            },
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            let unread = &self.buffer[self.start..];
            if let Some(end) = unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8(unread[..end].to_vec()).expect("UTF-8 head");
                self.start += end + 2;
                return Some(line);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next head; `None` if the connection ended before one.
    pub(crate) fn try_head(&mut self) -> Option<Head> {
        assert_eq!(self.framing, Framing::Done, "the last body was not read");
        let start = self.line()?;
        let status = start
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse::<u16>().ok())
            .unwrap_or_else(|| panic!("no status line: {start:?}"));
        let mut fields = Vec::new();
        loop {
            let line = self.line().expect("the head ends");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a field");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let head = Head { status, fields };
        let length = head.field("content-length").map(|text| text.parse().expect("length"));
        self.framing = match (head.field("transfer-encoding"), length) {
            (Some("chunked"), None) => Framing::Chunked,
            (None, Some(0)) => Framing::Done,
            (None, Some(length)) => Framing::Left(length),
            (None, None) if status < 200 || status == 204 || status == 304 => Framing::Done,
            (None, None) => Framing::UntilClose,
            both => panic!("framing {both:?}"),
        };
        Some(head)
    }

    pub(crate) fn head(&mut self) -> Head {
        self.try_head().expect("an answer before the end of the connection")
    }

    /// The next piece of the body; `None` at its end. `Err` if the connection ended within.
    pub(crate) fn piece(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        match self.framing {
            Framing::Done => Ok(None),
            Framing::Left(left) => {
                if self.start == self.buffer.len() && !self.fill() {
                    return Err("the body was cut");
                }
                let piece = self.take(left);
                let left = left - piece.len();
                self.framing = if left == 0 { Framing::Done } else { Framing::Left(left) };
                Ok(Some(piece))
            }
            Framing::UntilClose => {
                if self.start == self.buffer.len() && !self.fill() {
                    self.framing = Framing::Done;
                    return Ok(None);
                }
                Ok(Some(self.take(usize::MAX)))
            }
            Framing::Chunked => {
                let line = self.line().ok_or("the body was cut")?;
                let size = usize::from_str_radix(&line, 16).expect("a chunk size");
                while self.buffer.len() - self.start < size + 2 {
                    if !self.fill() {
                        return Err("the body was cut");
                    }
                }
                let piece = self.take(size);
                assert_eq!(self.take(2), b"\r\n", "the end of a chunk");
                if size == 0 {
                    self.framing = Framing::Done;
                    return Ok(None);
                }
                Ok(Some(piece))
            }
        }
    }

    fn take(&mut self, most: usize) -> Vec<u8> {
        let end = self.buffer.len().min(self.start.saturating_add(most));
        let piece = self.buffer[self.start..end].to_vec();
        self.start = end;
        piece
    }

    pub(crate) fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().expect("a whole body") {
            body.extend(piece);
        }
        body
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let head = self.head();
        let body = self.body();
        Answer { status: head.status, head, body }
    }

    /// Whether the other side closes now, without another byte.
    pub(crate) fn ends(&mut self) -> bool {
        self.start == self.buffer.len() && !self.fill()
    }

    /// Whatever still comes until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        self.take(usize::MAX)
    }

    /// The data of the next event of an event stream; comments are skipped. `None` at its end.
    pub(crate) fn event(&mut self, events: &mut Events) -> Option<Event> {
        loop {
            if let Some(event) = events.next() {
                return Some(event);
            }
            match self.piece() {
                Ok(Some(piece)) => events.text.extend(piece),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Event {
    pub(crate) event: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) data: String,
}

/// Bytes of an event stream that are no whole event yet.
#[derive(Default)]
pub(crate) struct Events {
    text: Vec<u8>,
}

impl Events {
    fn next(&mut self) -> Option<Event> {
        loop {
            let end = self.text.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.text.drain(..end + 2).collect();
            let block = String::from_utf8(block).expect("UTF-8 events");
            let mut event = Event::default();
            let mut data = Vec::new();
            for line in block.lines() {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match name {
                    "data" => data.push(value),
                    "id" => event.id = Some(value.to_owned()),
                    "event" => event.event = Some(value.to_owned()),
                    _ => {}
                }
            }
            if !data.is_empty() {
                event.data = data.join("\n");
                return Some(event);
            }
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn once(addr: SocketAddr, method: &str, target: &str, lines: &str) -> Answer {
    let mut conn = Conn::open(addr);
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    conn.send(
        format!("{method} {target} HTTP/1.1\r\nHost: {addr}\r\n{lines}{length}\r\n").as_bytes(),
    );
    conn.answer()
}

/// The same with a body.
pub(crate) fn once_with(
    addr: SocketAddr,
    method: &str,
    target: &str,
    lines: &str,
    body: &str,
) -> Answer {
    let mut conn = Conn::open(addr);
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {addr}\r\n{lines}Content-Length: {length}\r\n\r\n"
    );
    conn.send(format!("{head}{body}").as_bytes());
    conn.answer()
}
