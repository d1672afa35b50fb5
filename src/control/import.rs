//! Owns: reading the servers of an `mcp.json` (`mcpServers`, or `servers` as some editors write).
//! Never: their checks, which are those of every backend (`compile`).
//! Next: `compile`, which makes the plan.
//!
//! Such files belong to other programs: what they say beside the servers is theirs, and a key of a
//! server that is not known here is warned about and left alone.

use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::config::{BackendTable, NamedBackend, ProxyConfig, World, read_text};
use super::diagnose::{Place, Report, Source};
use super::setting::{KeyAt, Node, Reader, Setting, Transport, Value};
use crate::limits;

/// Reads the file that `proxy.import_backends` names.
pub(super) fn read_beside(
    file: &str,
    world: &World,
    config: &mut ProxyConfig,
    report: &mut Report,
) {
    let path = world.folder.join(file);
    match read_text(&path) {
        Ok(text) => {
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            let world = World { folder, var: world.var.clone() };
            read(&path.display().to_string(), &text, &world, config, report);
        }
        Err(message) => {
            let key = "proxy.import_backends";
            let place = config.spots.value(key).expect("only read if it is set");
            report.fault(place, key, format!("the file {} {message}", path.display()));
        }
    }
}

/// Adds the servers of `text` to the backends of `config`, except those whose name it has.
pub(super) fn read(
    name: &str,
    text: &str,
    world: &World,
    config: &mut ProxyConfig,
    report: &mut Report,
) {
    let source = Source::new(name, text);
    let document = match parse(&source) {
        Ok(document) => document,
        Err((place, message)) => return report.fault(place, "", format!("not JSON: {message}")),
    };
    let taken: Vec<String> = config.backends.iter().map(|b| b.table.name.clone()).collect();
    let mut reader = Reader { source: &source, world, report, spots: &mut config.spots };
    let Value::Table(entries) = &document.value else {
        return reader.fault(document.offset, "", "accepted: an object with \"mcpServers\"");
    };
    let mut lists = 0;
    for (key, node) in entries {
        if key.name != "mcpServers" && key.name != "servers" {
            continue;
        }
        lists += 1;
        let Value::Table(servers) = &node.value else {
            reader.fault(node.offset, &key.name, "accepted: an object of servers");
            continue;
        };
        for (server, node) in servers {
            if taken.contains(&server.name) {
                continue;
            }
            let path = format!("{}.{}", key.name, server.name);
            reader.note(&path, server, node);
            if let Some(table) = backend(server, node, &path, &mut reader) {
                let folder = world.folder.clone();
                config.backends.push(NamedBackend { path, folder, table });
            }
        }
    }
    if lists == 0 {
        reader.fault(document.offset, "", "found neither \"mcpServers\" nor \"servers\"");
    }
}

/// One server; `None` after a fault and for a disabled one.
fn backend(
    server: &KeyAt,
    node: &Node,
    path: &str,
    reader: &mut Reader<'_>,
) -> Option<BackendTable> {
    let Value::Table(entries) = &node.value else {
        reader.fault(node.offset, path, "accepted: an object with \"command\" or \"url\"");
        return None;
    };
    // First of all, as what is disabled may be as wrong as it likes.
    if entries
        .iter()
        .any(|(key, node)| key.name == "disabled" && matches!(node.value, Value::Bool(true)))
    {
        return None;
    }
    let name_at = reader.source.place(server.offset);
    reader.spots.set(&format!("{path}.name"), name_at.clone(), name_at);
    let mut table = BackendTable { name: server.name.clone(), ..BackendTable::default() };
    let mut named_type = None;
    for (key, node) in entries {
        let path = &format!("{path}.{}", key.name);
        reader.note(path, key, node);
        match key.name.as_str() {
            "command" => table.command = Option::read(node, path, reader).flatten(),
            "args" => table.args = Vec::read(node, path, reader).unwrap_or_default(),
            "env" => table.env = Setting::read(node, path, reader).unwrap_or_default(),
            "cwd" => table.cwd = Option::read(node, path, reader).flatten(),
            "url" => table.url = Option::read(node, path, reader).flatten(),
            "headers" => table.headers = Setting::read(node, path, reader).unwrap_or_default(),
            "type" => named_type = Some((node, String::read(node, path, reader)?)),
            "disabled" => {
                bool::read(node, path, reader);
            }
            _ => reader.report.warning(
                reader.source.place(key.offset),
                path,
                "ignored: this proxy has no such setting",
            ),
        }
    }
    let has = |name: &str| entries.iter().any(|(key, _)| key.name == name);
    table.transport = match named_type.as_ref().map(|(node, name)| (node, name.as_str())) {
        Some((_, "stdio")) => Transport::Stdio,
        Some((_, "http" | "streamable-http" | "streamableHttp")) => Transport::Http,
        Some((_, "sse")) => Transport::Sse,
        Some((node, other)) => {
            let message = format!(
                "found {other:?}, accepted: \"stdio\", \"http\", \"streamable-http\" or \"sse\""
            );
            reader.fault(node.offset, &format!("{path}.type"), message);
            return None;
        }
        None if has("command") == has("url") => {
            let found = if has("url") { "both \"command\" and \"url\"" } else { "neither" };
            let message = format!("found {found}, accepted: either \"command\" or \"url\"");
            reader.fault(node.offset, path, message);
            return None;
        }
        None if has("command") => Transport::Stdio,
        None => Transport::Http,
    };
    Some(table)
}

/// The whole text as nodes that know where they stand.
pub(super) fn parse(source: &Source<'_>) -> Result<Node, (Place, String)> {
    // Editors on other systems begin files with a byte order mark.
    let json = source.text.trim_start_matches('\u{feff}');
    let raw: &RawValue = serde_json::from_str(json).map_err(|error| {
        let place = Place {
            file: source.name.clone(),
            line: u32::try_from(error.line()).unwrap_or(u32::MAX).max(1),
            column: u32::try_from(error.column()).unwrap_or(u32::MAX).max(1),
        };
        let text = error.to_string();
        (place, text.split(" at line ").next().unwrap_or_default().to_owned())
    })?;
    node(raw, source, 0)
}

fn node(raw: &RawValue, source: &Source<'_>, depth: usize) -> Result<Node, (Place, String)> {
    let text = raw.get();
    let offset = offset_in(text, source.text);
    let fault = |error: &dyn std::fmt::Display| (source.place(offset), error.to_string());
    if depth > limits::JSON_DEPTH_MAX {
        return Err(fault(&"nested too deep"));
    }
    let value = match text.as_bytes()[0] {
        b'{' => {
            let members: Members<'_> = serde_json::from_str(text).map_err(|e| fault(&e))?;
            let mut entries: Vec<(KeyAt, Node)> = Vec::with_capacity(members.0.len());
            let mut behind = offset + 1;
            for (name, raw) in members.0 {
                let quote = source.text[behind..].find('"').map_or(behind, |skip| behind + skip);
                if entries.iter().any(|(key, _)| key.name == name) {
                    return Err((source.place(quote), format!("the key {name:?} is there twice")));
                }
                let node = node(raw, source, depth + 1)?;
                behind = node.offset + raw.get().len();
                entries.push((KeyAt { name, offset: quote }, node));
            }
            Value::Table(entries)
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| fault(&e))?;
            let items = items.into_iter().map(|raw| node(raw, source, depth + 1));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        b'"' => Value::Text(serde_json::from_str(text).map_err(|e| fault(&e))?),
        b't' => Value::Bool(true),
        b'f' => Value::Bool(false),
        b'n' => Value::Null,
        _ if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
            Value::Integer(text.parse().ok())
        }
        _ => Value::Float(text.parse().unwrap_or(f64::NAN)),
    };
    Ok(Node { offset, value })
}

/// Where a part of a text, borrowed from it, begins.
fn offset_in(part: &str, whole: &str) -> usize {
    let offset = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    if offset <= whole.len() { offset } else { 0 }
}

/// The members of an object, in the order of the text, repeated ones too.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::rc::Rc;

    use super::*;

    fn world(folder: PathBuf) -> World {
        World { folder, var: Rc::new(|name| (name == "KEY").then(|| "value".to_owned())) }
    }

    fn import(json: &str) -> (ProxyConfig, Report) {
        let mut config = ProxyConfig::empty("m.json");
        let mut report = Report::default();
        read("m.json", json, &world(PathBuf::from("/f")), &mut config, &mut report);
        (config, report)
    }

    #[test]
    fn both_dialects() {
        for key in ["mcpServers", "servers"] {
            let (config, report) = import(&format!(
                r#"{{"inputs": [1.5e3, null], "{key}": {{
                    "files": {{"command": "npx", "args": ["-y", "x"], "env": {{"A": "${{KEY}}"}}, "cwd": "d"}},
                    "web": {{"type": "http", "url": "http://h/mcp", "headers": {{"X-A": "${{env:KEY}}"}}}},
                    "plain": {{"url": "http://h"}},
                    "old": {{"type": "sse", "url": "http://h/sse"}},
                    "off": {{"type": "ws", "url": 1, "disabled": true}},
                    "on": {{"type": "stdio", "command": "c", "disabled": false}}
                }}}}"#
            ));
            assert_eq!(report, Report::default());
            let names: Vec<&str> = config.backends.iter().map(|b| b.table.name.as_str()).collect();
            assert_eq!(names, ["files", "web", "plain", "old", "on"]);
            let files = &config.backends[0];
            assert_eq!(files.path, format!("{key}.files"));
            assert_eq!(files.folder, PathBuf::from("/f"));
            assert_eq!(files.table.command.as_deref(), Some("npx"));
            assert_eq!(files.table.args, ["-y", "x"]);
            assert_eq!(files.table.env["A"].0.expose(), "value");
            assert_eq!(files.table.cwd.as_deref(), Some("d"));
            let web = &config.backends[1].table;
            assert_eq!(
                (web.transport, web.url.as_deref()),
                (Transport::Http, Some("http://h/mcp"))
            );
            assert_eq!(web.headers["X-A"].expose(), "value");
            assert_eq!(config.backends[2].table.transport, Transport::Http);
            assert_eq!(config.backends[3].table.transport, Transport::Sse);
        }
    }

    #[test]
    fn faults_and_warnings_have_places() {
        let json = r#"{
  "mcpServers": {
    "a": {"type": "ws", "url": "http://h"},
    "b": {"command": "c", "url": "http://h"},
    "c": {},
    "d": {"command": ["x"]},
    "e": {"command": "c", "autoApprove": []},
    "f": 1,
    "g": {"command": "c", "disabled": "no"}
  }
}"#;
        let (_, report) = import(json);
        let expected = r#"m.json:3:19: mcpServers.a.type: found "ws", accepted: "stdio", "http", "streamable-http" or "sse"
m.json:4:10: mcpServers.b: found both "command" and "url", accepted: either "command" or "url"
m.json:5:10: mcpServers.c: found neither, accepted: either "command" or "url"
m.json:6:22: mcpServers.d.command: found an array, accepted: a string
m.json:8:10: mcpServers.f: accepted: an object with "command" or "url"
m.json:9:39: mcpServers.g.disabled: found "no", accepted: true or false"#;
        assert_eq!(report.to_string(), expected);
        assert_eq!(
            report.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["m.json:7:27: mcpServers.e.autoApprove: ignored: this proxy has no such setting"]
        );
    }

    #[test]
    fn what_is_not_such_a_file() {
        for (json, expected) in [
            ("", "m.json:1:1: not JSON: EOF while parsing a value"),
            ("{\n  \"a\": }", "m.json:2:8: not JSON: expected value"),
            ("[]", "m.json:1:1: accepted: an object with \"mcpServers\""),
            ("{}", "m.json:1:1: found neither \"mcpServers\" nor \"servers\""),
            ("{\"servers\": []}", "m.json:1:13: servers: accepted: an object of servers"),
            (
                "{\"servers\": {\"a\": {}, \"a\": {}}}",
                "m.json:1:23: not JSON: the key \"a\" is there twice",
            ),
        ] {
            assert_eq!(import(json).1.to_string(), expected, "{json}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(400), "]".repeat(400));
        assert!(import(&deep).1.to_string().contains("not JSON"));
        let (config, report) = import("\u{feff}{\"servers\": {}}");
        assert!(report.is_ok() && config.backends.is_empty());
    }

    #[test]
    fn beside_a_toml_file_whose_backends_win() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("mcp.json"),
            r#"{"servers": {"a": {"nonsense": 1}, "b": {"command": "imported"}}}"#,
        )
        .unwrap();
        let text = "[proxy]\nname='p'\nimport_backends='mcp.json'\n[[backends]]\nname='a'\n\
                    transport='stdio'\ncommand='own'\n";
        let world = world(folder.path().to_owned());
        let config = ProxyConfig::check("p.toml", text, &world).unwrap();
        let commands: Vec<_> =
            config.backends.iter().map(|b| b.table.command.as_deref().unwrap()).collect();
        assert_eq!(commands, ["own", "imported"]);
        let missing = text.replace("mcp.json", "none.json");
        let report = ProxyConfig::check("p.toml", &missing, &world).unwrap_err().to_string();
        assert!(report.starts_with("p.toml:3:17: proxy.import_backends: the file "), "{report}");
    }

    #[test]
    fn alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".mcp.json");
        std::fs::write(&path, r#"{"mcpServers": {"a": {"command": "true"}}}"#).unwrap();
        let config = ProxyConfig::from_mcp_json(&path).unwrap();
        assert_eq!((config.proxy.name.as_str(), config.backends.len()), ("mcp-proxy", 1));
        std::fs::write(&path, r#"{"mcpServers": {"a b": {"command": "true"}}}"#).unwrap();
        let toml = folder.path().join("p.toml");
        std::fs::write(&toml, "[proxy]\nname='p'\nnmae=1\n").unwrap();
        let report = ProxyConfig::load_with_mcp_json(&toml, &path).unwrap_err();
        assert_eq!(report.faults.len(), 2, "{report}");
        let report = ProxyConfig::from_mcp_json(&path).unwrap_err().to_string();
        assert!(report.contains(":1:17: mcpServers.a b.name: found \"a b\", accepted"), "{report}");
    }
}
