//! Rules that send calls elsewhere: mirrors.

use crate::support::client::Client;
use crate::support::process::{
    HttpStub, Journal, Proxy, free_port, http_backend, scratch, stdio_backend,
};

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
    for n in 0..200 {
        let client = &mut clients[n % 5];
        let said = client.call("api__put", &format!(r#"{{"key":"k{n}"}}"#)).said();
        assert!(said.contains(r#""primary":true"#), "the answer is the called one's: {said}");
    }
    // What is refused is not mirrored.
    assert_eq!(clients[0].call("api__writes", "{}").error().0, -32602);
    pipe.wait_count("unsteady k", 200);
    web.wait_count("unsteady k", 20);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(called.count("call sets"), 200);
    assert_eq!((pipe.count("call sets"), pipe.count("call writes")), (200, 0));
    // Evenly: one of any ten.
    let heard: Vec<usize> = web
        .lines()
        .iter()
        .filter_map(|line| line.strip_prefix("unsteady k")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(heard.len(), 20);
    let tens: std::collections::BTreeSet<usize> = heard.iter().map(|n| n / 10).collect();
    assert_eq!(tens.len(), 20, "{heard:?}");
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
    for _ in 0..300 {
        assert_eq!(client.call("api__sleep", r#"{"ms":0}"#).said(), "slept");
    }
}
