//! Owns: the tools of `--asks`: a server that asks its client, and shows each session its own lists.
//! Never: framing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use serde_json::Value;

use crate::server::{Channel, Job, Reply, Stub, error, result, text_result};

/// The tools that are always there.
pub(crate) const TOOLS: [&str; 5] = ["ask", "ask_many", "grow", "tell", "needs_url"];
/// The tool that only clients with the capability `sampling` see.
const GATED: &str = "gated";

/// What it remembers of its sessions.
#[derive(Default)]
pub(crate) struct Asks {
    /// By session and raw id: who waits for the answer.
    waiting: Mutex<HashMap<(String, String), Sender<String>>>,
    /// Stand-alone streams.
    streams: Mutex<HashMap<String, Sender<String>>>,
    capabilities: Mutex<HashMap<String, Value>>,
    grown: Mutex<HashMap<String, Vec<String>>>,
}

impl Asks {
    pub(crate) fn greeted(&self, session: &str, params: &Value) {
        let capabilities = params["capabilities"].clone();
        self.capabilities.lock().unwrap().insert(session.to_owned(), capabilities);
    }

    pub(crate) fn listens(&self, session: &str, stream: Sender<String>) {
        self.streams.lock().unwrap().insert(session.to_owned(), stream);
    }

    /// A client answered.
    pub(crate) fn answered(&self, session: &str, id: &str, body: &[u8]) {
        let key = (session.to_owned(), id.to_owned());
        if let Some(waiter) = self.waiting.lock().unwrap().remove(&key) {
            let _ = waiter.send(String::from_utf8_lossy(body).into_owned());
        }
    }

    /// The further tools that a session sees.
    pub(crate) fn tools(&self, session: &str) -> Vec<String> {
        let mut tools: Vec<String> = TOOLS.iter().map(|tool| tool.to_string()).collect();
        let capabilities = self.capabilities.lock().unwrap();
        if capabilities.get(session).is_some_and(|all| all["sampling"].is_object()) {
            tools.push(GATED.to_owned());
        }
        tools.extend(self.grown.lock().unwrap().get(session).cloned().unwrap_or_default());
        tools
    }

    /// Sends a message on the stream of the call, or with `get` on the stand-alone one, after `late_ms`.
    fn say(&self, session: &str, arguments: &Value, channel: &dyn Channel, message: &str) {
        if arguments["get"] == true {
            let streams = self.streams.lock().unwrap();
            let stream = streams.get(session).cloned().expect("a stand-alone stream");
            if let Some(late) = arguments["late_ms"].as_u64() {
                let message = message.to_owned();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(late));
                    stream.send(message).expect("the stand-alone stream");
                });
                return;
            }
            return stream.send(message.to_owned()).expect("the stand-alone stream");
        }
        channel.say(message).expect("the stream of the call");
    }
}

/// Calls one of these tools; `None` if it is none of them.
pub(crate) fn call(
    stub: &Stub,
    session: &str,
    id: &str,
    params: &Value,
    job: &Job,
    channel: &dyn Channel,
) -> Option<Reply> {
    let asks = &stub.asks;
    let tool = params["name"].as_str().unwrap_or_default();
    let arguments = &params["arguments"];
    if !asks.tools(session).iter().any(|known| known == tool) {
        return None;
    }
    let text = |key: &str| arguments[key].as_str().unwrap_or_default().to_owned();
    let said = |text: &str| Reply::Answer(result(id, &text_result(text)));
    Some(match tool {
        "ask" => ask(stub, session, id, arguments, job, channel),
        "ask_many" => ask_many(stub, session, id, params, job, channel),
        "tell" => {
            asks.say(session, arguments, channel, &text("message"));
            said("told")
        }
        "grow" => {
            let mut grown = asks.grown.lock().unwrap();
            grown.entry(session.to_owned()).or_default().push(text("name"));
            drop(grown);
            let message = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
            asks.say(session, arguments, channel, message);
            said("grown")
        }
        "needs_url" => {
            let data = crate::texts::ELICITATIONS;
            Reply::Answer(format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32042,"message":"First","data":{data}}}}}"#
            ))
        }
        other => said(&format!("{other} called")),
    })
}

/// Asks the client, and answers with what it answered, word for word.
fn ask(
    stub: &Stub,
    session: &str,
    id: &str,
    arguments: &Value,
    job: &Job,
    out: &dyn Channel,
) -> Reply {
    let asks = &stub.asks;
    let text = |key: &str, default: &str| arguments[key].as_str().unwrap_or(default).to_owned();
    let own = text("id", "\"q\"");
    let (sender, receiver) = channel();
    asks.waiting.lock().unwrap().insert((session.to_owned(), own.clone()), sender);
    let message = format!(
        r#"{{"x":1.0,"jsonrpc":"2.0","method":"{}","id":{own},"params":{}}}"#,
        text("method", "sampling/createMessage"),
        text("params", "{}")
    );
    asks.say(session, arguments, out, &message);
    stub.note(&format!("asked {own}"));
    if arguments["and_leave"] == true {
        return Reply::Answer(result(id, &text_result("left")));
    }
    if arguments["take_back"] == true {
        let message = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"reason":"no more","requestId":{own}}}}}"#
        );
        asks.say(session, arguments, out, &message);
    }
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(answer) => {
                stub.note(&format!("told {answer}"));
                return Reply::Answer(result(id, &text_result(&answer)));
            }
            Err(RecvTimeoutError::Timeout) if job.pause(Duration::ZERO) => {}
            Err(_) if arguments["stubborn"] == true => {}
            Err(_) => return Reply::Answer(error(id, -32603, "cancelled")),
        }
    }
}

/// Asks everything in `arguments.questions` at once, with progress before and behind, and answers with
/// all that it was answered.
fn ask_many(
    stub: &Stub,
    session: &str,
    id: &str,
    params: &Value,
    job: &Job,
    out: &dyn Channel,
) -> Reply {
    let progress = |at: usize| {
        let token = &params["_meta"]["progressToken"];
        if !token.is_null() {
            let _ = out.say(&format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{at}}}}}"#
            ));
        }
    };
    progress(0);
    if let Some(first) = params["arguments"]["first"].as_str() {
        stub.asks.say(session, &params["arguments"], out, first);
    }
    let questions = params["arguments"]["questions"].as_array().expect("questions");
    let (sender, receiver) = channel();
    for (at, question) in questions.iter().enumerate() {
        let key = (session.to_owned(), at.to_string());
        stub.asks.waiting.lock().unwrap().insert(key, sender.clone());
        let message = format!(
            r#"{{"jsonrpc":"2.0","id":{at},"method":{},"params":{}}}"#,
            question["method"], question["params"]
        );
        stub.asks.say(session, &params["arguments"], out, &message);
        stub.note(&format!("asked {at}"));
    }
    let mut answers = Vec::new();
    for _ in 0..params["arguments"]["meanwhile"].as_u64().unwrap_or(0) {
        // Once the caller has been asked, at the least.
        job.pause(Duration::from_millis(100));
        progress(7);
        let _ = out.say(r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"meanwhile"}}"#);
        stub.note("meanwhile");
    }
    while answers.len() < questions.len() {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(answer) => answers.push(answer),
            Err(RecvTimeoutError::Timeout) if job.pause(Duration::ZERO) => {}
            Err(_) => return Reply::Answer(error(id, -32603, "cancelled")),
        }
    }
    progress(1);
    answers.sort();
    Reply::Answer(result(id, &text_result(&format!("[{}]", answers.join(",")))))
}
