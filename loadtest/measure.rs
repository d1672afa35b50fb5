//! Owns: one measurement: the clients as a process, the CPU time of the row meanwhile.
//! Never: two measurements at once.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::histogram::Histogram;
use crate::job::{Call, Figures, Idle, Job, Word};
use crate::process::{self, Running};
use crate::request::{self, Template};
use crate::sample::{Held, Sample};
use crate::scenario::Scenario;
use crate::target::Target;
use crate::wire::Line;

/// Before requests count.
const WARMUP: Duration = Duration::from_millis(150);
/// Before and after things are held: as many calls as bring every table and buffer about.
const STIR: Duration = Duration::from_millis(400);

/// The clients, and what they say.
pub(crate) struct Clients {
    _child: Running,
    pub(crate) stdin: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Clients {
    pub(crate) fn start(job: &Job, role: &[&str]) -> Result<Clients> {
        let mut child = Running::again(|command| {
            command.args(role).stdin(Stdio::piped()).stdout(Stdio::piped())
        })?;
        let (Some(mut stdin), Some(stdout)) = (child.0.stdin.take(), child.0.stdout.take()) else {
            return Err("no pipes to the clients".into());
        };
        stdin.write_all(serde_json::to_string(job)?.as_bytes())?;
        stdin.write_all(b"\n")?;
        Ok(Clients { _child: child, stdin, lines: BufReader::new(stdout).lines() })
    }

    /// What they say next; `None` at their end.
    pub(crate) fn next(&mut self) -> Result<Option<Word>> {
        let Some(line) = self.lines.next().transpose()? else { return Ok(None) };
        Ok(Some(serde_json::from_str(&line).map_err(|e| format!("the clients said {line}: {e}"))?))
    }

    /// The word that they must say next.
    fn expect(&mut self, what: &str) -> Result<()> {
        match self.next()? {
            Some(Word::Open) if what == "open" => Ok(()),
            Some(Word::Left) if what == "left" => Ok(()),
            _ => Err("the clients failed, see above".into()),
        }
    }
}

/// Runs a job against a target.
pub(crate) fn load(target: &Target, job: &Job) -> Result<Sample> {
    let mut clients = Clients::start(job, &["generate"])?;
    let mut cpu = [Duration::ZERO; 2];
    let mut ended = false;
    let figures = loop {
        match clients.next()? {
            Some(Word::Begin) => cpu[0] = process::cpu(&target.pids)?,
            Some(Word::End) => {
                cpu[1] = process::cpu(&target.pids)?;
                ended = true;
            }
            Some(Word::Done(figures)) => break figures,
            Some(_) => {}
            None => return Err(format!("{}: the clients failed, see above", target.label).into()),
        }
    };
    if !ended {
        return Err(format!("{}: {}", target.label, figures.first_error).into());
    }
    let Figures { requests, seconds, errors, first_error, latency, service } = figures;
    let known = !target.pids.is_empty() && requests > 0;
    Ok(Sample {
        requests_per_second: requests as f64 / seconds.max(1e-9),
        latency: Histogram::of_parts(&latency),
        service: Histogram::of_parts(&service),
        cpu_micros: known.then(|| (cpu[1] - cpu[0]).as_secs_f64() * 1e6 / requests as f64),
        rss_mib: known.then(|| process::resident(&target.pids)).transpose()?,
        errors,
        first_error,
    })
}

/// [`load`] of a scenario for so long.
pub(crate) fn round(target: &Target, scenario: &Scenario, time: Duration) -> Result<Sample> {
    load(target, &target.job(scenario, WARMUP, time))
}

/// Opens what the scenario holds, and looks at the row's memory before, meanwhile and after.
pub(crate) fn hold(target: &Target, scenario: &Scenario, idle: Idle) -> Result<Held> {
    let stir = Scenario::of(32, 200);
    let stir = target.job(&stir, Duration::ZERO, STIR);
    let first = load(target, &stir)?;
    let before = settled(target)?;
    let role = match idle {
        Idle::Sessions => ["hold", "sessions"],
        Idle::Connections => ["hold", "connections"],
        Idle::Streams => ["hold", "streams"],
    };
    let mut clients = Clients::start(&target.job(scenario, WARMUP, STIR), &role)?;
    let began = Instant::now();
    clients.expect("open")?;
    let opening = began.elapsed();
    let meanwhile = settled(target)?;
    // Alive with all that open.
    let second = load(target, &stir)?;
    clients.stdin.write_all(b"\n")?;
    clients.expect("left")?;
    drop(clients);
    // What a burst has left is returned with the next work.
    let third = load(target, &stir)?;
    let after = settled(target)?;
    let errors = first.errors + second.errors + third.errors;
    let first_error = [first, second, third].into_iter().map(|sample| sample.first_error);
    Ok(Held {
        count: scenario.connections,
        before_mib: before,
        held_mib: meanwhile,
        after_mib: after,
        seconds: opening.as_secs_f64(),
        errors,
        first_error: first_error
            .reduce(|a, b| if a.is_empty() { b } else { a })
            .unwrap_or_default(),
    })
}

/// Resident memory, once it changes no more; at most three seconds later.
fn settled(target: &Target) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut last = process::resident(&target.pids)?;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = process::resident(&target.pids)?;
        if (now - last).abs() < 0.05 || Instant::now() > deadline {
            return Ok(now);
        }
        last = now;
    }
}

/// One call of a job's tool, in a session of its own.
pub(crate) fn probe(job: &Job, tool: usize) -> Result<()> {
    let place = &job.place;
    let mut line = Line::new(place.addr);
    let hello = line.ask(&request::whole(place, None, request::INITIALIZE))?;
    let session = hello.session.ok_or("no session")?;
    line.ask(&request::whole(place, Some(&session), request::INITIALIZED))?;
    let template = Template::new(job, &Call::default(), tool);
    let tag = request::tag(0, 1);
    let mut bytes = Vec::new();
    template.write(Some(&session), &tag, &mut bytes);
    let answer = line.ask(&bytes)?;
    let verdict = template.judge(&tag, &answer).map_err(|(_, text)| text.into());
    line.ask(&request::bare("DELETE", place, &session))?;
    verdict
}
