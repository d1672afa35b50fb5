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
    /// Shakes hands as a TLS server, before the first request, within [`Timing::handshake`]. After
    /// an error or a drop, drop the connection.
    ///
    /// [`Timing::handshake`]: super::Timing::handshake
    ///
    /// # Errors
    /// There is no TLS; the client has been told why, as far as it can be.
    pub async fn secure(&mut self, config: Arc<ServerConfig>) -> Result<(), SealFault> {
        let limit = self.timing().handshake;
        let hurry = self.hurry();
        let shaken = rt::time::timeout(limit, rt::race(self.handshake(config), hurry)).await;
        let result = match shaken {
            Ok(rt::Either::Left(result)) => result,
            Ok(rt::Either::Right(())) | Err(rt::time::Elapsed) => Err(SealFault::Timeout),
        };
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
        is_idle: bool,
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
                    let pump = Box::pin(self.pump(cipher, room, now, by, stop, is_idle));
                    let (received, cipher) = pump.await;
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::http::Timing;
    use crate::http::tls::server_config;
    use crate::rt::Driver;
    use crate::rt::net::Listener;

    /// How a handshake with `client` ends, with little time for it.
    fn shaken(client: impl FnOnce(TcpStream) + Send + 'static) -> Result<(), SealFault> {
        let own = rcgen::generate_simple_self_signed(vec!["h".to_owned()]).unwrap();
        let (cert, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        let config = server_config(cert.as_bytes(), key.as_bytes(), None).unwrap();
        let (driver, _) = Driver::choose(None).unwrap();
        let run = driver.run(async move {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::thread::spawn(move || {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                client(stream);
            });
            let (stream, peer) = listener.accept().await.unwrap();
            let timing = Timing { handshake: Duration::from_millis(300), ..Timing::default() };
            let mut connection = Connection::with_timing(stream, peer, timing);
            let result = connection.secure(config).await;
            drop(connection);
            // The end of the connection is a matter of the loop.
            rt::time::sleep(Duration::from_millis(20)).await;
            client.join().unwrap();
            result
        });
        run.unwrap()
    }

    #[test]
    fn a_handshake_takes_its_time_and_no_longer() {
        let silent = shaken(|mut stream| drop(stream.read(&mut [0; 1])));
        assert!(matches!(silent, Err(SealFault::Timeout)), "{silent:?}");
        // Bytes one by one buy no time: a record that is announced and never whole.
        let slow = shaken(|mut stream| {
            let mut start = vec![HANDSHAKE, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
            start.resize(200, 7);
            for byte in start {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(matches!(slow, Err(SealFault::Timeout)), "{slow:?}");
    }

    #[test]
    fn what_is_no_handshake() {
        let gone = shaken(drop);
        assert!(matches!(gone, Err(SealFault::Gone)), "{gone:?}");
        let nonsense = shaken(|mut stream| stream.write_all(&[0; 10]).unwrap());
        assert!(matches!(nonsense, Err(SealFault::Nonsense)), "{nonsense:?}");
        let broken = shaken(|mut stream| {
            stream.write_all(&[HANDSHAKE, 3, 1, 0, 4, 9, 0, 0, 0]).unwrap();
            let mut got = Vec::new();
            let _ = stream.read_to_end(&mut got);
            assert_eq!(got.first(), Some(&21), "an alert: {got:?}");
        });
        assert!(matches!(broken, Err(SealFault::Tls(_))), "{broken:?}");
        let plain = shaken(|mut stream| {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut got = String::new();
            let _ = stream.read_to_string(&mut got);
            assert!(got.starts_with("HTTP/1.1 400 ") && got.contains("https://"), "{got}");
        });
        assert!(matches!(plain, Err(SealFault::Plain)), "{plain:?}");
    }
}
