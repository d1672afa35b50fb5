//! Rules of a backend that change what clients see: filters, aliases, arguments, size limits; over
//! stdio and over HTTP, with two workers.

use std::process::Command;

use serde_json::Value;

use crate::support::client::Client;
use crate::support::process::{HttpStub, Proxy, Setup, scratch, stdio_backend};

/// The stub over stdio and over HTTP, each with these keys.
struct World {
    proxy: Proxy,
    stub: HttpStub,
}

fn world(proxy: &str, keys: &str) -> World {
    let stub = HttpStub::start("web", &["--annotated"]);
    let backends =
        [stdio_backend("pipe", &["--annotated"]) + keys, stub.backend("web") + keys].concat();
    let proxy = Setup { backends, proxy: proxy.to_owned(), ..Setup::default() }.start();
    World { proxy, stub }
}

const BACKENDS: [&str; 2] = ["pipe", "web"];

/// Executions of a tool as the backend counts them.
fn executions(client: &mut Client, backend: &str, tool: &str) -> u64 {
    let stats: Value =
        serde_json::from_str(&client.call(&format!("{backend}__stats"), "{}").said()).unwrap();
    stats["executions"][tool].as_u64().unwrap_or(0)
}

/// What the tools of the stub were sent, as the `arguments` of the request.
fn arguments(said: &str) -> String {
    let start = said.find(r#""arguments":"#).unwrap_or_else(|| panic!("{said}"));
    let end = said.rfind("}}").unwrap();
    said[start + 12..end].to_owned()
}

#[test]
fn hidden_tools_are_gone_from_lists_and_calls() {
    let world = world("", "hide_tools = [\"hang\", \"re:wri.*\"]\n");
    let mut client = world.proxy.client_seeing(&["pipe__stats", "web__stats"]);
    let names = client.names("tools/list");
    for backend in BACKENDS {
        assert!(names.contains(&format!("{backend}__reads")));
        for hidden in ["hang", "writes"] {
            let name = format!("{backend}__{hidden}");
            assert!(!names.contains(&name));
            let other = format!("{backend}__no_such_tool");
            for name in [&name, &other] {
                let told = client.call(name, "{}");
                assert_eq!(told.error(), (-32602, format!("Unknown tool: {name}")));
            }
            assert_eq!(executions(&mut client, backend, hidden), 0);
        }
        assert_eq!(executions(&mut client, backend, "no_such_tool"), 0);
        // Written with escapes it is the same name.
        let told = client
            .ask("tools/call", &format!(r#"{{"name":"{backend}__wri\u0074es","arguments":{{}}}}"#));
        assert_eq!(told.error().0, -32602);
        assert_eq!(executions(&mut client, backend, "writes"), 0);
    }
    drop(world.stub);
}

#[test]
fn exposed_are_only_the_named_ones() {
    let keys = "expose_tools = [\"stats\", \"rea?s\"]\nexpose_prompts = [\"none\"]\n\
                expose_resources = [\"stub://*/item/[0-9]\", \"stub://*/item/{id}\"]\n";
    let world = world("", keys);
    let mut client = world.proxy.client_seeing(&["pipe__stats", "web__stats"]);
    assert_eq!(
        client.names("tools/list"),
        ["pipe__stats", "pipe__reads", "web__stats", "web__reads"]
    );
    assert_eq!(client.names("prompts/list"), [""; 0]);
    assert_eq!(client.names("resources/list"), [""; 0]);
    assert_eq!(client.names("resources/templates/list").len(), 2);
    for backend in BACKENDS {
        let told = client.ask("prompts/get", &format!(r#"{{"name":"{backend}__prompt"}}"#));
        assert_eq!(told.error(), (-32602, format!("Unknown prompt: {backend}__prompt")));
        let mut read = |path: &str| {
            client.ask("resources/read", &format!(r#"{{"uri":"stub://{backend}/{path}"}}"#))
        };
        assert!(read("item/7").result()["contents"][0]["uri"].is_string());
        for hidden in ["fixed", "item/77", "item/7/../../fixed", "item/%37%37"] {
            let told = read(hidden);
            assert_eq!(told.error().0, -32002, "{told:?}");
            let uri = &told.json()["error"]["data"]["uri"];
            assert_eq!(*uri, format!("stub://{backend}/{hidden}"));
        }
    }
}

#[test]
fn annotations_decide() {
    for (keys, shown) in [
        ("hide_destructive = true\n", &["reads", "adds"][..]),
        ("read_only_only = true\n", &["reads"]),
    ] {
        let world = world("", keys);
        let mut client = world.proxy.client_seeing(&["pipe__reads", "web__reads"]);
        let mut expected = Vec::new();
        for backend in BACKENDS {
            expected.extend(shown.iter().map(|tool| format!("{backend}__{tool}")));
            for tool in ["reads", "adds", "writes", "sets", "echo"] {
                let told = client.call(&format!("{backend}__{tool}"), "{}");
                assert_eq!(told.json().get("error").is_none(), shown.contains(&tool), "{told:?}");
            }
        }
        let mut names = client.names("tools/list");
        names.retain(|name| !name.ends_with("__rich"));
        assert_eq!(names, expected);
        // Asked of the backend itself, for the proxy does not let anybody ask for its counters.
        let mut direct = world.stub.client();
        let stats: Value = serde_json::from_str(&direct.call("stats", "{}").said()).unwrap();
        assert_eq!(stats["executions"]["writes"], Value::Null);
        assert_eq!(stats["executions"]["reads"], 1);
    }
}

#[test]
fn aliases_take_the_place_of_names() {
    let keys = "hide_tools = [\"hang\"]\n\
        [[backends.aliases]]\nfrom = \"reads\"\nto = \"look\"\n\
        [[backends.aliases]]\nfrom = \"hang\"\nto = \"wait\"\n\
        [[backends.aliases]]\nfrom = \"prompt\"\nto = \"ask\"\n";
    let world = world("", keys);
    let mut client = world.proxy.client_seeing(&["pipe__look", "web__look"]);
    let names = client.names("tools/list");
    for backend in BACKENDS {
        for gone in ["reads", "hang", "wait"] {
            let name = format!("{backend}__{gone}");
            assert!(!names.contains(&name), "{name}");
            assert_eq!(client.call(&name, "{}").error(), (-32602, format!("Unknown tool: {name}")));
        }
        // An alias of what is hidden is no way around.
        assert_eq!(executions(&mut client, backend, "hang"), 0);
        let said = client.call(&format!("{backend}__look"), r#"{"n":1.0}"#).said();
        assert!(said.contains(r#""name":"reads","arguments":{"n":1.0}"#), "{said}");
        let prompts = client.names("prompts/list");
        assert!(prompts.contains(&format!("{backend}__ask")), "{prompts:?}");
        let got = client.ask("prompts/get", &format!(r#"{{"name":"{backend}__ask"}}"#)).result();
        assert_eq!(got["description"], format!("of {backend}"));
        let told = client.ask("prompts/get", &format!(r#"{{"name":"{backend}__prompt"}}"#));
        assert_eq!(told.error().1, format!("Unknown prompt: {backend}__prompt"));
    }
    // The entry keeps every byte but the name.
    let told = client.ask("tools/list", "{}");
    assert!(told.text.contains(
        r#"{"name":"web__look","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}"#
    ));
}

/// The example of the README, and what is untouched by it.
#[test]
fn arguments_are_put_in_by_precedence() {
    let keys = "[backends.default_args]\ntimeout = 30\n\
        [[backends.inject_args]]\ntool = \"reads\"\nargs = { read_only = true, max_rows = 1000 }\n\
        [[backends.inject_args]]\ntool = \"writes\"\nargs = { dry_run = true }\noverwrite = true\n";
    let world = world("", keys);
    let mut client = world.proxy.client_seeing(&["pipe__reads", "web__reads"]);
    for backend in BACKENDS {
        for (tool, sent, reaches) in [
            (
                "sets",
                r#"{"b":9007199254740993, "a":1.0}"#,
                r#"{"b":9007199254740993, "a":1.0,"timeout":30}"#,
            ),
            ("sets", r#"{"timeout":1e2}"#, r#"{"timeout":1e2}"#),
            (
                "reads",
                r#"{"max_rows":9007199254740993}"#,
                r#"{"max_rows":9007199254740993,"timeout":30,"read_only":true}"#,
            ),
            (
                "writes",
                r#"{"dry_run":false,"z":null}"#,
                r#"{"dry_run":true,"z":null,"timeout":30}"#,
            ),
            (
                "writes",
                r#"{"dry_run":0,"dry_run":1,"timeout":2}"#,
                r#"{"dry_run":true,"dry_run":true,"timeout":2}"#,
            ),
        ] {
            let said = client.call(&format!("{backend}__{tool}"), sent).said();
            assert_eq!(arguments(&said), reaches, "{backend}");
        }
        let params = format!(r#"{{"name":"{backend}__sets"}}"#);
        let said = client.ask("tools/call", &params).said();
        assert_eq!(arguments(&said), r#"{"timeout":30}"#);
    }
}

#[test]
fn other_backends_are_untouched() {
    let stub = HttpStub::start("plain", &["--annotated"]);
    let proxy = Proxy::start(&[
        stdio_backend("pipe", &["--annotated"])
            + "default_args = { x = 1 }\nhide_tools = [\"echo\"]\n",
        stub.backend("plain"),
    ]);
    let mut client = proxy.client_seeing(&["pipe__reads", "plain__echo"]);
    let said = client.call("plain__reads", r#"{"a":1}"#).said();
    assert_eq!(arguments(&said), r#"{"a":1}"#);
    // The backend's own answer is the answer.
    assert_eq!(client.call("plain__nothing", "{}").error().1, "stub has no tool nothing");
}

#[test]
fn parameters_look_different() {
    let keys = "[[backends.param_overrides]]\ntool = \"search\"\nhide = [\"secret\"]\n\
        defaults = { limit = 10, secret = \"s\" }\nrename = { q = \"query\" }\n";
    let world = world("", keys);
    let mut client = world.proxy.client_seeing(&["pipe__search", "web__search"]);
    let list = client.ask("tools/list", "{}").text;
    for backend in BACKENDS {
        let entry = format!(
            r#"{{"name":"{backend}__search","inputSchema":{{"type":"object","properties":{{"query":{{"type":"string"}},"limit":{{"type":"integer","maximum":9007199254740993,"default":10}}}},"required":["query"]}},"x":1.0}}"#
        );
        assert!(list.contains(&entry), "{list}");
        let name = format!("{backend}__search");
        let said = client.call(&name, r#"{"query":"x", "n":1.0}"#).said();
        assert_eq!(arguments(&said), r#"{"q":"x", "n":1.0,"limit":10,"secret":"s"}"#);
        for sent in [r#"{"query":"x","secret":"mine"}"#, r#"{"q":"x"}"#] {
            assert_eq!(client.call(&name, sent).error().0, -32602);
        }
        assert_eq!(executions(&mut client, backend, "search"), 1);
    }
}

/// The schema had one key twice.
#[test]
fn a_parameter_keeps_its_name_where_another_one_has_the_new_name() {
    let keys = "[[backends.param_overrides]]\ntool = \"search\"\nrename = { q = \"limit\" }\n";
    let world = world("", keys);
    let mut client = world.proxy.client_seeing(&["pipe__search", "web__search"]);
    for backend in BACKENDS {
        let name = format!("{backend}__search");
        let list = client.ask("tools/list", "{}").result();
        let tools = list["tools"].as_array().unwrap();
        let tool = tools.iter().find(|tool| tool["name"] == name.as_str()).unwrap();
        assert_eq!(tool["inputSchema"]["properties"]["q"]["type"], "string", "{tool}");
        let sent = r#"{"q":"x","limit":3}"#;
        assert_eq!(arguments(&client.call(&name, sent).said()), sent);
    }
    assert!(world.proxy.stderr().contains("a parameter keeps its name"));
}

#[test]
fn arguments_are_measured() {
    let world =
        world("[security]\nmax_argument_size = 40\n", "default_args = { more = \"0123456789\" }\n");
    let mut client = world.proxy.client_seeing(&["pipe__reads", "web__reads"]);
    for backend in BACKENDS {
        // 40 bytes as the client wrote them; what the proxy adds does not count.
        let fits = format!(r#"{{"a":"{}"}}"#, "x".repeat(32));
        let told = client.call(&format!("{backend}__reads"), &fits);
        assert!(told.said().contains("0123456789"));
        let over = format!(r#"{{"a":"{}"}}"#, "x".repeat(33));
        let (code, text) = client.call(&format!("{backend}__reads"), &over).error();
        assert_eq!(code, -32602);
        assert!(text.contains("41") && text.contains("40"), "{text}");
        assert_eq!(executions(&mut client, backend, "reads"), 1);
    }
    let batch = crate::support::client::Client::connect_at(world.proxy.addr, "2025-03-26").post(
        &format!(
            r#"[{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"web__reads","arguments":{{"a":"{}"}}}}}}]"#,
            "x".repeat(50)
        ),
    );
    assert!(batch.text.contains("-32602"), "{batch:?}");
}

#[test]
fn check_names_the_place_of_a_bad_rule() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let text = "[proxy]\nname = \"x\"\n[[backends]]\nname = \"a\"\ntransport = \"http\"\n\
                url = \"http://localhost/\"\nexpose_tools = [\"a\"]\nhide_tools = [\"b\", \"re:(\"]\n\
                aliases = [{ from = \"a\", to = \"c\" }, { from = \"b\", to = \"c\" }]\n";
    std::fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mcp-proxy"))
        .args(["-c", file.to_str().unwrap(), "--check"])
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in ["proxy.toml:8:20: backends[0].hide_tools[1]", "proxy.toml:9:"] {
        assert!(said.contains(expected), "no {expected} in\n{said}");
    }
}
