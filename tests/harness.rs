//! The harness against the stub, without a proxy between them: what it says of the proxy is worth
//! nothing before this holds.

use crate::support::client::{Client, call_params, message};
use crate::support::process::{HttpStub, Journal, scratch};
use crate::support::{http, texts};

#[test]
fn a_session_with_the_stub() {
    for args in [&[][..], &["--sse"], &["--sse", "--prime"]] {
        let stub = HttpStub::start("one", args);
        let mut client = stub.client();
        assert_eq!(client.hello["serverInfo"]["name"], "one");
        assert_eq!(client.call("echo", r#"{"payload":"grüß"}"#).said(), "grüß");
        let told = client.call("rich", "{}");
        assert_eq!(told.as_events, !args.is_empty());
        assert!(told.text.contains(texts::RICH_RESULT), "{}", told.text);
        let (code, text) = client.call("rich_error", "{}").error();
        assert_eq!((code, text.as_str()), (-31999, "as ever \"said\""));
        assert_eq!(
            client.call("big", r#"{"bytes":3000000,"chunked":true}"#).said().len(),
            3_000_000
        );
        assert_eq!(client.call("slow_body", r#"{"bytes":50,"ms":1}"#).said().len(), 50);
    }
}

#[test]
fn progress_turns_the_answer_into_a_stream() {
    let stub = HttpStub::start("one", &[]);
    let mut client = stub.client();
    let params = r#"{"name":"progress","arguments":{"steps":3},"_meta":{"progressToken":"t"}}"#;
    let told = client.ask("tools/call", params);
    assert!(told.as_events);
    assert_eq!(told.before.len(), 3);
    assert!(told.before[2].contains(texts::PROGRESS_EXTRA));
    assert_eq!(told.said(), "done");
}

#[test]
fn pages_are_cut_and_wrong_cursors_refused() {
    let stub = HttpStub::start("one", &["--page", "5", "--extra", "3"]);
    let mut client = stub.client();
    let first = client.ask("tools/list", "{}").result();
    assert_eq!(first["tools"].as_array().unwrap().len(), 5);
    let next = format!(r#"{{"cursor":{}}}"#, first["nextCursor"]);
    assert_eq!(client.ask("tools/list", &next).result()["tools"].as_array().unwrap().len(), 5);
    assert_eq!(client.ask("tools/list", r#"{"cursor":"page 99"}"#).error().0, -32602);
    assert_eq!(client.call("t0002", "{}").said(), "t0002 called");
}

#[test]
fn sessions_are_forgotten_on_demand() {
    for (lost, status, code) in [("404", 404, -32001), ("400", 400, -32000)] {
        let stub = HttpStub::start("one", &["--lost", lost]);
        let mut client = stub.client();
        stub.forget();
        let told = client.call("echo", "{}");
        assert_eq!(told.status, status);
        assert_eq!(told.error().0, code);
    }
}

#[test]
fn cancellation_is_recorded_and_announcements_are_streamed() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let stub = HttpStub::start("one", &["--journal", journal.path()]);
    let mut client = stub.client();
    let listening = client.listen();
    journal.wait_count("stream", 1);
    client.call("add", r#"{"kind":"tool","name":"fresh"}"#).result();
    listening.wait_for("notifications/tools/list_changed");
    client.wait_for_tools(&["fresh"]);

    let mut other = client.again();
    other.send(&message("9", "tools/call", &call_params("hang", "{}")));
    journal.wait_count("call hang 9", 1);
    client.notify("notifications/cancelled", r#"{"requestId":9,"reason":"why"}"#);
    journal.wait_count("cancelled 9 why", 1);
}

#[test]
fn the_stub_is_strict() {
    let stub = HttpStub::start("one", &[]);
    let mut client = stub.client();
    client.revision = "2025-06-18".into();
    assert_eq!(client.ask("ping", "{}").status, 400, "the wrong version header");
    assert_eq!(http::once(stub.addr, "GET", "/none", "").status, 404);
    let mut old = Client::connect_at(stub.addr, "2024-11-05");
    assert_eq!(old.call("echo", r#"{"payload":"x"}"#).said(), "x");
}
