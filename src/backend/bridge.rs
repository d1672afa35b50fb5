//! Owns: backend sessions for callers that have none, so that a backend of the session era can serve
//! requests that stand alone.
//! Never: sessions that a client can name: those are `world`'s, and these are in no table of it.
//! Next: `hear`, what comes without a call.
//!
//! One for each principal, set of capabilities and name of a client: what a server may make depend on
//! its session; and where a server gets the client's own Authorization, for each of those. Each worker
//! has its own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use ring::rand::{SecureRandom, SystemRandom};

use super::entry::Entry;
use super::failure::Failure;
use super::{Backends, Caller};
use crate::error::Kind;
use crate::limits;
use crate::mcp::envelope;
use crate::mcp::revision::Revision;
use crate::mcp::session::{Authorization, SessionId, SessionRecord};

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    principal: Option<Arc<str>>,
    capabilities: Box<str>,
    client: Box<str>,
    /// SHA-256 of the Authorization that its backend gets.
    shown: Option<[u8; 32]>,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Bridges(RefCell<AHashMap<Key, Bridge>>);

#[derive(Clone)]
struct Bridge {
    record: Arc<SessionRecord>,
    uses: Rc<Cell<usize>>,
}

/// A use of such a session, which does not end for want of any meanwhile.
pub(super) struct InUse {
    pub(super) record: Arc<SessionRecord>,
    uses: Rc<Cell<usize>>,
}

impl Bridge {
    fn hold(&self) -> InUse {
        self.uses.set(self.uses.get() + 1);
        InUse { record: self.record.clone(), uses: self.uses.clone() }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.uses.set(self.uses.get() - 1);
        self.record.touch(Instant::now());
    }
}

impl Bridges {
    /// Whether a session stands for callers that have none.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.0.borrow().values().any(|bridge| bridge.record.id == session)
    }

    /// The session of a key, made if need be, and the one that made room for it.
    fn of(
        &self,
        key: Key,
        now: Instant,
        make: impl FnOnce() -> Result<SessionRecord, Failure>,
    ) -> Result<(InUse, Option<Arc<SessionRecord>>), Failure> {
        let mut all = self.0.borrow_mut();
        if let Some(bridge) = all.get(&key) {
            bridge.record.touch(now);
            return Ok((bridge.hold(), None));
        }
        let mut evicted = None;
        if all.len() >= limits::BRIDGES_MAX {
            let idle = all.iter().filter(|(_, bridge)| bridge.uses.get() == 0);
            let oldest = idle.max_by_key(|(_, bridge)| bridge.record.idle(now));
            let oldest = oldest.map(|(key, _)| key.clone()).ok_or_else(|| {
                Failure::new(Kind::Busy, "too many callers without sessions at a time")
            })?;
            evicted = all.remove(&oldest).map(|bridge| bridge.record);
        }
        let bridge = Bridge { record: Arc::new(make()?), uses: Rc::default() };
        let use_of_it = bridge.hold();
        all.insert(key, bridge);
        Ok((use_of_it, evicted))
    }

    /// Takes out those that nobody used for longer than `idle`.
    fn over(&self, now: Instant, idle: Duration) -> Vec<Arc<SessionRecord>> {
        let mut over = Vec::new();
        self.0.borrow_mut().retain(|_, bridge| {
            let keep = bridge.uses.get() > 0 || bridge.record.idle(now) <= idle;
            if !keep {
                over.push(bridge.record.clone());
            }
            keep
        });
        over
    }
}

/// The session that stands for `caller` at backends of the session era, in use.
///
/// # Errors
/// What would be kept of it is too large.
pub(super) fn record(
    backends: &Rc<Backends>,
    entry: &Entry,
    caller: &Caller,
) -> Result<InUse, Failure> {
    let authorization = caller.authorization.as_ref().filter(|_| entry.plan.forwards());
    stand_in(backends, caller, authorization)
}

/// As [`record`]; `authorization` goes to the backends that are to get it.
pub(super) fn stand_in(
    backends: &Rc<Backends>,
    caller: &Caller,
    authorization: Option<&Arc<Authorization>>,
) -> Result<InUse, Failure> {
    if caller.capabilities.len() + caller.client.len() > limits::CALLER_BYTES_MAX {
        return Err(Failure::new(Kind::Busy, "the caller's capabilities are too large to keep"));
    }
    let shown = authorization.map(|authorization| {
        let digest = ring::digest::digest(&ring::digest::SHA256, authorization.0.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    });
    let key = Key {
        principal: caller.principal.clone(),
        capabilities: caller.capabilities.clone(),
        client: caller.client.clone(),
        shown,
    };
    let (in_use, evicted) = backends.bridges.of(key, Instant::now(), || {
        let mut random = [0; 16];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Failure::new(Kind::Internal, "no random bytes"))?;
        let id = SessionId::mint(backends.me, random);
        let (who, client) = (caller.principal.clone(), caller.client.clone());
        let can = of_sessions(caller);
        let record = SessionRecord::new(id, Revision::NEWEST, who, can, client);
        record.show(authorization);
        if !record.class.is_empty() {
            // What its callers can be asked is asked on a stream of its own, too.
            backends.attended.borrow_mut().insert(record.id);
        }
        Ok(record)
    })?;
    if let Some(evicted) = evicted {
        end(backends, &evicted);
    }
    Ok(in_use)
}

/// What the session that stands for a caller says that its client can do.
fn of_sessions(caller: &Caller) -> Box<str> {
    let can = &caller.capabilities;
    let carried = match caller.tasks {
        true => envelope::carried(can.as_bytes(), &envelope::CARRIED),
        false => None,
    };
    carried.map_or_else(|| can.clone(), |carried| String::from_utf8_lossy(&carried).into())
}

fn end(backends: &Rc<Backends>, record: &Arc<SessionRecord>) {
    record.end();
    backends.end_session(record);
}

/// Ends those that nobody used for too long.
pub(super) fn sweep(backends: &Rc<Backends>, now: Instant) {
    for bridge in backends.bridges.0.borrow().values() {
        // Its caller may be about to come back with an answer.
        if backends.asks.has_open(bridge.record.id) {
            bridge.record.touch(now);
        }
    }
    for record in backends.bridges.over(now, backends.plan.borrow().session_idle) {
        end(backends, &record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        bridges: &Bridges,
        principal: Option<&str>,
        capabilities: &str,
        now: Instant,
    ) -> SessionId {
        of_shown(bridges, principal, capabilities, None, now)
    }

    fn of_shown(
        bridges: &Bridges,
        principal: Option<&str>,
        capabilities: &str,
        shown: Option<[u8; 32]>,
        now: Instant,
    ) -> SessionId {
        let principal: Option<Arc<str>> = principal.map(Arc::from);
        let key = Key {
            principal: principal.clone(),
            capabilities: capabilities.into(),
            client: "{}".into(),
            shown,
        };
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random).unwrap();
        let make = || {
            let id = SessionId::mint(0, random);
            Ok(SessionRecord::new(id, Revision::NEWEST, principal, "{}".into(), "{}".into()))
        };
        bridges.of(key, now, make).unwrap().0.record.id
    }

    #[test]
    fn one_for_each_caller_and_none_shared_between_principals() {
        let (bridges, now) = (Bridges::default(), Instant::now());
        let one = of(&bridges, Some("a"), "{}", now);
        assert_eq!(of(&bridges, Some("a"), "{}", now), one);
        for (principal, capabilities) in
            [(Some("b"), "{}"), (None, "{}"), (Some("a"), r#"{"roots":{}}"#)]
        {
            assert_ne!(of(&bridges, principal, capabilities, now), one);
        }
        assert_eq!(bridges.0.borrow().len(), 4);
        let shown = of_shown(&bridges, Some("a"), "{}", Some([1; 32]), now);
        assert_ne!(shown, one);
        assert_ne!(of_shown(&bridges, Some("a"), "{}", Some([2; 32]), now), shown);
    }

    #[test]
    fn the_idle_end_and_the_most_idle_makes_room() {
        let (bridges, now) = (Bridges::default(), Instant::now());
        for n in 0..limits::BRIDGES_MAX {
            of(&bridges, Some(&n.to_string()), "{}", now);
        }
        let later = now + Duration::from_secs(60);
        let first = of(&bridges, Some("0"), "{}", later);
        of(&bridges, Some("another"), "{}", later);
        assert_eq!(bridges.0.borrow().len(), limits::BRIDGES_MAX);
        assert_eq!(of(&bridges, Some("0"), "{}", later), first, "it was just used");
        // The new one is as old as the test, whatever time it was told.
        let over = bridges.over(later + Duration::from_secs(30), Duration::from_secs(45));
        assert_eq!(over.len(), limits::BRIDGES_MAX - 1);
        assert_eq!(of(&bridges, Some("0"), "{}", later), first);
    }
}
