//! Owns: an MCP server over HTTP that does what a test tells it, each connection on a thread.
//! Never: a verdict on what the proxy does.
//! Next: `http`.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) verb: String,
    /// Names in lower case.
    fields: Vec<(String, String)>,
    /// `null` without a body.
    pub(super) body: Value,
    pub(super) raw: String,
    /// Its place on its connection, from 0.
    pub(super) place: usize,
}

impl Seen {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    pub(super) fn method(&self) -> &str {
        self.body["method"].as_str().unwrap_or("")
    }

    pub(super) fn tool(&self) -> &str {
        self.body["params"]["name"].as_str().unwrap_or("")
    }

    pub(super) fn id(&self) -> String {
        self.body["id"].to_string()
    }
}

/// What the server does next on the connection.
pub(super) enum Step {
    Bytes(Vec<u8>),
    /// Waits until the test opens the gate, or the server is gone.
    Gate,
    /// Closes the connection.
    Close,
}

type Script = Box<dyn Fn(&Seen) -> Option<Vec<Step>> + Send + Sync>;

struct Shared {
    script: Script,
    seen: Mutex<Vec<Seen>>,
    sessions: Mutex<(u32, HashSet<String>)>,
    streams: Mutex<Vec<TcpStream>>,
    gate: Mutex<bool>,
    opened: Condvar,
    gone: Mutex<bool>,
}

/// The server; dropped, it is gone with all its connections.
pub(super) struct Fake {
    shared: Arc<Shared>,
    pub(super) address: SocketAddr,
}

impl Fake {
    /// A server that does what `script` says, and else what a good server does.
    pub(super) fn start(
        script: impl Fn(&Seen) -> Option<Vec<Step>> + Send + Sync + 'static,
    ) -> Fake {
        Fake::at(([127, 0, 0, 1], 0).into(), script)
    }

    pub(super) fn at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Option<Vec<Step>> + Send + Sync + 'static,
    ) -> Fake {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
            sessions: Mutex::default(),
            streams: Mutex::default(),
            gate: Mutex::new(false),
            opened: Condvar::new(),
            gone: Mutex::new(false),
        });
        let server = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if *server.gone.lock().unwrap() {
                    return;
                }
                server.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let server = server.clone();
                std::thread::spawn(move || serve(&server, stream));
            }
        });
        Fake { shared, address }
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Requests with that method of MCP.
    pub(super) fn count(&self, method: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method() == method).count()
    }

    /// Calls of that tool.
    pub(super) fn calls(&self, tool: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.tool() == tool).collect()
    }

    /// Forgets all sessions, as a restart would.
    pub(super) fn forget(&self) {
        self.shared.sessions.lock().unwrap().1.clear();
    }

    pub(super) fn open_gate(&self) {
        *self.shared.gate.lock().unwrap() = true;
        self.shared.opened.notify_all();
    }

    /// Closes all connections, whatever they do.
    pub(super) fn hang_up(&self) {
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        *self.shared.gone.lock().unwrap() = true;
        self.open_gate();
        // The acceptor wakes, sees that it is over and closes the port.
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.hang_up();
    }
}

fn serve(shared: &Shared, mut stream: TcpStream) {
    let mut input = Vec::new();
    let mut place = 0;
    while let Some(mut seen) = read(&mut stream, &mut input) {
        seen.place = place;
        place += 1;
        shared.seen.lock().unwrap().push(seen.clone());
        let steps = (shared.script)(&seen).unwrap_or_else(|| good(shared, &seen));
        for step in steps {
            match step {
                Step::Bytes(bytes) => {
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
                Step::Gate => {
                    let mut open = shared.gate.lock().unwrap();
                    while !*open {
                        open = shared.opened.wait(open).unwrap();
                    }
                }
                Step::Close => {
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    }
}

fn read(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<Seen> {
    loop {
        if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(input[..end].to_vec()).unwrap();
            let mut lines = head.split("\r\n");
            let verb = lines.next()?.split(' ').next()?.to_owned();
            let fields: Vec<_> = lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let length = fields.iter().find(|(name, _)| name == "content-length");
            let length = length.map_or(0, |(_, value)| value.parse().unwrap());
            if input.len() >= end + 4 + length {
                let raw = input[end + 4..end + 4 + length].to_vec();
                input.drain(..end + 4 + length);
                let raw = String::from_utf8(raw).unwrap();
                let body = serde_json::from_str(&raw).unwrap_or(Value::Null);
                return Some(Seen { verb, fields, body, raw, place: 0 });
            }
        }
        let mut piece = [0; 65536];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(length) => input.extend_from_slice(&piece[..length]),
        }
    }
}

/// What a good server with sessions answers.
fn good(shared: &Shared, seen: &Seen) -> Vec<Step> {
    if seen.verb == "GET" {
        return status(405, "", "");
    }
    let mut sessions = shared.sessions.lock().unwrap();
    let session = seen.field("mcp-session-id").unwrap_or("");
    if seen.method() == "initialize" {
        sessions.0 += 1;
        let id = format!("s{}", sessions.0);
        sessions.1.insert(id.clone());
        let result = json!({
            "protocolVersion": "2025-03-26", "serverInfo": {"name": "fake", "version": "1"},
            "capabilities": {"tools": {"listChanged": true}},
        });
        let body = json!({"jsonrpc": "2.0", "id": seen.body["id"], "result": result});
        let more = format!("Mcp-Session-Id: {id}\r\nContent-Type: application/json\r\n");
        return status(200, &more, &body.to_string());
    }
    if !sessions.1.contains(session) {
        return status(404, "", "");
    }
    if seen.verb == "DELETE" {
        sessions.1.remove(session);
        return status(200, "", "");
    }
    if seen.body.get("id").is_none() || seen.method().is_empty() {
        return status(202, "", "");
    }
    let result = match seen.method() {
        "tools/list" => tools(&["echo"]),
        "ping" => json!({}),
        _ => json!({"tool": seen.tool(), "session": session}),
    };
    json_answer(&seen.id(), &result)
}

/// The result of `tools/list`.
pub(super) fn tools(names: &[&str]) -> Value {
    let tools: Vec<_> =
        names.iter().map(|name| json!({"name": name, "inputSchema": {"type": "object"}})).collect();
    json!({"tools": tools})
}

/// A whole response.
pub(super) fn status(status: u16, more: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\n{more}Content-Length: {length}\r\n\r\n");
    vec![Step::Bytes([head.as_bytes(), body.as_bytes()].concat())]
}

pub(super) fn json_answer(id: &str, result: &Value) -> Vec<Step> {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
    status(200, "Content-Type: application/json\r\n", &body)
}

/// The head of an event stream, and its events, in pieces.
pub(super) fn events(events: &[&str]) -> Vec<Step> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let mut steps = vec![Step::Bytes(head.into())];
    steps.extend(events.iter().map(|event| chunk(event)));
    steps
}

/// One event of such a stream.
pub(super) fn chunk(event: &str) -> Step {
    Step::Bytes(format!("{:x}\r\n{event}\r\n", event.len()).into_bytes())
}

/// Its end.
pub(super) fn end() -> Step {
    Step::Bytes(b"0\r\n\r\n".to_vec())
}
