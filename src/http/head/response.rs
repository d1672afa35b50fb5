//! Owns: the head of an answer: its status, and whether a body follows.
//! Never: interim answers as such: the caller skips them.
//! Next: `write`.

use super::fields::{Fields, field_access};
use super::grammar::{is_value, read_version};
use super::{Framing, HeadFault, Version};
use crate::limits::REQUEST_LINE_BYTES_MAX;

/// How answers begin.
const USUAL_STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";

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

    /// As [`RequestHead::remember`](super::RequestHead::remember).
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

    /// Reads on, as [`RequestHead::parse`](super::RequestHead::parse) does. `to_head` says that the request was HEAD, whose
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
