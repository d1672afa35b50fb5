//! Owns: the signals that a person or a supervisor sends to the proxy.
//! Never: handlers, which would run in the middle of anything; signals of children (pidfd).
//! Next: `worker`, a thread with such a loop.

use std::io;
use std::time::Duration;

use super::sys;

const TAKEN: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];

/// A signal that the proxy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end in good order.
    Terminate,
    /// SIGINT: ctrl-c.
    Interrupt,
    /// SIGHUP: read the configuration again.
    HangUp,
    /// SIGUSR1.
    User1,
}

impl Signal {
    fn from_raw(signal: libc::c_int) -> Option<Signal> {
        match signal {
            libc::SIGTERM => Some(Signal::Terminate),
            libc::SIGINT => Some(Signal::Interrupt),
            libc::SIGHUP => Some(Signal::HangUp),
            libc::SIGUSR1 => Some(Signal::User1),
            _ => None,
        }
    }
}

/// Keeps the signals waiting until they are asked for. Call it first thing in `main`: threads
/// started before it would still die of them. Children are started with an empty mask again.
///
/// # Errors
/// None are known; the kernel's answer is passed on.
pub fn block() -> io::Result<()> {
    sys::block_signals(&TAKEN)
}

/// Waits for a signal, as long as it takes. Blocks the thread: for one of its own, never a worker.
///
/// # Errors
/// None are known; the kernel's answer is passed on.
pub fn wait() -> io::Result<Signal> {
    loop {
        if let Some(signal) = wait_for(Duration::from_secs(3600))? {
            return Ok(signal);
        }
    }
}

/// Waits for a signal for about `limit`; `None` if none came. Blocks the thread.
///
/// # Errors
/// None are known; the kernel's answer is passed on.
pub fn wait_for(limit: Duration) -> io::Result<Option<Signal>> {
    Ok(sys::take_signal(&TAKEN, limit)?.and_then(Signal::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signals_wait_to_be_taken() {
        // Masks and raised signals belong to the thread.
        std::thread::spawn(|| {
            block().unwrap();
            assert_eq!(wait_for(Duration::from_millis(1)).unwrap(), None);
            for (raw, signal) in [
                (libc::SIGHUP, Signal::HangUp),
                (libc::SIGTERM, Signal::Terminate),
                (libc::SIGINT, Signal::Interrupt),
                (libc::SIGUSR1, Signal::User1),
            ] {
                sys::testing::raise(raw).unwrap();
                assert_eq!(wait().unwrap(), signal);
            }
            assert_eq!(wait_for(Duration::ZERO).unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
