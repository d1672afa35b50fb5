//! Owns: the backends of several workers in one loop, with servers and children to call.
//! Never: the real mailbox or the proxy's own front.
//! Next: `child`.
//!
//! Mail between the workers goes through a queue and a task, so the order of things is that of the
//! proxy; only the threads are missing.

mod child;
mod fake;
mod http;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::health::{Board, Note, State};
use super::{BackendMail, Backends, Call, CallHandle, Replies, Reply};
use crate::error::{Error, Result};
use crate::jsonrpc;
use crate::mcp::catalog::Slice;
use crate::mcp::revision::Revision;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::{
    BackendPlan, HttpPlan, Isolation, Plan, RestartPlan, SsePlan, StdioPlan, TransportPlan,
    WorkerId,
};
use crate::rt;

/// Nothing here takes nearly as long; machines that run tests may be slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// Workers, their backends, what they published.
struct World {
    workers: Vec<Rc<Backends>>,
    board: Arc<Board>,
    /// Worker, and what it was told.
    slices: Rc<RefCell<Vec<Published>>>,
    _notes: Receiver<Note>,
}

type Published = (WorkerId, Option<Arc<Slice>>);
type Mail = Rc<RefCell<VecDeque<(WorkerId, WorkerId, BackendMail)>>>;

impl World {
    /// One backend on that many workers; backend 0 is owned by worker 0.
    fn start(workers: usize, backend: BackendPlan) -> World {
        let plan = Arc::new(Plan { version: "1.2.3".into(), ..Plan::bare(workers, vec![backend]) });
        let (notes, inbox) = sync_channel(1024);
        let board = Board::new(workers, 1, Box::new(move |note| drop(notes.try_send(note))));
        let mail: Mail = Rc::default();
        let bell = Rc::new(rt::local::Notify::new());
        let slices: Rc<RefCell<Vec<Published>>> = Rc::default();
        let backends: Vec<Rc<Backends>> = (0..workers)
            .map(|me| {
                let (mail, bell, slices) = (mail.clone(), bell.clone(), slices.clone());
                Backends::new(
                    me,
                    &plan,
                    Rc::new(move |to, letter| {
                        mail.borrow_mut().push_back((me, to, letter));
                        bell.notify_all();
                        Ok(())
                    }),
                    board.clone(),
                    Box::new(move |_, slice| slices.borrow_mut().push((me, slice))),
                )
            })
            .collect();
        let all = backends.clone();
        rt::spawn("post", async move {
            loop {
                let news = bell.notified();
                loop {
                    let next = mail.borrow_mut().pop_front();
                    let Some((from, to, letter)) = next else { break };
                    all[to].on_mail(from, letter);
                }
                news.await;
            }
        });
        backends.iter().for_each(|backends| backends.start());
        World { workers: backends, board, slices, _notes: inbox }
    }

    async fn until_up(&self) {
        until("up", || self.board.state(0) == State::Up).await;
    }

    /// A call of `tools/call`, with the raw id and, if any, the raw token.
    async fn begin(&self, worker: WorkerId, ask: &Ask) -> Result<Replies> {
        let meta = match &ask.token {
            Some(token) => format!(r#","_meta":{{"progressToken":{token}}}"#),
            None => String::new(),
        };
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{},"method":"tools/call","params":{{"name":"{}","arguments":{{}}{meta}}}}}"#,
            ask.id, ask.tool
        )
        .into_bytes();
        let envelope = jsonrpc::scan(&body).unwrap();
        let call = Call {
            modern: None,
            backend: 0,
            session: ask.session.clone(),
            tool_call: true,
            tool: None,
            again: false,
            safe: ask.safe,
            id: envelope.id.unwrap(),
            progress_token: envelope.progress_token,
            body,
            timeout: ask.timeout,
            handle: ask.handle.clone(),
        };
        self.workers[worker].call(call).await
    }

    async fn call(&self, worker: WorkerId, ask: &Ask) -> Result<String> {
        let mut replies = self.begin(worker, ask).await?;
        answer(&mut replies).await
    }

    /// Whether nothing is left of any call.
    fn is_clean(&self) -> bool {
        self.board.in_flight(0) == 0
            && self.workers.iter().all(|worker| {
                worker.away.borrow().is_empty()
                    && worker.flights.borrow().is_empty()
                    && worker.seats.borrow().is_empty()
                    && worker.parked.borrow().is_empty()
                    && worker.backlog.borrow().is_empty()
            })
    }

    async fn stop(&self) {
        for worker in &self.workers {
            worker.stop().await;
            assert_eq!(worker.running.get(), 0);
        }
    }
}

/// What to call.
#[derive(Clone)]
struct Ask {
    id: String,
    token: Option<String>,
    tool: String,
    session: Option<Arc<SessionRecord>>,
    safe: bool,
    timeout: Duration,
    handle: Rc<CallHandle>,
}

fn ask(tool: &str) -> Ask {
    Ask {
        id: "1".into(),
        token: None,
        tool: tool.into(),
        session: None,
        safe: false,
        timeout: PATIENCE,
        handle: Rc::new(CallHandle::new()),
    }
}

impl Ask {
    fn id(mut self, id: &str) -> Ask {
        self.id = id.into();
        self
    }

    fn token(mut self, token: &str) -> Ask {
        self.token = Some(token.into());
        self
    }

    fn session(mut self, session: &Arc<SessionRecord>) -> Ask {
        self.session = Some(session.clone());
        self
    }

    fn safe(mut self) -> Ask {
        self.safe = true;
        self
    }

    fn timeout(mut self, timeout: Duration) -> Ask {
        self.timeout = timeout;
        self
    }

    /// The same with a fresh handle.
    fn again(&self) -> Ask {
        Ask { handle: Rc::new(CallHandle::new()), ..self.clone() }
    }
}

/// The answer after any notifications.
async fn answer(replies: &mut Replies) -> Result<String> {
    loop {
        match replies.next().await? {
            Reply::Answer(answer) => return Ok(String::from_utf8(answer).unwrap()),
            Reply::Notification(_) | Reply::Ask(_) | Reply::Away { .. } => {}
            Reply::Streaming { .. } => {
                let mut whole = Vec::new();
                while let Some(piece) = replies.chunk().await? {
                    whole.extend_from_slice(&piece);
                }
                return Ok(String::from_utf8(whole).unwrap());
            }
        }
    }
}

fn session(owner: WorkerId, number: u8) -> Arc<SessionRecord> {
    Arc::new(SessionRecord::new(
        SessionId::mint(owner, [number; 16]),
        Revision::V2025_06_18,
        None,
        "{}".into(),
        "{}".into(),
    ))
}

fn backend(transport: TransportPlan, isolation: Isolation) -> BackendPlan {
    BackendPlan {
        transport,
        protocol: crate::plan::Protocol::Legacy,
        isolation,
        startup_timeout: Duration::from_secs(20),
        restart: RestartPlan {
            initial: Duration::from_millis(20),
            max: Duration::from_millis(200),
            give_up_after: None,
        },
        call_timeout: PATIENCE,
        request_timeout: PATIENCE,
        ..BackendPlan::bare(0, "back", "back__")
    }
}

pub(super) fn http_plan(port: u16) -> HttpPlan {
    HttpPlan {
        host: "127.0.0.1".into(),
        port,
        authority: format!("127.0.0.1:{port}"),
        target: "/mcp".into(),
        header_lines: "X-Key: k\r\n".into(),
        tls: None,
        forward_auth: false,
        connections_max: 8,
        idle: Duration::from_secs(30),
        sse: SsePlan { only: false, streams_max: 2, idle_stop: Duration::from_secs(600) },
        fingerprint: 1,
    }
}

fn over_http(port: u16, isolation: Isolation) -> BackendPlan {
    backend(TransportPlan::Http(http_plan(port)), isolation)
}

fn child(script: &str, isolation: Isolation) -> BackendPlan {
    let plan = StdioPlan {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PATH".into(), std::env::var("PATH").unwrap())],
        cwd: None,
        children_max: 2,
        idle_stop: Duration::from_secs(600),
    };
    backend(TransportPlan::Stdio(plan), isolation)
}

/// Runs a test in an event loop: the best that there is, or the one that the environment names.
fn run(test: impl Future<Output = ()>) {
    let forced = (std::env::var("MCP_PROXY_TEST_DRIVER").as_deref() == Ok("epoll"))
        .then_some(rt::Driver::Epoll);
    let (driver, _) = rt::Driver::choose(forced).unwrap();
    driver.run(test).unwrap();
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not {what} in time");
        rt::time::sleep(Duration::from_millis(2)).await;
    }
}

fn kind<T: std::fmt::Debug>(outcome: Result<T>) -> crate::error::Kind {
    error(outcome).kind()
}

fn error<T: std::fmt::Debug>(outcome: Result<T>) -> Error {
    outcome.expect_err("this call must fail")
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replies")
    }
}

#[test]
fn a_call_is_small_enough_to_be_a_part_of_every_connection() {
    let fake = fake::Fake::start(|_| None);
    run(async {
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let ask = ask("echo");
        let call = size_of_val(&world.begin(0, &ask));
        let mut replies = world.begin(0, &ask).await.unwrap();
        let next = size_of_val(&replies.next());
        let next = next.max(size_of_val(&replies.chunk()));
        drop(replies);
        // Measured: 3,952 and 1,168 bytes, and the parts of `begin`.
        assert!(call <= 6 * 1024 && next <= 2 * 1024, "{call} and {next} bytes");
        world.stop().await;
    });
}
