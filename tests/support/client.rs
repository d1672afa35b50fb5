//! Owns: an MCP client of the session era over Streamable HTTP.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use super::http::{Answer, Conn, Event, Events, Head};
use super::{DEADLINE, quote, wait_until};

/// What a request asks for when nothing else is meant.
pub(crate) const ACCEPT: &str = "Accept: application/json, text/event-stream\r\n";
/// See [`ACCEPT`].
pub(crate) const JSON: &str = "Content-Type: application/json\r\n";

/// One session of one client, on one connection.
pub(crate) struct Client {
    pub(crate) addr: SocketAddr,
    pub(crate) conn: Conn,
    pub(crate) session: String,
    pub(crate) revision: String,
    /// Further fields of every request, each line ended.
    pub(crate) extra: String,
    /// The result of `initialize`.
    pub(crate) hello: Value,
    next_id: u64,
}

/// What one request was answered with.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) as_events: bool,
    /// Messages before the answer.
    pub(crate) before: Vec<String>,
    /// The answer as it came.
    pub(crate) text: String,
}

impl Told {
    /// What follows this head; `see` looks at each event.
    pub(crate) fn rest_seen(conn: &mut Conn, head: &Head, see: impl Fn(&Event)) -> Told {
        let mut told = Told {
            status: head.status,
            as_events: head.is_event_stream(),
            before: Vec::new(),
            text: String::new(),
        };
        if !told.as_events {
            told.text = String::from_utf8(conn.body()).expect("UTF-8");
            return told;
        }
        let mut events = Events::default();
        let mut messages = Vec::new();
        while let Some(event) = conn.event(&mut events) {
            see(&event);
            messages.push(event.data);
        }
        told.text = messages.pop().expect("a message on the stream");
        told.before = messages;
        told
    }

    /// What follows this head.
    pub(crate) fn rest(conn: &mut Conn, head: &Head) -> Told {
        Told::rest_seen(conn, head, |_| {})
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The result of a request that must have one.
    pub(crate) fn result(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        let mut json = self.json();
        assert!(json.get("error").is_none(), "{self:?}");
        json["result"].take()
    }

    /// The code and text of the error of a request that must fail.
    pub(crate) fn error(&self) -> (i64, String) {
        let error = &self.json()["error"];
        let code = error["code"].as_i64().unwrap_or_else(|| panic!("no error: {self:?}"));
        (code, error["message"].as_str().expect("message").to_owned())
    }

    /// The text of the first content of a tool's result.
    pub(crate) fn said(&self) -> String {
        let result = self.result();
        let text = result["content"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("no text: {self:?}")).to_owned()
    }
}

impl Client {
    /// Initialises at the newest revision.
    pub(crate) fn connect(addr: SocketAddr) -> Client {
        Client::connect_at(addr, "2025-11-25")
    }

    /// Initialises at `revision`, which must be the one agreed on.
    pub(crate) fn connect_at(addr: SocketAddr, revision: &str) -> Client {
        Client::connect_with(addr, revision, "{}")
    }

    /// Initialises as a client that can do this.
    pub(crate) fn connect_with(addr: SocketAddr, revision: &str, capabilities: &str) -> Client {
        Client::connect_saying(addr, revision, capabilities, "")
    }

    /// Initialises at the newest revision with a token, which every request shows.
    pub(crate) fn connect_as(addr: SocketAddr, token: &str) -> Client {
        let line = format!("Authorization: Bearer {token}\r\n");
        Client::connect_saying(addr, "2025-11-25", "{}", &line)
    }

    /// As [`Client::connect_with`], with these fields in every request.
    pub(crate) fn connect_saying(
        addr: SocketAddr,
        revision: &str,
        capabilities: &str,
        extra: &str,
    ) -> Client {
        let mut client = Client {
            addr,
            conn: Conn::open(addr),
            session: String::new(),
            revision: String::new(),
            extra: extra.to_owned(),
            hello: Value::Null,
            next_id: 1,
        };
        let params = format!(
            r#"{{"protocolVersion":"{revision}","capabilities":{capabilities},"clientInfo":{{"name":"test","version":"0"}}}}"#
        );
        client.send(&message("0", "initialize", &params));
        let head = client.conn.head();
        let session = head.field("mcp-session-id").map(str::to_owned);
        let told = client.rest_of(&head);
        client.hello = told.result();
        assert_eq!(client.hello["protocolVersion"], revision);
        client.session = session.expect("a session id");
        client.revision = revision.to_owned();
        client.notify("notifications/initialized", "{}");
        client
    }

    /// A session that exists, on a connection of its own.
    pub(crate) fn in_session(addr: SocketAddr, revision: &str, session: &str) -> Client {
        Client {
            addr,
            conn: Conn::open(addr),
            session: session.to_owned(),
            revision: revision.to_owned(),
            extra: String::new(),
            hello: Value::Null,
            next_id: 1_000_000,
        }
    }

    /// The same session on a connection of its own.
    pub(crate) fn again(&self) -> Client {
        Client {
            addr: self.addr,
            conn: Conn::open(self.addr),
            session: self.session.clone(),
            revision: self.revision.clone(),
            extra: self.extra.clone(),
            hello: self.hello.clone(),
            next_id: self.next_id + 1_000_000,
        }
    }

    /// The fields of every request of the session.
    pub(crate) fn lines(&self) -> String {
        let mut lines = format!("Host: {}\r\n{}", self.addr, self.extra);
        if !self.session.is_empty() {
            lines += &format!("Mcp-Session-Id: {}\r\n", self.session);
        }
        if self.revision.as_str() >= "2025-06-18" {
            lines += &format!("MCP-Protocol-Version: {}\r\n", self.revision);
        }
        lines
    }

    /// Sends one body, without waiting for its answer.
    pub(crate) fn send(&mut self, body: &str) {
        assert!(self.try_send(body), "send");
    }

    /// The same; false when the other side is gone.
    pub(crate) fn try_send(&mut self, body: &str) -> bool {
        let head = format!(
            "POST /mcp HTTP/1.1\r\n{}{ACCEPT}{JSON}Content-Length: {}\r\n\r\n",
            self.lines(),
            body.len()
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body.as_bytes());
        self.conn.try_send(&request).is_ok()
    }

    fn rest_of(&mut self, head: &Head) -> Told {
        let told = Told::rest(&mut self.conn, head);
        // Announced, and so no fault: after ten thousand requests, or at the end of the proxy.
        if head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            assert!(self.conn.ends(), "announced, and not closed");
            if let Some(conn) = Conn::try_open(self.addr) {
                self.conn = conn;
            }
        }
        told
    }

    /// The answer to what was sent.
    pub(crate) fn told(&mut self) -> Told {
        let head = self.conn.head();
        self.rest_of(&head)
    }

    /// The same; `None` when the connection has ended instead.
    pub(crate) fn try_told(&mut self) -> Option<Told> {
        let head = self.conn.try_head()?;
        Some(self.rest_of(&head))
    }

    /// Sends one body and waits for the answer.
    pub(crate) fn post(&mut self, body: &str) -> Told {
        self.send(body);
        self.told()
    }

    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends a request with an id of its own; the answer must carry it.
    pub(crate) fn ask(&mut self, method: &str, params: &str) -> Told {
        let id = self.fresh_id().to_string();
        let told = self.post(&message(&id, method, params));
        if told.status == 200 {
            assert_eq!(told.json()["id"].to_string(), id, "{told:?}");
        }
        told
    }

    pub(crate) fn call(&mut self, tool: &str, arguments: &str) -> Told {
        self.ask("tools/call", &call_params(tool, arguments))
    }

    pub(crate) fn notify(&mut self, method: &str, params: &str) {
        let told =
            self.post(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#));
        assert_eq!((told.status, told.text.as_str()), (202, ""));
    }

    /// A notification in a session that has ended.
    pub(crate) fn notify_gone(&mut self) {
        let told = self.post(r#"{"jsonrpc":"2.0","method":"notifications/nothing"}"#);
        assert_eq!(told.status, 404, "{told:?}");
    }

    /// The names of one list, with whatever key names an entry.
    pub(crate) fn names(&mut self, method: &str) -> Vec<String> {
        let (list, key) = match method {
            "tools/list" => ("tools", "name"),
            "prompts/list" => ("prompts", "name"),
            "resources/list" => ("resources", "uri"),
            "resources/templates/list" => ("resourceTemplates", "uriTemplate"),
            other => panic!("no list: {other}"),
        };
        let result = self.ask(method, "{}").result();
        let entries = result[list].as_array().unwrap_or_else(|| panic!("no {list}: {result}"));
        entries.iter().map(|entry| entry[key].as_str().expect("name").to_owned()).collect()
    }

    /// Until the list of tools has all of these.
    pub(crate) fn wait_for_tools(&mut self, tools: &[&str]) {
        let mut seen = Vec::new();
        wait_until(&format!("tools {tools:?}"), || {
            seen = self.names("tools/list");
            tools.iter().all(|tool| seen.iter().any(|name| name == tool))
        });
    }

    /// Calls until it is answered with a result, which is returned.
    pub(crate) fn call_until_well(&mut self, tool: &str, arguments: &str) -> Told {
        super::wait_for(&format!("a result of {tool}"), || {
            let told = self.call(tool, arguments);
            (told.json().get("error").is_none()).then_some(told)
        })
    }

    /// DELETE of the session.
    pub(crate) fn delete(&mut self) -> Answer {
        let request = format!("DELETE /mcp HTTP/1.1\r\n{}\r\n", self.lines());
        self.conn.send(request.as_bytes());
        self.conn.answer()
    }

    /// Opens the stand-alone stream on a connection of its own.
    pub(crate) fn listen(&self) -> Listening {
        let mut conn = Conn::open(self.addr);
        let accept = "Accept: text/event-stream\r\n";
        conn.send(format!("GET /mcp HTTP/1.1\r\n{}{accept}\r\n", self.lines()).as_bytes());
        let head = conn.head();
        assert_eq!(head.status, 200, "{head:?}");
        assert!(head.is_event_stream(), "{head:?}");
        let stream = conn.stream().try_clone().expect("clone");
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut events = Events::default();
            // The deadline is the reader's own; a quiet stream is no fault.
            conn.stream().set_read_timeout(None).expect("timeout");
            while let Some(event) = conn.event(&mut events) {
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Listening { receiver, stream }
    }
}

/// The stand-alone stream, read by a thread.
pub(crate) struct Listening {
    receiver: Receiver<Event>,
    stream: std::net::TcpStream,
}

impl Listening {
    /// The next message on it.
    pub(crate) fn next(&self) -> Value {
        let event = self.receiver.recv_timeout(DEADLINE).expect("an event on the stream");
        serde_json::from_str(&event.data).expect("JSON")
    }

    /// Messages until one has this method.
    pub(crate) fn wait_for(&self, method: &str) -> Value {
        loop {
            let message = self.next();
            if message["method"] == method {
                return message;
            }
        }
    }

    /// Everything up to the end of the stream, which must come.
    pub(crate) fn until_end(&self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.receiver.recv_timeout(DEADLINE) {
                Ok(event) => events.push(event),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return events,
                Err(_) => panic!("the stream does not end"),
            }
        }
    }

    /// What has arrived by now.
    pub(crate) fn so_far(&self) -> Vec<Event> {
        self.receiver.try_iter().collect()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// A request.
pub(crate) fn message(id: &str, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// The params of tools/call.
pub(crate) fn call_params(tool: &str, arguments: &str) -> String {
    format!(r#"{{"name":{},"arguments":{arguments}}}"#, quote(tool))
}
