//! The audit log: exactly one line for each MCP message, whatever becomes of it; the access log.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::metrics::Page;
use crate::modern::Caller;
use crate::support::client::{ACCEPT, Client, JSON, message};
use crate::support::http::{once, once_with};
use crate::support::process::{HttpStub, Proxy, Setup, free_port, http_backend, scratch};
use crate::support::{quote, wait_for, wait_until};

const KEYS: [&str; 17] = [
    "ts",
    "request_id",
    "client",
    "principal",
    "session",
    "era",
    "method",
    "target",
    "backend",
    "own_name",
    "outcome",
    "code",
    "duration_ms",
    "attempts",
    "cache",
    "bytes_in",
    "bytes_out",
];

struct Audit {
    file: PathBuf,
    seen: usize,
}

impl Audit {
    /// The next `count` lines; there must be no more than that.
    fn next(&mut self, count: usize) -> Vec<Value> {
        let lines = wait_for(&format!("{count} more lines"), || {
            let lines = lines(&self.file);
            (lines.len() >= self.seen + count).then_some(lines)
        });
        let new = lines[self.seen..].to_vec();
        assert_eq!(new.len(), count, "{new:#?}");
        self.seen += count;
        new
    }

    fn one(&mut self) -> Value {
        self.next(1).remove(0)
    }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn start(keys: &str, backends: String) -> (Proxy, Audit, tempfile::TempDir) {
    let scratch = scratch();
    let file = scratch.path().join("audit.log");
    let path = quote(file.to_str().unwrap());
    let proxy = format!("[observability]\naudit = {{ path = {path}{keys} }}\n");
    let proxy = Setup { backends, proxy, ..Setup::default() }.start();
    (proxy, Audit { file, seen: 0 }, scratch)
}

/// Waits for the tools without counting how often it asked.
fn ready(proxy: &Proxy, audit: &mut Audit, tools: &[&str]) -> Client {
    proxy.client_seeing(tools);
    let mut client = proxy.client();
    // Lines of one worker come in their order, and this connection stays with one.
    let id = client.fresh_id();
    client.post(&message(&format!("\"mark{id}\""), "ping", "{}"));
    let mark = format!("mark{id}");
    wait_until("the mark", || lines(&audit.file).iter().any(|line| line["request_id"] == *mark));
    // The other worker's lines may be a tick late.
    std::thread::sleep(std::time::Duration::from_millis(200));
    audit.seen = lines(&audit.file).len();
    client
}

#[test]
fn every_message_has_exactly_one_line() {
    let web = HttpStub::start("web", &["--annotated"]);
    let dead = http_backend("dead", format!("127.0.0.1:{}", free_port()).parse().unwrap());
    let keys = "hide_tools = [\"rich\"]\n[[backends.aliases]]\nfrom = \"add\"\nto = \"plus\"\n";
    let (proxy, mut audit, _scratch) = start("", web.backend("web") + keys + &dead);
    let mut client = ready(&proxy, &mut audit, &["web__echo", "web__reads"]);

    client.call("web__echo", r#"{"payload":"private"}"#).said();
    let line = audit.one();
    let found: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, KEYS);
    let expected = json!({
        "principal": null, "era": "legacy", "method": "tools/call", "target": "web__echo",
        "backend": "web", "own_name": "echo", "outcome": "ok", "code": null, "attempts": 1,
        "cache": null,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(line[key], *value, "{key}: {line}");
    }
    assert!(line["ts"].as_str().unwrap().ends_with('Z'));
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(line["duration_ms"].as_f64().unwrap() > 0.0);
    assert!(line["bytes_in"].as_u64().unwrap() > 50 && line["bytes_out"].as_u64().unwrap() > 50);
    assert!(line["request_id"].is_u64());
    let session = line["session"].as_str().unwrap().to_owned();
    assert_eq!(session.len(), 16);
    assert!(!client.session.contains(&session));

    // Aliases, tool errors, errors of a backend, of the proxy, hidden and unknown names.
    for (tool, arguments, outcome, code, own) in [
        ("web__plus", r#"{"a":1,"b":2}"#, "ok", None, Some("add")),
        (
            "web__reads",
            r#"{"key":"a","fails":1,"how":"is_error"}"#,
            "tool_error",
            None,
            Some("reads"),
        ),
        (
            "web__reads",
            r#"{"key":"b","fails":1,"how":"params"}"#,
            "error",
            Some(-32602),
            Some("reads"),
        ),
        ("web__rich", "{}", "denied", Some(-32602), None),
        ("nobody__x", "{}", "error", Some(-32602), None),
        ("dead__x", "{}", "error", Some(-32010), Some("x")),
    ] {
        client.call(tool, arguments);
        let line = audit.one();
        assert_eq!((&line["outcome"], &line["code"]), (&json!(outcome), &json!(code)), "{line}");
        assert_eq!((&line["target"], &line["own_name"]), (&json!(tool), &json!(own)), "{line}");
        assert_eq!(line["session"], session, "{line}");
    }

    // Notifications, unknown methods, ids as they are.
    client.notify("notifications/cancelled", r#"{"requestId":1}"#);
    let line = audit.one();
    assert_eq!((&line["outcome"], &line["request_id"]), (&json!("ok"), &Value::Null));
    client.post(&message("\"a\\\"b\"", "no/such", "{}"));
    let line = audit.one();
    assert_eq!((&line["outcome"], &line["request_id"]), (&json!("error"), &json!("a\"b")));
    assert_eq!(line["method"], "no/such");

    // Bodies that are none, and requests refused before anybody reads one.
    let ping = message("1", "ping", "{}");
    let full = format!("{ACCEPT}{JSON}");
    for (lines, body, outcome, code) in [
        (full.clone(), "{nonsense", "refused", -32700),
        (full.clone(), "[1]", "refused", -32600),
        (full.clone(), ping.as_str(), "refused", -32600),
        (format!("{full}Mcp-Session-Id: nonsense\r\n"), &ping, "refused", -32001),
        (format!("{full}Origin: http://evil.example\r\n"), &ping, "denied", -32600),
        (JSON.to_owned(), &ping, "refused", -32600),
    ] {
        let status = once_with(proxy.addr, "POST", "/mcp", &lines, body).status;
        let line = audit.one();
        assert!(status >= 400, "{status} {line}");
        assert_eq!((&line["outcome"], &line["code"]), (&json!(outcome), &json!(code)), "{line}");
        assert_eq!(line["session"], Value::Null);
    }
    // What is no message has no line.
    once(proxy.addr, "GET", "/readyz", "");
    once(proxy.addr, "GET", "/nothing", "");
    client.delete();
    client.notify_gone();
    let line = audit.one();
    assert_eq!(line["code"], -32001, "{line}");

    // Each message of an array has its own.
    let mut old = Client::connect_at(proxy.addr, "2025-03-26");
    audit.next(2);
    let batch = format!(
        "[{},{},{}]",
        message("1", "ping", "{}"),
        r#"{"jsonrpc":"2.0","method":"notifications/nothing"}"#,
        message("2", "tools/call", r#"{"name":"web__echo","arguments":{"payload":"p"}}"#),
    );
    assert_eq!(old.post(&batch).status, 200);
    let mut methods: Vec<Value> = audit.next(3).into_iter().map(|l| l["method"].clone()).collect();
    methods.sort_by_key(|method| method.to_string());
    assert_eq!(methods, ["notifications/nothing", "ping", "tools/call"]);

    let text = std::fs::read_to_string(&audit.file).unwrap();
    assert!(!text.contains("private"), "arguments are not asked for");
    assert!(!text.contains(&client.session) && !text.contains(&old.session));
}

#[test]
fn requests_about_tasks_name_the_backend_that_has_them() {
    let stub = HttpStub::start("web", &["--modern", "--tasks"]);
    let (proxy, mut audit, _scratch) = start("", stub.backend("web"));
    ready(&proxy, &mut audit, &["web__job"]);
    let mut caller = Caller::new(&proxy);
    caller.capabilities = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#.into();
    let job = json!({ "id": "t" }).to_string();
    assert_eq!(caller.call("web__job", &job).result()["taskId"], "web__t");
    let line = audit.one();
    assert_eq!((&line["backend"], &line["outcome"]), (&json!("web"), &json!("ok")), "{line}");
    for (what, task, backend, outcome, code) in [
        ("get", "web__t", Some("web"), "ok", None),
        ("update", "web__t", Some("web"), "ok", None),
        ("cancel", "web__t", Some("web"), "ok", None),
        ("get", "web__u", Some("web"), "error", Some(-32602)),
        ("get", "nobody__t", None, "error", Some(-32602)),
    ] {
        let method = format!("tasks/{what}");
        caller.ask_about(&method, task, &format!(r#""taskId":"{task}""#));
        let line = audit.one();
        assert_eq!((&line["method"], &line["era"]), (&json!(method), &json!("modern")), "{line}");
        assert_eq!(line["backend"], json!(backend), "{line}");
        assert_eq!((&line["outcome"], &line["code"]), (&json!(outcome), &json!(code)), "{line}");
    }
    let labels = [("backend", "web"), ("method", "tasks/update"), ("status", "ok")];
    wait_until("its count", || Page::of(&proxy).get("mcp_proxy_requests_total", &labels) == 1.0);
}

#[test]
fn a_client_that_leaves_has_its_line_too() {
    let web = HttpStub::start("web", &[]);
    let keys = "timeout = { seconds = 1 }\n";
    let (proxy, mut audit, _scratch) = start("", web.backend("web") + keys);
    let mut client = ready(&proxy, &mut audit, &["web__hang"]);
    client.send(&message("5", "tools/call", r#"{"name":"web__hang","arguments":{}}"#));
    drop(client);
    let line = audit.one();
    assert_eq!(
        (&line["target"], &line["outcome"]),
        (&json!("web__hang"), &json!("error")),
        "{line}"
    );
}

#[test]
fn arguments_on_request_and_the_file_is_reopened() {
    let web = HttpStub::start("web", &[]);
    let (proxy, mut audit, _scratch) = start(", include_arguments = true", web.backend("web"));
    let mut client = ready(&proxy, &mut audit, &["web__echo"]);
    // Line breaks between tokens must not break the line.
    client.call("web__echo", "{\n \"payload\": \"a\\nb\"\r\n}").said();
    assert_eq!(audit.one()["arguments"], json!({ "payload": "a\nb" }));
    client.ask("ping", "{}").result();
    assert_eq!(audit.one()["arguments"], Value::Null);
    let moved = audit.file.with_extension("old");
    std::fs::rename(&audit.file, &moved).unwrap();
    proxy.signal("USR1");
    wait_until("the new file", || audit.file.exists());
    let kept = lines(&moved).len();
    assert_eq!(kept, audit.seen);
    client.ask("ping", "{}").result();
    audit.seen = 0;
    assert_eq!(audit.one()["method"], "ping");
    assert_eq!(lines(&moved).len(), kept);
}

#[test]
fn a_full_disk_changes_no_answer_and_is_counted() {
    let web = HttpStub::start("web", &[]);
    let proxy = Setup {
        backends: web.backend("web"),
        proxy: "[observability]\naudit = { path = \"/dev/full\" }\n".into(),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["web__echo"]);
    for _ in 0..200 {
        assert_eq!(client.call("web__echo", r#"{"payload":"x"}"#).said(), "x");
    }
    wait_until("the loss to be counted", || {
        Page::of(&proxy).get("mcp_proxy_telemetry_lost_total", &[("what", "line")]) >= 200.0
    });
    assert!(proxy.stderr().contains("log lines cannot be written"), "{}", proxy.stderr());
    // An audit log with gaps is no good health.
    let health = once(proxy.addr, "GET", "/admin/health", "").json();
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(health["telemetry"]["lost"].as_u64().unwrap() >= 200, "{health}");
    let error = health["telemetry"]["last_error"].as_str().unwrap();
    assert!(error.starts_with("/dev/full: "), "{error}");
}

#[test]
fn a_log_that_cannot_be_opened_is_told_at_the_start() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let text =
        "[proxy]\nname = \"p\"\n[observability]\naudit = { path = \"no/such/folder/log\" }\n";
    std::fs::write(&file, text).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mcp-proxy"))
        .args(["-c", file.to_str().unwrap(), "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot open") && said.contains("no/such/folder/log"), "{said}");
}

#[test]
fn the_access_log_has_every_request_and_the_audit_log_can_go_to_stderr() {
    let web = HttpStub::start("web", &[]);
    let proxy = Setup {
        backends: web.backend("web"),
        proxy: "[observability]\naudit = true\njson_logs = true\n\
                [observability.access_log]\nenabled = true\n"
            .into(),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["web__echo"]);
    client.call("web__echo", "{}").said();
    once(proxy.addr, "GET", "/nothing?secret=1", "");
    once_with(proxy.addr, "POST", "/admin/reload", "", "0123456789");
    wait_until("the lines", || {
        let said = proxy.stderr();
        let page =
            |line: &str| line.contains("/admin/reload") && line.contains(r#""bytes_in":10,"#);
        said.lines().any(page)
            && said.contains(r#""path":"/nothing","status":404"#)
            && said.contains(r#""target":"web__echo""#)
            && said.contains(r#""http_method":"POST","path":"/mcp","status":200"#)
    });
    let said = proxy.stderr();
    assert!(!said.contains("secret=1"));
    let readme = include_str!("../README.md");
    let fields = readme.split("- The access log has").nth(1).expect("its fields");
    let fields = fields.split("\n- ").next().expect("their end");
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for (name, _) in
            line.as_object().filter(|line| line.contains_key("path")).into_iter().flatten()
        {
            assert!(fields.contains(&format!("`{name}`")), "README.md says nothing of {name}");
        }
    }
}

#[test]
fn a_call_that_outlives_its_exchange_has_its_line_at_its_end() {
    let web = HttpStub::start("web", &["--polling"]);
    let (proxy, mut audit, _scratch) = start("", web.backend("web"));
    let mut client = ready(&proxy, &mut audit, &["web__poll"]);
    for (arguments, outcome, code) in
        [(r#"{"rounds":2}"#, "ok", json!(null)), (r#"{"lost":true}"#, "error", json!(-32010))]
    {
        let id = client.fresh_id();
        let params = format!(r#"{{"name":"web__poll","arguments":{arguments}}}"#);
        client.send(&message(&id.to_string(), "tools/call", &params));
        let head = client.conn.head();
        assert!(head.is_event_stream(), "{head:?}");
        client.conn.body();
        let line = audit.one();
        let found = (&line["request_id"], &line["outcome"], &line["code"], &line["own_name"]);
        assert_eq!(found, (&json!(id), &json!(outcome), &code, &json!("poll")));
    }
}
