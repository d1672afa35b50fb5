//! Owns: the clients of a job: all connections on one thread, closed loop or at a fixed rate, and
//! the latencies that they see.
//! Never: one connection's failure made the others'.
//! Next: `pace`, the fixed rate; `client`, one connection.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::{Events, Poll};

use crate::Result;
use crate::client::{Client, Means, State, Turn};
use crate::histogram::Histogram;
use crate::job::{Fault, Figures, Job, Kind, Method, Word};
use crate::pace::{Pace, TIMER};
use crate::request::Template;

/// A request without an answer for this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// In a tolerant job, where a server may be restarted and asked again meanwhile.
const LONG_PATIENCE: Duration = Duration::from_secs(45);
/// At a fixed rate: after the end, what was due may still be answered.
const DRAIN: Duration = Duration::from_secs(3);
/// Between a failure and the next request of its connection, in a tolerant job.
const REST: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Setup,
    Warmup,
    Measure,
    Ending,
}

struct Load<'a> {
    means: Means<'a>,
    poll: Poll,
    clients: Vec<Client>,
    pace: Option<Pace>,
    /// Templates in the order in which they are used.
    order: Vec<usize>,
    made: usize,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    begun: Instant,
    open: usize,
    unready: usize,
    latency: Histogram,
    service: Histogram,
    figures: Figures,
    resting: Vec<(Instant, usize)>,
    /// The same moment on both clocks.
    epoch: (Instant, SystemTime),
}

/// Runs the job that is told on stdin.
pub(crate) fn run(job: &Job) -> Result<()> {
    let poll = Poll::new()?;
    let mut templates = Vec::new();
    for call in &job.calls {
        let tools = if call.method == Method::List { 1 } else { job.tools.len() };
        templates.extend((0..tools).map(|tool| Template::new(job, call, tool)));
    }
    let means = Means { job, templates: &templates, registry: poll.registry().try_clone()? };
    let now = Instant::now();
    let mut load = Load {
        clients: Vec::new(),
        pace: job.rate.map(|rate| Pace::new(rate, &poll)).transpose()?,
        order: order(job),
        made: 0,
        phase: Phase::Setup,
        since: now,
        begun: now,
        open: job.connections,
        unready: 0,
        latency: Histogram::new(),
        service: Histogram::new(),
        figures: Figures::default(),
        resting: Vec::new(),
        epoch: (now, SystemTime::now()),
        means,
        poll,
    };
    for number in 0..job.connections {
        let client = Client::new(number, &load.means)?;
        load.unready += usize::from(client.state != State::Ready);
        load.clients.push(client);
    }
    load.work()?;
    load.figures.latency = load.latency.parts();
    load.figures.service = load.service.parts();
    Word::Done(load.figures).say()?;
    Ok(())
}

/// Each template as often as its call's share says, well mixed and always the same way.
fn order(job: &Job) -> Vec<usize> {
    let mut order = Vec::new();
    let mut template = 0;
    for call in &job.calls {
        let tools = if call.method == Method::List { 1 } else { job.tools.len() };
        for _ in 0..tools {
            let times =
                if call.method == Method::List { call.share * job.tools.len() } else { call.share };
            order.extend(std::iter::repeat_n(template, times));
            template += 1;
        }
    }
    let mut seed = 0x2545_f491_u64;
    for last in (1..order.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (seed >> 33) as usize % (last + 1));
    }
    order
}

impl Load<'_> {
    fn work(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut ticked = Instant::now();
        while self.open > 0 {
            let now = Instant::now();
            self.advance(now)?;
            self.send_what_is_due(now)?;
            // Not asleep past the marks: with one connection that is stuck they would be late.
            self.poll.poll(&mut events, Some(Duration::from_millis(20)))?;
            for event in &events {
                if event.token() != TIMER {
                    self.turn(event.token().0)?;
                }
            }
            let now = Instant::now();
            self.wake_the_resting(now)?;
            if now - ticked >= TICK {
                ticked = now;
                self.find_the_hung(now)?;
                if self.means.job.tolerant {
                    let Figures { requests, errors, .. } = self.figures;
                    Word::Tick { requests, errors }.say()?;
                }
            }
        }
        Ok(())
    }

    /// From one phase to the next when its time has come.
    fn advance(&mut self, now: Instant) -> Result<()> {
        let job = self.means.job;
        let length = |ms| Duration::from_millis(ms);
        match self.phase {
            Phase::Setup if self.unready == 0 => {
                self.enter(Phase::Warmup, now);
                if let Some(pace) = &mut self.pace {
                    pace.begin(now);
                }
                for number in 0..self.clients.len() {
                    if self.clients[number].state == State::Ready {
                        self.next(number)?;
                    }
                }
            }
            Phase::Warmup if now - self.since >= length(job.warmup_ms) => {
                Word::Begin.say()?;
                self.enter(Phase::Measure, now);
                self.begun = now;
            }
            Phase::Measure if now - self.since >= length(job.measure_ms) => {
                Word::End.say()?;
                self.figures.seconds = (now - self.begun).as_secs_f64();
                self.enter(Phase::Ending, now);
                if let Some(pace) = &mut self.pace {
                    pace.end(now);
                }
                for (_, number) in std::mem::take(&mut self.resting) {
                    self.clients[number].state = State::Done;
                    self.open -= 1;
                }
            }
            Phase::Ending if self.pace.is_some() && now - self.since >= DRAIN => {
                let waiting = self.pace.as_ref().map_or(0, Pace::waiting);
                if waiting > 0 {
                    let rate = job.rate.unwrap_or_default();
                    self.error(
                        waiting as u64,
                        format!(
                            "{waiting} requests were due and not sent {DRAIN:?} after the end: \
                             {rate} per second is more than it can do"
                        ),
                    );
                    self.open = 0;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn error(&mut self, count: u64, text: String) {
        self.figures.errors += count;
        if self.figures.first_error.is_empty() {
            self.figures.first_error = text;
        }
    }

    /// What a connection that is ready does next.
    fn next(&mut self, number: usize) -> io::Result<()> {
        if let Some(pace) = &mut self.pace {
            pace.free(number);
            return Ok(());
        }
        if self.phase != Phase::Ending {
            return self.call(number, Instant::now());
        }
        self.end(number)
    }

    fn end(&mut self, number: usize) -> io::Result<()> {
        if self.clients[number].end(&self.means) {
            self.open -= 1;
        }
        self.flush(number)
    }

    fn call(&mut self, number: usize, due: Instant) -> io::Result<()> {
        let template = self.order[self.made % self.order.len()];
        self.made += 1;
        self.clients[number].call(due, template, &self.means);
        self.flush(number)
    }

    fn flush(&mut self, number: usize) -> io::Result<()> {
        match self.clients[number].flush(&self.means) {
            Ok(()) => Ok(()),
            Err(error) => self.failed(number, Kind::Lost, format!("write: {error}")),
        }
    }

    /// At a fixed rate.
    fn send_what_is_due(&mut self, now: Instant) -> io::Result<()> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        pace.turn(now)?;
        while let Some((number, due)) = self.pace.as_mut().and_then(Pace::next) {
            self.call(number, due)?;
        }
        let free: Vec<usize> = self.pace.as_mut().map_or(vec![], |pace| pace.release().collect());
        for number in free {
            self.end(number)?;
        }
        Ok(())
    }

    fn turn(&mut self, number: usize) -> io::Result<()> {
        let client = &mut self.clients[number];
        if matches!(client.state, State::Done | State::Resting) {
            return Ok(());
        }
        match client.turn(&self.means) {
            Ok(Turn::Waits) => Ok(()),
            Ok(Turn::Ready) => {
                self.unready -= 1;
                // Before all are ready nobody begins; after that only a late one does.
                if self.phase == Phase::Setup { Ok(()) } else { self.next(number) }
            }
            Ok(Turn::Answered) => {
                self.answered(number);
                self.next(number)
            }
            Ok(Turn::Ended) => {
                self.open -= 1;
                Ok(())
            }
            Err((kind, text)) => self.failed(number, kind, text),
        }
    }

    fn answered(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.state = State::Ready;
        let now = Instant::now();
        // At a fixed rate what was due in the time counts, else what was answered in it.
        let counts = match self.pace {
            Some(_) => {
                let ended = self.phase == Phase::Ending && client.due >= self.since;
                matches!(self.phase, Phase::Measure | Phase::Ending)
                    && client.due >= self.begun
                    && !ended
            }
            None => self.phase == Phase::Measure,
        };
        if counts {
            self.figures.requests += 1;
            self.latency.add((now - client.due).as_nanos() as u64);
            self.service.add((now - client.started).as_nanos() as u64);
        }
    }

    fn failed(&mut self, number: usize, kind: Kind, text: String) -> io::Result<()> {
        let state = self.clients[number].state;
        let template = &self.means.templates[self.clients[number].template];
        self.error(1, format!("connection {number}: {text}"));
        let calling = state == State::Calling && self.phase != Phase::Ending;
        if self.means.job.tolerant {
            let (started, now) = (self.clients[number].started, Instant::now());
            let (sent, failed) = (self.millis(started), self.millis(now));
            Word::Fault(Fault { kind, text, tool: template.tool, sent, failed }).say()?;
            if calling {
                self.clients[number].rest();
                self.resting.push((now + REST, number));
                return Ok(());
            }
        }
        if matches!(state, State::Initializing | State::Initialized) {
            self.unready -= 1;
        }
        self.clients[number].state = State::Done;
        self.open -= 1;
        Ok(())
    }

    /// Milliseconds since 1970.
    fn millis(&self, at: Instant) -> u64 {
        let (instant, system) = self.epoch;
        let system = system.duration_since(UNIX_EPOCH).unwrap_or_default();
        (system + at.saturating_duration_since(instant)).as_millis() as u64
    }

    fn wake_the_resting(&mut self, now: Instant) -> io::Result<()> {
        while let Some(&(until, number)) = self.resting.first() {
            if until > now {
                break;
            }
            self.resting.remove(0);
            self.clients[number].revive(&self.means)?;
            self.next(number)?;
        }
        Ok(())
    }

    fn find_the_hung(&mut self, now: Instant) -> io::Result<()> {
        let patience = if self.means.job.tolerant { LONG_PATIENCE } else { PATIENCE };
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            let since = match client.state {
                State::Calling => client.started,
                State::Initializing | State::Initialized => self.since,
                State::Ending => client.started.max(self.since),
                _ => continue,
            };
            if now - since > patience {
                self.failed(number, Kind::Hung, format!("no answer for {patience:?}"))?;
            }
        }
        Ok(())
    }
}
