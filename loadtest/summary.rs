//! Owns: what is said of a run: medians, ranges, ratios and curves of every row, as they stand in
//! the table, in the JSON file and in the HTML page alike.
//! Never: a ratio across scenarios, or of two figures that were not taken in the same round.

use serde::Serialize;

use crate::histogram::Histogram;
use crate::sample::{Held, Sample, Spread};
use crate::scenario::{Row, Scenario};

/// All samples of a row.
pub(crate) struct Samples {
    pub(crate) label: String,
    pub(crate) row: Option<Row>,
    pub(crate) workers: usize,
    pub(crate) rounds: Vec<Sample>,
    pub(crate) held: Option<Held>,
}

/// A run.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) machine: String,
    pub(crate) version: String,
    /// Release or debug: the figures of a debug build say nothing.
    pub(crate) profile: &'static str,
    pub(crate) date: String,
    pub(crate) arguments: Vec<String>,
    /// Of one measurement.
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    pub(crate) scenarios: Vec<Part>,
    pub(crate) soak: Option<crate::soak::Outcome>,
}

/// A scenario of a run.
#[derive(Serialize)]
pub(crate) struct Part {
    pub(crate) scenario: Scenario,
    pub(crate) rows: Vec<Line>,
    /// Rows that were left out, with the reason.
    pub(crate) notes: Vec<String>,
}

/// A row of a scenario.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) row: String,
    #[serde(skip)]
    pub(crate) kind: Option<Row>,
    pub(crate) workers: usize,
    pub(crate) errors: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) first_error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load: Option<Load>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<Held>,
}

#[derive(Serialize)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) requests_per_second: Spread,
    /// Latencies in microseconds, from when a request was due.
    pub(crate) p50_us: Spread,
    pub(crate) p90_us: Spread,
    pub(crate) p99_us: Spread,
    pub(crate) p999_us: Spread,
    pub(crate) most_us: Spread,
    /// The same from when it was sent; differs at a fixed rate only.
    pub(crate) service_p50_us: Spread,
    pub(crate) service_p90_us: Spread,
    pub(crate) service_p99_us: Spread,
    /// What this row adds to the median of no proxy at all, round by round.
    pub(crate) p50_over_direct_us: Option<Spread>,
    pub(crate) cpu_us_per_request: Option<Spread>,
    pub(crate) rss_mib: Option<Spread>,
    /// CPU per request in proportion to other rows, round by round.
    pub(crate) cpu_ratios: Vec<Ratio>,
    /// All rounds together: share of requests, and the microseconds that they did not exceed.
    pub(crate) curve: Vec<(f64, f64)>,
}

#[derive(Serialize)]
pub(crate) struct Ratio {
    pub(crate) to: Reference,
    #[serde(flatten)]
    pub(crate) spread: Spread,
}

/// What a row is compared with: always the row with as many workers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reference {
    Nginx,
    Hyper,
    Relay,
    /// mcp-proxy without the scenario's rules.
    Plain,
    /// mcp-proxy before the server over HTTP, for the one before a child and for another build.
    Proxy,
}

impl Reference {
    const ALL: [Reference; 5] =
        [Reference::Nginx, Reference::Hyper, Reference::Relay, Reference::Plain, Reference::Proxy];

    fn row(self) -> Row {
        match self {
            Reference::Nginx => Row::Nginx,
            Reference::Hyper => Row::Hyper,
            Reference::Relay => Row::Relay,
            Reference::Plain => Row::Plain,
            Reference::Proxy => Row::Proxy,
        }
    }

    fn concerns(self, row: Option<Row>) -> bool {
        match self {
            Reference::Nginx => !matches!(row, Some(Row::Direct | Row::Nginx)),
            Reference::Hyper => !matches!(row, Some(Row::Direct | Row::Nginx | Row::Hyper)),
            Reference::Relay => !matches!(row, Some(Row::Direct | Row::Relay)),
            Reference::Plain => row == Some(Row::Proxy),
            Reference::Proxy => matches!(row, Some(Row::Stdio | Row::Other)),
        }
    }
}

impl Part {
    pub(crate) fn of(scenario: Scenario, all: &[Samples], notes: Vec<String>) -> Part {
        let rows = all.iter().map(|samples| Line::of(samples, all)).collect();
        Part { scenario, rows, notes }
    }
}

impl Line {
    fn of(samples: &Samples, all: &[Samples]) -> Line {
        let mut errors: u64 = samples.rounds.iter().map(|sample| sample.errors).sum();
        let texts = samples.rounds.iter().map(|sample| &sample.first_error);
        let held = samples.held.as_ref();
        errors += held.map_or(0, |held| held.errors);
        let mut texts = texts.chain(held.map(|held| &held.first_error));
        Line {
            row: samples.label.clone(),
            kind: samples.row,
            workers: samples.workers,
            errors,
            first_error: texts.find(|text| !text.is_empty()).cloned().unwrap_or_default(),
            load: Load::of(samples, all),
            held: samples.held.clone(),
        }
    }

    /// The ratio to a reference, if there is one.
    pub(crate) fn ratio(&self, to: Reference) -> Option<Spread> {
        let ratios = &self.load.as_ref()?.cpu_ratios;
        ratios.iter().find(|ratio| ratio.to == to).map(|ratio| ratio.spread)
    }
}

impl Load {
    fn of(samples: &Samples, all: &[Samples]) -> Option<Load> {
        let rounds = &samples.rounds;
        let of = |field: &dyn Fn(&Sample) -> f64| Spread::of(rounds.iter().map(field));
        let percentile = |share: f64| of(&|s| s.latency.micros(share));
        let service = |share: f64| of(&|s| s.service.micros(share));
        let mut whole = Histogram::new();
        for sample in rounds {
            whole.merge(&sample.latency);
        }
        let pair = |row: Row| {
            let mut same = all.iter().filter(|other| other.row == Some(row));
            let workers = samples.workers;
            let fits = |other: &&Samples| row == Row::Direct || other.workers == workers;
            same.find(fits).map(|other| rounds.iter().zip(&other.rounds))
        };
        let mut cpu_ratios = Vec::new();
        for to in Reference::ALL {
            let Some(pairs) = pair(to.row()).filter(|_| to.concerns(samples.row)) else { continue };
            let ratios = pairs.filter_map(|(a, b)| Some(a.cpu_micros? / b.cpu_micros?));
            cpu_ratios.extend(Spread::of(ratios).map(|spread| Ratio { to, spread }));
        }
        let over = pair(Row::Direct).filter(|_| samples.row != Some(Row::Direct));
        let over = over.and_then(|pairs| {
            Spread::of(pairs.map(|(a, b)| a.latency.micros(0.5) - b.latency.micros(0.5)))
        });
        Some(Load {
            requests: whole.total(),
            requests_per_second: of(&|s| s.requests_per_second)?,
            p50_us: percentile(0.5)?,
            p90_us: percentile(0.9)?,
            p99_us: percentile(0.99)?,
            p999_us: percentile(0.999)?,
            most_us: of(&|s| s.latency.most_micros())?,
            service_p50_us: service(0.5)?,
            service_p90_us: service(0.9)?,
            service_p99_us: service(0.99)?,
            p50_over_direct_us: over,
            cpu_us_per_request: Spread::of(rounds.iter().filter_map(|s| s.cpu_micros)),
            rss_mib: Spread::of(rounds.iter().filter_map(|s| s.rss_mib)),
            cpu_ratios,
            curve: curve(&whole),
        })
    }
}

/// Shares that lie evenly where they are read: ten to each further nine, as far as there are
/// requests enough to tell.
fn curve(histogram: &Histogram) -> Vec<(f64, f64)> {
    let steps = (0..=50).map(|step| 1.0 - 10_f64.powf(-f64::from(step) / 10.0));
    let told = steps.take_while(|share| (1.0 - share) * histogram.total() as f64 >= 1.0);
    told.map(|share| (share, histogram.micros(share))).collect()
}

impl Summary {
    pub(crate) fn new(seconds: f64, rounds: usize) -> Summary {
        Summary {
            machine: machine(),
            version: format!("mcp-proxy {}{}", env!("CARGO_PKG_VERSION"), commit()),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            date: date(),
            arguments: std::env::args().skip(1).collect(),
            seconds,
            rounds,
            scenarios: Vec::new(),
            soak: None,
        }
    }

    pub(crate) fn errors(&self) -> u64 {
        self.scenarios.iter().flat_map(|part| &part.rows).map(|line| line.errors).sum()
    }

    /// The first thing that went wrong, and where.
    pub(crate) fn first_error(&self) -> String {
        let all = self.scenarios.iter().flat_map(|part| part.rows.iter().map(move |l| (part, l)));
        let first = all.into_iter().find(|(_, line)| line.errors > 0);
        first.map_or(String::new(), |(part, line)| {
            format!("{}, {}: {}", part.scenario.name, line.row, line.first_error)
        })
    }
}

/// Processor, number of cores and kernel.
fn machine() -> String {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{} x {cores}, Linux {}", model.unwrap_or("unknown processor"), kernel.trim())
}

/// The commit of the tree that this was built in, if it still is one.
fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]);
    let out = git.stderr(std::process::Stdio::null()).output();
    let out = out.ok().filter(|out| out.status.success()).map(|out| out.stdout);
    out.map_or(String::new(), |id| format!(" ({})", String::from_utf8_lossy(&id).trim()))
}

/// The day, by the machine's clock.
fn date() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = (seconds.unwrap_or_default().as_secs() / 86_400) as i64;
    // Days since 1970 to a date of the Gregorian calendar, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
