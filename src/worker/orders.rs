//! Owns: what may be said to a worker.
//! Never: the mailboxes themselves (`rt::mailbox`).
//! Next: `accept`.

use std::os::fd::OwnedFd;

use crate::backend::BackendMail;
use crate::telemetry::desk::Reply;
use crate::world::SessionMail;

/// Mail for a worker.
pub enum Mail {
    /// From another worker, about backends.
    Backend(BackendMail),
    /// From another worker, about client sessions.
    Session(SessionMail),
    /// From the control thread: the answer to a question.
    Told(u64, Reply),
    /// From the program that embeds the proxy: a connection that it has made, one end of a pair of
    /// stream sockets.
    Inside(OwnedFd),
    /// From the same: take no connections but those.
    StopListening,
    /// From the control thread: finish what is in flight, then end.
    Drain,
}
