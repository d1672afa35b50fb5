//! Owns: what both kinds of head share: the bytes, the fields in them, how far reading has come, and
//! what was said before.
//! Never: a first line, or what a field means to one kind alone.
//! Next: `request`.

use super::grammar::{control_at, decimal, is_blank, is_tchar, is_value, trim};
use super::{Framing, HeadFault, Version};
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

// Offsets into a head are 16 bits wide.
const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);
/// Field entries and head bytes that a head keeps between messages; more is given back.
pub(super) const KEPT_FIELDS: usize = 32;
pub(super) const KEPT_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    start: u16,
    end: u16,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && end <= HEAD_BYTES_MAX);
        Span { start: start as u16, end: end as u16 }
    }

    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
}

/// What both kinds of head share: the bytes, the fields in them, and how far reading has come.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// The whole head, once it is complete.
    pub(super) bytes: Vec<u8>,
    pub(super) list: Vec<Field>,
    /// Start of the line that is read next.
    pub(super) line: usize,
    /// Bytes that were searched for its end.
    pub(super) seen: usize,
    pub(super) started: bool,
    /// All of it was read and judged.
    pub(super) whole: bool,
    /// It was known from the one before.
    pub(super) repeated: bool,
    length: Option<u64>,
    /// The figures of Content-Length.
    figures: Span,
    chunked: bool,
    pub(super) close: bool,
    keep_alive: bool,
}

impl Fields {
    pub(super) fn reset(&mut self) {
        self.bytes.clear();
        self.list.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.list.shrink_to(KEPT_FIELDS);
        (self.line, self.seen, self.started) = (0, 0, false);
        (self.whole, self.repeated) = (false, false);
        (self.length, self.figures) = (None, Span::default());
        (self.chunked, self.close, self.keep_alive) = (false, false, false);
    }

    /// Keeps the head for a comparison with the next one, if it is of usual size.
    pub(super) fn remember(&mut self) {
        if !self.whole || self.bytes.len() > KEPT_BYTES || self.list.len() > KEPT_FIELDS {
            self.reset();
        }
    }

    /// Whether `input` begins with the remembered head, but for other figures in Content-Length:
    /// then all that was found in it holds, and its length is returned.
    ///
    /// Peers say the same on one connection over and over, and comparing costs a twentieth of
    /// reading.
    pub(super) fn repeated(&mut self, input: &[u8], framing: &mut Framing) -> Option<usize> {
        let head = input.get(..self.bytes.len())?;
        let (start, end) = (usize::from(self.figures.start), usize::from(self.figures.end));
        if head[..start] != self.bytes[..start] || head[end..] != self.bytes[end..] {
            return None;
        }
        let figures = &head[start..end];
        if *figures != self.bytes[start..end] {
            // Whether there is a body decides more than the length.
            let length = decimal(figures).filter(|length| *length > 0 && self.length != Some(0))?;
            self.length = Some(length);
            self.bytes[start..end].copy_from_slice(figures);
            if let Framing::Length(framing) = framing {
                *framing = length;
            }
        }
        self.repeated = true;
        Some(head.len())
    }

    /// The next whole line, without its CRLF; its bounds lie in `input`.
    ///
    /// Bounds are judged by where a line ends, never by how much has arrived, so the verdict is
    /// the same at every split.
    pub(super) fn next_line(
        &mut self,
        input: &[u8],
        first_max: usize,
    ) -> Result<Option<(usize, usize)>, HeadFault> {
        let (max, over) = if self.started {
            (HEAD_BYTES_MAX, HeadFault::TooLarge)
        } else {
            (self.line + first_max, HeadFault::LineTooLong)
        };
        let window = &input[..input.len().min(max)];
        let from = self.seen.max(self.line).min(window.len());
        let Some(found) = memchr::memchr(b'\n', &window[from..]) else {
            self.seen = window.len();
            return if window.len() == max { Err(over) } else { Ok(None) };
        };
        let end = from + found;
        if end == self.line || input[end - 1] != b'\r' {
            return Err(HeadFault::Malformed);
        }
        let line = (self.line, end - 1);
        self.line = end + 1;
        self.seen = self.line;
        Ok(Some(line))
    }

    /// Reads the next field line if it is whole and as nearly all are, `name: value`; `None` says
    /// nothing about it, and it is read by the rules.
    ///
    /// One look at each byte, where the rules need three.
    pub(super) fn usual_field(&mut self, input: &[u8]) -> Result<Option<Field>, HeadFault> {
        let window = &input[..input.len().min(HEAD_BYTES_MAX)];
        let Some((field, end)) = usual_line(window, self.line) else { return Ok(None) };
        (self.line, self.seen) = (end, end);
        self.keep(input, field)?;
        Ok(Some(field))
    }

    /// Reads one field line and keeps what framing and persistence need.
    pub(super) fn field(
        &mut self,
        input: &[u8],
        start: usize,
        end: usize,
    ) -> Result<Field, HeadFault> {
        let line = &input[start..end];
        // A name ends at the first byte that is no token character, and that byte must be the
        // colon: a space before it, an empty name and a folded line all fail here (§5.1, §5.2).
        let colon = line.iter().position(|b| !is_tchar(*b)).unwrap_or(0);
        if colon == 0 || line[colon] != b':' {
            return Err(HeadFault::Malformed);
        }
        let rest = &line[colon + 1..];
        let value = trim(rest);
        if !is_value(value) {
            return Err(HeadFault::Malformed);
        }
        // `trim` only shortens, so the value lies in the rest of the line.
        let blanks = value.as_ptr() as usize - rest.as_ptr() as usize;
        let value_at = start + colon + 1 + if value.is_empty() { 0 } else { blanks };
        let field = Field {
            name: Span::new(start, start + colon),
            value: Span::new(value_at, value_at + value.len()),
        };
        self.keep(input, field)?;
        Ok(field)
    }

    /// Keeps a field, and what framing and persistence need of it.
    fn keep(&mut self, input: &[u8], field: Field) -> Result<(), HeadFault> {
        if self.list.len() == HEADERS_MAX {
            return Err(HeadFault::TooManyFields);
        }
        self.list.push(field);
        let (name, value) = (field.name.of(input), field.value.of(input));
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|b| *b == b',').map(trim) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name == b"Content-Length"
                || name == b"content-length"
                || name.eq_ignore_ascii_case(b"content-length") =>
            {
                if self.length.is_some() {
                    return Err(HeadFault::Length);
                }
                self.length = Some(decimal(value).ok_or(HeadFault::Length)?);
                self.figures = field.value;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked {
                    return Err(HeadFault::Framing);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadFault::Coding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The rules of §6.1 that need the whole head.
    pub(super) fn framing(&self, version: Version) -> Result<Option<Framing>, HeadFault> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(HeadFault::Framing),
            (true, None) if version == Version::Http10 => Err(HeadFault::Framing),
            (true, None) => Ok(Some(Framing::Chunked)),
            (false, Some(length)) => Ok(Some(Framing::Length(length))),
            (false, None) => Ok(None),
        }
    }

    pub(super) fn persistent(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    pub(super) fn complete(&mut self, input: &[u8]) -> usize {
        self.bytes.extend_from_slice(&input[..self.line]);
        self.whole = true;
        self.line
    }

    pub(super) fn all<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a, 'n> {
        self.list
            .iter()
            .filter(move |field| field.name.of(&self.bytes).eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.of(&self.bytes))
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|field| (field.name.of(&self.bytes), field.value.of(&self.bytes)))
    }
}

macro_rules! field_access {
    () => {
        /// The value of the first field called `name`, in any case, without blanks around it.
        pub fn field(&self, name: &str) -> Option<&[u8]> {
            self.fields.all(name).next()
        }

        /// The values of all fields called `name`, in order.
        pub fn fields<'a, 'n>(
            &'a self,
            name: &'n str,
        ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a, 'n> {
            self.fields.all(name)
        }

        /// Every field, name and value, in order.
        pub fn each_field(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
            self.fields.each()
        }

        /// Protocol version of the message.
        pub fn version(&self) -> Version {
            self.version
        }

        /// How the end of the body is found.
        pub fn framing(&self) -> Framing {
            self.framing
        }

        /// Whether the sender lets the connection live on (RFC 9112 §9.3).
        pub fn keep_alive(&self) -> bool {
            self.fields.persistent(self.version)
        }
    };
}

pub(super) use field_access;

/// The field line at `start`, and where the next line begins, if it is whole and plain: a name, a
/// colon, at most one space, a value without blanks at its ends or tabs, CRLF.
fn usual_line(window: &[u8], start: usize) -> Option<(Field, usize)> {
    let line = window.get(start..)?;
    let colon = line.iter().position(|b| !is_tchar(*b))?;
    if colon == 0 || line[colon] != b':' {
        return None;
    }
    let blank = usize::from(line.get(colon + 1) == Some(&b' '));
    let value = colon + 1 + blank;
    let end = value + control_at(line.get(value..)?)?;
    if end == value || is_blank(line[value]) || is_blank(line[end - 1]) {
        return None;
    }
    if !line[end..].starts_with(b"\r\n") {
        return None;
    }
    let span = |from: usize, to: usize| Span::new(start + from, start + to);
    let field = Field { name: span(0, colon), value: span(value, end) };
    Some((field, start + end + 2))
}
