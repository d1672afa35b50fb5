//! Requests of servers to clients, what servers say by themselves, and what they show to whom.

use serde_json::{Value, json};

use crate::support::client::{Client, call_params, message};
use crate::support::http::Events;
use crate::support::process::{HttpStub, Journal, Proxy, scratch, stdio_backend};
use crate::support::{texts, wait_until};

pub(crate) const ALL: &str =
    r#"{"sampling":{},"elicitation":{"form":{},"url":{}},"roots":{"listChanged":true}}"#;

/// A call whose answer is an event stream that is read step by step.
pub(crate) struct Open {
    client: Client,
    events: Events,
}

impl Open {
    /// On a connection of its own, which may be another worker's than the client's.
    pub(crate) fn call(client: &Client, id: &str, tool: &str, arguments: &Value) -> Open {
        let mut client = client.again();
        client.send(&message(id, "tools/call", &call_params(tool, &arguments.to_string())));
        let head = client.conn.head();
        assert!(head.is_event_stream(), "{head:?}");
        Open { client, events: Events::default() }
    }

    /// The rest of a stream, behind the event that was seen last.
    fn resume(client: &Client, last: &str) -> Open {
        let mut client = client.again();
        let lines = format!("{}Accept: text/event-stream\r\nLast-Event-ID: {last}", client.lines());
        client.conn.send(format!("GET /mcp HTTP/1.1\r\n{lines}\r\n\r\n").as_bytes());
        assert!(client.conn.head().is_event_stream());
        Open { client, events: Events::default() }
    }

    pub(crate) fn text(&mut self) -> String {
        self.client.conn.event(&mut self.events).expect("an event").data
    }

    pub(crate) fn next(&mut self) -> Value {
        serde_json::from_str(&self.text()).expect("JSON")
    }

    /// Whether the stream ends without another message.
    pub(crate) fn ended(&mut self) -> bool {
        self.client.conn.event(&mut self.events).is_none()
    }

    /// The text of the tool's result, which must come next.
    pub(crate) fn said(&mut self) -> String {
        let answer = self.next();
        let text = answer["result"]["content"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("no text: {answer}")).to_owned()
    }
}

/// Sends what needs no answer over a new connection.
pub(crate) fn post(client: &Client, body: &str) {
    let told = client.again().post(body);
    assert_eq!((told.status, told.text.as_str()), (202, ""));
}

pub(crate) fn answer(client: &Client, question: &Value, result: &str) {
    post(client, &format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, question["id"]));
}

/// The same stub behind HTTP and as a child for each session.
struct Both {
    _scratch: tempfile::TempDir,
    journals: [Journal; 2],
    _stub: HttpStub,
    proxy: Proxy,
}

const BOTH: [&str; 2] = ["h", "s"];

fn both(keys: &str) -> Both {
    let scratch = scratch();
    let journals = BOTH.map(|name| Journal::new(&scratch, name));
    let stub = HttpStub::start("h", &["--asks", "--journal", journals[0].path()]);
    let child = stdio_backend("s", &["--asks", "--journal", journals[1].path()]);
    let proxy =
        Proxy::start(&[stub.backend("h") + keys, child + "isolation = \"session\"\n" + keys]);
    let ready = |journal: &Journal| journal.wait_count("list of tools", 1);
    journals.iter().for_each(ready);
    Both { _scratch: scratch, journals, _stub: stub, proxy }
}

impl Both {
    fn client(&self, capabilities: &str) -> Client {
        let mut client = Client::connect_with(self.proxy.addr, "2025-11-25", capabilities);
        client.wait_for_tools(&["h__ask", "s__ask"]);
        client
    }
}

#[test]
fn a_question_reaches_its_client_and_the_answer_its_server_unchanged() {
    let both = both("");
    let client = both.client(ALL);
    for name in BOTH {
        // So often that calls and answers land on either worker.
        for round in 0..6 {
            let params = r#"{ "n":9007199254740993,"text":"\u0041\/" ,"z":[1.0,1e2]}"#;
            let own = ["0", "\"0\"", "-7", "\"a\\u0042\""][round % 4];
            let arguments = json!({ "id": own, "params": params });
            let mut open = Open::call(&client, "7", &format!("{name}__ask"), &arguments);
            let text = open.text();
            let question: Value = serde_json::from_str(&text).unwrap();
            let number = question["id"].as_u64().expect("a number of the proxy's own");
            assert_ne!(number, 0);
            assert_eq!(
                text,
                format!(
                    r#"{{"x":1.0,"jsonrpc":"2.0","method":"sampling/createMessage","id":{number},"params":{params}}}"#
                )
            );
            let said = |id: &str| {
                format!(
                    r#"{{"result" : {{"b":1.50,"a":"\u0042"}},"y":[],"id":{id}, "jsonrpc":"2.0"}}"#
                )
            };
            post(&client, &said(&number.to_string()));
            assert_eq!(open.said(), said(own), "{name} {round}");
            // Late: nobody waits.
            post(&client, &said(&number.to_string()));
        }
        let mut open = Open::call(&client, "8", &format!("{name}__ask"), &json!({}));
        let number = open.next()["id"].to_string();
        let error = |id: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-1,"message":"User rejected"}}}}"#
            )
        };
        post(&client, &error(&number));
        assert_eq!(open.said(), error("\"q\""));
    }
}

#[test]
fn questions_to_two_clients_at_once_do_not_cross() {
    let both = both("");
    let clients = [both.client(ALL), both.client(ALL)];
    for name in BOTH {
        let ask = |client: &Client, n: usize| {
            let params = json!({ "for": n }).to_string();
            let arguments = json!({ "id": "0", "method": "elicitation/create", "params": params });
            Open::call(client, "1", &format!("{name}__ask"), &arguments)
        };
        let mut open: Vec<Open> =
            clients.iter().enumerate().map(|(n, client)| ask(client, n)).collect();
        let questions: Vec<Value> = open.iter_mut().map(Open::next).collect();
        for (n, question) in questions.iter().enumerate() {
            assert_eq!(question["params"]["for"], n);
        }
        assert_ne!(questions[0]["id"], questions[1]["id"]);
        // The other one's answer is nobody's.
        answer(&clients[1], &questions[0], r#"{"from":"a stranger"}"#);
        answer(&clients[0], &questions[1], r#"{"from":"a stranger"}"#);
        answer(&clients[1], &questions[1], r#"{"from":1}"#);
        answer(&clients[0], &questions[0], r#"{"from":0}"#);
        for (n, open) in open.iter_mut().enumerate() {
            let said: Value = serde_json::from_str(&open.said()).unwrap();
            assert_eq!(said, json!({ "jsonrpc": "2.0", "id": 0, "result": { "from": n } }));
        }
    }
}

#[test]
fn what_a_client_cannot_do_is_refused_at_once() {
    let both = both("");
    let none = both.client("{}");
    let form = both.client(r#"{"elicitation":{}}"#);
    let ask = |client: &Client, tool: &str, method: &str, params: &str| {
        let arguments = json!({ "method": method, "params": params }).to_string();
        let said = client.again().call(tool, &arguments).said();
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["id"], "q");
        said["error"]["code"].as_i64()
    };
    for name in BOTH {
        let tool = format!("{name}__ask");
        for method in ["sampling/createMessage", "elicitation/create", "roots/list"] {
            assert_eq!(ask(&none, &tool, method, "{}"), Some(-32601), "{method}");
        }
        assert_eq!(ask(&none, &tool, "ping", "{}"), None);
        assert_eq!(ask(&form, &tool, "sampling/createMessage", "{}"), Some(-32601));
        assert_eq!(ask(&form, &tool, "elicitation/create", r#"{"mode":"url"}"#), Some(-32602));
        // What the proxy does not know is the client's to answer.
        for method in ["elicitation/create", "example.com/new"] {
            let mut open = Open::call(&form, "5", &tool, &json!({ "method": method }));
            let question = open.next();
            assert_eq!(question["method"], method);
            answer(&form, &question, "{}");
            assert!(open.said().contains("result"));
        }
    }
    // Whose question it is cannot be told of a child that all share.
    let shared = Proxy::start(&[stdio_backend("s", &["--asks"])]);
    let mut client = Client::connect_with(shared.addr, "2025-11-25", ALL);
    client.wait_for_tools(&["s__ask"]);
    assert_eq!(ask(&client, "s__ask", "sampling/createMessage", "{}"), Some(-32601));
}

#[test]
fn backends_are_told_what_the_client_can_do() {
    let both = both("");
    let odd = r#"{ "sampling":{}, "experimental":{"example.com/x":{"n":1.0}} }"#;
    let mut client = both.client(odd);
    for (name, journal) in BOTH.iter().zip(&both.journals) {
        client.call(&format!("{name}__echo"), r#"{"payload":"x"}"#).result();
        let lines = journal.lines();
        let hellos: Vec<&String> =
            lines.iter().filter(|line| line.starts_with("initialize ")).collect();
        assert!(hellos[0].contains(r#""capabilities":{},"#), "the proxy's own: {hellos:?}");
        let own = hellos.last().unwrap();
        assert!(own.contains(&format!(r#""capabilities":{odd},"clientInfo":"#)), "{own}");
    }
}

#[test]
fn a_client_that_was_asked_comes_back_or_cancels_or_ends_its_session() {
    let both = both("");
    let client = both.client(ALL);
    for (name, journal) in BOTH.iter().zip(&both.journals) {
        let tool = format!("{name}__ask");
        // A lost connection is no cancellation: the question stands, and so does its call.
        let mut open = Open::call(&client, "1", &tool, &json!({ "id": "11" }));
        let event = open.client.conn.event(&mut open.events).expect("the question");
        drop(open);
        let mut back = Open::resume(&client, &event.id.expect("an id"));
        let question: Value = serde_json::from_str(&event.data).expect("JSON");
        answer(&client, &question, "{}");
        assert_eq!(back.said(), r#"{"jsonrpc":"2.0","id":11,"result":{}}"#);
        // Nor is one that is lost before the question was seen.
        let mut open = Open::call(&client, "4", &tool, &json!({ "id": "14" }));
        let first = open.client.conn.any_event(&mut open.events).expect("an event");
        assert!(first.data.is_empty(), "the priming event: {first:?}");
        drop(open);
        let mut back = Open::resume(&client, &first.id.expect("an id"));
        answer(&client, &back.next(), "{}");
        assert_eq!(back.said(), r#"{"jsonrpc":"2.0","id":14,"result":{}}"#);

        let mut open = Open::call(&client, "2", &tool, &json!({ "id": "12", "stubborn": true }));
        let question = open.next();
        let cancelled =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#;
        post(&client, cancelled);
        journal.wait_count(r#"told {"jsonrpc":"2.0","id":12,"error":{"code":-32000"#, 1);
        answer(&client, &question, "{}");
        assert_eq!(journal.count(r#"response {"jsonrpc":"2.0","id":12,"#), 1);

        // The end of the session is the end of its questions.
        let mut other = both.client(ALL);
        let mut open = Open::call(&other, "3", &tool, &json!({ "id": "13", "stubborn": true }));
        open.next();
        other.delete();
        if *name == "h" {
            journal.wait_count(r#"delete"#, 1);
        } else {
            journal.wait_count("end of stdin", 1);
        }
    }
}

/// Servers ask for the roots when they are greeted, which for a child of one's own is in the first
/// call: a quick one was over before its client had answered.
#[test]
fn roots_that_a_child_asks_for_outlast_the_call_in_which_it_asks() {
    let both = both("");
    let mut client = both.client(ALL);
    let question = |id: u32| {
        let question = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"roots/list"}}"#);
        json!({ "message": question })
    };
    let heard = |id: u32| {
        let heard = format!(r#"response {{"jsonrpc":"2.0","id":{id},"result":{{"roots":[]}}}}"#);
        both.journals[1].wait_count(&heard, 1);
    };
    let mut open = Open::call(&client, "1", "s__tell", &question(81));
    let asked = open.next();
    assert_eq!(asked["method"], "roots/list");
    assert_eq!(open.said(), "told");
    answer(&client, &asked, r#"{"roots":[]}"#);
    heard(81);
    // A client that listens is asked there.
    let listening = client.listen();
    assert_eq!(client.call("s__grow", r#"{"name":"more"}"#).said(), "grown");
    listening.wait_for("notifications/tools/list_changed");
    assert_eq!(client.call("s__tell", &question(82).to_string()).said(), "told");
    let asked = listening.wait_for("roots/list");
    answer(&client, &asked, r#"{"roots":[]}"#);
    heard(82);
}

#[test]
fn a_server_takes_its_question_back() {
    let both = both("");
    let client = both.client(ALL);
    for (name, journal) in BOTH.iter().zip(&both.journals) {
        let arguments = json!({ "id": "\"mine\"", "take_back": true });
        let mut open = Open::call(&client, "1", &format!("{name}__ask"), &arguments);
        let question = open.next();
        let taken = open.next();
        assert_eq!(taken["method"], "notifications/cancelled");
        assert_eq!(taken["params"], json!({ "reason": "no more", "requestId": question["id"] }));
        answer(&client, &question, "{}");
        assert_eq!(journal.count("response"), 0, "an answer that nobody wants");
    }
}

#[test]
fn the_time_limit_of_a_call_stands_still_while_its_client_is_asked() {
    let both = both("timeout.seconds = 1\n");
    let client = both.client(ALL);
    for name in BOTH {
        let mut open = Open::call(&client, "1", &format!("{name}__ask"), &json!({}));
        let question = open.next();
        let hung = client.again().call(&format!("{name}__hang"), "{}").error();
        assert_eq!(hung.0, -32001);
        let again = client.again().call(&format!("{name}__hang"), "{}").error();
        assert_eq!(again.0, -32001);
        answer(&client, &question, "{}");
        assert!(open.said().contains("result"), "twice the limit has passed by now");
        // Behind the answer it goes on.
        let mut open =
            Open::call(&client, "2", &format!("{name}__ask"), &json!({ "take_back": true }));
        open.next();
        open.next();
        let end = open.next();
        assert_eq!(end["error"]["code"], -32001, "{end}");
    }
}

#[test]
fn progress_of_a_question_goes_back_to_its_server() {
    let both = both("");
    let client = both.client(ALL);
    for (name, journal) in BOTH.iter().zip(&both.journals) {
        let params = r#"{"_meta":{"progressToken":"tok"},"x":1.0}"#;
        let arguments = json!({ "params": params });
        let mut open = Open::call(&client, "1", &format!("{name}__ask"), &arguments);
        let question = open.next();
        let token = &question["params"]["_meta"]["progressToken"];
        assert_eq!(*token, question["id"], "unique whatever servers choose");
        let said = |token: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progress":1.0,"progressToken":{token}}}}}"#
            )
        };
        post(&client, &said("999999"));
        post(&both.client(ALL), &said(&token.to_string()));
        post(&client, &said(&token.to_string()));
        let heard = r#"notification notifications/progress {"progress":1.0,"progressToken":"tok"}"#;
        journal.wait_count(heard, 1);
        answer(&client, &question, "{}");
        open.said();
        assert_eq!(journal.count("notification notifications/progress"), 1);
    }
}

#[test]
fn questions_without_an_answer_are_bounded() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let stub = HttpStub::start("h", &["--asks", "--journal", journal.path()]);
    let proxy = Proxy::start(&[stub.backend("h")]);
    let mut client = Client::connect_with(proxy.addr, "2025-11-25", ALL);
    client.wait_for_tools(&["h__ask"]);
    let listening = client.listen();
    client.call("h__echo", "{}").result();
    journal.wait_count("listener", 2);
    for n in 0..66 {
        let arguments = json!({ "id": n.to_string(), "get": true, "and_leave": true });
        client.call("h__ask", &arguments.to_string()).result();
    }
    journal.wait_count(r#"response {"jsonrpc":"2.0","id":65,"error":{"code":-32012"#, 1);
    assert_eq!(journal.count("response"), 2);
    // One is answered: one more finds room.
    let question = listening.wait_for("sampling/createMessage");
    answer(&client, &question, "{}");
    journal.wait_count("response", 3);
    client.call("h__ask", r#"{"id":"66","get":true,"and_leave":true}"#).result();
    for _ in 0..64 {
        listening.wait_for("sampling/createMessage");
    }
    assert_eq!(journal.count("response"), 3);
}

#[test]
fn questions_within_a_batch() {
    let both = both("");
    let mut client = Client::connect_with(both.proxy.addr, "2025-03-26", ALL);
    for name in BOTH {
        let call = |id: &str| {
            message(id, "tools/call", &call_params(&format!("{name}__ask"), r#"{"id":"1"}"#))
        };
        // For a child one after the other: what it asks it asks in its newest call.
        client.send(&format!("[{},{}]", call("1"), message("2", "ping", "{}")));
        assert!(client.conn.head().is_event_stream());
        let mut events = Events::default();
        let mut next = || {
            let event = client.conn.event(&mut events).expect("an event");
            serde_json::from_str::<Value>(&event.data).unwrap()
        };
        let first = [next(), next()];
        let question = first.iter().find(|message| message["method"].is_string());
        let question = question.expect("the question").clone();
        let other = Client::in_session(both.proxy.addr, "2025-03-26", &client.session);
        answer(&other, &question, "{}");
        let last = client.conn.event(&mut events).expect("the answer").data;
        assert!(last.contains(r#"\"id\":1,"#), "{last}");
        assert!(client.conn.event(&mut events).is_none());
    }
}

#[test]
fn an_elicitation_by_url_and_its_end() {
    let both = both("");
    let mut clients = [both.client(ALL), both.client(ALL)];
    for (name, journal) in BOTH.iter().zip(&both.journals) {
        let told = clients[0].call(&format!("{name}__needs_url"), "{}");
        assert!(told.text.contains(texts::ELICITATIONS), "{}", told.text);
        assert_eq!(told.error().0, -32042);

        let listening = clients.each_ref().map(|client| client.listen());
        for client in &mut clients {
            client.call(&format!("{name}__echo"), "{}").result();
        }
        if *name == "h" {
            // That of the proxy, and one for each client that listens.
            journal.wait_count("listener", 3);
        }
        let complete = r#"{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"e-1","n":1.0}}"#;
        let arguments = json!({ "message": complete, "get": true });
        let told = clients[0].call(&format!("{name}__tell"), &arguments.to_string());
        // A child has one way to speak; while a call is in flight, that is on its stream.
        match told.before.first() {
            Some(before) => assert_eq!(before, complete),
            None => {
                let heard = listening[0].wait_for("notifications/elicitation/complete");
                assert_eq!(heard["params"], json!({ "elicitationId": "e-1", "n": 1.0 }));
            }
        }
        let others = listening[1].so_far();
        assert!(!others.iter().any(|event| event.data.contains("elicitation")), "{others:?}");
    }
}

#[test]
fn changed_roots_are_told_to_all_backend_sessions_of_the_client() {
    let both = both("");
    let mut client = both.client(ALL);
    let mut other = both.client(ALL);
    for name in BOTH {
        client.call(&format!("{name}__echo"), "{}").result();
        other.call(&format!("{name}__echo"), "{}").result();
    }
    let changed = r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed","params":{"_meta":{"n":1.0}}}"#;
    for round in 1..=4 {
        post(&client, changed);
        for journal in &both.journals {
            journal.wait_count(
                r#"notification notifications/roots/list_changed {"_meta":{"n":1.0}}"#,
                round,
            );
        }
    }
    // The servers ask, and get what the client says.
    for name in BOTH {
        let arguments = json!({ "method": "roots/list" });
        let mut open = Open::call(&client, "1", &format!("{name}__ask"), &arguments);
        let question = open.next();
        let roots = r#"{"roots":[{"uri":"file:///a","name":"a"}]}"#;
        answer(&client, &question, roots);
        assert!(open.said().contains(roots));
        // Nobody else's session heard of it.
        assert_eq!(other.call(&format!("{name}__echo"), r#"{"payload":"x"}"#).said(), "x");
    }
    for journal in &both.journals {
        assert_eq!(journal.count("notification notifications/roots/list_changed"), 4);
    }
}

/// A server that meets a client which can do something may add tools and say so at once. The first
/// list was read while the proxy looked at the lists anew for that word, was taken for outdated, and
/// the client was shown what a client is shown that can do nothing.
#[test]
fn the_first_list_is_right_where_a_server_changes_it_when_it_meets_its_client() {
    let backends = ["a", "b"]
        .map(|name| stdio_backend(name, &["--asks", "--restless"]) + "isolation = \"session\"\n");
    let proxy = Proxy::start(&backends);
    proxy.client_seeing(&["a__ask", "b__ask"]);
    for _ in 0..6 {
        let mut client = Client::connect_with(proxy.addr, "2025-11-25", ALL);
        let tools = client.names("tools/list");
        for tool in ["a__gated", "b__gated"] {
            assert!(tools.iter().any(|name| name == tool), "{tools:?}");
        }
    }
}

#[test]
fn a_client_that_listens_hears_its_own_backend_sessions() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let stub = HttpStub::start("h", &["--asks", "--journal", journal.path()]);
    let proxy = Proxy::start(&[stub.backend("h")]);
    let mut client = Client::connect_with(proxy.addr, "2025-11-25", ALL);
    client.wait_for_tools(&["h__ask"]);
    journal.wait_count("listener", 1);
    client.call("h__echo", "{}").result();
    // Opened for a session that is there, and for one that comes later.
    let listening = client.listen();
    journal.wait_count("listener", 2);
    let mut later = Client::connect_with(proxy.addr, "2025-11-25", ALL);
    let later_listening = later.listen();
    later.call("h__echo", "{}").result();
    journal.wait_count("listener", 3);

    let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1.0}}"#;
    let tell = |client: &mut Client| {
        let arguments = json!({ "message": note, "get": true }).to_string();
        assert!(client.call("h__tell", &arguments).before.is_empty());
    };
    tell(&mut client);
    assert_eq!(listening.wait_for("notifications/message")["params"]["level"], "info");
    tell(&mut later);
    later_listening.wait_for("notifications/message");

    // A question on that stream.
    let arguments = json!({ "id": "5", "get": true, "method": "roots/list" }).to_string();
    let mut asking = client.again();
    asking.send(&message("77", "tools/call", &call_params("h__ask", &arguments)));
    let question = listening.wait_for("roots/list");
    answer(&client, &question, r#"{"roots":[]}"#);
    assert_eq!(asking.told().said(), r#"{"jsonrpc":"2.0","id":5,"result":{"roots":[]}}"#);

    // The server forgets all sessions: the stream comes back with a new one.
    stub.forget();
    journal.wait_count("listener", 6);
    wait_until("a message on the new stream", || {
        let arguments = json!({ "message": note, "get": true }).to_string();
        client.call("h__tell", &arguments).result();
        listening.so_far().iter().any(|event| event.data.contains("notifications/message"))
    });

    // It ends with the client's last stream.
    let heard = journal.count("unheard");
    drop(listening);
    journal.wait_count("unheard", heard + 1);
    let arguments = json!({ "id": "6", "get": true, "method": "roots/list", "and_leave": true });
    client.call("h__ask", &arguments.to_string());
}

#[test]
fn a_backend_without_streams_costs_a_listening_client_nothing() {
    let stub = HttpStub::start("h", &["--asks", "--no-get"]);
    let proxy = Proxy::start(&[stub.backend("h")]);
    let mut client = Client::connect_with(proxy.addr, "2025-11-25", ALL);
    client.wait_for_tools(&["h__ask"]);
    let _listening = client.listen();
    for _ in 0..3 {
        assert_eq!(client.call("h__echo", r#"{"payload":"x"}"#).said(), "x");
    }
}

#[test]
fn a_client_sees_the_lists_that_its_capabilities_bring() {
    let both = both("");
    let mut plain = both.client("{}");
    let gated = ["h__gated", "s__gated"];
    let sees = |client: &mut Client| {
        let names = client.names("tools/list");
        gated.map(|tool| names.iter().any(|name| name == tool))
    };
    // Asked for at once, from both workers, by two clients of one kind.
    let able = [both.client(ALL), both.client(&ALL.replace(",", " , "))];
    for client in &able {
        for _ in 0..4 {
            assert_eq!(sees(&mut client.again()), [true, true]);
        }
    }
    assert_eq!(sees(&mut plain), [false, false]);
    for journal in &both.journals {
        assert_eq!(journal.count("list of tools"), 2, "one for the proxy, one for the kind");
    }
    for tool in gated {
        assert_eq!(able[1].again().call(tool, "{}").said(), "gated called");
        assert_eq!(plain.call(tool, "{}").error().0, -32602);
    }
    // A change is seen by all kinds, and those who listen are told.
    let listening = able[0].listen();
    for name in BOTH {
        able[0].again().call(&format!("{name}__add"), r#"{"kind":"tool","name":"fresh"}"#).result();
    }
    listening.wait_for("notifications/tools/list_changed");
    able[1].again().wait_for_tools(&["h__fresh", "h__gated", "s__gated"]);
    able[0].again().wait_for_tools(&["h__fresh", "s__fresh", "h__gated", "s__gated"]);
    plain.wait_for_tools(&["h__fresh"]);
}

#[test]
fn a_change_within_one_session_is_seen_by_that_client_alone() {
    let both = both("");
    for capabilities in ["{}", ALL] {
        let client = both.client(capabilities);
        let mut other = both.client(capabilities);
        for name in BOTH {
            let grown = format!("{name}__grown");
            let told = client.again().call(&format!("{name}__grow"), r#"{"name":"grown"}"#);
            told.result();
            if name == "h" {
                let change = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
                assert_eq!(told.before, [change]);
            }
            for _ in 0..4 {
                // On either worker, at once.
                let names = client.again().names("tools/list");
                assert!(names.contains(&grown), "{name}: {names:?}");
                let gated = format!("{name}__gated");
                assert_eq!(names.contains(&gated), capabilities == ALL);
            }
            assert_eq!(client.again().call(&grown, "{}").said(), "grown called");
            assert!(!other.names("tools/list").contains(&grown));
        }
    }
}

#[test]
fn names_are_looked_up_in_the_lists_that_the_client_sees() {
    let stub = HttpStub::start("b", &["--asks"]);
    // Two without prefix: whose a name is, the lists tell; and a rule looks at what is listed.
    let a = stdio_backend("a", &["--only-tools"]) + "prefix = \"\"\n";
    let b = stub.backend("b")
        + "prefix = \"\"\n[[backends.aliases]]\nfrom = \"gated\"\nto = \"renamed\"\n";
    let proxy = Proxy::start(&[a, b]);
    let mut client = Client::connect_with(proxy.addr, "2025-11-25", ALL);
    client.wait_for_tools(&["renamed", "echo"]);
    for _ in 0..4 {
        assert_eq!(client.again().call("renamed", "{}").said(), "gated called");
    }
    let mut plain = proxy.client();
    plain.call("renamed", "{}").error();
}

#[test]
fn a_backend_that_is_down_leaves_the_client_with_what_was_known() {
    let stub = HttpStub::start("h", &["--asks"]);
    let proxy = Proxy::start(&[stub.backend("h")]);
    proxy.client_seeing(&["h__ask"]);
    drop(stub);
    let mut client = Client::connect_with(proxy.addr, "2025-11-25", ALL);
    let names = client.names("tools/list");
    assert!(names.contains(&"h__ask".to_owned()), "{names:?}");
}

#[test]
fn a_task_that_a_question_is_related_to_has_the_name_that_each_side_knows() {
    let both = both("");
    let client = both.client(ALL);
    let meta = |task: &str| json!({ "_meta": { "io.modelcontextprotocol/related-task": { "taskId": task } } });
    for name in BOTH {
        let arguments = json!({ "params": meta("t1").to_string() });
        let mut open = Open::call(&client, "1", &format!("{name}__ask"), &arguments);
        let question = open.next();
        assert_eq!(question["params"], meta(&format!("{name}__t1")));
        answer(&client, &question, &meta(&format!("{name}__t1")).to_string());
        let told: Value = serde_json::from_str(&open.said()).expect("JSON");
        assert_eq!(told["result"], meta("t1"));
    }
}
