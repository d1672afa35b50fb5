//! Owns: TCP listeners and streams.
//! Never: what the bytes mean; time limits of reads and writes (their callers drop the connection).
//! Next: `spare`, where its buffers come from.
//!
//! Buffers are lent to the kernel: each call takes a `Vec` and gives it back.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut, VecBuf};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};

use super::bell::Streak;
use super::sys::Pair;
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

    /// Stops listening: a waiting [`Listener::accept`] fails, and so does every later one.
    pub fn stop(&self) {
        sys::shutdown_listener(self.tcp.as_raw_fd());
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

    /// Takes over a connected stream socket of whatever family, made on another thread; `peer` is
    /// what its other end is called here.
    ///
    /// # Errors
    /// The event loop does not take it; the socket is closed then.
    pub fn adopt(socket: OwnedFd, peer: SocketAddr) -> io::Result<Stream> {
        // The ring waits for a blocking socket, and would not for another one.
        let socket = std::net::TcpStream::from(socket);
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        let tcp = TcpStream::from_std(socket)?;
        Ok(Stream { tcp, peer, reads: Streak::default(), writes: Streak::default() })
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

    /// The number of its descriptor: when it was made, the lowest that was free.
    pub fn number(&self) -> usize {
        usize::try_from(self.tcp.as_raw_fd()).unwrap_or(0)
    }

    /// Whether the connection is open and nothing waits to be read: what a pooled connection must
    /// be before it is used again.
    pub fn is_quiet(&self) -> bool {
        sys::peek(self.tcp.as_raw_fd()) == sys::Peek::Quiet
    }

    /// Waits until the peer has closed its side or reset the connection. Bytes that wait to be
    /// read hide that for up to a second. Safe to drop; only while no read is in flight.
    pub async fn closed(&self) {
        // Not relaxed: epoll's memory of an earlier readiness must not count.
        closed(self.tcp.as_raw_fd(), || self.tcp.readable(false)).await;
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

    /// As [`Stream::read`], with exactly so much room behind the end of `buf`, and what is beyond in a
    /// buffer of its own with room for `more`.
    ///
    /// # Errors
    /// As there.
    pub async fn read_both(
        &mut self,
        buf: Vec<u8>,
        room: usize,
        more: usize,
    ) -> (io::Result<usize>, Vec<u8>, Vec<u8>) {
        let mut pair = Pair::new(buf, room, more);
        loop {
            let (result, back) = self.reads.pace(pin!(self.tcp.readv(pair))).await;
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => pair = back,
                result => {
                    let (buf, rest) = back.into_parts();
                    return (result, buf, rest);
                }
            }
        }
    }

    /// As [`Stream::is_quiet`].
    pub fn is_quiet(&self) -> bool {
        sys::peek(self.fd) == sys::Peek::Quiet
    }

    /// The socket once more, for [`Stream::adopt`] on another thread; this one is to be
    /// [`let_go`] of before anything is read or written there.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        sys::duplicate(self.fd)
    }

    /// As [`Stream::closed`].
    pub async fn closed(&self) {
        closed(self.fd, || sys::readable(&self.tcp)).await;
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

    /// Writes the whole of `buf` and then of `tail`, in one call if the socket takes both. `buf` comes
    /// back, else as [`Stream::write_all`]. Where the peer has left it may also raise SIGPIPE, which the
    /// programs of this language ignore.
    ///
    /// # Errors
    /// As there.
    pub async fn write_both(&mut self, buf: Vec<u8>, tail: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        if tail.is_empty() {
            return self.write_all(buf).await;
        }
        // Boxed: the rare case must not make every wait for I/O larger.
        Box::pin(write_both(&mut self.tcp, &mut self.writes, buf, tail)).await
    }

    /// Tells the peer that no more bytes come.
    pub fn shutdown_write(&self) {
        sys::shutdown_write(self.fd);
    }
}

/// Lets go of a socket without an end of its stream, which goes on where [`ReadHalf::duplicate`] is
/// held. Only while no read or write is in flight.
pub fn let_go(reader: ReadHalf, writer: WriteHalf) {
    // Dropped apart, the writing half would tell the peer that nothing more comes.
    match reader.tcp.reunite(writer.tcp) {
        Ok(tcp) => drop(tcp),
        Err(_) => crate::bug!("halves of two sockets"),
    }
}

/// A descriptor of no use but to be given up for another one.
///
/// # Errors
/// None is left.
pub fn reserve() -> io::Result<OwnedFd> {
    sys::eventfd()
}

/// Whether a call failed because this process, or the machine, has no descriptor left.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Waits until the peer of a socket has left; `readable` waits until there is something to see.
async fn closed<F: Future<Output = io::Result<()>>>(fd: RawFd, readable: impl Fn() -> F) {
    loop {
        if readable().await.is_err() {
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

async fn read(
    from: &mut impl AsyncReadRent,
    streak: &mut Streak,
    mut buf: Vec<u8>,
    room: usize,
) -> (io::Result<usize>, Vec<u8>) {
    buf.reserve(room.max(1));
    loop {
        let end = buf.len();
        let (result, slice) = streak.pace(pin!(from.read(buf.slice_mut(end..)))).await;
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
    buf: Vec<u8>,
) -> (io::Result<()>, Vec<u8>) {
    write_from(to, streak, buf, 0).await
}

/// Writes what stands behind the first `written` bytes.
async fn write_from(
    to: &mut impl AsyncWriteRent,
    streak: &mut Streak,
    mut buf: Vec<u8>,
    mut written: usize,
) -> (io::Result<()>, Vec<u8>) {
    while written < buf.len() {
        let (result, slice) = streak.pace(pin!(to.write(buf.slice(written..)))).await;
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

/// Gathers two buffers into one write; what it leaves goes as usual.
async fn write_both(
    to: &mut impl AsyncWriteRent,
    streak: &mut Streak,
    buf: Vec<u8>,
    tail: Vec<u8>,
) -> (io::Result<()>, Vec<u8>) {
    let pair = VecBuf::from(vec![buf, tail]);
    let (result, pair) = streak.pace(pin!(to.writev(pair))).await;
    let mut pair = Vec::from(pair).into_iter();
    let (buf, tail) = (pair.next().unwrap_or_default(), pair.next().unwrap_or_default());
    let written = match result {
        Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
        Ok(written) => written,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
        Err(e) => return (Err(e), buf),
    };
    let rest = written.saturating_sub(buf.len());
    let (result, buf) = write_from(to, streak, buf, written).await;
    if result.is_err() {
        return (result, buf);
    }
    (write_from(to, streak, tail, rest).await.0, buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{Either, join, local, race, spawn};

    const LONG: Duration = Duration::from_secs(30);

    async fn pair() -> (Stream, Stream) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connected) = join(listener.accept(), Stream::connect(address, LONG)).await;
        let ((server, peer), client) = (accepted.unwrap(), connected.unwrap());
        assert_eq!(server.peer_addr(), peer);
        assert_eq!(client.peer_addr(), address);
        (server, client)
    }

    #[test]
    fn reads_append_and_report_the_end() {
        everywhere(async || {
            let (mut server, mut client) = pair().await;
            let (result, buf) = client.write_all(b"hello".to_vec()).await;
            result.unwrap();
            assert_eq!(buf, b"hello", "the buffer comes back as it was");
            let (n, buf) = server.read(b"say: ".to_vec(), 64).await;
            assert_eq!((n.unwrap(), &buf[..]), (5, &b"say: hello"[..]));
            assert!(buf.capacity() >= 5 + 64);
            client.shutdown_write();
            let (n, buf) = server.read(buf, 1).await;
            assert_eq!((n.unwrap(), &buf[..]), (0, &b"say: hello"[..]));
            // Half closed: the other way still works.
            server.write_all(b"bye".to_vec()).await.0.unwrap();
            drop(server);
            let (n, buf) = client.read(Vec::new(), 16).await;
            assert_eq!((n.unwrap(), &buf[..]), (3, &b"bye"[..]));
            assert_eq!(client.read(buf, 16).await.0.unwrap(), 0);
        });
    }

    #[test]
    fn halves_carry_megabytes_both_ways() {
        everywhere(async || {
            let (server, client) = pair().await;
            let (mut from, mut to) = server.split();
            spawn("echo", async move {
                let mut buf = Vec::new();
                loop {
                    buf.clear();
                    let (n, read) = from.read(buf, 64 * 1024).await;
                    if n.unwrap() == 0 {
                        return;
                    }
                    let (result, written) = to.write_all(read).await;
                    result.unwrap();
                    buf = written;
                }
            });
            let sent: Vec<u8> = (0..4_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
            let (mut from, mut to) = client.split();
            let write = async {
                let (result, sent) = to.write_all(sent.clone()).await;
                result.unwrap();
                to.shutdown_write();
                sent
            };
            let read = async {
                let mut all = Vec::new();
                loop {
                    let (n, buf) = from.read(all, 64 * 1024).await;
                    all = buf;
                    if n.unwrap() == 0 {
                        return all;
                    }
                }
            };
            let (sent, echoed) = join(write, read).await;
            assert!(sent == echoed);
        });
    }

    #[test]
    fn one_read_fills_two_buffers_in_turn() {
        everywhere(async || {
            for (sent, first, second) in [(3, 5, 8), (5, 5, 0), (9, 5, 8), (30, 5, 8)] {
                let (server, mut client) = pair().await;
                let (mut from, _to) = server.split();
                let bytes: Vec<u8> = (0..sent).collect();
                client.write_all(bytes.clone()).await.0.unwrap();
                let (n, head, rest) = from.read_both(b"a".to_vec(), first, second).await;
                let wanted = usize::from(sent).min(first + second);
                assert_eq!(n.unwrap(), wanted);
                assert_eq!(head, [b"a", &bytes[..wanted.min(first)]].concat());
                assert_eq!(rest, &bytes[wanted.min(first)..wanted]);
                drop(client);
                let (n, head, rest) = from.read_both(Vec::new(), 100, 100).await;
                assert_eq!(n.unwrap(), head.len());
                assert_eq!([&head[..], &rest].concat(), &bytes[wanted..], "what was left");
                let (n, head, rest) = from.read_both(head, 4, 4).await;
                assert_eq!((n.ok(), rest.len()), (Some(0), 0), "the end, {}", head.len());
            }
        });
    }

    /// More than the kernel holds, so that the one write is cut at any place.
    #[test]
    fn two_buffers_arrive_as_one() {
        everywhere(async || {
            for (first, second) in [(3, 5), (0, 7), (100, 6_000_000), (6_000_000, 100)] {
                let (mut server, client) = pair().await;
                let (_from, mut to) = client.split();
                let bytes = |n: usize| (0..n).map(|n| ((n * 31) >> 3) as u8).collect::<Vec<u8>>();
                let write = async {
                    let (result, buf) = to.write_both(bytes(first), bytes(second)).await;
                    result.unwrap();
                    assert!(buf == bytes(first), "the buffer comes back as it was");
                    to.shutdown_write();
                };
                let read = async {
                    let mut all = Vec::new();
                    loop {
                        let (n, buf) = server.read(all, 64 * 1024).await;
                        all = buf;
                        if n.unwrap() == 0 {
                            return all;
                        }
                    }
                };
                let ((), all) = join(write, read).await;
                assert!(all == [bytes(first), bytes(second)].concat(), "{first}, {second}");
            }
        });
    }

    #[test]
    fn sockets_have_nodelay_and_stay_from_children() {
        everywhere(async || {
            let (server, client) = pair().await;
            for stream in [&server, &client] {
                assert!(stream.tcp.nodelay().unwrap());
                let info = format!("/proc/self/fdinfo/{}", stream.tcp.as_raw_fd());
                let info = std::fs::read_to_string(info).unwrap();
                let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
                let flags = u32::from_str_radix(flags, 8).unwrap();
                assert_ne!(flags & libc::O_CLOEXEC as u32, 0);
            }
        });
    }

    /// A pair of sockets: one end on the loop, the other on a thread that knows nothing of it.
    #[test]
    fn adopted_sockets_carry_bytes_and_their_end() {
        everywhere(async || {
            use std::io::{Read, Write};
            let (mut theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
            let peer = "192.0.2.1:7".parse().unwrap();
            let mut stream = Stream::adopt(ours.into(), peer).unwrap();
            assert_eq!(stream.peer_addr(), peer);
            assert!(stream.is_quiet());
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                theirs.write_all(b"ping").unwrap();
                // More than the kernel holds: the other end waits for this one.
                let mut all = vec![0; 1_000_000];
                theirs.read_exact(&mut all).unwrap();
                all
            });
            let (n, buf) = stream.read(Vec::new(), 64).await;
            assert_eq!((n.unwrap(), &buf[..]), (4, &b"ping"[..]));
            let sent: Vec<u8> = (0..1_000_000u32).map(|n| ((n * 7) >> 2) as u8).collect();
            let (result, sent) = stream.write_all(sent).await;
            result.unwrap();
            stream.closed().await;
            assert!(!stream.is_quiet());
            let (n, _) = stream.read(Vec::new(), 1).await;
            assert_eq!(n.unwrap(), 0);
            assert!(thread.join().unwrap() == sent);
        });
    }

    /// The safe way to bound a read without closing: keep it, and await it again.
    #[test]
    fn a_kept_read_loses_nothing() {
        everywhere(async || {
            let (mut server, mut client) = pair().await;
            for turn in 0..50u8 {
                let mut read = pin!(server.read(Vec::new(), 16));
                let write = async {
                    time::sleep(Duration::from_millis(u64::from(turn % 3))).await;
                    client.write_all(vec![turn; 4]).await.0.unwrap();
                };
                let mut write = pin!(write);
                let mut written = false;
                let (n, buf) = loop {
                    let nap = time::sleep(Duration::from_millis(1));
                    match race(read.as_mut(), nap).await {
                        Either::Left(read) => break read,
                        Either::Right(()) if written => {}
                        Either::Right(()) => {
                            write.as_mut().await;
                            written = true;
                        }
                    }
                };
                assert_eq!((n.unwrap(), buf), (4, vec![turn; 4]));
            }
        });
    }

    #[test]
    fn closed_waits_for_the_peer_and_takes_nothing() {
        everywhere(async || {
            let (mut server, mut client) = pair().await;
            let nap = Duration::from_millis(5);
            assert!(time::timeout(nap, server.closed()).await.is_err());
            assert!(server.is_quiet());
            client.write_all(b"x".to_vec()).await.0.unwrap();
            assert!(time::timeout(nap, server.closed()).await.is_err(), "bytes are no close");
            assert!(!server.is_quiet());
            let (n, _) = server.read(Vec::new(), 8).await;
            assert_eq!(n.unwrap(), 1, "the dropped waits took no byte");
            assert!(server.is_quiet());

            // Bytes in front of the end hide it for a while only.
            client.write_all(b"y".to_vec()).await.0.unwrap();
            let leave = async {
                time::sleep(Duration::from_millis(5)).await;
                drop(client);
            };
            join(server.closed(), leave).await;
            assert!(!server.is_quiet());
            assert_eq!(server.read(Vec::new(), 8).await.0.unwrap(), 1);
            server.closed().await;
            assert!(!server.is_quiet());
        });
    }

    #[test]
    fn closed_notices_a_peer_that_leaves_later() {
        everywhere(async || {
            let (server, client) = pair().await;
            let leave = async {
                time::sleep(Duration::from_millis(5)).await;
                drop(client);
            };
            join(server.closed(), leave).await;
        });
    }

    #[test]
    fn connecting_fails_at_once_or_in_time() {
        everywhere(async || {
            let gone = {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listener.local_addr().unwrap()
            };
            let error = Stream::connect(gone, LONG).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

            // A listener whose backlog is full drops further attempts without a word.
            let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            sys::testing::shrink_backlog(full.as_raw_fd()).unwrap();
            let address = full.local_addr().unwrap();
            let mut held = Vec::new();
            let error = loop {
                assert!(held.len() < 100, "the backlog never fills");
                match Stream::connect(address, Duration::from_millis(50)).await {
                    Ok(stream) => held.push(stream),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    /// Two listeners of two threads share one port.
    #[test]
    fn listeners_share_a_port() {
        everywhere(async || {
            let one = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let two = Listener::bind(one.local_addr().unwrap()).unwrap();
            assert_eq!(one.local_addr().unwrap(), two.local_addr().unwrap());
        });
    }

    /// Between two fast peers every call on epoll completes at once: timers must still fire.
    #[test]
    fn a_flood_does_not_starve_timers() {
        everywhere(async || {
            let (mut server, client) = pair().await;
            let (mut unread, mut to) = client.split();
            spawn("flood", async move {
                let mut buf = vec![0; 256 * 1024];
                loop {
                    let (result, back) = to.write_all(buf).await;
                    buf = back;
                    if result.is_err() {
                        return;
                    }
                }
            });
            let (sender, fired) = local::oneshot();
            spawn("timer", async move {
                for _ in 0..10 {
                    time::sleep(Duration::from_millis(1)).await;
                }
                sender.send(());
            });
            let mut fired = pin!(fired);
            let mut buf = Vec::new();
            loop {
                buf.clear();
                // Small reads, so that bytes are always waiting.
                let (n, back) = server.read(buf, 512).await;
                assert!(n.unwrap() > 0);
                buf = back;
                if let Either::Left(_) = race(fired.as_mut(), std::future::ready(())).await {
                    break;
                }
            }
            drop(server);
            let _ = unread.read(Vec::new(), 1).await;
        });
    }
}
