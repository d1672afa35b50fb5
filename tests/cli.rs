//! The command line: exit codes and what is said.

use std::process::{Command, Output};

use crate::support::process::{Proxy, scratch, stub_path};
use crate::support::quote;

fn run(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_mcp-proxy")).args(args).output().expect("run");
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8(said).expect("UTF-8"))
}

#[test]
fn version_and_usage() {
    let (code, said) = run(&["--version"]);
    assert_eq!((code, said.trim()), (Some(0), concat!("mcp-proxy ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(run(&["--no-such-option"]).0, Some(2));
    assert_eq!(run(&["no-such-command"]).0, Some(2));
    let (code, said) = run(&["-c", "/does/not/exist.toml"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/does/not/exist.toml"), "{said}");
}

#[test]
fn completions_for_every_shell() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef mcp-proxy"),
        ("fish", "complete -c mcp-proxy"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let (code, said) = run(&["completions", shell]);
        assert_eq!(code, Some(0), "{said}");
        for part in [mark, "demo-server", "from-mcp-json", "schema"] {
            assert!(said.contains(part), "{shell}: no {part:?} in\n{said}");
        }
    }
    assert_eq!(run(&["completions", "no-such-shell"]).0, Some(2));
    assert_eq!(run(&["completions"]).0, Some(2));
    assert_eq!(run(&["config"]).0, Some(2));
}

#[test]
fn check_tells_all_faults_at_once_with_their_places() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "[proxy]\nname = \"x\"\n\n[[backends]]\nname = \"a\"\ntransport = \"stdio\"\ncommand = \"true\"\n").unwrap();
    let (code, said) = run(&["-c", path, "--check"]);
    assert_eq!(code, Some(0), "{said}");

    let faulty = "[proxy]\nname = \"x\"\nworker = 2\n\n[[backends]]\nname = \"a\"\ntransport = \"stdoi\"\n\n\
                  [[backends]]\nname = \"b\"\ntransport = \"stdio\"\n\n[[backends]]\nname = \"b\"\n\
                  transport = \"http\"\nurl = \"ftp://x\"\n";
    std::fs::write(&file, faulty).unwrap();
    let (code, said) = run(&["-c", path, "--check"]);
    assert_eq!(code, Some(1), "{said}");
    for expected in
        ["proxy.toml:3:", "workers", "proxy.toml:7:", "command", "proxy.toml:14:", "proxy.toml:16:"]
    {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    // The same words, and no start, without --check.
    let (code, said) = run(&["-c", path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("proxy.toml:3:"), "{said}");
}

#[test]
fn a_port_that_is_taken_is_said() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    std::fs::write(&file, "[proxy]\nname = \"x\"\n\n[[backends]]\nname = \"a\"\ntransport = \"stdio\"\ncommand = \"true\"\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, said) = run(&["-c", file.to_str().unwrap(), "--listen", &addr]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&addr), "{said}");
}

#[test]
fn servers_are_taken_over_from_an_mcp_json() {
    let scratch = scratch();
    let file = scratch.path().join("mcp.json");
    let stub = quote(stub_path());
    std::fs::write(
        &file,
        format!(
            r#"{{"mcpServers":{{"mine":{{"command":{stub},"args":["--name","mine"]}},"off":{{"command":"x","disabled":true}}}}}}"#
        ),
    )
    .unwrap();
    let args = ["--from-mcp-json".to_owned(), file.to_str().unwrap().to_owned()];
    let proxy = Proxy::start_args(&args);
    let mut client = proxy.client_seeing(&["mine__echo"]);
    assert_eq!(client.call("mine__echo", r#"{"payload":"x"}"#).said(), "x");
}
