//! Owns: running the reference servers, the clients and a proxy in front of them.
//! Never: an opinion on what the clients saw.
//! Next: `compare`.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::install;
use crate::support::http::once;
use crate::support::process::{Proxy, command_backend};
use crate::support::{quote, wait_until};

/// No step of these tests may need longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(180);

/// A child process that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server to be run as a child on stdio, by a client or by the proxy.
#[derive(Clone)]
pub(super) struct NodeServer {
    pub(super) args: Vec<String>,
    pub(super) log: PathBuf,
}

impl NodeServer {
    /// `node` with `args`; `log` is what `loopback.mjs` writes.
    pub(super) fn node(home: &Path, log: PathBuf, script: &str, args: &[&str]) -> NodeServer {
        let mut all = vec!["--import".to_owned(), path(&home.join("loopback.mjs"))];
        all.push(path(&home.join(script)));
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        NodeServer { args: all, log }
    }

    fn env(&self) -> Value {
        json!({ "INTEROP_LOG": self.log })
    }

    /// As `stdio` of a job.
    pub(super) fn job(&self) -> Value {
        json!({ "command": "node", "args": self.args, "env": self.env() })
    }

    /// As a table of the proxy's configuration.
    pub(super) fn table(&self, name: &str) -> String {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let log = quote(&path(&self.log));
        command_backend(name, "node", &args) + &format!("env = {{ INTEROP_LOG = {log} }}\n")
    }
}

/// server-everything over HTTP.
pub(super) struct Everything {
    _child: Running,
    pub(super) url: String,
    pub(super) log: PathBuf,
}

impl Everything {
    pub(super) fn start(home: &Path, log: PathBuf) -> Everything {
        let server = NodeServer::node(home, log.clone(), super::EVERYTHING, &["streamableHttp"]);
        let child = Command::new("node")
            .args(&server.args)
            .env("INTEROP_LOG", &log)
            .env("PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("node");
        let child = Running(child);
        let line = wait_for_line(&log, |line| line.starts_with("listening "));
        let port = line.trim_start_matches("listening ");
        Everything { _child: child, url: format!("http://127.0.0.1:{port}/mcp"), log }
    }

    pub(super) fn table(&self, name: &str) -> String {
        table(name, &self.url)
    }
}

/// The reference server of the conformance suite, which speaks both eras at its URL.
pub(super) struct Reference {
    _child: Running,
    pub(super) url: String,
}

impl Reference {
    pub(super) fn start(log: &Path) -> Reference {
        let install::Reference { python, folder } = install::reference().expect("installed");
        let child = Command::new(python)
            .args(["-m", "mcp_everything_server", "--port", "0", "--log-level", "WARNING"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log).expect("log"))
            .spawn()
            .expect("python");
        let child = Running(child);
        let line = wait_for_line(log, |line| line.contains("running on http://"));
        let (_, url) = line.split_once("running on ").expect("just seen");
        let url = url.split_once(' ').expect("a hint behind the URL").0;
        Reference { _child: child, url: format!("{url}/mcp") }
    }

    pub(super) fn table(&self, name: &str) -> String {
        table(name, &self.url)
    }
}

fn table(name: &str, url: &str) -> String {
    format!("\n[[backends]]\nname = {name:?}\ntransport = \"http\"\nurl = {url:?}\n")
}

/// The first line of a log that a server writes, once it is there.
pub(super) fn wait_for_line(log: &Path, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        // Only whole lines.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(line) = whole.lines().find(|line| wanted(line)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "no such line in {}:\n{text}", log.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The proxy with two workers before `backends`, tables of its configuration: it and its URL.
pub(super) fn proxy(backends: &[String]) -> (Proxy, String) {
    let proxy = Proxy::start(backends);
    // What `initialize` says of backends holds for those that have had their first start.
    wait_until("/readyz", || once(proxy.addr, "GET", "/readyz", "").status == 200);
    let url = format!("http://{}/mcp", proxy.addr);
    (proxy, url)
}

/// The clients: two SDKs, each in the version of the session era and in the one of both eras.
#[derive(Clone, Copy)]
pub(super) enum Client {
    TypeScript,
    Python,
    TypeScript2,
    Python2,
}

impl Client {
    /// The client, ready to run, or `None` where the test is to be skipped.
    fn command(self) -> Option<Command> {
        let python = |script| install::sources().join("python").join(script);
        let (program, script) = match self {
            Client::TypeScript => (Path::new("node"), install::node()?.join("client.mjs")),
            Client::TypeScript2 => (Path::new("node"), install::node()?.join("client2.mjs")),
            Client::Python => (install::python()?, python("client.py")),
            Client::Python2 => (install::reference()?.python.as_path(), python("client2.py")),
        };
        let mut command = Command::new(program);
        command.arg(script);
        Some(command)
    }

    pub(super) fn is_installed(self) -> bool {
        self.command().is_some()
    }

    /// Does one job: what the client saw.
    pub(super) fn run(self, job: &Value) -> Value {
        let (status, answer, complaint) =
            finish(self.command().expect("installed"), &job.to_string());
        assert!(status.success(), "client failed on {job}: {status}\n{complaint}");
        serde_json::from_str(&answer).expect("JSON of the client")
    }
}

/// Runs a command to its end: its exit, stdout and stderr.
pub(super) fn finish(mut command: Command, stdin: &str) -> (ExitStatus, String, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|fault| panic!("{command:?}: {fault}"));
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("stdin");
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let mut child = Running(child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // stderr in a thread of its own: neither pipe may fill up.
        let complaint = std::thread::spawn(move || drain(stderr.as_mut()));
        let answer = drain(stdout.as_mut());
        let _ = sender.send((answer, complaint.join().unwrap_or_default()));
    });
    let said = receiver.recv_timeout(PATIENCE);
    let (answer, complaint) = said.unwrap_or_else(|_| panic!("{command:?} hangs"));
    (child.0.wait().expect("child"), answer, complaint)
}

fn drain(stream: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    let _ = stream.expect("piped").read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn path(path: &Path) -> String {
    path.to_str().expect("UTF-8 path").to_owned()
}
