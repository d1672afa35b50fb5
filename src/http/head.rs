//! Owns: message heads of HTTP/1.1: a strict parser that can be fed at any split, and the writers.
//! Never: sockets, clocks or bodies; a head that could be read in two ways is refused, not repaired.
//! Next: `body`, framed as the head says.
//!
//! RFC 9112 §2-§4, §6 and RFC 9110 §5, §7.2, §10.1.1.

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, REQUEST_LINE_BYTES_MAX};
use std::fmt;

// Offsets into a head are 16 bits wide.
const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);
/// Field entries and head bytes that a head keeps between messages; more is given back.
const KEPT_FIELDS: usize = 32;
const KEPT_BYTES: usize = 1024;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// A line that does not end in CRLF, or that does not follow the grammar.
    Malformed,
    /// A request line over [`REQUEST_LINE_BYTES_MAX`].
    LineTooLong,
    /// A head over [`HEAD_BYTES_MAX`].
    TooLarge,
    /// More than [`HEADERS_MAX`] fields.
    TooManyFields,
    /// A version that is neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// CONNECT or TRACE: no tunnels, no echoes.
    Method,
    /// No Host, several, an illegal one, or one that contradicts the request target.
    Host,
    /// A Content-Length that is malformed or given more than once.
    Length,
    /// Content-Length beside Transfer-Encoding, several Transfer-Encodings, or one in HTTP/1.0.
    Framing,
    /// A transfer coding other than `chunked` alone.
    Coding,
    /// An expectation other than `100-continue`.
    Expectation,
}

impl HeadFault {
    /// The status with which a server refuses such a request.
    pub const fn status(self) -> u16 {
        match self {
            HeadFault::Malformed | HeadFault::Host | HeadFault::Length | HeadFault::Framing => 400,
            HeadFault::LineTooLong => 414,
            HeadFault::Expectation => 417,
            HeadFault::TooLarge | HeadFault::TooManyFields => 431,
            HeadFault::Method | HeadFault::Coding => 501,
            HeadFault::Version => 505,
        }
    }
}

impl fmt::Display for HeadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeadFault::Malformed => "malformed head",
            HeadFault::LineTooLong => "request line too long",
            HeadFault::TooLarge => "head too large",
            HeadFault::TooManyFields => "too many fields",
            HeadFault::Version => "version not supported",
            HeadFault::Method => "method not served",
            HeadFault::Host => "missing, repeated or illegal Host",
            HeadFault::Length => "malformed or repeated Content-Length",
            HeadFault::Framing => "contradictory framing",
            HeadFault::Coding => "transfer coding not supported",
            HeadFault::Expectation => "expectation not supported",
        })
    }
}

impl std::error::Error for HeadFault {}

/// Request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// HEAD: answered without a body.
    Head,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// Any other token; CONNECT and TRACE never get this far.
    Other,
}

/// Protocol version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: one request a connection unless asked otherwise, no chunks, no 1xx.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// Content-Length, in bytes.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// A response without either: its body ends with the connection.
    UntilClose,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u16,
    end: u16,
}

impl Span {
    fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && end <= HEAD_BYTES_MAX);
        Span { start: start as u16, end: end as u16 }
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: Span,
    value: Span,
}

/// What both kinds of head share: the bytes, the fields in them, and how far reading has come.
#[derive(Debug, Default)]
struct Fields {
    /// The whole head, once it is complete.
    bytes: Vec<u8>,
    list: Vec<Field>,
    /// Start of the line that is read next.
    line: usize,
    /// Bytes that were searched for its end.
    seen: usize,
    started: bool,
    /// All of it was read and judged.
    whole: bool,
    /// It was known from the one before.
    repeated: bool,
    length: Option<u64>,
    /// The figures of Content-Length.
    figures: Span,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Fields {
    fn reset(&mut self) {
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
    fn remember(&mut self) {
        if !self.whole || self.bytes.len() > KEPT_BYTES || self.list.len() > KEPT_FIELDS {
            self.reset();
        }
    }

    /// Whether `input` begins with the remembered head, but for other figures in Content-Length:
    /// then all that was found in it holds, and its length is returned.
    ///
    /// Peers say the same on one connection over and over, and comparing costs a twentieth of
    /// reading.
    fn repeated(&mut self, input: &[u8], framing: &mut Framing) -> Option<usize> {
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
    fn next_line(
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
    fn usual_field(&mut self, input: &[u8]) -> Result<Option<Field>, HeadFault> {
        let window = &input[..input.len().min(HEAD_BYTES_MAX)];
        let Some((field, end)) = usual_line(window, self.line) else { return Ok(None) };
        (self.line, self.seen) = (end, end);
        self.keep(input, field)?;
        Ok(Some(field))
    }

    /// Reads one field line and keeps what framing and persistence need.
    fn field(&mut self, input: &[u8], start: usize, end: usize) -> Result<Field, HeadFault> {
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
    fn framing(&self, version: Version) -> Result<Option<Framing>, HeadFault> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(HeadFault::Framing),
            (true, None) if version == Version::Http10 => Err(HeadFault::Framing),
            (true, None) => Ok(Some(Framing::Chunked)),
            (false, Some(length)) => Ok(Some(Framing::Length(length))),
            (false, None) => Ok(None),
        }
    }

    fn persistent(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    fn complete(&mut self, input: &[u8]) -> usize {
        self.bytes.extend_from_slice(&input[..self.line]);
        self.whole = true;
        self.line
    }

    fn all<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a, 'n> {
        self.list
            .iter()
            .filter(move |field| field.name.of(&self.bytes).eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.of(&self.bytes))
    }

    fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
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

/// The head of a request.
///
/// Reused from request to request, so that a head of usual size costs no allocation.
#[derive(Debug)]
pub struct RequestHead {
    fields: Fields,
    method: Method,
    version: Version,
    path: Span,
    query: Option<Span>,
    /// Authority of an absolute-form target.
    authority: Option<Span>,
    host: Option<Span>,
    framing: Framing,
    expect_continue: bool,
    blank_skipped: bool,
}

impl Default for RequestHead {
    fn default() -> RequestHead {
        RequestHead {
            fields: Fields::default(),
            method: Method::Other,
            version: Version::Http11,
            path: Span::default(),
            query: None,
            authority: None,
            host: None,
            framing: Framing::Empty,
            expect_continue: false,
            blank_skipped: false,
        }
    }
}

impl RequestHead {
    field_access!();

    /// Makes ready for the next head of the same peer: one that says the same again is known without
    /// being read.
    pub fn remember(&mut self) {
        self.fields.remember();
        if !self.fields.whole {
            self.reset();
        }
    }

    /// Forgets everything but the storage.
    pub fn reset(&mut self) {
        self.fields.reset();
        (self.method, self.version) = (Method::Other, Version::Http11);
        (self.path, self.query) = (Span::default(), None);
        (self.authority, self.host) = (None, None);
        self.framing = Framing::Empty;
        (self.expect_continue, self.blank_skipped) = (false, false);
    }

    /// Reads on. `input` begins where the head begins and holds everything received since; lines
    /// that were read by an earlier call are not looked at again.
    ///
    /// Returns the length of the head once it is complete, `None` while more is needed. After a
    /// fault, [`RequestHead::reset`] comes first; after a complete head that or
    /// [`RequestHead::remember`].
    pub fn parse(&mut self, input: &[u8]) -> Result<Option<usize>, HeadFault> {
        if self.fields.whole {
            if input.is_empty() {
                return Ok(None);
            }
            if let Some(length) = self.fields.repeated(input, &mut self.framing) {
                return Ok(Some(length));
            }
            self.reset();
        }
        if !self.fields.started && self.fields.line == 0 && input.starts_with(USUAL_REQUEST_LINE) {
            self.fields.started = true;
            (self.fields.line, self.fields.seen) =
                (USUAL_REQUEST_LINE.len(), USUAL_REQUEST_LINE.len());
            (self.method, self.version) = (Method::Post, Version::Http11);
            self.path = Span::new(5, 9);
        }
        loop {
            if self.fields.started
                && let Some(field) = self.fields.usual_field(input)?
            {
                self.field_of_request(input, field)?;
                continue;
            }
            let Some((start, end)) = self.fields.next_line(input, REQUEST_LINE_BYTES_MAX)? else {
                return Ok(None);
            };
            if start == end {
                if !self.fields.started {
                    // One empty line before a request is forgiven (§2.2).
                    if std::mem::replace(&mut self.blank_skipped, true) {
                        return Err(HeadFault::Malformed);
                    }
                    continue;
                }
                self.finish(input)?;
                return Ok(Some(self.fields.complete(input)));
            }
            if !self.fields.started {
                self.fields.started = true;
                self.request_line(input, start, end)?;
                continue;
            }
            let field = self.fields.field(input, start, end)?;
            self.field_of_request(input, field)?;
        }
    }

    /// What a request needs of a field.
    fn field_of_request(&mut self, input: &[u8], field: Field) -> Result<(), HeadFault> {
        let (name, value) = (field.name.of(input), field.value.of(input));
        match name.len() {
            4 if name == b"Host" || name.eq_ignore_ascii_case(b"host") => {
                if self.host.is_some() || !is_authority(value) {
                    return Err(HeadFault::Host);
                }
                self.host = Some(field.value);
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadFault::Expectation);
                }
                self.expect_continue = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// `method SP request-target SP HTTP-version`, with exactly these spaces (§3).
    fn request_line(&mut self, input: &[u8], start: usize, end: usize) -> Result<(), HeadFault> {
        let line = &input[start..end];
        let space = memchr::memchr(b' ', line).ok_or(HeadFault::Malformed)?;
        let (method, rest) = (&line[..space], &line[space + 1..]);
        if !is_token(method) {
            return Err(HeadFault::Malformed);
        }
        let length = memchr::memchr(b' ', rest).ok_or(HeadFault::Malformed)?;
        let (target, version) = (&rest[..length], &rest[length + 1..]);
        self.version = read_version(version)?;
        self.method = match method {
            b"GET" => Method::Get,
            b"POST" => Method::Post,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"HEAD" => Method::Head,
            b"PUT" => Method::Put,
            b"PATCH" => Method::Patch,
            b"CONNECT" | b"TRACE" => return Err(HeadFault::Method),
            _ => Method::Other,
        };
        self.target(target, start + space + 1)
    }

    /// origin-form, absolute-form, or asterisk-form for OPTIONS (§3.2).
    fn target(&mut self, target: &[u8], at: usize) -> Result<(), HeadFault> {
        if !target.iter().all(|b| is_uri(*b)) {
            return Err(HeadFault::Malformed);
        }
        let mut path = 0;
        match target {
            [b'/', ..] => {}
            b"*" if self.method == Method::Options => {}
            _ => {
                let scheme = ["http://", "https://"].into_iter().find(|scheme| {
                    target
                        .get(..scheme.len())
                        .is_some_and(|t| t.eq_ignore_ascii_case(scheme.as_bytes()))
                });
                let from = scheme.ok_or(HeadFault::Malformed)?.len();
                path = target[from..]
                    .iter()
                    .position(|b| matches!(b, b'/' | b'?'))
                    .map_or(target.len(), |length| from + length);
                if !is_authority(&target[from..path]) {
                    return Err(HeadFault::Host);
                }
                self.authority = Some(Span::new(at + from, at + path));
            }
        }
        let query = memchr::memchr(b'?', &target[path..]).map(|length| path + length);
        self.path = Span::new(at + path, at + query.unwrap_or(target.len()));
        self.query = query.map(|query| Span::new(at + query + 1, at + target.len()));
        Ok(())
    }

    /// What can only be judged when every field is known.
    fn finish(&mut self, input: &[u8]) -> Result<(), HeadFault> {
        match (self.host, self.authority) {
            (None, _) if self.version == Version::Http11 => return Err(HeadFault::Host),
            // A target that names another host than Host would let a check of one and a use of
            // the other disagree; §3.2.2 would have us ignore Host, refusing is safer.
            (Some(host), Some(authority))
                if !host.of(input).eq_ignore_ascii_case(authority.of(input)) =>
            {
                return Err(HeadFault::Host);
            }
            _ => {}
        }
        self.framing = match self.fields.framing(self.version)? {
            Some(Framing::Length(0)) | None => Framing::Empty,
            Some(framing) => framing,
        };
        // An expectation in HTTP/1.0 is ignored, and without a body there is nothing to wait for
        // (RFC 9110 §10.1.1).
        self.expect_continue &= self.version == Version::Http11 && self.framing != Framing::Empty;
        Ok(())
    }

    /// Request method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Whether it says what the head said that was remembered, but for the length of its body.
    pub fn is_repeated(&self) -> bool {
        self.fields.repeated
    }

    /// The path exactly as it was sent, without the query; `*` for the server as a whole.
    pub fn path(&self) -> &str {
        match text(self.path.of(&self.fields.bytes)) {
            "" => "/",
            path => path,
        }
    }

    /// What follows the first `?`.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|query| text(query.of(&self.fields.bytes)))
    }

    /// The host asked for, with its port if one was given; `None` only in HTTP/1.0.
    pub fn host(&self) -> Option<&str> {
        self.host.or(self.authority).map(|host| text(host.of(&self.fields.bytes)))
    }

    /// Whether the client holds its body back until it hears 100 or a final status.
    pub fn expect_continue(&self) -> bool {
        self.expect_continue
    }
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    fields: Fields,
    version: Version,
    status: u16,
    framing: Framing,
    /// It answers HEAD.
    to_head: bool,
}

impl Default for ResponseHead {
    fn default() -> ResponseHead {
        ResponseHead {
            fields: Fields::default(),
            version: Version::Http11,
            status: 0,
            framing: Framing::Empty,
            to_head: false,
        }
    }
}

impl ResponseHead {
    field_access!();

    /// As [`RequestHead::remember`].
    pub fn remember(&mut self) {
        self.fields.remember();
        if !self.fields.whole {
            self.reset();
        }
    }

    /// Forgets everything but the storage.
    pub fn reset(&mut self) {
        self.fields.reset();
        (self.version, self.status) = (Version::Http11, 0);
        self.framing = Framing::Empty;
    }

    /// Reads on, as [`RequestHead::parse`] does. `to_head` says that the request was HEAD, whose
    /// answers have no body.
    pub fn parse(&mut self, input: &[u8], to_head: bool) -> Result<Option<usize>, HeadFault> {
        if self.fields.whole {
            if input.is_empty() {
                return Ok(None);
            }
            if self.to_head == to_head
                && let Some(length) = self.fields.repeated(input, &mut self.framing)
            {
                return Ok(Some(length));
            }
            self.reset();
        }
        self.to_head = to_head;
        if !self.fields.started && self.fields.line == 0 && input.starts_with(USUAL_STATUS_LINE) {
            self.fields.started = true;
            (self.fields.line, self.fields.seen) =
                (USUAL_STATUS_LINE.len(), USUAL_STATUS_LINE.len());
            (self.version, self.status) = (Version::Http11, 200);
        }
        loop {
            if self.fields.started && self.fields.usual_field(input)?.is_some() {
                continue;
            }
            let Some((start, end)) = self.fields.next_line(input, REQUEST_LINE_BYTES_MAX)? else {
                return Ok(None);
            };
            if start == end {
                if !self.fields.started {
                    return Err(HeadFault::Malformed);
                }
                let framing = self.fields.framing(self.version)?;
                // A 204 that announces a body may well send it: what follows is not to be trusted.
                self.fields.close |=
                    self.status == 204 && !matches!(framing, None | Some(Framing::Length(0)));
                self.framing = match framing {
                    // These never have a body, whatever their fields say (§6.3).
                    _ if to_head || matches!(self.status, 100..=199 | 204 | 304) => Framing::Empty,
                    Some(Framing::Length(0)) => Framing::Empty,
                    Some(framing) => framing,
                    None => Framing::UntilClose,
                };
                return Ok(Some(self.fields.complete(input)));
            }
            if self.fields.started {
                self.fields.field(input, start, end)?;
            } else {
                self.fields.started = true;
                self.status_line(&input[start..end])?;
            }
        }
    }

    /// `HTTP-version SP status-code SP [reason-phrase]` (§4); the last space is often forgotten.
    fn status_line(&mut self, line: &[u8]) -> Result<(), HeadFault> {
        let Some((version, rest)) = line.split_at_checked(8) else {
            return Err(HeadFault::Malformed);
        };
        self.version = read_version(version)?;
        let [b' ', hundreds @ b'1'..=b'5', tens @ b'0'..=b'9', ones @ b'0'..=b'9', reason @ ..] =
            rest
        else {
            return Err(HeadFault::Malformed);
        };
        if !(reason.is_empty() || reason[0] == b' ') || !is_value(reason) {
            return Err(HeadFault::Malformed);
        }
        let digit = |byte: &u8| u16::from(byte - b'0');
        self.status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        Ok(())
    }

    /// Status code, 100 to 599.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Content-Length, if the body is framed by it.
    pub fn content_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::Empty => Some(0),
            Framing::Chunked | Framing::UntilClose => None,
        }
    }
}

fn read_version(version: &[u8]) -> Result<Version, HeadFault> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(HeadFault::Version),
        _ => Err(HeadFault::Malformed),
    }
}

/// Content-Length: digits only, below 2^63.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    let mut number = 0u64;
    for byte in value {
        if !byte.is_ascii_digit() {
            return None;
        }
        // 19 digits stay below 10^19 and so below 2^64.
        number = number * 10 + u64::from(byte - b'0');
    }
    (number < 1 << 63).then_some(number)
}

/// ASCII that was checked when it was read.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Without the optional white space around it (RFC 9110 §5.6.3).
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = value {
        if !is_blank(*first) {
            break;
        }
        value = rest;
    }
    while let [rest @ .., last] = value {
        if !is_blank(*last) {
            break;
        }
        value = rest;
    }
    value
}

const fn class(members: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < members.len() {
        table[members[at] as usize] = true;
        at += 1;
    }
    table
}

/// tchar (RFC 9110 §5.6.2).
static TCHAR: [bool; 256] = class(b"!#$%&'*+-.^_`|~");
/// Characters of a URI without its fragment (RFC 3986 §2); others have to be escaped.
static URI: [bool; 256] = class(b"-._~:/?[]@!$&'()*+,;=%");
/// Characters of a registered name (RFC 3986 §3.2.2).
static REG_NAME: [bool; 256] = class(b"-._~!$&'()*+,;=%");

pub(crate) fn is_tchar(byte: u8) -> bool {
    TCHAR[usize::from(byte)]
}

fn is_uri(byte: u8) -> bool {
    URI[usize::from(byte)]
}

/// Whether `name` can be a method or a field name.
pub fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| is_tchar(*b))
}

/// Whether `value` can be a field value: no control characters but the tab (RFC 9110 §5.5).
pub fn is_value(value: &[u8]) -> bool {
    // Eight bytes at a time: values are short, so that vector code would spend its time in what
    // is left over. The last word may look at bytes again.
    let is_odd = |word: &[u8; 8]| controls(word) != 0;
    let fits = |byte: &u8| (*byte >= b' ' || *byte == b'\t') && *byte != 0x7f;
    match value.last_chunk() {
        Some(last) if !value.as_chunks().0.iter().any(is_odd) && !is_odd(last) => true,
        // Short, or with a tab in it, or bad.
        _ => value.iter().all(fits),
    }
}

/// How requests of MCP begin.
const USUAL_REQUEST_LINE: &[u8] = b"POST /mcp HTTP/1.1\r\n";
/// How answers begin.
const USUAL_STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";

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

/// Where the first control character stands, the tab and DEL among them.
fn control_at(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let marks = controls(word);
        if marks != 0 {
            // A subtraction may borrow into the byte above a hit: only the lowest mark is exact.
            return Some(index * 8 + (marks.trailing_zeros() / 8) as usize);
        }
    }
    let at = rest.iter().position(|b| *b < b' ' || *b == 0x7f)?;
    Some(words.len() * 8 + at)
}

/// The high bit of each byte that is a control character.
#[inline]
fn controls(word: &[u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(*word);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let delete = word ^ (ONES * 0x7f);
    (control | delete.wrapping_sub(ONES) & !delete) & HIGHS
}

/// Whether `host` is `uri-host [":" port]`, with a host that is not empty and without user
/// information (RFC 9110 §7.2, §4.2.1).
pub fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', rest @ ..] => {
            let Some(end) = memchr::memchr(b']', rest) else { return false };
            let address = std::str::from_utf8(&rest[..end]).unwrap_or_default();
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (&rest[..end], &rest[end + 1..])
        }
        _ => {
            // What ends the name must be the colon, which is none of its characters.
            let end = host.iter().position(|b| !REG_NAME[usize::from(*b)]);
            host.split_at(end.unwrap_or(host.len()))
        }
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.len() <= 5
                && (digits.is_empty() || decimal(digits).is_some_and(|port| port <= 65535))
        }
        _ => false,
    };
    !name.is_empty() && port_fits
}

/// The usual phrase of a status; empty for one without.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Whether `lines` is what the writers below take: whole field lines, each ended by CRLF.
pub fn are_lines(lines: &str) -> bool {
    lines.is_empty()
        || lines.strip_suffix("\r\n").is_some_and(|lines| {
            lines.split("\r\n").all(|line| {
                line.split_once(':').is_some_and(|(name, value)| {
                    is_token(name.as_bytes()) && is_value(value.as_bytes())
                })
            })
        })
}

/// Appends a request head. `lines` are whole field lines, each ended by CRLF; `content_length` is
/// written if it is given.
pub fn request_head(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    authority: &str,
    lines: &str,
    content_length: Option<usize>,
) {
    debug_assert!(is_token(method.as_bytes()) && is_authority(authority.as_bytes()));
    debug_assert!(!target.is_empty() && target.bytes().all(is_uri));
    debug_assert!(are_lines(lines));
    out.reserve(method.len() + target.len() + authority.len() + lines.len() + 64);
    for part in [method, " ", target, " HTTP/1.1\r\nHost: ", authority, "\r\n", lines] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(length) = content_length {
        length_line(out, length as u64);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the status line of a response.
pub(crate) fn status_line(out: &mut Vec<u8>, status: u16) {
    debug_assert!((100..=599).contains(&status));
    if status == 200 {
        // Nearly every answer.
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a Content-Length line.
pub(crate) fn length_line(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
