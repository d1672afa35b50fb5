//! Owns: calls of callers without sessions whose backend asks them something in mid-call.
//! Never: client connections; a question of any other call (`asks`).
//! Next: `aside`.
//!
//! MCP 2026-07-28, Multi Round-Trip Requests. From its first question on a call lives in a task of its
//! worker. What it is asked is a result that ends the caller's request, and the call is parked until the
//! caller comes back with the answers, on whichever worker. The state that the caller brings says which
//! call it is, and is sealed with a key of this worker: with the time until which it is good, for
//! whom, and for what. A call is taken out by the first who may have it. What the backend tells
//! meanwhile waits with it: the last word about its progress, and a few others.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::handle::CallHandle;
use super::relay::{self, Word};
use super::{BackendMail, Backends, Replies, Reply, asks};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, walk};
use crate::limits;
use crate::mcp::envelope::rebuilt;
use crate::plan::WorkerId;
use crate::rt;
use crate::rt::local::{self, Notify, Receiver, Sender};
use crate::rt::{Either, race};

/// What a state is good for.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Whose call it is.
    pub principal: Option<Arc<str>>,
    /// What is called: the method, and the name or URI as the caller writes it.
    pub what: [Box<str>; 2],
}

/// A caller that comes back.
#[derive(Debug)]
pub struct Claim {
    /// As it was given to it.
    pub state: Box<str>,
    /// Who it is and what it asks for.
    pub seal: Seal,
    /// `inputResponses`: a JSON object.
    pub responses: Vec<u8>,
}

/// What comes of a call.
#[derive(Debug)]
pub enum Piece {
    /// A notification, with the token of the first request.
    Note(Vec<u8>),
    /// The backend wants input: the result to answer with. The call is parked.
    Input(Vec<u8>),
    /// The answer, with the id of the first request.
    End(Vec<u8>),
    /// There is none.
    Failed(Error),
}

/// One caller's hold on a call: dropped before the last piece it cancels the call.
pub struct Attended {
    backends: Rc<Backends>,
    /// Where the call is.
    worker: WorkerId,
    token: u64,
    pieces: Receiver<Piece>,
    over: bool,
}

impl Attended {
    /// The next piece; none follows an input, an end or a failure. Safe to drop.
    pub async fn next(&mut self) -> Piece {
        let lost = || Piece::Failed(Error::new(Kind::Internal).cause("a parked call was lost"));
        let piece = self.pieces.recv().await.unwrap_or_else(lost);
        self.over |= !matches!(piece, Piece::Note(_));
        piece
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.backends.parking.attended.borrow_mut().remove(&self.token);
        if !self.over {
            let mail = BackendMail::Leave { token: self.token };
            if self.worker == self.backends.me {
                leave(&self.backends, self.token);
            } else {
                self.backends.send(self.worker, mail);
            }
        }
    }
}

/// A key that nobody else has, to seal what callers bring back.
pub(super) fn fresh_key() -> hmac::Key {
    let mut key = [0; 32];
    let random = SystemRandom::new().fill(&mut key).is_ok();
    // At boot alone: without them nothing could be sealed.
    assert!(random, "the kernel has random bytes");
    hmac::Key::new(hmac::HMAC_SHA256, &key)
}

/// The calls of one worker that are, or were, parked; and who on this worker waits for any.
pub(super) struct Parking {
    key: hmac::Key,
    parked: RefCell<AHashMap<u64, Rc<Stay>>>,
    /// By token: calls whose caller is there.
    running: RefCell<AHashMap<u64, Rc<Stay>>>,
    attended: RefCell<AHashMap<u64, Sender<Piece>>>,
}

impl Parking {
    pub(super) fn new() -> Parking {
        Parking {
            key: fresh_key(),
            parked: RefCell::default(),
            running: RefCell::default(),
            attended: RefCell::default(),
        }
    }

    /// Text, unguessable and bound to what it is good for.
    fn state(&self, worker: WorkerId, number: u64, until: Duration, seal: &Seal) -> String {
        let mut text = format!("{worker}.{number}.{}.", until.as_millis());
        for byte in hmac::sign(&self.key, &signed(&text, seal)).as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The number of a call; `None`: not sealed here, not for this, or not good any more.
    fn opened(&self, state: &str, seal: &Seal, now: Duration) -> Option<u64> {
        let (text, mac) = state.split_at(state.rfind('.')? + 1);
        let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let mac: Option<Vec<u8>> = mac.as_bytes().chunks(2).map(digits).collect();
        hmac::verify(&self.key, &signed(text, seal), &mac?).ok()?;
        let mut parts = text.split('.').skip(1);
        let number = parts.next()?.parse().ok()?;
        let until: u64 = parts.next()?.parse().ok()?;
        (now.as_millis() <= u128::from(until)).then_some(number)
    }

    /// Whether there is room for one more call of `principal`.
    fn has_room(&self, principal: Option<&Arc<str>>) -> bool {
        let parked = self.parked.borrow();
        let its = || parked.values().filter(|stay| stay.seal.principal.as_ref() == principal);
        parked.len() < limits::PARKED_MAX
            && (principal.is_none() || its().count() < limits::PARKED_PER_PRINCIPAL_MAX)
    }
}

/// What is signed: no two meanings have the same bytes.
fn signed(text: &str, seal: &Seal) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    let principal = seal.principal.as_deref();
    out.push(u8::from(principal.is_some()));
    for part in [principal.unwrap_or_default(), &seal.what[0], &seal.what[1]] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

/// The worker that a state names; anybody may have written it.
fn worker_of(state: &str) -> Option<WorkerId> {
    state.split('.').next()?.parse().ok()
}

/// One call.
struct Stay {
    handle: Rc<CallHandle>,
    seal: Seal,
    /// What its backend asked and nobody has answered: numbers, and the requests.
    questions: RefCell<Vec<(u64, Vec<u8>)>>,
    /// Where its caller is, under which token; `None` = parked.
    caller: Cell<Option<(WorkerId, u64)>>,
    until: Cell<Duration>,
    /// Rung when its caller comes back, or never will.
    turn: Notify,
    given_up: Cell<bool>,
    /// Told while nobody was there.
    missed: RefCell<VecDeque<Vec<u8>>>,
}

impl Backends {
    /// A backend asked `question` in mid-call; from here on the call lives in a task of its own.
    pub fn ask_caller(
        self: &Rc<Self>,
        replies: Replies,
        handle: &Rc<CallHandle>,
        question: Vec<u8>,
        seal: Seal,
    ) -> Attended {
        let token = self.number();
        let stay = Rc::new(Stay {
            handle: handle.clone(),
            seal,
            questions: RefCell::default(),
            caller: Cell::new(Some((self.me, token))),
            until: Cell::default(),
            turn: Notify::new(),
            given_up: Cell::new(false),
            missed: RefCell::default(),
        });
        self.parking.running.borrow_mut().insert(token, stay.clone());
        stay.asked(self, question);
        let attended = self.wait_there(self.me, token);
        rt::spawn("asking call", live(self.clone(), stay, replies));
        attended
    }

    /// A caller comes back to a call.
    ///
    /// # Errors
    /// [`Kind::InvalidParams`]: the state names no worker. All else is the first piece.
    pub fn resume(self: &Rc<Self>, claim: Claim) -> Result<Attended> {
        let worker = worker_of(&claim.state).filter(|worker| *worker < self.workers);
        let worker = worker.ok_or_else(no_such_state)?;
        let token = self.number();
        let attended = self.wait_there(worker, token);
        if worker == self.me {
            resumed(self, self.me, token, claim);
        } else {
            self.send(worker, BackendMail::Resume { token, claim: Box::new(claim) });
        }
        Ok(attended)
    }

    fn wait_there(self: &Rc<Self>, worker: WorkerId, token: u64) -> Attended {
        let (sender, pieces) = local::queue(limits::PIECES_MAX);
        self.parking.attended.borrow_mut().insert(token, sender);
        Attended { backends: self.clone(), worker, token, pieces, over: false }
    }

    /// Whether a backend is known to speak the request era.
    pub fn is_modern(&self, backend: crate::plan::BackendId) -> bool {
        self.entry(backend).is_some_and(|entry| entry.era.get().is_modern())
    }
}

fn no_such_state() -> Error {
    Error::new(Kind::BadEnvelope).context("requestState is unknown, used or too old")
}

/// A caller on worker `from` comes back to a call of this worker.
pub(super) fn resumed(backends: &Rc<Backends>, from: WorkerId, token: u64, claim: Claim) {
    let parking = &backends.parking;
    let number = parking.opened(&claim.state, &claim.seal, backends.elapsed());
    let stay = number.and_then(|number| parking.parked.borrow_mut().remove(&number));
    let Some(stay) = stay else {
        return give(backends, (from, token), Piece::Failed(no_such_state()));
    };
    parking.running.borrow_mut().insert(token, stay.clone());
    stay.caller.set(Some((from, token)));
    for message in stay.missed.take() {
        give(backends, (from, token), Piece::Note(message));
    }
    let questions = std::mem::take(&mut *stay.questions.borrow_mut());
    for (number, question) in questions {
        let answer = walk::member(&claim.responses, &key(number))
            .map(|span| span.of(&claim.responses))
            .filter(|answer| answer.starts_with(b"{"));
        match answer {
            Some(answer) => asks::given(backends, number, answer),
            // Asked once more.
            None => stay.questions.borrow_mut().push((number, question)),
        }
    }
    stay.turn.notify_all();
}

/// A caller left.
pub(super) fn leave(backends: &Rc<Backends>, token: u64) {
    if let Some(stay) = backends.parking.running.borrow_mut().remove(&token) {
        stay.give_up("the client has left");
    }
}

/// A piece came for a caller of this worker.
pub(super) fn came(backends: &Backends, token: u64, piece: Piece) {
    let attended = backends.parking.attended.borrow();
    let Some(sender) = attended.get(&token) else { return };
    // The last place is for what ends it.
    if matches!(piece, Piece::Note(_)) && sender.len() + 1 >= limits::PIECES_MAX {
        return;
    }
    let _ = sender.try_send(piece);
}

fn give(backends: &Rc<Backends>, (worker, token): (WorkerId, u64), piece: Piece) {
    if worker == backends.me {
        came(backends, token, piece);
    } else {
        backends.send(worker, BackendMail::Piece { token, piece });
    }
}

/// Ends the calls to which nobody came back; `all`: whoever may come.
pub(super) fn sweep(backends: &Rc<Backends>, all: bool) {
    let now = backends.elapsed();
    let mut over = Vec::new();
    backends.parking.parked.borrow_mut().retain(|_, stay| {
        let keep = !all && now <= stay.until.get();
        if !keep {
            over.push(stay.clone());
        }
        keep
    });
    over.iter().for_each(|stay| stay.give_up("the client did not come back"));
}

/// The name of a question among the others.
fn key(number: u64) -> String {
    format!("ask-{number}")
}

impl Stay {
    fn give_up(&self, why: &str) {
        self.given_up.set(true);
        self.handle.cancel(Some(why.to_owned()));
        self.turn.notify_all();
    }

    /// The backend asked one more question.
    fn asked(&self, backends: &Rc<Backends>, question: Vec<u8>) {
        let Some(number) = asks::number_of(&question) else { return };
        let method = jsonrpc::scan(&question).ok();
        let method = method.and_then(|message| message.method_name(&question).map(Into::into));
        let method: String = method.unwrap_or_default();
        if matches!(&*method, "sampling/createMessage" | "elicitation/create" | "roots/list") {
            self.questions.borrow_mut().push((number, question));
        } else {
            asks::decline(backends, number);
        }
    }

    /// Whether a notification takes a question back, which is then not asked any more.
    fn withdrawn(&self, message: &[u8]) -> bool {
        let Ok(envelope) = jsonrpc::scan(message) else { return false };
        let Some(at) = envelope.request_id else { return false };
        if relay::word(&envelope, message) != Word::Withdrawn {
            return false;
        }
        let number = super::names::number(at.of(message));
        self.questions.borrow_mut().retain(|(own, _)| Some(*own) != number);
        true
    }

    /// Keeps a notification for who comes back: of its progress only the last.
    fn miss(&self, message: Vec<u8>) {
        let is_progress = |message: &[u8]| {
            let envelope = jsonrpc::scan(message).ok();
            envelope.is_some_and(|envelope| relay::word(&envelope, message) == Word::Progress)
        };
        let mut missed = self.missed.borrow_mut();
        if is_progress(&message) {
            missed.retain(|other| !is_progress(other));
        }
        let bytes: usize = missed.iter().map(Vec::len).sum();
        let is_full = missed.len() >= limits::MISSED_MAX
            || bytes + message.len() > limits::SSE_QUEUE_BYTES_MAX;
        if !is_full {
            missed.push_back(message);
        }
    }

    /// Answers the caller with what is asked, and parks the call.
    fn park(self: &Rc<Self>, backends: &Rc<Backends>) {
        let parking = &backends.parking;
        let Some(caller) = self.caller.get() else { return };
        if !parking.has_room(self.seal.principal.as_ref()) || backends.stopping.is_set() {
            for (number, _) in self.questions.take() {
                asks::decline(backends, number);
            }
            return;
        }
        let patience = limits::ASK_TIMEOUT.min(backends.plan.borrow().session_idle);
        let until = backends.elapsed() + patience;
        let number = backends.number();
        let state = parking.state(backends.me, number, until, &self.seal);
        let mut result = br#"{"resultType":"input_required","inputRequests":{"#.to_vec();
        for (at, (number, question)) in self.questions.borrow().iter().enumerate() {
            if at > 0 {
                result.push(b',');
            }
            jsonrpc::quote(&key(*number), &mut result);
            result.push(b':');
            let request = rebuilt(question.trim_ascii(), &["jsonrpc", "id"], &[]);
            result.extend_from_slice(&request);
        }
        result.extend_from_slice(br#"},"requestState":"#);
        jsonrpc::quote(&state, &mut result);
        result.push(b'}');
        self.until.set(until);
        self.caller.set(None);
        parking.running.borrow_mut().remove(&caller.1);
        parking.parked.borrow_mut().insert(number, self.clone());
        give(backends, caller, Piece::Input(result));
    }
}

/// The life of a call from its first question on.
async fn live(backends: Rc<Backends>, stay: Rc<Stay>, mut replies: Replies) {
    // When what was asked is to be shown: progress that comes meanwhile does not put it off.
    let mut due: Option<Instant> = None;
    let end = loop {
        let reply = {
            let mut next = Box::pin(replies.next());
            loop {
                let turn = stay.turn.notified();
                let asks = stay.caller.get().is_some() && !stay.questions.borrow().is_empty();
                let now = Instant::now();
                due = asks.then(|| due.unwrap_or(now + limits::ASK_TOGETHER));
                if due.is_some_and(|due| due <= now) {
                    stay.park(&backends);
                    due = None;
                    continue;
                }
                let wait = async {
                    match due {
                        Some(due) => rt::time::sleep(due.saturating_duration_since(now)).await,
                        None => turn.await,
                    }
                };
                match race(next.as_mut(), Box::pin(wait)).await {
                    Either::Left(reply) => break reply,
                    // Somebody came back, or it is time: looked at above.
                    Either::Right(()) => {}
                }
            }
        };
        match reply {
            Ok(Reply::Notification(message)) => {
                if !stay.withdrawn(&message) {
                    match stay.caller.get() {
                        Some(caller) => give(&backends, caller, Piece::Note(message)),
                        None => stay.miss(message),
                    }
                }
            }
            Ok(Reply::Ask(question)) => stay.asked(&backends, question),
            Ok(Reply::Answer(answer)) => break Piece::End(answer),
            // Answers to callers without sessions are whole.
            Ok(Reply::Streaming { .. }) => break Piece::Failed(Error::new(Kind::Internal)),
            // The rest comes all the same.
            Ok(Reply::Away { .. }) => {}
            Err(error) => break Piece::Failed(error),
        }
    };
    drop(replies);
    loop {
        let turn = stay.turn.notified();
        if stay.given_up.get() {
            return;
        }
        if let Some(caller) = stay.caller.get() {
            backends.parking.running.borrow_mut().remove(&caller.1);
            return give(&backends, caller, end);
        }
        turn.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(principal: Option<&str>, method: &str, name: &str) -> Seal {
        Seal { principal: principal.map(Arc::from), what: [method.into(), name.into()] }
    }

    #[test]
    fn what_is_parked_is_bounded_and_by_principal() {
        let parking = Parking::new();
        let park = |number: u64, principal: Option<&str>| {
            let stay = Stay {
                handle: Rc::new(CallHandle::new()),
                seal: seal(principal, "tools/call", "x"),
                questions: RefCell::default(),
                caller: Cell::new(None),
                until: Cell::default(),
                turn: Notify::new(),
                given_up: Cell::new(false),
                missed: RefCell::default(),
            };
            parking.parked.borrow_mut().insert(number, Rc::new(stay));
        };
        let (a, b) = (Some(Arc::from("a")), Some(Arc::from("b")));
        for number in 0..limits::PARKED_PER_PRINCIPAL_MAX {
            assert!(parking.has_room(a.as_ref()));
            park(number as u64, Some("a"));
        }
        assert!(!parking.has_room(a.as_ref()) && parking.has_room(b.as_ref()));
        for number in limits::PARKED_PER_PRINCIPAL_MAX..limits::PARKED_MAX {
            assert!(parking.has_room(None));
            park(number as u64, None);
        }
        assert!(!parking.has_room(None) && !parking.has_room(b.as_ref()));
    }

    #[test]
    fn a_state_is_good_for_one_caller_and_one_thing_and_some_time() {
        let (parking, other) = (Parking::new(), Parking::new());
        let (now, until) = (Duration::from_secs(5), Duration::from_secs(9));
        let own = seal(Some("a"), "tools/call", "x");
        let state = parking.state(3, 77, until, &own);
        assert_eq!(worker_of(&state), Some(3));
        assert_eq!(parking.opened(&state, &own, now), Some(77));
        assert_eq!(parking.opened(&state, &own, until + Duration::from_secs(1)), None);
        assert_eq!(other.opened(&state, &own, now), None);
        for foreign in [
            seal(Some("b"), "tools/call", "x"),
            seal(None, "tools/call", "x"),
            seal(Some("a"), "prompts/get", "x"),
            seal(Some("a"), "tools/call", "y"),
            seal(Some("at"), "ools/call", "x"),
        ] {
            assert_eq!(parking.opened(&state, &foreign, now), None, "{foreign:?}");
        }
        for at in 0..state.len() {
            let mut bytes = state.clone().into_bytes();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(parking.opened(&text, &own, now), None, "{text}");
        }
        for text in ["", ".", "3.77.9000.", "3.77.9000.zz", "é.é"] {
            assert_eq!(parking.opened(text, &own, now), None);
        }
    }
}
