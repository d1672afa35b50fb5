//! `/admin`, and the proxy's own tools.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::http::{Answer, once, once_with};
use crate::support::process::{HttpStub, Proxy, Setup, free_port, http_backend, stdio_backend};
use crate::support::wait_until;

fn get(proxy: &Proxy, path: &str) -> Answer {
    once(proxy.addr, "GET", &format!("/admin/{path}"), "")
}

fn found(proxy: &Proxy, path: &str) -> Value {
    let answer = get(proxy, path);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn backends_and_health_tell_the_truth() {
    let web = HttpStub::start("web", &["--annotated"]);
    let keys = "[backends.circuit_breaker]\nminimum_calls = 1\nwait_duration_seconds = 600\n";
    let port = free_port();
    let proxy = Proxy::start(&[
        stdio_backend("pipe", &[]),
        web.backend("web") + keys,
        http_backend("late", format!("127.0.0.1:{port}").parse().unwrap()),
    ]);
    let mut client = proxy.client_seeing(&["pipe__echo", "web__echo"]);
    let row = |name: &str| {
        let all = found(&proxy, "backends");
        let rows = all["backends"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    };
    let all = found(&proxy, "backends");
    assert_eq!(
        all["proxy"],
        json!({
            "name": "test", "version": env!("CARGO_PKG_VERSION"), "backend_count": 3,
            "sessions": 1,
        })
    );
    let pipe = row("pipe");
    for (key, value) in [
        ("transport", json!("stdio")),
        ("era", json!("legacy")),
        ("state", json!("up")),
        ("healthy", json!(true)),
        ("restarts", json!(0)),
        ("breaker", Value::Null),
        ("ejected", json!(false)),
        ("in_flight", json!(0)),
        ("connections", json!(1)),
    ] {
        assert_eq!(pipe[key], value, "{key}: {pipe}");
    }
    assert!(pipe["tools"].as_u64().unwrap() > 3);
    assert!(pipe["last_success"].as_str().unwrap().ends_with('Z'));
    assert_eq!(row("web")["breaker"], "closed");
    wait_until("the reason why it is not up", || row("late")["last_error"].is_string());
    let late = row("late");
    assert_eq!((&late["healthy"], &late["last_success"]), (&json!(false), &Value::Null));
    let health = found(&proxy, "health");
    assert_eq!(
        (&health["status"], &health["unhealthy_backends"]),
        (&json!("degraded"), &json!(["late"]))
    );
    assert_eq!(health["config"], json!({ "generation": 1, "last_error": null }));
    assert_eq!(health["telemetry"], json!({ "lost": 0, "last_error": null }));
    while client.call("web__reads", r#"{"key":"a","fails":99}"#).error().0 != -32013 {}
    assert_eq!(row("web")["breaker"], "open");
    let _late = HttpStub::start_on(port, "late", &[]);
    wait_until("health", || found(&proxy, "health")["status"] == "healthy");
}

#[test]
fn sessions_of_all_workers_are_listed_and_can_be_ended() {
    let web = HttpStub::start("web", &[]);
    let proxy = Proxy::start(&[web.backend("web")]);
    // Enough for both workers to own some.
    let mut clients: Vec<Client> = (0..16).map(|_| proxy.client()).collect();
    let rows = found(&proxy, "sessions");
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 16);
    let ids: std::collections::HashSet<&str> =
        rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 16);
    assert!(rows.iter().all(|row| row["era"] == "legacy" && row["principal"] == Value::Null));
    assert!(rows.iter().all(|row| row["age_seconds"].is_u64() && row["idle_seconds"].is_u64()));
    assert!(!clients.iter().any(|client| ids.iter().any(|id| client.session.contains(id))));
    let end = |id: &str| once(proxy.addr, "DELETE", &format!("/admin/sessions/{id}"), "");
    for id in &ids {
        assert_eq!(end(id).status, 200);
    }
    wait_until("the end of all", || found(&proxy, "sessions") == json!([]));
    for client in &mut clients {
        client.notify_gone();
    }
    let gone = end(ids.iter().next().unwrap());
    assert_eq!((gone.status, &gone.json()["error"]), (404, &json!("not_found")));
}

#[test]
fn the_configuration_is_shown_without_secrets_and_others_are_judged() {
    let web = HttpStub::start("web", &[]);
    let proxy = Proxy::start(&[
        web.backend("web") + "bearer_token = \"s3cret\"\nheaders = { X-Key = \"s3cret\" }\n"
    ]);
    let answer = get(&proxy, "config");
    assert_eq!(answer.head.field("content-type"), Some("application/toml"));
    let shown = answer.text();
    assert!(!shown.contains("s3cret"), "{shown}");
    let document: toml::Table = shown.parse().unwrap();
    assert_eq!(document["proxy"]["name"].as_str(), Some("test"));
    assert_eq!(document["backends"][0]["bearer_token"].as_str(), Some("***"));
    assert_eq!(document["observability"]["metrics"]["enabled"].as_bool(), Some(true));

    let judge = |text: &str| {
        let answer = once_with(proxy.addr, "POST", "/admin/config/validate", "", text);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let good = judge("[proxy]\nname = \"p\"\n");
    assert_eq!((&good["ok"], &good["faults"]), (&json!(true), &json!([])));
    assert!(good["warnings"][0]["message"].as_str().unwrap().contains("no backend"), "{good}");
    let bad = judge("[proxy]\nname = \"p\"\nworkers = 0\nnmae = 1\n");
    let faults = bad["faults"].as_array().unwrap();
    assert_eq!((&bad["ok"], faults.len()), (&json!(false), 2));
    assert_eq!(
        (&faults[0]["line"], &faults[0]["column"], &faults[0]["path"]),
        (&json!(3), &json!(11), &json!("proxy.workers"))
    );
    let not_text = {
        let mut conn = crate::support::http::Conn::open(proxy.addr);
        let head = format!(
            "POST /admin/config/validate HTTP/1.1\r\nHost: {}\r\nContent-Length: 1\r\n\r\n",
            proxy.addr
        );
        conn.send(&[head.as_bytes(), b"\xff"].concat());
        conn.answer()
    };
    assert_eq!((not_text.status, &not_text.json()["error"]), (400, &json!("bad_body")));
}

#[test]
fn what_is_not_there_is_said_in_json_and_the_description_is_true() {
    let proxy = Proxy::start(&[stdio_backend("pipe", &[])]);
    for path in ["", "nothing", "cache", "backends/", "sessions/a/b"] {
        let answer = get(&proxy, path);
        assert_eq!((answer.status, &answer.json()["error"]), (404, &json!("not_found")), "{path}");
        assert!(answer.json()["message"].is_string());
    }
    let description = found(&proxy, "openapi.json");
    assert_eq!(description["openapi"], "3.1.0");
    let mut operations = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        let target = path.replace("{id}", "none");
        let methods = methods.as_object().unwrap();
        for method in ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"] {
            let answer = once(proxy.addr, method, &target, "");
            match methods.get(&method.to_ascii_lowercase()) {
                Some(operation) => {
                    operations += 1;
                    let described = &operation["responses"][answer.status.to_string()];
                    assert!(described.is_object(), "{method} {path}: {}", answer.status);
                    let media = answer.head.field("content-type").unwrap();
                    let media = media.split(';').next().unwrap();
                    assert!(described["content"][media].is_object(), "{method} {path}: {media}");
                }
                None => {
                    assert_eq!(answer.status, 405, "{method} {path}");
                    let allow = answer.head.field("allow").expect("Allow").to_ascii_lowercase();
                    let allowed: Vec<&str> = allow.split(", ").collect();
                    let known: Vec<&str> = methods.keys().map(String::as_str).collect();
                    assert_eq!(allowed, known, "{method} {path}");
                }
            }
        }
    }
    assert_eq!(operations, 13);
}

#[test]
fn only_those_who_may_are_let_in() {
    let web = HttpStub::start("web", &[]);
    let setup = |args: Vec<String>| {
        let admin_tools = Some("read");
        Setup { backends: web.backend("web"), admin_tools, args, ..Setup::default() }.start()
    };
    let proxy = setup(Vec::new());
    let answer = once(proxy.addr, "GET", "/admin/config", "Origin: http://evil.example\r\n");
    assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("forbidden")));
    // Reachable from elsewhere, without authentication: closed, and the tools are not there.
    let open = setup(vec!["--listen".into(), "0.0.0.0:0".into()]);
    let addr = (std::net::Ipv4Addr::LOCALHOST, open.addr.port()).into();
    for path in ["backends", "config", "metrics", "nothing"] {
        let answer = once(addr, "GET", &format!("/admin/{path}"), "");
        assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("forbidden")), "{path}");
    }
    let mut client = Client::connect(addr);
    client.wait_for_tools(&["web__echo"]);
    assert!(!client.names("tools/list").iter().any(|name| name.starts_with("proxy__")));
    let (code, text) = client.call("proxy__config", "{}").error();
    let unknown = client.call("proxy__nothing", "{}").error();
    assert_eq!((code, text), (unknown.0, "Unknown tool: proxy__config".to_owned()));
}

#[test]
fn the_proxys_own_tools() {
    let names =
        ["proxy__list_backends", "proxy__health_check", "proxy__session_count", "proxy__config"];
    let web = HttpStub::start("web", &[]);
    let proxy = Setup {
        backends: web.backend("web") + "bearer_token = \"s3cret\"\n",
        admin_tools: Some("read"),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["web__echo"]);
    let list = client.ask("tools/list", "{}").result();
    let tools = list["tools"].as_array().unwrap();
    let own: Vec<&Value> = tools.iter().rev().take(4).rev().collect();
    assert_eq!(own.iter().map(|tool| tool["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    assert!(tools.len() > 4 && !tools[0]["name"].as_str().unwrap().starts_with("proxy__"));
    for tool in own {
        assert_eq!(tool["annotations"]["readOnlyHint"], true);
        assert_eq!(tool["inputSchema"]["type"], "object");
        let name = tool["name"].as_str().unwrap();
        let result = client.call(name, "{}").result();
        let said = &result["structuredContent"];
        assert!(result.get("isError").is_none());
        for required in tool["outputSchema"]["required"].as_array().unwrap() {
            assert!(said.get(required.as_str().unwrap()).is_some(), "{name}: {required}: {said}");
        }
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(!text.contains("s3cret") && !said.to_string().contains("s3cret"));
        match name {
            "proxy__config" => assert_eq!(said["toml"], text),
            _ => assert_eq!(serde_json::from_str::<Value>(text).unwrap(), *said),
        }
    }
    let said = |client: &mut Client, name: &str| {
        client.call(name, "{}").result()["structuredContent"].take()
    };
    assert_eq!(said(&mut client, names[2]), json!({ "sessions": 1 }));
    let backends = said(&mut client, names[0]);
    assert_eq!(backends["backends"][0]["name"], "web");
    let row = backends["backends"][0].as_object().unwrap();
    let tool = tools.iter().find(|tool| tool["name"] == names[0]).unwrap();
    let schema = &tool["outputSchema"]["properties"]["backends"]["items"]["properties"];
    let described = schema.as_object().unwrap();
    assert_eq!(row.keys().collect::<Vec<_>>(), described.keys().collect::<Vec<_>>());
    // A name that is not one of them leads where unknown names lead.
    assert_eq!(client.call("proxy__add_backend", "{}").error().0, -32602);
}

#[test]
fn they_can_be_off_and_never_hide_a_backends_own() {
    // With a lone backend without prefix, and without any backend that has tools.
    let stub = stdio_backend("bare", &[]) + "prefix = \"\"\n";
    for (setting, shown) in [("off", false), ("read", true), ("full", true)] {
        let admin_tools = Some(setting);
        let proxy = Setup { backends: stub.clone(), admin_tools, ..Setup::default() }.start();
        let mut client = proxy.client_seeing(&["echo"]);
        let names = client.names("tools/list");
        assert_eq!(names.iter().any(|name| name == "proxy__config"), shown, "{setting}");
        let told = client.call("proxy__session_count", "{}");
        assert_eq!(told.json().get("error").is_none(), shown, "{setting} {told:?}");
        assert_eq!(client.call("echo", r#"{"payload":"x"}"#).said(), "x");
        if shown {
            // A tool of a backend that has the name of one of them stays the backend's.
            let added = client.call("add", r#"{"kind":"tool","name":"proxy__config"}"#);
            assert_eq!(added.said(), "added");
            wait_until("the backend's own", || {
                let list = client.ask("tools/list", "{}").result();
                let tools = list["tools"].as_array().unwrap();
                let mut found = tools.iter().filter(|tool| tool["name"] == "proxy__config");
                let theirs = found.next().unwrap()["description"] == "of bare";
                theirs && found.next().is_none()
            });
            assert_eq!(client.call("proxy__config", "{}").said(), "proxy__config called");
        }
    }
    let nothing = Setup { admin_tools: Some("read"), ..Setup::default() }.start();
    let mut client = nothing.client();
    assert!(client.hello["capabilities"]["tools"].is_object(), "{}", client.hello);
    assert_eq!(client.names("tools/list").len(), 4);
}
