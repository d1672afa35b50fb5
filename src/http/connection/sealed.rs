//! Owns: a client's connection under TLS: its handshake, and what changes about reads and writes.
//! Never: anything of a connection without TLS, but for one branch in each read and write.
//! Next: `tls`, the session itself.
//!
//! A plain request to a TLS port is answered in plain HTTP with 400, as people mistype a scheme.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;

use super::{BUSY_ROOM, Connection, Stop};
use crate::http::head::status_line;
use crate::http::tls::Session;
use crate::limits;
use crate::rt;

/// First byte of a TLS record that begins a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// TLS of one connection.
pub(super) struct Sealed {
    session: Session,
    /// Storage for what is received.
    cipher: Vec<u8>,
    /// What the session itself has to say, such as an alert; goes out with the next write.
    due: Vec<u8>,
}

impl Sealed {
    /// The ciphertext of `plain`, behind what was due.
    pub(super) fn seal(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = std::mem::take(&mut self.due);
        out.reserve(plain.len() + 64);
        self.session.encrypt(plain, &mut out).map_err(io::Error::other)?;
        Ok(out)
    }
}

/// Why there is no TLS.
#[derive(Debug)]
pub enum SealFault {
    /// The client left, or the socket failed.
    Gone,
    /// It took too long.
    Timeout,
    /// The client spoke plain HTTP, and was told so.
    Plain,
    /// The first bytes were neither.
    Nonsense,
    /// The two did not agree.
    Tls(rustls::Error),
}

impl fmt::Display for SealFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealFault::Gone => f.write_str("client left in the handshake"),
            SealFault::Timeout => f.write_str("handshake too slow"),
            SealFault::Plain => f.write_str("plain HTTP on a TLS port"),
            SealFault::Nonsense => f.write_str("not TLS"),
            SealFault::Tls(error) => error.fmt(f),
        }
    }
}

impl Connection {
    /// Shakes hands as a TLS server, before the first request; within
    /// [`limits::TLS_HANDSHAKE_TIMEOUT`]. After an error or a drop, drop the connection.
    ///
    /// # Errors
    /// There is no TLS; the client has been told why, as far as it can be.
    pub async fn secure(&mut self, config: Arc<ServerConfig>) -> Result<(), SealFault> {
        let limit = limits::TLS_HANDSHAKE_TIMEOUT;
        let shaken = rt::time::timeout(limit, self.handshake(config)).await;
        let result = shaken.unwrap_or(Err(SealFault::Timeout));
        self.dead |= result.is_err();
        result
    }

    async fn handshake(&mut self, config: Arc<ServerConfig>) -> Result<(), SealFault> {
        let mut session = Session::accept(config).map_err(SealFault::Tls)?;
        let mut cipher = Vec::new();
        let mut first = true;
        loop {
            let (received, back) = self.reader.read(cipher, BUSY_ROOM).await;
            cipher = back;
            if !matches!(received, Ok(1..)) {
                return Err(SealFault::Gone);
            }
            if std::mem::replace(&mut first, false) && cipher[0] != HANDSHAKE {
                return Err(self.refuse_plain(cipher).await);
            }
            // The session bounds what it takes before the handshake is over.
            let taken = session.decrypt(&cipher, &mut self.input, &mut self.output);
            cipher.clear();
            // What is due even after a fault: the alert that says which.
            let flushed = self.flush().await;
            taken.map_err(SealFault::Tls)?;
            flushed.map_err(|_| SealFault::Gone)?;
            if !session.is_handshaking() {
                self.sealed = Some(Box::new(Sealed { session, cipher, due: Vec::new() }));
                return Ok(());
            }
        }
    }

    /// Tells a client that it must speak TLS, if it seems to speak HTTP.
    async fn refuse_plain(&mut self, start: Vec<u8>) -> SealFault {
        if !start[0].is_ascii_uppercase() {
            return SealFault::Nonsense;
        }
        const TEXT: &[u8] = b"This port speaks HTTPS: use https:// in the address.\n";
        status_line(&mut self.output, 400);
        let lines = format!(
            "Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            TEXT.len()
        );
        self.output.extend_from_slice(lines.as_bytes());
        self.output.extend_from_slice(TEXT);
        // Read on for a moment: closing at once would reset the answer away.
        self.lingering = true;
        Box::pin(self.close()).await;
        SealFault::Plain
    }

    /// As `pump`, under TLS: what is written is encrypted, what is read goes decrypted behind the
    /// end of `buffer`.
    pub(super) async fn pump_sealed<S: Future<Output = ()>>(
        &mut self,
        mut buffer: Vec<u8>,
        room: usize,
        now: Instant,
        by: Instant,
        mut stop: Option<Pin<&mut S>>,
    ) -> (Result<usize, Stop>, Vec<u8>) {
        // Out of its place, so that what is below reads and writes the socket as it is.
        let Some(mut sealed) = self.sealed.take() else { return (Err(Stop::Gone), buffer) };
        let before = buffer.len();
        let plain = std::mem::take(&mut self.output);
        let due = match plain.is_empty() {
            true => Ok(std::mem::take(&mut sealed.due)),
            false => sealed.seal(&plain),
        };
        let result = match due {
            Err(_) => Err(Stop::Gone),
            Ok(due) => {
                self.output = due;
                loop {
                    let cipher = std::mem::take(&mut sealed.cipher);
                    let stop = stop.as_mut().map(|stop| stop.as_mut());
                    let (received, cipher) = Box::pin(self.pump(cipher, room, now, by, stop)).await;
                    sealed.cipher = cipher;
                    if !matches!(received, Ok(1..)) {
                        break received;
                    }
                    let session = &mut sealed.session;
                    let taken = session.decrypt(&sealed.cipher, &mut buffer, &mut self.output);
                    sealed.cipher.clear();
                    sealed.cipher.shrink_to(BUSY_ROOM);
                    if taken.is_err() {
                        let _ = self.flush().await;
                        break Err(Stop::Gone);
                    }
                    match buffer.len() - before {
                        0 if session.is_ended() => break Ok(0),
                        // Something between the sessions themselves.
                        0 => {}
                        count => break Ok(count),
                    }
                }
            }
        };
        sealed.due = std::mem::take(&mut self.output);
        self.output = plain;
        self.output.clear();
        self.sealed = Some(sealed);
        (result, buffer)
    }

    /// Says goodbye, so that the client can tell an end from a cut.
    pub(super) async fn end_sealed(&mut self, mut sealed: Box<Sealed>) {
        self.output = std::mem::take(&mut sealed.due);
        if sealed.session.end(&mut self.output).is_ok() {
            let _ = self.flush().await;
        }
    }
}
