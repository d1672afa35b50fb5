//! Owns: the counters and histograms of each worker, and their sums.
//! Never: a lock; a label that is not from a list of known words.
//! Next: `prometheus`, the text that they become.
//!
//! Every cell has one writer, its worker, which adds by a load and a store: a fraction of a
//! nanosecond, where one cell for all workers would cost a locked instruction and a cache line
//! that wanders. Readers add the workers' cells up and may see a sum that is some calls old.
//!
//! To add a metric: one line in `families!` below, and one call of [`Meter::add`] or
//! [`Meter::time`] where it happens.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ahash::AHashMap;

use crate::limits;
use crate::plan::WorkerId;

/// How something ended, as metrics and lines call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result.
    Ok,
    /// With a result that says `isError`.
    ToolError,
    /// Not for this caller.
    Denied,
    /// Not taken on, by the proxy's own decision.
    Refused,
    /// With an error.
    Error,
}

impl Outcome {
    /// Their words, in the order of their numbers.
    pub const NAMES: &'static [&'static str] = &["ok", "tool_error", "denied", "refused", "error"];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        Outcome::NAMES[self as usize]
    }
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rate limit.
    Rate,
    /// No place among the calls of a backend.
    Concurrency,
    /// An open circuit breaker.
    Breaker,
    /// An ejected backend.
    Ejected,
    /// Hidden by a rule.
    Filter,
    /// Not for this caller.
    Auth,
    /// Too large.
    Size,
    /// The proxy is full, or ending.
    Capacity,
}

impl Reason {
    /// Their words, in the order of their numbers.
    pub const NAMES: &'static [&'static str] =
        &["rate", "concurrency", "breaker", "ejected", "filter", "auth", "size", "capacity"];
}

/// What kind of attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptKind {
    /// The first of a call.
    First,
    /// Another one after it failed.
    Retry,
    /// Another one beside it.
    Hedge,
    /// A copy for another backend.
    Mirror,
}

impl AttemptKind {
    /// Their words, in the order of their numbers.
    pub const NAMES: &'static [&'static str] = &["first", "retry", "hedge", "mirror"];
}

/// How the copy of a call ended, beside the call itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// Alike.
    Same,
    /// Otherwise.
    Different,
    /// The call has no end to compare with: its client left, or the proxy refused it.
    Unknown,
    /// It was not sent: too many were under way.
    Dropped,
}

impl Mirrored {
    /// Their words, in the order of their numbers.
    pub const NAMES: &'static [&'static str] = &["same", "different", "unknown", "dropped"];
}

/// What can be lost on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A line of the audit or access log.
    Line,
    /// A span.
    Span,
}

impl Lost {
    /// Their words, in the order of their numbers.
    pub const NAMES: &'static [&'static str] = &["line", "span"];
}

/// What a label's values are.
#[derive(Clone, Copy)]
enum Words {
    /// The names of the backends, then `proxy`.
    Backends,
    /// The methods that are known, then `other`.
    Methods,
    /// These.
    Fixed(&'static [&'static str]),
}

/// Bounds of buckets, in microseconds.
type Bounds = &'static [u64; BUCKETS];
const BUCKETS: usize = 18;
/// 100 µs to 60 s.
const DURATION: Bounds = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
/// 5 µs to 1 s.
const OVERHEAD: Bounds = &[
    5, 10, 20, 30, 50, 75, 100, 150, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000,
    250_000, 1_000_000,
];
/// Cells of one histogram: a bucket for each bound and one beyond, then the sum in nanoseconds.
const HISTOGRAM: usize = BUCKETS + 2;

/// One family's place in every worker's cells.
#[derive(Debug)]
pub struct Family<const N: usize> {
    at: usize,
    sizes: [usize; N],
}

impl<const N: usize> Family<N> {
    fn index(&self, labels: [usize; N]) -> usize {
        let mut index = 0;
        for (size, label) in self.sizes.iter().zip(labels) {
            debug_assert!(label < *size);
            index = index * size + label;
        }
        index
    }
}

/// A family of histograms.
#[derive(Debug)]
pub struct Histograms<const N: usize>(Family<N>, Bounds);

/// What a reader is told of one family.
pub struct FamilySum<'a> {
    /// Without the prefix of all.
    pub name: &'static str,
    /// In words.
    pub help: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// `None` = counters.
    pub bounds: Option<&'static [u64]>,
    /// Label values and cells, of those that are not all zero: one cell, or the buckets and the
    /// sum.
    pub rows: Vec<(Vec<&'a str>, Vec<u64>)>,
}

// Of a line `requests: counters 3 "requests_total" "Help." [backend: Backends, ...];` it makes the
// field `pub requests: Family<3>` of `Metrics`, its place in the cells, and what readers are told.
macro_rules! families {
    ($($field:ident: $kind:tt $n:literal $name:literal $help:literal [$($label:ident: $words:expr),*];)*) => {
        /// The metrics of all workers.
        pub struct Metrics {
            $(#[doc = $help] pub $field: families!(@type $kind $n),)*
            backends: Vec<Arc<str>>,
            methods: &'static [&'static str],
            workers: Box<[Worker]>,
            enabled: bool,
            /// Rare enough for one cell that all threads write.
            lost: [AtomicU64; Lost::NAMES.len()],
        }

        impl Metrics {
            /// Zero everywhere. `methods` are the words that a method may have, `other` the last.
            pub fn new(
                enabled: bool,
                workers: usize,
                backends: Vec<Arc<str>>,
                methods: &'static [&'static str],
            ) -> Arc<Metrics> {
                let size = |words: Words| match words {
                    Words::Backends => backends.len() + 1,
                    Words::Methods => methods.len(),
                    Words::Fixed(words) => words.len(),
                };
                let mut next = 0;
                $(let $field = {
                    let sizes = [$(size({ #[allow(unused_imports)] use Words::*; $words }),)*];
                    let at = next;
                    next += sizes.iter().product::<usize>() * families!(@width $kind);
                    families!(@make $kind Family { at, sizes })
                };)*
                let rows = backends.len() + 1;
                let workers = (0..workers).map(|_| Worker::new(next, rows)).collect();
                let lost = Default::default();
                Arc::new(Metrics { $($field,)* backends, methods, workers, enabled, lost })
            }

            /// The sums of all families.
            pub fn sums(&self) -> Vec<FamilySum<'_>> {
                vec![$({
                    let words: &[Words] = &[$({ #[allow(unused_imports)] use Words::*; $words }),*];
                    let at = families!(@at $kind self.$field);
                    FamilySum {
                        name: $name,
                        help: $help,
                        labels: &[$(stringify!($label)),*],
                        bounds: families!(@bounds $kind),
                        rows: self.rows(words, at, families!(@width $kind)),
                    }
                },)*]
            }
        }
    };
    (@type counters $n:literal) => { Family<$n> };
    (@type $bounds:ident $n:literal) => { Histograms<$n> };
    (@width counters) => { 1 };
    (@width $bounds:ident) => { HISTOGRAM };
    (@make counters $family:expr) => { $family };
    (@make $bounds:ident $family:expr) => { Histograms($family, $bounds) };
    (@at counters $field:expr) => { $field.at };
    (@at $bounds:ident $field:expr) => { $field.0.at };
    (@bounds counters) => { None };
    (@bounds $bounds:ident) => { Some(&$bounds[..]) };
}

families! {
    requests: counters 3 "requests_total"
        "MCP requests, by the backend that they were for, and how they ended."
        [backend: Backends, method: Methods, status: Fixed(Outcome::NAMES)];
    durations: DURATION 2 "request_duration_seconds"
        "From the head of an MCP request to the end of its answer."
        [backend: Backends, method: Methods];
    overhead: OVERHEAD 0 "overhead_seconds"
        "The part of it in which no backend was at work." [];
    attempts: counters 2 "attempts_total"
        "Attempts of calls at backends."
        [backend: Backends, kind: Fixed(AttemptKind::NAMES)];
    mirrored: counters 2 "mirrored_total"
        "Copies for mirrors, by whether they ended as the calls did: ok, tool_error or error."
        [backend: Backends, result: Fixed(Mirrored::NAMES)];
    refused: counters 2 "refused_total"
        "Requests that the proxy refused by its own decision."
        [backend: Backends, reason: Fixed(Reason::NAMES)];
}

impl Metrics {
    /// Whether anybody counts.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Lines or spans were dropped, since nobody took them in time.
    pub fn lose(&self, what: Lost, count: u64) {
        self.lost[what as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// How many were lost.
    pub fn lost(&self, what: usize) -> u64 {
        self.lost[what].load(Ordering::Relaxed)
    }

    /// The row of [`Family`] that stands for the proxy itself.
    pub fn proxy(&self) -> usize {
        self.backends.len()
    }

    /// A row's name.
    pub fn backend(&self, row: usize) -> &str {
        self.backends.get(row).map_or("proxy", |name| name)
    }

    /// Tells which thread a worker is, for its processor time.
    pub fn set_thread(&self, worker: WorkerId, thread: u32) {
        if let Some(worker) = self.workers.get(worker) {
            worker.thread.store(thread, Ordering::Relaxed);
        }
    }

    /// The threads of the workers; 0 = not known.
    pub fn threads(&self) -> impl Iterator<Item = u32> + '_ {
        self.workers.iter().map(|worker| worker.thread.load(Ordering::Relaxed))
    }

    fn rows(&self, words: &[Words], at: usize, width: usize) -> Vec<(Vec<&str>, Vec<u64>)> {
        let word = |words: Words, index: usize| match words {
            Words::Backends => self.backend(index),
            Words::Methods => self.methods[index],
            Words::Fixed(words) => words[index],
        };
        let size = |words: Words| match words {
            Words::Backends => self.backends.len() + 1,
            Words::Methods => self.methods.len(),
            Words::Fixed(words) => words.len(),
        };
        let count = words.iter().map(|words| size(*words)).product::<usize>();
        let mut rows = Vec::new();
        for row in 0..count {
            let cells: Vec<u64> =
                (0..width).map(|cell| self.sum(at + row * width + cell)).collect();
            // What has no label is always there: its absence would say something else.
            if words.is_empty() || cells.iter().any(|cell| *cell != 0) {
                let mut rest = row;
                let mut labels: Vec<&str> = words
                    .iter()
                    .rev()
                    .map(|words| {
                        let size = size(*words);
                        let label = word(*words, rest % size);
                        rest /= size;
                        label
                    })
                    .collect();
                labels.reverse();
                rows.push((labels, cells));
            }
        }
        rows
    }

    fn sum(&self, cell: usize) -> u64 {
        self.workers.iter().map(|worker| worker.cell(cell).load(Ordering::Relaxed)).sum()
    }

    /// Every worker's counts of tools: row of the backend, name, and a count for each outcome.
    pub fn tools(&self) -> impl Iterator<Item = (usize, &str, [u64; Outcome::NAMES.len()])> {
        let read = |counts: &Counts| counts.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        self.workers.iter().flat_map(move |worker| {
            let named = worker.tools.iter().filter_map(move |slot| {
                let (backend, name) = slot.name.get()?;
                Some((*backend, &**name, read(&slot.counts)))
            });
            let others = worker.others.iter().enumerate();
            named.chain(others.map(move |(backend, counts)| (backend, "", read(counts))))
        })
    }
}

/// Cells of one worker; a whole number of cache lines, which no other worker writes.
struct Worker {
    cells: Box<[Line]>,
    tools: Box<[ToolSlot]>,
    /// Tools beyond those, by backend.
    others: Box<[Counts]>,
    thread: AtomicU32,
}

/// Two cache lines, since processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; 16]);

#[derive(Default)]
struct Counts([AtomicU64; Outcome::NAMES.len()]);

#[derive(Default)]
struct ToolSlot {
    /// Written once, by the worker; nobody waits for it.
    name: OnceLock<(usize, Box<str>)>,
    counts: Counts,
}

impl Worker {
    fn new(cells: usize, backends: usize) -> Worker {
        Worker {
            cells: (0..cells.div_ceil(16)).map(|_| Line::default()).collect(),
            tools: (0..limits::TOOL_SERIES_MAX).map(|_| ToolSlot::default()).collect(),
            others: (0..backends).map(|_| Counts::default()).collect(),
            thread: AtomicU32::new(0),
        }
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        &self.cells[index / 16].0[index % 16]
    }
}

/// Adds to a cell that only this thread writes.
fn add(cell: &AtomicU64, by: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Where a tool's calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolRow(u32);

/// A worker's own hand on its cells.
pub struct Meter {
    metrics: Arc<Metrics>,
    me: WorkerId,
    /// Rows of tools that were called, by backend.
    tools: RefCell<Vec<AHashMap<Box<[u8]>, ToolRow>>>,
    named: std::cell::Cell<u32>,
}

impl Meter {
    /// Of worker `me`, which must be the only one to use it.
    pub fn new(metrics: &Arc<Metrics>, me: WorkerId) -> Meter {
        let tools = RefCell::new(vec![AHashMap::new(); metrics.backends.len() + 1]);
        Meter { metrics: metrics.clone(), me, tools, named: Default::default() }
    }

    /// Whether anybody counts.
    pub fn enabled(&self) -> bool {
        self.metrics.enabled
    }

    /// See [`Metrics::proxy`].
    pub fn proxy(&self) -> usize {
        self.metrics.proxy()
    }

    /// All that is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn mine(&self) -> &Worker {
        &self.metrics.workers[self.me]
    }

    /// Adds to a counter.
    pub fn add<const N: usize>(
        &self,
        family: impl Fn(&Metrics) -> &Family<N>,
        labels: [usize; N],
        by: u64,
    ) {
        let family = family(&self.metrics);
        add(self.mine().cell(family.at + family.index(labels)), by);
    }

    /// Adds a time to a histogram.
    pub fn time<const N: usize>(
        &self,
        family: impl Fn(&Metrics) -> &Histograms<N>,
        labels: [usize; N],
        time: Duration,
    ) {
        let Histograms(family, bounds) = family(&self.metrics);
        let at = family.at + family.index(labels) * HISTOGRAM;
        let nanos = time.as_nanos() as u64;
        let bucket = bounds.partition_point(|bound| bound * 1000 < nanos);
        let mine = self.mine();
        add(mine.cell(at + bucket), 1);
        add(mine.cell(at + BUCKETS + 1), nanos);
    }

    /// The name of a row's tool.
    pub fn tool_name(&self, row: ToolRow) -> Option<&str> {
        let (_, name) = self.mine().tools.get(row.0 as usize)?.name.get()?;
        Some(name)
    }

    /// The row of a tool that has one.
    pub fn known_tool(&self, backend: usize, name: &[u8]) -> Option<ToolRow> {
        self.tools.borrow().get(backend)?.get(name).copied()
    }

    /// The row of a tool; `None` if it is not in the catalogue, as `exists` says, or there are too
    /// many. Asked only for tools that have no row yet.
    pub fn tool(
        &self,
        backend: usize,
        name: &str,
        exists: impl FnOnce() -> bool,
    ) -> Option<ToolRow> {
        if let Some(row) = self.known_tool(backend, name.as_bytes()) {
            return Some(row);
        }
        let row = self.named.get();
        let slot = self.mine().tools.get(row as usize)?;
        if !exists() {
            return None;
        }
        let _ = slot.name.set((backend, name.into()));
        self.named.set(row + 1);
        self.tools.borrow_mut().get_mut(backend)?.insert(name.as_bytes().into(), ToolRow(row));
        Some(ToolRow(row))
    }

    /// Counts a call of a tool.
    pub fn tool_call(&self, backend: usize, row: Option<ToolRow>, outcome: Outcome) {
        let mine = self.mine();
        let counts = match row {
            Some(row) => mine.tools.get(row.0 as usize).map(|slot| &slot.counts),
            None => mine.others.get(backend),
        };
        if let Some(counts) = counts {
            add(&counts.0[outcome as usize], 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Arc<Metrics> {
        Metrics::new(true, 2, vec!["a".into(), "b".into()], &["tools/call", "other"])
    }

    #[test]
    fn sums_over_workers_with_their_labels() {
        let metrics = metrics();
        let (one, two) = (Meter::new(&metrics, 0), Meter::new(&metrics, 1));
        one.add(|m| &m.requests, [1, 0, Outcome::ToolError as usize], 2);
        two.add(|m| &m.requests, [1, 0, Outcome::ToolError as usize], 3);
        two.add(|m| &m.requests, [2, 1, Outcome::Refused as usize], 1);
        one.time(|m| &m.durations, [0, 1], Duration::from_micros(100));
        two.time(|m| &m.durations, [0, 1], Duration::from_micros(101));
        two.time(|m| &m.durations, [0, 1], Duration::from_secs(3600));
        let sums = metrics.sums();
        let rows = |name: &str| &sums.iter().find(|sum| sum.name == name).unwrap().rows;
        let expected = [
            (vec!["b", "tools/call", "tool_error"], vec![5]),
            (vec!["proxy", "other", "refused"], vec![1]),
        ];
        assert_eq!(rows("requests_total")[..], expected);
        let (labels, cells) = &rows("request_duration_seconds")[0];
        assert_eq!(labels[..], ["a", "other"]);
        assert_eq!((cells[0], cells[1], cells[BUCKETS]), (1, 1, 1));
        assert_eq!(cells[BUCKETS + 1], 3_600_000_201_000);
        // Without labels it is always there.
        assert_eq!(rows("overhead_seconds").len(), 1);
        assert!(rows("attempts_total").is_empty());
    }

    #[test]
    fn only_tools_of_the_catalogue_have_a_row_and_only_so_many() {
        let metrics = metrics();
        let meter = Meter::new(&metrics, 0);
        for n in 0..10_000 {
            assert_eq!(meter.tool(0, &format!("unknown{n}"), || false), None);
        }
        assert_eq!(metrics.tools().filter(|(_, name, _)| !name.is_empty()).count(), 0);
        let row = meter.tool(1, "t", || true);
        assert!(row.is_some() && row == meter.tool(1, "t", || panic!("it is known")));
        assert_ne!(row, meter.tool(0, "t", || true), "another backend's");
        for n in 0..2 * limits::TOOL_SERIES_MAX {
            meter.tool(0, &format!("known{n}"), || true);
        }
        let named = metrics.tools().filter(|(_, name, _)| !name.is_empty()).count();
        assert_eq!(named, limits::TOOL_SERIES_MAX);
        meter.tool_call(1, row, Outcome::Ok);
        meter.tool_call(1, None, Outcome::Error);
        let count = |name: &str, of: usize| {
            let mut found = metrics.tools().filter(|(b, n, _)| *b == 1 && *n == name);
            found.next().unwrap().2[of]
        };
        assert_eq!((count("t", 0), count("", 4)), (1, 1));
    }

    #[test]
    fn words_and_numbers_agree() {
        assert_eq!(Outcome::Error as usize + 1, Outcome::NAMES.len());
        assert_eq!(Reason::Capacity as usize + 1, Reason::NAMES.len());
        assert_eq!(AttemptKind::Mirror as usize + 1, AttemptKind::NAMES.len());
        assert_eq!(Mirrored::Dropped as usize + 1, Mirrored::NAMES.len());
    }
}
