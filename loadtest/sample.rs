//! Owns: what one measurement gives, and several of them together.
//! Never: a figure of one round alone: the median counts, the range says how sure it is.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;

/// One measurement.
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    /// From when a request was due.
    pub(crate) latency: Histogram,
    /// From when it was sent.
    pub(crate) service: Histogram,
    /// CPU time per request of the process that is measured, where that is known.
    pub(crate) cpu_micros: Option<f64>,
    pub(crate) rss_mib: Option<f64>,
    pub(crate) errors: u64,
    pub(crate) first_error: String,
}

/// Memory around what was opened and left alone.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) count: usize,
    pub(crate) before_mib: f64,
    pub(crate) held_mib: f64,
    pub(crate) after_mib: f64,
    /// Until all was open.
    pub(crate) seconds: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: String,
}

impl Held {
    pub(crate) fn kib_each(&self) -> f64 {
        (self.held_mib - self.before_mib) * 1024.0 / self.count as f64
    }
}

/// Median and range.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else { return None };
        let last = values.len() - 1;
        let median = (values[last / 2] + values[last - last / 2]) / 2.0;
        Some(Spread { median, least, most })
    }

    pub(crate) fn text(&self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.least, self.most)
    }
}
