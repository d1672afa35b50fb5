//! Servers with manners of their own over Streamable HTTP: what they refuse, and how; what they say
//! beside messages; where their connections break.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::modern::Caller;
use crate::support::client::{ACCEPT, Client, JSON, call_params, message};
use crate::support::process::{HttpStub, Proxy};
use crate::support::script::{Asked, Script, bare, document, events, open_events};
use crate::support::wait_until;

const NOTE: &str = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"error","data":"here"}}"#;
const CHANGED: &str = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// An answer of the server woke its own supervisor, which asked again at once, thousands of times a
/// second.
#[test]
fn a_start_that_is_refused_in_json_is_tried_again_with_pauses() {
    for refused in ["initialize", "tools/list"] {
        let script = Script::start(move |asked| match refused {
            "initialize" if asked.is(refused) => {
                document(200, "", &asked.error(-32603, "not ready"))
            }
            "tools/list" if asked.is(refused) => bare(401),
            _ => None,
        });
        let _proxy = Proxy::start(&[script.backend("a")]);
        wait_until("more than one attempt", || script.count(refused) > 1);
        let before = script.count(refused);
        std::thread::sleep(Duration::from_secs(1));
        let attempts = script.count(refused) - before;
        assert!(attempts < 20, "{refused}: {attempts} attempts in a second");
    }
}

/// A 404 for the stream was taken for a lost session, which was replaced for ever while the client
/// listened.
#[test]
fn a_server_without_a_route_for_streams_keeps_its_sessions() {
    let script = Script::start(|asked| if asked.is("GET") { bare(404) } else { None });
    let proxy = Proxy::start(&[script.backend("a")]);
    let mut client = proxy.client_seeing(&["a__t"]);
    let _listening = client.listen();
    for _ in 0..8 {
        assert_eq!(client.call("a__t", "{}").said(), "well");
        std::thread::sleep(Duration::from_millis(250));
    }
    let mut sessions: Vec<_> =
        script.asked("tools/call").into_iter().map(|asked| asked.session).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(script.count("initialize"), 2);
}

/// The same answer where the session is lost indeed.
#[test]
fn a_stream_tells_of_a_session_that_is_lost() {
    let script = Script::start(|asked| {
        let is_first = asked.session.as_deref() == Some("s1");
        match (asked.is("GET"), is_first) {
            // The client's first session is unknown from the start.
            (_, true) if asked.is("ping") || asked.is("GET") => bare(404),
            (true, false) => open_events(&event(&serde_json::from_str(NOTE).unwrap())),
            _ => None,
        }
    });
    let proxy = Proxy::start(&[script.backend("a")]);
    let mut client = proxy.client_seeing(&["a__t"]);
    assert_eq!(client.call("a__t", "{}").said(), "well");
    let listening = client.listen();
    listening.wait_for("notifications/message");
    assert_eq!(script.count("initialize"), 3);
}

/// Its own words about sessions were taken for a lost one: the call ran twice, the error was lost.
#[test]
fn an_error_of_the_call_itself_is_no_lost_session() {
    for (status, code, runs) in
        [(400, -32602, 1), (500, -32603, 1), (404, -32002, 1), (400, -32000, 2)]
    {
        let script = Script::start(move |asked| match asked.is("tools/call") {
            true => document(status, "", &asked.error(code, "unknown session: abc")),
            false => None,
        });
        let proxy = Proxy::start(&[script.backend("a")]);
        let mut client = proxy.client_seeing(&["a__t"]);
        let told = client.call("a__t", "{}");
        assert_eq!(told.error(), (code, "unknown session: abc".to_owned()));
        assert_eq!(told.json()["error"]["data"], json!({ "own": true }));
        assert_eq!(script.count("tools/call"), runs, "{status} {code}");
    }
}

/// One refusal of the stream was the last.
#[test]
fn a_stream_that_is_refused_for_now_is_opened_later() {
    for status in [408, 409, 410, 429] {
        let script = Script::start(move |asked| {
            if !asked.is("GET") {
                return None;
            }
            match asked.before {
                0 | 1 => bare(status),
                _ => open_events(&event(&serde_json::from_str(NOTE).unwrap())),
            }
        });
        let proxy = Proxy::start(&[script.backend("a")]);
        let mut client = proxy.client_seeing(&["a__t"]);
        assert_eq!(client.call("a__t", "{}").said(), "well");
        client.listen().wait_for("notifications/message");
    }
}

#[test]
fn a_stream_whose_place_is_forgotten_begins_anew() {
    let script = Script::start(|asked| {
        if !asked.is("GET") {
            return None;
        }
        match (asked.before, asked.field("last-event-id")) {
            (0 | 1, _) => events("id: 7\ndata: \n\n"),
            (_, Some(_)) => bare(400),
            (_, None) => open_events(&event(&serde_json::from_str(NOTE).unwrap())),
        }
    });
    let proxy = Proxy::start(&[script.backend("a")]);
    let mut client = proxy.client_seeing(&["a__t"]);
    assert_eq!(client.call("a__t", "{}").said(), "well");
    client.listen().wait_for("notifications/message");
    let resumed = |asked: &&Asked| asked.field("last-event-id").is_some();
    assert!(script.asked("GET").iter().any(|asked| resumed(&asked)));
}

/// The stream of a call was taken up behind an event that had not come whole.
#[test]
fn a_call_goes_on_behind_the_last_whole_event() {
    let script = Script::start(|asked| {
        if asked.is("tools/call") {
            let whole = asked.says("early").to_string();
            let half = &whole[..whole.len() / 2];
            return events(&format!("id: one\nretry: 1\ndata: {NOTE}\n\nid: two\ndata: {half}\n"));
        }
        match asked.field("last-event-id") {
            Some("one") => {
                let answer = json!({ "jsonrpc": "2.0", "id": 1, "result": { "content": [
                    { "type": "text", "text": "late" },
                ] } });
                events(&event(&answer))
            }
            _ => None,
        }
    });
    let proxy = Proxy::start(&[script.backend("a") + "isolation = \"session\"\n"]);
    // One that would not come back itself.
    let mut client = Client::connect_at(proxy.addr, "2025-06-18");
    let call = message("1", "tools/call", &call_params("a__t", "{}"));
    assert_eq!(client.post(&call).said(), "late");
}

/// A keep-alive with a name and no JSON broke the call; a foreign event was its answer.
#[test]
fn events_of_other_types_are_no_messages() {
    let script = Script::start(|asked| match () {
        () if asked.is("tools/call") => events(&format!(
            "event: ping\ndata: 2026-11-27\n\nevent: debug\ndata: {}\n\nevent: message\ndata: {}\n\n",
            asked.says("foreign"),
            asked.says("own"),
        )),
        () if asked.is("GET") => open_events(&format!(
            "event: ping\ndata: tick\n\nevent: debug\n{}data: {}\n\n",
            event(&json!({ "jsonrpc": "2.0", "method": "notifications/foreign" })),
            NOTE,
        )),
        () => None,
    });
    let proxy = Proxy::start(&[script.backend("a")]);
    let mut client = proxy.client_seeing(&["a__t"]);
    assert_eq!(client.call("a__t", "{}").said(), "own");
    let listening = client.listen();
    assert_eq!(listening.next()["method"], "notifications/message");
    let mut caller = Caller::seeing(&proxy, &["a__t"]);
    assert_eq!(caller.call("a__t", "{}").said(), "own");
}

/// A change was told to each client several times: at once for each word of the backend, and again
/// when the common lists had been read.
#[test]
fn a_burst_of_list_changes_is_told_to_a_session_once() {
    let script = Script::start(|asked| if asked.is("GET") { open_events("") } else { None });
    let proxy = Proxy::start(&[script.backend("a") + "isolation = \"session\"\n"]);
    let mut client = proxy.client_seeing(&["a__t"]);
    assert_eq!(client.call("a__t", "{}").said(), "well");
    let listening = client.listen();
    wait_until("the streams of the proxy and of the client", || script.streams() == 2);
    script.say(&event(&serde_json::from_str(CHANGED).unwrap()).repeat(9));
    listening.wait_for("notifications/tools/list_changed");
    // Longer than it may wait for anything.
    std::thread::sleep(Duration::from_millis(1500));
    let more = listening.so_far();
    // One, as a rule none: the two streams were not read in the same moment.
    assert!(more.len() <= 1, "{more:?}");
}

/// The wait was dropped where a JSON-RPC error came with it.
#[test]
fn a_wait_that_is_asked_for_beside_an_answer_is_kept() {
    let script = Script::start(|asked| match (asked.is("tools/call"), asked.before) {
        (true, 0) => document(503, "Retry-After: 1\r\n", &asked.error(-32000, "full")),
        (true, 2..) => document(
            429,
            "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n",
            &asked.error(-32000, "full"),
        ),
        _ => None,
    });
    let proxy = Proxy::start(&[script.backend("a") + "[backends.retry]\ninitial_backoff_ms = 1\n"]);
    let mut client = proxy.client_seeing(&["a__t"]);
    let began = Instant::now();
    assert_eq!(client.call("a__t", "{}").said(), "well");
    assert!(began.elapsed() >= Duration::from_secs(1), "it did not wait");
    let body = message("9", "tools/call", &call_params("a__t", "{}"));
    let request = format!(
        "POST /mcp HTTP/1.1\r\n{}{}{}Content-Length: {}\r\n\r\n{body}",
        client.lines(),
        ACCEPT,
        JSON,
        body.len()
    );
    client.conn.send(request.as_bytes());
    let answer = client.conn.answer();
    assert_eq!(answer.json()["error"]["message"], "full");
    let wait: u64 = answer.head.field("retry-after").expect("a wait").parse().unwrap();
    assert!(wait > 1_000_000, "{wait}");
    assert_eq!(script.count("tools/call"), 3);
}

/// With an answer in it, the refusal of a gateway did not count as one: the tool ran twice.
#[test]
fn a_gateway_that_answers_leaves_it_open_whether_a_tool_ran() {
    for status in [502, 504] {
        let script = Script::start(move |asked| match asked.is("tools/call") {
            true => document(status, "", &asked.error(-32603, "upstream timed out")),
            false => None,
        });
        let retry = "[backends.retry]\ninitial_backoff_ms = 1\n";
        let proxy = Proxy::start(&[script.backend("a") + retry]);
        let mut client = proxy.client_seeing(&["a__t"]);
        assert_eq!(client.call("a__t", "{}").error().0, -32603);
        assert_eq!(script.count("tools/call"), 1, "{status}");
        let mut caller = Caller::seeing(&proxy, &["a__t"]);
        assert_eq!(caller.call("a__t", "{}").error().0, -32603);
        assert_eq!(script.count("tools/call"), 2, "{status}");
        // One that can be asked something.
        caller.capabilities = r#"{"elicitation":{}}"#.into();
        assert_eq!(caller.call("a__t", "{}").error().0, -32603);
        assert_eq!(script.count("tools/call"), 3, "{status}");
    }
}

/// The same where the backend has no sessions.
#[test]
fn a_gateway_before_a_backend_without_sessions_leaves_it_open_likewise() {
    let script = Script::start(|asked| {
        let complete = |mut result: Value| {
            let more = json!({ "resultType": "complete", "ttlMs": 1000, "cacheScope": "public" });
            result.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            document(
                200,
                "",
                &json!({ "jsonrpc": "2.0", "id": asked.message["id"], "result": result }),
            )
        };
        match () {
            () if asked.is("tools/call") => {
                document(504, "Retry-After: 9\r\n", &asked.error(-32603, "timed out"))
            }
            () if asked.is("server/discover") => complete(json!({
                "supportedVersions": ["2026-07-28"],
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "script", "version": "0" },
            })),
            () if asked.is("tools/list") => {
                complete(json!({ "tools": [{ "name": "t", "inputSchema": { "type": "object" } }] }))
            }
            () => bare(404),
        }
    });
    let retry = "[backends.retry]\ninitial_backoff_ms = 1\nmax_backoff_ms = 100\n";
    let proxy = Proxy::start(&[script.backend("a") + retry]);
    let mut client = proxy.client_seeing(&["a__t"]);
    assert_eq!(client.call("a__t", "{}").error().0, -32603);
    assert_eq!(script.count("tools/call"), 1);
}

/// A code that callers of 2026-07-28 may not be sent.
#[test]
fn a_request_for_elicitation_by_url_has_another_code_in_the_request_era() {
    let script = Script::start(|asked| match asked.is("tools/call") {
        true => document(200, "", &asked.error(-32042, "URL elicitation required")),
        false => None,
    });
    let proxy = Proxy::start(&[script.backend("a")]);
    let told = Caller::seeing(&proxy, &["a__t"]).call("a__t", "{}");
    assert_eq!(told.error(), (-32014, "URL elicitation required".to_owned()));
    assert_eq!(told.json()["error"]["data"], json!({ "own": true }));
    let told = proxy.client_seeing(&["a__t"]).call("a__t", "{}");
    assert_eq!(told.error().0, -32042);
}

/// It was answered with an internal error.
#[test]
fn a_request_that_says_nothing_of_itself_reaches_a_backend_without_sessions() {
    let stub = HttpStub::start("web", &["--modern"]);
    let proxy = Proxy::start(&[stub.backend("web")]);
    let mut client = proxy.client_seeing(&["web__echo"]);
    let params = |meta: &str| {
        format!(r#"{{"name":"web__echo","arguments":{{"payload":"p"}},"_meta":{meta}}}"#)
    };
    assert_eq!(client.ask("tools/call", &params("null")).said(), "p");
    assert_eq!(client.ask("tools/call", &params("5")).error().0, -32602);
    assert_eq!(client.ask("tools/call", &params("{}")).said(), "p");
}
