//! Owns: the head of a request: its method, its target, and whom it asks.
//! Never: what becomes of it.
//! Next: `response`.

use super::fields::{Field, Fields, Span, field_access};
use super::grammar::{is_authority, is_token, is_uri, read_version, text};
use super::{Framing, HeadFault, Method, Version};
use crate::limits::REQUEST_LINE_BYTES_MAX;

/// How requests of MCP begin.
const USUAL_REQUEST_LINE: &[u8] = b"POST /mcp HTTP/1.1\r\n";

/// The head of a request.
///
/// Reused from request to request, so that a head of usual size costs no allocation.
#[derive(Debug)]
pub struct RequestHead {
    pub(super) fields: Fields,
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
