//! Owns: every key of the configuration file, with its kind, default and manual text.
//! Never: the file as a whole, or what values mean together (`compile`).
//! Next: `setting`, how one value is read.
//!
//! To add a key: one line in `tables!` below, with the text of the manual, and the same in
//! `proxy.toml`, which a test compares.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::foreign;
use crate::control::schema::{self, Schema};
use crate::control::setting::{
    AdminToolsKey, Args, AuditKey, AuthKind, Count, EnvValue, Fraction, GiveUp, Glob, Inherit,
    IsolationKey, KeyDoc, Millis, Node, PerKey, ProtocolKey, Reader, ScopeKey, Seconds, Secret,
    Setting, Share, SignedBy, Transport, Value, join, masked,
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
        pub(in crate::control) struct $table { $($(#[doc = $doc])+ pub(in crate::control) $key: $kind,)* }

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
        /// What is done once instead of several times, and how soon.
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
        /// It has 1 to 8 characters.
        separator: String = "__".to_owned();
        /// The instructions told to clients. Default: those of the backends, each under its name.
        instructions: Option<String> = None;
        /// Event loops, one thread each, 1 to 512. Default: one per available core.
        workers: Option<Count<1, 512>> = None;
        /// After SIGTERM, calls in flight may go on for this long but for its last tenth, one second
        /// at most, which is for backends to end.
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
        /// jwt: how far the clocks of issuer and proxy may be apart. An hour at most.
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
        /// Bytes that a whole request may have; beyond it 413, before it is read. From 1 KiB to 1 GiB.
        max_request_bytes: Count<1024, 1_073_741_824> = Count(limits::BODY_BYTES_MAX as u64);
        /// A token that opens everything: /mcp, /admin and the proxy's own tools. Without it and
        /// without [auth] those two are open when host is a loopback address, else closed.
        admin_token: Option<Secret> = None;
    }

    /// `[performance]`: what is done once instead of several times, and how soon.
    table PerformanceTable needs [], {
        /// Identical calls of one caller at the same time run once, and all get the answer: reads,
        /// calls of tools that are annotated read-only or idempotent or whose answers are cached.
        coalesce_requests: bool = false;
        /// Tools for which that holds too, by the names that clients see; patterns as in
        /// expose_tools.
        coalesce_tools: Vec<Glob> = Vec::new();
        /// Microseconds that a worker with at most one call in flight looks for its answer, or for the
        /// next call, before it sleeps, from which it takes long to be woken. It does so after waits that
        /// were as short, and gives way to whoever wants its core. 0: it sleeps at once.
        busy_poll_us: Count<0, 1000> = Count(100);
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
        /// Unique; A-Z a-z 0-9 _ - . without the separator; not "proxy". 64 characters at most.
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
        /// executable, wherever it lies and whatever its file is called.
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
        /// http: pooled connections at most, per worker; 65,536 is the highest.
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
        /// A start that takes longer is given up and tried again. An hour at most.
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
        /// Of several failovers of one backend the lowest is asked first; 0 to 1,000.
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
        /// The first pause; each following one doubles, give or take some chance. An hour at most.
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
        /// With "principal" requests is 1,024 at most.
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
        /// They are 1 to 1,000.
        permitted_calls_in_half_open: Count<1, 1_000> = Count(3);
        /// The last calls that are looked at; 10,000 at most.
        window: Count<1, 10_000> = Count(100);
        /// Instead of window: those of the last so many seconds are looked at.
        window_seconds: Option<Millis<1, 86_400_000>> = None;
    }

    /// `[backends.retry]`: makes a failed attempt again.
    table RetryTable needs [], {
        /// Repetitions of one call at most, 0 to 100.
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
        /// Further attempts of one call at most, 0 to 10. Where retry.budget_percent is set, they are
        /// taken from it.
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
pub(in crate::control) const MOVED: &[(&str, &str, &str)] = &[
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
