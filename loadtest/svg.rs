//! Owns: charts as SVG text: bars with ranges, curves over percentiles, a line over time.
//! Never: a script, a font or an address; a chart stands in its page as it is.

use std::fmt::Write;

const WIDTH: f64 = 520.0;

/// One bar: its name, colour, value, and the range of the value.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) color: String,
    pub(crate) value: f64,
    pub(crate) range: (f64, f64),
    /// What is written behind it.
    pub(crate) text: String,
}

/// One curve.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) color: String,
    pub(crate) dashed: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Text that may stand in HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>\
         <text class=\"title\" x=\"0\" y=\"14\">{0}</text>",
        escape(title)
    )
}

/// Bars from the left, with whiskers from the least to the most.
pub(crate) fn bars(title: &str, bars: &[Bar]) -> String {
    const NAME: f64 = 140.0;
    const TEXT: f64 = 130.0;
    const STEP: f64 = 26.0;
    let most = bars.iter().map(|bar| bar.range.1.max(bar.value)).fold(0.0, f64::max);
    let scale = (WIDTH - NAME - TEXT) / if most > 0.0 { most } else { 1.0 };
    let mut out = open(30.0 + STEP * bars.len() as f64, title);
    for (at, bar) in bars.iter().enumerate() {
        let y = 28.0 + STEP * at as f64;
        let (name, text) = (escape(&bar.name), escape(&bar.text));
        let _ = write!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>\
             <rect x=\"{NAME}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"16\" fill=\"{}\"/>",
            NAME - 8.0,
            y + 12.0,
            bar.value * scale,
            bar.color,
        );
        let (from, to) = (NAME + bar.range.0 * scale, NAME + bar.range.1 * scale);
        if to - from > 1.0 {
            let middle = y + 8.0;
            let _ = write!(
                out,
                "<path class=\"range\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {:.1}V{:.1}M{to:.1} {:.1}V{:.1}\"/>",
                y + 4.0,
                y + 12.0,
                y + 4.0,
                y + 12.0,
            );
        }
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            NAME + bar.range.1.max(bar.value) * scale + 8.0,
            y + 12.0
        );
    }
    out.push_str("</svg>");
    out
}

/// The frame of a chart with axes: where its corners are.
const LEFT: f64 = 52.0;
const RIGHT: f64 = WIDTH - 28.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 240.0;

/// Latency in microseconds over the share of requests, both logarithmic: each further nine is as
/// wide as the one before.
pub(crate) fn percentiles(title: &str, curves: &[Curve]) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let nines = |share: f64| -(1.0 - share).log10();
    let last = all().map(|(share, _)| nines(*share)).fold(1.0, f64::max).ceil();
    let least = all().map(|(_, us)| *us).filter(|us| *us > 0.0).fold(f64::MAX, f64::min);
    let most = all().map(|(_, us)| *us).fold(1.0, f64::max);
    let (low, high) = (least.min(most).log10().floor(), most.log10().ceil());
    let high = if high > low { high } else { low + 1.0 };
    let x = |share: f64| LEFT + nines(share) / last * (RIGHT - LEFT);
    let y = |us: f64| BOTTOM - (us.max(1e-3).log10() - low) / (high - low) * (BOTTOM - TOP);
    let legend = legend(curves, BOTTOM + 40.0);
    let mut out = open(legend.1, title);
    for decade in low as i32..=high as i32 {
        let value = 10_f64.powi(decade);
        grid(&mut out, None, Some((y(value), &micros(value))));
    }
    for nine in 0..=last as i32 {
        let share = 1.0 - 10_f64.powi(-nine);
        let text = match nine {
            // Too near to the 50 %.
            0 => String::new(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            n => format!("99.{} %", "9".repeat(n as usize - 2)),
        };
        grid(&mut out, Some((x(share), &text)), None);
    }
    grid(&mut out, Some((x(0.5), "50 %")), None);
    for curve in curves {
        let points = curve.points.iter().map(|&(share, us)| (x(share), y(us)));
        line(&mut out, curve, points);
    }
    out.push_str(&legend.0);
    out.push_str("</svg>");
    out
}

/// Values over seconds, from zero; `marks` are moments to see.
pub(crate) fn over_time(title: &str, unit: &str, curves: &[Curve], marks: &[f64]) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let end = all().map(|(at, _)| *at).fold(1.0, f64::max);
    let most = all().map(|(_, value)| *value).fold(1e-9, f64::max) * 1.1;
    let x = |at: f64| LEFT + at / end * (RIGHT - LEFT);
    let y = |value: f64| BOTTOM - value / most * (BOTTOM - TOP);
    let legend = legend(curves, BOTTOM + 40.0);
    let mut out = open(legend.1, title);
    for step in 0..=4 {
        let value = most * f64::from(step) / 4.0;
        grid(&mut out, None, Some((y(value), &format!("{value:.0} {unit}"))));
        let at = end * f64::from(step) / 4.0;
        grid(&mut out, Some((x(at), &format!("{at:.0} s"))), None);
    }
    for &mark in marks {
        let at = x(mark);
        let _ = write!(out, "<path class=\"mark\" d=\"M{at:.1} {BOTTOM}v-6\"/>");
    }
    for curve in curves {
        let points = curve.points.iter().map(|&(at, value)| (x(at), y(value)));
        line(&mut out, curve, points);
    }
    out.push_str(&legend.0);
    out.push_str("</svg>");
    out
}

/// A line of the grid, with its text on the axis.
fn grid(out: &mut String, vertical: Option<(f64, &str)>, horizontal: Option<(f64, &str)>) {
    if let Some((x, text)) = vertical {
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>",
            BOTTOM + 16.0
        );
    }
    if let Some((y, text)) = horizontal {
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
             <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
}

fn line(out: &mut String, curve: &Curve, points: impl Iterator<Item = (f64, f64)>) {
    let dash = if curve.dashed { " stroke-dasharray=\"5 3\"" } else { "" };
    let mut path = String::new();
    for (at, (x, y)) in points.enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
    }
    let _ = write!(out, "<path class=\"curve\" stroke=\"{}\"{dash} d=\"{path}\"/>", curve.color);
}

/// Names of curves below a chart, and where they end.
fn legend(curves: &[Curve], top: f64) -> (String, f64) {
    const COLUMN: f64 = 170.0;
    let mut out = String::new();
    for (at, curve) in curves.iter().enumerate() {
        let (x, y) = (LEFT + (at % 3) as f64 * COLUMN, top + (at / 3) as f64 * 18.0);
        let dash = if curve.dashed { " stroke-dasharray=\"5 3\"" } else { "" };
        let _ = write!(
            out,
            "<path class=\"curve\" stroke=\"{}\"{dash} d=\"M{x:.1} {:.1}h20\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            curve.color,
            y - 4.0,
            x + 26.0,
            escape(&curve.name)
        );
    }
    (out, top + curves.len().div_ceil(3) as f64 * 18.0)
}

/// A round number of microseconds with its unit.
fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.0} s", us / 1e6),
        us if us >= 1e3 => format!("{:.0} ms", us / 1e3),
        us if us >= 1.0 => format!("{us:.0} µs"),
        us => format!("{:.0} ns", us * 1e3),
    }
}
