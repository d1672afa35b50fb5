//! Owns: the metrics page: sums of what workers counted, and what can be read elsewhere.
//! Never: a name that is not from the configuration, the catalogue or a list of words.
//! Next: `admin`, which serves it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;

use super::reload::Reloads;
use crate::backend::health::{Board, CacheStats, State};
use crate::limits;
use crate::middleware::breaker;
use crate::middleware::reuse::Use;
use crate::plan::{BackendPlan, Plan, TransportPlan};
use crate::telemetry::metrics::{Lost, Metrics, Outcome};
use crate::telemetry::prometheus::Text;
use crate::world::Counts;

/// Where values are read.
pub(super) struct Sources<'a> {
    pub(super) plan: &'a Plan,
    pub(super) board: &'a Board,
    pub(super) counts: &'a Counts,
    pub(super) metrics: &'a Metrics,
    pub(super) reloads: &'a Reloads,
}

/// Tools that have a series, with the number of the backend's block: the first that were called.
/// Once in it stays for as long as its backend, so that no counter ever falls.
#[derive(Debug, Default)]
pub(super) struct Admitted(BTreeMap<(usize, String), ()>);

/// The whole page.
pub(super) fn page(sources: &Sources<'_>, admitted: &mut Admitted) -> String {
    let mut text = Text::default();
    let Sources { plan, board, counts, metrics, reloads } = sources;
    let table = metrics.table();
    for family in metrics.sums(&table) {
        let kind = if family.bounds.is_some() { "histogram" } else { "counter" };
        text.family(family.name, kind, family.help);
        for (labels, cells) in &family.rows {
            let labels: Vec<(&str, &str)> =
                family.labels.iter().copied().zip(labels.iter().copied()).collect();
            match family.bounds {
                Some(bounds) => text.histogram(&labels, bounds, cells),
                None => text.sample(&labels, cells[0]),
            }
        }
    }
    tools(&mut text, metrics, admitted);
    text.family("telemetry_lost_total", "counter", "Log lines and spans that were dropped.");
    for (what, name) in Lost::NAMES.iter().enumerate() {
        text.sample(&[("what", name)], metrics.lost(what));
    }
    backends(&mut text, plan, board);
    for (name, help, value) in [
        ("sessions", "Client sessions.", &counts.sessions),
        ("connections", "Client connections.", &counts.connections),
        ("streams", "Event streams that clients have opened.", &counts.streams),
        ("name_conflicts", "Names and URIs that several backends have.", &counts.conflicts),
    ] {
        text.family(name, "gauge", help);
        text.sample(&[], value.load(Ordering::Relaxed));
    }
    let help = "Reads of resources that templates of several backends match.";
    text.family("contested_reads_total", "counter", help);
    text.sample(&[], counts.contested_reads.load(Ordering::Relaxed));
    text.family("config_reloads_total", "counter", "Reloads of the configuration.");
    for (result, count) in [("applied", reloads.applied), ("refused", reloads.failed)] {
        text.sample(&[("result", result)], count);
    }
    let name = "config_last_reload_timestamp_seconds";
    text.family(name, "gauge", "When the configuration in force was put there.");
    let since = reloads.since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    text.sample(&[], since.as_secs_f64());
    text.family("build_info", "gauge", "Always 1.");
    text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    process(&mut text, metrics);
    text.finish()
}

/// `tool_calls_total`, with at most so many series over all workers.
fn tools(text: &mut Text, metrics: &Metrics, admitted: &mut Admitted) {
    type Counts = [u64; Outcome::NAMES.len()];
    let table = metrics.table();
    let mut sums: BTreeMap<(usize, &str, &str), Counts> = BTreeMap::new();
    // What has gone makes room.
    admitted.0.retain(|(backend, _), ()| table.has(*backend));
    let add = |into: &mut Counts, counts: Counts| {
        for (sum, count) in into.iter_mut().zip(counts) {
            *sum += count;
        }
    };
    for (backend, label, name, counts) in metrics.tools(&table) {
        let key = (backend, name.to_owned());
        let full = admitted.0.len() >= limits::TOOL_SERIES_MAX;
        let own = !name.is_empty()
            && (admitted.0.contains_key(&key) || (!full && admitted.0.insert(key, ()).is_none()));
        add(sums.entry((backend, label, if own { name } else { "" })).or_default(), counts);
    }
    let help = "Calls of tools; `other` are those that are not in the catalogue, or too many.";
    text.family("tool_calls_total", "counter", help);
    for ((_, backend, name), counts) in sums {
        let tool = if name.is_empty() { "other" } else { name };
        for (status, count) in Outcome::NAMES.iter().zip(counts).filter(|(_, count)| *count > 0) {
            text.sample(&[("backend", backend), ("tool", tool), ("status", status)], count);
        }
    }
}

fn backends(text: &mut Text, plan: &Plan, board: &Board) {
    let each = |text: &mut Text,
                name: &str,
                kind: &str,
                help: &str,
                value: &dyn Fn(&BackendPlan) -> Option<f64>| {
        text.family(name, kind, help);
        for backend in &plan.backends {
            if let Some(value) = value(backend) {
                text.sample(&[("backend", &backend.name)], value);
            }
        }
    };
    each(text, "backend_up", "gauge", "Whether the backend's handshake is complete.", &|backend| {
        Some(f64::from(board.state(backend.id) == State::Up))
    });
    each(text, "backend_in_flight", "gauge", "Attempts under way at the backend.", &|backend| {
        Some(f64::from(board.in_flight(backend.id)))
    });
    each(text, "child_restarts_total", "counter", "How often the backend came up again.", &|b| {
        Some(f64::from(board.restarts(b.id)))
    });
    each(
        text,
        "breaker_state",
        "gauge",
        "The circuit breaker: 0 closed, 1 half-open, 2 open.",
        &|backend| {
            let breaker = backend.around.breaker.as_ref()?;
            Some(match breaker.state() {
                breaker::State::Closed => 0.0,
                breaker::State::HalfOpen => 1.0,
                breaker::State::Open => 2.0,
            })
        },
    );
    each(text, "ejections_total", "counter", "How often the backend was ejected.", &|backend| {
        Some(backend.around.outlier.as_ref()?.ejections() as f64)
    });
    caches(text, plan, board);
    text.family(
        "backend_connections",
        "gauge",
        "Connections to the backend; of a child, children.",
    );
    for backend in &plan.backends {
        let states: &[(&str, u32)] = match &backend.transport {
            TransportPlan::Http(_) => &[
                ("active", board.in_flight(backend.id)),
                ("idle", board.idle_connections(backend.id)),
            ],
            TransportPlan::Stdio(_) => &[("active", children(board, backend))],
        };
        for (state, count) in states {
            text.sample(&[("backend", &backend.name), ("state", state)], count);
        }
    }
}

/// What caches did and hold, of the backends that have one; calls that ran together.
fn caches(text: &mut Text, plan: &Plan, board: &Board) {
    let cached = || plan.backends.iter().filter(|backend| backend.caches());
    text.family("cache_requests_total", "counter", "Calls of a kind that a cache is for.");
    for backend in cached() {
        let stats = board.cache(backend.id);
        let counts = [stats.hits, stats.misses, stats.bypassed];
        for (result, count) in Use::NAMES.iter().zip(counts) {
            text.sample(&[("backend", &backend.name), ("result", result)], count);
        }
    }
    type Held = fn(&CacheStats) -> u64;
    let held: [(&str, &str, Held); 2] = [
        ("cache_entries", "Answers that are kept.", |stats| stats.entries),
        ("cache_bytes", "Bytes of the answers that are kept.", |stats| stats.bytes),
    ];
    for (name, help, value) in held {
        text.family(name, "gauge", help);
        for backend in cached() {
            text.sample(&[("backend", &backend.name)], value(&board.cache(backend.id)));
        }
    }
    text.family("coalesced_total", "counter", "Calls that ran together with another one.");
    for backend in plan.backends.iter().filter(|backend| backend.merges()) {
        text.sample(&[("backend", &backend.name)], board.cache(backend.id).merged);
    }
}

/// Children of a backend: those of sessions, or the one that all share.
pub(super) fn children(board: &Board, backend: &BackendPlan) -> u32 {
    board.children(backend.id).max(u32::from(board.state(backend.id) == State::Up))
}

/// What the kernel knows of this process (proc(5)); a file that cannot be read has no line.
fn process(text: &mut Text, metrics: &Metrics) {
    text.family("worker_busy_seconds_total", "counter", "Processor time of a worker's thread.");
    for (worker, thread) in metrics.threads().enumerate().filter(|(_, thread)| *thread != 0) {
        if let Some(busy) = thread_seconds(thread) {
            text.sample(&[("worker", &worker.to_string())], busy);
        }
    }
    text.common_family("process_cpu_seconds_total", "counter", "Processor time.");
    if let Some(seconds) = stat_seconds("/proc/self/stat") {
        text.sample(&[], seconds);
    }
    let resident = || -> Option<u64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    text.common_family("process_resident_memory_bytes", "gauge", "Resident memory.");
    if let Some(kib) = resident() {
        text.sample(&[], kib * 1024);
    }
    text.common_family("process_open_fds", "gauge", "Open file descriptors.");
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One is of this very look.
        text.sample(&[], files.count().saturating_sub(1));
    }
}

/// Processor time of a thread of this process.
fn thread_seconds(thread: u32) -> Option<f64> {
    let exact = || -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
    };
    // Not every kernel keeps the exact time.
    exact().or_else(|| stat_seconds(&format!("/proc/self/task/{thread}/stat")))
}

/// Processor time of user and system, in ticks of a hundredth of a second or so.
fn stat_seconds(path: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    // The name stands in brackets and may contain anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / rustix::param::clock_ticks_per_second() as f64)
}
