//! Owns: a scenario as a table for a terminal.
//! Never: a figure that the JSON file lacks.

use std::fmt::Write;

use crate::sample::Spread;
use crate::summary::{Line, Part, Reference};

const COLUMNS: [(&str, usize); 13] = [
    ("", 20),
    ("req/s", 9),
    ("p50 us", 8),
    ("p90 us", 8),
    ("p99 us", 8),
    ("p99.9", 8),
    ("errors", 7),
    ("CPU us/req (range)", 24),
    ("to nginx", 18),
    ("to hyper", 9),
    ("to relay", 9),
    ("to own", 7),
    ("RSS MiB", 8),
];

/// The table of a scenario.
pub(crate) fn of(part: &Part) -> String {
    let mut out = format!("\n{} [{}]\n", part.scenario.title, part.scenario.name);
    if part.rows.iter().any(|line| line.held.is_some()) {
        held(part, &mut out);
    } else if !part.rows.is_empty() {
        put(&mut out, COLUMNS.map(|(name, _)| name.to_owned()));
        for line in &part.rows {
            load(line, &mut out);
        }
    }
    for note in &part.notes {
        let _ = writeln!(out, "  {note}");
    }
    out
}

/// One row of text; the first column is left-aligned.
fn put(out: &mut String, cells: [String; 13]) {
    let mut row = String::new();
    for (at, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        let _ = match at {
            0 => write!(row, "{cell:<width$}"),
            _ => write!(row, "{cell:>width$}"),
        };
    }
    let _ = writeln!(out, "{}", row.trim_end());
}

fn load(line: &Line, out: &mut String) {
    let Some(load) = &line.load else { return };
    let dash = || "-".to_owned();
    let short =
        |spread: Option<Spread>| spread.map_or_else(dash, |spread| format!("{:.2}", spread.median));
    let own = line.ratio(Reference::Plain).or(line.ratio(Reference::Proxy));
    put(
        out,
        [
            line.row.clone(),
            format!("{:.0}", load.requests_per_second.median),
            format!("{:.0}", load.p50_us.median),
            format!("{:.0}", load.p90_us.median),
            format!("{:.0}", load.p99_us.median),
            format!("{:.0}", load.p999_us.median),
            line.errors.to_string(),
            load.cpu_us_per_request.map_or_else(dash, |cpu| cpu.text()),
            line.ratio(Reference::Nginx).map_or_else(dash, |ratio| ratio.text()),
            short(line.ratio(Reference::Hyper)),
            short(line.ratio(Reference::Relay)),
            short(own),
            load.rss_mib.map_or_else(dash, |rss| format!("{:.1}", rss.median)),
        ],
    );
}

fn held(part: &Part, out: &mut String) {
    let _ = writeln!(
        out,
        "{:<20}{:>12}{:>12}{:>12}{:>12}{:>10}{:>8}",
        "", "before MiB", "held MiB", "after MiB", "KiB each", "open s", "errors"
    );
    for line in &part.rows {
        let Some(held) = &line.held else { continue };
        let _ = writeln!(
            out,
            "{:<20}{:>12.1}{:>12.1}{:>12.1}{:>12.2}{:>10.1}{:>8}",
            line.row,
            held.before_mib,
            held.held_mib,
            held.after_mib,
            held.kib_each(),
            held.seconds,
            line.errors
        );
    }
}

/// What the columns mean.
pub(crate) fn legend(rounds: usize, seconds: f64) -> String {
    format!(
        "\nMedian of {rounds} round(s) of {seconds} s, rows taken in turns. CPU is that of the row's own processes\n\
         with the kernel's share ('direct': of the server itself); the clients' is in no row. Ratios are of CPU\n\
         per request within a round; 'to relay' is to what only carries the bytes, 'to own' is stdio to HTTP, with\n\
         rules to without, or another build to this one.\n"
    )
}
