//! Laws of the reader of lines, which is what a child's messages go through:
//! - lines and faults do not depend on how the bytes arrive;
//! - a naive reader that splits the whole at once agrees;
//! - no line is longer than its bound, none is empty, and none has a line end in it;
//! - what has no end is kept to the last byte, and nothing is kept twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::backend::frame::{Lines, TooLong};

/// The lines before the end or the fault, and what is behind the last of them.
type Read = (Vec<Vec<u8>>, Result<Vec<u8>, TooLong>);

fuzz_target!(|data: &[u8]| {
    let [max, step, wire @ ..] = data else { return };
    let (max, step) = (usize::from(*max), usize::from(*step) + 1);
    let whole = read(wire, wire.len().max(1), max);
    assert_eq!(read(wire, step, max), whole);
    assert_eq!(read(wire, 1, max), whole);
    assert_eq!(naive(wire, max), whole);
    for line in &whole.0 {
        assert!((1..=max).contains(&line.len()) && !line.contains(&b'\n'));
    }
});

fn read(wire: &[u8], step: usize, max: usize) -> Read {
    let mut lines = Lines::new(max);
    let mut found = Vec::new();
    for piece in wire.chunks(step) {
        let mut buffer = lines.buffer();
        buffer.extend_from_slice(piece);
        lines.restore(buffer);
        loop {
            match lines.cut() {
                Ok(Some(line)) => found.push(line.to_vec()),
                Ok(None) => break,
                Err(fault) => return (found, Err(fault)),
            }
        }
        lines.shrink(0);
    }
    (found, Ok(lines.rest()))
}

fn naive(wire: &[u8], max: usize) -> Read {
    let mut lines: Vec<&[u8]> = wire.split(|byte| *byte == b'\n').collect();
    let rest = lines.pop().unwrap_or_default();
    let mut found = Vec::new();
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > max {
            return (found, Err(TooLong));
        }
        if !line.is_empty() {
            found.push(line.to_vec());
        }
    }
    // Room for the CR that may belong to its end.
    let fits = rest.len() <= max + 1;
    (found, if fits { Ok(rest.to_vec()) } else { Err(TooLong) })
}
