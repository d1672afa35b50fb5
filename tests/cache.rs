//! Answers that serve more than one call: `[backends.cache]` and `[performance]`, counted by the
//! backends themselves; two workers, over a child, Streamable HTTP and HTTP with SSE.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::metrics::Page;
use crate::modern::Caller;
use crate::support::client::{Client, Told, call_params, message};
use crate::support::http::once;
use crate::support::process::{
    HttpStub, Journal, Proxy, Setup, scratch, sse_backend, stdio_backend,
};
use crate::support::{quote, wait_for, wait_until};

/// The same stub behind each transport, with these keys.
struct World {
    proxy: Proxy,
    journals: Vec<(&'static str, Journal)>,
    _stubs: Vec<HttpStub>,
    _scratch: tempfile::TempDir,
}

fn world(proxy: &str, keys: &str) -> World {
    let scratch = scratch();
    let journals: Vec<(&str, Journal)> = ["pipe", "json", "old"]
        .into_iter()
        .map(|name| (name, Journal::new(&scratch, name)))
        .collect();
    let path = |n: usize| journals[n].1.path();
    let stubs = vec![
        HttpStub::start("json", &["--annotated", "--journal", path(1)]),
        HttpStub::start("old", &["--old", "--annotated", "--journal", path(2)]),
    ];
    let backends = [
        stdio_backend("pipe", &["--annotated", "--journal", path(0)]) + keys,
        stubs[0].backend("json") + keys,
        sse_backend("old", stubs[1].addr) + keys,
    ];
    let setup = Setup { backends: backends.concat(), proxy: proxy.into(), ..Setup::default() };
    let proxy = setup.start();
    proxy.client_seeing(&["pipe__reads", "json__reads", "old__reads"]);
    World { proxy, journals, _stubs: stubs, _scratch: scratch }
}

/// Mail between the workers may be under way; nothing waits for it.
fn breathe() {
    std::thread::sleep(Duration::from_millis(200));
}

const CACHE: &str = "[backends.cache]\ntool_ttl_seconds = 600\n";
const MERGE: &str = "[performance]\ncoalesce_requests = true\n";

#[test]
fn an_answer_is_kept_for_every_worker_under_what_makes_calls_the_same() {
    let world = world("", CACHE);
    for (backend, journal) in &world.journals {
        let tool = format!("{backend}__reads");
        let first = world.proxy.client().call(&tool, r#"{"key":"a","n":1}"#).said();
        breathe();
        let mut clients: Vec<Client> = (0..8).map(|_| world.proxy.client()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            let arguments = [r#"{"key":"a","n":1}"#, r#"{ "n" : 1, "\u006bey" : "a" }"#][n % 2];
            // Every answer carries its own id, which `call` checks.
            assert_eq!(client.call(&tool, arguments).said(), first);
            let params = format!(
                r#"{{"arguments":{arguments},"_meta":{{"progressToken":{n}}},"name":"{tool}"}}"#
            );
            let told = client.post(&message("\"own\"", "tools/call", &params));
            assert_eq!((told.said(), told.json()["id"].as_str()), (first.clone(), Some("own")));
        }
        assert_eq!(journal.count("unsteady a "), 1, "{backend}");
        // Number text is not value: a server may tell them apart.
        assert_ne!(clients[0].call(&tool, r#"{"key":"a","n":1.0}"#).said(), first);
        assert_ne!(clients[0].call(&tool, r#"{"key":"a"}"#).said(), first);
        assert_eq!(journal.count("unsteady a "), 3, "{backend}");
        // Another tool of the same arguments is another call.
        clients[0].call(&format!("{backend}__adds"), r#"{"key":"a","n":1}"#).said();
        assert_eq!(journal.count("unsteady a "), 4, "{backend}");
    }
}

#[test]
fn its_use_is_seen_and_it_can_be_cleared() {
    let audit = scratch();
    let file = audit.path().join("audit");
    let keys = format!("[observability]\naudit = {{ path = {} }}\n", quote(file.to_str().unwrap()));
    let world = world(&format!("{MERGE}{keys}"), CACHE);
    let rows = || once(world.proxy.addr, "GET", "/admin/cache/stats", "").json();
    let row = |name: &str| {
        let rows = rows();
        rows.as_array().unwrap().iter().find(|row| row["backend"] == name).unwrap().clone()
    };
    assert_eq!(rows().as_array().unwrap().len(), 3);
    for (backend, journal) in &world.journals {
        assert_eq!(row(backend)["hit_rate"], 0.0);
        let mut client = world.proxy.client();
        let reads = format!("{backend}__reads");
        for _ in 0..4 {
            client.call(&reads, r#"{"key":"a"}"#).said();
        }
        // It says that it writes: what comes of it is nobody else's.
        client.call(&format!("{backend}__writes"), r#"{"key":"w"}"#).said();
        // Resources are not cached here, nor are lists.
        client.ask("resources/list", "{}").result();
        let row = row(backend);
        assert_eq!((&row["hits"], &row["misses"]), (&json!(3), &json!(1)), "{row}");
        assert_eq!((&row["hit_rate"], &row["entry_count"]), (&json!(0.75), &json!(1)), "{row}");
        assert!(row["bytes"].as_u64().unwrap() > 20, "{row}");
        let page = Page::of(&world.proxy);
        let labels = [("backend", *backend)];
        for (result, count) in [("hit", 3.0), ("miss", 1.0), ("bypass", 1.0)] {
            let labels = [labels[0], ("result", result)];
            assert_eq!(page.get("mcp_proxy_cache_requests_total", &labels), count, "{result}");
        }
        assert_eq!(page.get("mcp_proxy_cache_entries", &labels), 1.0);
        assert!(page.get("mcp_proxy_cache_bytes", &labels) > 20.0);
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        begin(&mut clients, journal, &reads, r#"{"key":"m","ms":1500}"#, "unsteady m ");
        answers(clients.iter_mut().enumerate());
        let merged = Page::of(&world.proxy).get("mcp_proxy_coalesced_total", &labels);
        assert_eq!(merged, 3.0, "{backend}");
    }
    let lines = wait_for("the lines of the audit log", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let calls = lines.iter().filter(|line| line["method"] == "tools/call").count();
        (calls == 3 * 9).then_some(lines)
    });
    let used = |value: Value| {
        lines.iter().filter(|line| line["cache"] == value && line["backend"] == "pipe").count()
    };
    // Of those that ran together all had missed it.
    assert_eq!((used("hit".into()), used("miss".into()), used("bypass".into())), (3, 5, 1));

    let cleared = once(world.proxy.addr, "POST", "/admin/cache/clear", "");
    assert_eq!(
        (cleared.status, cleared.json()),
        (200, json!({"cleared": ["pipe", "json", "old"]}))
    );
    for (backend, journal) in &world.journals {
        assert_eq!((&row(backend)["entry_count"], &row(backend)["bytes"]), (&json!(0), &json!(0)));
        // On every worker.
        let first = world.proxy.client().call(&format!("{backend}__reads"), r#"{"key":"a"}"#);
        assert!(first.said().starts_with("2 "), "{backend}");
        breathe();
        for _ in 0..8 {
            world.proxy.client().call(&format!("{backend}__reads"), r#"{"key":"a"}"#).said();
        }
        assert_eq!(journal.count("unsteady a "), 2, "{backend}");
    }
}

#[test]
fn errors_and_tools_that_say_they_write_are_not_kept() {
    let keys = "[backends.cache]\ntool_ttl_seconds = 600\ntools = [\"*\", \"set*\"]\n";
    let world = world("", keys);
    for (backend, journal) in &world.journals {
        let mut client = world.proxy.client();
        for how in ["params", "internal", "is_error"] {
            let arguments = format!(r#"{{"key":"{how}","fails":2,"how":"{how}"}}"#);
            let tool = format!("{backend}__reads");
            for _ in 0..2 {
                let told = client.call(&tool, &arguments).json();
                assert!(told.get("error").is_some() || told["result"]["isError"] == true, "{told}");
            }
            let well = client.call(&tool, &arguments).said();
            breathe();
            assert_eq!(client.call(&tool, &arguments).said(), well);
            assert_eq!(journal.count(&format!("unsteady {how} ")), 3, "{backend}");
        }
        for (tool, executions) in [("writes", 3), ("sets", 1), ("search", 1), ("adds", 1)] {
            for _ in 0..3 {
                let arguments = format!(r#"{{"key":"of {tool}"}}"#);
                client.call(&format!("{backend}__{tool}"), &arguments).said();
            }
            assert_eq!(journal.count(&format!("unsteady of {tool} ")), executions, "{backend}");
        }
        // A task, or whatever else a newer revision may add, is no such call.
        for _ in 0..2 {
            let params = format!(
                r#"{{"name":"{backend}__reads","arguments":{{"key":"task"}},"task":{{"ttl":1}}}}"#
            );
            client.ask("tools/call", &params);
        }
        assert_eq!(journal.count("unsteady task "), 2, "{backend}");
    }
    // One that is named is kept whatever it says.
    let named = self::world("", &keys.replace("\"set*\"", "\"writes\""));
    for (backend, journal) in &named.journals {
        let mut client = named.proxy.client();
        for _ in 0..3 {
            client.call(&format!("{backend}__writes"), r#"{"key":"w"}"#).said();
        }
        assert_eq!(journal.count("unsteady w "), 1, "{backend}");
    }
}

#[test]
fn answers_end_with_their_time_and_their_number_is_bounded() {
    let keys = "[backends.cache]\ntool_ttl_seconds = 1.5\nmax_entries = 5\n";
    let world = world("", keys);
    for (backend, journal) in &world.journals {
        let mut client = world.proxy.client();
        let tool = format!("{backend}__reads");
        let first = client.call(&tool, r#"{"key":"t"}"#).said();
        wait_until("another answer", || client.call(&tool, r#"{"key":"t"}"#).said() != first);
        for _ in 0..2 {
            for n in 0..50 {
                client.call(&tool, &format!(r#"{{"key":"n {n}"}}"#)).said();
            }
        }
        assert!(journal.count("unsteady n ") >= 90, "{backend}: {}", journal.count("unsteady n "));
    }
}

#[test]
fn a_list_that_changes_ends_what_is_kept() {
    let world = world("", CACHE);
    for (backend, journal) in &world.journals {
        let tool = format!("{backend}__reads");
        let mut clients: Vec<Client> = (0..8).map(|_| world.proxy.client()).collect();
        let old = clients[0].call(&tool, r#"{"key":"a"}"#).said();
        breathe();
        assert_eq!(clients[1].call(&tool, r#"{"key":"a"}"#).said(), old);
        clients[0].call(&format!("{backend}__add"), r#"{"name":"fresh"}"#).said();
        clients[0].wait_for_tools(&[&format!("{backend}__fresh")]);
        // From now on nobody gets the old one, on no worker.
        for client in &mut clients {
            assert_ne!(client.call(&tool, r#"{"key":"a"}"#).said(), old, "{backend}");
        }
        // Several sessions hear of one change, and each time what is kept ends; then it stays.
        wait_until("answers that are kept again", || {
            let executions = journal.count("unsteady a ");
            for client in &mut clients {
                client.call(&tool, r#"{"key":"a"}"#).said();
            }
            journal.count("unsteady a ") == executions
        });
    }
}

#[test]
fn resources_are_kept_until_they_change() {
    let world = world("", "[backends.cache]\nresource_ttl_seconds = 600\n");
    for (backend, journal) in &world.journals {
        let uri = quote(&format!("stub://{backend}/item/7"));
        let read = |client: &mut Client| {
            client.ask("resources/read", &format!(r#"{{"uri":{uri}}}"#)).result().to_string()
        };
        let mut clients: Vec<Client> = (0..6).map(|_| world.proxy.client()).collect();
        let first = read(&mut clients[0]);
        breathe();
        for client in &mut clients {
            assert_eq!(read(client), first);
        }
        assert_eq!(journal.count("read "), 1, "{backend}");
        // Tools are not kept here, and another resource is another answer.
        for _ in 0..2 {
            clients[0].call(&format!("{backend}__reads"), r#"{"key":"a"}"#).said();
            let other = format!(r#"{{"uri":"stub://{backend}/item/8"}}"#);
            assert_ne!(clients[0].ask("resources/read", &other).result().to_string(), first);
        }
        assert_eq!(journal.count("unsteady a "), 2, "{backend}");
        assert_eq!(journal.count("read "), 2, "{backend}");
        let add = r#"{"kind":"resource","name":"more"}"#;
        clients[0].call(&format!("{backend}__add"), add).said();
        wait_until("another read", || {
            read(&mut clients[1]);
            journal.count("read ") > 2
        });
    }
    // That one resource changed is enough.
    let (backend, journal) = &world.journals[0];
    let mut client = world.proxy.client();
    let params = format!(r#"{{"uri":"stub://{backend}/item/9"}}"#);
    client.ask("resources/read", &params).result();
    client.ask("resources/read", &params).result();
    let before = journal.count("read ");
    let update = r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"stub://pipe/item/9"}}"#;
    let answer = r#"{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":"ok"}]}}"#;
    let bytes = quote(&format!("{update}\n{answer}\n"));
    client.call(&format!("{backend}__raw_answer"), &format!(r#"{{"bytes":{bytes}}}"#)).said();
    client.ask("resources/read", &params).result();
    assert_eq!(journal.count("read "), before + 1);
}

#[test]
fn long_answers_are_kept_as_they_stream_and_those_with_a_request_before_them_are_not() {
    let world = world("", CACHE);
    for (backend, journal) in &world.journals {
        let mut client = world.proxy.client();
        for chunked in [false, true] {
            for _ in 0..3 {
                let arguments = format!(r#"{{"bytes":300000,"chunked":{chunked}}}"#);
                let told = client.call(&format!("{backend}__big"), &arguments);
                assert_eq!(told.said().len(), 300_000);
            }
        }
        assert_eq!(journal.count("call big"), 2, "{backend}");
        for _ in 0..2 {
            client.call(&format!("{backend}__big"), r#"{"bytes":2000000}"#).said();
        }
        assert_eq!(journal.count("call big"), 4, "{backend}: over the bound of one answer");
    }
    // Over a pipe what the server says first is easily chosen.
    let (backend, journal) = &world.journals[0];
    let mut client = world.proxy.client();
    let asks = r#"{"jsonrpc":"2.0","id":"q","method":"roots/list"}"#;
    let answer = r#"{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":"ok"}]}}"#;
    for (first, executions) in [(asks, 2), ("", 1)] {
        let before = journal.count("call raw_answer");
        let bytes = quote(&format!("{first}\n{answer}\n"));
        for _ in 0..2 {
            let arguments = format!(r#"{{"bytes":{bytes}}}"#);
            client.call(&format!("{backend}__raw_answer"), &arguments).said();
        }
        assert_eq!(journal.count("call raw_answer") - before, executions, "{first}");
    }
}

/// Sends a call of each client, and returns when the backend has begun one.
fn begin(clients: &mut [Client], journal: &Journal, tool: &str, arguments: &str, event: &str) {
    for (n, client) in clients.iter_mut().enumerate() {
        let id = 100 + n;
        client.send(&message(&id.to_string(), "tools/call", &call_params(tool, arguments)));
    }
    journal.wait_count(event, 1);
}

/// The answers of clients that sent calls with [`begin`]: each has its own id.
fn answers<'c>(clients: impl Iterator<Item = (usize, &'c mut Client)>) -> Vec<Told> {
    clients
        .map(|(n, client)| {
            let told = client.told();
            assert_eq!(told.json()["id"], 100 + n, "{told:?}");
            told
        })
        .collect()
}

#[test]
fn identical_calls_at_the_same_time_run_once() {
    let world = world(MERGE, "");
    for (backend, journal) in &world.journals {
        let mut clients: Vec<Client> = (0..8).map(|_| world.proxy.client()).collect();
        let (tool, arguments) = (format!("{backend}__reads"), r#"{"key":"a","ms":2500}"#);
        begin(&mut clients, journal, &tool, arguments, "unsteady a ");
        let told = answers(clients.iter_mut().enumerate());
        let texts: BTreeSet<String> = told.iter().map(Told::said).collect();
        assert_eq!(texts.len(), 1);
        assert_eq!(journal.count("unsteady a "), 1, "{backend}");
        // What comes later runs anew: nothing is kept here.
        clients[0].call(&tool, r#"{"key":"a"}"#).said();
        assert_eq!(journal.count("unsteady a "), 2, "{backend}");
        // Different arguments, and tools that say they write, run each for itself.
        for (tool, key) in [("reads", "b"), ("writes", "c")] {
            for (n, client) in clients.iter_mut().enumerate().take(4) {
                let n = if tool == "reads" { n } else { 0 };
                let arguments = format!(r#"{{"key":"{key}","n":{n},"ms":200}}"#);
                let params = call_params(&format!("{backend}__{tool}"), &arguments);
                client.send(&message("1", "tools/call", &params));
            }
            for client in clients.iter_mut().take(4) {
                client.told().said();
            }
            assert_eq!(journal.count(&format!("unsteady {key} ")), 4, "{backend} {tool}");
        }
        // An error is everybody's.
        let fails = r#"{"key":"f","fails":1,"how":"slow","slow_ms":1500}"#;
        begin(&mut clients, journal, &tool, fails, "unsteady f ");
        let told = answers(clients.iter_mut().enumerate());
        assert!(told.iter().all(|told| told.said() == "1 slow"), "{told:?}");
    }
}

#[test]
fn a_caller_that_leaves_harms_no_other() {
    let world = world(MERGE, "");
    for (backend, journal) in &world.journals {
        let tool = format!("{backend}__reads");
        for (key, leaves) in [("k", "killed"), ("d", "deleted"), ("c", "cancelled")] {
            let mut clients: Vec<Client> = (0..8).map(|_| world.proxy.client()).collect();
            let arguments = format!(r#"{{"key":"{key}","ms":2500}}"#);
            let event = format!("unsteady {key} ");
            begin(&mut clients[..1], journal, &tool, &arguments, &event);
            begin(&mut clients[1..], journal, &tool, &arguments, &event);
            breathe();
            let mut first = clients.remove(0);
            match leaves {
                "killed" => drop(first),
                "deleted" => drop(first.again().delete()),
                _ => {
                    first.again().notify("notifications/cancelled", r#"{"requestId":100}"#);
                    assert!(first.conn.try_head().is_some());
                }
            }
            let told = answers(clients.iter_mut().enumerate());
            let texts: BTreeSet<String> = told.iter().map(Told::said).collect();
            assert_eq!(texts.len(), 1, "{backend} {leaves}");
            assert_eq!(journal.count("cancelled"), 0, "{backend} {leaves}");
            if leaves != "deleted" {
                assert_eq!(journal.count(&event), 1, "{backend} {leaves}");
            }
        }
        // When all have left, the backend is told so.
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        let arguments = r#"{"key":"all","fails":1,"how":"hang"}"#;
        begin(&mut clients, journal, &tool, arguments, "unsteady all ");
        breathe();
        for (n, client) in clients.iter().enumerate() {
            let params = format!(r#"{{"requestId":{}}}"#, 100 + n);
            client.again().notify("notifications/cancelled", &params);
        }
        journal.wait_count("cancelled", 1);
        assert_eq!(journal.count("unsteady all "), 1, "{backend}");
        // And who comes then begins anew.
        assert!(world.proxy.client().call(&tool, arguments).said().starts_with("2 "));
    }
}

#[test]
fn listed_tools_run_once_too_and_every_caller_sees_the_progress() {
    let listed = format!("{MERGE}coalesce_tools = [\"*__progress\", \"*__slow_body\"]\n");
    let world = world(&listed, "");
    for (backend, journal) in &world.journals {
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            let params = format!(
                r#"{{"name":"{backend}__progress","arguments":{{"steps":5,"ms":500}},"_meta":{{"progressToken":"t{n}"}}}}"#
            );
            client.send(&message(&n.to_string(), "tools/call", &params));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            let told = client.told();
            assert_eq!((told.said().as_str(), &told.json()["id"]), ("done", &n.into()));
            assert!(!told.before.is_empty(), "{told:?}");
            let token = format!(r#""progressToken":"t{n}""#);
            assert!(told.before.iter().all(|step| step.contains(&token)), "{told:?}");
        }
        assert_eq!(journal.count("call progress"), 1, "{backend}");
        let arguments = r#"{"bytes":300000,"pieces":10,"ms":200,"chunked":true}"#;
        begin(&mut clients, journal, &format!("{backend}__slow_body"), arguments, "call slow_body");
        for told in answers(clients.iter_mut().enumerate()) {
            assert_eq!(told.said().len(), 300_000);
        }
        // The older transport and the pipe send it in one piece, and at once.
        if *backend == "json" {
            assert_eq!(journal.count("call slow_body"), 1, "{backend}");
        }
    }
}

#[test]
fn a_mirror_hears_what_runs_and_nothing_else() {
    let scratch = scratch();
    let (own, copy) = (Journal::new(&scratch, "a"), Journal::new(&scratch, "b"));
    let stubs = [
        HttpStub::start("a", &["--annotated", "--journal", own.path()]),
        HttpStub::start("b", &["--annotated", "--journal", copy.path()]),
    ];
    let mirror = stubs[1].backend("b") + "mirror_of = \"a\"\n";
    let backends = stubs[0].backend("a") + CACHE + &mirror;
    let proxy = Setup { backends, proxy: MERGE.into(), ..Setup::default() }.start();
    proxy.client_seeing(&["a__reads"]);
    let mut clients: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
    begin(&mut clients, &own, "a__reads", r#"{"key":"m","ms":1500}"#, "unsteady m ");
    answers(clients.iter_mut().enumerate());
    for client in &mut clients {
        client.call("a__reads", r#"{"key":"m","ms":1500}"#).said();
    }
    clients[0].call("a__reads", r#"{"key":"end"}"#).said();
    copy.wait_count("unsteady end ", 1);
    assert_eq!((own.count("unsteady m "), copy.count("unsteady m ")), (1, 1));
}

#[test]
fn with_both_a_burst_runs_once_and_later_calls_not_at_all() {
    let world = world(MERGE, CACHE);
    for (backend, journal) in &world.journals {
        let mut clients: Vec<Client> = (0..8).map(|_| world.proxy.client()).collect();
        let tool = format!("{backend}__search");
        begin(&mut clients, journal, &tool, r#"{"key":"a","ms":1500}"#, "unsteady a ");
        answers(clients.iter_mut().enumerate());
        for client in &mut clients {
            client.call(&tool, r#"{"key":"a","ms":1500}"#).said();
        }
        assert_eq!(journal.count("unsteady a "), 1, "{backend}");
    }
}

/// Callers without sessions, before servers with sessions and without.
#[test]
fn callers_without_sessions_share_answers_too() {
    let scratch = scratch();
    let journals = ["old", "new", "pipe"].map(|name| Journal::new(&scratch, name));
    let path = |n: usize| journals[n].path();
    let old = HttpStub::start("old", &["--annotated", "--journal", path(0)]);
    let new = HttpStub::start("new", &["--modern", "--annotated", "--journal", path(1)]);
    let pipe = stdio_backend("pipe", &["--modern", "--annotated", "--journal", path(2)]);
    let backends = [old.backend("old") + CACHE, new.backend("new") + CACHE, pipe + CACHE];
    let proxy = Setup { backends: backends.concat(), proxy: MERGE.into(), ..Setup::default() };
    let proxy = proxy.start();
    let tools = ["old__reads", "new__reads", "pipe__reads"];
    Caller::seeing(&proxy, &tools);
    let caller = |capabilities: &str| {
        let mut caller = Caller::new(&proxy);
        caller.capabilities = capabilities.into();
        caller
    };
    for (tool, journal) in tools.iter().zip(&journals) {
        let first = caller("{}").call(tool, r#"{"key":"a","n":1}"#);
        breathe();
        for _ in 0..6 {
            // `call` checks that each has its own id.
            let told = caller("{ }").call(tool, r#"{ "n": 1, "key": "a" }"#);
            assert_eq!(told.said(), first.said(), "{tool}");
            assert_eq!(told.result()["resultType"], "complete");
        }
        assert_eq!(journal.count("unsteady a "), 1, "{tool}");
        // What a server says may depend on what its client can do.
        let other = caller(r#"{"roots":{}}"#).call(tool, r#"{"key":"a","n":1}"#).said();
        assert_ne!(other, first.said());
        breathe();
        let again = caller(r#"{ "roots": { } }"#).call(tool, r#"{"key":"a","n":1}"#).said();
        assert_eq!(again, other);
        assert_eq!(journal.count("unsteady a "), 2, "{tool}");
        // And on what it speaks.
        assert_ne!(proxy.client().call(tool, r#"{"key":"a","n":1}"#).said(), first.said());
        assert_eq!(journal.count("unsteady a "), 3, "{tool}");
        // Identical calls at the same time run once.
        let slow = r#"{"key":"slow","ms":700}"#;
        let said: BTreeSet<String> = std::thread::scope(|scope| {
            let calls: Vec<_> =
                (0..6).map(|_| scope.spawn(|| caller("{}").call(tool, slow).said())).collect();
            calls.into_iter().map(|call| call.join().expect("a call")).collect()
        });
        assert_eq!(said.len(), 1, "{tool}: {said:?}");
        assert_eq!(journal.count("unsteady slow "), 1, "{tool}");
    }
}

/// Each answer was counted as its share of the bytes at least: one alone was never kept, several were
/// fewer than both bounds allow, and as many bytes were told.
#[test]
fn what_is_kept_is_as_much_as_the_bounds_say() {
    let stub = HttpStub::start("web", &["--annotated"]);
    let keys = "max_entries = 10\nmax_bytes = 100000\n";
    let scratch = scratch();
    let journal = Journal::new(&scratch, "one");
    let backends = stdio_backend("one", &["--annotated", "--journal", journal.path()])
        + CACHE
        + "max_entries = 1\n"
        + &stub.backend("web")
        + CACHE
        + keys;
    let proxy = Setup { backends, workers: Some(1), ..Setup::default() }.start();
    let mut client = proxy.client_seeing(&["one__reads", "web__reads"]);
    for _ in 0..5 {
        client.call("one__reads", r#"{"key":"a"}"#).said();
    }
    assert_eq!(journal.count("unsteady a "), 1);
    let held = |backend: &str| {
        let page = Page::of(&proxy);
        let of = |name: &str| page.get(name, &[("backend", backend)]);
        (of("mcp_proxy_cache_entries"), of("mcp_proxy_cache_bytes"))
    };
    let (entries, bytes) = held("one");
    assert!(entries == 1.0 && bytes > 20.0 && bytes < 1_000.0, "{bytes}");
    let pad = "x".repeat(8_000);
    for n in 0..9 {
        let pad = if n < 5 { "" } else { &pad };
        client.call("web__reads", &format!(r#"{{"key":"{n}","pad":"{pad}"}}"#)).said();
    }
    let (entries, bytes) = held("web");
    assert!(entries == 9.0 && bytes > 64_000.0 && bytes < 80_000.0, "{entries} {bytes}");
    for n in 9..40 {
        client.call("web__reads", &format!(r#"{{"key":"{n}","pad":"{pad}"}}"#)).said();
        let (entries, bytes) = held("web");
        assert!(entries <= 10.0 && bytes <= 100_000.0, "{entries} {bytes}");
    }
}

/// The attempts of a call that runs for several were nobody's: no metric, line or span knew of them,
/// all of its time was the proxy's, and a canary's answers were booked on the one that was called.
#[test]
fn calls_that_run_together_are_accounted_for() {
    let audit = scratch();
    let file = audit.path().join("audit");
    let keys = format!("[observability]\naudit = {{ path = {} }}\n", quote(file.to_str().unwrap()));
    let world = world(&format!("{MERGE}{keys}"), "retry = { initial_backoff_ms = 1 }\n");
    for (backend, journal) in &world.journals {
        let mut clients: Vec<Client> = (0..6).map(|_| world.proxy.client()).collect();
        let tool = format!("{backend}__reads");
        let overhead = || Page::of(&world.proxy).get("mcp_proxy_overhead_seconds_sum", &[]);
        let before = overhead();
        let arguments = r#"{"key":"a","fails":1,"how":"internal","ms":2500}"#;
        begin(&mut clients, journal, &tool, arguments, "unsteady a ");
        answers(clients.iter_mut().enumerate());
        assert_eq!(journal.count("unsteady a "), 2);
        let page = Page::of(&world.proxy);
        let counts = ["first", "retry"].map(|kind| {
            page.get("mcp_proxy_attempts_total", &[("backend", backend), ("kind", kind)])
        });
        assert_eq!(counts, [1.0, 1.0], "{backend}");
        // Six times 2.5 s, were it the proxy that made them wait.
        assert!(overhead() - before < 2.5, "{backend}: {}", overhead() - before);
        let attempts = wait_for("the lines", || {
            let text = std::fs::read_to_string(&file).unwrap();
            let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            let mine = |line: &Value| line["target"] == tool;
            let mut attempts: Vec<u64> =
                lines.filter(mine).map(|line: Value| line["attempts"].as_u64().unwrap()).collect();
            attempts.sort_unstable();
            (attempts.len() == 6).then_some(attempts)
        });
        assert_eq!(attempts, [0, 0, 0, 0, 0, 2], "{backend}");
    }
}

#[test]
fn a_canary_is_named_where_calls_run_together() {
    let scratch = scratch();
    let (own, new) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "new"));
    let stub =
        |journal: &Journal| HttpStub::start("api", &["--annotated", "--journal", journal.path()]);
    let (first, second) = (stub(&own), stub(&new));
    let proxy = Setup {
        backends: first.backend("api")
            + &second.backend("new")
            + "canary_of = \"api\"\nweight = 50\n",
        proxy: MERGE.into(),
        ..Setup::default()
    }
    .start();
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client_seeing(&["api__reads"])).collect();
    for n in 0..12 {
        let arguments = format!(r#"{{"key":"{n}"}}"#);
        clients[n % 4].call("api__reads", &arguments).said();
    }
    let executed = [own.count("call reads"), new.count("call reads")].map(|count| count as f64);
    assert!(executed[0] > 0.0 && executed[1] > 0.0, "{executed:?}");
    let page = Page::of(&proxy);
    let labels = |backend: &'static str| [("backend", backend), ("method", "tools/call")];
    let counted = ["api", "new"].map(|name| page.get("mcp_proxy_requests_total", &labels(name)));
    assert_eq!(counted, executed);
    let made = |backend| page.get("mcp_proxy_attempts_total", &[("backend", backend)]);
    assert_eq!(["api", "new"].map(made), executed);
}
