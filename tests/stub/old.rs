//! Owns: HTTP with SSE, the transport of 2024-11-05: a GET of `/sse` or `/mcp` opens a stream, POSTs
//! go to the endpoint that its first event names, answers come on the stream.
//!
//! `POST /control/forget` forgets all streams, which stay open.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::http::{Request, head, plain};
use crate::server::{Channel, Message, Reply, Stub};

/// The streams that are known, by session.
static STREAMS: Mutex<Option<HashMap<String, Arc<Events>>>> = Mutex::new(None);

/// One stream.
struct Events(Mutex<TcpStream>);

impl Events {
    fn event(&self, name: &str, data: &str) -> io::Result<()> {
        let text = format!("event: {name}\ndata: {data}\n\n");
        self.raw(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
    }

    fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().write_all(bytes)
    }
}

impl Channel for Events {
    fn say(&self, message: &str) -> io::Result<()> {
        self.event("message", message)
    }
}

pub(crate) fn connection(stub: &Arc<Stub>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut served = 0;
    while let Some(request) = Request::read(&mut input)? {
        if stub.muted() {
            continue;
        }
        match (request.method.as_str(), request.target.as_str()) {
            ("GET", "/sse" | "/mcp") => return get(stub, &stream, &request),
            ("POST", "/sse" | "/mcp") => {
                stub.note("refused");
                plain(&stream, 405, None, "Method Not Allowed")?;
            }
            ("POST", "/control/forget") => {
                STREAMS.lock().unwrap().take();
                stub.note("forget");
                plain(&stream, 200, None, "{}")?;
            }
            ("GET", "/control/stats") => plain(&stream, 200, None, &stub.stats())?,
            ("POST", target) => match target.strip_prefix("/messages/?session_id=") {
                Some(session) => post(stub, &stream, session, &request)?,
                None => plain(&stream, 404, None, "Not Found")?,
            },
            _ => plain(&stream, 404, None, "Not Found")?,
        }
        served += 1;
        if served == stub.options.requests_per_connection {
            break;
        }
    }
    stream.shutdown(Shutdown::Both)
}

fn get(stub: &Arc<Stub>, mut out: &TcpStream, request: &Request) -> io::Result<()> {
    if request.field("accept") != Some("text/event-stream") {
        stub.note("accept");
        return plain(out, 406, None, "Not Acceptable");
    }
    let session = format!("{}-{}-{}", stub.options.name, std::process::id(), stub.next_number());
    let listening = stub.listen(&session);
    out.write_all(
        head(200, "text/event-stream", None, "Transfer-Encoding: chunked\r\n").as_bytes(),
    )?;
    let events = Arc::new(Events(Mutex::new(out.try_clone()?)));
    let known = |events| {
        let mut streams = STREAMS.lock().unwrap();
        streams.get_or_insert_default().insert(session.clone(), events);
    };
    known(events.clone());
    stub.note(&format!("stream {session}"));
    let endpoint = format!("/messages/?session_id={session}");
    events.event("endpoint", stub.options.endpoint.as_ref().unwrap_or(&endpoint))?;
    out.set_read_timeout(Some(Duration::from_millis(1)))?;
    let ended = loop {
        match listening.recv_timeout(Duration::from_millis(20)) {
            Ok(message) => events.say(&message)?,
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => match out.read(&mut [0; 1]) {
                Ok(0) => break true,
                Ok(_) => break false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break true,
            },
        }
    };
    if let Some(streams) = &mut *STREAMS.lock().unwrap() {
        streams.remove(&session);
    }
    stub.note(if ended { "stream closed" } else { "bytes on a stream" });
    out.shutdown(Shutdown::Both)
}

fn post(stub: &Arc<Stub>, out: &TcpStream, session: &str, request: &Request) -> io::Result<()> {
    if request.field("content-type") != Some("application/json") {
        stub.note("content-type");
        return plain(out, 415, None, "Unsupported Media Type");
    }
    let streams = STREAMS.lock().unwrap();
    let Some(events) = streams.as_ref().and_then(|streams| streams.get(session)).cloned() else {
        drop(streams);
        stub.note(&format!("unknown session {session}"));
        return plain(out, 404, None, "Could not find session");
    };
    drop(streams);
    let is_request = match Message::read(&request.body) {
        Ok(message) => message.id.is_some() && message.method.is_some(),
        Err(why) => {
            stub.note(&format!("bad {why}: {}", String::from_utf8_lossy(&request.body)));
            return plain(out, 400, None, "Could not parse message");
        }
    };
    let accept = || plain(out, 202, None, "Accepted");
    if !is_request || stub.options.accept_late {
        handle(stub, session, &request.body, &events);
        return accept();
    }
    accept()?;
    let (stub, session, body) = (stub.clone(), session.to_owned(), request.body.clone());
    std::thread::spawn(move || handle(&stub, &session, &body, &events));
    Ok(())
}

fn handle(stub: &Stub, session: &str, body: &[u8], events: &Events) {
    let message = Message::read(body).expect("read before");
    let said = match stub.handle(session, &message, body, events) {
        Reply::Answer(answer) | Reply::Pieces { answer, .. } | Reply::StopReading(answer) => {
            events.say(&answer)
        }
        Reply::Silence | Reply::Nothing => Ok(()),
        Reply::Raw { bytes, close } => events.raw(&bytes).map(|()| {
            if close {
                let _ = events.0.lock().unwrap().shutdown(Shutdown::Both);
            }
        }),
    };
    if let Err(error) = said {
        stub.note(&format!("stream failed: {error}"));
    }
}
