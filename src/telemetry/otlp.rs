//! Owns: spans as an OTLP request in protobuf.
//! Never: sending it (`export`).
//! Next: `export`, how it is sent.
//!
//! opentelemetry-proto 1.x, `collector/trace/v1/trace_service.proto` and `trace/v1/trace.proto`.
//! Written by hand: it is five kinds of messages, and only written.

use super::trace::{Report, Span, Value};

/// `SPAN_KIND_SERVER`.
const SERVER: u64 = 2;
/// `SPAN_KIND_CLIENT`.
const CLIENT: u64 = 3;
/// `STATUS_CODE_ERROR`.
const ERROR: u64 = 2;

/// Who the spans come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// `service.name`.
    pub name: String,
    /// `service.version`.
    pub version: String,
}

/// The request that carries these exchanges.
pub fn request(source: &Source, reports: &[Box<Report>]) -> Vec<u8> {
    let mut out = Message::default();
    out.message(1, |resource_spans| {
        resource_spans.message(1, |resource| {
            for (key, value) in [
                ("service.name", source.name.as_str()),
                ("service.version", source.version.as_str()),
                ("telemetry.sdk.language", "rust"),
            ] {
                resource.message(1, |pair| text_pair(pair, key, value));
            }
        });
        resource_spans.message(2, |scope_spans| {
            scope_spans.message(1, |scope| {
                scope.bytes(1, env!("CARGO_PKG_NAME").as_bytes());
                scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
            });
            for report in reports {
                scope_spans.message(2, |out| span(out, report, &report.server, SERVER));
                for attempt in &report.attempts {
                    scope_spans.message(2, |out| span(out, report, attempt, CLIENT));
                }
            }
        });
    });
    out.0
}

fn span(out: &mut Message, report: &Report, span: &Span, kind: u64) {
    out.bytes(1, &report.trace.to_be_bytes());
    out.bytes(2, &span.id.to_be_bytes());
    if !report.state.is_empty() {
        out.bytes(3, report.state.as_bytes());
    }
    if span.parent != 0 {
        out.bytes(4, &span.parent.to_be_bytes());
    }
    out.bytes(5, span.name.as_bytes());
    out.number(6, kind);
    out.fixed64(7, span.began);
    out.fixed64(8, span.ended);
    for (key, value) in &span.attributes {
        out.message(9, |pair| match value {
            Value::Text(text) => text_pair(pair, key, text),
            Value::Number(number) => {
                pair.bytes(1, key.as_bytes());
                pair.message(2, |value| value.number(3, *number as u64));
            }
        });
    }
    if let Some(failed) = span.failed {
        out.message(9, |pair| text_pair(pair, "error.type", failed));
        out.message(15, |status| status.number(3, ERROR));
    }
}

fn text_pair(pair: &mut Message, key: &str, text: &str) {
    pair.bytes(1, key.as_bytes());
    pair.message(2, |value| value.bytes(1, text.as_bytes()));
}

/// A message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u64, value: u64) {
        self.tag(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lengths() {
        let mut out = Message::default();
        out.number(1, 150);
        out.bytes(2, b"testing");
        out.fixed64(7, 1);
        out.number(3, u64::MAX);
        let expected = [
            &[0x08, 0x96, 0x01, 0x12, 0x07][..],
            b"testing",
            &[0x39, 1, 0, 0, 0, 0, 0, 0, 0, 0x18],
            &[0xff; 9],
            &[0x01],
        ];
        assert_eq!(out.0, expected.concat());
    }
}
