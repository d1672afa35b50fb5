//! The merged lists: all pages, one page out, prefixes, owners of URIs, announced changes.

use serde_json::json;

use crate::support::client::Client;
use crate::support::process::{HttpStub, Journal, Proxy, Setup, scratch, stdio_backend, stub_path};
use crate::support::{quote, texts, wait_until};

const TOOLS: usize = 16;

#[test]
fn all_pages_of_all_backends_in_one_page_and_in_the_order_of_the_file() {
    let http = HttpStub::start("h", &["--page", "7", "--extra", "30"]);
    let proxy = Proxy::start(&[
        stdio_backend("s", &["--page", "5", "--extra", "23"]),
        http.backend("h"),
        stdio_backend("plain", &["--only-tools"]),
    ]);
    let mut client = proxy.client_seeing(&["s__echo", "h__echo", "plain__echo"]);
    let tools = client.names("tools/list");
    assert_eq!(tools.len(), TOOLS * 3 + 23 + 30);
    assert_eq!(tools[0], "s__echo");
    assert_eq!(tools[TOOLS], "s__t0000");
    assert_eq!(tools[TOOLS + 22], "s__t0022");
    assert_eq!(tools[TOOLS + 23], "h__echo");
    assert_eq!(tools.last().unwrap(), "plain__add");
    let listed = client.ask("tools/list", "{}").result();
    assert!(listed.get("nextCursor").is_none());
    assert_eq!(client.ask("tools/list", r#"{"cursor":"page 5"}"#).error().0, -32602);

    let resources = client.names("resources/list");
    assert_eq!(resources.len(), 1 + 23 + 1 + 30);
    assert_eq!(
        (resources[0].as_str(), resources[24].as_str()),
        ("stub://s/fixed", "stub://h/fixed")
    );
    let templates = client.names("resources/templates/list");
    assert_eq!(templates, ["stub://s/item/{id}", "stub://h/item/{id}"]);
    let prompts = client.names("prompts/list");
    assert_eq!(prompts.len(), 1 + 23 + 1 + 30);
    assert_eq!((prompts[0].as_str(), prompts[54].as_str()), ("s__prompt", "h__p0029"));

    // Each worker says the same.
    for _ in 0..8 {
        assert_eq!(proxy.client().names("tools/list"), tools);
    }
    assert_eq!(client.call("h__t0029", "{}").said(), "t0029 called");
    assert_eq!(client.call("s__t0000", "{}").said(), "t0000 called");
}

#[test]
fn capabilities_and_instructions_are_merged_truthfully() {
    let proxy = Proxy::start(&[stdio_backend("a", &[]), stdio_backend("b", &["--only-tools"])]);
    proxy.client_seeing(&["a__echo", "b__echo"]);
    let client = proxy.client();
    assert_eq!(client.hello["capabilities"]["tools"], json!({ "listChanged": true }));
    assert_eq!(client.hello["capabilities"]["resources"]["listChanged"], true);
    assert_eq!(client.hello["capabilities"]["prompts"]["listChanged"], true);
    for absent in ["logging", "completions", "experimental"] {
        assert!(client.hello["capabilities"].get(absent).is_none(), "{absent}");
    }
    let instructions = client.hello["instructions"].as_str().expect("instructions");
    assert!(instructions.contains("Instructions of a."), "{instructions}");
    assert!(instructions.contains("Instructions of b."), "{instructions}");

    let own = Setup {
        proxy: "instructions = \"Mine.\"".into(),
        backends: stdio_backend("a", &[]),
        ..Setup::default()
    }
    .start();
    assert_eq!(own.client().hello["instructions"], "Mine.");
}

#[test]
fn only_what_backends_have_is_promised() {
    let proxy = Proxy::start(&[stdio_backend("b", &["--only-tools"])]);
    proxy.client_seeing(&["b__echo"]);
    let mut client = proxy.client();
    assert!(client.hello["capabilities"].get("tools").is_some());
    assert!(client.hello["capabilities"].get("resources").is_none(), "{}", client.hello);
    assert!(client.hello["capabilities"].get("prompts").is_none(), "{}", client.hello);
    assert_eq!(client.names("tools/list").len(), TOOLS);
}

#[test]
fn names_separators_and_prefixes() {
    let named = |name: &str, line: &str| stdio_backend(name, &[]) + line;
    let proxy = Setup {
        proxy: "separator = \"/\"".into(),
        backends: named("a", "")
            + &named("b", "prefix = \"other\"\n")
            + &named("c", "prefix = \"\"\n"),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["a/echo", "other/echo", "echo"]);
    for (tool, backend) in [("a/rich", "a"), ("other/rich", "b"), ("rich", "c")] {
        assert!(client.call(tool, "{}").text.contains(texts::RICH_RESULT), "{backend}");
    }
    for (prompt, backend) in [("a/prompt", "a"), ("other/prompt", "b"), ("prompt", "c")] {
        let got = client.ask("prompts/get", &format!(r#"{{"name":"{prompt}"}}"#)).result();
        assert_eq!(got["description"], format!("of {backend}"));
    }
    // Written with escapes, it is the same name.
    let told = client.ask("tools/call", r#"{"name":"\u0061\/echo","arguments":{"payload":"x"}}"#);
    assert_eq!(told.said(), "x");
}

#[test]
fn unknown_names_are_refused_or_answered_by_their_backend() {
    let proxy = Proxy::start(&[stdio_backend("a", &[]), stdio_backend("b", &[])]);
    let mut client = proxy.client_seeing(&["a__echo", "b__echo"]);
    // No backend can be meant: the proxy's own words.
    let (code, text) = client.call("nobody__echo", "{}").error();
    assert_eq!((code, text.as_str()), (-32602, "Unknown tool: nobody__echo"));
    let (code, text) = client.ask("prompts/get", r#"{"name":"x"}"#).error();
    assert_eq!((code, text.as_str()), (-32602, "Unknown prompt: x"));
    // A backend is named: its own answer is the answer.
    let (code, text) = client.call("a__none", "{}").error();
    assert_eq!((code, text.as_str()), (-32602, "stub has no tool none"));
    let (_, text) = client.ask("prompts/get", r#"{"name":"b__none"}"#).error();
    assert_eq!(text, "stub has no prompt none");
    for params in ["{}", r#"{"name":5}"#, "[]"] {
        assert_eq!(client.ask("tools/call", params).error().0, -32602, "{params}");
        assert_eq!(client.ask("resources/read", params).error().0, -32602, "{params}");
    }
}

#[test]
fn uris_reach_their_owner_and_stay_as_they_are() {
    let http = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[
        stdio_backend("s", &["--uri", "stub://both"]),
        http.backend("h"),
        stdio_backend("t", &["--uri", "stub://only-t"]),
    ]);
    let mut client = proxy.client_seeing(&["s__echo", "h__echo", "t__echo"]);
    let mut read =
        |uri: &str| client.ask("resources/read", &format!(r#"{{"uri":{}}}"#, quote(uri)));
    for name in ["s", "h", "t"] {
        let told = read(&format!("stub://{name}/fixed"));
        assert!(told.text.contains(&texts::RICH_READ.replace("NAME", name)), "{}", told.text);
        let told = read(&format!("stub://{name}/item/a%20b"));
        assert_eq!(told.result()["contents"][0]["text"], format!("item a%20b of {name}"));
    }
    assert_eq!(read("stub://only-t").result()["contents"][0]["text"], "stub://only-t of t");
    assert_eq!(read("stub://both").result()["contents"][0]["text"], "stub://both of s");
    let told = read("nobody://x");
    assert_eq!(told.error().0, -32002);
    assert_eq!(told.json()["error"]["data"]["uri"], "nobody://x");
}

#[test]
fn two_owners_of_one_uri_are_no_guess() {
    let proxy = Proxy::start(&[
        stdio_backend("a", &["--uri", "stub://both"]),
        stdio_backend("b", &["--uri", "stub://both"]),
    ]);
    let mut client = proxy.client_seeing(&["a__echo", "b__echo"]);
    let mut owners = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let mut client = proxy.client();
        let told = client.ask("resources/read", r#"{"uri":"stub://both"}"#);
        owners.insert(told.json()["result"]["contents"][0]["text"].to_string());
    }
    // Whatever is decided, every client and worker sees the same, and the log says so.
    assert_eq!(owners.len(), 1, "{owners:?}");
    wait_until("a word about the conflict in the log", || proxy.stderr().contains("stub://both"));
    client.ask("resources/read", r#"{"uri":"stub://a/fixed"}"#).result();
}

#[test]
fn changes_reach_the_clients_of_both_workers() {
    let http = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[stdio_backend("s", &[]), http.backend("h")]);
    let mut first = proxy.client_seeing(&["s__echo", "h__echo"]);
    let mut clients: Vec<Client> = (0..12).map(|_| proxy.client()).collect();
    let streams: Vec<_> = clients.iter().map(Client::listen).collect();
    for backend in ["s", "h"] {
        for (kind, list) in [("tool", "tools"), ("resource", "resources"), ("prompt", "prompts")] {
            let arguments = format!(r#"{{"kind":"{kind}","name":"rfresh"}}"#);
            first.call(&format!("{backend}__add"), &arguments).result();
            let fresh = match kind {
                "resource" => format!("stub://{backend}/rfresh"),
                _ => format!("{backend}__rfresh"),
            };
            for (client, stream) in clients.iter_mut().zip(&streams) {
                stream.wait_for(&format!("notifications/{list}/list_changed"));
                // Who was told sees it: the catalogue changes before the announcement.
                let names = client.names(&format!("{list}/list"));
                assert!(names.contains(&fresh), "{backend} {kind}: {names:?}");
            }
        }
    }
    assert_eq!(first.call("s__rfresh", "{}").said(), "rfresh called");
    assert_eq!(first.call("h__rfresh", "{}").said(), "rfresh called");
}

#[test]
fn each_hop_speaks_its_own_revision() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    for own in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let http = HttpStub::start("h", &["--revision", own, "--journal", journal.path()]);
        let proxy = Proxy::start(&[http.backend("h"), stdio_backend("s", &["--revision", own])]);
        for theirs in ["2024-11-05", "2025-11-25"] {
            let mut client = Client::connect_at(proxy.addr, theirs);
            client.wait_for_tools(&["h__echo", "s__echo"]);
            assert_eq!(client.call("h__echo", r#"{"payload":"x"}"#).said(), "x");
            assert_eq!(client.call("s__echo", r#"{"payload":"x"}"#).said(), "x");
        }
    }
    // The stub checks the header of every request, and that `initialized` comes first.
    let complaints: Vec<String> = journal
        .lines()
        .into_iter()
        .filter(|line| {
            ["wrong version", "premature", "bad ", "accept", "content-type"]
                .iter()
                .any(|start| line.starts_with(start))
        })
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_server_without_sessions_and_streams_is_served_too() {
    let http = HttpStub::start("h", &["--stateless", "--no-get"]);
    let proxy = Proxy::start(&[http.backend("h")]);
    let mut client = proxy.client_seeing(&["h__echo"]);
    assert_eq!(client.call("h__echo", r#"{"payload":"x"}"#).said(), "x");
    assert!(client.call("h__rich", "{}").text.contains(texts::RICH_RESULT));
}

#[test]
fn the_environment_of_a_child_is_clean_but_for_what_is_configured() {
    let scratch = scratch();
    let seen = scratch.path().join("env");
    let script = format!("env > {}; pwd >> {}; exec \"$@\"", seen.display(), seen.display());
    let backend = crate::support::process::command_backend(
        "a",
        "sh",
        &["-c", &script, "sh", stub_path(), "--name", "a"],
    ) + &format!(
        "cwd = {}\nenv = {{ OWN = \"configured\" }}\n",
        quote(scratch.path().to_str().unwrap())
    );
    let proxy = Proxy::start(&[backend]);
    proxy.client_seeing(&["a__echo"]);
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.lines().any(|line| line == "OWN=configured"), "{seen}");
    assert!(seen.lines().any(|line| line.starts_with("PATH=")), "{seen}");
    assert_eq!(seen.lines().last(), scratch.path().to_str());
    // The harness sets this one for the proxy.
    assert!(!seen.contains("MCP_PROXY_TEST_PRIVATE"), "{seen}");
}
