//! Owns: where a body ends: Content-Length, chunks, or the end of the connection; at any split.
//! Never: sockets or clocks; trailers are checked and dropped, extensions are dropped.
//! Next: `retry_after`, one field that says when to come again.
//!
//! RFC 9112 §6.3 and §7.1.

use super::head::{Framing, is_tchar};
use crate::limits::CHUNK_LINE_BYTES_MAX;
use std::fmt;

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingFault {
    /// Chunks that do not follow the grammar.
    Malformed,
    /// More bytes than the reader takes; found before they are read.
    TooLarge,
    /// Chunk extensions or trailers over [`CHUNK_LINE_BYTES_MAX`].
    Overhead,
    /// The connection ended before the body did.
    Truncated,
}

impl fmt::Display for FramingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FramingFault::Malformed => "malformed chunks",
            FramingFault::TooLarge => "body too large",
            FramingFault::Overhead => "chunk extensions or trailers too large",
            FramingFault::Truncated => "body cut short",
        })
    }
}

impl std::error::Error for FramingFault {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes left of a Content-Length.
    Length(u64),
    UntilClose,
    /// Before and within the hex digits of a chunk size.
    Size {
        digits: u8,
        value: u64,
    },
    Extension(u64),
    SizeLf(u64),
    /// Bytes left of a chunk.
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends it all.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// Takes the framing off a body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of content that may still come.
    room: u64,
    /// Bytes of extensions beyond what the content outweighs, then bytes of trailers.
    excess: usize,
}

impl Decoder {
    /// A decoder for one body of at most `max` bytes. A Content-Length over `max` is refused here,
    /// before anything is read.
    pub fn new(framing: Framing, max: u64) -> Result<Decoder, FramingFault> {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) if length > max => return Err(FramingFault::TooLarge),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { digits: 0, value: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Ok(Decoder { state, room: max, excess: 0 })
    }

    /// Whether the body has come to its proper end.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Content bytes that are announced and not here yet: how much a read should make room for.
    pub fn expected(&self) -> Option<u64> {
        match self.state {
            State::Length(left) | State::Data(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Whether received bytes are content as they are, so that they may be read straight to where
    /// they belong and be accounted for with [`Decoder::took`].
    pub fn is_plain(&self) -> bool {
        matches!(self.state, State::Length(_) | State::UntilClose)
    }

    /// Accounts for `received` bytes of a plain body and returns how many of them belong to it.
    pub fn took(&mut self, received: usize) -> Result<usize, FramingFault> {
        let mine = match &mut self.state {
            State::Length(left) => {
                let mine = (*left).min(received as u64);
                *left -= mine;
                if *left == 0 {
                    self.state = State::Done;
                }
                mine as usize
            }
            State::UntilClose => received,
            _ => 0,
        };
        self.room = self.room.checked_sub(mine as u64).ok_or(FramingFault::TooLarge)?;
        Ok(mine)
    }

    /// The connection has ended: was the body whole?
    pub fn end(&mut self) -> Result<(), FramingFault> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(FramingFault::Truncated),
        }
    }

    /// Appends the content found in `input` to `out`, and returns how many bytes were used: all of
    /// them, unless the body ends before.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, FramingFault> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Done => break,
                State::Length(_) | State::UntilClose => {
                    let mine = self.took(input.len() - at)?;
                    out.extend_from_slice(&input[at..at + mine]);
                    at += mine;
                }
                State::Data(left) => {
                    let mine = left.min((input.len() - at) as u64) as usize;
                    out.extend_from_slice(&input[at..at + mine]);
                    at += mine;
                    let left = left - mine as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                }
                _ => {
                    self.state = self.step(input[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// One byte of what stands between content.
    fn step(&mut self, byte: u8) -> Result<State, FramingFault> {
        let next = match (self.state, byte) {
            (State::Size { digits, value }, _) if byte.is_ascii_hexdigit() => {
                // 16 digits fill the 64 bits.
                if digits == 16 {
                    return Err(FramingFault::Malformed);
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                State::Size { digits: digits + 1, value: value << 4 | u64::from(digit) }
            }
            (State::Size { digits: 1.., value }, b'\r') => State::SizeLf(value),
            (State::Size { digits: 1.., value }, b';') => State::Extension(value),
            (State::Extension(value), b'\r') => State::SizeLf(value),
            (State::Extension(value), _) if is_value_byte(byte) => {
                self.overhead()?;
                State::Extension(value)
            }
            (State::SizeLf(0), b'\n') => {
                self.excess = 0;
                State::Trailer
            }
            (State::SizeLf(size), b'\n') => {
                self.room = self.room.checked_sub(size).ok_or(FramingFault::TooLarge)?;
                // Extensions are tolerated in proportion to content, so that a stream of any
                // length passes and a flood of one-byte chunks with long extensions does not.
                self.excess = self.excess.saturating_sub(size.min(1 << 20) as usize);
                State::Data(size)
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, value: 0 },
            (State::Trailer, b'\r') => State::EndLf,
            (State::Trailer | State::TrailerName, _) if is_tchar(byte) => {
                self.overhead()?;
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, _) if is_value_byte(byte) => {
                self.overhead()?;
                State::TrailerValue
            }
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(FramingFault::Malformed),
        };
        Ok(next)
    }

    fn overhead(&mut self) -> Result<(), FramingFault> {
        self.excess += 1;
        if self.excess > CHUNK_LINE_BYTES_MAX { Err(FramingFault::Overhead) } else { Ok(()) }
    }
}

fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// Appends `data` as one chunk; nothing for no data, since an empty chunk would end the body.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    out.reserve(data.len() + 20);
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut size = data.len();
    while size > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `wire` in pieces of `step` bytes: content, bytes used, whether it ended.
    fn run(
        framing: Framing,
        max: u64,
        wire: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, usize, bool), FramingFault> {
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

    fn every_split(
        framing: Framing,
        max: u64,
        wire: &[u8],
    ) -> Result<(Vec<u8>, usize, bool), FramingFault> {
        let whole = run(framing, max, wire, wire.len().max(1));
        for step in 1..wire.len().min(80) {
            assert_eq!(run(framing, max, wire, step), whole, "pieces of {step}");
        }
        whole
    }

    fn chunked(wire: &[u8]) -> Result<(Vec<u8>, usize, bool), FramingFault> {
        every_split(Framing::Chunked, 1 << 20, wire)
    }

    #[test]
    fn chunks_are_joined_and_the_rest_is_left() {
        let wire = b"4\r\nWiki\r\n6;name=\"v\"\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\n\
                     Expires: never\r\n\r\nGET / HTTP/1.1\r\n";
        let (out, used, done) = chunked(wire).unwrap();
        assert_eq!(out, b"Wikipedia in \r\n\r\nchunks.");
        assert_eq!(&wire[used..], b"GET / HTTP/1.1\r\n");
        assert!(done);
    }

    #[test]
    fn unfinished_chunks_are_not_done() {
        for wire in ["", "5", "5\r\nabc", "5\r\nabcde\r\n", "0\r\n", "0\r\nA: b\r\n", "0\r\n\r"] {
            let (_, used, done) = chunked(wire.as_bytes()).unwrap();
            assert!(!done && used == wire.len(), "{wire:?}");
        }
    }

    #[test]
    fn ambiguous_chunks_are_refused() {
        for wire in [
            "\r\n",
            "+5\r\nhello",
            "-1\r\n",
            "0x5\r\nhello",
            " 5\r\nhello",
            "5 \r\nhello",
            "5\nhello",
            "5\r\r\nhello",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "g\r\n",
            "5\r\nhello\r\n\r\n",
            "00000000000000005\r\nhello",
            "5 ;a=b\r\nhello",
            "5;a\nb\r\nhello",
            "5;a\0\r\nhello",
            ";\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n: empty\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nA: b\n\n",
            "0\r\nA: b\rc\r\n\r\n",
            "0\r\n\n",
            "0\n\n",
            "0\r\nA\r\n\r\n",
        ] {
            assert_eq!(chunked(wire.as_bytes()), Err(FramingFault::Malformed), "{wire:?}");
        }
    }

    #[test]
    fn the_size_is_bounded_before_the_bytes_come() {
        assert_eq!(
            every_split(Framing::Chunked, 8, b"5\r\nhello\r\n4\r\n"),
            Err(FramingFault::TooLarge)
        );
        assert!(every_split(Framing::Chunked, 9, b"5\r\nhello\r\n4\r\n").is_ok());
        let huge = b"ffffffffffffffff\r\n";
        assert_eq!(every_split(Framing::Chunked, 1 << 62, huge), Err(FramingFault::TooLarge));
        assert_eq!(Decoder::new(Framing::Length(9), 8).map(|_| ()), Err(FramingFault::TooLarge));
        assert_eq!(run(Framing::UntilClose, 4, b"hello", 5), Err(FramingFault::TooLarge));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = "x".repeat(CHUNK_LINE_BYTES_MAX + 1);
        let flood = "1;abcdefgh\r\nx\r\n".repeat(CHUNK_LINE_BYTES_MAX / 7 + 1);
        for wire in [
            format!("5;{long}\r\nhello"),
            format!("0\r\nA:{long}\r\n\r\n"),
            format!("0\r\n{long}"),
            "0\r\n".to_owned() + &"A:bcdefgh\r\n".repeat(CHUNK_LINE_BYTES_MAX / 8 + 1),
            flood,
        ] {
            assert_eq!(chunked(wire.as_bytes()), Err(FramingFault::Overhead));
        }
        // A long stream whose chunks outweigh their extensions goes on for ever.
        let stream = "14;abcdefgh\r\n01234567890123456789\r\n".repeat(CHUNK_LINE_BYTES_MAX);
        assert!(run(Framing::Chunked, 1 << 20, stream.as_bytes(), 1000).is_ok());
    }

    #[test]
    fn a_length_is_counted_out() {
        let (out, used, done) = every_split(Framing::Length(5), 5, b"helloGET").unwrap();
        assert_eq!((out.as_slice(), used, done), (b"hello".as_slice(), 5, true));
        let mut decoder = Decoder::new(Framing::Length(5), 5).unwrap();
        assert_eq!(decoder.took(3), Ok(3));
        assert_eq!(decoder.end(), Err(FramingFault::Truncated));
        assert_eq!(decoder.took(9), Ok(2));
        assert_eq!(decoder.end(), Ok(()));
    }

    #[test]
    fn only_an_unframed_body_ends_with_the_connection() {
        let mut decoder = Decoder::new(Framing::UntilClose, 100).unwrap();
        decoder.decode(b"abc", &mut Vec::new()).unwrap();
        assert!(!decoder.is_done());
        assert_eq!(decoder.end(), Ok(()));
        let mut decoder = Decoder::new(Framing::Chunked, 100).unwrap();
        decoder.decode(b"3\r\nabc\r\n", &mut Vec::new()).unwrap();
        assert_eq!(decoder.end(), Err(FramingFault::Truncated));
    }

    #[test]
    fn written_chunks_read_back() {
        let mut wire = Vec::new();
        let mut all = Vec::new();
        for size in [0, 1, 15, 16, 17, 255, 256, 65536] {
            let data = vec![b'a'; size];
            write_chunk(&mut wire, &data);
            all.extend_from_slice(&data);
        }
        wire.extend_from_slice(LAST_CHUNK);
        let (out, used, done) = run(Framing::Chunked, 1 << 20, &wire, wire.len()).unwrap();
        assert!(out == all && used == wire.len() && done);
    }
}
