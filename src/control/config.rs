//! Owns: the configuration file as a whole: where it comes from, how it is read, and what it says.
//! Never: what values mean together (`compile`).
//! Next: `tables`, every key of it.
//!
//! Reading goes on behind a fault, so that one run shows all.

mod tables;

pub(super) use tables::*;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use toml::de::DeTable;

use super::compile;
use super::diagnose::{Diagnosis, Report, Source, Spots, whole_file};
use super::import;
use super::log_level;
use super::schema;
use super::setting::{Count, Node, Reader, Setting, table};
use crate::limits;

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

impl Origin {
    fn files(&self) -> Vec<&PathBuf> {
        match self {
            Origin::File(file) | Origin::Servers(file) => vec![file],
            Origin::FileAndServers(file, servers) => vec![file, servers],
        }
    }
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
        let text = read_given(path).map_err(|fault| whole_file_fault(&name, fault))?;
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
        for file in self.origin.iter().flat_map(Origin::files) {
            // A pipe has been read to its end, or has nobody who would write to it again.
            if std::fs::metadata(file).is_ok_and(|status| !status.is_file()) {
                let fault = format!("{NO_FILE}, so it is not read again");
                return Err(whole_file_fault(&file.display().to_string(), fault));
            }
        }
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
        let read = self.origin.iter().flat_map(Origin::files);
        let mut files: Vec<PathBuf> = read.cloned().collect();
        files.extend(self.proxy.import_backends.as_ref().map(|file| self.folder.join(file)));
        files
    }

    /// All files that it depends on, those of secrets and certificates too; none if `hot_reload` is
    /// off or it was not read from a file.
    pub(super) fn watched(&self) -> Vec<PathBuf> {
        if !self.proxy.hot_reload || self.origin.is_none() {
            return Vec::new();
        }
        [self.files(), self.named()].concat()
    }

    /// Files that values of it name: of secrets and certificates.
    fn named(&self) -> Vec<PathBuf> {
        let mut files = self.spots.files().to_vec();
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
        let text = read_given(path).map_err(|fault| whole_file_fault(&name, fault))?;
        let Some(mut config) = read(&name, &text, &world, &mut report) else { return Err(report) };
        let name = servers.display().to_string();
        let world = World::real(servers.parent().unwrap_or(Path::new("")).to_owned());
        match read_given(servers) {
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
        match read_given(path) {
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

    /// Whether `observability.log_level` may say so: a level, or directives of levels and modules.
    ///
    /// # Errors
    /// What was found, and what is accepted.
    pub fn check_log_level(text: &str) -> Result<(), String> {
        log_level::check(text)
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
        if report.is_ok() {
            return Ok(self);
        }
        report.names(self.named());
        Err(report)
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

/// Reads a whole file that is given to the proxy, which may be a pipe: `-c <(...)`. Waits for what
/// comes; the error is what to tell the user.
fn read_given(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(unreadable)?;
    text(read_to_end(file, limits::CONFIG_BYTES_MAX)?)
}

/// As [`read_bounded`], of a whole configuration.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    text(read_bounded(path, limits::CONFIG_BYTES_MAX)?)
}

/// Reads a file of at most `bytes_max` bytes that a configuration names. It may be read at any time,
/// so it has to be one that answers at once; the error is what to tell the user.
pub(super) fn read_bounded(path: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    // To open a pipe would wait for somebody who writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(unreadable)?;
    match file.metadata().map_err(unreadable)?.is_file() {
        true => read_to_end(file, bytes_max),
        false => Err(NO_FILE.to_owned()),
    }
}

const NO_FILE: &str = "is no regular file";

fn read_to_end(file: File, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() > bytes_max {
        true => Err(format!("over {bytes_max} bytes")),
        false => Ok(bytes),
    }
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|e| format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to() + 1))
}

fn unreadable(error: io::Error) -> String {
    format!("cannot be read: {error}")
}

fn whole_file_fault(name: &str, message: String) -> Report {
    let mut report = Report::default();
    report.fault(whole_file(name), "", message);
    report
}

#[cfg(test)]
pub(super) mod tests;
