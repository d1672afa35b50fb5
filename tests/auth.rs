//! Tokens of the configuration: who gets in, whose sessions are whose, what each may see, and that
//! no secret is ever printed.

use std::process::Command;

use serde_json::Value;

use crate::modern::{Caller, names};
use crate::support::client::{ACCEPT, Client, JSON, message};
use crate::support::http::{Answer, Conn, once};
use crate::support::process::{HttpStub, Journal, Proxy, Setup, scratch, stdio_backend};
use crate::support::{quote, wait_until};
use crate::traces::Collector;

const ALL: &str = "opens-everything-1";
const OTHER: &str = "opens-everything-2";
const READER: &str = "opens-only-a-part-1";
const DENIED: &str = "opens-all-but-some-1";
const NOTHING: &str = "opens-nothing-at-all-1";
const ADMIN: &str = "administrators-only-1";

const AUTH: &str = r#"
[auth]
type = "bearer"
tokens = ["opens-everything-1", "opens-everything-2"]
[[auth.scoped_tokens]]
token = "opens-only-a-part-1"
name = "reader"
allow_tools = ["a__echo", "a__stat*", "b__hang"]
deny_tools = ["b__*"]
allow_resources = ["stub://a/*"]
[[auth.scoped_tokens]]
token = "opens-all-but-some-1"
name = "most"
deny_tools = ["*__hang"]
[[auth.scoped_tokens]]
token = "opens-nothing-at-all-1"
name = "nobody"
allow_tools = []
[security]
admin_token = "administrators-only-1"
"#;

fn proxy() -> Proxy {
    let backends = [stdio_backend("a", &[]), stdio_backend("b", &[])].concat();
    Setup { backends, proxy: AUTH.to_owned(), ..Setup::default() }.start()
}

/// One POST on a connection of its own.
fn post(proxy: &Proxy, target: &str, lines: &str, body: &str) -> Answer {
    let mut conn = Conn::open(proxy.addr);
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{JSON}{lines}Content-Length: {}\r\n\r\n{body}",
        proxy.addr,
        body.len()
    );
    conn.send(head.as_bytes());
    conn.answer()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

const HELLO: &str =
    r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}}"#;

#[test]
fn only_who_shows_a_token_gets_in() {
    let proxy = proxy();
    let hello = message("1", "initialize", HELLO);
    let metadata = format!("http://{}/.well-known/oauth-protected-resource", proxy.addr);
    for (target, suffix) in [("/mcp", "/mcp"), ("/", "")] {
        let answer = post(&proxy, target, "", &hello);
        assert_eq!(answer.status, 401);
        let challenge = answer.head.field("www-authenticate").expect("a challenge");
        assert_eq!(challenge, format!("Bearer resource_metadata=\"{metadata}{suffix}\""));
        assert!(answer.head.field("mcp-session-id").is_none());
    }
    for wrong in [
        bearer("opens-everything-3"),
        bearer("opens-everything-"),
        bearer("OPENS-EVERYTHING-1"),
        bearer(&format!("{ALL}x")),
        bearer(&format!("{ALL}, {ALL}")),
        bearer(""),
        format!("Authorization: Basic {ALL}\r\n"),
        format!("Authorization: {ALL}\r\n"),
        format!("Authorization: Bearer{ALL}\r\n"),
        format!("{}{}", bearer(ALL), bearer(ALL)),
        format!("{}{}", bearer("wrong"), bearer(ALL)),
        bearer(&"x".repeat(10_000)),
    ] {
        let answer = post(&proxy, "/mcp", &wrong, &hello);
        assert_eq!(answer.status, 401, "{wrong}");
        let challenge = answer.head.field("www-authenticate").expect("a challenge");
        assert!(challenge.starts_with("Bearer error=\"invalid_token\""), "{challenge}");
        assert!(!answer.text().contains("opens"), "{}", answer.text());
    }
    // Never in the address, and never as a cookie.
    let target = format!("/mcp?access_token={ALL}&token={ALL}");
    let cookie = format!("Cookie: token={ALL}\r\nX-Authorization: Bearer {ALL}\r\n");
    assert_eq!(post(&proxy, &target, &cookie, &hello).status, 401);
    // The name of the scheme has no case.
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR  "] {
        let line = format!("authorization: {scheme} {ALL}\r\n");
        assert_eq!(post(&proxy, "/mcp", &line, &hello).status, 200, "{scheme}");
    }
    // Other ways in are no ways around; what is open stays open.
    for (method, target, status) in [
        ("GET", "/mcp", 401),
        ("DELETE", "/mcp", 401),
        ("PUT", "/mcp", 401),
        ("GET", "/admin/backends", 401),
        ("GET", "//mcp", 404),
        ("GET", "/mcp/", 404),
        ("GET", "/livez", 200),
        ("GET", "/health", 200),
        ("OPTIONS", "/mcp", 204),
    ] {
        assert_eq!(once(proxy.addr, method, target, "").status, status, "{method} {target}");
    }
}

/// The bound is the principal's, wherever his connections end up: on one of two workers too.
#[test]
fn a_principal_has_so_many_sessions_over_one_connection() {
    let proxy = proxy();
    let hello = message("1", "initialize", HELLO);
    let open = |conn: &mut Conn, token: &str| {
        let lines = format!("{ACCEPT}{JSON}{}", bearer(token));
        let (addr, length) = (proxy.addr, hello.len());
        let head = format!("POST /mcp HTTP/1.1\r\nHost: {addr}\r\n{lines}");
        conn.send(format!("{head}Content-Length: {length}\r\n\r\n{hello}").as_bytes());
        conn.answer()
    };
    let mut conn = Conn::open(proxy.addr);
    let first = open(&mut conn, ALL);
    for n in 1..1000 {
        assert_eq!(open(&mut conn, ALL).status, 200, "{n}");
    }
    assert_eq!(open(&mut conn, ALL).status, 503);
    assert_eq!(open(&mut conn, OTHER).status, 200, "another one");
    let session = first.head.field("mcp-session-id").expect("a session");
    let lines = format!("{}Mcp-Session-Id: {session}\r\n", bearer(ALL));
    assert_eq!(once(proxy.addr, "DELETE", "/mcp", &lines).status, 200);
    // The other worker may hear of it a moment later.
    wait_until("room", || open(&mut conn, ALL).status == 200);
    assert_eq!(open(&mut conn, ALL).status, 503);
}

/// Load balancers ask as HTTP/1.0 does, without a host; browsers, of which pages could make use, do
/// not.
#[test]
fn probes_need_no_host_and_no_body() {
    let proxy = Proxy::start(&[stdio_backend("a", &[])]);
    let ask = |request: &str| {
        let mut conn = Conn::open(proxy.addr);
        conn.send(request.as_bytes());
        conn.answer().status
    };
    for path in ["/health", "/livez", "/readyz"] {
        assert!([200, 503].contains(&ask(&format!("GET {path} HTTP/1.0\r\n\r\n"))), "{path}");
        let foreign = format!("GET {path} HTTP/1.0\r\nHost: evil.example\r\n\r\n");
        assert_eq!(ask(&foreign), 403, "{path}");
    }
    for path in ["/mcp", "/admin/health", "/admin/metrics"] {
        assert_eq!(ask(&format!("GET {path} HTTP/1.0\r\n\r\n")), 403, "{path}");
    }
    for path in ["/health", "/admin/health", "/admin/metrics"] {
        let mut conn = Conn::open(proxy.addr);
        conn.send(format!("HEAD {path} HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.addr).as_bytes());
        let head = conn.head();
        assert_eq!(head.status, 200, "{path}");
        assert_ne!(head.field("content-length"), Some("0"), "{path}");
    }
}

#[test]
fn the_metadata_is_open() {
    let public = "[proxy.listen]\npublic_url = \"https://mcp.example.com/tools/\"\n";
    let setup = |lines: &str| Setup {
        backends: stdio_backend("a", &[]),
        proxy: format!("{lines}{AUTH}"),
        ..Setup::default()
    };
    let proxy = setup(public).start();
    let known = "/.well-known/oauth-protected-resource";
    for (target, resource) in [
        (known.to_owned(), "https://mcp.example.com/tools"),
        (format!("{known}/mcp"), "https://mcp.example.com/tools/mcp"),
        (format!("{known}/tools"), "https://mcp.example.com/tools"),
        (format!("{known}/tools/mcp"), "https://mcp.example.com/tools/mcp"),
    ] {
        let origin = "Origin: http://localhost:3000\r\n";
        let answer = once(proxy.addr, "GET", &target, origin);
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(answer.head.field("access-control-allow-origin"), Some("http://localhost:3000"));
        let document = answer.json();
        assert_eq!(document["resource"], resource, "{target}");
        assert_eq!(document["bearer_methods_supported"][0], "header");
        assert_eq!(document.get("authorization_servers"), None);
    }
    assert_eq!(once(proxy.addr, "GET", &format!("{known}/other"), "").status, 404);
    assert_eq!(once(proxy.addr, "POST", known, "").status, 405);
    let answer = once(proxy.addr, "GET", "/mcp", "Origin: http://localhost:3000\r\n");
    let challenge = answer.head.field("www-authenticate").expect("a challenge");
    assert!(
        challenge
            .contains("\"https://mcp.example.com/.well-known/oauth-protected-resource/tools/mcp\""),
        "{challenge}"
    );
    // Without [auth] there is nothing to tell.
    let open = Proxy::start(&[stdio_backend("a", &[])]);
    assert_eq!(once(open.addr, "GET", known, "").status, 404);
}

#[test]
fn a_session_belongs_to_its_principal() {
    let proxy = proxy();
    let mut owner = Client::connect_as(proxy.addr, ALL);
    owner.wait_for_tools(&["a__echo"]);
    let unknown = "0000".to_owned() + &"5".repeat(32);
    for thief in [OTHER, READER, ADMIN] {
        let mut stolen = owner.again();
        stolen.extra = bearer(thief);
        let mut none = owner.again();
        none.extra = bearer(thief);
        none.session.clone_from(&unknown);
        // From whichever worker: several connections reach both.
        for _ in 0..8 {
            stolen.conn = Conn::open(proxy.addr);
            let (theirs, nobodys) = (stolen.ask("tools/list", "{}"), none.ask("tools/list", "{}"));
            assert_eq!((theirs.status, nobodys.status), (404, 404));
            assert_eq!(theirs.error(), nobodys.error());
        }
        assert_eq!(stolen.delete().status, 404);
        let mut conn = Conn::open(proxy.addr);
        let accept = "Accept: text/event-stream\r\n";
        conn.send(format!("GET /mcp HTTP/1.1\r\n{}{accept}\r\n", stolen.lines()).as_bytes());
        assert_eq!(conn.answer().status, 404);
        let told = stolen.post(
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
        );
        assert_eq!(told.status, 404);
    }
    // With a token that is none, an id is no help either.
    let mut stolen = owner.again();
    stolen.extra = String::new();
    assert_eq!(stolen.ask("ping", "{}").status, 401);
    // It has survived all that.
    assert_eq!(owner.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    let mut again = owner.again();
    assert_eq!(again.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    assert_eq!(again.delete().status, 200);
    assert_eq!(owner.ask("ping", "{}").status, 404);
}

#[test]
fn a_scoped_token_sees_its_part_and_no_more() {
    let proxy = proxy();
    let mut all = Client::connect_as(proxy.addr, ALL);
    all.wait_for_tools(&["a__echo", "b__echo"]);
    let mut reader = Client::connect_as(proxy.addr, READER);
    assert_eq!(reader.names("tools/list"), ["a__echo", "a__stats"]);
    // Nor is he told of a backend in which there is nothing for him.
    let told = reader.hello["instructions"].as_str().expect("instructions");
    assert!(told.contains("Instructions of a.") && !told.contains("of b."), "{told}");
    assert_eq!(reader.names("resources/list"), ["stub://a/fixed"]);
    assert_eq!(reader.names("resources/templates/list"), ["stub://a/item/{id}"]);
    assert_eq!(reader.names("prompts/list"), Vec::<String>::new());
    assert_eq!(reader.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    reader.ask("resources/read", r#"{"uri":"stub://a/fixed"}"#).result();

    // What is denied and what never was are answered alike, and reach nobody.
    for name in ["b__echo", "b__hang", "a__rich", "a__nothing", "c__echo", "echo", "a__statxyz"] {
        let told = reader.call(name, "{}");
        assert_eq!(told.error(), (-32602, format!("Unknown tool: {name}")));
    }
    // The same name, written otherwise.
    let told = reader.ask("tools/call", r#"{"name":"b__\u0065cho","arguments":{}}"#);
    assert_eq!(told.error(), (-32602, "Unknown tool: b__echo".to_owned()));
    let told = reader.ask("tools/call", r#"{"name":"\u0061__echo","arguments":{"payload":"y"}}"#);
    assert_eq!(told.said(), "y");
    for uri in ["stub://b/fixed", "stub://b/none", "stub://a/../b/fixed", "stub://a/%2e%2e/b/fixed"]
    {
        let told = reader.ask("resources/read", &format!(r#"{{"uri":"{uri}"}}"#));
        assert_eq!(told.error().0, -32002, "{uri}");
        assert_eq!(told.json()["error"]["data"]["uri"], uri);
        let told = reader.ask("resources/subscribe", &format!(r#"{{"uri":"{uri}"}}"#));
        assert_eq!(told.error().0, -32002, "{uri}");
        let asked = format!(
            r#"{{"ref":{{"type":"ref/resource","uri":"{uri}"}},"argument":{{"name":"x","value":"y"}}}}"#
        );
        let told = reader.ask("completion/complete", &asked);
        assert_eq!(told.error(), (-32602, format!("Invalid params: Unknown resource: {uri}")));
    }
    let prompts = all.names("prompts/list");
    let (known, unknown) = (prompts[0].as_str(), "a__no_such_prompt");
    for name in [known, unknown] {
        let told = reader.ask("prompts/get", &format!(r#"{{"name":{}}}"#, quote(name)));
        assert_eq!(told.error(), (-32602, format!("Unknown prompt: {name}")));
        let asked = format!(
            r#"{{"ref":{{"type":"ref/prompt","name":{}}},"argument":{{"name":"x","value":"y"}}}}"#,
            quote(name)
        );
        let told = reader.ask("completion/complete", &asked);
        assert_eq!(told.error(), (-32602, format!("Unknown prompt: {name}")));
    }
    // No call that was refused has reached a backend.
    for backend in ["a", "b"] {
        let said = all.call(&format!("{backend}__stats"), "{}").said();
        let stats: Value = serde_json::from_str(&said).unwrap();
        for tool in ["rich", "nothing", "hang", "statxyz"] {
            assert_eq!(stats["executions"].get(tool), None, "{backend} {tool} {stats}");
        }
        assert_eq!(stats["executions"].get("echo").is_some(), backend == "a", "{stats}");
    }

    let mut most = Client::connect_as(proxy.addr, DENIED);
    let (some, every) = (most.names("tools/list"), all.names("tools/list"));
    assert_eq!(some.len(), every.len() - 2);
    assert!(!some.iter().any(|name| name.ends_with("__hang")));
    assert_eq!(most.names("prompts/list"), prompts);
    assert_eq!(most.call("a__hang", "{}").error().0, -32602);

    let mut nobody = Client::connect_as(proxy.addr, NOTHING);
    for list in ["tools/list", "resources/list", "resources/templates/list", "prompts/list"] {
        assert_eq!(nobody.names(list), Vec::<String>::new());
    }
    assert_eq!(nobody.call("a__echo", "{}").error().0, -32602);
    // The administrator's token opens everything.
    let mut admin = Client::connect_as(proxy.addr, ADMIN);
    assert_eq!(admin.names("tools/list"), every);
}

#[test]
fn rights_hold_in_batches_and_for_own_names() {
    let auth = AUTH.replace("\"a__echo\", \"a__stat*\"", "\"echo\", \"stat*\"");
    let setup = Setup {
        backends: stdio_backend("a", &[]) + "prefix = \"\"\n",
        proxy: auth,
        ..Setup::default()
    };
    let proxy = setup.start();
    Client::connect_as(proxy.addr, ALL).wait_for_tools(&["echo"]);
    let mut reader = Client::connect_saying(proxy.addr, "2025-03-26", "{}", &bearer(READER));
    let call = |id: &str, name: &str| {
        message(id, "tools/call", &format!(r#"{{"name":"{name}","arguments":{{"payload":"p"}}}}"#))
    };
    let list = message("4", "tools/list", "{}");
    let batch =
        format!("[{},{},{},{list}]", call("1", "echo"), call("2", "rich"), call("3", "none"));
    let told = reader.post(&batch);
    let answers = told.json();
    let answer = |id: u64| {
        let mut all = answers.as_array().expect("an array").iter();
        all.find(|answer| answer["id"] == id).expect("an answer").clone()
    };
    assert_eq!(answer(1)["result"]["content"][0]["text"], "p");
    assert_eq!(answer(2)["error"]["message"], "Unknown tool: rich");
    assert_eq!(answer(3)["error"]["message"], "Unknown tool: none");
    assert_eq!(answer(4)["result"]["tools"].as_array().unwrap().len(), 2);
}

#[test]
fn admin_is_for_administrators() {
    let closed = proxy();
    let admin =
        |proxy: &Proxy, lines: &str| once(proxy.addr, "GET", "/admin/backends", lines).status;
    for target in ["/admin", "/admin/", "/admin/backends"] {
        let answer = once(closed.addr, "GET", target, "");
        assert_eq!(answer.status, 401);
        assert!(answer.head.field("www-authenticate").is_some());
    }
    assert_eq!(admin(&closed, &bearer("wrong")), 401);
    for token in [ALL, READER, NOTHING] {
        assert_eq!(admin(&closed, &bearer(token)), 403, "{token}");
    }
    assert!(!matches!(admin(&closed, &bearer(ADMIN)), 401 | 403));

    // Without [auth] the token is for /admin alone.
    let alone = Setup {
        backends: stdio_backend("a", &[]),
        proxy: format!("[security]\nadmin_token = \"{ADMIN}\"\n"),
        ..Setup::default()
    };
    let alone = alone.start();
    assert_eq!((admin(&alone, ""), admin(&alone, &bearer(ALL))), (401, 401));
    assert!(!matches!(admin(&alone, &bearer(ADMIN)), 401 | 403));
    let mut client = alone.client_seeing(&["a__echo"]);
    client.extra = bearer("for-somebody-else");
    assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    client.extra = bearer(ADMIN);
    assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");

    // Without either it is open here, and closed where others can connect.
    let open = Proxy::start(&[stdio_backend("a", &[])]);
    assert!(!matches!(admin(&open, ""), 401 | 403));
    let wide = Setup {
        backends: stdio_backend("a", &[]),
        args: vec!["--listen".into(), "0.0.0.0:0".into()],
        ..Setup::default()
    };
    let wide = wide.start();
    assert_eq!(admin(&wide, ""), 403);
    wait_until("the warning", || wide.stderr().contains("there is no authentication"));
}

#[test]
fn a_principal_has_a_bounded_number_of_sessions() {
    let setup = Setup {
        backends: stdio_backend("a", &[]),
        proxy: AUTH.to_owned(),
        workers: Some(1),
        ..Setup::default()
    };
    let proxy = setup.start();
    let mut conn = Conn::open(proxy.addr);
    let hello = message("1", "initialize", HELLO);
    let mut ask = |token: &str| {
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{JSON}{}Content-Length: {}\r\n\r\n{hello}",
            proxy.addr,
            bearer(token),
            hello.len()
        );
        conn.send(head.as_bytes());
        conn.answer()
    };
    let mut last = String::new();
    for _ in 0..1000 {
        let answer = ask(ALL);
        assert_eq!(answer.status, 200);
        last = answer.head.field("mcp-session-id").expect("a session").to_owned();
    }
    let full = ask(ALL);
    assert_eq!((full.status, full.head.field("retry-after")), (503, Some("1")));
    assert_eq!(ask(OTHER).status, 200, "others are not concerned");
    let lines = format!("{}Mcp-Session-Id: {last}\r\n", bearer(ALL));
    assert_eq!(once(proxy.addr, "DELETE", "/mcp", &lines).status, 200);
    wait_until("room for one more", || ask(ALL).status == 200);
}

#[test]
fn a_request_may_be_so_large_and_no_larger() {
    let setup = Setup {
        backends: stdio_backend("a", &[]),
        proxy: "[security]\nmax_request_bytes = 2000\n".to_owned(),
        ..Setup::default()
    };
    let proxy = setup.start();
    let mut client = proxy.client_seeing(&["a__echo"]);
    let echo = |bytes: usize| format!(r#"{{"payload":"{}"}}"#, "x".repeat(bytes));
    assert_eq!(client.call("a__echo", &echo(1000)).said().len(), 1000);
    let told = client.call("a__echo", &echo(2000));
    assert_eq!((told.status, told.error().0), (413, -32600));
}

#[test]
fn a_forwarded_token_goes_to_its_backend_and_to_no_other() {
    let scratch = scratch();
    let (ours, others) = (Journal::new(&scratch, "ours"), Journal::new(&scratch, "others"));
    let args = ["--token", ALL, "--token", READER, "--token", DENIED, "--journal", ours.path()];
    let forwarded = HttpStub::start("f", &args);
    let other =
        HttpStub::start("o", &["--token", "a-token-of-the-proxy", "--journal", others.path()]);
    let backends = [
        forwarded.backend("f") + "forward_auth = true\nretry = { max_retries = 1 }\n",
        other.backend("o") + "bearer_token = \"a-token-of-the-proxy\"\n",
        stdio_backend("pipe", &[]),
    ]
    .concat();
    let auth = AUTH.replace("a__", "f__").replace("stub://a", "stub://f");
    let proxy = Setup { backends, proxy: auth, ..Setup::default() }.start();
    let mut all = Client::connect_as(proxy.addr, ALL);
    all.wait_for_tools(&["f__echo", "o__echo", "pipe__echo"]);
    for _ in 0..4 {
        // Through both workers.
        let mut all = all.again();
        assert_eq!(all.call("f__echo", r#"{"payload":"x"}"#).said(), "x");
        assert_eq!(all.call("o__echo", r#"{"payload":"x"}"#).said(), "x");
    }
    all.ask("resources/read", r#"{"uri":"stub://f/fixed"}"#).result();
    // Each client's list is its own, and cut to its rights.
    let mut reader = Client::connect_as(proxy.addr, READER);
    assert_eq!(reader.names("tools/list"), ["f__echo", "f__stats"]);
    assert_eq!(reader.names("resources/list"), ["stub://f/fixed"]);
    assert_eq!(reader.call("f__echo", r#"{"payload":"y"}"#).said(), "y");
    assert_eq!(reader.call("f__rich", "{}").error().1, "Unknown tool: f__rich");
    // A token that the backend does not take costs its bearer that backend alone; and the
    // administrator's leaves the proxy for nobody.
    for token in [OTHER, ADMIN] {
        let mut stranger = Client::connect_as(proxy.addr, token);
        let names = stranger.names("tools/list");
        assert!(names.contains(&"o__echo".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with("f__")), "{names:?}");
        assert_eq!(stranger.call("f__echo", "{}").error().0, -32010);
        assert_eq!(stranger.call("o__echo", r#"{"payload":"z"}"#).said(), "z");
    }
    // It is there, whoever may ask it.
    assert!(!proxy.stderr().contains("backend is not up"), "{}", proxy.stderr());
    assert_eq!(all.delete().status, 200);
    ours.wait_count(&format!("authorization DELETE Bearer {ALL}"), 1);
    let seen = ours.lines().join("\n");
    assert!(seen.contains(&format!("authorization POST Bearer {READER}")), "{seen}");
    assert!(!seen.contains(ADMIN) && !seen.contains("a-token-of-the-proxy"), "{seen}");
    let shown: Vec<String> =
        others.lines().into_iter().filter(|line| line.starts_with("authorization")).collect();
    assert!(!shown.is_empty());
    for line in shown {
        assert!(line.ends_with(" Bearer a-token-of-the-proxy"), "{line}");
    }
}

fn caller(proxy: &Proxy, token: &str) -> Caller {
    let mut caller = Caller::new(proxy);
    caller.extra = bearer(token);
    caller
}

#[test]
fn requests_without_a_session_have_the_same_rights() {
    let web = HttpStub::start("a", &["--modern", "--ttl", "60000", "--public"]);
    let backends = [web.backend("a"), stdio_backend("b", &[])].concat();
    let proxy = Setup { backends, proxy: AUTH.to_owned(), ..Setup::default() }.start();
    for extra in [String::new(), bearer("wrong")] {
        let mut stranger = Caller::new(&proxy);
        stranger.extra = extra;
        let body = stranger.body("tools/list", "");
        stranger.send(&crate::modern::lines("tools/list", ""), &body);
        assert_eq!(stranger.told().status, 401);
    }
    Client::connect_as(proxy.addr, ALL).wait_for_tools(&["a__echo", "b__echo"]);
    let (mut all, mut reader) = (caller(&proxy, ALL), caller(&proxy, READER));
    let list = reader.ask("tools/list", "").result();
    assert_eq!(names(&list, "tools"), ["a__echo", "a__stats"]);
    // Whatever its parts say, it is for nobody else.
    assert_eq!(list["cacheScope"], "private");
    assert_eq!(all.ask("tools/list", "").result()["cacheScope"], "private");
    assert_eq!(reader.ask("prompts/list", "").result()["prompts"], serde_json::json!([]));
    let resources = reader.ask("resources/list", "").result();
    assert_eq!(resources["resources"].as_array().unwrap().len(), 1, "{resources}");
    let hello = reader.ask("server/discover", "").result();
    assert_eq!(hello["cacheScope"], "private");
    let told = hello["instructions"].as_str().expect("instructions");
    assert!(told.contains("of a.") && !told.contains("of b."), "{told}");
    assert_eq!(reader.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    let read = reader.read("stub://a/fixed").result();
    assert_eq!(read["cacheScope"], "private", "{read}");

    // What is denied and what never was are answered alike; also where arguments have to be
    // repeated in the head.
    for name in ["b__echo", "a__rich", "a__nothing", "c__echo", "a__region"] {
        let told = reader.call(name, r#"{"region":"x"}"#);
        assert_eq!((told.status, told.error()), (400, (-32602, format!("Unknown tool: {name}"))));
    }
    let denied = reader.read("stub://b/fixed");
    let unknown = reader.read("stub://c/fixed");
    assert_eq!((denied.status, denied.error().0), (unknown.status, unknown.error().0));
    let prompts = names(&all.ask("prompts/list", "").result(), "prompts");
    let complete = |caller: &mut Caller, reference: &str| {
        let argument = r#""argument":{"name":"x","value":"y"}"#;
        caller.ask("completion/complete", &format!(r#""ref":{reference},{argument}"#))
    };
    for name in [prompts[0].as_str(), "a__no_such_prompt"] {
        let told = reader.ask_about("prompts/get", name, &format!(r#""name":{}"#, quote(name)));
        assert_eq!(told.error(), (-32602, format!("Unknown prompt: {name}")));
        let reference = format!(r#"{{"type":"ref/prompt","name":{}}}"#, quote(name));
        let told = complete(&mut reader, &reference);
        assert_eq!(told.error(), (-32602, format!("Unknown prompt: {name}")));
    }
    let template = |backend: &str| {
        format!(r#"{{"type":"ref/resource","uri":"stub://{backend}/item/{{id}}"}}"#)
    };
    complete(&mut reader, &template("a")).result();
    let (denied, unknown) =
        (complete(&mut reader, &template("b")), complete(&mut reader, &template("c")));
    assert_eq!((denied.status, denied.error().0), (unknown.status, unknown.error().0));

    // One hears of no resource that one may not read.
    let mut most = caller(&proxy, DENIED);
    let uris = r#"{"resourceSubscriptions":["stub://a/fixed"]}"#;
    assert_eq!(reader.listen(uris).0["resourceSubscriptions"][0], "stub://a/fixed");
    assert_eq!(most.listen(uris).0["resourceSubscriptions"][0], "stub://a/fixed");
    let nobody = caller(&proxy, NOTHING);
    assert_eq!(nobody.listen(uris).0.get("resourceSubscriptions"), None);
    assert_eq!(most.call("a__hang", "{}").error().0, -32602);
}

#[test]
fn a_forwarded_token_goes_to_its_backend_in_either_era() {
    let scratch = scratch();
    let journals = ["old", "new", "others"].map(|name| Journal::new(&scratch, name));
    let args = |journal: usize, more: &[&'static str]| -> Vec<String> {
        let own = ["--journal", journals[journal].path()];
        own.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let start = |name: &str, args: Vec<String>| {
        HttpStub::start(name, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let tokens = ["--token", ALL, "--token", READER];
    let old = start("old", args(0, &tokens));
    let new = start("new", args(1, &[&tokens[..], &["--modern"]].concat()));
    let other = start("o", args(2, &["--token", "a-token-of-the-proxy"]));
    let backends = [
        old.backend("old") + "forward_auth = true\n",
        new.backend("new") + "forward_auth = true\nprotocol = \"modern\"\n",
        other.backend("o") + "bearer_token = \"a-token-of-the-proxy\"\n",
    ]
    .concat();
    let auth = AUTH.replace("\"a__echo\"", "\"*__echo\"");
    let auth = auth.replace("deny_tools = [\"b__*\"]", "");
    let proxy = Setup { backends, proxy: auth, ..Setup::default() }.start();
    let mut session = Client::connect_as(proxy.addr, ALL);
    session.wait_for_tools(&["old__echo", "new__echo", "o__echo"]);
    for tool in ["old__echo", "new__echo", "o__echo"] {
        assert_eq!(session.call(tool, r#"{"payload":"x"}"#).said(), "x");
        for token in [ALL, READER] {
            let mut caller = caller(&proxy, token);
            assert_eq!(caller.call(tool, r#"{"payload":"x"}"#).said(), "x", "{tool} {token}");
        }
    }
    let list = caller(&proxy, READER).ask("tools/list", "").result();
    assert_eq!(list["cacheScope"], "private");
    let mut seen = names(&list, "tools");
    seen.sort();
    assert_eq!(seen, ["new__echo", "o__echo", "old__echo"]);
    // A token that these backends do not take costs its bearer them alone.
    for token in [OTHER, ADMIN] {
        let mut stranger = caller(&proxy, token);
        let seen = names(&stranger.ask("tools/list", "").result(), "tools");
        assert!(seen.iter().all(|name| !name.starts_with("old") && !name.starts_with("new")));
        for tool in ["old__echo", "new__echo"] {
            assert!(!stranger.call(tool, "{}").json()["error"].is_null());
        }
        assert_eq!(stranger.call("o__echo", r#"{"payload":"z"}"#).said(), "z");
    }
    for journal in &journals[..2] {
        let seen = journal.lines().join(
            "
",
        );
        assert!(seen.contains(&format!("authorization POST Bearer {READER}")), "{seen}");
        assert!(!seen.contains(ADMIN) && !seen.contains("a-token-of-the-proxy"), "{seen}");
    }
    // No two principals share a session there: each has begun its own.
    let opened = journals[0].lines();
    assert!(opened.iter().filter(|line| line.starts_with("initialize")).count() >= 2, "{opened:?}");
    for line in journals[2].lines().iter().filter(|line| line.starts_with("authorization")) {
        assert!(line.ends_with(" Bearer a-token-of-the-proxy"), "{line}");
    }
}

/// What such a tool says of itself stands in the list that its caller sees, and there alone.
#[test]
fn annotations_decide_about_tools_that_each_client_sees_for_itself() {
    let scratch = scratch();
    let journals = ["old", "new", "more"].map(|name| Journal::new(&scratch, name));
    let start = |at: usize, more: &[&'static str]| {
        let args =
            [&["--annotated", "--token", ALL, "--journal"][..], &[journals[at].path()], more];
        HttpStub::start(["old", "new", "more"][at], &args.concat())
    };
    let stubs = [start(0, &[]), start(1, &["--modern"]), start(2, &[])];
    let keys = "forward_auth = true\nhide_destructive = true\n";
    let alias = "[[backends.aliases]]\nfrom = \"reads\"\nto = \"look\"\n";
    let backends = [
        stubs[0].backend("old") + keys + alias,
        stubs[1].backend("new") + keys + "protocol = \"modern\"\n" + alias,
        stubs[2].backend("more") + "forward_auth = true\nread_only_only = true\n" + alias,
    ];
    let auth = AUTH.replace("deny_tools = [\"b__*\"]", "");
    let proxy = Setup { backends: backends.concat(), proxy: auth, ..Setup::default() }.start();
    let mut session = Client::connect_as(proxy.addr, ALL);
    session.wait_for_tools(&["old__look", "new__look", "more__look"]);
    let mut caller = caller(&proxy, ALL);
    for (backend, may_add) in [("old", true), ("new", true), ("more", false)] {
        for (tool, shown) in [
            ("look", true),
            ("adds", may_add),
            ("reads", false),
            ("writes", false),
            ("sets", false),
            ("echo", false),
            ("nothing", false),
        ] {
            let name = format!("{backend}__{tool}");
            assert_eq!(session.names("tools/list").contains(&name), shown, "{name}");
            // Through both workers, in turn.
            session = session.again();
            let told = session.call(&name, "{}");
            let answer = caller.call(&name, "{}");
            if shown {
                assert!(told.said().contains("arguments"), "{told:?}");
                assert!(answer.said().contains("arguments"), "{answer:?}");
                continue;
            }
            let hidden = (-32602, format!("Unknown tool: {name}"));
            assert_eq!(told.error(), hidden);
            assert_eq!(answer.error(), hidden);
        }
    }
    for journal in &journals {
        for tool in ["writes", "sets"] {
            assert_eq!(journal.count(&format!("call {tool}")), 0);
        }
    }
    // Whose list cannot be read is told so, not that there is no such tool.
    let mut stranger = Client::connect_as(proxy.addr, OTHER);
    assert_eq!(stranger.call("old__look", "{}").error().0, -32010);
}

#[test]
fn the_proxys_own_tools_are_for_administrators() {
    let setup =
        |proxy: &str| Setup { admin_tools: Some("read"), proxy: proxy.into(), ..Setup::default() };
    let closed = setup(AUTH).start();
    for (token, count) in [(ALL, 0), (READER, 0), (ADMIN, 4)] {
        let mut client = Client::connect_as(closed.addr, token);
        assert_eq!(client.names("tools/list").len(), count, "{token}");
        let mut caller = caller(&closed, token);
        assert_eq!(names(&caller.ask("tools/list", "").result(), "tools").len(), count);
        let hello = caller.ask("server/discover", "").result();
        assert_eq!(hello["capabilities"]["tools"].is_object(), count > 0, "{hello}");
        for told in [client.call("proxy__config", "{}"), caller.call("proxy__config", "{}")] {
            match count {
                0 => assert_eq!(told.error(), (-32602, "Unknown tool: proxy__config".into())),
                _ => assert!(told.said().contains("[auth]")),
            }
        }
    }
    // With the administrator's token alone they are his alone too.
    let alone = setup(&format!("[security]\nadmin_token = \"{ADMIN}\"\n")).start();
    let mut client = Client::connect(alone.addr);
    assert_eq!(client.names("tools/list").len(), 0);
    client.extra = bearer(ADMIN);
    assert_eq!(client.names("tools/list").len(), 4);
}

#[test]
fn the_audit_log_names_principals_and_counts_who_is_turned_away() {
    let scratch = scratch();
    let file = scratch.path().join("audit.log");
    let audit =
        format!("{AUTH}[observability]\naudit = {{ path = {} }}\n", quote(file.to_str().unwrap()));
    let proxy = Setup { backends: stdio_backend("a", &[]), proxy: audit, ..Setup::default() };
    let proxy = proxy.start();
    let mut reader = Client::connect_as(proxy.addr, READER);
    reader.wait_for_tools(&["a__echo"]);
    reader.call("a__rich", "{}").error();
    caller(&proxy, READER).call("a__rich", "{}").error();
    assert_eq!(post(&proxy, "/mcp", "", &message("1", "ping", "{}")).status, 401);
    assert_eq!(post(&proxy, "/mcp", &bearer("wrong"), &message("1", "ping", "{}")).status, 401);
    let mut found = Vec::new();
    wait_until("the lines", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        found = whole.lines().map(|l| serde_json::from_str::<Value>(l).expect(l)).collect();
        let denied = |line: &&Value| line["outcome"] == "denied";
        found.iter().filter(denied).count() == 4
    });
    let rich: Vec<&Value> = found.iter().filter(|line| line["target"] == "a__rich").collect();
    assert_eq!(rich.len(), 2, "{found:#?}");
    assert!(rich.iter().all(|line| line["principal"] == "reader" && line["outcome"] == "denied"));
    let strangers = found.iter().filter(|line| line["principal"].is_null());
    assert_eq!(strangers.filter(|line| line["outcome"] == "denied").count(), 2, "{found:#?}");
    let metrics = once(proxy.addr, "GET", "/admin/metrics", &bearer(ADMIN));
    assert!(metrics.text().contains("reason=\"auth\""), "{}", metrics.text());
    let sessions = once(proxy.addr, "GET", "/admin/sessions", &bearer(ADMIN)).json();
    assert_eq!(sessions[0]["principal"], "reader", "{sessions}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(![READER, "wrong"].iter().any(|token| text.contains(token)), "{text}");
}

/// Everything that the binary says, in any way, with every kind of secret in its configuration.
#[test]
fn secrets_are_never_printed() {
    const SECRETS: [&str; 10] = [
        "s3cret-of-the-collector",
        "s3cret-token-of-all",
        "s3cret-token-scoped",
        "s3cret-admin-token",
        "s3cret-backend-token",
        "s3cret-header-value",
        "s3cret-environment",
        "s3cret-from-file",
        "s3cret-from-variable",
        "s3cret-in-the-url",
    ];
    let scratch = scratch();
    std::fs::write(scratch.path().join("secret"), "s3cret-from-file\n").unwrap();
    let stub = HttpStub::start("web", &[]);
    let collector = Collector::start();
    let config = |more: &str| {
        format!(
            r#"[proxy]
name = "p"
workers = 2
{more}
[observability]
audit = {{ include_arguments = true }}
[observability.access_log]
enabled = true
[observability.tracing]
enabled = true
endpoint = "http://{}"
headers = {{ X-Team = "research", X-Api-Key = "s3cret-of-the-collector" }}
[auth]
type = "bearer"
tokens = ["s3cret-token-of-all", "file:secret", "${{MCP_PROXY_TEST_SECRET}}"]
[[auth.scoped_tokens]]
token = "s3cret-token-scoped"
name = "scoped"
[security]
admin_token = "s3cret-admin-token"
[[backends]]
name = "web"
transport = "http"
url = "http://{}/mcp"
bearer_token = "s3cret-backend-token"
headers = {{ X-Key = "s3cret-header-value" }}
[[backends]]
name = "gone"
transport = "http"
url = "http://127.0.0.1:1/mcp?key=s3cret-in-the-url"
[[backends]]
name = "pipe"
transport = "stdio"
command = {}
args = ["--name", "pipe"]
env = {{ KEY = "s3cret-environment" }}
"#,
            collector.addr,
            stub.addr,
            quote(crate::support::process::stub_path()),
        )
    };
    let file = scratch.path().join("proxy.toml");
    let silent = |what: &str, said: &str| {
        for secret in SECRETS {
            assert!(!said.contains(secret), "{what} says {secret}:\n{said}");
        }
    };
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_mcp-proxy"))
            .arg("-c")
            .arg(&file)
            .args(args)
            .env("MCP_PROXY_TEST_SECRET", "s3cret-from-variable")
            .output()
            .expect("run");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    std::fs::write(&file, config("")).unwrap();
    let (well, said) = run(&["--check"]);
    assert!(well, "{said}");
    silent("--check", &said);
    // Faults and warnings beside every secret, and in the secrets themselves.
    let spoilt =
        config("nonsense = 1").replace("s3cret-", "s3cret- ").replace("s3cret- in", "s3cret-in");
    std::fs::write(&file, spoilt).unwrap();
    let (well, said) = run(&["--check"]);
    assert!(!well && said.contains("tokens[0]"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    // A quote that is not closed makes a name of all that follows.
    let unclosed = config("").replace("name = \"web\"", "name = \"\"\"web\"");
    std::fs::write(&file, unclosed).unwrap();
    let (well, said) = run(&["--check"]);
    assert!(!well && said.contains("backends[0].name: found \"web"), "{said}");
    silent("--check of an unclosed quote", &said);

    // Running, at its most talkative.
    let plain = config("").replace("${MCP_PROXY_TEST_SECRET}", "s3cret-from-variable");
    std::fs::write(&file, plain).unwrap();
    let proxy = Proxy::start_file(&file, &["--log-level".into(), "trace".into()]);
    for token in ["s3cret-token-of-all", "s3cret-from-file", "s3cret-from-variable"] {
        let mut client = Client::connect_as(proxy.addr, token);
        client.wait_for_tools(&["web__echo", "pipe__echo"]);
        client.call("web__echo", r#"{"payload":"x"}"#).said();
        client.call("gone__x", "{}").error();
        silent("an answer", &client.call("nothing", "{}").text);
    }
    let mut scoped = Client::connect_as(proxy.addr, "s3cret-token-scoped");
    scoped.names("tools/list");
    for line in ["s3cret-token-of-al", "s3cret-token-scoped "] {
        let answer = post(&proxy, "/mcp", &bearer(line), "{}");
        silent("a refusal", answer.text());
    }
    let lines = bearer("s3cret-admin-token");
    let description = once(proxy.addr, "GET", "/admin/openapi.json", &lines).json();
    let paths = description["paths"].as_object().expect("paths");
    assert!(paths.len() >= 8, "{description}");
    for (path, operations) in paths {
        for method in operations.as_object().expect("operations").keys() {
            let answer = once(proxy.addr, &method.to_ascii_uppercase(), path, &lines);
            silent(path, answer.text());
        }
    }
    let shown = once(proxy.addr, "GET", "/admin/config", &lines);
    assert!(shown.text().contains("***"), "{}", shown.text());
    let metrics = once(proxy.addr, "GET", "/admin/metrics", &lines);
    assert!(metrics.text().contains("mcp_proxy_requests_total"), "{}", metrics.text());
    let mut admin = Client::connect_as(proxy.addr, "s3cret-admin-token");
    for tool in admin.names("tools/list") {
        silent(&tool, &admin.call(&tool, "{}").text);
    }
    // Spans are there, and are told in clear text.
    let spans = || {
        let requests = collector.requests.lock().unwrap();
        requests.iter().map(|span| String::from_utf8_lossy(span).into_owned()).collect::<String>()
    };
    wait_until("spans", || spans().contains("tools/call gone__x"));
    silent("a span", &spans());
    wait_until("a word about the backend that is gone", || proxy.stderr().contains("gone"));
    silent("stdout", &proxy.stdout());
    silent("stderr", &proxy.stderr());
}
