//! Owns: TCP listeners and streams.
//! Never: what the bytes mean; time limits of reads and writes (their callers drop the connection).
//! Next: `child`, the other kind of backend.
//!
//! Buffers are lent to the kernel: each call takes a `Vec` and gives it back.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};

use super::bell::Streak;
use super::{sys, time};
use crate::limits;

/// How often a socket with unread bytes is asked whether its peer has left.
const HANG_UP_INTERVAL: Duration = Duration::from_secs(1);

/// A listening socket of one thread; several may share one address.
pub struct Listener {
    tcp: TcpListener,
}

impl Listener {
    /// Binds with `SO_REUSEPORT` and a backlog of [`limits::LISTEN_BACKLOG`].
    ///
    /// # Errors
    /// Those of bind and listen.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let options =
            ListenerOpts::new().reuse_port(true).reuse_addr(true).backlog(limits::LISTEN_BACKLOG);
        let tcp = TcpListener::bind_with_config(address, &options)?;
        // Once here instead of once per connection: accepted sockets inherit it.
        sys::set_nodelay(tcp.as_raw_fd())?;
        Ok(Listener { tcp })
    }

    /// The address bound, with the port that the kernel chose.
    ///
    /// # Errors
    /// Those of getsockname.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection. Never race or drop it: a connection that the kernel has already
    /// accepted would be leaked. On `EMFILE` sleep a little before the next call.
    ///
    /// # Errors
    /// Those of accept.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (tcp, peer) = self.tcp.accept().await?;
        // The ring accepts without SOCK_CLOEXEC; a child must not hold our clients' sockets.
        sys::set_cloexec(tcp.as_raw_fd())?;
        Ok((Stream { tcp, peer, reads: Streak::default(), writes: Streak::default() }, peer))
    }
}

/// A TCP connection with `TCP_NODELAY`. Dropping it closes it.
pub struct Stream {
    tcp: TcpStream,
    peer: SocketAddr,
    reads: Streak,
    writes: Streak,
}

impl Stream {
    /// Connects within `limit`. Dropping it abandons the attempt and leaks nothing.
    ///
    /// # Errors
    /// Those of connect; `TimedOut` when the limit passed.
    pub async fn connect(address: SocketAddr, limit: Duration) -> io::Result<Stream> {
        let tcp = time::timeout(limit, TcpStream::connect_addr(address))
            .await
            .map_err(|elapsed| io::Error::new(io::ErrorKind::TimedOut, elapsed))??;
        sys::set_nodelay(tcp.as_raw_fd())?;
        Ok(Stream { tcp, peer: address, reads: Streak::default(), writes: Streak::default() })
    }

    /// Reads once, behind the end of `buf`, after reserving at least `room` bytes there. 0 is the
    /// end of the stream.
    ///
    /// Never drop it and read again: bytes that the kernel had already taken are lost. After a
    /// time limit, close the connection.
    ///
    /// # Errors
    /// Those of recv; the buffer comes back unchanged.
    pub async fn read(&mut self, buf: Vec<u8>, room: usize) -> (io::Result<usize>, Vec<u8>) {
        read(&mut self.tcp, &mut self.reads, buf, room).await
    }

    /// Writes the whole buffer. It comes back as it was, also after an error. A drop leaves the
    /// message cut off at an unknown place: close the connection.
    ///
    /// # Errors
    /// Those of send; an unknown part may have been sent.
    pub async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        write_all(&mut self.tcp, &mut self.writes, buf).await
    }

    /// Two halves for two tasks of this thread. The socket is closed when both are dropped;
    /// dropping the write half sends the end of the stream.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        let fd = self.tcp.as_raw_fd();
        let (read, write) = self.tcp.into_split();
        (
            ReadHalf { tcp: read, fd, peer: self.peer, reads: self.reads },
            WriteHalf { tcp: write, fd, writes: self.writes },
        )
    }

    /// Whether the connection is open and nothing waits to be read: what a pooled connection must
    /// be before it is used again.
    pub fn is_quiet(&self) -> bool {
        sys::peek(self.tcp.as_raw_fd()) == sys::Peek::Quiet
    }

    /// Waits until the peer has closed its side or reset the connection. Bytes that wait to be
    /// read hide that for up to a second. Safe to drop; only while no read is in flight.
    pub async fn closed(&self) {
        let fd = self.tcp.as_raw_fd();
        loop {
            // Not relaxed: epoll's memory of an earlier readiness must not count.
            if self.tcp.readable(false).await.is_err() {
                return;
            }
            match sys::peek(fd) {
                sys::Peek::Closed => return,
                sys::Peek::Quiet => {}
                sys::Peek::Bytes if sys::hung_up(fd) => return,
                // Readiness stays on while nobody reads: look now and then instead of spinning.
                sys::Peek::Bytes => time::sleep(HANG_UP_INTERVAL).await,
            }
        }
    }

    /// Tells the peer that no more bytes come.
    pub fn shutdown_write(&self) {
        sys::shutdown_write(self.tcp.as_raw_fd());
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

/// The reading side of a split [`Stream`].
pub struct ReadHalf {
    tcp: OwnedReadHalf<TcpStream>,
    fd: RawFd,
    peer: SocketAddr,
    reads: Streak,
}

impl ReadHalf {
    /// As [`Stream::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self, buf: Vec<u8>, room: usize) -> (io::Result<usize>, Vec<u8>) {
        read(&mut self.tcp, &mut self.reads, buf, room).await
    }

    /// As [`Stream::is_quiet`].
    pub fn is_quiet(&self) -> bool {
        sys::peek(self.fd) == sys::Peek::Quiet
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

/// The writing side of a split [`Stream`].
pub struct WriteHalf {
    tcp: OwnedWriteHalf<TcpStream>,
    fd: RawFd,
    writes: Streak,
}

impl WriteHalf {
    /// As [`Stream::write_all`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        write_all(&mut self.tcp, &mut self.writes, buf).await
    }

    /// Tells the peer that no more bytes come.
    pub fn shutdown_write(&self) {
        sys::shutdown_write(self.fd);
    }
}

async fn read(
    from: &mut impl AsyncReadRent,
    streak: &mut Streak,
    mut buf: Vec<u8>,
    room: usize,
) -> (io::Result<usize>, Vec<u8>) {
    buf.reserve(room.max(1));
    loop {
        let end = buf.len();
        let (result, slice) = streak.pace(from.read(buf.slice_mut(end..))).await;
        buf = slice.into_inner();
        match result {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return (result, buf),
        }
    }
}

async fn write_all(
    to: &mut impl AsyncWriteRent,
    streak: &mut Streak,
    mut buf: Vec<u8>,
) -> (io::Result<()>, Vec<u8>) {
    let mut written = 0;
    while written < buf.len() {
        let (result, slice) = streak.pace(to.write(buf.slice(written..))).await;
        buf = slice.into_inner();
        match result {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (Err(e), buf),
        }
    }
    (Ok(()), buf)
}
