//! Owns: child processes: their birth, their three pipes, their signals and their end.
//! Never: lines or messages; restarting; when to stop a child.
//! Next: `mailbox`, the way to other threads.
//!
//! Children are born on one thread that never ends, because `PR_SET_PDEATHSIG` means the death of
//! the *thread* that forked. The pipes are real pipes on every driver, so a child sees the same
//! whatever the proxy runs on. Each child leads a process group; when it ends, what is left of its
//! group is killed before it is reaped, while its number cannot belong to anybody else.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
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
                Pipe::Epoll(pipe, streak) => match streak.pace(pipe.readable(false)).await {
                    Ok(()) => sys::read(pipe.as_raw_fd(), &mut buf),
                    Err(e) => Err(e),
                },
            };
            if !again(&result) {
                return (result, buf);
            }
        }
    }

    async fn write_all(&mut self, mut buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut written = 0;
        while written < buf.len() {
            let result = match self {
                Pipe::Ring(file) => {
                    let (result, slice) = file.write_at(buf.slice(written..), 0).await;
                    buf = slice.into_inner();
                    result
                }
                Pipe::Epoll(pipe, streak) => match streak.pace(pipe.writable(false)).await {
                    Ok(()) => sys::write(pipe.as_raw_fd(), &buf[written..]),
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
        self.0.write_all(buf).await
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
