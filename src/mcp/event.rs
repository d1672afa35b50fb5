//! Owns: ids of events: the place of one event in one stream of one session.
//! Never: the events themselves (`world`).
//! Next: `capable`.
//!
//! MCP 2025-11-25, Transports, Resumability and Redelivery: ids are unique within a session and name
//! the stream that they stand in, so that a client that comes back gets the rest of that stream.

use std::fmt;

use crate::plan::WorkerId;

/// Where an event stands.
///
/// On the wire `l1-2a-7`: the kind of stream, the worker that keeps it, its number there, and the
/// event's number in it, in hexadecimal. Neither is a secret and neither gives a right: a stream is
/// found only in the session that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    /// What began the stream.
    pub kind: StreamKind,
    /// The worker that keeps it.
    pub worker: WorkerId,
    /// Its number there.
    pub stream: u64,
    /// The event's number in it; the first message has 1.
    pub number: u64,
}

/// What began a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A GET: it belongs to no request.
    Listening,
    /// A POST: it ends with the response.
    Answering,
}

impl EventId {
    /// Reads the wire form; `None` if it is not exactly that.
    pub fn parse(wire: &[u8]) -> Option<EventId> {
        let wire = std::str::from_utf8(wire).ok()?;
        let kind = match wire.as_bytes().first()? {
            b'l' => StreamKind::Listening,
            b'a' => StreamKind::Answering,
            _ => return None,
        };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(text, 16).ok().filter(|_| digits)
        };
        let mut parts = wire[1..].split('-').map(number);
        let (worker, stream, event) = (parts.next()??, parts.next()??, parts.next()??);
        let id = EventId { kind, worker: worker as usize, stream, number: event };
        parts.next().is_none().then_some(id)
    }

    /// The wire form. By hand: each event of a stream has one.
    pub fn text(self) -> String {
        let mut text = String::with_capacity(24);
        text.push(match self.kind {
            StreamKind::Listening => 'l',
            StreamKind::Answering => 'a',
        });
        for (at, number) in [self.worker as u64, self.stream, self.number].into_iter().enumerate() {
            if at > 0 {
                text.push('-');
            }
            let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
            for digit in (0..digits).rev() {
                let digit = number >> (4 * digit) & 0xF;
                text.push(char::from(b"0123456789abcdef"[digit as usize]));
            }
        }
        text
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_nothing_else_parses() {
        for kind in [StreamKind::Listening, StreamKind::Answering] {
            let id = EventId { kind, worker: 511, stream: u64::MAX, number: 0x1f };
            assert_eq!(EventId::parse(id.to_string().as_bytes()), Some(id));
            assert!(id.text().ends_with("1ff-ffffffffffffffff-1f"));
        }
        let first = EventId { kind: StreamKind::Answering, worker: 0, stream: 16, number: 1 };
        assert_eq!(first.text(), "a0-10-1");
        for bad in ["", "l", "x1-2-3", "l1-2", "l1-2-3-4", "l1--3", "l+1-2-3", "l1-2-g", "a 1-2-3"]
        {
            assert_eq!(EventId::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(EventId::parse(b"a1-2-\xff"), None);
    }
}
