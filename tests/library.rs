//! The proxy as a library: middleware of a program's own, the handle, and what the README shows.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use mcp_proxy::middleware::custom::{Call, Ending, Middleware, Refusal, Target, Verdict};
use mcp_proxy::{Options, Proxy, ProxyConfig, ProxyError};
use serde_json::{Value, json};

use crate::modern::Caller;
use crate::support::client::{Client, call_params, message};
use crate::support::process::{
    HttpStub, Journal, command_backend, example, scratch, stdio_backend, stub_path,
};
use crate::support::tls::Authority;
use crate::support::{quote, wait_for, wait_until};

/// Writes down what it is shown, and does what arguments ask it to do.
#[derive(Clone, Default)]
struct Rules {
    log: Arc<Mutex<Vec<String>>>,
    /// Of this worker alone: there is no lock around it.
    seen: u64,
}

impl Rules {
    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }
}

impl Middleware for Rules {
    type Memory = String;
    const RESPONSES: bool = true;

    fn request(&mut self, call: &mut Call<'_>) -> Verdict<String> {
        self.seen += 1;
        let arguments = call.arguments().map(|raw| String::from_utf8_lossy(raw).into_owned());
        let arguments = arguments.unwrap_or_default();
        let what = format!(
            "{:?} {} {} {} {} {arguments}",
            call.target(),
            call.called(),
            call.own_name(),
            call.backend(),
            call.principal().unwrap_or("-"),
        );
        self.note(format!("asked {what}"));
        let says = |word: &str| arguments.contains(word);
        if says("refuse me") {
            let refusal = Refusal::new(-32050, "no \"today\"");
            return Verdict::Refuse(refusal.with_data(br#"{"why":"rule"}"#).unwrap());
        }
        if says("answer me") {
            let result = br#"{"content":[{"type":"text","text":"from here"}]}"#;
            return Verdict::Answer(result.to_vec());
        }
        if says("answer badly") {
            return Verdict::Answer(b"{},\"x\":1".to_vec());
        }
        if says("panic now") {
            panic!("expected by this test");
        }
        if says("swap me") {
            for bad in ["", "[]", "{}x", "{},\"name\":\"stats\"", "{\"a\":1"] {
                assert!(call.set_arguments(bad.as_bytes()).is_err(), "{bad}");
            }
            call.set_arguments(br#"{"payload":"swapped"}"#).unwrap();
            assert_eq!(call.arguments(), Some(&br#"{"payload":"swapped"}"#[..]));
        }
        if call.target() == Target::Resource {
            assert_eq!(call.arguments(), None);
            assert!(call.set_arguments(b"{}").is_err());
        }
        Verdict::Pass(what)
    }

    fn response(&mut self, what: String, ending: Ending<'_>) {
        let how = match ending {
            Ending::Response(response) => {
                let message: Value = serde_json::from_slice(response.message()).unwrap();
                assert_eq!(response.result().is_some(), message.get("result").is_some());
                assert_eq!(response.error().is_some(), message.get("error").is_some());
                let text = String::from_utf8_lossy(response.message()).into_owned();
                assert!(!text.contains("panic later"), "expected by this test");
                if text.contains("secret") {
                    let result = message["result"].to_string().replace("secret", "******");
                    for bad in ["", "[]", "{}}"] {
                        assert!(response.set_result(bad.as_bytes()).is_err(), "{bad}");
                    }
                    response.set_result(result.as_bytes()).unwrap();
                } else if text.contains("turn into error") {
                    response.set_error(&Refusal::new(-32051, "not this"));
                } else if text.contains("stub has no tool") {
                    response.set_result(br#"{"content":[],"isError":true}"#).unwrap();
                }
                format!("answer {}", response.message().len())
            }
            Ending::Failed { code, message } => format!("failed {code} {message}"),
            Ending::Left => "left".to_owned(),
            _ => "otherwise".to_owned(),
        };
        self.note(format!("ended {how} {what}"));
    }
}

/// A proxy in this process, before the stub over stdio and over HTTP.
struct World {
    proxy: Option<Proxy<Rules>>,
    rules: Rules,
    addr: SocketAddr,
    _stub: HttpStub,
    _scratch: tempfile::TempDir,
    journals: [(&'static str, Journal); 2],
}

fn world(top: &str, keys: &str) -> World {
    let scratch = scratch();
    let journals = ["pipe", "web"].map(|name| (name, Journal::new(&scratch, name)));
    let web = ["--annotated", "--tasks", "--journal", journals[1].1.path()];
    let pipe = ["--annotated", "--tasks", "--journal", journals[0].1.path()];
    let stub = HttpStub::start("web", &web);
    let backends = [stdio_backend("pipe", &pipe) + keys, stub.backend("web") + keys].concat();
    let config = config(&format!("{top}{backends}"));
    let rules = Rules::default();
    let proxy = Proxy::start_with_middleware(config, Options::default(), rules.clone()).unwrap();
    let addr = proxy.handle().addr();
    Client::connect(addr).wait_for_tools(&["pipe__echo", "web__echo"]);
    World { proxy: Some(proxy), rules, addr, _stub: stub, _scratch: scratch, journals }
}

pub(crate) fn config(tables: &str) -> ProxyConfig {
    let head = "[proxy]\nname = 'library'\nworkers = 2\nshutdown_timeout_seconds = 5\n\
                listen.port = 0\nadmin_tools = 'off'\n";
    ProxyConfig::parse(&format!("{head}{tables}")).unwrap_or_else(|faults| panic!("{faults}"))
}

impl World {
    fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Each request that passed was ended once, in any order.
    fn close(mut self) -> Vec<String> {
        let proxy = self.proxy.take().unwrap();
        let handle = proxy.handle();
        handle.shutdown();
        handle.wait().unwrap();
        drop(proxy);
        let mut balance: BTreeMap<String, i64> = BTreeMap::new();
        for line in self.rules.lines() {
            let (word, rest) = line.split_once(' ').unwrap();
            match word {
                "asked" => *balance.entry(rest.to_owned()).or_default() += 1,
                _ => {
                    let start = ["Tool", "Resource", "Prompt", "TaskResult"];
                    let starts = start.iter().filter_map(|word| rest.find(&format!(" {word} ")));
                    let what = &rest[starts.min().unwrap() + 1..];
                    *balance.entry(what.to_owned()).or_default() -= 1;
                }
            }
        }
        balance.retain(|_, count| *count != 0);
        balance.into_keys().collect()
    }
}

pub(crate) fn payload(text: &str) -> String {
    json!({ "payload": text }).to_string()
}

#[test]
fn hooks_see_and_decide_what_is_called_in_both_eras() {
    let world = world("", "");
    let mut client = world.client();
    let mut caller = Caller::at(world.addr);
    for (backend, journal) in &world.journals {
        let echo = format!("{backend}__echo");
        let mut calls = 0;
        let mut each = |arguments: &str| {
            calls += 1;
            let told = client.call(&echo, arguments);
            let other = caller.call(&echo, arguments);
            assert_eq!(told.json().get("error"), other.json().get("error"));
            if let Some(content) = told.json()["result"].get("content") {
                assert_eq!(*content, other.json()["result"]["content"]);
            }
            told
        };
        assert_eq!(each(&payload("plain")).said(), "plain");
        assert_eq!(each(&payload("swap me")).said(), "swapped");
        assert_eq!(each(&payload("a secret here")).said(), "a ****** here");
        assert_eq!(each(&payload("turn into error")).error(), (-32051, "not this".into()));
        let executed = journal.count("call echo");
        assert_eq!(executed, 8);
        let refused = each(&payload("refuse me"));
        assert_eq!(refused.error(), (-32050, "no \"today\"".into()));
        assert_eq!(refused.json()["error"]["data"], json!({ "why": "rule" }));
        assert_eq!(each(&payload("answer me")).said(), "from here");
        for bad in ["answer badly", "panic now"] {
            assert_eq!(each(&payload(bad)).error().0, -32603, "{bad}");
        }
        assert_eq!(journal.count("call echo"), executed, "the backend hears of none of them");
        assert_eq!(each(&payload("panic later")).error().0, -32603);
        assert_eq!(each(&payload("still here")).said(), "still here");
        let line = format!("asked Tool {echo} echo {backend} - {}", payload("plain"));
        assert_eq!(world.rules.count(&line), 2, "{:?}", world.rules.lines());
        assert_eq!(world.rules.count(&format!("asked Tool {echo}")), 2 * calls);
    }
    // Both workers or one: each request was shown once, with nothing in it that is not its own.
    let open = world.close();
    for left in ["refuse me", "answer me", "answer badly", "panic now", "panic later"] {
        assert!(open.iter().any(|what| what.contains(left)), "{left}: {open:?}");
    }
    assert_eq!(open.len(), 10, "what passed was ended: {open:?}");
}

#[test]
fn resources_prompts_and_errors_of_a_backend_are_seen_too() {
    let world = world("", "");
    let mut client = world.client();
    for (backend, _) in &world.journals {
        let uri = format!("stub://{backend}/fixed");
        let read = client.ask("resources/read", &json!({ "uri": uri }).to_string()).result();
        assert!(read["contents"].is_array());
        let name = format!("{backend}__prompt");
        let params = json!({ "name": name, "arguments": { "who": "x" } }).to_string();
        client.ask("prompts/get", &params).result();
        let told = client.call(&format!("{backend}__nothing"), "{}");
        assert_eq!(told.result()["isError"], true, "{told:?}");
        for line in [
            format!("asked Resource {uri} {uri} {backend} - "),
            format!("asked Prompt {name} prompt {backend} - {{\"who\":\"x\"}}"),
        ] {
            assert_eq!(world.rules.count(&line), 1, "{line}: {:?}", world.rules.lines());
        }
    }
    assert_eq!(world.close(), [""; 0]);
}

#[test]
fn the_result_of_a_task_is_no_way_around() {
    let world = world("", "");
    let mut client = world.client();
    for (backend, _) in &world.journals {
        let params = json!({
            "name": format!("{backend}__echo"),
            "arguments": { "payload": "a secret kept" },
            "task": { "ttl": 60000 },
        });
        let told = client.ask("tools/call", &params.to_string());
        let task = told.result()["task"]["taskId"].as_str().unwrap().to_owned();
        let result = client.ask("tasks/result", &json!({ "taskId": task }).to_string()).result();
        assert_eq!(result["content"][0]["text"], "a ****** kept");
        let own = task.strip_prefix(&format!("{backend}__")).unwrap();
        let line = format!("asked TaskResult {task} {own} {backend} - ");
        assert_eq!(world.rules.count(&line), 1, "{:?}", world.rules.lines());
    }
    assert_eq!(world.close(), [""; 0]);
}

#[test]
fn nor_is_a_task_of_the_request_era() {
    let stub = HttpStub::start("web", &["--modern", "--tasks"]);
    let rules = Rules::default();
    let proxy = Proxy::start_with_middleware(
        config(&stub.backend("web")),
        Options::default(),
        rules.clone(),
    )
    .unwrap();
    let mut caller = Caller::at(proxy.handle().addr());
    Client::connect(proxy.handle().addr()).wait_for_tools(&["web__job"]);
    caller.capabilities = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#.into();
    let made = caller.call("web__job", r#"{"id":"t","payload":"a secret kept"}"#).result();
    assert_eq!(made["taskId"], "web__t");
    // What is told of a task has its result in it, and is not shown to the rules: it is not told.
    let (agreed, _listening) = caller.listen(r#"{"taskIds":["web__t"]}"#);
    assert_eq!(agreed, json!({}));
    caller.call("web__finish", r#"{"id":"t"}"#).result();
    let state = caller.ask_about("tasks/get", "web__t", r#""taskId":"web__t""#).result();
    assert_eq!((&state["taskId"], &state["status"]), (&json!("web__t"), &json!("completed")));
    assert_eq!(state["result"]["content"][0]["text"], "a ****** kept");
    assert_eq!(rules.count("asked TaskResult web__t t web - "), 1, "{:?}", rules.lines());
    proxy.handle().shutdown();
    proxy.handle().wait().unwrap();
}

#[test]
fn long_answers_are_held_and_progress_is_not() {
    let world = world("", "");
    let mut client = world.client();
    for (backend, _) in &world.journals {
        for arguments in [r#"{"bytes":3000000}"#, r#"{"bytes":3000000,"chunked":true}"#] {
            let told = client.call(&format!("{backend}__big"), arguments);
            assert_eq!(told.said().len(), 3_000_000);
        }
        let params = format!(
            r#"{{"name":"{backend}__progress","arguments":{{"steps":3,"note":"a secret"}},"_meta":{{"progressToken":1}}}}"#
        );
        let told = client.ask("tools/call", &params);
        assert_eq!((told.before.len(), told.said()), (3, "a ******".to_owned()));
    }
    assert_eq!(world.rules.count("ended answer 3000"), 4);
    assert_eq!(world.close(), [""; 0]);
}

#[test]
fn every_end_is_heard_once() {
    let world = world("", "[backends.timeout]\nseconds = 60\ntools = { sleep = 0.2 }\n");
    let mut client = world.client();
    for (backend, journal) in &world.journals {
        let told = client.call(&format!("{backend}__sleep"), r#"{"ms":600000}"#);
        assert_eq!(told.error().0, -32001);
        wait_until("the timeout", || world.rules.count("ended failed -32001") > 0);
        let hang = call_params(&format!("{backend}__hang"), "{}");
        let mut other = client.again();
        other.send(&message("77", "tools/call", &hang));
        journal.wait_count("call hang", 1);
        client.notify("notifications/cancelled", r#"{"requestId":77}"#);
        let mut caller = Caller::at(world.addr);
        let body = caller.body("tools/call", &hang[1..hang.len() - 1]);
        let lines = format!(
            "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: {backend}__hang\r\n"
        );
        caller.send(&lines, &body);
        journal.wait_count("call hang", 2);
        drop(caller);
        let line = format!("Tool {backend}__hang hang {backend} - {{}}");
        wait_until("both have left", || world.rules.count(&format!("ended left {line}")) == 2);
    }
    assert_eq!(world.close(), [""; 0]);
}

#[test]
fn it_stands_behind_filters_and_before_what_is_kept_and_injected() {
    let keys = "hide_tools = [\"hang\"]\naliases = [{ from = \"raw\", to = \"bare\" }]\n\
                inject_args = [{ tool = \"echo\", args = { payload = \"forced\" }, overwrite = true }]\n\
                [backends.cache]\ntool_ttl_seconds = 600\ntools = [\"search\", \"echo\"]\n";
    let top = "[auth]\ntype = 'bearer'\ntokens = ['opens-everything-here']\n\
               [security]\nmax_argument_size = 100\n";
    let scratch = scratch();
    let journal = Journal::new(&scratch, "pipe");
    let backends = stdio_backend("pipe", &["--annotated", "--journal", journal.path()]) + keys;
    let rules = Rules::default();
    let config = config(&format!("{top}{backends}"));
    let proxy = Proxy::start_with_middleware(config, Options::default(), rules.clone()).unwrap();
    let mut client = Client::connect_as(proxy.handle().addr(), "opens-everything-here");
    client.wait_for_tools(&["pipe__echo", "pipe__bare"]);
    assert_eq!(client.call("pipe__hang", "{}").error().0, -32602);
    let long = payload(&"x".repeat(100));
    assert_eq!(client.call("pipe__echo", &long).error().0, -32602);
    assert_eq!(rules.lines(), [""; 0], "neither was shown");
    assert_eq!(client.call("pipe__echo", &payload("mine")).said(), "forced");
    assert!(client.call("pipe__bare", "{}").said().contains("\"raw\""));
    let lines = rules.lines();
    assert!(lines[0].starts_with("asked Tool pipe__echo echo pipe "), "{lines:?}");
    assert!(lines[0].ends_with(" {\"payload\":\"mine\"}"), "{lines:?}");
    assert!(!lines[0].contains(" pipe - "), "there is a principal: {lines:?}");
    assert!(lines[2].starts_with("asked Tool pipe__bare raw pipe "), "{lines:?}");
    // Of two equal calls the second one is answered from memory, and seen all the same.
    let before = journal.count("call search");
    let asked = rules.count("asked Tool pipe__search");
    for _ in 0..2 {
        client.call("pipe__search", &payload("s")).result();
    }
    assert_eq!(journal.count("call search"), before + 1);
    assert_eq!(rules.count("asked Tool pipe__search"), asked + 2);
    assert_eq!(rules.count("ended answer"), 4);
    let told = client.call("pipe__search", &payload("refuse me"));
    assert_eq!(told.error().0, -32050);
}

#[test]
fn it_goes_on_over_a_reload() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let head = "[proxy]\nname = 'library'\nworkers = 2\nlisten.port = 0\n";
    let first = format!("{head}{}", stdio_backend("a", &[]));
    std::fs::write(&file, &first).unwrap();
    let rules = Rules::default();
    let config = ProxyConfig::load(&file).unwrap_or_else(|faults| panic!("{faults}"));
    let proxy = Proxy::start_with_middleware(config, Options::default(), rules.clone()).unwrap();
    let mut client = Client::connect(proxy.handle().addr());
    client.wait_for_tools(&["a__echo"]);
    assert_eq!(client.call("a__echo", &payload("swap me")).said(), "swapped");
    std::fs::write(&file, first + &stdio_backend("b", &[])).unwrap();
    proxy.handle().reload_now().unwrap_or_else(|why| panic!("{why:?}"));
    client.wait_for_tools(&["a__echo", "b__echo"]);
    for backend in ["a", "b"] {
        let tool = format!("{backend}__echo");
        assert_eq!(client.call(&tool, &payload("swap me")).said(), "swapped");
        assert_eq!(client.call(&tool, &payload("refuse me")).error().0, -32050);
    }
    // From inside it is the same proxy as before, too.
    let mut conn = proxy.handle().connect().unwrap();
    assert!(inside(&mut conn, "GET /readyz HTTP/1.1\r\n", "").starts_with("HTTP/1.1 200"));
}

/// What it refuses is denied in the accounts, and nobody executes it.
#[test]
fn a_refusal_is_accounted_for_as_one() {
    let scratch = scratch();
    let audit = scratch.path().join("audit.log");
    let top = format!("[observability]\naudit = {{ path = {} }}\n", quote(audit.to_str().unwrap()));
    let config = config(&format!("{top}{}", stdio_backend("pipe", &[])));
    let rules = Rules::default();
    let proxy = Proxy::start_with_middleware(config, Options::default(), rules).unwrap();
    let mut client = Client::connect(proxy.handle().addr());
    client.wait_for_tools(&["pipe__echo"]);
    client.call("pipe__echo", &payload("refuse me")).error();
    client.call("pipe__echo", &payload("answer me")).result();
    let line = wait_for("the lines of both calls", || {
        let text = std::fs::read_to_string(&audit).unwrap_or_default();
        let calls: Vec<Value> = text
            .lines()
            .filter(|line| line.contains("tools/call"))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        (calls.len() == 2).then_some(calls)
    });
    assert_eq!((&line[0]["outcome"], &line[0]["code"]), (&json!("denied"), &json!(-32050)));
    assert_eq!(line[0]["attempts"], 0);
    assert_eq!((&line[1]["outcome"], &line[1]["backend"]), (&json!("ok"), &json!("pipe")));
    let metrics = crate::support::http::once(proxy.handle().addr(), "GET", "/admin/metrics", "");
    let refused = r#"mcp_proxy_refused_total{backend="pipe",reason="filter"} 1"#;
    assert!(metrics.text().contains(refused), "{}", metrics.text());
}

#[test]
fn the_handle_tells_how_much_is_in_hand_and_ends_it() {
    let proxy = Proxy::start(config(&stdio_backend("pipe", &[])), Options::default()).unwrap();
    let handle = proxy.handle();
    let before = handle.stats();
    assert_eq!((before.connections, before.sessions, before.streams), (0, 0, 0));
    assert_eq!(before.backends.len(), 1);
    let client = Client::connect(handle.addr());
    let listening = client.listen();
    wait_until("a session, a stream", || {
        let stats = handle.stats();
        stats.connections == 2 && (stats.sessions, stats.streams) == (1, 1)
    });
    assert!(handle.wait_settled(crate::support::DEADLINE));
    assert_eq!(handle.stats().backends[0].name, "pipe");
    let end = std::thread::spawn({
        let handle = handle.clone();
        move || handle.wait()
    });
    handle.shutdown();
    listening.until_end();
    drop(client);
    assert_eq!(end.join().unwrap(), Ok(()));
    assert_eq!(handle.stats().connections, 0);
    let refused = ProxyConfig::parse("[proxy]\n");
    assert!(refused.is_err());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(&stdio_backend("pipe", &[]));
    config.listen_on(taken.local_addr().unwrap());
    assert!(matches!(Proxy::start(config, Options::default()), Err(ProxyError::Start(_))));
}

/// Writes a request to a connection from inside, and reads an answer with a Content-Length.
fn inside(conn: &mut UnixStream, head: &str, body: &str) -> String {
    let length = body.len();
    write!(conn, "{head}Host: localhost\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut read = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let n = conn.read(&mut piece).unwrap();
        read.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&read);
        if n == 0 {
            return text.into_owned();
        }
        let Some((fields, rest)) = text.split_once("\r\n\r\n") else { continue };
        let length = fields.split("Content-Length: ").nth(1).expect("a length");
        if rest.len() >= length.lines().next().unwrap().parse().unwrap() {
            return text.into_owned();
        }
    }
}

#[test]
fn a_program_connects_from_inside_and_nobody_else_can() {
    let scratch = scratch();
    let log = scratch.path().join("access.log");
    // TLS is for those who come from outside.
    let identity = Authority::new().identity(&["localhost"]);
    let [cert, key] = [("cert", identity.cert), ("key", identity.key)].map(|(name, pem)| {
        let path = scratch.path().join(name);
        std::fs::write(&path, pem).unwrap();
        quote(path.to_str().unwrap())
    });
    let top = format!(
        "[proxy.listen.tls]\ncert = {cert}\nkey = {key}\n\
         [observability]\naudit = {{ path = {} }}\n",
        quote(log.to_str().unwrap())
    );
    let proxy =
        Proxy::start(config(&(top + &stdio_backend("pipe", &[]))), Options::default()).unwrap();
    let handle = proxy.handle();
    let addr = handle.addr();
    assert!(std::net::TcpStream::connect(addr).is_ok());
    handle.stop_listening();
    wait_until("nobody is let in", || std::net::TcpStream::connect(addr).is_err());
    let mut conns: Vec<UnixStream> = (0..4).map(|_| handle.connect().unwrap()).collect();
    let hello = message(
        "1",
        "initialize",
        r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}"#,
    );
    let lines = format!("{}{}", crate::support::client::ACCEPT, crate::support::client::JSON);
    for (n, conn) in conns.iter_mut().enumerate() {
        assert!(inside(conn, "GET /livez HTTP/1.1\r\n", "").starts_with("HTTP/1.1 200"));
        let head = format!("POST /mcp HTTP/1.1\r\n{lines}Mcp-Proxy-Client: 192.0.2.{n}:99\r\n");
        assert!(inside(conn, &head, &hello).starts_with("HTTP/1.1 200"));
        let head = format!("POST /mcp HTTP/1.1\r\n{lines}");
        assert!(inside(conn, &head, &hello).starts_with("HTTP/1.1 200"));
        let answer = inside(conn, "GET /admin/config HTTP/1.1\r\n", "");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    assert_eq!((handle.stats().connections, handle.stats().sessions), (4, 8));
    let clients = wait_for("eight lines", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let line = |line| serde_json::from_str::<Value>(line).unwrap()["client"].clone();
        let mut clients: Vec<String> =
            text.lines().map(|l| line(l).as_str().unwrap().to_owned()).collect();
        clients.sort();
        (clients.len() == 8).then_some(clients)
    });
    for n in 0..4 {
        assert_eq!(clients[n], "127.0.0.1:0");
        assert_eq!(clients[4 + n], format!("192.0.2.{n}:99"));
    }
    conns.pop();
    wait_until("one has left", || handle.stats().connections == 3);
    handle.shutdown();
    assert_eq!(handle.wait(), Ok(()));
    assert!(handle.connect().is_err());
    for conn in &mut conns {
        assert_eq!(conn.read(&mut [0; 64]).unwrap(), 0, "closed in good order");
    }
}

#[test]
fn a_proxy_that_shall_not_listen_takes_no_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(&stdio_backend("pipe", &[]));
    config.listen_on(taken.local_addr().unwrap());
    let options = Options { listen: false, ..Options::default() };
    let proxy = Proxy::start(config, options).unwrap();
    let mut conn = proxy.handle().connect().unwrap();
    assert!(inside(&mut conn, "GET /livez HTTP/1.1\r\n", "").starts_with("HTTP/1.1 200"));
}

/// What README.md shows, as its reader runs it.
#[test]
fn the_example_of_the_readme_runs() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let text = format!("[proxy]\nname = 'e'\nlisten.port = 0\n{}", stdio_backend("pipe", &[]));
    std::fs::write(&file, text).unwrap();
    let example = Example::start("embed", &file);
    let mut client = Client::connect(example.addr());
    client.wait_for_tools(&["pipe__echo"]);
    assert_eq!(client.call("pipe__echo", &payload("x")).said(), "x");
}

/// A program that embeds the proxy has no demo server, even if its file is called mcp-proxy: a command
/// of that name is looked up like any other.
#[test]
fn who_embeds_the_proxy_is_not_the_command() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    std::fs::create_dir(path("bin")).unwrap();
    std::os::unix::fs::symlink(stub_path(), path("bin/mcp-proxy")).unwrap();
    std::fs::copy(example("embed", "examples/embed.rs"), path("mcp-proxy")).unwrap();
    let backend = command_backend("pipe", "mcp-proxy", &["--name", "pipe"]);
    let text = format!("[proxy]\nname = 'e'\nlisten.port = 0\n{backend}");
    std::fs::write(path("proxy.toml"), text).unwrap();
    let mut command = Command::new(path("mcp-proxy"));
    let example = Example::run(command.arg(path("proxy.toml")).env("PATH", path("bin")));
    Client::connect(example.addr()).wait_for_tools(&["pipe__echo"]);
}

/// The example of the repository, as its reader runs it.
#[test]
fn the_example_with_own_middleware_runs() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let text = format!(
        "[proxy]\nname = 'example'\nworkers = 2\nlisten.port = 0\n{}",
        stdio_backend("pipe", &[])
    );
    std::fs::write(&file, text).unwrap();
    let example = Example::start("own_middleware", &file);
    let mut client = Client::connect(example.addr());
    client.wait_for_tools(&["pipe__echo"]);
    client.call("pipe__add", r#"{"name":"delete_all"}"#).result();
    client.wait_for_tools(&["pipe__delete_all"]);
    let told = client.call("pipe__delete_all", "{}");
    let text = "pipe__delete_all is not for clients of this gateway";
    assert_eq!(told.error(), (-32050, text.to_owned()));
    assert_eq!(client.call("pipe__echo", &payload("key sk-1 x")).said(), "key *** x");
    let said = client.call("pipe__raw", "{\"a\":1}").said();
    assert!(said.contains(r#""arguments":{"a":1,"requested_by":null}"#), "{said}");
}

/// One of the examples of the repository, ended with its test.
pub(crate) struct Example {
    process: std::process::Child,
    /// Where it says that it serves.
    pub(crate) url: String,
}

impl Example {
    pub(crate) fn start(name: &str, file: &Path) -> Example {
        let program = example(name, &format!("examples/{name}.rs"));
        Example::run(Command::new(program).arg(file))
    }

    fn run(command: &mut Command) -> Example {
        let process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut this = Example { process, url: String::new() };
        let mut out = BufReader::new(this.process.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        // What it says after that must have somewhere to go.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let url = line.trim().strip_prefix("serving at ").unwrap_or_else(|| panic!("{line}"));
        this.url = url.to_owned();
        this
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        let rest = self.url.strip_prefix("http://").expect("a URL");
        rest.split('/').next().unwrap().parse().unwrap()
    }

    /// Its number.
    #[cfg(feature = "axum")]
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
