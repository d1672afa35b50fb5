//! Owns: the thread that sends spans to a collector, and the little of HTTP that it needs.
//! Never: a worker that waits for it; spans kept for a collector that does not take them.
//! Next: `desk`.
//!
//! OTLP/HTTP: one POST of protobuf for each batch, on a connection of its own. A collector that
//! hangs costs this thread its time and the proxy nothing: outlets fill up, and what finds no room
//! is counted.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::metrics::{Lost, Metrics};
use super::otlp::{self, Source};
use super::trace::Report;
use crate::limits;
use crate::rt::outlet::Basin;

/// Where spans go.
#[derive(Clone)]
pub struct Collector {
    /// Host name or address literal (IPv6 without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The `Host` field.
    pub authority: String,
    /// Path to POST to.
    pub target: String,
    /// Extra whole field lines, each ended by CRLF.
    pub header_lines: String,
    /// `None` = plain HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Who sends.
    pub source: Source,
}

impl fmt::Debug for Collector {
    /// Without the header lines, which carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Collector {
    /// Sends spans until `end` is set, or no worker is left; then what is left, once.
    pub fn run(&self, mut basin: Basin<Box<Report>>, end: &AtomicBool, metrics: &Metrics) {
        let mut failing = false;
        metrics.set_fault(Lost::Span, None);
        let mut due = Instant::now();
        let mut reports = Vec::new();
        loop {
            let ends = end.load(Ordering::Acquire) || basin.is_abandoned();
            if !ends && Instant::now() < due {
                std::thread::sleep(limits::LINES_TICK);
                continue;
            }
            basin.take(limits::SPANS_BATCH, |report| reports.push(report));
            if reports.is_empty() {
                if ends {
                    return;
                }
                due = Instant::now() + limits::SPANS_TICK;
                continue;
            }
            let sent = self.post(&otlp::request(&self.source, &reports));
            if sent.is_err() {
                let spans = reports.iter().map(|report| 1 + report.attempts.len() as u64).sum();
                metrics.lose(Lost::Span, spans);
            }
            if sent.is_err() != failing {
                failing = sent.is_err();
                metrics.set_fault(Lost::Span, sent.as_ref().err().map(ToString::to_string));
                match &sent {
                    Err(error) => tracing::warn!(%error, "spans are lost: no collector"),
                    Ok(()) => tracing::info!("the collector takes spans again"),
                }
            }
            reports.clear();
            if ends && failing {
                return;
            }
        }
    }

    fn post(&self, body: &[u8]) -> io::Result<()> {
        let mut last = io::Error::other("the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, limits::COLLECTOR_TIMEOUT) {
                Ok(stream) => return self.speak(stream, body),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn speak(&self, stream: TcpStream, body: &[u8]) -> io::Result<()> {
        stream.set_read_timeout(Some(limits::COLLECTOR_TIMEOUT))?;
        stream.set_write_timeout(Some(limits::COLLECTOR_TIMEOUT))?;
        match &self.tls {
            None => self.exchange(stream, body),
            Some(config) => {
                let name = rustls::pki_types::ServerName::try_from(self.host.clone());
                let name = name.map_err(io::Error::other)?;
                let client = rustls::ClientConnection::new(config.clone(), name);
                let client = client.map_err(io::Error::other)?;
                self.exchange(rustls::StreamOwned::new(client, stream), body)
            }
        }
    }

    /// RFC 9112: one request, and the status of its answer.
    fn exchange(&self, mut stream: impl Read + Write, body: &[u8]) -> io::Result<()> {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-protobuf\r\n\
             Content-Length: {}\r\nConnection: close\r\n{}\r\n",
            self.target,
            self.authority,
            body.len(),
            self.header_lines
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        stream.flush()?;
        let by = Instant::now() + limits::COLLECTOR_TIMEOUT;
        let mut answer = Vec::new();
        let mut piece = [0; 1024];
        while !answer.contains(&b'\n') {
            let count = stream.read(&mut piece)?;
            answer.extend_from_slice(&piece[..count]);
            let whole = answer.len() <= limits::COLLECTOR_ANSWER_BYTES_MAX;
            if count == 0 || !whole || Instant::now() >= by {
                return Err(io::Error::other("no answer"));
            }
        }
        match answer.get(9..12) {
            Some(status) if answer.starts_with(b"HTTP/1.") && status.starts_with(b"2") => Ok(()),
            Some(status) if answer.starts_with(b"HTTP/1.") => {
                let status = String::from_utf8_lossy(status);
                Err(io::Error::other(format!("HTTP {status}")))
            }
            _ => Err(io::Error::other("not HTTP")),
        }
    }
}
