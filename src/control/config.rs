//! Owns: every key of the configuration file, with its kind, default and manual text, and the file
//! as a whole.
//! Never: what values mean together (`compile`).
//! Next: `setting`, how one value is read.
//!
//! To add a key: one line in `tables!` below, with the text of the manual, and the same in
//! `proxy.toml`, which a test compares. Reading goes on behind a fault, so that one run shows all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use toml::de::DeTable;

use super::compile;
use super::diagnose::{Diagnosis, Report, Source, Spots, whole_file};
use super::foreign;
use super::import;
use super::schema::{self, Schema};
use super::setting::{
    AdminToolsKey, Args, AuditKey, AuthKind, Count, EnvValue, Fraction, GiveUp, Glob, Inherit,
    IsolationKey, KeyDoc, Millis, Node, PerKey, ProtocolKey, Reader, ScopeKey, Seconds, Secret,
    Setting, Share, SignedBy, Transport, Value, join, masked, table,
};
use crate::limits;

/// A key as the code writes it, where it is a word of Rust.
fn keyword(name: &str) -> &str {
    if name == "type" { "r#type" } else { name }
}

/// And as the file does.
fn plain(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

/// Declares tables: struct, defaults, manual and reader from one list of keys.
///
/// `table Name needs [a], { /// manual ⏎ key: Type = default; }` becomes the struct `Name` with a
/// field per key, `Default`, and [`Setting`], whose `read` refuses keys that are not in the list
/// and a table without a key of `needs`, and whose `keys` tells the list to tests and tools.
/// `refuses f,` behind `needs` says which keys do not go together with the others ([`foreign`]).
macro_rules! tables {
    ($($(#[doc = $about:literal])+ table $table:ident needs $needs:expr, $(refuses $refuses:path,)? {
        $($(#[doc = $doc:literal])+ $key:ident: $kind:ty = $default:expr;)*
    })*) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub(super) struct $table { $($(#[doc = $doc])+ pub(super) $key: $kind,)* }

        impl Default for $table {
            fn default() -> Self { $table { $($key: $default,)* } }
        }

        impl Schema for $table {
            fn schema() -> serde_json::Value { schema::table(&<$table as Setting>::keys()) }
        }

        impl Setting for $table {
            const IS_TABLE: bool = true;
            fn accepts() -> String { "a table".to_owned() }
            fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
                let Value::Table(entries) = &node.value else {
                    reader.refuse::<Self>(node, path);
                    return None;
                };
                let mut table = $table::default();
                for (key, node) in entries {
                    let path = &join(path, &key.name);
                    match keyword(&key.name) {
                        $(stringify!($key) => {
                            reader.note(path, key, node);
                            if let Some(value) = <$kind as Setting>::read(node, path, reader) {
                                table.$key = value;
                            }
                        })*
                        _ => reader.unknown(key, path, &<$table as Setting>::keys()),
                    }
                }
                reader.missing(node, path, entries, &$needs);
                Some(table)
            }
            $(fn refuses(&self, key: &str) -> Option<String> { $refuses(self, key) })?
            fn show(&self) -> Option<String> { None }
            fn write_table(&self, path: &str, brackets: (&str, &str), out: &mut String) {
                out.push_str(&format!("\n{}{path}{}\n", brackets.0, brackets.1));
                $(let key = plain(stringify!($key));
                if let Some(text) = self.$key.show()
                    && self.refuses(key).is_none()
                {
                    out.push_str(&format!("{key} = {}\n", masked(key, text)));
                })*
                $(let key = plain(stringify!($key));
                if self.refuses(key).is_none() {
                    self.$key.write_table(&join(path, key), ("[", "]"), out);
                })*
            }
            fn keys() -> Vec<KeyDoc> {
                let table = $table::default();
                let needs: &[&str] = &$needs;
                vec![$(KeyDoc {
                    name: plain(stringify!($key)),
                    manual: &[$($doc),*],
                    accepts: <$kind as Setting>::accepts(),
                    default: table.$key.show(),
                    needed: needs.contains(&plain(stringify!($key))),
                    schema: <$kind as Schema>::schema,
                    table: <$kind as Setting>::keys,
                },)*]
            }
        }
    )*};
}

tables! {
    /// The whole file.
    table Root needs ["proxy"], {
        /// The proxy itself.
        proxy: ProxyTable = ProxyTable::default();
        /// Who may call. Default: everybody who can connect.
        auth: Option<AuthTable> = None;
        /// What is refused.
        security: SecurityTable = SecurityTable::default();
        /// What is done once instead of several times.
        performance: PerformanceTable = PerformanceTable::default();
        /// What is told to the outside.
        observability: ObservabilityTable = ObservabilityTable::default();
        /// The servers behind it, in the order in which lists show them.
        backends: Vec<BackendTable> = Vec::new();
    }

    /// `[proxy]`: the proxy itself.
    table ProxyTable needs ["name"], {
        /// The server name told to clients and backends.
        name: String = String::new();
        /// The server version told to clients and backends.
        version: String = env!("CARGO_PKG_VERSION").to_owned();
        /// Stands between a backend's prefix and its own names. Model APIs accept only
        /// A-Z a-z 0-9 _ - in tool names, 64 characters at most; anything else is warned about.
        separator: String = "__".to_owned();
        /// The instructions told to clients. Default: those of the backends, each under its name.
        instructions: Option<String> = None;
        /// Event loops, one thread each. Default: one per available core.
        workers: Option<Count<1, 512>> = None;
        /// After SIGTERM, calls in flight may go on for this long.
        shutdown_timeout_seconds: Seconds<0, 86_400> = Seconds(limits::SHUTDOWN_TIMEOUT);
        /// Whether this file is read again when it changes, and with it the files that it names: an
        /// mcp.json, secrets, certificates. SIGHUP makes the proxy do so in any case.
        hot_reload: bool = true;
        /// Client sessions at most; beyond it a new one is answered with 503.
        max_sessions: Count<1, 10_000_000> = Count(limits::SESSIONS_MAX as u64);
        /// A client session without a request or an open stream for this long ends.
        session_idle_seconds: Seconds<1, 31_536_000> = Seconds(limits::SESSION_IDLE);
        /// A .mcp.json or mcp.json file whose servers are added as backends; of two with the same
        /// name the one in this file wins. A relative path starts at this file's folder.
        import_backends: Option<String> = None;
        /// Which tools of the proxy's own clients see, for those who may administer it: "off", "read"
        /// (list_backends, health_check, session_count, config), or "full".
        admin_tools: AdminToolsKey = AdminToolsKey::Read;
        /// How many requests are admitted, all clients and backends together; notifications do not
        /// count.
        rate_limit: Option<RateTable> = None;
        /// Where clients connect.
        listen: ListenTable = ListenTable::default();
    }

    /// `[proxy.listen]`: where clients connect.
    table ListenTable needs [], {
        /// An IP address of this machine, or "localhost"; "0.0.0.0" or "::" means all of them.
        host: String = "127.0.0.1".to_owned();
        /// TCP port; 0 lets the system choose one.
        port: Count<0, 65_535> = Count(8080);
        /// Web pages that may call, as "scheme://host[:port]". Default: pages from this machine
        /// when host is a loopback address, else none. Requests without Origin are not concerned.
        allowed_origins: Option<Vec<String>> = None;
        /// Names that a request may call this proxy by (the Host header), as "host[:port]".
        /// Default: loopback names when host is a loopback address, else all.
        allowed_hosts: Option<Vec<String>> = None;
        /// Where clients reach this proxy, as "https://host[:port][/path]" without the /mcp: the base
        /// of the addresses that it tells them. Default: the scheme of the listener and the Host that
        /// a request names, which is wrong behind another proxy that ends TLS.
        public_url: Option<String> = None;
        /// TLS towards clients.
        tls: Option<ListenTlsTable> = None;
    }

    /// `[proxy.listen.tls]`: TLS towards clients. Relative paths start at this file's folder.
    table ListenTlsTable needs ["cert", "key"], {
        /// PEM file of the certificate chain that clients are shown, the proxy's own first.
        cert: String = String::new();
        /// PEM file of the private key that belongs to it.
        key: String = String::new();
        /// PEM file of certificate authorities: clients must then show a certificate by one of them.
        client_ca: Option<String> = None;
    }

    /// `[auth]`: who may call.
    table AuthTable needs ["type"], refuses foreign::auth, {
        /// "bearer" knows the tokens that are written here, "jwt" verifies tokens that an issuer has
        /// signed. A client sends its token as "Authorization: Bearer ...".
        r#type: AuthKind = AuthKind::Bearer;
        /// bearer: tokens that open everything.
        tokens: Vec<Secret> = Vec::new();
        /// bearer: tokens that open a part.
        scoped_tokens: Vec<ScopedTokenTable> = Vec::new();
        /// jwt: who signs the tokens; their "iss" must be exactly this.
        issuer: Option<String> = None;
        /// jwt: what the tokens are for; their "aud" must name it.
        audience: Option<String> = None;
        /// jwt: where the issuer publishes its keys, http or https.
        jwks_uri: Option<String> = None;
        /// jwt: signatures that are accepted, of those that the issuer's keys are for.
        algorithms: Vec<SignedBy> = SignedBy::all();
        /// jwt: how far the clocks of issuer and proxy may be apart.
        leeway_seconds: Seconds<0, 3_600> = Seconds(limits::JWT_LEEWAY);
        /// jwt: scopes that every token needs.
        required_scopes: Vec<String> = Vec::new();
        /// jwt: what those may see who have a role.
        roles: Vec<RoleTable> = Vec::new();
        /// jwt: who has which role.
        role_mapping: Option<RoleMappingTable> = None;
    }

    /// `[[auth.scoped_tokens]]`: a token that opens a part. Patterns are as in expose_tools, and match
    /// the names that clients see. Without any allow list it opens everything; with one, kinds without
    /// a list of their own are closed, and an empty list opens nothing. What it does not open is as if
    /// it were not there.
    table ScopedTokenTable needs ["token", "name"], {
        /// The token.
        token: Secret = Secret::default();
        /// Whose it is: unique. Sessions belong to that name.
        name: String = String::new();
        /// Tools that it opens.
        allow_tools: Option<Vec<Glob>> = None;
        /// Tools that are taken off those.
        deny_tools: Vec<Glob> = Vec::new();
        /// Resources that it opens; patterns match URIs, and the text of templates.
        allow_resources: Option<Vec<Glob>> = None;
        /// Prompts that it opens.
        allow_prompts: Option<Vec<Glob>> = None;
    }

    /// `[[auth.roles]]`: what those may see who have it; lists as in scoped_tokens. Who has several
    /// roles may see what any of them opens, without what any of them denies.
    table RoleTable needs ["name"], {
        /// Unique.
        name: String = String::new();
        /// Tools that it opens.
        allow_tools: Option<Vec<Glob>> = None;
        /// Tools that are taken off those, and off those of other roles.
        deny_tools: Vec<Glob> = Vec::new();
        /// Resources that it opens; patterns match URIs, and the text of templates.
        allow_resources: Option<Vec<Glob>> = None;
        /// Prompts that it opens.
        allow_prompts: Option<Vec<Glob>> = None;
        /// Whether it opens /admin and the proxy's own tools too.
        admin: bool = false;
    }

    /// `[auth.role_mapping]`: who has which role.
    table RoleMappingTable needs ["claim", "mapping"], {
        /// The claim that says it: words between blanks, or an array. Dots lead into objects, as in
        /// "realm_access.roles".
        claim: String = String::new();
        /// A word of the claim = a role.
        mapping: BTreeMap<String, String> = BTreeMap::new();
        /// Whether a token without a role is refused; else it opens everything.
        default_deny: bool = true;
    }

    /// `[security]`: what is refused.
    table SecurityTable needs [], {
        /// Bytes that the arguments of a tool call may have, as the client wrote them. Default: only
        /// the whole request is bounded.
        max_argument_size: Option<Count<2, 1_073_741_824>> = None;
        /// Bytes that a whole request may have; beyond it 413, before it is read.
        max_request_bytes: Count<1024, 1_073_741_824> = Count(limits::BODY_BYTES_MAX as u64);
        /// A token that opens everything: /mcp, /admin and the proxy's own tools. Without it and
        /// without [auth] those two are open when host is a loopback address, else closed.
        admin_token: Option<Secret> = None;
    }

    /// `[performance]`: what is done once instead of several times.
    table PerformanceTable needs [], {
        /// Identical calls of one caller at the same time run once, and all get the answer: reads,
        /// calls of tools that are annotated read-only or idempotent or whose answers are cached.
        coalesce_requests: bool = false;
        /// Tools for which that holds too, by the names that clients see; patterns as in
        /// expose_tools.
        coalesce_tools: Vec<Glob> = Vec::new();
    }

    /// `[observability]`: what is told to the outside.
    table ObservabilityTable needs [], {
        /// What is logged to standard error: error, warn, info, debug, trace or off, or directives as
        /// RUST_LOG has them; --log-level and RUST_LOG itself win over it.
        log_level: String = "info".to_owned();
        /// Whether that log is JSON, one object a line.
        json_logs: bool = false;
        /// One JSON line for each MCP message that arrives, whatever becomes of it: true writes to
        /// standard error, { path = "audit.log" } to the end of a file, which SIGUSR1 makes it open
        /// anew. A relative path starts at this file's folder. include_arguments = true adds the
        /// arguments of calls.
        audit: AuditKey = AuditKey::default();
        /// Metrics for Prometheus, at /admin/metrics.
        metrics: MetricsTable = MetricsTable::default();
        /// Every HTTP request, as JSON lines.
        access_log: AccessLogTable = AccessLogTable::default();
        /// Spans for OpenTelemetry.
        tracing: TracingTable = TracingTable::default();
    }

    /// `[observability.metrics]`: metrics for Prometheus.
    table MetricsTable needs [], {
        /// Whether anything is counted.
        enabled: bool = true;
    }

    /// `[observability.access_log]`: every HTTP request, on standard error.
    table AccessLogTable needs [], {
        /// Whether there is one.
        enabled: bool = false;
    }

    /// `[observability.tracing]`: spans for OpenTelemetry.
    table TracingTable needs [], {
        /// Whether spans are recorded, and trace contexts passed on with the proxy's own span in them;
        /// else contexts go through untouched.
        enabled: bool = false;
        /// A collector that takes OTLP over HTTP; /v1/traces is put behind it.
        endpoint: String = "http://localhost:4318".to_owned();
        /// The service that the spans belong to. Default: proxy.name.
        service_name: Option<String> = None;
        /// The share of traces that are recorded, of those that begin here; the rest follow the
        /// decision that came with them.
        sample_ratio: Fraction = Fraction(1.0);
        /// Sent to the collector with every request.
        headers: BTreeMap<String, Secret> = BTreeMap::new();
    }

    /// `[[backends]]`: one server behind the proxy.
    table BackendTable needs ["name", "transport"], refuses foreign::backend, {
        /// Unique; A-Z a-z 0-9 _ - . without the separator; not "proxy".
        name: String = String::new();
        /// Stands, with the separator, before the backend's own names; "" exposes them as they
        /// are. Default: the name.
        prefix: Option<String> = None;
        /// Whether the backend is used at all.
        enabled: bool = true;
        /// "stdio" starts a command and speaks over its standard input and output, "http" calls a
        /// server (Streamable HTTP, or HTTP with SSE if that is all it has), "sse" one that is known
        /// to speak HTTP with SSE. What is said of http below holds for sse too.
        transport: Transport = Transport::Stdio;
        /// stdio: the program; looked up in PATH when it has no slash. "mcp-proxy" is this very
        /// executable, wherever it is installed.
        command: Option<String> = None;
        /// stdio: its arguments, one by one; there is no shell.
        args: Vec<String> = Vec::new();
        /// stdio: variables added to its environment.
        env: BTreeMap<String, EnvValue> = BTreeMap::new();
        /// stdio: its working directory. A relative path starts at this file's folder.
        cwd: Option<String> = None;
        /// stdio: variables of the proxy that it inherits: a list of names (a * at the end matches
        /// the rest), true for all, false for none.
        inherit_env: Inherit = Inherit::default();
        /// http: the address of its MCP endpoint, http or https.
        url: Option<String> = None;
        /// http: sent as "Authorization: Bearer ...".
        bearer_token: Option<Secret> = None;
        /// http: sent with every request.
        headers: BTreeMap<String, Secret> = BTreeMap::new();
        /// http: whether the client's own Authorization is sent to this backend, instead of a token of
        /// the proxy: a server that is not yours could use it to call this proxy as that client. The
        /// proxy cannot ask such a server what it speaks: protocol = "auto" means "legacy" then.
        forward_auth: bool = false;
        /// http: how an https server is verified, and how the proxy identifies itself to it.
        tls: TlsTable = TlsTable::default();
        /// http: pooled connections at most, per worker.
        max_connections: Count<1, 65_536> = Count(limits::POOL_CONNECTIONS_MAX as u64);
        /// http: a pooled connection without a call for this long is closed.
        idle_seconds: Seconds<1, 86_400> = Seconds(limits::POOL_IDLE);
        /// "session" gives every client session its own backend session (http), event stream (sse)
        /// or child (stdio), "shared" lets all clients share one. Default: "shared" for stdio, else
        /// "session".
        isolation: Option<IsolationKey> = None;
        /// Which revisions of MCP it is spoken to in: "legacy" with sessions (up to 2025-11-25),
        /// "modern" without (2026-07-28), "auto" finds out, each time the backend comes up.
        protocol: ProtocolKey = ProtocolKey::Auto;
        /// A start that takes longer is given up and tried again.
        startup_timeout_seconds: Seconds<1, 3_600> = Seconds(limits::STARTUP_TIMEOUT);
        /// stdio, sse: children or event streams at most, where each session has its own. Default: 64
        /// for stdio, 1024 for sse.
        max_children: Option<Count<1, 100_000>> = None;
        /// stdio, sse: a session's own child or stream without a call for this long is stopped; the
        /// next call starts it again.
        idle_stop_seconds: Seconds<1, 31_536_000> = Seconds(limits::CHILD_IDLE_STOP);
        /// Pauses between attempts to bring the backend up.
        restart: RestartTable = RestartTable::default();
        /// How long an answer may take.
        timeout: TimeoutTable = TimeoutTable::default();
        /// How many attempts are admitted; each attempt of a call counts.
        rate_limit: Option<RateTable> = None;
        /// How many calls the backend has at once, over all workers.
        concurrency: Option<ConcurrencyTable> = None;
        /// Leaves a backend that fails too often alone for a while. Failures are: no connection, a
        /// lost one, no answer in time, HTTP 5xx, and JSON-RPC errors by which a server says that it
        /// failed itself.
        circuit_breaker: Option<BreakerTable> = None;
        /// Makes a failed attempt again. Repeated is what was surely not executed, and failures that
        /// the server itself reports; what may have been executed only for reads and for tools that
        /// are annotated read-only or idempotent. Faults of the client and results that say isError
        /// never are.
        retry: Option<RetryTable> = None;
        /// Sends a second attempt of a call beside a slow first one, and takes the first success; for
        /// reads and for tools that are annotated read-only or idempotent.
        hedging: Option<HedgeTable> = None;
        /// Makes this backend hear the calls of another one: what it answers, or whether it does,
        /// changes nothing for anybody. Its own names are neither listed nor callable.
        mirror_of: Option<String> = None;
        /// The share of those calls that it hears, in percent, evenly spread.
        mirror_percent: Count<0, 100> = Count(100);
        /// Makes this backend answer a share of the calls of another one, which clients call as ever:
        /// names, lists and rules are that one's, and those of this one come behind them. What it
        /// cannot take, or its own rules refuse, stays with that one. Its own names are neither
        /// listed nor callable.
        canary_of: Option<String> = None;
        /// The share of those calls that it answers, in percent, evenly spread; all canaries of one
        /// backend together 99 at most.
        weight: Option<Count<1, 99>> = None;
        /// Makes this backend answer the calls of another one while that one is down, left alone by
        /// its breaker, ejected, or surely did not execute a call. Until that one has been up once,
        /// its lists are read here. Its own names are neither listed nor callable.
        failover_for: Option<String> = None;
        /// Of several failovers of one backend the lowest is asked first.
        priority: Count<0, 1_000> = Count(0);
        /// Ejects a backend that fails several times in a row; failures as for circuit_breaker.
        outlier_detection: Option<OutlierTable> = None;
        /// Keeps answers for a while, so that the same call again is answered from memory; off unless
        /// one of the two times is set. Errors, results that say isError, and answers for which the
        /// server asked its client something are not kept. A list or resource that changes ends it.
        cache: Option<CacheTable> = None;
        /// Only these tools are shown. A pattern matches the backend's own names: * is any run of
        /// characters, ? is one, [a-z] one of a set; behind "re:" stands a regular expression for
        /// the whole name. What is not shown cannot be called.
        expose_tools: Option<Vec<Glob>> = None;
        /// All tools but these are shown.
        hide_tools: Option<Vec<Glob>> = None;
        /// Only these resources are shown; patterns match URIs, and the text of templates.
        expose_resources: Option<Vec<Glob>> = None;
        /// All resources but these are shown.
        hide_resources: Option<Vec<Glob>> = None;
        /// Only these prompts are shown.
        expose_prompts: Option<Vec<Glob>> = None;
        /// All prompts but these are shown.
        hide_prompts: Option<Vec<Glob>> = None;
        /// Hides tools that may destroy something, by their annotations: all but those that say
        /// readOnlyHint = true or destructiveHint = false.
        hide_destructive: bool = false;
        /// Hides tools that do not say readOnlyHint = true in their annotations.
        read_only_only: bool = false;
        /// Other names for its tools and prompts.
        aliases: Vec<AliasTable> = Vec::new();
        /// Arguments put to every tool call, unless the client sends its own.
        default_args: Args = Args::default();
        /// Arguments put to the calls of one tool.
        inject_args: Vec<InjectTable> = Vec::new();
        /// Parameters of a tool that look different to clients.
        param_overrides: Vec<ParamTable> = Vec::new();
    }

    /// `[[backends.aliases]]`: another name for a tool or prompt.
    table AliasTable needs ["from", "to"], {
        /// The backend's own name, which is then gone.
        from: String = String::new();
        /// The name that clients see, behind the prefix.
        to: String = String::new();
    }

    /// `[[backends.inject_args]]`: arguments put to the calls of one tool.
    table InjectTable needs ["tool", "args"], {
        /// The tool's own name.
        tool: String = String::new();
        /// They win over default_args, key by key.
        args: Args = Args::default();
        /// Whether they also win over what the client sends.
        overwrite: bool = false;
    }

    /// `[[backends.param_overrides]]`: parameters of a tool that look different to clients.
    table ParamTable needs ["tool"], {
        /// The tool's own name. In the other keys parameters have their own names too.
        tool: String = String::new();
        /// Parameters that are gone from the schema, and refused in calls.
        hide: Vec<String> = Vec::new();
        /// Values that are sent when the client sends none; the schema shows them.
        defaults: Args = Args::default();
        /// Other names: own = shown.
        rename: BTreeMap<String, String> = BTreeMap::new();
    }

    /// `[backends.tls]`: TLS towards an https backend. Relative paths start at this file's folder.
    table TlsTable needs [], {
        /// PEM file of certificate authorities, instead of those of this machine.
        ca: Option<String> = None;
        /// PEM file of the certificate chain that the proxy shows to the backend.
        cert: Option<String> = None;
        /// PEM file of the private key that belongs to cert.
        key: Option<String> = None;
        /// Accepts any certificate: whoever is on the way can read and change everything.
        insecure_skip_verify: bool = false;
    }

    /// `[backends.restart]`: pauses between attempts to bring a backend up.
    table RestartTable needs [], {
        /// The first pause; each following one doubles, give or take some chance.
        initial_ms: Count<1, 3_600_000> = Count(limits::RESTART_INITIAL.as_millis() as u64);
        /// The longest pause.
        max_ms: Count<1, 86_400_000> = Count(limits::RESTART_MAX.as_millis() as u64);
        /// Attempts in a row without success after which the backend is left alone.
        give_up_after: GiveUp = GiveUp::Never;
    }

    /// `[backends.timeout]`: how long an answer may take.
    table TimeoutTable needs [], {
        /// One attempt of a request, whatever its method. Default: 300 for tools/call, 30 for the
        /// rest.
        seconds: Option<Millis<1, 86_400_000>> = None;
        /// All attempts of a request together, pauses and waits in a queue too. Default: no limit.
        total_seconds: Option<Millis<1, 86_400_000>> = None;
        /// One attempt of one tool, by the tool's own name.
        tools: BTreeMap<String, Millis<1, 86_400_000>> = BTreeMap::new();
        /// Whether a progress notification starts the time of the attempt anew.
        progress_resets: bool = false;
    }

    /// `rate_limit`: how many requests are admitted.
    table RateTable needs ["requests"], {
        /// So many in any interval of the period, and not one more, over all workers.
        requests: Count<1, 1_000_000> = Count(1);
        /// The length of that interval.
        period_seconds: Millis<1, 86_400_000> = Millis(Duration::from_secs(1));
        /// "all" counts all callers together, "principal" each by itself: who is known by [auth].
        per: PerKey = PerKey::All;
    }

    /// `[backends.concurrency]`: how many calls the backend has at once.
    table ConcurrencyTable needs ["max_concurrent"], {
        /// Calls at once.
        max_concurrent: Count<1, 1_000_000> = Count(1);
        /// Calls that wait for one of those to end, first come first served; beyond it a call is
        /// refused.
        queue: Count<0, 1_000_000> = Count(1024);
        /// A call that waits longer is refused.
        queue_timeout_seconds: Millis<1, 86_400_000> = Millis(Duration::from_secs(10));
    }

    /// `[backends.circuit_breaker]`: leaves a failing backend alone for a while.
    table BreakerTable needs [], {
        /// The share of failures among the last calls at which it opens, above 0 and at most 1.
        failure_rate_threshold: Share<1> = Share(0.5);
        /// It does not open before so many calls were made.
        minimum_calls: Count<1, 10_000> = Count(5);
        /// So long no call goes through.
        wait_duration_seconds: Millis<1, 86_400_000> = Millis(Duration::from_secs(30));
        /// Then so many do; if all of them succeed it closes, if one fails it opens again.
        permitted_calls_in_half_open: Count<1, 1_000> = Count(3);
        /// The last calls that are looked at.
        window: Count<1, 10_000> = Count(100);
        /// Instead of window: those of the last so many seconds are looked at.
        window_seconds: Option<Millis<1, 86_400_000>> = None;
    }

    /// `[backends.retry]`: makes a failed attempt again.
    table RetryTable needs [], {
        /// Repetitions of one call at most.
        max_retries: Count<0, 100> = Count(3);
        /// The bound of the pause before the first repetition; it doubles with each further one. The
        /// pause is anything between zero and its bound.
        initial_backoff_ms: Count<0, 86_400_000> = Count(100);
        /// The bound of every pause. A server that asks for a longer one is not asked again.
        max_backoff_ms: Count<0, 86_400_000> = Count(5000);
        /// Repetitions in the last 10 seconds are at most so many percent of the calls, or ten times
        /// min_retries_per_sec if that is more. Default: no such bound.
        budget_percent: Option<Share<100>> = None;
        /// See budget_percent.
        min_retries_per_sec: Count<0, 100_000> = Count(10);
        /// Tools that are repeated although they may have been executed; patterns as in
        /// expose_tools.
        tools: Vec<Glob> = Vec::new();
    }

    /// `[backends.hedging]`: sends a second attempt beside a slow first one.
    table HedgeTable needs [], {
        /// Pause before each further attempt.
        delay_ms: Count<1, 86_400_000> = Count(200);
        /// Further attempts of one call at most. Where retry.budget_percent is set, they are taken
        /// from it.
        max_hedges: Count<0, 10> = Count(1);
        /// Tools that are hedged whatever their annotations; patterns as in expose_tools.
        tools: Vec<Glob> = Vec::new();
    }

    /// `[backends.cache]`: keeps answers for a while.
    table CacheTable needs [], {
        /// How long results of tools are kept. Default: they are not.
        tool_ttl_seconds: Option<Millis<1, 31_536_000_000>> = None;
        /// How long resources are kept. Default: they are not.
        resource_ttl_seconds: Option<Millis<1, 31_536_000_000>> = None;
        /// Answers at most.
        max_entries: Count<1, 1_000_000> = Count(limits::CACHE_ENTRIES_MAX);
        /// Their bytes at most; an answer of more than 1 MiB is not kept.
        max_bytes: Count<1, 1_099_511_627_776> = Count(limits::CACHE_BYTES_MAX);
        /// Tools whose results are kept; patterns as in expose_tools. Of those that are annotated
        /// readOnlyHint = false or destructiveHint = true only such as another pattern than * names.
        tools: Vec<Glob> = vec![Glob::all()];
        /// "principal" keeps answers for the caller who got them, "shared" for all. Without
        /// authentication all callers are one.
        scope: ScopeKey = ScopeKey::Principal;
    }

    /// `[backends.outlier_detection]`: ejects a backend that fails several times in a row.
    table OutlierTable needs [], {
        /// Failures in a row; a success in between begins anew.
        consecutive_errors: Count<1, 1_000_000> = Count(5);
        /// It is ejected for this long, times the number of recent ejections, at most ten times.
        base_ejection_seconds: Millis<1, 86_400_000> = Millis(Duration::from_secs(30));
        /// Returns are granted at multiples of it; in service, one ejection is forgotten in each.
        interval_seconds: Millis<1, 86_400_000> = Millis(Duration::from_secs(10));
        /// Share of all backends with this table that may be ejected at once; one always may be,
        /// unless it is 0.
        max_ejection_percent: Count<0, 100> = Count(50);
    }
}

/// Keys that people know from elsewhere, or that had another name: table, found, right.
pub(super) const MOVED: &[(&str, &str, &str)] = &[
    ("", "servers", "[[backends]]"),
    ("", "mcpServers", "[[backends]]; proxy.import_backends reads such a file"),
    ("", "backend", "[[backends]]"),
    ("", "server", "[proxy]"),
    ("", "listen", "[proxy.listen]"),
    ("proxy", "bind", "proxy.listen.host and proxy.listen.port"),
    ("proxy", "namespace_separator", "separator"),
    ("proxy", "threads", "workers"),
    ("proxy.listen", "bind", "host and port"),
    ("auth", "jwks_url", "jwks_uri"),
    ("auth", "token", "tokens"),
    ("proxy", "auth", "[auth]"),
    ("proxy.listen", "address", "host and port"),
    ("backends", "type", "transport"),
    ("backends", "cmd", "command"),
    ("backends", "environment", "env"),
    ("backends", "namespace", "prefix"),
    ("backends", "endpoint", "url"),
    ("backends", "token", "bearer_token"),
    ("backends", "disabled", "enabled = false"),
    ("backends", "timeout_seconds", "[backends.timeout] seconds"),
    ("backends.timeout", "timeout_seconds", "seconds"),
    ("backends.tls", "ca_cert", "ca"),
    ("backends.tls", "insecure", "insecure_skip_verify"),
];

// ---------------------------------------------------------------------------------------------
// The configuration as a whole
// ---------------------------------------------------------------------------------------------

/// A configuration that has been read and found free of faults.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub(super) proxy: ProxyTable,
    pub(super) auth: Option<AuthTable>,
    pub(super) security: SecurityTable,
    pub(super) performance: PerformanceTable,
    /// Folder at which relative paths of the file itself start.
    pub(super) folder: PathBuf,
    pub(super) observability: ObservabilityTable,
    pub(super) backends: Vec<NamedBackend>,
    /// Where each key stands.
    pub(super) spots: Spots,
    /// For what has no place of its own.
    pub(super) file: String,
    /// Warnings that only reading could give.
    noted: Vec<Diagnosis>,
    /// What it was read from; `None` = a text that is nowhere else.
    origin: Option<Origin>,
    /// Where to listen instead of where the file says.
    listen: Option<SocketAddr>,
}

/// Files that a configuration was read from.
#[derive(Clone, Debug)]
enum Origin {
    File(PathBuf),
    FileAndServers(PathBuf, PathBuf),
    Servers(PathBuf),
}

/// A backend and where it is written.
#[derive(Clone, Debug)]
pub(super) struct NamedBackend {
    /// Key path, such as `backends[0]` or `mcpServers.files`.
    pub(super) path: String,
    /// Folder at which its relative paths start.
    pub(super) folder: PathBuf,
    pub(super) table: BackendTable,
}

impl ProxyConfig {
    /// Reads and checks a file.
    ///
    /// Errors: all faults of the file at once, each with its place.
    pub fn load(path: &Path) -> Result<ProxyConfig, Report> {
        let name = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let text = read_text(path).map_err(|fault| whole_file_fault(&name, fault))?;
        let config = ProxyConfig::check(&name, &text, &World::real(folder))?;
        Ok(config.read_from(Origin::File(path.to_owned())))
    }

    fn read_from(mut self, origin: Origin) -> ProxyConfig {
        self.origin = Some(origin);
        self
    }

    /// Reads and checks the same files again, as they are now; what [`ProxyConfig::listen_on`] said
    /// holds on.
    ///
    /// Errors: as when it was read first, or it was not read from a file.
    pub fn again(&self) -> Result<ProxyConfig, Report> {
        let mut config = match &self.origin {
            Some(Origin::File(file)) => ProxyConfig::load(file)?,
            Some(Origin::FileAndServers(file, servers)) => {
                ProxyConfig::load_with_mcp_json(file, servers)?
            }
            Some(Origin::Servers(servers)) => ProxyConfig::from_mcp_json(servers)?,
            None => {
                let fault = "this configuration was not read from a file that could be read again";
                return Err(whole_file_fault(&self.file, fault.to_owned()));
            }
        };
        if let Some(addr) = self.listen {
            config.listen_on(addr);
        }
        Ok(config)
    }

    /// The files that it was read from, those that its backends are imported from too.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = match &self.origin {
            Some(Origin::File(file) | Origin::Servers(file)) => vec![file.clone()],
            Some(Origin::FileAndServers(file, servers)) => vec![file.clone(), servers.clone()],
            None => Vec::new(),
        };
        files.extend(self.proxy.import_backends.as_ref().map(|file| self.folder.join(file)));
        files
    }

    /// All files that it depends on, those of secrets and certificates too; none if `hot_reload` is
    /// off or it was not read from a file.
    pub(super) fn watched(&self) -> Vec<PathBuf> {
        if !self.proxy.hot_reload || self.origin.is_none() {
            return Vec::new();
        }
        let mut files = self.files();
        files.extend_from_slice(self.spots.files());
        if let Some(tls) = &self.proxy.listen.tls {
            let named = [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()];
            files.extend(named.into_iter().flatten().map(|file| self.folder.join(file)));
        }
        for backend in &self.backends {
            let tls = &backend.table.tls;
            let named = [&tls.ca, &tls.cert, &tls.key].into_iter().flatten();
            files.extend(named.map(|file| backend.folder.join(file)));
        }
        files
    }

    /// Reads and checks a text; relative paths in it start at the working directory.
    ///
    /// Errors: all faults of the text at once, each with its place in `proxy.toml`.
    pub fn parse(text: &str) -> Result<ProxyConfig, Report> {
        ProxyConfig::check("proxy.toml", text, &World::real(PathBuf::new()))
    }

    /// Reads and checks a file, and adds the servers of an `mcp.json` as `proxy.import_backends`
    /// does.
    ///
    /// Errors: all faults of both files at once, each with its place.
    pub fn load_with_mcp_json(path: &Path, servers: &Path) -> Result<ProxyConfig, Report> {
        let name = path.display().to_string();
        let world = World::real(path.parent().unwrap_or(Path::new("")).to_owned());
        let mut report = Report::default();
        let text = read_text(path).map_err(|fault| whole_file_fault(&name, fault))?;
        let Some(mut config) = read(&name, &text, &world, &mut report) else { return Err(report) };
        let name = servers.display().to_string();
        let world = World::real(servers.parent().unwrap_or(Path::new("")).to_owned());
        match read_text(servers) {
            Ok(text) => import::read(&name, &text, &world, &mut config, &mut report),
            Err(fault) => report.fault(whole_file(&name), "", fault),
        }
        let config = config.finish(report)?;
        Ok(config.read_from(Origin::FileAndServers(path.to_owned(), servers.to_owned())))
    }

    /// Reads and checks an `mcp.json` file as if it were all there is, `[proxy]` being its
    /// defaults and its name `mcp-proxy`.
    ///
    /// Errors: all faults of the file at once, each with its place.
    pub fn from_mcp_json(path: &Path) -> Result<ProxyConfig, Report> {
        let name = path.display().to_string();
        let world = World::real(path.parent().unwrap_or(Path::new("")).to_owned());
        let mut report = Report::default();
        let mut config = ProxyConfig::empty(&name);
        config.proxy.name = env!("CARGO_PKG_NAME").to_owned();
        match read_text(path) {
            Ok(text) => import::read(&name, &text, &world, &mut config, &mut report),
            Err(fault) => return Err(whole_file_fault(&name, fault)),
        }
        Ok(config.finish(report)?.read_from(Origin::Servers(path.to_owned())))
    }

    /// Listens there instead of where the file says.
    pub fn listen_on(&mut self, addr: SocketAddr) {
        self.listen = Some(addr);
        self.proxy.listen.host = addr.ip().to_string();
        self.proxy.listen.port = Count(addr.port().into());
    }

    /// What is in force, as TOML: defaults and imported servers too, secrets as `***`.
    pub fn effective(&self) -> String {
        let mut out = String::new();
        let brackets = ("[", "]");
        self.proxy.write_table("proxy", brackets, &mut out);
        self.auth.write_table("auth", brackets, &mut out);
        self.security.write_table("security", brackets, &mut out);
        self.performance.write_table("performance", brackets, &mut out);
        self.observability.write_table("observability", brackets, &mut out);
        for backend in &self.backends {
            backend.table.write_table("backends", ("[[", "]]"), &mut out);
        }
        out.trim_start().to_owned()
    }

    /// `observability.log_level`.
    pub fn log_level(&self) -> &str {
        &self.observability.log_level
    }

    /// `observability.json_logs`.
    pub fn json_logs(&self) -> bool {
        self.observability.json_logs
    }

    /// `proxy.name`.
    pub fn name(&self) -> &str {
        &self.proxy.name
    }

    /// The JSON Schema (2020-12) of the file, as text that ends with a line break.
    pub fn schema() -> String {
        format!("{:#}\n", schema::file())
    }

    /// What runs but deserves a look.
    pub fn warnings(&self) -> Vec<Diagnosis> {
        let mut report = Report::default();
        report.warnings.clone_from(&self.noted);
        compile::compile(self, &mut report);
        report.sort();
        report.warnings
    }

    /// A configuration in which nothing is set.
    pub(super) fn empty(file: &str) -> ProxyConfig {
        ProxyConfig {
            proxy: ProxyTable::default(),
            auth: None,
            security: SecurityTable::default(),
            performance: PerformanceTable::default(),
            folder: PathBuf::new(),
            observability: ObservabilityTable::default(),
            backends: Vec::new(),
            spots: Spots::default(),
            file: file.to_owned(),
            noted: Vec::new(),
            origin: None,
            listen: None,
        }
    }

    /// Reads, then compiles for the sake of the faults that only then show.
    pub(super) fn check(name: &str, text: &str, world: &World) -> Result<ProxyConfig, Report> {
        let mut report = Report::default();
        match read(name, text, world, &mut report) {
            Some(config) => config.finish(report),
            None => Err(report),
        }
    }

    fn finish(mut self, mut report: Report) -> Result<ProxyConfig, Report> {
        self.noted = report.warnings.clone();
        compile::compile(&self, &mut report);
        report.sort();
        if report.is_ok() { Ok(self) } else { Err(report) }
    }
}

/// Reads a text as far as it can be understood; every fault goes to the report. `None` if not even
/// its tables can be told apart.
pub(super) fn read(
    name: &str,
    text: &str,
    world: &World,
    report: &mut Report,
) -> Option<ProxyConfig> {
    let source = Source::new(name, text);
    let mut config = ProxyConfig::empty(name);
    let (document, broken) = DeTable::parse_recoverable(text);
    // A broken line garbles what the parser makes of it, and a broken table header what follows.
    let mut structure_known = true;
    for error in &broken {
        let offset = error.span().map_or(text.len(), |span| span.start);
        let place = source.place(offset);
        let line = text.lines().nth(place.line as usize - 1).unwrap_or("");
        structure_known &= !line.trim_start().starts_with('[');
        report.broken(place.clone());
        if report.faults.len() < limits::CONFIG_SYNTAX_FAULTS_MAX {
            report.fault(place, "", format!("not TOML: {}", error.message()));
        }
    }
    if !structure_known {
        // The parser tells what it finds when it finds it.
        report.sort();
        return None;
    }
    let mut reader = Reader { source: &source, world, report, spots: &mut config.spots };
    let document = Node { offset: 0, value: table(document.get_ref()) };
    let root = Root::read(&document, "", &mut reader).unwrap_or_default();
    config.proxy = root.proxy;
    config.auth = root.auth;
    config.security = root.security;
    config.performance = root.performance;
    config.folder.clone_from(&world.folder);
    config.observability = root.observability;
    let folder = &world.folder;
    config.backends = root
        .backends
        .into_iter()
        .enumerate()
        .map(|(index, table)| NamedBackend {
            path: format!("backends[{index}]"),
            folder: folder.clone(),
            table,
        })
        .collect();
    if let Some(file) = config.proxy.import_backends.clone() {
        import::read_beside(&file, world, &mut config, report);
    }
    Some(config)
}

/// What a configuration may look at outside of its text.
pub(super) struct World {
    /// At which relative paths start.
    pub(super) folder: PathBuf,
    /// An environment variable.
    pub(super) var: Rc<Variables>,
}

/// Looks an environment variable up.
type Variables = dyn Fn(&str) -> Option<String>;

impl World {
    /// The process's own environment.
    pub(super) fn real(folder: PathBuf) -> World {
        World { folder, var: Rc::new(|name| std::env::var(name).ok()) }
    }
}

/// Reads a whole configuration file; the error is what to tell the user.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let bytes = read_bounded(path, limits::CONFIG_BYTES_MAX)?;
    String::from_utf8(bytes)
        .map_err(|e| format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to() + 1))
}

/// Reads a file of at most `bytes_max` bytes; the error is what to tell the user.
pub(super) fn read_bounded(path: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    match bytes.len() > bytes_max {
        true => Err(format!("over {bytes_max} bytes")),
        false => Ok(bytes),
    }
}

fn whole_file_fault(name: &str, message: String) -> Report {
    let mut report = Report::default();
    report.fault(whole_file(name), "", message);
    report
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn world() -> World {
        World {
            folder: PathBuf::new(),
            var: Rc::new(|name| match name {
                "SET" => Some("value".to_owned()),
                "EMPTY" => Some(String::new()),
                "SNEAKY" => Some("${SET}".to_owned()),
                "FILE" => Some("file:/etc/hostname".to_owned()),
                _ => None,
            }),
        }
    }

    fn check(text: &str) -> Result<ProxyConfig, Report> {
        ProxyConfig::check("p.toml", text, &world())
    }

    /// The faults of a text, one a line.
    fn faults(text: &str) -> String {
        check(text).map(|_| "none".to_owned()).unwrap_or_else(|report| report.to_string())
    }

    const PROXY: &str = "[proxy]\nname = \"p\"\n";

    #[test]
    fn defaults() {
        let config = check(PROXY).unwrap();
        assert_eq!(config.proxy, ProxyTable { name: "p".to_owned(), ..ProxyTable::default() });
        assert_eq!(config.proxy.listen.port, Count(8080));
        assert!(config.backends.is_empty());
    }

    #[test]
    fn every_key_is_read() {
        let config = check(
            r#"
            [proxy]
            name = "p"
            version = "9"
            separator = "/"
            instructions = "i"
            workers = 3
            shutdown_timeout_seconds = 1.5
            max_sessions = 7
            session_idle_seconds = 8
            [proxy.listen]
            host = "::1"
            port = 1
            allowed_origins = ["http://a"]
            allowed_hosts = ["a"]
            [[backends]]
            name = "files"
            prefix = ""
            enabled = false
            transport = "stdio"
            command = "true"
            args = ["a", "${SET}"]
            env = { A = "${SET}" }
            cwd = "/"
            inherit_env = true
            isolation = "session"
            startup_timeout_seconds = 2
            max_children = 3
            idle_stop_seconds = 4
            restart = { initial_ms = 5, max_ms = 6, give_up_after = 7 }
            timeout.seconds = 0.25
            [[backends]]
            name = "web"
            transport = "http"
            url = "http://localhost/mcp"
            bearer_token = "t"
            headers = { X-A = "b" }
            max_connections = 9
            idle_seconds = 10
            "#,
        )
        .unwrap();
        let proxy = &config.proxy;
        assert_eq!((proxy.version.as_str(), proxy.separator.as_str()), ("9", "/"));
        assert_eq!(proxy.instructions.as_deref(), Some("i"));
        assert_eq!((proxy.workers, proxy.max_sessions), (Some(Count(3)), Count(7)));
        assert_eq!(proxy.shutdown_timeout_seconds.0, Duration::from_millis(1500));
        assert_eq!(proxy.session_idle_seconds.0, Duration::from_secs(8));
        assert_eq!((proxy.listen.host.as_str(), proxy.listen.port), ("::1", Count(1)));
        assert_eq!(proxy.listen.allowed_origins.as_deref(), Some(&["http://a".to_owned()][..]));
        assert_eq!(proxy.listen.allowed_hosts.as_deref(), Some(&["a".to_owned()][..]));
        let files = &config.backends[0].table;
        assert_eq!((files.name.as_str(), files.prefix.as_deref()), ("files", Some("")));
        assert!(!files.enabled);
        assert_eq!(files.args, ["a", "value"]);
        assert_eq!(files.env["A"].0.expose(), "value");
        assert_eq!(files.inherit_env, Inherit::All);
        assert_eq!(files.isolation, Some(IsolationKey::Session));
        assert_eq!(files.restart.give_up_after, GiveUp::After(7));
        assert_eq!((files.restart.initial_ms, files.restart.max_ms), (Count(5), Count(6)));
        assert_eq!(files.timeout.seconds, Some(Millis(Duration::from_millis(250))));
        assert_eq!((files.max_children, files.idle_stop_seconds.0.as_secs()), (Some(Count(3)), 4));
        let web = &config.backends[1].table;
        assert_eq!(web.transport, Transport::Http);
        assert_eq!(web.bearer_token.as_ref().unwrap().expose(), "t");
        assert_eq!(web.headers["X-A"].expose(), "b");
        assert_eq!((web.max_connections, web.idle_seconds.0.as_secs()), (Count(9), 10));
    }

    /// What `GET /admin/config` shows can be read again, and tells no secret.
    #[test]
    fn what_is_in_force_can_be_put_in_force() {
        let jwt = "type = 'jwt'\nissuer = 'https://i'\naudience = 'a'\njwks_uri = 'https://i/keys'";
        let backends = "[[backends]]\nname = 'a'\ntransport = 'stdio'\ncommand = 'x'\n\
                        [[backends]]\nname = 'b'\ntransport = 'http'\nurl = 'http://h/'\n\
                        mirror_of = 'a'\n\
                        [[backends]]\nname = 'c'\ntransport = 'sse'\nurl = 'https://h/'\n\
                        canary_of = 'a'\nweight = 5\n\
                        [[backends]]\nname = 'd'\ntransport = 'http'\nurl = 'https://h/2'\n\
                        failover_for = 'a'\n";
        for auth in [jwt, "type = 'bearer'\ntokens = ['0123456789abcdef']"] {
            let text = format!("[proxy]\nname = 'p'\n[auth]\n{auth}\n{backends}");
            let config = ProxyConfig::parse(&text).unwrap_or_else(|report| panic!("{report}"));
            let shown = config.effective().replace("***", "0123456789abcdef");
            let again = ProxyConfig::parse(&shown).unwrap_or_else(|r| panic!("{r}\n{shown}"));
            assert_eq!(again.effective().replace("***", "0123456789abcdef"), shown);
        }
    }

    #[test]
    fn the_effective_configuration() {
        let text = r#"
            [proxy]
            name = "p"
            rate_limit = { requests = 5 }
            [auth]
            type = "jwt"
            issuer = "https://i"
            audience = "a"
            jwks_uri = "https://i/keys"
            [observability]
            audit = { path = "/var/log/audit", include_arguments = true }
            [observability.tracing.headers]
            X-Key = "s3cret-a"
            [[backends]]
            name = "a"
            transport = "stdio"
            command = "true"
            args = ["--token", "s3cret-b"]
            env = { KEY = "s3cret-c" }
            default_args = { key = "${SET}", x = [1, { y = 2 }] }
            circuit_breaker = {}
            [[backends.aliases]]
            from = "x"
            to = "y"
            [[backends]]
            name = "b"
            transport = "http"
            url = "http://h/mcp?key=s3cret-d"
            bearer_token = "s3cret-e"
            headers = { X-A = "s3cret-f" }
        "#;
        let shown = check(text).unwrap().effective();
        assert!(!shown.contains("s3cret") && !shown.contains("value"), "{shown}");
        for part in [
            "\nrequests = 5\n",
            "\ntype = \"jwt\"\n",
            "\nport = 8080\n",
            "\n[[backends.aliases]]\n",
            "\nfailure_rate_threshold = 0.5\n",
            "\nurl = \"http://h/mcp?***\"\n",
            "audit = { path = \"/var/log/audit\", include_arguments = true }",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let document: toml::Table = shown.parse().unwrap_or_else(|e| panic!("{e}: {shown}"));
        assert_eq!(document["backends"].as_array().unwrap().len(), 2);
        assert!(document["backends"][1].as_table().unwrap().get("aliases").is_none());
    }

    #[test]
    fn all_faults_at_once_in_the_order_of_the_file() {
        let text = r#"[proxy]
nmae = "p"
workers = 0
max_sessions = "many"
[proxy.listen]
port = 80_000
hots = "::1"
[[backends]]
name = "a"
transport = "stdio"
command = ["x"]
args = ["a", 1, "b", true]
[[backends]]
name = "b"
transport = "carrier"
[[backends]]
transport = "http"
url = "ftp://x"
headers = { Host = "x" }
"#;
        let expected = r#"p.toml:1:1: proxy.name: missing, and there is no default
p.toml:2:1: proxy.nmae: unknown key, did you mean `name`?
p.toml:3:11: proxy.workers: found 0, accepted: an integer from 1 to 512
p.toml:4:16: proxy.max_sessions: found "many", accepted: an integer from 1 to 10000000
p.toml:6:8: proxy.listen.port: found 80000, accepted: an integer from 0 to 65535
p.toml:7:1: proxy.listen.hots: unknown key, did you mean `host`?
p.toml:11:11: backends[0].command: found an array, accepted: a string
p.toml:12:14: backends[0].args[1]: found 1, accepted: a string
p.toml:12:22: backends[0].args[3]: found true, accepted: a string
p.toml:15:13: backends[1].transport: found "carrier", accepted: "stdio" or "http" or "sse"
p.toml:16:1: backends[2].name: missing, and there is no default
p.toml:18:7: backends[2].url: found the scheme ftp, accepted: http[s]://host[:port]/path
p.toml:19:13: backends[2].headers.Host: not accepted: it follows from the url"#;
        assert_eq!(faults(text), expected);
    }

    #[test]
    fn broken_syntax_does_not_hide_other_faults_nor_invent_any() {
        let text = "[proxy]\nname = \nwrokers = 1\n[proxy.listen]\nport = 1\nport = 2\n";
        assert_eq!(
            faults(text),
            "p.toml:2:8: not TOML: string values must be quoted, expected literal string\n\
             p.toml:3:1: proxy.wrokers: unknown key, did you mean `workers`?\n\
             p.toml:6:1: not TOML: duplicate key"
        );
        // A broken header takes the tables behind it along: nothing more can be said.
        assert_eq!(
            faults("[proxy\nname = 1\n[proxy.listen]\nprot = 1\n"),
            "p.toml:1:7: not TOML: unclosed table, expected `]`"
        );
        // In the order of the file, as all faults are.
        let several = faults("true\"\n[[proxy]\n[backends]]\n");
        let lines: Vec<&str> = several.lines().map(|line| &line[..8]).collect();
        assert!(lines.len() > 2 && lines.is_sorted(), "{several}");
    }

    #[test]
    fn hints() {
        let wrong = |lines: &str| faults(&format!("{PROXY}{lines}\n"));
        for (lines, hint) in [
            ("bind = 1", "proxy.bind: unknown key, the right one is proxy.listen.host and"),
            ("port = 1", "proxy.port: unknown key here, it belongs into [proxy.listen]"),
            ("command = 1", "proxy.command: unknown key here, it belongs into [[backends]]"),
            ("no_such_thing = true", "proxy.no_such_thing: unknown key, accepted: name, ver"),
            ("[auth]", "auth.type: missing, and there is no default"),
            ("[servers]", "servers: unknown key, the right one is [[backends]]"),
            ("[backends]", "backends: found a table, accepted: an array of tables"),
            (
                "[[backends]]\nname = 'a'\ntransport = 'stdio'\ncommand = 'true'\ncmd = 'x'",
                "backends[0].cmd: unknown key, the right one is command",
            ),
            ("\"a b\" = 1", "proxy.\"a b\": unknown key"),
        ] {
            let found = wrong(lines);
            assert!(found.contains(hint) && found.lines().count() == 1, "{lines}: {found}");
        }
        for (_, found, right) in MOVED {
            assert_ne!(found, right);
        }
        for key in Root::keys().iter().chain(&BackendTable::keys()) {
            assert!(!MOVED.iter().any(|(of, from, _)| *of == "backends" && *from == key.name));
        }
    }

    #[test]
    fn a_text_or_table_of_the_wrong_kind() {
        assert_eq!(faults(""), "p.toml:1:1: proxy: missing, and there is no default");
        assert_eq!(faults("proxy = 1"), "p.toml:1:9: proxy: found 1, accepted: a table");
        assert!(faults("[proxy]\nname = 99999999999999999999").contains("beyond 64 bits"));
        assert!(faults("[proxy]\nname = 2020-01-01").contains("found a date, accepted: a string"));
        for bad in ["-1", "nan", "inf", "1e300", "''", "100000"] {
            let text = format!("{PROXY}shutdown_timeout_seconds = {bad}");
            assert!(faults(&text).contains("a number of seconds from 0 to 86400"), "{bad}");
        }
        let zero = "[[backends]]\nname='a'\ntransport='stdio'\ncommand='true'\ntimeout.seconds=0";
        assert!(faults(&format!("{PROXY}{zero}")).contains("timeout.seconds: found 0, accepted"));
    }

    #[test]
    fn an_unset_variable_is_a_fault_with_a_place() {
        let fault = faults("[proxy]\nname = \"${UNSET}\"");
        assert!(fault.starts_with("p.toml:2:8: proxy.name: the env"), "{fault}");
    }

    #[test]
    fn secrets_come_from_files_and_never_print() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "s3cret\n").unwrap();
        let world = World { folder: folder.path().to_owned(), ..world() };
        let text = |token: &str| {
            format!(
                "{PROXY}[[backends]]\nname='a'\ntransport='http'\nurl='http://h'\n\
                 bearer_token={token}\n"
            )
        };
        let check = |token: &str| ProxyConfig::check("p.toml", &text(token), &world);
        let config = check("'file:token'").unwrap();
        let token = config.backends[0].table.bearer_token.clone().unwrap();
        assert_eq!(token.expose(), "s3cret");
        assert_eq!(format!("{token} {token:?}"), "*** ***");
        assert!(!format!("{config:?}").contains("s3cret"));
        assert_eq!(token.show().unwrap(), "\"***\"");
        // What a variable holds is a secret, not the name of a file.
        let config = check("'${FILE}'").unwrap();
        let token = config.backends[0].table.bearer_token.clone().unwrap();
        assert_eq!(token.expose(), "file:/etc/hostname");
        let missing = check("'file:nowhere'").unwrap_err().to_string();
        assert!(missing.contains("nowhere cannot be read"), "{missing}");
        // A fault about a secret does not quote it.
        for bad in ["123456", "'s3cret with blanks'", "['s3cret']"] {
            let fault = check(bad).unwrap_err().to_string();
            assert!(fault.contains("bearer_token"), "{fault}");
            assert!(!fault.contains("123456") && !fault.contains("s3cret"), "{fault}");
        }
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        let missing = ProxyConfig::load(&path).unwrap_err().to_string();
        assert!(missing.contains("c.toml: cannot be read: No such file"), "{missing}");
        std::fs::write(&path, b"[proxy]\nname = \"\xff\"\n").unwrap();
        let binary = ProxyConfig::load(&path).unwrap_err().to_string();
        assert!(binary.ends_with("c.toml: not UTF-8 at byte 17"), "{binary}");
        std::fs::write(&path, PROXY).unwrap();
        assert_eq!(ProxyConfig::load(&path).unwrap().proxy.name, "p");
    }

    // proxy.toml is the manual: it must show every key, with the default that the code has and the
    // words that the code's documentation has.

    pub(in super::super) const SHIPPED: &str = include_str!("../../proxy.toml");

    /// Settings that are commented out, put in.
    pub(in super::super) fn with_all_settings(text: &str) -> String {
        let is_setting = |line: &&str| {
            line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c| !matches!(c, ' ' | ':')))
        };
        let lines = text.lines().map(|line| if is_setting(&line) { &line[1..] } else { line });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_shipped_file_loads_without_a_warning_but_that_tests_are_not_the_binary() {
        let config = ProxyConfig::parse(SHIPPED).unwrap();
        let warnings: Vec<_> =
            config.warnings().into_iter().filter(|w| w.path != "backends[0].command").collect();
        assert_eq!(warnings, Vec::<Diagnosis>::new());
        assert_eq!(config.backends.len(), 1);
        assert_eq!(config.backends[0].table.args, ["demo-server"]);
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        let text = with_all_settings(SHIPPED);
        let mut report = Report::default();
        // Not imported, as there is no such file.
        let without = text.replace("\nimport_backends", "\n#");
        let config = read("proxy.toml", &without, &world(), &mut report).unwrap();
        assert_eq!(report.to_string(), "");

        let document: toml::Table = text.parse().unwrap();
        let mut shown = 0;
        fn compare(path: &str, keys: Vec<KeyDoc>, tables: &[&toml::Table], shown: &mut usize) {
            for key in keys {
                let path = join(path, key.name);
                let values: Vec<&toml::Value> =
                    tables.iter().filter_map(|table| table.get(key.name)).collect();
                assert!(!values.is_empty(), "proxy.toml does not show {path}");
                *shown += 1;
                let inner = (key.table)();
                if !inner.is_empty() {
                    let tables: Vec<&toml::Table> = values
                        .iter()
                        .flat_map(|value| match value {
                            toml::Value::Array(tables) => tables.iter().collect(),
                            one => vec![*one],
                        })
                        .map(|value| value.as_table().unwrap())
                        .collect();
                    compare(&path, inner, &tables, shown);
                } else if let (Some(default), false) = (&key.default, key.needed) {
                    let default: toml::Table = format!("x = {default}").parse().unwrap();
                    // Examples beside an empty default, and beside the first backend's transport.
                    let is_empty = matches!(&default["x"], toml::Value::Array(a) if a.is_empty())
                        || matches!(&default["x"], toml::Value::Table(t) if t.is_empty());
                    assert!(
                        is_empty || values.contains(&&default["x"]),
                        "proxy.toml shows {path} = {values:?}, the default is {default}"
                    );
                }
            }
        }
        compare("", Root::keys(), &[&document], &mut shown);
        assert!(shown > 40, "{shown} keys compared");
        assert_eq!(config.backends.len(), 4);
    }

    #[test]
    fn the_shipped_file_says_what_the_code_says() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let comments: Vec<&str> =
            SHIPPED.lines().filter_map(|line| line.strip_prefix("# ")).collect();
        let comments = words(&comments.join(" "));
        fn walk(path: &str, keys: Vec<KeyDoc>, check: &mut dyn FnMut(&str, &KeyDoc)) {
            for key in keys {
                let path = join(path, key.name);
                check(&path, &key);
                walk(&path, (key.table)(), check);
            }
        }
        walk("", Root::keys(), &mut |path, key| {
            assert!(!key.accepts.is_empty());
            // The two headings are worded for the place where they stand.
            if !matches!(path, "proxy" | "backends") {
                let manual = words(&key.manual.concat());
                assert!(comments.contains(&manual), "proxy.toml does not say of {path}: {manual}");
            }
        });
    }
}
