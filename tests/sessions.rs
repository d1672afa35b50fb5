//! The session era at the endpoint: status codes, headers, sessions, batches
//! (MCP 2025-11-25, Transports, Streamable HTTP; 2025-03-26, Batching).

use serde_json::{Value, json};

use crate::support::client::{ACCEPT, Client, JSON, call_params, message};
use crate::support::http::{Answer, Conn, once};
use crate::support::process::{HttpStub, Proxy, stdio_backend};
use crate::support::wait_until;

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const REVISIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

fn proxy() -> Proxy {
    Proxy::start(&[stdio_backend("a", &[])])
}

/// One POST on a connection of its own with exactly these lines beside Host and Content-Length.
fn post(proxy: &Proxy, lines: &str, body: &str) -> Answer {
    post_to(proxy, "/mcp", lines, body)
}

fn post_to(proxy: &Proxy, target: &str, lines: &str, body: &str) -> Answer {
    let mut conn = Conn::open(proxy.addr);
    let (host, length) = (proxy.addr, body.len());
    conn.send(
        format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
        )
        .as_bytes(),
    );
    conn.answer()
}

fn initialize(revision: &str) -> String {
    let params = json!({
        "protocolVersion": revision,
        "capabilities": {},
        "clientInfo": { "name": "test", "version": "0" },
    });
    message("1", "initialize", &params.to_string())
}

#[test]
fn every_revision_is_agreed_on_and_unknown_ones_get_the_newest() {
    let proxy = proxy();
    for revision in REVISIONS {
        let mut client = Client::connect_at(proxy.addr, revision);
        assert_eq!(client.hello["serverInfo"]["name"], "test");
        assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    }
    for unknown in ["2099-01-01", "1.0", ""] {
        let answer = post(&proxy, &format!("{ACCEPT}{JSON}"), &initialize(unknown));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["result"]["protocolVersion"], "2025-11-25");
    }
    // The next revision has no `initialize`: its date is never agreed on.
    let answer = post(&proxy, &format!("{ACCEPT}{JSON}"), &initialize("2026-07-28"));
    assert_eq!(answer.json()["result"]["protocolVersion"], "2025-11-25");
}

#[test]
fn session_ids_are_long_visible_and_different() {
    let proxy = proxy();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let client = proxy.client();
        assert!(client.session.len() >= 32, "{}", client.session);
        assert!(client.session.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(seen.insert(client.session.clone()));
    }
}

#[test]
fn a_session_is_served_on_every_connection() {
    let proxy = proxy();
    let first = proxy.client_seeing(&["a__echo"]);
    // The kernel spreads connections over the workers; sixteen of them reach both.
    for n in 0..16 {
        let mut client = first.again();
        assert_eq!(
            client.call("a__echo", &format!(r#"{{"payload":"{n}"}}"#)).said(),
            n.to_string()
        );
    }
}

#[test]
fn requests_without_a_session_or_with_an_unknown_one() {
    let proxy = proxy();
    let lines = format!("{ACCEPT}{JSON}");
    let answer = post(&proxy, &lines, PING);
    assert_eq!(answer.status, 400, "no session: {answer:?}");
    assert!(answer.json()["error"]["code"].is_i64());
    let client = proxy.client();
    let mut foreign = client.session.clone();
    let last = if foreign.ends_with('0') { "1" } else { "0" };
    foreign.replace_range(foreign.len() - 1.., last);
    // Well-formed but unknown at both workers, and ones that no proxy ever gave out.
    let unknown = [
        foreign.clone(),
        format!("00{}", &foreign[2..]),
        format!("01{}", &foreign[2..]),
        format!("ff{}", &foreign[2..]),
        "x".into(),
        client.session.to_uppercase() + "A",
        "../../etc".into(),
    ];
    for id in unknown {
        let answer = post(&proxy, &format!("{lines}Mcp-Session-Id: {id}\r\n"), PING);
        assert_eq!(answer.status, 404, "{id}: {answer:?}");
        let get = format!("Accept: text/event-stream\r\nMcp-Session-Id: {id}\r\n");
        assert_eq!(once(proxy.addr, "GET", "/mcp", &get).status, 404, "{id}");
        let delete = format!("Mcp-Session-Id: {id}\r\n");
        assert_eq!(once(proxy.addr, "DELETE", "/mcp", &delete).status, 404, "{id}");
    }
    assert_eq!(once(proxy.addr, "GET", "/mcp", "Accept: text/event-stream\r\n").status, 400);
    assert_eq!(once(proxy.addr, "DELETE", "/mcp", "").status, 400);
}

#[test]
fn delete_ends_the_session_on_both_workers_and_its_stream() {
    let proxy = proxy();
    let mut client = proxy.client();
    let listening = client.listen();
    let mut others: Vec<Client> = (0..16).map(|_| client.again()).collect();
    for other in &mut others {
        other.ask("ping", "{}").result();
    }
    let deleted = client.delete();
    assert!([200, 204].contains(&deleted.status), "{deleted:?}");
    listening.until_end();
    // The word travels to the other worker by mail: from now on it is only a matter of arrival.
    for other in &mut others {
        wait_until("404 for the deleted session", || other.post(PING).status == 404);
    }
    assert_eq!(client.delete().status, 404);
}

#[test]
fn notifications_and_responses_are_accepted_without_a_body() {
    let proxy = proxy();
    let mut client = proxy.client();
    for body in [
        r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/unknown","params":{}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}"#,
        r#"{"jsonrpc":"2.0","id":5,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":"s","error":{"code":-1,"message":"no"}}"#,
    ] {
        let told = client.post(body);
        assert_eq!((told.status, told.text.as_str()), (202, ""), "{body}");
    }
}

#[test]
fn ping_and_unknown_methods_are_answered_by_the_proxy() {
    let proxy = proxy();
    let mut client = proxy.client();
    assert_eq!(client.ask("ping", "{}").result(), json!({}));
    for method in ["no/such", "tools/none", "initialized", "TOOLS/LIST", ""] {
        let told = client.ask(method, "{}");
        assert_eq!((told.status, told.error().0), (200, -32601), "{method}");
    }
}

#[test]
fn ids_come_back_as_they_were_sent() {
    let proxy = proxy();
    let mut client = proxy.client_seeing(&["a__echo"]);
    for id in ["0", "-1", "\"1\"", "1", "9007199254740993", "\"\"", r#""\u0061 \"q\"""#] {
        for body in [
            message(id, "ping", "{}"),
            message(id, "tools/call", &call_params("a__echo", r#"{"payload":"x"}"#)),
            message(id, "no/such", "{}"),
        ] {
            let told = client.post(&body);
            assert!(told.text.contains(&format!("\"id\":{id}")), "{body} -> {}", told.text);
        }
    }
}

#[test]
fn what_is_no_json_rpc_is_refused_with_400() {
    let proxy = proxy();
    let mut client = proxy.client();
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"x":{}{}}}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    for (body, code) in [
        ("", Some(-32700)),
        ("{", Some(-32700)),
        ("nonsense", Some(-32700)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"} x"#, Some(-32700)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping",}"#, Some(-32700)),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"p\u{1}ing\"}", Some(-32700)),
        (deep.as_str(), Some(-32700)),
        ("5", Some(-32600)),
        ("null", Some(-32600)),
        (r#"{"id":1,"method":"ping"}"#, Some(-32600)),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, Some(-32600)),
        (r#"{"jsonrpc":"2.0","id":1}"#, Some(-32600)),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, Some(-32600)),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, Some(-32600)),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, Some(-32600)),
        // Two readers may see two messages in these.
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, None),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}"#, None),
        (r#"{"jsonrpc":"2.0","id":1,"m\u0065thod":"ping"}"#, None),
    ] {
        let told = client.post(body);
        assert_eq!(told.status, 400, "{body}: {told:?}");
        let said = told.error().0;
        match code {
            Some(code) => assert_eq!(said, code, "{body}"),
            None => assert!([-32700, -32600].contains(&said), "{body}: {said}"),
        }
        // Transport-level errors name no request (JSON-RPC 2.0 §5).
        assert_eq!(told.json()["id"], Value::Null, "{body}");
    }
    // Names are exact: another case is another member.
    let told = client.post(r#"{"jsonrpc":"2.0","id":1,"Method":"ping"}"#);
    assert_eq!((told.status, told.error().0), (400, -32600));
    // The connection is of use after all that.
    client.ask("ping", "{}").result();
}

#[test]
fn invalid_utf8_is_refused() {
    let proxy = proxy();
    let client = proxy.client();
    let mut conn = Conn::open(proxy.addr);
    let body = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"p\xffng\"}";
    let head = format!(
        "POST /mcp HTTP/1.1\r\n{}{ACCEPT}{JSON}Content-Length: {}\r\n\r\n",
        client.lines(),
        body.len()
    );
    conn.send(&[head.as_bytes(), body].concat());
    let answer = conn.answer();
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(-32700)));
}

#[test]
fn accept_must_offer_both_forms_in_any_order_and_spelling() {
    let proxy = proxy();
    let client = proxy.client();
    let lines = client.lines();
    for accept in [
        "application/json, text/event-stream",
        "text/event-stream, application/json",
        "application/json;q=0.9,text/event-stream;q=0.1",
        "APPLICATION/JSON, Text/Event-Stream",
        "*/*",
        "application/*, text/*",
        "application/json\r\nAccept: text/event-stream",
    ] {
        assert_eq!(
            status_of(&proxy, &format!("{lines}Accept: {accept}\r\n{JSON}")),
            200,
            "{accept}"
        );
    }
    for accept in [
        "text/html",
        "application/json",
        "text/event-stream",
        "application/jsonx, text/event-streamy",
    ] {
        assert_eq!(
            status_of(&proxy, &format!("{lines}Accept: {accept}\r\n{JSON}")),
            406,
            "{accept}"
        );
    }
    for accept in ["text/html", "application/json"] {
        let get = format!("Accept: {accept}\r\nMcp-Session-Id: {}\r\n", client.session);
        assert_eq!(once(proxy.addr, "GET", "/mcp", &get).status, 406, "{accept}");
    }
}

/// The status of a ping with exactly these lines, which have a Host.
fn status_of(proxy: &Proxy, lines: &str) -> u16 {
    let mut conn = Conn::open(proxy.addr);
    let length = PING.len();
    conn.send(
        format!("POST /mcp HTTP/1.1\r\n{lines}Content-Length: {length}\r\n\r\n{PING}").as_bytes(),
    );
    conn.answer().status
}

#[test]
fn the_body_must_be_json_by_its_type() {
    let proxy = proxy();
    let client = proxy.client();
    let lines = format!("{}{ACCEPT}", client.lines());
    for media in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(status_of(&proxy, &format!("{lines}Content-Type: {media}\r\n")), 200, "{media}");
    }
    for media in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        assert_eq!(status_of(&proxy, &format!("{lines}Content-Type: {media}\r\n")), 415, "{media}");
    }
    assert_eq!(status_of(&proxy, &lines), 415);
}

#[test]
fn the_version_header_is_checked_and_may_be_missing() {
    let proxy = proxy();
    let client = proxy.client();
    let lines =
        format!("Host: {}\r\nMcp-Session-Id: {}\r\n{ACCEPT}{JSON}", proxy.addr, client.session);
    assert_eq!(status_of(&proxy, &lines), 200);
    for revision in REVISIONS {
        let lines = format!("{lines}MCP-Protocol-Version: {revision}\r\n");
        assert_eq!(status_of(&proxy, &lines), 200, "{revision}");
    }
    for wrong in ["2099-01-01", "latest", "2025-11-25x"] {
        let lines = format!("{lines}MCP-Protocol-Version: {wrong}\r\n");
        assert_eq!(status_of(&proxy, &lines), 400, "{wrong}");
    }
}

#[test]
fn methods_and_paths() {
    let proxy = proxy();
    for method in ["PUT", "PATCH"] {
        let answer = once(proxy.addr, method, "/mcp", "Content-Length: 0\r\n");
        assert_eq!(answer.status, 405, "{method}");
        let allow = answer.head.field("allow").expect("Allow");
        assert!(allow.contains("POST") && allow.contains("GET") && allow.contains("DELETE"));
    }
    for target in ["/mc", "/mcp/", "//mcp", "/%6dcp", "/mcp;x", "/admin", "/MCP"] {
        let answer = post_to(&proxy, target, &format!("{ACCEPT}{JSON}"), &initialize("2025-11-25"));
        assert_eq!(answer.status, 404, "{target}");
    }
    for target in ["/", "/mcp", "/mcp?x=y"] {
        let answer = post_to(&proxy, target, &format!("{ACCEPT}{JSON}"), &initialize("2025-11-25"));
        assert_eq!(answer.status, 200, "{target}");
    }
}

#[test]
fn foreign_origins_and_hosts_are_forbidden() {
    let proxy = proxy();
    let (addr, port) = (proxy.addr, proxy.addr.port());
    let open = |host: &str, lines: &str| {
        let body = initialize("2025-11-25");
        let mut conn = Conn::open(addr);
        let length = body.len();
        conn.send(
            format!(
                "POST /mcp HTTP/1.1\r\nHost: {host}\r\n{lines}{ACCEPT}{JSON}Content-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        );
        conn.answer()
    };
    let own = addr.to_string();
    for origin in [
        format!("http://localhost:{port}"),
        "http://localhost".into(),
        "http://127.0.0.1:3000".into(),
        "https://localhost:6274".into(),
        "http://[::1]:80".into(),
    ] {
        let answer = open(&own, &format!("Origin: {origin}\r\n"));
        assert_eq!(answer.status, 200, "{origin}");
        assert_eq!(answer.head.field("access-control-allow-origin"), Some(origin.as_str()));
        let exposed = answer.head.field("access-control-expose-headers").expect("exposed");
        assert!(exposed.to_ascii_lowercase().contains("mcp-session-id"), "{exposed}");
    }
    for origin in [
        "http://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example:8080",
        "http://localhost@evil.example",
        "http://evil.example/localhost",
        "http://127.0.0.1:80.evil.example",
        "null",
        "localhost",
        "file://",
    ] {
        let answer = open(&own, &format!("Origin: {origin}\r\n"));
        assert_eq!(answer.status, 403, "{origin}");
        assert_eq!(answer.head.field("access-control-allow-origin"), None, "{origin}");
        // Neither is a preflight or another method of use to it.
        let lines = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        assert_eq!(once(addr, "OPTIONS", "/mcp", &lines).status, 403, "{origin}");
        assert_eq!(once(addr, "GET", "/mcp", &lines).status, 403, "{origin}");
    }
    for host in [
        format!("localhost:{port}"),
        "127.0.0.1".into(),
        format!("[::1]:{port}"),
        "LOCALHOST".into(),
    ] {
        assert_eq!(open(&host, "").status, 200, "{host}");
    }
    for host in
        ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"]
    {
        assert_eq!(open(host, "").status, 403, "{host}");
    }
    let lines =
        format!("Origin: http://localhost:{port}\r\nAccess-Control-Request-Method: POST\r\n");
    let preflight = once(addr, "OPTIONS", "/mcp", &lines);
    assert!([200, 204].contains(&preflight.status), "{preflight:?}");
    let allowed = preflight.head.field("access-control-allow-headers").expect("allowed headers");
    assert!(allowed.to_ascii_lowercase().contains("mcp-session-id"), "{allowed}");
}

/// Whoever reads the first of two fields and whoever reads the last would serve two requests.
#[test]
fn what_is_said_once_is_not_said_twice() {
    let proxy = proxy();
    let client = Client::connect(proxy.addr);
    let lines = format!("{}{ACCEPT}{JSON}", client.lines());
    let port = proxy.addr.port();
    let ask = |more: &str| {
        let mut conn = Conn::open(proxy.addr);
        let body = message("1", "ping", "{}");
        let head = format!("POST /mcp HTTP/1.1\r\n{lines}{more}Content-Length: {}\r\n", body.len());
        conn.send(format!("{head}\r\n{body}").as_bytes());
        conn.answer()
    };
    assert_eq!(ask("Accept: text/html\r\n").status, 200);
    let own = format!("Origin: http://localhost:{port}\r\n");
    for more in [
        format!("{own}Origin: http://evil.example\r\n"),
        format!("{own}{own}"),
        "MCP-Protocol-Version: 1999-01-01\r\n".to_owned(),
        "mcp-session-id: another\r\n".to_owned(),
        "Content-Type: text/plain\r\n".to_owned(),
    ] {
        let answer = ask(&more);
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &json!(-32600)),
            "{more}"
        );
    }
}

#[test]
fn batches_at_the_one_revision_that_has_them() {
    let proxy = proxy();
    let mut client = Client::connect_at(proxy.addr, "2025-03-26");
    client.wait_for_tools(&["a__echo"]);
    let echo = |id: &str, payload: &str| {
        let arguments = format!(r#"{{"payload":"{payload}"}}"#);
        message(id, "tools/call", &call_params("a__echo", &arguments))
    };
    let batch = format!(
        r#"[{}, {},{{"jsonrpc":"2.0","method":"notifications/x"}} ,{},{}]"#,
        echo("1", "one"),
        message("\"p\"", "ping", "{}"),
        echo("2", "two"),
        message("3", "no/such", "{}")
    );
    let told = client.post(&batch);
    assert_eq!(told.status, 200);
    let mut answers = told.json().as_array().expect("an array").clone();
    answers.sort_by_key(|answer| answer["id"].to_string());
    let ids: Vec<String> = answers.iter().map(|answer| answer["id"].to_string()).collect();
    assert_eq!(ids, ["\"p\"", "1", "2", "3"]);
    assert_eq!(answers[1]["result"]["content"][0]["text"], "one");
    assert_eq!(answers[2]["result"]["content"][0]["text"], "two");
    assert_eq!(answers[3]["error"]["code"], -32601);

    // Progress inside a batch makes it a stream, with every answer on it.
    let params = r#"{"name":"a__progress","arguments":{"steps":2},"_meta":{"progressToken":7}}"#;
    let told = client.post(&format!("[{},{}]", message("8", "tools/call", params), echo("9", "z")));
    assert!(told.as_events, "{told:?}");
    let all: Vec<&String> = told.before.iter().chain([&told.text]).collect();
    let answers = all.iter().filter(|text| !text.contains("\"method\"")).count();
    assert_eq!((all.len(), answers), (4, 2), "{told:?}");

    let quiet =
        r#"[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":1,"result":{}}]"#;
    let told = client.post(quiet);
    assert_eq!((told.status, told.text.as_str()), (202, ""));
    let told = client.post("[]");
    assert_eq!((told.status, told.error().0), (400, -32600));

    for revision in ["2024-11-05", "2025-06-18", "2025-11-25"] {
        let mut client = Client::connect_at(proxy.addr, revision);
        let told = client.post(&batch);
        assert_eq!((told.status, told.error().0), (400, -32600), "{revision}");
    }
}

/// A small request can ask for much: what is held for one array is bounded, and beyond it the answers
/// go out one by one.
#[test]
fn large_answers_to_a_batch_are_not_held_together() {
    let stub = HttpStub::start("web", &[]);
    let proxy = Proxy::start(&[stub.backend("web")]);
    let mut client = Client::connect_at(proxy.addr, "2025-03-26");
    client.wait_for_tools(&["web__big"]);
    let big = |id: usize| {
        let params = call_params("web__big", r#"{"bytes":400000}"#);
        message(&id.to_string(), "tools/call", &params)
    };
    let batch = |count: usize| format!("[{}]", (1..=count).map(big).collect::<Vec<_>>().join(","));
    let told = client.post(&batch(2));
    assert!(!told.as_events);
    assert_eq!(told.json().as_array().map(Vec::len), Some(2));
    let told = client.post(&batch(20));
    assert!(told.as_events);
    let all: Vec<&String> = told.before.iter().chain([&told.text]).collect();
    let mut ids: Vec<u64> = all
        .iter()
        .map(|text| {
            let answer: serde_json::Value = serde_json::from_str(text).expect("JSON");
            assert!(
                answer["result"]["content"][0]["text"].as_str().expect("text").len() >= 400_000
            );
            answer["id"].as_u64().expect("an id")
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<u64>>());
}

#[test]
fn initialize_needs_its_params_and_may_come_again() {
    let proxy = proxy();
    let lines = format!("{ACCEPT}{JSON}");
    for params in ["{}", r#"{"protocolVersion":5}"#, "[]"] {
        let answer = post(&proxy, &lines, &message("1", "initialize", params));
        assert_eq!(answer.json()["error"]["code"], -32602, "{params}");
        assert_eq!(answer.head.field("mcp-session-id"), None, "{params}");
    }
    // A second one on the same connection is another session.
    let mut conn = Conn::open(proxy.addr);
    let body = initialize("2025-11-25");
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\n{lines}Content-Length: {}\r\n\r\n{body}",
        proxy.addr,
        body.len()
    );
    let mut ids = Vec::new();
    for _ in 0..2 {
        conn.send(request.as_bytes());
        let answer = conn.answer();
        ids.push(answer.head.field("mcp-session-id").expect("id").to_owned());
    }
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn several_streams_of_one_session_get_each_message_once() {
    let proxy = proxy();
    let mut client = proxy.client_seeing(&["a__add"]);
    let streams: Vec<_> = (0..3).map(|_| client.listen()).collect();
    client.call("a__add", r#"{"kind":"tool","name":"fresh"}"#).result();
    let mut heard = 0;
    let mut hear = || {
        let now = streams.iter().flat_map(|stream| stream.so_far());
        heard += now.filter(|event| event.data.contains("tools/list_changed")).count();
        heard
    };
    wait_until("the announcement", || hear() > 0);
    client.wait_for_tools(&["a__fresh"]);
    // This change, and at most the first one, of the start, if it was still to be told: each on one
    // of the three streams.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(hear() <= 2, "one message on several streams");
}

#[test]
fn sessions_are_bounded() {
    let proxy = crate::support::process::Setup {
        proxy: "max_sessions = 3".into(),
        backends: stdio_backend("a", &[]),
        ..Default::default()
    }
    .start();
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    let refused = post(&proxy, &format!("{ACCEPT}{JSON}"), &initialize("2025-11-25"));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.head.field("retry-after").is_some());
    clients.pop().unwrap().delete();
    wait_until("room for a session", || {
        post(&proxy, &format!("{ACCEPT}{JSON}"), &initialize("2025-11-25")).status == 200
    });
}

#[test]
fn idle_sessions_expire() {
    let proxy = crate::support::process::Setup {
        proxy: "session_idle_seconds = 1".into(),
        backends: stdio_backend("a", &[]),
        ..Default::default()
    }
    .start();
    let mut client = proxy.client();
    // One with an open stream is in use.
    let listener = proxy.client();
    let listening = listener.listen();
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    loop {
        // Asking is using: it must be left alone for longer than its time.
        std::thread::sleep(std::time::Duration::from_secs(3));
        if client.post(PING).status == 404 {
            break;
        }
        assert!(std::time::Instant::now() < end, "the session does not expire");
    }
    drop(listening);
}

/// Each worker has its own copy of what is known of a backend session, and may not have called since
/// that session was lost, opened again by another worker, and lost once more.
#[test]
fn a_backend_session_lost_twice_is_found_by_a_worker_that_slept_through_the_first() {
    // Without a stream on which the session's own worker would hear of it.
    let stub = HttpStub::start("a", &["--lost", "404", "--no-get"]);
    let proxy = Proxy::start(&[stub.backend("a")]);
    // Which worker a connection meets is chance; among so many sessions there is one whose first
    // connection meets the worker that owns it, and whose second one meets the other.
    for _ in 0..20 {
        let client = proxy.client_seeing(&["a__echo"]);
        let mut lines: Vec<Client> = (0..2).map(|_| client.again()).collect();
        let call = |client: &mut Client| client.call("a__echo", r#"{"payload":"x"}"#).said();
        lines.iter_mut().for_each(|line| assert_eq!(call(line), "x"));
        stub.forget();
        assert_eq!(call(&mut lines[0]), "x");
        stub.forget();
        assert_eq!(call(&mut lines[1]), "x");
    }
}
