//! Owns: the control plane: starting the workers, watching them, ending them; what a program that
//! embeds the proxy holds in its hands.
//! Never: a client's request; none ever waits for this.
//! Next: `diagnose`, what can be wrong with a configuration.
//!
//! Everything here is plain blocking code on one thread, `mcp-control`. Those who wait for it may
//! block or be futures under any executor.

mod access;
mod added;
mod admin;
mod banner;
mod caution;
mod compile;
pub mod config;
mod crew;
pub mod diagnose;
mod entrance;
mod foreign;
mod import;
mod jwks;
mod life;
mod log_level;
pub mod notify;
pub mod reload;
mod resources;
mod roles;
mod rules;
mod schema;
mod scrape;
mod setting;
mod shared;
mod watch_file;
mod watching;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub use banner::{greeting, standing, status, summary};
use config::ProxyConfig;
use crew::{Job, Work};
use diagnose::Report;
use life::control;
use reload::{Applied, NotApplied, Reloads, Wanted};
use shared::{EndGuard, Order, Phase, Shared, State, ended};

use crate::backend::health::State as Health;
use crate::middleware::custom::{self, Middleware};
use crate::plan::BackendId;
use crate::rt::Driver;
use crate::worker;
use crate::world::Counts;

/// Says that this process is the `mcp-proxy` command, whose file is `program`: what a configuration
/// calls `command = "mcp-proxy"` is that file from then on, whatever its name. To be called before a
/// configuration is read, and only by a program that serves `demo-server` as that command does; the
/// first call holds.
pub fn is_the_command(program: PathBuf) {
    compile::set_own_executable(program);
}

/// Why a proxy does not run, or no longer.
#[derive(Clone, Debug, PartialEq)]
pub enum ProxyError {
    /// The configuration has faults.
    Config(Report),
    /// The machine refuses something that a start needs; the text says what, and what to do.
    Start(String),
    /// A worker ended that nobody asked to.
    Worker(String),
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyError::Config(report) => report.fmt(f),
            ProxyError::Start(message) | ProxyError::Worker(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for ProxyError {}

/// How to run, beside what the configuration says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The event loop to use; `None`, the default, is the best that works here.
    pub driver: Option<Driver>,
    /// Whether to listen where `[proxy.listen]` says; default `true`. Without it the only way in is
    /// [`Handle::connect`], on which the router of the feature `axum` stands.
    pub listen: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { driver: None, listen: true }
    }
}

/// A proxy that listens. Dropping it ends it as [`Handle::shutdown`] does, without waiting.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_proxy::{Proxy, ProxyConfig};
///
/// let config = ProxyConfig::load("proxy.toml".as_ref())?;
/// let proxy = Proxy::from_config(config).await?;
/// println!("http://{}/mcp", proxy.handle().addr());
/// proxy.serve().await?;
/// # Ok(())
/// # }
/// ```
///
/// `M` is the program's own [`Middleware`]; the default is none.
#[derive(Debug)]
pub struct Proxy<M = ()> {
    handle: Handle,
    own: PhantomData<fn() -> M>,
}

impl Proxy {
    /// Starts the workers, on threads of their own; done when all of them listen. Backends are
    /// brought up meanwhile and afterwards: one that is down does not stand in the way.
    ///
    /// Works under any executor. A dropped future ends what it has started.
    ///
    /// # Errors
    /// The configuration cannot be compiled any more (a certificate file has gone, say), or the
    /// address cannot be bound.
    pub async fn from_config(config: ProxyConfig) -> Result<Proxy, ProxyError> {
        Proxy::from_config_with(config, Options::default()).await
    }

    /// As [`Proxy::from_config`], with options.
    ///
    /// # Errors
    /// As [`Proxy::from_config`], or the event loop that was asked for does not work here.
    pub async fn from_config_with(
        config: ProxyConfig,
        options: Options,
    ) -> Result<Proxy, ProxyError> {
        Proxy::with_middleware(config, options, ()).await
    }

    /// As [`Proxy::from_config_with`], blocking the thread.
    ///
    /// # Errors
    /// As [`Proxy::from_config_with`].
    pub fn start(config: ProxyConfig, options: Options) -> Result<Proxy, ProxyError> {
        Proxy::start_with_middleware(config, options, ())
    }
}

impl<M: Middleware> Proxy<M> {
    /// As [`Proxy::from_config_with`], with middleware of the program's own: each worker gets a
    /// clone of it.
    ///
    /// # Errors
    /// As [`Proxy::from_config_with`].
    pub async fn with_middleware(
        config: ProxyConfig,
        options: Options,
        middleware: M,
    ) -> Result<Proxy<M>, ProxyError> {
        let proxy = Proxy::begin(config, options, worker::run, middleware)?;
        proxy.handle.0.until(State::started).await?;
        Ok(proxy)
    }

    /// As [`Proxy::with_middleware`], blocking the thread.
    ///
    /// # Errors
    /// As [`Proxy::from_config_with`].
    pub fn start_with_middleware(
        config: ProxyConfig,
        options: Options,
        middleware: M,
    ) -> Result<Proxy<M>, ProxyError> {
        let proxy = Proxy::begin(config, options, worker::run, middleware)?;
        proxy.handle.0.wait(None, State::started).unwrap_or(Ok(()))?;
        Ok(proxy)
    }

    /// Serves until somebody calls [`Handle::shutdown`] and what was in flight has ended.
    ///
    /// Works under any executor. A dropped future ends the proxy.
    ///
    /// # Errors
    /// A worker has ended that nobody asked to: the proxy is no longer to be trusted.
    pub async fn serve(self) -> Result<(), ProxyError> {
        self.handle.0.until(State::ended).await
    }

    /// A handle, which may be cloned and sent to other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn begin(
        config: ProxyConfig,
        options: Options,
        work: Work,
        middleware: M,
    ) -> Result<Proxy<M>, ProxyError> {
        let shared = Arc::new(Shared::default());
        let proxy = Proxy { handle: Handle(shared.clone()), own: PhantomData };
        let listens = options.listen;
        let job = Job { work, listens, custom: Box::new(move || custom::maker(&middleware)) };
        std::thread::Builder::new()
            .name("mcp-control".to_owned())
            .spawn(move || {
                // Whatever happens, those who wait must hear of an end.
                let end = EndGuard(shared.clone());
                let outcome = control(config, options, &job, &shared);
                end.0.change(|state| state.phase = Phase::Ended(outcome));
            })
            .map_err(|error| ProxyError::Start(format!("cannot start a thread: {error}")))?;
        Ok(proxy)
    }
}

impl<M> Drop for Proxy<M> {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

/// What can be asked of a running proxy, from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Where it listens, or would: with `port = 0` the port that the system chose.
    pub fn addr(&self) -> SocketAddr {
        // A proxy is only handed out once it listens.
        self.0.lock().addr.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// The URL that a client on this machine uses.
    pub fn url(&self) -> String {
        let tls = self.0.lock().tls;
        banner::url(self.addr(), tls)
    }

    /// Ends the proxy in good order: no new connections, calls in flight may go on for
    /// `proxy.shutdown_timeout_seconds`. Does not wait; calling it again changes nothing.
    pub fn shutdown(&self) {
        self.0.change(|state| state.shutdown_wanted = true);
        self.0.wake();
    }

    /// A connection into the proxy that only this process can make, served like one that came to its
    /// listener: HTTP/1.1 as bytes. It blocks unless told otherwise. Dropping it is what a client does
    /// that leaves.
    ///
    /// Whoever holds it may say in each request for whom it speaks, in the field `Mcp-Proxy-Client:
    /// IP:PORT`; without it the client is `127.0.0.1:0`. TLS is not spoken on it, `Host` and `Origin`
    /// are looked at as anywhere, and /admin is closed without a token for it.
    ///
    /// # Errors
    /// No descriptors are left; `NotConnected`: the proxy is ending, has ended, or is too busy.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the proxy does not serve");
        let entrance = {
            let state = self.0.lock();
            let serves = state.phase == Phase::Serving && !state.shutdown_wanted;
            state.entrance.clone().filter(|_| serves).ok_or_else(gone)?
        };
        entrance.connect()
    }

    /// Takes no more connections from outside: [`Handle::connect`] is the only way in from now on.
    /// Connections that are open stay.
    pub fn stop_listening(&self) {
        let entrance = self.0.lock().entrance.clone();
        if let Some(entrance) = entrance {
            entrance.stop_listening();
        }
    }

    /// Reads the files of the configuration again and puts them in force without a stop: what has
    /// not changed goes on, exchanges under way end under the settings under which they began.
    ///
    /// Works under any executor. A dropped future leaves the reload to itself.
    ///
    /// # Errors
    /// Nothing has changed.
    pub async fn reload(&self) -> Result<Applied, NotApplied> {
        let order = self.order(Wanted::Again);
        self.0.until(|state| order.outcome(state)).await
    }

    /// As [`Handle::reload`], with another configuration.
    ///
    /// # Errors
    /// As [`Handle::reload`].
    pub async fn reload_with(&self, config: ProxyConfig) -> Result<Applied, NotApplied> {
        let order = self.order(Wanted::Config(Box::new(config)));
        self.0.until(|state| order.outcome(state)).await
    }

    /// As [`Handle::reload`], blocking the thread.
    ///
    /// # Errors
    /// As [`Handle::reload`].
    pub fn reload_now(&self) -> Result<Applied, NotApplied> {
        let order = self.order(Wanted::Again);
        self.0.wait(None, |state| order.outcome(state)).unwrap_or_else(|| Err(ended()))
    }

    fn order(&self, wanted: Wanted) -> Arc<Order> {
        let order = Arc::new(Order { wanted: Mutex::new(Some(wanted)), outcome: OnceLock::new() });
        self.0.change(|state| state.orders.push_back(order.clone()));
        self.0.wake();
        order
    }

    /// What is known of reloads so far.
    pub fn reloads(&self) -> Reloads {
        self.0.lock().reloads.clone()
    }

    /// Has `hear` called with every configuration that a reload puts in force, on the control thread:
    /// for what is outside of the proxy, such as the level of the log. Once for each proxy: a later
    /// one is not called.
    pub fn on_reload(&self, hear: impl Fn(&ProxyConfig) + Send + Sync + 'static) {
        let _ = self.0.on_reload.set(Box::new(hear));
    }

    /// Opens the files of logs anew, which may have been moved away.
    pub fn reopen_logs(&self) {
        self.0.lines.reopen.fetch_add(1, Ordering::AcqRel);
    }

    /// Blocks until the proxy has ended.
    ///
    /// # Errors
    /// As [`Proxy::serve`].
    pub fn wait(&self) -> Result<(), ProxyError> {
        self.0.wait(None, State::ended).unwrap_or(Ok(()))
    }

    /// Blocks until every backend has had its first start, or the proxy has ended, but no longer
    /// than `limit`; whether that came true.
    pub fn wait_settled(&self, limit: Duration) -> bool {
        self.0.wait(Some(limit), State::settled).is_some()
    }

    /// How much it has in hand just now; all zero before it serves and after its end.
    pub fn stats(&self) -> Stats {
        let state = self.0.lock();
        let counts = state.counts.as_deref().filter(|_| state.phase == Phase::Serving);
        let count = |of: fn(&Counts) -> &AtomicUsize| {
            counts.map_or(0, |counts| of(counts).load(Ordering::Relaxed))
        };
        Stats {
            connections: count(|counts| &counts.connections),
            sessions: count(|counts| &counts.sessions),
            streams: count(|counts| &counts.streams),
            backends: state.backends.clone(),
        }
    }

    /// The backends in the order of the file, as last heard of them.
    pub fn backends(&self) -> Vec<BackendStatus> {
        self.0.lock().backends.clone()
    }
}

/// How much a proxy has in hand at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Client connections open.
    pub connections: usize,
    /// Client sessions alive.
    pub sessions: usize,
    /// Event streams that clients have open.
    pub streams: usize,
    /// The backends in the order of the file, as last heard of them.
    pub backends: Vec<BackendStatus>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("addr", &self.addr()).finish_non_exhaustive()
    }
}

/// A backend as last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// Its number: another one when it is reached in another way.
    pub id: BackendId,
    /// Its name in the configuration.
    pub name: String,
    /// `stdio` or `http`.
    pub transport: &'static str,
    /// Where it is in its life.
    pub state: Health,
    /// Tools in its list.
    pub tools: u32,
    /// Why it is not well.
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests;
