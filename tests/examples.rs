//! Configurations as people bring them: each file of `fixtures/examples` is checked as it is, and
//! started with the stub in place of its servers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::support::client::{ACCEPT, Client, JSON, message};
use crate::support::http::Conn;
use crate::support::process::{HttpStub, Journal, Proxy, Setup, scratch, stub_path};
use crate::support::{quote, wait_until};

const ALL: [&str; 7] = ["start", "middleware", "arguments", "mirror", "bearer", "jwt", "filter"];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/examples"].iter().collect()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name).with_extension("toml")).expect(name)
}

/// The file with a child of the stub instead of its own command.
fn with_child(name: &str, args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| quote(arg)).collect();
    let line = |line: &str| match line.split(" = ").next() {
        Some("command") => format!("command = {}\n", quote(stub_path())),
        Some("args") if line.contains("-y") => format!("args = [{}]\n", args.join(", ")),
        _ => format!("{line}\n"),
    };
    text(name).lines().map(line).collect()
}

/// The file with this address instead of one of its own.
fn with_url(text: &str, url: &str, addr: SocketAddr) -> String {
    assert!(text.contains(url));
    text.replace(&quote(url), &quote(&format!("http://{addr}/mcp")))
}

fn start(proxy: &str, backends: String) -> Proxy {
    Setup { backends, proxy: proxy.into(), ..Setup::default() }.start()
}

#[test]
fn every_example_is_free_of_faults() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("folder")
        .map(|entry| {
            entry.expect("entry").path().file_stem().expect("stem").to_string_lossy().into()
        })
        .collect();
    names.sort();
    let mut known = ALL.to_vec();
    known.sort();
    assert_eq!(names, known);
    for name in ALL {
        let own = text(name);
        let head = if own.contains("[proxy]") { "" } else { "[proxy]\nname = \"x\"\n" };
        std::fs::write(&file, format!("{head}{own}")).expect("write");
        let mut check = Command::new(env!("CARGO_BIN_EXE_mcp-proxy"));
        check.arg("-c").arg(&file).arg("--check");
        let output = check.env("GITHUB_TOKEN", "t0ken").output().expect("run");
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        if own.contains("GITHUB_TOKEN") {
            let output = check.env_remove("GITHUB_TOKEN").output().expect("run");
            let said =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("GITHUB_TOKEN"), "{said}");
        }
    }
}

#[test]
fn names_stand_behind_a_slash() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    std::fs::write(&file, with_child("start", &["--name", "files"])).expect("write");
    let proxy = Proxy::start_file(&file, &[]);
    let mut client = proxy.client_seeing(&["files/echo"]);
    assert_eq!(client.hello["serverInfo"]["name"], "my-proxy");
    assert_eq!(client.call("files/echo", r#"{"payload":"x"}"#).said(), "x");
}

#[test]
fn what_stands_around_a_call_works_together() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "github");
    let args = ["--name", "github", "--annotated", "--journal", journal.path()];
    let text = with_child("middleware", &args).replace("${GITHUB_TOKEN}", "${HOME}");
    let proxy = start("", text);
    let mut client = proxy.client_seeing(&["github__reads"]);
    // Cached: the second one is answered from memory.
    for _ in 0..2 {
        client.call("github__reads", r#"{"key":"cached"}"#).result();
        client.ask("resources/read", r#"{"uri":"stub://github/item/1"}"#).result();
    }
    assert_eq!((journal.count("unsteady cached"), journal.count("read ")), (1, 1));
    // Repeated, since the server itself says that it failed.
    let flaky = r#"{"key":"flaky","fails":2,"how":"internal"}"#;
    assert!(client.call("github__writes", flaky).said().starts_with("3 "));
    // A slow read gets company.
    let slow = r#"{"key":"slow","fails":1,"how":"slow","slow_ms":60000}"#;
    assert!(client.call("github__sets", slow).said().starts_with("2 "));
    // Thirty a second, and not one more, whatever the machine makes of the time.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let began = std::time::Instant::now();
    let codes: Vec<Option<i64>> = (0..200)
        .map(|_| {
            let told = client.call("github__writes", r#"{"key":"many"}"#);
            told.json()["error"]["code"].as_i64()
        })
        .collect();
    let allowed = 30 * (began.elapsed().as_secs() as usize + 1);
    let executed = journal.count("unsteady many");
    assert!((30..=allowed).contains(&executed), "{executed} of {allowed}: {codes:?}");
    assert_eq!(executed, codes.iter().filter(|code| code.is_none()).count());
    assert!(codes.iter().flatten().all(|code| *code == -32011), "{codes:?}");
    // It fails again and again: then it is left alone.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let failing = r#"{"key":"down","fails":1000,"how":"internal"}"#;
    wait_until("its rest", || client.call("github__writes", failing).error().0 == -32013);
    let before = journal.count("unsteady down");
    assert_eq!(client.call("github__writes", failing).error().0, -32013);
    assert_eq!(journal.count("unsteady down"), before);
}

#[test]
fn arguments_are_put_to_calls() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "db");
    let args = ["--tool", "query", "--tool", "dangerous_op", "--journal", journal.path()];
    let stub = HttpStub::start("db", &args);
    let proxy = start("", with_url(&text("arguments"), "http://db.internal:8080", stub.addr));
    let mut client = proxy.client_seeing(&["db__query", "db__dangerous_op"]);
    for (tool, sent, expected) in [
        ("query", "{}", r#"{"max_rows":1000,"read_only":true,"timeout":30}"#),
        (
            "query",
            r#"{"max_rows":5,"sql":"x"}"#,
            r#"{"max_rows":5,"read_only":true,"sql":"x","timeout":30}"#,
        ),
        ("dangerous_op", r#"{"dry_run":false}"#, r#"{"dry_run":true,"timeout":30}"#),
    ] {
        client.call(&format!("db__{tool}"), sent).result();
        let got: serde_json::Value =
            serde_json::from_str(&journal.last(&format!("extra {tool} "))).expect("JSON");
        let expected: serde_json::Value = serde_json::from_str(expected).expect("JSON");
        assert_eq!(got, expected, "{tool} {sent}");
    }
}

#[test]
fn a_mirror_hears_a_tenth() {
    let scratch = scratch();
    let (own, other) = (Journal::new(&scratch, "v1"), Journal::new(&scratch, "v2"));
    let first = HttpStub::start("api", &["--journal", own.path()]);
    let second = HttpStub::start("api", &["--journal", other.path()]);
    let text = with_url(&text("mirror"), "http://api-v1:8080", first.addr);
    let proxy = start("", with_url(&text, "http://api-v2:8080", second.addr));
    let mut client = proxy.client_seeing(&["api__echo"]);
    for _ in 0..100 {
        client.call("api__echo", r#"{"payload":"x"}"#).result();
    }
    other.wait_count("call echo", 10);
    assert_eq!(own.count("call echo"), 100);
    assert!(client.names("tools/list").iter().all(|name| name.starts_with("api__")));
}

#[test]
fn who_shows_no_token_is_turned_away() {
    let hello = message("1", "initialize", "{}");
    for name in ["bearer", "jwt"] {
        // Nobody is asked for keys but this machine.
        let text = text(name).replace("https://auth.example.com/.well-known", "http://127.0.0.1:1");
        let proxy = start("", text);
        let mut conn = Conn::open(proxy.addr);
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{JSON}Content-Length: {}\r\n\r\n{hello}",
            proxy.addr,
            hello.len()
        );
        conn.send(head.as_bytes());
        let answer = conn.answer();
        assert_eq!(answer.status, 401, "{name}");
        assert!(answer.head.field("www-authenticate").expect("a challenge").starts_with("Bearer"));
        if name == "bearer" {
            Client::connect_as(proxy.addr, "my-secret-token").ask("ping", "{}").result();
        }
    }
}

#[test]
fn only_what_is_exposed_is_there() {
    let args = ["--name", "files", "--tool", "read_file", "--tool", "list_directory", "--tool"];
    let text = with_child("filter", &[&args[..], &["write_file"]].concat());
    let proxy = start("", text);
    let mut client = proxy.client_seeing(&["files__read_file"]);
    let mut names = client.names("tools/list");
    names.sort();
    assert_eq!(names, ["files__list_directory", "files__read_file"]);
    client.call("files__list_directory", "{}").result();
    let hidden = client.call("files__write_file", "{}").error();
    assert_eq!(hidden, (-32602, "Unknown tool: files__write_file".to_owned()));
}
