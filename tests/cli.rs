//! The command line: exit codes and what is said.

use std::process::{Command, Output};

use crate::support::process::{Proxy, Setup, scratch, stdio_backend, stub_path};
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
fn check_looks_at_the_files_that_are_named() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let path = file.to_str().unwrap();
    let pipe = scratch.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let head = "[proxy]\nname = \"x\"\n";
    let backend = "[[backends]]\nname = \"a\"\ntransport = \"http\"\nurl = \"http://h/mcp\"\n";
    for (text, fault) in [
        (format!("{head}[observability]\naudit = {{ path = \".\" }}\n"), "is a directory"),
        // It waited for somebody who writes there.
        (format!("{head}{backend}bearer_token = \"file:pipe\"\n"), "is no regular file"),
        (format!("{head}import_backends = \"pipe\"\n"), "is no regular file"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let (code, said) = run(&["-c", path, "--check"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(fault), "{said}");
    }
    // What is given by hand may be a pipe: -c <(...).
    let given = pipe.to_str().unwrap().to_owned();
    let checked = std::thread::spawn(move || run(&["-c", &given, "--check"]));
    std::fs::write(&pipe, format!("{head}{backend}")).unwrap();
    let (code, said) = checked.join().unwrap();
    assert_eq!(code, Some(0), "{said}");
}

/// A level that is none would be taken for a module's name, and silence all others.
#[test]
fn a_misspelt_level_of_the_log_is_a_fault_and_no_silence() {
    let scratch = scratch();
    let file = scratch.path().join("proxy.toml");
    let path = file.to_str().unwrap();
    let backend = "[[backends]]\nname = \"a\"\ntransport = \"stdio\"\ncommand = \"true\"\n";
    let own = format!("[observability]\nlog_level = \"wran\"\n{backend}");
    std::fs::write(&file, format!("[proxy]\nname = \"x\"\n{own}")).unwrap();
    let (code, said) = run(&["-c", path, "--check"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("proxy.toml:4:") && said.contains("did you mean \"warn\"?"), "{said}");
    std::fs::write(&file, format!("[proxy]\nname = \"x\"\n{backend}")).unwrap();
    let (code, said) = run(&["-c", path, "--check", "--log-level", "nonsense"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("accepted: error, warn"), "{said}");
}

/// An environment with an empty or a wrong RUST_LOG leaves the word to the file.
#[test]
fn rust_log_counts_if_it_says_something() {
    for (own, warned, debug) in
        [("", false, true), ("a=b=c", true, true), ("wran", true, true), ("warn", false, false)]
    {
        let setup = Setup {
            backends: stdio_backend("a", &[]),
            proxy: "[observability]\nlog_level = \"debug\"\n".into(),
            variable: Some(("RUST_LOG", own.into())),
            ..Setup::default()
        };
        let proxy = setup.start();
        proxy.client_seeing(&["a__echo"]);
        let said = proxy.stderr();
        assert_eq!(said.contains("RUST_LOG is ignored: found"), warned, "{own}: {said}");
        assert_eq!(said.contains("INFO"), debug, "{own}: {said}");
    }
}

/// A file in which much is allowed and little is wise: each warning stands at its line and column.
#[test]
fn check_warns_of_what_is_likely_to_surprise() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cautions.toml");
    let (code, said) = run(&["-c", file, "--check"]);
    assert_eq!(code, Some(0), "{said}");
    let text = std::fs::read_to_string(file).expect("the file");
    let mut expected = 0;
    for (number, line) in text.lines().enumerate() {
        // `key = value # ^COLUMN PATH: BEGINNING OF THE WARNING`
        for mark in line.split("# ^").skip(1) {
            let (column, message) = mark.trim().split_once(' ').expect("a column");
            let wanted = format!("cautions.toml:{}:{column}: {message}", number + 1);
            assert!(said.contains(&wanted), "no {wanted:?} in\n{said}");
            expected += 1;
        }
    }
    assert!(said.contains("    d  http  failover_for off\n"), "{said}");
    // And there is no other one.
    let warnings = said.lines().filter(|line| line.starts_with("warning: ")).count();
    assert_eq!((warnings, expected), (24, 24), "{said}");
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
