//! Owns: how far the characters of a string go.
//! Never: what they say.
//! Next: `nest`, which steps over values made of these.
//!
//! A text is looked at in three steps, as most end soon: its first block in place, some more by calls,
//! and what is still longer by the widest vectors that there are.

use super::message::ScanFault;
use super::token::{escape_length, is_whole_escape};
use crate::rt::wide::{self, Marks};

/// Where the first quote, backslash or control character at or behind `at` stands, or the length.
///
/// `beyond` is other than zero afterwards if the run has a byte beyond ASCII (and may be if one stands
/// less than a block behind it).
#[inline(always)]
pub(super) fn plain_end(bytes: &[u8], at: usize, beyond: &mut u32) -> usize {
    match first_end(bytes, at, beyond) {
        Some(end) => end,
        None => long_plain_end(bytes, at, beyond),
    }
}

/// As [`plain_end`], but escapes are part of the run: a backslash ends it only where none stands, or none
/// that is whole.
#[inline(always)]
fn text_end(bytes: &[u8], at: usize, beyond: &mut u32) -> usize {
    match first_end(bytes, at, beyond) {
        Some(end) if bytes[end] != b'\\' => end,
        _ => long_text_end(bytes, at, beyond),
    }
}

/// The end of a run that is found in its first block: keys and short strings pay for no call.
#[inline(always)]
fn first_end(bytes: &[u8], at: usize, beyond: &mut u32) -> Option<usize> {
    let marks = wide::marks(bytes.get(at..)?.first_chunk()?);
    *beyond |= marks.beyond;
    (marks.ends != 0).then(|| at + marks.ends.trailing_zeros() as usize)
}

#[inline(never)]
fn long_plain_end(bytes: &[u8], at: usize, beyond: &mut u32) -> usize {
    run_end::<false>(bytes, at, beyond)
}

#[inline(never)]
fn long_text_end(bytes: &[u8], at: usize, beyond: &mut u32) -> usize {
    run_end::<true>(bytes, at, beyond)
}

/// A run that goes on for so long is looked at by the widest vectors: they cost a call, and the block
/// in which they end is looked at again.
const WIDE_FROM: usize = 256;

#[inline(always)]
fn run_end<const ESCAPES: bool>(bytes: &[u8], mut at: usize, beyond: &mut u32) -> usize {
    let mut seen = 0;
    loop {
        let (marks, length) = marks_at(bytes, at);
        *beyond |= marks.beyond;
        let mut ends = marks.ends;
        let mut step = length;
        while ends != 0 {
            let place = ends.trailing_zeros() as usize;
            let end = at + place;
            if !ESCAPES || bytes[end] != b'\\' || !is_whole_escape(&bytes[end..]) {
                return end;
            }
            if place + 1 == wide::LEAST {
                // The letter opens the next block; digits behind it are as good as any text.
                step += 1;
                break;
            }
            ends &= !(0b11 << place);
        }
        at += step;
        if length < wide::LEAST {
            return bytes.len();
        }
        seen += length;
        if seen >= WIDE_FROM {
            let (mut length, mut high) = wide::plain_blocks(&bytes[at..]);
            if ESCAPES && length == 0 {
                (length, high) = wide::text_blocks(&bytes[at..]);
            }
            *beyond |= u32::from(high);
            at += length;
            seen = 0;
        }
    }
}

/// The marks of the block at `at`, and its length: less than a block only at the end.
#[inline(always)]
fn marks_at(bytes: &[u8], at: usize) -> (Marks, usize) {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(block) = rest.first_chunk() {
        return (wide::marks(block), wide::LEAST);
    }
    let marks = match bytes.last_chunk() {
        // The last whole block, without what of it is behind us.
        Some(block) => {
            let behind = wide::LEAST - rest.len();
            let marks = wide::marks(block);
            Marks { ends: marks.ends >> behind, beyond: marks.beyond >> behind }
        }
        None => {
            let mut block = [b' '; wide::LEAST];
            block[..rest.len()].copy_from_slice(rest);
            wide::marks(&block)
        }
    };
    (marks, rest.len())
}

/// How far the bytes of a string go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Up to its closing quote; behind that.
    Whole(usize),
    /// Up to their end, or to an escape that their end cuts.
    Cut(usize),
}

/// How far the string goes within which `at` stands, behind its opening quote or whole escapes. For
/// `beyond` see [`plain_end`].
///
/// # Errors
/// A control character, or a backslash without an escape.
#[inline(always)]
pub(super) fn reach(bytes: &[u8], at: usize, beyond: &mut u32) -> Result<Reach, ScanFault> {
    let end = text_end(bytes, at, beyond);
    match bytes.get(end) {
        Some(b'"') => Ok(Reach::Whole(end + 1)),
        _ => odd_reach(bytes, end),
    }
}

/// Of a run that no quote ends, how far it goes.
#[inline(never)]
fn odd_reach(bytes: &[u8], end: usize) -> Result<Reach, ScanFault> {
    match bytes.get(end) {
        None => Ok(Reach::Cut(end)),
        Some(b'\\') if escape_length(&bytes[end..])?.is_none() => Ok(Reach::Cut(end)),
        Some(_) => Err(ScanFault::Syntax),
    }
}

/// Behind the string at `at`, which is a quote.
///
/// # Errors
/// See [`reach`], and the bytes end within it.
#[inline(always)]
pub(super) fn string_end(bytes: &[u8], at: usize, beyond: &mut u32) -> Result<usize, ScanFault> {
    match reach(bytes, at + 1, beyond)? {
        Reach::Whole(end) => Ok(end),
        Reach::Cut(_) => Err(ScanFault::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_a_plain_search_says() {
        // Every special byte at every place of every length that crosses the loops' borders.
        for length in 0..200 {
            let calm: Vec<u8> = (0..length).map(|i| b"az~\x7F\xC3\xFF!#[]"[i % 10]).collect();
            assert_eq!(plain_end(&calm, 0, &mut 0), length);
            for at in 0..length {
                for special in [0, 1, 0x1F, b'"', b'\\'] {
                    let mut bytes = calm.clone();
                    bytes[at] = special;
                    // One more behind it must not matter.
                    if at + 1 < length {
                        bytes[at + 1] = b'"';
                    }
                    assert_eq!(plain_end(&bytes, 0, &mut 0), at, "{special} of {length}");
                    assert_eq!(plain_end(&bytes, at, &mut 0), at);
                }
            }
        }
    }

    #[test]
    fn every_byte_is_judged_alike_in_every_lane() {
        for byte in 0..=255u8 {
            let special = byte < 0x20 || byte == b'"' || byte == b'\\';
            for lane in 0..8 {
                let mut bytes = [b'x'; 16];
                bytes[lane] = byte;
                assert_eq!(
                    plain_end(&bytes, 0, &mut 0),
                    if special { lane } else { 16 },
                    "{byte:#x}"
                );
            }
        }
    }

    /// What [`reach`] says, byte by byte.
    fn reach_by_bytes(bytes: &[u8], mut at: usize) -> Result<Reach, ScanFault> {
        loop {
            match bytes.get(at) {
                None => return Ok(Reach::Cut(at)),
                Some(b'"') => return Ok(Reach::Whole(at + 1)),
                Some(0..0x20) => return Err(ScanFault::Syntax),
                Some(b'\\') => match escape_length(&bytes[at..])? {
                    Some(length) => at += length,
                    None => return Ok(Reach::Cut(at)),
                },
                Some(_) => at += 1,
            }
        }
    }

    #[test]
    fn a_text_goes_as_far_as_byte_by_byte() {
        // Parts of texts, from dense ones to such as fill whole blocks, in an order that repeats.
        let calm = "a".repeat(300);
        let parts = [
            "a", "\\n", "bcd", "\\\"", "é", "\\\\", "x y z", "\\u00e9", "\\/", "\\t", &calm,
            "\\uD83D", "\\x", "\"", "\n", "\\u12g4",
        ];
        let mut state = 1_u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        let mut ends = [0; 3];
        for round in 0..4000 {
            // Three quarters are all right, and many of those have no escape that is asked about.
            let kinds = if round % 4 == 0 { parts.len() as u32 } else { 5 + round % 8 };
            let long = 1 + next(120);
            let mut bytes: Vec<u8> =
                (0..long).flat_map(|_| parts[next(kinds) as usize].bytes()).collect();
            if round % 3 == 0 {
                bytes.push(b'"');
            }
            let start = (next(20) as usize).min(bytes.len());
            let mut beyond = 0;
            let found = reach(&bytes, start, &mut beyond);
            assert_eq!(
                found,
                reach_by_bytes(&bytes, start),
                "{:?}",
                String::from_utf8_lossy(&bytes)
            );
            let (end, end_kind) = match found {
                Ok(Reach::Whole(end)) => (end, 0),
                Ok(Reach::Cut(end)) => (end, 1),
                Err(_) => (start, 2),
            };
            ends[end_kind] += 1;
            if bytes[start..end].iter().any(|&byte| byte >= 0x80) {
                assert_ne!(beyond, 0);
            }
        }
        assert!(ends.iter().all(|&times| times > 100), "{ends:?}");
    }
}
