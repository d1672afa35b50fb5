//! Progress and cancellation in both directions, over every way that messages can travel.

use std::collections::HashSet;

use crate::support::client::{Client, call_params, message};
use crate::support::process::{HttpStub, Journal, Proxy, scratch, stdio_backend};
use crate::support::texts;

/// The stub behind the proxy over stdio, as JSON over HTTP, and as events; each with a journal.
struct World {
    proxy: Proxy,
    journals: Vec<(&'static str, Journal)>,
    _stubs: Vec<HttpStub>,
    _scratch: tempfile::TempDir,
}

fn world() -> World {
    let scratch = scratch();
    let journals: Vec<(&str, Journal)> = ["stdio", "json", "sse", "shared"]
        .into_iter()
        .map(|name| (name, Journal::new(&scratch, name)))
        .collect();
    let path = |n: usize| journals[n].1.path();
    let stubs = vec![
        HttpStub::start("json", &["--journal", path(1)]),
        HttpStub::start("sse", &["--sse", "--prime", "--journal", path(2)]),
        HttpStub::start("shared", &["--journal", path(3)]),
    ];
    let proxy = Proxy::start(&[
        stdio_backend("stdio", &["--journal", path(0)]),
        stubs[0].backend("json"),
        stubs[1].backend("sse"),
        stubs[2].backend("shared") + "isolation = \"shared\"\n",
    ]);
    proxy.client_seeing(&["stdio__echo", "json__echo", "sse__echo", "shared__echo"]);
    World { proxy, journals, _stubs: stubs, _scratch: scratch }
}

fn progress(backend: &str, token: &str, steps: usize, note: &str) -> String {
    format!(
        r#"{{"name":"{backend}__progress","arguments":{{"steps":{steps},"note":"{note}"}},"_meta":{{"progressToken":{token}}}}}"#
    )
}

#[test]
fn progress_arrives_whole_in_order_and_with_the_clients_token() {
    let world = world();
    let mut client = world.proxy.client();
    for (backend, _) in &world.journals {
        for token in ["\"tok\"", "0", "7", "\"7\"", "9007199254740993"] {
            let told = client.ask("tools/call", &progress(backend, token, 5, "n"));
            assert!(told.as_events, "{backend}: {told:?}");
            assert_eq!(told.before.len(), 5, "{backend} {token}: {told:?}");
            for (step, text) in told.before.iter().enumerate() {
                let expected = format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progress":{},"progressToken":{token},"total":5,"message":"n",{}}}}}"#,
                    step + 1,
                    texts::PROGRESS_EXTRA
                );
                assert_eq!(*text, expected, "{backend}");
            }
            assert_eq!(told.said(), "n");
        }
        // Without a token nothing precedes the answer.
        let told = client.call(&format!("{backend}__progress"), r#"{"steps":3}"#);
        assert!(!told.as_events && told.before.is_empty(), "{backend}: {told:?}");
    }
}

#[test]
fn progress_arrives_while_the_call_runs_and_a_cancelled_stream_ends_without_an_answer() {
    let world = world();
    for (backend, journal) in &world.journals {
        let mut client = world.proxy.client();
        // All steps together take longer than the deadline of a test: what is seen before it has
        // not waited for the answer.
        let params = format!(
            r#"{{"name":"{backend}__progress","arguments":{{"steps":1000,"ms":100}},"_meta":{{"progressToken":1}}}}"#
        );
        client.send(&message("901", "tools/call", &params));
        let head = client.conn.head();
        assert!(head.is_event_stream());
        let mut events = Default::default();
        let event = client.conn.event(&mut events).expect("the first step");
        assert!(event.data.contains(r#""progress":1,"#), "{event:?}");
        client.again().notify("notifications/cancelled", r#"{"requestId":901}"#);
        journal.wait_count("cancelled", 1);
        while let Some(event) = client.conn.event(&mut events) {
            assert!(event.data.contains("notifications/progress"), "{event:?}");
        }
    }
}

#[test]
fn a_cancellation_reaches_the_right_call_with_the_backends_own_id() {
    let world = world();
    for (backend, journal) in &world.journals {
        // Three clients with equal ids; the second one cancels, from another connection.
        let mut clients: Vec<Client> = (0..3).map(|_| world.proxy.client()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            let hang = call_params(&format!("{backend}__hang"), "{}");
            client.send(&message("\"same\"", "tools/call", &hang));
            journal.wait_count("call hang", n + 1);
        }
        let ids: Vec<String> = journal
            .lines()
            .iter()
            .filter_map(|line| line.strip_prefix("call hang ").map(str::to_owned))
            .collect();
        let mut canceller = clients[1].again();
        // Of another type: another request, which does not exist.
        canceller.notify("notifications/cancelled", r#"{"requestId":0}"#);
        canceller.notify("notifications/cancelled", r#"{"requestId":"same","reason":"no more"}"#);
        journal.wait_count("cancelled", 1);
        let said: Vec<String> = journal
            .lines()
            .iter()
            .filter_map(|line| line.strip_prefix("cancelled ").map(str::to_owned))
            .collect();
        assert_eq!(said, [format!("{} no more", ids[1])], "{backend}: {ids:?}");
        // The one who cancelled is let go: nothing, or an end without an answer, but no result.
        if let Some(head) = clients[1].conn.try_head() {
            let mut body = Vec::new();
            while let Ok(Some(piece)) = clients[1].conn.piece() {
                body.extend(piece);
            }
            let text = String::from_utf8_lossy(&body);
            assert!(!text.contains("\"result\""), "{backend} {head:?}: {text}");
        }
        for n in [0, 2] {
            let mut canceller = clients[n].again();
            canceller.notify("notifications/cancelled", r#"{"requestId":"same"}"#);
        }
        journal.wait_count("cancelled", 3);
        // On a shared channel every call had an id of its own.
        if ["stdio", "shared"].contains(backend) {
            assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 3, "{backend}: {ids:?}");
        }
        let mut client = world.proxy.client();
        let echo = client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#);
        assert_eq!(echo.said(), "x");
    }
}

#[test]
fn nobody_can_cancel_the_call_of_another_session() {
    let world = world();
    for (backend, journal) in &world.journals {
        let mut caller = world.proxy.client();
        let sleep = call_params(&format!("{backend}__sleep"), r#"{"ms":1500}"#);
        caller.send(&message("5", "tools/call", &sleep));
        journal.wait_count("call sleep", 1);
        let mut stranger = world.proxy.client();
        stranger.notify("notifications/cancelled", r#"{"requestId":5}"#);
        assert_eq!(caller.told().said(), "slept", "{backend}");
        assert_eq!(journal.count("cancelled"), 0, "{backend}");
    }
}

#[test]
fn a_late_answer_after_a_cancellation_reaches_nobody() {
    let world = world();
    for (backend, journal) in &world.journals {
        let mut caller = world.proxy.client();
        let arguments = r#"{"ms":600000,"stubborn":true,"late_ms":300}"#;
        let sleep = call_params(&format!("{backend}__sleep"), arguments);
        caller.send(&message("5", "tools/call", &sleep));
        journal.wait_count("call sleep", 1);
        caller.again().notify("notifications/cancelled", r#"{"requestId":5}"#);
        journal.wait_count("late", 1);
        let mut others: Vec<Client> = (0..8).map(|_| world.proxy.client()).collect();
        for n in 0..50 {
            let other = &mut others[n % 8];
            let arguments = format!(r#"{{"payload":"{n}"}}"#);
            let body = call_params(&format!("{backend}__echo"), &arguments);
            let told = other.post(&message("5", "tools/call", &body));
            assert_eq!(told.said(), n.to_string(), "{backend}");
        }
    }
}

#[test]
fn a_client_that_leaves_in_mid_call_harms_nobody() {
    let world = world();
    for (backend, journal) in &world.journals {
        for n in 1..=5 {
            let mut leaver = world.proxy.client();
            let sleep = call_params(&format!("{backend}__sleep"), r#"{"ms":300}"#);
            leaver.send(&message("1", "tools/call", &sleep));
            journal.wait_count("call sleep", n);
        }
        let mut client = world.proxy.client();
        for n in 0..20 {
            let arguments = format!(r#"{{"payload":"{n}"}}"#);
            assert_eq!(client.call(&format!("{backend}__echo"), &arguments).said(), n.to_string());
        }
    }
}

#[test]
fn calls_of_one_session_run_side_by_side() {
    let world = world();
    for (backend, journal) in &world.journals {
        let mut first = world.proxy.client();
        first.send(&message("1", "tools/call", &call_params(&format!("{backend}__hang"), "{}")));
        journal.wait_count("call hang", 1);
        let mut second = first.again();
        let told = second.call(&format!("{backend}__echo"), r#"{"payload":"beside"}"#);
        assert_eq!(told.said(), "beside", "{backend}");
        second.notify("notifications/cancelled", r#"{"requestId":1}"#);
        journal.wait_count("cancelled", 1);
    }
}

/// Its calls ran on to their time limits, with nobody to take the answers.
#[test]
fn the_end_of_a_session_ends_its_calls() {
    let world = world();
    for (backend, journal) in &world.journals {
        let mut client = world.proxy.client();
        // On either worker.
        let mut callers: Vec<Client> = (0..4).map(|_| client.again()).collect();
        for (n, caller) in callers.iter_mut().enumerate() {
            let hang = call_params(&format!("{backend}__hang"), "{}");
            caller.send(&message(&n.to_string(), "tools/call", &hang));
            journal.wait_count("call hang", n + 1);
        }
        assert_eq!(client.delete().status, 200, "{backend}");
        for caller in &mut callers {
            if caller.conn.try_head().is_some() {
                let mut text = Vec::new();
                while let Ok(Some(piece)) = caller.conn.piece() {
                    text.extend(piece);
                }
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(!text.contains("\"result\""), "{backend}: {text}");
            }
        }
        // A session of the client's own with the backend ends with its calls in it.
        if ["stdio", "shared"].contains(backend) {
            journal.wait_count("cancelled", 4);
        }
    }
}
