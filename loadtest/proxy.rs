//! Owns: mcp-proxy as a row: its configuration, its start, the address that it tells.
//! Never: code of the proxy; it is a process like the others.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Result;
use crate::job::Era;
use crate::process::Running;

/// What stands behind it.
pub(crate) enum Behind {
    Http(SocketAddr),
    /// A child that this program is, in the role of the server.
    Stdio,
}

/// One backend as TOML; `more` are further keys and tables of it.
pub(crate) fn backend(
    name: &str,
    behind: &Behind,
    era: Era,
    tools: usize,
    more: &str,
) -> Result<String> {
    let how = match behind {
        Behind::Stdio => {
            let me = std::env::current_exe()?;
            let mut args = vec!["stub".to_owned(), "--stdio".into(), format!("--tools={tools}")];
            args.extend((era == Era::Request).then(|| "--modern".to_owned()));
            format!("transport = \"stdio\"\ncommand = {me:?}\nargs = {args:?}\n")
        }
        Behind::Http(addr) => format!("transport = \"http\"\nurl = \"http://{addr}/mcp\"\n"),
    };
    Ok(format!("[[backends]]\nname = \"{name}\"\n{how}{more}\n"))
}

/// Starts it with these backends; `more` are further tables.
pub(crate) fn start(
    program: &Path,
    workers: usize,
    more: &str,
    backends: &str,
    file: &Path,
) -> Result<(Running, SocketAddr)> {
    let config = format!(
        "[proxy]\nname = \"loadtest\"\nworkers = {workers}\nmax_sessions = 100000\nadmin_tools = \"off\"\n\
         [proxy.listen]\nhost = \"127.0.0.1\"\nport = 0\n{more}\n{backends}"
    );
    fs::write(file, config)?;
    let mut child = Running::start(program.as_os_str(), |command| {
        command.arg("-c").arg(file).stdout(Stdio::piped()).stderr(Stdio::piped())
    })?;
    let (sender, found) = mpsc::channel();
    let streams = [
        child.0.stdout.take().map(|pipe| (true, Box::new(pipe) as Box<dyn Read + Send>)),
        child.0.stderr.take().map(|pipe| (false, Box::new(pipe) as Box<dyn Read + Send>)),
    ];
    for (banner, stream) in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            // To its end, or the proxy would block.
            for line in BufReader::new(stream).lines().map_while(std::result::Result::ok) {
                let _ = sender.send((banner, line));
            }
        });
    }
    drop(sender);
    let mut said = String::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((banner, line)) = found.recv_timeout(left) else {
            return Err(format!("mcp-proxy tells no address:\n{said}").into());
        };
        if let Some((_, rest)) = line.split_once("http://127.0.0.1:").filter(|_| banner) {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            return Ok((child, ([127, 0, 0, 1], port.parse()?).into()));
        }
        said += &line;
        said.push('\n');
    }
}

/// `cargo run --example` builds the example but not the binary, which could be missing or stale.
pub(crate) fn build() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let folder = me.parent().and_then(|examples| examples.parent()).ok_or("no target folder")?;
    let proxy = folder.join("mcp-proxy");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--bin", "mcp-proxy"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.file_name().is_some_and(|name| name == "release") {
            command.arg("--release");
        }
        if !command.status()?.success() {
            return Err("the proxy does not build".into());
        }
    }
    if !proxy.exists() {
        return Err(format!("{} is missing: cargo build --release", proxy.display()).into());
    }
    Ok(proxy)
}
