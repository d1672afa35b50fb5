//! Owns: the tools of the proxy's own: who sees them, what they say.
//! Never: an answer that the control plane has to give; a name that a backend has.
//! Next: `admin`, the same for people and scripts.
//!
//! MCP 2025-11-25, Server Features, Tools: output schemas, annotations, structured content.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::Ask;
use super::door::is_admin;
use super::session::Outcome;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Raw, walk};
use crate::mcp::catalog::ListKind;
use crate::mcp::method::Method;
use crate::plan::AdminTools;
use crate::telemetry::desk::{Reply, Wanted};
use crate::world::World;

/// A tool of the proxy's own; its name stands behind `proxy` and the separator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    name: &'static str,
    title: &'static str,
    about: &'static str,
}

const LIST_BACKENDS: Tool = Tool {
    name: "list_backends",
    title: "List backends",
    about: "The servers behind this proxy, with their state, their tools and what is wrong with \
            them.",
};
const HEALTH_CHECK: Tool = Tool {
    name: "health_check",
    title: "Check health",
    about: "Whether all servers behind this proxy are well, and which are not.",
};
const SESSION_COUNT: Tool = Tool {
    name: "session_count",
    title: "Count sessions",
    about: "How many client sessions this proxy has.",
};
const CONFIG: Tool = Tool {
    name: "config",
    title: "Show configuration",
    about: "The configuration that is in force, as TOML, without secrets.",
};
const ADD_BACKEND: Tool = Tool {
    name: "add_backend",
    title: "Add a backend",
    about: "Puts one more MCP server, reached over HTTP, behind this proxy, until the proxy ends. \
            Its tools appear under its name once it is up.",
};
/// The last one changes something.
const TOOLS: [Tool; 5] = [LIST_BACKENDS, HEALTH_CHECK, SESSION_COUNT, CONFIG, ADD_BACKEND];

impl Tool {
    /// JSON Schema of what it says.
    fn output(self) -> Value {
        let object = |properties: Value| {
            let names: Vec<&String> =
                properties.as_object().into_iter().flat_map(|map| map.keys()).collect();
            json!({ "type": "object", "required": names, "properties": properties })
        };
        match self {
            LIST_BACKENDS => {
                let some = |kind: &str| json!({ "type": [kind, "null"] });
                let backend = object(json!({
                    "name": { "type": "string" },
                    "transport": { "type": "string" },
                    "era": some("string"),
                    "state": { "type": "string" },
                    "healthy": { "type": "boolean" },
                    "last_success": some("string"),
                    "last_error": some("string"),
                    "tools": { "type": "integer" },
                    "restarts": { "type": "integer" },
                    "breaker": some("string"),
                    "ejected": { "type": "boolean" },
                    "in_flight": { "type": "integer" },
                    "connections": { "type": "integer" },
                }));
                object(json!({
                    "proxy": { "type": "object" },
                    "backends": { "type": "array", "items": backend },
                }))
            }
            HEALTH_CHECK => object(json!({
                "status": { "enum": ["healthy", "degraded"] },
                "unhealthy_backends": { "type": "array", "items": { "type": "string" } },
                "config": { "type": "object" },
                "telemetry": { "type": "object" },
            })),
            ADD_BACKEND => object(json!({
                "name": { "type": "string" },
                "generation": { "type": "integer" },
            })),
            SESSION_COUNT => object(json!({ "sessions": { "type": "integer" } })),
            _ => object(json!({ "toml": { "type": "string" } })),
        }
    }

    /// JSON Schema of its arguments.
    fn input(self) -> Value {
        match self {
            ADD_BACKEND => json!({
                "type": "object",
                "properties": {
                    "name": {
                        "type": "string",
                        "description": "What it is called here: letters, digits, _ - .",
                    },
                    "url": {
                        "type": "string",
                        "description": "Its MCP endpoint, http or https.",
                    },
                },
                "required": ["name", "url"],
                "additionalProperties": false,
            }),
            _ => json!({ "type": "object", "additionalProperties": false }),
        }
    }

    fn entry(self, prefix: &str) -> Value {
        let reads = self != ADD_BACKEND;
        json!({
            "name": format!("{prefix}{}", self.name),
            "title": self.title,
            "description": self.about,
            "inputSchema": self.input(),
            "outputSchema": self.output(),
            "annotations": {
                "title": self.title,
                "readOnlyHint": reads,
                "destructiveHint": false,
                "idempotentHint": reads,
                "openWorldHint": !reads,
            },
        })
    }
}

/// Whether whoever asks may know of them.
fn are_shown(world: &World, ask: &Ask) -> bool {
    world.plan.watch.admin_tools != AdminTools::Off && is_admin(world, ask)
}

/// Those that there are.
fn tools(world: &World) -> &'static [Tool] {
    match world.plan.watch.admin_tools {
        AdminTools::Off => &[],
        AdminTools::Read => &TOOLS[..TOOLS.len() - 1],
        AdminTools::Full => &TOOLS,
    }
}

fn prefix(world: &World) -> String {
    format!("proxy{}", world.plan.separator)
}

/// Whether a backend has a tool of that name: then the name is the backend's.
fn is_taken(world: &World, name: &str) -> bool {
    !world.names.bare.is_empty()
        && world.catalog.borrow().owner_of_name(ListKind::Tools, name).is_some()
}

/// Puts them at the end of the tools in an answer to `tools/list`, which ends with `end`.
pub(super) fn list(world: &World, ask: &Ask, end: &[u8], answer: &mut Vec<u8>) {
    if !are_shown(world, ask) || !answer.ends_with(end) {
        return;
    }
    let entries = world.own_tools.get_or_init(|| {
        let prefix = prefix(world);
        let entry =
            |tool: &Tool| (format!("{prefix}{}", tool.name), tool.entry(&prefix).to_string());
        tools(world).iter().map(entry).collect()
    });
    answer.truncate(answer.len() - end.len());
    for (_, entry) in entries.iter().filter(|(name, _)| !is_taken(world, name)) {
        if !answer.ends_with(b"[") {
            answer.push(b',');
        }
        answer.extend_from_slice(entry.as_bytes());
    }
    answer.extend_from_slice(end);
}

/// The capabilities that `initialize` promises, with that of tools.
pub(super) fn capabilities<'c>(world: &World, ask: &Ask, promised: &'c str) -> Cow<'c, str> {
    let known = walk::member(promised.as_bytes(), "tools").is_some();
    if known || !are_shown(world, ask) {
        return Cow::Borrowed(promised);
    }
    let rest = promised.strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    Cow::Owned(format!("{{\"tools\":{{\"listChanged\":true}}{comma}{rest}"))
}

/// A call of one of them.
pub(super) struct Called {
    tool: Tool,
    /// As they were sent.
    arguments: Vec<u8>,
}

/// The call of a tool of the proxy's own that a message is, if it is one, and for this caller.
pub(super) fn called(
    world: &World,
    ask: &Ask,
    method: Method,
    message: &[u8],
    envelope: &Envelope,
) -> Option<Called> {
    let raw = envelope.name?.of(message);
    // Nearly all names end here.
    if method != Method::ToolsCall || !raw.starts_with(b"\"proxy") || !are_shown(world, ask) {
        return None;
    }
    let name = jsonrpc::unquote(raw)?;
    let own = name.strip_prefix(prefix(world).as_str())?;
    let tool = tools(world).iter().find(|tool| tool.name == own)?;
    let arguments = envelope.arguments.map_or(&b""[..], |span| span.of(message));
    (!is_taken(world, &name)).then(|| Called { tool: *tool, arguments: arguments.to_vec() })
}

/// Calls one of them.
pub(super) async fn call(world: &Rc<World>, ask: &Ask, called: Called, id: &[u8]) -> Outcome {
    ask.facts.own_tool(world, called.tool.name);
    match say(world, called).await {
        Ok(said) => {
            let text = match &said {
                Ok(said) => match &said["toml"] {
                    Value::String(toml) => toml.clone(),
                    _ => format!("{said:#}"),
                },
                Err(why) => why.clone(),
            };
            let content = json!([{ "type": "text", "text": text }]);
            let result = match said {
                Ok(said) => json!({ "content": content, "structuredContent": said }),
                Err(_) => json!({ "content": content, "isError": true }),
            };
            let result = result.to_string();
            let mut answer = Vec::with_capacity(result.len() + 64);
            jsonrpc::result(&mut answer, id, result.as_bytes());
            Outcome::Answer(answer)
        }
        Err(error) => Outcome::Refused { error, id: Raw::new(id) },
    }
}

/// What a tool says, or in words why it did not do what it was asked for.
async fn say(world: &World, called: Called) -> Result<std::result::Result<Value, String>> {
    let Called { tool, arguments } = called;
    if tool == SESSION_COUNT {
        return Ok(Ok(json!({ "sessions": world.counts.sessions.load(Ordering::Relaxed) })));
    }
    let wrong = || Error::new(Kind::Internal).cause("the control plane has no such tool");
    match world.ask_control(Wanted::Tool { name: tool.name, arguments }).await? {
        Reply::Said(text) => serde_json::from_str(&text).map(Ok).map_err(|_| wrong()),
        Reply::Declined(why) => Ok(Err(why)),
        _ => Err(wrong()),
    }
}
