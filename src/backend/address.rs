//! Owns: the addresses of one HTTP backend, as one worker knows them.
//! Never: a name lookup on the worker: it runs on a helper thread.
//! Next: `leg`, sessions with a backend.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::Instant;

use crate::limits;
use crate::rt::{self, local::Notify};

/// Where a host name leads.
pub(super) struct Addresses {
    host: String,
    port: u16,
    /// An address literal never changes.
    fixed: bool,
    /// The one that worked last stands first.
    known: RefCell<Rc<[SocketAddr]>>,
    /// When `known` was looked up; `None` = it should be looked up again.
    fresh: Cell<Option<Instant>>,
    looking: Cell<bool>,
    fault: RefCell<String>,
    done: Notify,
}

impl Addresses {
    pub(super) fn new(host: &str, port: u16) -> Rc<Addresses> {
        let literal = host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
        Rc::new(Addresses {
            host: host.to_owned(),
            port,
            fixed: literal.is_some(),
            known: RefCell::new(literal.into_iter().collect()),
            fresh: Cell::new(None),
            looking: Cell::new(false),
            fault: RefCell::new(String::new()),
            done: Notify::new(),
        })
    }

    /// All addresses, best first. Known ones are returned at once, and looked up again behind the
    /// caller's back when they are older than [`ADDRESS_TTL`](limits::ADDRESS_TTL); when that fails
    /// they stay. Safe to drop.
    ///
    /// # Errors
    /// What the lookup said, when nothing is known.
    pub(super) async fn all(self: &Rc<Self>, now: Instant) -> Result<Rc<[SocketAddr]>, String> {
        if self.fixed {
            return Ok(self.known.borrow().clone());
        }
        let fresh = self
            .fresh
            .get()
            .is_some_and(|at| now.saturating_duration_since(at) < limits::ADDRESS_TTL);
        if !fresh {
            self.look_up();
        }
        if self.known.borrow().is_empty() {
            while self.looking.get() {
                self.done.notified().await;
            }
        }
        let known = self.known.borrow().clone();
        if known.is_empty() { Err(self.fault.borrow().clone()) } else { Ok(known) }
    }

    /// `address` answered: it is tried first from now on.
    pub(super) fn prefer(&self, address: SocketAddr) {
        let mut known = self.known.borrow_mut();
        if known.first() != Some(&address)
            && let Some(at) = known.iter().position(|other| *other == address)
        {
            let mut order = known.to_vec();
            order.swap(0, at);
            *known = order.into();
        }
    }

    /// No address answered: the next call looks them up again.
    pub(super) fn doubt(&self) {
        self.fresh.set(None);
    }

    fn look_up(self: &Rc<Self>) {
        if self.looking.replace(true) {
            return;
        }
        let this = self.clone();
        rt::spawn("name lookup", async move {
            let (host, port) = (this.host.clone(), this.port);
            let found = rt::blocking::run(move || {
                (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
            })
            .await
            .and_then(|found| found);
            match found {
                Ok(found) if !found.is_empty() => this.learn(found),
                Ok(_) => *this.fault.borrow_mut() = "the name has no address".to_owned(),
                Err(fault) => *this.fault.borrow_mut() = fault.to_string(),
            }
            this.looking.set(false);
            this.done.notify_all();
        });
    }

    fn learn(&self, mut found: Vec<SocketAddr>) {
        self.fresh.set(Some(Instant::now()));
        let mut seen = Vec::with_capacity(found.len());
        found.retain(|address| {
            !seen.contains(address) && {
                seen.push(*address);
                true
            }
        });
        let mut known = self.known.borrow_mut();
        if let Some(best) = known.first()
            && let Some(at) = found.iter().position(|address| address == best)
        {
            found.swap(0, at);
        }
        *known = found.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_worked_stays_first() {
        let addresses = Addresses::new("example.invalid", 80);
        let [a, b, c] = ["127.0.0.1:80", "127.0.0.2:80", "[::1]:80"].map(|a| a.parse().unwrap());
        addresses.learn(vec![a, a, b]);
        assert_eq!(**addresses.known.borrow(), [a, b]);
        addresses.prefer(b);
        addresses.prefer(c);
        assert_eq!(**addresses.known.borrow(), [b, a]);
        addresses.learn(vec![c, a, b]);
        assert_eq!(**addresses.known.borrow(), [b, a, c]);
    }

    #[test]
    fn literals_need_no_lookup() {
        for (host, wanted) in [("127.0.0.1", "127.0.0.1:81"), ("::1", "[::1]:81")] {
            let addresses = Addresses::new(host, 81);
            assert!(addresses.fixed);
            assert_eq!(**addresses.known.borrow(), [wanted.parse().unwrap()]);
        }
    }
}
