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

/// What came in no order that is promised, each once.
pub(super) fn as_set(seen: &Value) -> Value {
    let mut all = seen.as_array().cloned().unwrap_or_default();
    all.iter_mut().for_each(forget_session);
    all.sort_by_key(canonical);
    all.dedup();
    Value::Array(all)
}

/// The same text for the same value, in whatever order its members stand.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<String> =
                members.iter().map(|(key, value)| format!("{key}:{}", canonical(value))).collect();
            members.sort();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(all) => format!("{:?}", all.iter().map(canonical).collect::<Vec<_>>()),
        other => other.to_string(),
    }
}

/// server-everything tells in its log messages from which of its sessions a request came.
fn forget_session(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((before, _)) = text.split_once(" from session ") {
                *text = before.to_owned();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(forget_session),
        Value::Object(map) => map.values_mut().for_each(forget_session),
        _ => {}
    }
}

/// What a client sees without what only one era has: the newer one some fields at every result,
/// the older one capabilities of a session and log messages that no request asked for.
pub(super) fn without_era(mut seen: Value) -> Value {
    seen["initialize"].take();
    seen["messages"].take();
    for answers in ["calls", "reads", "gets", "completes", "progress"] {
        let one = std::slice::from_mut(&mut seen[answers]);
        let answers = match one {
            [Value::Array(list)] => list.as_mut_slice(),
            one => one,
        };
        for answer in answers {
            if let Some(result) = answer["result"].as_object_mut() {
                for key in ["resultType", "ttlMs", "cacheScope"] {
                    result.remove(key);
                }
                if let Some(meta) = result.get_mut("_meta").and_then(Value::as_object_mut) {
                    meta.remove("io.modelcontextprotocol/serverInfo");
                    if meta.is_empty() {
                        result.remove("_meta");
                    }
                }
            }
        }
    }
    seen
}

pub(super) fn differ(path: &str, direct: &Value, through: &Value, differences: &mut Vec<String>) {
    match (direct, through) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                match b.get(key) {
                    // Made up anew for every answer.
                    Some(Value::String(_)) if key == "elicitationId" && value.is_string() => {}
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
        (Value::Array(a), Value::Array(b)) => {
            let before = differences.len();
            let lost = a.iter().filter(|value| !b.contains(value));
            differences.extend(lost.map(|value| format!("{path}[]: lost: {}", short(value))));
            let added = b.iter().filter(|value| !a.contains(value));
            differences.extend(added.map(|value| format!("{path}[]: added: {}", short(value))));
            if differences.len() == before {
                differences.push(format!("{path}: {} entries became {}", a.len(), b.len()));
            }
        }
        (Value::String(a), Value::String(b)) if without_time(a) == without_time(b) => {}
        (a, b) if a == b => {}
        (a, b) => differences.push(format!("{path}: directly {a}\n  through the proxy {b}")),
    }
}

/// Enough of a value to know which it is.
fn short(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push_str("...");
    }
    text
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

#[test]
fn lists_of_other_lengths_differ() {
    let of = |a, b| {
        let mut differences = Vec::new();
        differ("x", &a, &b, &mut differences);
        differences
    };
    use serde_json::json;
    assert_eq!(
        of(json!([1, 2]), json!([2, 3, 4])).join(";"),
        "x[]: lost: 1;x[]: added: 3;x[]: added: 4"
    );
    assert_eq!(of(json!([1, 1]), json!([1])).len(), 1);
    let told = json!(["b from session 1", "a", "b from session 2"]);
    assert_eq!(as_set(&told), json!(["a", "b"]));
}

#[test]
fn only_what_one_era_has_is_taken_away() {
    let told = |result: Value| serde_json::json!({ "calls": [{ "result": result }], "tools": [] });
    let newer = told(serde_json::json!({
        "content": [{ "resultType": 1 }],
        "resultType": "complete",
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": { "io.modelcontextprotocol/serverInfo": {}, "kept": 1 },
    }));
    let older =
        told(serde_json::json!({ "content": [{ "resultType": 1 }], "_meta": { "kept": 1 } }));
    assert_eq!(without_era(newer)["calls"], older["calls"]);
}
