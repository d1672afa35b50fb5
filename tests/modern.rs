//! Revision 2026-07-28: clients and backends of the request era, and either before the other era.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::client::{ACCEPT, Client, JSON, Told, call_params, message};
use crate::support::http::{Conn, Events, Head};
use crate::support::process::{HttpStub, Journal, Proxy, Setup, free_port, scratch, stdio_backend};
use crate::support::{quote, texts, wait_for, wait_until};

const VERSION: &str = "MCP-Protocol-Version: 2026-07-28\r\n";
const META: &str = "io.modelcontextprotocol/";

/// A client of the request era, on one connection.
pub(crate) struct Caller {
    addr: SocketAddr,
    /// Further fields of every request: whole lines.
    pub(crate) extra: String,
    pub(crate) conn: Conn,
    /// What it can do.
    pub(crate) capabilities: String,
    /// Further members of `_meta`, each with a comma before it.
    pub(crate) meta: String,
    next_id: u64,
}

impl Caller {
    pub(crate) fn new(proxy: &Proxy) -> Caller {
        Caller::at(proxy.addr)
    }

    pub(crate) fn at(addr: SocketAddr) -> Caller {
        Caller {
            addr,
            extra: String::new(),
            conn: Conn::open(addr),
            capabilities: "{}".into(),
            meta: String::new(),
            next_id: 0,
        }
    }

    /// A caller that has seen these tools.
    pub(crate) fn seeing(proxy: &Proxy, tools: &[&str]) -> Caller {
        let mut caller = Caller::new(proxy);
        let mut seen = Value::Null;
        wait_until(&format!("tools {tools:?}"), || {
            seen = caller.ask("tools/list", "").result();
            tools.iter().all(|tool| names(&seen, "tools").contains(&(*tool).to_owned()))
        });
        caller
    }

    fn envelope(&self) -> String {
        format!(
            r#""_meta":{{"{META}protocolVersion":"2026-07-28","{META}clientInfo":{{"name":"caller","version":"7"}},"{META}clientCapabilities":{}{}}}"#,
            self.capabilities, self.meta
        )
    }

    /// A whole request; `params` are members of it, without braces.
    pub(crate) fn body(&mut self, method: &str, params: &str) -> String {
        self.next_id += 1;
        let comma = if params.is_empty() { "" } else { "," };
        let params = format!("{{{params}{comma}{}}}", self.envelope());
        message(&self.next_id.to_string(), method, &params)
    }

    /// Sends these bytes under these fields.
    pub(crate) fn send(&mut self, lines: &str, body: &str) {
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{JSON}{}{lines}Content-Length: {}\r\n\r\n",
            self.addr,
            self.extra,
            body.len()
        );
        self.conn.send(format!("{head}{body}").as_bytes());
    }

    pub(crate) fn told(&mut self) -> Told {
        let head = self.conn.head();
        assert_eq!(head.field("mcp-session-id"), None, "{head:?}");
        self.rest(&head)
    }

    fn rest(&mut self, head: &Head) -> Told {
        if head.is_event_stream() {
            assert_eq!(head.field("x-accel-buffering"), Some("no"));
        }
        Told::rest_seen(&mut self.conn, head, |event| {
            assert_eq!(event.id, None, "no stream can be resumed");
        })
    }

    /// Asks as it should be asked; `about` is what `Mcp-Name` repeats, as it stands there.
    pub(crate) fn ask_about(&mut self, method: &str, about: &str, params: &str) -> Told {
        let body = self.body(method, params);
        self.send(&lines(method, about), &body);
        let told = self.told();
        assert_eq!(told.json()["id"], self.next_id, "{told:?}");
        told
    }

    pub(crate) fn ask(&mut self, method: &str, params: &str) -> Told {
        self.ask_about(method, "", params)
    }

    pub(crate) fn call(&mut self, tool: &str, arguments: &str) -> Told {
        let params = format!(r#""name":{},"arguments":{arguments}"#, quote(tool));
        self.ask_about("tools/call", tool, &params)
    }

    pub(crate) fn read(&mut self, uri: &str) -> Told {
        self.ask_about("resources/read", uri, &format!(r#""uri":{}"#, quote(uri)))
    }

    /// Listens on a connection of its own: the acknowledged filter, and the stream.
    pub(crate) fn listen(&self, filter: &str) -> (Value, Listening) {
        let mut conn = self.begin_to_listen(filter);
        let head = conn.head();
        assert!(head.status == 200 && head.is_event_stream(), "{head:?}");
        let mut listening = Listening { conn, events: Events::default() };
        let first = listening.next().expect("an acknowledgement");
        assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
        (first["params"]["notifications"].clone(), listening)
    }

    /// Asks to listen, on a connection of its own.
    pub(crate) fn begin_to_listen(&self, filter: &str) -> Conn {
        let mut conn = Conn::open(self.addr);
        let body = message(
            "\"mine\"",
            "subscriptions/listen",
            &format!(r#"{{"notifications":{filter},{}}}"#, self.envelope()),
        );
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{JSON}{}{}Content-Length: {}\r\n\r\n{body}",
            self.addr,
            self.extra,
            lines("subscriptions/listen", ""),
            body.len()
        );
        conn.send(head.as_bytes());
        conn
    }

    /// The same caller on another connection, perhaps on the other worker.
    pub(crate) fn again(&self) -> Caller {
        Caller {
            addr: self.addr,
            extra: self.extra.clone(),
            conn: Conn::open(self.addr),
            capabilities: self.capabilities.clone(),
            meta: self.meta.clone(),
            next_id: self.next_id,
        }
    }
}

/// A stream of one who listens.
pub(crate) struct Listening {
    conn: Conn,
    events: Events,
}

impl Listening {
    /// The next message, which is tagged with the listener's own id; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let event = self.conn.event(&mut self.events)?;
        let value: Value = serde_json::from_str(&event.data).expect("JSON");
        let part = if value["result"].is_null() { &value["params"] } else { &value["result"] };
        assert_eq!(part["_meta"][format!("{META}subscriptionId")], "mine", "{value}");
        Some(value)
    }

    /// The next message with this method.
    pub(crate) fn wait_for(&mut self, method: &str) -> Value {
        loop {
            let message = self.next().expect("a message before the end");
            if message["method"] == method {
                return message;
            }
        }
    }
}

pub(crate) fn lines(method: &str, about: &str) -> String {
    let about = match about {
        "" => String::new(),
        about => format!("Mcp-Name: {about}\r\n"),
    };
    format!("{VERSION}Mcp-Method: {method}\r\n{about}")
}

pub(crate) fn names(result: &Value, list: &str) -> Vec<String> {
    let entries = result[list].as_array().unwrap_or_else(|| panic!("no {list}: {result}"));
    let name = |entry: &Value| entry["name"].as_str().expect("a name").to_owned();
    entries.iter().map(name).collect()
}

/// Journals of stubs that complain of nothing.
pub(crate) fn no_mismatch(journal: &Journal) {
    let lines = journal.lines();
    assert!(!lines.iter().any(|line| line.starts_with("mismatch")), "{lines:?}");
}

/// A modern stub over HTTP (`web`) and one over stdio (`pipe`).
struct Modern {
    proxy: Proxy,
    web: HttpStub,
    journals: [Journal; 2],
    _scratch: tempfile::TempDir,
}

fn modern(more: &[&str]) -> Modern {
    let scratch = scratch();
    let journals = [Journal::new(&scratch, "web"), Journal::new(&scratch, "pipe")];
    let args = |journal: &Journal| {
        let mut args = vec!["--modern".to_owned(), "--journal".into(), journal.path().into()];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    };
    let (web, pipe) = (args(&journals[0]), args(&journals[1]));
    let web = HttpStub::start("web", &web.iter().map(String::as_str).collect::<Vec<_>>());
    let pipe = stdio_backend("pipe", &pipe.iter().map(String::as_str).collect::<Vec<_>>());
    let proxy = Proxy::start(&[web.backend("web"), pipe]);
    Caller::seeing(&proxy, &["web__echo", "pipe__echo"]);
    Modern { proxy, web, journals, _scratch: scratch }
}

#[test]
fn discovery_names_what_the_proxy_serves() {
    let world = modern(&["--ttl", "60000", "--public"]);
    let mut caller = Caller::new(&world.proxy);
    let result = caller.ask("server/discover", "").result();
    assert_eq!(result["resultType"], "complete");
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]));
    let capabilities = &result["capabilities"];
    assert_eq!(capabilities["tools"], json!({ "listChanged": true }));
    assert_eq!(capabilities["resources"], json!({ "listChanged": true, "subscribe": true }));
    assert_eq!(capabilities["completions"], json!({}));
    // What has methods of its own would end at the proxy.
    let ui = format!("{META}ui");
    assert_eq!(capabilities["extensions"], json!({ ui: { "mimeTypes": ["text/html"] } }));
    let server = &result["_meta"][format!("{META}serverInfo")];
    assert!(server["name"].is_string() && server["version"].is_string(), "{result}");
    let instructions = result["instructions"].as_str().expect("instructions");
    assert!(instructions.contains("Instructions of web.") && instructions.contains("pipe"));
    assert_eq!(result["cacheScope"], "public");
    let ttl = result["ttlMs"].as_u64().expect("ttlMs");
    assert!((1..=60_000).contains(&ttl), "{ttl}");
    world.journals.iter().for_each(no_mismatch);
}

#[test]
fn lists_are_as_fresh_and_as_public_as_the_least_part() {
    let public = ["--modern", "--ttl", "60000", "--public"];
    let long = HttpStub::start("long", &public);
    let private = HttpStub::start("private", &["--modern", "--ttl", "30000"]);
    let legacy = HttpStub::start("legacy", &[]);
    let list = |backends: &[String], tool: &str| {
        let proxy = Proxy::start(backends);
        let mut caller = Caller::seeing(&proxy, &[tool]);
        let result = caller.ask("tools/list", "").result();
        assert_eq!(result["resultType"], "complete");
        assert!(result["_meta"][format!("{META}serverInfo")].is_object());
        (result["ttlMs"].as_u64().expect("ttlMs"), result["cacheScope"].clone())
    };
    let (ttl, scope) = list(&[long.backend("a")], "a__echo");
    assert!(ttl > 30_000 && scope == "public", "{ttl} {scope}");
    let (ttl, scope) = list(&[long.backend("a"), private.backend("b")], "b__echo");
    assert!((1..=30_000).contains(&ttl) && scope == "private", "{ttl} {scope}");
    let (ttl, scope) = list(&[long.backend("a"), legacy.backend("c")], "c__echo");
    assert!(ttl == 0 && scope == "private", "{ttl} {scope}");
}

#[test]
fn lists_are_read_again_when_their_time_is_over() {
    let world = modern(&["--ttl", "1"]);
    let mut caller = Caller::new(&world.proxy);
    let (_, mut listening) = caller.listen(r#"{"toolsListChanged":true}"#);
    for backend in ["web", "pipe"] {
        let tool = format!("{backend}__add");
        caller.call(&tool, r#"{"name":"unsaid","quiet":true}"#).result();
        // A word about an earlier reading may still be on its way.
        loop {
            listening.wait_for("notifications/tools/list_changed");
            let tools = names(&caller.ask("tools/list", "").result(), "tools");
            if tools.contains(&format!("{backend}__unsaid")) {
                break;
            }
        }
    }
}

#[test]
fn every_request_says_what_it_must_or_is_refused() {
    let stub = HttpStub::start("web", &["--modern"]);
    let proxy = Proxy::start(&[stub.backend("web")]);
    let mut caller = Caller::seeing(&proxy, &["web__echo"]);
    let call = r#""name":"web__echo","arguments":{"payload":"x"}"#;
    let good = lines("tools/call", "web__echo");
    let method = "Mcp-Method: tools/call\r\n";
    let name = "Mcp-Name: web__echo\r\n";
    for (fields, wanted) in [
        (good.clone(), 0),
        (format!("{VERSION}{method}"), -32020),
        (format!("{VERSION}{name}"), -32020),
        (format!("{method}{name}"), -32020),
        (format!("MCP-Protocol-Version: 2025-11-25\r\n{method}{name}"), -32020),
        (format!("{VERSION}{method}Mcp-Name: web__other\r\n"), -32020),
        (format!("{VERSION}{method}Mcp-Name: WEB__ECHO\r\n"), -32020),
        (format!("{VERSION}Mcp-Method: tools/list\r\n{name}"), -32020),
        (format!("{VERSION}Mcp-Method: Tools/Call\r\n{name}"), -32020),
        (format!("{good}{name}"), -32020),
        (format!("{good}{method}"), -32020),
        (format!("{VERSION}{method}Mcp-Name: =?base64?!?=\r\n"), -32020),
        (format!("{VERSION}{method}Mcp-Name: =?base64?d2ViX19lY2hv?=\r\n"), 0),
        // Those of sessions are ignored.
        (format!("{good}Mcp-Session-Id: nobody\r\nLast-Event-ID: 7\r\n"), 0),
        (format!("mcp-protocol-version: 2026-07-28\r\nMCP-METHOD: tools/call\r\n{name}"), 0),
    ] {
        let body = caller.body("tools/call", call);
        caller.send(&fields, &body);
        let told = caller.told();
        if wanted == 0 {
            assert_eq!(told.said(), "x", "{fields}");
        } else {
            assert_eq!((told.status, told.error().0), (400, wanted), "{fields}");
            assert_eq!(told.json()["id"], caller.next_id);
        }
    }
    // What `_meta` must have.
    for (meta, status, wanted) in [
        (String::new(), 400, -32602),
        (format!(r#""{META}protocolVersion":"2026-07-28""#), 400, -32602),
        (format!(r#""{META}clientCapabilities":{{}}"#), 400, -32602),
        (
            format!(r#""{META}protocolVersion":"2026-07-28","{META}clientCapabilities":[]"#),
            400,
            -32602,
        ),
        (
            format!(r#""{META}protocolVersion":"2025-11-25","{META}clientCapabilities":{{}}"#),
            400,
            -32020,
        ),
    ] {
        let params = format!(r#"{{{call},"_meta":{{{meta}}}}}"#);
        caller.send(&good, &message("1", "tools/call", &params));
        let told = caller.told();
        assert_eq!((told.status, told.error().0), (status, wanted), "{meta}");
    }
    // A revision that nobody speaks.
    let body = caller.body("tools/call", call).replace("2026-07-28", "2099-01-01");
    caller.send(&good.replace("2026-07-28", "2099-01-01"), &body);
    let told = caller.told();
    assert_eq!((told.status, told.error().0), (400, -32022));
    let data = json!({ "supported": ["2026-07-28"], "requested": "2099-01-01" });
    assert_eq!(told.json()["error"]["data"], data);
    // Methods that are gone, and one that never was.
    for method in
        ["ping", "initialize", "logging/setLevel", "resources/subscribe", "tasks/get", "x"]
    {
        let told = caller.ask(method, "");
        assert_eq!((told.status, told.error().0), (404, -32601), "{method}");
    }
    let told = caller.read("nobody://owns/this");
    assert_eq!(told.error().0, -32602, "{told:?}");
    let told = caller.call("nobody__tool", "{}");
    assert_eq!(told.error().0, -32602, "{told:?}");
    // Neither a response nor an array.
    for body in [r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.to_owned(), "[]".to_owned()] {
        caller.send(&lines("tools/call", "x"), &body);
        assert_eq!(caller.told().status, 400, "{body}");
    }
    // A notification is accepted, whatever its head lacks.
    caller.send(
        VERSION,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
    );
    let head = caller.conn.head();
    assert_eq!((head.status, caller.conn.body()), (202, Vec::new()));
    // There is nothing but POST.
    for method in ["GET", "DELETE"] {
        let request =
            format!("{method} /mcp HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{VERSION}\r\n", proxy.addr);
        caller.conn.send(request.as_bytes());
        let answer = caller.conn.answer();
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.head.field("allow").is_some_and(|allow| allow.contains("POST")));
    }
    // The other era at the same place, on the same connection.
    let mut session = proxy.client();
    assert_eq!(session.call("web__echo", r#"{"payload":"y"}"#).said(), "y");
}

#[test]
fn calls_reach_their_backend_with_head_and_body_alike() {
    let world = modern(&[]);
    let mut caller = Caller::new(&world.proxy);
    // An extension that would end at the proxy is not promised to a backend.
    caller.capabilities =
        r#"{"sampling":{},"extensions":{"com.example/methods":{}},"x":[1.0]}"#.into();
    caller.meta = r#","traceparent":"00-1-2-01","n":9007199254740993"#.into();
    for backend in ["web", "pipe"] {
        let told = caller.call(&format!("{backend}__raw"), r#"{"n":12345678901234567890}"#);
        assert!(!told.as_events);
        let result = told.result();
        assert_eq!(result["resultType"], "complete");
        let body: Value = serde_json::from_str(&told.said()).expect("JSON");
        assert_eq!(body["params"]["name"], "raw");
        let meta = &body["params"]["_meta"];
        let expected = json!({ "sampling": {}, "extensions": {}, "x": [1.0] });
        assert_eq!(meta[format!("{META}clientCapabilities")], expected);
        assert_eq!(meta[format!("{META}clientInfo")]["name"], "caller");
        assert_eq!(meta["traceparent"], "00-1-2-01");
        assert!(told.said().contains(r#""n":12345678901234567890"#), "{}", told.said());
        // Unknown members, number text and order arrive as they were sent.
        let rich = caller.call(&format!("{backend}__rich"), "{}");
        let expected = texts::RICH_RESULT.replacen('{', r#"{"resultType":"complete","#, 1);
        assert!(rich.text.contains(&expected), "{}", rich.text);
        let told = caller.call(&format!("{backend}__rich_error"), "{}");
        assert!(told.text.contains(texts::RICH_ERROR), "{}", told.text);
        assert_eq!(told.status, 200);
        // A large answer.
        let told = caller.call(&format!("{backend}__big"), r#"{"bytes":300000}"#);
        assert_eq!(told.said().len(), 300_000);
        // Reads and prompts.
        let result = caller.read(&format!("stub://{backend}/fixed")).result();
        assert_eq!(result["contents"][0]["text"], format!("fixed of {backend}"));
        assert!(result["ttlMs"].is_u64() && result["cacheScope"].is_string());
        let prompt = format!("{backend}__prompt");
        let params = format!(r#""name":"{prompt}""#);
        let result = caller.ask_about("prompts/get", &prompt, &params).result();
        assert_eq!(result["description"], format!("of {backend}"));
        // What a backend has not.
        let told = caller.read(&format!("stub://{backend}/item/none/x"));
        assert_eq!(told.error().0, -32602, "{told:?}");
        // Completions go where their prompt is, under its own name.
        let params = format!(
            r#""ref":{{"type":"ref/prompt","name":"{prompt}"}},"argument":{{"name":"a","value":"b"}}"#
        );
        let result = caller.ask("completion/complete", &params).result();
        let said = result["completion"]["values"][0].as_str().expect("a value");
        assert_eq!(
            serde_json::from_str::<Value>(said).unwrap(),
            json!({ "type": "ref/prompt", "name": "prompt" })
        );
        let template = format!("stub://{backend}/item/{{id}}");
        let params = format!(
            r#""ref":{{"type":"ref/resource","uri":"{template}"}},"argument":{{"name":"id","value":"b"}}"#
        );
        let result = caller.ask("completion/complete", &params).result();
        assert!(result["completion"]["values"][0].as_str().unwrap().contains(backend));
    }
    let seen = world.journals[0].last("modern tools/call");
    assert_eq!(seen, "mcp-protocol-version=2026-07-28 mcp-method=tools/call mcp-name=big");
    world.journals.iter().for_each(no_mismatch);
    // No session was ever opened.
    assert_eq!(world.journals[0].count("legacy GET"), 0);
}

#[test]
fn progress_and_log_messages_come_as_they_were_asked_for() {
    let world = modern(&[]);
    let mut caller = Caller::new(&world.proxy);
    for backend in ["web", "pipe"] {
        for token in [r#""tok""#, "0", "9007199254740993"] {
            caller.meta = format!(r#","progressToken":{token}"#);
            let tool = format!("{backend}__progress");
            let told = caller.call(&tool, r#"{"steps":3,"note":"n"}"#);
            assert!(told.as_events && told.before.len() == 3, "{told:?}");
            for (step, text) in told.before.iter().enumerate() {
                let wanted = format!(r#""progress":{},"progressToken":{token},"#, step + 1);
                assert!(text.contains(&wanted) && text.contains(texts::PROGRESS_EXTRA), "{text}");
            }
            assert_eq!(told.said(), "n");
        }
    }
    let heard = |caller: &mut Caller, backend: &str, meta: &str| -> Vec<Value> {
        caller.meta = meta.to_owned();
        let told = caller.call(&format!("{backend}__log"), "{}");
        assert_eq!(told.said(), "logged");
        assert_eq!(told.as_events, !told.before.is_empty());
        let levels = told.before.iter().map(|text| {
            let message: Value = serde_json::from_str(text).unwrap();
            assert_eq!(message["params"]["logger"], backend, "{text}");
            message["params"]["level"].clone()
        });
        levels.collect()
    };
    let debug = format!(r#","{META}logLevel":"debug""#);
    for backend in ["web", "pipe"] {
        for (meta, wanted) in [
            ("", &[][..]),
            (&format!(r#","{META}logLevel":"warning""#), &["warning"][..]),
            (&debug, &["debug", "warning"][..]),
        ] {
            assert_eq!(heard(&mut caller, backend, meta), wanted, "{backend} {meta}");
        }
    }
    // On the channel that all share a message names no call. Those that want none are not meant;
    // between two that want some it is not guessed.
    let mut busy = Caller::new(&world.proxy);
    let hang = |busy: &mut Caller, count| {
        let body = busy.body("tools/call", r#""name":"pipe__hang","arguments":{}"#);
        busy.send(&lines("tools/call", "pipe__hang"), &body);
        world.journals[1].wait_count("call hang", count);
    };
    hang(&mut busy, 1);
    assert_eq!(heard(&mut caller, "pipe", &debug).len(), 2);
    let mut other = Caller::new(&world.proxy);
    other.meta = debug.clone();
    hang(&mut other, 2);
    assert_eq!(heard(&mut caller, "pipe", &debug).len(), 0);
    caller.meta = format!(r#","{META}logLevel":"loud""#);
    assert_eq!(caller.call("web__log", "{}").error().0, -32602);
}

#[test]
fn questions_and_their_state_pass_untouched() {
    let world = modern(&[]);
    let mut caller = Caller::new(&world.proxy);
    caller.capabilities = r#"{"elicitation":{}}"#.into();
    for backend in ["web", "pipe"] {
        let tool = format!("{backend}__ask");
        let told = caller.call(&tool, "{}");
        let raw = r#""result":{"resultType":"input_required","inputRequests":{"k\u0031":{"method":"elicitation/create","params":{"mode":"form","message":"Name?","requestedSchema":{"type":"object","properties":{}}}}},"requestState":"st\u0061te \/1"}"#;
        assert!(told.text.contains(raw), "{}", told.text);
        let params = format!(
            r#""name":"{tool}","arguments":{{}},"inputResponses":{{"k1":{{"action":"accept","content":{{"n":1.0}}}}}},"requestState":"st\u0061te \/1""#
        );
        let told = caller.ask_about("tools/call", &tool, &params);
        let said = told.said();
        assert!(said.contains(r#""requestState":"st\u0061te \/1""#), "{said}");
        assert!(said.contains(r#""content":{"n":1.0}"#), "{said}");
    }
    // The client of this session can give no input: it reads why.
    let mut session = world.proxy.client();
    for backend in ["web", "pipe"] {
        let (code, text) = session.call(&format!("{backend}__ask"), "{}").error();
        assert_eq!(code, -32014, "{text}");
        assert!(text.contains(backend), "{text}");
    }
}

#[test]
fn fields_that_repeat_arguments_are_held_against_them_and_passed_on() {
    let world = modern(&[]);
    let mut caller = Caller::new(&world.proxy);
    let params = |value: &str| format!(r#""name":"web__region","arguments":{{"region":{value}}}"#);
    let good = lines("tools/call", "web__region");
    for (value, field, ok) in [
        (r#""us""#, "Mcp-Param-Region: us\r\n", true),
        (r#""us""#, "mcp-param-REGION: =?base64?dXM=?=\r\n", true),
        (r#""\u00e9""#, "Mcp-Param-Region: =?base64?w6k=?=\r\n", true),
        ("null", "", true),
        (r#""us""#, "", false),
        (r#""us""#, "Mcp-Param-Region: eu\r\n", false),
        (r#""us""#, "Mcp-Param-Region: us\r\nMcp-Param-Region: us\r\n", false),
        ("null", "Mcp-Param-Region: us\r\n", false),
        (r#""us""#, "Mcp-Param-Region: =?base64?d?=\r\n", false),
    ] {
        let body = caller.body("tools/call", &params(value));
        // One that nobody here knows is passed on.
        caller.send(&format!("{good}Mcp-Param-Other: kept\r\n{field}"), &body);
        let told = caller.told();
        match ok {
            true => assert_eq!(told.said(), "region", "{value} {field}"),
            false => assert_eq!((told.status, told.error().0), (400, -32020), "{value} {field}"),
        }
    }
    let seen = world.journals[0].last("modern tools/call");
    assert!(seen.contains("mcp-param-other=kept"), "{seen}");
    no_mismatch(&world.journals[0]);
    // A session has no such fields: they are made.
    let mut session = world.proxy.client();
    assert_eq!(session.call("web__region", r#"{"region":"é"}"#).said(), "region");
    assert_eq!(session.call("pipe__region", r#"{"region":"é"}"#).said(), "region");
    no_mismatch(&world.journals[0]);
}

#[test]
fn to_close_the_stream_is_to_cancel_at_once() {
    let scratch = scratch();
    let journal = |name: &str| Journal::new(&scratch, name);
    let [web, pipe, old, old_pipe] = ["web", "pipe", "old", "oldpipe"].map(journal);
    let stub = HttpStub::start("web", &["--modern", "--journal", web.path()]);
    let legacy = HttpStub::start("old", &["--journal", old.path()]);
    let proxy = Proxy::start(&[
        stub.backend("web"),
        stdio_backend("pipe", &["--modern", "--journal", pipe.path()]),
        legacy.backend("old"),
        stdio_backend("oldpipe", &["--journal", old_pipe.path()]),
    ]);
    Caller::seeing(&proxy, &["web__hang", "pipe__hang", "old__hang", "oldpipe__hang"]);
    for (backend, journal, word) in [
        ("web", &web, "closed"),
        ("pipe", &pipe, "modern notifications/cancelled"),
        ("old", &old, "cancelled"),
        ("oldpipe", &old_pipe, "cancelled"),
    ] {
        for tool in ["hang", "progress"] {
            let before = journal.count("closed") + journal.count("cancelled");
            let mut caller = Caller::new(&proxy);
            caller.meta = r#","progressToken":1"#.into();
            let name = format!("{backend}__{tool}");
            let params = format!(r#""name":"{name}","arguments":{{"steps":10000,"ms":50}}"#);
            let body = caller.body("tools/call", &params);
            caller.send(&lines("tools/call", &name), &body);
            journal.last(&format!("call {tool}"));
            drop(caller);
            wait_until(&format!("{backend} hears that {tool} is cancelled ({word})"), || {
                journal.count("closed") + journal.count("cancelled") > before
            });
        }
    }
}

#[test]
fn one_who_listens_hears_what_was_agreed_and_nothing_else() {
    let mut world = modern(&[]);
    let caller = Caller::new(&world.proxy);
    let mut other = Caller::new(&world.proxy);
    let (agreed, mut listening) = caller.listen(
        r#"{"toolsListChanged":true,"promptsListChanged":false,"resourceSubscriptions":["stub://web/fixed","stub://pipe/fixed","nobody://here"]}"#,
    );
    assert_eq!(
        agreed,
        json!({
            "toolsListChanged": true,
            "resourceSubscriptions": ["stub://web/fixed", "stub://pipe/fixed"],
        })
    );
    for backend in ["web", "pipe"] {
        let uri = format!("stub://{backend}/fixed");
        other.call(&format!("{backend}__touch"), r#"{"uri":"stub://elsewhere"}"#).result();
        other.call(&format!("{backend}__touch"), &format!(r#"{{"uri":"{uri}"}}"#)).result();
        // What was read before its backend said so is told twice, and the second word may be late.
        let message = listening.wait_for("notifications/resources/updated");
        assert_eq!(
            (&message["params"]["uri"], &message["params"]["x"]),
            (&json!(uri), &json!(1.0))
        );
        // A prompt that is added is not told, a tool is.
        other.call(&format!("{backend}__add"), r#"{"kind":"prompt"}"#).result();
        other.call(&format!("{backend}__add"), r#"{"name":"fresh"}"#).result();
        let message = listening.next().expect("a message");
        assert_eq!(message["method"], "notifications/tools/list_changed", "{message}");
        let tools = other.ask("tools/list", "").result();
        assert!(names(&tools, "tools").contains(&format!("{backend}__fresh")));
        // What a backend says is passed on, even if nothing looks different.
        other.call(&format!("{backend}__fuss"), "{}").result();
        let message = listening.next().expect("a message");
        assert_eq!(message["method"], "notifications/tools/list_changed", "{message}");
    }
    // The backend's end of the stream is opened again, and the client told what it may have missed.
    other.call("web__hang_up", "{}").result();
    let message = listening.wait_for("notifications/resources/updated");
    assert_eq!(message["params"]["uri"], "stub://web/fixed");
    wait_for("an update after the stream was opened again", || {
        other.call("web__touch", r#"{"uri":"stub://web/fixed"}"#).result();
        let message = listening.wait_for("notifications/resources/updated");
        (message["params"]["x"] == 1.0).then_some(())
    });
    // A client that leaves is not listened for any more.
    let (_, leaving) = caller.listen(r#"{"resourceSubscriptions":["stub://web/item/1"]}"#);
    drop(leaving);
    wait_until("the backend notices", || {
        world.journals[0]
            .lines()
            .iter()
            .any(|line| line.starts_with("deaf") && line.contains("stub://web/item/1"))
    });
    // The end of the proxy is a result.
    world.proxy.signal("TERM");
    let last = wait_for("the result", || listening.next().filter(|last| last["id"] == "mine"));
    assert_eq!(last["result"]["resultType"], "complete");
    assert!(listening.next().is_none());
    assert!(world.proxy.wait().success());
    world.journals.iter().for_each(no_mismatch);
    drop(world.web);
}

#[test]
fn a_client_without_a_session_is_served_by_backends_with_sessions() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "old");
    let stub = HttpStub::start("old", &["--journal", journal.path()]);
    let events = HttpStub::start("events", &["--sse", "--prime"]);
    let proxy = Setup {
        backends: [
            stub.backend("old"),
            events.backend("events"),
            stdio_backend("pipe", &[]),
            stdio_backend("own", &[]) + "isolation = \"session\"\n",
        ]
        .concat(),
        // So that one worker serves all.
        workers: Some(1),
        ..Setup::default()
    }
    .start();
    let mut caller = Caller::seeing(&proxy, &["old__raw", "events__raw", "pipe__raw", "own__raw"]);
    caller.meta = r#","progressToken":7,"kept":1.0"#.into();
    let before = journal.count("initialize {");
    for backend in ["old", "events", "pipe", "own"] {
        let told = caller.call(&format!("{backend}__raw"), r#"{"n":1.50}"#);
        assert_eq!(told.result()["resultType"], "complete");
        // What belongs to the client's hop is not passed on, all else is.
        let said = told.said();
        assert!(!said.contains(META) && said.contains(r#""kept":1.0"#), "{said}");
        assert!(said.contains(r#""n":1.50"#) && said.contains(r#""name":"raw""#), "{said}");
        let told = caller.call(&format!("{backend}__rich"), "{}");
        let expected = texts::RICH_RESULT.replacen('{', r#"{"resultType":"complete","#, 1);
        assert!(told.text.contains(&expected), "{}", told.text);
        let told = caller.call(&format!("{backend}__progress"), r#"{"steps":2,"note":"n"}"#);
        assert_eq!(told.before.len(), 2, "{told:?}");
        assert!(told.before[1].contains(r#""progressToken":7,"#), "{told:?}");
        let told = caller.call(&format!("{backend}__big"), r#"{"bytes":300000}"#);
        assert_eq!(told.result()["resultType"], "complete");
        let name = if backend == "own" { "own" } else { backend };
        let result = caller.read(&format!("stub://{name}/item/3")).result();
        assert_eq!((&result["ttlMs"], &result["cacheScope"]), (&json!(0), &json!("private")));
        let told = caller.read(&format!("stub://{name}/item/3/none"));
        assert_eq!(told.error().0, -32602, "{told:?}");
    }
    // One session for all of that; another for another client.
    assert_eq!(journal.count("initialize {"), before + 1);
    caller.capabilities = r#"{"roots":{}}"#.into();
    caller.call("old__echo", r#"{"payload":"x"}"#).result();
    caller.call("old__echo", r#"{"payload":"x"}"#).result();
    assert_eq!(journal.count("initialize {"), before + 2);
    // A lost one is opened again.
    stub.forget();
    assert_eq!(caller.call("old__echo", r#"{"payload":"again"}"#).said(), "again");
    // Equal ids at the same time in the one session.
    let mut twins: Vec<Caller> = (0..4).map(|_| Caller::new(&proxy)).collect();
    for (n, twin) in twins.iter_mut().enumerate() {
        twin.capabilities = r#"{"roots":{}}"#.into();
        let params = format!(
            r#""name":"old__progress","arguments":{{"steps":2,"ms":50,"note":"twin {n}"}}"#
        );
        let body = twin.body("tools/call", &params);
        twin.send(&lines("tools/call", "old__progress"), &body);
    }
    for (n, twin) in twins.iter_mut().enumerate() {
        assert_eq!(twin.told().said(), format!("twin {n}"));
    }
}

#[test]
fn a_session_is_served_by_backends_without() {
    let world = modern(&[]);
    let mut client = world.proxy.client();
    for backend in ["web", "pipe"] {
        let told = client.call(&format!("{backend}__raw"), r#"{"n":1.50}"#);
        let said = told.said();
        let body: Value = serde_json::from_str(&said).expect("JSON");
        let meta = &body["params"]["_meta"];
        assert_eq!(meta[format!("{META}protocolVersion")], "2026-07-28", "{said}");
        assert_eq!(meta[format!("{META}clientInfo")]["name"], "test");
        assert_eq!(meta[format!("{META}clientCapabilities")], json!({}));
        assert!(said.contains(r#""n":1.50"#), "{said}");
        let params = format!(
            r#"{{"name":"{backend}__progress","arguments":{{"steps":2,"note":"n"}},"_meta":{{"progressToken":"t"}}}}"#
        );
        let told = client.ask("tools/call", &params);
        assert!(told.before.len() == 2 && told.before[0].contains(r#""progressToken":"t","#));
        assert_eq!(
            client.call(&format!("{backend}__big"), r#"{"bytes":300000}"#).said().len(),
            300_000
        );
        let params = format!(r#"{{"uri":"stub://{backend}/fixed"}}"#);
        let result = client.ask("resources/read", &params).result();
        assert_eq!(result["contents"][0]["text"], format!("fixed of {backend}"));
        let params = format!(r#"{{"name":"{backend}__prompt"}}"#);
        assert!(client.ask("prompts/get", &params).result()["messages"].is_array());
    }
    // Cancelled by a notification, which reaches a backend over HTTP as the end of its stream.
    for (backend, journal) in ["web", "pipe"].iter().zip(&world.journals) {
        let hang = call_params(&format!("{backend}__hang"), "{}");
        client.send(&message("901", "tools/call", &hang));
        journal.last("call hang");
        client.again().notify("notifications/cancelled", r#"{"requestId":901}"#);
        wait_until("the backend hears of it", || {
            journal.count("closed") + journal.count("cancelled") > 0
        });
        client = world.proxy.client();
    }
    // Its stream tells of changed lists.
    let listening = client.listen();
    client.call("web__add", r#"{"name":"late"}"#).result();
    listening.wait_for("notifications/tools/list_changed");
    client.wait_for_tools(&["web__late"]);
    world.journals.iter().for_each(no_mismatch);
}

#[test]
fn a_server_of_both_eras_is_spoken_to_as_its_caller_speaks() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "dual");
    let stub = HttpStub::start("dual", &["--dual", "--journal", journal.path()]);
    let proxy = Proxy::start(&[stub.backend("dual")]);
    let mut caller = Caller::seeing(&proxy, &["dual__raw"]);
    assert!(caller.call("dual__raw", "{}").said().contains(META));
    let mut client = proxy.client();
    assert!(!client.call("dual__raw", "{}").said().contains(META));
    no_mismatch(&journal);
    // Told to, it is spoken to in one era alone.
    for (protocol, modern) in [("modern", true), ("legacy", false)] {
        let toml = stub.backend("dual") + &format!("protocol = \"{protocol}\"\n");
        let proxy = Proxy::start(&[toml]);
        let mut caller = Caller::seeing(&proxy, &["dual__raw"]);
        assert_eq!(caller.call("dual__raw", "{}").said().contains(META), modern, "{protocol}");
        let mut client = proxy.client();
        assert_eq!(client.call("dual__raw", "{}").said().contains(META), modern, "{protocol}");
    }
    no_mismatch(&journal);
}

#[test]
fn children_are_asked_what_they_speak_and_none_is_lost_by_it() {
    let scratch = scratch();
    let [shy, silent] = ["shy", "silent"].map(|name| Journal::new(&scratch, name));
    let proxy = Proxy::start(&[
        stdio_backend("shy", &["--shy", "--journal", shy.path()]),
        stdio_backend("silent", &["--silent", "--journal", silent.path()]),
        stdio_backend("modern", &["--modern"]),
        stdio_backend("own", &["--modern"]) + "isolation = \"session\"\n",
    ]);
    let tools = ["shy__echo", "silent__echo", "modern__echo", "own__echo"];
    let mut client = proxy.client_seeing(&tools);
    let mut caller = Caller::seeing(&proxy, &tools);
    for tool in tools {
        assert_eq!(client.call(tool, r#"{"payload":"x"}"#).said(), "x", "{tool}");
        assert_eq!(caller.call(tool, r#"{"payload":"x"}"#).said(), "x", "{tool}");
    }
    assert_eq!((shy.count("shy"), shy.count("start")), (1, 2));
    assert_eq!(silent.count("silent"), 1);
    // It is remembered: the next start of it is not spent on the question.
    client.call("shy__crash", r#"{"how":"exit"}"#);
    assert_eq!(client.call_until_well("shy__echo", r#"{"payload":"y"}"#).said(), "y");
    assert_eq!((shy.count("shy"), shy.count("start")), (1, 3));
}

#[test]
fn an_outage_says_nothing_and_a_server_that_is_another_is_asked_again() {
    let port = free_port();
    let scratch = scratch();
    let mute = scratch.path().join("mute");
    let quick = "restart = { initial_ms = 100, max_ms = 500 }\nstartup_timeout_seconds = 5\n";
    let old = HttpStub::start_on(port, "a", &["--mute-while", mute.to_str().unwrap()]);
    let proxy = Proxy::start(&[old.backend("a") + quick]);
    let mut caller = Caller::seeing(&proxy, &["a__raw"]);
    assert!(!caller.call("a__raw", "{}").said().contains(META));
    let new = old.restart("a", &["--modern"]);
    let mut caller = Caller::new(&proxy);
    wait_until("the request era", || {
        let told = caller.call("a__raw", "{}");
        told.json()["result"].is_object() && told.said().contains(META)
    });
    // A modern one tells of its tools that the other had not.
    Caller::seeing(&proxy, &["a__region"]);
    let old = new.restart("a", &[]);
    wait_until("the session era", || {
        let told = caller.call("a__raw", "{}");
        told.json()["result"].is_object() && !told.said().contains(META)
    });
    // And a session lives through all of it.
    let mut client = Client::connect(proxy.addr);
    assert_eq!(client.call_until_well("a__echo", r#"{"payload":"z"}"#).said(), "z");
    drop(old);
}

#[test]
fn a_backend_that_refuses_the_revision_is_the_proxys_own_concern() {
    let scratch = scratch();
    let file = scratch.path().join("strange");
    let stub = HttpStub::start("a", &["--modern", "--strange-while", file.to_str().unwrap()]);
    let quick = "restart = { initial_ms = 100, max_ms = 500 }\n";
    let proxy = Proxy::start(&[stub.backend("a") + quick]);
    let mut caller = Caller::seeing(&proxy, &["a__echo"]);
    std::fs::write(&file, "").expect("file");
    let told = caller.call("a__echo", r#"{"payload":"x"}"#);
    assert_eq!((told.status, told.error().0), (200, -32010), "{told:?}");
    std::fs::remove_file(&file).expect("file");
    wait_until("its return", || {
        let told = caller.call("a__echo", r#"{"payload":"x"}"#);
        assert!(told.json()["error"]["code"] != -32022, "{told:?}");
        told.json()["result"].is_object()
    });
}

#[test]
fn the_rules_of_a_backend_hold_in_either_era() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "web");
    let stub = HttpStub::start("web", &["--modern", "--journal", journal.path()]);
    let rules = r#"
hide_tools = ["echo"]
hide_resources = ["stub://web/fixed", "stub://web/item/*"]
aliases = [{ from = "prompt", to = "hello" }, { from = "raw", to = "body" }]
default_args = { size = 7 }
[[backends.param_overrides]]
tool = "region"
rename = { region = "zone" }
"#;
    let proxy = Proxy::start(&[stub.backend("web") + rules]);
    let mut caller = Caller::seeing(&proxy, &["web__body", "web__region"]);
    let tools = names(&caller.ask("tools/list", "").result(), "tools");
    assert!(!tools.contains(&"web__echo".to_owned()) && !tools.contains(&"web__raw".to_owned()));
    for hidden in ["web__echo", "web__raw"] {
        let told = caller.call(hidden, "{}");
        assert_eq!((told.status, told.error().0), (400, -32602), "{told:?}");
    }
    // The alias stands in the head as in the body; what goes on has the backend's own name.
    let body = caller.call("web__body", "{}").said();
    assert!(body.contains(r#""name":"raw""#) && body.contains(r#""size":7"#), "{body}");
    assert!(journal.last("modern tools/call").ends_with("mcp-name=raw"));
    // So does an argument with another name here.
    let params = r#""name":"web__region","arguments":{"zone":"us"}"#;
    let request = caller.body("tools/call", params);
    let fields = lines("tools/call", "web__region") + "Mcp-Param-Region: us\r\n";
    caller.send(&fields, &request);
    assert_eq!(caller.told().said(), "region");
    // What is hidden is gone on every path.
    assert_eq!(caller.read("stub://web/fixed").error().0, -32602);
    let (agreed, _listening) = caller.listen(
        r#"{"resourceSubscriptions":["stub://web/fixed","stub://web/item/1","stub://web/r1"]}"#,
    );
    assert_eq!(agreed.get("resourceSubscriptions"), Some(&json!(["stub://web/r1"])));
    let complete = |caller: &mut Caller, reference: &str| {
        let argument = r#""argument":{"name":"a","value":"b"}"#;
        caller.ask("completion/complete", &format!(r#""ref":{reference},{argument}"#))
    };
    let told = complete(&mut caller, r#"{"type":"ref/prompt","name":"web__hello"}"#);
    let said = told.result()["completion"]["values"][0].as_str().expect("a value").to_owned();
    assert!(said.contains(r#""name":"prompt""#), "{said}");
    for hidden in [
        r#"{"type":"ref/prompt","name":"web__prompt"}"#,
        r#"{"type":"ref/resource","uri":"stub://web/fixed"}"#,
        r#"{"type":"ref/resource","uri":"stub://web/item/{id}"}"#,
        r#"{"type":"ref/other","uri":"x"}"#,
    ] {
        assert_eq!(complete(&mut caller, hidden).error().0, -32602, "{hidden}");
    }
    no_mismatch(&journal);
}
