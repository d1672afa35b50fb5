//! Input that is asked for in mid-call where client and backend are of different eras.

use serde_json::{Value, json};

use crate::asks::{ALL, Open, answer, post};
use crate::modern::{Caller, lines, names};
use crate::support::client::{Client, call_params, message};
use crate::support::http::Events;
use crate::support::process::{HttpStub, Journal, Proxy, Setup, scratch, stdio_backend};
use crate::support::{quote, wait_until};

/// The same stub of the request era behind HTTP (`web`) and as a child (`pipe`).
struct Modern {
    proxy: Proxy,
    journals: [Journal; 2],
    _web: HttpStub,
    _scratch: tempfile::TempDir,
}

const BOTH: [&str; 2] = ["web", "pipe"];
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";

fn modern(keys: &str) -> Modern {
    let scratch = scratch();
    let journals = BOTH.map(|name| Journal::new(&scratch, name));
    let web = HttpStub::start("web", &["--modern", "--journal", journals[0].path()]);
    let pipe = stdio_backend("pipe", &["--modern", "--journal", journals[1].path()]);
    let proxy = Proxy::start(&[web.backend("web") + keys, pipe + keys]);
    proxy.client_seeing(&["web__rounds", "pipe__rounds"]);
    Modern { proxy, journals, _web: web, _scratch: scratch }
}

impl Modern {
    fn client(&self, capabilities: &str) -> Client {
        let mut client = Client::connect_with(self.proxy.addr, "2025-11-25", capabilities);
        client.wait_for_tools(&["web__rounds", "pipe__rounds"]);
        client
    }
}

/// A form that a person shall fill in.
fn form(text: &str) -> Value {
    let schema = json!({ "type": "object", "properties": {} });
    let params = json!({ "mode": "form", "message": text, "requestedSchema": schema });
    json!({ "method": "elicitation/create", "params": params })
}

fn sampling(text: &str) -> Value {
    json!({ "method": "sampling/createMessage", "params": { "messages": [text] } })
}

fn roots() -> Value {
    json!({ "method": "roots/list" })
}

/// Calls `rounds` and reads on step by step.
fn begin(client: &Client, id: &str, backend: &str, rounds: &Value) -> Open {
    Open::call(client, id, &format!("{backend}__rounds"), &json!({ "rounds": rounds }))
}

/// The request of the last round, as the backend got it.
fn last_round(open: &mut Open) -> Value {
    serde_json::from_str(&open.said()).expect("the request")
}

#[test]
fn what_a_backend_without_sessions_asks_for_becomes_requests_to_the_client() {
    let world = modern("");
    let client = world.client(ALL);
    let url = json!({
        "method": "elicitation/create",
        "params": { "mode": "url", "message": "Go", "url": "https://example.com/" },
    });
    let rounds = json!([{ "a\"": form("Name?"), "b": sampling("s") }, { "c": roots(), "d": url }]);
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        // So often that calls and answers land on either worker.
        for round in 0..4 {
            let arguments = json!({ "rounds": rounds }).to_string();
            let mut params: Value =
                serde_json::from_str(&call_params(&format!("{name}__rounds"), &arguments)).unwrap();
            params["_meta"] = json!({ "progressToken": "p" });
            let mut asking = client.again();
            asking.send(&message("\"id\"", "tools/call", &params.to_string()));
            assert!(asking.conn.head().is_event_stream());
            let mut events = Events::default();
            let mut next = || {
                let event = asking.conn.event(&mut events).expect("an event");
                serde_json::from_str::<Value>(&event.data).expect("JSON")
            };
            let progress = |said: Value, at: u64| {
                assert_eq!(said["params"], json!({ "progressToken": "p", "progress": at }));
            };
            progress(next(), 0);
            // All at once, before any is answered.
            let (first, second) = (next(), next());
            assert_eq!(first["method"], "elicitation/create");
            assert_eq!(first["params"], form("Name?")["params"]);
            assert_eq!(second["method"], "sampling/createMessage");
            answer(&client, &second, r#"{"model":"m","n":1}"#);
            answer(&client, &first, r#"{"action":"accept","content":{"name":"x"}}"#);
            progress(next(), 1);
            let (third, fourth) = (next(), next());
            assert_eq!(third["method"], "roots/list");
            assert_eq!(fourth["params"]["url"], "https://example.com/");
            assert!(fourth["params"]["elicitationId"].is_string(), "{fourth}");
            answer(&client, &third, r#"{"roots":[]}"#);
            answer(&client, &fourth, r#"{"action":"accept"}"#);
            progress(next(), 2);
            let end = next();
            assert_eq!(end["id"], "id", "{end}");
            let said = end["result"]["content"][0]["text"].as_str().expect("a text");
            let said: Value = serde_json::from_str(said).unwrap();
            assert_eq!(said["params"]["requestState"], "round\"/ 2");
            let given = json!({ "c": { "roots": [] }, "d": { "action": "accept" } });
            assert_eq!(said["params"]["inputResponses"], given);
            assert_eq!(said["params"]["arguments"]["rounds"], rounds);
            let second = json!({
                "a\"": { "action": "accept", "content": { "name": "x" } },
                "b": { "model": "m", "n": 1 },
            });
            assert_eq!(journal.count("round 1 "), round + 1);
            let line = journal.last("round 1 ");
            let given: Value = serde_json::from_str(line.split(" given ").nth(1).unwrap()).unwrap();
            assert_eq!(given, second);
        }
        // Each round has an id of its own.
        let lines = journal.lines();
        let rounds = lines.iter().filter(|line| line.starts_with("round "));
        let ids: Vec<&str> = rounds.map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(ids.len(), 12);
        for call in ids.chunks(3) {
            assert!(call[0] != call[1] && call[1] != call[2] && call[0] != call[2], "{ids:?}");
        }
        let lines = journal.lines();
        assert!(!lines.iter().any(|line| line.starts_with("mismatch")), "{lines:?}");
    }
}

#[test]
fn rounds_of_two_clients_do_not_cross() {
    let world = modern("");
    let able = world.client(r#"{"elicitation":{}}"#);
    let other = world.client(r#"{"sampling":{}}"#);
    for name in BOTH {
        let mut one = begin(&able, "1", name, &json!([{ "k": form("one") }]));
        let mut two = begin(&other, "1", name, &json!([{ "k": sampling("two") }]));
        let (first, second) = (one.next(), two.next());
        assert_eq!(first["method"], "elicitation/create");
        assert_eq!(second["method"], "sampling/createMessage");
        // The other one's answer is nobody's.
        answer(&other, &first, r#"{"from":"a stranger"}"#);
        answer(&able, &second, r#"{"from":"a stranger"}"#);
        answer(&other, &second, r#"{"from":2}"#);
        answer(&able, &first, r#"{"from":1}"#);
        for (open, from) in [(&mut one, 1), (&mut two, 2)] {
            let said = last_round(open);
            assert_eq!(said["params"]["inputResponses"], json!({ "k": { "from": from } }));
        }
        // Neither is asked what it cannot do; nor is the half of it that it can.
        let arguments = json!({ "rounds": [{ "a": form("x"), "b": sampling("y") }] }).to_string();
        for client in [&able, &other] {
            let told = client.again().call(&format!("{name}__rounds"), &arguments);
            assert!(!told.as_events, "{told:?}");
            assert_eq!(told.error().0, -32014);
        }
    }
}

#[test]
fn declined_input_is_told_to_the_backend_or_ends_the_call() {
    let world = modern("");
    let client = world.client(ALL);
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        for (result, wanted) in [
            (r#""result":{"action":"decline"}"#, json!({ "action": "decline" })),
            (r#""result":{"action":"cancel"}"#, json!({ "action": "cancel" })),
            (r#""error":{"code":-1,"message":"no"}"#, json!({ "action": "cancel" })),
        ] {
            let mut open = begin(&client, "1", name, &json!([{ "k": form("x") }]));
            let question = open.next();
            post(&client, &format!(r#"{{"jsonrpc":"2.0","id":{},{result}}}"#, question["id"]));
            assert_eq!(last_round(&mut open)["params"]["inputResponses"], json!({ "k": wanted }));
        }
        // Of a program's answer there is no such form. The other question is over with the call.
        let before = journal.count("round ");
        let mut open = begin(&client, "2", name, &json!([{ "a": sampling("x"), "b": form("y") }]));
        let (first, second) = (open.next(), open.next());
        let error = r#""error":{"code":-1,"message":"User rejected"}"#;
        post(&client, &format!(r#"{{"jsonrpc":"2.0","id":{},{error}}}"#, first["id"]));
        let end = open.next();
        assert_eq!((&end["id"], &end["error"]["code"]), (&json!(2), &json!(-32014)), "{end}");
        assert!(end["error"]["message"].as_str().unwrap().contains("sampling/createMessage"));
        answer(&client, &second, "{}");
        client.again().call(&format!("{name}__echo"), r#"{"payload":"x"}"#).result();
        assert_eq!(journal.count("round "), before + 1);
    }
}

#[test]
fn a_backend_may_want_only_to_be_asked_again_but_not_for_ever() {
    let world = modern("");
    let mut client = world.client("{}");
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        let tool = format!("{name}__rounds");
        let told = client.call(&tool, r#"{"rounds":[null,null]}"#);
        let said: Value = serde_json::from_str(&told.said()).unwrap();
        assert_eq!(said["params"]["requestState"], "round\"/ 2");
        assert_eq!(said["params"]["inputResponses"], Value::Null);
        let told = client.call(&tool, r#"{"rounds":[null],"forever":true}"#);
        assert_eq!(told.error().0, -32010);
        let rounds = journal.count("round ");
        assert!(rounds < 100, "{rounds}");
    }
}

#[test]
fn a_call_waits_for_input_as_long_as_people_need_and_ends_with_its_client() {
    let world = modern("timeout.seconds = 1\n");
    let client = world.client(ALL);
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        let mut open = begin(&client, "1", name, &json!([{ "k": form("x") }]));
        let question = open.next();
        for _ in 0..2 {
            // Each takes as long as the limit.
            let hung = client.again().call(&format!("{name}__hang"), "{}").error();
            assert_eq!(hung.0, -32001);
        }
        answer(&client, &question, "{}");
        last_round(&mut open);

        let mut gone = begin(&client, "2", name, &json!([{ "k": form("x") }]));
        let question = gone.next();
        let before = journal.count("round ");
        drop(gone);
        let mut cancelled = begin(&client, "3", name, &json!([{ "k": form("x") }]));
        let other = cancelled.next();
        post(
            &client,
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3}}"#,
        );
        assert!(cancelled.ended());
        answer(&client, &question, "{}");
        answer(&client, &other, "{}");
        // A lost connection is no cancellation: that call goes on, the cancelled one does not.
        journal.wait_count("round ", before + 2);
        client.again().call(&format!("{name}__echo"), r#"{"payload":"x"}"#).result();
        assert_eq!(journal.count("round "), before + 2);
    }
}

/// The same stub of the session era behind HTTP (`web`) and as a child for each session (`pipe`).
struct Legacy {
    proxy: Proxy,
    journals: [Journal; 2],
    _web: HttpStub,
    _scratch: tempfile::TempDir,
}

fn legacy(proxy: &str) -> Legacy {
    let scratch = scratch();
    let journals = BOTH.map(|name| Journal::new(&scratch, name));
    let web = HttpStub::start("web", &["--asks", "--journal", journals[0].path()]);
    let pipe = stdio_backend("pipe", &["--asks", "--journal", journals[1].path()]);
    let backends = web.backend("web") + &pipe + "isolation = \"session\"\n";
    let proxy = Setup { backends, proxy: proxy.into(), ..Setup::default() }.start();
    Caller::seeing(&proxy, &["web__ask_many", "pipe__ask_many"]);
    Legacy { proxy, journals, _web: web, _scratch: scratch }
}

impl Legacy {
    fn caller(&self, capabilities: &str) -> Caller {
        let mut caller = Caller::new(&self.proxy);
        caller.capabilities = capabilities.into();
        caller
    }

    /// Comes back with answers, on a connection of its own: perhaps to the other worker.
    fn back(&self, capabilities: &str, meta: &str, tool: &str, state: &str, given: &Value) -> Back {
        let mut caller = self.caller(capabilities);
        caller.meta = meta.into();
        let params = format!(
            r#""name":"{tool}","arguments":{{}},"requestState":{},"inputResponses":{given}"#,
            quote(state)
        );
        Back(caller.ask_about("tools/call", tool, &params))
    }
}

struct Back(crate::support::client::Told);

/// Keys of the questions by their method, and the state.
fn asked(result: &Value) -> (Vec<(String, String)>, String) {
    assert_eq!(result["resultType"], "input_required", "{result}");
    let requests = result["inputRequests"].as_object().expect("inputRequests");
    let mut all: Vec<(String, String)> = requests
        .iter()
        .map(|(key, request)| {
            assert!(request["id"].is_null() && request["jsonrpc"].is_null(), "{request}");
            (request["method"].as_str().expect("a method").to_owned(), key.clone())
        })
        .collect();
    all.sort();
    (all, result["requestState"].as_str().expect("a state").to_owned())
}

fn questions(all: &[Value]) -> String {
    json!({ "questions": all }).to_string()
}

#[test]
fn what_a_backend_with_sessions_asks_for_becomes_a_result_and_the_call_goes_on() {
    let world = legacy("");
    let all = questions(&[form("Name?"), sampling("s")]);
    for name in BOTH {
        let tool = format!("{name}__ask_many");
        // So often that the caller comes back to either worker.
        for _ in 0..4 {
            let mut caller = world.caller(ALL);
            caller.meta = r#","progressToken":"before""#.into();
            let told = caller.call(&tool, &all);
            assert_eq!(told.before.len(), 1, "{told:?}");
            assert!(told.before[0].contains(r#""progressToken":"before","progress":0"#));
            let result = told.result();
            let (keys, state) = asked(&result);
            let methods: Vec<&str> = keys.iter().map(|(method, _)| method.as_str()).collect();
            assert_eq!(methods, ["elicitation/create", "sampling/createMessage"]);
            let [form_key, sampling_key] = [&keys[0].1, &keys[1].1];
            assert_eq!(result["inputRequests"][form_key]["params"], form("Name?")["params"]);
            // What is missing is asked for again, once more.
            let given = json!({ form_key: { "action": "decline" }, "unknown": {} });
            let told = world.back(ALL, "", &tool, &state, &given).0;
            let (keys, next) = asked(&told.result());
            assert_eq!(keys, [("sampling/createMessage".to_owned(), sampling_key.clone())]);
            assert_ne!(state, next);
            let given = json!({ sampling_key: { "model": "m", "n": 1 } });
            let told = world.back(ALL, r#","progressToken":9"#, &tool, &next, &given).0;
            assert_eq!(told.before.len(), 1, "{told:?}");
            assert!(told.before[0].contains(r#""progressToken":9,"progress":1"#), "{told:?}");
            assert_eq!(told.result()["resultType"], "complete");
            let said: Value = serde_json::from_str(&told.said()).unwrap();
            let wanted = json!([
                { "jsonrpc": "2.0", "id": 0, "result": { "action": "decline" } },
                { "jsonrpc": "2.0", "id": 1, "result": { "model": "m", "n": 1 } },
            ]);
            assert_eq!(said, wanted);
        }
    }
}

#[test]
fn what_is_asked_beside_the_stream_of_a_call_is_asked_in_the_only_call() {
    let world = legacy("");
    let tool = "web__ask_many";
    let all = json!({ "questions": [form("Name?"), roots()], "get": true }).to_string();
    // So often that each worker opens its session, and that the caller comes back to either.
    for _ in 0..4 {
        let told = world.caller(ALL).call(tool, &all);
        let (keys, state) = asked(&told.result());
        let methods: Vec<&str> = keys.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(methods, ["elicitation/create", "roots/list"]);
        let given = json!({ &keys[0].1: { "action": "decline" }, &keys[1].1: { "roots": [] } });
        let said = world.back(ALL, "", tool, &state, &given).0.said();
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said[0]["result"], json!({ "action": "decline" }));
        assert_eq!(said[1]["result"], json!({ "roots": [] }));
    }
    // Log messages there are of the only call too, if it wants any.
    let log =
        r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}"#;
    let arguments = json!({ "questions": [roots()], "get": true, "first": log }).to_string();
    let mut caller = world.caller(ALL);
    caller.meta = format!(r#","{LOG_LEVEL}":"info""#);
    let told = caller.call(tool, &arguments);
    asked(&told.result());
    assert!(told.before.len() == 1 && told.before[0].contains(r#""logger":"web""#), "{told:?}");
}

#[test]
fn what_is_asked_beside_calls_is_never_guessed_and_never_left_open() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "web");
    let web = HttpStub::start("web", &["--asks", "--journal", journal.path()]);
    // So that all calls are made in one session.
    let proxy =
        Setup { backends: web.backend("web"), workers: Some(1), ..Setup::default() }.start();
    let mut first = Caller::seeing(&proxy, &["web__ask_many"]);
    let mut second = Caller::new(&proxy);
    first.capabilities = ALL.into();
    second.capabilities = ALL.into();
    let body = first.body("tools/call", r#""name":"web__hang","arguments":{}"#);
    first.send(&lines("tools/call", "web__hang"), &body);
    journal.wait_count("call hang", 1);
    let beside = json!({ "questions": [roots()], "get": true }).to_string();
    let told = second.call("web__ask_many", &beside);
    assert!(told.said().contains("-32601"), "{told:?}");
    // On the stream of its own call nothing needs to be guessed.
    let (keys, state) = asked(&second.call("web__ask_many", &questions(&[roots()])).result());
    let mut answered = Caller::new(&proxy);
    answered.capabilities = ALL.into();
    let params = format!(
        r#""name":"web__ask_many","arguments":{{}},"requestState":{},"inputResponses":{}"#,
        quote(&state),
        json!({ &keys[0].1: { "roots": [] } })
    );
    let told = answered.ask_about("tools/call", "web__ask_many", &params);
    assert!(told.said().contains(r#""roots":[]"#), "{told:?}");
    drop(first);
    journal.wait_count("cancelled", 1);
    wait_until("a question", || {
        second.call("web__ask_many", &beside).result()["resultType"] == "input_required"
    });

    // Where no call is in flight at all nobody can be asked.
    let mut other = Caller::new(&proxy);
    other.capabilities = r#"{"roots":{}}"#.into();
    let late = r#"{"id":"77","get":true,"late_ms":300,"method":"roots/list","and_leave":true}"#;
    assert_eq!(other.call("web__ask", late).said(), "left");
    journal.wait_count(r#"response {"jsonrpc":"2.0","id":77,"error":{"code":-32601"#, 1);
}

#[test]
fn what_is_told_while_a_call_is_parked_waits_for_its_caller() {
    let world = legacy("");
    let arguments = json!({ "questions": [roots()], "meanwhile": 3 }).to_string();
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        let tool = format!("{name}__ask_many");
        let mut caller = world.caller(ALL);
        caller.meta = r#","progressToken":"before""#.into();
        let (keys, state) = asked(&caller.call(&tool, &arguments).result());
        journal.wait_count("meanwhile", 3);
        // Nothing tells when the proxy has read it.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let meta = format!(r#","progressToken":9,"{LOG_LEVEL}":"info""#);
        let given = json!({ &keys[0].1: { "roots": [] } });
        let told = world.back(ALL, &meta, &tool, &state, &given).0;
        let progress: Vec<&String> =
            told.before.iter().filter(|text| text.contains("notifications/progress")).collect();
        // Of what is over only the last word counts.
        assert_eq!(progress.len(), 2, "{told:?}");
        assert!(progress[0].contains(r#""progressToken":9,"progress":7"#), "{told:?}");
        assert!(progress[1].contains(r#""progressToken":9,"progress":1"#), "{told:?}");
        let logs = told.before.iter().filter(|text| text.contains("meanwhile"));
        assert!(logs.count() > 0, "{told:?}");
    }
}

#[test]
fn a_state_is_good_once_and_for_what_it_was_given_for() {
    let world = legacy("");
    for name in BOTH {
        let tool = format!("{name}__ask_many");
        for _ in 0..2 {
            let result = world.caller(ALL).call(&tool, &questions(&[roots()])).result();
            let (keys, state) = asked(&result);
            let given = json!({ &keys[0].1: { "roots": [] } });
            let refused = |tool: &str, state: &str| {
                let told = world.back(ALL, "", tool, state, &given).0;
                assert_eq!((told.status, told.error().0), (400, -32602), "{told:?}");
            };
            let last = if state.ends_with('0') { "1" } else { "0" };
            refused(&tool, &format!("{}{last}", &state[..state.len() - 1]));
            refused(&tool, &state.replacen('.', "0.", 2));
            refused(&tool, &state[..state.len() - 2]);
            for state in ["", "x", "99999.1.1.00", "0.1.99999999999.00"] {
                refused(&tool, state);
            }
            refused(&format!("{name}__echo"), &state);
            let mut caller = world.caller(ALL);
            let state_text = quote(&state);
            let params = format!(
                r#""name":"{tool}","arguments":{{}},"requestState":{state_text},"inputResponses":7"#
            );
            let body = caller.body("tools/call", &params);
            caller.send(&lines("tools/call", &tool), &body);
            assert_eq!(caller.told().error().0, -32602);
            // None of that has used it up.
            let told = world.back(ALL, "", &tool, &state, &given).0;
            assert!(told.said().contains(r#""result":{"roots":[]}"#));
            refused(&tool, &state);
        }
    }
}

#[test]
fn callers_are_asked_what_they_can_do_and_do_not_cross() {
    let world = legacy("");
    let able = [r#"{"elicitation":{}}"#, r#"{"sampling":{}}"#];
    let all = questions(&[form("x"), sampling("y")]);
    for name in BOTH {
        let tool = format!("{name}__ask_many");
        let calls = able.map(|can| asked(&world.caller(can).call(&tool, &all).result()));
        let methods = calls.each_ref().map(|(keys, _)| {
            assert_eq!(keys.len(), 1, "{keys:?}");
            keys[0].0.as_str()
        });
        assert_eq!(methods, ["elicitation/create", "sampling/createMessage"]);
        for (at, (keys, state)) in calls.iter().enumerate() {
            // The other's key means nothing here.
            let other = &calls[1 - at].0[0].1;
            let given = json!({ &keys[0].1: { "from": at }, other: { "from": "a stranger" } });
            let told = world.back(able[at], "", &tool, state, &given).0;
            let said: Value = serde_json::from_str(&told.said()).unwrap();
            assert_eq!(said[at]["result"], json!({ "from": at }), "{said}");
            assert_eq!(said[1 - at]["error"]["code"], -32601, "{said}");
        }
        // One that can do nothing is asked nothing.
        let told = world.caller("{}").call(&tool, &all);
        assert!(told.said().contains("-32601") && told.before.is_empty());
    }
}

#[test]
fn a_caller_that_does_not_come_back_costs_its_backend_an_error() {
    let world = legacy("session_idle_seconds = 1\n");
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        let tool = format!("{name}__ask");
        let arguments = r#"{"id":"11","stubborn":true,"method":"roots/list"}"#;
        let result = world.caller(ALL).call(&tool, arguments).result();
        let (keys, state) = asked(&result);
        journal.wait_count(r#"told {"jsonrpc":"2.0","id":11,"error":{"code":-32000"#, 1);
        let given = json!({ &keys[0].1: {} });
        let told = world.back(ALL, "", &tool, &state, &given).0;
        assert_eq!(told.error().0, -32602, "{told:?}");
    }
}

/// What stands for the caller ended for being idle while its call was under way, or, with the least
/// time there is, while it was just being used: uses within a second are noted once.
#[test]
fn a_call_may_take_longer_than_a_session_may_be_idle() {
    let world = legacy("session_idle_seconds = 1\n");
    std::thread::scope(|scope| {
        for name in BOTH {
            for capabilities in ["{}", ALL] {
                let mut caller = world.caller(capabilities);
                scope.spawn(move || {
                    let told = caller.call(&format!("{name}__sleep"), r#"{"ms":4000}"#);
                    assert!(told.json()["result"].is_object(), "{name} {capabilities}: {told:?}");
                });
                // And one of a session's own.
                let mut client = Client::connect_with(world.proxy.addr, "2025-11-25", capabilities);
                scope.spawn(move || {
                    let told = client.call(&format!("{name}__sleep"), r#"{"ms":4000}"#);
                    assert!(told.json()["result"].is_object(), "{name} {capabilities}: {told:?}");
                });
            }
        }
    });
    let mut caller = world.caller("{}");
    for _ in 0..25 {
        for name in BOTH {
            caller.call(&format!("{name}__echo"), r#"{"payload":"x"}"#).result();
        }
        std::thread::sleep(std::time::Duration::from_millis(90));
    }
    // Nothing of it was given up on the way.
    for (name, journal) in BOTH.iter().zip(&world.journals) {
        assert_eq!(journal.count("cancelled"), 0, "{name}");
    }
}

#[test]
fn of_two_calls_of_one_caller_to_its_child_neither_is_guessed() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "pipe");
    let pipe = stdio_backend("pipe", &["--asks", "--journal", journal.path()]);
    let backends = pipe + "isolation = \"session\"\n";
    // So that both are calls to one child.
    let proxy = Setup { backends, workers: Some(1), ..Setup::default() }.start();
    let mut first = Caller::seeing(&proxy, &["pipe__ask_many"]);
    let mut second = Caller::new(&proxy);
    first.capabilities = ALL.into();
    second.capabilities = ALL.into();
    let body = first.body("tools/call", r#""name":"pipe__hang","arguments":{}"#);
    first.send(&lines("tools/call", "pipe__hang"), &body);
    journal.wait_count("call hang", 1);
    let told = second.call("pipe__ask_many", &questions(&[roots()]));
    assert!(told.said().contains("-32601"), "{told:?}");
    // The first one leaves: now it is certain whose question it is.
    drop(first);
    journal.wait_count("cancelled", 1);
    wait_until("a question", || {
        let result = second.call("pipe__ask_many", &questions(&[roots()])).result();
        result["resultType"] == "input_required"
    });
}

#[test]
fn a_caller_without_a_session_sees_the_lists_that_its_capabilities_bring() {
    let world = legacy("");
    let gated = BOTH.map(|name| format!("{name}__gated"));
    let sees = |capabilities: &str| {
        let list = world.caller(capabilities).ask("tools/list", "").result();
        let shown = names(&list, "tools");
        gated.each_ref().map(|tool| shown.contains(tool))
    };
    // On new connections, that land on either worker.
    for _ in 0..4 {
        assert_eq!(sees(ALL), [true, true]);
        assert_eq!(sees("{}"), [false, false]);
    }
    for tool in &gated {
        assert_eq!(world.caller(ALL).call(tool, "{}").said(), "gated called");
    }
}
