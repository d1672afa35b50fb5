//! Owns: Streamable HTTP, one thread a connection; strict with what it is sent.
//!
//! Beside `/mcp`: `POST /control/forget` forgets all sessions, `GET /control/stats` tells.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use crate::modern;
use crate::server::{Channel, Message, Reply, Stub, error};

pub(crate) fn serve(stub: Arc<Stub>, port: u16) -> ExitCode {
    let listener = match TcpListener::bind(("127.0.0.1", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("stub-server: port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let port = listener.local_addr().expect("address").port();
    println!("http://127.0.0.1:{port}/mcp");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        stub.note("connection");
        let stub = stub.clone();
        std::thread::spawn(move || {
            let served = match stub.options.old {
                true => crate::old::connection(&stub, stream),
                false => connection(&stub, stream),
            };
            if let Err(error) = served {
                stub.note(&format!("connection failed: {error}"));
            }
        });
    }
    ExitCode::SUCCESS
}

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(field, _)| field == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// `None` = the connection ended between two requests.
    pub(crate) fn read(input: &mut impl BufRead) -> io::Result<Option<Request>> {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let bad = |what: &str| io::Error::other(format!("bad request: {what}"));
        let start = line.strip_suffix("\r\n").ok_or(bad("line end"))?.to_owned();
        let parts: Vec<&str> = start.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else { return Err(bad(&start)) };
        let mut fields = Vec::new();
        loop {
            line.clear();
            input.read_line(&mut line)?;
            let field = line.strip_suffix("\r\n").ok_or(bad("line end"))?;
            if field.is_empty() {
                break;
            }
            let (name, value) = field.split_once(':').ok_or(bad("no colon"))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let request =
            Request { method: method.into(), target: target.into(), fields, body: Vec::new() };
        if request.fields.iter().filter(|(name, _)| name == "host").count() != 1 {
            return Err(bad("host"));
        }
        if request.field("transfer-encoding").is_some() {
            return Err(bad("transfer-encoding"));
        }
        let mut request = request;
        let length = request.field("content-length").map(str::parse::<usize>);
        if let Some(length) = length {
            request.body = vec![0; length.map_err(|_| bad("length"))?];
            input.read_exact(&mut request.body)?;
        }
        Ok(Some(request))
    }
}

/// One answer, as JSON or, from the first message before it on, as an event stream.
pub(crate) struct Exchange<'a> {
    pub(crate) stub: &'a Stub,
    /// The last answer on this connection.
    pub(crate) last: bool,
    pub(crate) out: RefCell<&'a TcpStream>,
    pub(crate) streaming: Cell<bool>,
}

impl Exchange<'_> {
    pub(crate) fn begin_stream(&self, session: Option<&str>) -> io::Result<()> {
        if self.streaming.replace(true) {
            return Ok(());
        }
        let head = head(200, "text/event-stream", session, "Transfer-Encoding: chunked\r\n");
        self.out.borrow_mut().write_all(head.as_bytes())?;
        match self.stub.options.prime {
            true => self.chunk("id: prime\r\ndata: \r\n\r\n"),
            false => Ok(()),
        }
    }

    pub(crate) fn chunk(&self, text: &str) -> io::Result<()> {
        self.out.borrow_mut().write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
    }

    pub(crate) fn event(&self, message: &str) -> io::Result<()> {
        self.chunk(&format!("event: message\ndata: {message}\n\n"))
    }

    pub(crate) fn finish(&self, answer: &str, session: Option<&str>) -> io::Result<()> {
        if self.stub.options.sse {
            self.begin_stream(session)?;
        }
        if self.streaming.get() {
            self.event(answer)?;
            return self.out.borrow_mut().write_all(b"0\r\n\r\n");
        }
        let close = if self.last { "Connection: close\r\n" } else { "" };
        let lines = format!("Content-Length: {}\r\n{close}", answer.len());
        let answer = head(200, "application/json", session, &lines) + answer;
        self.out.borrow_mut().write_all(answer.as_bytes())
    }
}

impl Channel for Exchange<'_> {
    fn say(&self, message: &str) -> io::Result<()> {
        self.begin_stream(None)?;
        self.event(message)
    }
}

pub(crate) fn head(status: u16, media: &str, session: Option<&str>, lines: &str) -> String {
    let session = session.map(|id| format!("Mcp-Session-Id: {id}\r\n")).unwrap_or_default();
    format!("HTTP/1.1 {status} Said\r\nContent-Type: {media}\r\n{session}{lines}\r\n")
}

pub(crate) fn plain(
    mut out: &TcpStream,
    status: u16,
    session: Option<&str>,
    body: &str,
) -> io::Result<()> {
    let length = format!("Content-Length: {}\r\n", body.len());
    let answer = head(status, "application/json", session, &length) + body;
    out.write_all(answer.as_bytes())
}

fn connection(stub: &Stub, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut served = 0;
    while let Some(request) = Request::read(&mut input)? {
        if stub.muted() {
            continue;
        }
        if !stub.options.tokens.is_empty() && request.target == "/mcp" {
            let shown = request.field("authorization").unwrap_or("none").to_owned();
            stub.note(&format!("authorization {} {shown}", request.method));
            if let Some(payload) = echoed(&request.body) {
                stub.note(&format!("echo {payload} {shown}"));
            }
            if !stub.options.tokens.iter().any(|token| shown == format!("Bearer {token}")) {
                plain(&stream, 401, None, &error("null", -32000, "Unauthorized"))?;
                continue;
            }
        }
        let keep = match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/mcp") => {
                let last = served + 1 == stub.options.requests_per_connection;
                post(stub, &stream, &request, last)?
            }
            ("GET" | "DELETE", "/mcp") if stub.options.only_modern => {
                stub.note(&format!("legacy {}", request.method));
                plain(&stream, 405, None, "")?;
                true
            }
            ("GET", "/mcp") => get(stub, &stream, &request)?,
            ("DELETE", "/mcp") => {
                let session = request.field("mcp-session-id").unwrap_or_default();
                let known = stub.sessions.lock().unwrap().remove(session).is_some();
                stub.note(&format!("delete {session}"));
                plain(&stream, if known { 200 } else { 404 }, None, "")?;
                true
            }
            ("POST", "/control/forget") => {
                stub.sessions.lock().unwrap().clear();
                stub.note("forget");
                plain(&stream, 200, None, "{}")?;
                true
            }
            ("GET", "/control/stats") => {
                plain(&stream, 200, None, &stub.stats())?;
                true
            }
            _ => {
                plain(&stream, 404, None, "{}")?;
                true
            }
        };
        served += 1;
        if !keep || served == stub.options.requests_per_connection {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Both)
}

/// The session of a request, or the refusal that it got.
fn session<'a>(stub: &Stub, out: &TcpStream, request: &'a Request) -> io::Result<Option<&'a str>> {
    if stub.options.stateless {
        return Ok(Some(""));
    }
    let id = request.field("mcp-session-id");
    let revision = id.and_then(|id| stub.sessions.lock().unwrap().get(id).cloned());
    let (Some(id), Some(revision)) = (id, revision) else {
        stub.note(&format!("unknown session {}", id.unwrap_or("none")));
        let refusal = match stub.options.lost {
            400 => error("null", -32000, "Bad Request: No valid session ID provided"),
            _ => error("null", -32001, "Session not found"),
        };
        let status = if id.is_none() { 400 } else { stub.options.lost };
        plain(out, status, None, &refusal)?;
        return Ok(None);
    };
    // Each hop names its own negotiated revision (2025-06-18, Transports, Protocol Version Header).
    let named = request.field("mcp-protocol-version");
    let needed = revision.as_str() >= "2025-06-18";
    if named.map_or(needed, |named| named != revision) {
        stub.note(&format!("wrong version header {named:?} for {revision}"));
        plain(out, 400, None, &error("null", -32000, "Bad Request: version header"))?;
        return Ok(None);
    }
    Ok(Some(id))
}

/// What a call of `echo` is to say.
fn echoed(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let params = (body["params"]["name"] == "echo").then_some(&body["params"])?;
    params["arguments"]["payload"].as_str().map(str::to_owned)
}

fn post(stub: &Stub, out: &TcpStream, request: &Request, last: bool) -> io::Result<bool> {
    let accept = request.field("accept").unwrap_or_default();
    if !accept.contains("application/json") || !accept.contains("text/event-stream") {
        stub.note(&format!("accept {accept}"));
        plain(out, 406, None, &error("null", -32000, "Not Acceptable"))?;
        return Ok(true);
    }
    if request.field("content-type") != Some("application/json") {
        stub.note("content-type");
        plain(out, 415, None, &error("null", -32000, "Unsupported Media Type"))?;
        return Ok(true);
    }
    let message = match Message::read(&request.body) {
        Ok(message) => message,
        Err(why) => {
            stub.note(&format!("bad {why}: {}", String::from_utf8_lossy(&request.body)));
            plain(out, 400, None, &error("null", -32700, "Parse error"))?;
            return Ok(true);
        }
    };
    if stub.options.modern && modern::is_asked(&message, request.field("mcp-protocol-version")) {
        return modern::post(stub, out, &request.fields, &message, &request.body);
    }
    if stub.options.only_modern {
        stub.note(&format!("legacy {}", message.method.as_deref().unwrap_or("response")));
        plain(out, 400, None, &modern::no_sessions(&message.id_text()))?;
        return Ok(true);
    }
    let minted;
    let mut fresh = None;
    let session = if message.method.as_deref() == Some("initialize") {
        if !stub.options.stateless {
            minted = format!("{}-{}-{}", stub.options.name, std::process::id(), stub.next_number());
            fresh = Some(minted.as_str());
        }
        fresh.unwrap_or_default()
    } else {
        match session(stub, out, request)? {
            Some(session) => session,
            None => return Ok(true),
        }
    };
    let exchange = Exchange { stub, last, out: RefCell::new(out), streaming: Cell::new(false) };
    match stub.handle(session, &message, &request.body, &exchange) {
        Reply::Answer(answer) | Reply::StopReading(answer) => {
            exchange.finish(&answer, fresh).map(|()| true)
        }
        Reply::Nothing => {
            let close = if last { "Connection: close\r\n" } else { "" };
            let accepted = format!("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n{close}\r\n");
            (&mut &*out).write_all(accepted.as_bytes())?;
            Ok(true)
        }
        Reply::Silence => {
            // Until the other side gives up.
            let _ = (&mut &*out).read(&mut [0; 1]);
            Ok(false)
        }
        Reply::Raw { bytes, close } => (&mut &*out).write_all(&bytes).map(|()| !close),
        Reply::Pieces { answer, pieces, pause, chunked } => {
            pieces_of(out, &answer, pieces, pause, chunked).map(|()| true)
        }
    }
}

fn pieces_of(
    mut out: &TcpStream,
    answer: &str,
    pieces: usize,
    pause: Duration,
    chunked: bool,
) -> io::Result<()> {
    let length = match chunked {
        true => "Transfer-Encoding: chunked\r\n".to_owned(),
        false => format!("Content-Length: {}\r\n", answer.len()),
    };
    out.write_all(head(200, "application/json", None, &length).as_bytes())?;
    for piece in answer.as_bytes().chunks(answer.len().div_ceil(pieces)) {
        if chunked {
            out.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        }
        out.write_all(piece)?;
        if chunked {
            out.write_all(b"\r\n")?;
        }
        std::thread::sleep(pause);
    }
    if chunked { out.write_all(b"0\r\n\r\n") } else { Ok(()) }
}

/// The stand-alone stream: what `tell_all` says, until the client leaves.
fn get(stub: &Stub, mut out: &TcpStream, request: &Request) -> io::Result<bool> {
    if stub.options.no_get {
        plain(out, 405, None, "")?;
        return Ok(true);
    }
    let Some(session) = session(stub, out, request)?.map(str::to_owned) else { return Ok(true) };
    if let Some(done) =
        crate::polling::resume(stub, out, request.field("last-event-id").unwrap_or(""))
    {
        return done;
    }
    let listening = stub.listen(&session);
    out.write_all(
        head(200, "text/event-stream", None, "Transfer-Encoding: chunked\r\n").as_bytes(),
    )?;
    stub.note("stream");
    stub.note(&format!("listener {session} {}", request.field("last-event-id").unwrap_or("")));
    let mut ticks = 0;
    loop {
        let event = match listening.recv_timeout(Duration::from_millis(200)) {
            Ok(message) => format!("event: message\ndata: {message}\n\n"),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                if !stub.options.stateless && !stub.sessions.lock().unwrap().contains_key(&session)
                {
                    out.write_all(b"0\r\n\r\n")?;
                    return Ok(true);
                }
                ticks += 1;
                if ticks % 10 > 0 {
                    continue;
                }
                ": still here\n\n".to_owned()
            }
        };
        if let Err(gone) = out.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()) {
            stub.note(&format!("unheard {session}"));
            return Err(gone);
        }
    }
}
