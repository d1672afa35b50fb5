//! Owns: the order of a run. Every row of a scenario runs in every round, one after the other, so
//! that what the machine does meanwhile meets all rows alike.
//! Never: two rows at once.
//! Next: `target`, a row; `measure`, one measurement; `summary`, what is said of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::progress::Progress;
use crate::sample::Sample;
use crate::scenario::{self, Row, Scenario};
use crate::soak::{self, Wish};
use crate::summary::{Part, Samples, Summary};
use crate::target::{Backend, Foreign, Ground, Target};
use crate::{Result, html, measure, nginx, process, proxy, table};

/// What to run, and for how long.
#[derive(Args)]
pub(crate) struct Run {
    /// One short round of the main scenarios.
    #[arg(long)]
    quick: bool,
    /// Shows the scenarios and ends.
    #[arg(long)]
    list: bool,
    /// Scenarios to run, instead of those that are meant to run by default.
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    scenario: Option<Vec<String>>,
    /// Scenarios of your own, in a file like loadtest/scenarios.toml.
    #[arg(long, value_name = "FILE")]
    scenarios: Option<PathBuf>,
    /// Connections: small calls, or --sizes, instead of scenarios.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    connections: Option<Vec<usize>>,
    /// Bytes of a result, for 32 connections or --connections, instead of scenarios.
    #[arg(long, value_delimiter = ',', value_name = "BYTES,..")]
    sizes: Option<Vec<usize>>,
    /// Requests per second at a fixed pace, in all scenarios and in --soak.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Rows to run: direct, nginx, hyper, relay, proxy, plain, stdio.
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    rows: Option<Vec<String>>,
    /// Workers of mcp-proxy, nginx, hyper and the relay, a row for each number.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    workers: Option<Vec<usize>>,
    /// A gateway of yours as another row; its server must be --stub. May be given several times.
    #[arg(long, value_name = "NAME=URL")]
    target: Vec<String>,
    /// The token for such a gateway.
    #[arg(long, value_name = "NAME=TOKEN")]
    bearer: Vec<String>,
    /// A server that runs already (`loadtest stub --port N`), instead of one for each scenario.
    #[arg(long, value_name = "ADDR:PORT")]
    stub: Option<SocketAddr>,
    /// Mixed load for so long (as 90s, 20m, 2h) while servers are killed and come back, instead of
    /// scenarios: memory must stay flat, no answer wrong, and each error within a restart.
    #[arg(long, value_name = "TIME", value_parser = time)]
    soak: Option<Duration>,
    /// How often --soak kills a server.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "20s")]
    restart_every: Duration,
    /// Rounds, of which the median counts.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of one measurement.
    #[arg(long)]
    seconds: Option<f64>,
    /// Where the figures go as JSON; the default is loadtest.json beside the proxy.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the report goes; the default is loadtest.html beside the proxy.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The proxy to measure, instead of the one that lies beside this program.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Another build of mcp-proxy, as a row beside each row "proxy".
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,
}

/// `90`, `90s`, `20m`, `2h`.
fn time(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a number with s, m or h, as 20m".into()),
    };
    let number: f64 = digits.parse().map_err(|_| "expected a time as 90s or 20m".to_owned())?;
    Duration::try_from_secs_f64(number * unit).map_err(|e| e.to_string())
}

/// Runs what was asked for.
///
/// # Errors
/// Something could not be started, or any answer was an error or wrong.
pub(crate) fn run(run: &Run) -> Result<()> {
    let scenarios = chosen(run)?;
    if run.list {
        for scenario in scenario::load(run.scenarios.as_deref())? {
            let more = if scenario.default { "" } else { " (only if named)" };
            println!("{:<18}{}{more}", scenario.name, scenario.title);
        }
        return Ok(());
    }
    let seconds = run.seconds.unwrap_or(if run.quick { 0.4 } else { 0.6 });
    let rounds = run.rounds.unwrap_or(if run.quick { 1 } else { 3 });
    if !(0.05..=3600.0).contains(&seconds) || rounds == 0 {
        return Err("--seconds is from 0.05 to 3600, --rounds at least 1".into());
    }
    let foreign = foreign(run)?;
    if let Some(other) = run.other.as_ref().filter(|other| !other.is_file()) {
        return Err(format!("--other {}: there is no such file", other.display()).into());
    }
    let program = match &run.proxy {
        Some(file) => file.clone(),
        None => proxy::build()?,
    };
    if cfg!(debug_assertions) {
        eprintln!("This is not a release build: the figures say nothing.");
    }
    let scratch = tempfile::tempdir()?;
    let mut summary = Summary::new(seconds, rounds);
    if let Some(time) = run.soak {
        let workers = run.workers.as_ref().and_then(|workers| workers.first().copied());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wish = Wish {
            time,
            restart_every: run.restart_every,
            workers: workers.unwrap_or(cores.min(2)),
            rate: run.rate.unwrap_or(1000.0),
        };
        summary.soak = Some(soak::run(&wish, &program, scratch.path())?);
    } else {
        let mut session = Session {
            run,
            foreign: &foreign,
            program: &program,
            scratch: scratch.path(),
            files: process::raise_files(),
            seconds,
            rounds,
            progress: Progress::new(&scenarios, foreign.len(), rounds),
        };
        for scenario in scenarios {
            let part = session.scenario(scenario)?;
            session.progress.clear();
            print!("{}", table::of(&part));
            summary.scenarios.push(part);
        }
        print!("{}", table::legend(rounds, seconds));
    }
    finish(run, &program, &summary)
}

/// Writes the files; what went wrong in the run is the error.
fn finish(run: &Run, program: &Path, summary: &Summary) -> Result<()> {
    let json = run.json.clone().unwrap_or_else(|| program.with_file_name("loadtest.json"));
    let page = run.html.clone().unwrap_or_else(|| json.with_extension("html"));
    let write = |file: &Path, text: String| {
        std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
    };
    write(&json, serde_json::to_string_pretty(summary)?)?;
    write(&page, html::page(summary))?;
    if let Some(outcome) = &summary.soak {
        print!("{}", outcome.text());
    }
    println!("\nReport:  {}\nFigures: {}", page.display(), json.display());
    if let Some(outcome) = summary.soak.as_ref().filter(|outcome| !outcome.faults.is_empty()) {
        return Err(format!("the soak failed: {}", outcome.faults.join("; ")).into());
    }
    let lines = summary.scenarios.iter().flat_map(|part| &part.rows);
    let measured = lines.filter(|line| line.load.is_some() || line.held.is_some()).count();
    match summary.errors() {
        0 if measured == 0 && summary.soak.is_none() => {
            Err("nothing was measured, see above".into())
        }
        0 => Ok(()),
        errors => Err(format!("{errors} errors: {}", summary.first_error()).into()),
    }
}

/// The scenarios that are to run, with what arguments change in them.
fn chosen(run: &Run) -> Result<Vec<Scenario>> {
    let all = scenario::load(run.scenarios.as_deref())?;
    let mut scenarios = if run.connections.is_some() || run.sizes.is_some() {
        let connections = run.connections.clone().unwrap_or_else(|| vec![32]);
        let sizes = run.sizes.clone().unwrap_or_else(|| vec![200]);
        let with_sizes = |&c: &usize| sizes.iter().map(move |&s| Scenario::of(c, s)).collect();
        connections.iter().flat_map::<Vec<_>, _>(with_sizes).collect()
    } else if let Some(names) = &run.scenario {
        let find = |name: &String| {
            let found = all.iter().find(|scenario| scenario.name == *name);
            let known = || all.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            found.cloned().ok_or_else(|| format!("no scenario {name:?}; there are {}", known()))
        };
        names.iter().map(find).collect::<std::result::Result<_, _>>()?
    } else {
        let of_its_own = run.scenarios.is_some();
        let meant = |s: &Scenario| if run.quick { s.quick || of_its_own } else { s.default };
        all.into_iter().filter(meant).collect::<Vec<_>>()
    };
    let mut rows = None;
    for name in run.rows.iter().flatten() {
        let known = Row::NAMES.iter().find(|(known, _)| known == name);
        let names = Row::NAMES.map(|(known, _)| known).join(", ");
        let (_, row) = known.ok_or_else(|| format!("--rows {name}: there are {names}"))?;
        rows.get_or_insert_with(Vec::new).push(*row);
    }
    for scenario in &mut scenarios {
        if let Some(rows) = &rows {
            scenario.rows.retain(|row| rows.contains(row));
        }
        let proxy = scenario.rows.iter().position(|row| *row == Row::Proxy);
        if let (Some(at), true) = (proxy, run.other.is_some()) {
            scenario.rows.insert(at + 1, Row::Other);
        }
        if let Some(workers) = &run.workers {
            scenario.workers.clone_from(workers);
        } else if run.quick {
            scenario.workers.truncate(1);
        }
        if run.rate.is_some() {
            (scenario.rate, scenario.of_capacity) = (run.rate, None);
        }
        scenario::check(scenario)?;
    }
    if run.other.is_some() && !scenarios.iter().any(|s| s.rows.contains(&Row::Other)) {
        return Err(
            "--other stands beside the row \"proxy\", which none of these scenarios has".into()
        );
    }
    scenarios.retain(|scenario| !scenario.rows.is_empty() || !run.target.is_empty());
    Ok(scenarios)
}

fn foreign(run: &Run) -> Result<Vec<Foreign>> {
    let mut bearers = Vec::new();
    for text in &run.bearer {
        let (name, token) = text
            .split_once('=')
            .ok_or("--bearer: expected the NAME of a --target, =, its token")?;
        bearers.push((name.to_owned(), token.to_owned()));
    }
    let mut foreign = Vec::new();
    for text in &run.target {
        let mut target = Foreign::parse(text)?;
        target.show(&bearers);
        foreign.push(target);
    }
    for (name, _) in &bearers {
        if !foreign.iter().any(|target| target.name == *name) {
            return Err(format!("--bearer {name}=...: there is no --target {name}=URL").into());
        }
    }
    if !foreign.is_empty() && run.stub.is_none() {
        return Err(
            "--target needs --stub ADDR:PORT: start `loadtest stub --port N`, and let your \
                    gateway use http://127.0.0.1:N/mcp"
                .into(),
        );
    }
    Ok(foreign)
}

/// What stays the same in a run.
struct Session<'a> {
    run: &'a Run,
    foreign: &'a [Foreign],
    program: &'a Path,
    scratch: &'a Path,
    /// Files that a process may open.
    files: u64,
    seconds: f64,
    rounds: usize,
    progress: Progress,
}

impl Session<'_> {
    fn scenario(&mut self, mut scenario: Scenario) -> Result<Part> {
        let mut notes = Vec::new();
        if scenario.connections as u64 + 512 > self.files {
            notes.push(format!(
                "left out: it needs {} open files, and {} are allowed (ulimit -n)",
                scenario.connections + 512,
                self.files
            ));
            self.progress.skip(&scenario);
            return Ok(Part::of(scenario, &[], notes));
        }
        let backend = match self.run.stub {
            Some(addr) => Backend::at(addr),
            None => Backend::start(&scenario, 0)?,
        };
        let targets = self.targets(&scenario, &backend, &mut notes)?;
        let mut all: Vec<Samples> = targets
            .iter()
            .map(|target| Samples {
                label: target.label.clone(),
                row: target.row,
                workers: target.workers,
                rounds: Vec::new(),
                held: None,
            })
            .collect();
        if let Some(idle) = scenario.idle {
            for (target, samples) in targets.iter().zip(&mut all) {
                self.progress.step(&format!("{}, {}", scenario.name, target.label));
                if target.pids.is_empty() {
                    notes.push(format!("{}: whose memory to look at is unknown", target.label));
                    continue;
                }
                samples.held = Some(measure::hold(target, &scenario, idle)?);
            }
        } else {
            let time = Duration::from_secs_f64(self.seconds);
            if let Some(share) = scenario.of_capacity {
                notes.push(self.pace(&mut scenario, &targets, share, time)?);
            }
            for round in 1..=self.rounds {
                for (target, samples) in targets.iter().zip(&mut all) {
                    let rounds = self.rounds;
                    let what = format!("{}, round {round} of {rounds}", scenario.name);
                    self.progress.step(&format!("{what}, {}", target.label));
                    let sample: Sample = measure::round(target, &scenario, time)?;
                    samples.rounds.push(sample);
                }
            }
        }
        Ok(Part::of(scenario, &all, notes))
    }

    /// Finds out what the slowest row manages, and sets the pace of all to a share of it.
    fn pace(
        &mut self,
        scenario: &mut Scenario,
        targets: &[Target],
        share: f64,
        time: Duration,
    ) -> Result<String> {
        let mut slowest: Option<(f64, &str)> = None;
        for target in targets {
            self.progress.step(&format!("{}, how much, {}", scenario.name, target.label));
            // What goes wrong here does so in the rounds, where it is told.
            let capacity = measure::round(target, scenario, time)?.requests_per_second;
            if slowest.is_none_or(|(least, _)| capacity < least) {
                slowest = Some((capacity, &target.label));
            }
        }
        let (capacity, label) = slowest.ok_or("of_capacity needs a row")?;
        let rate = (capacity * share).round().max(1.0);
        scenario.rate = Some(rate);
        Ok(format!(
            "{rate} requests per second: {share} of what the slowest row manages, {label} ({capacity:.0})"
        ))
    }

    fn targets(
        &self,
        scenario: &Scenario,
        backend: &Backend,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Target>> {
        let other = self.run.other.as_deref();
        let ground = Ground { proxy: self.program, other, backend, scratch: self.scratch };
        let mut targets = Vec::new();
        for &workers in &scenario.workers {
            for &row in &scenario.rows {
                if row == Row::Direct && workers != scenario.workers[0] {
                    continue;
                }
                if row == Row::Nginx && !nginx::is_installed() {
                    let text = "nginx is not installed: no row and no ratio of it";
                    if !notes.iter().any(|note| note == text) {
                        notes.push(text.into());
                    }
                    continue;
                }
                match Target::start(row, workers, scenario, &ground) {
                    Ok(target) => targets.push(target),
                    // Somebody else's server may not speak as this scenario does.
                    Err(error) if self.run.stub.is_some() => {
                        notes.push(format!("left out: {error}"))
                    }
                    Err(error) => return Err(format!("{}: {error}", scenario.name).into()),
                }
            }
        }
        for foreign in self.foreign {
            match Target::foreign(foreign, scenario) {
                Ok(target) => targets.push(target),
                Err(error) => notes.push(format!("left out: {error}")),
            }
        }
        Ok(targets)
    }
}
