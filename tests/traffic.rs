//! Rules that send calls elsewhere: mirrors.

use crate::metrics::Page;
use crate::support::client::{Client, call_params, message};
use crate::support::process::{
    HttpStub, Journal, Proxy, free_port, http_backend, scratch, stdio_backend,
};
use crate::support::wait_until;

#[test]
fn a_mirror_hears_its_share_and_is_not_seen() {
    let scratch = scratch();
    let (pipe, web) = (Journal::new(&scratch, "pipe"), Journal::new(&scratch, "web"));
    let called = Journal::new(&scratch, "called");
    let stub = HttpStub::start("web", &["--annotated", "--journal", web.path()]);
    let primary = HttpStub::start("api", &["--annotated", "--journal", called.path()]);
    let proxy = Proxy::start(&[
        primary.backend("api")
            + "hide_tools = [\"writes\"]\ndefault_args = { primary = true }\n\
               aliases = [{ from = \"sets\", to = \"put\" }]\n",
        stub.backend("web")
            + "mirror_of = \"api\"\nmirror_percent = 10\ndefault_args = { v = 2 }\n",
        stdio_backend("pipe", &["--annotated", "--journal", pipe.path()]) + "mirror_of = \"api\"\n",
    ]);
    proxy.client_seeing(&["api__reads"]);
    let mut clients: Vec<Client> = (0..5).map(|_| proxy.client()).collect();
    let names = clients[0].names("tools/list");
    assert!(names.iter().all(|name| name.starts_with("api__")), "{names:?}");
    assert_eq!(clients[0].names("resources/list"), ["stub://api/fixed"]);
    for hidden in ["web__reads", "pipe__reads"] {
        assert_eq!(
            clients[0].call(hidden, "{}").error(),
            (-32602, format!("Unknown tool: {hidden}"))
        );
    }
    for n in 0..1_000 {
        let client = &mut clients[n % 5];
        let said = client.call("api__put", &format!(r#"{{"key":"k{n}"}}"#)).said();
        assert!(said.contains(r#""primary":true"#), "the answer is the called one's: {said}");
    }
    // What is refused is not mirrored.
    assert_eq!(clients[0].call("api__writes", "{}").error().0, -32602);
    pipe.wait_count("unsteady k", 1_000);
    web.wait_count("unsteady k", 100);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(called.count("call sets"), 1_000);
    assert_eq!((pipe.count("call sets"), pipe.count("call writes")), (1_000, 0));
    // Evenly: one of any ten.
    let heard: Vec<usize> = web
        .lines()
        .iter()
        .filter_map(|line| line.strip_prefix("unsteady k")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(heard.len(), 100);
    let tens: std::collections::BTreeSet<usize> = heard.iter().map(|n| n / 10).collect();
    assert_eq!(tens.len(), 100, "{heard:?}");
    // All of them ended as the calls did.
    wait_until("the comparison", || {
        let page = Page::of(&proxy);
        let of = |name, result| {
            page.get("mcp_proxy_mirrored_total", &[("backend", name), ("result", result)])
        };
        (of("pipe", "same"), of("web", "same")) == (1_000.0, 100.0)
    });
    let differences = Page::of(&proxy).get("mcp_proxy_mirrored_total", &[("result", "different")]);
    assert_eq!(differences, 0.0);
}

#[test]
fn a_mirror_that_ends_otherwise_is_counted() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "api");
    let mirror = HttpStub::start("mirror", &["--annotated"]);
    let broken = "inject_args = [\
        { tool = \"sets\", args = { fails = 1000, how = \"is_error\" }, overwrite = true },\
        { tool = \"adds\", args = { fails = 1000, how = \"500\" }, overwrite = true }]\n\
        hide_tools = [\"echo\"]\n";
    let proxy = Proxy::start(&[
        stdio_backend("api", &["--annotated", "--journal", journal.path()]),
        mirror.backend("mirror") + "mirror_of = \"api\"\n" + broken,
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    for _ in 0..5 {
        client.call("api__reads", "{}").result();
        // Fails at both.
        assert_eq!(client.call("api__reads", r#"{"key":"x","fails":9}"#).error().0, -32603);
        assert!(client.call("api__sets", "{}").result().get("isError").is_none());
        client.call("api__adds", "{}").result();
        // Its own rules keep the mirror out of these.
        client.call("api__echo", "{}").result();
    }
    let mut leaver = proxy.client();
    let slow = r#"{"key":"gone","ms":3000}"#;
    leaver.send(&message("5", "tools/call", &call_params("api__reads", slow)));
    journal.wait_count("unsteady gone", 1);
    leaver.again().notify("notifications/cancelled", r#"{"requestId":5}"#);
    let count = |result| Page::of(&proxy).get("mcp_proxy_mirrored_total", &[("result", result)]);
    wait_until("the comparison", || {
        (count("same"), count("different"), count("unknown")) == (10.0, 10.0, 1.0)
    });
    assert_eq!(count("dropped"), 0.0);
}

/// Whether its rules let a call through stands in a list that it does not give to this client.
#[test]
fn a_mirror_that_cannot_be_asked_what_it_has_has_failed() {
    let mirror = HttpStub::start("mirror", &["--annotated", "--token", "a-token-of-others"]);
    let proxy = Proxy::start(&[
        stdio_backend("api", &["--annotated"]),
        mirror.backend("mirror")
            + "mirror_of = \"api\"\nforward_auth = true\nhide_destructive = true\n",
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    for _ in 0..5 {
        client.call("api__reads", "{}").result();
    }
    let count = |result| Page::of(&proxy).get("mcp_proxy_mirrored_total", &[("result", result)]);
    wait_until("the comparison", || count("different") == 5.0);
}

#[test]
fn a_mirror_that_fails_or_hangs_changes_nothing() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "slow");
    let stub = HttpStub::start("slow", &["--annotated", "--journal", journal.path()]);
    let gone = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let proxy = Proxy::start(&[
        stdio_backend("api", &["--annotated"]),
        stub.backend("slow") + "mirror_of = \"api\"\n",
        http_backend("gone", gone) + "mirror_of = \"api\"\n",
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    for n in 0..20 {
        // The stub counts executions by key: the mirror is another process, and fails or hangs on
        // its own count, for what is the first there is the first here too.
        let told = client.call("api__echo", &format!(r#"{{"payload":"p{n}"}}"#));
        assert_eq!(told.said(), format!("p{n}"));
    }
    journal.wait_count("call echo", 20);
    drop(stub);
    for n in 0..20 {
        let told = client.call("api__echo", &format!(r#"{{"payload":"q{n}"}}"#));
        assert_eq!(told.said(), format!("q{n}"));
        assert!(told.before.is_empty() && !told.as_events);
    }
    // More than may be under way at once: mirrors that hang hold nobody up.
    let hanging = HttpStub::start("hanging", &["--annotated"]);
    let proxy = Proxy::start(&[
        stdio_backend("api", &["--annotated"]),
        hanging.backend("hanging")
            + "mirror_of = \"api\"\ntimeout.tools = { sleep = 60 }\n\
            inject_args = [{ tool = \"sleep\", args = { ms = 60000 }, overwrite = true }]\n",
    ]);
    let mut client = proxy.client_seeing(&["api__reads"]);
    for _ in 0..600 {
        assert_eq!(client.call("api__sleep", r#"{"ms":0}"#).said(), "slept");
    }
    let dropped = Page::of(&proxy).get("mcp_proxy_mirrored_total", &[("result", "dropped")]);
    assert!(dropped >= 600.0 - 2.0 * 256.0, "{dropped}");
    // Neither do those that send more than anybody could keep.
    let flooding = HttpStub::start("flooding", &["--sse"]);
    let proxy = Proxy::start(&[
        stdio_backend("api", &[]),
        flooding.backend("flooding")
            + "mirror_of = \"api\"\n\
               inject_args = [{ tool = \"progress\", args = { steps = 20000 }, overwrite = true },\
               { tool = \"big\", args = { bytes = 8000000 }, overwrite = true }]\n",
    ]);
    let mut client = proxy.client_seeing(&["api__echo"]);
    for _ in 0..10 {
        let params =
            r#"{"name":"api__progress","arguments":{"steps":2},"_meta":{"progressToken":1}}"#;
        let told = client.ask("tools/call", params);
        assert_eq!((told.said().as_str(), told.before.len()), ("done", 2));
        assert_eq!(client.call("api__big", r#"{"bytes":10}"#).said().len(), 10);
    }
    wait_until("the floods", || {
        Page::of(&proxy).get("mcp_proxy_mirrored_total", &[("result", "same")]) == 20.0
    });
}

/// A mirror executes what it is asked again for too; only the first time was counted.
#[test]
fn every_attempt_at_a_mirror_is_counted() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "mirror");
    let mirror = HttpStub::start("mirror", &["--annotated", "--journal", journal.path()]);
    let proxy = Proxy::start(&[
        stdio_backend("api", &["--annotated"]),
        mirror.backend("mirror")
            + "mirror_of = \"api\"\nretry = { initial_backoff_ms = 1 }\n\
               inject_args = [{ tool = \"sets\", args = { fails = 2, how = \"internal\" } }]\n",
    ]);
    let mut client = proxy.client_seeing(&["api__sets"]);
    client.call("api__sets", r#"{"key":"m"}"#).result();
    journal.wait_count("unsteady m ", 3);
    let count = |kind| {
        let labels = [("backend", "mirror"), ("kind", kind)];
        Page::of(&proxy).get("mcp_proxy_attempts_total", &labels)
    };
    wait_until("the count", || count("mirror") > 0.0);
    assert_eq!([count("mirror"), count("first"), count("retry")], [3.0, 0.0, 0.0]);
}
