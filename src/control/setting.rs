//! Owns: how one value of a configuration is read: variables in texts, faults with their place.
//! Never: which keys there are (`config`), nor what they mean together (`compile`).
//! Next: `kinds`, values of every kind.

mod kinds;

pub(super) use kinds::*;

use toml::de::{DeTable, DeValue};

use super::config::{MOVED, Root, World};
use super::diagnose::{Report, Source, Spots, nearest};
use super::schema::Schema;

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
