//! `proxy.import_backends`: the servers of a client's `mcp.json`, beside those of the file.

use std::process::Command;

use serde_json::json;

use crate::support::http::once;
use crate::support::process::{
    HttpStub, Journal, Proxy, command_backend, scratch, stdio_backend, stub_path,
};

/// What the kernel knows of a child: its environment and its working directory.
fn surroundings(pid: u32) -> (Vec<String>, String) {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    (environment.split('\0').map(str::to_owned).collect(), cwd.to_str().unwrap().to_owned())
}

#[test]
fn its_servers_are_served_as_it_says_and_those_of_the_file_win() {
    let scratch = scratch();
    let folder = scratch.path().join("client");
    std::fs::create_dir_all(folder.join("work")).unwrap();
    let journal = Journal::new(&scratch, "journal");
    let web = HttpStub::start("web", &["--token", "private"]);
    let old = HttpStub::start("old", &["--old"]);
    // Written as different clients write it; relative paths start beside it.
    let servers = json!({
        "inputs": [{ "id": "key", "type": "promptString" }],
        "mcpServers": {
            "child": {
                "type": "stdio",
                "command": stub_path(),
                "args": ["--name", "child", "--journal", journal.path()],
                "env": { "A_KEY": "${MCP_PROXY_TEST_PRIVATE}", "PLAIN": "file:nowhere" },
                "cwd": "work",
            },
            "web": {
                "type": "streamable-http",
                "url": format!("http://{}/mcp", web.addr),
                "alwaysAllow": ["x"],
                "headers": { "Authorization": "Bearer ${env:MCP_PROXY_TEST_PRIVATE}" },
            },
            "old": { "type": "sse", "url": format!("http://{}/sse", old.addr) },
            "off": { "command": 1, "disabled": true },
            "both": { "command": "/does/not/exist", "nonsense": ["x"] },
        },
    });
    std::fs::write(folder.join(".mcp.json"), servers.to_string()).unwrap();
    let file = scratch.path().join("proxy.toml");
    let text = format!(
        "[proxy]\nname = \"p\"\nworkers = 2\nimport_backends = \"client/.mcp.json\"\n{}{}",
        stdio_backend("both", &[]),
        command_backend("own", stub_path(), &["--name", "own"]),
    );
    std::fs::write(&file, text).unwrap();
    let proxy = Proxy::start_file(&file, &[]);
    let names = ["both", "own", "child", "web", "old"].map(|name| format!("{name}__echo"));
    let mut client = proxy.client_seeing(&names.each_ref().map(|name| name.as_str()));
    for name in names {
        assert_eq!(client.call(&name, r#"{"payload":"x"}"#).said(), "x", "{name}");
    }
    assert!(!client.names("tools/list").iter().any(|name| name.starts_with("off__")));
    let (environment, cwd) = surroundings(journal.pid());
    assert!(environment.contains(&"A_KEY=private".to_owned()), "{environment:?}");
    assert!(environment.contains(&"PLAIN=file:nowhere".to_owned()), "{environment:?}");
    // What the proxy itself has is not inherited.
    assert!(!environment.iter().any(|variable| variable.starts_with("MCP_PROXY_TEST_PRIVATE=")));
    assert_eq!(cwd, folder.join("work").to_str().unwrap());
    // A key that is not ours is told and left alone.
    let told = "mcpServers.web.alwaysAllow: ignored: this proxy has no such setting";
    assert!(proxy.stderr().contains(told), "{}", proxy.stderr());
    let shown = once(proxy.addr, "GET", "/admin/config", "");
    assert!(!shown.text().contains("private"), "{}", shown.text());
    let document: toml::Table = shown.text().parse().unwrap();
    assert_eq!(document["backends"].as_array().unwrap().len(), 5);
}

#[test]
fn what_is_wrong_in_it_is_told_with_its_place_beside_the_faults_of_the_file() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let check = |servers: &str| {
        std::fs::write(scratch.path().join("mcp.json"), servers).unwrap();
        let text = "[proxy]\nname = \"p\"\nwokers = 1\nimport_backends = \"mcp.json\"\n";
        std::fs::write(&file, text).unwrap();
        let mut run = Command::new(env!("CARGO_BIN_EXE_mcp-proxy"));
        let run = run.arg("-c").arg(&file).arg("--check").output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    let (code, said) = check(
        "{\"servers\": {\n  \"a\": {\"type\": \"ws\", \"url\": \"ws://h\"},\n  \"b b\": {\"command\": \"true\"},\n  \
         \"c\": {\"url\": \"ftp://h\"},\n  \"d\": {\"command\": \"true\", \"env\": {\"A\": \"${NO_SUCH_VARIABLE}\"}},\n  \
         \"e\": {\"url\": \"http://h\", \"headers\": {\"Host\": \"x\"}}\n}}",
    );
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "proxy.toml:3:1: proxy.wokers: unknown key, did you mean `workers`?",
        "mcp.json:2:17: servers.a.type: found \"ws\", accepted: \"stdio\"",
        "mcp.json:3:3: servers.b b.name: found \"b b\"",
        "mcp.json:4:16: servers.c.url: found the scheme ftp",
        "mcp.json:5:41: servers.d.env.A: the environment variable",
        "NO_SUCH_VARIABLE is not set",
        "mcp.json:6:40:",
        "servers.e.headers.Host: not accepted",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let (code, said) = check("{\"servers\": [}");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("mcp.json:1:14: not JSON"), "{said}");
}
