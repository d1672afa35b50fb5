//! Laws of the table of sessions, with two workers, mail between them that comes late or not at all,
//! and a clock that jumps:
//! - a session is found by every worker until it is deleted or idle for too long, and by none from
//!   then on; what is found is the session that was opened under that id;
//! - one in use is never swept, and one that nobody uses always is;
//! - the count of all workers is exact, and never over its bound;
//! - a cancellation reaches the calls of its own session and id, on every worker, and no other;
//! - the end of a session cancels its calls, and nobody else's.
#![no_main]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mcp_proxy::backend::health::Board;
use mcp_proxy::backend::{Backends, CallHandle, Post};
use mcp_proxy::error::Kind;
use mcp_proxy::mcp::revision::Revision;
use mcp_proxy::mcp::session::{SessionId, SessionRecord};
use mcp_proxy::plan::{Plan, WorkerId};
use mcp_proxy::rt::{Driver, join};
use mcp_proxy::telemetry::Switch;
use mcp_proxy::telemetry::desk::Desk;
use mcp_proxy::telemetry::metrics::{Meter, Metrics};
use mcp_proxy::world::{Counts, InFlight, Lasting, SessionMail, SessionPost, World};
use mcp_proxy_fuzz::plan;

const WORKERS: usize = 2;
/// A session notes its use about once a second.
const GRAIN: Duration = Duration::from_millis(1500);

fuzz_target!(|data: &[u8]| {
    Driver::Epoll.run(play(data)).expect("a loop");
});

/// What must be true of a session that was opened.
struct Expected {
    record: Arc<SessionRecord>,
    used: Instant,
    /// Its client has deleted it.
    deleted: bool,
    /// Its owner has let go of it.
    gone: bool,
}

struct Call {
    worker: WorkerId,
    session: SessionId,
    id: [u8; 1],
    handle: Rc<CallHandle>,
    _entered: InFlight,
    cancelled: bool,
}

struct Stage {
    plan: Arc<Plan>,
    counts: Arc<Counts>,
    worlds: Vec<Rc<World>>,
    mail: Rc<RefCell<VecDeque<(WorkerId, WorkerId, SessionMail)>>>,
    /// Boxes take nothing but answers.
    full: Rc<Cell<bool>>,
    now: Instant,
    sessions: Vec<Expected>,
    calls: Vec<Call>,
}

async fn play(data: &[u8]) {
    let mut stage = Stage::new();
    for step in data.chunks_exact(2) {
        let (op, argument) = (step[0] & 15, usize::from(step[1]));
        let worker = usize::from(step[0] >> 4) % WORKERS;
        match op {
            0 | 1 => stage.open(worker, argument),
            2 => stage.now += Duration::from_secs(argument as u64),
            3 => stage.now += Duration::from_millis(argument as u64 * 10),
            4 => stage.touch(argument),
            5 => stage.delete(worker, argument),
            6 => stage.sweep(worker),
            7 => {
                stage.deliver(argument % 8);
            }
            8 | 9 => stage.look(worker, argument).await,
            10 => stage.look_for_strangers(worker, argument).await,
            11 => stage.full.set(argument & 1 == 1),
            12 => stage.enter(worker, argument),
            13 => stage.cancel(worker, argument),
            _ => stage.roll_call(worker).await,
        }
        stage.end_calls();
        stage.check();
    }
}

impl Stage {
    fn new() -> Stage {
        let plan = Arc::new(plan(WORKERS, &[]));
        let counts: Arc<Counts> = Arc::default();
        let mail: Rc<RefCell<VecDeque<_>>> = Rc::default();
        let full: Rc<Cell<bool>> = Rc::default();
        let board = Board::new(WORKERS, 0, Box::new(|_| {}));
        let metrics = Metrics::new(false, WORKERS, Vec::new(), &["other"]);
        let worlds = (0..WORKERS).map(|me| {
            let (mail, full) = (mail.clone(), full.clone());
            let post: SessionPost = Rc::new(move |to, message| {
                let answer = matches!(message, SessionMail::Told { .. } | SessionMail::Roll { .. });
                if full.get() && !answer {
                    return Err(message);
                }
                mail.borrow_mut().push_back((me, to, message));
                Ok(())
            });
            let nowhere: Post = Rc::new(|_, mail| Err(mail));
            let backends = Backends::new(me, &plan, nowhere, board.clone(), Box::new(|_, _| {}));
            let (meter, desk) = (Meter::new(&metrics, me), Desk::new(Box::new(Err)));
            let counts = counts.clone();
            let lasting = Lasting::new(me, WORKERS, backends, counts, post, meter, desk, None);
            World::enter(&lasting, plan.clone(), Switch::default(), None)
        });
        let worlds = worlds.collect();
        let now = Instant::now();
        Stage { plan, counts, worlds, mail, full, now, sessions: Vec::new(), calls: Vec::new() }
    }

    fn open(&mut self, worker: usize, argument: usize) {
        let principal = [None, Some("a"), Some("b")][argument % 3].map(Arc::from);
        let made = self.worlds[worker].open_session(principal.as_ref(), |id| {
            SessionRecord::new(id, Revision::ALL[0], principal.clone(), "{}".into(), "{}".into())
        });
        let room = self.counted() < self.plan.sessions_max;
        assert_eq!(made.is_ok(), room);
        let Ok(record) = made else { return };
        assert_eq!(record.id.owner(), worker);
        assert!(self.sessions.iter().all(|known| known.record.id != record.id));
        record.touch(self.now);
        let used = self.now;
        self.sessions.push(Expected { record, used, deleted: false, gone: false });
    }

    /// Sessions that their owners still have.
    fn counted(&self) -> usize {
        self.sessions.iter().filter(|session| !session.gone).count()
    }

    fn pick(&self, argument: usize) -> Option<usize> {
        (!self.sessions.is_empty()).then(|| argument % self.sessions.len())
    }

    fn touch(&mut self, argument: usize) {
        let Some(at) = self.pick(argument) else { return };
        let session = &mut self.sessions[at];
        session.record.touch(self.now);
        session.used = self.now;
    }

    fn delete(&mut self, worker: usize, argument: usize) {
        let Some(at) = self.pick(argument) else { return };
        let session = &mut self.sessions[at];
        // Only who has found it can delete it.
        if session.deleted || session.gone {
            return;
        }
        session.deleted = true;
        session.gone = session.record.id.owner() == worker;
        let record = session.record.clone();
        self.worlds[worker].delete_session(&record);
        assert!(record.ended());
    }

    fn sweep(&mut self, worker: usize) {
        self.worlds[worker].sweep(self.now);
        let limit = self.plan.session_idle;
        // A call under way is use, where its worker knows the session.
        for call in self.calls.iter().filter(|call| call.worker == worker) {
            let mut sessions = self.sessions.iter_mut();
            if let Some(session) = sessions.find(|known| known.record.id == call.session) {
                session.used = session.used.max(self.now - session.record.idle(self.now));
            }
        }
        for session in &mut self.sessions {
            if session.gone || session.record.id.owner() != worker {
                continue;
            }
            let idle = self.now.saturating_duration_since(session.used);
            let ended = session.record.ended();
            assert!(ended || idle <= limit + GRAIN, "idle for {idle:?}, and there");
            assert!(
                !ended || session.deleted || idle + GRAIN > limit,
                "used {idle:?} ago, and gone"
            );
            session.gone = ended;
        }
    }

    /// Hands mail over; the owner of a deleted session learns of it so.
    fn deliver(&mut self, most: usize) {
        for _ in 0..most {
            let Some((from, to, mail)) = self.mail.borrow_mut().pop_front() else { return };
            if let SessionMail::Delete { id } = &mail {
                let mut known = self.sessions.iter_mut();
                if let Some(session) = known.find(|session| session.record.id == *id) {
                    session.gone = true;
                }
            }
            self.worlds[to].receive(from, mail);
        }
    }

    /// Waits for what a worker asks another one, while mail is handed over.
    async fn asking<T>(&mut self, ask: impl Future<Output = T>) -> T {
        let deliver = async {
            self.deliver(usize::MAX);
        };
        join(ask, deliver).await.0
    }

    async fn look(&mut self, worker: usize, argument: usize) {
        let Some(at) = self.pick(argument) else { return };
        let record = self.sessions[at].record.clone();
        let world = self.worlds[worker].clone();
        let found = self.asking(world.session(record.id)).await;
        match found {
            Ok(found) => assert!(Arc::ptr_eq(&found, &record) && !record.ended()),
            Err(error) if error.kind() == Kind::SessionNotFound => assert!(record.ended()),
            // The owner could not be asked.
            Err(error) => {
                assert_eq!(error.kind(), Kind::Capacity);
                assert!(self.full.get() && record.id.owner() != worker);
            }
        }
    }

    async fn look_for_strangers(&mut self, worker: usize, argument: usize) {
        let owner = argument % (WORKERS + 1);
        let id = SessionId::mint(owner, [argument as u8; 16]);
        let world = self.worlds[worker].clone();
        let found = self.asking(world.session(id)).await;
        let kind = found.err().map(|error| error.kind());
        let unasked = self.full.get() && owner != worker && owner < WORKERS;
        assert_eq!(kind, Some(if unasked { Kind::Capacity } else { Kind::SessionNotFound }));
    }

    fn enter(&mut self, worker: usize, argument: usize) {
        let Some(at) = self.pick(argument & 15) else { return };
        let (session, id) = (self.sessions[at].record.id, [b'0' + (argument >> 4) as u8 % 4]);
        if self.sessions[at].record.ended() {
            return;
        }
        // A client that uses an id twice at once gives up the first.
        if self.calls.len() > 16
            || self.calls.iter().any(|call| (call.session, call.id) == (session, id))
        {
            return;
        }
        let handle = Rc::new(CallHandle::new());
        let entered = self.worlds[worker].enter_call(session, &id, handle.clone());
        self.calls.push(Call { worker, session, id, handle, _entered: entered, cancelled: false });
    }

    fn cancel(&mut self, worker: usize, argument: usize) {
        let Some(at) = self.pick(argument & 15) else { return };
        let (session, id) = (self.sessions[at].record.id, [b'0' + (argument >> 4) as u8 % 4]);
        self.worlds[worker].cancel(session, &id, None);
        let full = self.full.get();
        self.deliver(usize::MAX);
        for call in &mut self.calls {
            let reached = !full || call.worker == worker;
            call.cancelled |= (call.session, call.id) == (session, id) && reached;
        }
        self.end_calls();
        self.calls.retain(|call| {
            assert_eq!(call.handle.is_cancelled(), call.cancelled);
            !call.cancelled
        });
    }

    /// Those of sessions that have ended: at once where the session was, elsewhere when that is heard.
    fn end_calls(&mut self) {
        let sessions = &self.sessions;
        self.calls.retain(|call| {
            let its = sessions.iter().find(|known| known.record.id == call.session);
            let Some(session) = its.filter(|session| session.record.ended()) else { return true };
            let is_home = call.session.owner() == call.worker;
            assert!(!(is_home && session.gone) || call.handle.is_cancelled());
            !call.handle.is_cancelled()
        });
    }

    async fn roll_call(&mut self, worker: usize) {
        if self.full.get() {
            return;
        }
        let world = self.worlds[worker].clone();
        let all = self.asking(world.all_sessions()).await;
        let alive = self.sessions.iter().filter(|session| !session.record.ended());
        assert_eq!(all.len(), alive.count());
        assert!(all.iter().all(|record| !record.ended()));
    }

    fn check(&self) {
        assert_eq!(self.counts.sessions.load(Ordering::Acquire), self.counted());
        assert!(self.counted() <= self.plan.sessions_max);
        for session in &self.sessions {
            assert_eq!(session.record.ended(), session.deleted || session.gone);
        }
        for call in &self.calls {
            assert!(!call.handle.is_cancelled());
        }
    }
}
