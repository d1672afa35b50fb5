//! Owns: the way into the workers for the program that embeds the proxy: connections of this process.
//! Never: on a worker; threads of the program wait here for each other, for a moment.
//! Next: `log_level`, what a level of the log may say.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::limits;
use crate::rt::mailbox::Outbox;
use crate::worker::orders::Mail;

/// Mail from any thread of the program to every worker.
pub(super) struct Entrance {
    outbox: Mutex<Outbox<Mail>>,
    workers: usize,
    /// Connections so far: they go round.
    next: AtomicUsize,
}

impl Entrance {
    pub(super) fn new(outbox: Outbox<Mail>) -> Entrance {
        let workers = outbox.len();
        Entrance { outbox: Mutex::new(outbox), workers, next: AtomicUsize::new(0) }
    }

    /// One end of a connection whose other end a worker serves.
    ///
    /// # Errors
    /// No descriptors are left; `NotConnected`: no worker takes it, since all are busy or gone.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut mail = Mail::Inside(theirs.into());
        for n in 0..self.workers {
            match self.send(first.wrapping_add(n) % self.workers, mail) {
                Ok(()) => return Ok(ours),
                Err(back) => mail = back,
            }
        }
        Err(io::Error::new(io::ErrorKind::NotConnected, "no worker takes a connection"))
    }

    /// No worker takes connections from outside any more.
    pub(super) fn stop_listening(&self) {
        for worker in 0..self.workers {
            // A full box is emptied within a turn of its worker; one that is gone listens no more.
            for _ in 0..limits::ORDER_TRIES {
                if self.send(worker, Mail::StopListening).is_ok() {
                    break;
                }
                std::thread::sleep(limits::ORDER_PAUSE);
            }
        }
    }

    fn send(&self, worker: usize, mail: Mail) -> Result<(), Mail> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).send(worker, mail)
    }
}
