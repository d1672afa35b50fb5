//! Owns: what may differ between a direct run and one through the proxy, and telling all that does.
//! Never: a tolerance that nobody asked for.

use serde_json::Value;

/// The entries of a merged list that belong to one backend, with their own names again.
pub(super) fn own_entries(seen: &Value, list: &str, prefix: &str, scheme: &str) -> Value {
    let all = seen[list].as_array().unwrap_or_else(|| panic!("{list}: {}", seen[list]));
    let own = all.iter().filter_map(|entry| {
        let mut entry = entry.clone();
        match list {
            "resources" => entry["uri"].as_str()?.strip_prefix(scheme).map(|_| ())?,
            "templates" => entry["uriTemplate"].as_str()?.strip_prefix(scheme).map(|_| ())?,
            _ => entry["name"] = entry["name"].as_str()?.strip_prefix(prefix)?.into(),
        }
        Some(entry)
    });
    own.collect()
}

/// A list as a server without it is seen through the proxy.
pub(super) fn direct_entries(seen: &Value, list: &str) -> Value {
    if seen[list]["error"]["code"] == -32601 {
        Value::Array(Vec::new())
    } else {
        seen[list].clone()
    }
}

/// Panics with every difference, each with its path.
pub(super) fn same(what: &str, direct: &Value, through: &Value) {
    let mut differences = Vec::new();
    differ(what, direct, through, &mut differences);
    assert!(differences.is_empty(), "not as directly:\n{}", differences.join("\n"));
}

fn differ(path: &str, direct: &Value, through: &Value, differences: &mut Vec<String>) {
    match (direct, through) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                match b.get(key) {
                    Some(other) => differ(&format!("{path}.{key}"), value, other, differences),
                    None => differences.push(format!("{path}.{key}: lost: {value}")),
                }
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                differences.push(format!("{path}.{key}: added: {value}"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (value, other)) in a.iter().zip(b).enumerate() {
                differ(&format!("{path}[{i}]"), value, other, differences);
            }
        }
        (Value::String(a), Value::String(b)) if without_time(a) == without_time(b) => {}
        (a, b) if a == b => {}
        (a, b) => differences.push(format!("{path}: directly {a}\n  through the proxy {b}")),
    }
}

/// server-everything ends some texts with the time of day at which it made them.
fn without_time(text: &str) -> &str {
    text.split_once(" created at ").map_or(text, |(before, _)| before)
}

#[test]
fn times_alone_are_forgiven() {
    let mut differences = Vec::new();
    differ(
        "x",
        &serde_json::json!({"a": [1, "it created at 1:00:00"], "b": null, "c": 1}),
        &serde_json::json!({"a": [2, "it created at 11:11:11"], "c": 1.5, "d": 0}),
        &mut differences,
    );
    assert_eq!(differences.len(), 4, "{differences:?}");
}
