//! Owns: when requests are due at a fixed rate, whatever the answers do.
//! Never: a request left out because the server was slow. What finds no free connection waits, and
//! its latency counts from when it was due: a stall is seen by all who would have met it, not only
//! by those who were in it (that is coordinated omission).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Of the timer, beside those of connections.
pub(crate) const TIMER: Token = Token(usize::MAX - 2);

pub(crate) struct Pace {
    timer: OwnedFd,
    /// Between two requests.
    interval: f64,
    began: Option<Instant>,
    issued: u64,
    /// No request is due from then on.
    end: Option<Instant>,
    waiting: VecDeque<Instant>,
    idle: VecDeque<usize>,
}

impl Pace {
    pub(crate) fn new(rate: f64, poll: &Poll) -> io::Result<Pace> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        let mut source = SourceFd(&timer.as_raw_fd());
        poll.registry().register(&mut source, TIMER, Interest::READABLE)?;
        Ok(Pace {
            timer,
            interval: 1.0 / rate,
            began: None,
            issued: 0,
            end: None,
            waiting: VecDeque::new(),
            idle: VecDeque::new(),
        })
    }

    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    pub(crate) fn end(&mut self, now: Instant) {
        self.end.get_or_insert(now);
    }

    /// A connection that could take a request.
    pub(crate) fn free(&mut self, client: usize) {
        self.idle.push_back(client);
    }

    /// The request that was due first, and a connection for it, if there are both.
    pub(crate) fn next(&mut self) -> Option<(usize, Instant)> {
        if self.waiting.is_empty() || self.idle.is_empty() {
            return None;
        }
        Some((self.idle.pop_front()?, self.waiting.pop_front()?))
    }

    /// Requests that are due and not sent.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the connections that have nothing to do, once nothing more is to come.
    pub(crate) fn release(&mut self) -> impl Iterator<Item = usize> + '_ {
        let over = self.end.is_some() && self.waiting.is_empty();
        let count = if over { self.idle.len() } else { 0 };
        self.idle.drain(..count)
    }

    /// Notes what is due by now, and sets the timer for what comes next.
    pub(crate) fn turn(&mut self, now: Instant) -> io::Result<()> {
        let Some(began) = self.began.filter(|_| self.end.is_none()) else { return Ok(()) };
        loop {
            // From the start anew, so that errors do not add up.
            let due = began + Duration::from_secs_f64(self.issued as f64 * self.interval);
            if due > now {
                let wait = due - now;
                let value = Timespec {
                    tv_sec: wait.as_secs() as i64,
                    tv_nsec: i64::from(wait.subsec_nanos().max(1)),
                };
                let once = Timespec { tv_sec: 0, tv_nsec: 0 };
                let spec = Itimerspec { it_interval: once, it_value: value };
                timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
                return Ok(());
            }
            self.waiting.push_back(due);
            self.issued += 1;
        }
    }
}
