//! Owns: trace contexts as they travel, and what is told of one exchange.
//! Never: the wire to a collector (`export`); which exchange is told of (`exchange`).
//! Next: `otlp`, how it is written.
//!
//! W3C Trace Context, Level 1, §3.2 (`traceparent`); MCP puts it into `params._meta`.

use std::fmt::Write;
use std::sync::Arc;

/// Bytes of a `traceparent` of version 00.
pub const PARENT_LEN: usize = 55;
/// Where the span's id stands in it.
pub const PARENT_SPAN_AT: usize = 36;

/// Who a span's parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Never 0.
    pub trace: u128,
    /// Never 0.
    pub span: u64,
    /// Whether it is recorded there.
    pub sampled: bool,
}

impl Context {
    /// Reads a `traceparent`; `None` if it is not well-formed.
    pub fn parse(text: &[u8]) -> Option<Context> {
        let text = std::str::from_utf8(text).ok()?;
        if text.len() < PARENT_LEN || !text.is_ascii() {
            return None;
        }
        let (version, rest) = (&text[..2], &text[PARENT_LEN..]);
        // A later version may say more behind a dash.
        let ends = rest.is_empty() || (version != "00" && rest.starts_with('-'));
        let dashes = [2, 35, 52].iter().all(|at| text.as_bytes()[*at] == b'-');
        let lower = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let parts = [version, &text[3..35], &text[36..52], &text[53..55]];
        if !ends || !dashes || version == "ff" || !parts.iter().all(|part| lower(part)) {
            return None;
        }
        let trace = u128::from_str_radix(parts[1], 16).ok().filter(|trace| *trace != 0)?;
        let span = u64::from_str_radix(parts[2], 16).ok().filter(|span| *span != 0)?;
        let flags = u8::from_str_radix(parts[3], 16).ok()?;
        Some(Context { trace, span, sampled: flags & 1 == 1 })
    }

    /// As a `traceparent`.
    pub fn write(&self) -> String {
        let mut text = String::with_capacity(PARENT_LEN);
        let flags = u8::from(self.sampled);
        let _ = write!(text, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span);
        text
    }
}

/// Whether a trace that begins here is recorded: the same for all who apply the same share.
pub fn is_sampled(trace: u128, ratio: f64) -> bool {
    // The low half is the part that is random by the specification's own rule.
    let low = (trace as u64 >> 1) as f64;
    ratio >= 1.0 || low < ratio * (u64::MAX >> 1) as f64
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// Attributes of a span.
pub type Attributes = Vec<(&'static str, Value)>;

/// What is told of one exchange.
#[derive(Debug)]
pub struct Report {
    /// Which trace it belongs to.
    pub trace: u128,
    /// `tracestate`, as it came.
    pub state: String,
    /// The exchange itself, as a server.
    pub server: Span,
    /// Its attempts at backends, as a client.
    pub attempts: Vec<Span>,
}

/// One span.
#[derive(Debug)]
pub struct Span {
    /// Its id.
    pub id: u64,
    /// Its parent's; 0 = none.
    pub parent: u64,
    /// `{method} {target}`.
    pub name: Arc<str>,
    /// Nanoseconds since 1970.
    pub began: u64,
    /// Nanoseconds since 1970.
    pub ended: u64,
    /// What is known of it.
    pub attributes: Attributes,
    /// It failed, and how.
    pub failed: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn contexts_round_trip_and_nothing_else_parses() {
        let context = Context::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(context.span, 0x00f0_67aa_0ba9_02b7);
        assert!(context.sampled);
        assert_eq!(context.write(), TEXT);
        assert_eq!(&TEXT[PARENT_SPAN_AT..PARENT_SPAN_AT + 16], "00f067aa0ba902b7");
        assert_eq!(TEXT.len(), PARENT_LEN);
        assert!(Context::parse(TEXT.replace("00-4", "01-4").as_bytes()).is_some());
        assert!(Context::parse(format!("01{}-more", &TEXT[2..]).as_bytes()).is_some());
        for wrong in [
            String::new(),
            TEXT.to_uppercase(),
            format!("{TEXT}-more"),
            format!("ff{}", &TEXT[2..]),
            TEXT.replace('-', "_"),
            TEXT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            TEXT[..54].to_owned(),
            format!("{}ä", &TEXT[..53]),
        ] {
            assert_eq!(Context::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn shares() {
        let traces = (1..1000u128).map(|n| n * 0x9E37_79B9_7F4A_7C15);
        for (ratio, low, high) in [(0.0, 0, 0), (1.0, 999, 999), (0.25, 200, 300)] {
            let sampled = traces.clone().filter(|trace| is_sampled(*trace, ratio)).count();
            assert!((low..=high).contains(&sampled), "{ratio}: {sampled}");
        }
        assert!(is_sampled(u128::MAX, 1.0));
    }
}
