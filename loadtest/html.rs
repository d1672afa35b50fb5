//! Owns: the report of a run as one HTML page that needs nothing else: no network, no script.
//! Never: a figure that the JSON file lacks.

use std::fmt::Write;

use crate::sample::Spread;
use crate::scenario::Row;
use crate::soak::Outcome;
use crate::summary::{Line, Part, Reference, Summary};
use crate::svg::{self, Bar, Curve, escape};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --soft: #657080; --rule: #d9dee5; --paper: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e6ec; --soft: #98a2b1; --rule: #38414e; --paper: #14181f }
}
body { margin: 2rem auto; max-width: 1160px; padding: 0 1.2rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .2rem; border-top: 1px solid var(--rule); padding-top: 1.2rem }
p { margin: .3rem 0; color: var(--soft) }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .45rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { font-weight: 600; color: var(--soft); font-size: .8rem; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
td small { color: var(--soft) }
.wide { overflow-x: auto }
.own td { font-weight: 600 }
.own td small { font-weight: 400 }
.bad { color: #c0392b; font-weight: 600 }
.charts { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1.2rem 2.5rem }
.charts svg { flex: 1 1 440px; max-width: 540px }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
svg .title { font-weight: 600 }
svg .name { text-anchor: end; fill: var(--soft) }
svg .tick { text-anchor: middle; fill: var(--soft) }
svg .grid { stroke: var(--rule); fill: none }
svg .curve { fill: none; stroke-width: 2 }
svg .range { stroke: var(--ink); fill: none }
svg .mark { stroke: #c0392b; stroke-width: 2 }
";

/// The page.
pub(crate) fn page(summary: &Summary) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Load on mcp-proxy</title><style>{STYLE}</style></head><body>\n\
         <h1>Load on mcp-proxy</h1>\n<p>{}, {} build, {}. {}.</p>\n",
        escape(&summary.version),
        summary.profile,
        summary.date,
        escape(&summary.machine),
    );
    if summary.profile == "debug" {
        out.push_str("<p class=\"bad\">This is a debug build: the figures say nothing.</p>\n");
    }
    if !summary.scenarios.is_empty() {
        let _ = writeln!(
            out,
            "<p>Median of {} round(s) of {} s with the range behind it; the rows of a scenario take turns. Every answer \
             was checked byte by byte. CPU is the time of the row's own processes, with the kernel's share, \
             and of no client; for “direct”, which is no proxy at all, that of the server.</p>",
            summary.rounds, summary.seconds
        );
        short(summary, &mut out);
    }
    for part in &summary.scenarios {
        scenario(part, &mut out);
    }
    if let Some(outcome) = &summary.soak {
        soak(outcome, &mut out);
    }
    let _ = writeln!(
        out,
        "<h2>How this was made</h2>\n<p><code>loadtest {}</code></p>\n</body></html>",
        escape(&summary.arguments.join(" "))
    );
    out
}

/// The first table: one line a scenario.
fn short(summary: &Summary, out: &mut String) {
    let measured: Vec<(&Part, &Line)> = summary
        .scenarios
        .iter()
        .flat_map(|part| part.rows.iter().map(move |line| (part, line)))
        .filter(|(_, line)| matches!(line.kind, Some(Row::Proxy | Row::Stdio | Row::Other)))
        .filter(|(_, line)| line.load.is_some())
        .collect();
    if measured.is_empty() {
        return;
    }
    out.push_str(
        "<div class=\"wide\"><table><tr><th>mcp-proxy in short</th><th>row, workers</th><th>requests/s</th>\
         <th>p50 µs</th><th>p99 µs</th><th>CPU µs</th><th>CPU to nginx</th><th>CPU to hyper</th>\
         <th>CPU to relay</th><th>errors</th></tr>\n",
    );
    for (part, line) in measured {
        let Some(load) = &line.load else { continue };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td>{}</tr>",
            escape(&part.scenario.title),
            escape(&line.row),
            load.requests_per_second.median,
            load.p50_us.median,
            load.p99_us.median,
            brief(load.cpu_us_per_request),
            brief(line.ratio(Reference::Nginx)),
            brief(line.ratio(Reference::Hyper)),
            brief(line.ratio(Reference::Relay)),
            errors(line),
        );
    }
    out.push_str("</table></div>\n");
}

fn brief(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".into(), |spread| format!("{:.2}", spread.median))
}

/// A figure with its range.
fn ranged(spread: Option<Spread>, digits: usize) -> String {
    let Some(Spread { median, least, most }) = spread else { return "–".into() };
    if format!("{least:.digits$}") == format!("{most:.digits$}") {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} <small>{least:.digits$}–{most:.digits$}</small>")
}

fn errors(line: &Line) -> String {
    match line.errors {
        0 => "<td>0</td>".into(),
        n => format!("<td class=\"bad\" title=\"{}\">{n}</td>", escape(&line.first_error)),
    }
}

fn scenario(part: &Part, out: &mut String) {
    let Part { scenario, rows, notes } = part;
    let _ = writeln!(out, "<h2>{}</h2>", escape(&scenario.title));
    let pace = match (scenario.idle, scenario.rate) {
        (Some(_), _) => "opened, left alone, closed again".to_owned(),
        (None, Some(rate)) => format!(
            "{rate:.0} requests per second at a fixed pace; latency counts from when a request was due"
        ),
        (None, None) => "each connection sends its next request when it has its answer".into(),
    };
    let sessions = scenario.sessions_each() * scenario.connections;
    let sessions = match scenario.era {
        crate::job::Era::Request => "no sessions (2026-07-28)".into(),
        crate::job::Era::Session if scenario.sessions > 0 => format!("{sessions} sessions"),
        crate::job::Era::Session => "a session each".into(),
    };
    let _ = writeln!(out, "<p>{} connection(s), {sessions}; {pace}.</p>", scenario.connections);
    for note in notes {
        let _ = writeln!(out, "<p class=\"bad\">{}</p>", escape(note));
    }
    if rows.iter().any(|line| line.held.is_some()) {
        held(rows, out);
    } else if !rows.is_empty() {
        load(rows, out);
    }
}

fn load(rows: &[Line], out: &mut String) {
    let own = |line: &Line| line.ratio(Reference::Plain).or(line.ratio(Reference::Proxy));
    let with_own = rows.iter().any(|line| own(line).is_some());
    let with_relay = rows.iter().any(|line| line.ratio(Reference::Relay).is_some());
    out.push_str(
        "<div class=\"wide\"><table><tr><th>row, workers</th><th>requests/s</th><th>p50 µs</th>\
         <th>p90 µs</th><th>p99 µs</th><th>p99.9 µs</th><th>p50 over direct, µs</th><th>CPU µs per request</th>\
         <th>CPU to nginx</th><th>CPU to hyper</th>",
    );
    if with_relay {
        out.push_str("<th title=\"to what only carries the bytes\">CPU to relay</th>");
    }
    if with_own {
        out.push_str("<th title=\"stdio to HTTP, with rules to without, or another build to this one\">CPU to own</th>");
    }
    out.push_str("<th>memory MiB</th><th>errors</th></tr>\n");
    for line in rows {
        let Some(load) = &line.load else { continue };
        let ours = matches!(line.kind, Some(Row::Proxy | Row::Stdio | Row::Plain | Row::Other));
        let _ = write!(
            out,
            "<tr{}><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            if ours { " class=\"own\"" } else { "" },
            escape(&line.row),
            load.requests_per_second.median,
            load.p50_us.median,
            load.p90_us.median,
            load.p99_us.median,
            load.p999_us.median,
            load.p50_over_direct_us.map_or("–".into(), |over| format!("{:+.0}", over.median)),
            ranged(load.cpu_us_per_request, 1),
            ranged(line.ratio(Reference::Nginx), 2),
            ranged(line.ratio(Reference::Hyper), 2),
        );
        if with_relay {
            let _ = write!(out, "<td>{}</td>", ranged(line.ratio(Reference::Relay), 2));
        }
        if with_own {
            let _ = write!(out, "<td>{}</td>", ranged(own(line), 2));
        }
        let _ = writeln!(out, "<td>{}</td>{}</tr>", brief(load.rss_mib), errors(line));
    }
    out.push_str("</table></div>\n<div class=\"charts\">\n");
    let loads = || rows.iter().filter_map(|line| Some((line, line.load.as_ref()?)));
    let bars: Vec<Bar> = loads()
        .filter_map(|(line, load)| {
            let cpu = load.cpu_us_per_request?;
            Some(Bar {
                name: line.row.clone(),
                color: color(line, rows),
                value: cpu.median,
                range: (cpu.least, cpu.most),
                text: format!("{:.1} µs", cpu.median),
            })
        })
        .collect();
    out.push_str(&svg::bars("CPU time per request, median and range", &bars));
    let curves: Vec<Curve> = loads()
        .map(|(line, load)| Curve {
            name: line.row.clone(),
            color: color(line, rows),
            dashed: line.workers > 1,
            points: load.curve.clone(),
        })
        .collect();
    out.push('\n');
    out.push_str(&svg::percentiles("Latency over the share of requests", &curves));
    out.push_str("\n</div>\n");
}

fn held(rows: &[Line], out: &mut String) {
    out.push_str(
        "<div class=\"wide\"><table><tr><th>row, workers</th><th>MiB before</th><th>MiB held</th>\
         <th>MiB after</th><th>KiB each</th><th>s to open</th><th>errors</th></tr>\n",
    );
    for line in rows {
        let Some(held) = &line.held else { continue };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{:.1}</td><td>{:.1}</td><td>{:.1}</td><td>{:.2}</td><td>{:.1}</td>{}</tr>",
            escape(&line.row),
            held.before_mib,
            held.held_mib,
            held.after_mib,
            held.kib_each(),
            held.seconds,
            errors(line),
        );
    }
    out.push_str("</table></div>\n<div class=\"charts\">\n");
    let bars: Vec<Bar> = rows
        .iter()
        .filter_map(|line| {
            let each = line.held.as_ref()?.kib_each();
            Some(Bar {
                name: line.row.clone(),
                color: color(line, rows),
                value: each.max(0.0),
                range: (each.max(0.0), each.max(0.0)),
                text: format!("{each:.2} KiB"),
            })
        })
        .collect();
    out.push_str(&svg::bars("Resident memory of each", &bars));
    out.push_str("\n</div>\n");
}

/// A colour for each kind of row, and one for each gateway of somebody else.
fn color(line: &Line, rows: &[Line]) -> String {
    let foreign = ["#8e44ad", "#c0392b", "#6b705c", "#d35fa0"];
    let color = match line.kind {
        Some(Row::Direct) => "#8a93a0",
        Some(Row::Nginx) => "#2f8f5b",
        Some(Row::Hyper) => "#c58a1c",
        Some(Row::Relay) => "#8c5a3c",
        Some(Row::Proxy) => "#2166c4",
        Some(Row::Plain) => "#7fa9e0",
        Some(Row::Stdio) => "#1b9aa0",
        Some(Row::Other) => "#4b3fa8",
        None => {
            let others = rows.iter().filter(|other| other.kind.is_none());
            let at = others.take_while(|other| other.row != line.row).count();
            foreign[at % foreign.len()]
        }
    };
    color.to_owned()
}

fn soak(outcome: &Outcome, out: &mut String) {
    let _ = writeln!(
        out,
        "<h2>Soak</h2>\n<p>{:.0} requests per second for {:.0} s, three servers behind, one of them killed every {:.0} s.</p>",
        outcome.rate, outcome.seconds, outcome.restart_every_seconds
    );
    let verdict = match outcome.faults.is_empty() {
        true => {
            "<p>Passed: no wrong answer, every error within a restart, memory flat.</p>\n".into()
        }
        false => format!("<p class=\"bad\">Failed: {}</p>\n", escape(&outcome.faults.join("; "))),
    };
    out.push_str(&verdict);
    out.push_str("<div class=\"wide\"><table>\n");
    for (name, value) in outcome.lines() {
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(&value));
    }
    out.push_str("</table></div>\n<div class=\"charts\">\n");
    let curve = Curve {
        name: "mcp-proxy; red marks: a server was killed".into(),
        color: "#2166c4".into(),
        dashed: false,
        points: outcome.memory.clone(),
    };
    let marks: Vec<f64> = outcome.restarts.iter().map(|restart| restart.at_seconds).collect();
    out.push_str(&svg::over_time("Resident memory", "MiB", &[curve], &marks));
    out.push_str("\n</div>\n");
}
