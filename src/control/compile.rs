//! Owns: the way from a configuration to a [`Plan`], the same for start, `--check` and reload, and
//! every rule about what values mean together.
//! Never: reading the configuration's text (`config`); name look-ups; starting anything.
//! Next: `child`.
//!
//! Header fields: RFC 9110 §5.1 (names), §5.5 (values), §7.6.1 (hop-by-hop). URLs: RFC 3986.

mod address;
mod child;
mod tls;

pub(super) use address::Url;
use address::{host, listen_ip, origin};
pub(super) use child::set_own_executable;
use child::{environment, is_found, own_executable};
pub(super) use tls::TlsFiles;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::config::{BackendTable, NamedBackend, ProxyConfig};
use super::diagnose::{Place, Report, whole_file};
use super::setting::{GiveUp, IsolationKey, ProtocolKey, Setting, Transport, join};
use crate::limits;
use crate::middleware::Chain;
use crate::middleware::around::Around;
use crate::middleware::outlier::Ward;
use crate::plan::{
    self, BackendId, BackendPlan, HostRule, HttpPlan, Isolation, ListenPlan, OriginRule, Plan,
    Protocol, RestartPlan, SsePlan, StdioPlan, TransportPlan,
};

/// Longest name that model APIs accept for a tool.
const TOOL_NAME_CHARS_MAX: usize = 64;
/// Room that a prefix should leave for a backend's own names.
const OWN_NAME_CHARS: usize = 32;
/// Longest name of a backend: what a tool name may have as a whole.
const BACKEND_NAME_CHARS_MAX: usize = TOOL_NAME_CHARS_MAX;
/// Longest separator: every name of every list carries it.
const SEPARATOR_CHARS_MAX: usize = 8;

/// Makes the plan, or adds what stands in the way of it to the report.
///
/// Keys that the report blames already are passed over, so that a fault has no echo. Blocks: it
/// reads certificate files.
pub(super) fn compile(config: &ProxyConfig, report: &mut Report) -> Option<Plan> {
    let mut next = 0;
    compile_numbered(config, report, &mut |_| {
        next += 1;
        (next <= limits::BACKENDS_MAX).then(|| plan::number(next - 1, 0))
    })
}

/// As [`compile`], where `number` gives each enabled backend its number, by name and in the order
/// of the file; `None` = there is no room for it.
pub(super) fn compile_numbered(
    config: &ProxyConfig,
    report: &mut Report,
    number: &mut dyn FnMut(&str) -> Option<BackendId>,
) -> Option<Plan> {
    let before = report.faults.len();
    let mut compiler = Compiler { config, report };
    let proxy = &config.proxy;
    compiler.text("proxy.name", &proxy.name);
    compiler.text("proxy.version", &proxy.version);
    compiler.separator();
    let listen = compiler.listen();
    compiler.performance();
    let access = compiler.access();
    let watch = compiler.watch();
    let rate = proxy.rate_limit.as_ref().map(|table| compiler.rate("proxy.rate_limit", table));
    let backends = compiler.backends(number);
    if report.faults.len() > before || !report.is_ok() {
        return None;
    }
    Some(Plan {
        name: proxy.name.as_str().into(),
        version: proxy.version.as_str().into(),
        instructions: proxy.instructions.clone(),
        separator: proxy.separator.clone(),
        workers: workers(config),
        sessions_max: proxy.max_sessions.0 as usize,
        session_idle: proxy.session_idle_seconds.0,
        shutdown_timeout: proxy.shutdown_timeout_seconds.0,
        body_bytes_max: config.security.max_request_bytes.0 as usize,
        busy_poll: std::time::Duration::from_micros(config.performance.busy_poll_us.0),
        rate,
        access: access?,
        listen: listen?,
        watch,
        backends: backends.into_iter().map(Arc::new).collect(),
    })
}

/// Event loops that there will be.
pub(super) fn workers(config: &ProxyConfig) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    config.proxy.workers.map_or_else(cores, |workers| workers.0 as usize)
}

pub(super) struct Compiler<'a> {
    pub(super) config: &'a ProxyConfig,
    pub(super) report: &'a mut Report,
}

impl Compiler<'_> {
    pub(super) fn place(&self, place: Option<Place>) -> Place {
        place.unwrap_or_else(|| whole_file(&self.config.file))
    }

    /// Adds a fault at the value of a key, unless reading it has failed already.
    pub(super) fn fault(&mut self, path: &str, message: impl Into<String>) {
        if !self.report.blames(path) {
            let place = self.place(self.config.spots.value(path));
            self.report.fault(place, path, message);
        }
    }

    /// Adds a fault at the key itself.
    pub(super) fn key_fault(&mut self, path: &str, message: impl Into<String>) {
        if !self.report.blames(path) {
            let place = self.place(self.config.spots.key(path));
            self.report.fault(place, path, message);
        }
    }

    pub(super) fn warning(&mut self, path: &str, message: impl Into<String>) {
        let place = self.place(self.config.spots.value(path));
        self.report.warning(place, path, message);
    }

    /// A name for people: neither empty nor with control characters.
    pub(super) fn text(&mut self, path: &str, text: &str) {
        if text.trim().is_empty() {
            self.fault(path, "found an empty string, accepted: any other");
        } else if text.chars().any(char::is_control) {
            self.fault(path, "found a control character, accepted: text");
        }
    }

    fn separator(&mut self) {
        let separator = &self.config.proxy.separator;
        let path = "proxy.separator";
        let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
        if separator.is_empty() || separator.len() > SEPARATOR_CHARS_MAX {
            let message = format!(
                "found {} characters, accepted: 1 to {SEPARATOR_CHARS_MAX}",
                separator.chars().count()
            );
            self.fault(path, message);
        } else if !separator.chars().all(legal) {
            self.fault(path, "accepted: visible ASCII characters except \" and \\");
        } else if !separator.chars().all(in_tool_names) {
            let message = format!(
                "{separator:?} leaves A-Za-z0-9_-, the characters that model APIs accept in tool \
                 names"
            );
            self.warning(path, message);
        }
    }

    fn listen(&mut self) -> Option<ListenPlan> {
        let listen = &self.config.proxy.listen;
        let ip = listen_ip(&listen.host);
        if ip.is_none() {
            let message = format!(
                "found {:?}, accepted: an IP address of this machine, \"0.0.0.0\" or \"::\" for \
                 all of them, or \"localhost\"",
                listen.host
            );
            self.fault("proxy.listen.host", message);
        }
        let loopback = ip.is_some_and(|ip| ip.is_loopback());
        let origins = match &listen.allowed_origins {
            Some(list) => OriginRule::Listed(self.each("allowed_origins", list, origin)),
            None if loopback => OriginRule::Loopback,
            None => OriginRule::Listed(Vec::new()),
        };
        let hosts = match &listen.allowed_hosts {
            Some(list) => HostRule::Listed(self.each("allowed_hosts", list, host)),
            None if loopback => HostRule::Loopback,
            None => HostRule::Any,
        };
        let addr = SocketAddr::new(ip?, listen.port.0 as u16);
        if !loopback && self.config.auth.is_none() {
            let message = format!(
                "{} can be reached from other machines, and whoever reaches it may call every \
                 backend: there is no authentication ([auth])",
                addr.ip()
            );
            self.warning("proxy.listen.host", message);
        }
        let public_url = self.public_url();
        let tls = self.listen_tls()?;
        Some(ListenPlan { addr, origins, hosts, public_url, tls })
    }

    /// The elements of a list of `[proxy.listen]`, each brought into its one form.
    fn each(
        &mut self,
        key: &str,
        list: &[String],
        form: impl Fn(&str) -> Result<String, &'static str>,
    ) -> Vec<String> {
        let mut formed = Vec::new();
        for (index, item) in list.iter().enumerate() {
            match form(item) {
                Ok(item) => formed.push(item),
                Err(accepted) => {
                    let message = format!("found {item:?}, accepted: {accepted}");
                    self.fault(&format!("proxy.listen.{key}[{index}]"), message);
                }
            }
        }
        formed
    }

    fn backends(&mut self, number: &mut dyn FnMut(&str) -> Option<BackendId>) -> Vec<BackendPlan> {
        let config = self.config;
        let mut plans = Vec::new();
        let mut names: Vec<&NamedBackend> = Vec::new();
        let mut prefixes: Vec<(String, &NamedBackend)> = Vec::new();
        for backend in &config.backends {
            let name_ok = self.backend_name(&format!("{}.name", backend.path), &backend.table.name);
            match names.iter().find(|other| other.table.name == backend.table.name) {
                Some(other) if name_ok => {
                    let place = self.place(config.spots.value(&other.path));
                    let message = format!(
                        "{:?} is the name of another backend ({place}), accepted: one that is not \
                         taken",
                        backend.table.name
                    );
                    self.fault(&format!("{}.name", backend.path), message);
                }
                _ => names.push(backend),
            }
            let prefix = self.prefix(backend);
            if backend.table.enabled && backend.table.role().is_none() {
                self.prefix_is_free(backend, &prefix, &prefixes);
                prefixes.push((prefix.clone(), backend));
            }
            let transport = self.transport(backend);
            let restart = self.restart(backend);
            self.cautions(backend);
            let id = match backend.table.enabled {
                true => number(&backend.table.name),
                false => Some(0),
            };
            let Some(id) = id else {
                let message = format!(
                    "one backend too many, accepted: {} at once, those that just leave too",
                    limits::BACKENDS_MAX
                );
                self.fault(&format!("{}.name", backend.path), message);
                break;
            };
            let chain = self.chain(backend, id);
            let around = self.around(backend);
            if let (true, Some(transport)) = (backend.table.enabled, transport) {
                let table = &backend.table;
                plans.push(backend_plan(id, table, prefix, transport, restart, chain, around));
            }
        }
        self.roles(&mut plans);
        Ward::of(plans.iter_mut().filter_map(|plan| plan.around.outlier.as_mut()));
        if !config.backends.iter().any(|backend| backend.table.enabled) && self.report.is_ok() {
            self.warning("backends", "no backend is enabled: there is nothing to call");
        }
        plans
    }

    /// Checks a backend's name or prefix.
    fn backend_name(&mut self, path: &str, name: &str) -> bool {
        let separator = &self.config.proxy.separator;
        let legal = |c: char| in_tool_names(c) || c == '.';
        let message = if name.is_empty() {
            "found an empty string, accepted: A-Z a-z 0-9 _ - .".to_owned()
        } else if !name.chars().all(legal) {
            format!("found {name:?}, accepted: A-Z a-z 0-9 _ - .")
        } else if name.len() > BACKEND_NAME_CHARS_MAX {
            format!("found {} characters, accepted: {BACKEND_NAME_CHARS_MAX} at most", name.len())
        } else if name == "proxy" {
            "found \"proxy\", which is the proxy itself, accepted: any other name".to_owned()
        } else if !separator.is_empty() && name.contains(separator.as_str()) {
            format!("found {name:?}, accepted: a name without the separator {separator:?}")
        } else {
            return !self.report.blames(path);
        };
        self.fault(path, message);
        false
    }

    /// The prefix with the separator behind it; empty if own names are exposed as they are.
    fn prefix(&mut self, backend: &NamedBackend) -> String {
        let path = format!("{}.prefix", backend.path);
        let prefix = match backend.table.prefix.as_deref() {
            Some("") => return String::new(),
            Some(prefix) => {
                self.backend_name(&path, prefix);
                prefix
            }
            None => &backend.table.name,
        };
        let whole = format!("{prefix}{}", self.config.proxy.separator);
        if prefix.contains('.') && !self.report.blames(&backend.path) {
            let message = format!(
                "{prefix:?} leaves A-Za-z0-9_-, the characters that model APIs accept in tool names"
            );
            self.warning(&path, message);
        }
        if whole.len() > TOOL_NAME_CHARS_MAX - OWN_NAME_CHARS {
            let message = format!(
                "{whole:?} leaves {} of the {TOOL_NAME_CHARS_MAX} characters that model APIs \
                 accept in tool names",
                TOOL_NAME_CHARS_MAX.saturating_sub(whole.len())
            );
            self.warning(&path, message);
        }
        whole
    }

    /// Two backends must not be able to claim one name.
    fn prefix_is_free(
        &mut self,
        backend: &NamedBackend,
        prefix: &str,
        others: &[(String, &NamedBackend)],
    ) {
        if prefix.is_empty() {
            return;
        }
        let clash = others.iter().find(|(other, _)| {
            !other.is_empty() && (other.starts_with(prefix) || prefix.starts_with(other.as_str()))
        });
        if let Some((other, _)) = clash {
            let key = format!("{}.prefix", backend.path);
            let key =
                if self.config.spots.has(&key) { key } else { format!("{}.name", backend.path) };
            let message = format!(
                "names would begin with {prefix:?} and those of another backend with {other:?}, \
                 accepted: prefixes of which none begins another"
            );
            self.fault(&key, message);
        }
    }

    /// Refuses the keys of a table that do not go together with its others.
    pub(super) fn refuse_foreign<T: Setting>(&mut self, path: &str, table: &T) {
        for key in T::keys() {
            let path = join(path, key.name);
            if let Some(why) = table.refuses(key.name)
                && self.config.spots.has(&path)
            {
                self.key_fault(&path, why);
            }
        }
    }

    fn transport(&mut self, backend: &NamedBackend) -> Option<TransportPlan> {
        // Which keys belong there is only known if the transport is.
        if self.report.blames(&format!("{}.transport", backend.path)) {
            return None;
        }
        self.refuse_foreign(&backend.path, &backend.table);
        if let (Transport::Sse, ProtocolKey::Modern) =
            (backend.table.transport, backend.table.protocol)
        {
            let message = "\"modern\" is not spoken over event streams (transport = \"sse\")";
            self.key_fault(&format!("{}.protocol", backend.path), message.to_owned());
        }
        match backend.table.transport {
            Transport::Stdio => self.stdio(backend).map(TransportPlan::Stdio),
            Transport::Http | Transport::Sse => self.http(backend).map(TransportPlan::Http),
        }
    }

    fn stdio(&mut self, backend: &NamedBackend) -> Option<StdioPlan> {
        let table = &backend.table;
        let path = |key: &str| format!("{}.{key}", backend.path);
        let command = self.needed(&path("command"), table.command.as_deref())?;
        if command.is_empty() || command.contains('\0') {
            self.fault(&path("command"), "accepted: the name or path of a program");
        }
        for (index, arg) in table.args.iter().enumerate() {
            if arg.contains('\0') {
                self.fault(&path(&format!("args[{index}]")), "found a NUL character");
            }
        }
        for (name, value) in &table.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                self.key_fault(&path("env"), format!("found the variable name {name:?}"));
            } else if value.0.expose().contains('\0') {
                self.fault(&join(&path("env"), name), "found a NUL character");
            }
        }
        let env = environment(table, std::env::vars_os());
        let cwd = table.cwd.as_ref().map(|cwd| backend.folder.join(cwd));
        if let Some(cwd) = &cwd
            && !cwd.is_dir()
        {
            self.warning(&path("cwd"), format!("there is no folder {}", cwd.display()));
        }
        let command = own_executable(command).unwrap_or_else(|| command.to_owned());
        if table.enabled && !is_found(&command, cwd.as_deref(), &env) {
            self.warning(&path("command"), format!("there is no program {command:?} now"));
        }
        Some(StdioPlan {
            command,
            args: table.args.clone(),
            env,
            cwd,
            children_max: table.max_children.map_or(limits::CHILDREN_MAX, |max| max.0 as usize),
            idle_stop: table.idle_stop_seconds.0,
        })
    }

    fn http(&mut self, backend: &NamedBackend) -> Option<HttpPlan> {
        let table = &backend.table;
        let path = |key: &str| format!("{}.{key}", backend.path);
        let header_lines = self.header_lines(backend);
        let url = self.needed(&path("url"), table.url.as_deref())?;
        let url = match Url::parse(url) {
            Ok(url) => url,
            Err(reason) => {
                // The URL itself may hold a key that came from the environment.
                self.fault(&path("url"), format!("{reason}, accepted: http[s]://host[:port]/path"));
                return None;
            }
        };
        let mut hasher = DefaultHasher::new();
        let tls = match url.https {
            true => Some(self.tls(backend, &mut hasher)?),
            false => {
                let local = url.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                if table.bearer_token.is_some() && !local && url.host != "localhost" {
                    self.warning(&path("bearer_token"), "sent without encryption: the url is http");
                }
                None
            }
        };
        let authority = url.authority();
        let connections_max = table.max_connections.0 as usize;
        let idle = table.idle_seconds.0;
        let forward_auth = self.forward_auth(backend);
        let sse = SsePlan {
            only: table.transport == Transport::Sse,
            streams_max: table.max_children.map_or(limits::SSE_STREAMS_MAX, |max| max.0 as usize),
            idle_stop: table.idle_stop_seconds.0,
        };
        (url.https, &authority, &url.target, &header_lines, sse.only, forward_auth)
            .hash(&mut hasher);
        Some(HttpPlan {
            authority,
            host: url.host,
            port: url.port,
            target: url.target,
            header_lines: header_lines?,
            tls,
            forward_auth,
            connections_max,
            idle,
            sse,
            fingerprint: hasher.finish(),
        })
    }

    /// The value of a key without which this transport cannot be.
    fn needed<'v>(&mut self, path: &str, value: Option<&'v str>) -> Option<&'v str> {
        if value.is_none() {
            self.fault(path, "missing, and there is no default");
        }
        value
    }

    /// Configured headers as they are sent, each line ended.
    fn header_lines(&mut self, backend: &NamedBackend) -> Option<String> {
        let table = &backend.table;
        let mut lines = String::new();
        let mut seen = HashSet::new();
        let before = self.report.faults.len();
        for (name, value) in &table.headers {
            let path = join(&format!("{}.headers", backend.path), name);
            let lower = name.to_ascii_lowercase();
            if name.is_empty() || !name.bytes().all(is_token) {
                let message = format!("found {name:?}, accepted: a header name as RFC 9110 has it");
                self.key_fault(&path, message);
            } else if let Some(reason) = refused_header(&lower) {
                self.key_fault(&path, format!("not accepted: {reason}"));
            } else if !seen.insert(lower.clone()) {
                self.key_fault(&path, "this header is there twice, accepted: once");
            } else if lower == "authorization" && table.bearer_token.is_some() {
                self.key_fault(&path, "bearer_token is set too, accepted: one of them");
            }
            let value = value.expose();
            if value.bytes().any(|b| !matches!(b, b' '..=b'~' | b'\t')) {
                self.fault(&path, "found a line break or a character that is not ASCII");
            } else if value.trim() != value {
                self.fault(&path, "found blanks at the beginning or the end");
            }
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(token) = &table.bearer_token {
            let token = token.expose();
            if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
                let path = format!("{}.bearer_token", backend.path);
                self.fault(&path, "accepted: visible ASCII characters, without blanks");
            }
            lines.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        (self.report.faults.len() == before).then_some(lines)
    }

    fn tls(
        &mut self,
        backend: &NamedBackend,
        hasher: &mut DefaultHasher,
    ) -> Option<Arc<rustls::ClientConfig>> {
        let path = |key: &str| format!("{}.tls.{key}", backend.path);
        let table = &backend.table.tls;
        if table.insecure_skip_verify {
            let message = "any certificate is accepted: whoever is on the way can read and change \
                           every call";
            self.warning(&path("insecure_skip_verify"), message);
            if table.ca.is_some() {
                self.fault(&path("ca"), "insecure_skip_verify is set too, accepted: one of them");
            }
        }
        match (&table.cert, &table.key) {
            (Some(_), None) => self.fault(&path("cert"), "set without key, accepted: both"),
            (None, Some(_)) => self.fault(&path("key"), "set without cert, accepted: both"),
            _ => {}
        }
        let files = TlsFiles::read(table, &backend.folder);
        let client = files.and_then(|files| {
            files.hash(hasher);
            files.client()
        });
        match client {
            Ok(client) => Some(client),
            Err((key, message)) => {
                self.fault(&path(key), message);
                None
            }
        }
    }

    fn restart(&mut self, backend: &NamedBackend) -> RestartPlan {
        let table = &backend.table.restart;
        if table.initial_ms.0 > table.max_ms.0 {
            let key = if self.config.spots.has(&format!("{}.restart.max_ms", backend.path)) {
                "max_ms"
            } else {
                "initial_ms"
            };
            let message = format!(
                "initial_ms is {} and max_ms {}, accepted: the first no longer than the longest",
                table.initial_ms.0, table.max_ms.0
            );
            self.fault(&format!("{}.restart.{key}", backend.path), message);
        }
        RestartPlan {
            initial: std::time::Duration::from_millis(table.initial_ms.0),
            max: std::time::Duration::from_millis(table.max_ms.0),
            give_up_after: match table.give_up_after {
                GiveUp::Never => None,
                GiveUp::After(attempts) => Some(attempts),
            },
        }
    }
}

fn backend_plan(
    id: BackendId,
    table: &BackendTable,
    prefix: String,
    transport: TransportPlan,
    restart: RestartPlan,
    chain: Chain,
    around: Around,
) -> BackendPlan {
    let isolation = match (table.isolation, table.transport) {
        (Some(IsolationKey::Session), _) | (None, Transport::Http | Transport::Sse) => {
            Isolation::Session
        }
        (Some(IsolationKey::Shared), _) | (None, Transport::Stdio) => Isolation::Shared,
    };
    let seconds = table.timeout.seconds.map(|seconds| seconds.0);
    BackendPlan {
        id,
        name: table.name.as_str().into(),
        prefix,
        transport,
        isolation,
        protocol: match table.protocol {
            ProtocolKey::Auto => Protocol::Auto,
            ProtocolKey::Legacy => Protocol::Legacy,
            ProtocolKey::Modern => Protocol::Modern,
        },
        startup_timeout: table.startup_timeout_seconds.0,
        restart,
        call_timeout: seconds.unwrap_or(limits::CALL_TIMEOUT),
        request_timeout: seconds.unwrap_or(limits::REQUEST_TIMEOUT),
        chain,
        unlisted: table.role().is_some(),
        around,
    }
}

fn in_tool_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Why a header must not be configured.
pub(super) fn refused_header(lower: &str) -> Option<&'static str> {
    match lower {
        "host" => Some("it follows from the url"),
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "upgrade"
        | "expect" => Some("it belongs to one connection, which is the proxy's"),
        "accept" | "accept-encoding" | "last-event-id" => Some("the proxy sets it"),
        _ if lower.starts_with("content-") => Some("it follows from the message"),
        _ if lower.starts_with("mcp-") => Some("the proxy sets it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
