//! Owns: event streams: a reader that can be fed at any split, and the writer.
//! Never: sockets or clocks, and no opinion on what the data says.
//! Next: `connection`, which carries all of this over sockets.
//!
//! WHATWG HTML, §9.2.5 "Parsing an event stream" and §9.2.6 "Interpreting an event stream".

use crate::limits::MESSAGE_BYTES_MAX;
use std::fmt;

/// What keeps a silent stream open: a comment, which readers skip.
pub const COMMENT: &[u8] = b":\n\n";
/// Bytes of an id, an event name or a retry time.
pub const LABEL_BYTES_MAX: usize = 4096;

/// Why an event stream is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SseFault {
    /// The data of one event, or its id or name, is over its bound.
    TooLarge,
}

impl fmt::Display for SseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("event too large")
    }
}

impl std::error::Error for SseFault {}

/// One event, as it was dispatched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its type; `None` = `message`.
    pub event: Option<Vec<u8>>,
    /// The id that this event set; an empty one clears what was set before.
    pub id: Option<Vec<u8>>,
    /// Its data, lines joined by LF, as bytes: whether they are UTF-8 is for their reader to say.
    pub data: Vec<u8>,
    /// The reconnection time that this event set, in milliseconds.
    pub retry: Option<u64>,
}

impl Event {
    /// Whether it is of the default type: MCP gives no meaning to any other.
    pub fn is_message(&self) -> bool {
        self.event.as_deref().is_none_or(|name| name == b"message")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Data,
    Event,
    Id,
    Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the start of the stream, with this many bytes of a byte order mark seen.
    Mark(u8),
    /// Within the name of a field, of which this many bytes are kept.
    Name(u8),
    /// Right behind the colon, where one space is dropped.
    Colon(Label),
    Value(Label),
    /// Within a comment or a field that is not known.
    Skip,
}

const MARK: &[u8; 3] = b"\xef\xbb\xbf";

/// Reads events out of a stream.
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// The last byte was a CR: an LF right behind it belongs to it.
    after_cr: bool,
    /// Start of a field name; the longest known one has five bytes.
    name: [u8; 5],
    /// Data so far, each line with an LF behind it.
    data: Vec<u8>,
    event: Vec<u8>,
    /// The id or retry time being read.
    label: Vec<u8>,
    id: Option<Vec<u8>>,
    retry: Option<u64>,
    last_id: Vec<u8>,
    last_retry: Option<u64>,
    data_max: usize,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new(MESSAGE_BYTES_MAX)
    }
}

impl Reader {
    /// A reader at the start of a stream whose events carry at most `data_max` bytes of data.
    pub fn new(data_max: usize) -> Reader {
        Reader {
            state: State::Mark(0),
            after_cr: false,
            name: [0; 5],
            data: Vec::new(),
            event: Vec::new(),
            label: Vec::new(),
            id: None,
            retry: None,
            last_id: Vec::new(),
            last_retry: None,
            data_max,
        }
    }

    /// Reads from `input` up to the end of the next event and moves it on; `None` = all of it was
    /// read and no event is complete.
    pub fn take(&mut self, input: &mut &[u8]) -> Result<Option<Event>, SseFault> {
        while let Some(&byte) = input.first() {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                *input = &input[1..];
                continue;
            }
            match self.state {
                State::Mark(seen) => {
                    if byte == MARK[usize::from(seen)] {
                        *input = &input[1..];
                        self.state = if seen == 2 { State::Name(0) } else { State::Mark(seen + 1) };
                    } else if seen == 0 {
                        self.state = State::Name(0);
                    } else {
                        // Part of a mark is the start of a name that nobody knows.
                        self.state = State::Skip;
                    }
                }
                State::Colon(label) => {
                    if byte == b' ' {
                        *input = &input[1..];
                    }
                    self.state = State::Value(label);
                }
                State::Name(_) | State::Value(_) | State::Skip => {
                    if matches!(byte, b'\r' | b'\n') {
                        *input = &input[1..];
                        self.after_cr = byte == b'\r';
                        if let Some(event) = self.end_line()? {
                            return Ok(Some(event));
                        }
                    } else {
                        self.within_line(input)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes what is not the end of a line.
    fn within_line(&mut self, input: &mut &[u8]) -> Result<(), SseFault> {
        if let State::Name(kept) = self.state {
            let byte = input[0];
            *input = &input[1..];
            self.state = match byte {
                b':' => match self.label(kept) {
                    Some(label) => {
                        self.begin(label);
                        State::Colon(label)
                    }
                    None => State::Skip,
                },
                _ if usize::from(kept) < self.name.len() => {
                    self.name[usize::from(kept)] = byte;
                    State::Name(kept + 1)
                }
                _ => State::Skip,
            };
            return Ok(());
        }
        let length = memchr::memchr2(b'\r', b'\n', input).unwrap_or(input.len());
        let (run, rest) = input.split_at(length);
        *input = rest;
        let (into, max) = match self.state {
            State::Value(Label::Data) => (&mut self.data, self.data_max),
            State::Value(Label::Event) => (&mut self.event, LABEL_BYTES_MAX),
            State::Value(Label::Id | Label::Retry) => (&mut self.label, LABEL_BYTES_MAX),
            _ => return Ok(()),
        };
        if run.len() > max.saturating_sub(into.len()) {
            return Err(SseFault::TooLarge);
        }
        into.extend_from_slice(run);
        Ok(())
    }

    fn label(&self, kept: u8) -> Option<Label> {
        match &self.name[..usize::from(kept)] {
            b"data" => Some(Label::Data),
            b"event" => Some(Label::Event),
            b"id" => Some(Label::Id),
            b"retry" => Some(Label::Retry),
            _ => None,
        }
    }

    fn begin(&mut self, label: Label) {
        match label {
            Label::Data => {}
            // A later field of the same event replaces an earlier one.
            Label::Event => self.event.clear(),
            Label::Id | Label::Retry => self.label.clear(),
        }
    }

    /// A line is complete: keeps its field, or dispatches the event if the line is empty.
    fn end_line(&mut self) -> Result<Option<Event>, SseFault> {
        let label = match std::mem::replace(&mut self.state, State::Name(0)) {
            State::Name(0) => return Ok(self.dispatch()),
            // A name without a colon is a field with an empty value.
            State::Name(kept) => {
                let label = self.label(kept);
                if let Some(label) = label {
                    self.begin(label);
                }
                label
            }
            State::Value(label) | State::Colon(label) => Some(label),
            State::Skip | State::Mark(_) => None,
        };
        match label {
            // The LF behind the last line is taken off again, so it is not counted.
            Some(Label::Data) if self.data.len() > self.data_max => {
                return Err(SseFault::TooLarge);
            }
            Some(Label::Data) => self.data.push(b'\n'),
            Some(Label::Id) if !self.label.contains(&0) => {
                self.id = Some(self.label.clone());
            }
            Some(Label::Retry) => {
                let digits = !self.label.is_empty() && self.label.iter().all(u8::is_ascii_digit);
                let text = std::str::from_utf8(&self.label).unwrap_or_default();
                // A number beyond 64 bits is no time that anybody waits for.
                if let (true, Ok(time)) = (digits, text.parse()) {
                    self.retry = Some(time);
                    self.last_retry = Some(time);
                }
            }
            Some(Label::Id | Label::Event) | None => {}
        }
        Ok(None)
    }

    fn dispatch(&mut self) -> Option<Event> {
        let id = self.id.take();
        // Not before: who resumes from here has got the whole event.
        if let Some(id) = &id {
            self.last_id.clone_from(id);
        }
        let retry = self.retry.take();
        if self.data.is_empty() {
            self.event.clear();
            return None;
        }
        self.data.pop();
        let data = std::mem::take(&mut self.data);
        let event =
            if self.event.is_empty() { None } else { Some(std::mem::take(&mut self.event)) };
        Some(Event { event, id, data, retry })
    }

    /// The id to resume from: that of the last whole event that set one, with data or without; empty
    /// if none did.
    pub fn last_id(&self) -> &[u8] {
        &self.last_id
    }

    /// The reconnection time that the stream asked for last, in milliseconds.
    pub fn last_retry(&self) -> Option<u64> {
        self.last_retry
    }
}

/// Appends an event that carries no message: the id to resume from, and how long to wait before.
pub fn write_priming(out: &mut Vec<u8>, id: &str, retry: std::time::Duration) {
    debug_assert!(!id.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"\nretry: ");
    out.extend_from_slice(itoa::Buffer::new().format(retry.as_millis() as u64).as_bytes());
    out.extend_from_slice(b"\ndata: \n\n");
}

/// Appends one event of the default type. Line ends within `data` become several data lines, which
/// a reader joins with LF; an id that an event cannot carry is left out.
pub fn write(out: &mut Vec<u8>, id: Option<&str>, data: &[u8]) {
    out.reserve(data.len() + 16 + id.map_or(0, |id| id.len() + 5));
    if let Some(id) = id {
        let legal = !id.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0));
        debug_assert!(legal, "an event id with a line end or NUL");
        if legal {
            out.extend_from_slice(b"id: ");
            out.extend_from_slice(id.as_bytes());
            out.push(b'\n');
        }
    }
    let mut rest = data;
    loop {
        out.extend_from_slice(b"data: ");
        let Some(end) = memchr::memchr2(b'\r', b'\n', rest) else {
            out.extend_from_slice(rest);
            out.extend_from_slice(b"\n\n");
            return;
        };
        out.extend_from_slice(&rest[..end]);
        out.push(b'\n');
        let crlf = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(crlf)..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(wire: &[u8], step: usize) -> Result<Vec<Event>, SseFault> {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for mut piece in wire.chunks(step) {
            while let Some(event) = reader.take(&mut piece)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn every_split(wire: &[u8]) -> Vec<Event> {
        let whole = run(wire, wire.len().max(1)).unwrap();
        for step in 1..wire.len() {
            assert_eq!(run(wire, step).unwrap(), whole, "pieces of {step}");
        }
        whole
    }

    fn data(wire: &[u8]) -> Vec<String> {
        every_split(wire).into_iter().map(|e| String::from_utf8(e.data).unwrap()).collect()
    }

    #[test]
    fn lines_end_in_cr_lf_or_both() {
        for end in ["\n", "\r", "\r\n"] {
            let wire = "data: a\ndata: b\n\ndata:c\n\n".replace('\n', end);
            assert_eq!(data(wire.as_bytes()), ["a\nb", "c"], "{end:?}");
        }
        assert_eq!(data(b"data: a\r\r\ndata: b\n\r"), ["a", "b"]);
    }

    /// The examples of §9.2.6.
    #[test]
    fn examples_of_the_standard() {
        assert_eq!(data(b"data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
        let stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n\
                       data:  third event\n\n";
        let events = every_split(stream);
        assert_eq!(events[0].id.as_deref(), Some(b"1".as_slice()));
        assert_eq!(events[1].id.as_deref(), Some(b"".as_slice()));
        assert_eq!(events[2].id, None);
        assert_eq!(events[2].data, b" third event");
        assert_eq!(data(b"data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
        assert_eq!(data(b"data:test\n\ndata: test\n\n"), ["test", "test"]);
    }

    #[test]
    fn fields_are_kept_as_the_standard_says() {
        let wire = b"event: a\nevent: b\nid: 7\nretry: 1500\nretry: 15x\nretry:\nid: no\0t\n\
                     databases: x\nDATA: x\n data: x\nunknown\ndata: d\n\n";
        let events = every_split(wire);
        let expected = Event {
            event: Some(b"b".to_vec()),
            id: Some(b"7".to_vec()),
            data: b"d".to_vec(),
            retry: Some(1500),
        };
        assert_eq!(events, [expected]);
    }

    #[test]
    fn an_event_without_data_sets_the_id_and_is_not_dispatched() {
        let mut reader = Reader::default();
        let mut wire: &[u8] = b"event: x\nid: 5\nretry: 10\n\ndata: d\n\n";
        let event = reader.take(&mut wire).unwrap().unwrap();
        assert_eq!((event.event, event.id, event.retry), (None, None, None));
        assert_eq!((reader.last_id(), reader.last_retry()), (b"5".as_slice(), Some(10)));
        // A priming event has a data line, if an empty one.
        let events = every_split(b"id: 9\ndata:\n\n");
        assert_eq!((events[0].id.as_deref(), events[0].data.len()), (Some(b"9".as_slice()), 0));
    }

    /// A connection that broke inside an event was resumed behind it, and the event was lost.
    #[test]
    fn an_id_is_resumed_from_only_when_its_event_is_whole() {
        let mut reader = Reader::default();
        let mut wire: &[u8] = b"id: 1\ndata: a\n\nid: 2\ndata: b\n";
        assert!(reader.take(&mut wire).unwrap().is_some());
        assert!(reader.take(&mut wire).unwrap().is_none());
        assert_eq!(reader.last_id(), b"1");
        assert!(reader.take(&mut &b"\n"[..]).unwrap().is_some());
        assert_eq!(reader.last_id(), b"2");
    }

    #[test]
    fn one_byte_order_mark_is_skipped() {
        assert_eq!(data(b"\xef\xbb\xbfdata: a\n\n"), ["a"]);
        assert!(data(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n").is_empty());
        assert_eq!(data(b"\xef\xbbdata: a\n\ndata: b\n\n"), ["b"]);
        assert_eq!(data(b"\xef\ndata: b\n\n"), ["b"]);
    }

    #[test]
    fn an_unfinished_event_is_dropped() {
        assert!(data(b"data: a\n").is_empty());
        assert!(data(b"data: a").is_empty());
    }

    #[test]
    fn data_and_labels_are_bounded() {
        let mut reader = Reader::new(10);
        let mut exact: &[u8] = b"data: 01234\ndata: 5678\n\n";
        assert_eq!(reader.take(&mut exact).unwrap().unwrap().data.len(), 10);
        for wire in ["data: 01234567890", "data: 01234\ndata: 56789\n", "data: 0123456789\ndata:\n"]
        {
            for step in 1..wire.len() {
                let mut reader = Reader::new(10);
                let fault = wire
                    .as_bytes()
                    .chunks(step)
                    .find_map(|mut piece| reader.take(&mut piece).err());
                assert_eq!(fault, Some(SseFault::TooLarge), "{wire:?} in pieces of {step}");
            }
        }
        for name in ["id", "event", "retry"] {
            let wire = format!("{name}: {}", "1".repeat(LABEL_BYTES_MAX + 1));
            assert_eq!(run(wire.as_bytes(), 100), Err(SseFault::TooLarge));
        }
        // Comments and unknown fields are not kept and so need no bound.
        let wire = format!(":{0}\nx: {0}\ndata: a\n\n", "1".repeat(LABEL_BYTES_MAX + 1));
        assert_eq!(run(wire.as_bytes(), 100).unwrap().len(), 1);
    }

    #[test]
    fn a_priming_event_has_an_id_and_nothing_to_say() {
        let mut wire = Vec::new();
        write_priming(&mut wire, "a1", std::time::Duration::from_millis(1500));
        let events = every_split(&wire);
        let expected =
            Event { event: None, id: Some(b"a1".to_vec()), data: Vec::new(), retry: Some(1500) };
        assert_eq!(events, [expected]);
    }

    #[test]
    fn written_events_read_back() {
        for (text, back) in [
            ("{}", "{}"),
            ("", ""),
            ("\n", "\n"),
            ("a\r\nb\rc\nd", "a\nb\nc\nd"),
            (" x", " x"),
            ("a\n", "a\n"),
            ("\r\r\n", "\n\n"),
        ] {
            let mut wire = COMMENT.to_vec();
            write(&mut wire, Some("7-1"), text.as_bytes());
            let events = every_split(&wire);
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].data, back.as_bytes());
            assert_eq!(events[0].id.as_deref(), Some(b"7-1".as_slice()));
        }
    }
}
