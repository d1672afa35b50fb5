//! Owns: the tasks extension of the request era: what `--tasks` adds to a stub of that era.
//! Never: framing; the tasks of sessions (`tasks`).
//!
//! Most tools are those that the conformance suite asks for. Beside them `job` makes a task of the
//! id that it is told, which `finish` ends.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Channel, Reply, Stub, error, quote, result, text_result};

const EXTENSION: &str = "io.modelcontextprotocol/tasks";
pub(crate) const TOOLS: [&str; 9] = [
    "greet",
    "slow_compute",
    "failing_job",
    "protocol_error_job",
    "confirm_delete",
    "multi_input",
    "test_tool_with_task",
    "job",
    "finish",
];

struct Task {
    id: String,
    /// When it is over; `None` = not before it is finished.
    due: Option<Instant>,
    cancelled: bool,
    /// What it still waits for.
    asks: BTreeMap<String, Value>,
    /// `"result":{…}` or `"error":{…}`, as it is to be read when all is over.
    outcome: String,
}

impl Task {
    fn new(id: String, due: Option<Instant>, outcome: String) -> Task {
        Task { id, due, cancelled: false, asks: BTreeMap::new(), outcome }
    }

    /// The members of its state, each with a comma before it.
    fn state(&self) -> String {
        let over = self.due.is_some_and(|due| due <= Instant::now());
        let (status, more) = match () {
            () if self.cancelled => ("cancelled", String::new()),
            () if !self.asks.is_empty() => {
                ("input_required", format!(r#","inputRequests":{}"#, json!(self.asks)))
            }
            () if !over => ("working", String::new()),
            () if self.outcome.starts_with(r#""error""#) => {
                ("failed", format!(",{}", self.outcome))
            }
            () => ("completed", format!(",{}", self.outcome)),
        };
        let id = quote(&self.id);
        format!(
            r#","x":1.0,"taskId":{id},"status":"{status}","createdAt":"2026-07-28T10:30:00Z","lastUpdatedAt":"2026-07-28T10:30:00Z","ttlMs":60000,"pollIntervalMs":50{more}"#
        )
    }

    /// What is told of it.
    fn news(&self) -> String {
        let state = self.state();
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/tasks","params":{{{}}}}}"#,
            &state[1..]
        )
    }

    fn tell(&self, stub: &Stub) {
        stub.tell_all(&self.news());
    }
}

/// What comes of a call, with what is nobody's task id and no number for a float.
fn said(text: &str) -> String {
    let text = quote(text);
    format!(
        r#""result":{{"content":[{{"type":"text","text":{text}}}],"structuredContent":{{"taskId":"own","n":9007199254740993}}}}"#
    )
}

fn form(message: &str) -> Value {
    let schema = json!({ "type": "object", "properties": { "confirm": { "type": "boolean" } } });
    json!({
        "method": "elicitation/create",
        "params": { "mode": "form", "message": message, "requestedSchema": schema },
    })
}

/// Whether a request says that its sender has the extension.
pub(crate) fn declares(params: &Value) -> bool {
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"]["extensions"][EXTENSION]
        .is_object()
}

/// What who has not the extension is told.
pub(crate) fn refusal(id: &str) -> Reply {
    let data = json!({ "requiredCapabilities": { "extensions": { EXTENSION: {} } } });
    Reply::Answer(format!(
        r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32021,"message":"no tasks","data":{data}}}}}"#
    ))
}

#[derive(Default)]
pub(crate) struct ModernTasks(Mutex<Vec<Task>>);

impl ModernTasks {
    /// The answer to a request about tasks, or to a call of one of the tools.
    pub(crate) fn answer(
        &self,
        stub: &Stub,
        id: &str,
        method: &str,
        params: &Value,
        channel: &dyn Channel,
    ) -> Option<Reply> {
        let complete = |more: &str| {
            Reply::Answer(result(id, &format!(r#"{{"resultType":"complete"{more}}}"#)))
        };
        if method == "tools/call" {
            return self.call(stub, id, params, channel);
        }
        if !matches!(method, "tasks/get" | "tasks/update" | "tasks/cancel") {
            return None;
        }
        if !declares(params) {
            return Some(refusal(id));
        }
        let asked = params["taskId"].as_str().unwrap_or_default();
        stub.note(&format!("{method} {asked}"));
        let mut all = self.0.lock().unwrap();
        let Some(task) = all.iter_mut().find(|task| task.id == asked) else {
            return Some(Reply::Answer(error(id, -32602, "stub has no such task")));
        };
        Some(match method {
            "tasks/get" => complete(&task.state()),
            "tasks/cancel" => {
                if task.due.is_none_or(|due| due > Instant::now()) {
                    task.cancelled = true;
                }
                task.tell(stub);
                complete("")
            }
            _ => {
                stub.note(&format!("given {}", params["inputResponses"]));
                let before = task.asks.len();
                let answers = params["inputResponses"].as_object();
                task.asks.retain(|key, _| answers.is_none_or(|all| !all.contains_key(key)));
                if task.asks.len() < before {
                    task.tell(stub);
                }
                complete("")
            }
        })
    }

    /// Whether it has all tasks that a filter names: who names another one is told nothing at all.
    pub(crate) fn has_all(&self, filter: &Value) -> bool {
        let all = self.0.lock().unwrap();
        let asked = filter["taskIds"].as_array();
        asked.into_iter().flatten().all(|id| all.iter().any(|task| *id == *task.id))
    }

    fn call(&self, stub: &Stub, id: &str, params: &Value, channel: &dyn Channel) -> Option<Reply> {
        let name = params["name"].as_str().filter(|name| TOOLS.contains(name))?;
        let arguments = &params["arguments"];
        let text = |key: &str| arguments[key].as_str().unwrap_or_default().to_owned();
        let plain = |text: &str| {
            let result_text = text_result(text).replacen('{', r#"{"resultType":"complete","#, 1);
            Some(Reply::Answer(result(id, &result_text)))
        };
        let declares = declares(params);
        stub.note(&format!("call {name} tasks={declares}"));
        let after = |pause: Duration| Some(Instant::now() + pause);
        let seconds = Duration::from_secs_f64(arguments["seconds"].as_f64().unwrap_or_default());
        let fresh = || format!("task-{}", stub.next_number());
        let task = match name {
            "greet" => return plain(&format!("Hello, {}!", text("name"))),
            "finish" => {
                let mut all = self.0.lock().unwrap();
                if arguments["forget"] == true {
                    all.retain(|task| task.id != text("id"));
                    return plain("forgotten");
                }
                let task = all.iter_mut().find(|task| task.id == text("id")).expect("a task");
                task.due = Some(Instant::now());
                if let Some(bytes) = arguments["bytes"].as_u64() {
                    task.outcome = said(&"x".repeat(bytes as usize));
                }
                task.tell(stub);
                return plain("finished");
            }
            "test_tool_with_task" if params["inputResponses"].is_null() => {
                let asks = json!({
                    "resultType": "input_required",
                    "inputRequests": { "user_name": form("Who?") },
                    "requestState": "asked",
                });
                return Some(Reply::Answer(result(id, &asks.to_string())));
            }
            "failing_job" if !declares => return Some(refusal(id)),
            _ if !declares => {
                std::thread::sleep(seconds);
                return plain(&text("payload"));
            }
            "slow_compute" => Task::new(fresh(), after(seconds), said("computed")),
            "failing_job" => {
                let failed = said("failed").replacen('{', r#"{"isError":true,"#, 1);
                Task::new(fresh(), after(Duration::from_millis(300)), failed)
            }
            "protocol_error_job" => {
                let fault = r#""error":{"code":-32603,"message":"it broke"}"#;
                Task::new(fresh(), after(Duration::from_millis(300)), fault.into())
            }
            "confirm_delete" | "multi_input" => {
                let keys: &[&str] = match name {
                    "confirm_delete" => &["k\"1"],
                    _ => &["first", "second"],
                };
                let mut task = Task::new(fresh(), Some(Instant::now()), said("done"));
                task.asks = keys.iter().map(|key| ((*key).to_owned(), form(key))).collect();
                task
            }
            "test_tool_with_task" => {
                let name = &params["inputResponses"]["user_name"]["content"]["name"];
                let name = format!("for {}", name.as_str().unwrap_or("nobody"));
                Task::new(fresh(), Some(Instant::now()), said(&name))
            }
            _ => Task::new(text("id"), None, said(&text("payload"))),
        };
        if arguments["chatty"] == true {
            // Where it does not belong.
            let _ = channel.say(&task.news());
        }
        let message = "x".repeat(arguments["bytes"].as_u64().unwrap_or_default() as usize);
        let message = format!(r#","statusMessage":"{message}""#);
        let answer = result(id, &format!(r#"{{"resultType":"task"{message}{}}}"#, task.state()));
        // What lives on tasks/get alone.
        let answer = match answer.find(r#","inputRequests""#).or(answer.find(r#","result":{"c"#)) {
            Some(at) => format!("{}}}}}", &answer[..at]),
            None => answer,
        };
        let mut all = self.0.lock().unwrap();
        all.retain(|other| other.id != task.id);
        all.push(task);
        Some(Reply::Answer(answer))
    }
}
