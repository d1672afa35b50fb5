//! Owns: how far a run is, on standard error: a line that changes on a terminal, else a line for each
//! scenario.

use std::io::IsTerminal;
use std::time::Instant;

use crate::scenario::{Row, Scenario};

/// How far the run is, on standard error.
pub(crate) struct Progress {
    done: usize,
    total: usize,
    /// Rows of somebody else, and rounds: of every scenario.
    foreign: usize,
    rounds: usize,
    began: Instant,
    shown: String,
}

impl Progress {
    pub(crate) fn new(scenarios: &[Scenario], foreign: usize, rounds: usize) -> Progress {
        let total = scenarios.iter().map(|scenario| steps(scenario, foreign, rounds)).sum();
        Progress { done: 0, total, foreign, rounds, began: Instant::now(), shown: String::new() }
    }

    pub(crate) fn step(&mut self, what: &str) {
        let left = if self.done > 0 {
            let each = self.began.elapsed().as_secs_f64() / self.done as f64;
            format!(", about {:.0} s left", each * self.total.saturating_sub(self.done) as f64)
        } else {
            String::new()
        };
        self.done += 1;
        if std::io::stderr().is_terminal() {
            eprint!("\r{:<78}", format!("[{}/{}] {what}{left}", self.done, self.total));
        } else {
            // One line a scenario.
            let name = what.split(',').next().unwrap_or_default();
            if self.shown != name {
                self.shown = name.to_owned();
                eprintln!("[{}/{}] {name}{left}", self.done, self.total);
            }
        }
    }

    pub(crate) fn skip(&mut self, scenario: &Scenario) {
        self.done += steps(scenario, self.foreign, self.rounds);
    }

    pub(crate) fn clear(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r{:<78}\r", "");
        }
    }
}

/// Measurements of a scenario.
fn steps(scenario: &Scenario, foreign: usize, rounds: usize) -> usize {
    let direct = scenario.rows.iter().filter(|row| **row == Row::Direct).count();
    let rows = (scenario.rows.len() - direct) * scenario.workers.len() + direct + foreign;
    let rounds = rounds + usize::from(scenario.of_capacity.is_some());
    rows * if scenario.idle.is_some() { 1 } else { rounds }
}
