//! Spans, as a collector sees them that decodes OTLP; trace contexts on their way through.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::metrics::Page;
use crate::reload::reload;
use crate::support::client::{ACCEPT, Client, JSON, message};
use crate::support::http::once_with;
use crate::support::process::{HttpStub, Proxy, Setup, stdio_backend};
use crate::support::{DEADLINE, wait_for, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[derive(Clone, Debug, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    state: String,
    name: String,
    /// 2 = server, 3 = client.
    kind: u64,
    began: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
    status: u64,
    service: String,
}

/// The fields of a protobuf message: number, and a number or bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        panic!("an endless number");
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        match tag & 7 {
            0 => out.push((tag >> 3, varint(&mut bytes), &[][..])),
            1 => {
                let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                bytes = &bytes[8..];
                out.push((tag >> 3, value, &[][..]));
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (inside, rest) = bytes.split_at(length);
                bytes = rest;
                out.push((tag >> 3, 0, inside));
            }
            wire => panic!("wire type {wire}"),
        }
    }
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A `KeyValue`.
fn pair(bytes: &[u8]) -> (String, String) {
    let (mut key, mut value) = (String::new(), String::new());
    for (field, _, inside) in fields(bytes) {
        match field {
            1 => key = text(inside),
            2 => {
                for (field, number, inside) in fields(inside) {
                    value = match field {
                        1 => text(inside),
                        3 => number.to_string(),
                        other => panic!("kind of value {other}"),
                    };
                }
            }
            other => panic!("field {other} of an attribute"),
        }
    }
    (key, value)
}

/// An `ExportTraceServiceRequest`.
fn spans(body: &[u8]) -> Vec<Span> {
    let mut out = Vec::new();
    for (_, _, resource_spans) in fields(body) {
        let mut service = String::new();
        for (field, _, inside) in fields(resource_spans) {
            if field == 1 {
                let pairs = fields(inside).into_iter().map(|(_, _, inside)| pair(inside));
                let pairs: BTreeMap<String, String> = pairs.collect();
                service = pairs["service.name"].clone();
                continue;
            }
            for (field, _, inside) in fields(inside) {
                if field == 2 {
                    let mut span = Span { service: service.clone(), ..Span::default() };
                    for (field, number, inside) in fields(inside) {
                        match field {
                            1 => span.trace = hex(inside),
                            2 => span.id = hex(inside),
                            3 => span.state = text(inside),
                            4 => span.parent = hex(inside),
                            5 => span.name = text(inside),
                            6 => span.kind = number,
                            7 => span.began = number,
                            8 => span.ended = number,
                            9 => {
                                let (key, value) = pair(inside);
                                assert!(span.attributes.insert(key, value).is_none(), "twice");
                            }
                            15 => span.status = fields(inside)[0].1,
                            other => panic!("field {other} of a span"),
                        }
                    }
                    out.push(span);
                }
            }
        }
    }
    out
}

/// Takes spans.
pub(crate) struct Collector {
    pub(crate) addr: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    /// The requests that brought them.
    pub(crate) requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    pub(crate) fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Span>>> = Arc::default();
        let requests: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (kept, raw) = (seen.clone(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let body = Collector::take(stream.unwrap());
                kept.lock().unwrap().extend(spans(&body));
                raw.lock().unwrap().push(body);
            }
        });
        Collector { addr, spans: seen, requests }
    }

    fn take(mut stream: TcpStream) -> Vec<u8> {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let head = bytes.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = head {
                let head = text(&bytes[..end]).to_ascii_lowercase();
                assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
                assert!(head.contains("content-type: application/x-protobuf"), "{head}");
                assert!(head.contains("x-team: research"), "{head}");
                let length = head.split_once("content-length: ").unwrap().1;
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                if bytes.len() >= end + 4 + length {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    return bytes[end + 4..].to_vec();
                }
            }
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "the request was cut");
            bytes.extend_from_slice(&piece[..count]);
        }
    }

    /// All spans of a trace once the one of the request with this id is there.
    fn trace_of(&self, request: &str) -> (Span, Vec<Span>) {
        wait_for(&format!("the span of request {request}"), || {
            let all = self.spans.lock().unwrap();
            let wanted = |span: &&Span| {
                span.kind == 2
                    && span.attributes.get("jsonrpc.request.id").is_some_and(|id| id == request)
            };
            let server = all.iter().find(wanted)?.clone();
            let mine = |span: &&Span| span.kind == 3 && span.parent == server.id;
            Some((server.clone(), all.iter().filter(mine).cloned().collect()))
        })
    }
}

/// Lines that send spans there.
fn to(addr: SocketAddr, keys: &str) -> String {
    format!(
        "[observability.tracing]\nenabled = true\nendpoint = \"http://{addr}\"\n\
         headers = {{ X-Team = \"research\" }}\n{keys}"
    )
}

pub(crate) fn start(addr: SocketAddr, keys: &str, backends: String) -> Proxy {
    Setup { backends, proxy: to(addr, keys), ..Setup::default() }.start()
}

/// What the stub's tool `raw` was sent.
fn raw(client: &mut Client, id: &str, tool: &str, rest: &str) -> String {
    let params = format!(r#"{{"name":"{tool}","arguments":{{}}{rest}}}"#);
    client.post(&message(id, "tools/call", &params)).said()
}

fn parent_in(sent: &str) -> String {
    let sent: serde_json::Value = serde_json::from_str(sent).expect(sent);
    sent["params"]["_meta"]["traceparent"].as_str().expect("a traceparent").to_owned()
}

#[test]
fn a_request_and_its_attempts_have_spans_and_the_context_goes_on() {
    let collector = Collector::start();
    let web = HttpStub::start("web", &["--annotated"]);
    let shared = HttpStub::start("shared", &["--annotated"]);
    let proxy = start(
        collector.addr,
        "service_name = \"my-service\"\n",
        stdio_backend("pipe", &[])
            + &web.backend("web")
            + "retry = { max_retries = 2, initial_backoff_ms = 1 }\n"
            + &shared.backend("shared")
            + "isolation = \"shared\"\n",
    );
    let mut client = proxy.client_seeing(&["pipe__raw", "web__raw", "shared__raw"]);
    // The context of `_meta`, with and without other members; behind every way to a backend.
    let parent = format!("00-{TRACE}-{PARENT}-01");
    for (n, tool) in ["pipe__raw", "web__raw", "shared__raw"].into_iter().enumerate() {
        let id = format!("\"m{n}\"");
        let meta = format!(
            r#","_meta":{{"x":1.0,"traceparent":"{parent}","tracestate":"a=b","progressToken":7}}"#
        );
        let sent = raw(&mut client, &id, tool, &meta);
        let (server, attempts) = collector.trace_of(&format!("m{n}"));
        assert_eq!((server.trace.as_str(), server.parent.as_str()), (TRACE, PARENT));
        assert_eq!((&server.name, server.status), (&format!("tools/call {tool}"), 0));
        assert_eq!((server.state.as_str(), server.service.as_str()), ("a=b", "my-service"));
        assert!(server.began > 1_700_000_000_000_000_000 && server.began < server.ended);
        let expected = [
            ("mcp.method.name", "tools/call"),
            ("gen_ai.tool.name", tool),
            ("gen_ai.operation.name", "execute_tool"),
            ("mcp.protocol.version", "2025-11-25"),
            ("network.transport", "tcp"),
            ("client.address", "127.0.0.1"),
        ];
        for (key, value) in expected {
            assert_eq!(server.attributes[key], value, "{key}");
        }
        assert!(!client.session.contains(&server.attributes["mcp.session.id"]));
        let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
        assert_eq!((attempt.trace.as_str(), attempt.status), (TRACE, 0));
        assert_eq!(attempt.attributes["gen_ai.tool.name"], "raw");
        assert!(server.began <= attempt.began && attempt.began <= attempt.ended);
        assert!(attempt.ended <= server.ended + 1_000_000, "{server:?} {attempt:?}");
        if tool == "pipe__raw" {
            assert_eq!(attempt.attributes["network.transport"], "pipe");
        } else {
            assert_eq!(attempt.attributes["server.address"], "127.0.0.1");
        }
        // The backend was told of the attempt, and of everything else as it was.
        assert_eq!(parent_in(&sent), format!("00-{TRACE}-{}-01", attempt.id));
        assert!(
            sent.contains(r#"{"x":1.0,"traceparent":"#) && sent.contains(r#""tracestate":"a=b""#)
        );
    }
    // Without a context one begins here; without `_meta` there is one then.
    let sent = raw(&mut client, "\"fresh\"", "web__raw", "");
    let (server, attempts) = collector.trace_of("fresh");
    assert_eq!(server.parent, "");
    assert_eq!(parent_in(&sent), format!("00-{}-{}-01", server.trace, attempts[0].id));
    // The one of the HTTP fields counts where `_meta` has none.
    let lines = format!(
        "{}{ACCEPT}{JSON}traceparent: {parent}\r\ntracestate: c=d\r\n",
        client.lines().lines().skip(1).map(|line| format!("{line}\r\n")).collect::<String>()
    );
    let call = message("\"header\"", "tools/call", r#"{"name":"web__raw","arguments":{}}"#);
    let answer = once_with(proxy.addr, "POST", "/mcp", &lines, &call);
    assert_eq!(answer.status, 200);
    let (server, _) = collector.trace_of("header");
    assert_eq!((server.parent.as_str(), server.state.as_str()), (PARENT, "c=d"));
    let said = answer.json()["result"]["content"][0]["text"].as_str().unwrap().to_owned();
    assert!(said.contains(r#""tracestate":"c=d""#), "{said}");
    // Who decided not to record is followed, and the message stays as it is.
    let quiet = format!(r#","_meta":{{"traceparent":"00-{TRACE}-{PARENT}-00"}}"#);
    let sent = raw(&mut client, "\"quiet\"", "web__raw", &quiet);
    assert_eq!(parent_in(&sent), format!("00-{TRACE}-{PARENT}-00"));
    // Every attempt has a span of its own, under which the backend was called.
    let arguments = r#"{"key":"k","fails":2,"how":"internal"}"#;
    let params = format!(r#"{{"name":"web__reads","arguments":{arguments}}}"#);
    let said = client.post(&message("\"again\"", "tools/call", &params)).said();
    let (server, attempts) = collector.trace_of("again");
    assert_eq!(attempts.len(), 3, "{attempts:?}");
    let last = attempts.iter().max_by_key(|attempt| attempt.began).unwrap();
    let sent = said.split_once(' ').unwrap().1;
    assert_eq!(parent_in(sent), format!("00-{}-{}-01", server.trace, last.id));
    // Failures are told as such.
    client.post(&message("\"bad\"", "tools/call", r#"{"name":"nobody__x"}"#)).error();
    let (server, attempts) = collector.trace_of("bad");
    assert_eq!((server.status, attempts.len()), (2, 0));
    assert_eq!(server.attributes["error.type"], "error");
    assert!(
        !collector.spans.lock().unwrap().iter().any(|span| {
            span.attributes.get("jsonrpc.request.id").is_some_and(|id| id == "quiet")
        })
    );
}

#[test]
fn without_tracing_a_context_goes_through_untouched() {
    let web = HttpStub::start("web", &[]);
    let proxy = Proxy::start(&[web.backend("web")]);
    let mut client = proxy.client_seeing(&["web__raw"]);
    let meta = format!(r#","_meta":{{"traceparent" : "00-{TRACE}-{PARENT}-01"}}"#);
    let sent = raw(&mut client, "1", "web__raw", &meta);
    assert!(sent.contains(&meta), "{sent}");
    assert!(!raw(&mut client, "2", "web__raw", "").contains("_meta"));
}

#[test]
fn a_share_of_nothing_records_nothing() {
    let collector = Collector::start();
    let web = HttpStub::start("web", &[]);
    let proxy = start(collector.addr, "sample_ratio = 0\n", web.backend("web"));
    let mut client = proxy.client_seeing(&["web__raw"]);
    assert!(!raw(&mut client, "1", "web__raw", "").contains("_meta"));
    // But the decision of others is followed.
    let meta = format!(r#","_meta":{{"traceparent":"00-{TRACE}-{PARENT}-01"}}"#);
    raw(&mut client, "\"theirs\"", "web__raw", &meta);
    collector.trace_of("theirs");
    assert!(collector.spans.lock().unwrap().iter().all(|span| span.trace == TRACE));
}

#[test]
fn a_collector_that_hangs_or_is_not_there_costs_nothing() {
    // It accepts into its backlog, and never reads or answers.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = HttpStub::start("web", &[]);
    let mut proxy = start(mute.local_addr().unwrap(), "", web.backend("web"));
    let mut client = proxy.client_seeing(&["web__echo"]);
    for _ in 0..6000 {
        assert_eq!(client.call("web__echo", r#"{"payload":"x"}"#).said(), "x");
    }
    wait_until("spans to be lost", || {
        Page::of(&proxy).get("mcp_proxy_telemetry_lost_total", &[("what", "span")]) > 0.0
    });
    // Nor does it hold the end up.
    drop(client);
    proxy.signal("TERM");
    assert!(proxy.wait().success());
}

#[test]
fn a_reload_switches_tracing_on_elsewhere_and_off() {
    let (one, two) = (Collector::start(), Collector::start());
    let web = HttpStub::start("web", &[]);
    let backends = [web.backend("web")];
    let proxy = Proxy::start(&backends);
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    clients[0].wait_for_tools(&["web__raw"]);
    // On connections of both workers, if they are more than one.
    let mut call = |name: &str, traced: bool| {
        for (n, client) in clients.iter_mut().enumerate() {
            let sent = raw(client, &format!("\"{name} {n}\""), "web__raw", "");
            assert_eq!(sent.contains("traceparent"), traced, "{name}: {sent}");
        }
    };
    let asked = |collector: &Collector| -> Vec<String> {
        let spans = collector.spans.lock().unwrap();
        let id = |span: &Span| span.attributes.get("jsonrpc.request.id").cloned();
        spans.iter().filter(|span| span.kind == 2).filter_map(id).collect()
    };
    // All four, each with its attempt, under the name of the service.
    let there = |collector: &Collector, name: &str, service: &str| {
        for n in 0..4 {
            let request = format!("{name} {n}");
            let server = wait_for(&request, || {
                let (server, attempts) = collector.trace_of(&request);
                (attempts.len() == 1).then_some(server)
            });
            assert_eq!(server.service, service);
        }
    };
    call("before", false);
    reload(&proxy, &to(one.addr, "service_name = \"first\"\n"), &backends);
    call("first", true);
    there(&one, "first", "first");
    reload(&proxy, &to(two.addr, "service_name = \"second\"\n"), &backends);
    call("second", true);
    there(&two, "second", "second");
    // The share of what is recorded, then whether anything is.
    reload(&proxy, &to(two.addr, "sample_ratio = 0\n"), &backends);
    call("none", false);
    reload(&proxy, "", &backends);
    call("off", false);
    // What would have been sent of these would have come before the next.
    reload(&proxy, &to(one.addr, "service_name = \"third\"\n"), &backends);
    call("third", true);
    there(&one, "third", "third");
    for (collector, names) in [(&one, &["first", "third"][..]), (&two, &["second"])] {
        let asked = asked(collector);
        let mine = |id: &String| {
            let id = id.rsplit_once(' ');
            // The clients of the test number their other requests.
            id.is_none_or(|(name, _)| names.contains(&name))
        };
        assert!(asked.iter().all(mine), "{names:?}: {asked:?}");
    }
}

/// A call that runs for several is one caller's: its attempts have spans in the trace of that one.
#[test]
fn attempts_of_calls_that_run_together_have_spans_too() {
    let collector = Collector::start();
    let web = HttpStub::start("web", &["--annotated"]);
    let proxy = start(
        collector.addr,
        "[performance]\ncoalesce_requests = true\n",
        web.backend("web") + "retry = { max_retries = 2, initial_backoff_ms = 1 }\n",
    );
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client_seeing(&["web__reads"])).collect();
    // The one who calls and the one at which it runs may be on different workers.
    for n in 0..12 {
        let (id, client) = (format!("shared{n}"), &mut clients[n % 4]);
        let arguments = format!(r#"{{"key":"{id}","fails":1,"how":"internal"}}"#);
        let params = format!(r#"{{"name":"web__reads","arguments":{arguments}}}"#);
        let said = client.post(&message(&format!("\"{id}\""), "tools/call", &params)).said();
        let (server, attempts) = collector.trace_of(&id);
        assert_eq!(attempts.len(), 2, "{attempts:?}");
        let last = attempts.iter().max_by_key(|attempt| attempt.began).unwrap();
        let sent = said.split_once(' ').unwrap().1;
        assert_eq!(parent_in(sent), format!("00-{}-{}-01", server.trace, last.id));
    }
}
