//! Owns: the compiled, immutable settings that workers run.
//! Never: parsing or defaults (`control::config`), and never changed after `control::compile`.
//! Next: `rt`, the runtime.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Access;
use crate::limits;
use crate::middleware::Chain;
use crate::middleware::around::Around;
use crate::middleware::rate::RateLimit;

/// Which backend: the number of its place in the tables of all workers ([`slot`]), and above that
/// how often the place was given away before, so that no number ever means two backends.
pub type BackendId = usize;
/// Index of a worker.
pub type WorkerId = usize;

/// Bits of a [`BackendId`] that are its place in tables.
const SLOT_BITS: u32 = 16;

/// The place of a backend in tables: below [`limits::BACKENDS_MAX`].
pub const fn slot(id: BackendId) -> usize {
    id & ((1 << SLOT_BITS) - 1)
}

/// The number of the backend to which a place is given, after `before` others had it.
pub const fn number(slot: usize, before: u32) -> BackendId {
    debug_assert!(slot < limits::BACKENDS_MAX);
    (before as usize) << SLOT_BITS | slot
}

const _: () = assert!(limits::BACKENDS_MAX <= 1 << SLOT_BITS);

/// The backends of a plan, in the order of the file; found by their numbers too.
#[derive(Debug, Default)]
pub struct Roster {
    all: Vec<Arc<BackendPlan>>,
    /// By place: where in `all`, plus 1; 0 = nowhere.
    at: Vec<u32>,
}

impl Roster {
    /// These, in this order.
    pub fn new(all: Vec<Arc<BackendPlan>>) -> Roster {
        let room = all.iter().map(|backend| slot(backend.id) + 1).max().unwrap_or(0);
        let mut at = vec![0; room];
        for (index, backend) in all.iter().enumerate() {
            debug_assert_eq!(at[slot(backend.id)], 0, "two backends in one place");
            at[slot(backend.id)] = index as u32 + 1;
        }
        Roster { all, at }
    }

    /// The backend of that number, if it is in this plan.
    pub fn get(&self, id: BackendId) -> Option<&Arc<BackendPlan>> {
        let at = *self.at.get(slot(id))? as usize;
        self.all.get(at.checked_sub(1)?).filter(|backend| backend.id == id)
    }

    /// The backends themselves, in the order of the file.
    pub fn into_all(self) -> Vec<Arc<BackendPlan>> {
        self.all
    }

    /// In the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<BackendPlan>> {
        self.all.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Places that tables by place need to have.
    pub fn room(&self) -> usize {
        self.at.len()
    }
}

impl std::ops::Index<BackendId> for Roster {
    type Output = Arc<BackendPlan>;

    /// # Panics
    /// When this plan has no such backend: numbers that come from elsewhere go through
    /// [`Roster::get`].
    fn index(&self, id: BackendId) -> &Arc<BackendPlan> {
        match self.get(id) {
            Some(backend) => backend,
            None => panic!("backend {id} is not in this plan"),
        }
    }
}

impl<'a> IntoIterator for &'a Roster {
    type Item = &'a Arc<BackendPlan>;
    type IntoIter = std::slice::Iter<'a, Arc<BackendPlan>>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl FromIterator<Arc<BackendPlan>> for Roster {
    fn from_iter<I: IntoIterator<Item = Arc<BackendPlan>>>(all: I) -> Roster {
        Roster::new(all.into_iter().collect())
    }
}

/// Everything that a worker needs to know.
#[derive(Debug)]
pub struct Plan {
    /// `proxy.name`, told to clients and backends.
    pub name: Arc<str>,
    /// `proxy.version`.
    pub version: Arc<str>,
    /// `proxy.instructions`; `None` = joined from the backends.
    pub instructions: Option<String>,
    /// Between a backend's prefix and its own names.
    pub separator: String,
    /// Event loops, one thread each.
    pub workers: usize,
    /// `proxy.max_sessions`.
    pub sessions_max: usize,
    /// `proxy.session_idle_seconds`.
    pub session_idle: Duration,
    /// `proxy.shutdown_timeout_seconds`.
    pub shutdown_timeout: Duration,
    /// `security.max_request_bytes`.
    pub body_bytes_max: usize,
    /// `performance.busy_poll_us`.
    pub busy_poll: Duration,
    /// `proxy.rate_limit`: all requests together.
    pub rate: Option<RateLimit>,
    /// `[auth]` and `security.admin_token`; `None` = neither is set.
    pub access: Option<Box<Access>>,
    /// Where clients connect.
    pub listen: ListenPlan,
    /// What is told to the outside.
    pub watch: WatchPlan,
    /// In the order of the file, disabled ones left out; the order of every merged list.
    pub backends: Roster,
}

/// Where tests, benchmarks and fuzz targets begin: nothing is set, everything is short.
#[doc(hidden)]
impl Plan {
    /// One of so many workers with these backends.
    pub fn bare(workers: usize, backends: Vec<BackendPlan>) -> Plan {
        Plan {
            name: "proxy".into(),
            version: "1".into(),
            instructions: None,
            separator: "__".to_owned(),
            workers,
            sessions_max: 10,
            session_idle: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(1),
            body_bytes_max: limits::BODY_BYTES_MAX,
            busy_poll: Duration::ZERO,
            rate: None,
            access: None,
            listen: ListenPlan {
                addr: ([127, 0, 0, 1], 0).into(),
                origins: OriginRule::Loopback,
                hosts: HostRule::Loopback,
                public_url: None,
                tls: None,
            },
            watch: WatchPlan::default(),
            backends: backends.into_iter().map(Arc::new).collect(),
        }
    }
}

/// See [`Plan::bare`].
#[doc(hidden)]
impl BackendPlan {
    /// A child without rules.
    pub fn bare(id: BackendId, name: &str, prefix: &str) -> BackendPlan {
        let second = Duration::from_secs(1);
        BackendPlan {
            id,
            name: name.into(),
            prefix: prefix.to_owned(),
            transport: TransportPlan::Stdio(StdioPlan {
                command: "true".to_owned(),
                args: Vec::new(),
                env: Vec::new(),
                cwd: None,
                children_max: 1,
                idle_stop: second,
            }),
            isolation: Isolation::Shared,
            protocol: Protocol::Auto,
            startup_timeout: second,
            restart: RestartPlan { initial: second, max: second, give_up_after: None },
            call_timeout: second,
            request_timeout: second,
            unlisted: false,
            around: Around::default(),
            chain: Chain::default(),
        }
    }
}

/// `[observability]`, and `proxy.admin_tools`.
#[derive(Clone, Debug, Default)]
pub struct WatchPlan {
    /// Whether there are metrics.
    pub metrics: bool,
    /// Whether there is an audit log.
    pub audit: Option<AuditPlan>,
    /// Whether there is an access log.
    pub access_log: bool,
    /// Share of the traces that begin here and are recorded; `None` = no tracing.
    pub trace_ratio: Option<f64>,
    /// Which tools of the proxy's own there are.
    pub admin_tools: AdminTools,
}

/// `observability.audit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditPlan {
    /// `None` = standard error.
    pub path: Option<PathBuf>,
    /// Whether lines have the arguments of calls.
    pub arguments: bool,
}

/// `proxy.admin_tools`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminTools {
    /// None.
    Off,
    /// Those that change nothing.
    #[default]
    Read,
    /// All.
    Full,
}

/// `[proxy.listen]`.
#[derive(Debug)]
pub struct ListenPlan {
    /// Address to bind; port 0 lets the kernel choose one for all workers.
    pub addr: SocketAddr,
    /// Who may call from a browser.
    pub origins: OriginRule,
    /// Which Host a request may name.
    pub hosts: HostRule,
    /// Where clients say that they reach the proxy; `None` = where their requests say so.
    pub public_url: Option<PublicUrl>,
    /// TLS towards clients; `None` = plain HTTP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// `proxy.listen.public_url`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    /// `scheme://host[:port]`
    pub origin: String,
    /// What stands before `/mcp`, without a slash at its end; often empty.
    pub path: String,
}

/// Which `Origin` values are allowed; a request without Origin always is.
#[derive(Debug)]
pub enum OriginRule {
    /// Loopback names on any port.
    Loopback,
    /// Exactly these, as `scheme://host[:port]`, lower case.
    Listed(Vec<String>),
}

/// Which `Host` values are allowed.
#[derive(Debug)]
pub enum HostRule {
    /// Loopback names, with any port or none.
    Loopback,
    /// Exactly these, compared without port unless the entry has one.
    Listed(Vec<String>),
    /// All.
    Any,
}

/// One backend.
#[derive(Debug, PartialEq)]
pub struct BackendPlan {
    /// Its number: the same in every plan, for as long as it is reached in the same way.
    pub id: BackendId,
    /// `name`, unique.
    pub name: Arc<str>,
    /// Prefix with the separator behind it; empty = own names are exposed as they are.
    pub prefix: String,
    /// How it is reached.
    pub transport: TransportPlan,
    /// Who shares a session of it.
    pub isolation: Isolation,
    /// Which era it is spoken to in.
    pub protocol: Protocol,
    /// `startup_timeout_seconds`.
    pub startup_timeout: Duration,
    /// `restart`.
    pub restart: RestartPlan,
    /// One attempt of `tools/call`.
    pub call_timeout: Duration,
    /// One attempt of any other request.
    pub request_timeout: Duration,
    /// It only hears what others are called for: neither listed nor callable.
    pub unlisted: bool,
    /// What stands around its calls.
    pub around: Around,
    /// What its rules do to lists and messages.
    pub chain: Chain,
}

impl BackendPlan {
    /// Whether it is the same backend as in another plan, perhaps with other rules: what is open to
    /// it can go on.
    pub fn is_reached_like(&self, other: &BackendPlan) -> bool {
        self.name == other.name
            && self.transport.is_reached_like(&other.transport)
            && self.isolation == other.isolation
            && self.protocol == other.protocol
    }

    /// Whether it gets the client's own Authorization.
    pub fn forwards(&self) -> bool {
        matches!(&self.transport, TransportPlan::Http(http) if http.forward_auth)
    }

    /// Whether answers of it are kept.
    pub fn caches(&self) -> bool {
        self.chain.reuse.as_ref().is_some_and(|reuse| reuse.cache.is_some())
    }

    /// Whether calls of it run together.
    pub fn merges(&self) -> bool {
        self.chain.reuse.as_ref().is_some_and(|reuse| reuse.coalesce.is_some())
    }
}

/// `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Whatever it turns out to speak.
    Auto,
    /// `initialize`, without a question.
    Legacy,
    /// 2026-07-28 alone.
    Modern,
}

/// `isolation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Each client session has its own backend session (http) or child (stdio).
    Session,
    /// All clients share one.
    Shared,
}

/// How a backend is reached.
#[derive(Debug, PartialEq)]
pub enum TransportPlan {
    /// A child process, one JSON-RPC message a line.
    Stdio(StdioPlan),
    /// Streamable HTTP, or HTTP with SSE.
    Http(HttpPlan),
}

impl TransportPlan {
    /// Whether it leads to the same in the same way, perhaps with other limits.
    fn is_reached_like(&self, other: &TransportPlan) -> bool {
        match (self, other) {
            (TransportPlan::Stdio(own), TransportPlan::Stdio(other)) => {
                (&own.command, &own.args, &own.env, &own.cwd)
                    == (&other.command, &other.args, &other.env, &other.cwd)
            }
            (TransportPlan::Http(own), TransportPlan::Http(other)) => {
                own.fingerprint == other.fingerprint
            }
            _ => false,
        }
    }
}

/// A child process.
#[derive(PartialEq)]
pub struct StdioPlan {
    /// Program, looked up in PATH when it has no slash.
    pub command: String,
    /// Arguments, without a shell.
    pub args: Vec<String>,
    /// The whole environment of the child: inherited names first, `env` on top.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// Children at most under isolation `session`.
    pub children_max: usize,
    /// A session's child that is idle for this long is stopped; started again on demand.
    pub idle_stop: Duration,
}

impl std::fmt::Debug for StdioPlan {
    /// Without arguments and environment, which carry secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StdioPlan")
            .field("command", &self.command)
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

/// The transport of 2024-11-05, HTTP with SSE: where a server has no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SsePlan {
    /// `transport = "sse"`: nothing else is tried.
    pub only: bool,
    /// Streams at most under isolation `session`.
    pub streams_max: usize,
    /// A session's stream without a call for this long is closed; opened again on demand.
    pub idle_stop: Duration,
}

/// A server over HTTP or HTTPS.
pub struct HttpPlan {
    /// Host name or address literal (IPv6 without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The `Host` field to send.
    pub authority: String,
    /// Path and query to request, never empty.
    pub target: String,
    /// Complete extra header lines, each ended by CRLF: configured headers, authorization.
    pub header_lines: String,
    /// TLS settings; `None` = plain HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// `forward_auth`: the client's own Authorization is sent.
    pub forward_auth: bool,
    /// Pooled connections at most, per worker.
    pub connections_max: usize,
    /// A pooled connection that is idle for this long is closed.
    pub idle: Duration,
    /// How its older transport is spoken.
    pub sse: SsePlan,
    /// What it was compiled from but for limits, so that a reload can tell whether it is reached in
    /// another way.
    pub fingerprint: u64,
}

impl std::fmt::Debug for HttpPlan {
    /// Without the header lines, which carry secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpPlan")
            .field("authority", &self.authority)
            .field("target", &self.target)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl PartialEq for HttpPlan {
    fn eq(&self, other: &HttpPlan) -> bool {
        let limits = |plan: &HttpPlan| (plan.connections_max, plan.idle, plan.sse);
        self.fingerprint == other.fingerprint && limits(self) == limits(other)
    }
}

/// `restart`: pauses between attempts to bring a backend up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPlan {
    /// The first pause; each following one doubles.
    pub initial: Duration,
    /// The longest pause.
    pub max: Duration,
    /// Attempts in a row without success after which the backend is left alone; `None` = never.
    pub give_up_after: Option<u32>,
}
