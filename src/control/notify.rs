//! Owns: telling the service manager that started this process how it fares (sd_notify(3)).
//! Never: what a library does by itself: the process that embeds it answers to its own manager.
//! Next: `embed`, the proxy in another program.
//!
//! Without a manager (no `NOTIFY_SOCKET`) nothing is told and nothing fails.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::time::{ClockId, clock_gettime};

use super::banner::one_line;
use crate::limits;

/// The manager of this process, if there is one.
#[derive(Debug)]
pub struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// The one that the environment names.
    pub fn from_env() -> Manager {
        Manager::at(std::env::var_os("NOTIFY_SOCKET"))
    }

    fn at(name: Option<OsString>) -> Manager {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Manager(None) };
        match connect(&name) {
            Ok(found) => Manager(Some(found)),
            Err(error) => {
                tracing::warn!("NOTIFY_SOCKET {name:?} cannot be used: {error}");
                Manager(None)
            }
        }
    }

    /// It serves, for the first time or again after [`Manager::reloading`].
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// It is reading its configuration again.
    pub fn reloading(&self) {
        // The manager takes no READY for an answer that is older than this.
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading"));
    }

    /// It is ending.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=finishing what is in flight");
    }

    /// What people are shown of it.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", one_line(status)));
    }

    fn tell(&self, text: &str) {
        let Some((socket, addr)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), addr) {
            tracing::warn!("the service manager cannot be told: {error}");
        }
    }
}

/// A path, or a name behind `@` in the abstract namespace (unix(7)).
fn connect(name: &OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let addr = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("accepted: an absolute path, or a name behind @")),
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not listen must not hold the proxy up.
    socket.set_write_timeout(Some(limits::NOTIFY_WAIT))?;
    Ok((socket, addr))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut room = [0; 1000];
        let length = socket.recv(&mut room).unwrap();
        String::from_utf8(room[..length].to_vec()).unwrap()
    }

    #[test]
    fn what_is_told_is_heard_at_both_kinds_of_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let at_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("mcp-proxy-unit-{}", std::process::id());
        let abstracted = SocketAddr::from_abstract_name(&name).unwrap();
        let abstracted = UnixDatagram::bind_addr(&abstracted).unwrap();
        for (name, socket) in
            [(path.into_os_string(), at_path), (format!("@{name}").into(), abstracted)]
        {
            let manager = Manager::at(Some(name));
            manager.ready("serving\nREADY=0");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=serving READY=0");
            let before = clock_gettime(ClockId::Monotonic).tv_sec as u64;
            manager.reloading();
            let told = heard(&socket);
            let lines: Vec<&str> = told.lines().collect();
            let micros = lines[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse::<u64>().unwrap();
            assert_eq!(lines[0], "RELOADING=1");
            assert!((before..before + 60).contains(&(micros / 1_000_000)), "{told}");
            manager.status("x");
            assert_eq!(heard(&socket), "STATUS=x");
            manager.stopping();
            assert!(heard(&socket).starts_with("STOPPING=1\n"));
        }
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        for name in [None, Some(""), Some("relative")] {
            let manager = Manager::at(name.map(OsString::from));
            assert!(manager.0.is_none(), "{name:?}");
            manager.ready("x");
        }
        // One that comes later hears the next word.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = Manager::at(Some(path.clone().into_os_string()));
        manager.ready("x");
        let late = UnixDatagram::bind(&path).unwrap();
        manager.status("y");
        assert_eq!(heard(&late), "STATUS=y");
    }
}
