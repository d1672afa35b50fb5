//! Owns: what a request may say of a backend that is to be added at run time.
//! Never: whether the backend fits (`compile`), nor putting it in force (`reload`).
//! Next: `scrape`, what is asked more often.
//!
//! Whoever may administer may add a server, by the keys of `[[backends]]` as JSON, and no more: no
//! process is started, no file of this machine is read and none of its variables is told for a
//! request. So `stdio`, `file:`, `${` and the files of `tls` are refused.

use std::path::PathBuf;
use std::rc::Rc;

use super::config::{BackendTable, NamedBackend, ProxyConfig, World};
use super::diagnose::{Diagnosis, Report, Source, Spots, whole_file};
use super::import;
use super::setting::{KeyAt, Node, Reader, Setting, Value, join};

/// Where faults are, other than of a file.
const SOURCE: &str = "request";

/// A backend that a request adds.
#[derive(Clone, Debug)]
pub(super) struct Added {
    backend: NamedBackend,
    /// Where its keys stand in the request: which of them are set decides what is refused.
    spots: Spots,
}

impl Added {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.backend.table.name
    }

    /// Something that is to be told of it.
    pub(super) fn diagnosis(&self, message: String) -> Diagnosis {
        let path = self.backend.path.clone();
        Diagnosis { place: whole_file(SOURCE), path, message }
    }

    /// Puts it behind the backends of a configuration.
    pub(super) fn put_into(&self, config: &mut ProxyConfig) {
        config.spots.extend(&self.spots);
        config.backends.push(self.backend.clone());
    }
}

/// Reads the JSON object of a request, such as `{"name": "search", "url": "https://h/mcp"}`.
///
/// # Errors
/// All faults at once, each with its place in the request.
pub(super) fn read(text: &str) -> Result<Added, Report> {
    let source = Source::new(SOURCE, text);
    let mut report = Report::default();
    let mut node = match import::parse(&source) {
        Ok(node) => node,
        Err((place, message)) => {
            report.fault(place, "", format!("not JSON: {message}"));
            return Err(report);
        }
    };
    let world = World { folder: PathBuf::new(), var: Rc::new(|_| None) };
    let mut spots = Spots::default();
    let mut reader =
        Reader { source: &source, world: &world, report: &mut report, spots: &mut spots };
    let path = path_of(&node);
    only_itself(&node, &path, &mut reader);
    if let Value::Table(entries) = &mut node.value
        && !entries.iter().any(|(key, _)| key.name == "transport")
    {
        let key = KeyAt { name: "transport".to_owned(), offset: node.offset };
        entries.push((key, Node { offset: node.offset, value: Value::Text("http".to_owned()) }));
    }
    // What is refused is not read.
    let table = match reader.report.is_ok() {
        true => BackendTable::read(&node, &path, &mut reader),
        false => None,
    };
    match table {
        Some(table) if report.is_ok() => {
            let backend = NamedBackend { path, folder: PathBuf::new(), table };
            Ok(Added { backend, spots })
        }
        _ => Err(report),
    }
}

/// Under which its keys are known: no file has such a path.
fn path_of(node: &Node) -> String {
    let name = match &node.value {
        Value::Table(entries) => entries.iter().find_map(|(key, value)| match &value.value {
            Value::Text(name) if key.name == "name" => Some(name.as_str()),
            _ => None,
        }),
        _ => None,
    };
    name.map_or_else(|| "added".to_owned(), |name| join("added", name))
}

/// Refuses what stands for anything of this machine, at any depth.
fn only_itself(node: &Node, path: &str, reader: &mut Reader<'_>) {
    match &node.value {
        Value::Text(text) if text.contains("${") => {
            reader.fault(node.offset, path, "variables are not put into requests");
        }
        Value::Text(text) if text.starts_with("file:") => {
            reader.fault(node.offset, path, "files are not read for requests: give the value");
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                only_itself(item, &format!("{path}[{index}]"), reader);
            }
        }
        Value::Table(entries) => {
            for (key, value) in entries {
                let inner = join(path, &key.name);
                match (key.name.as_str(), &value.value) {
                    ("transport", Value::Text(transport)) if transport == "stdio" => {
                        let message = "found \"stdio\", accepted: \"http\" or \"sse\": no process \
                                       is started for requests";
                        reader.fault(value.offset, &inner, message);
                    }
                    ("ca" | "cert" | "key", _) if path.ends_with(".tls") => {
                        let message = "files are not read for requests: such a backend belongs \
                                       into the configuration file";
                        reader.fault(key.offset, &inner, message);
                    }
                    _ => only_itself(value, &inner, reader),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::setting::Transport;
    use super::*;

    fn faults(text: &str) -> String {
        read(text).map(|backend| format!("{backend:?}")).unwrap_err().to_string()
    }

    #[test]
    fn the_keys_of_backends_are_accepted() {
        let backend = read(r#"{"name": "s", "url": "http://h/mcp"}"#).unwrap().backend;
        assert_eq!((backend.path.as_str(), backend.table.transport), ("added.s", Transport::Http));
        let backend = read(
            r#"{"transport": "sse", "url": "http://h", "name": "s", "bearer_token": "t",
                "headers": {"X-A": "b"}, "timeout": {"seconds": 1.5}, "hide_tools": ["x*"],
                "default_args": {"a": [1, {"b": true}]}, "tls": {"insecure_skip_verify": true}}"#,
        )
        .unwrap()
        .backend;
        assert_eq!(backend.table.transport, Transport::Sse);
        assert_eq!(backend.table.bearer_token.unwrap().expose(), "t");
        assert_eq!(backend.table.default_args.pairs.len(), 1);
    }

    #[test]
    fn nothing_of_this_machine_is_touched() {
        for (text, part) in [
            (
                r#"{"name": "s", "transport": "stdio", "command": "true"}"#,
                "request:1:28: added.s.transport: found \"stdio\", accepted: \"http\" or \"sse\"",
            ),
            (
                r#"{"name": "s", "url": "http://h/${HOME}"}"#,
                "request:1:22: added.s.url: variables are not put into requests",
            ),
            (
                r#"{"name": "s", "url": "http://h", "bearer_token": "file:/etc/hostname"}"#,
                "added.s.bearer_token: files are not read",
            ),
            (
                r#"{"name": "s", "url": "http://h", "headers": {"X-A": "file:/etc/hostname"}}"#,
                "added.s.headers.X-A: files are not read",
            ),
            (
                r#"{"name": "s", "url": "http://h", "default_args": {"a": [{"b": "${HOME:-x}"}]}}"#,
                "added.s.default_args.a[0].b: variables",
            ),
            (
                r#"{"name": "s", "url": "https://h", "tls": {"ca": "/etc/hostname"}}"#,
                "added.s.tls.ca: files are not read for requests",
            ),
        ] {
            let found = faults(text);
            assert!(found.contains(part) && found.lines().count() == 1, "{text}: {found}");
        }
    }

    #[test]
    fn other_faults_are_told_as_those_of_a_file() {
        for (text, part) in [
            ("", "request:1:1: not JSON"),
            ("[]", "request:1:1: added: found an array, accepted: a table"),
            (r#"{"url": "http://h"}"#, "added.name: missing, and there is no default"),
            (r#"{"name": 1}"#, "added.name: found 1, accepted: a string"),
            (r#"{"name": "s", "urll": "http://h"}"#, "unknown key, did you mean `url`?"),
            (r#"{"name": "s", "name": "t"}"#, "the key \"name\" is there twice"),
            (r#"{"name": "s", "url": null}"#, "added.s.url: found null, accepted: a string"),
        ] {
            assert!(faults(text).contains(part), "{text}: {}", faults(text));
        }
    }
}
