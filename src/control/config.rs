//! Owns: every key of the configuration file: its type, default, manual text and strict reading.
//! Never: what a value means together with others (`compile`).
//! Next: `import`, for servers that an `mcp.json` names.
//!
//! To add a key: one line in [`tables!`] below, with the text of the manual, and the same in
//! `proxy.toml`, which a test compares. Reading goes on behind a fault, so that one run shows all.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::compile;
use super::diagnose::{Diagnosis, Report, Source, Spots, nearest, whole_file};
use super::import;
use crate::limits;

/// Declares tables: struct, defaults, manual and reader from one list of keys.
///
/// `table Name needs [a], { /// manual ⏎ key: Type = default; }` becomes the struct `Name` with a
/// field per key, `Default`, and [`Setting`], whose `read` refuses keys that are not in the list
/// and a table without a key of `needs`, and whose `keys` tells the list to tests and tools.
macro_rules! tables {
    ($($(#[doc = $about:literal])+ table $table:ident needs $needs:expr, {
        $($(#[doc = $doc:literal])+ $key:ident: $kind:ty = $default:expr;)*
    })*) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub(super) struct $table { $($(#[doc = $doc])+ pub(super) $key: $kind,)* }

        impl Default for $table {
            fn default() -> Self { $table { $($key: $default,)* } }
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
                    match key.name.as_str() {
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
            fn show(&self) -> Option<String> { None }
            fn keys() -> Vec<KeyDoc> {
                let table = $table::default();
                let needs: &[&str] = &$needs;
                vec![$(KeyDoc {
                    name: stringify!($key),
                    manual: &[$($doc),*],
                    accepts: <$kind as Setting>::accepts(),
                    default: table.$key.show(),
                    needed: needs.contains(&stringify!($key)),
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
        /// Client sessions at most; beyond it a new one is answered with 503.
        max_sessions: Count<1, 10_000_000> = Count(limits::SESSIONS_MAX as u64);
        /// A client session without a request or an open stream for this long ends.
        session_idle_seconds: Seconds<1, 31_536_000> = Seconds(limits::SESSION_IDLE);
        /// A .mcp.json or mcp.json file whose servers are added as backends; of two with the same
        /// name the one in this file wins. A relative path starts at this file's folder.
        import_backends: Option<String> = None;
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
    }

    /// `[[backends]]`: one server behind the proxy.
    table BackendTable needs ["name", "transport"], {
        /// Unique; A-Z a-z 0-9 _ - . without the separator; not "proxy".
        name: String = String::new();
        /// Stands, with the separator, before the backend's own names; "" exposes them as they
        /// are. Default: the name.
        prefix: Option<String> = None;
        /// Whether the backend is used at all.
        enabled: bool = true;
        /// "stdio" starts a command and speaks over its standard input and output, "http" calls a
        /// server (Streamable HTTP).
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
        /// http: how an https server is verified, and how the proxy identifies itself to it.
        tls: TlsTable = TlsTable::default();
        /// http: pooled connections at most, per worker.
        max_connections: Count<1, 65_536> = Count(limits::POOL_CONNECTIONS_MAX as u64);
        /// http: a pooled connection without a call for this long is closed.
        idle_seconds: Seconds<1, 86_400> = Seconds(limits::POOL_IDLE);
        /// "session" gives every client session its own backend session (http) or child (stdio),
        /// "shared" lets all clients share one. Default: "session" for http, "shared" for stdio.
        isolation: Option<IsolationKey> = None;
        /// A start that takes longer is given up and tried again.
        startup_timeout_seconds: Seconds<1, 3_600> = Seconds(limits::STARTUP_TIMEOUT);
        /// stdio: children at most, where each session has its own.
        max_children: Count<1, 100_000> = Count(limits::CHILDREN_MAX as u64);
        /// stdio: a session's own child without a call for this long is stopped; the next call
        /// starts it again.
        idle_stop_seconds: Seconds<1, 31_536_000> = Seconds(limits::CHILD_IDLE_STOP);
        /// Pauses between attempts to bring the backend up.
        restart: RestartTable = RestartTable::default();
        /// How long an answer may take.
        timeout: TimeoutTable = TimeoutTable::default();
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
    }
}

/// Keys that people know from elsewhere, or that had another name: table, found, right.
const MOVED: &[(&str, &str, &str)] = &[
    ("", "servers", "[[backends]]"),
    ("", "mcpServers", "[[backends]]; proxy.import_backends reads such a file"),
    ("", "backend", "[[backends]]"),
    ("", "server", "[proxy]"),
    ("", "listen", "[proxy.listen]"),
    ("proxy", "bind", "proxy.listen.host and proxy.listen.port"),
    ("proxy", "namespace_separator", "separator"),
    ("proxy", "threads", "workers"),
    ("proxy.listen", "bind", "host and port"),
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
    pub(super) backends: Vec<NamedBackend>,
    /// Where each key stands.
    pub(super) spots: Spots,
    /// For what has no place of its own.
    pub(super) file: String,
    warnings: Vec<Diagnosis>,
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
        match read_text(path) {
            Ok(text) => ProxyConfig::check(&name, &text, &World::real(folder)),
            Err(fault) => Err(whole_file_fault(&name, fault)),
        }
    }

    /// Reads and checks a text; relative paths in it start at the working directory.
    ///
    /// Errors: all faults of the text at once, each with its place in `proxy.toml`.
    pub fn parse(text: &str) -> Result<ProxyConfig, Report> {
        ProxyConfig::check("proxy.toml", text, &World::real(PathBuf::new()))
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
        config.finish(report)
    }

    /// Listens there instead of where the file says.
    pub fn listen_on(&mut self, addr: SocketAddr) {
        self.proxy.listen.host = addr.ip().to_string();
        self.proxy.listen.port = Count(addr.port().into());
    }

    /// What runs but deserves a look.
    pub fn warnings(&self) -> &[Diagnosis] {
        &self.warnings
    }

    /// A configuration in which nothing is set.
    pub(super) fn empty(file: &str) -> ProxyConfig {
        ProxyConfig {
            proxy: ProxyTable::default(),
            backends: Vec::new(),
            spots: Spots::default(),
            file: file.to_owned(),
            warnings: Vec::new(),
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
        compile::compile(&self, &mut report);
        report.sort();
        if report.is_ok() {
            self.warnings = report.warnings;
            Ok(self)
        } else {
            Err(report)
        }
    }
}

/// Reads a text as far as it can be understood; every fault goes to the report. `None` if not even
/// its tables can be told apart.
fn read(name: &str, text: &str, world: &World, report: &mut Report) -> Option<ProxyConfig> {
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
        return None;
    }
    let mut reader = Reader { source: &source, world, report, spots: &mut config.spots };
    let document = Node { offset: 0, value: table(document.get_ref()) };
    let root = Root::read(&document, "", &mut reader).unwrap_or_default();
    config.proxy = root.proxy;
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

// ---------------------------------------------------------------------------------------------
// Reading
// ---------------------------------------------------------------------------------------------

/// A value of the file, from TOML or JSON, and where it stands.
pub(super) struct Node {
    /// Byte offset in the source.
    pub(super) offset: usize,
    pub(super) value: Value,
}

/// A key and where it stands.
pub(super) struct KeyAt {
    pub(super) name: String,
    pub(super) offset: usize,
}

/// What a file can hold.
pub(super) enum Value {
    Text(String),
    /// `None`: beyond 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Bool(bool),
    Date,
    /// JSON alone.
    Null,
    Array(Vec<Node>),
    Table(Vec<(KeyAt, Node)>),
}

impl Node {
    /// The value in words, for a fault; `secret` values are not quoted.
    fn found(&self, secret: bool) -> String {
        const QUOTED_CHARS_MAX: usize = 60;
        match &self.value {
            Value::Text(_) if secret => "a string".to_owned(),
            Value::Integer(_) | Value::Float(_) if secret => "a number".to_owned(),
            Value::Text(text) if text.chars().count() > QUOTED_CHARS_MAX => {
                format!("\"{}...\"", text.chars().take(QUOTED_CHARS_MAX).collect::<String>())
            }
            Value::Text(text) => toml_text(text),
            Value::Integer(Some(number)) => number.to_string(),
            Value::Integer(None) => "an integer beyond 64 bits".to_owned(),
            Value::Float(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Date => "a date".to_owned(),
            Value::Null => "null".to_owned(),
            Value::Array(_) => "an array".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        }
    }
}

fn table(table: &DeTable<'_>) -> Value {
    let mut entries: Vec<(KeyAt, Node)> = table
        .iter()
        .map(|(key, value)| {
            let name = key.get_ref().to_string();
            (KeyAt { name, offset: key.span().start }, node(value))
        })
        .collect();
    entries.sort_by_key(|(key, _)| key.offset);
    Value::Table(entries)
}

/// Nesting is bounded by the parser.
fn node(spanned: &toml::Spanned<DeValue<'_>>) -> Node {
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(n) => Value::Integer(i64::from_str_radix(n.as_str(), n.radix()).ok()),
        DeValue::Float(n) => Value::Float(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => Value::Array(items.iter().map(node).collect()),
        DeValue::Table(inner) => table(inner),
    };
    Node { offset: spanned.span().start, value }
}

/// What a setting's reader works with.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) world: &'a World,
    pub(super) report: &'a mut Report,
    pub(super) spots: &'a mut Spots,
}

impl Reader<'_> {
    /// Adds a fault at a byte of the source.
    pub(super) fn fault(&mut self, offset: usize, path: &str, message: impl Into<String>) {
        self.report.fault(self.source.place(offset), path, message);
    }

    /// Adds the fault that a value is not of the kind that the key takes.
    fn refuse<T: Setting>(&mut self, node: &Node, path: &str) {
        let message = format!("found {}, accepted: {}", node.found(T::SECRET), T::accepts());
        self.fault(node.offset, path, message);
    }

    /// Notes where a key stands.
    pub(super) fn note(&mut self, path: &str, key: &KeyAt, node: &Node) {
        self.spots.set(path, self.source.place(key.offset), self.source.place(node.offset));
    }

    /// Adds the fault that a key is not known, with what may have been meant.
    fn unknown(&mut self, key: &KeyAt, path: &str, known: &[KeyDoc]) {
        let name = key.name.as_str();
        let table = parent(path);
        let moved =
            MOVED.iter().find(|(of, from, _)| *of == without_indexes(table) && *from == name);
        let hint = if let Some((_, _, right)) = moved {
            format!("unknown key, the right one is {right}")
        } else if let Some(near) = nearest(name, known.iter().map(|key| key.name)) {
            format!("unknown key, did you mean `{near}`?")
        } else if let Some(home) = home_of(name) {
            format!("unknown key here, it belongs into {home}")
        } else {
            let names: Vec<&str> = known.iter().map(|key| key.name).collect();
            format!("unknown key, accepted: {}", names.join(", "))
        };
        self.fault(key.offset, path, hint);
    }

    /// Adds a fault for each key of `needed` that a table does not have.
    fn missing(&mut self, at: &Node, path: &str, entries: &[(KeyAt, Node)], needed: &[&str]) {
        // In a file with broken lines the key may well be in one of them.
        if self.report.is_broken() {
            return;
        }
        for name in needed {
            if !entries.iter().any(|(key, _)| key.name == *name) {
                self.fault(at.offset, &join(path, name), "missing, and there is no default");
            }
        }
    }

    /// Puts in the variables of a text; `None` after a fault.
    pub(super) fn expand(&mut self, text: &str, offset: usize, path: &str) -> Option<String> {
        match expand(text, &*self.world.var) {
            Ok(text) => Some(text),
            Err(message) => {
                self.fault(offset, path, message);
                None
            }
        }
    }
}

/// The table in which a key of that name exists, if it is only one.
fn home_of(name: &str) -> Option<String> {
    fn search(name: &str, header: &str, keys: Vec<KeyDoc>, homes: &mut Vec<String>) {
        for key in keys {
            if key.name == name && !header.is_empty() {
                homes.push(if header == "backends" {
                    "[[backends]]".to_owned()
                } else {
                    format!("[{header}]")
                });
            }
            search(name, &join(header, key.name), (key.table)(), homes);
        }
    }
    let mut homes = Vec::new();
    search(name, "", Root::keys(), &mut homes);
    (homes.len() == 1).then(|| homes.remove(0))
}

/// The path of a key in a table.
pub(super) fn join(path: &str, name: &str) -> String {
    let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let name = if bare && !name.is_empty() { name.to_owned() } else { toml_text(name) };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn parent(path: &str) -> &str {
    path.rfind('.').map_or("", |dot| &path[..dot])
}

fn without_indexes(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            inside |= *c == '[';
            let keep = !inside;
            inside &= *c != ']';
            keep
        })
        .collect()
}

/// A text as TOML writes it, in one line.
fn toml_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Puts variables into a text: `${NAME}`, `${NAME:-used if unset or empty}`; `$${` is `${`.
///
/// `${env:NAME}`, as some editors write it, is the same as `${NAME}`. What a variable holds is not
/// looked into again.
fn expand(text: &str, var: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start]);
            out.push('{');
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let Some(end) = rest[start..].find('}') else {
            return Err("found `${` without `}`, accepted: ${NAME}, ${NAME:-default}, or $${ for \
                        the characters themselves"
                .to_owned());
        };
        let reference = &rest[start + 2..start + end];
        rest = &rest[start + end + 1..];
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (reference, None),
        };
        let name = name.strip_prefix("env:").unwrap_or(name);
        if !is_variable(name) {
            return Err(format!(
                "found `${{{reference}}}`, accepted: ${{NAME}}, ${{NAME:-default}}, or $${{ for \
                 the characters themselves"
            ));
        }
        match (var(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment variable {name} is not set; ${{{name}:-...}} gives a default"
                ));
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn is_variable(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

// ---------------------------------------------------------------------------------------------
// Kinds of values
// ---------------------------------------------------------------------------------------------

/// One key of a table, for the manual and for tests.
pub(super) struct KeyDoc {
    pub(super) name: &'static str,
    /// Its documentation, a line each, with the blank that follows the slashes.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual is compared in tests"))]
    pub(super) manual: &'static [&'static str],
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual is compared in tests"))]
    pub(super) accepts: String,
    /// As TOML; `None` = there is none, or it depends.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual is compared in tests"))]
    pub(super) default: Option<String>,
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual is compared in tests"))]
    pub(super) needed: bool,
    /// The keys of the table that it holds.
    pub(super) table: fn() -> Vec<KeyDoc>,
}

/// A kind of value.
pub(super) trait Setting: Sized {
    /// Whether faults must not quote it.
    const SECRET: bool = false;
    /// Whether it is a table of its own.
    const IS_TABLE: bool = false;
    /// What is accepted, in words.
    fn accepts() -> String;
    /// Reads it; `None` after a fault.
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self>;
    /// As TOML, secrets hidden; `None` if it is not set or is a table.
    fn show(&self) -> Option<String>;
    /// Its keys, if it is a table.
    fn keys() -> Vec<KeyDoc> {
        Vec::new()
    }
}

impl Setting for String {
    fn accepts() -> String {
        "a string".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.expand(text, node.offset, path),
            _ => {
                reader.refuse::<Self>(node, path);
                None
            }
        }
    }
    fn show(&self) -> Option<String> {
        Some(toml_text(self))
    }
}

impl Setting for bool {
    fn accepts() -> String {
        "true or false".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                reader.refuse::<Self>(node, path);
                None
            }
        }
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// An integer in `MIN..=MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count<const MIN: u64, const MAX: u64>(pub(super) u64);

impl<const MIN: u64, const MAX: u64> Setting for Count<MIN, MAX> {
    fn accepts() -> String {
        format!("an integer from {MIN} to {MAX}")
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Integer(Some(number)) => u64::try_from(number).ok(),
            _ => None,
        }
        .filter(|number| (MIN..=MAX).contains(number))
        .map(Count)
        .or_else(|| {
            reader.refuse::<Self>(node, path);
            None
        })
    }
    fn show(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

/// Seconds in `MIN..=MAX`, fractions allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seconds<const MIN: u64, const MAX: u64>(pub(super) Duration);

impl<const MIN: u64, const MAX: u64> Setting for Seconds<MIN, MAX> {
    fn accepts() -> String {
        format!("a number of seconds from {MIN} to {MAX}")
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        seconds(node)
            .filter(|time| (Duration::from_secs(MIN)..=Duration::from_secs(MAX)).contains(time))
            .map(Seconds)
            .or_else(|| {
                reader.refuse::<Self>(node, path);
                None
            })
    }
    fn show(&self) -> Option<String> {
        Some(self.0.as_secs_f64().to_string())
    }
}

/// Seconds, fractions allowed, in `MIN..=MAX` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Millis<const MIN: u64, const MAX: u64>(pub(super) Duration);

impl<const MIN: u64, const MAX: u64> Setting for Millis<MIN, MAX> {
    fn accepts() -> String {
        format!("a number of seconds from {} to {}", MIN as f64 / 1e3, MAX as f64 / 1e3)
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        seconds(node)
            .filter(|time| (Duration::from_millis(MIN)..=Duration::from_millis(MAX)).contains(time))
            .map(Millis)
            .or_else(|| {
                reader.refuse::<Self>(node, path);
                None
            })
    }
    fn show(&self) -> Option<String> {
        Some(self.0.as_secs_f64().to_string())
    }
}

fn seconds(node: &Node) -> Option<Duration> {
    let number = match node.value {
        Value::Integer(number) => number? as f64,
        Value::Float(number) => number,
        _ => return None,
    };
    Duration::try_from_secs_f64(number).ok()
}

impl<T: Setting> Setting for Option<T> {
    const SECRET: bool = T::SECRET;
    const IS_TABLE: bool = T::IS_TABLE;
    fn accepts() -> String {
        T::accepts()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        T::read(node, path, reader).map(Some)
    }
    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }
    fn keys() -> Vec<KeyDoc> {
        T::keys()
    }
}

/// Elements after a faulty one are read, so that all faults show.
impl<T: Setting> Setting for Vec<T> {
    const SECRET: bool = T::SECRET;
    fn accepts() -> String {
        match T::IS_TABLE {
            true => "an array of tables, each headed [[...]]".to_owned(),
            false => format!("an array, each element {}", T::accepts()),
        }
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Array(items) = &node.value else {
            reader.refuse::<Self>(node, path);
            return None;
        };
        let read = |(index, item): (usize, &Node)| {
            let path = format!("{path}[{index}]");
            let place = reader.source.place(item.offset);
            reader.spots.set(&path, place.clone(), place);
            T::read(item, &path, reader)
        };
        let read: Vec<Option<T>> = items.iter().enumerate().map(read).collect();
        read.into_iter().collect()
    }
    fn show(&self) -> Option<String> {
        if T::IS_TABLE {
            return None;
        }
        let items: Option<Vec<String>> = self.iter().map(T::show).collect();
        Some(format!("[{}]", items?.join(", ")))
    }
    fn keys() -> Vec<KeyDoc> {
        T::keys()
    }
}

impl<T: Setting> Setting for BTreeMap<String, T> {
    const SECRET: bool = T::SECRET;
    fn accepts() -> String {
        format!("a table, each value {}", T::accepts())
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Table(entries) = &node.value else {
            reader.refuse::<Self>(node, path);
            return None;
        };
        let mut map = BTreeMap::new();
        for (key, node) in entries {
            let path = join(path, &key.name);
            reader.note(&path, key, node);
            if let Some(value) = T::read(node, &path, reader) {
                map.insert(key.name.clone(), value);
            }
        }
        Some(map)
    }
    fn show(&self) -> Option<String> {
        let show =
            |(key, value): (&String, &T)| Some(format!("{} = {}", join("", key), value.show()?));
        let entries: Option<Vec<String>> = self.iter().map(show).collect();
        let entries = entries?;
        Some(if entries.is_empty() {
            "{}".to_owned()
        } else {
            format!("{{ {} }}", entries.join(", "))
        })
    }
}

/// A text that never prints: written out, or read from a file as `file:PATH`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Setting for Secret {
    const SECRET: bool = true;
    fn accepts() -> String {
        "a string, or \"file:PATH\" to read it from a file".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Text(text) = &node.value else {
            reader.refuse::<Self>(node, path);
            return None;
        };
        // Looked for before variables are put in: what a variable holds names no file.
        let Some(file) = text.strip_prefix("file:") else {
            return reader.expand(text, node.offset, path).map(Secret);
        };
        let file = reader.world.folder.join(reader.expand(file, node.offset, path)?);
        let read = read_bounded(&file, limits::SECRET_BYTES_MAX)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned()));
        match read {
            // Editors end files with a line break that nobody means as part of the secret.
            Ok(text) => Some(Secret(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(message) => {
                reader.fault(node.offset, path, format!("the file {} {message}", file.display()));
                None
            }
        }
    }
    fn show(&self) -> Option<String> {
        Some("\"***\"".to_owned())
    }
}

/// Value of an environment variable: hidden like a secret, but `file:` in it is not special, as
/// URLs of local databases begin so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct EnvValue(pub(super) Secret);

impl Setting for EnvValue {
    const SECRET: bool = true;
    fn accepts() -> String {
        "a string".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.value {
            Value::Text(text) => {
                reader.expand(text, node.offset, path).map(|text| EnvValue(Secret(text)))
            }
            _ => {
                reader.refuse::<Self>(node, path);
                None
            }
        }
    }
    fn show(&self) -> Option<String> {
        self.0.show()
    }
}

/// Declares a choice among words.
macro_rules! choices {
    ($($(#[doc = $about:literal])+ choice $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)* })*) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name { $($(#[doc = $doc])+ $variant,)* }

        impl Setting for $name {
            fn accepts() -> String { [$(concat!("\"", $word, "\"")),*].join(" or ") }
            fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
                if let Value::Text(text) = &node.value {
                    match reader.expand(text, node.offset, path)?.as_str() {
                        $($word => return Some($name::$variant),)*
                        _ => {}
                    }
                }
                reader.refuse::<Self>(node, path);
                None
            }
            fn show(&self) -> Option<String> {
                Some(match self { $($name::$variant => toml_text($word),)* })
            }
        }
    )*};
}

choices! {
    /// `transport`.
    choice Transport {
        /// A child process.
        Stdio = "stdio",
        /// A server over HTTP or HTTPS.
        Http = "http",
    }

    /// `isolation`.
    choice IsolationKey {
        /// Own backend session for each client session.
        Session = "session",
        /// One for all.
        Shared = "shared",
    }
}

/// `inherit_env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inherit {
    /// `true`.
    All,
    /// Names, of which a `*` at the end matches the rest; `false` is the empty list.
    Names(Vec<String>),
}

impl Default for Inherit {
    /// What programs need to find their files and to know their language, and no secret.
    fn default() -> Inherit {
        let names = ["PATH", "HOME", "USER", "LANG", "LC_*", "TZ", "TMPDIR", "SHELL", "TERM"];
        Inherit::Names(names.map(str::to_owned).to_vec())
    }
}

impl Setting for Inherit {
    fn accepts() -> String {
        "true, false, or an array of names".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.value {
            Value::Bool(true) => Some(Inherit::All),
            Value::Bool(false) => Some(Inherit::Names(Vec::new())),
            Value::Array(_) => Vec::read(node, path, reader).map(Inherit::Names),
            _ => {
                reader.refuse::<Self>(node, path);
                None
            }
        }
    }
    fn show(&self) -> Option<String> {
        match self {
            Inherit::All => Some("true".to_owned()),
            Inherit::Names(names) => names.show(),
        }
    }
}

/// `restart.give_up_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveUp {
    /// `"never"`.
    Never,
    /// After so many attempts in a row without success.
    After(u32),
}

impl Setting for GiveUp {
    fn accepts() -> String {
        format!("an integer from 1 to {}, or \"never\"", u32::MAX)
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.value {
            Value::Text(text) if text == "never" => Some(GiveUp::Never),
            Value::Integer(Some(number)) if *number > 0 => {
                u32::try_from(*number).ok().map(GiveUp::After)
            }
            _ => None,
        }
        .or_else(|| {
            reader.refuse::<Self>(node, path);
            None
        })
    }
    fn show(&self) -> Option<String> {
        Some(match self {
            GiveUp::Never => toml_text("never"),
            GiveUp::After(attempts) => attempts.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
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
        assert_eq!((files.max_children, files.idle_stop_seconds.0.as_secs()), (Count(3), 4));
        let web = &config.backends[1].table;
        assert_eq!(web.transport, Transport::Http);
        assert_eq!(web.bearer_token.as_ref().unwrap().expose(), "t");
        assert_eq!(web.headers["X-A"].expose(), "b");
        assert_eq!((web.max_connections, web.idle_seconds.0.as_secs()), (Count(9), 10));
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
p.toml:15:13: backends[1].transport: found "carrier", accepted: "stdio" or "http"
p.toml:16:1: backends[2].name: missing, and there is no default
p.toml:18:7: backends[2].url: found another scheme than http and https, accepted: http[s]://host[:port]/path
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
    }

    #[test]
    fn hints() {
        let wrong = |lines: &str| faults(&format!("{PROXY}{lines}\n"));
        for (lines, hint) in [
            ("bind = 1", "proxy.bind: unknown key, the right one is proxy.listen.host and"),
            ("port = 1", "proxy.port: unknown key here, it belongs into [proxy.listen]"),
            ("command = 1", "proxy.command: unknown key here, it belongs into [[backends]]"),
            ("hot_reload = true", "proxy.hot_reload: unknown key, accepted: name, version, sep"),
            ("[auth]", "auth: unknown key, accepted: proxy, backends"),
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
    fn variables() {
        let var = world().var;
        for (text, expected) in [
            ("", Ok("")),
            ("plain $ {x} $x", Ok("plain $ {x} $x")),
            ("a${SET}b${SET}", Ok("avaluebvalue")),
            ("${EMPTY}", Ok("")),
            ("${EMPTY:-d}", Ok("d")),
            ("${UNSET:-}", Ok("")),
            ("${UNSET:-a:-b}", Ok("a:-b")),
            ("${env:SET}", Ok("value")),
            ("$${SET}", Ok("${SET}")),
            ("$$${SET}", Ok("$${SET}")),
            ("$${SET} ${SET}", Ok("${SET} value")),
            ("${SNEAKY}", Ok("${SET}")),
            ("ä${SET}ö", Ok("ävalueö")),
            ("${UNSET}", Err("the environment variable UNSET is not set")),
            ("${SET", Err("without `}`")),
            ("${}", Err("found `${}`")),
            ("${1A}", Err("found `${1A}`")),
            ("${input:key}", Err("found `${input:key}`")),
        ] {
            match (expand(text, &*var), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        assert!(
            faults("[proxy]\nname = \"${UNSET}\"").starts_with("p.toml:2:8: proxy.name: the env")
        );
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
    fn texts_stay_in_one_line_and_are_read_back() {
        for text in ["", "a", "\"\\", "a\r\n\tb", "\u{0}\u{7f}\u{9f}", "ä \u{1f600}"] {
            let toml: toml::Table = format!("x = {}", toml_text(text)).parse().unwrap();
            assert_eq!(toml["x"].as_str(), Some(text));
            assert_eq!(toml_text(text).lines().count(), 1);
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

    const SHIPPED: &str = include_str!("../../proxy.toml");

    /// Settings that are commented out, put in.
    fn with_all_settings(text: &str) -> String {
        let is_setting = |line: &&str| {
            line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c != ' '))
        };
        let lines = text.lines().map(|line| if is_setting(&line) { &line[1..] } else { line });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_shipped_file_loads_without_a_warning_but_that_tests_are_not_the_binary() {
        let config = ProxyConfig::parse(SHIPPED).unwrap();
        let warnings: Vec<_> =
            config.warnings().iter().filter(|w| w.path != "backends[0].command").collect();
        assert_eq!(warnings, Vec::<&Diagnosis>::new());
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
        assert_eq!(config.backends.len(), 2);
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
