//! `logging/setLevel` and log messages: everybody gets what they asked for, and nobody else's
//! (MCP 2025-11-25, Logging).

use serde_json::{Value, json};

use crate::modern::Caller;
use crate::support::client::{Client, Told, message};
use crate::support::process::{Pair, Proxy, stdio_backend};
use crate::support::wait_until;

const LEVELS: [&str; 8] =
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

fn world(pipe_keys: &str, web_keys: &str) -> Pair {
    Pair::start(pipe_keys, web_keys, "log")
}

fn set(client: &mut Client, level: &str) {
    let params = json!({ "level": level }).to_string();
    assert_eq!(client.ask("logging/setLevel", &params).result(), json!({}));
}

fn logs(told: &Told) -> Vec<Value> {
    assert!(told.json().get("error").is_none(), "{told:?}");
    let messages = told.before.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    messages.filter(|message| message["method"] == "notifications/message").collect()
}

/// The levels of the messages that a call brings.
fn levels(client: &mut Client, tool: &str) -> Vec<String> {
    let told = client.call(tool, r#"{"text":"t"}"#);
    let level = |log: &Value| log["params"]["level"].as_str().unwrap().to_owned();
    logs(&told).iter().map(level).collect()
}

#[test]
fn each_client_gets_its_own_level_from_both_kinds_of_backends() {
    let world = world("", "");
    let mut clients: Vec<Client> = (0..3).map(|_| world.proxy.client()).collect();
    assert_eq!(clients[0].hello["capabilities"]["logging"], json!({}));
    for tool in ["pipe__log", "web__log"] {
        assert_eq!(levels(&mut clients[0], tool), LEVELS, "nothing asked for, all is passed on");
    }
    set(&mut clients[0], "error");
    set(&mut clients[1], "notice");
    // The shared child was told the most verbose; each session of its own, its own.
    assert_eq!((world.pipe.count("level error"), world.pipe.count("level notice")), (1, 1));
    set(&mut clients[2], "alert");
    assert_eq!(world.pipe.count("level "), 2, "nothing more verbose: {:?}", world.pipe.lines());
    for tool in ["pipe__log", "web__log"] {
        // At both workers.
        for _ in 0..6 {
            assert_eq!(levels(&mut clients[0].again(), tool), LEVELS[4..], "{tool}");
            assert_eq!(levels(&mut clients[1].again(), tool), LEVELS[2..], "{tool}");
            assert_eq!(levels(&mut clients[2].again(), tool), LEVELS[6..], "{tool}");
        }
    }
    // Only the session of the first was open when its level was set: both ways lead there.
    for level in ["error", "notice", "alert"] {
        assert_eq!(world.web.count(&format!("level {level}")), 1, "{level}");
    }
    set(&mut clients[0], "critical");
    assert_eq!(levels(&mut clients[0], "web__log"), LEVELS[5..]);
    assert_eq!(world.web.count("level critical"), 1);
    // With the end of the session that wanted most, the child needs say less.
    clients[1].delete();
    world.pipe.wait_count("level critical", 1);
}

#[test]
fn levels_are_checked() {
    let world = world("", "");
    let mut client = world.proxy.client();
    for params in [r#"{"level":"loud"}"#, r#"{"level":"Error"}"#, r#"{"level":3}"#, "{}"] {
        let told = client.ask("logging/setLevel", params);
        assert_eq!(told.error().0, -32602, "{params}");
    }
    assert_eq!(world.pipe.count("level ") + world.web.count("level "), 0);
    let plain = Proxy::start(&[stdio_backend("plain", &[])]);
    plain.client_seeing(&["plain__echo"]);
    let told = plain.client().ask("logging/setLevel", r#"{"level":"info"}"#);
    assert_eq!(told.error().0, -32601, "nobody here logs");
}

#[test]
fn the_logger_names_the_backend() {
    let world = world("", "");
    let mut client = world.proxy.client();
    set(&mut client, "emergency");
    for backend in ["pipe", "web"] {
        let told = client.call(&format!("{backend}__log"), r#"{"text":"a","logger":"db"}"#);
        assert_eq!(logs(&told)[0]["params"]["logger"], format!("{backend}/db"));
        let told = client.call(&format!("{backend}__log"), r#"{"text":"b"}"#);
        assert_eq!(
            told.before[0],
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"logger":"{backend}","level":"emergency","data":"b","x":1.0}}}}"#
            ),
            "and nothing else changes"
        );
    }
    let own = Proxy::start(&[stdio_backend("own", &["--utilities"]) + "prefix = \"\"\n"]);
    let mut client = own.client_seeing(&["log"]);
    let told = client.call("log", r#"{"text":"a","logger":"db"}"#);
    assert_eq!(logs(&told)[0]["params"]["logger"], "db");
    let told = client.call("log", r#"{"text":"a"}"#);
    assert!(logs(&told)[0]["params"].get("logger").is_none());
}

#[test]
fn what_a_shared_child_says_belongs_to_nobody_unless_there_is_one_caller() {
    let world = world("", "");
    let mut client = world.proxy.client();
    let mut other = world.proxy.client();
    assert_eq!(levels(&mut client, "pipe__log").len(), 8);
    other.send(&message("1", "tools/call", r#"{"name":"pipe__hang","arguments":{}}"#));
    world.pipe.wait_count("call hang", 1);
    assert_eq!(levels(&mut client, "pipe__log").len(), 0, "whose are they?");
    // Over HTTP each call has a stream of its own.
    assert_eq!(levels(&mut client, "web__log").len(), 8);
    // A caller that has left does not make the next one the only one.
    other.again().notify("notifications/cancelled", r#"{"requestId":1}"#);
    world.pipe.wait_count("cancelled", 1);
    assert_eq!(levels(&mut client, "pipe__log").len(), 0);
}

#[test]
fn levels_are_told_again_to_what_is_opened_anew() {
    let world = world("", "");
    let mut client = world.proxy.client();
    set(&mut client, "critical");
    assert_eq!(levels(&mut client, "web__log"), LEVELS[5..]);
    let told = world.web.count("level critical");
    world.stub.forget();
    assert_eq!(levels(&mut client, "web__log"), LEVELS[5..]);
    assert_eq!(world.web.count("level critical"), told + 1);
    client.call("pipe__crash", "{}").error();
    world.pipe.wait_count("level critical", 2);
    client.call_until_well("pipe__echo", r#"{"payload":"x"}"#);
    wait_until("the child's own level", || levels(&mut client, "pipe__log") == LEVELS[5..]);
}

#[test]
fn what_a_child_of_ones_own_says_of_no_call_is_heard_on_ones_own_stream() {
    let world = world("isolation = \"session\"\n", "");
    let mut client = world.proxy.client();
    let mut stranger = world.proxy.client();
    let (heard, unheard) = (client.listen(), stranger.listen());
    set(&mut client, "alert");
    stranger.call_until_well("pipe__echo", r#"{"payload":"x"}"#);
    let mut other = client.again();
    other.send(&message("1", "tools/call", r#"{"name":"pipe__hang","arguments":{}}"#));
    world.pipe.wait_count("call hang", 1);
    // Of two calls it is not known which one they belong to; whose child it is, is.
    assert_eq!(levels(&mut client, "pipe__log").len(), 0);
    for level in &LEVELS[6..] {
        let log = heard.wait_for("notifications/message");
        assert_eq!(
            (&log["params"]["level"], &log["params"]["logger"]),
            (&json!(level), &json!("pipe"))
        );
    }
    assert!(unheard.so_far().iter().all(|event| !event.data.contains("notifications/message")));
}

#[test]
fn a_child_of_ones_own_and_a_session_that_all_share() {
    let world = world("isolation = \"session\"\n", "isolation = \"shared\"\n");
    let mut one = world.proxy.client();
    let mut two = world.proxy.client();
    set(&mut one, "alert");
    one.call_until_well("pipe__echo", r#"{"payload":"x"}"#);
    assert_eq!(world.pipe.count("level alert"), 1, "told before its first call");
    set(&mut two, "info");
    two.call_until_well("pipe__echo", r#"{"payload":"x"}"#);
    for _ in 0..4 {
        for tool in ["pipe__log", "web__log"] {
            assert_eq!(levels(&mut one.again(), tool), LEVELS[6..], "{tool}");
            assert_eq!(levels(&mut two.again(), tool), LEVELS[1..], "{tool}");
        }
    }
    assert_eq!((world.web.count("level alert"), world.web.count("level info")), (1, 1));
}

#[test]
fn the_level_of_a_caller_without_a_session_is_told_to_backends_that_have_them() {
    let world = world("isolation = \"session\"\n", "");
    let mut caller = Caller::new(&world.proxy);
    // Of another kind each, so that another session stands for it.
    for (name, journal, capabilities) in
        [("pipe", &world.pipe, "{}"), ("web", &world.web, r#"{"roots":{}}"#)]
    {
        caller.capabilities = capabilities.into();
        let before = journal.count("level ");
        for (level, heard, told) in
            [("error", 4, "error"), ("debug", 8, "debug"), ("warning", 5, "debug")]
        {
            caller.meta = format!(r#","io.modelcontextprotocol/logLevel":"{level}""#);
            let answer = caller.call(&format!("{name}__log"), r#"{"text":"t"}"#);
            assert_eq!(answer.said(), "logged");
            assert_eq!(answer.before.len(), heard, "{name} {level}: {answer:?}");
            assert!(
                answer.before.iter().all(|text| text.contains(&format!("\"logger\":\"{name}\"")))
            );
            assert_eq!(journal.last("level "), told);
        }
        // On either worker it may be another session.
        assert!(journal.count("level ") > before && journal.count("level ") <= before + 4);
    }
}
