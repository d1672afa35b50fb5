//! Tasks of 2025-11-25: ids lead to their backend, and to nobody but who created them.

use serde_json::{Value, json};

use crate::support::client::{Client, Told, message};
use crate::support::process::{HttpStub, Journal, Proxy, scratch, stdio_backend};

struct World {
    proxy: Proxy,
    journals: [(&'static str, Journal); 2],
    _stub: HttpStub,
    _scratch: tempfile::TempDir,
}

fn world(pipe_keys: &str, web_keys: &str) -> World {
    let scratch = scratch();
    let (pipe, web) = (Journal::new(&scratch, "pipe"), Journal::new(&scratch, "web"));
    let stub = HttpStub::start("web", &["--tasks", "--page", "2", "--journal", web.path()]);
    let args = ["--tasks", "--page", "2", "--journal", pipe.path()];
    let proxy =
        Proxy::start(&[stdio_backend("pipe", &args) + pipe_keys, stub.backend("web") + web_keys]);
    proxy.client_seeing(&["pipe__echo", "web__echo"]);
    World { proxy, journals: [("pipe", pipe), ("web", web)], _stub: stub, _scratch: scratch }
}

fn create(client: &mut Client, tool: &str, payload: &str) -> Told {
    let params = json!({
        "name": tool,
        "arguments": { "payload": payload },
        "task": { "ttl": 60000 },
    });
    client.ask("tools/call", &params.to_string())
}

fn id_of(told: &Told) -> String {
    told.result()["task"]["taskId"].as_str().expect("taskId").to_owned()
}

fn ask(client: &mut Client, what: &str, task: &str) -> Told {
    client.ask(&format!("tasks/{what}"), &json!({ "taskId": task }).to_string())
}

fn listed(client: &mut Client) -> Vec<String> {
    let result = client.ask("tasks/list", "{}").result();
    assert!(result.get("nextCursor").is_none(), "{result}");
    let tasks = result["tasks"].as_array().expect("tasks").clone();
    tasks.iter().map(|task| task["taskId"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_task_is_followed_by_its_id_from_any_worker() {
    let world = world("", "");
    let mut client = world.proxy.client();
    let promised = &client.hello["capabilities"]["tasks"];
    assert_eq!(
        *promised,
        json!({ "list": {}, "cancel": {}, "requests": { "tools": { "call": {} } } })
    );
    for (backend, journal) in &world.journals {
        for n in 0..6 {
            let told = create(&mut client.again(), &format!("{backend}__echo"), &format!("p{n}"));
            let task = id_of(&told);
            let own = task.strip_prefix(&format!("{backend}__")).expect("the owner").to_owned();
            assert!(told.text.ends_with(r#""x":1.0}}"#), "and nothing else changes: {told:?}");
            let state = ask(&mut client.again(), "get", &task).result();
            assert_eq!((&state["taskId"], &state["status"]), (&json!(task), &json!("working")));
            let result = ask(&mut client.again(), "result", &task).result();
            assert_eq!(result["content"][0]["text"], format!("p{n}"));
            assert_eq!(
                result["_meta"]["io.modelcontextprotocol/related-task"]["taskId"],
                json!(task)
            );
            assert_eq!(result["structuredContent"]["taskId"], json!(own), "the tool's own affair");
            let state = ask(&mut client.again(), "cancel", &task).result();
            assert_eq!((&state["taskId"], &state["status"]), (&json!(task), &json!("cancelled")));
            assert_eq!(journal.count(&format!("tasks/cancel {own}")), 1);
        }
        // A call that asks for no task is none.
        let told = client.call(&format!("{backend}__echo"), r#"{"payload":"plain"}"#);
        assert_eq!(told.said(), "plain");
    }
}

#[test]
fn lists_are_merged_and_show_only_ones_own() {
    for (pipe, web) in [("", ""), ("isolation = \"session\"\n", "isolation = \"shared\"\n")] {
        let world = world(pipe, web);
        let mut clients: Vec<Client> = (0..3).map(|_| world.proxy.client()).collect();
        let mut own: Vec<Vec<String>> = Vec::new();
        for client in &mut clients[..2] {
            let mut ids = Vec::new();
            for backend in ["pipe", "web"] {
                for n in 0..5 {
                    let told =
                        create(&mut client.again(), &format!("{backend}__echo"), &n.to_string());
                    ids.push(id_of(&told));
                }
            }
            own.push(ids);
        }
        own.push(Vec::new());
        for (client, ids) in clients.iter_mut().zip(&own) {
            for _ in 0..3 {
                assert_eq!(listed(&mut client.again()), *ids, "all pages, and nobody else's");
            }
        }
        // What is not one's own is unknown, at both workers.
        for task in &own[0] {
            for what in ["get", "result", "cancel"] {
                let told = ask(&mut clients[1].again(), what, task);
                let known = own[1].contains(task);
                assert_eq!(told.json().get("error").is_none(), known, "{task}: {told:?}");
                if !known {
                    assert_eq!(told.error().0, -32602);
                }
            }
        }
    }
}

#[test]
fn what_is_said_about_a_task_names_it_as_its_client_does() {
    let world = world("", "");
    let mut client = world.proxy.client();
    let listening = client.listen();
    let related = |text: &str| {
        let message: Value = serde_json::from_str(text).unwrap();
        message["params"]["_meta"]["io.modelcontextprotocol/related-task"]["taskId"].clone()
    };
    for backend in ["pipe", "web"] {
        let first = id_of(&create(&mut client, &format!("{backend}__echo"), "x"));
        let told = ask(&mut client, "result", &first);
        assert!(told.as_events, "{told:?}");
        assert_eq!(related(told.before.last().unwrap()), json!(first), "{told:?}");
        // A child's word of a state is for its owner's own stream; over HTTP it stays where it came.
        let status = match backend {
            "pipe" => listening.wait_for("notifications/tasks/status"),
            _ => serde_json::from_str(&told.before[0]).unwrap(),
        };
        assert_eq!(status["method"], "notifications/tasks/status");
        assert_eq!(status["params"]["taskId"], json!(first));
        // A call that is related to a task names it to the backend as the backend does.
        let params = json!({
            "name": format!("{backend}__echo"),
            "arguments": { "payload": "y", "chatty": backend == "web" },
            "task": {},
            "_meta": { "io.modelcontextprotocol/related-task": { "taskId": first } },
        });
        let told = client.ask("tools/call", &params.to_string());
        let second = id_of(&told);
        if backend == "web" {
            assert_eq!(related(told.before.last().unwrap()), json!(second), "{told:?}");
        }
        let (_, journal) = world.journals.iter().find(|(name, _)| *name == backend).unwrap();
        let own = |task: &str| task.strip_prefix(&format!("{backend}__")).unwrap().to_owned();
        assert_eq!(journal.count(&format!("task {} of \"{}\"", own(&second), own(&first))), 1);
    }
}

#[test]
fn what_is_no_task_of_anybody() {
    let world = world("", "");
    let mut client = world.proxy.client();
    for task in ["nobody__x", "x", "", "pipe__", "pipe__x", "web__x"] {
        let told = ask(&mut client, "get", task);
        assert_eq!(told.error().0, -32602, "{task}: {told:?}");
    }
    for params in ["{}", r#"{"taskId":7}"#, r#"{"taskId":"web__a","taskId":"web__b"}"#] {
        assert_eq!(client.ask("tasks/get", params).error().0, -32602, "{params}");
    }
    assert_eq!(client.ask("tasks/list", r#"{"cursor":"x"}"#).error().0, -32602);
    // Of two readers one may see a task where the other sees none.
    let twice = r#"{"name":"web__echo","arguments":{},"task":{},"task":{}}"#;
    assert_eq!(client.post(&message("1", "tools/call", twice)).status, 400);
}

#[test]
fn own_names_keep_their_own_task_ids() {
    let proxy = Proxy::start(&[
        stdio_backend("one", &["--tasks"]) + "prefix = \"\"\n",
        stdio_backend("two", &[]),
    ]);
    let mut client = proxy.client_seeing(&["echo", "two__echo"]);
    let told = create(&mut client, "echo", "x");
    let task = id_of(&told);
    assert!(task.starts_with("task-"), "{task}");
    assert_eq!(ask(&mut client, "result", &task).result()["content"][0]["text"], "x");
    assert_eq!(listed(&mut client), [task]);
    // A backend that knows no tasks is not asked for any, and answers for itself.
    let told = create(&mut client, "two__echo", "plain");
    assert_eq!(told.said(), "plain");
    let plain = Proxy::start(&[stdio_backend("two", &[])]);
    plain.client_seeing(&["two__echo"]);
    assert!(plain.client().hello["capabilities"].get("tasks").is_none());
}
