//! First use: the shipped proxy.toml, with the demo server as a real child process.

use std::path::Path;

use crate::support::process::{Proxy, scratch};
use crate::support::wait_until;

#[test]
fn the_shipped_configuration_serves_the_demo_server() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.toml");
    let proxy = Proxy::start_file(&file, &[]);
    let mut client = proxy.client();
    let tools = client.names("tools/list");
    let name = |own: &str| {
        let found = tools.iter().find(|tool| tool.ends_with(own));
        found.unwrap_or_else(|| panic!("no {own} in {tools:?}")).clone()
    };
    assert_eq!(client.call(&name("echo"), r#"{"message":"hello"}"#).said(), "hello");
    let sum = client.call(&name("add"), r#"{"a":2,"b":40}"#).result();
    assert_eq!(sum["structuredContent"]["sum"], 42);

    let count = format!(
        r#"{{"name":"{}","arguments":{{"to":3,"delay_ms":0}},"_meta":{{"progressToken":1}}}}"#,
        name("slow_count")
    );
    let told = client.ask("tools/call", &count);
    assert_eq!(told.before.len(), 3, "{told:?}");
    assert_eq!(told.result()["structuredContent"]["counted"], 3);

    let read = client.ask("resources/read", r#"{"uri":"demo://welcome"}"#).result();
    assert!(read["contents"][0]["text"].as_str().unwrap().starts_with("# Welcome"));
    let read = client.ask("resources/read", r#"{"uri":"demo://greeting/Ada"}"#).result();
    assert_eq!(read["contents"][0]["text"], "Hello, Ada!");
    let prompts = client.names("prompts/list");
    let get = format!(r#"{{"name":"{}","arguments":{{"topic":"bees"}}}}"#, prompts[0]);
    client.ask("prompts/get", &get).result();
}

/// A download is often called mcp-proxy-linux, and a copy whatever one likes.
#[test]
fn the_demo_server_is_found_whatever_the_binary_is_called() {
    let scratch = scratch();
    let program = scratch.path().join("renamed");
    std::fs::copy(env!("CARGO_BIN_EXE_mcp-proxy"), &program).unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.toml");
    let proxy = Proxy::start_copy(&program, &file);
    proxy.client_seeing(&["demo__echo"]);
}

#[test]
fn the_banner_names_the_url_and_each_backend_with_its_tools() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.toml");
    let proxy = Proxy::start_file(&file, &[]);
    let url = format!("http://{}/mcp", proxy.addr);
    wait_until("the banner", || {
        let said = proxy.stdout();
        said.contains(&url) && said.contains("demo") && said.contains("3 tools")
    });
}
