//! Owns: the smallest pieces of JSON: escapes, numbers, literals, white space.
//! Never: structure.
//! Next: `text`, strings of such pieces and others.
//!
//! Document: RFC 8259 §6, §7. What the grammar allows goes through: half of a surrogate pair, which is
//! what a program leaves that cuts a text by UTF-16 units (§8.2), and numbers beyond a double. Only
//! where a text is to be understood (names, ids, URIs) has such a half no meaning.

use super::message::ScanFault;
use crate::limits::SCALAR_BYTES_MAX;

/// What stands at a backslash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// A whole escape of that many bytes.
    Whole(usize, char),
    /// The bytes end within it.
    Partial,
    /// Not an escape, or a surrogate without its other half.
    Bad,
}

/// Longest escape, of which a surrogate pair is two.
pub(super) const ESCAPE_BYTES_MAX: usize = 6;

/// Whether a whole escape stands at the start of `bytes`, which is a backslash.
#[inline(always)]
pub(super) fn is_whole_escape(bytes: &[u8]) -> bool {
    match bytes {
        [_, letter, ..] if ROLES[usize::from(*letter)] & ALONE != 0 => true,
        [_, b'u', a, b, c, d, ..] => {
            // Without a branch for each: where text is written so, it is for many characters.
            let [a, b, c, d] = [a, b, c, d].map(|digit| ROLES[usize::from(*digit)]);
            a & b & c & d & HEX != 0
        }
        _ => false,
    }
}

/// What bytes may be in an escape.
static ROLES: [u8; 256] = {
    let mut roles = [0; 256];
    let mut byte = 0;
    while byte < roles.len() {
        let hex = (byte as u8).is_ascii_hexdigit();
        roles[byte] = if hex { HEX } else { 0 };
        byte += 1;
    }
    let letters = br#""\/bfnrt"#;
    let mut at = 0;
    while at < letters.len() {
        roles[letters[at] as usize] |= ALONE;
        at += 1;
    }
    roles
};
/// An escape with a backslash alone.
const ALONE: u8 = 1;
/// A hexadecimal digit.
const HEX: u8 = 2;

/// The length of the escape at the start of `bytes`, which is a backslash; `None` if they end within
/// it. Half of a surrogate pair is one.
///
/// # Errors
/// It is no escape.
pub(super) fn escape_length(bytes: &[u8]) -> Result<Option<usize>, ScanFault> {
    match bytes.get(1) {
        None => Ok(None),
        Some(&letter) if ROLES[usize::from(letter)] & ALONE != 0 => Ok(Some(2)),
        Some(b'u') => {
            let digits = bytes[2..].iter().take(4);
            match digits.clone().all(u8::is_ascii_hexdigit) {
                true => Ok((digits.len() == 4).then_some(6)),
                false => Err(ScanFault::Syntax),
            }
        }
        Some(_) => Err(ScanFault::Syntax),
    }
}

/// Reads the escape at the start of `bytes`, which is a backslash.
pub(super) fn escape(bytes: &[u8]) -> Escape {
    debug_assert_eq!(bytes.first(), Some(&b'\\'));
    let Some(&letter) = bytes.get(1) else { return Escape::Partial };
    let plain = match letter {
        b'"' | b'\\' | b'/' => letter as char,
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode_escape(bytes),
        _ => return Escape::Bad,
    };
    Escape::Whole(2, plain)
}

#[cold]
fn unicode_escape(bytes: &[u8]) -> Escape {
    let first = match hex4(bytes, 2) {
        Ok(unit) => unit,
        Err(fault) => return fault,
    };
    match first {
        0xD800..=0xDBFF => {}
        0xDC00..=0xDFFF => return Escape::Bad,
        _ => return char::from_u32(first).map_or(Escape::Bad, |c| Escape::Whole(6, c)),
    }
    for (at, wanted) in [(6, b'\\'), (7, b'u')] {
        match bytes.get(at) {
            None => return Escape::Partial,
            Some(&byte) if byte != wanted => return Escape::Bad,
            Some(_) => {}
        }
    }
    match hex4(bytes, 8) {
        Ok(second @ 0xDC00..=0xDFFF) => {
            let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
            char::from_u32(code).map_or(Escape::Bad, |c| Escape::Whole(12, c))
        }
        Ok(_) => Escape::Bad,
        Err(fault) => fault,
    }
}

fn hex4(bytes: &[u8], from: usize) -> Result<u32, Escape> {
    let mut unit = 0;
    for at in from..from + 4 {
        let digit = match bytes.get(at) {
            None => return Err(Escape::Partial),
            Some(&byte) => (byte as char).to_digit(16).ok_or(Escape::Bad)?,
        };
        unit = unit << 4 | digit;
    }
    Ok(unit)
}

/// The characters of a string's inside (without its quotes), escapes resolved; U+FFFD for half of a
/// surrogate pair.
///
/// It ends early at bytes that are not valid inside of a string; after a scan there are none.
pub fn unescaped(inside: &[u8]) -> impl Iterator<Item = char> + '_ {
    let mut rest = inside;
    std::iter::from_fn(move || {
        let (length, character) = match rest.first()? {
            b'\\' => match escape(rest) {
                Escape::Whole(length, character) => (length, character),
                Escape::Partial | Escape::Bad => {
                    (escape_length(rest).ok()??, char::REPLACEMENT_CHARACTER)
                }
            },
            byte if byte.is_ascii() => (1, *byte as char),
            _ => {
                let head = &rest[..rest.len().min(4)];
                let valid = match std::str::from_utf8(head) {
                    Ok(text) => text,
                    // The character is whole, its follower was cut.
                    Err(cut) => std::str::from_utf8(&head[..cut.valid_up_to()]).ok()?,
                };
                let character = valid.chars().next()?;
                (character.len_utf8(), character)
            }
        };
        rest = &rest[length..];
        Some(character)
    })
}

/// Where the number that starts at `start` ends.
///
/// # Errors
/// It is none (RFC 8259 §6), or too long.
#[inline]
pub(super) fn number_end(bytes: &[u8], start: usize) -> Result<usize, ScanFault> {
    let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
    match bytes.get(at) {
        Some(b'0') => at += 1,
        Some(b'1'..=b'9') => at = digits_end(bytes, at + 1),
        _ => return Err(ScanFault::Syntax),
    }
    if let Some(b'.' | b'e' | b'E') = bytes.get(at) {
        at = fraction_end(bytes, at)?;
    }
    if at - start > SCALAR_BYTES_MAX {
        return Err(ScanFault::ScalarTooLong);
    }
    Ok(at)
}

fn fraction_end(bytes: &[u8], mut at: usize) -> Result<usize, ScanFault> {
    let some_digits = |at| match digits_end(bytes, at) {
        end if end > at => Ok(end),
        _ => Err(ScanFault::Syntax),
    };
    if bytes[at] == b'.' {
        at = some_digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        let sign = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
        at = some_digits(at + 1 + usize::from(sign))?;
    }
    Ok(at)
}

#[inline(always)]
fn digits_end(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

/// As [`number_end`]; `None` if the bytes end at the number or within it.
///
/// # Errors
/// See [`number_end`].
#[inline]
pub(super) fn whole_number_end(bytes: &[u8], at: usize) -> Result<Option<usize>, ScanFault> {
    match number_end(bytes, at) {
        Ok(end) => Ok((end < bytes.len()).then_some(end)),
        Err(_) if bytes[at..].iter().all(|&byte| of_number(byte)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Behind the `true`, `false` or `null` at `at`; `None` if the bytes end within it.
///
/// # Errors
/// It is none of these.
#[inline]
pub(super) fn literal_end(bytes: &[u8], at: usize) -> Result<Option<usize>, ScanFault> {
    match &bytes[at..] {
        [b't', b'r', b'u', b'e', ..] | [b'n', b'u', b'l', b'l', ..] => Ok(Some(at + 4)),
        [b'f', b'a', b'l', b's', b'e', ..] => Ok(Some(at + 5)),
        cut if LITERALS.iter().any(|whole| whole.starts_with(cut)) => Ok(None),
        _ => Err(ScanFault::Syntax),
    }
}

/// The literals (RFC 8259 §3).
pub(super) const LITERALS: [&[u8]; 3] = [b"true", b"false", b"null"];

/// Whether an id, a number or a string, has a value that both sides can agree on.
///
/// # Errors
/// It overflows a double, or is no text for half of a surrogate pair.
pub(super) fn means_something(id: &[u8]) -> Result<(), ScanFault> {
    match id {
        [b'"', ..] if id.contains(&b'\\') => {
            super::unquote(id).map(drop).ok_or(ScanFault::Surrogate)
        }
        // Up to 200 digits nothing overflows (10^308).
        [b'-' | b'0'..=b'9', ..] if id.len() > 200 || id.iter().any(|byte| byte | 0x20 == b'e') => {
            serde_json::from_slice::<f64>(id).map(drop).map_err(|_| ScanFault::NumberRange)
        }
        _ => Ok(()),
    }
}

/// Whether a byte can stand in a number.
#[inline]
pub(super) fn of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')
}

/// Where the white space that may stand at `at` ends.
#[inline(always)]
pub(super) fn space_end(bytes: &[u8], mut at: usize) -> usize {
    // As a rule there is none, and one comparison tells.
    while let Some(&byte) = bytes.get(at)
        && byte <= b' '
        && is_space(byte)
    {
        at += 1;
    }
    at
}

/// White space (RFC 8259 §2).
#[inline]
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\t' | b'\r')
}

/// Whether `inside`, escapes resolved, is `lower` (lower case) to a reader that ignores case.
///
/// Go's encoding/json is such a reader, and it folds two characters beyond ASCII.
pub(super) fn folds_to(inside: &[u8], lower: &str) -> bool {
    let folded = unescaped(inside).map(|character| match character {
        '\u{17F}' => 's',
        '\u{212A}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(lower.chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(escape(br"\n"), Escape::Whole(2, '\n'));
        assert_eq!(escape(br"\/x"), Escape::Whole(2, '/'));
        assert_eq!(escape(br"\u00e9"), Escape::Whole(6, 'é'));
        assert_eq!(escape(br"\u0000"), Escape::Whole(6, '\0'));
        assert_eq!(escape(br"\uD83D\uDE00"), Escape::Whole(12, '😀'));
        for bad in [r"\x", r"\u12g4", r"\uDE00", r"\uD83Dx", r"\uD83D\n", r"\uD83D\u0041"] {
            assert_eq!(escape(bad.as_bytes()), Escape::Bad, "{bad}");
        }
        let pair = br"\uD83D\uDE00";
        for cut in 1..pair.len() {
            assert_eq!(escape(&pair[..cut]), Escape::Partial, "{cut}");
        }
        for half in [r"\uDE00", r"\uD83Dx", r"\uD83D\n", r"\uD83D\u0041", r"\uD83D\uD83D"] {
            assert_eq!(escape_length(half.as_bytes()), Ok(Some(6)), "{half}");
            assert_eq!(unescaped(half.as_bytes()).next(), Some('\u{FFFD}'), "{half}");
        }
        for cut in 1..6 {
            assert_eq!(escape_length(&pair[..cut]), Ok(None), "{cut}");
        }
        for bad in [r"\x", r"\u12g4", r"\u-", r"\U0041"] {
            assert_eq!(escape_length(bad.as_bytes()), Err(ScanFault::Syntax), "{bad}");
        }
    }

    #[test]
    fn numbers_are_judged_as_serde_json_judges_what_it_passes_over() {
        let nines = "9".repeat(308);
        let more = "9".repeat(310);
        let small = format!("0.{}1e400", "0".repeat(399));
        for text in [
            "0",
            "-0",
            "01",
            "-",
            "+1",
            "1.",
            ".5",
            "1.5",
            "1e5",
            "1E+5",
            "1e-5",
            "1e",
            "1e+",
            "-0.0e0",
            "1e308",
            "1e309",
            "-1e309",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            "0e999",
            "1e-999",
            "1e99999999999",
            "0e99999999999",
            "1e-99999999999",
            "18446744073709551616",
            "9007199254740993",
            "123456789012345678901234567890",
            "1e0005",
            &nines,
            &more,
            &small,
        ] {
            let ours = number_end(text.as_bytes(), 0).is_ok_and(|end| end == text.len());
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            assert_eq!(ours, theirs, "{text}");
        }
    }

    #[test]
    fn folding() {
        assert!(folds_to(b"NAME", "name"));
        assert!(folds_to("argument\u{17F}".as_bytes(), "arguments"));
        assert!(folds_to(br"n\u0061me", "name"));
        assert!(!folds_to(b"names", "name"));
        assert!(!folds_to(b"nam", "name"));
    }

    #[test]
    fn unescaped_text() {
        let all: String = unescaped("aé€😀\\n\\uD83D\\uDE00z".as_bytes()).collect();
        assert_eq!(all, "aé€😀\n😀z");
    }
}
