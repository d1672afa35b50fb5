//! Owns: what is measured, as processes: the backend, nginx, the proxy; and what they consume.
//! Never: a tuning for one that the other is denied.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::report::Sample;
use crate::{Result, wire};

/// A child process that does not outlive its owner.
struct Running(Child);

impl Running {
    /// Starts it so that it ends with this process, however that ends, where `setpriv` exists.
    fn start(
        program: &OsStr,
        configure: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Running> {
        let guarded = Command::new("setpriv").arg("--version").stdout(Stdio::null()).status();
        let mut command = match guarded {
            Ok(status) if status.success() => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "TERM"]).arg(program);
                command
            }
            _ => Command::new(program),
        };
        configure(&mut command).stdin(Stdio::null());
        Ok(Running(command.spawn().map_err(|e| format!("{}: {e}", program.display()))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: nginx that is killed leaves its workers, the proxy its last words.
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The stub over HTTP.
pub(crate) struct Backend {
    child: Running,
    addr: String,
}

impl Backend {
    pub(crate) fn start() -> Result<Backend> {
        let me = std::env::current_exe()?;
        let mut child =
            Running::start(me.as_ref(), |command| command.arg("stub-http").stdout(Stdio::piped()))?;
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().expect("piped")).read_line(&mut line)?;
        Ok(Backend { child, addr: format!("127.0.0.1:{}", line.trim()) })
    }
}

/// What stands between the clients and the backend.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Direct,
    Nginx,
    ProxyHttp,
    ProxyStdio,
}

pub(crate) struct Target {
    kind: Kind,
    workers: usize,
    /// Absent for the bare backend.
    child: Option<Running>,
    /// Whose CPU time is this target's.
    pids: Vec<u32>,
    addr: String,
    tool: &'static str,
}

impl Target {
    pub(crate) fn direct(backend: &Backend) -> Target {
        Target {
            kind: Kind::Direct,
            workers: 1,
            child: None,
            pids: vec![backend.child.0.id()],
            addr: backend.addr.clone(),
            tool: "echo",
        }
    }

    /// Starts nginx or the proxy, and waits until calls reach the backend.
    pub(crate) fn start(
        kind: Kind,
        workers: usize,
        proxy: &Path,
        backend: &Backend,
        scratch: &Path,
    ) -> Result<Target> {
        let target = match kind {
            Kind::Direct => Target::direct(backend),
            Kind::Nginx => start_nginx(workers, backend, scratch)?,
            Kind::ProxyHttp | Kind::ProxyStdio => {
                start_proxy(kind, workers, proxy, backend, scratch)?
            }
        };
        target.wait_until_ready()?;
        Ok(target)
    }

    pub(crate) fn row(&self) -> String {
        match self.kind {
            Kind::Direct => "direct".into(),
            Kind::Nginx => format!("nginx {}", self.workers),
            Kind::ProxyHttp => format!("mcp-proxy {}", self.workers),
            Kind::ProxyStdio => format!("mcp-proxy {} stdio", self.workers),
        }
    }

    fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        loop {
            let listed = wire::once(&self.addr, None, wire::INITIALIZE).and_then(|(session, _)| {
                wire::once(&self.addr, session.as_deref(), wire::INITIALIZED)?;
                wire::once(&self.addr, session.as_deref(), list)
            });
            let quoted = format!("\"{}\"", self.tool);
            match listed {
                Ok((_, body)) if String::from_utf8_lossy(&body).contains(&quoted) => return Ok(()),
                other if Instant::now() > deadline => {
                    let what = other.map(|(_, body)| String::from_utf8_lossy(&body).into_owned());
                    return Err(format!("{} does not come up: {what:?}", self.row()).into());
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Runs the clients against it, in a process of their own.
    pub(crate) fn load(
        &self,
        connections: usize,
        size: usize,
        duration: Duration,
    ) -> Result<Sample> {
        let me = std::env::current_exe()?;
        let mut clients = Running::start(me.as_ref(), |command| {
            command
                .args(["generate", "--to", &self.addr, "--tool", self.tool])
                .args(["--connections", &connections.to_string(), "--size", &size.to_string()])
                .args(["--warmup-ms", "150", "--measure-ms", &duration.as_millis().to_string()])
                .stdout(Stdio::piped())
        })?;
        let mut lines = BufReader::new(clients.0.stdout.take().expect("piped")).lines();
        let (mut cpu, mut seen, mut json) = ([Duration::ZERO; 2], 0, None);
        while let Some(line) = lines.next().transpose()? {
            match line.as_str() {
                "begin" => cpu[0] = self.cpu()?,
                "end" => cpu[1] = self.cpu()?,
                _ => json = Some(line),
            }
            seen += 1;
        }
        let json = json.ok_or_else(|| format!("{}: the clients failed", self.row()))?;
        let clients: Clients = serde_json::from_str(&json)?;
        if seen < 3 {
            return Err(format!("{}: {}", self.row(), clients.first_error).into());
        }
        let per_request = (cpu[1] - cpu[0]).as_secs_f64() * 1e6 / clients.requests.max(1) as f64;
        Ok(Sample {
            requests_per_second: clients.requests as f64 / clients.seconds.max(1e-9),
            p50: clients.p50,
            p90: clients.p90,
            p99: clients.p99,
            cpu_micros: per_request,
            rss_mib: self.rss_mib()?,
            errors: clients.errors,
            first_error: clients.first_error,
        })
    }

    /// CPU time of all its threads so far.
    fn cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for pid in &self.pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                total += thread_cpu(&task?.path());
            }
        }
        Ok(total)
    }

    fn rss_mib(&self) -> Result<f64> {
        let mut kib = 0.0;
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            kib += line
                .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
                .ok_or("no VmRSS")?;
        }
        Ok(kib / 1024.0)
    }
}

/// What the generator tells at its end.
#[derive(Deserialize)]
struct Clients {
    requests: u64,
    seconds: f64,
    errors: u64,
    first_error: String,
    p50: f64,
    p90: f64,
    p99: f64,
}

/// Exact in nanoseconds where the kernel keeps schedstat, else in ticks of 10 ms. A thread that
/// has just ended counts nothing.
fn thread_cpu(task: &Path) -> Duration {
    let first = |text: String| text.split_whitespace().next()?.parse().ok();
    if let Some(nanoseconds) = fs::read_to_string(task.join("schedstat")).ok().and_then(first) {
        return Duration::from_nanos(nanoseconds);
    }
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
    // Behind the name, which may hold anything: utime and stime are the fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

pub(crate) fn nginx_is_installed() -> bool {
    let version = Command::new("nginx").arg("-v").stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// nginx as a plain reverse proxy, tuned for this: connections to the backend are kept and never
/// run out, nothing is logged or spilled to disk, each worker has its own listener. Buffers of
/// 64 KiB cost it a quarter less than 16 KiB for results of that size, and nothing for small
/// ones; without buffering it needs half as much again.
fn start_nginx(workers: usize, backend: &Backend, scratch: &Path) -> Result<Target> {
    let folder = scratch.join(format!("nginx-{workers}"));
    fs::create_dir_all(&folder)?;
    // nginx cannot take port 0.
    let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "daemon off;
worker_processes {workers};
{user}
pid {pid};
error_log {log} error;
events {{ worker_connections 4096; multi_accept on; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 100000000;
    client_body_buffer_size 64k;
    client_body_temp_path {body};
    proxy_temp_path {temp};
    fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; scgi_temp_path {temp};
    upstream stub {{
        server {backend};
        keepalive 512;
        keepalive_requests 100000000;
        keepalive_timeout 75s;
    }}
    server {{
        listen {addr} reuseport backlog=4096;
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffer_size 16k;
            proxy_buffers 4 64k;
            proxy_busy_buffers_size 128k;
            proxy_max_temp_file_size 0;
        }}
    }}
}}
",
        user = if is_root() { "user root;" } else { "" },
        pid = at("pid"),
        log = at("error.log"),
        body = at("body"),
        temp = at("temp"),
        backend = backend.addr,
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let child = Running::start("nginx".as_ref(), |command| {
        command
            .args(["-p", &at(""), "-c", &at("nginx.conf")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
    })?;
    let mut target = Target {
        kind: Kind::Nginx,
        workers,
        pids: Vec::new(),
        child: Some(child),
        addr: addr.to_string(),
        tool: "echo",
    };
    target.wait_until_ready()?;
    let master = target.child.as_ref().map(|child| child.0.id()).expect("just started");
    let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
    target.pids = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    if target.pids.len() != workers {
        return Err(format!("nginx has the processes {children:?}, not {workers} workers").into());
    }
    Ok(target)
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}

fn start_proxy(
    kind: Kind,
    workers: usize,
    proxy: &Path,
    backend: &Backend,
    scratch: &Path,
) -> Result<Target> {
    let how = match kind {
        Kind::ProxyStdio => {
            let me = std::env::current_exe()?;
            format!("transport = \"stdio\"\ncommand = {me:?}\nargs = [\"stub-stdio\"]\n")
        }
        _ => format!("transport = \"http\"\nurl = \"http://{}/mcp\"\n", backend.addr),
    };
    let config = format!(
        "[proxy]\nname = \"loadtest\"\nworkers = {workers}\n[proxy.listen]\nhost = \"127.0.0.1\"\nport = 0\n\
         [[backends]]\nname = \"stub\"\n{how}"
    );
    let file: PathBuf = scratch.join(format!("proxy-{workers}-{}.toml", kind as u8));
    fs::write(&file, config)?;
    let mut child = Running::start(proxy.as_os_str(), |command| {
        command.arg("-c").arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped())
    })?;
    let (sender, found) = mpsc::channel();
    let streams = [
        Box::new(child.0.stdout.take().expect("piped")) as Box<dyn Read + Send>,
        Box::new(child.0.stderr.take().expect("piped")),
    ];
    for stream in streams {
        let sender = sender.clone();
        std::thread::spawn(move || {
            // To its end, or the proxy would block.
            for line in BufReader::new(stream).lines().map_while(std::result::Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    drop(sender);
    let mut said = String::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let Ok(line) = found.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        else {
            return Err(format!("the proxy told no address:\n{said}").into());
        };
        if let Some((_, rest)) =
            line.split_once("http://127.0.0.1:").filter(|_| !line.contains(&backend.addr))
        {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            return Ok(Target {
                kind,
                workers,
                pids: vec![child.0.id()],
                child: Some(child),
                addr: format!("127.0.0.1:{port}"),
                tool: "stub__echo",
            });
        }
        said += &line;
        said.push('\n');
    }
}
