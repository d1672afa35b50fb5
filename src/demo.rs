//! Owns: the demo MCP server on stdio, `mcp-proxy demo-server`: what a newcomer meets first, and a
//! small example of a server.
//! Never: the proxy's runtime; plain blocking std input and output, one thread for each slow call.
//! Next: nothing; it is a program of its own inside the binary.
//!
//! Speaks every revision with `initialize` (2024-11-05 to 2025-11-25), one JSON-RPC message a line
//! (MCP 2025-11-25, Transports, stdio). Quick requests are answered where they are read; a slow
//! call and a batch run on a thread, so that a ping or a cancellation never waits behind them.

use std::collections::HashMap;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::limits;
use crate::mcp::revision::Revision;

/// Slow calls and batches that run at once; beyond it they are refused.
const JOBS_MAX: usize = 64;
/// The highest number that `slow_count` counts to.
const COUNT_MAX: u64 = 1000;
/// The longest pause between two numbers of `slow_count`, in milliseconds.
const DELAY_MS_MAX: u64 = 10_000;

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const RESOURCE_NOT_FOUND: i32 = -32002;
const BUSY: i32 = -32000;

const WELCOME_URI: &str = "demo://welcome";
const GREETING_URI: &str = "demo://greeting/";

const INSTRUCTIONS: &str = "A demonstration server without side effects. `echo` and `add` answer \
at once, `slow_count` reports progress and can be cancelled. Read demo://welcome first.";

const WELCOME: &str = "\
# Welcome

You are talking to the demo server of mcp-proxy, a child process behind the proxy.

- Tool `echo` sends your message back, `add` adds two numbers.
- Tool `slow_count` counts slowly: it reports progress and stops when it is cancelled.
- Resource `demo://greeting/{name}` greets anybody by name.
- Prompt `explain` asks the model to explain a topic to an audience.

Put your own servers beside this one in proxy.toml, and take this one out when you are done.
";

/// Serves MCP on stdin and stdout until stdin ends; calls that still run then are abandoned.
pub fn serve_stdio() -> ExitCode {
    let stdin = io::stdin().lock();
    if stdin.is_terminal() {
        eprintln!(
            "mcp-proxy demo-server speaks MCP on stdin and stdout, one JSON message a line; \
             a client or a proxy should start it. Ctrl-D ends it."
        );
    }
    match Server::new(Box::new(io::stdout())).serve(stdin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mcp-proxy demo-server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A request that has no result.
enum Fault {
    /// Answered with a JSON-RPC error.
    Rpc { code: i32, message: String, data: Option<Value> },
    /// Cancelled by the client, who wants no answer (2025-11-25, Cancellation).
    Cancelled,
}

impl Fault {
    fn rpc(code: i32, message: impl Into<String>) -> Fault {
        Fault::Rpc { code, message: message.into(), data: None }
    }
}

/// A slow call or batch; the reading thread may cancel it.
#[derive(Default)]
struct Job {
    cancelled: Mutex<bool>,
    changed: Condvar,
}

impl Job {
    fn cancel(&self) {
        *lock(&self.cancelled) = true;
        self.changed.notify_all();
    }

    /// Waits for `pause`, or until it is cancelled.
    fn pause(&self, pause: Duration) -> Result<(), Fault> {
        let end = Instant::now() + pause;
        let mut cancelled = lock(&self.cancelled);
        loop {
            if *cancelled {
                return Err(Fault::Cancelled);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let waited = self.changed.wait_timeout(cancelled, left);
            cancelled = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Server {
    out: Mutex<Box<dyn Write + Send>>,
    /// By the text of the request's id; `1` and `"1"` differ.
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    revision: Mutex<Revision>,
}

impl Server {
    fn new(out: Box<dyn Write + Send>) -> Arc<Server> {
        Arc::new(Server {
            out: Mutex::new(out),
            jobs: Mutex::new(HashMap::new()),
            revision: Mutex::new(Revision::NEWEST),
        })
    }

    /// Reads messages until the input ends; fails when it cannot be read or answered.
    fn serve(self: &Arc<Self>, mut input: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // One byte more than allowed tells a full line from an overlong one.
            let most = limits::MESSAGE_BYTES_MAX as u64 + 1;
            if input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.len() as u64 == most && !line.ends_with(b"\n") {
                input.skip_until(b'\n')?;
                let fault = Fault::rpc(PARSE_ERROR, "Parse error: line too long");
                self.say(&answer(&Value::Null, Err(fault)))?;
            } else if !line.trim_ascii().is_empty() {
                self.line(&line)?;
            }
        }
        for job in lock(&self.jobs).values() {
            job.cancel();
        }
        Ok(())
    }

    fn line(self: &Arc<Self>, line: &[u8]) -> io::Result<()> {
        match serde_json::from_slice::<Value>(line) {
            Ok(Value::Array(batch)) if !batch.is_empty() && lock(&self.revision).batches() => {
                self.batch(batch)
            }
            Ok(message) => self.message(message),
            Err(_) => self.say(&answer(&Value::Null, Err(Fault::rpc(PARSE_ERROR, "Parse error")))),
        }
    }

    fn message(self: &Arc<Self>, message: Value) -> io::Result<()> {
        let request = match Incoming::read(message) {
            Incoming::Request(request) => request,
            other => return other.settle(self).map_or(Ok(()), |answer| self.say(&answer)),
        };
        if !request.is_slow() {
            let result = self.request(&request, &Job::default());
            return self.say(&answer(&request.id, result));
        }
        let id = request.id.clone();
        self.run(std::slice::from_ref(&id), move |server, jobs| {
            match server.request(&request, &jobs[0]) {
                // A cancelled request gets no answer (2025-11-25, Cancellation).
                Err(Fault::Cancelled) => None,
                result => Some(answer(&request.id, result)),
            }
        })
    }

    /// One array of messages, answered with one array (2025-03-26, Base Protocol, Batching).
    fn batch(self: &Arc<Self>, batch: Vec<Value>) -> io::Result<()> {
        let batch: Vec<Incoming> = batch.into_iter().map(Incoming::read).collect();
        let ids: Vec<Value> = batch.iter().filter_map(|m| m.id().cloned()).collect();
        self.run(&ids, move |server, jobs| {
            let mut jobs = jobs.iter();
            let mut answers = Vec::new();
            for message in batch {
                let Incoming::Request(request) = message else {
                    answers.extend(message.settle(server));
                    continue;
                };
                let job = jobs.next().expect("one job for each request");
                match server.request(&request, job) {
                    Err(Fault::Cancelled) => {}
                    result => answers.push(answer(&request.id, result)),
                }
            }
            (!answers.is_empty()).then_some(Value::Array(answers))
        })
    }

    /// Runs `work` on a thread, with one job for each id. The jobs are known before the next
    /// line is read: a cancellation right behind its request must find it.
    fn run(
        self: &Arc<Self>,
        ids: &[Value],
        work: impl FnOnce(&Arc<Server>, &[Arc<Job>]) -> Option<Value> + Send + 'static,
    ) -> io::Result<()> {
        let keys: Vec<String> = ids.iter().map(Value::to_string).collect();
        let mut running = lock(&self.jobs);
        if running.len() + keys.len() > JOBS_MAX {
            drop(running);
            return ids.iter().try_for_each(|id| {
                self.say(&answer(id, Err(Fault::rpc(BUSY, "Too many calls are running"))))
            });
        }
        let jobs: Vec<Arc<Job>> = keys.iter().map(|_| Arc::default()).collect();
        running.extend(keys.iter().cloned().zip(jobs.iter().cloned()));
        drop(running);
        let server = self.clone();
        let thread = std::thread::Builder::new().name("call".into());
        thread
            .spawn(move || {
                let answer = work(&server, &jobs);
                let mut running = lock(&server.jobs);
                keys.iter().for_each(|key| drop(running.remove(key)));
                drop(running);
                if let Some(answer) = answer {
                    // A client that is gone shows itself to the reading thread too.
                    let _ = server.say(&answer);
                }
            })
            .map(drop)
    }

    /// Writes one message as one line, in one piece: threads share the output.
    fn say(&self, message: &Value) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut out = lock(&self.out);
        out.write_all(&line)?;
        out.flush()
    }

    fn request(&self, request: &Request, job: &Job) -> Result<Value, Fault> {
        let params = &request.params;
        match request.method.as_str() {
            "initialize" => Ok(self.initialize(params)),
            "ping" => Ok(json!({})),
            "tools/list" => Ok(json!({ "tools": tools() })),
            "tools/call" => self.call(params, job),
            "resources/list" => Ok(json!({ "resources": resources() })),
            "resources/templates/list" => Ok(json!({ "resourceTemplates": templates() })),
            "resources/read" => read_resource(params),
            "prompts/list" => Ok(json!({ "prompts": prompts() })),
            "prompts/get" => get_prompt(params),
            other => Err(Fault::rpc(METHOD_NOT_FOUND, format!("Method not found: {other}"))),
        }
    }

    fn initialize(&self, params: &Value) -> Value {
        let asked = params["protocolVersion"].as_str().unwrap_or_default();
        let revision = Revision::negotiate(asked.as_bytes());
        *lock(&self.revision) = revision;
        json!({
            "protocolVersion": revision.as_str(),
            "capabilities": { "tools": {}, "resources": {}, "prompts": {} },
            "serverInfo": {
                "name": "mcp-proxy-demo",
                "title": "Demo server of mcp-proxy",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "instructions": INSTRUCTIONS,
        })
    }

    fn call(&self, params: &Value, job: &Job) -> Result<Value, Fault> {
        let name = string(params, "name")?;
        let arguments = &params["arguments"];
        let outcome = match name {
            "echo" => echo(arguments),
            "add" => add(arguments),
            "slow_count" => self.slow_count(arguments, &params["_meta"]["progressToken"], job)?,
            other => {
                return Err(Fault::rpc(INVALID_PARAMS, format!("Unknown tool: {other}")));
            }
        };
        // Wrong arguments are the tool's own error, which the model can read and correct
        // (2025-11-25, Tools, Error Handling).
        Ok(outcome.unwrap_or_else(
            |why| json!({ "content": [{ "type": "text", "text": why }], "isError": true }),
        ))
    }

    fn slow_count(
        &self,
        arguments: &Value,
        progress_token: &Value,
        job: &Job,
    ) -> Result<Result<Value, String>, Fault> {
        let read = || {
            let to = whole(arguments, "to", 5, 1..=COUNT_MAX)?;
            Ok((to, whole(arguments, "delay_ms", 500, 0..=DELAY_MS_MAX)?))
        };
        let (to, delay_ms) = match read() {
            Ok(read) => read,
            Err(why) => return Ok(Err(why)),
        };
        for number in 1..=to {
            job.pause(Duration::from_millis(delay_ms))?;
            if !progress_token.is_null() {
                let progress = json!({
                    "jsonrpc": "2.0",
                    "method": "notifications/progress",
                    "params": {
                        "progressToken": progress_token,
                        "progress": number,
                        "total": to,
                        "message": format!("{number} of {to}"),
                    },
                });
                // Nobody is left to answer when nobody reads.
                self.say(&progress).map_err(|_| Fault::Cancelled)?;
            }
        }
        Ok(Ok(structured(format!("Counted to {to}."), json!({ "counted": to }))))
    }
}

struct Request {
    id: Value,
    method: String,
    params: Value,
}

impl Request {
    fn is_slow(&self) -> bool {
        self.method == "tools/call" && self.params["name"] == "slow_count"
    }
}

/// One message of the client.
enum Incoming {
    Request(Request),
    Notification {
        method: String,
        params: Value,
    },
    /// An answer to a request that this server never sent.
    Response,
    Invalid {
        id: Value,
    },
}

impl Incoming {
    fn read(mut message: Value) -> Incoming {
        let id = message.get_mut("id").map(Value::take);
        // MCP allows strings and integers, and no null (2025-11-25, Base Protocol, Requests).
        let id_is_legal = match &id {
            None => true,
            Some(id) => id.is_string() || id.is_i64() || id.is_u64(),
        };
        if message["jsonrpc"] != "2.0" || !id_is_legal {
            return Incoming::Invalid { id: id.filter(|_| id_is_legal).unwrap_or(Value::Null) };
        }
        let params = message.get_mut("params").map(Value::take).unwrap_or_default();
        match (message.get_mut("method").map(Value::take), id) {
            (Some(Value::String(method)), Some(id)) => {
                Incoming::Request(Request { id, method, params })
            }
            (Some(Value::String(method)), None) => Incoming::Notification { method, params },
            (None, Some(_)) if message.get("result").or(message.get("error")).is_some() => {
                Incoming::Response
            }
            (_, id) => Incoming::Invalid { id: id.unwrap_or_default() },
        }
    }

    fn id(&self) -> Option<&Value> {
        match self {
            Incoming::Request(request) => Some(&request.id),
            _ => None,
        }
    }

    /// Does what anything but a request asks for; what must be answered to it.
    fn settle(self, server: &Server) -> Option<Value> {
        match self {
            Incoming::Notification { method, params } => {
                if method == "notifications/cancelled" {
                    let key = params["requestId"].to_string();
                    if let Some(job) = lock(&server.jobs).get(&key) {
                        job.cancel();
                    }
                }
                None
            }
            Incoming::Invalid { id } => {
                Some(answer(&id, Err(Fault::rpc(INVALID_REQUEST, "Invalid Request"))))
            }
            Incoming::Request(_) | Incoming::Response => None,
        }
    }
}

fn answer(id: &Value, result: Result<Value, Fault>) -> Value {
    match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(Fault::Rpc { code, message, data }) => {
            let mut error = json!({ "code": code, "message": message });
            if let Some(data) = data {
                error["data"] = data;
            }
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
        Err(Fault::Cancelled) => unreachable!("a cancelled request is not answered"),
    }
}

fn tools() -> Value {
    let read_only = |title: &str| {
        json!({
            "title": title,
            "readOnlyHint": true,
            "destructiveHint": false,
            "idempotentHint": true,
            "openWorldHint": false,
        })
    };
    json!([
        {
            "name": "echo",
            "title": "Echo",
            "description": "Sends the message back, as it is.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "message": { "type": "string", "description": "What to send back." },
                },
                "required": ["message"],
            },
            "annotations": read_only("Echo"),
        },
        {
            "name": "add",
            "title": "Add two numbers",
            "description": "Adds two numbers. Whole numbers are added exactly.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "a": { "type": "number", "description": "The first number." },
                    "b": { "type": "number", "description": "The second number." },
                },
                "required": ["a", "b"],
            },
            "outputSchema": {
                "type": "object",
                "properties": { "sum": { "type": "number" } },
                "required": ["sum"],
            },
            "annotations": read_only("Add two numbers"),
        },
        {
            "name": "slow_count",
            "title": "Count slowly",
            "description": "Counts from 1 to a number with a pause before each one, reporting \
                progress to clients that ask for it. Can be cancelled at any time.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "to": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": COUNT_MAX,
                        "default": 5,
                        "description": "Where to stop.",
                    },
                    "delay_ms": {
                        "type": "integer",
                        "minimum": 0,
                        "maximum": DELAY_MS_MAX,
                        "default": 500,
                        "description": "Pause before each number, in milliseconds.",
                    },
                },
            },
            "outputSchema": {
                "type": "object",
                "properties": { "counted": { "type": "integer" } },
                "required": ["counted"],
            },
            "annotations": read_only("Count slowly"),
        },
    ])
}

fn resources() -> Value {
    json!([{
        "uri": WELCOME_URI,
        "name": "welcome",
        "title": "Welcome",
        "description": "What this server offers, and what to try first.",
        "mimeType": "text/markdown",
        "size": WELCOME.len(),
    }])
}

fn templates() -> Value {
    json!([{
        "uriTemplate": format!("{GREETING_URI}{{name}}"),
        "name": "greeting",
        "title": "Greeting",
        "description": "A greeting for anybody, by name.",
        "mimeType": "text/plain",
    }])
}

fn prompts() -> Value {
    json!([{
        "name": "explain",
        "title": "Explain a topic",
        "description": "Asks for an explanation that suits its reader.",
        "arguments": [
            { "name": "topic", "title": "Topic", "description": "What to explain.", "required": true },
            {
                "name": "audience",
                "title": "Audience",
                "description": "Who will read it; a curious beginner if left out.",
                "required": false,
            },
        ],
    }])
}

fn echo(arguments: &Value) -> Result<Value, String> {
    let message = arguments["message"].as_str().ok_or("`message` must be a string")?;
    Ok(json!({ "content": [{ "type": "text", "text": message }] }))
}

fn add(arguments: &Value) -> Result<Value, String> {
    let number = |key: &str| match &arguments[key] {
        Value::Number(number) => Ok(number),
        _ => Err(format!("`{key}` must be a number")),
    };
    let (a, b) = (number("a")?, number("b")?);
    let exact = match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.checked_add(b).map(Value::from),
        _ => None,
    };
    let sum = match exact {
        Some(sum) => sum,
        // A number of JSON is always a double here, if not exactly.
        None => {
            let sum = a.as_f64().unwrap_or(f64::NAN) + b.as_f64().unwrap_or(f64::NAN);
            Value::from(serde_json::Number::from_f64(sum).ok_or("the sum is out of range")?)
        }
    };
    Ok(structured(sum.to_string(), json!({ "sum": sum })))
}

/// A result for models (text) and for programs (structured) alike.
fn structured(text: String, value: Value) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "structuredContent": value })
}

fn read_resource(params: &Value) -> Result<Value, Fault> {
    let uri = string(params, "uri")?;
    let (mime_type, text) = match uri.strip_prefix(GREETING_URI) {
        Some(name) if !name.is_empty() && !name.contains('/') => {
            ("text/plain", format!("Hello, {}!", percent_decode(name)))
        }
        _ if uri == WELCOME_URI => ("text/markdown", WELCOME.to_owned()),
        _ => {
            return Err(Fault::Rpc {
                code: RESOURCE_NOT_FOUND,
                message: "Resource not found".into(),
                data: Some(json!({ "uri": uri })),
            });
        }
    };
    Ok(json!({ "contents": [{ "uri": uri, "mimeType": mime_type, "text": text }] }))
}

fn get_prompt(params: &Value) -> Result<Value, Fault> {
    let name = string(params, "name")?;
    if name != "explain" {
        return Err(Fault::rpc(INVALID_PARAMS, format!("Unknown prompt: {name}")));
    }
    let topic = string(&params["arguments"], "topic")?;
    let audience = params["arguments"]["audience"].as_str().unwrap_or("a curious beginner");
    Ok(json!({
        "description": "Asks for an explanation that suits its reader.",
        "messages": [{
            "role": "user",
            "content": {
                "type": "text",
                "text": format!("Explain {topic} to {audience}, with one example."),
            },
        }],
    }))
}

fn string<'a>(from: &'a Value, key: &str) -> Result<&'a str, Fault> {
    from[key]
        .as_str()
        .ok_or_else(|| Fault::rpc(INVALID_PARAMS, format!("`{key}` must be a string")))
}

fn whole(
    from: &Value,
    key: &str,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, String> {
    let number = match &from[key] {
        Value::Null => return Ok(default),
        value => value.as_u64().filter(|number| range.contains(number)),
    };
    number.ok_or_else(|| {
        format!("`{key}` must be a whole number from {} to {}", range.start(), range.end())
    })
}

/// Percent-decoding of one path segment (RFC 3986 §2.1); what is no escape stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = match bytes[at] {
            b'%' => bytes.get(at + 1..at + 3),
            _ => None,
        };
        let decoded = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(decoded.unwrap_or(bytes[at]));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A panic while a lock was held left nothing half-done here.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, PipeReader, PipeWriter};
    use std::thread::JoinHandle;

    /// A server on a thread, as its client sees it: lines in, lines out.
    struct Peer {
        stdin: Option<PipeWriter>,
        stdout: BufReader<PipeReader>,
        server: Option<JoinHandle<io::Result<()>>>,
    }

    impl Peer {
        fn new() -> Peer {
            let (input, stdin) = io::pipe().unwrap();
            let (stdout, output) = io::pipe().unwrap();
            let server = std::thread::spawn(move || {
                Server::new(Box::new(output)).serve(BufReader::new(input))
            });
            Peer { stdin: Some(stdin), stdout: BufReader::new(stdout), server: Some(server) }
        }

        fn send(&mut self, message: Value) {
            self.send_text(&message.to_string());
        }

        fn send_text(&mut self, line: &str) {
            self.stdin.as_ref().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
        }

        fn next(&mut self) -> Value {
            let mut line = String::new();
            self.stdout.read_line(&mut line).unwrap();
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a line of JSON: {line:?}"))
        }

        fn ask(&mut self, method: &str, params: Value) -> Value {
            self.send(json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params }));
            let answer = self.next();
            assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(7)));
            answer
        }

        fn call(&mut self, name: &str, arguments: Value) -> Value {
            self.ask("tools/call", json!({ "name": name, "arguments": arguments }))
        }

        fn end(mut self) {
            drop(self.stdin.take());
            self.server.take().unwrap().join().unwrap().unwrap();
        }
    }

    #[test]
    fn every_revision_is_answered_with_itself_and_others_with_the_newest() {
        let mut peer = Peer::new();
        for revision in Revision::ALL {
            let answer = peer.ask("initialize", json!({ "protocolVersion": revision.as_str() }));
            assert_eq!(answer["result"]["protocolVersion"], revision.as_str());
        }
        let answer = peer.ask("initialize", json!({ "protocolVersion": "2099-01-01" }));
        assert_eq!(answer["result"]["protocolVersion"], Revision::NEWEST.as_str());
        assert!(answer["result"]["capabilities"]["tools"].is_object());
        assert!(answer["result"]["instructions"].as_str().unwrap().contains("slow_count"));
        peer.end();
    }

    #[test]
    fn tools_answer_in_text_and_in_structure() {
        let mut peer = Peer::new();
        let listed = peer.ask("tools/list", json!({}));
        let names: Vec<&str> = listed["result"]["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tool| tool["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["echo", "add", "slow_count"]);

        let answer = peer.call("echo", json!({ "message": "grüß\n\"dich\"" }));
        assert_eq!(answer["result"]["content"][0]["text"], "grüß\n\"dich\"");
        let answer = peer.call("add", json!({ "a": 2, "b": 40 }));
        assert_eq!(answer["result"]["structuredContent"], json!({ "sum": 42 }));
        assert_eq!(answer["result"]["content"][0]["text"], "42");
        // 2^53 + 1 has no double: whole numbers are added as whole numbers.
        let answer = peer.call("add", json!({ "a": 9_007_199_254_740_992u64, "b": 1 }));
        assert_eq!(answer["result"]["content"][0]["text"], "9007199254740993");
        let answer = peer.call("add", json!({ "a": 0.5, "b": 1 }));
        assert_eq!(answer["result"]["structuredContent"], json!({ "sum": 1.5 }));
        peer.end();
    }

    #[test]
    fn wrong_arguments_are_the_tools_own_errors_and_unknown_names_are_the_protocols() {
        let mut peer = Peer::new();
        for (name, arguments) in [
            ("echo", json!({})),
            ("add", json!({ "a": "1", "b": 2 })),
            ("add", json!({ "a": 1e308, "b": 1e308 })),
            ("slow_count", json!({ "to": 0 })),
            ("slow_count", json!({ "delay_ms": -1 })),
        ] {
            let answer = peer.call(name, arguments.clone());
            assert_eq!(answer["result"]["isError"], true, "{name} {arguments}: {answer}");
        }
        assert_eq!(peer.call("nothing", json!({}))["error"]["code"], INVALID_PARAMS);
        assert_eq!(peer.ask("tools/call", json!({}))["error"]["code"], INVALID_PARAMS);
        assert_eq!(peer.ask("tools/none", json!({}))["error"]["code"], METHOD_NOT_FOUND);
        peer.end();
    }

    #[test]
    fn progress_comes_before_the_answer_with_the_clients_own_token() {
        for token in [json!("a token"), json!(0)] {
            let mut peer = Peer::new();
            peer.send(json!({ "jsonrpc": "2.0", "id": "x", "method": "tools/call", "params": {
                "name": "slow_count",
                "arguments": { "to": 3, "delay_ms": 0 },
                "_meta": { "progressToken": token },
            }}));
            for number in 1..=3 {
                let progress = peer.next();
                assert_eq!(progress["method"], "notifications/progress");
                assert_eq!(progress["params"]["progressToken"], token);
                assert_eq!(progress["params"]["progress"], number);
                assert_eq!(progress["params"]["total"], 3);
            }
            let answer = peer.next();
            assert_eq!(answer["id"], "x");
            assert_eq!(answer["result"]["structuredContent"], json!({ "counted": 3 }));
            peer.end();
        }
    }

    #[test]
    fn a_slow_call_delays_nobody_and_a_cancelled_one_is_not_answered() {
        let mut peer = Peer::new();
        for id in [json!(1), json!("1")] {
            peer.send(json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {
                "name": "slow_count", "arguments": { "to": 1000, "delay_ms": 10_000 },
            }}));
        }
        assert!(peer.ask("ping", json!({}))["result"].is_object());
        peer.send(json!({ "jsonrpc": "2.0", "method": "notifications/cancelled",
            "params": { "requestId": 1 } }));
        // The end of the input abandons the other one: nothing more is said.
        drop(peer.stdin.take());
        peer.server.take().unwrap().join().unwrap().unwrap();
        let mut rest = String::new();
        peer.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }

    #[test]
    fn a_cancellation_right_behind_its_request_finds_it() {
        let mut peer = Peer::new();
        for _ in 0..3 * JOBS_MAX {
            peer.send(json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {
                "name": "slow_count", "arguments": { "to": 1000, "delay_ms": 10_000 },
            }}));
            peer.send(json!({ "jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": { "requestId": 5 } }));
            assert!(peer.ask("ping", json!({}))["result"].is_object());
        }
        peer.end();
    }

    #[test]
    fn more_slow_calls_than_allowed_are_refused() {
        let mut peer = Peer::new();
        for id in 0..=JOBS_MAX {
            peer.send(json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {
                "name": "slow_count", "arguments": { "to": 1000, "delay_ms": 10_000 },
            }}));
        }
        let refused = peer.next();
        assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(JOBS_MAX), &json!(BUSY)));
        peer.end();
    }

    #[test]
    fn resources_templates_and_prompts() {
        let mut peer = Peer::new();
        let listed = peer.ask("resources/list", json!({}));
        assert_eq!(listed["result"]["resources"][0]["uri"], WELCOME_URI);
        assert_eq!(listed["result"]["resources"][0]["size"], WELCOME.len());
        let read = peer.ask("resources/read", json!({ "uri": WELCOME_URI }));
        assert_eq!(read["result"]["contents"][0]["text"], WELCOME);
        let listed = peer.ask("resources/templates/list", json!({}));
        let template = listed["result"]["resourceTemplates"][0]["uriTemplate"].as_str().unwrap();
        let uri = template.replace("{name}", "J%C3%BCrgen%2");
        let read = peer.ask("resources/read", json!({ "uri": uri }));
        assert_eq!(read["result"]["contents"][0]["text"], "Hello, Jürgen%2!");
        assert_eq!(read["result"]["contents"][0]["uri"], uri);
        let missing = peer.ask("resources/read", json!({ "uri": "demo://greeting/" }));
        assert_eq!(missing["error"]["code"], RESOURCE_NOT_FOUND);

        let listed = peer.ask("prompts/list", json!({}));
        assert_eq!(listed["result"]["prompts"][0]["name"], "explain");
        let arguments = json!({ "topic": "io_uring" });
        let got = peer.ask("prompts/get", json!({ "name": "explain", "arguments": arguments }));
        let text = got["result"]["messages"][0]["content"]["text"].as_str().unwrap();
        assert_eq!(text, "Explain io_uring to a curious beginner, with one example.");
        let missing = peer.ask("prompts/get", json!({ "name": "explain" }));
        assert_eq!(missing["error"]["code"], INVALID_PARAMS);
        peer.end();
    }

    #[test]
    fn batches_are_served_at_the_one_revision_that_has_them() {
        let mut peer = Peer::new();
        let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},
            {"jsonrpc":"2.0","method":"notifications/initialized"},{"jsonrpc":"1.0","id":2},
            {"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"slow_count",
            "arguments":{"to":1,"delay_ms":0}}}]"#
            .replace('\n', "");
        peer.ask("initialize", json!({ "protocolVersion": "2025-03-26" }));
        peer.send_text(&batch);
        let answers = peer.next();
        let ids: Vec<&Value> = answers.as_array().unwrap().iter().map(|a| &a["id"]).collect();
        assert_eq!(ids, [&json!(1), &json!(2), &json!(3)]);
        assert_eq!(answers[1]["error"]["code"], INVALID_REQUEST);
        assert_eq!(answers[2]["result"]["structuredContent"], json!({ "counted": 1 }));

        peer.ask("initialize", json!({ "protocolVersion": "2025-06-18" }));
        peer.send_text(&batch);
        assert_eq!(peer.next()["error"]["code"], INVALID_REQUEST);
        peer.end();
    }

    #[test]
    fn what_is_no_message_is_answered_once_and_survived() {
        let mut peer = Peer::new();
        for (line, code) in [
            ("nonsense", PARSE_ERROR),
            ("[]", INVALID_REQUEST),
            ("null", INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1}"#, INVALID_REQUEST),
        ] {
            peer.send_text(line);
            assert_eq!(peer.next()["error"]["code"], code, "{line}");
        }
        // Nothing is said to these.
        peer.send_text("");
        peer.send_text(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        peer.send_text(r#"{"jsonrpc":"2.0","method":"notifications/none"}"#);
        assert!(peer.ask("ping", json!({}))["result"].is_object());
        peer.end();
    }
}
