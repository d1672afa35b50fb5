//! Owns: the samples, and what is said of them.
//! Never: a figure of one round alone: the median counts, the range says how sure it is.

use std::fmt::Write;

use serde_json::{Value, json};

/// One measurement.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    /// CPU time per request of the process that is measured.
    pub(crate) cpu_micros: f64,
    pub(crate) rss_mib: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: String,
}

/// What was measured.
#[derive(Clone, PartialEq)]
pub(crate) struct Cell {
    pub(crate) row: String,
    pub(crate) connections: usize,
    pub(crate) size: usize,
}

pub(crate) struct Report {
    seconds: f64,
    rounds: usize,
    cells: Vec<(Cell, Vec<Sample>)>,
}

impl Report {
    pub(crate) fn new(seconds: f64, rounds: usize) -> Report {
        Report { seconds, rounds, cells: Vec::new() }
    }

    pub(crate) fn add(&mut self, cell: Cell, sample: Sample) {
        match self.cells.iter_mut().find(|(known, _)| *known == cell) {
            Some((_, samples)) => samples.push(sample),
            None => self.cells.push((cell, vec![sample])),
        }
    }

    pub(crate) fn errors(&self) -> u64 {
        self.cells.iter().flat_map(|(_, samples)| samples).map(|sample| sample.errors).sum()
    }

    pub(crate) fn first_error(&self) -> &str {
        let mut all = self.cells.iter().flat_map(|(_, samples)| samples);
        all.find(|sample| sample.errors > 0).map_or("", |sample| &sample.first_error)
    }

    fn samples(&self, row: &str, cell: &Cell) -> Option<&[Sample]> {
        let same =
            |c: &Cell| c.row == row && c.connections == cell.connections && c.size == cell.size;
        self.cells.iter().find(|(c, _)| same(c)).map(|(_, samples)| &samples[..])
    }

    /// Ratio of CPU per request to that of another row of the same cell, round by round.
    fn ratio(&self, cell: &Cell, samples: &[Sample], other: &str) -> Option<Spread> {
        let other = self.samples(other, cell)?;
        Some(Spread::of(samples.iter().zip(other).map(|(a, b)| a.cpu_micros / b.cpu_micros)))
    }

    /// The ratios that the goals are about: CPU to nginx with as many workers, stdio to HTTP.
    fn ratios(&self, cell: &Cell, samples: &[Sample]) -> (Option<Spread>, Option<Spread>) {
        let Some(rest) = cell.row.strip_prefix("mcp-proxy ") else { return (None, None) };
        let workers = rest.split(' ').next().unwrap_or_default();
        let nginx = self.ratio(cell, samples, &format!("nginx {workers}"));
        let stdio = rest.ends_with("stdio");
        let http =
            stdio.then(|| self.ratio(cell, samples, &format!("mcp-proxy {workers}"))).flatten();
        (nginx, http)
    }

    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let mut last = None;
        for (cell, samples) in &self.cells {
            if last != Some((cell.connections, cell.size)) {
                last = Some((cell.connections, cell.size));
                let _ = writeln!(
                    out,
                    "\n{} connection(s), results of {} B\n{:<20} {:>9} {:>8} {:>8} {:>8} {:>6}  {:>22} {:>18} {:>7} {:>8}",
                    cell.connections,
                    cell.size,
                    "",
                    "req/s",
                    "p50 us",
                    "p90 us",
                    "p99 us",
                    "errors",
                    "CPU us/req (range)",
                    "CPU to nginx",
                    "to http",
                    "RSS MiB",
                );
            }
            let of = |field: fn(&Sample) -> f64| Spread::of(samples.iter().map(field));
            let cpu = of(|s| s.cpu_micros);
            let (nginx, http) = self.ratios(cell, samples);
            let _ = writeln!(
                out,
                "{:<20} {:>9.0} {:>8.0} {:>8.0} {:>8.0} {:>6}  {:>22} {:>18} {:>7} {:>8.1}",
                cell.row,
                of(|s| s.requests_per_second).median,
                of(|s| s.p50).median,
                of(|s| s.p90).median,
                of(|s| s.p99).median,
                samples.iter().map(|s| s.errors).sum::<u64>(),
                cpu.text(),
                nginx.map_or("-".into(), |ratio| ratio.text()),
                http.map_or("-".into(), |ratio| format!("{:.2}", ratio.median)),
                of(|s| s.rss_mib).median,
            );
        }
        let _ = writeln!(
            out,
            "\nMedian of {} rounds of {} s, rows taken in turns, closed loop; CPU is that of the row's own\n\
             process with the kernel's share, 'direct' that of the backend; the clients' is in no row.",
            self.rounds, self.seconds,
        );
        out
    }

    pub(crate) fn json(&self) -> String {
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|(cell, samples)| {
                let of = |field: fn(&Sample) -> f64| samples.iter().map(field).collect::<Vec<_>>();
                let (nginx, http) = self.ratios(cell, samples);
                json!({
                    "row": cell.row,
                    "connections": cell.connections,
                    "size": cell.size,
                    "requests_per_second": of(|s| s.requests_per_second),
                    "p50_us": of(|s| s.p50),
                    "p90_us": of(|s| s.p90),
                    "p99_us": of(|s| s.p99),
                    "cpu_us_per_request": of(|s| s.cpu_micros),
                    "rss_mib": of(|s| s.rss_mib),
                    "errors": samples.iter().map(|s| s.errors).sum::<u64>(),
                    "cpu_to_nginx": nginx.map(|ratio| ratio.median),
                    "cpu_to_http": http.map(|ratio| ratio.median),
                })
            })
            .collect();
        let command: Vec<String> = std::env::args().skip(1).collect();
        let all = json!({
            "machine": machine(),
            "arguments": command,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "cells": cells,
        });
        serde_json::to_string_pretty(&all).expect("plain JSON")
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

/// Median and range.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = (at(last / 2) + at(last - last / 2)) / 2.0;
        Spread { median, least: at(0), most: at(last) }
    }

    fn text(&self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.least, self.most)
    }
}
