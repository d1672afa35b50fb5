//! Owns: the text format in which Prometheus reads metrics, version 0.0.4.
//! Never: which metrics there are.
//! Next: `trace`.

use std::fmt::{Display, Write};

/// Before every name.
const PREFIX: &str = "mcp_proxy_";

/// A text in the making.
#[derive(Default)]
pub struct Text {
    out: String,
    name: String,
}

impl Text {
    /// The content type of the text.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family: `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.begin(format!("{PREFIX}{name}"), kind, help);
    }

    /// Begins a family whose name is the same for all programs.
    pub fn common_family(&mut self, name: &str, kind: &str, help: &str) {
        self.begin(name.to_owned(), kind, help);
    }

    fn begin(&mut self, name: String, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.name = name;
    }

    /// One value of the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.write("", labels, None, value);
    }

    fn write(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        le: Option<&str>,
        value: impl Display,
    ) {
        let _ = write!(self.out, "{}{suffix}", self.name);
        let all = labels.iter().copied().chain(le.map(|le| ("le", le)));
        let mut separator = '{';
        for (label, text) in all {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{separator}{label}=\"{text}\"");
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        let _ = writeln!(self.out, "{close} {value}");
    }

    /// One histogram of the family: a count for each bound (in microseconds) and one beyond, then
    /// the sum in nanoseconds.
    pub fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[u64], cells: &[u64]) {
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(cells) {
            total += count;
            let le = (*bound as f64 / 1e6).to_string();
            self.write("_bucket", labels, Some(&le), total);
        }
        total += cells[bounds.len()];
        self.write("_bucket", labels, Some("+Inf"), total);
        self.write("_sum", labels, None, cells[bounds.len() + 1] as f64 / 1e9);
        self.write("_count", labels, None, total);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text() {
        let mut text = Text::default();
        text.family("x_total", "counter", "Two\nlines.");
        text.sample(&[], 1);
        text.sample(&[("a", "q\"\\\n"), ("b", "")], 2.5);
        text.family("h", "histogram", "H.");
        text.histogram(&[("a", "b")], &[100, 2_500_000], &[1, 2, 4, 1_500_000_000]);
        let expected = "# HELP mcp_proxy_x_total Two\\nlines.\n# TYPE mcp_proxy_x_total counter\n\
            mcp_proxy_x_total 1\nmcp_proxy_x_total{a=\"q\\\"\\\\\\n\",b=\"\"} 2.5\n\
            # HELP mcp_proxy_h H.\n# TYPE mcp_proxy_h histogram\n\
            mcp_proxy_h_bucket{a=\"b\",le=\"0.0001\"} 1\n\
            mcp_proxy_h_bucket{a=\"b\",le=\"2.5\"} 3\n\
            mcp_proxy_h_bucket{a=\"b\",le=\"+Inf\"} 7\n\
            mcp_proxy_h_sum{a=\"b\"} 1.5\nmcp_proxy_h_count{a=\"b\"} 7\n";
        assert_eq!(text.finish(), expected);
    }
}
