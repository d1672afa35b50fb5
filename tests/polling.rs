//! Servers over HTTP that end the stream of a call before its answer, to be asked for the rest
//! (MCP 2025-11-25, Transports, Sending Messages to the Server, 6).

use serde_json::{Value, json};

use crate::support::client::{Client, call_params, message};
use crate::support::http::{Event, Events};
use crate::support::process::{HttpStub, Journal, Proxy, scratch};

struct World {
    proxy: Proxy,
    journal: Journal,
    _stub: HttpStub,
    _scratch: tempfile::TempDir,
}

fn world(keys: &str) -> World {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "web");
    let stub = HttpStub::start("web", &["--polling", "--journal", journal.path()]);
    let proxy = Proxy::start(&[stub.backend("web") + keys]);
    proxy.client_seeing(&["web__poll"]);
    World { proxy, journal, _stub: stub, _scratch: scratch }
}

/// Sends a call; its answer must be an event stream, which is read to its end.
fn stream(client: &mut Client, id: u64, arguments: &Value) -> Vec<Event> {
    let params = call_params("web__poll", &arguments.to_string());
    client.send(&message(&id.to_string(), "tools/call", &params));
    rest(client)
}

fn rest(client: &mut Client) -> Vec<Event> {
    let head = client.conn.head();
    assert!(head.is_event_stream(), "{head:?}");
    let mut events = Events::default();
    std::iter::from_fn(|| client.conn.any_event(&mut events)).collect()
}

fn resume(client: &mut Client, last: &str) -> Vec<Event> {
    let lines = format!("{}Accept: text/event-stream\r\nLast-Event-ID: {last}", client.lines());
    client.conn.send(format!("GET /mcp HTTP/1.1\r\n{lines}\r\n\r\n").as_bytes());
    rest(client)
}

/// What log messages say, then the text of the result.
fn said(events: &[Event]) -> Vec<String> {
    let texts = events.iter().filter(|event| !event.data.is_empty()).map(|event| {
        let message: Value = serde_json::from_str(&event.data).expect("JSON");
        let text = message["params"]["data"].as_str();
        text.or(message["result"]["content"][0]["text"].as_str()).expect("text").to_owned()
    });
    texts.collect()
}

#[test]
fn a_client_that_can_is_sent_away_as_the_server_did() {
    // With rows around the call and without.
    for keys in ["", "concurrency.max_concurrent = 4\n"] {
        let world = world(keys);
        for (n, say) in [false, true, false, true].into_iter().enumerate() {
            let mut client = world.proxy.client();
            let before = stream(&mut client, 5, &json!({ "rounds": 2, "say": say }));
            let wanted: &[&str] = if say { &["before"] } else { &[] };
            assert_eq!(said(&before), wanted);
            let last = before.last().expect("a priming event");
            assert_eq!((before[0].data.as_str(), last.data.as_str()), ("", ""), "{before:?}");
            let last = last.id.clone().expect("its id");
            // The connection is free, also for the rest, and so is any other one.
            assert_eq!(client.call("web__echo", r#"{"payload":"x"}"#).said(), "x");
            let mut other = if n < 2 { client } else { client.again() };
            let after = resume(&mut other, &last);
            assert_eq!(said(&after), ["round 1", "round 2", "polled"]);
            let mut ids: Vec<_> = before.iter().chain(&after).map(|event| &event.id).collect();
            let count = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), count, "{before:?} {after:?}");
        }
        assert_eq!(world.journal.count("resumed"), 8);
    }
}

#[test]
fn the_pause_is_the_one_that_the_server_asked_for() {
    let world = world("");
    let mut client = world.proxy.client();
    client.send(&message("1", "tools/call", &call_params("web__poll", "{}")));
    client.conn.head();
    let text = String::from_utf8(client.conn.body()).unwrap();
    assert!(text.starts_with("id: ") && text.ends_with("\nretry: 20\ndata: \n\n"), "{text}");
}

#[test]
fn older_clients_keep_their_stream() {
    let world = world("");
    for revision in ["2025-03-26", "2025-06-18"] {
        let mut client = Client::connect_at(world.proxy.addr, revision);
        let all = stream(&mut client, 5, &json!({ "rounds": 3, "say": true }));
        assert_eq!(said(&all), ["before", "round 1", "round 2", "round 3", "polled"]);
    }
    // A batch is one stream of several calls: none of them ends it.
    let mut client = Client::connect_at(world.proxy.addr, "2025-03-26");
    let call = |id: &str| message(id, "tools/call", &call_params("web__poll", "{}"));
    client.send(&format!("[{},{}]", call("1"), call("2")));
    let told = client.told();
    assert_eq!(told.before.iter().chain([&told.text]).filter(|m| m.contains("polled")).count(), 2);
}

#[test]
fn a_connection_that_was_lost_is_no_wish_of_the_server() {
    let world = world("");
    let mut client = world.proxy.client();
    let all = stream(&mut client, 5, &json!({ "cut": true, "say": true }));
    assert_eq!(said(&all), ["before", "round 1", "polled"]);
}

#[test]
fn what_cannot_be_taken_up_ends_with_an_error() {
    let world = world("");
    let mut client = Client::connect_at(world.proxy.addr, "2025-06-18");
    let told = client.call("web__poll", r#"{"lost":true}"#);
    assert_eq!(told.error().0, -32010, "{told:?}");
    assert_eq!(world.journal.count("resumed"), 1, "asked once");
    // A client that was sent away finds it when it comes back.
    let mut client = world.proxy.client();
    let before = stream(&mut client, 5, &json!({ "lost": true }));
    let last = before.last().and_then(|event| event.id.clone()).expect("an id");
    let after = resume(&mut client, &last);
    let answer: Value = serde_json::from_str(&after[0].data).expect("JSON");
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32010)));
}

#[test]
fn a_call_that_is_away_can_be_cancelled() {
    let world = world("");
    let mut client = world.proxy.client();
    let before = stream(&mut client, 5, &json!({ "rounds": 100_000 }));
    client.notify("notifications/cancelled", r#"{"requestId":5}"#);
    world.journal.wait_count("cancelled", 1);
    let last = before.last().and_then(|event| event.id.clone()).expect("an id");
    let lines = format!("{}Accept: text/event-stream\r\nLast-Event-ID: {last}", client.lines());
    crate::support::wait_until("nothing to resume", || {
        let mut other = client.again();
        other.conn.send(format!("GET /mcp HTTP/1.1\r\n{lines}\r\n\r\n").as_bytes());
        other.conn.head().status == 400
    });
}
