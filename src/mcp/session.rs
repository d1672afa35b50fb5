//! Owns: client sessions of the session era: their ids and what never changes about them.
//! Never: connections, backends, who holds the table (`worker`).
//! Next: `event`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;

use super::capable;
use super::logging::Level;
use super::revision::Revision;
use crate::plan::{BackendId, WorkerId, slot};

/// Uses of a session within this time are noted once: a store for each would cost every call.
const TOUCH_GRAIN_MS: u64 = 1000;

/// Unguessable name of a client session: 128 random bits, and the worker that owns it.
///
/// On the wire: four hexadecimal digits of the owner, then 32 of the random part. The owner digits
/// are no secret and give no right: a wrong one names a session that does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    random: [u8; 16],
    owner: u16,
}

/// The value of each hexadecimal digit in lower case; 255 for what is none.
static DIGITS: [u8; 256] = {
    let mut digits = [255; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

impl SessionId {
    /// Length on the wire, in bytes.
    pub const WIRE_LEN: usize = 36;

    /// A new id.
    pub fn mint(owner: WorkerId, random: [u8; 16]) -> SessionId {
        SessionId { random, owner: u16::try_from(owner).expect("at most 512 workers") }
    }

    /// Reads the wire form; `None` if it is not exactly that.
    pub fn parse(wire: &[u8]) -> Option<SessionId> {
        let wire: &[u8; Self::WIRE_LEN] = wire.try_into().ok()?;
        let mut bytes = [0u8; 18];
        // Judged once, at the end: a turn at each digit would cost more than the digits.
        let mut bad = 0;
        for (byte, pair) in bytes.iter_mut().zip(wire.as_chunks::<2>().0) {
            let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
            bad |= high | low;
            *byte = high << 4 | low & 15;
        }
        if bad > 15 {
            return None;
        }
        let mut random = [0u8; 16];
        random.copy_from_slice(&bytes[2..]);
        Some(SessionId { random, owner: u16::from_be_bytes([bytes[0], bytes[1]]) })
    }

    /// A name for logs and admin answers, from which the id cannot be found: 16 hexadecimal digits.
    pub fn public(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.random);
        digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The worker whose table holds it.
    pub fn owner(&self) -> WorkerId {
        usize::from(self.owner)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.owner)?;
        self.random.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    /// Only the owner and the first two bytes: an id must not be readable from a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}/{:02x}{:02x}..)", self.owner, self.random[0], self.random[1])
    }
}

/// A client's `Authorization`, whole, for backends with `forward_auth`. It never prints.
pub struct Authorization(pub String);

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What any worker may know of a session. Immutable but for single atomics: a worker that holds a
/// copy sees the end of the session at once, the owner sees that it is in use, and all see which log
/// messages it wants, and when a backend said in this very session that its lists changed.
#[derive(Debug)]
pub struct SessionRecord {
    /// Its name.
    pub id: SessionId,
    /// Negotiated at `initialize`.
    pub revision: Revision,
    /// To whom alone it belongs; `None` without `[auth]`.
    pub principal: Option<Arc<str>>,
    /// `params.capabilities` of the client's `initialize`, as it was sent: a JSON object.
    pub capabilities: Box<str>,
    /// `params.clientInfo`, as it was sent: a JSON object.
    pub client_info: Box<str>,
    /// Of its last request, if a backend is to get it.
    authorization: ArcSwapOption<Authorization>,
    /// What kind of client it is: see [`capable::class`].
    pub class: Arc<str>,
    /// By a backend's place: how often its lists changed for this session.
    changes: Box<[AtomicU32]>,
    /// Whether any of them did.
    changed: AtomicBool,
    /// See [`SessionRecord::listens`].
    listens: AtomicBool,
    ended: AtomicBool,
    /// Milliseconds since `born`.
    seen: AtomicU64,
    /// A [`Level`], or 0: none was asked for.
    level: AtomicU8,
    born: Instant,
}

impl SessionRecord {
    /// A session that begins now.
    pub fn new(
        id: SessionId,
        revision: Revision,
        principal: Option<Arc<str>>,
        capabilities: Box<str>,
        client_info: Box<str>,
    ) -> SessionRecord {
        SessionRecord {
            id,
            revision,
            principal,
            authorization: ArcSwapOption::empty(),
            class: capable::class(&capabilities).into(),
            capabilities,
            client_info,
            changes: Box::default(),
            changed: AtomicBool::new(false),
            listens: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            level: AtomicU8::new(0),
            born: Instant::now(),
        }
    }

    /// With room to note list changes of the backends in that many places; those beyond share one
    /// place. Without, none are.
    pub fn among(mut self, places: usize) -> SessionRecord {
        self.changes = (0..=places).map(|_| AtomicU32::new(0)).collect();
        self
    }

    /// What is noted of two backends in one place is noted of both: then a list is read anew that
    /// need not be.
    fn changes_of(&self, backend: BackendId) -> Option<&AtomicU32> {
        self.changes.get(slot(backend)).or(self.changes.last())
    }

    /// A backend said in this session that its lists changed, so the session has a view of its own.
    pub fn lists_changed(&self, backend: BackendId) {
        if let Some(changes) = self.changes_of(backend) {
            changes.fetch_add(1, Ordering::AcqRel);
            self.changed.store(true, Ordering::Release);
        }
    }

    /// How often [`SessionRecord::lists_changed`] was said of a backend.
    pub fn list_changes(&self, backend: BackendId) -> u32 {
        self.changes_of(backend).map_or(0, |changes| changes.load(Ordering::Acquire))
    }

    /// Its client has an event stream open, or none any more.
    pub fn set_listens(&self, listens: bool) {
        self.listens.store(listens, Ordering::Release);
    }

    /// Whether its client has an event stream open, as far as is known.
    pub fn listens(&self) -> bool {
        self.listens.load(Ordering::Acquire)
    }

    /// Whether backends may show this session other lists than they show the proxy.
    pub fn may_see_other_lists(&self) -> bool {
        !self.class.is_empty() || self.changed.load(Ordering::Acquire)
    }

    /// Whether it sees all backends as clients of its kind do.
    pub fn sees_as_its_kind(&self) -> bool {
        !self.changed.load(Ordering::Acquire)
    }

    /// Marks the session as used; written only when it changes, to spare the cache line.
    pub fn touch(&self, now: Instant) {
        let now = now.saturating_duration_since(self.born).as_millis() as u64;
        if now > self.seen.load(Ordering::Relaxed) + TOUCH_GRAIN_MS {
            self.seen.store(now, Ordering::Relaxed);
        }
    }

    /// How long nobody used it, for sure: up to a second less than it was, never more.
    pub fn idle(&self, now: Instant) -> std::time::Duration {
        let now = now.saturating_duration_since(self.born);
        let seen = self.seen.load(Ordering::Relaxed) + TOUCH_GRAIN_MS;
        now.saturating_sub(std::time::Duration::from_millis(seen))
    }

    /// Remembers what its client showed last, for messages that belong to no request.
    pub fn show(&self, authorization: Option<&Arc<Authorization>>) {
        let known = self.authorization.load();
        if known.as_ref().map(|known| &known.0) != authorization.map(|new| &new.0) {
            self.authorization.store(authorization.cloned());
        }
    }

    /// What its client showed last.
    pub fn authorization(&self) -> Option<Arc<Authorization>> {
        self.authorization.load_full()
    }

    /// How long ago it began.
    pub fn age(&self, now: Instant) -> std::time::Duration {
        now.saturating_duration_since(self.born)
    }

    /// The client wants log messages from this level on.
    pub fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Release);
    }

    /// The level that the client asked for, if it did.
    pub fn level(&self) -> Option<Level> {
        let level = self.level.load(Ordering::Acquire);
        Level::ALL.into_iter().find(|known| *known as u8 == level)
    }

    /// Ends it; true for the caller that did.
    pub fn end(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Whether it was deleted or expired.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_round_trips_and_nothing_else_parses() {
        let id = SessionId::mint(3, *b"jklmnopqrstuvwxy");
        let wire = id.to_string();
        assert_eq!(SessionId::parse(wire.as_bytes()), Some(id));
        assert_eq!(id.owner(), 3);
        // As many workers as the configuration allows.
        let last = SessionId::mint(511, *b"jklmnopqrstuvwxy");
        assert_eq!(SessionId::parse(last.to_string().as_bytes()), Some(last));
        assert_eq!(last.owner(), 511);
        assert_eq!(SessionId::parse(wire.to_uppercase().as_bytes()), None);
        assert_eq!(SessionId::parse(&wire.as_bytes()[1..]), None);
        assert_eq!(SessionId::parse(format!("{wire}0").as_bytes()), None);
    }
}
