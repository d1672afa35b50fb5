//! Owns: loops over bytes that are compiled for the machine at hand.
//! Never: what the bytes mean.
//! Next: `driver`, which picks the event loop.

use super::sys;

/// Bytes that are looked at together.
pub const BLOCK: usize = 128;
/// Bytes of the vectors that the loop is meant for.
const VECTOR: usize = 32;
/// Bytes that the vectors of every machine hold.
pub const LEAST: usize = 16;

const _: () = assert!(BLOCK.is_multiple_of(VECTOR));

/// How many of the first bytes, in whole blocks, are neither `"` nor `\` nor a control character,
/// and whether any of those is beyond ASCII.
///
/// The block that ends the run is left to the caller. Some 60 bytes per nanosecond with AVX2.
pub fn plain_blocks(bytes: &[u8]) -> (usize, bool) {
    sys::widest(
        #[inline(always)]
        || plain(bytes),
    )
}

#[inline(always)]
fn plain(bytes: &[u8]) -> (usize, bool) {
    let mut length = 0;
    let mut beyond = 0;
    for block in bytes.chunks_exact(BLOCK) {
        // Without an early exit the compiler makes vectors of these. The least byte of a block
        // tells of all its bytes: with one bit changed, a quote stands right above the controls.
        let (mut low, mut slash, mut high) = ([u8::MAX; VECTOR], [u8::MAX; VECTOR], [0; VECTOR]);
        for row in block.chunks_exact(VECTOR) {
            for (at, &byte) in row.iter().enumerate() {
                low[at] = low[at].min(byte ^ 0x02);
                slash[at] = slash[at].min(byte ^ b'\\');
                high[at] |= byte;
            }
        }
        let mut ends = 0;
        let mut bits = 0;
        for at in 0..VECTOR {
            ends |= u8::from(low[at] <= 0x20) | u8::from(slash[at] == 0);
            bits |= high[at];
        }
        if ends != 0 {
            break;
        }
        beyond |= bits;
        length += BLOCK;
    }
    (length, beyond >= 0x80)
}

/// What a block of [`LEAST`] bytes has, a bit for each byte, the first one's lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// It is `"` or `\` or a control character.
    pub ends: u32,
    /// It is beyond ASCII.
    pub beyond: u32,
}

/// The marks of a block.
#[inline(always)]
pub fn marks(block: &[u8; LEAST]) -> Marks {
    #[cfg(target_arch = "x86_64")]
    return sys::marks(block);
    #[cfg(not(target_arch = "x86_64"))]
    each_marks(block)
}

/// The same byte by byte.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn each_marks(block: &[u8; LEAST]) -> Marks {
    let bits = |has: fn(u8) -> bool| {
        block.iter().rev().fold(0, |bits, &byte| bits << 1 | u32::from(has(byte)))
    };
    Marks {
        ends: bits(|byte| byte < 0x20 || byte == b'"' || byte == b'\\'),
        beyond: bits(|byte| byte >= 0x80),
    }
}

/// As [`plain_blocks`], but escapes of two bytes may stand among the others, except for that of a
/// backslash: how many of the first bytes they all are, one and then whole blocks, or one less
/// where an escape would be cut. Some 12 bytes per nanosecond with AVX2.
pub fn text_blocks(bytes: &[u8]) -> (usize, bool) {
    sys::widest(
        #[inline(always)]
        || text(bytes),
    )
}

#[inline(always)]
fn text(bytes: &[u8]) -> (usize, bool) {
    // What each byte means hangs on the one before it; of the first one that is not known.
    let Some((&first, rest)) = bytes.split_first() else { return (0, false) };
    if first < 0x20 || first == b'"' || first == b'\\' {
        return (0, false);
    }
    let mut length = 1;
    let mut beyond = first;
    for (block, before) in rest.chunks_exact(BLOCK).zip(bytes.chunks_exact(BLOCK)) {
        let (mut odd, mut high) = ([0; VECTOR], [0; VECTOR]);
        for row in 0..BLOCK / VECTOR {
            let from = row * VECTOR;
            let (row, before) = (&block[from..from + VECTOR], &before[from..from + VECTOR]);
            for at in 0..VECTOR {
                let byte = row[at];
                // Whole bytes, as vectors compare: of single bits, read by iterators, a build guided by
                // a profile made branches, which took seventeen times as long.
                let mask = |is: bool| u8::from(is).wrapping_neg();
                let opened = mask(before[at] == b'\\');
                let quote = mask(byte == b'"');
                // b and f differ in one bit.
                let letter = mask(byte | 0x04 == b'f')
                    | mask(byte == b'n')
                    | mask(byte == b'r')
                    | mask(byte == b't')
                    | mask(byte == b'/');
                // Opened and none of these letters, or a quote and not opened.
                odd[at] |= mask(byte < 0x20) | ((opened ^ quote) & !(opened & letter));
                high[at] |= byte;
            }
        }
        let (mut odds, mut bits) = (0, 0);
        for at in 0..VECTOR {
            odds |= odd[at];
            bits |= high[at];
        }
        if odds != 0 {
            break;
        }
        beyond |= bits;
        length += BLOCK;
    }
    (length - usize::from(bytes[length - 1] == b'\\'), beyond >= 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte at each place of a block, by both ways to compile the loop.
    #[test]
    fn each_byte_ends_a_run_or_does_not() {
        let mut bytes = vec![b'a'; 3 * BLOCK + 7];
        for byte in 0..=u8::MAX {
            for place in 0..bytes.len() {
                bytes[place] = byte;
                let ends = byte < 0x20 || byte == b'"' || byte == b'\\';
                let length = match place < 3 * BLOCK && ends {
                    true => place / BLOCK * BLOCK,
                    false => 3 * BLOCK,
                };
                let wanted = (length, byte >= 0x80 && place < length);
                assert_eq!(plain_blocks(&bytes), wanted, "{byte:#x} at {place}");
                assert_eq!(plain(&bytes), wanted, "{byte:#x} at {place}");
                bytes[place] = b'a';
            }
        }
        assert_eq!(plain_blocks(b"short"), (0, false));
    }

    /// Each byte at each place, behind a backslash and not, by both ways to compile the loop.
    #[test]
    fn each_byte_belongs_to_a_text_or_does_not() {
        let mut bytes = vec![b'a'; 1 + 2 * BLOCK + 7];
        for (opened, byte) in
            [false, true].into_iter().flat_map(|o| (0..=u8::MAX).map(move |b| (o, b)))
        {
            let fine = match (opened, byte) {
                (false, b'"') => false,
                (false, _) => byte >= 0x20,
                (true, _) => br#""/bfnrt"#.contains(&byte),
            };
            for place in 2..bytes.len() {
                bytes[place] = byte;
                if opened {
                    bytes[place - 1] = b'\\';
                }
                // A backslash at the place opens the letter behind it, which is none.
                let odd = match (fine, byte) {
                    (true, b'\\') => place + 1,
                    (true, _) => bytes.len(),
                    (false, _) => place,
                };
                let mut length = 1 + ((odd - 1) / BLOCK).min(2) * BLOCK;
                let beyond = bytes[..length].iter().any(|&byte| byte >= 0x80);
                length -= usize::from(bytes[length - 1] == b'\\');
                assert_eq!(text_blocks(&bytes), (length, beyond), "{opened} {byte:#x} at {place}");
                assert_eq!(text(&bytes), (length, beyond), "{opened} {byte:#x} at {place}");
                (bytes[place - 1], bytes[place]) = (b'a', b'a');
            }
        }
        for first in [0, 0x1F, b'"', b'\\'] {
            bytes[0] = first;
            assert_eq!(text_blocks(&bytes), (0, false));
        }
        assert_eq!(text_blocks(b"short"), (1, false));
        assert_eq!(text_blocks(b""), (0, false));
    }

    /// Each byte at each place of a block, alone and among others.
    #[test]
    fn vectors_mark_what_bytes_mark() {
        for byte in 0..=u8::MAX {
            for other in [b'a', b'"', b'\\', 0x1F, 0x80] {
                for place in 0..LEAST {
                    let mut block = [other; LEAST];
                    block[place] = byte;
                    assert_eq!(marks(&block), each_marks(&block), "{byte:#x} at {place}");
                }
            }
        }
    }
}
