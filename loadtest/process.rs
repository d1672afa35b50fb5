//! Owns: child processes, and what a process consumes: CPU time, memory; which one has a port.
//! Never: a child that outlives its owner.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Result;

/// A child process that does not outlive its owner.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Starts it so that it ends with this process, however that ends, where `setpriv` exists.
    pub(crate) fn start(
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
        command.stdin(Stdio::null());
        configure(&mut command);
        Ok(Running(command.spawn().map_err(|e| format!("{}: {e}", program.display()))?))
    }

    /// This program again, in another role.
    pub(crate) fn again(configure: impl FnOnce(&mut Command) -> &mut Command) -> Result<Running> {
        Running::start(std::env::current_exe()?.as_ref(), configure)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: nginx that is killed leaves its workers, the proxy its last words.
        signal("TERM", self.pid());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal by name, if there is such a process.
pub(crate) fn signal(name: &str, pid: u32) {
    // kill(2) is an unsafe call from Rust.
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
}

/// Children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// CPU time of all threads so far.
pub(crate) fn cpu(pids: &[u32]) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.map_err(|e| format!("process {pid} is gone: {e}"))? {
            total += thread_cpu(&task?.path());
        }
    }
    Ok(total)
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

/// Resident memory in MiB; what several of them share counts several times.
pub(crate) fn resident(pids: &[u32]) -> Result<f64> {
    let mut kib = 0.0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|e| format!("process {pid} is gone: {e}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        kib += line
            .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
            .ok_or("no VmRSS")?;
    }
    Ok(kib / 1024.0)
}

/// The processes of this machine that listen on a port, as far as this user may know.
pub(crate) fn listeners(port: u16) -> Vec<u32> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1).and_then(|local| local.rsplit_once(':'));
            let local = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            // 0A is the state of a socket that listens.
            if local == Some(port) && fields.get(3) == Some(&"0A") {
                sockets.extend(fields.get(9).map(|inode| format!("socket:[{inode}]")));
            }
        }
    }
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|_| !sockets.is_empty()) else { continue };
        let mut open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let ours = |link: &Path| sockets.iter().any(|socket| link.as_os_str() == socket.as_str());
        if open.any(|fd| fs::read_link(fd.path()).is_ok_and(|link| ours(&link))) {
            found.push(pid);
        }
    }
    found
}

/// Lets this process and its children open as many files as it may. How many that are.
pub(crate) fn raise_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
