//! Owns: the processes of a test: the proxy, the stub as an HTTP server, signals, journals.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::Client;
use super::{DEADLINE, quote, wait_for, wait_until};

/// Sends a signal by name; a negative pid names a process group. False if there is none.
pub(crate) fn signal(name: &str, pid: i32) -> bool {
    // kill(2) is an unsafe call from Rust; the shell has it built in.
    let script = format!("kill -s {name} -- {pid} 2>/dev/null");
    Command::new("sh").args(["-c", &script]).status().expect("sh").success()
}

/// A process that was seen alive. Its number alone would not do: numbers are used again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Life {
    pid: u32,
    /// In ticks since the machine started.
    born: u64,
}

impl Life {
    pub(crate) fn of(pid: u32) -> Life {
        let (_, born) = stat(pid).unwrap_or_else(|| panic!("process {pid} is gone already"));
        Life { pid, born }
    }

    /// Neither ended nor a zombie.
    pub(crate) fn goes_on(&self) -> bool {
        stat(self.pid).is_some_and(|(state, born)| born == self.born && !"ZX".contains(state))
    }
}

/// State and time of birth (proc(5), /proc/pid/stat).
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may contain anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields[0].chars().next()?, fields[19].parse().ok()?))
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("number") * 1024
}

/// A scratch directory that vanishes with the test.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("mcp-proxy-test-").tempdir().expect("scratch directory")
}

/// The stub's executable, built by `cargo test` as an example of this package.
pub(crate) fn stub_path() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| example("stub-server", "tests/stub"))
}

/// The load harness, likewise.
pub(crate) fn loadtest_path() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| example("loadtest", "loadtest"))
}

/// An example's executable, which must not be older than its sources: a file or a folder.
pub(crate) fn example(name: &str, sources: &str) -> String {
    let own = std::env::current_exe().expect("own path");
    let profile = own.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let path = profile.join("examples").join(name);
    let advice = format!("build it with `cargo build --example {name}`; `cargo test` does");
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified());
    let built = modified(&path).unwrap_or_else(|_| panic!("{}: {advice}", path.display()));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join(sources);
    let files: Vec<PathBuf> = match std::fs::read_dir(&sources) {
        Ok(entries) => entries.map(|entry| entry.expect("entry").path()).collect(),
        Err(_) => vec![sources],
    };
    for source in files {
        let changed = modified(&source).expect("modified");
        assert!(changed <= built, "{} is newer than {name}: {advice}", source.display());
    }
    path.into_os_string().into_string().expect("UTF-8")
}

/// A process with its group; both end with it.
struct Group {
    leader: Child,
    /// How it ended. Its number may belong to a stranger from then on, and that of its group too:
    /// in a test run numbers are used again within seconds.
    ended: Option<ExitStatus>,
}

impl Group {
    fn spawn(command: &mut Command) -> Group {
        let leader = command.process_group(0).spawn();
        Group { leader: leader.unwrap_or_else(|e| panic!("{command:?}: {e}")), ended: None }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.leader.try_wait().expect("wait");
        }
        self.ended
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended().is_none() {
            signal("KILL", -(self.leader.id() as i32));
            let _ = self.leader.wait();
        }
    }
}

/// What a pipe said so far, read by a thread so that it never fills.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn of(mut pipe: impl Read + Send + 'static) -> Said {
        let said = Said::default();
        let ours = said.clone();
        std::thread::spawn(move || {
            let mut room = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut room) {
                ours.0.lock().unwrap().extend_from_slice(&room[..read]);
            }
        });
        said
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// The TOML table of a stdio backend that runs any command. Further keys may be appended.
pub(crate) fn command_backend(name: &str, command: &str, args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| quote(arg)).collect();
    format!(
        "\n[[backends]]\nname = {}\ntransport = \"stdio\"\ncommand = {}\nargs = [{}]\n",
        quote(name),
        quote(command),
        args.join(", ")
    )
}

/// The TOML table of a stdio backend that runs the stub under its own name.
pub(crate) fn stdio_backend(name: &str, args: &[&str]) -> String {
    let args: Vec<&str> = ["--name", name].iter().chain(args).copied().collect();
    command_backend(name, stub_path(), &args)
}

/// The TOML table of an HTTP backend.
pub(crate) fn http_backend(name: &str, addr: SocketAddr) -> String {
    let url = quote(&format!("http://{addr}/mcp"));
    format!("\n[[backends]]\nname = {}\ntransport = \"http\"\nurl = {url}\n", quote(name))
}

/// The TOML table of a backend over HTTP with SSE.
pub(crate) fn sse_backend(name: &str, addr: SocketAddr) -> String {
    let url = quote(&format!("http://{addr}/sse"));
    format!("\n[[backends]]\nname = {}\ntransport = \"sse\"\nurl = {url}\n", quote(name))
}

/// How the proxy is started.
#[derive(Default)]
pub(crate) struct Setup {
    /// `[[backends]]` tables.
    pub(crate) backends: String,
    /// Lines for `[proxy]`, then any other tables that come before the backends.
    pub(crate) proxy: String,
    /// Instead of none: tests of lists look at those of backends.
    pub(crate) admin_tools: Option<&'static str>,
    /// Further arguments.
    pub(crate) args: Vec<String>,
    /// Instead of two workers.
    pub(crate) workers: Option<usize>,
    /// A limit of open files other than that of this process: `$(ulimit -Hn)` = as many as allowed.
    pub(crate) open_files: Option<&'static str>,
    /// A variable of its environment.
    pub(crate) variable: Option<(&'static str, String)>,
}

/// The real binary on a port that the kernel chose.
pub(crate) struct Proxy {
    group: Group,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    stdout: Said,
    stderr: Said,
    ended: bool,
    _scratch: Option<TempDir>,
}

impl Proxy {
    /// With these backends and two workers.
    pub(crate) fn start(backends: &[String]) -> Proxy {
        Setup { backends: backends.concat(), ..Setup::default() }.start()
    }

    /// With a configuration file as it is, from the directory of the repository.
    pub(crate) fn start_file(file: &Path, args: &[String]) -> Proxy {
        Proxy::spawn(Some(file), args, None, None, None)
    }

    /// Without a configuration file.
    pub(crate) fn start_args(args: &[String]) -> Proxy {
        Proxy::spawn(None, args, None, None, None)
    }

    /// Under another file, a copy of it.
    pub(crate) fn start_copy(program: &Path, file: &Path) -> Proxy {
        Proxy::spawn_from(program, Some(file), &[], None, None, None)
    }

    fn spawn(
        file: Option<&Path>,
        args: &[String],
        open_files: Option<&str>,
        variable: Option<(&str, String)>,
        scratch: Option<TempDir>,
    ) -> Proxy {
        let program = Path::new(env!("CARGO_BIN_EXE_mcp-proxy"));
        Proxy::spawn_from(program, file, args, open_files, variable, scratch)
    }

    fn spawn_from(
        program: &Path,
        file: Option<&Path>,
        args: &[String],
        open_files: Option<&str>,
        variable: Option<(&str, String)>,
        scratch: Option<TempDir>,
    ) -> Proxy {
        let mut command = Command::new("sh");
        let limit = open_files.map(|files| format!("ulimit -n \"{files}\"; ")).unwrap_or_default();
        command.args(["-c", &format!("{limit}exec \"$@\""), "sh"]);
        command.arg(program);
        if let Some(file) = file {
            command.arg("-c").arg(file);
        }
        command.args(args);
        if !args.iter().any(|arg| arg == "--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("MCP_PROXY_TEST_PRIVATE", "private");
        command.envs(variable);
        // So that the whole suite can be run on another driver.
        if let (Ok(driver), false) =
            (std::env::var("MCP_PROXY_TEST_DRIVER"), args.iter().any(|arg| arg == "--driver"))
        {
            command.args(["--driver", &driver]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group::spawn(&mut command);
        let stdout = Said::of(group.leader.stdout.take().expect("stdout"));
        let stderr = Said::of(group.leader.stderr.take().expect("stderr"));
        let addr = wait_for("the line with the URL", || {
            if let Some(status) = group.ended() {
                std::thread::sleep(Duration::from_millis(200));
                panic!("the proxy ended, {status}:\n{}{}", stdout.text(), stderr.text());
            }
            let said = stdout.text();
            let (_, rest) = said.split_once("://")?;
            rest.split_once("/mcp")?.0.parse().ok()
        });
        Proxy { group, addr, stdout, stderr, ended: false, _scratch: scratch }
    }

    /// A client that has initialised at the newest revision.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// A client that has seen these tools in the list.
    pub(crate) fn client_seeing(&self, tools: &[&str]) -> Client {
        let mut client = self.client();
        client.wait_for_tools(tools);
        client
    }

    pub(crate) fn pid(&self) -> u32 {
        self.group.leader.id()
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Writes another configuration in the place of the one that [`Setup`] made: the same `[proxy]`
    /// with these lines and tables, and these backends. Nobody is told.
    pub(crate) fn rewrite(&self, proxy: &str, backends: &str) {
        let setup =
            Setup { proxy: proxy.to_owned(), backends: backends.to_owned(), ..Setup::default() };
        self.rewrite_whole(&setup.text());
    }

    /// The same with all of the text.
    pub(crate) fn rewrite_whole(&self, text: &str) {
        let scratch = self._scratch.as_ref().expect("a configuration of its own");
        std::fs::write(scratch.path().join("proxy.toml"), text).expect("configuration");
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(signal(name, self.pid() as i32), "the proxy is gone:\n{}", self.stderr());
    }

    /// Its exit, which somebody has asked for.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.ended = true;
        wait_for("the proxy's exit", || self.group.ended())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let early = match self.ended {
            true => None,
            false => self.group.ended(),
        };
        let stderr = self.stderr();
        let bad = early.is_some() || stderr.contains("panicked at");
        if std::thread::panicking() {
            eprintln!("--- the proxy's stderr, {early:?} ---\n{}---", tail(&stderr));
        } else if bad {
            panic!("the proxy failed, {early:?}:\n{}", tail(&stderr));
        }
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(20_000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

impl Setup {
    /// Its configuration.
    fn text(&self) -> String {
        format!(
            // Tests that change the file say themselves when it is to be read again.
            "[proxy]\nname = \"test\"\nworkers = {}\nadmin_tools = \"{}\"\n\
             hot_reload = false\n{}\n{}",
            self.workers.unwrap_or(2),
            self.admin_tools.unwrap_or("off"),
            self.proxy,
            self.backends
        )
    }

    pub(crate) fn start(self) -> Proxy {
        let scratch = scratch();
        let file = scratch.path().join("proxy.toml");
        std::fs::write(&file, self.text()).expect("configuration");
        Proxy::spawn(Some(&file), &self.args, self.open_files, self.variable, Some(scratch))
    }
}

/// A proxy before the stub with utilities as a child, `pipe`, and over HTTP, `web`.
pub(crate) struct Pair {
    pub(crate) proxy: Proxy,
    pub(crate) pipe: Journal,
    pub(crate) web: Journal,
    /// `web`.
    pub(crate) stub: HttpStub,
    _scratch: TempDir,
}

impl Pair {
    /// Each with these keys, and up: the tool is in both lists.
    pub(crate) fn start(pipe_keys: &str, web_keys: &str, tool: &str) -> Pair {
        let scratch = scratch();
        let (pipe, web) = (Journal::new(&scratch, "pipe"), Journal::new(&scratch, "web"));
        let stub = HttpStub::start("web", &["--utilities", "--journal", web.path()]);
        let proxy = Proxy::start(&[
            stdio_backend("pipe", &["--utilities", "--journal", pipe.path()]) + pipe_keys,
            stub.backend("web") + web_keys,
        ]);
        proxy.client_seeing(&[&format!("pipe__{tool}"), &format!("web__{tool}")]);
        Pair { proxy, pipe, web, stub, _scratch: scratch }
    }

    /// What each noted, by its name.
    pub(crate) fn journals(&self) -> [(&'static str, &Journal); 2] {
        [("pipe", &self.pipe), ("web", &self.web)]
    }
}

/// The stub as an HTTP server.
pub(crate) struct HttpStub {
    _group: Group,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
}

impl HttpStub {
    /// On a port that the kernel chooses.
    pub(crate) fn start(name: &str, args: &[&str]) -> HttpStub {
        HttpStub::start_on(0, name, args)
    }

    /// On this port: the one of a stub that ended, or of [`free_port`].
    pub(crate) fn start_on(port: u16, name: &str, args: &[&str]) -> HttpStub {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut command = Command::new(stub_path());
            command.args(["--http", &port.to_string(), "--name", name, "--until-stdin-ends"]);
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.stderr(Stdio::null());
            let mut group = Group::spawn(&mut command);
            let mut line = String::new();
            let mut stdout = BufReader::new(group.leader.stdout.take().expect("stdout"));
            stdout.read_line(&mut line).expect("first line");
            let addr = line
                .trim()
                .strip_prefix("http://")
                .and_then(|rest| rest.strip_suffix("/mcp").and_then(|addr| addr.parse().ok()));
            if let Some(addr) = addr {
                return HttpStub { _group: group, addr };
            }
            // Another process may still hold the port for a moment.
            assert!(Instant::now() < end, "the stub does not start on port {port}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn backend(&self, name: &str) -> String {
        http_backend(name, self.addr)
    }

    /// A client that speaks to it directly.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Forgets all sessions.
    pub(crate) fn forget(&self) {
        let answer = super::http::once(self.addr, "POST", "/control/forget", "");
        assert_eq!(answer.status, 200);
    }

    /// kill -9, then a new one on the same port.
    pub(crate) fn restart(self, name: &str, args: &[&str]) -> HttpStub {
        let port = self.addr.port();
        drop(self);
        HttpStub::start_on(port, name, args)
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address").port()
}

/// The events of a stub that was started with `--journal`.
pub(crate) struct Journal(PathBuf);

impl Journal {
    pub(crate) fn new(scratch: &TempDir, name: &str) -> Journal {
        Journal(scratch.path().join(name))
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How many events begin so.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }

    pub(crate) fn wait_count(&self, start: &str, count: usize) {
        let what = format!("{count} events `{start}` in {}", self.path());
        wait_until(&what, || self.count(start) >= count);
    }

    /// The words behind the last event that begins so, once there is one.
    pub(crate) fn last(&self, start: &str) -> String {
        wait_for(&format!("an event `{start}`"), || {
            let lines = self.lines();
            let line = lines.iter().rev().find(|line| line.starts_with(start))?;
            Some(line[start.len()..].trim().to_owned())
        })
    }

    /// Signals the last one started, if that still runs.
    pub(crate) fn signal(&self, name: &str) -> bool {
        let pid = self.pid();
        // It may be gone and its number a stranger's; nobody else has this journal.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.split('\0').any(|argument| argument == self.path()) && signal(name, pid as i32)
    }

    /// Stops the last one started, and waits until none of its threads runs any more.
    pub(crate) fn freeze(&self) {
        assert!(self.signal("STOP"));
        let tasks = format!("/proc/{}/task", self.pid());
        wait_until("the freeze", || {
            let mut tasks = std::fs::read_dir(&tasks).expect("tasks");
            tasks.all(|task| {
                let pid = task.expect("task").file_name().to_string_lossy().parse();
                stat(pid.expect("number")).is_none_or(|(state, _)| state == 'T')
            })
        });
    }

    /// The last one started.
    pub(crate) fn life(&self) -> Life {
        Life::of(self.pid())
    }

    /// The pid of the last start.
    pub(crate) fn pid(&self) -> u32 {
        self.last("start ").parse().expect("pid")
    }
}
