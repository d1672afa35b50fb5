//! Owns: the one look at a message: is it JSON, is it JSON-RPC, and where do its parts stand.
//! Never: allocation, recursion, a second pass over the structure; a guess where two readers of
//! the message could differ.
//! Next: `watch`, the same judgement for a message that arrives in pieces.
//!
//! A scan accepts nothing that serde_json refuses to pass over, and refuses of what serde_json accepts
//! only what [`ScanFault`] lists as ours. Members that the proxy acts on (the envelope's, and those of
//! [`Envelope`] below `params`) must stand there once, in plain letters: a backend whose parser
//! takes the last of two, or ignores case, would otherwise obey what nobody has checked.

use super::message::{Envelope, Kind, ScanFault, Span};
use super::nest::{Awaits, Nest};
use super::{text, token, walk};
use crate::error;
use crate::limits::SCALAR_BYTES_MAX;

/// Scans one message.
///
/// The whole document is checked: UTF-8, structure, numbers, escapes, depth.
///
/// # Errors
/// See [`ScanFault`].
pub fn scan(message: &[u8]) -> Result<Envelope, ScanFault> {
    checked(message, |scanner| scanner.message().map_err(|fault| first_of_all(message, fault)))
}

/// Of two faults the one that JSON-RPC names first: what is no JSON is no message either, wherever
/// in it that shows.
#[cold]
fn first_of_all(message: &[u8], fault: ScanFault) -> ScanFault {
    if fault.kind() != error::Kind::InvalidRequest {
        return fault;
    }
    let mut scanner = Scanner::checked(message);
    scanner.space();
    match scanner.value(0).and_then(|_| scanner.end()) {
        Err(worse) if worse.kind() == error::Kind::Parse => worse,
        _ => fault,
    }
}

/// What `read` makes of bytes that are UTF-8 as a whole: nothing is said of others but that.
///
/// Structure is ASCII, so that nothing looks at more than one byte of a character, and only where
/// there was any beyond ASCII is there more to look at: as a rule one pass does.
///
/// # Errors
/// [`ScanFault::TooLong`], [`ScanFault::Utf8`], then what `read` says.
pub(super) fn checked<'m, T>(
    bytes: &'m [u8],
    read: impl FnOnce(&mut Scanner<'m>) -> Result<T, ScanFault>,
) -> Result<T, ScanFault> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(ScanFault::TooLong);
    }
    let mut scanner = Scanner::checked(bytes);
    let verdict = read(&mut scanner);
    if (scanner.beyond != 0 || verdict.is_err()) && simdutf8::basic::from_utf8(bytes).is_err() {
        return Err(ScanFault::Utf8);
    }
    verdict
}

/// One message, or several in an array (JSON-RPC 2.0 §6; MCP 2025-03-26 alone).
#[derive(Clone, Debug)]
pub enum Shape<'m> {
    /// A message.
    One(Envelope),
    /// An array, checked as a JSON document. Its elements are still to be scanned one by one, since
    /// each has its own answer; count them first, as nothing here bounds their number.
    Batch(Elements<'m>),
}

/// Scans a body that may be an array of messages.
///
/// # Errors
/// See [`ScanFault`]; of an array, only what makes it no JSON.
pub fn shape(body: &[u8]) -> Result<Shape<'_>, ScanFault> {
    if body.iter().find(|&&byte| !token::is_space(byte)) == Some(&b'[') {
        walk::elements(body).map(Shape::Batch)
    } else {
        scan(body).map(Shape::One)
    }
}

/// The elements of an array that was checked, as ranges of the bytes it was found in.
#[derive(Clone, Debug)]
pub struct Elements<'m> {
    scanner: Scanner<'m>,
    open: bool,
}

impl<'m> Elements<'m> {
    /// `scanner` stands behind the opening bracket of an array that was checked.
    pub(super) fn behind_bracket(scanner: Scanner<'m>) -> Elements<'m> {
        Elements { scanner, open: true }
    }
}

impl Iterator for Elements<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if !self.open {
            return None;
        }
        // The array was checked, so a fault here can only be its end.
        self.scanner.space();
        if self.scanner.take(b']') {
            self.open = false;
            return None;
        }
        self.scanner.take(b',');
        self.scanner.space();
        self.scanner.value(1).ok()
    }
}

/// One bit for each member that is acted on.
pub(super) mod bits {
    pub(in super::super) const JSONRPC: u32 = 1 << 0;
    pub(in super::super) const ID: u32 = 1 << 1;
    pub(in super::super) const METHOD: u32 = 1 << 2;
    pub(in super::super) const PARAMS: u32 = 1 << 3;
    pub(in super::super) const RESULT: u32 = 1 << 4;
    pub(in super::super) const ERROR: u32 = 1 << 5;
    pub(super) const NAME: u32 = 1 << 6;
    pub(super) const URI: u32 = 1 << 7;
    pub(super) const ARGUMENTS: u32 = 1 << 8;
    pub(super) const META: u32 = 1 << 9;
    pub(super) const TOKEN: u32 = 1 << 10;
    pub(super) const REQUEST_ID: u32 = 1 << 11;
    pub(super) const META_TOKEN: u32 = 1 << 12;
    pub(super) const TASK: u32 = 1 << 13;
}

use bits::*;

/// Names of the envelope's members.
const ENVELOPE: &[&str] = &["jsonrpc", "id", "method", "params", "result", "error"];
/// Names of the members of `params` that a request is routed and judged by.
const ROUTING: &[&str] = &["name", "uri", "arguments", "_meta"];
/// All names of `params` that are acted on.
const OF_PARAMS: &[&str] =
    &["name", "uri", "arguments", "_meta", "progressToken", "requestId", "task"];
/// The same of `params._meta`.
const OF_META: &[&str] = &["progressToken"];

// A match on bytes compares lengths and words; a walk through a table would call memcmp for each.

#[inline]
fn envelope_bit(inside: &[u8]) -> u32 {
    match inside {
        b"jsonrpc" => JSONRPC,
        b"id" => ID,
        b"method" => METHOD,
        b"params" => PARAMS,
        b"result" => RESULT,
        b"error" => ERROR,
        _ => 0,
    }
}

#[inline]
fn params_bit(inside: &[u8]) -> u32 {
    match inside {
        b"name" => NAME,
        b"uri" => URI,
        b"arguments" => ARGUMENTS,
        b"_meta" => META,
        b"progressToken" => TOKEN,
        b"requestId" => REQUEST_ID,
        b"task" => TASK,
        _ => 0,
    }
}

#[inline]
fn meta_bit(inside: &[u8]) -> u32 {
    if inside == b"progressToken" { META_TOKEN } else { 0 }
}

// Most keys are written as below, colon and all: one comparison instead of a walk, a cut and a match.
// What is not is read by the rules.

/// The bit and the length of a usual key of the envelope at the start of `rest`; (0, 0) if it is
/// another one, or written in another way.
#[inline]
fn usual_envelope_key(rest: &[u8]) -> (u32, usize) {
    if rest.starts_with(b"\"jsonrpc\":") {
        (JSONRPC, 10)
    } else if rest.starts_with(b"\"id\":") {
        (ID, 5)
    } else if rest.starts_with(b"\"method\":") {
        (METHOD, 9)
    } else if rest.starts_with(b"\"params\":") {
        (PARAMS, 9)
    } else if rest.starts_with(b"\"result\":") {
        (RESULT, 9)
    } else {
        (0, 0)
    }
}

/// The same of a key of `params`.
#[inline]
fn usual_params_key(rest: &[u8]) -> (u32, usize) {
    if rest.starts_with(b"\"name\":") {
        (NAME, 7)
    } else if rest.starts_with(b"\"arguments\":") {
        (ARGUMENTS, 12)
    } else if rest.starts_with(b"\"_meta\":") {
        (META, 8)
    } else {
        (0, 0)
    }
}

/// Which member of the envelope a name is, between its quotes: a bit, or 0 for another one.
///
/// # Errors
/// An escape in it, or one of the names in another case.
#[inline]
pub(super) fn envelope_key(inside: &[u8]) -> Result<u32, ScanFault> {
    match envelope_bit(inside) {
        0 => foreign_envelope_key(inside),
        bit => Ok(bit),
    }
}

#[cold]
fn foreign_envelope_key(inside: &[u8]) -> Result<u32, ScanFault> {
    if inside.contains(&b'\\') {
        Err(ScanFault::EscapedKey)
    } else if folds_to_one_of(inside, ENVELOPE) {
        Err(ScanFault::Lookalike)
    } else {
        Ok(0)
    }
}

/// Whether a reader that ignores case takes a name for one of these.
fn folds_to_one_of(inside: &[u8], names: &[&str]) -> bool {
    // No name of these has more than 9 letters, and none grows beyond 6 bytes a letter.
    inside.len() <= 54 && names.iter().any(|name| token::folds_to(inside, name))
}

/// A key below the envelope that is none of `known`: whether one who ignores case takes it for one
/// of `routing`.
///
/// It may be escaped as its writer likes (`io.modelcontextprotocol\/related-task`).
///
/// # Errors
/// Its escapes hide a known name.
fn foreign_key(inside: &[u8], known: &[&str], routing: &[&str]) -> Result<bool, ScanFault> {
    let says = |name: &&str| token::unescaped(inside).eq(name.chars());
    if inside.contains(&b'\\') && known.iter().any(says) {
        return Err(ScanFault::EscapedKey);
    }
    Ok(folds_to_one_of(inside, routing))
}

/// What was seen on the way, before it is known what it means.
#[derive(Default)]
struct Found {
    /// Bits of the members that were met.
    seen: u32,
    /// A member of `params` was met whose name is in another case.
    ///
    /// Refused only beside a `name` or `uri`: such a message is routed by what we read, and must
    /// not be read otherwise behind us. Elsewhere a custom method may use what names it likes.
    lookalike: bool,
    id: Option<Span>,
    method: Option<Span>,
    params: Option<Span>,
    name: Option<Span>,
    uri: Option<Span>,
    arguments: Option<Span>,
    meta: Option<Span>,
    token: Option<Span>,
    request_id: Option<Span>,
    meta_token: Option<Span>,
    result: Option<Span>,
    /// What the first `isError` of the result says.
    tool_error: Option<bool>,
    result_type: Option<Span>,
    error: Option<Span>,
}

impl Found {
    #[inline]
    fn first(&mut self, bit: u32) -> Result<(), ScanFault> {
        if self.seen & bit != 0 {
            return Err(ScanFault::Duplicate);
        }
        self.seen |= bit;
        Ok(())
    }

    fn envelope(self, message: &[u8]) -> Result<Envelope, ScanFault> {
        if self.lookalike && self.seen & (NAME | URI) != 0 {
            return Err(ScanFault::Lookalike);
        }
        let kind = judge(self.seen, self.id.map(|id| id.of(message)))?;
        let progress_token =
            if kind == Kind::Notification { self.token } else { None }.or(self.meta_token);
        Ok(Envelope {
            kind,
            task: self.seen & TASK != 0,
            id: self.id,
            method: self.method,
            params: self.params,
            name: self.name,
            uri: self.uri,
            arguments: self.arguments,
            meta: self.meta,
            progress_token,
            request_id: self.request_id,
            result: self.result,
            tool_error: self.tool_error == Some(true),
            result_type: self.result_type,
            error: self.error,
        })
    }
}

/// What kind of message has these members of the envelope (JSON-RPC 2.0 §4, §5).
pub(super) fn judge(seen: u32, id: Option<&[u8]>) -> Result<Kind, ScanFault> {
    let has = |bits| seen & bits != 0;
    if !has(JSONRPC) {
        return Err(ScanFault::Shape);
    }
    let null_id = id == Some(b"null");
    let kind = match (has(METHOD), has(RESULT), has(ERROR)) {
        (true, false, false) if id.is_none() => Kind::Notification,
        (true, false, false) if !null_id => Kind::Request,
        (false, true, false) if id.is_some() && !null_id && !has(PARAMS) => Kind::Response,
        (false, false, true) if !has(PARAMS) => Kind::ErrorResponse,
        _ => return Err(ScanFault::Shape),
    };
    Ok(kind)
}

/// Whether these bytes, a checked value, are an id: a string or a number of bounded length, or
/// null.
pub(super) fn id_value(value: &[u8]) -> Result<(), ScanFault> {
    match value.first() {
        Some(b'"' | b'-' | b'0'..=b'9' | b'n') if value.len() <= SCALAR_BYTES_MAX => {
            token::means_something(value)
        }
        Some(b'"' | b'-' | b'0'..=b'9') => Err(ScanFault::ScalarTooLong),
        _ => Err(ScanFault::Shape),
    }
}

/// A place in a message.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'m> {
    bytes: &'m [u8],
    at: usize,
    /// Other than zero if a string has a byte beyond ASCII.
    beyond: u32,
}

impl<'m> Scanner<'m> {
    /// At the start of bytes that were checked as a part of others.
    pub(super) fn checked(bytes: &'m [u8]) -> Scanner<'m> {
        Scanner { bytes, at: 0, beyond: 0 }
    }

    fn message(&mut self) -> Result<Envelope, ScanFault> {
        let mut found = Found::default();
        self.space();
        if self.peek() != Some(b'{') {
            // A whole document of another type is no message; half of one is no JSON.
            self.value(0)?;
            self.end()?;
            return Err(ScanFault::Shape);
        }
        self.walk(usual_envelope_key, |scanner, usual, key| {
            scanner.member(usual, key, &mut found)
        })?;
        self.end()?;
        found.envelope(self.bytes)
    }

    /// One member of the envelope, at its value.
    fn member(&mut self, usual: u32, key: Span, found: &mut Found) -> Result<(), ScanFault> {
        let bit = if usual == 0 { envelope_key(inside(key, self.bytes))? } else { usual };
        if bit == 0 {
            self.value(1)?;
            return Ok(());
        }
        found.first(bit)?;
        if bit == JSONRPC && self.bytes[self.at..].starts_with(br#""2.0""#) {
            self.at += 5;
            return Ok(());
        }
        let first = self.peek();
        let value = match (bit, first) {
            (PARAMS, Some(b'{')) => self.params(found)?,
            (RESULT, Some(b'{')) => self.result(found)?,
            _ => self.value(1)?,
        };
        let place = match bit {
            ID => {
                id_value(value.of(self.bytes))?;
                &mut found.id
            }
            METHOD if first == Some(b'"') => &mut found.method,
            PARAMS if matches!(first, Some(b'{' | b'[' | b'n')) => &mut found.params,
            RESULT => &mut found.result,
            ERROR if first == Some(b'{') => &mut found.error,
            _ => return Err(ScanFault::Shape),
        };
        *place = Some(value);
        Ok(())
    }

    fn params(&mut self, found: &mut Found) -> Result<Span, ScanFault> {
        self.walk(usual_params_key, |scanner, usual, key| {
            let mut bit = usual;
            if bit == 0 {
                let name = inside(key, scanner.bytes);
                bit = params_bit(name);
                if bit == 0 {
                    found.lookalike |= foreign_key(name, OF_PARAMS, ROUTING)?;
                }
            }
            found.first(bit)?;
            let first = scanner.peek();
            let value = if bit == META && first == Some(b'{') {
                scanner.meta(found)?
            } else {
                scanner.value(2)?
            };
            let place = match (bit, first) {
                (NAME, Some(b'"')) => &mut found.name,
                (URI, Some(b'"')) => &mut found.uri,
                (ARGUMENTS, _) => &mut found.arguments,
                (META, Some(b'{')) => &mut found.meta,
                (TOKEN, Some(b'"' | b'-' | b'0'..=b'9')) => &mut found.token,
                (REQUEST_ID, Some(b'"' | b'-' | b'0'..=b'9')) => &mut found.request_id,
                _ => return Ok(()),
            };
            *place = Some(value);
            Ok(())
        })
    }

    fn result(&mut self, found: &mut Found) -> Result<Span, ScanFault> {
        self.members(|scanner, key| {
            let value = scanner.value(2)?;
            let key = key.of(scanner.bytes);
            if walk::key_is(key, "isError") {
                found.tool_error.get_or_insert(value.of(scanner.bytes) == b"true");
            } else if walk::key_is(key, "resultType") {
                found.result_type.get_or_insert(value);
            }
            Ok(())
        })
    }

    fn meta(&mut self, found: &mut Found) -> Result<Span, ScanFault> {
        self.members(|scanner, key| {
            let name = inside(key, scanner.bytes);
            let bit = meta_bit(name);
            if bit == 0 {
                foreign_key(name, OF_META, &[])?;
            }
            found.first(bit)?;
            let first = scanner.peek();
            let value = scanner.value(3)?;
            if let (META_TOKEN, Some(b'"' | b'-' | b'0'..=b'9')) = (bit, first) {
                found.meta_token = Some(value);
            }
            Ok(())
        })
    }

    /// Walks the object here; `each` is called with every key, at its value, and must step over it.
    pub(super) fn members(
        &mut self,
        mut each: impl FnMut(&mut Self, Span) -> Result<(), ScanFault>,
    ) -> Result<Span, ScanFault> {
        self.walk(|_| (0, 0), |scanner, _, key| each(scanner, key))
    }

    /// As [`Scanner::members`]; of a key that `usual` knows, `each` is told its bit, and of another
    /// one where it stands.
    #[inline]
    fn walk(
        &mut self,
        usual: impl Fn(&[u8]) -> (u32, usize),
        mut each: impl FnMut(&mut Self, u32, Span) -> Result<(), ScanFault>,
    ) -> Result<Span, ScanFault> {
        let start = self.at;
        self.expect(b'{')?;
        self.space();
        if !self.take(b'}') {
            loop {
                let (bit, length) = usual(&self.bytes[self.at..]);
                let key = match bit {
                    0 => self.key()?,
                    _ => {
                        self.at += length;
                        self.space();
                        Span::default()
                    }
                };
                each(self, bit, key)?;
                self.space();
                if self.take(b'}') {
                    break;
                }
                self.expect(b',')?;
                self.space();
            }
        }
        Ok(Span::new(start, self.at))
    }

    /// Steps over a key, its colon and the space before its value.
    pub(super) fn key(&mut self) -> Result<Span, ScanFault> {
        let start = self.at;
        self.string()?;
        let key = Span::new(start, self.at);
        self.space();
        self.expect(b':')?;
        self.space();
        Ok(key)
    }

    /// Steps over the value here, of any type, that stands inside of `depth` containers.
    #[inline]
    pub(super) fn value(&mut self, depth: usize) -> Result<Span, ScanFault> {
        let start = self.at;
        self.at = match self.peek() {
            Some(b'"') => text::string_end(self.bytes, start, &mut self.beyond)?,
            Some(b'-' | b'0'..=b'9') => token::number_end(self.bytes, start)?,
            Some(b'{' | b'[') => self.nested(depth)?,
            Some(_) => token::literal_end(self.bytes, start)?.ok_or(ScanFault::Syntax)?,
            None => return Err(ScanFault::Syntax),
        };
        Ok(Span::new(start, self.at))
    }

    /// Behind the object or array here.
    fn nested(&mut self, depth: usize) -> Result<usize, ScanFault> {
        let mut nest = Nest::within(depth);
        let mut awaits = Awaits::Value;
        let end = nest.walk(self.bytes, self.at, &mut awaits, depth, &mut self.beyond)?;
        if nest.depth() == depth { Ok(end) } else { Err(ScanFault::Syntax) }
    }

    fn string(&mut self) -> Result<(), ScanFault> {
        if self.peek() != Some(b'"') {
            return Err(ScanFault::Syntax);
        }
        self.at = text::string_end(self.bytes, self.at, &mut self.beyond)?;
        Ok(())
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), ScanFault> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(ScanFault::Syntax) }
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub(super) fn space(&mut self) {
        self.at = token::space_end(self.bytes, self.at);
    }

    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), ScanFault> {
        if self.take(byte) { Ok(()) } else { Err(ScanFault::Syntax) }
    }
}

/// A string without its quotes.
fn inside(string: Span, message: &[u8]) -> &[u8] {
    let raw = string.of(message);
    &raw[1..raw.len() - 1]
}

#[cfg(test)]
mod tests;
