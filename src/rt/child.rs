//! Owns: child processes: their birth, their three pipes, their signals and their end.
//! Never: lines or messages; restarting; when to stop a child.
//! Next: `signals`, what people and supervisors say to the process.
//!
//! Children are born on one thread that never ends, because `PR_SET_PDEATHSIG` means the death of
//! the *thread* that forked. The pipes are real pipes on every driver, so a child sees the same
//! whatever the proxy runs on. Each child leads a process group; when it ends, what is left of its
//! group is killed before it is reaped, while its number cannot belong to anybody else.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut};
use monoio::fs::File;
use monoio::net::UnixStream;

use super::bell::{self, Reply, Streak};
use super::local::Event;
use super::{sys, time};
use crate::limits;

/// How often killed children that nobody waits for are looked at, while there are any.
const ORPHAN_INTERVAL: Duration = Duration::from_millis(100);
/// How often a child is asked for its end if it cannot be waited for.
const REAP_INTERVAL: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// A path, or a name looked up in the `PATH` of `env`.
    pub program: OsString,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment: nothing of the proxy's own is added.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; the proxy's own if `None`.
    pub cwd: Option<PathBuf>,
}

/// A running child. Its parts are owned by different tasks.
pub struct Child {
    /// To its standard input.
    pub stdin: Input,
    /// From its standard output.
    pub stdout: Output,
    /// From its standard error; somebody must read it, else the child may stop at a full pipe.
    pub stderr: Output,
    /// Its process.
    pub handle: Handle,
}

/// Starts a child: leader of its own process group, empty signal mask, no descriptor but its three
/// pipes, killed by the kernel if the proxy dies. Dropped before it is ready, the child is killed.
///
/// # Errors
/// Those of pipe, fork, chdir and exec, such as `NotFound` for a program that does not exist;
/// `WouldBlock` when too many births wait.
pub async fn spawn(spec: Spec) -> io::Result<Child> {
    let (reply, replied) = bell::reply()?;
    nursery()?
        .try_send(Order::Bear(spec, reply))
        .map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "too many children are starting"))?;
    let Born { process, stdin, stdout, stderr } = replied.get().await??;
    let pid = process.pid;
    let exit = bell::pollable(sys::pidfd(pid)?)?;
    let child = Child {
        stdin: Input(Pipe::new(stdin)?),
        stdout: Output(Pipe::new(stdout)?),
        stderr: Output(Pipe::new(stderr)?),
        handle: Handle(Rc::new(Owner(Rc::new(Life {
            pid,
            process: RefCell::new(Some(process)),
            status: Cell::new(None),
            ended: Event::new(),
        })))),
    };
    super::spawn("child exit", watch(child.handle.0.0.clone(), exit));
    Ok(child)
}

// ---- the thread that forks ----

enum Order {
    Bear(Spec, Reply<io::Result<Born>>),
    /// Look after the orphans.
    Reap,
}

struct Born {
    process: Process,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// A process that was not reaped yet; dropped, it is killed and left to the nursery.
struct Process {
    pid: u32,
    child: Option<std::process::Child>,
}

impl Process {
    /// Reaps it if it has ended.
    fn try_reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let _ = sys::kill_group(self.pid, libc::SIGKILL);
            orphans().push(child);
            // If the channel is full the nursery is awake and looks after its next birth.
            let _ = nursery().map(|orders| orders.try_send(Order::Reap));
        }
    }
}

/// Killed children that nobody waits for.
fn orphans() -> MutexGuard<'static, Vec<std::process::Child>> {
    static ORPHANS: Mutex<Vec<std::process::Child>> = Mutex::new(Vec::new());
    ORPHANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to the thread that forks, which is started when it is first needed and never ends.
fn nursery() -> io::Result<SyncSender<Order>> {
    static NURSERY: Mutex<Option<SyncSender<Order>>> = Mutex::new(None);
    let mut nursery = NURSERY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(orders) = &*nursery {
        return Ok(orders.clone());
    }
    let (orders, taken) = sync_channel(limits::BIRTHS_MAX);
    std::thread::Builder::new().name("nursery".to_owned()).spawn(move || raise(taken))?;
    *nursery = Some(orders.clone());
    Ok(orders)
}

fn raise(orders: Receiver<Order>) {
    loop {
        let order = if orphans().is_empty() {
            orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            orders.recv_timeout(ORPHAN_INTERVAL)
        };
        match order {
            Ok(Order::Bear(spec, reply)) => reply.send(bear(spec)),
            Ok(Order::Reap) | Err(RecvTimeoutError::Timeout) => {}
            // Not while the sender is in a static; and this thread must not end.
            Err(RecvTimeoutError::Disconnected) => std::thread::park(),
        }
        orphans().retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

fn bear(spec: Spec) -> io::Result<Born> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(spec.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if let Some(cwd) = spec.cwd {
        command.current_dir(cwd);
    }
    sys::harden(&mut command);
    let mut child = command.spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let process = Process { pid: child.id(), child: Some(child) };
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(io::Error::other("a pipe of the child is missing"));
    };
    Ok(Born { process, stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() })
}

// ---- the process ----

struct Life {
    pid: u32,
    process: RefCell<Option<Process>>,
    status: Cell<Option<ExitStatus>>,
    ended: Event,
}

/// Waits for the end, clears away the group, reaps.
async fn watch(life: Rc<Life>, exit: UnixStream) {
    loop {
        let seen = exit.readable(false).await.is_ok();
        if seen {
            // It is a zombie until we reap it, so the number is still its own.
            let _ = sys::kill_group(life.pid, libc::SIGKILL);
        }
        let reaped = life.process.borrow_mut().as_mut().map(Process::try_reap);
        match reaped {
            Some(Ok(Some(status))) => {
                life.status.set(Some(status));
                life.process.borrow_mut().take();
                life.ended.set();
                return;
            }
            Some(Ok(None)) => {}
            Some(Err(error)) => {
                // Somebody else reaped our child: all that can be said is that it is gone.
                tracing::error!(pid = life.pid, %error, "child cannot be waited for");
                life.status.set(Some(ExitStatus::from_raw(255 << 8)));
                life.process.borrow_mut().take();
                life.ended.set();
                return;
            }
            None => return,
        }
        time::sleep(REAP_INTERVAL).await;
    }
}

/// Kills the child when nobody holds its handle any more.
struct Owner(Rc<Life>);

impl Drop for Owner {
    fn drop(&mut self) {
        if self.0.status.get().is_none() {
            let _ = sys::kill_group(self.0.pid, libc::SIGKILL);
        }
    }
}

/// A child's process. When the last clone is dropped the child's group is killed. It is reaped
/// once, by the proxy itself, as soon as it ends.
#[derive(Clone)]
pub struct Handle(Rc<Owner>);

impl Handle {
    /// Its process id; once it has ended, somebody else's perhaps.
    pub fn pid(&self) -> u32 {
        self.0.0.pid
    }

    /// Waits for its end, in any number of tasks. Safe to drop.
    pub async fn exited(&self) -> ExitStatus {
        self.0.0.ended.wait().await;
        self.0.0.status.get().unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.0.0.status.get()
    }

    /// Sends a signal to the child and all that it has started in its group; nothing once it has
    /// ended.
    pub fn signal_group(&self, signal: libc::c_int) {
        if self.0.0.status.get().is_none() {
            let _ = sys::kill_group(self.0.0.pid, signal);
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("pid", &self.pid()).field("status", &self.status()).finish()
    }
}

// ---- the pipes ----

enum Pipe {
    /// Read and written by the ring; the offset of a pipe means nothing.
    Ring(File),
    /// Non-blocking, read and written by ourselves when epoll says so.
    Epoll(UnixStream, Streak),
}

impl Pipe {
    fn new(fd: OwnedFd) -> io::Result<Pipe> {
        if monoio::utils::is_legacy() {
            sys::set_nonblocking(fd.as_raw_fd())?;
            return Ok(Pipe::Epoll(bell::pollable(fd)?, Streak::default()));
        }
        File::from_std(std::fs::File::from(fd)).map(Pipe::Ring)
    }

    async fn read(&mut self, mut buf: Vec<u8>, room: usize) -> (io::Result<usize>, Vec<u8>) {
        buf.reserve(room.max(1));
        loop {
            let result = match self {
                Pipe::Ring(file) => {
                    let end = buf.len();
                    let (result, slice) = file.read_at(buf.slice_mut(end..), 0).await;
                    buf = slice.into_inner();
                    result
                }
                Pipe::Epoll(pipe, streak) => match streak.pace(pin!(pipe.readable(false))).await {
                    Ok(()) => sys::read(pipe.as_raw_fd(), &mut buf),
                    Err(e) => Err(e),
                },
            };
            if !again(&result) {
                return (result, buf);
            }
        }
    }

    async fn write(&mut self, mut buf: Vec<u8>, part: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        let Range { start: mut written, end } = part;
        while written < end {
            let result = match self {
                Pipe::Ring(file) => {
                    let (result, slice) = file.write_at(buf.slice(written..end), 0).await;
                    buf = slice.into_inner();
                    result
                }
                Pipe::Epoll(pipe, streak) => match streak.pace(pin!(pipe.writable(false))).await {
                    Ok(()) => sys::write(pipe.as_raw_fd(), &buf[written..end]),
                    Err(e) => Err(e),
                },
            };
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(n) => written += n,
                ref result if again(result) => {}
                Err(e) => return (Err(e), buf),
            }
        }
        (Ok(()), buf)
    }
}

fn again(result: &io::Result<usize>) -> bool {
    matches!(result, Err(e)
        if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock))
}

/// A child's standard input. Dropping it is the end of the input.
pub struct Input(Pipe);

impl Input {
    /// Writes the whole buffer, which comes back as it was. Waits, and only this task, while the
    /// child does not read and the pipe (64 KiB) is full. A drop leaves the message cut off at an
    /// unknown place: stop the child.
    ///
    /// # Errors
    /// Those of write: `BrokenPipe` when the child has closed its end or died.
    pub async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let whole = 0..buf.len();
        self.write(buf, whole).await
    }

    /// As [`Input::write_all`], a part of the buffer. `part` must lie in it.
    ///
    /// # Errors
    /// As there.
    pub async fn write(&mut self, buf: Vec<u8>, part: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        self.0.write(buf, part).await
    }

    /// Ends the child's input: what most servers understand as the wish that they end.
    pub fn close(self) {}
}

/// A child's standard output or error.
pub struct Output(Pipe);

impl Output {
    /// Reads once, behind the end of `buf`, after reserving at least `room` bytes there. 0 is the
    /// end: every process that held the other end has closed it.
    ///
    /// Never drop it and read again: bytes that the kernel had already taken are lost.
    ///
    /// # Errors
    /// Those of read; the buffer comes back unchanged.
    pub async fn read(&mut self, buf: Vec<u8>, room: usize) -> (io::Result<usize>, Vec<u8>) {
        self.0.read(buf, room).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{Driver, join, local, signals};
    use std::io::{BufRead, BufReader};

    fn spec(program: &str, args: &[&str]) -> Spec {
        Spec {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
            env: vec![("PATH".into(), std::env::var_os("PATH").unwrap())],
            cwd: None,
        }
    }

    async fn all(output: &mut Output) -> String {
        let mut buf = Vec::new();
        loop {
            let (n, back) = output.read(buf, 4096).await;
            buf = back;
            if n.unwrap() == 0 {
                return String::from_utf8(buf).unwrap();
            }
        }
    }

    async fn line(output: &mut Output) -> String {
        let mut buf = Vec::new();
        while buf.last() != Some(&b'\n') {
            let (n, back) = output.read(buf, 64).await;
            buf = back;
            assert_ne!(n.unwrap(), 0, "{}", String::from_utf8_lossy(&buf));
        }
        String::from_utf8(buf).unwrap().trim().to_owned()
    }

    /// Whether the process is there and not a zombie.
    fn runs(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
    }

    async fn gone(pid: &str) {
        while runs(pid) {
            time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[test]
    fn echo_and_a_proper_end() {
        everywhere(async || {
            let Child { mut stdin, mut stdout, mut stderr, handle } =
                spawn(spec("cat", &[])).await.unwrap();
            for n in 0..200 {
                stdin.write_all(format!("line {n}\n").into_bytes()).await.0.unwrap();
                assert_eq!(line(&mut stdout).await, format!("line {n}"));
            }
            assert_eq!(handle.status(), None);
            stdin.close();
            assert!(handle.exited().await.success());
            assert!(handle.exited().await.success(), "known for ever");
            assert_eq!(all(&mut stdout).await + &all(&mut stderr).await, "");
            assert!(!std::path::Path::new(&format!("/proc/{}", handle.pid())).exists(), "reaped");
            handle.signal_group(libc::SIGKILL); // nothing, and certainly no stranger
        });
    }

    /// Larger than the pipe, both ways at once.
    #[test]
    fn megabytes_through_a_child() {
        everywhere(async || {
            let Child { mut stdin, mut stdout, handle, .. } =
                spawn(spec("cat", &[])).await.unwrap();
            let sent: Vec<u8> = (0..2_000_000u32).map(|n| (n >> 2) as u8).collect();
            let write = async {
                let (result, sent) = stdin.write_all(sent).await;
                result.unwrap();
                stdin.close();
                sent
            };
            let read = async {
                let mut buf = Vec::new();
                loop {
                    let (n, back) = stdout.read(buf, 64 * 1024).await;
                    buf = back;
                    if n.unwrap() == 0 {
                        return buf;
                    }
                }
            };
            let (sent, echoed) = join(write, read).await;
            assert!(sent == echoed);
            assert!(handle.exited().await.success());
        });
    }

    #[test]
    fn the_exit_status_is_told() {
        everywhere(async || {
            let child = spawn(spec("sh", &["-c", "exit 7"])).await.unwrap();
            assert_eq!(child.handle.exited().await.code(), Some(7));
            let child = spawn(spec("sleep", &["1000"])).await.unwrap();
            let other = child.handle.clone();
            let kill = async {
                time::sleep(Duration::from_millis(5)).await;
                other.signal_group(libc::SIGTERM);
            };
            let (a, (b, ())) = join(child.handle.exited(), join(child.handle.exited(), kill)).await;
            assert_eq!((a.signal(), b.signal()), (Some(libc::SIGTERM), Some(libc::SIGTERM)));
        });
    }

    #[test]
    fn faults_of_the_start_are_errors() {
        everywhere(async || {
            let error = spawn(spec("no-such-program-anywhere", &[])).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            let cwd = Some("/no/such/directory".into());
            let error = spawn(Spec { cwd, ..spec("cat", &[]) }).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn a_child_gets_what_it_was_given_and_nothing_else() {
        everywhere(async || {
            let leak = std::fs::File::open("/dev/null").unwrap();
            sys::testing::clear_cloexec(leak.as_raw_fd()).unwrap();
            let script = "echo $0 $1; pwd; env | sort | grep -v -e ^PATH= -e ^PWD= -e ^_= -e \
                          ^SHLVL= -e ^OLDPWD=; ls /proc/self/fd | tr '\\n' ' '";
            let mut spec = spec("sh", &["-c", script, "zero", "one two"]);
            spec.env.push(("ONLY".into(), "this".into()));
            spec.cwd = Some("/".into());
            let mut child = spawn(spec).await.unwrap();
            // 3 is the directory that ls itself has open.
            assert_eq!(all(&mut child.stdout).await, "zero one two\n/\nONLY=this\n0 1 2 3 ");
            assert!(child.handle.exited().await.success());
        });
    }

    const FAMILY: &str = "sleep 1000 & echo $!; wait";

    #[test]
    fn a_signal_reaches_the_grandchild() {
        everywhere(async || {
            let mut child = spawn(spec("sh", &["-c", FAMILY])).await.unwrap();
            let grandchild = line(&mut child.stdout).await;
            assert!(runs(&grandchild));
            child.handle.signal_group(libc::SIGKILL);
            assert_eq!(child.handle.exited().await.signal(), Some(libc::SIGKILL));
            gone(&grandchild).await;
            assert_eq!(all(&mut child.stdout).await, "", "the last writer is gone");
        });
    }

    #[test]
    fn what_a_child_leaves_behind_is_killed() {
        everywhere(async || {
            let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
            let mut child = spawn(spec("sh", &["-c", script])).await.unwrap();
            let grandchild = line(&mut child.stdout).await;
            assert!(child.handle.exited().await.success());
            gone(&grandchild).await;
        });
    }

    #[test]
    fn nobody_holds_it_so_it_is_killed_and_reaped() {
        everywhere(async || {
            let child = spawn(spec("sleep", &["1000"])).await.unwrap();
            let pid = child.handle.pid();
            drop(child);
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                time::sleep(Duration::from_millis(2)).await;
            }
        });
    }

    #[test]
    fn a_start_that_nobody_awaits_leaves_no_child() {
        everywhere(async || {
            let mark = format!("9{:09}", std::process::id());
            for _ in 0..5 {
                let start = spawn(spec("sleep", &[&mark]));
                let _ = time::timeout(Duration::ZERO, start).await;
            }
            // A birth behind them in the line: all have been born by then.
            let last = spawn(spec("true", &[])).await.unwrap();
            last.handle.exited().await;
            let left = || {
                std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                    std::fs::read(entry.path().join("cmdline"))
                        .is_ok_and(|line| line.split(|b| *b == 0).any(|a| a == mark.as_bytes()))
                })
            };
            while left() {
                time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    #[test]
    fn a_child_that_does_not_read_parks_only_its_task() {
        everywhere(async || {
            let Child { mut stdin, handle, .. } = spawn(spec("sleep", &["1000"])).await.unwrap();
            let (sender, mut written) = local::queue(1);
            super::super::spawn("writer", async move {
                let (result, buf) = stdin.write_all(vec![b'x'; 1 << 20]).await;
                assert_eq!(buf.len(), 1 << 20);
                assert!(sender.try_send(result.map_err(|e| e.kind())).is_ok());
            });
            for _ in 0..10 {
                time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(written.try_recv(), None);
            handle.signal_group(libc::SIGKILL);
            assert_eq!(written.recv().await, Some(Err(io::ErrorKind::BrokenPipe)));
        });
    }

    #[test]
    fn a_chatty_child_does_not_starve_timers() {
        everywhere(async || {
            let Child { mut stdout, handle, .. } = spawn(spec("yes", &[])).await.unwrap();
            super::super::spawn("timer", async move {
                for _ in 0..10 {
                    time::sleep(Duration::from_millis(1)).await;
                }
                handle.signal_group(libc::SIGKILL);
            });
            let mut buf = Vec::new();
            loop {
                buf.clear();
                let (n, back) = stdout.read(buf, 16).await;
                buf = back;
                if n.unwrap() == 0 {
                    return;
                }
            }
        });
    }

    /// Not a test by itself: a parent that dies without a word, run by the next one.
    #[test]
    #[ignore = "run by the_kernel_kills_what_we_leave"]
    fn parent() {
        if std::env::var_os("RT_TEST_PARENT").is_none() {
            return;
        }
        signals::block().unwrap();
        let run = async {
            let mut mask = spawn(spec("grep", &["SigBlk", "/proc/self/status"])).await.unwrap();
            let mask = all(&mut mask.stdout).await;
            let child = spawn(spec("sleep", &["1000"])).await.unwrap();
            println!("\nCHILD {} {}", child.handle.pid(), mask.replace('\t', " "));
            std::process::abort();
        };
        Driver::choose(None).unwrap().0.run::<_>(run).unwrap()
    }

    #[test]
    fn the_kernel_kills_what_we_leave() {
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["rt::child::tests::parent", "--exact", "--ignored", "--nocapture"])
            .env("RT_TEST_PARENT", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find(|l| l.starts_with("CHILD")).unwrap();
        let words: Vec<_> = said.split_whitespace().collect();
        let [_, pid, "SigBlk:", mask] = words[..] else { panic!("{said}") };
        assert_eq!(u64::from_str_radix(mask, 16).unwrap(), 0, "no signal blocked");
        assert!(!parent.wait().unwrap().success());
        let pid = pid.to_owned();
        everywhere(async move || gone(&pid).await);
    }
}
