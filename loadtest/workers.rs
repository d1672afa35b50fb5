//! Owns: the threads of a baseline: an event loop and a listener for each, as in the proxy.
//! Never: what such a thread does; a baseline that goes on with fewer threads than it was given.
//! Next: `plain` and `relay`, the baselines.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::Result;

/// As in the proxy.
const BACKLOG: i32 = 4096;

/// Runs `work` on so many threads until one fails; their common port goes to stdout. The listeners
/// are blocking.
pub(crate) fn run(
    workers: usize,
    work: impl Fn(TcpListener) -> io::Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let first = listener(0)?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    for _ in 1..workers {
        listeners.push(listener(port)?);
    }
    println!("{port}");
    let (tell, ended) = std::sync::mpsc::channel();
    for listener in listeners {
        let (work, tell) = (work.clone(), tell.clone());
        std::thread::spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| work(listener)));
            tell.send(done.unwrap_or_else(|_| Err(io::Error::other("a worker panicked"))))
        });
    }
    drop(tell);
    Ok(ended.recv().map_err(|_| "no workers")??)
}

/// A socket of its own for each worker, between which the kernel spreads connections.
fn listener(port: u16) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket: OwnedFd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
