//! Owns: what may be said to a worker, and what a worker says to the control thread.
//! Never: the mailboxes themselves (`rt::mailbox`).
//! Next: `accept`.

use std::net::SocketAddr;

use crate::backend::{self, BackendMail};
use crate::plan::WorkerId;
use crate::world::SessionMail;

/// Mail for a worker.
#[derive(Debug)]
pub enum Mail {
    /// From another worker, about backends.
    Backend(BackendMail),
    /// From another worker, about client sessions.
    Session(SessionMail),
    /// From the control thread: finish what is in flight, then end.
    Drain,
}

/// Said to the control thread; lost when its queue is full, as nothing depends on it.
#[derive(Debug)]
pub enum Note {
    /// The worker accepts connections at this address.
    Listening {
        /// Which worker.
        worker: WorkerId,
        /// With the port that the kernel chose.
        addr: SocketAddr,
    },
    /// Something about a backend changed.
    Backend(backend::Note),
}
