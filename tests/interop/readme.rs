//! Owns: the clients that README.md shows, as they stand there, before the shipped configuration.
//! Never: another copy of them.
//! Next: nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::install;
use super::run::finish;
use crate::support::http::once;
use crate::support::process::Proxy;
use crate::support::wait_until;

/// Where they look for the proxy.
const SHOWN: &str = "http://127.0.0.1:8080/mcp";

/// The only block of README.md in that language, for a proxy at `url`.
fn shown(language: &str, url: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let blocks: Vec<&str> = readme.split(&format!("```{language}\n")).skip(1).collect();
    let [block] = blocks[..] else { panic!("{} blocks of {language}", blocks.len()) };
    let program = block.split("```").next().expect("a block");
    assert_eq!(program.matches(SHOWN).count(), 1, "{program}");
    program.replace(SHOWN, url)
}

/// Runs the program, which is `language`'s and which `command` reads from its standard input: it
/// ends well and shows the tools of the demo server.
fn sees_the_tools(language: &str, command: Command) {
    let file: PathBuf = [env!("CARGO_MANIFEST_DIR"), "proxy.toml"].iter().collect();
    let proxy = Proxy::start_file(&file, &[]);
    wait_until("/readyz", || once(proxy.addr, "GET", "/readyz", "").status == 200);
    let program = shown(language, &format!("http://{}/mcp", proxy.addr));
    let (status, said, complaint) = finish(command, &program);
    assert!(status.success(), "{status}\n{said}\n{complaint}\n{program}");
    assert!(said.contains("demo__echo") && said.contains("demo__add"), "{said}\n{complaint}");
    // Nothing in it is on its way out.
    assert!(!complaint.to_lowercase().contains("deprecat"), "{complaint}");
}

fn python(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-W", "default", "-"]);
    command
}

#[test]
fn the_python_client_of_the_readme_with_the_older_sdk() {
    let Some(interpreter) = install::python() else { return };
    sees_the_tools("python", python(interpreter));
}

#[test]
fn the_python_client_of_the_readme_with_the_newer_sdk() {
    let Some(reference) = install::reference() else { return };
    sees_the_tools("python", python(&reference.python));
}

#[test]
fn the_javascript_client_of_the_readme() {
    let Some(home) = install::node() else { return };
    let mut command = Command::new("node");
    // What stands in standard input finds packages from the working directory upwards.
    command.args(["--input-type=module", "-"]).current_dir(home);
    sees_the_tools("js", command);
}
