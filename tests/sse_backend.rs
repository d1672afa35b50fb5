//! HTTP with SSE, the transport of 2024-11-05, towards backends: `transport = "sse"`, and what a
//! backend of `transport = "http"` turns out to be.

use std::collections::BTreeSet;

use crate::support::client::{Client, call_params, message};
use crate::support::process::{HttpStub, Journal, Proxy, http_backend, scratch, sse_backend};
use crate::support::{quote, texts, wait_for, wait_until};

fn old(name: &str, journal: &Journal, more: &[&str]) -> HttpStub {
    let args: Vec<&str> =
        ["--old", "--journal", journal.path()].into_iter().chain(more.iter().copied()).collect();
    HttpStub::start(name, &args)
}

fn payload(text: &str) -> String {
    format!(r#"{{"payload":{}}}"#, quote(text))
}

#[test]
fn everything_is_listed_and_called_as_over_any_other_transport() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let stub = old("a", &journal, &["--page", "3"]);
    let proxy = Proxy::start(&[sse_backend("a", stub.addr)]);
    let mut client = proxy.client_seeing(&["a__echo", "a__rich"]);
    assert!(client.names("resources/list").contains(&"stub://a/fixed".to_owned()));
    assert_eq!(client.names("prompts/list"), ["a__prompt"]);
    assert_eq!(client.call("a__echo", &payload("x\ny \u{2028}")).said(), "x\ny \u{2028}");
    let rich = client.call("a__rich", "{}");
    assert!(rich.text.contains(texts::RICH_RESULT), "{rich:?}");
    assert_eq!(client.call("a__rich_error", "{}").error().0, -31999);
    let read = client.ask("resources/read", r#"{"uri":"stub://a/item/7"}"#);
    assert!(read.text.contains("item 7 of a"), "{read:?}");
    assert_eq!(client.call("a__big", r#"{"bytes":3000000}"#).said().len(), 3_000_000);
    let big = "y".repeat(2_000_000);
    assert_eq!(client.call("a__echo", &payload(&big)).said(), big);
    // What the stub is strict about: nothing premature, nothing malformed, no bytes on a stream.
    for fault in ["premature", "bad ", "accept", "content-type", "bytes on", "unknown session"] {
        assert_eq!(journal.count(fault), 0, "{fault}: {:?}", journal.lines());
    }
}

#[test]
fn each_session_has_its_own_stream_and_ends_it() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let stub = old("a", &journal, &[]);
    let proxy = Proxy::start(&[sse_backend("a", stub.addr)]);
    let mut clients: Vec<Client> = (0..5).map(|_| proxy.client_seeing(&["a__echo"])).collect();
    for client in &mut clients {
        for _ in 0..3 {
            assert_eq!(client.again().call("a__echo", &payload("x")).said(), "x");
        }
    }
    assert_eq!(journal.count("stream a"), 6, "one for each session, and the proxy's own");
    for client in &mut clients[1..] {
        client.delete();
    }
    journal.wait_count("stream closed", 4);
    assert_eq!(clients[0].call("a__echo", &payload("y")).said(), "y");

    let shared = Proxy::start(&[sse_backend("a", stub.addr) + "isolation = \"shared\"\n"]);
    let before = journal.count("stream a");
    for _ in 0..6 {
        let mut client = shared.client_seeing(&["a__echo"]);
        assert_eq!(client.call("a__echo", &payload("x")).said(), "x");
    }
    assert!(journal.count("stream a") - before <= 1);
}

#[test]
fn streams_of_sessions_are_bounded_and_closed_when_idle() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let stub = old("a", &journal, &[]);
    let keys = "max_children = 2\nidle_stop_seconds = 1\n";
    let proxy = Proxy::start(&[sse_backend("a", stub.addr) + keys]);
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client_seeing(&["a__sleep"])).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let sleep = call_params("a__sleep", r#"{"ms":2000}"#);
        client.send(&message("1", "tools/call", &sleep));
        if n < 2 {
            journal.wait_count("call sleep", n + 1);
        }
    }
    let told: Vec<_> = clients.iter_mut().map(Client::told).collect();
    let refused = told.iter().filter(|told| told.json().get("error").is_some()).count();
    assert_eq!(refused, 4, "{told:?}");
    assert!(told[2..].iter().all(|told| told.error().0 == -32012), "{told:?}");
    journal.wait_count("stream closed", 2);
    clients[5].call_until_well("a__sleep", "{}");
}

#[test]
fn progress_comes_before_the_answer_and_a_cancellation_reaches_the_call() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let stub = old("a", &journal, &[]);
    for isolation in ["session", "shared"] {
        let key = format!("isolation = \"{isolation}\"\n");
        let proxy = Proxy::start(&[sse_backend("a", stub.addr) + &key]);
        let mut client = proxy.client_seeing(&["a__progress"]);
        let params = r#"{"name":"a__progress","arguments":{"steps":3,"ms":20,"note":"n"},"_meta":{"progressToken":"t"}}"#;
        let told = client.post(&message("\"p\"", "tools/call", params));
        assert_eq!(told.said(), "n");
        assert_eq!(told.json()["id"], "p");
        assert_eq!(told.before.len(), 3, "{told:?}");
        for step in &told.before {
            assert!(step.contains(r#""progressToken":"t""#), "{step}");
        }
        let before = journal.count("cancelled");
        let hung = journal.count("call hang");
        client.send(&message("\"c\"", "tools/call", &call_params("a__hang", "{}")));
        journal.wait_count("call hang", hung + 1);
        let id = journal.last("call hang");
        client.again().notify("notifications/cancelled", r#"{"requestId":"c","reason":"no"}"#);
        journal.wait_count("cancelled", before + 1);
        assert_eq!(journal.last("cancelled"), format!("{id} no"));
    }
}

#[test]
fn killed_in_mid_call_and_back() {
    for isolation in ["session", "shared"] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "a");
        let stub = old("a", &journal, &[]);
        let key = format!("isolation = \"{isolation}\"\n");
        let proxy = Proxy::start(&[sse_backend("a", stub.addr) + &key]);
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.client_seeing(&["a__hang"])).collect();
        for client in &mut clients {
            client.send(&message("1", "tools/call", &call_params("a__hang", "{}")));
        }
        journal.wait_count("call hang", 4);
        let stub = stub.restart("a", &["--old", "--journal", journal.path()]);
        for client in &mut clients {
            let (code, text) = client.told().error();
            assert_eq!((code, text.as_str()), (-32010, "Backend connection lost: a"));
        }
        for client in &mut clients {
            let said = client.call_until_well("a__echo", &payload("back")).said();
            assert_eq!(said, "back");
        }
        drop(stub);
        wait_until("an error of a call", || {
            clients[0].call("a__echo", &payload("x")).json().get("error").is_some()
        });
    }
}

#[test]
fn a_server_that_forgets_its_streams_gets_new_ones() {
    for isolation in ["session", "shared"] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "a");
        let stub = old("a", &journal, &[]);
        let key = format!("isolation = \"{isolation}\"\n");
        let proxy = Proxy::start(&[sse_backend("a", stub.addr) + &key]);
        let mut client = proxy.client_seeing(&["a__echo"]);
        assert_eq!(client.call("a__echo", &payload("x")).said(), "x");
        client.send(&message("1", "tools/call", &call_params("a__hang", "{}")));
        journal.wait_count("call hang", 1);
        stub.forget();
        // The next message finds out; whoever waits for an answer that cannot come is told.
        let mut other = client.again();
        other.call_until_well("a__echo", &payload("y"));
        assert_eq!(client.told().error().0, -32010);
        assert!(journal.count("unknown session") >= 1);
    }
}

#[test]
fn an_endpoint_of_another_origin_is_refused() {
    let scratch = scratch();
    let (journal, theirs) = (Journal::new(&scratch, "a"), Journal::new(&scratch, "other"));
    let other = old("other", &theirs, &[]);
    let foreign = format!("http://{}/messages/?session_id=1", other.addr);
    let stub = old("a", &journal, &["--endpoint", &foreign]);
    let backends =
        [sse_backend("a", stub.addr) + "bearer_token = \"secret\"\n", sse_backend("b", other.addr)];
    let proxy = Proxy::start(&backends);
    let mut client = proxy.client_seeing(&["b__echo"]);
    journal.wait_count("stream a", 2);
    assert!(client.names("tools/list").iter().all(|tool| !tool.starts_with("a__")));
    assert_eq!(client.call("a__echo", &payload("x")).error().0, -32010);
    assert!(proxy.stderr().contains("another origin"), "{}", proxy.stderr());
    assert_eq!(theirs.count("unknown session"), 0, "nothing was sent there");
    assert_eq!(journal.count("initialize"), 0);
}

#[test]
fn calls_side_by_side_each_get_their_own_answer() {
    let scratch = scratch();
    let (one, two) = (Journal::new(&scratch, "a"), Journal::new(&scratch, "b"));
    // The second server accepts a message only when it has handled it.
    let stubs = [old("a", &one, &[]), old("b", &two, &["--accept-late"])];
    let shared = "isolation = \"shared\"\n";
    let proxy = Proxy::start(&[
        sse_backend("a", stubs[0].addr) + shared,
        sse_backend("b", stubs[1].addr) + shared,
    ]);
    proxy.client_seeing(&["a__progress", "b__progress"]);
    let threads: Vec<_> = (0..64)
        .map(|n| {
            let mut client = proxy.client();
            std::thread::spawn(move || {
                for backend in ["a", "b"] {
                    let note = format!("{backend} {n}");
                    let arguments = format!(r#"{{"steps":1,"ms":500,"note":"{note}"}}"#);
                    let params = call_params(&format!("{backend}__progress"), &arguments);
                    let told = client.post(&message("1", "tools/call", &params));
                    assert_eq!(told.said(), note);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a caller");
    }
    for journal in [&one, &two] {
        let ids: BTreeSet<String> = journal
            .lines()
            .iter()
            .filter_map(|line| line.strip_prefix("call progress ").map(str::to_owned))
            .collect();
        assert_eq!(ids.len(), 64);
        assert_eq!(journal.count("premature"), 0);
    }
}

#[test]
fn a_changed_list_is_heard_on_the_stream() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let stub = old("a", &journal, &[]);
    let proxy = Proxy::start(&[sse_backend("a", stub.addr)]);
    let mut client = proxy.client_seeing(&["a__add"]);
    client.call("a__add", r#"{"name":"fresh"}"#).said();
    client.wait_for_tools(&["a__fresh"]);
}

#[test]
fn a_backend_over_http_may_turn_out_to_be_of_either_kind_at_any_time() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let args = ["--journal", journal.path()];
    let older = ["--old", "--journal", journal.path()];
    let mut stub = HttpStub::start("a", &older);
    let proxy = Proxy::start(&[http_backend("a", stub.addr)]);
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client_seeing(&["a__echo"])).collect();
    assert!(journal.count("refused") >= 1, "Streamable HTTP is tried first");
    let mut echo = |word: &str| {
        for client in &mut clients {
            let told = client.call_until_well("a__echo", &payload(word));
            assert_eq!(told.said(), word);
        }
    };
    echo("one");
    assert_eq!(journal.count("stream a"), 5);
    stub = stub.restart("a", &args);
    echo("two");
    assert!(journal.count("initialize") >= 5);
    let streams = journal.count("stream a");
    stub = stub.restart("a", &older);
    echo("three");
    wait_for("new event streams", || (journal.count("stream a") > streams).then_some(()));
    drop(stub);
}
