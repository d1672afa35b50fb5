//! The tasks extension of 2026-07-28: ids lead to their backend, and to nobody but who may have them.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::modern::{Caller, Listening, lines, no_mismatch};
use crate::support::client::{Client, Told};
use crate::support::http::Conn;
use crate::support::process::{
    HttpStub, Journal, Proxy, Setup, free_port, http_backend, scratch, stdio_backend,
};
use crate::support::{quote, wait_for, wait_until};

const EXTENSION: &str = "io.modelcontextprotocol/tasks";
const DECLARED: &str = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
const AUTH: &str = "[auth]\ntype = \"bearer\"\n\
                    tokens = [\"the-token-of-one-1\", \"the-token-of-two-2\"]\n";
const ONE: &str = "the-token-of-one-1";
const TWO: &str = "the-token-of-two-2";

struct World {
    proxy: Proxy,
    web: HttpStub,
    journals: [Journal; 2],
    _scratch: tempfile::TempDir,
}

/// Both backends have the extension; `pipe` over stdio, `web` over HTTP.
fn world(proxy: &str) -> World {
    let scratch = scratch();
    let journals = ["pipe", "web"].map(|name| Journal::new(&scratch, name));
    let args = |journal: usize| ["--modern", "--tasks", "--journal", journals[journal].path()];
    let web = HttpStub::start("web", &args(1));
    let backends = stdio_backend("pipe", &args(0)) + &web.backend("web");
    let proxy = Setup { backends, proxy: proxy.into(), ..Setup::default() }.start();
    World { proxy, web, journals, _scratch: scratch }
}

impl World {
    /// A caller with the extension that has seen the tools of both.
    fn caller(&self, token: &str) -> Caller {
        caller(&self.proxy, token, &["pipe__job", "web__job"])
    }
}

fn caller(proxy: &Proxy, token: &str, tools: &[&str]) -> Caller {
    let mut caller = Caller::new(proxy);
    if !token.is_empty() {
        caller.extra = format!("Authorization: Bearer {token}\r\n");
    }
    caller.capabilities = DECLARED.into();
    wait_until(&format!("tools {tools:?}"), || {
        let list = caller.ask("tools/list", "").text;
        tools.iter().all(|tool| list.contains(&quote(tool)))
    });
    caller
}

/// Makes a task of this own id; the id that is told.
fn create(caller: &mut Caller, backend: &str, own: &str, payload: &str) -> String {
    let arguments = json!({ "id": own, "payload": payload }).to_string();
    id_of(&caller.call(&format!("{backend}__job"), &arguments))
}

fn id_of(told: &Told) -> String {
    let result = told.result();
    assert_eq!(result["resultType"], "task", "{told:?}");
    result["taskId"].as_str().expect("taskId").to_owned()
}

fn ask_with(caller: &mut Caller, what: &str, task: &str, more: &str) -> Told {
    let params = format!(r#""taskId":{}{more}"#, quote(task));
    caller.ask_about(&format!("tasks/{what}"), task, &params)
}

fn ask(caller: &mut Caller, what: &str, task: &str) -> Told {
    ask_with(caller, what, task, "")
}

/// The answer to `tasks/get` of an id that is nobody's.
fn is_unknown(told: &Told, task: &str) {
    assert_eq!(told.status, 400, "{told:?}");
    assert_eq!(told.error(), (-32602, format!("Invalid params: Unknown task: {task}")));
}

#[test]
fn a_task_is_created_followed_answered_and_cancelled() {
    let world = world("");
    let mut caller = world.caller("");
    let promised = caller.ask("server/discover", "").result();
    assert_eq!(promised["capabilities"]["extensions"][EXTENSION], json!({}));
    for backend in ["pipe", "web"] {
        // Both have a task of this id.
        let task = create(&mut caller, backend, "same \"1", &format!("of {backend}"));
        assert_eq!(task, format!("{backend}__same \"1"));
    }
    for (backend, journal) in ["pipe", "web"].iter().zip(&world.journals) {
        let task = format!("{backend}__same \"1");
        for _ in 0..4 {
            let told = ask(&mut caller.again(), "get", &task);
            let wanted = format!(
                r#""result":{{"resultType":"complete","x":1.0,"taskId":{},"status":"working","#,
                quote(&task)
            );
            assert!(told.text.contains(&wanted), "nothing else changes: {told:?}");
        }
        assert_eq!(journal.count("tasks/get same \"1"), 4);
        caller.call(&format!("{backend}__finish"), r#"{"id":"same \"1"}"#).result();
        let told = ask(&mut caller, "get", &task);
        let state = told.result();
        assert_eq!((&state["status"], &state["taskId"]), (&json!("completed"), &json!(task)));
        assert_eq!(state["result"]["content"][0]["text"], format!("of {backend}"));
        let inner = r#""structuredContent":{"taskId":"own","n":9007199254740993}"#;
        assert!(told.text.contains(inner), "the tool's own affair: {told:?}");
        // Of a task is told where it is listened for, and under nobody else's name.
        let told = caller.call(&format!("{backend}__job"), r#"{"id":"c","chatty":true}"#);
        assert!(told.before.is_empty() && id_of(&told) == format!("{backend}__c"), "{told:?}");
        // Input.
        let task = id_of(&caller.call(&format!("{backend}__multi_input"), "{}"));
        let state = ask(&mut caller, "get", &task).result();
        assert_eq!(state["status"], "input_required");
        assert_eq!(state["inputRequests"]["first"]["method"], "elicitation/create");
        for key in ["first", "second"] {
            let given = format!(r#","inputResponses":{{"{key}":{{"action":"accept","n":1.0}}}}"#);
            let told = ask_with(&mut caller.again(), "update", &task, &given);
            assert_eq!(told.result(), json!({ "resultType": "complete" }));
        }
        assert_eq!(journal.count("given {\"first\":{\"action\":\"accept\",\"n\":1.0}}"), 1);
        assert_eq!(ask(&mut caller, "get", &task).result()["status"], "completed");
        // Cancelling.
        let task = create(&mut caller, backend, "another", "x");
        let told = ask(&mut caller.again(), "cancel", &task);
        assert_eq!(told.result(), json!({ "resultType": "complete" }));
        assert_eq!(ask(&mut caller, "get", &task).result()["status"], "cancelled");
        // What failed.
        let task = id_of(&caller.call(&format!("{backend}__protocol_error_job"), "{}"));
        let failed = wait_for("the failure", || {
            let state = ask(&mut caller, "get", &task).result();
            (state["status"] == "failed").then_some(state)
        });
        assert_eq!(failed["error"], json!({ "code": -32603, "message": "it broke" }));
        // However long the rest is.
        let long = caller.call(&format!("{backend}__job"), r#"{"id":"long","bytes":200000}"#);
        let task = id_of(&long);
        assert!(task == format!("{backend}__long") && long.text.len() > 200_000, "{task}");
        caller.call(&format!("{backend}__finish"), r#"{"id":"long","bytes":200000}"#).result();
        let state = ask(&mut caller, "get", &task).result();
        assert_eq!((&state["taskId"], &state["status"]), (&json!(task), &json!("completed")));
        // What is no task, and long, arrives as it is.
        let told = caller.call(&format!("{backend}__big"), r#"{"bytes":3000000}"#);
        assert_eq!(told.said().len(), 3_000_000);
        assert_eq!(
            caller.call(&format!("{backend}__greet"), r#"{"name":"W"}"#).said(),
            "Hello, W!"
        );
        no_mismatch(journal);
    }
}

#[test]
fn what_asks_for_no_task_of_anybody_is_refused() {
    let scratch = scratch();
    let [journal, unasked] = ["web", "plain"].map(|name| Journal::new(&scratch, name));
    let plain = HttpStub::start("plain", &["--modern", "--journal", unasked.path()]);
    let legacy = stdio_backend("old", &["--tasks"]);
    let web = HttpStub::start("web", &["--modern", "--tasks", "--journal", journal.path()]);
    let others = plain.backend("plain") + &legacy;
    let proxy = Proxy::start(&[web.backend("web"), others.clone()]);
    let seen = ["web__job", "plain__echo", "old__echo"];
    let mut caller = self::caller(&proxy, "", &seen);
    let task = create(&mut caller, "web", "t", "x");
    // Head and body.
    for what in ["get", "update", "cancel"] {
        let method = format!("tasks/{what}");
        let params = format!(r#""taskId":{}"#, quote(&task));
        for about in ["", "web__u", "t"] {
            let body = caller.body(&method, &params);
            caller.send(&lines(&method, about), &body);
            let told = caller.told();
            assert_eq!((told.status, told.error().0), (400, -32020), "{about}: {told:?}");
        }
        // Without the extension, whether there is such a task or not.
        let mut other = caller.again();
        for capabilities in ["{}", r#"{"extensions":{"io.modelcontextprotocol/tasks":true}}"#] {
            other.capabilities = capabilities.into();
            for task in [&*task, "x"] {
                let told = ask(&mut other, what, task);
                assert_eq!((told.status, told.error().0), (400, -32021), "{told:?}");
                let wanted = json!({ "extensions": { EXTENSION: {} } });
                assert_eq!(told.json()["error"]["data"]["requiredCapabilities"], wanted);
            }
        }
        for task in ["x", "web__", "web", "plain__t", "old__task-1", "nobody__t"] {
            is_unknown(&ask(&mut caller, what, task), task);
        }
        let told = ask(&mut caller, what, "web__u");
        assert_eq!(told.error(), (-32602, "stub has no such task".into()));
        for params in ["", r#""taskId":7"#] {
            let told = caller.ask(&method, params);
            assert_eq!((told.status, told.error().0), (400, -32602), "{told:?}");
        }
        // Of two readers each may take another one.
        let twice = r#""taskId":"web__t","taskId":"web__u""#;
        assert_eq!(caller.ask_about(&method, "web__t", twice).error().0, -32602);
    }
    for what in ["result", "list"] {
        let told = ask(&mut caller, what, &task);
        assert_eq!((told.status, told.error().0), (404, -32601), "{told:?}");
    }
    assert_eq!(journal.count("tasks/get t"), 0);
    // Nor is anybody else asked to tell of any.
    let asked = unasked.count("modern subscriptions/listen");
    let (agreed, _listening) = caller.listen(r#"{"taskIds":["plain__t","old__t","x"]}"#);
    assert_eq!(agreed, json!({}));
    assert_eq!(unasked.count("modern subscriptions/listen"), asked);
    // A parameter of another revision makes no task of a server with sessions.
    let params = r#""name":"old__echo","task":{"ttl":1},"arguments":{"payload":"x","task":1.0}"#;
    assert_eq!(caller.ask_about("tools/call", "old__echo", params).said(), "x");
    // A call of who has not the extension: the backend's own refusal.
    let mut other = caller.again();
    other.capabilities = "{}".into();
    assert_eq!(other.call("web__failing_job", "{}").error(), (-32021, "no tasks".into()));
    let arguments = r#"{"id":"z","payload":"at once"}"#;
    assert_eq!(other.call("web__job", arguments).said(), "at once");
    // Where no backend has it there are no such methods.
    let proxy = Proxy::start(&[others]);
    let mut caller = self::caller(&proxy, "", &seen[1..]);
    let promised = caller.ask("server/discover", "").result();
    assert!(promised["capabilities"]["extensions"].get(EXTENSION).is_none(), "{promised}");
    for what in ["get", "update", "cancel"] {
        let told = ask(&mut caller, what, "plain__t");
        assert_eq!((told.status, told.error().0), (404, -32601), "{told:?}");
    }
}

#[test]
fn a_task_is_reached_by_its_principal_alone() {
    let world = world(AUTH);
    let (mut one, mut two) = (world.caller(ONE), world.caller(TWO));
    for (backend, journal) in ["pipe", "web"].iter().zip(&world.journals) {
        let task = create(&mut one, backend, "same", "x");
        let start = format!("{backend}__same.");
        let tag = task.strip_prefix(&start).expect("a tag").to_owned();
        assert!(tag.len() == 22 && tag.is_ascii(), "{task}");
        for _ in 0..6 {
            let state = ask(&mut one.again(), "get", &task).result();
            assert_eq!(state["taskId"], json!(task), "on every worker");
        }
        let asked = journal.count("tasks/");
        let mut others = vec![format!("{backend}__same"), format!("{backend}__same.")];
        others.push(task.replace(&tag, &"A".repeat(22)));
        others.push(task.replace("same", "sane"));
        others.push(task.clone() + "A");
        let other = if *backend == "pipe" { "web" } else { "pipe" };
        others.push(task.replace(&format!("{backend}__"), &format!("{other}__")));
        for what in ["get", "update", "cancel"] {
            is_unknown(&ask(&mut two.again(), what, &task), &task);
            for forged in &others {
                is_unknown(&ask(&mut one, what, forged), forged);
            }
        }
        let filter = json!({ "taskIds": [task, others[0]] }).to_string();
        let (agreed, _listening) = two.listen(&filter);
        assert_eq!(agreed, json!({}), "it is told nothing, and nobody is asked");
        assert_eq!(journal.count("tasks/"), asked);
        assert_eq!(journal.count("listening {\"taskIds\""), 0);
        // The other one has a task of this name too, and it is another name.
        let own = create(&mut two, backend, "same", "y");
        assert!(own.starts_with(&start) && own != task, "{own}");
        is_unknown(&ask(&mut one, "get", &own), &own);
        no_mismatch(journal);
    }
}

#[test]
fn ids_outlast_a_reload_and_not_the_process() {
    let stub = HttpStub::start("web", &["--modern", "--tasks"]);
    let start = || Setup { backends: stub.backend("web"), proxy: AUTH.into(), ..Setup::default() };
    let proxy = start().start();
    let mut one = caller(&proxy, ONE, &["web__job"]);
    let task = create(&mut one, "web", "t", "x");
    proxy.rewrite(AUTH, &(stub.backend("web") + &stdio_backend("new", &["--modern"])));
    proxy.signal("HUP");
    let mut one = caller(&proxy, ONE, &["web__job", "new__echo"]);
    assert_eq!(ask(&mut one, "get", &task).result()["taskId"], json!(task));
    let other = start().start();
    let mut one = caller(&other, ONE, &["web__job"]);
    is_unknown(&ask(&mut one, "get", &task), &task);
}

#[test]
fn own_names_keep_their_own_task_ids() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "web");
    let args = ["--modern", "--tasks", "--journal", journal.path()];
    let web = HttpStub::start("web", &args);
    let bare = web.backend("web") + "prefix = \"\"\n";
    let proxy = Proxy::start(std::slice::from_ref(&bare));
    let mut caller = caller(&proxy, "", &["job"]);
    let told = caller.call("job", r#"{"id":"a.b~c__d","payload":"x"}"#);
    assert_eq!(id_of(&told), "a.b~c__d");
    assert_eq!(ask(&mut caller, "get", "a.b~c__d").result()["status"], "working");
    let told = ask(&mut caller, "get", "other");
    assert_eq!(told.error(), (-32602, "stub has no such task".into()));
    let told = caller.call("big", r#"{"bytes":3000000}"#);
    assert_eq!(told.said().len(), 3_000_000);
    // Beside another one, and with a known caller.
    let two = stdio_backend("two", &["--modern", "--tasks"]) + "prefix = \"\"\n";
    let proxy = Setup { backends: bare + &two, proxy: AUTH.into(), ..Setup::default() }.start();
    let mut caller = self::caller(&proxy, ONE, &["job"]);
    let task = id_of(&caller.call("job", r#"{"id":"a.b","payload":"x"}"#));
    assert!(task.starts_with("a.b."), "{task}");
    assert_eq!(ask(&mut caller, "get", &task).result()["taskId"], json!(task));
    no_mismatch(&journal);
}

#[test]
fn a_backend_that_is_away_is_named() {
    let world = world("");
    let mut caller = world.caller("");
    let task = create(&mut caller, "web", "t", "x");
    drop(world.web);
    for what in ["get", "update", "cancel"] {
        let told = ask(&mut caller, what, &task);
        let (code, text) = told.error();
        assert!(code == -32010 && text.contains("web"), "{told:?}");
    }
    let other = create(&mut caller, "pipe", "t", "x");
    assert_eq!(ask(&mut caller, "get", &other).result()["status"], "working");
    // Also one that has not been there since the start: its tasks may be.
    let scratch = scratch();
    let file = scratch.path().join("down");
    std::fs::write(&file, "").expect("file");
    let child = stdio_backend("child", &["--modern", "--exit-while", file.to_str().unwrap()]);
    let dead = http_backend("dead", SocketAddr::from(([127, 0, 0, 1], free_port())));
    let proxy = Proxy::start(&[child, dead]);
    let mut caller = self::caller(&proxy, "", &[]);
    for backend in ["child", "dead"] {
        let told = ask(&mut caller, "get", &format!("{backend}__t"));
        let (code, text) = told.error();
        assert!(code == -32010 && text.contains(backend), "{told:?}");
    }
}

#[test]
fn who_has_not_the_extension_gets_no_tasks() {
    let scratch = scratch();
    let journals = ["pipe", "web", "old"].map(|name| Journal::new(&scratch, name));
    let modern = |at: usize| ["--modern", "--tasks", "--journal", journals[at].path()];
    let web = HttpStub::start("web", &modern(1));
    let old = HttpStub::start("old", &["--journal", journals[2].path()]);
    let proxy =
        Proxy::start(&[stdio_backend("pipe", &modern(0)), web.backend("web"), old.backend("old")]);
    // No session has it, whatever its client says.
    let can = json!({ "extensions": { EXTENSION: {}, "io.modelcontextprotocol/ui": {} } });
    proxy.client_seeing(&["pipe__job", "web__job", "old__echo"]);
    let mut client = Client::connect_with(proxy.addr, "2025-11-25", &can.to_string());
    assert!(client.hello["capabilities"].get("extensions").is_none(), "{}", client.hello);
    for (backend, journal) in ["pipe", "web"].iter().zip(&journals) {
        let told = client.call(&format!("{backend}__job"), r#"{"id":"t","payload":"at once"}"#);
        assert_eq!(told.said(), "at once");
        assert_eq!(journal.count("call job tasks=false"), 1);
    }
    assert_eq!(client.ask("tasks/update", r#"{"taskId":"web__t"}"#).error().0, -32601);
    // No backend with sessions hears of it.
    let mut caller = caller(&proxy, "", &["old__echo"]);
    caller.capabilities = can.to_string();
    assert_eq!(caller.call("old__echo", r#"{"payload":"x"}"#).said(), "x");
    let said = journals[2].lines();
    let hellos: Vec<&String> = said.iter().filter(|line| line.starts_with("initialize")).collect();
    assert!(hellos.iter().any(|line| line.contains("io.modelcontextprotocol/ui")), "{said:?}");
    assert!(!hellos.iter().any(|line| line.contains(EXTENSION)), "{hellos:?}");
}

#[test]
fn a_task_is_no_answer_that_serves_others() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "web");
    let web = HttpStub::start("web", &["--modern", "--tasks", "--journal", journal.path()]);
    let keys = "[backends.cache]\ntool_ttl_seconds = 600\ntools = [\"job\", \"greet\"]\n";
    let top = "[performance]\ncoalesce_requests = true\ncoalesce_tools = [\"*\"]\n";
    let setup = Setup {
        backends: web.backend("web") + keys,
        proxy: format!("{AUTH}{top}"),
        ..Setup::default()
    };
    let proxy = setup.start();
    let (mut one, mut two) =
        (caller(&proxy, ONE, &["web__job"]), caller(&proxy, TWO, &["web__job"]));
    let mut ids = Vec::new();
    for _ in 0..2 {
        for caller in [&mut one, &mut two] {
            ids.push(create(caller, "web", "t", "x"));
        }
    }
    assert_eq!(journal.count("call job tasks=true"), 4);
    assert!(ids[0] == ids[2] && ids[1] == ids[3] && ids[0] != ids[1], "{ids:?}");
    // What is complete is kept, for each kind of caller.
    for _ in 0..3 {
        one.call("web__greet", r#"{"name":"x"}"#).result();
    }
    assert_eq!(journal.count("call greet"), 1);
}

#[test]
fn the_task_of_a_stand_in_leads_there() {
    let scratch = scratch();
    let journals = ["own", "new"].map(|name| Journal::new(&scratch, name));
    let args = |at: usize| ["--modern", "--tasks", "--journal", journals[at].path()];
    let own = HttpStub::start("api", &args(0));
    let canary = stdio_backend("new", &args(1)) + "canary_of = \"api\"\nweight = 50\n";
    let proxy = Proxy::start(&[own.backend("api"), canary]);
    let mut caller = caller(&proxy, "", &["api__job"]);
    let mut shown = Vec::new();
    wait_until("tasks of both", || {
        shown.push(create(&mut caller, "api", &format!("t{}", shown.len()), "x"));
        journals.iter().all(|journal| journal.count("call job") > 0)
    });
    for (at, task) in shown.iter().enumerate() {
        let state = ask(&mut caller.again(), "get", task).result();
        assert_eq!(state["taskId"], json!(task));
        let there = task == &format!("~new~t{at}");
        assert!(there || task == &format!("api__t{at}"), "{task}");
        assert_eq!(journals[usize::from(there)].count(&format!("tasks/get t{at}")), 1);
    }
}

/// What is told of a task, and when.
fn told(listening: &mut Listening) -> (String, String) {
    let message = listening.wait_for("notifications/tasks");
    let text = |name: &str| message["params"][name].as_str().expect(name).to_owned();
    (text("taskId"), text("status"))
}

#[test]
fn listeners_hear_of_their_own_tasks() {
    for auth in ["", AUTH] {
        let world = world(auth);
        let token = if auth.is_empty() { "" } else { ONE };
        let mut caller = world.caller(token);
        let tasks = ["pipe", "web"].map(|backend| create(&mut caller, backend, "t", "x"));
        let unheard = ["pipe", "web"].map(|backend| create(&mut caller, backend, "u", "x"));
        let filter = json!({
            "taskIds": [tasks[0], tasks[1], "nobody__t", tasks[0]],
            "resourceSubscriptions": ["stub://web/fixed"],
        });
        let (agreed, mut listening) = caller.again().listen(&filter.to_string());
        assert_eq!(
            agreed,
            json!({ "resourceSubscriptions": ["stub://web/fixed"], "taskIds": tasks })
        );
        for (at, backend) in ["pipe", "web"].iter().enumerate() {
            // Of others nothing is told, neither here nor by a listener of those.
            ask(&mut caller, "cancel", &unheard[at]).result();
            caller.call(&format!("{backend}__finish"), r#"{"id":"t","bytes":300000}"#).result();
            let message = listening.wait_for("notifications/tasks");
            let params = &message["params"];
            assert_eq!(params["taskId"], json!(tasks[at]), "{params}");
            assert_eq!(params["status"], "completed");
            let text = params["result"]["content"][0]["text"].as_str().expect("text");
            assert_eq!(text.len(), 300_000);
            assert_eq!(params["result"]["structuredContent"]["taskId"], "own");
        }
        // One request for each backend, with its own ids.
        let web = &world.journals[1];
        let wanted = r#"listening {"resourceSubscriptions":["stub://web/fixed"],"taskIds":["t"]}"#;
        assert_eq!(web.count(wanted), 1, "{:?}", web.lines());
        // It is opened anew when it ends, and nothing is made up meanwhile.
        caller.call("web__hang_up", "{}").result();
        web.wait_count(wanted, 2);
        caller.call("web__finish", r#"{"id":"t"}"#).result();
        assert_eq!(told(&mut listening), (tasks[1].clone(), "completed".into()));
        // A server may refuse all for a task that is gone.
        for (backend, task) in ["pipe", "web"].iter().zip(&tasks) {
            caller.call(&format!("{backend}__finish"), r#"{"id":"t","forget":true}"#).result();
            let uri = format!("stub://{backend}/fixed");
            let filter = json!({ "taskIds": [task], "resourceSubscriptions": [uri] });
            let (agreed, mut listening) = caller.listen(&filter.to_string());
            assert_eq!(agreed, json!({ "resourceSubscriptions": [uri] }));
            let arguments = json!({ "uri": uri }).to_string();
            caller.call(&format!("{backend}__touch"), &arguments).result();
            listening.wait_for("notifications/resources/updated");
            let (agreed, _listening) = caller.listen(&json!({ "taskIds": [task] }).to_string());
            assert_eq!(agreed, json!({}));
        }
        world.journals.iter().for_each(no_mismatch);
    }
}

#[test]
fn who_has_not_the_extension_does_not_listen_for_tasks() {
    let world = world("");
    let mut caller = world.caller("");
    let task = create(&mut caller, "web", "t", "x");
    caller.capabilities = "{}".into();
    let mut conn: Conn = caller.begin_to_listen(&json!({ "taskIds": [task] }).to_string());
    let answer = conn.answer();
    assert_eq!(answer.status, 400);
    let error: Value = answer.json()["error"].clone();
    assert_eq!(error["code"], -32021);
    assert_eq!(error["data"]["requiredCapabilities"]["extensions"][EXTENSION], json!({}));
    // What is asked for without any is as it was.
    let (agreed, _listening) = caller.listen(r#"{"taskIds":[],"toolsListChanged":true}"#);
    assert_eq!(agreed, json!({ "toolsListChanged": true }));
}
