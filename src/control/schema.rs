//! Owns: the JSON Schema (2020-12) of the configuration file, for editors: what each kind of value
//! may look like, and `mcp-proxy config schema`.
//! Never: a list of keys of its own: keys, manual, defaults and needs are those of `config`.
//! Next: `import`, for servers that an `mcp.json` names.
//!
//! The schema says less than the parser: what values mean together, patterns, names and variables
//! are the parser's alone. What it refuses is refused there too, which a test tries key by key.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::config::Root;
use super::setting::{
    Args, AuditKey, Count, EnvValue, Fraction, GiveUp, Glob, Inherit, KeyDoc, Millis, Seconds,
    Secret, Setting, Share, SignedBy,
};
use crate::auth::keys::Algorithm;

/// A kind of value that has a schema.
pub(super) trait Schema {
    /// What it may look like.
    fn schema() -> Value;
}

/// The schema of the whole file.
pub(super) fn file() -> Value {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": concat!("Configuration of ", env!("CARGO_PKG_NAME")),
    });
    if let (Value::Object(whole), Value::Object(root)) = (&mut schema, Root::schema()) {
        whole.extend(root);
    }
    schema
}

/// The schema of a table with these keys and no others.
pub(super) fn table(keys: &[KeyDoc]) -> Value {
    let properties: Map<String, Value> =
        keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let required: Vec<&str> = keys.iter().filter(|key| key.needed).map(|key| key.name).collect();
    let mut table = json!({ "type": "object", "additionalProperties": false });
    if !required.is_empty() {
        table["required"] = json!(required);
    }
    table["properties"] = Value::Object(properties);
    table
}

/// The schema of a key's value, with the text of the manual.
fn property(key: &KeyDoc) -> Value {
    let manual: Vec<&str> = key.manual.iter().map(|line| line.trim()).collect();
    let mut schema = json!({ "description": manual.join(" ") });
    if let (Value::Object(whole), Value::Object(kind)) = (&mut schema, (key.schema)()) {
        whole.extend(kind);
    }
    // A default that must be replaced is none.
    let default = key.default.as_ref().filter(|_| !key.needed);
    let parsed = default.and_then(|text| format!("x = {text}").parse::<toml::Table>().ok());
    if let Some(default) = parsed.and_then(|table| serde_json::to_value(&table["x"]).ok()) {
        schema["default"] = default;
    }
    schema
}

/// One of these words, or a text in which a variable stands for one.
pub(super) fn words(words: &[&str]) -> Value {
    json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": "\\$\\{" }] })
}

impl Schema for String {
    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

impl Schema for bool {
    fn schema() -> Value {
        json!({ "type": "boolean" })
    }
}

impl<const MIN: u64, const MAX: u64> Schema for Count<MIN, MAX> {
    fn schema() -> Value {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl<const MIN: u64, const MAX: u64> Schema for Seconds<MIN, MAX> {
    fn schema() -> Value {
        json!({ "type": "number", "minimum": MIN, "maximum": MAX })
    }
}

impl<const MIN: u64, const MAX: u64> Schema for Millis<MIN, MAX> {
    fn schema() -> Value {
        json!({ "type": "number", "minimum": MIN as f64 / 1e3, "maximum": MAX as f64 / 1e3 })
    }
}

impl<const MAX: u64> Schema for Share<MAX> {
    fn schema() -> Value {
        json!({ "type": "number", "exclusiveMinimum": 0, "maximum": MAX })
    }
}

impl Schema for Fraction {
    fn schema() -> Value {
        json!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}

impl Schema for Secret {
    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

impl Schema for EnvValue {
    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

impl Schema for Glob {
    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

impl Schema for Args {
    fn schema() -> Value {
        json!({ "type": "object" })
    }
}

impl Schema for SignedBy {
    fn schema() -> Value {
        words(&Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>())
    }
}

impl Schema for AuditKey {
    fn schema() -> Value {
        let table = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": { "path": String::schema(), "include_arguments": bool::schema() },
        });
        json!({ "anyOf": [bool::schema(), table] })
    }
}

impl Schema for Inherit {
    fn schema() -> Value {
        json!({ "anyOf": [bool::schema(), Vec::<String>::schema()] })
    }
}

impl Schema for GiveUp {
    fn schema() -> Value {
        json!({ "anyOf": [{ "const": "never" }, Count::<1, { u32::MAX as u64 }>::schema()] })
    }
}

impl<T: Setting> Schema for Option<T> {
    fn schema() -> Value {
        T::schema()
    }
}

impl<T: Setting> Schema for Vec<T> {
    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }
}

impl<T: Setting> Schema for BTreeMap<String, T> {
    fn schema() -> Value {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }
}

#[cfg(test)]
mod tests {
    use boon::{Compiler, SchemaIndex, Schemas};

    use super::super::config::tests::{SHIPPED, with_all_settings, world};
    use super::super::config::{ProxyConfig, read};
    use super::super::diagnose::Report;

    /// The schema, once it is found to be one.
    fn compiled() -> (Schemas, SchemaIndex) {
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        let schema = serde_json::from_str(&ProxyConfig::schema()).unwrap();
        compiler.add_resource("file:///schema.json", schema).unwrap();
        let index = compiler.compile("file:///schema.json", &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{error:#}"));
        (schemas, index)
    }

    /// What can be put in the place of a value.
    fn others() -> Vec<toml::Value> {
        let text = "x = [true, -1, 0, 99999999999999, 0.5, 'x', [], ['x'], [1], [{}], \
                    {}, { x = 'x' }]";
        text.parse::<toml::Table>().unwrap()["x"].as_array().unwrap().clone()
    }

    /// A value with one part less, more or changed, and what was done; `None` = it is left out.
    fn spoilt(path: &str, value: &toml::Value, put: &mut dyn FnMut(String, Option<toml::Value>)) {
        for other in others() {
            put(format!("{path} = {other}"), Some(other));
        }
        match value {
            toml::Value::Table(table) => {
                let mut more = table.clone();
                more.insert("no_such_key".to_owned(), toml::Value::Boolean(true));
                put(format!("a key into {path}"), Some(toml::Value::Table(more)));
                for (key, inner) in table {
                    spoilt(&format!("{path}.{key}"), inner, &mut |what, new| {
                        let mut table = table.clone();
                        match new {
                            Some(new) => table.insert(key.clone(), new),
                            None => table.remove(key),
                        };
                        put(what, Some(toml::Value::Table(table)));
                    });
                }
                put(format!("without {path}"), None);
            }
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                for (index, item) in items.iter().enumerate() {
                    spoilt(&format!("{path}[{index}]"), item, &mut |what, new| {
                        if let Some(new) = new {
                            let mut items = items.clone();
                            items[index] = new;
                            put(what, Some(toml::Value::Array(items)));
                        }
                    });
                }
            }
            _ => put(format!("without {path}"), None),
        }
    }

    /// The law: the schema refuses exactly what the reader of the file does, before values are
    /// looked into.
    #[test]
    fn the_schema_and_the_reader_agree_on_every_key() {
        let (schemas, index) = compiled();
        let text = with_all_settings(SHIPPED).replace("\nimport_backends", "\n#");
        let document: toml::Table = text.parse().unwrap();
        let mut tried = 0;
        let mut faults = Vec::new();
        let mut try_one = |what: String, new: Option<toml::Value>| {
            let Some(toml::Value::Table(table)) = new else { return };
            // A file that is asked for is looked for.
            if table.get("proxy").is_some_and(|proxy| proxy.get("import_backends").is_some()) {
                return;
            }
            tried += 1;
            let mut report = Report::default();
            let text = toml::to_string(&table).unwrap();
            read("p.toml", &text, &world(), &mut report).unwrap();
            let json = serde_json::to_value(&table).unwrap();
            let valid = schemas.validate(&json, index).is_ok();
            if valid != report.is_ok() {
                faults.push(format!("{what}: by the schema {valid}; by the reader: {report}"));
            }
        };
        try_one("nothing".to_owned(), Some(toml::Value::Table(document.clone())));
        // One table after the other, beside the least that a file has: the whole takes long.
        let least: toml::Table = "proxy = { name = 'p' }".parse().unwrap();
        for (key, value) in document {
            let mut part = least.clone();
            part.insert(key.clone(), value.clone());
            try_one(key.clone(), Some(toml::Value::Table(part.clone())));
            spoilt(&key, &value, &mut |what, new| {
                let mut part = part.clone();
                match new {
                    Some(new) => part.insert(key.clone(), new),
                    None => part.remove(&key),
                };
                try_one(what, Some(toml::Value::Table(part)));
            });
        }
        assert!(tried > 1500, "{tried}");
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn the_file_in_the_repository_is_this_schema() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.schema.json");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        let advice = "write it anew: mcp-proxy config schema > proxy.schema.json";
        assert!(file == ProxyConfig::schema(), "{advice}");
        assert!(SHIPPED.starts_with("#:schema ./proxy.schema.json\n"));
    }
}
