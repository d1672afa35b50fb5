//! Owns: how one value of a configuration is read: kinds of values, variables in texts, secrets.
//! Never: which keys there are (`config`), nor what they mean together (`compile`).
//! Next: `schema`, which tells editors. Then `import`, for servers that an `mcp.json` names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::config::{MOVED, Root, World, read_bounded};
use super::diagnose::{Report, Source, Spots, nearest};
use super::schema::{self, Schema};
use crate::auth::keys::Algorithm;
use crate::jsonrpc::quote;
use crate::limits;
use crate::middleware::pattern::Pattern;

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

/// A table of the parser's as nodes, in the order of the file.
pub(super) fn table(table: &DeTable<'_>) -> Value {
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
    pub(super) fn refuse<T: Setting>(&mut self, node: &Node, path: &str) {
        let message = format!("found {}, accepted: {}", node.found(T::SECRET), T::accepts());
        self.fault(node.offset, path, message);
    }

    /// Notes where a key stands.
    pub(super) fn note(&mut self, path: &str, key: &KeyAt, node: &Node) {
        self.spots.set(path, self.source.place(key.offset), self.source.place(node.offset));
    }

    /// Adds the fault that a key is not known, with what may have been meant.
    pub(super) fn unknown(&mut self, key: &KeyAt, path: &str, known: &[KeyDoc]) {
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
    pub(super) fn missing(
        &mut self,
        at: &Node,
        path: &str,
        entries: &[(KeyAt, Node)],
        needed: &[&str],
    ) {
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
    pub(super) manual: &'static [&'static str],
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual is compared in tests"))]
    pub(super) accepts: String,
    /// As TOML; `None` = there is none, or it depends.
    pub(super) default: Option<String>,
    pub(super) needed: bool,
    /// What its value may look like.
    pub(super) schema: fn() -> serde_json::Value,
    /// The keys of the table that it holds.
    pub(super) table: fn() -> Vec<KeyDoc>,
}

/// A kind of value.
pub(super) trait Setting: Schema + Sized {
    /// Whether faults must not quote it.
    const SECRET: bool = false;
    /// Whether it is a table of its own.
    const IS_TABLE: bool = false;
    /// What is accepted, in words.
    fn accepts() -> String;
    /// Reads it; `None` after a fault.
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self>;
    /// Why one of its keys is not accepted beside the others, if it is a table; `None` = it is.
    fn refuses(&self, _key: &str) -> Option<String> {
        None
    }
    /// As TOML, secrets hidden; `None` if it is not set or is a table.
    fn show(&self) -> Option<String>;
    /// Its keys, if it is a table.
    fn keys() -> Vec<KeyDoc> {
        Vec::new()
    }
    /// Appends it as TOML with its header, if it is a table.
    fn write_table(&self, _path: &str, _brackets: (&str, &str), _out: &mut String) {}
}

/// What `show` says of a key, without what may be a secret in it although its kind is not.
pub(super) fn masked(key: &str, text: String) -> String {
    match key {
        // Arguments of a command; those of a tool are a table, and hide what was a variable.
        "args" if text.starts_with('[') && text != "[]" => "[\"***\"]".to_owned(),
        "url" | "endpoint" | "jwks_uri" | "public_url" => match text.split_once('?') {
            Some((url, _)) => format!("{url}?***\""),
            None => text,
        },
        _ => text,
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

/// A number above 0 and up to `MAX`, fractions allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share<const MAX: u64>(pub(super) f64);

impl<const MAX: u64> Setting for Share<MAX> {
    fn accepts() -> String {
        format!("a number above 0, at most {MAX}")
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Integer(Some(number)) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        }
        .filter(|number| *number > 0.0 && *number <= MAX as f64)
        .map(Share)
        .or_else(|| {
            reader.refuse::<Self>(node, path);
            None
        })
    }
    fn show(&self) -> Option<String> {
        Some(format!("{:?}", self.0))
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

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fraction(pub(super) f64);

impl Setting for Fraction {
    fn accepts() -> String {
        "a number from 0 to 1".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Integer(Some(number)) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        }
        .filter(|number| (0.0..=1.0).contains(number))
        .map(Fraction)
        .or_else(|| {
            reader.refuse::<Self>(node, path);
            None
        })
    }
    fn show(&self) -> Option<String> {
        Some(format!("{:?}", self.0))
    }
}

/// `observability.audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AuditKey {
    pub(super) enabled: bool,
    /// `None` = standard error.
    pub(super) path: Option<PathBuf>,
    pub(super) include_arguments: bool,
}

impl Setting for AuditKey {
    fn accepts() -> String {
        "true, false, or a table with path and include_arguments".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let entries = match &node.value {
            Value::Bool(enabled) => {
                return Some(AuditKey { enabled: *enabled, ..AuditKey::default() });
            }
            Value::Table(entries) => entries,
            _ => {
                reader.refuse::<Self>(node, path);
                return None;
            }
        };
        let mut audit = AuditKey { enabled: true, ..AuditKey::default() };
        for (key, node) in entries {
            let path = join(path, &key.name);
            reader.note(&path, key, node);
            match key.name.as_str() {
                "path" => {
                    let text = String::read(node, &path, reader)?;
                    audit.path = Some(reader.world.folder.join(text));
                }
                "include_arguments" => {
                    audit.include_arguments = bool::read(node, &path, reader)?;
                }
                _ => {
                    let message = "unknown key, accepted: path, include_arguments";
                    reader.fault(key.offset, &path, message);
                }
            }
        }
        Some(audit)
    }
    fn show(&self) -> Option<String> {
        let mut keys = Vec::new();
        if let Some(path) = &self.path {
            keys.push(format!("path = {}", toml_text(&path.display().to_string())));
        }
        if self.include_arguments {
            keys.push("include_arguments = true".to_owned());
        }
        Some(match (self.enabled, keys.is_empty()) {
            (false, _) => "false".to_owned(),
            (true, true) => "true".to_owned(),
            (true, false) => format!("{{ {} }}", keys.join(", ")),
        })
    }
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
    fn write_table(&self, path: &str, brackets: (&str, &str), out: &mut String) {
        if let Some(table) = self {
            table.write_table(path, brackets, out);
        }
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
    fn write_table(&self, path: &str, _brackets: (&str, &str), out: &mut String) {
        for table in self {
            table.write_table(path, ("[[", "]]"), out);
        }
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
pub(super) struct Secret(pub(super) String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub(super) fn expose(&self) -> &str {
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
        reader.spots.read(file.clone());
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

/// A pattern of names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Glob(pub(super) Pattern);

impl Glob {
    /// `*`.
    pub(super) fn all() -> Glob {
        Glob(Pattern::parse("*").expect("a pattern"))
    }
}

impl Setting for Glob {
    fn accepts() -> String {
        "a pattern such as \"read_*\" or \"re:read_[a-z]+\"".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Text(text) = &node.value else {
            reader.refuse::<Self>(node, path);
            return None;
        };
        match Pattern::parse(&reader.expand(text, node.offset, path)?) {
            Ok(pattern) => Some(Glob(pattern)),
            Err(message) => {
                reader.fault(node.offset, path, message);
                None
            }
        }
    }
    fn show(&self) -> Option<String> {
        Some(toml_text(self.0.text()))
    }
}

/// Arguments of a tool: any values that JSON has, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Args {
    /// Key, and value as JSON.
    pub(super) pairs: Vec<(String, Box<[u8]>)>,
    /// As TOML; what came from variables is not shown.
    shown: String,
}

impl Setting for Args {
    fn accepts() -> String {
        "a table of values".to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Table(entries) = &node.value else {
            reader.refuse::<Self>(node, path);
            return None;
        };
        let mut args = Args::default();
        let mut whole = true;
        let mut shown = Vec::new();
        for (key, node) in entries {
            let path = join(path, &key.name);
            reader.note(&path, key, node);
            let (mut json, mut toml) = (Vec::new(), String::new());
            if argument(node, &path, reader, &mut json, &mut toml).is_some() {
                shown.push(format!("{} = {toml}", join("", &key.name)));
                args.pairs.push((key.name.clone(), json.into()));
            } else {
                whole = false;
            }
        }
        args.shown =
            if shown.is_empty() { "{}".into() } else { format!("{{ {} }}", shown.join(", ")) };
        whole.then_some(args)
    }
    fn show(&self) -> Option<String> {
        Some(if self.pairs.is_empty() { "{}".to_owned() } else { self.shown.clone() })
    }
}

/// Writes one value as JSON and as TOML; `None` after a fault.
fn argument(
    node: &Node,
    path: &str,
    reader: &mut Reader<'_>,
    json: &mut Vec<u8>,
    toml: &mut String,
) -> Option<()> {
    let number = match &node.value {
        Value::Text(text) => {
            let expanded = reader.expand(text, node.offset, path)?;
            quote(&expanded, json);
            let hidden = text.contains("${");
            toml.push_str(&if hidden { toml_text("***") } else { toml_text(&expanded) });
            return Some(());
        }
        Value::Array(items) => {
            json.push(b'[');
            toml.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                    toml.push_str(", ");
                }
                argument(item, &format!("{path}[{index}]"), reader, json, toml)?;
            }
            json.push(b']');
            toml.push(']');
            return Some(());
        }
        Value::Table(entries) => {
            json.push(b'{');
            toml.push('{');
            for (index, (key, item)) in entries.iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                    toml.push_str(", ");
                }
                quote(&key.name, json);
                json.push(b':');
                toml.push_str(&format!(" {} = ", join("", &key.name)));
                argument(item, &join(path, &key.name), reader, json, toml)?;
            }
            json.push(b'}');
            toml.push_str(if entries.is_empty() { "}" } else { " }" });
            return Some(());
        }
        Value::Integer(Some(number)) => number.to_string(),
        Value::Float(number) if number.is_finite() => format!("{number:?}"),
        Value::Bool(value) => value.to_string(),
        Value::Integer(None) | Value::Float(_) | Value::Date | Value::Null => {
            let found = node.found(false);
            let message =
                format!("found {found}, accepted: a string, number, boolean, array or table");
            reader.fault(node.offset, path, message);
            return None;
        }
    };
    json.extend_from_slice(number.as_bytes());
    toml.push_str(&number);
    Some(())
}

/// Declares a choice among words.
macro_rules! choices {
    ($($(#[doc = $about:literal])+ choice $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)* })*) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name { $($(#[doc = $doc])+ $variant,)* }

        impl Schema for $name {
            fn schema() -> serde_json::Value { schema::words(&[$($word),*]) }
        }

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
    /// `proxy.admin_tools`.
    choice AdminToolsKey {
        /// None.
        Off = "off",
        /// Those that change nothing.
        Read = "read",
        /// All.
        Full = "full",
    }

    /// `transport`.
    choice Transport {
        /// A child process.
        Stdio = "stdio",
        /// A server over HTTP or HTTPS.
        Http = "http",
        /// The same, by the transport of 2024-11-05.
        Sse = "sse",
    }

    /// `cache.scope`.
    choice ScopeKey {
        /// Each caller has its own answers.
        Principal = "principal",
        /// One answer for all.
        Shared = "shared",
    }

    /// `rate_limit.per`.
    choice PerKey {
        /// All callers together.
        All = "all",
        /// Each caller by itself.
        Principal = "principal",
    }

    /// `auth.type`.
    choice AuthKind {
        /// Tokens of the file.
        Bearer = "bearer",
        /// Tokens of an issuer.
        Jwt = "jwt",
    }

    /// `protocol`.
    choice ProtocolKey {
        /// Found out.
        Auto = "auto",
        /// With sessions.
        Legacy = "legacy",
        /// Without.
        Modern = "modern",
    }

    /// `isolation`.
    choice IsolationKey {
        /// Own backend session for each client session.
        Session = "session",
        /// One for all.
        Shared = "shared",
    }
}

/// A signature algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SignedBy(pub(super) Algorithm);

impl SignedBy {
    pub(super) fn all() -> Vec<SignedBy> {
        Algorithm::ALL.iter().copied().map(SignedBy).collect()
    }
}

impl Setting for SignedBy {
    fn accepts() -> String {
        let names: Vec<String> = Algorithm::ALL.iter().map(|a| format!("{:?}", a.name())).collect();
        format!("one of {}", names.join(", "))
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if let Value::Text(text) = &node.value
            && let Some(algorithm) = Algorithm::parse(&reader.expand(text, node.offset, path)?)
        {
            return Some(SignedBy(algorithm));
        }
        reader.refuse::<Self>(node, path);
        None
    }
    fn show(&self) -> Option<String> {
        Some(toml_text(self.0.name()))
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

    #[test]
    fn variables() {
        let var = |name: &str| match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "SNEAKY" => Some("${SET}".to_owned()),
            _ => None,
        };
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
            match (expand(text, &var), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn arguments_become_json_and_show_no_variable() {
        let text = "[x]\na = 1\nb = [true, { c = \"${S}\" }, \"\\\"\"]\nd = 1.0\ne = {}\nf = 1e99";
        let (document, _) = DeTable::parse_recoverable(text);
        let source = Source::new("p.toml", text);
        let world = World {
            folder: Default::default(),
            var: std::rc::Rc::new(|_| Some("secret".to_owned())),
        };
        let (mut report, mut spots) = (Report::default(), Spots::default());
        let mut reader =
            Reader { source: &source, world: &world, report: &mut report, spots: &mut spots };
        let Value::Table(root) = table(document.get_ref()) else { unreachable!() };
        let args = Args::read(&root[0].1, "x", &mut reader).unwrap();
        let json: Vec<(&str, &str)> = args
            .pairs
            .iter()
            .map(|(key, value)| (&**key, std::str::from_utf8(value).unwrap()))
            .collect();
        let expected = [
            ("a", "1"),
            ("b", r#"[true,{"c":"secret"},"\""]"#),
            ("d", "1.0"),
            ("e", "{}"),
            ("f", "1e99"),
        ];
        assert_eq!(json, expected);
        let shown = args.show().unwrap();
        assert!(!shown.contains("secret"));
        let _: toml::Table = format!("x = {shown}").parse().unwrap();
    }

    #[test]
    fn texts_stay_in_one_line_and_are_read_back() {
        for text in ["", "a", "\"\\", "a\r\n\tb", "\u{0}\u{7f}\u{9f}", "ä \u{1f600}"] {
            let toml: toml::Table = format!("x = {}", toml_text(text)).parse().unwrap();
            assert_eq!(toml["x"].as_str(), Some(text));
            assert_eq!(toml_text(text).lines().count(), 1);
        }
    }
}
