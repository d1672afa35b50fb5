//! Owns: what may be said to a worker.
//! Never: the mailboxes themselves (`rt::mailbox`).
//! Next: `accept`.

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
    /// From the control thread: finish what is in flight, then end.
    Drain,
}
