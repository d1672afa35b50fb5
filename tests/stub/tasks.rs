//! Owns: tasks (2025-11-25, experimental): what `--tasks` adds to the stub.

use std::sync::Mutex;

use serde_json::{Value, json};

use crate::server::{Channel, Stub, error, quote, result};

struct Task {
    id: String,
    session: String,
    status: &'static str,
    /// What the call was to say.
    payload: String,
}

impl Task {
    fn state(&self) -> Value {
        json!({
            "taskId": self.id,
            "status": self.status,
            "createdAt": "2025-11-25T10:30:00Z",
            "lastUpdatedAt": "2025-11-25T10:30:00Z",
            "ttl": 60000,
        })
    }
}

#[derive(Default)]
pub(crate) struct Tasks(Mutex<Vec<Task>>);

impl Tasks {
    pub(crate) fn promise(capabilities: &mut Value) {
        let requests = json!({ "tools": { "call": {} } });
        capabilities["tasks"] = json!({ "list": {}, "cancel": {}, "requests": requests });
    }

    /// The answer to a request about tasks, or to a call that is to become one. Before a task is
    /// created and before its result, its state is told, and a log message that is related to it.
    pub(crate) fn answer(
        &self,
        stub: &Stub,
        session: &str,
        id: &str,
        method: &str,
        params: &Value,
        channel: &dyn Channel,
    ) -> Option<String> {
        let mut all = self.0.lock().unwrap();
        let asked = params["taskId"].as_str().unwrap_or_default();
        let tell = |task: &Task| {
            let related = format!(
                r#""_meta":{{"io.modelcontextprotocol/related-task":{{"taskId":{}}}}}"#,
                quote(&task.id)
            );
            for message in [
                format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{}}}"#,
                    task.state()
                ),
                format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"info","data":"x",{related}}}}}"#
                ),
            ] {
                if let Err(error) = channel.say(&message) {
                    stub.note(&format!("task not told: {error}"));
                }
            }
            related
        };
        match method {
            "tools/call" if params["task"].is_object() => {
                let number = stub.next_number();
                let task = Task {
                    id: format!("task-{number}"),
                    session: session.to_owned(),
                    status: "working",
                    payload: params["arguments"]["payload"].as_str().unwrap_or_default().into(),
                };
                let meta = &params["_meta"]["io.modelcontextprotocol/related-task"]["taskId"];
                stub.note(&format!("task {} of {meta}", task.id));
                if params["arguments"]["chatty"] == true {
                    tell(&task);
                }
                let answer = result(id, &json!({ "task": task.state(), "x": 1.0 }).to_string());
                all.push(task);
                return Some(answer);
            }
            "tasks/list" => {
                stub.note("tasks/list");
                let own: Vec<Value> =
                    all.iter().filter(|task| task.session == session).map(Task::state).collect();
                let start = params["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
                let end = match stub.options.page {
                    0 => own.len(),
                    page => own.len().min(start + page),
                };
                let mut page = json!({ "tasks": own[start..end] });
                if end < own.len() {
                    page["nextCursor"] = json!(end.to_string());
                }
                return Some(result(id, &page.to_string()));
            }
            "tasks/get" | "tasks/result" | "tasks/cancel" => {}
            _ => return None,
        }
        stub.note(&format!("{method} {asked}"));
        let Some(task) = all.iter_mut().find(|task| task.id == asked && task.session == session)
        else {
            return Some(error(id, -32602, "stub has no such task"));
        };
        Some(match method {
            "tasks/result" => {
                task.status = "completed";
                let related = tell(task);
                let text = quote(&task.payload);
                let task_id = quote(&task.id);
                result(
                    id,
                    &format!(
                        r#"{{"content":[{{"type":"text","text":{text}}}],"structuredContent":{{"taskId":{task_id}}},{related}}}"#
                    ),
                )
            }
            "tasks/cancel" => {
                task.status = "cancelled";
                result(id, &task.state().to_string())
            }
            _ => result(id, &task.state().to_string()),
        })
    }
}
