//! Owns: what a start needs of the machine: open files, and an address that is free.
//! Never: the listeners themselves, which are the workers'.
//! Next: `crew`, the workers it starts.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use crate::limits;

/// Allows this process as many open files as it may have; how many client connections that is
/// enough for. The rest is for backends, children and files.
pub(super) fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            tracing::warn!("the limit of open files stays at {:?}: {error}", before.current);
            before.current
        }
    };
    match limit {
        Some(files) => usize::try_from(files / 10 * 8).unwrap_or(usize::MAX).max(1),
        None => usize::MAX,
    }
}

/// Binds the address once without sharing it: workers share theirs among themselves, and would
/// share it with another proxy of the same user too.
///
/// An address in use is tried again for [`limits::BIND_PATIENCE`]: the kernel takes a ring down
/// behind the end of its process, so the listeners of a proxy that was killed outlive it a little.
pub(super) fn is_free(addr: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + limits::BIND_PATIENCE;
    loop {
        match try_bind(addr) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(limits::BIND_PAUSE);
            }
            other => return other,
        }
    }
}

fn try_bind(addr: SocketAddr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    // Connections of an earlier run that the kernel still remembers are no obstacle.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(bind(&socket, &addr)?)
}

/// What to tell when an address cannot be bound, with the way out.
pub(super) fn bind_fault(addr: SocketAddr, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; end it, or choose another port with --listen or \
             [proxy.listen] port (0 lets the system choose)"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; choose one of its own with --listen or \
             [proxy.listen] host"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege; choose a higher one with --listen or \
             [proxy.listen] port"
        }
        _ => "choose another address with --listen or [proxy.listen]",
    };
    format!("cannot listen on {addr}: {error}: {remedy}")
}
