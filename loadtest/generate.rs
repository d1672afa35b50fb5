//! Owns: the clients. Each connection is a closed loop of `tools/call` in a session of its own;
//! all of them run on one thread, and latency is what a client sees.
//! Never: an answer taken on trust. Each is checked for its status, its id, its length, and the
//! caller's own tag in the result: an answer that belongs to another caller is an error here.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;

use crate::histogram::Histogram;
use crate::{Result, wire};

/// What to send.
#[derive(Args)]
pub(crate) struct Load {
    #[arg(long)]
    pub(crate) to: SocketAddr,
    #[arg(long)]
    pub(crate) tool: String,
    #[arg(long)]
    pub(crate) connections: usize,
    #[arg(long)]
    pub(crate) size: usize,
    #[arg(long)]
    pub(crate) warmup_ms: u64,
    #[arg(long)]
    pub(crate) measure_ms: u64,
}

/// Without any answer for this long the run has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request body, the longest name of a tool included.
const REQUEST_BYTES: usize = 200;
/// Digits of ids, which are tags too: the number of the connection, then of the call.
pub(crate) const TAG_DIGITS: usize = 10;
const CALLS_PER_CONNECTION: u64 = 10_000_000;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Initializing,
    Initialized,
    /// Ready; waits until all others are.
    Ready,
    Calling,
    Ending,
    Done,
}

struct Client {
    number: usize,
    stream: TcpStream,
    state: State,
    session: Option<String>,
    bytes: Vec<u8>,
    filled: usize,
    /// The request to send, and how much of it is sent.
    request: Vec<u8>,
    sent: usize,
    /// Where the two copies of the tag stand in `request`.
    tags: [usize; 2],
    calls: u64,
    started: Instant,
    /// The server announced that it closes the connection.
    reconnect: bool,
}

/// Runs the load. `begin` and `end` on stdout frame the time in which requests are counted.
pub(crate) fn run(load: &Load) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut clients = Vec::new();
    for number in 0..load.connections {
        clients.push(Client::new(number, load, &poll)?);
    }
    let mut histogram = Histogram::new();
    let (mut errors, mut first_error) = (0_u64, String::new());
    let (mut open, mut ready) = (clients.len(), 0);
    let mut clock: Option<(Instant, Instant)> = None;
    let mut phase = 0;
    let mut elapsed = Duration::ZERO;
    let mut last_answer = Instant::now();

    while open > 0 {
        let now = Instant::now();
        if now.duration_since(last_answer) > PATIENCE {
            errors += open as u64;
            let _ = write!(first_error, "no answer for {PATIENCE:?}, {open} connections open");
            break;
        }
        if let Some((begin, end)) = clock {
            if phase == 0 && now >= begin {
                println!("begin");
                clock = Some((now, now + Duration::from_millis(load.measure_ms)));
                phase = 1;
            } else if phase == 1 && now >= end {
                println!("end");
                elapsed = now - begin;
                phase = 2;
            }
        }
        // Not asleep past the marks: with one connection that is stuck they would be late.
        poll.poll(&mut events, Some(Duration::from_millis(20)))?;
        for event in &events {
            let client = &mut clients[event.token().0];
            if client.state == State::Done {
                continue;
            }
            match client.turn(load, &poll) {
                Ok(Turn::Waits) => {}
                Ok(Turn::Ready) => {
                    last_answer = Instant::now();
                    ready += 1;
                }
                Ok(Turn::Answered) => {
                    last_answer = Instant::now();
                    if phase == 1 {
                        histogram.add((last_answer - client.started).as_nanos() as u64);
                    }
                    if phase < 2 {
                        client.call(load);
                    } else {
                        client.end(load);
                    }
                    client.flush(load, &poll)?;
                }
                Ok(Turn::Ended) => open -= 1,
                Err(error) => {
                    errors += 1;
                    if first_error.is_empty() {
                        first_error = format!("connection {}: {error}", client.number);
                    }
                    ready += usize::from(client.state < State::Calling);
                    client.state = State::Done;
                    open -= 1;
                }
            }
        }
        if ready == clients.len() && clock.is_none() {
            let begin = Instant::now() + Duration::from_millis(load.warmup_ms);
            clock = Some((begin, begin));
            for client in clients.iter_mut().filter(|client| client.state == State::Ready) {
                client.call(load);
                client.flush(load, &poll)?;
            }
        }
    }
    println!(
        "{}",
        json!({
            "requests": histogram.total(),
            "seconds": elapsed.as_secs_f64(),
            "errors": errors,
            "first_error": first_error,
            "p50": histogram.micros(0.5),
            "p90": histogram.micros(0.9),
            "p99": histogram.micros(0.99),
        })
    );
    Ok(())
}

impl PartialOrd for State {
    fn partial_cmp(&self, other: &State) -> Option<std::cmp::Ordering> {
        (*self as u8).partial_cmp(&(*other as u8))
    }
}

/// What came of an event.
enum Turn {
    Waits,
    Ready,
    Answered,
    Ended,
}

impl Client {
    fn new(number: usize, load: &Load, poll: &Poll) -> io::Result<Client> {
        let stream = connect(number, load, poll)?;
        let request = wire::request(&load.to.to_string(), None, wire::INITIALIZE);
        Ok(Client {
            number,
            stream,
            state: State::Initializing,
            session: None,
            bytes: vec![0; load.size + 4096],
            filled: 0,
            request,
            sent: 0,
            tags: [0; 2],
            calls: 0,
            started: Instant::now(),
            reconnect: false,
        })
    }

    /// Sends what waits, reads what came.
    fn turn(&mut self, load: &Load, poll: &Poll) -> std::result::Result<Turn, String> {
        self.flush(load, poll).map_err(|e| format!("write: {e}"))?;
        loop {
            if self.filled == self.bytes.len() {
                self.bytes.resize(self.filled * 2, 0);
            }
            let room = self.bytes.len() - self.filled;
            let n = match self.stream.read(&mut self.bytes[self.filled..]) {
                Ok(0) => return Err("closed by the server".into()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Waits),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                    return Ok(Turn::Waits);
                }
                Err(error) => return Err(format!("read: {error}")),
            };
            self.filled += n;
            if let Some(turn) = self.response(load)? {
                return Ok(turn);
            }
            if n < room {
                return Ok(Turn::Waits);
            }
        }
    }

    /// Takes a response if it is whole.
    fn response(&mut self, load: &Load) -> std::result::Result<Option<Turn>, String> {
        let bytes = &self.bytes[..self.filled];
        let Some(head) = wire::head(bytes) else { return Ok(None) };
        let rest = &bytes[head.len..];
        let collected;
        let (len, body) = match head.body {
            Some(len) if rest.len() < len => return Ok(None),
            Some(len) => (len, &rest[..len]),
            None if head.chunked => match wire::chunked(rest) {
                None => return Ok(None),
                Some((len, body)) => {
                    collected = body;
                    (len, &collected[..])
                }
            },
            None => (0, &rest[..0]),
        };
        if rest.len() > len {
            return Err("bytes behind the answer".into());
        }
        let status = wire::status(bytes);
        let turn = match self.state {
            State::Initializing => {
                if status != 200 || memmem::find(body, b"\"protocolVersion\"").is_none() {
                    return Err(complaint("initialize", status, body));
                }
                let id = head.session.ok_or("no session")?;
                self.session = Some(String::from_utf8_lossy(&bytes[id.0..id.1]).into_owned());
                let authority = load.to.to_string();
                self.request =
                    wire::request(&authority, self.session.as_deref(), wire::INITIALIZED);
                self.sent = 0;
                self.state = State::Initialized;
                None
            }
            State::Initialized if status == 202 => {
                self.prepare(load);
                self.state = State::Ready;
                Some(Turn::Ready)
            }
            State::Initialized => return Err(complaint("initialized", status, body)),
            State::Calling => {
                self.check(load, status, body)?;
                Some(Turn::Answered)
            }
            State::Ending => {
                self.state = State::Done;
                Some(Turn::Ended)
            }
            State::Ready | State::Done => {
                return Err(complaint("an answer to nothing", status, body));
            }
        };
        self.filled = 0;
        self.reconnect |= head.close;
        Ok(Some(match turn {
            Some(turn) => turn,
            None => return self.sent_next(),
        }))
    }

    /// The next step of the handshake is to be sent at once.
    fn sent_next(&mut self) -> std::result::Result<Option<Turn>, String> {
        if self.reconnect {
            return Err("closed in the handshake".into());
        }
        let n = self.stream.write(&self.request).map_err(|e| e.to_string())?;
        self.sent = n;
        Ok(Some(Turn::Waits))
    }

    /// The request of all calls, in which only the tag changes.
    fn prepare(&mut self, load: &Load) {
        let tag = "0".repeat(TAG_DIGITS);
        let body = |pad: usize| {
            format!(
                r#"{{"jsonrpc":"2.0","id":{tag},"method":"tools/call","params":{{"name":"{}","arguments":{{"tag":"{tag}","size":{},"pad":"{}"}}}}}}"#,
                load.tool,
                load.size,
                "p".repeat(pad),
            )
        };
        let pad = REQUEST_BYTES.saturating_sub(body(0).len());
        let authority = load.to.to_string();
        self.request = wire::request(&authority, self.session.as_deref(), &body(pad));
        let mut found = memmem::find_iter(&self.request, tag.as_bytes());
        self.tags = [(); 2].map(|()| found.next().expect("two tags"));
        self.sent = self.request.len();
    }

    fn tag(&self) -> [u8; TAG_DIGITS] {
        // Never a leading zero, which is no JSON number.
        let tag = (self.number as u64 + 100) * CALLS_PER_CONNECTION + self.calls;
        let mut digits = [0; TAG_DIGITS];
        digits.copy_from_slice(itoa::Buffer::new().format(tag).as_bytes());
        digits
    }

    /// Makes the next call ready to send.
    fn call(&mut self, _load: &Load) {
        self.calls += 1;
        let tag = self.tag();
        for at in self.tags {
            self.request[at..at + TAG_DIGITS].copy_from_slice(&tag);
        }
        self.sent = 0;
        self.state = State::Calling;
        self.started = Instant::now();
    }

    fn end(&mut self, load: &Load) {
        let session = self.session.as_deref().unwrap_or_default();
        self.request = format!(
            "DELETE /mcp HTTP/1.1\r\nHost: {}\r\nMcp-Session-Id: {session}\r\n\r\n",
            load.to
        )
        .into_bytes();
        self.sent = 0;
        self.state = State::Ending;
    }

    /// Sends what waits of the request, on a new connection where the last one ended.
    fn flush(&mut self, load: &Load, poll: &Poll) -> io::Result<()> {
        if self.reconnect && self.sent == 0 {
            self.stream = connect(self.number, load, poll)?;
            self.reconnect = false;
            return Ok(()); // writable once it is connected
        }
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check(&self, load: &Load, status: u16, body: &[u8]) -> std::result::Result<(), String> {
        let tag = self.tag();
        let start = &body[..body.len().min(128)];
        let twice = memmem::find_iter(start, &tag).count() == 2;
        if status == 200 && body.len() == load.size && twice && body.ends_with(b"\"}]}}") {
            return Ok(());
        }
        let tag = String::from_utf8_lossy(&tag).into_owned();
        Err(complaint(&format!("call {tag}"), status, body))
    }
}

fn complaint(what: &str, status: u16, body: &[u8]) -> String {
    let start = String::from_utf8_lossy(&body[..body.len().min(160)]);
    format!("{what}: status {status}, {} bytes: {start}", body.len())
}

fn connect(number: usize, load: &Load, poll: &Poll) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(load.to)?;
    stream.set_nodelay(true)?;
    let interest = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut stream, Token(number), interest)?;
    Ok(stream)
}
