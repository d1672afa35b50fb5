//! Owns: the proxy as an axum `Router` (feature `axum`): how a request of the host application's
//! HTTP server gets to a worker, and its answer back.
//! Never: what a request means; the workers serve it as any other. No HTTP of its own: the one here
//! is that of the host application's libraries.
//! Next: `demo`.
//!
//! Each request goes over a connection to a worker that exists in this process only
//! ([`Handle::connect`]): a pair of sockets, so that bodies stream both ways with the kernel's bounds
//! in between, and a client that leaves is seen as one that leaves. Connections are used again.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{StatusCode, Version};
use axum::response::Response;
use axum::routing::any;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::control::{Handle, Proxy};
use crate::error::{Error, Kind};
use crate::jsonrpc;
use crate::limits;
use crate::mcp::header::CLIENT;
use crate::middleware::custom::Middleware;

/// Paths that the router has, as a host application may put them below any other.
const PATHS: [&str; 5] = [
    "/mcp",
    "/admin",
    "/admin/{*path}",
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/{*path}",
];

/// Fields that are about one hop (RFC 9110 §7.6.1), and what a hop negotiates by itself.
const OF_ONE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];

impl<M: Middleware> Proxy<M> {
    /// The proxy as a router for an axum application, and a handle.
    ///
    /// It has `/mcp`, `/admin` and `/.well-known/oauth-protected-resource`; merge it, or nest it below
    /// a path of yours. The proxy itself stops listening ([`Options::listen`](crate::Options) keeps
    /// it from ever doing so) and lives as long as a clone of the router. [`Handle::shutdown`] ends
    /// it before: call it when your server is to end, since event streams end with nothing else.
    ///
    /// - Serve with `into_make_service_with_connect_info::<SocketAddr>()`, and clients have their
    ///   own addresses in the audit log; without it all are `127.0.0.1:0`.
    /// - `[proxy.listen] allowed_hosts` and `allowed_origins` hold, and without them what their
    ///   default for `host` is: of the default host, loopback names only. A layer that limits bodies
    ///   or time applies as anywhere; `security.max_request_bytes` holds besides.
    /// - `Authorization` reaches the proxy as it is. `/admin` and the proxy's own tools need a token
    ///   of theirs here: whether a connection is local is the application's knowledge.
    ///
    /// Needs tokio's reactor where it serves, which axum needs too.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use mcp_proxy::{Options, Proxy, ProxyConfig};
    ///
    /// let config = ProxyConfig::load("proxy.toml".as_ref())?;
    /// let options = Options { listen: false, ..Options::default() };
    /// let (router, handle) = Proxy::from_config_with(config, options).await?.into_router();
    /// let app = axum::Router::new().nest("/tools", router); // served at /tools/mcp
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// axum::serve(listener, app).await?;
    /// handle.shutdown();
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_router(self) -> (Router, Handle) {
        let handle = self.handle();
        handle.stop_listening();
        let gate = Arc::new(Gate {
            proxy: Box::new(self),
            handle: handle.clone(),
            idle: Mutex::default(),
        });
        let router = PATHS
            .iter()
            .fold(Router::new(), |router, path| router.route(path, any(pass)))
            .with_state(gate);
        (router, handle)
    }
}

/// What the clones of a router share.
struct Gate {
    /// Ends with the last clone.
    #[expect(dead_code, reason = "it is held, not used")]
    proxy: Box<dyn Send + Sync>,
    handle: Handle,
    /// Connections without a request, the last used one last.
    idle: Mutex<Vec<(SendRequest<Body>, Instant)>>,
}

/// One request. Dropping it is what a client does that leaves.
async fn pass(State(gate): State<Arc<Gate>>, request: Request) -> Result<Response, Infallible> {
    let mut request = inward(request);
    loop {
        let (mut sender, is_fresh) = match gate.take() {
            Some(sender) => (sender, false),
            None => match gate.open().await {
                Ok(sender) => (sender, true),
                Err(error) => {
                    tracing::debug!(%error, "no way to a worker");
                    return Ok(refused(StatusCode::SERVICE_UNAVAILABLE, Kind::Capacity));
                }
            },
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                tokio::spawn(gate.give_back(sender));
                return Ok(outward(response));
            }
            // Closed while it was idle: nothing of the request was sent.
            Err(mut fault) => match fault.take_message() {
                Some(unsent) if !is_fresh => request = unsent,
                Some(_) => return Ok(refused(StatusCode::SERVICE_UNAVAILABLE, Kind::Capacity)),
                None => {
                    tracing::debug!(error = %fault.error(), "a worker let go of a request");
                    return Ok(refused(StatusCode::BAD_GATEWAY, Kind::Internal));
                }
            },
        }
    }
}

impl Gate {
    fn idle(&self) -> MutexGuard<'_, Vec<(SendRequest<Body>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last, if one is of use.
    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle();
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() >= limits::ROUTER_IDLE {
                // Those below it have been idle for longer.
                idle.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// A new connection to one of the workers.
    async fn open(&self) -> Result<SendRequest<Body>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = self.handle.connect()?;
        stream.set_nonblocking(true)?;
        let stream = TokioIo::new(UnixStream::from_std(stream)?);
        let (sender, connection) = handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a worker broke off");
            }
        });
        Ok(sender)
    }

    /// Keeps a connection once the answer on it has been read whole; one whose answer was dropped
    /// is closed.
    fn give_back(
        self: &Arc<Gate>,
        mut sender: SendRequest<Body>,
    ) -> impl Future<Output = ()> + Send + 'static {
        // A stream that lasts must not keep a proxy alive whose router is gone.
        let gate = Arc::downgrade(self);
        async move {
            if sender.ready().await.is_err() {
                return;
            }
            let Some(gate) = gate.upgrade() else { return };
            let mut idle = gate.idle();
            if idle.len() < limits::ROUTER_IDLE_MAX {
                idle.push((sender, Instant::now()));
            }
        }
    }
}

/// A request as a worker gets it.
fn inward(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    without_hops(&mut parts.headers);
    // In HTTP/2 the host stands in the URI.
    if !parts.headers.contains_key(header::HOST)
        && let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
    // Nobody else may say who the client is.
    let client = HeaderName::from_static(CLIENT);
    parts.headers.remove(&client);
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.to_string());
    if let Some(Ok(peer)) = peer.map(|peer| HeaderValue::from_str(&peer)) {
        parts.headers.insert(client, peer);
    }
    let target = parts.uri.path_and_query().cloned();
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
    *request.headers_mut() = parts.headers;
    request
}

/// A worker's answer as the host application sends it.
fn outward(response: hyper::Response<Incoming>) -> Response {
    let mut response = response.map(Body::new);
    without_hops(response.headers_mut());
    *response.version_mut() = Version::default();
    response
}

fn without_hops(headers: &mut HeaderMap) {
    // What `Connection` names is about this hop too.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_ONE_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// An answer where no worker gives one.
fn refused(status: StatusCode, kind: Kind) -> Response {
    let error = Error::new(kind);
    let mut body = Vec::with_capacity(96);
    jsonrpc::error(&mut body, b"null", kind.code(), &error.public(), None);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
