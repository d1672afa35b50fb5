//! Owns: completion, log levels, subscriptions: what `--utilities` adds to the stub.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::server::{Channel, Stub, error, quote, result, text_result};

/// Tools that come with the option.
pub(crate) const TOOLS: [&str; 2] = ["log", "touch"];
const LEVELS: [&str; 8] =
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// What it remembers, by session.
#[derive(Default)]
pub(crate) struct Utilities {
    levels: Mutex<HashMap<String, usize>>,
    subscribed: Mutex<HashMap<String, BTreeSet<String>>>,
}

impl Utilities {
    pub(crate) fn promise(capabilities: &mut Value) {
        capabilities["logging"] = json!({});
        capabilities["completions"] = json!({});
        if let Some(resources) = capabilities.get_mut("resources") {
            resources["subscribe"] = json!(true);
        }
    }

    /// The answer to a request of one of these kinds.
    pub(crate) fn answer(
        &self,
        stub: &Stub,
        session: &str,
        id: &str,
        method: &str,
        params: &Value,
        body: &[u8],
    ) -> Option<String> {
        let uri = params["uri"].as_str().unwrap_or_default().to_owned();
        Some(match method {
            "completion/complete" => {
                stub.note(&format!("complete {}", params["ref"]));
                let body = String::from_utf8_lossy(body);
                result(id, &json!({ "completion": { "values": [body], "total": 1 } }).to_string())
            }
            "logging/setLevel" => {
                let name = params["level"].as_str().unwrap_or_default();
                let Some(level) = LEVELS.iter().position(|level| *level == name) else {
                    return Some(error(id, -32602, "stub knows no such level"));
                };
                self.levels.lock().unwrap().insert(session.to_owned(), level);
                stub.note(&format!("level {name}"));
                result(id, "{}")
            }
            "resources/subscribe" if uri.ends_with("/nothing") => {
                stub.note(&format!("refused {uri}"));
                error(id, -32002, "stub has it not")
            }
            "resources/subscribe" => {
                if let Some(file) = &stub.options.die_subscribing
                    && std::fs::remove_file(file).is_ok()
                {
                    stub.note(&format!("die {uri}"));
                    std::process::exit(1);
                }
                stub.note(&format!("subscribe {uri}"));
                let mut all = self.subscribed.lock().unwrap();
                all.entry(session.to_owned()).or_default().insert(uri);
                result(id, r#"{"x":1.0}"#)
            }
            "resources/unsubscribe" => {
                stub.note(&format!("unsubscribe {uri}"));
                let mut all = self.subscribed.lock().unwrap();
                all.entry(session.to_owned()).or_default().remove(&uri);
                result(id, r#"{"x":1.0}"#)
            }
            _ => return None,
        })
    }

    /// `log` says a message of each level, on the stream of the call; `touch` says that a resource
    /// was updated, to the sessions that want to hear of it.
    pub(crate) fn call(
        &self,
        stub: &Stub,
        session: &str,
        id: &str,
        tool: &str,
        arguments: &Value,
        channel: &dyn Channel,
    ) -> Option<String> {
        match tool {
            "log" => {
                let least = self.levels.lock().unwrap().get(session).copied().unwrap_or(0);
                let text = quote(arguments["text"].as_str().unwrap_or_default());
                let logger = match arguments["logger"].as_str() {
                    Some(logger) => format!(r#""logger":{},"#, quote(logger)),
                    None => String::new(),
                };
                for level in &LEVELS[least..] {
                    let said = channel.say(&format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{{logger}"level":"{level}","data":{text},"x":1.0}}}}"#
                    ));
                    if let Err(error) = said {
                        stub.note(&format!("log failed: {error}"));
                    }
                }
                Some(result(id, &text_result("logged")))
            }
            "touch" => {
                let uri = arguments["uri"].as_str().unwrap_or_default();
                let message = format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{{"uri":{}}}}}"#,
                    quote(uri)
                );
                let subscribed = self.subscribed.lock().unwrap();
                let wants = |session: &String| {
                    let all = subscribed.get(session);
                    all.is_some_and(|all| all.iter().any(|own| uri.starts_with(own.as_str())))
                };
                let told = stub.tell_sessions(&message, wants);
                Some(result(id, &text_result(&format!("told {told}"))))
            }
            _ => None,
        }
    }
}
