//! Resumption: a client whose connection died comes back with the last event that it saw
//! (MCP 2025-11-25, Transports, Resumability and Redelivery).

use std::collections::HashSet;
use std::net::Shutdown;

use serde_json::{Value, json};

use crate::support::client::{Client, message};
use crate::support::http::{Conn, Event, Events, Head};
use crate::support::process::{HttpStub, Journal, Proxy, scratch, stdio_backend};
use crate::support::wait_until;

struct World {
    proxy: Proxy,
    journals: [(&'static str, Journal); 2],
    _stub: HttpStub,
    _scratch: tempfile::TempDir,
}

/// A child and a server, both of which remember what they were asked.
fn world() -> World {
    let scratch = scratch();
    let (pipe, web) = (Journal::new(&scratch, "pipe"), Journal::new(&scratch, "web"));
    let stub = HttpStub::start("web", &["--journal", web.path()]);
    let proxy =
        Proxy::start(&[stdio_backend("pipe", &["--journal", pipe.path()]), stub.backend("web")]);
    proxy.client_seeing(&["pipe__progress", "web__progress"]);
    World { proxy, journals: [("pipe", pipe), ("web", web)], _stub: stub, _scratch: scratch }
}

/// One connection with an event stream on it.
struct Stream {
    conn: Conn,
    events: Events,
    head: Head,
}

impl Stream {
    fn of(mut conn: Conn) -> Stream {
        let head = conn.head();
        Stream { conn, events: Events::default(), head }
    }

    /// The rest of a stream, from a connection of its own.
    fn resume(client: &Client, last: &str) -> Stream {
        let mut conn = Conn::open(client.addr);
        let lines = client.lines();
        conn.send(
            format!(
                "GET /mcp HTTP/1.1\r\n{lines}Accept: text/event-stream\r\nLast-Event-ID: {last}\r\n\r\n"
            )
            .as_bytes(),
        );
        Stream::of(conn)
    }

    fn listen(client: &Client) -> Stream {
        let mut conn = Conn::open(client.addr);
        let lines = client.lines();
        conn.send(
            format!("GET /mcp HTTP/1.1\r\n{lines}Accept: text/event-stream\r\n\r\n").as_bytes(),
        );
        Stream::of(conn)
    }

    fn next(&mut self) -> Option<Event> {
        assert_eq!(self.head.status, 200);
        self.conn.any_event(&mut self.events)
    }

    /// Really closes the socket.
    fn cut(self) {
        let _ = self.conn.stream().shutdown(Shutdown::Both);
    }
}

/// Starts a call that makes `steps` steps.
fn begin(client: &Client, id: u64, backend: &str, steps: u64, ms: u64) -> Stream {
    let params = format!(
        r#"{{"name":"{backend}__progress","arguments":{{"steps":{steps},"ms":{ms}}},"_meta":{{"progressToken":7}}}}"#
    );
    let mut one = client.again();
    one.send(&message(&id.to_string(), "tools/call", &params));
    Stream::of(one.conn)
}

/// What clients got, in order: steps, then the response.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    last: String,
    steps: Vec<u64>,
    response: Option<Value>,
}

impl Seen {
    /// False once there is the response.
    fn note(&mut self, event: &Event) -> bool {
        assert!(self.response.is_none(), "after the response: {event:?}");
        let id = event.id.clone().expect("every event has an id");
        assert!(self.ids.insert(id.clone()), "{id} came twice");
        self.last = id;
        if event.data.is_empty() {
            return true;
        }
        let message: Value = serde_json::from_str(&event.data).expect("JSON");
        match message["params"]["progress"].as_u64() {
            Some(step) => {
                assert_eq!(message["params"]["progressToken"], 7);
                self.steps.push(step);
            }
            None => self.response = Some(message),
        }
        self.response.is_none()
    }

    fn assert_whole(&self, id: u64, steps: u64) {
        assert_eq!(self.steps, (1..=steps).collect::<Vec<u64>>());
        let response = self.response.as_ref().expect("the response");
        assert_eq!((&response["id"], response.get("error")), (&json!(id), None), "{response}");
    }
}

#[test]
fn a_call_is_followed_over_many_lost_connections_on_any_worker() {
    let world = world();
    for (backend, _) in &world.journals {
        let client = world.proxy.client();
        let mut seen = Seen::default();
        let mut stream = begin(&client, 11, backend, 60, 20);
        // Three events a connection: some twenty connections, spread over both workers.
        'all: loop {
            for _ in 0..3 {
                let event = stream.next().expect("an event");
                if !seen.note(&event) {
                    break 'all;
                }
            }
            stream.cut();
            stream = Stream::resume(&client, &seen.last);
        }
        assert_eq!(stream.next(), None, "after the response the stream ends");
        seen.assert_whole(11, 60);
    }
}

#[test]
fn the_rest_of_a_call_waits_for_its_client() {
    let world = world();
    for (backend, journal) in &world.journals {
        let client = world.proxy.client();
        // From several connections, so that some come back at another worker.
        for n in 0..6u64 {
            let mut seen = Seen::default();
            let mut stream = begin(&client, 20 + n, backend, 5, 30);
            for _ in 0..2 {
                seen.note(&stream.next().expect("an event"));
            }
            stream.cut();
            wait_until("the end of the call", || {
                let stats = client.again().call(&format!("{backend}__stats"), "{}").said();
                serde_json::from_str::<Value>(&stats).unwrap()["jobs"] == 1
            });
            let mut stream = Stream::resume(&client, &seen.last);
            while let Some(event) = stream.next() {
                seen.note(&event);
            }
            seen.assert_whole(20 + n, 5);
            // As often as the client likes: it may have lost the answer again.
            let first = seen.ids.iter().find(|id| id.ends_with("-1")).unwrap().clone();
            let mut again = Stream::resume(&client, &first);
            let mut events = Vec::new();
            while let Some(event) = again.next() {
                events.push(event.id.unwrap());
            }
            assert_eq!(events.len(), 5, "four steps and the response: {events:?}");
        }
        assert_eq!(journal.count("cancelled"), 0, "a lost connection is no cancellation");
    }
}

#[test]
fn who_comes_back_early_takes_the_stream_over() {
    let world = world();
    for (backend, _) in &world.journals {
        let client = world.proxy.client();
        for n in 0..4u64 {
            let mut seen = Seen::default();
            let mut stream = begin(&client, 40 + n, backend, 20, 20);
            for _ in 0..3 {
                seen.note(&stream.next().expect("an event"));
            }
            // The first connection is still open, as one that died unseen is.
            let mut second = Stream::resume(&client, &seen.last);
            while seen.note(&second.next().expect("an event")) {}
            seen.assert_whole(40 + n, 20);
            let mut late = Vec::new();
            while let Some(event) = stream.next() {
                late.push(event);
            }
            assert!(late.iter().all(|event| !event.data.contains("\"result\"")), "{late:?}");
        }
    }
}

#[test]
fn a_call_without_a_connection_can_be_cancelled() {
    let world = world();
    for (backend, journal) in &world.journals {
        let client = world.proxy.client();
        let mut stream = begin(&client, 50, backend, 1000, 100);
        let mut seen = Seen::default();
        for _ in 0..2 {
            seen.note(&stream.next().expect("an event"));
        }
        stream.cut();
        client.again().notify("notifications/cancelled", r#"{"requestId":50}"#);
        journal.wait_count("cancelled", 1);
        wait_until("the end of the stream", || {
            Stream::resume(&client, &seen.last).head.status == 400
        });
    }
}

#[test]
fn what_was_said_while_nobody_listened_is_heard_afterwards() {
    let world = world();
    let mut client = world.proxy.client();
    let mut stream = Stream::listen(&client);
    let mut last = stream.next().expect("the priming event").id.expect("its id");
    let changed = |event: &Event| event.data.contains("tools/list_changed");
    for n in 0..12 {
        stream.cut();
        let add = format!(r#"{{"kind":"tool","name":"fresh{n}"}}"#);
        client.call("pipe__add", &add).result();
        client.wait_for_tools(&[&format!("pipe__fresh{n}")]);
        stream = Stream::resume(&client, &last);
        loop {
            let event = stream.next().expect("an event");
            last = event.id.clone().expect("its id");
            if changed(&event) {
                break;
            }
        }
    }
    // Who does not come back, but begins anew, hears that something changed.
    stream.cut();
    client.call("pipe__add", r#"{"kind":"tool","name":"last"}"#).result();
    client.wait_for_tools(&["pipe__last"]);
    let mut stream = Stream::listen(&client);
    while !changed(&stream.next().expect("an event")) {}
}

#[test]
fn only_the_newest_revision_has_priming_events() {
    let world = world();
    for (revision, primed) in [("2025-03-26", false), ("2025-06-18", false), ("2025-11-25", true)] {
        let mut client = Client::connect_at(world.proxy.addr, revision);
        let event = begin(&client, 1, "web", 2, 0).next().expect("an event");
        assert_eq!(event.data.is_empty(), primed, "{revision}: {event:?}");
        assert!(event.id.is_some(), "{revision}: {event:?}");
        let mut listening = Stream::listen(&client);
        let piece = listening.conn.piece().unwrap().expect("the first bytes");
        let text = String::from_utf8(piece).unwrap();
        assert_eq!(text.contains("\nretry: ") && text.starts_with("id: "), primed, "{text}");
        // What has one message has no stream and no id.
        let told = client.call("web__echo", r#"{"payload":"x"}"#);
        assert!(!told.as_events, "{told:?}");
    }
}

#[test]
fn a_batch_is_resumed_too() {
    let world = world();
    let client = Client::connect_at(world.proxy.addr, "2025-03-26");
    let one = |id: u64, backend: &str| {
        let params = format!(
            r#"{{"name":"{backend}__progress","arguments":{{"steps":4,"ms":40}},"_meta":{{"progressToken":{id}}}}}"#
        );
        message(&id.to_string(), "tools/call", &params)
    };
    let mut poster = client.again();
    poster.send(&format!("[{},{}]", one(1, "pipe"), one(2, "web")));
    let mut stream = Stream::of(poster.conn);
    let mut messages = Vec::new();
    let mut last = String::new();
    while messages.len() < 10 {
        let event = stream.next().expect("an event");
        last = event.id.clone().expect("its id");
        messages.push(event.data);
        if messages.len() % 2 == 0 {
            stream.cut();
            stream = Stream::resume(&client, &last);
        }
    }
    assert_eq!(messages.iter().collect::<HashSet<_>>().len(), 10, "{messages:?}");
    assert_eq!(messages.iter().filter(|text| text.contains("\"result\"")).count(), 2);
    assert_eq!(Stream::resume(&client, &last).next(), None);
}

#[test]
fn what_is_kept_for_a_session_is_bounded_and_the_newest() {
    let world = world();
    let client = world.proxy.client();
    let mut firsts = Vec::new();
    for n in 0..120 {
        let mut stream = begin(&client, n, "web", 1, 0);
        firsts.push(stream.next().expect("an event").id.expect("its id"));
        while stream.next().is_some() {}
    }
    let kept: Vec<bool> =
        firsts.iter().map(|id| Stream::resume(&client, id).head.status == 200).collect();
    // 32 at each worker.
    assert!(kept.iter().filter(|kept| **kept).count() <= 64, "{kept:?}");
    assert!(kept[119] && !kept[0], "{kept:?}");
}

#[test]
fn what_cannot_be_resumed() {
    let world = world();
    let client = world.proxy.client();
    for bad in ["x", "1", "a0-1", "a0-ffff-1", "a1-ffff-1", "a7-1-1", "a1ff-1-1"] {
        assert_eq!(Stream::resume(&client, bad).head.status, 400, "{bad}");
    }
    // A stranger's stream is an unknown one, and is not disturbed.
    let stranger = world.proxy.client();
    let mut theirs = begin(&stranger, 1, "web", 20, 20);
    let mut seen = Seen::default();
    seen.note(&theirs.next().expect("an event"));
    for _ in 0..8 {
        assert_eq!(Stream::resume(&client, &seen.last).head.status, 400);
    }
    while seen.note(&theirs.next().expect("an event")) {}
    seen.assert_whole(1, 20);
    // A stream to listen on is served anew: what comes next is worth hearing.
    let mut streams: Vec<Stream> =
        ["l0-ffff-1", "l1-ffff-1", "l9-1-1"].iter().map(|id| Stream::resume(&client, id)).collect();
    let ids: Vec<String> =
        streams.iter_mut().map(|stream| stream.next().unwrap().id.unwrap()).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 3, "{ids:?}");
    // An ended session has no streams.
    let mut gone = world.proxy.client();
    let mut stream = begin(&gone, 1, "web", 100, 20);
    let last = stream.next().expect("an event").id.expect("its id");
    stream.cut();
    gone.delete();
    wait_until("the end of the session", || Stream::resume(&gone, &last).head.status == 404);
}
