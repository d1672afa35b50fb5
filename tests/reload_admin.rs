//! The configuration changes while the proxy runs: files that are saved, `/admin/reload`, backends
//! that requests add and delete. What a reload does on the data plane is in `reload`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::metrics::Page;
use crate::support::client::Client;
use crate::support::http::{Answer, once, once_with};
use crate::support::process::{HttpStub, Journal, Proxy, Setup, scratch, stdio_backend};
use crate::support::{quote, wait_until};

const HEAD: &str = "[proxy]\nname = \"p\"\nworkers = 2\nadmin_tools = \"full\"\n";
const MANUAL: &str =
    "[proxy]\nname = \"p\"\nworkers = 2\nadmin_tools = \"full\"\nhot_reload = false\n";

fn start(file: &Path, text: &str) -> Proxy {
    fs::write(file, text).unwrap();
    Proxy::start_file(file, &[])
}

fn get(proxy: &Proxy, path: &str) -> Value {
    let answer = once(proxy.addr, "GET", &format!("/admin/{path}"), "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn post(proxy: &Proxy, path: &str, body: &str) -> Answer {
    once_with(proxy.addr, "POST", &format!("/admin/{path}"), "", body)
}

fn delete(proxy: &Proxy, name: &str) -> Answer {
    once(proxy.addr, "DELETE", &format!("/admin/backends/{name}"), "")
}

/// Waits until the client sees tools of these backends and of no others.
fn wait_for_backends(client: &mut Client, backends: &[&str]) {
    let mut seen = Vec::new();
    wait_until(&format!("the tools of {backends:?}"), || {
        seen = client.names("tools/list");
        let has = |backend: &&str| seen.contains(&format!("{backend}__echo"));
        backends.iter().all(has)
            && seen.iter().filter(|name| name.ends_with("__echo")).count() == backends.len()
    });
}

#[test]
fn a_file_that_is_saved_is_put_in_force_however_it_is_saved() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let web = HttpStub::start("web", &[]);
    let file = scratch.path().join("proxy.toml");
    let one = stdio_backend("one", &["--journal", journal.path()]);
    let alone = format!("{HEAD}{one}");
    let both = format!("{HEAD}{one}{}", web.backend("two"));
    let proxy = start(&file, &alone);
    let mut client = proxy.client_seeing(&["one__echo"]);
    let child = journal.pid();
    // In place.
    fs::write(&file, &both).unwrap();
    wait_for_backends(&mut client, &["one", "two"]);
    assert_eq!(client.call("two__echo", r#"{"payload":"x"}"#).said(), "x");
    // As editors save, twice in a row.
    for (text, backends) in [(&alone, &["one"][..]), (&both, &["one", "two"])] {
        let draft = scratch.path().join("proxy.toml~");
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, &file).unwrap();
        wait_for_backends(&mut client, backends);
    }
    // A file with faults changes nothing, and they are told.
    assert_eq!(get(&proxy, "health")["config"]["last_error"], Value::Null);
    let before = get(&proxy, "health")["config"]["generation"].as_u64().unwrap();
    fs::write(&file, format!("{alone}nonsense = 1\n")).unwrap();
    wait_until("the fault", || get(&proxy, "health")["config"]["last_error"].is_string());
    let health = get(&proxy, "health");
    let told = health["config"]["last_error"].as_str().unwrap();
    assert!(told.contains("proxy.toml:") && told.contains("nonsense"), "{told}");
    assert_eq!(health["config"]["generation"], before);
    assert_eq!(client.call("two__echo", r#"{"payload":"x"}"#).said(), "x");
    let reloads = |result: &str| {
        Page::of(&proxy).get("mcp_proxy_config_reloads_total", &[("result", result)])
    };
    assert_eq!((reloads("applied"), reloads("refused")), (3.0, 1.0));
    assert!(proxy.stderr().contains("nonsense"), "{}", proxy.stderr());
    fs::write(&file, &alone).unwrap();
    wait_for_backends(&mut client, &["one"]);
    assert_eq!(
        get(&proxy, "health")["config"],
        json!({"generation": before + 1, "last_error": null})
    );
    let last = Page::of(&proxy).get("mcp_proxy_config_last_reload_timestamp_seconds", &[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(last > 1e9 && last <= now.as_secs_f64(), "{last}");
    // The child of a backend that did not change is the same.
    assert_eq!((journal.pid(), journal.count("start ")), (child, 1));
}

#[test]
fn a_link_that_is_turned_is_noticed_as_are_the_files_that_the_file_names() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let web = HttpStub::start("web", &["--token", "second"]);
    let (stub, more) = (HttpStub::start("stub", &[]), HttpStub::start("more", &[]));
    // As Kubernetes mounts a ConfigMap.
    fs::create_dir(path("..first")).unwrap();
    symlink("..first", path("..data")).unwrap();
    symlink("..data/proxy.toml", path("proxy.toml")).unwrap();
    fs::write(path("token"), "first\n").unwrap();
    let servers = |names: &[(&str, &HttpStub)]| {
        let servers: serde_json::Map<String, Value> = names
            .iter()
            .map(|(name, stub)| {
                ((*name).to_owned(), json!({ "url": format!("http://{}/mcp", stub.addr) }))
            })
            .collect();
        json!({ "mcpServers": servers }).to_string()
    };
    fs::write(path("mcp.json"), servers(&[("a", &stub)])).unwrap();
    let token = quote(&format!("file:{}", path("token").display()));
    let mounted = |more: &str| {
        let import = quote(path("mcp.json").to_str().unwrap());
        let web = web.backend("web");
        format!("{HEAD}import_backends = {import}\n{web}bearer_token = {token}\n{more}")
    };
    fs::write(path("..first/proxy.toml"), mounted("")).unwrap();
    let proxy = Proxy::start_file(&path("proxy.toml"), &[]);
    let mut client = proxy.client();
    wait_for_backends(&mut client, &["a"]);
    fs::create_dir(path("..second")).unwrap();
    fs::write(path("..second/proxy.toml"), mounted(&more.backend("b"))).unwrap();
    symlink("..second", path("..tmp")).unwrap();
    fs::rename(path("..tmp"), path("..data")).unwrap();
    fs::remove_dir_all(path("..first")).unwrap();
    wait_for_backends(&mut client, &["a", "b"]);
    // A secret that is changed opens the server that did not know the old one.
    fs::write(path("token"), "second\n").unwrap();
    wait_for_backends(&mut client, &["a", "b", "web"]);
    // A server more in what is imported.
    fs::write(path("mcp.json"), servers(&[("a", &stub), ("c", &more)])).unwrap();
    wait_for_backends(&mut client, &["a", "b", "c", "web"]);
}

/// A configuration may be there before the secrets that it names.
#[test]
fn a_file_that_a_refused_configuration_names_is_waited_for() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let web = HttpStub::start("web", &["--token", "right"]);
    let other = HttpStub::start("other", &[]);
    fs::write(path("proxy.toml"), format!("{HEAD}{}", other.backend("other"))).unwrap();
    let proxy = Proxy::start_file(&path("proxy.toml"), &[]);
    let mut client = proxy.client();
    wait_for_backends(&mut client, &["other"]);
    let token = quote(&format!("file:{}", path("token").display()));
    let whole =
        format!("{HEAD}{}{}bearer_token = {token}\n", other.backend("other"), web.backend("web"));
    fs::write(path("proxy.toml"), whole).unwrap();
    wait_until("the fault", || {
        let error = get(&proxy, "health")["config"]["last_error"].to_string();
        error.contains("cannot be read") && error.contains("token")
    });
    fs::write(path("token"), "right\n").unwrap();
    wait_for_backends(&mut client, &["other", "web"]);
    assert_eq!(get(&proxy, "health")["config"]["last_error"], Value::Null);
}

/// One of them kept every later file from coming into force, another one a part of it, unsaid.
#[test]
fn what_requests_added_does_not_stand_in_the_way_of_the_file() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let web = HttpStub::start("web", &[]);
    let proxy = start(&file, &format!("{MANUAL}{}", web.backend("one")));
    let mut client = proxy.client_seeing(&["one__echo"]);
    let add = |name: &str, more: &str| {
        let url = format!("http://{}/mcp", web.addr);
        let body = format!(r#"{{"name":"{name}","url":"{url}"{more}}}"#);
        let answer = post(&proxy, "backends", &body);
        assert_eq!(answer.status, 201, "{}", answer.text());
    };
    add("spare", r#","failover_for":"one""#);
    add("same", "");
    let rules = "hide_tools = [\"echo\"]\n";
    let text = format!("{MANUAL}{}{}{rules}", web.backend("two"), web.backend("same"));
    fs::write(&file, text).unwrap();
    let answer = post(&proxy, "reload", "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let done = answer.json();
    let warnings = done["warnings"].to_string();
    for part in ["added.spare", "left out", "added.same", "in the place of the file's backend"] {
        assert!(warnings.contains(part), "no {part}: {done}");
    }
    assert_eq!(done["removed"], json!(["one", "spare"]), "{done}");
    wait_for_backends(&mut client, &["two", "same"]);
    assert_eq!(get(&proxy, "health")["config"]["last_error"], Value::Null);
    // It has gone, and may be added again.
    add("spare", r#","failover_for":"two""#);
}

#[test]
fn hot_reload_can_be_off_and_a_request_or_signal_reloads_all_the_same() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let web = HttpStub::start("web", &[]);
    let proxy = start(&file, &format!("{MANUAL}{}", web.backend("one")));
    let mut client = proxy.client_seeing(&["one__echo"]);
    fs::write(&file, format!("{MANUAL}{}{}", web.backend("one"), web.backend("two"))).unwrap();
    std::thread::sleep(mcp_proxy::limits::WATCH_REST * 4);
    assert_eq!(get(&proxy, "health")["config"]["generation"], 1);
    let answer = post(&proxy, "reload", "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let done = answer.json();
    assert_eq!(
        done,
        json!({"generation": 2, "added": ["two"], "removed": [], "replaced": [], "changed": [],
               "needs_restart": [], "warnings": []})
    );
    wait_for_backends(&mut client, &["one", "two"]);
    // Faults: all of them, with their places; nothing changes.
    fs::write(&file, format!("{MANUAL}worker = 1\n{}url = 1\n", web.backend("two"))).unwrap();
    let answer = post(&proxy, "reload", "");
    assert_eq!(answer.status, 422);
    let said = answer.json();
    assert_eq!(said["error"], "invalid");
    let faults = said["faults"].as_array().unwrap();
    assert!(faults.len() >= 2, "{said}");
    assert_eq!((&faults[0]["line"], &faults[0]["path"]), (&json!(6), &json!("proxy.worker")));
    assert!(said["message"].as_str().unwrap().contains("proxy.toml:6:1"), "{said}");
    assert_eq!(get(&proxy, "health")["config"]["last_error"], said["message"]);
    wait_for_backends(&mut client, &["one", "two"]);
    // What needs a restart is named, and the rest is in force.
    let port = format!("{MANUAL}[proxy.listen]\nport = 1\n{}", web.backend("one"));
    fs::write(&file, port.replace("workers = 2", "workers = 1")).unwrap();
    let done = post(&proxy, "reload", "").json();
    assert_eq!((&done["removed"], &done["generation"]), (&json!(["two"]), &json!(3)));
    let needs: Vec<&str> =
        done["needs_restart"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert!(needs.contains(&"proxy.workers"), "{done}");
    wait_for_backends(&mut client, &["one"]);
    // A file that switches it on is watched from then on.
    fs::write(&file, format!("{HEAD}{}", web.backend("one"))).unwrap();
    proxy.signal("HUP");
    wait_until("the reload", || get(&proxy, "health")["config"]["generation"] == 4);
    fs::write(&file, format!("{HEAD}{}", web.backend("three"))).unwrap();
    wait_for_backends(&mut client, &["three"]);
}

#[test]
fn backends_come_and_go_by_request_until_the_process_ends() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let (web, more) =
        (HttpStub::start("web", &[]), HttpStub::start("more", &["--token", "s3cret"]));
    let text = format!("{MANUAL}{}{}", web.backend("one"), stdio_backend("own", &[]));
    let proxy = start(&file, &text);
    let mut client = proxy.client_seeing(&["one__echo", "own__echo"]);
    let url = |stub: &HttpStub| format!("http://{}/mcp", stub.addr);
    let body = json!({"name": "two", "url": url(&more), "bearer_token": "s3cret",
                      "timeout": {"seconds": 9}, "hide_tools": ["sleep"]});
    let answer = post(&proxy, "backends", &body.to_string());
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!((&answer.json()["name"], &answer.json()["added"]), (&json!("two"), &json!(["two"])));
    wait_for_backends(&mut client, &["one", "own", "two"]);
    assert_eq!(client.call("two__echo", r#"{"payload":"x"}"#).said(), "x");
    client.call("two__sleep", r#"{"ms":1}"#).error();
    let shown = once(proxy.addr, "GET", "/admin/config", "");
    assert!(shown.text().contains("name = \"two\"") && !shown.text().contains("s3cret"));
    let again = post(&proxy, "backends", &body.to_string());
    assert_eq!((again.status, &again.json()["error"]), (409, &json!("conflict")));
    // What a file may say and a request may not, and what neither may.
    let secret = scratch.path().join("secret");
    fs::write(&secret, "s3cret").unwrap();
    let secret = format!("file:{}", secret.display());
    for (wrong, part) in [
        (json!({"name": "x", "transport": "stdio", "command": "true"}), "no process is started"),
        (
            json!({"name": "x", "url": url(&web), "command": "true"}),
            "added.x.command: not accepted",
        ),
        (json!({"name": "x", "url": url(&web), "bearer_token": secret}), "files are not read"),
        (json!({"name": "x", "url": "http://${HOME}/mcp"}), "variables are not put into requests"),
        (json!({"name": "x", "url": "ftp://h"}), "added.x.url: found the scheme ftp"),
        (json!({"name": "x"}), "added.x.url: missing"),
        (json!({"url": url(&web)}), "added.name: missing"),
        (json!({"name": "proxy", "url": url(&web)}), "added.proxy.name: "),
        (json!({"name": "a__b", "url": url(&web)}), "name: "),
        (json!({"name": "x", "url": url(&web), "nonsense": 1}), "unknown key"),
        (json!([]), "found an array"),
    ] {
        let answer = post(&proxy, "backends", &wrong.to_string());
        let said = answer.json();
        assert_eq!((answer.status, &said["error"]), (422, &json!("invalid")), "{wrong}: {said}");
        assert!(said["message"].as_str().unwrap().contains(part), "{wrong}: {said}");
        assert!(
            !said["faults"].as_array().unwrap().is_empty() && !said.to_string().contains("s3cret")
        );
    }
    assert_eq!(post(&proxy, "backends", "{").status, 422);
    // A mistake in a request is no fault of the file.
    assert_eq!(get(&proxy, "health")["config"], json!({"generation": 2, "last_error": null}));
    assert_eq!(delete(&proxy, "own").status, 200);
    wait_for_backends(&mut client, &["one", "two"]);
    let gone = delete(&proxy, "own");
    assert_eq!((gone.status, &gone.json()["error"]), (404, &json!("not_found")));
    // Both outlast reloads, of a file that has changed too.
    for text in [text.clone(), format!("{text}{}", web.backend("three"))] {
        fs::write(&file, text).unwrap();
        assert_eq!(post(&proxy, "reload", "").status, 200);
    }
    wait_for_backends(&mut client, &["one", "two", "three"]);
    assert_eq!(client.call("two__echo", r#"{"payload":"y"}"#).said(), "y");
    // One that was added and deleted may come again, by request or by the file.
    assert_eq!(delete(&proxy, "two").status, 200);
    wait_for_backends(&mut client, &["one", "three"]);
    let body = json!({"name": "two", "url": url(&web)});
    assert_eq!(post(&proxy, "backends", &body.to_string()).status, 201);
    wait_for_backends(&mut client, &["one", "two", "three"]);
    assert_eq!(delete(&proxy, "two").status, 200);
    fs::write(&file, format!("{text}{}", web.backend("two"))).unwrap();
    assert_eq!(post(&proxy, "reload", "").status, 200);
    wait_for_backends(&mut client, &["one", "two"]);
    // And what was deleted of the file comes back by request alone.
    let body = json!({"name": "own", "url": url(&web)});
    assert_eq!(post(&proxy, "backends", &body.to_string()).status, 201);
    wait_for_backends(&mut client, &["one", "own", "two"]);
    drop(proxy);
    let proxy = Proxy::start_file(&file, &[]);
    wait_for_backends(&mut proxy.client(), &["one", "own", "two"]);
    let rows = get(&proxy, "backends");
    let own = rows["backends"].as_array().unwrap().iter().find(|row| row["name"] == "own").unwrap();
    assert_eq!(own["transport"], "stdio");
}

#[test]
fn a_client_that_may_adds_a_backend_by_a_tool() {
    let web = HttpStub::start("web", &[]);
    let setup = |tools| Setup { admin_tools: Some(tools), ..Setup::default() }.start();
    let proxy = setup("full");
    let mut client = proxy.client();
    let list = client.ask("tools/list", "{}").result();
    let tool = list["tools"].as_array().unwrap().iter().find(|t| t["name"] == "proxy__add_backend");
    let tool = tool.unwrap();
    assert_eq!(tool["inputSchema"]["required"], json!(["name", "url"]));
    assert_eq!(tool["annotations"]["readOnlyHint"], false);
    let add = |client: &mut Client, arguments: Value| {
        client.call("proxy__add_backend", &arguments.to_string()).result()
    };
    let url = format!("http://{}/mcp", web.addr);
    for (wrong, part) in [
        (json!({"name": "x"}), "added.x.url: missing"),
        (json!({"name": "x", "url": 1}), "added.x.url: found 1"),
        (json!({"name": "x", "url": url, "command": "true"}), "accepted: name, url"),
        (json!({"name": "x", "url": "file:///etc/hostname"}), "files are not read"),
    ] {
        let result = add(&mut client, wrong.clone());
        assert_eq!(result["isError"], true, "{wrong}: {result}");
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(text.contains(part), "{wrong}: {text}");
    }
    let listening = client.listen();
    let result = add(&mut client, json!({"name": "web", "url": url}));
    assert_eq!(result["structuredContent"], json!({"name": "web", "generation": 2}), "{result}");
    listening.wait_for("notifications/tools/list_changed");
    wait_for_backends(&mut client, &["web"]);
    assert_eq!(client.call("web__echo", r#"{"payload":"x"}"#).said(), "x");
    let result = add(&mut client, json!({"name": "web", "url": url}));
    assert_eq!(result["isError"], true);
    assert!(result["content"][0]["text"].as_str().unwrap().contains("already"), "{result}");

    let proxy = setup("read");
    let mut client = proxy.client();
    assert!(!client.names("tools/list").iter().any(|name| name == "proxy__add_backend"));
    assert_eq!(client.call("proxy__add_backend", "{}").error().0, -32602);
}
