//! Owns: what a child says on its standard error, into the log.
//! Never: keeping it; more than a bounded rate of it.
//! Next: `sse`, channels over HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::Lines;
use crate::limits;
use crate::rt::child::Output;
use crate::rt::local::Event;
use crate::rt::{Either, race};

/// Bytes that may be logged: at most a second's worth at once.
struct Allowance {
    bytes: usize,
    since: Instant,
    /// Bytes that were not logged since the last word on that.
    dropped: usize,
}

impl Allowance {
    fn new(now: Instant) -> Allowance {
        Allowance { bytes: limits::STDERR_BYTES_PER_SECOND, since: now, dropped: 0 }
    }

    /// Whether `bytes` more may be logged now; also how many were not, once they may be again.
    fn take(&mut self, bytes: usize, now: Instant) -> Result<usize, ()> {
        let passed = now.saturating_duration_since(self.since).min(Duration::from_secs(1));
        let refill = passed.as_micros() as usize * limits::STDERR_BYTES_PER_SECOND / 1_000_000;
        if refill > 0 {
            self.bytes = (self.bytes + refill).min(limits::STDERR_BYTES_PER_SECOND);
            self.since = now;
        }
        // After a drop only when half is there again, so that drops are told in few words.
        let threshold = if self.dropped > 0 { limits::STDERR_BYTES_PER_SECOND / 2 } else { 0 };
        if self.bytes < bytes.max(threshold) {
            self.dropped += bytes;
            return Err(());
        }
        self.bytes -= bytes;
        Ok(std::mem::take(&mut self.dropped))
    }
}

/// Reads until the child closes it, or `closed`. Always drained, so that the child never waits.
pub(super) async fn drain(name: Arc<str>, mut output: Output, ended: std::rc::Rc<Event>) {
    let mut lines = Lines::new(limits::STDERR_LINE_BYTES_MAX);
    let mut allowance = Allowance::new(Instant::now());
    let mut ended = std::pin::pin!(ended.wait());
    loop {
        let buffer = lines.buffer();
        let (read, buffer) =
            match race(output.read(buffer, limits::STDERR_LINE_BYTES_MAX), ended.as_mut()).await {
                Either::Left(read) => read,
                Either::Right(()) => return,
            };
        lines.restore(buffer);
        let over = !matches!(read, Ok(length) if length > 0);
        let now = Instant::now();
        loop {
            match lines.cut() {
                Ok(Some(line)) => log(&name, &mut allowance, line, now),
                Ok(None) => break,
                Err(_) => {
                    let mut rest = lines.rest();
                    rest.truncate(limits::STDERR_LINE_BYTES_MAX);
                    log(&name, &mut allowance, &rest, now);
                }
            }
        }
        if over {
            let rest = lines.rest();
            if !rest.is_empty() {
                log(&name, &mut allowance, &rest, now);
            }
            return;
        }
    }
}

fn log(name: &str, allowance: &mut Allowance, line: &[u8], now: Instant) {
    if let Ok(dropped) = allowance.take(line.len(), now) {
        if dropped > 0 {
            tracing::warn!(backend = name, bytes = dropped, "stderr of the child dropped");
        }
        tracing::info!(backend = name, stderr = printable(line), "child");
    }
}

/// The line without control characters, which could forge log lines or drive a terminal.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\t' {
            out.push(' ');
        } else if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_bounded_and_drops_are_counted() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let (mut logged, mut dropped) = (0, 0);
        // Ten seconds of a flood of 1 KiB lines, 1,000 a second.
        for line in 0..10_000u64 {
            if let Ok(told) = allowance.take(1024, start + Duration::from_millis(line)) {
                logged += 1024;
                dropped += told;
            }
        }
        let bound = 11 * limits::STDERR_BYTES_PER_SECOND;
        assert!(logged <= bound && logged > bound / 2, "{logged}");
        assert_eq!(logged + dropped + allowance.dropped, 10_000 * 1024);
    }

    #[test]
    fn control_characters_are_shown_not_sent() {
        assert_eq!(printable(b"a\tb\x1b[31mc\xff"), "a b\\u{1b}[31mc\u{fffd}");
    }
}
