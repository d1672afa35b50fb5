//! Owns: one connection of the clients: handshakes, one request at a time, what comes back.
//! Never: when to send the next request (`generate`); what a right answer is (`request`).

use std::io::{self, Read, Write};
use std::time::Instant;

use memchr::memmem;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::job::{Era, Job, Kind};
use crate::request::{self, Tag, Template};
use crate::wire::{self, Whole};

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum State {
    Initializing,
    Initialized,
    /// Ready; waits for its turn.
    Ready,
    Calling,
    /// After a failure; made anew a moment later.
    Resting,
    Ending,
    Done,
}

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) state: State,
    /// When the request was due, and when it was sent.
    pub(crate) due: Instant,
    pub(crate) started: Instant,
    /// The request in flight is of this template.
    pub(crate) template: usize,
    stream: TcpStream,
    sessions: Vec<String>,
    turn: usize,
    bytes: Vec<u8>,
    filled: usize,
    /// The request to send, and how much of it is sent.
    request: Vec<u8>,
    sent: usize,
    calls: u64,
    tag: Tag,
    /// The server announced that it closes the connection.
    reconnect: bool,
}

/// What came of an event.
pub(crate) enum Turn {
    Waits,
    Ready,
    Answered,
    Ended,
}

/// What a connection works with.
pub(crate) struct Means<'a> {
    pub(crate) job: &'a Job,
    pub(crate) templates: &'a [Template],
    pub(crate) registry: Registry,
}

type Failure = (Kind, String);

impl Client {
    pub(crate) fn new(number: usize, means: &Means<'_>) -> io::Result<Client> {
        let stream = connect(number, means)?;
        let now = Instant::now();
        let largest = means.job.calls.iter().map(|call| call.result_bytes).max().unwrap_or(0);
        let mut client = Client {
            number,
            state: State::Ready,
            due: now,
            started: now,
            template: 0,
            stream,
            sessions: Vec::new(),
            turn: 0,
            bytes: vec![0; largest + 4096],
            filled: 0,
            request: Vec::new(),
            sent: 0,
            calls: 0,
            tag: request::tag(number, 0),
            reconnect: false,
        };
        if means.job.era == Era::Session {
            client.greet(means);
        }
        Ok(client)
    }

    /// Begins a session.
    fn greet(&mut self, means: &Means<'_>) {
        self.state = State::Initializing;
        self.request = request::whole(&means.job.place, None, request::INITIALIZE);
        self.sent = 0;
    }

    /// Makes the next call ready to send: it was due then, and is of that template.
    pub(crate) fn call(&mut self, due: Instant, template: usize, means: &Means<'_>) {
        self.calls += 1;
        self.turn = (self.turn + 1) % self.sessions.len().max(1);
        self.tag = request::tag(self.number, self.calls);
        self.template = template;
        let session = self.sessions.get(self.turn).map(String::as_str);
        means.templates[template].write(session, &self.tag, &mut self.request);
        self.sent = 0;
        self.state = State::Calling;
        self.started = Instant::now();
        self.due = due.min(self.started);
    }

    /// Ends its sessions, one after the other; true when there is nothing left to say.
    pub(crate) fn end(&mut self, means: &Means<'_>) -> bool {
        let Some(session) = self.sessions.pop() else {
            self.state = State::Done;
            return true;
        };
        self.request = request::bare("DELETE", &means.job.place, &session);
        self.sent = 0;
        self.state = State::Ending;
        false
    }

    /// Leaves the connection as it is, to be made anew.
    pub(crate) fn rest(&mut self) {
        self.state = State::Resting;
        self.filled = 0;
        self.sent = self.request.len();
    }

    /// A new connection after a failure, in the same sessions.
    pub(crate) fn revive(&mut self, means: &Means<'_>) -> io::Result<()> {
        self.stream = connect(self.number, means)?;
        self.reconnect = false;
        self.state = State::Ready;
        Ok(())
    }

    /// Sends what waits, reads what came.
    pub(crate) fn turn(&mut self, means: &Means<'_>) -> Result<Turn, Failure> {
        self.flush(means).map_err(|error| lost("write", &error))?;
        loop {
            if self.filled == self.bytes.len() {
                self.bytes.resize(self.filled * 2, 0);
            }
            let room = self.bytes.len() - self.filled;
            let n = match self.stream.read(&mut self.bytes[self.filled..]) {
                Ok(0) if self.state == State::Ready => return self.closed_meanwhile(means),
                Ok(0) => return Err((Kind::Lost, "closed by the server".into())),
                Ok(n) => n,
                Err(error) if waits(&error) => return Ok(Turn::Waits),
                Err(error) => return Err(lost("read", &error)),
            };
            self.filled += n;
            if let Some(turn) = self.response(means)? {
                return Ok(turn);
            }
            if n < room {
                return Ok(Turn::Waits);
            }
        }
    }

    /// A kept connection may be closed between two requests.
    fn closed_meanwhile(&mut self, means: &Means<'_>) -> Result<Turn, Failure> {
        self.stream = connect(self.number, means).map_err(|error| lost("connect", &error))?;
        self.reconnect = false;
        Ok(Turn::Waits)
    }

    /// Takes a response if it is whole.
    fn response(&mut self, means: &Means<'_>) -> Result<Option<Turn>, Failure> {
        let Some(whole) = wire::response(&self.bytes[..self.filled]) else { return Ok(None) };
        let wrong = |what: &str, whole: &Whole<'_>| {
            let start = String::from_utf8_lossy(&whole.body[..whole.body.len().min(160)]);
            Err((Kind::Wrong, format!("{what}: status {}: {start}", whole.status)))
        };
        if self.filled > whole.len {
            return wrong("bytes behind the answer", &whole);
        }
        let mut turn = Turn::Waits;
        let mut session = None;
        match self.state {
            State::Initializing => {
                let hello = memmem::find(&whole.body, b"\"protocolVersion\"").is_some();
                let Some((from, to)) = whole.head.session.filter(|_| whole.status == 200 && hello)
                else {
                    return wrong("initialize", &whole);
                };
                session = Some(String::from_utf8_lossy(&self.bytes[from..to]).into_owned());
            }
            // Servers differ: 202 is right, 200 is seen.
            State::Initialized if matches!(whole.status, 200 | 202) => {}
            State::Initialized => return wrong("initialized", &whole),
            State::Calling => {
                let template = &means.templates[self.template];
                template.check(&self.tag, whole.status, whole.head.events, &whole.body)?;
                turn = Turn::Answered;
            }
            State::Ending => {}
            State::Ready | State::Resting | State::Done => {
                return wrong("an answer to nothing", &whole);
            }
        }
        self.reconnect |= whole.head.close;
        self.filled = 0;
        match self.state {
            State::Initializing => {
                let session = session.unwrap_or_default();
                self.request =
                    request::whole(&means.job.place, Some(&session), request::INITIALIZED);
                self.sessions.push(session);
                self.sent = 0;
                self.state = State::Initialized;
            }
            State::Initialized if self.sessions.len() < means.job.sessions => self.greet(means),
            State::Initialized => {
                self.state = State::Ready;
                turn = Turn::Ready;
            }
            State::Ending => {
                let over = self.end(means);
                turn = if over { Turn::Ended } else { turn };
            }
            _ => {}
        }
        self.flush(means).map_err(|error| lost("write", &error))?;
        Ok(Some(turn))
    }

    /// Sends what waits of the request, on a new connection where the last one ended.
    pub(crate) fn flush(&mut self, means: &Means<'_>) -> io::Result<()> {
        if self.reconnect && self.sent == 0 {
            self.stream = connect(self.number, means)?;
            self.reconnect = false;
            return Ok(()); // writable once it is connected
        }
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

fn lost(what: &str, error: &io::Error) -> Failure {
    (Kind::Lost, format!("{what}: {error}"))
}

fn connect(number: usize, means: &Means<'_>) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(means.job.place.addr)?;
    stream.set_nodelay(true)?;
    let interest = Interest::READABLE | Interest::WRITABLE;
    means.registry.register(&mut stream, Token(number), interest)?;
    Ok(stream)
}
