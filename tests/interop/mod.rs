//! Published MCP servers behind the proxy, published MCP clients before it: what a client sees
//! through the proxy is what it sees directly, field by field, but for the prefix of names.
//!
//! Needs Node 20, npm and Python 3.10, and the package registries once; where these are missing the
//! tests say so and are skipped, or fail where `CI` is set. The clients of this file declare no
//! capabilities, because what server-everything offers depends on them; those of `clients` do.

mod clients;
mod compare;
mod conformance;
mod install;
mod judges;
mod readme;
mod run;

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use compare::{direct_entries, own_entries, same};
use run::{Client, Everything, NodeServer, path, wait_for_line};

const EVERYTHING: &str = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
const FILESYSTEM: &str = "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js";
const LISTS: [&str; 4] = ["tools", "resources", "templates", "prompts"];
/// Of `trigger-long-running-operation`.
const STEPS: usize = 5;

/// What is asked of server-everything. Left out are the tools whose answers name the process
/// (`get-env`) or start notifications without end (`toggle-*`).
fn everything_job(prefix: &str, reason: &str) -> Value {
    let call = |name: &str, arguments: Value| json!({ "name": format!("{prefix}{name}"), "arguments": arguments });
    let get = call;
    json!({
        "progress": call("trigger-long-running-operation", json!({ "duration": 1, "steps": STEPS })),
        "cancel": {
            "name": format!("{prefix}trigger-long-running-operation"),
            "arguments": { "duration": 5, "steps": 10 },
            "reason": reason,
        },
        "calls": [
            call("echo", json!({ "message": "caf\u{e9} \u{1f980} \"quoted\" \\ \n\t\u{0}" })),
            call("get-sum", json!({ "a": 0.1, "b": -7 })),
            call("get-tiny-image", json!({})),
            call("get-annotated-message", json!({ "messageType": "error", "includeImage": true })),
            call("get-structured-content", json!({ "location": "Chicago" })),
            call("get-resource-links", json!({ "count": 3 })),
            call("get-resource-reference", json!({ "resourceType": "Text", "resourceId": 3 })),
            call("gzip-file-as-resource", json!({
                "name": "hello.txt.gz", "data": "data:text/plain,hello", "outputType": "resource",
            })),
            call("get-sum", json!({ "a": "not a number" })),
            call("no-such-tool", json!({})),
        ],
        "reads": [
            "demo://resource/static/document/features.md",
            "demo://resource/dynamic/text/1",
            "demo://resource/dynamic/text/none",
        ],
        "gets": [
            get("simple-prompt", json!({})),
            get("args-prompt", json!({ "city": "Bern", "state": "BE" })),
            get("resource-prompt", json!({ "resourceType": "Text", "resourceId": "2" })),
            get("args-prompt", json!({})),
            get("no-such-prompt", json!({})),
        ],
    })
}

/// What is asked of server-filesystem, each time from the same files.
fn filesystem_job(prefix: &str, folder: &Path) -> Value {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder.join("sub")).expect("folder");
    fs::write(folder.join("a.txt"), "alpha\nbeta\ngamma\n").expect("file");
    fs::write(folder.join("sub/pixel.png"), b"\x89PNG\r\n\x1a\n\0\0").expect("file");
    let call = |name: &str, arguments: Value| json!({ "name": format!("{prefix}{name}"), "arguments": arguments });
    let at = |name: &str| path(&folder.join(name));
    json!({ "calls": [
        call("list_allowed_directories", json!({})),
        call("directory_tree", json!({ "path": at("") })),
        call("read_text_file", json!({ "path": at("a.txt"), "head": 2 })),
        call("read_multiple_files", json!({ "paths": [at("a.txt"), at("none.txt")] })),
        call("read_media_file", json!({ "path": at("sub/pixel.png") })),
        call("edit_file", json!({ "path": at("a.txt"), "edits": [{ "oldText": "beta", "newText": "b\u{ea}ta" }] })),
        call("write_file", json!({ "path": at("sub/new.txt"), "content": "{\"id\":1}" })),
        call("move_file", json!({ "source": at("sub/new.txt"), "destination": at("sub/moved.txt") })),
        call("search_files", json!({ "path": at(""), "pattern": "**/*.txt" })),
        call("read_text_file", json!({ "path": "/etc/hostname" })),
    ]})
}

/// What is asked of `paged.mjs`.
fn paged_job(prefix: &str) -> Value {
    json!({
        "calls": [
            {
                "name": format!("{prefix}tool-1"),
                "arguments": { "name": "x", "at": { "x": 1.5 } },
                "_meta": { "example.com/sent": { "by": "client" } },
            },
            { "name": format!("{prefix}tool-6"), "arguments": {} },
        ],
        "reads": ["paged://resource/4?a=1&b=%20", "paged://template/2/any%2Fthing"],
        "gets": [{ "name": format!("{prefix}prompt-2"), "arguments": { "who": "you" } }],
    })
}

/// A job on the server that `on` names.
fn on(mut job: Value, on: &str, server: Value) -> Value {
    job[on] = server;
    job
}

/// What a client saw of one backend, directly and through the proxy.
struct Seen {
    backend: &'static str,
    scheme: &'static str,
    direct: Value,
    through: Value,
}

impl Seen {
    fn compare(&self) {
        for list in LISTS {
            let own = own_entries(&self.through, list, &format!("{}__", self.backend), self.scheme);
            same(&format!("{} {list}", self.backend), &direct_entries(&self.direct, list), &own);
        }
        for answers in ["calls", "reads", "gets", "progress"] {
            let what = format!("{} {answers}", self.backend);
            same(&what, &self.direct[answers], &self.through[answers]);
        }
    }
}

/// Every list of the proxy holds the backends' entries in the order of the file, and no others.
fn nothing_else(seen: &[Seen]) {
    for list in LISTS {
        let expected: Vec<String> = seen
            .iter()
            .flat_map(|one| {
                let prefix = format!("{}__", one.backend);
                let entries = direct_entries(&one.direct, list);
                let name = move |entry: &Value| match list {
                    "resources" => entry["uri"].as_str().expect("uri").to_owned(),
                    "templates" => entry["uriTemplate"].as_str().expect("uri").to_owned(),
                    _ => format!("{prefix}{}", entry["name"].as_str().expect("name")),
                };
                entries.as_array().expect("list").iter().map(name).collect::<Vec<_>>()
            })
            .collect();
        let key = match list {
            "resources" => "uri",
            "templates" => "uriTemplate",
            _ => "name",
        };
        let entries = seen[0].through[list].as_array().expect("list");
        let found: Vec<&str> =
            entries.iter().map(|entry| entry[key].as_str().expect(key)).collect();
        assert_eq!(found, expected, "{list}");
    }
}

/// server-everything as a child or over HTTP, server-filesystem, and one with pages, all behind
/// one proxy.
fn one_proxy(client: Client, everything_over_http: bool) {
    let Some(home) = install::node().filter(|_| client.is_installed()) else { return };
    let scratch = tempfile::tempdir().expect("scratch folder");
    let files = scratch.path().join("files");
    let log = |name: &str| scratch.path().join(name);

    let remote = everything_over_http.then(|| Everything::start(home, log("remote.log")));
    let local = |log| NodeServer::node(home, log, EVERYTHING, &[]);
    let filesystem = NodeServer::node(home, log("files.log"), FILESYSTEM, &[&path(&files)]);
    let paged = NodeServer::node(home, log("paged.log"), "paged.mjs", &[]);

    // Directly, all three at once.
    let (direct_everything, direct_files, direct_paged) = thread::scope(|scope| {
        let everything = scope.spawn(|| {
            let job = everything_job("", "directly unwanted");
            let (job, log) = match &remote {
                Some(remote) => (on(job, "url", json!(remote.url)), remote.log.clone()),
                None => (on(job, "stdio", local(log("direct.log")).job()), log("direct.log")),
            };
            let seen = client.run(&job);
            wait_for_line(&log, |line| line == "aborted directly unwanted");
            seen
        });
        let files =
            scope.spawn(|| client.run(&on(filesystem_job("", &files), "stdio", filesystem.job())));
        let paged = scope.spawn(|| client.run(&on(paged_job(""), "stdio", paged.job())));
        let seen = [everything, files, paged].map(|run| run.join().expect("direct run"));
        let [everything, files, paged] = seen;
        (everything, files, paged)
    });

    not_empty("everything", &direct_everything);
    not_empty("files", &direct_files);
    not_empty("paged", &direct_paged);

    // Through the proxy.
    let (table, log) = match &remote {
        Some(remote) => (remote.table("everything"), remote.log.clone()),
        None => (local(log("through.log")).table("everything"), log("through.log")),
    };
    let (_proxy, url) = run::proxy(&[table, filesystem.table("files"), paged.table("paged")]);
    let run = |job: Value| client.run(&on(on(job, "url", json!(url)), "session", json!(true)));
    let seen = [
        Seen {
            backend: "everything",
            scheme: "demo://",
            direct: direct_everything,
            through: run(everything_job("everything__", "unwanted behind the proxy")),
        },
        Seen {
            backend: "files",
            scheme: "file://",
            direct: direct_files,
            through: run(filesystem_job("files__", &files)),
        },
        Seen {
            backend: "paged",
            scheme: "paged://",
            direct: direct_paged,
            through: run(paged_job("paged__")),
        },
    ];
    for one in &seen {
        one.compare();
        initialized(&one.through, &seen);
        session_ended(&one.through, &seen);
    }
    nothing_else(&seen);

    // Cancelled: the caller's wait ended and the backend's handler was told, by its own id.
    let cancel = &seen[0].through["cancel"];
    assert!(cancel["rejected"].is_string(), "cancelled, but answered: {cancel}");
    wait_for_line(&log, |line| line == "aborted unwanted behind the proxy");
}

/// The comparison has something to compare: what the servers are known to offer is there.
fn not_empty(backend: &str, direct: &Value) {
    let count = |list: &str| direct[list].as_array().map_or(0, Vec::len);
    let text = direct.to_string();
    match backend {
        "everything" => {
            assert!(count("tools") >= 13 && count("resources") >= 5 && count("prompts") >= 4);
            assert_eq!(count("templates"), 2);
            assert_eq!(direct["progress"]["notifications"].as_array().map(Vec::len), Some(STEPS));
            assert!(text.contains("\"structuredContent\"") && text.contains("\"outputSchema\""));
            assert!(text.contains("\"annotations\"") && text.contains("\"title\""));
            assert_eq!(direct["gets"][3]["error"]["code"], -32602, "{}", direct["gets"]);
        }
        "files" => {
            assert!(count("tools") >= 14);
            assert_eq!(direct["calls"][0]["result"]["isError"], Value::Null);
            assert!(direct["calls"][2]["result"]["structuredContent"]["content"].is_string());
            assert_eq!(direct["calls"][9]["result"]["isError"], true);
        }
        "paged" => {
            assert_eq!(LISTS.map(count), [7, 5, 3, 3]);
            assert!(text.contains("\"_meta\"") && text.contains("\"$defs\""));
            assert!(direct["calls"][1]["error"]["data"]["because"].is_array());
        }
        other => panic!("{other} is not a backend of these tests"),
    }
}

/// `initialize` through the proxy: its own name, what the backends can do, what they instruct.
fn initialized(through: &Value, seen: &[Seen]) {
    let initialize = &through["initialize"];
    assert_eq!(initialize["protocolVersion"], "2025-11-25");
    assert_eq!(initialize["serverInfo"]["name"], "test"); // support::process
    for capability in ["tools", "resources", "prompts"] {
        assert!(initialize["capabilities"][capability].is_object(), "{initialize}");
    }
    let instructions = initialize["instructions"].as_str().unwrap_or_default();
    for one in seen {
        let own = one.direct["initialize"]["instructions"].as_str().unwrap_or_default();
        assert!(instructions.contains(own.trim()), "{}: {instructions}", one.backend);
    }
}

/// The end of a session: 404 for its id from then on, and for one that never was, until the
/// client initialises anew.
fn session_ended(through: &Value, seen: &[Seen]) {
    let session = &through["session"];
    assert_eq!(session["unknown"], 404, "{session}");
    assert_eq!(session["alive"], 200, "{session}");
    assert!(matches!(session["delete"].as_u64(), Some(200 | 202 | 204)), "{session}");
    assert_eq!(session["gone"], 404, "{session}");
    assert_eq!(session["ping"], "refused", "{session}");
    let tools: usize =
        seen.iter().map(|one| one.direct["tools"].as_array().map_or(0, Vec::len)).sum();
    assert_eq!(session["again"], tools, "{session}");
}

#[test]
fn typescript_client_before_stdio_backends() {
    one_proxy(Client::TypeScript, false);
}

#[test]
fn typescript_client_before_an_http_backend() {
    one_proxy(Client::TypeScript, true);
}

#[test]
fn python_client_before_stdio_backends() {
    one_proxy(Client::Python, false);
}

#[test]
fn python_client_before_an_http_backend() {
    one_proxy(Client::Python, true);
}

/// The same server twice: equal names of two backends, and equal ids and progress tokens of two
/// clients at work at the same time, each client with its own answers and its own progress.
#[test]
fn two_clients_at_work_on_the_same_server_twice() {
    let Some(home) = install::node() else { return };
    let scratch = tempfile::tempdir().expect("scratch folder");
    let log = |name: &str| scratch.path().join(name);
    let remote = Everything::start(home, log("remote.log"));
    let local = NodeServer::node(home, log("local.log"), EVERYTHING, &[]);
    let (_proxy, url) = run::proxy(&[local.table("local"), remote.table("remote")]);
    let clients: Vec<(Client, &str)> = [Client::TypeScript, Client::Python]
        .into_iter()
        .filter(|client| client.is_installed())
        .flat_map(|client| [(client, "local__"), (client, "remote__")])
        .collect();
    thread::scope(|scope| {
        let runs: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(number, &(client, prefix))| {
                let url = &url;
                scope.spawn(move || {
                    // All equal but for the steps and the text.
                    let steps = STEPS + number;
                    let message = format!("from client {number}");
                    let long = format!("{prefix}trigger-long-running-operation");
                    let seen = client.run(&json!({
                        "url": url,
                        "progress": { "name": long, "arguments": { "duration": 2, "steps": steps } },
                        "calls": [{ "name": format!("{prefix}echo"), "arguments": { "message": message } }],
                    }));
                    let told = seen["progress"]["notifications"].as_array().expect("progress");
                    let told: Vec<(f64, f64)> = told
                        .iter()
                        .map(|one| (one["progress"].as_f64().unwrap(), one["total"].as_f64().unwrap()))
                        .collect();
                    let expected: Vec<(f64, f64)> =
                        (1..=steps).map(|step| (step as f64, steps as f64)).collect();
                    assert_eq!(told, expected);
                    let text = &seen["calls"][0]["result"]["content"][0]["text"];
                    assert_eq!(text, &format!("Echo: {message}"));
                })
            })
            .collect();
        for run in runs {
            run.join().expect("client");
        }
    });
}
