//! Owns: answers: their heads, their bodies, whole or in pieces, and how they are written.
//! Never: requests.
//! Next: `date`, a line of each answer.

use super::date::date_line;
use super::{Answer, Connection, WRITE_PIECE};
use crate::http::body::{LAST_CHUNK, write_chunk};
use crate::http::head::{Method, Version, are_lines, length_line, status_line};
use crate::limits;
use crate::rt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::time::Duration;

/// Bodies from here on go out from where they are instead of being copied behind their head: two
/// buffers cost a write about as much as a copy of this.
const TAIL_BYTES_MIN: usize = 8 * 1024;

impl Connection {
    /// Answers the request at hand: `lines` are whole field lines, each ended by CRLF; Date,
    /// Content-Length and Connection are added. The connection closes afterwards if the body of
    /// the request has not been read.
    ///
    /// The answer is written by the call of [`Connection::head`] that has to follow (or by
    /// [`Connection::flush`]), unless it is large.
    ///
    /// # Errors
    /// Those of the socket, for a large answer.
    pub async fn answer(&mut self, status: u16, lines: &str, body: &[u8]) -> io::Result<()> {
        self.lay(status, lines, body)?;
        self.write_if_large().await
    }

    /// As [`Connection::answer`], with a body that need not be copied.
    ///
    /// # Errors
    /// As there.
    pub async fn answer_with(&mut self, status: u16, lines: &str, body: Vec<u8>) -> io::Result<()> {
        self.lay_whole(status, lines, body)?;
        self.write_if_large().await
    }

    /// Leaves an answer to be written.
    fn lay(&mut self, status: u16, lines: &str, body: &[u8]) -> io::Result<()> {
        self.output.reserve(160 + lines.len() + body.len());
        self.start(status, lines, Some(body.len() as u64))?;
        debug_assert!(body.is_empty() || !is_bodiless(status), "status {status} has no body");
        if !self.is_mute(status) {
            self.output.extend_from_slice(body);
            self.carried = body.len() as u64;
        }
        self.answer = Answer::Done;
        Ok(())
    }

    /// As `lay`; a body that is worth it goes from where it is.
    fn lay_whole(&mut self, status: u16, lines: &str, body: Vec<u8>) -> io::Result<()> {
        let is_tail = (TAIL_BYTES_MIN..=WRITE_PIECE).contains(&body.len());
        // What is encrypted is copied anyway.
        if !is_tail || self.sealed.is_some() || self.is_mute(status) {
            let laid = self.lay(status, lines, &body);
            rt::spare::give(body);
            return laid;
        }
        self.start(status, lines, Some(body.len() as u64))?;
        self.carried = body.len() as u64;
        self.tail = body;
        self.answer = Answer::Done;
        Ok(())
    }

    /// Whether an answer is sent without its body.
    fn is_mute(&self, status: u16) -> bool {
        self.head.method() == Method::Head || is_bodiless(status)
    }

    /// Starts an answer whose body follows in pieces: `length` bytes in all, or in chunks. Its head
    /// is written at once.
    ///
    /// # Errors
    /// Those of the socket, and a client that takes nothing for too long.
    pub async fn begin(&mut self, status: u16, lines: &str, length: Option<u64>) -> io::Result<()> {
        self.begin_with(status, lines, length, &[]).await
    }

    /// As [`Connection::begin`], with the first piece of the body in the same write.
    ///
    /// # Errors
    /// As there.
    pub async fn begin_with(
        &mut self,
        status: u16,
        lines: &str,
        length: Option<u64>,
        first: &[u8],
    ) -> io::Result<()> {
        self.open(status, lines, length)?;
        self.put(first)?;
        self.flush().await
    }

    /// As [`Connection::begin`], but the head goes out with the first piece.
    ///
    /// # Errors
    /// The connection is of no further use.
    pub fn open(&mut self, status: u16, lines: &str, length: Option<u64>) -> io::Result<()> {
        self.start(status, lines, length)?;
        self.answer = match length {
            _ if self.is_mute(status) => Answer::Mute,
            Some(length) => Answer::Length(length),
            None if self.head.version() == Version::Http11 => Answer::Chunks,
            None => Answer::UntilClose,
        };
        Ok(())
    }

    /// Sends the next piece of the body and waits until the socket has taken it.
    ///
    /// # Errors
    /// Those of the socket; a client that takes nothing for too long; more bytes than announced.
    pub async fn chunk(&mut self, data: Vec<u8>) -> io::Result<()> {
        let is_plain = matches!(self.answer, Answer::Length(_) | Answer::UntilClose);
        let is_tail = self.sealed.is_none() && data.len() >= TAIL_BYTES_MIN;
        if is_plain && data.len() <= WRITE_PIECE && (self.output.is_empty() || is_tail) {
            // As it is, without a copy.
            self.count(data.len())?;
            self.carried += data.len() as u64;
            match self.output.is_empty() {
                true => self.output = data,
                false => self.tail = data,
            }
        } else {
            self.put(&data)?;
        }
        self.flush().await
    }

    /// Ends the body; written as [`Connection::answer`] says. A body shorter than announced closes
    /// the connection, so that the client notices.
    ///
    /// # Errors
    /// Those of the socket, if much of the answer waits to be written.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.finish_with(&[]).await
    }

    /// As [`Connection::finish`], with the last piece of the body in the same write.
    ///
    /// # Errors
    /// Those of the socket, if the piece is large; more bytes than announced.
    pub async fn finish_with(&mut self, last: &[u8]) -> io::Result<()> {
        self.put(last)?;
        match self.answer {
            Answer::Chunks => self.output.extend_from_slice(LAST_CHUNK),
            Answer::Length(0) | Answer::Mute => {}
            Answer::UntilClose => self.closing = true,
            Answer::Length(_) | Answer::Due | Answer::Done => {
                self.abort();
                return Ok(());
            }
        }
        self.answer = Answer::Done;
        self.write_if_large().await
    }

    /// Gives the answer up: the connection closes without its proper end, so that the client
    /// cannot take it for whole.
    pub fn abort(&mut self) {
        self.dead = true;
        self.output.clear();
        self.tail = Vec::new();
    }

    /// Closes the connection after the request at hand, and says so in an answer not yet begun.
    pub fn close_after(&mut self) {
        self.closing = true;
    }

    /// Waits for `limit` in the midst of an answer. Safe to drop, and the timer it takes is the one
    /// that the connection has anyway.
    pub fn pause(&mut self, limit: Duration) -> impl Future<Output = ()> + '_ {
        self.alarm.set(rt::time::now() + limit);
        poll_fn(|cx| self.alarm.poll(cx))
    }

    /// Waits until the client has left. Safe to drop. Requests that it has sent ahead may delay the
    /// notice.
    pub async fn closed(&self) {
        self.reader.closed().await;
    }

    /// Writes what [`Connection::answer`] or [`Connection::finish`] left to be written.
    ///
    /// # Errors
    /// Those of the socket, and a client that takes nothing for too long.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if self.output.is_empty() {
            return Ok(());
        }
        let whole = std::mem::take(&mut self.output);
        let tail = std::mem::take(&mut self.tail);
        if whole.len() <= WRITE_PIECE {
            self.output = self.write(whole, tail).await?;
        } else {
            debug_assert!(tail.is_empty(), "a head is never that large");
            let mut buffer = Vec::with_capacity(WRITE_PIECE);
            for piece in whole.chunks(WRITE_PIECE) {
                buffer.extend_from_slice(piece);
                buffer = self.write(buffer, Vec::new()).await?;
            }
        }
        Ok(())
    }

    /// Writes one piece, and what follows it; returns the storage of the first, empty.
    async fn write(&mut self, mut piece: Vec<u8>, tail: Vec<u8>) -> io::Result<Vec<u8>> {
        if let Some(sealed) = &mut self.sealed {
            debug_assert!(tail.is_empty(), "what is encrypted is copied anyway");
            piece = sealed.seal(&piece)?;
        }
        self.alarm.set(rt::time::now() + self.timing().stall);
        // A write that is cut short leaves an unknown part behind.
        self.dead = true;
        let mut hurry = pin!(self.hurry());
        let mut hurried = false;
        let alarm = &mut self.alarm;
        let late = poll_fn(|cx| {
            if !hurried && hurry.as_mut().poll(cx).is_ready() {
                hurried = true;
                alarm.set(rt::time::now() + limits::HURRY_STALL);
            }
            alarm.poll(cx)
        });
        let write = self.writer.write_both(piece, tail);
        let (result, mut buffer) = match rt::race(write, late).await {
            rt::Either::Left(done) => done,
            rt::Either::Right(()) => return Err(io::ErrorKind::TimedOut.into()),
        };
        result?;
        self.dead = false;
        buffer.clear();
        Ok(buffer)
    }

    async fn write_if_large(&mut self) -> io::Result<()> {
        // Boxed: the usual answer waits for the next read, and needs no room for a write.
        if self.output.len() > WRITE_PIECE { Box::pin(self.flush()).await } else { Ok(()) }
    }

    /// Appends the head of an answer.
    fn start(&mut self, status: u16, lines: &str, length: Option<u64>) -> io::Result<()> {
        debug_assert!(are_lines(lines), "not whole field lines: {lines:?}");
        if self.answer != Answer::Due {
            crate::bug!("an answer that no request waits for");
            self.abort();
        }
        if self.dead {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // What is left of the request cannot be told from the next one by whoever did not read it.
        if self.unread.is_some() {
            self.closing = true;
            self.lingering = true;
        }
        let old = self.head.version() == Version::Http10;
        self.closing |= old && length.is_none();
        self.status = status;
        let out = &mut self.output;
        out.reserve(160 + lines.len());
        status_line(out, status);
        date_line(out);
        out.extend_from_slice(lines.as_bytes());
        match length {
            _ if is_bodiless(status) => {}
            Some(length) => length_line(out, length),
            None if old => {}
            None => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if self.closing {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if old {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Counts bytes of the body that are about to be sent as they are.
    fn count(&mut self, sent: usize) -> io::Result<()> {
        if let Answer::Length(left) = &mut self.answer {
            match left.checked_sub(sent as u64) {
                Some(rest) => *left = rest,
                None => {
                    self.abort();
                    return Err(io::Error::other("more bytes than the answer announced"));
                }
            }
        }
        Ok(())
    }

    /// Frames a piece of the body into the output.
    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        self.carried += data.len() as u64;
        match self.answer {
            Answer::Chunks => write_chunk(&mut self.output, data),
            Answer::Length(_) | Answer::UntilClose => {
                self.count(data.len())?;
                self.output.extend_from_slice(data);
            }
            Answer::Mute => {}
            Answer::Due | Answer::Done if self.dead => {
                return Err(io::ErrorKind::NotConnected.into());
            }
            Answer::Due | Answer::Done => {
                crate::bug!("a piece of an answer that has not begun");
                self.abort();
            }
        }
        Ok(())
    }
}

/// Statuses whose answers have no body (RFC 9110 §6.4.1).
fn is_bodiless(status: u16) -> bool {
    status < 200 || status == 204 || status == 304
}
