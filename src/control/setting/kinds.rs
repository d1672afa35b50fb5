//! Owns: the kinds of values: texts, numbers with bounds, times, secrets, patterns, words to choose.
//! Never: which keys have them (`config`).
//! Next: `foreign`, keys that do not go together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{KeyDoc, Node, Reader, Setting, Value, join, toml_text};
use crate::auth::keys::Algorithm;
use crate::control::config::read_bounded;
use crate::control::schema::{self, Schema};
use crate::jsonrpc::quote;
use crate::limits;
use crate::middleware::pattern::Pattern;

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
pub(in crate::control) struct Count<const MIN: u64, const MAX: u64>(pub(in crate::control) u64);

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
pub(in crate::control) struct Seconds<const MIN: u64, const MAX: u64>(
    pub(in crate::control) Duration,
);

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
pub(in crate::control) struct Millis<const MIN: u64, const MAX: u64>(
    pub(in crate::control) Duration,
);

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
pub(in crate::control) struct Share<const MAX: u64>(pub(in crate::control) f64);

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
pub(in crate::control) struct Fraction(pub(in crate::control) f64);

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
pub(in crate::control) struct AuditKey {
    pub(in crate::control) enabled: bool,
    /// `None` = standard error.
    pub(in crate::control) path: Option<PathBuf>,
    pub(in crate::control) include_arguments: bool,
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
pub(in crate::control) struct Secret(pub(in crate::control) String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub(in crate::control) fn expose(&self) -> &str {
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
pub(in crate::control) struct EnvValue(pub(in crate::control) Secret);

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
pub(in crate::control) struct Glob(pub(in crate::control) Pattern);

impl Glob {
    /// `*`.
    pub(in crate::control) fn all() -> Glob {
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
pub(in crate::control) struct Args {
    /// Key, and value as JSON.
    pub(in crate::control) pairs: Vec<(String, Box<[u8]>)>,
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
        pub(in crate::control) enum $name { $($(#[doc = $doc])+ $variant,)* }

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
pub(in crate::control) struct SignedBy(pub(in crate::control) Algorithm);

impl SignedBy {
    pub(in crate::control) fn all() -> Vec<SignedBy> {
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
pub(in crate::control) enum Inherit {
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
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Text(name) = &item.value
                        && name.strip_suffix('*').unwrap_or(name).contains('*')
                    {
                        let message =
                            format!("found {name:?}, accepted: a name, with a * at its end only");
                        reader.fault(item.offset, &format!("{path}[{index}]"), message);
                    }
                }
                Vec::read(node, path, reader).map(Inherit::Names)
            }
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
pub(in crate::control) enum GiveUp {
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
