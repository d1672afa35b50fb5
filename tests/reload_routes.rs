//! A reload that adds, changes and removes backends which stand behind another one; input that their
//! calls ask for, which goes back to whoever has asked.

use serde_json::{Value, json};

use crate::modern::Caller;
use crate::reload::reload;
use crate::routes::{child, server, wait_for_state};
use crate::support::client::{Client, call_params, message};
use crate::support::process::{HttpStub, Journal, Proxy, scratch};
use crate::support::{quote, wait_until};

/// A call that takes a while, under way at whichever backend has noted it.
fn slow(client: &Client, key: &str, journals: &[Journal]) -> Client {
    let mut client = client.again();
    let arguments = format!(r#"{{"key":"{key}","ms":1500}}"#);
    client.send(&message("7", "tools/call", &call_params("api__writes", &arguments)));
    wait_until(key, || at(journals, key).iter().sum::<usize>() == 1);
    client
}

/// How often each of them has executed it.
fn at(journals: &[Journal], key: &str) -> Vec<usize> {
    journals.iter().map(|journal| journal.count(&format!("unsteady {key} "))).collect()
}

#[test]
fn canaries_come_change_and_go_under_sessions_and_calls() {
    for over_http in [true, false] {
        let scratch = scratch();
        let journals = ["own", "new", "other"]
            .map(|name| Journal::new(&scratch, &format!("{name}-{over_http}")));
        let [own, new, other] = &journals;
        let called = server(own);
        let api = match over_http {
            true => called.backend("api"),
            false => child("api", own, &[]),
        };
        let (first, second) = (server(new), server(other));
        let canary = |stub: &HttpStub, name: &str, weight: u32| {
            stub.backend(name) + &format!("canary_of = \"api\"\nweight = {weight}\n")
        };
        let proxy = Proxy::start(std::slice::from_ref(&api));
        let mut clients: Vec<Client> = (0..5).map(|_| proxy.client()).collect();
        for client in &mut clients {
            client.wait_for_tools(&["api__sets"]);
            client.call("api__sets", "{}").result();
        }
        let tools = clients[0].names("tools/list");
        let opened = [own.count("initialize "), own.count("start ")];
        // Where a hundred calls go: a whole round of turns.
        let hundred = |clients: &mut [Client]| {
            let heard = || [own, new, other].map(|journal| journal.count("call sets"));
            let before = heard();
            for n in 0..100 {
                let client = &mut clients[n % 5];
                client.call("api__sets", "{}").result();
            }
            let after = heard();
            [0, 1, 2].map(|n| after[n] - before[n])
        };
        assert_eq!(hundred(&mut clients), [100, 0, 0]);
        // One that comes leaves those alone that are under way.
        let mut begun = slow(&clients[0], "begun", &journals);
        reload(&proxy, "", &[canary(&first, "new", 99), api.clone()]);
        assert!(begun.told().said().starts_with("1 "));
        assert_eq!(at(&journals, "begun"), [1, 0, 0]);
        wait_for_state(&proxy, "new", "up");
        assert_eq!(hundred(&mut clients), [1, 99, 0]);
        // Of two in a row at least one is the canary's. It leaves, and they end where they are.
        let mut two = ["a", "b"].map(|key| slow(&clients[1], key, &journals));
        let had = ["a", "b"].map(|key| at(&journals, key));
        assert!(had.contains(&vec![0, 1, 0]), "{had:?}");
        reload(&proxy, "", &[api.clone(), canary(&second, "other", 99)]);
        for client in &mut two {
            assert!(client.told().said().starts_with("1 "));
        }
        assert_eq!(["a", "b"].map(|key| at(&journals, key)), had);
        wait_for_state(&proxy, "other", "up");
        assert_eq!(hundred(&mut clients), [1, 0, 99]);
        reload(&proxy, "", &[api.clone(), canary(&second, "other", 1)]);
        assert_eq!(hundred(&mut clients), [99, 0, 1]);
        reload(&proxy, "", &[api.clone(), canary(&first, "new", 40), canary(&second, "other", 59)]);
        wait_for_state(&proxy, "new", "up");
        assert_eq!(hundred(&mut clients), [1, 40, 59]);
        let mut two = ["c", "d"].map(|key| slow(&clients[2], key, &journals));
        let had = ["c", "d"].map(|key| at(&journals, key));
        reload(&proxy, "", std::slice::from_ref(&api));
        assert_eq!(hundred(&mut clients), [100, 0, 0]);
        for client in &mut two {
            assert!(client.told().said().starts_with("1 "));
        }
        assert_eq!(["c", "d"].map(|key| at(&journals, key)), had);
        // A backend of its own now: it has its own names, and no share.
        reload(&proxy, "", &[api.clone(), first.backend("new")]);
        clients[3].wait_for_tools(&["new__sets"]);
        assert_eq!(hundred(&mut clients), [100, 0, 0]);
        reload(&proxy, "", std::slice::from_ref(&api));
        assert_eq!(clients[4].names("tools/list"), tools);
        // The one that is called was not touched by any of that.
        assert_eq!([own.count("initialize "), own.count("start ")], opened);
    }
}

#[test]
fn failovers_come_change_and_go_under_sessions_and_calls() {
    let scratch = scratch();
    let journals = ["own", "near", "far"].map(|name| Journal::new(&scratch, name));
    let [own, near, far] = &journals;
    let file = scratch.path().join("down");
    let api = child("api", own, &["--exit-while", file.to_str().expect("UTF-8")])
        + "restart = { initial_ms = 50, max_ms = 200 }\n";
    let (first, second) = (server(near), server(far));
    let failover = |stub: &HttpStub, name: &str, priority: u32| {
        stub.backend(name) + &format!("failover_for = \"api\"\npriority = {priority}\n")
    };
    let proxy = Proxy::start(std::slice::from_ref(&api));
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.wait_for_tools(&["api__sets"]);
        client.call("api__sets", "{}").result();
    }
    let heard = || [own, near, far].map(|journal| journal.count("call sets"));
    // Where a call of each client goes.
    let all = |clients: &mut [Client]| {
        let before = heard();
        for client in clients.iter_mut() {
            client.call("api__sets", "{}").result();
        }
        let after = heard();
        [0, 1, 2].map(|n| after[n] - before[n])
    };
    let nobody = |clients: &mut [Client]| {
        let before = heard();
        for client in clients.iter_mut() {
            let (code, text) = client.call("api__sets", "{}").error();
            assert!(code == -32010 && text.contains("api"), "{code} {text}");
        }
        assert_eq!(heard(), before);
    };
    std::fs::write(&file, "").expect("write");
    assert!(own.signal("KILL"));
    for client in &mut clients {
        wait_until("its end", || client.call("api__sets", "{}").json().get("error").is_some());
    }
    nobody(&mut clients);

    reload(&proxy, "", &[api.clone(), failover(&first, "near", 5)]);
    wait_for_state(&proxy, "near", "up");
    assert_eq!(all(&mut clients), [0, 4, 0]);
    let mut begun = slow(&clients[0], "begun", &journals);
    // Another one that comes first, then it alone.
    reload(&proxy, "", &[api.clone(), failover(&first, "near", 5), failover(&second, "far", 2)]);
    wait_for_state(&proxy, "far", "up");
    assert_eq!(all(&mut clients), [0, 0, 4]);
    reload(&proxy, "", &[api.clone(), failover(&first, "near", 1), failover(&second, "far", 2)]);
    assert_eq!(all(&mut clients), [0, 4, 0]);
    reload(&proxy, "", &[api.clone(), failover(&second, "far", 2)]);
    assert_eq!(all(&mut clients), [0, 0, 4]);
    assert!(begun.told().said().starts_with("1 "));
    assert_eq!(at(&journals, "begun"), [0, 1, 0]);
    let mut begun = slow(&clients[1], "more", &journals);
    reload(&proxy, "", std::slice::from_ref(&api));
    nobody(&mut clients);
    assert!(begun.told().said().starts_with("1 "));
    assert_eq!(at(&journals, "more"), [0, 0, 1]);
    std::fs::remove_file(&file).expect("remove");
    wait_for_state(&proxy, "api", "up");
    assert_eq!(all(&mut clients), [4, 0, 0]);
    // While it is well, who comes behind it is not asked.
    reload(&proxy, "", &[failover(&first, "near", 5), api]);
    wait_for_state(&proxy, "near", "up");
    assert_eq!(all(&mut clients), [4, 0, 0]);
}

/// A stub of the request era that could be the backend `api` itself.
fn modern(journal: &Journal) -> HttpStub {
    HttpStub::start("api", &["--annotated", "--modern", "--journal", journal.path()])
}

fn asking(proxy: &Proxy) -> Caller {
    let mut caller = Caller::seeing(proxy, &["api__rounds"]);
    caller.capabilities = r#"{"elicitation":{}}"#.into();
    caller
}

/// One round with one question, and `more` arguments.
fn rounds(more: &Value) -> String {
    let params = json!({ "mode": "form", "message": "?", "requestedSchema": { "type": "object" } });
    let question = json!({ "k": { "method": "elicitation/create", "params": params } });
    let mut arguments = json!({ "rounds": [question] });
    for (key, value) in more.as_object().expect("an object") {
        arguments[key] = value.clone();
    }
    arguments.to_string()
}

/// The state of an answer that asks for input.
fn state(caller: &mut Caller, arguments: &str) -> Value {
    let result = caller.call("api__rounds", arguments).result();
    assert_eq!(result["resultType"], "input_required", "{result}");
    assert_eq!(result["inputRequests"]["k"]["params"]["message"], "?");
    result["requestState"].clone()
}

/// The call again, with its answer and this state.
fn answered(caller: &mut Caller, arguments: &str, state: &Value) -> crate::support::client::Told {
    let mut params = format!(
        r#""name":"api__rounds","arguments":{arguments},"inputResponses":{{"k":{{"action":"accept","content":{{"n":1.0}}}}}}"#
    );
    if let Some(state) = state.as_str() {
        params += &format!(r#","requestState":{}"#, quote(state));
    }
    caller.ask_about("tools/call", "api__rounds", &params)
}

#[test]
fn an_answer_to_a_question_goes_to_whoever_has_asked() {
    let scratch = scratch();
    let journals = ["own", "new"].map(|name| Journal::new(&scratch, name));
    let (called, canary) = (modern(&journals[0]), modern(&journals[1]));
    let proxy = Proxy::start(&[
        called.backend("api"),
        canary.backend("new") + "canary_of = \"api\"\nweight = 50\n",
    ]);
    let mut callers: Vec<Caller> = (0..2).map(|_| asking(&proxy)).collect();
    wait_for_state(&proxy, "new", "up");
    for (more, expected) in [
        (json!({}), json!("round\"/ 1")),
        // No state: the answer alone has to find its way.
        (json!({ "stateless": true }), Value::Null),
        // States that look like the proxy's own.
        (json!({ "state": "~new~" }), json!("~new~1")),
        (json!({ "state": "~" }), json!("~1")),
        // Too long to be held as a rule.
        (json!({ "pad": 300_000 }), json!("round\"/ 1")),
    ] {
        let heard =
            |at: usize| journals.each_ref().map(|journal| journal.count(&format!("round {at} ")));
        let before = [heard(0), heard(1)];
        let arguments = rounds(&more);
        for n in 0..12 {
            // Also by another caller's connection.
            let state = state(&mut callers[n % 2], &arguments);
            let said = answered(&mut callers[n / 2 % 2], &arguments, &state).said();
            let said: Value = serde_json::from_str(&said).expect("the request");
            assert_eq!(said["params"]["requestState"], expected, "{more}");
            assert_eq!(said["params"]["inputResponses"]["k"]["content"]["n"], 1.0);
            let taken = [0, 1].map(|n| heard(0)[n] - before[0][n]);
            assert_eq!([0, 1].map(|n| heard(1)[n] - before[1][n]), taken, "{more}");
        }
        let taken = [0, 1].map(|n| heard(0)[n] - before[0][n]);
        assert!(taken[0] + taken[1] == 12 && taken.iter().all(|count| *count >= 3), "{taken:?}");
    }
    for journal in &journals {
        let lines = journal.lines();
        assert!(!lines.iter().any(|line| line.starts_with("mismatch")), "{lines:?}");
    }
}

#[test]
fn an_answer_for_a_canary_that_has_left_is_nobody_elses() {
    let scratch = scratch();
    let journals = ["own", "new", "other"].map(|name| Journal::new(&scratch, name));
    let [called, canary, other] = journals.each_ref().map(modern);
    let api = called.backend("api");
    let behind = |stub: &HttpStub, name: &str, weight: u32| {
        stub.backend(name) + &format!("canary_of = \"api\"\nweight = {weight}\n")
    };
    let proxy = Proxy::start(&[api.clone(), behind(&canary, "new", 99)]);
    let mut caller = asking(&proxy);
    wait_for_state(&proxy, "new", "up");
    for more in [json!({}), json!({ "stateless": true }), json!({ "pad": 300_000 })] {
        let arguments = rounds(&more);
        let mut from_canary = || {
            let before = journals[1].count("round 0 ");
            let states = [state(&mut caller, &arguments), state(&mut caller, &arguments)];
            assert!(journals[1].count("round 0 ") > before);
            states.into_iter().find(|state| state.as_str().is_some_and(|s| s.starts_with('~')))
        };
        let [one, two, three] = [(); 3].map(|()| from_canary().expect("a state of the canary"));
        let heard = || journals.each_ref().map(|journal| journal.count("round 1 "));
        // Another share is no reason to forget it.
        let before = heard();
        reload(&proxy, "", &[api.clone(), behind(&canary, "new", 1)]);
        answered(&mut caller, &arguments, &one).said();
        assert_eq!(heard(), [before[0], before[1] + 1, before[2]]);
        // Another one in its place, and nobody.
        let before = heard();
        for (backends, state) in [
            (&[api.clone(), behind(&other, "other", 99)][..], two),
            (std::slice::from_ref(&api), three),
        ] {
            reload(&proxy, "", backends);
            let (code, text) = answered(&mut caller, &arguments, &state).error();
            assert_eq!(code, -32602, "{text}");
            assert!(text.contains("requestState") && text.contains("call again"), "{text}");
            assert!(!text.contains("new"), "{text}");
        }
        assert_eq!(heard(), before);
        // From the beginning it is answered.
        let state = state(&mut caller, &arguments);
        answered(&mut caller, &arguments, &state).said();
        assert_eq!(heard()[0], before[0] + 1);
        reload(&proxy, "", &[api.clone(), behind(&canary, "new", 99)]);
        wait_for_state(&proxy, "new", "up");
    }
}

#[test]
fn a_state_that_nobody_gave_executes_nothing() {
    let scratch = scratch();
    let journals = ["own", "new"].map(|name| Journal::new(&scratch, name));
    let canary = modern(&journals[1]);
    let proxy = Proxy::start(&[
        child("api", &journals[0], &[]),
        canary.backend("new") + "canary_of = \"api\"\nweight = 50\n",
    ]);
    let mut caller = Caller::seeing(&proxy, &["api__sets"]);
    wait_for_state(&proxy, "new", "up");
    for state in ["bogus", "~nobody~x", "~", "~~"] {
        for _ in 0..2 {
            let params = format!(
                r#""name":"api__sets","arguments":{{}},"inputResponses":{{}},"requestState":"{state}""#
            );
            let told = caller.ask_about("tools/call", "api__sets", &params);
            assert_eq!(told.error().0, -32602, "{state}: {told:?}");
        }
    }
    assert_eq!(journals[0].count("call ") + journals[1].count("call "), 0);
}
