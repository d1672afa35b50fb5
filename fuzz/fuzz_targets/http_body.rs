//! Laws of the body decoder:
//! - the verdict, the content and the bytes used do not depend on how the bytes arrive;
//! - a naive decoder that sees everything at once agrees;
//! - the content is never larger than its bound;
//! - what is written in chunks reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::http::Framing;
use mcp_proxy::http::body::{Decoder, FramingFault, LAST_CHUNK, write_chunk};
use mcp_proxy::limits::CHUNK_LINE_BYTES_MAX;

/// Content, bytes used, whether the body ended.
type Read = Result<(Vec<u8>, usize, bool), FramingFault>;

fuzz_target!(|data: &[u8]| {
    let [kind, step, low, high, wire @ ..] = data else { return };
    let step = usize::from(*step) + 1;
    let bound = u64::from(u16::from_le_bytes([*low, *high]));
    match kind % 4 {
        0 => law(Framing::Length(bound / 2), bound, wire, step),
        1 => law(Framing::UntilClose, bound, wire, step),
        2 => round_trip(wire, step),
        _ => law(Framing::Chunked, bound, wire, step),
    }
});

fn law(framing: Framing, max: u64, wire: &[u8], step: usize) {
    let whole = read(framing, max, wire, wire.len().max(1));
    assert_eq!(read(framing, max, wire, step), whole);
    if let Ok((content, used, done)) = &whole {
        assert!(content.len() as u64 <= max && *used <= wire.len());
        assert!(*done || *used == wire.len());
    }
    let expected = match framing {
        Framing::Chunked => naive(max, wire),
        Framing::Length(length) => {
            let used = wire.len().min(length as usize);
            Ok((wire[..used].to_vec(), used, used as u64 == length))
        }
        _ if wire.len() as u64 > max => Err(FramingFault::TooLarge),
        _ => Ok((wire.to_vec(), wire.len(), false)),
    };
    assert_eq!(whole, expected);
}

fn read(framing: Framing, max: u64, wire: &[u8], step: usize) -> Read {
    let mut decoder = Decoder::new(framing, max)?;
    let (mut out, mut used) = (Vec::new(), 0);
    for piece in wire.chunks(step) {
        let took = decoder.decode(piece, &mut out)?;
        used += took;
        if took < piece.len() {
            assert!(decoder.is_done());
            break;
        }
    }
    Ok((out, used, decoder.is_done()))
}

/// Reads line by line, as the grammar of RFC 9112 §7.1 is written.
fn naive(max: u64, wire: &[u8]) -> Read {
    let (mut out, mut at, mut room, mut excess) = (Vec::new(), 0, max, 0);
    loop {
        let (digits, extension) = match line(wire, at) {
            Line::Whole(line) => split_size(line),
            Line::Cut(line) => {
                // Whatever is there must be the start of something legal.
                let (digits, extension) = split_size(line.strip_suffix(b"\r").unwrap_or(line));
                let rest = &line[digits.len() + extension.map_or(0, |e| e.len() + 1)..];
                let cut = check_size(digits, extension, &mut excess);
                return match cut {
                    Err(fault) => Err(fault),
                    Ok(_) if digits.is_empty() && !line.is_empty() => Err(FramingFault::Malformed),
                    Ok(_) if !matches!(rest, b"" | b"\r") => Err(FramingFault::Malformed),
                    Ok(_) => Ok((out, wire.len(), false)),
                };
            }
            Line::Bad(before) => {
                let (digits, extension) = split_size(before);
                check_size(digits, extension, &mut excess)?;
                return Err(FramingFault::Malformed);
            }
        };
        let line_length = digits.len() + extension.map_or(0, |e| e.len() + 1);
        let Line::Whole(line) = line(wire, at) else { unreachable!() };
        let size = check_size(digits, extension, &mut excess)?;
        if line_length != line.len() || digits.is_empty() {
            return Err(FramingFault::Malformed);
        }
        at += line.len() + 2;
        if size == 0 {
            return trailers(wire, at, out);
        }
        room = room.checked_sub(size).ok_or(FramingFault::TooLarge)?;
        excess = excess.saturating_sub(size as usize);
        let end = wire.len().min(at + size as usize);
        out.extend_from_slice(&wire[at..end]);
        match &wire[end..] {
            _ if end < at + size as usize => return Ok((out, wire.len(), false)),
            [] | [b'\r'] => return Ok((out, wire.len(), false)),
            [b'\r', b'\n', ..] => at = end + 2,
            _ => return Err(FramingFault::Malformed),
        }
    }
}

fn trailers(wire: &[u8], mut at: usize, out: Vec<u8>) -> Read {
    let mut excess = 0;
    loop {
        match line(wire, at) {
            Line::Whole(b"") => return Ok((out, at + 2, true)),
            Line::Whole(line) => {
                check_trailer(line, true, &mut excess)?;
                at += line.len() + 2;
            }
            Line::Cut(line) => {
                let inner = line.strip_suffix(b"\r").unwrap_or(line);
                // A line end may only follow a colon, or nothing at all.
                check_trailer(inner, inner.len() < line.len() && !inner.is_empty(), &mut excess)?;
                return Ok((out, wire.len(), false));
            }
            Line::Bad(before) => {
                check_trailer(before, false, &mut excess)?;
                return Err(FramingFault::Malformed);
            }
        }
    }
}

enum Line<'a> {
    /// Up to its CRLF.
    Whole(&'a [u8]),
    /// The input ends first, perhaps behind the CR.
    Cut(&'a [u8]),
    /// A CR or LF that is not part of a CRLF, and what is before it.
    Bad(&'a [u8]),
}

fn line(wire: &[u8], at: usize) -> Line<'_> {
    let rest = &wire[at..];
    match rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        None => Line::Cut(rest),
        Some(end) if rest[end] == b'\n' => Line::Bad(&rest[..end]),
        Some(end) if end + 1 == rest.len() => Line::Cut(rest),
        Some(end) if rest[end + 1] == b'\n' => Line::Whole(&rest[..end]),
        Some(end) => Line::Bad(&rest[..end]),
    }
}

fn split_size(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let extension = line[digits..].strip_prefix(b";");
    (&line[..digits], extension)
}

fn check_size(
    digits: &[u8],
    extension: Option<&[u8]>,
    excess: &mut usize,
) -> Result<u64, FramingFault> {
    if digits.len() > 16 || digits.is_empty() && extension.is_some() {
        return Err(FramingFault::Malformed);
    }
    count(extension.unwrap_or_default(), excess)?;
    let text = std::str::from_utf8(digits).expect("hex digits");
    Ok(u64::from_str_radix(text, 16).unwrap_or(0))
}

fn check_trailer(line: &[u8], whole: bool, excess: &mut usize) -> Result<(), FramingFault> {
    let name = line.iter().take_while(|b| is_tchar(**b)).count();
    count(&line[..name], excess)?;
    match &line[name..] {
        [] if whole => Err(FramingFault::Malformed),
        [] => Ok(()),
        [b':', value @ ..] if name > 0 => count(value, excess),
        _ => Err(FramingFault::Malformed),
    }
}

/// Counts bytes up to the first illegal one.
fn count(bytes: &[u8], excess: &mut usize) -> Result<(), FramingFault> {
    for byte in bytes {
        if *byte != b'\t' && (*byte < b' ' || *byte == 0x7f) {
            return Err(FramingFault::Malformed);
        }
        *excess += 1;
        if *excess > CHUNK_LINE_BYTES_MAX {
            return Err(FramingFault::Overhead);
        }
    }
    Ok(())
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn round_trip(content: &[u8], step: usize) {
    let mut wire = Vec::new();
    for piece in content.chunks(step) {
        write_chunk(&mut wire, piece);
    }
    write_chunk(&mut wire, b"");
    wire.extend_from_slice(LAST_CHUNK);
    let length = wire.len();
    wire.extend_from_slice(b"GET / HTTP/1.1\r\n");
    let expected = Ok((content.to_vec(), length, true));
    assert_eq!(read(Framing::Chunked, content.len() as u64, &wire, wire.len()), expected);
    assert_eq!(read(Framing::Chunked, content.len() as u64, &wire, step), expected);
}
