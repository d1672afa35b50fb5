//! Owns: the request era (2026-07-28), strict with what it is sent: head against body, no sessions.
//!
//! Beside the tools that the session era has: `ask` wants input first, `region` has an argument that
//! is repeated in a field, `rounds` wants input several times, `touch` says that a resource changed, `log` says something.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Exchange, plain};
use crate::server::{Channel, Message, Reply, Stub, error, quote, result, text_result};
use crate::stdio::Lines;

const VERSION: &str = "2026-07-28";
const META: &str = "io.modelcontextprotocol/";

fn meta<'v>(params: &'v Value, name: &str) -> &'v Value {
    &params["_meta"][format!("{META}{name}")]
}

/// Whether a message says itself that it is of the request era.
pub(crate) fn is_request(message: &Message<'_>) -> bool {
    !meta(&message.params(), "protocolVersion").is_null()
}

pub(crate) fn is_asked(message: &Message<'_>, version: Option<&str>) -> bool {
    version == Some(VERSION) || is_request(message)
}

/// What `initialize` is answered where there are no sessions.
pub(crate) fn no_sessions(id: &str) -> String {
    let id = if id.is_empty() { "null" } else { id };
    let data = json!({ "supported": [VERSION], "requested": "2025-11-25" });
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32022,"message":"no sessions here","data":{data}}}}}"#
    )
}

fn decode(field: &str) -> String {
    let Some(digits) = field.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="))
    else {
        return field.to_owned();
    };
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for digit in digits.trim_end_matches('=').chars() {
        bits = bits << 6 | alphabet.find(digit).expect("Base64") as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// What is wrong with the envelope of a request.
fn fault(params: &Value) -> Option<String> {
    if meta(params, "protocolVersion") != VERSION {
        return Some(format!("version {}", meta(params, "protocolVersion")));
    }
    if !meta(params, "clientCapabilities").is_object() {
        return Some("no capabilities".into());
    }
    None
}

/// What is wrong with the head of a request.
fn head_fault(fields: &[(String, String)], method: &str, params: &Value) -> Option<String> {
    let field = |name: &str| {
        let mut all = fields.iter().filter(|(field, _)| field == name);
        let value = all.next().map(|(_, value)| value.as_str());
        (all.next().is_none()).then_some(value).flatten()
    };
    if field("mcp-session-id").is_some() || field("last-event-id").is_some() {
        return Some("a session".into());
    }
    if field("mcp-protocol-version") != Some(VERSION) {
        return Some("MCP-Protocol-Version".into());
    }
    if field("mcp-method") != Some(method) {
        return Some("Mcp-Method".into());
    }
    let about = match method {
        "tools/call" | "prompts/get" => &params["name"],
        "resources/read" => &params["uri"],
        "tasks/get" | "tasks/update" | "tasks/cancel" => &params["taskId"],
        _ => &Value::Null,
    };
    let named = field("mcp-name").map(decode);
    if about.as_str() != named.as_deref() {
        return Some(format!("Mcp-Name {named:?} for {about}"));
    }
    if method == "tools/call" && params["name"] == "region" {
        let region = params["arguments"]["region"].as_str();
        let named = field("mcp-param-region").map(decode);
        if region != named.as_deref() {
            return Some(format!("Mcp-Param-Region {named:?} for {region:?}"));
        }
    }
    None
}

/// One POST; whether the connection goes on.
pub(crate) fn post(
    stub: &Stub,
    out: &TcpStream,
    fields: &[(String, String)],
    message: &Message<'_>,
    body: &[u8],
) -> io::Result<bool> {
    let params = message.params();
    let method = message.method.as_deref().unwrap_or_default();
    let Some(id) = message.id.map(|id| id.get().to_owned()) else {
        stub.note(&format!("modern notification {method}"));
        (&mut &*out).write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    };
    let mirrored: Vec<String> = fields
        .iter()
        .filter(|(name, _)| name.starts_with("mcp-"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    stub.note(&format!("modern {method} {}", mirrored.join(" ")));
    if stub.options.strange_while.as_ref().is_some_and(|file| file.exists()) {
        let refusal = no_sessions(&id).replace(VERSION, "2099-01-01");
        plain(out, 400, None, &refusal)?;
        return Ok(true);
    }
    let refusal = fault(&params)
        .map(|why| (-32602, why))
        .or(head_fault(fields, method, &params).map(|why| (-32020, why)));
    if let Some((code, why)) = refusal {
        stub.note(&format!("mismatch {why}"));
        plain(out, 400, None, &error(&id, code, &why))?;
        return Ok(true);
    }
    let exchange =
        Exchange { stub, last: false, out: RefCell::new(out), streaming: Cell::new(false) };
    if method == "subscriptions/listen" {
        return listen(stub, &exchange, &id, &params);
    }
    // A stream that is closed cancels its request.
    let key = id.clone();
    let watched = out.try_clone()?;
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        let over = done.clone();
        scope.spawn(move || {
            watched.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
            while !over.load(std::sync::atomic::Ordering::Acquire) {
                match watched.peek(&mut [0; 1]) {
                    Ok(0) => {
                        stub.note(&format!("closed {key}"));
                        stub.cancel("", &key);
                        break;
                    }
                    Ok(_) => break,
                    Err(_) => {}
                }
            }
            let _ = watched.set_read_timeout(None);
        });
        let reply = handle(stub, &id, method, &params, body, &exchange);
        done.store(true, std::sync::atomic::Ordering::Release);
        match reply {
            Reply::Answer(answer) | Reply::StopReading(answer) => {
                let code: Option<i64> = serde_json::from_str::<Value>(&answer)
                    .ok()
                    .and_then(|answer| answer["error"]["code"].as_i64());
                let status = match code {
                    Some(-32601) => 404,
                    Some(-32602 | -32022..=-32020) => 400,
                    _ => 200,
                };
                match status {
                    200 => exchange.finish(&answer, None)?,
                    status => plain(out, status, None, &answer)?,
                }
                Ok(true)
            }
            Reply::Raw { bytes, close } => (&mut &*out).write_all(&bytes).map(|()| !close),
            Reply::Pieces { answer, .. } => exchange.finish(&answer, None).map(|()| true),
            Reply::Silence | Reply::Nothing => {
                let _ = (&mut &*out).read(&mut [0; 1]);
                Ok(false)
            }
        }
    })
}

/// One line of stdin.
pub(crate) fn line(stub: &Arc<Stub>, message: &Message<'_>, body: &[u8]) {
    let params = message.params();
    let method = message.method.as_deref().unwrap_or_default();
    let Some(id) = message.id.map(|id| id.get().to_owned()) else { return };
    stub.note(&format!("modern {method}"));
    if let Some(why) = fault(&params) {
        stub.note(&format!("mismatch {why}"));
        return Lines.say(&error(&id, -32602, &why)).expect("stdout");
    }
    if method == "subscriptions/listen" {
        let (stub, filter) = (stub.clone(), params["notifications"].clone());
        if !stub.modern_tasks.has_all(&filter) {
            return Lines.say(&error(&id, -32602, "no such task")).expect("stdout");
        }
        Lines.say(&acknowledgement(&id, &filter)).expect("stdout");
        let listening = stub.listen("");
        std::thread::spawn(move || {
            while let Ok(message) = listening.recv() {
                if stub.was_cancelled(&id) {
                    return stub.note(&format!("listen ended {id}"));
                }
                if let Some(tagged) = tagged(&message, &id, &filter) {
                    Lines.say(&tagged).expect("stdout");
                }
            }
        });
        return;
    }
    match handle(stub, &id, method, &params, body, &Lines) {
        Reply::Answer(answer) | Reply::StopReading(answer) | Reply::Pieces { answer, .. } => {
            Lines.say(&answer).expect("stdout");
        }
        _ => {}
    }
}

fn acknowledgement(id: &str, filter: &Value) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"{META}subscriptionId":{id}}},"notifications":{filter}}}}}"#
    )
}

/// A message for all, as one who listens gets it, if it wants it.
fn tagged(message: &str, id: &str, filter: &Value) -> Option<String> {
    let mut value: Value = serde_json::from_str(message).expect("JSON");
    let wanted = match value["method"].as_str()? {
        "notifications/tools/list_changed" => filter["toolsListChanged"] == true,
        "notifications/prompts/list_changed" => filter["promptsListChanged"] == true,
        "notifications/resources/list_changed" => filter["resourcesListChanged"] == true,
        "notifications/tasks" => filter["taskIds"]
            .as_array()
            .is_some_and(|tasks| tasks.contains(&value["params"]["taskId"])),
        "notifications/resources/updated" => filter["resourceSubscriptions"]
            .as_array()
            .is_some_and(|uris| uris.contains(&value["params"]["uri"])),
        _ => false,
    };
    let id: Value = serde_json::from_str(id).expect("an id");
    value["params"]["_meta"] = json!({ format!("{META}subscriptionId"): id });
    wanted.then(|| value.to_string())
}

fn listen(stub: &Stub, exchange: &Exchange<'_>, id: &str, params: &Value) -> io::Result<bool> {
    let filter = &params["notifications"];
    if !stub.modern_tasks.has_all(filter) {
        plain(&exchange.out.borrow(), 400, None, &error(id, -32602, "no such task"))?;
        return Ok(true);
    }
    let listening = stub.listen("");
    exchange.begin_stream(None)?;
    exchange.event(&acknowledgement(id, filter))?;
    stub.note(&format!("listening {filter}"));
    loop {
        let said = match listening.recv_timeout(Duration::from_millis(50)) {
            Ok(message) if message == "hang up" => return Ok(false),
            Ok(message) => match tagged(&message, id, filter) {
                Some(message) => exchange.event(&message),
                None => Ok(()),
            },
            Err(RecvTimeoutError::Timeout) => exchange.chunk(": still here\n\n"),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        };
        if said.is_err() {
            stub.note(&format!("deaf {filter}"));
            return Ok(false);
        }
    }
}

const REGION: &str = r#"{"name":"region","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}}"#;

fn handle(
    stub: &Stub,
    id: &str,
    method: &str,
    params: &Value,
    body: &[u8],
    channel: &dyn Channel,
) -> Reply {
    let options = &stub.options;
    let scope = if options.public { "public" } else { "private" };
    let cache = format!(r#""ttlMs":{},"cacheScope":"{scope}""#, options.ttl_ms);
    let complete = |answer: String, more: &str| {
        let comma = if more.is_empty() { "" } else { "," };
        let start = format!(r#""result":{{"resultType":"complete",{more}{comma}"#);
        Reply::Answer(answer.replacen(r#""result":{"#, &start, 1).replace(",}", "}"))
    };
    if options.tasks
        && let Some(reply) = stub.modern_tasks.answer(stub, id, method, params, channel)
    {
        return reply;
    }
    match method {
        "server/discover" => {
            let extension = match options.tasks {
                true => "io.modelcontextprotocol/tasks",
                false => "com.example/methods",
            };
            let capabilities = match options.only_tools {
                true => json!({ "tools": { "listChanged": true } }),
                false => json!({
                    "tools": { "listChanged": true },
                    "prompts": { "listChanged": true },
                    "resources": { "listChanged": true, "subscribe": true },
                    "completions": {}, "logging": {},
                    "extensions": {
                        "io.modelcontextprotocol/ui": { "mimeTypes": ["text/html"] },
                        extension: {},
                    },
                }),
            };
            let name = &options.name;
            Reply::Answer(result(
                id,
                &format!(
                    r#"{{"resultType":"complete","supportedVersions":["{VERSION}"],"capabilities":{capabilities},"instructions":"Instructions of {name}.",{cache},"_meta":{{"{META}serverInfo":{{"name":"{name}","version":"0"}}}}}}"#
                ),
            ))
        }
        "tools/list" => match stub.list("", method, params) {
            Some(Ok(page)) => {
                let plain =
                    |name| format!(r#"{{"name":"{name}","inputSchema":{{"type":"object"}}}}"#);
                let mut more = vec!["ask", "rounds", "touch", "fuss", "log", "hang_up"];
                if options.tasks {
                    more.extend(crate::modern_tasks::TOOLS);
                }
                let more = more.into_iter().map(plain).collect::<Vec<_>>().join(",");
                let start = format!(r#""tools":[{REGION},{more},"#);
                complete(result(id, &page.replacen(r#""tools":["#, &start, 1)), &cache)
            }
            _ => Reply::Answer(error(id, -32602, "no such page")),
        },
        "resources/list" | "resources/templates/list" | "prompts/list" => {
            match stub.list("", method, params) {
                Some(Ok(page)) => complete(result(id, &page), &cache),
                Some(Err(why)) => Reply::Answer(error(id, -32602, &why)),
                None => Reply::Answer(error(id, -32601, "no such list")),
            }
        }
        "resources/read" => {
            let answer = stub.read(id, params["uri"].as_str().unwrap_or_default());
            match answer.contains(r#""error""#) {
                true => Reply::Answer(answer.replace("-32002", "-32602")),
                false => complete(answer, &cache),
            }
        }
        "prompts/get" => match stub.prompt(id, params) {
            answer if answer.contains(r#""error""#) => Reply::Answer(answer),
            answer => complete(answer, ""),
        },
        "completion/complete" => {
            let said = quote(&params["ref"].to_string());
            complete(result(id, &format!(r#"{{"completion":{{"values":[{said}]}}}}"#)), "")
        }
        "tools/call" => match params["name"].as_str().unwrap_or_default() {
            "ask" => match params["inputResponses"].as_object() {
                None => Reply::Answer(result(
                    id,
                    r#"{"resultType":"input_required","inputRequests":{"k\u0031":{"method":"elicitation/create","params":{"mode":"form","message":"Name?","requestedSchema":{"type":"object","properties":{}}}}},"requestState":"st\u0061te \/1"}"#,
                )),
                Some(_) => {
                    let said = text_result(&String::from_utf8_lossy(body));
                    complete(result(id, &said), "")
                }
            },
            "rounds" => crate::rounds::call(stub, id, params, body, channel),
            "region" => complete(result(id, &text_result("region")), ""),
            "log" => {
                for level in ["debug", "warning"] {
                    let _ = channel.say(&format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","data":"said"}}}}"#
                    ));
                }
                complete(result(id, &text_result("logged")), "")
            }
            "touch" => {
                let uri = &params["arguments"]["uri"];
                stub.tell_all(&format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{{"uri":{uri},"x":1.0}}}}"#
                ));
                complete(result(id, &text_result("touched")), "")
            }
            "fuss" => {
                stub.tell_all(
                    r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{}}"#,
                );
                complete(result(id, &text_result("fuss")), "")
            }
            "hang_up" => {
                stub.tell_all("hang up");
                complete(result(id, &text_result("hung up")), "")
            }
            _ => match stub.call("", id, params, body, channel) {
                Reply::Answer(answer) if answer.contains(r#""result":"#) => complete(answer, ""),
                reply => reply,
            },
        },
        _ => Reply::Answer(error(id, -32601, "no such method")),
    }
}
