//! Owns: the floor, a process that carries bytes between two sockets on a ring: a receive and a
//! send each way, a connection to the server for each of a client. It shows what the kernel takes
//! of a call through a process in the middle, whatever that one does with it.
//! Never: a look at what it carries: it cannot check, choose, share a connection or keep one.
//! Next: `workers`, its threads.

use std::io;
use std::net::SocketAddr;
use std::sync::Once;

use io_uring::IoUring;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::{Result, workers};

/// Of each direction of a connection: a result of 64 KiB is received at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Submission entries of a ring, as many as the proxy's has.
const ENTRIES: u32 = 1024;

/// Serves until it is killed; the port goes to stdout.
pub(crate) fn serve(server: SocketAddr, workers: usize) -> Result<()> {
    workers::run(workers, move |listener| work(listener, server))
}

/// On the best event loop that this machine has, in the proxy's order. None has timers: there is
/// nothing to wait for.
fn work(listener: std::net::TcpListener, server: SocketAddr) -> io::Result<()> {
    let mut tuned = IoUring::builder();
    tuned.setup_coop_taskrun().setup_single_issuer();
    let mut refused = None;
    for (name, ring) in [("a tuned ring", tuned), ("a ring without flags", IoUring::builder())] {
        let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring);
        match builder.with_entries(ENTRIES).build() {
            Ok(mut runtime) => {
                tell(name, refused.as_ref());
                return runtime.block_on(accept(listener, server));
            }
            Err(e) => refused = Some(e),
        }
    }
    tell("epoll", refused.as_ref());
    // epoll asks; a ring waits, which it would not at a socket that does not block.
    listener.set_nonblocking(true)?;
    let builder = RuntimeBuilder::<LegacyDriver>::new().with_entries(ENTRIES);
    builder.build()?.block_on(accept(listener, server))
}

/// Says once what it runs on, where that is not the best: the row is no floor of a ring then.
fn tell(name: &str, refused: Option<&io::Error>) {
    static TOLD: Once = Once::new();
    if let Some(e) = refused {
        TOLD.call_once(|| eprintln!("loadtest: the relay runs on {name}; a better one: {e}"));
    }
}

async fn accept(listener: std::net::TcpListener, server: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        monoio::spawn(async move {
            // Whose server cannot be reached is closed.
            let _ = join(client, server).await;
        });
    }
}

/// Two tasks, so that what comes one way does not wake the other.
async fn join(client: TcpStream, server: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect_addr(server).await?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    monoio::spawn(carry(from_server, to_client));
    carry(from_client, to_server).await;
    Ok(())
}

/// Until one end is closed or fails. The other one is told so by the half that is dropped here; a
/// socket is closed when both directions have come to that.
async fn carry(mut from: OwnedReadHalf<TcpStream>, mut to: OwnedWriteHalf<TcpStream>) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (read, filled) = from.read(buffer).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let (written, emptied) = to.write_all(filled).await;
        if written.is_err() {
            return;
        }
        buffer = emptied;
    }
}
