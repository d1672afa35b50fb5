//! Owns: the only code that names the runtime: event loop, sockets, children, timers, tasks, and
//! the ways between tasks and between threads.
//! Never: what the bytes mean; bounds (`limits`); anything of the proxy above it.
//! Next: `sys`, what it asks of the system.
//!
//! One thread, one loop. What is `!Send` here stays on the thread that made it; only [`mailbox`],
//! [`blocking`] and the spawner of [`child`] cross threads. Four rules that the loop imposes:
//! a dropped read loses bytes and a dropped accept leaks a socket, so I/O is awaited to its end or
//! its connection is closed; a panic would end the thread, so tasks start through [`spawn`]; timers
//! fire only when the run queue runs dry, so nothing may wake itself in a circle (but [`busy_poll`],
//! for a millisecond) and a long job pauses through [`Breath`]; timers are exact to a millisecond.

mod sys;

pub mod alarm;
pub mod busy_poll;
pub mod child;
mod driver;
pub mod wide;

pub mod net;
pub mod time;

pub mod local;
mod race;
mod spawn;

pub mod spare;

mod bell;
pub mod blocking;
pub mod mailbox;
pub mod outlet;
pub mod signals;

pub use bell::Breath;
pub use driver::Driver;
pub use race::{Either, at_once, join, race};
pub use spawn::{panics, spawn};
pub use sys::Place;

#[cfg(test)]
pub(crate) mod testing {
    //! Running a test on every driver that this machine has.

    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use super::Driver;

    /// Far beyond what any test takes; a hang must not look like a slow machine.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Runs `test` on a loop of its own per driver; a panic, or no end in a minute, fails.
    pub(crate) fn everywhere(test: impl AsyncFn() + Clone + Send + 'static) {
        for driver in [Driver::TunedRing, Driver::Ring, Driver::Epoll] {
            if Driver::choose(Some(driver)).is_err() {
                continue;
            }
            let test = test.clone();
            let (done, ended) = channel();
            let thread = std::thread::spawn(move || {
                driver.run(async { test().await }).expect("the driver works");
                let _ = done.send(());
            });
            match ended.recv_timeout(LIMIT) {
                Ok(()) => thread.join().expect("it has said that it ended well"),
                Err(RecvTimeoutError::Timeout) => panic!("no end on {driver}"),
                Err(RecvTimeoutError::Disconnected) => {
                    let payload = thread.join().expect_err("it dropped its end");
                    eprintln!("failed on {driver}");
                    std::panic::resume_unwind(payload);
                }
            }
        }
    }
}
