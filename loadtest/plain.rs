//! Owns: the baseline, a reverse proxy as it is usually written in Rust: hyper on tokio, kept
//! connections on both sides, bodies passed on as they come, one event loop and one listener a
//! thread as in the proxy that is measured.
//! Never: MCP; it does not look at what it forwards.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONNECTION, HeaderName, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::{Result, workers};

/// Connections to the server behind that have nothing to do.
type Pool = Rc<RefCell<Vec<SendRequest<Incoming>>>>;

const POOL_MAX: usize = 512;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Serves until it is killed; the port goes to stdout.
pub(crate) fn serve(backend: SocketAddr, workers: usize) -> Result<()> {
    workers::run(workers, move |listener| work(listener, backend))
}

fn work(listener: std::net::TcpListener, backend: SocketAddr) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::from_std(listener)?;
        let pool = Pool::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let pool = pool.clone();
            spawn_local(async move {
                let service = service_fn(move |request| forward(request, backend, pool.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                // A client that is gone, or a server that failed: the connection was closed.
                let _ = connection.await;
            });
        }
    })
}

async fn forward(
    mut request: Request<Incoming>,
    backend: SocketAddr,
    pool: Pool,
) -> std::result::Result<Response<Incoming>, Failure> {
    strip(request.headers_mut());
    let kept = take(&mut pool.borrow_mut());
    let mut sender = match kept {
        Some(sender) => sender,
        None => connect(backend).await?,
    };
    sender.ready().await?;
    let mut response = sender.send_request(request).await?;
    strip(response.headers_mut());
    pool.borrow_mut().push(sender);
    Ok(response)
}

/// The connection that was used last of those that are ready. One whose answer is still read is
/// waited for only when there are very many.
fn take(pool: &mut Vec<SendRequest<Incoming>>) -> Option<SendRequest<Incoming>> {
    pool.retain(|sender| !sender.is_closed());
    let ready = pool.iter().rposition(SendRequest::is_ready);
    ready.or(pool.len().checked_sub(1).filter(|_| pool.len() >= POOL_MAX)).map(|at| pool.remove(at))
}

async fn connect(backend: SocketAddr) -> std::result::Result<SendRequest<Incoming>, Failure> {
    let stream = TcpStream::connect(backend).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    spawn_local(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// What is between two hops only (RFC 9110 §7.6.1); hyper frames bodies anew.
fn strip(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    for name in [CONNECTION, KEEP_ALIVE, TRANSFER_ENCODING] {
        headers.remove(name);
    }
}
