//! Owns: the counters and histograms of each worker, and their sums.
//! Never: a lock; a label that is not from a list of known words.
//! Next: `prometheus`, the text that they become.
//!
//! Every cell has one writer, its worker, which adds by a load and a store: a fraction of a
//! nanosecond, where one cell for all workers would cost a locked instruction and a cache line
//! that wanders. Readers add the workers' cells up and may see a sum that is some calls old.
//!
//! What has a backend for a label stands in a block of cells of that backend's own, so that backends
//! may come and go: which backend counts where is a [`Table`], made anew by each reload.
//!
//! To add a metric: one line in `families!` below, and one call of [`Meter::add`] or
//! [`Meter::time`] where it happens.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ahash::AHashMap;
use arc_swap::{ArcSwap, ArcSwapOption};

use crate::limits;
use crate::plan::{BackendId, WorkerId, slot};

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
    /// The names of the backends, then `proxy`; only ever the first label.
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

/// One family's place in every block of cells.
#[derive(Debug)]
pub struct Family<const N: usize> {
    at: usize,
    /// Of the labels; 0 = the backend, which says in which block.
    sizes: [usize; N],
}

impl<const N: usize> Family<N> {
    /// The backend among the labels; [`PROXY`] if it is none of them.
    fn backend(&self, labels: [usize; N]) -> BackendId {
        match (self.sizes.first(), labels.first()) {
            (Some(0), Some(backend)) => *backend,
            _ => PROXY,
        }
    }

    fn index(&self, labels: [usize; N]) -> usize {
        let mut index = 0;
        for (size, label) in self.sizes.iter().zip(labels).filter(|(size, _)| **size != 0) {
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
            table: ArcSwap<Table>,
            /// Cells of one worker in one block.
            cells: usize,
            blocks_made: AtomicUsize,
            methods: &'static [&'static str],
            workers: Box<[Worker]>,
            enabled: AtomicBool,
            /// Rare enough for one cell that all threads write.
            lost: [AtomicU64; Lost::NAMES.len()],
            /// Why, for as long as it goes on.
            faults: [ArcSwapOption<String>; Lost::NAMES.len()],
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
                    Words::Backends => 0,
                    Words::Methods => methods.len(),
                    Words::Fixed(words) => words.len(),
                };
                let mut next = 0;
                $(let $field = {
                    let sizes = [$(size({ #[allow(unused_imports)] use Words::*; $words }),)*];
                    let at = next;
                    let rows = sizes.iter().filter(|size| **size != 0).product::<usize>();
                    next += rows * families!(@width $kind);
                    families!(@make $kind Family { at, sizes })
                };)*
                let own = Arc::new(Block::new(0, "proxy".into(), workers, next));
                let table = Table { own, blocks: Vec::new(), order: Vec::new() };
                let metrics = Metrics {
                    $($field,)*
                    table: ArcSwap::from_pointee(table),
                    cells: next,
                    blocks_made: AtomicUsize::new(0),
                    methods,
                    workers: (0..workers).map(|_| Worker::new()).collect(),
                    enabled: AtomicBool::new(enabled),
                    lost: Default::default(),
                    faults: Default::default(),
                };
                metrics.switch(&backends.into_iter().enumerate().collect::<Vec<_>>());
                Arc::new(metrics)
            }

            /// The sums of all families over the backends of a table.
            pub fn sums<'t>(&self, table: &'t Table) -> Vec<FamilySum<'t>> {
                vec![$({
                    let words: &[Words] = &[$({ #[allow(unused_imports)] use Words::*; $words }),*];
                    let at = families!(@at $kind self.$field);
                    FamilySum {
                        name: $name,
                        help: $help,
                        labels: &[$(stringify!($label)),*],
                        bounds: families!(@bounds $kind),
                        rows: self.rows(table, words, at, families!(@width $kind)),
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
        "The part of a request's time in which no backend was at work." [];
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
        self.enabled.load(Ordering::Relaxed)
    }

    /// Whether anybody counts from now on.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// From now on these are the backends that are read; the table, for workers to count by. One that
    /// has the name of an earlier one counts on where that stopped.
    pub fn switch(&self, backends: &[(BackendId, Arc<str>)]) -> Arc<Table> {
        let old = self.table.load_full();
        let mut table = Table { own: old.own.clone(), blocks: Vec::new(), order: Vec::new() };
        for (id, name) in backends {
            let known = table.order.iter().chain(&old.order).find(|block| block.name == *name);
            let block = known.cloned().unwrap_or_else(|| {
                let number = self.blocks_made.fetch_add(1, Ordering::Relaxed) + 1;
                Arc::new(Block::new(number, name.clone(), self.workers.len(), self.cells))
            });
            if !table.order.iter().any(|known| Arc::ptr_eq(known, &block)) {
                table.order.push(block.clone());
            }
            if table.blocks.len() <= slot(*id) {
                table.blocks.resize(slot(*id) + 1, None);
            }
            table.blocks[slot(*id)] = Some((*id, block));
        }
        let table = Arc::new(table);
        self.table.store(table.clone());
        table
    }

    /// Which backend counts where, and is read.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Lines or spans were dropped, since nobody took them in time.
    pub fn lose(&self, what: Lost, count: u64) {
        self.lost[what as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// What stands in the way of lines or spans from now on; `None` = nothing.
    pub fn set_fault(&self, what: Lost, fault: Option<String>) {
        self.faults[what as usize].store(fault.map(Arc::new));
    }

    /// What stands in their way.
    pub fn fault(&self, what: Lost) -> Option<Arc<String>> {
        self.faults[what as usize].load_full()
    }

    /// How many were lost.
    pub fn lost(&self, what: usize) -> u64 {
        self.lost[what].load(Ordering::Relaxed)
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

    fn rows<'t>(
        &self,
        table: &'t Table,
        words: &[Words],
        at: usize,
        width: usize,
    ) -> Vec<(Vec<&'t str>, Vec<u64>)> {
        let by_backend = matches!(words.first(), Some(Words::Backends));
        let words: Vec<&'static [&'static str]> = words
            .iter()
            .filter_map(|words| match words {
                Words::Backends => None,
                Words::Methods => Some(self.methods),
                Words::Fixed(words) => Some(*words),
            })
            .collect();
        let count = words.iter().map(|words| words.len()).product::<usize>();
        let mut rows = Vec::new();
        for block in table.all().filter(|block| by_backend || block.number == 0) {
            for row in 0..count {
                let cells: Vec<u64> =
                    (0..width).map(|cell| block.sum(at + row * width + cell)).collect();
                // What has no label is always there: its absence would say something else.
                if (words.is_empty() && !by_backend) || cells.iter().any(|cell| *cell != 0) {
                    let mut rest = row;
                    let mut labels: Vec<&'t str> = Vec::with_capacity(words.len() + 1);
                    for words in words.iter().rev() {
                        labels.push(words[rest % words.len()]);
                        rest /= words.len();
                    }
                    labels.extend(by_backend.then_some(&*block.name));
                    labels.reverse();
                    rows.push((labels, cells));
                }
            }
        }
        rows
    }

    /// Every worker's counts of tools, of the backends of a table: the number of the backend's
    /// `Block`, its name, that of the tool or nothing, and a count for each outcome.
    pub fn tools<'t>(
        &'t self,
        table: &'t Table,
    ) -> impl Iterator<Item = (usize, &'t str, &'t str, [u64; Outcome::NAMES.len()])> {
        let named = self.workers.iter().flat_map(move |worker| {
            worker.tools.iter().filter_map(move |slot| {
                let (number, name) = slot.name.get()?;
                let block = table.all().find(|block| block.number == *number)?;
                Some((block.number, &*block.name, &**name, slot.counts.read()))
            })
        });
        let others = table.all().flat_map(|block| {
            let counts = block.workers.iter().map(|cells| cells.others.read());
            counts.map(move |counts| (block.number, &*block.name, "", counts))
        });
        named.chain(others)
    }
}

/// Stands for the proxy itself where a backend is asked for.
pub const PROXY: BackendId = usize::MAX;

/// Which backend counts where. Immutable: a reload makes another one.
pub struct Table {
    /// Of the proxy itself, and of what has no backend.
    own: Arc<Block>,
    /// By place.
    blocks: Vec<Option<(BackendId, Arc<Block>)>>,
    /// In the order of the file.
    order: Vec<Arc<Block>>,
}

impl Table {
    /// All blocks, the proxy's own last.
    fn all(&self) -> impl Iterator<Item = &Block> {
        self.order.iter().chain(std::iter::once(&self.own)).map(|block| &**block)
    }

    /// Whether a block of that number is in it.
    pub fn has(&self, number: usize) -> bool {
        self.all().any(|block| block.number == number)
    }

    /// What is counted of a backend that has gone, is the proxy's own.
    fn block(&self, backend: BackendId) -> &Block {
        match self.blocks.get(slot(backend)) {
            Some(Some((id, block))) if *id == backend => block,
            _ => &self.own,
        }
    }
}

/// What is counted of one backend.
struct Block {
    /// No other block ever has it; 0 = the proxy's own.
    number: usize,
    name: Arc<str>,
    workers: Box<[Cells]>,
}

/// Cells of one worker; a whole number of cache lines, which no other worker writes.
struct Cells {
    lines: Box<[Line]>,
    /// Tools that have no slot of their own.
    others: Counts,
}

impl Block {
    fn new(number: usize, name: Arc<str>, workers: usize, cells: usize) -> Block {
        let cells = || Cells {
            lines: (0..cells.div_ceil(16)).map(|_| Line::default()).collect(),
            others: Counts::default(),
        };
        Block { number, name, workers: (0..workers).map(|_| cells()).collect() }
    }

    fn sum(&self, cell: usize) -> u64 {
        self.workers.iter().map(|cells| cells.cell(cell).load(Ordering::Relaxed)).sum()
    }
}

impl Cells {
    fn cell(&self, index: usize) -> &AtomicU64 {
        &self.lines[index / 16].0[index % 16]
    }
}

/// What one worker counts beside.
struct Worker {
    tools: Box<[ToolSlot]>,
    thread: AtomicU32,
}

/// Two cache lines, since processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; 16]);

#[derive(Default)]
#[repr(align(128))]
struct Counts([AtomicU64; Outcome::NAMES.len()]);

impl Counts {
    fn read(&self) -> [u64; Outcome::NAMES.len()] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct ToolSlot {
    /// The number of the backend's block, and the tool. Written once, by the worker; nobody waits
    /// for it.
    name: OnceLock<(usize, Box<str>)>,
    counts: Counts,
}

impl Worker {
    fn new() -> Worker {
        Worker {
            tools: (0..limits::TOOL_SERIES_MAX).map(|_| ToolSlot::default()).collect(),
            thread: AtomicU32::new(0),
        }
    }
}

/// Adds to a cell that only this thread writes.
fn add(cell: &AtomicU64, by: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Where a tool's calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolRow(u32);

/// Rows of tools by their names.
type Rows = AHashMap<Box<[u8]>, ToolRow>;

/// A worker's own hand on its cells.
pub struct Meter {
    metrics: Arc<Metrics>,
    me: WorkerId,
    table: RefCell<Arc<Table>>,
    /// Rows of tools that were called, by the place of the backend and with its number; the proxy's
    /// own come first.
    tools: RefCell<Vec<(BackendId, Rows)>>,
    named: std::cell::Cell<u32>,
}

impl Meter {
    /// Of worker `me`, which must be the only one to use it.
    pub fn new(metrics: &Arc<Metrics>, me: WorkerId) -> Meter {
        let table = RefCell::new(metrics.table());
        let tools = RefCell::default();
        Meter { metrics: metrics.clone(), me, table, tools, named: Default::default() }
    }

    /// Counts by this table from now on.
    pub fn switch(&self, table: Arc<Table>) {
        self.tools.borrow_mut().truncate(table.blocks.len() + 1);
        *self.table.borrow_mut() = table;
    }

    /// Whether anybody counts.
    pub fn enabled(&self) -> bool {
        self.metrics.enabled()
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
        let table = self.table.borrow();
        let mine = &table.block(family.backend(labels)).workers[self.me];
        add(mine.cell(family.at + family.index(labels)), by);
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
        let table = self.table.borrow();
        let mine = &table.block(family.backend(labels)).workers[self.me];
        add(mine.cell(at + bucket), 1);
        add(mine.cell(at + BUCKETS + 1), nanos);
    }

    /// The name of a row's tool.
    pub fn tool_name(&self, row: ToolRow) -> Option<&str> {
        let (_, name) = self.mine().tools.get(row.0 as usize)?.name.get()?;
        Some(name)
    }

    /// The row of a tool that has one.
    pub fn known_tool(&self, backend: BackendId, name: &[u8]) -> Option<ToolRow> {
        let tools = self.tools.borrow();
        let (owner, rows) = tools.get(row_of(backend))?;
        if *owner == backend { rows.get(name).copied() } else { None }
    }

    /// The row of a tool; `None` if it is not in the catalogue, as `exists` says, or there are too
    /// many. Asked only for tools that have no row yet.
    pub fn tool(
        &self,
        backend: BackendId,
        name: &str,
        exists: impl FnOnce() -> bool,
    ) -> Option<ToolRow> {
        if let Some(row) = self.known_tool(backend, name.as_bytes()) {
            return Some(row);
        }
        if !exists() {
            return None;
        }
        let number = self.table.borrow().block(backend).number;
        let named = &self.mine().tools[..self.named.get() as usize];
        let is_it = |slot: &ToolSlot| {
            slot.name.get().is_some_and(|(of, known)| *of == number && **known == *name)
        };
        // An earlier backend of that name may have had it.
        let row = match named.iter().position(is_it) {
            Some(row) => row as u32,
            None => {
                let row = self.named.get();
                let slot = self.mine().tools.get(row as usize)?;
                let _ = slot.name.set((number, name.into()));
                self.named.set(row + 1);
                row
            }
        };
        let mut tools = self.tools.borrow_mut();
        let at = row_of(backend);
        if tools.len() <= at {
            tools.resize_with(at + 1, Default::default);
        }
        let (owner, rows) = &mut tools[at];
        if *owner != backend {
            rows.clear();
            *owner = backend;
        }
        rows.insert(name.as_bytes().into(), ToolRow(row));
        Some(ToolRow(row))
    }

    /// Counts a call of a tool.
    pub fn tool_call(&self, backend: BackendId, row: Option<ToolRow>, outcome: Outcome) {
        let table = self.table.borrow();
        let counts = match row {
            Some(row) => self.mine().tools.get(row.0 as usize).map(|slot| &slot.counts),
            None => Some(&table.block(backend).workers[self.me].others),
        };
        if let Some(counts) = counts {
            add(&counts.0[outcome as usize], 1);
        }
    }
}

/// Where the tools of a backend stand.
fn row_of(backend: BackendId) -> usize {
    if backend == PROXY { 0 } else { slot(backend) + 1 }
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
        two.add(|m| &m.requests, [PROXY, 1, Outcome::Refused as usize], 1);
        one.time(|m| &m.durations, [0, 1], Duration::from_micros(100));
        two.time(|m| &m.durations, [0, 1], Duration::from_micros(101));
        two.time(|m| &m.durations, [0, 1], Duration::from_secs(3600));
        let table = metrics.table();
        let sums = metrics.sums(&table);
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
        let table = metrics.table();
        let named = || metrics.tools(&table).filter(|(_, _, name, _)| !name.is_empty()).count();
        assert_eq!(named(), 0);
        let row = meter.tool(1, "t", || true);
        assert!(row.is_some() && row == meter.tool(1, "t", || panic!("it is known")));
        assert_ne!(row, meter.tool(0, "t", || true), "another backend's");
        for n in 0..2 * limits::TOOL_SERIES_MAX {
            meter.tool(0, &format!("known{n}"), || true);
        }
        assert_eq!(named(), limits::TOOL_SERIES_MAX);
        meter.tool_call(1, row, Outcome::Ok);
        meter.tool_call(1, None, Outcome::Error);
        let count = |name: &str, of: usize| {
            let found = metrics.tools(&table).filter(|(_, b, n, _)| *b == "b" && *n == name);
            found.map(|(_, _, _, counts)| counts[of]).sum::<u64>()
        };
        assert_eq!((count("t", 0), count("", 4)), (1, 1));
    }

    #[test]
    fn backends_come_and_go() {
        let metrics = metrics();
        let meter = Meter::new(&metrics, 0);
        let count = |backend| {
            meter.add(|m| &m.requests, [backend, 0, Outcome::Ok as usize], 1);
            let row = meter.tool(backend, "t", || true);
            meter.tool_call(backend, row, Outcome::Ok);
        };
        let seen = || {
            let table = metrics.table();
            let sums = metrics.sums(&table);
            let requests = sums.iter().find(|sum| sum.name == "requests_total").unwrap();
            let requests =
                requests.rows.iter().map(|(labels, n)| format!("{}={}", labels[0], n[0]));
            let mut tools: Vec<(String, u64)> = Vec::new();
            for (_, backend, tool, counts) in metrics.tools(&table).filter(|t| !t.2.is_empty()) {
                match tools.iter_mut().find(|(known, _)| *known == format!("{backend}/{tool}")) {
                    Some((_, sum)) => *sum += counts[0],
                    None => tools.push((format!("{backend}/{tool}"), counts[0])),
                }
            }
            let tools = tools.into_iter().map(|(name, sum)| format!("{name}={sum}"));
            requests.chain(tools).collect::<Vec<_>>().join(" ")
        };
        count(0);
        count(1);
        assert_eq!(seen(), "a=1 b=1 a/t=1 b/t=1");
        // The first leaves, its place goes to another one, and the second is reached in another way.
        let (other, second) = (crate::plan::number(0, 1), crate::plan::number(2, 0));
        meter.switch(metrics.switch(&[(second, "b".into()), (other, "c".into())]));
        count(other);
        count(second);
        assert_eq!(seen(), "b=2 c=1 b/t=2 c/t=1");
        // What a call of one that has gone still counts is told of nobody else.
        count(0);
        assert_eq!(seen(), "b=2 c=1 proxy=1 b/t=2 c/t=1 proxy/t=1");
    }

    #[test]
    fn words_and_numbers_agree() {
        assert_eq!(Outcome::Error as usize + 1, Outcome::NAMES.len());
        assert_eq!(Reason::Capacity as usize + 1, Reason::NAMES.len());
        assert_eq!(AttemptKind::Mirror as usize + 1, AttemptKind::NAMES.len());
        assert_eq!(Mirrored::Dropped as usize + 1, Mirrored::NAMES.len());
    }
}
