//! Another configuration without a stop: SIGHUP, what goes on, what comes, what leaves, what is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::metrics::Page;
use crate::support::client::{Client, call_params, message};
use crate::support::http;
use crate::support::process::{HttpStub, Journal, Proxy, Setup, scratch, stdio_backend};
use crate::support::{DEADLINE, wait_for, wait_until};

/// How many reloads have been applied and refused.
fn reloads(proxy: &Proxy) -> (u64, u64) {
    let text = String::from_utf8(http::once(proxy.addr, "GET", "/admin/metrics", "").body).unwrap();
    let of = |result: &str| {
        let line = format!("mcp_proxy_config_reloads_total{{result=\"{result}\"}} ");
        let count = text.lines().find_map(|l| l.strip_prefix(&line));
        count.unwrap_or_else(|| panic!("no {line}: {text}")).parse().unwrap()
    };
    (of("applied"), of("refused"))
}

/// Puts this in force.
pub(crate) fn reload(proxy: &Proxy, proxy_lines: &str, backends: &[String]) {
    let (before, refused) = reloads(proxy);
    proxy.rewrite(proxy_lines, &backends.concat());
    proxy.signal("HUP");
    wait_until("the reload", || {
        let now = reloads(proxy);
        assert_eq!(now.1, refused, "refused:\n{}", proxy.stderr());
        now.0 > before
    });
}

/// The same where only an administrator with a token sees metrics.
pub(crate) fn reload_unseen(proxy: &Proxy, proxy_lines: &str, backends: &[String]) {
    let count = || proxy.stderr().matches("configuration reloaded").count();
    proxy.rewrite(proxy_lines, &backends.concat());
    let before = count();
    proxy.signal("HUP");
    wait_until("the reload", || count() > before);
}

/// Tries to, in vain.
fn refused(proxy: &Proxy, text: &str) {
    let (applied, before) = reloads(proxy);
    proxy.rewrite_whole(text);
    proxy.signal("HUP");
    wait_until("the refusal", || reloads(proxy).1 > before);
    assert_eq!(reloads(proxy).0, applied);
}

fn unknown(client: &mut Client, tool: &str) {
    let (code, text) = client.call(tool, "{}").error();
    assert_eq!((code, text), (-32602, format!("Unknown tool: {tool}")));
}

#[test]
fn backends_come_and_go_and_the_others_go_on() {
    let scratch = scratch();
    let (child, other) = (Journal::new(&scratch, "child"), Journal::new(&scratch, "other"));
    let stub = HttpStub::start("web", &[]);
    let pipe = stdio_backend("pipe", &["--journal", child.path()]);
    let more = stdio_backend("more", &["--journal", other.path()]);
    let web = stub.backend("web");
    let proxy = Proxy::start(&[pipe.clone(), web.clone()]);
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.wait_for_tools(&["pipe__echo", "web__echo"]);
        unknown(client, "more__echo");
    }
    let listening = clients[0].listen();
    let pid = child.pid();

    reload(&proxy, "", &[more.clone(), pipe.clone(), web.clone()]);
    listening.wait_for("notifications/tools/list_changed");
    for client in &mut clients {
        client.wait_for_tools(&["more__echo", "pipe__echo", "web__echo"]);
        assert_eq!(client.call("more__echo", r#"{"payload":"a"}"#).said(), "a");
        assert_eq!(client.call("web__echo", r#"{"payload":"b"}"#).said(), "b");
    }
    assert_eq!(clients[0].names("tools/list")[0], "more__echo", "in the order of the file");
    let newcomer = other.life();

    // It leaves: what is under way ends as it should, then its child.
    let mut slow = clients[1].again();
    slow.send(&message("7", "tools/call", &call_params("more__sleep", r#"{"ms":1500}"#)));
    wait_until("the call", || {
        let stats = clients[0].call("more__stats", "{}").said();
        let stats: Value = serde_json::from_str(&stats).unwrap();
        stats["executions"]["sleep"] == 1
    });
    reload(&proxy, "", &[pipe.clone(), web.clone()]);
    listening.wait_for("notifications/tools/list_changed");
    for client in &mut clients {
        unknown(client, "more__echo");
        assert!(!client.names("tools/list").iter().any(|name| name.starts_with("more__")));
    }
    assert!(newcomer.goes_on(), "stopped under a call");
    let told = slow.told();
    assert_eq!((told.json()["id"].as_u64(), told.said()), (Some(7), "slept".to_owned()));
    wait_until("the end of its child", || !newcomer.goes_on());

    // The same name, reached in another way.
    let now = stub.backend("pipe");
    reload(&proxy, "", &[now, web.clone()]);
    for client in &mut clients {
        let told = client.call_until_well("pipe__stats", "{}");
        let stats: Value = serde_json::from_str(&told.said()).unwrap();
        assert_ne!(stats["pid"], pid);
    }
    wait_until("the end of the child", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!((child.count("start "), other.count("start ")), (1, 1));

    // And back: a place that was given back serves another one.
    for _ in 0..5 {
        reload(&proxy, "", std::slice::from_ref(&pipe));
        clients[0].call_until_well("pipe__echo", r#"{"payload":"c"}"#);
        unknown(&mut clients[0], "web__echo");
        reload(&proxy, "", std::slice::from_ref(&web));
        clients[0].call_until_well("web__echo", r#"{"payload":"d"}"#);
        unknown(&mut clients[0], "pipe__echo");
    }
}

#[test]
fn rules_change_and_what_is_open_stays() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "child");
    let stub = HttpStub::start("web", &["--annotated"]);
    let pipe = stdio_backend("pipe", &["--journal", journal.path()]);
    let web = stub.backend("web");
    let cache = "[backends.cache]\ntool_ttl_seconds = 600\ntools = [\"*\", \"reads\"]\n";
    let proxy = Proxy::start(&[pipe.clone(), web.clone() + cache]);
    let mut client = proxy.client_seeing(&["pipe__echo", "web__reads"]);
    let first = client.call("web__reads", r#"{"key":"a"}"#).said();
    let life = journal.life();
    let sessions = stub_sessions(&stub);
    let listening = client.listen();

    // Timeouts are no reason to forget what was kept; filters and names show at once.
    let rules = "hide_tools = [\"echo\"]\ntimeout = { seconds = 20 }\n";
    let aliased = "aliases = [{ from = \"stats\", to = \"state\" }]\nprefix = \"x\"\n";
    let later = web.clone() + aliased + cache;
    reload(&proxy, "", &[pipe.clone() + rules, later]);
    listening.wait_for("notifications/tools/list_changed");
    let names = client.names("tools/list");
    let has = |name: &str| names.iter().any(|known| known == name);
    assert!(!has("pipe__echo") && has("pipe__sleep") && has("x__state") && !has("x__stats"));
    assert!(!names.iter().any(|name| name.starts_with("web__")), "{names:?}");
    unknown(&mut client, "pipe__echo");
    unknown(&mut client, "web__reads");
    client.call("x__state", "{}").said();
    // Its rules for messages are others: what they kept before is no answer any more.
    assert_ne!(client.call("x__reads", r#"{"key":"a"}"#).said(), first);
    assert_eq!((journal.count("start "), life.goes_on()), (1, true));
    assert_eq!(stub_sessions(&stub), sessions, "no session was opened anew");

    reload(&proxy, "", &[pipe, web + cache]);
    listening.wait_for("notifications/tools/list_changed");
    assert_eq!(client.call("pipe__echo", r#"{"payload":"e"}"#).said(), "e");
    assert_eq!((journal.count("start "), life.goes_on()), (1, true));
}

fn stub_sessions(stub: &HttpStub) -> Value {
    let body = http::once(stub.addr, "GET", "/control/stats", "").body;
    let stats: Value = serde_json::from_slice(&body).expect("JSON");
    stats["executions"]["initialize"].clone()
}

#[test]
fn what_has_not_changed_keeps_its_answers_and_its_breaker() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "kept");
    let kept = stdio_backend("kept", &["--annotated", "--journal", journal.path()])
        + "[backends.cache]\ntool_ttl_seconds = 600\n";
    let failing = stdio_backend("failing", &["--annotated"])
        + "[backends.circuit_breaker]\nminimum_calls = 2\nwait_duration_seconds = 600\n";
    let limited = stdio_backend("limited", &[])
        + "[backends.rate_limit]\nrequests = 2\nperiod_seconds = 600\n";
    let proxy = Proxy::start(&[kept.clone(), failing.clone(), limited.clone()]);
    let mut client = proxy.client_seeing(&["kept__reads", "failing__reads", "limited__echo"]);
    let first = client.call("kept__reads", r#"{"key":"a"}"#).said();
    for _ in 0..2 {
        let told = client.call("failing__reads", r#"{"key":"b","fails":9,"how":"internal"}"#);
        assert_eq!(told.error().0, -32603);
        client.call("limited__echo", r#"{"payload":"x"}"#).said();
    }
    let resting = |client: &mut Client| client.call("failing__reads", r#"{"key":"c"}"#).error().0;
    let limit = |client: &mut Client| client.call("limited__echo", "{}").error().0;
    assert_eq!((resting(&mut client), limit(&mut client)), (-32013, -32011));

    // One comes in front of them, and a rule beside the breaker changes.
    let extra = stdio_backend("extra", &[]);
    let changed = failing.clone() + "[backends.timeout]\nseconds = 5\n";
    reload(&proxy, "", &[extra, kept.clone(), changed, limited.clone()]);
    for mut client in [client.again(), client.again(), proxy.client(), proxy.client()] {
        client.wait_for_tools(&["extra__echo"]);
        assert_eq!((resting(&mut client), limit(&mut client)), (-32013, -32011));
        assert_eq!(client.call("kept__reads", r#"{"key":"a"}"#).said(), first);
    }
    assert_eq!(journal.count("unsteady a "), 1);

    // Another breaker, another limit: they begin anew.
    let other = failing.replace("minimum_calls = 2", "minimum_calls = 3");
    let more = limited.replace("requests = 2", "requests = 3");
    reload(&proxy, "", &[kept, other, more]);
    client.call("failing__reads", r#"{"key":"c"}"#).said();
    client.call("limited__echo", r#"{"payload":"y"}"#).said();
}

/// Rows of a backend that had none: each holds once it is there, and no longer.
#[test]
fn rows_that_come_hold_and_rows_that_go_do_not() {
    let bare = stdio_backend("pipe", &["--annotated"]);
    let with = |row: &str| [bare.clone() + row];
    let none = [bare.clone()];
    let proxy = Proxy::start(&none);
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.wait_for_tools(&["pipe__reads"]);
    }
    let reads = |client: &mut Client| client.call("pipe__reads", r#"{"key":"a"}"#);
    let refused = |clients: &mut [Client], code: i64| {
        clients.iter_mut().all(|client| reads(client).error().0 == code)
    };
    let taken = |clients: &mut [Client]| {
        let said: BTreeSet<String> =
            clients.iter_mut().map(|client| reads(client).said()).collect();
        said.len()
    };
    reload(&proxy, "", &with("rate_limit = { requests = 2, period_seconds = 600 }\n"));
    assert_eq!(taken(&mut clients[..2]), 2);
    assert!(refused(&mut clients, -32011));
    reload(&proxy, "", &none);
    assert_eq!(taken(&mut clients), 4);

    reload(&proxy, "", &with("cache = { tool_ttl_seconds = 600 }\n"));
    let kept = reads(&mut clients[0]).said();
    for client in &mut clients {
        wait_until("what is kept, on all workers", || {
            client.call("pipe__reads", r#"{"key":"a"}"#).said() == kept
        });
    }
    reload(&proxy, "", &none);
    assert_eq!(taken(&mut clients), 4);

    let breaker = "circuit_breaker = { minimum_calls = 2, wait_duration_seconds = 600 }\n";
    reload(&proxy, "", &with(breaker));
    for client in &mut clients[..2] {
        let told = client.call("pipe__reads", r#"{"key":"b","fails":9,"how":"internal"}"#);
        assert_eq!(told.error().0, -32603);
    }
    assert!(refused(&mut clients, -32013));
    reload(&proxy, "", &none);
    assert_eq!(taken(&mut clients), 4);

    let sleep = |client: &mut Client| client.call("pipe__sleep", r#"{"ms":1500}"#);
    reload(&proxy, "", &with("timeout = { seconds = 0.3 }\n"));
    assert_eq!(sleep(&mut clients[0]).error().0, -32001);
    reload(&proxy, "", &none);
    assert_eq!(sleep(&mut clients[0]).said(), "slept");
}

#[test]
fn a_file_with_faults_changes_nothing_and_says_why() {
    let pipe = stdio_backend("pipe", &[]);
    let proxy = Proxy::start(std::slice::from_ref(&pipe));
    let mut client = proxy.client_seeing(&["pipe__echo"]);
    let health = || {
        let body = http::once(proxy.addr, "GET", "/admin/health", "").body;
        serde_json::from_slice::<Value>(&body).unwrap()["config"].clone()
    };
    assert_eq!(health()["generation"], 1);
    refused(&proxy, "[proxy]\nname = \"test\"\nhot_reload = false\nnonsense = 1\n[proxy\n");
    refused(
        &proxy,
        &format!("[proxy]\nname = \"test\"\nhot_reload = false\nseperator = \"_\"\n{pipe}"),
    );
    let error = health()["last_error"].as_str().expect("an error").to_owned();
    assert!(error.contains("proxy.toml:4:1: proxy.seperator: unknown key"), "{error}");
    assert!(error.contains("did you mean `separator`?"), "{error}");
    wait_until("word of that", || proxy.stderr().contains("the old one stays in force"));
    assert_eq!(client.call("pipe__echo", r#"{"payload":"a"}"#).said(), "a");
    assert_eq!(health()["generation"], 1);

    reload(&proxy, "", &[pipe, stdio_backend("more", &[])]);
    assert_eq!(health(), serde_json::json!({ "generation": 2, "last_error": null }));
    client.wait_for_tools(&["more__echo", "pipe__echo"]);
}

/// Limits of how a backend is reached are limits like others: they cost nobody his session.
#[test]
fn limits_of_a_backend_change_and_what_is_open_stays() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "pipe");
    let stub = HttpStub::start("web", &[]);
    let pipe = || stdio_backend("pipe", &["--journal", journal.path()]);
    let proxy = Proxy::start(&[pipe(), stub.backend("web")]);
    let mut client = proxy.client_seeing(&["pipe__echo", "web__echo"]);
    for tool in ["pipe__echo", "web__echo"] {
        client.call(tool, r#"{"payload":"x"}"#).said();
    }
    let (child, sessions) = (journal.life(), stub_sessions(&stub));
    let lines = "startup_timeout_seconds = 17\n";
    let pipe = pipe() + lines + "idle_stop_seconds = 100\nmax_children = 7\n";
    let web = stub.backend("web") + lines + "max_connections = 3\nidle_seconds = 20\n";
    reload(&proxy, "", &[pipe, web]);
    for tool in ["pipe__echo", "web__echo"] {
        assert_eq!(client.call(tool, r#"{"payload":"x"}"#).said(), "x");
    }
    assert!(child.goes_on());
    assert_eq!(stub_sessions(&stub), sessions);
}

#[test]
fn clients_hear_of_other_tools_of_the_proxys_own() {
    let stub = HttpStub::start("web", &[]);
    let mut proxy_lines = "admin_tools = \"read\"";
    let setup =
        Setup { admin_tools: Some("full"), backends: stub.backend("web"), ..Setup::default() };
    let proxy = setup.start();
    let client = proxy.client_seeing(&["web__echo"]);
    let listening = client.listen();
    // The first notice may be about the backend.
    for _ in 0..3 {
        let text = format!(
            "[proxy]\nname = \"test\"\nworkers = 2\nhot_reload = false\n{proxy_lines}\n{}",
            stub.backend("web")
        );
        let (before, _) = reloads(&proxy);
        proxy.rewrite_whole(&text);
        proxy.signal("HUP");
        wait_until("the reload", || reloads(&proxy).0 > before);
        listening.wait_for("notifications/tools/list_changed");
        proxy_lines = match proxy_lines {
            "admin_tools = \"off\"" => "admin_tools = \"full\"",
            _ => "admin_tools = \"off\"",
        };
    }
}

/// A pipe that nobody writes to hung whoever read it, and with it `/admin` and the signals.
#[test]
fn a_file_that_does_not_answer_is_refused() {
    let scratch = scratch();
    let pipe = scratch.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let pipe = pipe.to_str().unwrap();
    let stub = HttpStub::start("a", &[]);
    let mut proxy = Proxy::start(&[stub.backend("a")]);
    let head = "[proxy]\nname = \"test\"\nworkers = 2\n";
    for text in [
        format!("{head}{}bearer_token = \"file:{pipe}\"\n", stub.backend("a")),
        format!("{head}import_backends = \"{pipe}\"\n{}", stub.backend("a")),
    ] {
        refused(&proxy, &text);
        assert!(proxy.stderr().contains("is no regular file"), "{}", proxy.stderr());
    }
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_applied() {
    let pipe = stdio_backend("pipe", &[]);
    let proxy = Proxy::start(std::slice::from_ref(&pipe));
    let mut client = proxy.client_seeing(&["pipe__echo"]);
    let whole = format!("[proxy]\nname = \"renamed\"\nhot_reload = false\nworkers = 1\n{pipe}");
    proxy.rewrite_whole(&whole);
    proxy.signal("HUP");
    wait_until("the reload", || reloads(&proxy).0 == 1);
    wait_until("word of that", || {
        let said = proxy.stderr();
        said.contains("needs a restart") && said.contains("proxy.workers")
    });
    assert_eq!(client.call("pipe__echo", r#"{"payload":"a"}"#).said(), "a");
    assert_eq!(proxy.client().hello["serverInfo"]["name"], "renamed");
}

#[test]
fn tokens_and_roles_switch_and_sessions_go_on() {
    let pipe = stdio_backend("pipe", &[]);
    let auth = |tokens: &str, allow: &str| {
        format!(
            "[auth]\ntype = \"bearer\"\ntokens = [{tokens}]\n[[auth.scoped_tokens]]\n\
             token = \"scoped-token-0123456789\"\nname = \"ann\"\nallow_tools = [{allow}]\n\
             [security]\nadmin_token = \"admin-token-0123456789\"\n"
        )
    };
    let (one, two) = ("one-token-0123456789", "two-token-0123456789");
    let backends = [pipe];
    let setup = Setup {
        backends: backends.concat(),
        proxy: auth(&format!("\"{one}\""), "\"pipe__echo\""),
        ..Setup::default()
    };
    let proxy = setup.start();
    let switch = |lines: &str| reload_unseen(&proxy, lines, &backends);
    let mut ann = Client::connect_as(proxy.addr, "scoped-token-0123456789");
    ann.wait_for_tools(&["pipe__echo"]);
    assert_eq!(ann.names("tools/list"), ["pipe__echo"]);
    unknown(&mut ann, "pipe__stats");
    let mut first = Client::connect_as(proxy.addr, one);
    let listening = ann.listen();

    switch(&auth(&format!("\"{two}\""), "\"pipe__stats\""));
    assert_eq!(ann.names("tools/list"), ["pipe__stats"]);
    unknown(&mut ann, "pipe__echo");
    ann.call("pipe__stats", "{}").said();
    // Who listens has to show his token again.
    listening.until_end();
    let told = first.post(&message("1", "tools/list", "{}"));
    assert_eq!(told.status, 401, "{told:?}");
    Client::connect_as(proxy.addr, two).call("pipe__echo", r#"{"payload":"b"}"#).said();

    // Without [auth] a session of one of its callers is nobody's.
    switch("");
    assert_eq!(ann.post(&message("2", "tools/list", "{}")).status, 404);
    proxy.client().call("pipe__echo", r#"{"payload":"c"}"#).said();
}

/// Under load, with a hundred reloads that add, remove and change: what has not changed loses no
/// call and no session.
#[test]
fn a_hundred_reloads_under_load_cost_no_call() {
    let stub = HttpStub::start("web", &[]);
    let fixed = [stdio_backend("pipe", &[]), stub.backend("web")];
    let proxy = Proxy::start(&fixed);
    proxy.client_seeing(&["pipe__echo", "web__echo"]);
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..32)
        .map(|n| {
            let (over, calls, mut client) = (over.clone(), calls.clone(), proxy.client());
            std::thread::spawn(move || {
                let session = client.session.clone();
                while !over.load(Ordering::Relaxed) {
                    for tool in ["pipe__echo", "web__echo"] {
                        let payload = format!("{n} {}", calls.fetch_add(1, Ordering::Relaxed));
                        let arguments = format!(r#"{{"payload":"{payload}"}}"#);
                        assert_eq!(client.call(tool, &arguments).said(), payload);
                    }
                    client.names("tools/list");
                }
                assert_eq!(client.session, session);
            })
        })
        .collect();
    let extra = stub.backend("extra");
    let began = Instant::now();
    for round in 0..100 {
        let mut backends = fixed.to_vec();
        match round % 4 {
            0 => backends.insert(0, extra.clone()),
            1 => backends.push(extra.clone() + "hide_tools = [\"echo\"]\n"),
            2 => backends.push(stdio_backend("child", &[])),
            _ => backends.push(stdio_backend("extra", &[])),
        }
        reload(&proxy, "", &backends);
    }
    let time = began.elapsed();
    wait_until("a last round of calls", || {
        let before = calls.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
        calls.load(Ordering::Relaxed) > before
    });
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().expect("a caller");
    }
    eprintln!("100 reloads in {time:?} beside {} calls", calls.load(Ordering::Relaxed));
    // What left has left, its children too.
    reload(&proxy, "", &fixed);
    let children = || {
        let tasks = format!("/proc/{}/task", proxy.pid());
        let tasks = std::fs::read_dir(tasks).expect("tasks");
        let mut count = 0;
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            count += children.unwrap_or_default().split_whitespace().count();
        }
        count
    };
    wait_for("one child", || (children() == 1).then_some(()));
}

#[test]
fn logs_go_where_the_new_file_says() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let audit = |name: &str| {
        let path = crate::support::quote(path(name).to_str().unwrap());
        format!("[observability.audit]\npath = {path}\n")
    };
    let lines = |name: &str, tool: &str| {
        let text = std::fs::read_to_string(path(name)).unwrap_or_default();
        text.lines().filter(|line| line.contains(&format!("\"target\":\"{tool}\""))).count()
    };
    let backends = [stdio_backend("pipe", &[])];
    let proxy = Proxy::start(&backends);
    let mut client = proxy.client_seeing(&["pipe__echo"]);
    let listening = client.listen();
    client.call("pipe__echo", "{}");
    reload(&proxy, &audit("one"), &backends);
    client.call("pipe__echo", "{}");
    wait_until("a line in the first file", || lines("one", "pipe__echo") == 1);
    reload(&proxy, &audit("two"), &backends);
    client.call("pipe__stats", "{}");
    wait_until("a line in the second file", || lines("two", "pipe__stats") == 1);
    assert_eq!((lines("one", "pipe__stats"), lines("two", "pipe__echo")), (0, 0));
    // Of two files one cannot be opened: nothing changes.
    let whole = |lines: &str| {
        format!(
            "[proxy]\nname = \"test\"\nhot_reload = false\nworkers = 2\n{lines}\n{}",
            backends[0]
        )
    };
    refused(&proxy, &whole("[observability.audit]\npath = \"/no/such/folder/x\"\n"));
    client.call("pipe__raw", "{}");
    wait_until("a line in the second file", || lines("two", "pipe__raw") == 1);
    // The level of the log.
    assert!(!proxy.stderr().contains("DEBUG"));
    reload(&proxy, "[observability]\nlog_level = \"debug\"\n", &backends);
    let more = [backends[0].clone(), stdio_backend("more", &[])];
    reload(&proxy, "[observability]\nlog_level = \"debug\"\n", &more);
    wait_until("a line of that level", || proxy.stderr().contains("DEBUG"));
    drop(listening);
}

/// What leaves has so long to finish its calls, and no longer.
#[test]
fn calls_that_outlast_the_time_to_leave_are_cut() {
    let scratch = scratch();
    let journals = ["web", "pipe"].map(|name| Journal::new(&scratch, name));
    let stub = HttpStub::start("web", &["--journal", journals[0].path()]);
    let pipe = stdio_backend("pipe", &["--journal", journals[1].path()]);
    let going = [stub.backend("web"), pipe];
    let stays = [stdio_backend("stays", &[])];
    let short = "shutdown_timeout_seconds = 1";
    let all = [going.concat(), stays[0].clone()];
    let setup = Setup { backends: all.concat(), proxy: short.into(), ..Setup::default() };
    let proxy = setup.start();
    let client = proxy.client_seeing(&["web__hang", "pipe__hang", "stays__echo"]);
    let mut hung: Vec<Client> = (0..8).map(|_| client.again()).collect();
    for (n, client) in hung.iter_mut().enumerate() {
        let tool = ["web__hang", "pipe__hang"][n % 2];
        client.send(&message(&n.to_string(), "tools/call", &call_params(tool, "{}")));
    }
    for journal in &journals {
        journal.wait_count("call hang", 4);
    }
    reload(&proxy, short, &stays);
    for client in &mut hung {
        let (code, text) = client.told().error();
        assert!(code == -32010 && text.starts_with("Backend "), "{code} {text}");
    }
    // Its series go with it.
    let series = |name: &str| {
        let page = http::once(proxy.addr, "GET", "/admin/metrics", "").body;
        String::from_utf8(page).unwrap().contains(&format!("backend=\"{name}\""))
    };
    wait_until("the end of its series", || !series("web") && !series("pipe"));
    assert!(series("stays"));
}

/// A place in the queue outlasts the limit that it waits for.
#[test]
fn who_waits_for_a_place_goes_on_under_the_new_limit() {
    for later in [8, 0] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "pipe");
        let pipe = |max: usize| {
            let queue =
                "queue = 7\nqueue_timeout_seconds = 600\n[backends.timeout]\nseconds = 600\n";
            let backend = stdio_backend("pipe", &["--journal", journal.path()]);
            match max {
                0 => backend,
                _ => format!("{backend}[backends.concurrency]\nmax_concurrent = {max}\n{queue}"),
            }
        };
        let proxy = Proxy::start(&[pipe(1)]);
        let client = proxy.client_seeing(&["pipe__echo"]);
        // Each is a call of its own that never ends, on connections of both workers.
        let (sender, refusals) = std::sync::mpsc::channel();
        for n in 0..9 {
            let (mut client, sender) = (client.again(), sender.clone());
            client.send(&message(&n.to_string(), "tools/call", &call_params("pipe__hang", "{}")));
            std::thread::spawn(move || {
                if let Some(told) = client.try_told() {
                    let _ = sender.send(told.error().0);
                }
            });
        }
        // One more than there are places: once it is refused, all others have theirs.
        assert_eq!(refusals.recv_timeout(DEADLINE), Ok(-32012));
        // The refusal may come before the child has read what went to it.
        journal.wait_count("call hang", 1);
        assert_eq!(journal.count("call hang"), 1);
        reload(&proxy, "", &[pipe(later)]);
        // None has ended, so that nobody has made room for another one.
        journal.wait_count("call hang", 8);
        assert!(refusals.try_recv().is_err());
    }
}

/// What listens in the request era hears of changes too, on whichever worker it is.
#[test]
fn listeners_without_a_session_are_told() {
    let (pipe, more) = (stdio_backend("pipe", &[]), stdio_backend("more", &[]));
    let proxy = Proxy::start(std::slice::from_ref(&pipe));
    proxy.client_seeing(&["pipe__echo"]);
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"test","version":"0"}}"#;
    let params = format!(r#"{{"notifications":{{"toolsListChanged":true}},{meta}}}"#);
    let body = message("\"l\"", "subscriptions/listen", &params);
    let mut streams: Vec<_> = (0..4)
        .map(|_| {
            let mut conn = http::Conn::open(proxy.addr);
            let lines = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n\
                 Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n";
            let head = format!(
                "POST /mcp HTTP/1.1\r\nHost: {}\r\n{lines}Content-Length: {}\r\n\r\n{body}",
                proxy.addr,
                body.len()
            );
            conn.send(head.as_bytes());
            assert_eq!(conn.head().status, 200);
            let mut events = http::Events::default();
            let first = conn.event(&mut events).expect("an acknowledgement");
            assert!(first.data.contains("acknowledged"), "{first:?}");
            (conn, events)
        })
        .collect();
    for backends in [&[pipe.clone(), more][..], &[pipe]] {
        reload(&proxy, "", backends);
        for (conn, events) in &mut streams {
            let event = conn.event(events).expect("a change");
            assert!(event.data.contains("notifications/tools/list_changed"), "{event:?}");
        }
    }
}

/// Counters are kept by name: this one began anew with every other setting.
#[test]
fn ejections_are_counted_on_whatever_changes() {
    let (web, other) = (HttpStub::start("web", &["--annotated"]), HttpStub::start("web", &[]));
    let keys = |errors: u32| {
        format!(
            "outlier_detection = {{ consecutive_errors = {errors}, base_ejection_seconds = 600 }}\n"
        )
    };
    let proxy = Proxy::start(&[web.backend("web") + &keys(2)]);
    let mut client = proxy.client_seeing(&["web__writes"]);
    let ejections = || Page::of(&proxy).get("mcp_proxy_ejections_total", &[("backend", "web")]);
    for _ in 0..2 {
        client.call("web__writes", r#"{"key":"k","fails":99,"how":"internal"}"#).error();
    }
    assert_eq!(ejections(), 1.0);
    reload(&proxy, "", &[web.backend("web") + &keys(3)]);
    assert_eq!(ejections(), 1.0);
    for _ in 0..3 {
        client.call("web__writes", r#"{"key":"k","fails":99,"how":"internal"}"#).error();
    }
    assert_eq!(ejections(), 2.0);
    // Another one of that name.
    reload(&proxy, "", &[other.backend("web") + &keys(3)]);
    assert_eq!(ejections(), 2.0);
}
