//! Owns: a long run of mixed load while servers are killed and come back.
//! Never: an excuse for a wrong answer. An error in answer is excused only if its call met an outage
//! of the very server that it was for; a connection that breaks or an answer that never comes is
//! not.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::Result;
use crate::histogram::Histogram;
use crate::job::{Call, Era, Fault, Form, Job, Kind, Method, Word};
use crate::measure::{self, Clients};
use crate::process;
use crate::proxy::{self, Behind};
use crate::scenario::Scenario;
use crate::target::{Backend, Target};

/// What the run is asked for.
pub(crate) struct Wish {
    pub(crate) time: Duration,
    pub(crate) restart_every: Duration,
    pub(crate) workers: usize,
    pub(crate) rate: f64,
}

/// One server killed.
#[derive(Clone, Serialize)]
pub(crate) struct Restart {
    pub(crate) backend: String,
    #[serde(skip)]
    tool: usize,
    pub(crate) at_seconds: f64,
    /// Until a call got through again.
    pub(crate) down_seconds: f64,
    /// The same on the clock of faults.
    #[serde(skip)]
    from: u64,
    #[serde(skip)]
    to: u64,
}

/// What came of it.
#[derive(Serialize)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) rate: f64,
    pub(crate) restart_every_seconds: f64,
    requests: u64,
    /// Errors in answer to calls that met an outage of their server.
    explained: u64,
    /// Everything else.
    unexplained: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    pub(crate) restarts: Vec<Restart>,
    /// Seconds and MiB.
    pub(crate) memory: Vec<(f64, f64)>,
    /// Medians of the second and of the last quarter.
    memory_early_mib: f64,
    memory_late_mib: f64,
    /// Why it did not pass.
    pub(crate) faults: Vec<String>,
}

const NAMES: [&str; 3] = ["one", "two", "child"];
/// Which of them is a child process.
const CHILD: usize = 2;
/// A server is away for so long.
const AWAY: Duration = Duration::from_millis(300);
/// Around an outage: clocks of two processes, and workers that hear of it one after the other.
const SLACK_MS: u64 = 500;
/// A server that is back must be used again within this time.
const RECOVERY_MAX: Duration = Duration::from_secs(15);
/// Growth that is none, in MiB, or as a share.
const GROWTH_MIB: f64 = 4.0;
const GROWTH_SHARE: f64 = 0.1;

/// Runs it.
pub(crate) fn run(wish: &Wish, program: &Path, scratch: &Path) -> Result<Outcome> {
    let scenario = mixed(wish.rate);
    let servers = [Backend::start(&scenario, 0)?, Backend::start(&scenario, 0)?];
    let mut backends = String::new();
    for (at, name) in NAMES.iter().enumerate() {
        let behind = servers.get(at).map_or(Behind::Stdio, |server| Behind::Http(server.addr));
        backends += &proxy::backend(name, &behind, Era::Session, scenario.tools, "")?;
    }
    let file = scratch.join("soak.toml");
    let (child, addr) = proxy::start(program, wish.workers, "", &backends, &file)?;
    let target = Target::started(child, addr, NAMES.len())?;
    let mut job = target.job(&scenario, Duration::from_secs(1), wish.time);
    (job.tolerant, job.listed) = (true, 1);
    // The tools in the order of the servers.
    job.tools = NAMES
        .iter()
        .map(|name| {
            let mut tools = target.tools().iter();
            let ours = tools.find(|tool| tool.starts_with(name)).cloned();
            ours.ok_or_else(|| format!("no tool of {name}").into())
        })
        .collect::<Result<_>>()?;

    let began = (Instant::now(), now());
    let (stop, stopped) = mpsc::channel::<()>();
    let keeper = {
        let keeper = Keeper { scenario: scenario.clone(), job: job.clone(), began };
        let (pid, every) = (target.pids[0], wish.restart_every);
        // Not into the end: what is due then shall be answered.
        let until = began.0 + wish.time.saturating_sub(every.min(Duration::from_secs(8)));
        std::thread::spawn(move || {
            keeper.kill_in_turns(servers, pid, every, until, &stopped).map_err(|e| e.to_string())
        })
    };
    let heard = hear(&target, &job, began.0, wish.time);
    drop(stop);
    let restarts = keeper.join().map_err(|_| "the keeper of servers panicked")?;
    let (heard, restarts) = (heard?, restarts?);
    Ok(judge(wish, heard, restarts))
}

/// The load: every kind of call, with lists between.
fn mixed(rate: f64) -> Scenario {
    let call = Call::default;
    Scenario {
        name: "soak".into(),
        rate: Some(rate),
        calls: vec![
            Call { share: 12, ..call() },
            Call { share: 4, result_bytes: 4096, ..call() },
            Call { share: 1, result_bytes: 65536, ..call() },
            Call { share: 1, argument_bytes: 16384, ..call() },
            Call { share: 2, answer: Form::Sse, progress: 2, ..call() },
            Call { share: 1, delay_ms: 5, ..call() },
            Call { share: 1, method: Method::List, ..call() },
        ],
        tools: 20,
        sessions: 128,
        ..Scenario::of(64, 200)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// What was heard of the clients, and seen of the proxy.
#[derive(Default)]
struct Heard {
    requests: u64,
    seconds: f64,
    latency: (u64, Vec<(usize, u64)>),
    last_error: String,
    faults: Vec<Fault>,
    memory: Vec<(f64, f64)>,
}

fn hear(target: &Target, job: &Job, began: Instant, time: Duration) -> Result<Heard> {
    let mut clients = Clients::start(job, &["generate"])?;
    let mut heard = Heard::default();
    while let Some(word) = clients.next()? {
        match word {
            Word::Tick { requests, errors } => {
                let mib = process::resident(&target.pids)?;
                heard.memory.push((began.elapsed().as_secs_f64(), mib));
                eprint!(
                    "\rsoak: {:.0} of {:.0} s, {requests} answers, {errors} errors, {mib:.1} MiB ",
                    began.elapsed().as_secs_f64(),
                    time.as_secs_f64(),
                );
            }
            Word::Fault(fault) => heard.faults.push(fault),
            Word::Done(figures) => {
                heard.requests = figures.requests;
                heard.seconds = figures.seconds;
                heard.latency = figures.latency;
                heard.last_error = figures.first_error;
                eprintln!();
                return Ok(heard);
            }
            _ => {}
        }
    }
    Err("soak: the clients failed, see above".into())
}

/// Kills servers and brings them back.
struct Keeper {
    scenario: Scenario,
    job: Job,
    began: (Instant, u64),
}

impl Keeper {
    fn kill_in_turns(
        &self,
        servers: [Backend; 2],
        proxy: u32,
        every: Duration,
        until: Instant,
        stopped: &mpsc::Receiver<()>,
    ) -> Result<Vec<Restart>> {
        let mut servers = servers.map(Some);
        let mut restarts = Vec::new();
        for turn in 0.. {
            let next = self.began.0 + every * (turn as u32 + 1);
            let wait = next.saturating_duration_since(Instant::now());
            if next > until || stopped.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
                break;
            }
            let at = turn % NAMES.len();
            let from = now();
            if at == CHILD {
                for child in process::children(proxy) {
                    process::signal("KILL", child);
                }
            } else if let Some(server) = servers[at].take() {
                server.pids().into_iter().for_each(|pid| process::signal("KILL", pid));
                let port = server.addr.port();
                drop(server);
                std::thread::sleep(AWAY);
                servers[at] = Some(Backend::start(&self.scenario, port)?);
            }
            let back = self.wait_until_back(at)?;
            restarts.push(Restart {
                backend: NAMES[at].into(),
                tool: at,
                at_seconds: (from - self.began.1) as f64 / 1000.0,
                down_seconds: (back - from) as f64 / 1000.0,
                from,
                to: back,
            });
        }
        // The servers stay until the load has ended.
        let _ = stopped.recv();
        Ok(restarts)
    }

    /// Calls the server through the proxy until it answers.
    fn wait_until_back(&self, at: usize) -> Result<u64> {
        let deadline = Instant::now() + 4 * RECOVERY_MAX;
        loop {
            match measure::probe(&self.job, at) {
                Ok(()) => return Ok(now()),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("{} is not back: {error}", NAMES[at]).into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn judge(wish: &Wish, heard: Heard, restarts: Vec<Restart>) -> Outcome {
    let excused = |fault: &&Fault| {
        let met = |outage: &Restart| {
            outage.tool == fault.tool
                && fault.sent <= outage.to + SLACK_MS
                && fault.failed + SLACK_MS >= outage.from
        };
        fault.kind == Kind::Failed && restarts.iter().any(met)
    };
    let explained = heard.faults.iter().filter(excused).count() as u64;
    let unexplained = heard.faults.len() as u64 - explained;
    let mut faults = Vec::new();
    if let Some(first) = heard.faults.iter().find(|fault| !excused(fault)) {
        faults.push(format!(
            "{unexplained} errors without a restart: {:?}: {}",
            first.kind, first.text
        ));
    }
    if heard.faults.is_empty() && !heard.last_error.is_empty() {
        faults.push(heard.last_error.clone());
    }
    for restart in &restarts {
        if restart.down_seconds > RECOVERY_MAX.as_secs_f64() {
            let Restart { backend, down_seconds, .. } = restart;
            faults.push(format!("{backend} was back after {down_seconds:.1} s only"));
        }
    }
    let quarter = |n: usize| {
        let len = heard.memory.len();
        let part = &heard.memory[len * n / 4..len * (n + 1) / 4];
        let spread = crate::sample::Spread::of(part.iter().map(|(_, mib)| *mib));
        spread.map_or(0.0, |spread| spread.median)
    };
    let (early, late) = (quarter(1), quarter(3));
    if late - early > GROWTH_MIB.max(early * GROWTH_SHARE) {
        faults.push(format!("memory grew from {early:.1} to {late:.1} MiB"));
    }
    let latency = Histogram::of_parts(&heard.latency);
    Outcome {
        seconds: heard.seconds,
        rate: wish.rate,
        restart_every_seconds: wish.restart_every.as_secs_f64(),
        requests: heard.requests,
        explained,
        unexplained,
        p50_us: latency.micros(0.5),
        p99_us: latency.micros(0.99),
        p999_us: latency.micros(0.999),
        restarts,
        memory: heard.memory,
        memory_early_mib: early,
        memory_late_mib: late,
        faults,
    }
}

impl Outcome {
    /// What is said of it, name and value.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let downs = crate::sample::Spread::of(self.restarts.iter().map(|r| r.down_seconds));
        let recovery =
            downs.map_or("–".into(), |s| format!("{:.2} s, at most {:.2} s", s.median, s.most));
        vec![
            ("answers, each checked", self.requests.to_string()),
            ("servers killed", self.restarts.len().to_string()),
            ("until a call got through again", recovery),
            ("errors while their server was away", self.explained.to_string()),
            ("other errors", self.unexplained.to_string()),
            (
                "latency p50, p99, p99.9",
                format!("{:.0}, {:.0}, {:.0} µs", self.p50_us, self.p99_us, self.p999_us),
            ),
            (
                "memory in the second and in the last quarter",
                format!("{:.1} MiB, {:.1} MiB", self.memory_early_mib, self.memory_late_mib),
            ),
        ]
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.lines();
        let text = lines.iter().map(|(name, value)| format!("{name:<46}{value}\n"));
        format!(
            "\nSoak, {:.0} s at {:.0} requests per second\n{}",
            self.seconds,
            self.rate,
            text.collect::<String>()
        )
    }
}
