//! Owns: the choice of the event loop of a thread, and running a future on it.
//! Never: threads; each worker calls [`Driver::run`] on its own.
//! Next: `busy_poll`, what the loop does before it sleeps.

use std::fmt;
use std::future::Future;
use std::io;

use super::alarm;
use io_uring::{IoUring, Probe, opcode};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Submission entries of a ring. A full queue is flushed to the kernel, so this bounds a batch,
/// not the operations in flight.
const ENTRIES: u32 = 1024;

/// The operations that the runtime submits; a kernel without one of them is no ring for us.
const OPERATIONS: [u8; 12] = [
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::Connect::CODE,
    opcode::PollAdd::CODE,
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::Timeout::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
];

/// The kinds of event loop, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring that does its work on our own system calls only: 0.76 to 0.83 of the CPU of the
    /// plain ring. Linux 6.0.
    TunedRing,
    /// io_uring without the flags: no cheaper than epoll, but without its limits.
    Ring,
    /// epoll: always there; container profiles often forbid the others.
    Epoll,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::TunedRing => "io_uring (coop taskrun, single issuer)",
            Driver::Ring => "io_uring",
            Driver::Epoll => "epoll",
        })
    }
}

impl Driver {
    /// The best driver that works here, with the reasons why better ones were not taken.
    ///
    /// # Errors
    /// When `forced` names a driver that does not work here: a forced choice never falls back.
    pub fn choose(forced: Option<Driver>) -> io::Result<(Driver, Vec<String>)> {
        if let Some(driver) = forced {
            driver.probe().map_err(|e| io::Error::new(e.kind(), format!("{driver}: {e}")))?;
            return Ok((driver, Vec::new()));
        }
        let mut reasons = Vec::new();
        for driver in [Driver::TunedRing, Driver::Ring] {
            match driver.probe() {
                Ok(()) => return Ok((driver, reasons)),
                Err(e) => reasons.push(format!("{driver}: {e}")),
            }
        }
        Ok((Driver::Epoll, reasons))
    }

    /// Runs `future` on this thread until it is done; its tasks run beside it and are dropped or
    /// forgotten when it ends.
    ///
    /// # Errors
    /// When the event loop cannot be built. Panics of `future` itself pass through, unlike those
    /// of spawned tasks.
    pub fn run<F: Future>(self, future: F) -> io::Result<F::Output> {
        alarm::begin();
        match self {
            Driver::TunedRing | Driver::Ring => Ok(RuntimeBuilder::<IoUringDriver>::new()
                .uring_builder(self.builder())
                .with_entries(ENTRIES)
                .enable_timer()
                .build()?
                .block_on(future)),
            Driver::Epoll => Ok(RuntimeBuilder::<LegacyDriver>::new()
                .with_entries(ENTRIES)
                .enable_timer()
                .build()?
                .block_on(future)),
        }
    }

    fn builder(self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        if self == Driver::TunedRing {
            builder.setup_coop_taskrun().setup_single_issuer();
        }
        builder
    }

    /// Whether the driver works in this process, by building one and asking what it can.
    fn probe(self) -> io::Result<()> {
        if self == Driver::Epoll {
            return Ok(());
        }
        let ring = self.builder().build(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        match OPERATIONS.iter().find(|code| !probe.is_supported(**code)) {
            None => Ok(()),
            Some(code) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel lacks ring operation {code}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{sys, time};
    use std::time::Duration;

    #[test]
    fn epoll_works_everywhere() {
        let (driver, reasons) = Driver::choose(Some(Driver::Epoll)).unwrap();
        assert_eq!((driver, reasons.len()), (Driver::Epoll, 0));
        assert_eq!(driver.run(async { 7 }).unwrap(), 7);
    }

    #[test]
    fn the_choice_runs() {
        let (driver, reasons) = Driver::choose(None).unwrap();
        let better = match driver {
            Driver::TunedRing => 0,
            Driver::Ring => 1,
            Driver::Epoll => 2,
        };
        assert_eq!(reasons.len(), better, "one reason per driver not taken: {reasons:?}");
        driver.run(time::sleep(Duration::from_millis(1))).unwrap();
    }

    /// Default container profiles answer EPERM to io_uring_setup.
    #[test]
    fn forbidden_rings_fall_back_to_epoll() {
        // The filter holds for the thread and dies with it.
        std::thread::spawn(|| {
            sys::testing::forbid_rings().unwrap();
            let (driver, reasons) = Driver::choose(None).unwrap();
            assert_eq!(driver, Driver::Epoll);
            assert_eq!(reasons.len(), 2, "{reasons:?}");
            assert!(reasons[0].starts_with("io_uring (coop"), "{reasons:?}");
            let error = Driver::choose(Some(Driver::TunedRing)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let elapsed = driver.run(async {
                time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await
            });
            assert_eq!(elapsed.unwrap(), Err(time::Elapsed));
        })
        .join()
        .unwrap();
    }
}
