//! Owns: a server over HTTP that answers as a test says, byte by byte.
//! Never: faults that the stub has.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::process::http_backend;

/// One request of the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Its head, in lower case.
    head: String,
    /// Its message; null without a body.
    pub(crate) message: Value,
    /// Requests that came before it and look the same: of one HTTP method, and of one method in
    /// JSON-RPC.
    pub(crate) before: usize,
    /// The session that it is in.
    pub(crate) session: Option<String>,
}

impl Asked {
    /// Whether it is a request or notification of this method; `GET` and `DELETE` stand for those of
    /// HTTP.
    pub(crate) fn is(&self, method: &str) -> bool {
        self.method() == method
    }

    fn method(&self) -> &str {
        match self.message["method"].as_str() {
            Some(method) => method,
            None if self.head.starts_with("get") => "GET",
            None if self.head.starts_with("delete") => "DELETE",
            None => "",
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    }

    /// An error for it.
    pub(crate) fn error(&self, code: i64, text: &str) -> Value {
        let error = json!({ "code": code, "message": text, "data": { "own": true } });
        json!({ "jsonrpc": "2.0", "id": self.message["id"], "error": error })
    }

    /// A tool's result for it.
    pub(crate) fn says(&self, text: &str) -> Value {
        let result = json!({ "content": [{ "type": "text", "text": text }] });
        json!({ "jsonrpc": "2.0", "id": self.message["id"], "result": result })
    }
}

/// A JSON answer; `lines` are whole fields.
pub(crate) fn document(status: u16, lines: &str, body: &Value) -> Option<String> {
    let body = body.to_string();
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
    ))
}

/// An answer without a body.
pub(crate) fn bare(status: u16) -> Option<String> {
    Some(format!("HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n"))
}

/// An event stream that ends with these bytes, and the connection with it.
pub(crate) fn events(bytes: &str) -> Option<String> {
    Some(format!("HTTP/1.1 200 -\r\nContent-Type: text/event-stream\r\n\r\n{bytes}"))
}

/// An event stream that stays open.
pub(crate) fn open_events(bytes: &str) -> Option<String> {
    events(bytes).map(|text| text + KEEP)
}

/// Behind what is not to be closed.
const KEEP: &str = ":keep\n\n";

/// The server: a session for who initialises, one tool `t`.
pub(crate) struct Script {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
    /// Streams that stay open.
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Script {
    /// Whatever `answer` has nothing for is answered as is usual.
    pub(crate) fn start(
        answer: impl Fn(&Asked) -> Option<String> + Send + Sync + 'static,
    ) -> Script {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let (seen, streams) = (Arc::default(), Arc::default());
        let script = Script { addr, seen, streams };
        let (seen, streams) = (script.seen.clone(), script.streams.clone());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, streams, answer) = (seen.clone(), streams.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut input = BufReader::new(stream.try_clone().expect("clone"));
                    while let Some(asked) = read(&mut input, &seen) {
                        let text = answer(&asked).or_else(|| usual(&asked)).unwrap_or_default();
                        if (&stream).write_all(text.as_bytes()).is_err() {
                            return;
                        }
                        if text.ends_with(KEEP) {
                            streams.lock().unwrap().push(stream.try_clone().expect("clone"));
                        } else if text.contains("text/event-stream") {
                            let _ = stream.shutdown(std::net::Shutdown::Both);
                            return;
                        }
                    }
                });
            }
        });
        script
    }

    /// The TOML table of a backend that is this server.
    pub(crate) fn backend(&self, name: &str) -> String {
        http_backend(name, self.addr)
    }

    /// The requests so far of one method, as [`Asked::is`] has it.
    pub(crate) fn asked(&self, method: &str) -> Vec<Asked> {
        self.seen.lock().unwrap().iter().filter(|asked| asked.is(method)).cloned().collect()
    }

    pub(crate) fn count(&self, method: &str) -> usize {
        self.asked(method).len()
    }

    /// How many streams stay open.
    pub(crate) fn streams(&self) -> usize {
        self.streams.lock().unwrap().len()
    }

    /// Says this on all of them.
    pub(crate) fn say(&self, bytes: &str) {
        for mut stream in self.streams.lock().unwrap().iter() {
            let _ = stream.write_all(bytes.as_bytes());
        }
    }
}

/// The next request; `None` at the end.
fn read(input: &mut impl BufRead, seen: &Mutex<Vec<Asked>>) -> Option<Asked> {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        if input.read_line(&mut head).ok()? == 0 {
            return None;
        }
        let line = head[start..].to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    let message = serde_json::from_slice(&body).unwrap_or_default();
    let mut asked = Asked { head: head.to_ascii_lowercase(), message, before: 0, session: None };
    asked.session = asked.field("mcp-session-id").map(str::to_owned);
    let mut seen = seen.lock().unwrap();
    asked.before = seen.iter().filter(|earlier| earlier.is(asked.method())).count();
    seen.push(asked.clone());
    Some(asked)
}

fn usual(asked: &Asked) -> Option<String> {
    let result = match asked.method() {
        "GET" => return bare(405),
        "DELETE" => return bare(200),
        "initialize" => {
            let result = json!({
                "protocolVersion": "2025-11-25",
                "capabilities": { "tools": { "listChanged": true }, "logging": {} },
                "serverInfo": { "name": "script", "version": "0" },
            });
            let answer = json!({ "jsonrpc": "2.0", "id": asked.message["id"], "result": result });
            let line = format!("Mcp-Session-Id: s{}\r\n", asked.before);
            return document(200, &line, &answer);
        }
        "server/discover" => return document(400, "", &asked.error(-32000, "no valid session")),
        "tools/list" => {
            json!({ "tools": [{ "name": "t", "inputSchema": { "type": "object" } }] })
        }
        "tools/call" => return document(200, "", &asked.says("well")),
        _ if asked.message.get("id").is_none() => return bare(202),
        _ => json!({}),
    };
    document(200, "", &json!({ "jsonrpc": "2.0", "id": asked.message["id"], "result": result }))
}
