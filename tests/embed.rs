//! The proxy in an axum application (feature `axum`): whatever goes through a listener of the proxy's
//! own goes through the application too.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use mcp_proxy::{Handle, Options, Proxy};
use serde_json::Value;

use crate::library::{Example, config, payload};
use crate::modern::Caller;
use crate::support::client::{ACCEPT, Client, JSON, call_params, message};
use crate::support::http::{Answer, Conn, once};
use crate::support::process::{HttpStub, Journal, resident, scratch, stdio_backend};
use crate::support::{quote, wait_for, wait_until};

/// Ends a proxy with its test.
struct Ends(Handle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.shutdown();
        let _ = self.0.wait();
    }
}

fn router(tables: &str) -> (Router, Ends) {
    let options = Options { listen: false, ..Options::default() };
    let (router, handle) = Proxy::start(config(tables), options).unwrap().into_router();
    (router, Ends(handle))
}

/// Serves an application, on a thread that ends with the process.
fn serve(app: Router) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let app = app.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, app).await.unwrap();
        });
    });
    addr
}

fn post(addr: SocketAddr, target: &str, lines: &str, body: &str) -> Answer {
    let mut conn = Conn::open(addr);
    // The lines of a client in a session have it.
    let host = if lines.contains("Host: ") { String::new() } else { format!("Host: {addr}\r\n") };
    let length = body.len();
    let head = format!(
        "POST {target} HTTP/1.1\r\n{host}{ACCEPT}{JSON}{lines}Content-Length: {length}\r\n\r\n"
    );
    conn.send(format!("{head}{body}").as_bytes());
    conn.answer()
}

/// The fields and the body of a request that needs no session; `params` end with a comma.
fn alone(method: &str, name: &str, params: &str) -> (String, String) {
    let own = |name: &str, value: &str| format!(r#""io.modelcontextprotocol/{name}":{value}"#);
    let meta = [
        own("protocolVersion", r#""2026-07-28""#),
        own("clientInfo", r#"{"name":"c","version":"1"}"#),
        own("clientCapabilities", "{}"),
    ];
    let params = format!(r#"{{{params}"_meta":{{{}}}}}"#, meta.join(","));
    let mut lines = format!("MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: {method}\r\n");
    if !name.is_empty() {
        lines += &format!("Mcp-Name: {name}\r\n");
    }
    (lines, message("1", method, &params))
}

#[test]
fn calls_streams_and_sessions_go_through_an_application() {
    let scratch = scratch();
    let journals = ["pipe", "web"].map(|name| (name, Journal::new(&scratch, name)));
    let stub = HttpStub::start("web", &["--sse", "--journal", journals[1].1.path()]);
    let pipe = stdio_backend("pipe", &["--journal", journals[0].1.path()]);
    let (router, ends) = router(&(pipe + &stub.backend("web")));
    let app = Router::new().route("/", get(|| async { "the application's own" })).merge(router);
    let addr = serve(app);
    assert_eq!(once(addr, "GET", "/", "").text(), "the application's own");
    assert_eq!(once(addr, "GET", "/nothing", "").status, 404);
    let mut client = Client::connect(addr);
    client.wait_for_tools(&["pipe__echo", "web__echo"]);
    let mut caller = Caller::at(addr);
    let listening = client.listen();
    for (backend, journal) in &journals {
        let echo = format!("{backend}__echo");
        for n in 0..20 {
            let text = format!("{n}");
            assert_eq!(client.call(&echo, &payload(&text)).said(), text);
            assert_eq!(caller.call(&echo, &payload(&text)).said(), text);
        }
        // Events first, then the answer; each as it comes.
        let params = format!(
            r#"{{"name":"{backend}__progress","arguments":{{"steps":1000,"ms":100}},"_meta":{{"progressToken":1}}}}"#
        );
        client.send(&message("901", "tools/call", &params));
        assert!(client.conn.head().is_event_stream());
        let mut events = Default::default();
        let event = client.conn.event(&mut events).expect("the first step");
        assert!(event.data.contains(r#""progress":1,"#), "{event:?}");
        client.again().notify("notifications/cancelled", r#"{"requestId":901}"#);
        journal.wait_count("cancelled", 1);
        while client.conn.event(&mut events).is_some() {}
        // Long bodies, both ways.
        let told = client.call(&format!("{backend}__big"), r#"{"bytes":2000000}"#);
        assert_eq!(told.said().len(), 2_000_000);
        let long = "y".repeat(1_000_000);
        assert_eq!(client.call(&echo, &payload(&long)).said(), long);
    }
    // One that is announced to be too long is refused before it comes.
    let mut conn = Conn::open(addr);
    let lines = client.lines();
    conn.send(
        format!("POST /mcp HTTP/1.1\r\n{lines}{ACCEPT}{JSON}Content-Length: 5000000\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!(conn.answer().status, 413);
    client.call("pipe__add", r#"{"name":"later"}"#).result();
    listening.wait_for("notifications/tools/list_changed");
    assert_eq!(client.delete().status, 200);
    listening.until_end();
    wait_until("the session is gone", || ends.0.stats().sessions == 0);
    // One after the other they share connections to the workers.
    assert!(ends.0.stats().connections <= 10, "{:?}", ends.0.stats());
}

#[test]
fn a_client_that_leaves_cancels_its_call() {
    let scratch = scratch();
    let journals = ["pipe", "web"].map(|name| (name, Journal::new(&scratch, name)));
    let stub = HttpStub::start("web", &["--journal", journals[1].1.path()]);
    let pipe = stdio_backend("pipe", &["--journal", journals[0].1.path()]);
    let (router, ends) = router(&(pipe + &stub.backend("web")));
    let addr = serve(router);
    Client::connect(addr).wait_for_tools(&["pipe__hang", "web__hang"]);
    for (backend, journal) in &journals {
        let mut caller = Caller::at(addr);
        let hang = call_params(&format!("{backend}__hang"), "{}");
        let body = caller.body("tools/call", &hang[1..hang.len() - 1]);
        let lines = format!(
            "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\n\
             Mcp-Name: {backend}__hang\r\n"
        );
        caller.send(&lines, &body);
        journal.wait_count("call hang", 1);
        drop(caller);
        journal.wait_count("cancelled", 1);
    }
    // A stream that its client leaves is given up too.
    let listening = Client::connect(addr).listen();
    wait_until("a stream", || ends.0.stats().streams == 1);
    drop(listening);
    wait_until("no stream", || ends.0.stats().streams == 0);
}

#[test]
fn two_proxies_in_one_process_are_two() {
    let (first, _first) = router(&stdio_backend("a", &[]));
    let (second, _second) = router(&stdio_backend("b", &[]));
    let addr = serve(first.nest("/second", second));
    let mut client = Client::connect(addr);
    client.wait_for_tools(&["a__echo"]);
    assert!(!client.names("tools/list").contains(&"b__echo".to_owned()));
    // Their sessions are their own.
    let list = message("1", "tools/list", "{}");
    assert_eq!(post(addr, "/mcp", &client.lines(), &list).status, 200);
    assert_eq!(post(addr, "/second/mcp", &client.lines(), &list).status, 404);
    let (lines, list) = alone("tools/list", "", "");
    wait_until("the other's tools", || {
        let answer = post(addr, "/second/mcp", &lines, &list);
        assert_eq!(answer.status, 200);
        answer.text().contains("\"b__echo\"") && !answer.text().contains("a__echo")
    });
}

#[test]
fn who_calls_and_from_where_is_known_as_at_a_listener() {
    let scratch = scratch();
    let audit = scratch.path().join("audit.log");
    let top = format!(
        "[auth]\ntype = 'bearer'\ntokens = ['opens-everything-here']\n\
         [security]\nadmin_token = 'administrators-only-1'\n\
         [observability]\naudit = {{ path = {} }}\n",
        quote(audit.to_str().unwrap())
    );
    let (router, _ends) = router(&(top + &stdio_backend("pipe", &[])));
    let addr = serve(router);
    let ping = message("1", "ping", "{}");
    let answer = post(addr, "/mcp", "", &ping);
    assert_eq!(answer.status, 401);
    assert!(answer.head.field("www-authenticate").unwrap().contains("/.well-known/"));
    for target in
        ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"]
    {
        assert_eq!(once(addr, "GET", target, "").status, 200, "{target}");
    }
    let mut client = Client::connect_as(addr, "opens-everything-here");
    client.ask("ping", "{}").result();
    let own = client.conn.stream().local_addr().unwrap().to_string();
    // Whatever a client says of where it comes from.
    let lines = client.lines() + "Mcp-Proxy-Client: 192.0.2.7:7\r\n";
    assert_eq!(post(addr, "/mcp", &lines, &message("\"spoofed\"", "ping", "{}")).status, 200);
    let lines = wait_for("three lines", || {
        let text = std::fs::read_to_string(&audit).unwrap_or_default();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().any(|line| line["request_id"] == "spoofed").then_some(lines)
    });
    let ping = lines.iter().find(|l| l["method"] == "ping" && l["session"].is_string()).unwrap();
    assert_eq!((&ping["client"], &ping["outcome"]), (&Value::from(own), &Value::from("ok")));
    for line in &lines {
        let client = line["client"].as_str().unwrap();
        assert!(client.starts_with("127.0.0.1:") && !client.ends_with(":0"), "{line}");
    }
    assert_eq!(once(addr, "GET", "/admin/backends", "").status, 401);
    let mut conn = Conn::open(addr);
    let head = "GET /admin/backends HTTP/1.1\r\nHost: localhost\r\n\
                Authorization: Bearer administrators-only-1\r\n\r\n";
    conn.send(head.as_bytes());
    assert_eq!(conn.answer().status, 200);
    // Names of others are not served where none were named.
    let mut conn = Conn::open(addr);
    conn.send(b"GET /admin/backends HTTP/1.1\r\nHost: mcp.example.com\r\n\r\n");
    assert_eq!(conn.answer().status, 403);
}

#[test]
fn administration_is_closed_where_nothing_tells_who_is_near() {
    let (router, _ends) = router(&stdio_backend("pipe", &[]));
    let addr = serve(router);
    for target in ["/admin/backends", "/admin/config"] {
        assert_eq!(once(addr, "GET", target, "").status, 403, "{target}");
    }
}

#[test]
fn the_handle_ends_what_an_application_cannot() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "pipe");
    let pipe = stdio_backend("pipe", &["--journal", journal.path()]);
    let (router, ends) = router(&pipe);
    let addr = serve(Router::new().route("/", get(|| async { "here" })).merge(router));
    let mut client = Client::connect(addr);
    client.wait_for_tools(&["pipe__sleep"]);
    let listening = client.listen();
    wait_until("a stream", || ends.0.stats().streams == 1);
    client.send(&message("7", "tools/call", &call_params("pipe__sleep", r#"{"ms":500}"#)));
    journal.wait_count("call sleep", 1);
    ends.0.shutdown();
    listening.until_end();
    assert_eq!(client.told().said(), "slept", "what is in flight is finished");
    assert_eq!(ends.0.wait(), Ok(()));
    let answer = post(addr, "/mcp", "", &message("1", "ping", "{}"));
    assert_eq!(answer.status, 503);
    assert_eq!(answer.head.field("retry-after"), Some("1"));
    assert_eq!(answer.json()["error"]["code"], -32012);
    assert_eq!(once(addr, "GET", "/", "").text(), "here", "the application goes on");
}

/// What README.md shows, as its reader runs it.
#[test]
fn the_example_of_the_readme_runs() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let text = format!("[proxy]\nname = 'e'\n{}", stdio_backend("pipe", &[]));
    std::fs::write(&file, text).unwrap();
    let example = Example::start("axum_app", &file);
    let addr = example.addr();
    assert_eq!(example.url, format!("http://{addr}/tools/mcp"));
    assert_eq!(once(addr, "GET", "/", "").text(), "my own page");
    let answer = post(addr, "/tools/mcp", "", &message("1", "ping", "{}"));
    assert_eq!(answer.status, 400, "a session is needed");
}

/// What a client does not take is not taken from the backend.
#[test]
fn a_slow_reader_costs_no_memory() {
    const READERS: usize = 12;
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let stub = HttpStub::start("h", &[]);
    let text = format!("[proxy]\nname = 'e'\nworkers = 2\n{}", stub.backend("h"));
    std::fs::write(&file, text).unwrap();
    let example = Example::start("axum_app", &file);
    let addr = example.addr();
    let hello = r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}"#;
    let hello = post(addr, "/tools/mcp", "", &message("1", "initialize", hello));
    let session = hello.head.field("mcp-session-id").expect("a session");
    let lines = format!("Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: 2025-11-25\r\n");
    let arguments = r#"{"bytes":15728640,"chunked":true}"#;
    let body = message("2", "tools/call", &call_params("h__big", arguments));
    let whole = wait_for("a whole answer", || {
        let answer = post(addr, "/tools/mcp", &lines, &body);
        (answer.status == 200 && answer.body.len() > 15 << 20).then_some(answer.body)
    });
    let before = resident(example.id());
    let mut conns: Vec<Conn> = (0..READERS).map(|_| Conn::open(addr)).collect();
    for conn in &mut conns {
        let length = body.len();
        conn.send(
            format!(
                "POST /tools/mcp HTTP/1.1\r\nHost: {addr}\r\n{ACCEPT}{JSON}{lines}\
                 Content-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        );
    }
    let heads: Vec<_> = conns.iter_mut().map(Conn::head).collect();
    assert!(heads.iter().all(|head| head.status == 200));
    let mut most = 0;
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        most = most.max(resident(example.id()).saturating_sub(before));
    }
    eprintln!("{} KiB held for {READERS} readers of 15 MiB", most / 1024);
    // hyper keeps up to 400 KiB for each of a connection's two ends, and the application's allocator
    // what threads have given back; whole answers would be 180 MiB.
    assert!(most < READERS * (2 << 20), "{most} bytes held for {READERS} readers of 15 MiB");
    for conn in &mut conns {
        assert!(conn.body() == whole);
    }
}

#[test]
fn a_proxy_lives_as_long_as_its_router() {
    let proxy = Proxy::start(config(&stdio_backend("pipe", &[])), Options::default()).unwrap();
    let addr = proxy.handle().addr();
    drop(Conn::open(addr));
    let (router, handle) = proxy.into_router();
    wait_until("it listens no more", || Conn::try_open(addr).is_none());
    assert!(handle.connect().is_ok());
    drop(router.clone());
    assert!(handle.connect().is_ok());
    drop(router);
    assert_eq!(handle.wait(), Ok(()));
    assert!(handle.connect().is_err());
}
