//! Owns: the server of the measurement over Streamable HTTP, with answers as JSON or as event
//! streams; 405 to GET, as servers without a stream of their own.
//! Never: a session looked up; an id is known by its beginning, which no other process has.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::stub::{Answers, Options, Reply};
use crate::wire;

/// To a session of another life.
const LOST: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 74\r\n\r\n\
    {\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32001,\"message\":\"No session\"}}";

/// One client.
struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
    written: usize,
}

/// What all connections share.
struct Stub {
    answers: Answers,
    reply: Reply,
    sessions: u64,
    /// Begins the ids of this process's sessions.
    ours: String,
    /// Answers that wait for their time, with their connection.
    late: BinaryHeap<Reverse<(Instant, usize, Vec<u8>)>>,
    /// When it stands still next.
    stall: Option<Instant>,
}

/// Serves until it is killed.
pub(crate) fn serve(options: &Options) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    // mio listens with a backlog of 1024; std's 128 would be too short for 256 clients at once.
    let addr = (std::net::Ipv4Addr::LOCALHOST, options.port).into();
    let mut listener = TcpListener::bind(addr)?;
    println!("{}", listener.local_addr()?.port());
    let accept = Token(usize::MAX - 1);
    poll.registry().register(&mut listener, accept, Interest::READABLE)?;
    let mut connections: HashMap<usize, Connection> = HashMap::new();
    let mut next = 0;
    let every = Duration::from_millis(options.stall_every_ms);
    let mut stub = Stub {
        answers: Answers::new(options),
        reply: Reply::default(),
        sessions: 0,
        ours: format!("stub-{}-", std::process::id()),
        late: BinaryHeap::new(),
        stall: (!every.is_zero()).then(|| Instant::now() + every),
    };
    loop {
        let now = Instant::now();
        if stub.stall.is_some_and(|at| at <= now) {
            std::thread::sleep(Duration::from_millis(options.stall_ms));
            stub.stall = Some(Instant::now() + every);
        }
        let wake =
            stub.late.peek().map(|Reverse((at, ..))| *at).into_iter().chain(stub.stall).min();
        poll.poll(&mut events, wake.map(|at| at.saturating_duration_since(now)))?;
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
            let number = event.token().0;
            let Some(connection) = connections.get_mut(&number) else { continue };
            let ok =
                (!event.is_readable() || connection.read(number, &mut stub)) && connection.write();
            if !ok {
                connections.remove(&number);
            }
        }
        let now = Instant::now();
        while stub.late.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, number, bytes))) = stub.late.pop() else { break };
            let Some(connection) = connections.get_mut(&number) else { continue };
            connection.out.extend_from_slice(&bytes);
            if !connection.write() {
                connections.remove(&number);
            }
        }
    }
}

impl Connection {
    /// Reads and answers what is there; false = closed.
    fn read(&mut self, number: usize, stub: &mut Stub) -> bool {
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
            while let Some(len) = self.answer(start, number, stub) {
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
    fn answer(&mut self, start: usize, number: usize, stub: &mut Stub) -> Option<usize> {
        let bytes = &self.bytes[start..self.filled];
        let head = wire::head(bytes)?;
        let chunked;
        let (len, message) = match head.body {
            None if head.chunked => {
                let (len, body) = wire::chunked(&bytes[head.len..])?;
                chunked = body;
                (head.len + len, &chunked[..])
            }
            body => {
                let len = head.len + body.unwrap_or(0);
                (len, bytes.get(head.len..len)?)
            }
        };
        match bytes[0] {
            b'P' => {}
            b'D' => {
                self.out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                return Some(len);
            }
            _ => {
                self.out.extend_from_slice(
                    b"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST, DELETE\r\nContent-Length: 0\r\n\r\n",
                );
                return Some(len);
            }
        }
        if head.session.is_some_and(|(from, to)| !bytes[from..to].starts_with(stub.ours.as_bytes()))
        {
            self.out.extend_from_slice(LOST);
            return Some(len);
        }
        stub.answers.to(message, &mut stub.reply);
        if stub.reply.opens {
            stub.sessions += 1;
        }
        match stub.reply.delay {
            None => write_answer(&stub.reply, &stub.ours, stub.sessions, &mut self.out),
            Some(delay) => {
                let mut late = Vec::new();
                write_answer(&stub.reply, &stub.ours, stub.sessions, &mut late);
                stub.late.push(Reverse((Instant::now() + delay, number, late)));
            }
        }
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

/// A reply as an HTTP response.
fn write_answer(reply: &Reply, ours: &str, session: u64, out: &mut Vec<u8>) {
    if reply.ends.is_empty() {
        out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    if reply.events {
        out.extend_from_slice(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
              Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        let mut start = 0;
        for &end in &reply.ends {
            let message = &reply.bytes[start..end];
            let (before, after) = ("event: message\ndata: ", "\n\n");
            let len = before.len() + message.len() + after.len();
            // To a vector, which never fails.
            let _ = write!(out, "{len:x}\r\n{before}");
            out.extend_from_slice(message);
            let _ = write!(out, "{after}\r\n");
            start = end;
        }
        out.extend_from_slice(b"0\r\n\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n");
    if reply.opens {
        let _ = write!(out, "Mcp-Session-Id: {ours}{session}\r\n");
    }
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(reply.bytes.len()).as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(&reply.bytes);
}
