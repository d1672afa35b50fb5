//! Laws of the event stream reader:
//! - events and faults do not depend on how the bytes arrive;
//! - a naive reader that splits the whole stream into lines first agrees;
//! - no event carries more data than its bound;
//! - what is written reads back, but for its line ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::http::sse::{Event, LABEL_BYTES_MAX, Reader, SseFault, write};

fuzz_target!(|data: &[u8]| {
    let [step, max, wire @ ..] = data else { return };
    let step = usize::from(*step) + 1;
    let max = usize::from(*max) * 4;
    let whole = read(wire, wire.len().max(1), max);
    assert_eq!(read(wire, step, max), whole);
    let events = naive(wire, max);
    assert_eq!(whole, events);
    for event in events.unwrap_or_default() {
        assert!(event.data.len() <= max);
    }
    round_trip(wire, step);
});

fn read(wire: &[u8], step: usize, max: usize) -> Result<Vec<Event>, SseFault> {
    let mut reader = Reader::new(max);
    let mut events = Vec::new();
    for mut piece in wire.chunks(step) {
        while let Some(event) = reader.take(&mut piece)? {
            events.push(event);
        }
    }
    Ok(events)
}

/// §9.2.6 read aloud, over whole lines.
fn naive(wire: &[u8], max: usize) -> Result<Vec<Event>, SseFault> {
    let wire = wire.strip_prefix(b"\xef\xbb\xbf").unwrap_or(wire);
    let (mut lines, mut start, mut at) = (Vec::new(), 0, 0);
    while at < wire.len() {
        let length = match wire[at..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => {
                at += 1;
                continue;
            }
        };
        lines.push((&wire[start..at], true));
        at += length;
        start = at;
    }
    lines.push((&wire[start..], false));

    let mut events = Vec::new();
    let mut event = Event::default();
    let mut data: Vec<&[u8]> = Vec::new();
    for (line, whole) in lines {
        if line.is_empty() && whole {
            if !data.is_empty() {
                event.data = data.join(&b'\n');
                event.event = event.event.take().filter(|name| !name.is_empty());
                events.push(event);
            }
            event = Event::default();
            data.clear();
            continue;
        }
        let colon = line.iter().position(|b| *b == b':');
        let name = &line[..colon.unwrap_or(line.len())];
        let value = colon.map_or(b"".as_slice(), |colon| &line[colon + 1..]);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if matches!(name, b"event" | b"id" | b"retry") && value.len() > LABEL_BYTES_MAX {
            return Err(SseFault::TooLarge);
        }
        if name == b"data" && (whole || !value.is_empty()) {
            data.push(value);
            if data.join(&b'\n').len() > max {
                return Err(SseFault::TooLarge);
            }
        }
        if !whole {
            continue;
        }
        match name {
            b"event" => event.event = Some(value.to_vec()),
            b"id" if !value.contains(&0) => event.id = Some(value.to_vec()),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let time = std::str::from_utf8(value).expect("digits").parse().ok();
                event.retry = time.or(event.retry);
            }
            _ => {}
        }
    }
    Ok(events)
}

fn round_trip(data: &[u8], step: usize) {
    let mut wire = Vec::new();
    write(&mut wire, Some("1-a"), data);
    write(&mut wire, None, b"next");
    let text = data.to_vec();
    let mut expected = Vec::with_capacity(text.len());
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'\r' if text.get(at + 1) == Some(&b'\n') => {}
            b'\r' => expected.push(b'\n'),
            byte => expected.push(*byte),
        }
    }
    let events = read(&wire, step, data.len() + 4).expect("within the bound");
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].data, expected);
    assert_eq!(events[0].id.as_deref(), Some(b"1-a".as_slice()));
    assert_eq!((events[1].data.as_slice(), &events[1].id), (b"next".as_slice(), &None));
}
