//! Backends that stand behind another one: canaries answer a share of its calls, failovers those that
//! it cannot.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::metrics::Page;
use crate::modern::Caller;
use crate::support::client::{Client, call_params, message};
use crate::support::http::once;
use crate::support::process::{
    HttpStub, Journal, Proxy, Setup, command_backend, free_port, http_backend, scratch, stub_path,
};
use crate::support::{quote, wait_for, wait_until};

/// A stub that could be the backend `api` itself, as a child.
pub(crate) fn child(name: &str, journal: &Journal, more: &[&str]) -> String {
    let args = [&["--name", "api", "--annotated", "--journal", journal.path()], more].concat();
    command_backend(name, stub_path(), &args)
}

/// The same over HTTP.
pub(crate) fn server(journal: &Journal) -> HttpStub {
    HttpStub::start("api", &["--annotated", "--journal", journal.path()])
}

fn read(client: &mut Client) -> Value {
    client.ask("resources/read", r#"{"uri":"stub://api/item/7"}"#).result()
}

/// The state of a backend, as the administrator sees it.
fn state(proxy: &Proxy, name: &str) -> String {
    let answer = once(proxy.addr, "GET", "/admin/backends", "").json();
    let rows = answer["backends"].as_array().expect("rows").clone();
    let row = rows.iter().find(|row| row["name"] == name).expect("the backend");
    row["state"].as_str().expect("a state").to_owned()
}

pub(crate) fn wait_for_state(proxy: &Proxy, name: &str, wanted: &str) {
    wait_until(&format!("{name} {wanted}"), || state(proxy, name) == wanted);
}

#[test]
fn a_canary_answers_its_share_evenly_and_is_not_seen() {
    let scratch = scratch();
    for over_http in [true, false] {
        let journal = |name: &str| Journal::new(&scratch, &format!("{name}-{over_http}"));
        let (own, new, other) = (journal("own"), journal("new"), journal("other"));
        let canary = "canary_of = \"api\"\nweight = 10\n";
        let third = "canary_of = \"api\"\nweight = 25\n";
        // One is a server and the other two are children, and the other way round.
        let (first, second);
        let backends = if over_http {
            first = server(&own);
            [
                first.backend("api"),
                child("new", &new, &[]) + canary,
                child("other", &other, &[]) + third,
            ]
        } else {
            (first, second) = (server(&new), server(&other));
            [
                child("api", &own, &[]),
                first.backend("new") + canary,
                second.backend("other") + third,
            ]
        };
        let proxy = Proxy::start(&backends);
        proxy.client_seeing(&["api__reads"]);
        for name in ["api", "new", "other"] {
            wait_for_state(&proxy, name, "up");
        }
        let mut clients: Vec<Client> = (0..7).map(|_| proxy.client()).collect();
        let tools = clients[0].names("tools/list");
        assert!(tools.iter().all(|name| name.starts_with("api__")), "{tools:?}");
        assert_eq!(clients[0].names("resources/list"), ["stub://api/fixed"]);
        for hidden in ["new__reads", "other__reads"] {
            let refused = clients[0].call(hidden, "{}").error();
            assert_eq!(refused, (-32602, format!("Unknown tool: {hidden}")));
        }
        // Tools, reads and prompts, on both workers.
        for n in 0..1_000 {
            let client = &mut clients[n % 7];
            match n % 10 {
                3 => drop(read(client)),
                7 => drop(client.ask("prompts/get", r#"{"name":"api__prompt"}"#).result()),
                _ => drop(client.call("api__sets", &format!(r#"{{"key":"k{n}"}}"#)).result()),
            }
        }
        let heard = |journal: &Journal| {
            ["call ", "read ", "prompt "].map(|start| journal.count(start)).iter().sum::<usize>()
        };
        assert_eq!([heard(&new), heard(&other), heard(&own)], [100, 250, 650]);
        // Of any twenty calls in a row it has one to three.
        let taken: BTreeSet<usize> = new
            .lines()
            .iter()
            .filter_map(|line| line.strip_prefix("unsteady k")?.split(' ').next()?.parse().ok())
            .collect();
        assert!(new.count("read ") + new.count("prompt ") + taken.len() == 100);
        for start in 0..1_000 - 20 {
            let within = taken.range(start..start + 20).count();
            assert!(within <= 3, "{start}: {taken:?}");
        }
        let page = Page::of(&proxy);
        let attempts =
            |name| page.get("mcp_proxy_attempts_total", &[("backend", name), ("kind", "first")]);
        assert_eq!([attempts("new"), attempts("other"), attempts("api")], [100.0, 250.0, 650.0]);
        let calls =
            |name| page.get("mcp_proxy_tool_calls_total", &[("backend", name), ("tool", "sets")]);
        assert_eq!(calls("new") as usize, taken.len());
        assert_eq!(calls("new") + calls("other") + calls("api"), 800.0);
        if !over_http {
            // The proxy's own session, and one for each client that was sent there.
            assert_eq!(new.count("initialized"), 1 + 7);
        }
    }
}

#[test]
fn the_rules_of_the_one_that_is_called_come_first() {
    let scratch = scratch();
    let (own, new) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "new"));
    let canary = server(&new);
    let proxy = Proxy::start(&[
        child("api", &own, &[])
            + "hide_tools = [\"writes\"]\naliases = [{ from = \"sets\", to = \"put\" }]\n\
               default_args = { who = \"own\", plain = true }\n\
               inject_args = [{ tool = \"sets\", args = { dry = true }, overwrite = true }]\n",
        canary.backend("new")
            + "canary_of = \"api\"\nweight = 50\nhide_tools = [\"adds\"]\n\
               inject_args = [{ tool = \"sets\", args = { who = \"new\" }, overwrite = true }]\n",
    ]);
    let mut client = proxy.client_seeing(&["api__put"]);
    wait_for_state(&proxy, "new", "up");
    let mut by = [0, 0];
    for _ in 0..20 {
        let said = client.call("api__put", r#"{"dry":false}"#).said();
        assert!(said.contains(r#""dry":true"#) && said.contains(r#""plain":true"#), "{said}");
        assert!(said.contains(r#""name":"sets""#), "{said}");
        by[usize::from(said.contains(r#""who":"new""#))] += 1;
        // Its own rules keep it out, and nobody notices.
        client.call("api__adds", "{}").result();
        // So that turns and tools do not keep step.
        client.call("api__reads", "{}").result();
        assert_eq!(client.call("api__writes", "{}").error().0, -32602);
    }
    assert_eq!(by[0] + by[1], 20);
    assert!(by[1] >= 5, "{by:?}");
    assert_eq!((new.count("call adds"), own.count("call adds")), (0, 20));
    assert_eq!(new.count("call writes") + own.count("call writes"), 0);
}

#[test]
fn a_canary_that_is_not_well_costs_no_call() {
    let scratch = scratch();
    let (own, new) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "new"));
    let canary = server(&new);
    let keys =
        "canary_of = \"api\"\nweight = 50\nrate_limit = { requests = 3, period_seconds = 3600 }\n";
    let proxy = Proxy::start(&[child("api", &own, &[]), canary.backend("new") + keys]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    wait_for_state(&proxy, "new", "up");
    for _ in 0..20 {
        client.call("api__reads", "{}").result();
    }
    // Beyond its own limit its share stays where it belongs.
    assert_eq!((new.count("call "), own.count("call ")), (3, 17));
    drop(canary);
    for _ in 0..20 {
        client.call("api__reads", "{}").result();
    }
    assert_eq!(own.count("call "), 37);
}

#[test]
fn what_a_canary_began_is_its_own() {
    let scratch = scratch();
    let (own, new) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "new"));
    let (called, canary) = (server(&own), server(&new));
    let proxy = Proxy::start(&[
        called.backend("api") + "timeout.seconds = 20\n",
        canary.backend("new") + "canary_of = \"api\"\nweight = 99\ntimeout.seconds = 0.3\n",
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    wait_for_state(&proxy, "new", "up");
    // The first turn is the backend's own.
    client.call("api__reads", "{}").result();
    for (how, code) in [("internal", -32603), ("hang", -32001), ("close", -32010)] {
        let failing = format!(r#"{{"key":"{how}","fails":1000,"how":"{how}"}}"#);
        assert_eq!(client.call("api__writes", &failing).error().0, code, "{how}");
    }
    assert_eq!((new.count("call writes"), own.count("call writes")), (3, 0));
    // Refused before it was executed, it is the other one's.
    let busy = r#"{"key":"busy","fails":1,"how":"503"}"#;
    assert_eq!(client.call("api__writes", busy).error().0, -32010);
    assert_eq!((new.count("unsteady busy"), own.count("unsteady busy")), (1, 1));
    assert!(client.call("api__writes", busy).said().starts_with("2 "));
}

#[test]
fn a_failover_answers_while_the_one_that_is_called_is_down_and_no_longer() {
    for over_http in [true, false] {
        let scratch = scratch();
        let journals = ["own", "far", "near"].map(|name| Journal::new(&scratch, name));
        let [own, far, near] = &journals;
        let audit = scratch.path().join("audit.log");
        let (file, far_stub) = (scratch.path().join("down"), server(far));
        let down = file.to_str().expect("UTF-8");
        let mut primary = over_http.then(|| server(own));
        let port = primary.as_ref().map_or(0, |stub| stub.addr.port());
        let first = match &primary {
            Some(stub) => stub.backend("api"),
            None => child("api", own, &["--exit-while", down]) + "restart = { initial_ms = 50 }\n",
        };
        let proxy = Setup {
            backends: [
                first,
                far_stub.backend("far") + "failover_for = \"api\"\npriority = 9\n",
                child("near", near, &[]) + "failover_for = \"api\"\npriority = 2\n",
            ]
            .concat(),
            proxy: format!(
                "[observability]\naudit = {{ path = {} }}\n",
                quote(audit.to_str().expect("UTF-8"))
            ),
            ..Setup::default()
        }
        .start();
        proxy.client_seeing(&["api__reads"]);
        for name in ["far", "near"] {
            wait_for_state(&proxy, name, "up");
        }
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
        let tools = clients[0].names("tools/list");
        for client in &mut clients {
            client.call("api__sets", "{}").result();
            read(client);
        }
        assert_eq!(far.count("call ") + near.count("call ") + near.count("read "), 0);

        std::fs::write(&file, "").expect("write");
        match primary.take() {
            Some(stub) => drop(stub),
            None => assert!(own.signal("KILL")),
        }
        wait_until("the failover", || {
            clients[0].call("api__reads", "{}");
            near.count("call ") > 0
        });
        let before = near.count("call ");
        for client in &mut clients {
            client.call("api__writes", "{}").result();
            read(client);
            client.ask("prompts/get", r#"{"name":"api__prompt"}"#).result();
            assert_eq!(client.names("tools/list"), tools);
        }
        assert_eq!(near.count("call ") - before, 4);
        assert_eq!((near.count("read "), near.count("prompt ")), (4, 4));
        assert_eq!(far.count("call "), 0, "the second one is not needed");
        let last = wait_for("a line", || {
            let text = std::fs::read_to_string(&audit).unwrap_or_default();
            let mut lines = text.lines().filter(|line| line.contains("prompts/get"));
            let line: Value = serde_json::from_str(lines.next_back()?).ok()?;
            Some(line)
        });
        assert_eq!((&last["backend"], &last["target"]), (&"near".into(), &"api__prompt".into()));

        std::fs::remove_file(&file).expect("remove");
        let _again = over_http
            .then(|| HttpStub::start_on(port, "api", &["--annotated", "--journal", own.path()]));
        wait_for_state(&proxy, "api", "up");
        let (mine, others) = (own.count("call "), near.count("call "));
        for client in &mut clients {
            client.call("api__reads", "{}").result();
        }
        assert_eq!((own.count("call ") - mine, near.count("call ") - others), (4, 0));
    }
}

#[test]
fn a_failover_takes_over_from_a_breaker_an_ejection_and_refusals() {
    let failing = r#"{"fails":1000000,"how":"internal"}"#;
    for (keys, own_calls) in [
        ("circuit_breaker = { minimum_calls = 3, wait_duration_seconds = 1 }\n", 3),
        (
            "outlier_detection = { consecutive_errors = 3, base_ejection_seconds = 1, \
             interval_seconds = 0.1 }\n",
            3,
        ),
    ] {
        let scratch = scratch();
        let (own, spare) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "spare"));
        let (called, failover) = (server(&own), server(&spare));
        let proxy = Proxy::start(&[
            called.backend("api") + keys,
            failover.backend("spare") + "failover_for = \"api\"\n",
        ]);
        proxy.client_seeing(&["api__reads"]);
        wait_for_state(&proxy, "spare", "up");
        let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
        // What it began and failed is its own: nobody else is asked.
        for client in clients.iter_mut().take(3) {
            assert_eq!(client.call("api__writes", failing).error().0, -32603);
        }
        assert_eq!(spare.count("call "), 0);
        // Left alone, on all workers.
        for client in &mut clients {
            client.call("api__reads", "{}").result();
        }
        assert_eq!((own.count("call "), spare.count("call ")), (own_calls, 6), "{keys}");
        wait_until("the return", || {
            clients[0].call("api__reads", "{}").result();
            own.count("call ") > own_calls
        });
    }
    // Refused and surely not executed: by the server, call by call. A limit of the proxy's own is
    // no failure, and holds.
    let scratch = scratch();
    let (own, spare) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "spare"));
    let (called, failover) = (server(&own), child("spare", &spare, &[]));
    let proxy = Proxy::start(&[
        called.backend("api") + "rate_limit = { requests = 4, period_seconds = 3600 }\n",
        failover
            + "failover_for = \"api\"\n\
               inject_args = [{ tool = \"writes\", args = { fails = 0 }, overwrite = true }]\n",
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    wait_for_state(&proxy, "spare", "up");
    for how in ["503", "502", "500", "is_error"] {
        let told = client.call("api__writes", &format!(r#"{{"fails":9,"how":"{how}"}}"#));
        assert_eq!(spare.count("call "), 1, "{how}");
        match how {
            "503" => assert!(told.said().starts_with("1 "), "{told:?}"),
            "is_error" => assert_eq!(told.result()["isError"], true),
            _ => assert_eq!(told.error().0, -32010, "{how}"),
        }
    }
    assert_eq!(own.count("call "), 4);
    assert_eq!(client.call("api__writes", "{}").error().0, -32011);
    assert_eq!(spare.count("call "), 1);
}

#[test]
fn if_nobody_answers_it_is_the_one_that_was_called_that_is_named() {
    let dead = |name: &str| {
        http_backend(name, format!("127.0.0.1:{}", free_port()).parse().expect("address"))
    };
    let proxy = Proxy::start(&[
        dead("api"),
        dead("spare") + "failover_for = \"api\"\n",
        dead("last") + "failover_for = \"api\"\n",
    ]);
    let (code, text) = proxy.client().call("api__reads", "{}").error();
    assert_eq!((code, text.as_str()), (-32010, "Backend unavailable: api"));
}

#[test]
fn lists_are_a_failovers_until_the_one_that_is_called_has_been_up() {
    let scratch = scratch();
    let (own, spare) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "spare"));
    let port = free_port();
    let proxy = Proxy::start(&[
        http_backend("api", format!("127.0.0.1:{port}").parse().expect("address"))
            + "hide_tools = [\"writes\"]\naliases = [{ from = \"sets\", to = \"put\" }]\n",
        child("spare", &spare, &["--extra", "1"]) + "failover_for = \"api\"\n",
    ]);
    // The first list waits for the failover, and is shown under the rules of the one called.
    let mut clients = [proxy.client(), proxy.client(), proxy.client(), proxy.client()];
    for client in &mut clients {
        let tools = client.names("tools/list");
        assert!(tools.contains(&"api__put".to_owned()), "{tools:?}");
        assert!(tools.contains(&"api__t0000".to_owned()), "{tools:?}");
        assert!(!tools.contains(&"api__writes".to_owned()), "{tools:?}");
        assert_eq!(client.call("api__writes", "{}").error().0, -32602);
        client.call("api__put", "{}").result();
        read(client);
    }
    assert_eq!((spare.count("call sets"), spare.count("read ")), (4, 4));
    let listening = clients[0].listen();
    let _own = HttpStub::start_on(port, "api", &["--annotated", "--journal", own.path()]);
    listening.wait_for("notifications/tools/list_changed");
    for client in &mut clients {
        wait_until("its own list", || {
            !client.names("tools/list").contains(&"api__t0000".to_owned())
        });
        client.call("api__put", "{}").result();
    }
    assert_eq!(own.count("call sets"), 4);
}

#[test]
fn callers_without_sessions_are_answered_so_too() {
    let scratch = scratch();
    let (own, new) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "new"));
    let file = scratch.path().join("down");
    let modern = HttpStub::start("api", &["--annotated", "--modern", "--journal", new.path()]);
    for role in ["canary_of = \"api\"\nweight = 50\n", "failover_for = \"api\"\n"] {
        let proxy = Proxy::start(&[
            child("api", &own, &["--exit-while", file.to_str().expect("UTF-8")]),
            modern.backend("new") + role,
        ]);
        let mut caller = Caller::seeing(&proxy, &["api__reads"]);
        wait_for_state(&proxy, "new", "up");
        let heard = || [own.count("call "), new.count("call ")];
        let before = heard();
        if role.starts_with("failover") {
            std::fs::write(&file, "").expect("write");
            assert!(own.signal("KILL"));
            wait_until("the failover", || {
                caller.call("api__reads", "{}");
                heard()[1] > before[1]
            });
        }
        let before = heard();
        for _ in 0..10 {
            caller.call("api__reads", "{}").result();
            caller.read("stub://api/fixed").result();
        }
        let after = heard();
        let calls = [after[0] - before[0], after[1] - before[1]];
        let expected = if role.starts_with("canary") { [10, 0] } else { [0, 10] };
        // Calls and reads take turns, and so do the two of them.
        assert!(calls == expected || calls == [expected[1], expected[0]], "{role} {calls:?}");
        assert!(role.starts_with("canary") || calls == [0, 10], "{calls:?}");
    }
}

#[test]
fn a_call_that_is_cancelled_is_nobody_elses() {
    let scratch = scratch();
    let (own, new) = (Journal::new(&scratch, "own"), Journal::new(&scratch, "new"));
    let canary = server(&new);
    let proxy = Proxy::start(&[
        child("api", &own, &[]),
        canary.backend("new") + "canary_of = \"api\"\nweight = 99\n",
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    wait_for_state(&proxy, "new", "up");
    client.call("api__reads", "{}").result();
    client.send(&message("77", "tools/call", &call_params("api__hang", "{}")));
    new.wait_count("call hang", 1);
    client.again().notify("notifications/cancelled", r#"{"requestId":77}"#);
    new.wait_count("cancelled", 1);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(own.count("call hang"), 0);
}
