//! Owns: the control thread, from the start of the workers to their end, and what it hears of them.
//! Never: what a reload or a question needs (`reload`, `admin`).
//! Next: `resources`, what a start needs.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};
use std::time::Instant;

use super::admin::Office;
use super::config::ProxyConfig;
use super::crew::{Crew, Job};
use super::diagnose::Report;
use super::reload::{Numbers, Overlay, Wanted};
use super::resources::raise_descriptor_limit;
use super::scrape::Admitted;
use super::shared::{Phase, Shared};
use super::watch_file::{self, Watcher};
use super::watching::Watching;
use super::{BackendStatus, Handle, Options, ProxyError, banner, compile, jwks};
use crate::auth::Scheme;
use crate::backend::health::{Board, Note, State as Health};
use crate::limits;
use crate::plan::BackendId;
use crate::rt::Driver;
use crate::telemetry::desk::Question;
use crate::world::Counts;

/// A proxy's whole life.
pub(super) fn control(
    config: ProxyConfig,
    options: Options,
    job: &Job,
    shared: &Arc<Shared>,
) -> Result<(), ProxyError> {
    let used = watch_file::contents(config.watched());
    let mut report = Report::default();
    let Some(plan) = compile::compile(&config, &mut report).map(Arc::new) else {
        return Err(ProxyError::Config(report));
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let connections_max = raise_descriptor_limit();
    let (driver, reasons) = Driver::choose(options.driver)
        .map_err(|error| ProxyError::Start(format!("the event loop does not work: {error}")))?;
    for reason in reasons {
        tracing::warn!("not the best event loop: {reason}");
    }
    tracing::info!(workers = plan.workers, "event loop: {driver}");

    if let Some(Scheme::Jwt(jwt)) = plan.access.as_ref().and_then(|access| access.scheme.as_ref()) {
        jwks::start(&jwt.shelf)
            .map_err(|error| ProxyError::Start(format!("cannot start a thread: {error}")))?;
    }
    let statuses: Vec<BackendStatus> = plan.backends.iter().map(|b| banner::starting(b)).collect();
    shared.change(|state| state.backends = statuses);
    let (letters, inbox) = sync_channel(limits::NOTES_LEN);
    let (notes, wake) = (letters.clone(), letters.clone());
    let _ = shared.wake.set(Box::new(move || drop(wake.try_send(Letter::Wake))));
    let tell = Box::new(move |note| drop(notes.try_send(Letter::Note(note))));
    let ask: Arc<dyn Fn(Question) -> Result<(), Question> + Send + Sync> =
        Arc::new(move |question| {
            letters.try_send(Letter::Question(question)).map_err(|back| match back {
                TrySendError::Full(Letter::Question(question))
                | TrySendError::Disconnected(Letter::Question(question)) => question,
                _ => unreachable!("what was sent comes back"),
            })
        });
    let board = Board::new(plan.workers, plan.backends.len(), tell);
    let counts = Arc::new(Counts::default());
    let (watching, outlets) =
        Watching::start(&plan, &config, &shared.lines).map_err(ProxyError::Start)?;
    let kits = watching.kits(outlets, &ask);
    let handle = Handle(shared.clone());
    let watcher = Watcher::start(move || drop(handle.order(Wanted::Again)))
        .map_err(|error| ProxyError::Start(format!("cannot start a thread: {error}")))?;
    let (crew, addr) = Crew::start(&plan, driver, connections_max, &board, &counts, kits, job)
        .map_err(ProxyError::Start)?;
    if job.listens {
        tracing::info!("listening on {addr}");
    }
    shared.change(|state| {
        state.addr = Some(addr);
        state.tls = plan.listen.tls.is_some();
        state.counts = Some(counts.clone());
        state.entrance = Some(crew.entrance());
        state.phase = Phase::Serving;
    });
    watcher.watch(used);
    let office = Office {
        file: config.clone(),
        config,
        overlay: Overlay::default(),
        numbers: Numbers::of(&plan),
        leaving: Vec::new(),
        plan,
        board,
        counts,
        metrics: watching.metrics.clone(),
        shared,
        admitted: Admitted::default(),
        crew,
        watcher,
        watching,
    };
    let mut news = News { inbox, office };
    let outcome = watch(&mut news).and_then(|()| {
        tracing::info!("shutting down");
        end(&mut news)
    });
    news.office.watching.end();
    outcome
}

/// What workers write to the control thread.
enum Letter {
    Note(Note),
    Question(Question),
    /// Something is wanted that stands elsewhere.
    Wake,
}

/// Until the end is wanted, or a worker has fallen.
fn watch(news: &mut News<'_>) -> Result<(), ProxyError> {
    loop {
        news.take();
        if let Some(message) = news.office.crew.fallen() {
            tracing::error!("{message}; the proxy ends, as it can no longer be trusted");
            news.office.crew.drain();
            return Err(ProxyError::Worker(message));
        }
        news.office.obey();
        news.office.tidy();
        if news.office.shared.lock().shutdown_wanted {
            return Ok(());
        }
    }
}

/// Lets every worker finish, and gives up on those that do not.
fn end(news: &mut News<'_>) -> Result<(), ProxyError> {
    // The workers keep that limit themselves, with all that they have begun.
    let deadline = Instant::now() + news.office.plan.shutdown_timeout + limits::SHUTDOWN_SLACK;
    loop {
        let crew = &mut news.office.crew;
        crew.drain();
        if crew.is_done() {
            return match crew.fallen() {
                Some(message) => Err(ProxyError::Worker(message)),
                None => Ok(()),
            };
        }
        if Instant::now() >= deadline {
            tracing::warn!("some workers do not end: they are left behind");
            return Ok(());
        }
        news.take();
    }
}

/// What is heard of backends; they log it themselves.
struct News<'a> {
    inbox: Receiver<Letter>,
    office: Office<'a>,
}

impl Office<'_> {
    /// Does the reloads that are wanted, one after the other.
    fn obey(&mut self) {
        loop {
            let order = self.shared.lock().orders.pop_front();
            let Some(order) = order else { return };
            let wanted = order.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(wanted) = wanted {
                let outcome = self.reload(wanted);
                self.shared.change(|_| drop(order.outcome.set(outcome)));
            }
        }
    }
}

impl News<'_> {
    /// Takes in what there is, for one tick or until something has come.
    fn take(&mut self) {
        let questions = self.notes();
        for Question { worker, token, wanted } in questions {
            let answer = self.office.answer(wanted);
            self.office.crew.tell(worker, token, answer);
        }
    }

    /// Takes the notes in; the questions that came with them.
    fn notes(&mut self) -> Vec<Question> {
        let mut questions = Vec::new();
        if let Ok(first) = self.inbox.recv_timeout(limits::CONTROL_TICK) {
            let more = self.inbox.try_iter().take(limits::NOTES_LEN);
            for letter in std::iter::once(first).chain(more) {
                match letter {
                    Letter::Note(Note::Backend { id, state, tools, detail }) => {
                        self.update(id, state, tools, Some(detail));
                    }
                    Letter::Question(question) => questions.push(question),
                    Letter::Wake => {}
                }
            }
        }
        // Notes are dropped when there are too many; the board is always right.
        let Office { plan, board, .. } = &self.office;
        for id in plan.backends.iter().map(|backend| backend.id) {
            self.update(id, board.state(id), board.tools(id), None);
        }
        questions
    }

    /// Tells those who look, if it is new; without a detail the last one stays.
    fn update(&self, id: BackendId, state: Health, tools: u32, detail: Option<Option<String>>) {
        let shared = self.office.shared;
        let is_it = |known: &&mut BackendStatus| known.id == id;
        let is_news = shared.lock().backends.iter_mut().find(is_it).is_some_and(|known| {
            (known.state, known.tools) != (state, tools)
                || detail.as_ref().is_some_and(|detail| *detail != known.detail)
        });
        if is_news {
            shared.change(|shared| {
                let Some(known) = shared.backends.iter_mut().find(is_it) else { return };
                (known.state, known.tools) = (state, tools);
                if let Some(detail) = detail {
                    known.detail = detail;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::shared::State;
    use super::super::tests::{any_port, block_on};
    use super::*;

    #[test]
    fn news_of_backends_reach_those_who_wait() {
        let shared = Shared::default();
        let mut report = Report::default();
        let config = any_port();
        let plan = compile::compile(&config, &mut report).unwrap();
        let statuses = plan.backends.iter().map(|b| banner::starting(b)).collect();
        shared.change(|state| {
            state.backends = statuses;
            state.phase = Phase::Serving;
        });
        let (notes, inbox) = sync_channel(8);
        let board = Board::new(2, 2, Box::new(|_| {}));
        let (watching, _) = Watching::start(&plan, &config, &shared.lines).unwrap();
        let office = Office {
            watching,
            file: config.clone(),
            config,
            overlay: Overlay::default(),
            numbers: Numbers::of(&plan),
            leaving: Vec::new(),
            plan: Arc::new(plan),
            crew: Crew::none(),
            watcher: Watcher::default(),
            board: board.clone(),
            counts: Default::default(),
            metrics: crate::telemetry::metrics::Metrics::new(true, 2, Vec::new(), &["other"]),
            shared: &shared,
            admitted: Admitted::default(),
        };
        let mut news = News { inbox, office };
        assert_eq!(shared.wait(Some(Duration::from_millis(1)), State::settled), None);
        let note = |id, state, tools, detail: Option<&str>| Note::Backend {
            id,
            state,
            tools,
            detail: detail.map(str::to_owned),
        };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| block_on(shared.until(State::settled)));
            for state in [Health::Up, Health::Backoff] {
                news.update(usize::from(state != Health::Up), state, 3, Some(Some("x\ny".into())));
            }
            waiter.join().unwrap();
        });
        let shown = banner::status(&shared.lock().backends);
        assert!(shown.contains("a  stdio  up, 3 tools\n"), "{shown}");
        assert!(shown.contains("b  http   backoff: x y\n"), "{shown}");
        // A note beyond the plan harms nobody, and the board has the last word.
        notes.send(Letter::Note(note(7, Health::Up, 1, None))).unwrap();
        notes.send(Letter::Note(note(0, Health::Down, 1, Some("why")))).unwrap();
        assert!(news.notes().is_empty());
        let backends = shared.lock().backends.clone();
        assert_eq!((backends[0].state, backends[0].tools), (Health::Starting, 0));
        assert_eq!(backends[0].detail.as_deref(), Some("why"));
    }
}
