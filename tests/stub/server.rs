//! Owns: the options, the tools, resources and prompts of the stub, and what it remembers.
//! Never: framing (`stdio`, `http`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::tasks::Tasks;
use crate::texts;
use crate::utilities::{self, Utilities};

/// How the stub behaves; all off by default.
#[derive(Default)]
pub(crate) struct Options {
    /// Serve HTTP on this port (0 = any, printed as a URL on stdout) and not stdio.
    pub(crate) http: Option<u16>,
    /// Told in serverInfo, results and URIs.
    pub(crate) name: String,
    /// Every event becomes a line of this file.
    pub(crate) journal: Option<PathBuf>,
    /// Ends instead of answering a subscription, as often as it can remove this file.
    pub(crate) die_subscribing: Option<PathBuf>,
    /// Tokens of which a request must show one; none = no token is needed.
    pub(crate) tokens: Vec<String>,
    /// Answer this revision whatever is asked; else what is asked.
    pub(crate) revision: Option<String>,
    /// Entries on one page of a list; 0 = all.
    pub(crate) page: usize,
    /// This many further tools, resources and prompts.
    pub(crate) extra: usize,
    /// Further tools of these names, whose arguments are noted.
    pub(crate) tools: Vec<String>,
    /// A further resource with exactly this URI.
    pub(crate) uri: Option<String>,
    /// No resources, no prompts.
    pub(crate) only_tools: bool,
    /// Answer nothing while this file exists.
    pub(crate) mute_while: Option<PathBuf>,
    /// Exit at start while this file exists.
    pub(crate) exit_while: Option<PathBuf>,
    /// Bytes for stderr before anything else.
    pub(crate) flood: usize,
    /// Leave a process that holds the pipes.
    pub(crate) grandchild: bool,
    /// Stay when stdin ends.
    pub(crate) ignore_eof: bool,
    /// HTTP: answer requests as an event stream, with an empty priming event if `prime`.
    pub(crate) sse: bool,
    /// See `sse`.
    pub(crate) prime: bool,
    /// HTTP: what an unknown session is answered with, 404 or 400.
    pub(crate) lost: u16,
    /// HTTP: no GET stream.
    pub(crate) no_get: bool,
    /// HTTP: no sessions: none is given, none is asked for.
    pub(crate) stateless: bool,
    /// HTTP: speak HTTP with SSE (2024-11-05) and nothing else.
    pub(crate) old: bool,
    /// With `old`: name this endpoint.
    pub(crate) endpoint: Option<String>,
    /// With `old`: accept a message only when it was handled.
    pub(crate) accept_late: bool,
    /// HTTP: connections are closed after this many requests; 0 = never.
    pub(crate) requests_per_connection: usize,
    /// HTTP: end when stdin does.
    pub(crate) until_stdin_ends: bool,
    /// Offer the annotated tools of [`ANNOTATED`].
    pub(crate) annotated: bool,
    /// Offer completion, logging and subscriptions.
    pub(crate) utilities: bool,
    /// HTTP: offer the tool of [`crate::polling`].
    pub(crate) polling: bool,
    /// Make tasks of calls that ask for it; in the request era, of those of [`crate::modern_tasks`].
    pub(crate) tasks: bool,
    /// Understand requests of 2026-07-28.
    pub(crate) modern: bool,
    /// Understand nothing else.
    pub(crate) only_modern: bool,
    /// 2026-07-28: how long results are good for.
    pub(crate) ttl_ms: u64,
    /// 2026-07-28: anybody may see the results.
    pub(crate) public: bool,
    /// HTTP: while this file exists, speak no revision of the request era that is known.
    pub(crate) strange_while: Option<PathBuf>,
    /// stdio: end at a first message other than `initialize`.
    pub(crate) shy: bool,
    /// stdio: do not answer what comes before `initialize`.
    pub(crate) silent: bool,
    /// Offer the tools of [`crate::asks`].
    pub(crate) asks: bool,
    /// stdio: once it is greeted, say some times that the tools have changed.
    pub(crate) restless: bool,
    /// Be only a process that sleeps.
    pub(crate) sleep_only: bool,
    /// Be only a client that holds connections.
    pub(crate) hold: Option<(String, usize)>,
}

impl Options {
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options { name: "stub".into(), lost: 404, ..Options::default() };
        let mut args: VecDeque<String> = args.collect();
        while let Some(arg) = args.pop_front() {
            if arg == "--more" {
                // Further options, one a line: the same command may be another server each time.
                let file = args.pop_front().ok_or("--more needs a value")?;
                let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
                args.extend(text.lines().map(str::to_owned));
                continue;
            }
            let mut value = || args.pop_front().ok_or(format!("{arg} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("no number: {text}"));
            match arg.as_str() {
                "--http" => options.http = Some(number(value()?)? as u16),
                "--name" => options.name = value()?,
                "--journal" => options.journal = Some(value()?.into()),
                "--die-subscribing" => options.die_subscribing = Some(value()?.into()),
                "--token" => options.tokens.push(value()?),
                "--revision" => options.revision = Some(value()?),
                "--page" => options.page = number(value()?)?,
                "--extra" => options.extra = number(value()?)?,
                "--tool" => options.tools.push(value()?),
                "--uri" => options.uri = Some(value()?),
                "--only-tools" => options.only_tools = true,
                "--mute-while" => options.mute_while = Some(value()?.into()),
                "--exit-while" => options.exit_while = Some(value()?.into()),
                "--flood" => options.flood = number(value()?)?,
                "--grandchild" => options.grandchild = true,
                "--ignore-eof" => options.ignore_eof = true,
                "--sse" => options.sse = true,
                "--prime" => options.prime = true,
                "--lost" => options.lost = number(value()?)? as u16,
                "--no-get" => options.no_get = true,
                "--stateless" => options.stateless = true,
                "--old" => options.old = true,
                "--endpoint" => options.endpoint = Some(value()?),
                "--accept-late" => options.accept_late = true,
                "--requests-per-connection" => {
                    options.requests_per_connection = number(value()?)?;
                }
                "--utilities" => options.utilities = true,
                "--tasks" => options.tasks = true,
                "--polling" => options.polling = true,
                "--asks" => options.asks = true,
                "--restless" => options.restless = true,
                "--annotated" => options.annotated = true,
                "--until-stdin-ends" => options.until_stdin_ends = true,
                "--modern" => (options.modern, options.only_modern) = (true, true),
                "--dual" => options.modern = true,
                "--ttl" => options.ttl_ms = number(value()?)? as u64,
                "--public" => options.public = true,
                "--strange-while" => options.strange_while = Some(value()?.into()),
                "--shy" => options.shy = true,
                "--silent" => options.silent = true,
                "--sleep-only" => options.sleep_only = true,
                "--hold" => options.hold = Some((value()?, number(value()?)?)),
                other => return Err(format!("unknown option {other}")),
            }
        }
        Ok(options)
    }
}

/// One message as it came, in raw pieces.
#[derive(Deserialize)]
pub(crate) struct Message<'a> {
    jsonrpc: &'a str,
    #[serde(borrow)]
    pub(crate) id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) method: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    pub(crate) fn read(body: &'a [u8]) -> Result<Message<'a>, String> {
        let message: Message<'a> =
            serde_json::from_slice(body).map_err(|error| format!("no message: {error}"))?;
        if message.jsonrpc != "2.0" {
            return Err("jsonrpc is not 2.0".into());
        }
        Ok(message)
    }

    pub(crate) fn id_text(&self) -> String {
        self.id.map(|id| id.get().to_owned()).unwrap_or_default()
    }

    pub(crate) fn params(&self) -> Value {
        self.params.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// Whether handling it takes time: stdio runs it beside its reader.
    pub(crate) fn is_slow(&self) -> bool {
        const QUICK: [&str; 8] =
            ["echo", "raw", "rich", "rich_error", "stats", "crash", "log", "touch"];
        self.method.as_deref() == Some("tools/call")
            && !self.params()["name"].as_str().is_some_and(|name| QUICK.contains(&name))
    }
}

/// What becomes of one message.
pub(crate) enum Reply {
    /// A whole JSON-RPC answer.
    Answer(String),
    /// The same in pieces with pauses between them; `chunked` where the transport can say so.
    Pieces { answer: String, pieces: usize, pause: Duration, chunked: bool },
    /// These bytes of the transport itself.
    Raw { bytes: Vec<u8>, close: bool },
    /// No answer, ever.
    Silence,
    /// A notification or a response: nothing to say.
    Nothing,
    /// Answer, then read no further input.
    StopReading(String),
}

/// Where messages before the answer go.
pub(crate) trait Channel {
    fn say(&self, message: &str) -> io::Result<()>;
}

/// A running call, cancellable.
#[derive(Default)]
pub(crate) struct Job {
    cancelled: Mutex<bool>,
    changed: Condvar,
}

impl Job {
    /// Waits; false if it was cancelled meanwhile.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut cancelled = self.cancelled.lock().unwrap();
        while !*cancelled {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            cancelled = self.changed.wait_timeout(cancelled, left).unwrap().0;
        }
        false
    }
}

/// The server, whatever carries its messages.
pub(crate) struct Stub {
    pub(crate) options: Options,
    journal: Option<Mutex<File>>,
    /// By session and id text.
    jobs: Mutex<HashMap<(String, String), Arc<Job>>>,
    executions: Mutex<BTreeMap<String, u64>>,
    cancelled: Mutex<Vec<String>>,
    added: Mutex<BTreeMap<&'static str, Vec<String>>>,
    /// With their session.
    listeners: Mutex<Vec<(String, Sender<String>)>>,
    utilities: Utilities,
    tasks: Tasks,
    pub(crate) modern_tasks: crate::modern_tasks::ModernTasks,
    pub(crate) polls: crate::polling::Polls,
    /// Sessions with their revision.
    pub(crate) sessions: Mutex<HashMap<String, String>>,
    initialized: Mutex<HashSet<String>>,
    counter: Mutex<u64>,
    pub(crate) asks: crate::asks::Asks,
}

impl Stub {
    pub(crate) fn new(options: Options) -> Arc<Stub> {
        let journal = options.journal.as_ref().map(|path| {
            Mutex::new(File::options().append(true).create(true).open(path).expect("journal"))
        });
        Arc::new(Stub {
            options,
            journal,
            jobs: Mutex::default(),
            executions: Mutex::default(),
            cancelled: Mutex::default(),
            added: Mutex::default(),
            listeners: Mutex::default(),
            utilities: Utilities::default(),
            tasks: Tasks::default(),
            modern_tasks: Default::default(),
            polls: Default::default(),
            sessions: Mutex::default(),
            initialized: Mutex::default(),
            counter: Mutex::default(),
            asks: crate::asks::Asks::default(),
        })
    }

    /// Remembers an event in the journal.
    pub(crate) fn note(&self, event: &str) {
        if let Some(journal) = &self.journal {
            journal.lock().unwrap().write_all(format!("{event}\n").as_bytes()).expect("journal");
        }
    }

    pub(crate) fn muted(&self) -> bool {
        self.options.mute_while.as_ref().is_some_and(|file| file.exists())
    }

    /// Messages for whoever listens, from now on.
    pub(crate) fn listen(&self, session: &str) -> Receiver<String> {
        let (sender, receiver) = channel();
        self.asks.listens(session, sender.clone());
        self.listeners.lock().unwrap().push((session.to_owned(), sender));
        receiver
    }

    pub(crate) fn tell_all(&self, message: &str) {
        self.listeners.lock().unwrap().retain(|(_, one)| one.send(message.to_owned()).is_ok());
    }

    /// Tells it to who listens in these sessions; how many that were.
    pub(crate) fn tell_sessions(&self, message: &str, wants: impl Fn(&String) -> bool) -> usize {
        let mut told = 0;
        self.listeners.lock().unwrap().retain(|(session, one)| {
            if !wants(session) {
                return true;
            }
            let there = one.send(message.to_owned()).is_ok();
            told += usize::from(there);
            there
        });
        told
    }

    pub(crate) fn next_number(&self) -> u64 {
        let mut counter = self.counter.lock().unwrap();
        *counter += 1;
        *counter
    }

    /// Does what one message asks. `body` is the message as it came.
    pub(crate) fn handle(
        &self,
        session: &str,
        message: &Message<'_>,
        body: &[u8],
        channel: &dyn Channel,
    ) -> Reply {
        let params = message.params();
        let Some(method) = message.method.as_deref() else {
            self.note(&format!("response {}", String::from_utf8_lossy(body)));
            self.asks.answered(session, &message.id_text(), body);
            return Reply::Nothing;
        };
        if message.id.is_none() {
            if self.options.restless && method == "notifications/initialized" {
                for _ in 0..5 {
                    let changed =
                        r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
                    let _ = channel.say(changed);
                }
            }
            self.notification(session, method, &params, message);
            return Reply::Nothing;
        }
        let id = message.id_text();
        if method == "initialize" {
            return Reply::Answer(self.initialize(session, &id, &params, body));
        }
        if method != "ping" && !self.initialized.lock().unwrap().contains(session) {
            self.note(&format!("premature {method}"));
            return Reply::Answer(error(&id, -32600, "not initialized"));
        }
        if self.options.utilities
            && let Some(answer) = self.utilities.answer(self, session, &id, method, &params, body)
        {
            return Reply::Answer(answer);
        }
        if self.options.tasks
            && let Some(answer) = self.tasks.answer(self, session, &id, method, &params, channel)
        {
            return Reply::Answer(answer);
        }
        match method {
            "ping" => Reply::Answer(result(&id, "{}")),
            "tools/call" => self.call(session, &id, &params, body, channel),
            "resources/read" => {
                self.note(&format!("read {}", params["uri"].as_str().unwrap_or("?")));
                Reply::Answer(self.read(&id, params["uri"].as_str().unwrap_or_default()))
            }
            "prompts/get" if !self.options.only_tools => Reply::Answer(self.prompt(&id, &params)),
            _ => match self.list(session, method, &params) {
                Some(Ok(page)) => Reply::Answer(result(&id, &page)),
                Some(Err(why)) => Reply::Answer(error(&id, -32602, &why)),
                None => Reply::Answer(error(&id, -32601, "no such method")),
            },
        }
    }

    fn notification(&self, session: &str, method: &str, params: &Value, message: &Message<'_>) {
        match method {
            "notifications/initialized" => {
                self.note("initialized");
                self.initialized.lock().unwrap().insert(session.to_owned());
            }
            "notifications/cancelled" => {
                let id = params["requestId"].to_string();
                self.note(&format!("cancelled {id} {}", params["reason"].as_str().unwrap_or("")));
                self.cancelled.lock().unwrap().push(id.clone());
                self.cancel(session, &id);
            }
            other => {
                let params = message.params.map(RawValue::get).unwrap_or_default();
                self.note(&format!("notification {other} {params}"));
            }
        }
    }

    pub(crate) fn was_cancelled(&self, id: &str) -> bool {
        self.cancelled.lock().unwrap().iter().any(|cancelled| cancelled == id)
    }

    /// Ends a call that is under way.
    pub(crate) fn cancel(&self, session: &str, id: &str) {
        if let Some(job) = self.jobs.lock().unwrap().get(&(session.to_owned(), id.to_owned())) {
            *job.cancelled.lock().unwrap() = true;
            job.changed.notify_all();
        }
    }

    fn initialize(&self, session: &str, id: &str, params: &Value, body: &[u8]) -> String {
        self.note(&format!("initialize {}", String::from_utf8_lossy(body)));
        self.asks.greeted(session, params);
        *self.executions.lock().unwrap().entry("initialize".into()).or_default() += 1;
        let asked = params["protocolVersion"].as_str().unwrap_or_default();
        let revision = self.options.revision.as_deref().unwrap_or(asked);
        self.sessions.lock().unwrap().insert(session.to_owned(), revision.to_owned());
        let mut capabilities = json!({ "tools": { "listChanged": true } });
        if !self.options.only_tools {
            capabilities["resources"] = json!({ "listChanged": true });
            capabilities["prompts"] = json!({ "listChanged": true });
        }
        if self.options.utilities {
            Utilities::promise(&mut capabilities);
        }
        if self.options.tasks {
            Tasks::promise(&mut capabilities);
        }
        let name = &self.options.name;
        let answer = json!({
            "protocolVersion": revision,
            "capabilities": capabilities,
            "serverInfo": { "name": name, "version": "0" },
            "instructions": format!("Instructions of {name}."),
        });
        result(id, &answer.to_string())
    }

    /// One page of a list; `None` if there is no such list.
    pub(crate) fn list(
        &self,
        session: &str,
        method: &str,
        params: &Value,
    ) -> Option<Result<String, String>> {
        let name = &self.options.name;
        let added = |kind: &str| self.added.lock().unwrap().get(kind).cloned().unwrap_or_default();
        let extra = |stem: &str| (0..self.options.extra).map(|n| format!("{stem}{n:04}")).collect();
        let (key, entries): (&str, Vec<String>) = match method {
            "tools/list" => {
                let mut names: Vec<String> = TOOLS.iter().map(|name| name.to_string()).collect();
                names.extend(Vec::<String>::from_iter::<Vec<String>>(extra("t")));
                names.extend(added("tool"));
                names.extend(self.options.tools.clone());
                if self.options.utilities {
                    names.extend(utilities::TOOLS.iter().map(|name| name.to_string()));
                }
                if self.options.polling {
                    names.push("poll".to_owned());
                }
                if self.options.asks {
                    names.extend(self.asks.tools(session));
                    self.note("list of tools");
                }
                if self.options.annotated {
                    names.extend(ANNOTATED.iter().map(|(name, _)| name.to_string()));
                }
                let entry = |tool: String| match tool.as_str() {
                    known if ANNOTATED.iter().any(|(name, _)| *name == known) => {
                        let rest = ANNOTATED.iter().find(|(name, _)| *name == known).unwrap().1;
                        format!(r#"{{"name":"{known}",{rest}}}"#)
                    }
                    "rich" => format!(r#"{{"name":"rich",{}}}"#, texts::RICH_TOOL_REST),
                    _ => format!(
                        r#"{{"name":{},"description":"of {name}","inputSchema":{{"type":"object"}}}}"#,
                        quote(&tool)
                    ),
                };
                ("tools", names.into_iter().map(entry).collect())
            }
            _ if self.options.only_tools => return None,
            "resources/list" => {
                let mut uris = vec![format!("stub://{name}/fixed")];
                uris.extend(self.options.uri.clone());
                let more: Vec<String> = extra("r");
                uris.extend(
                    more.into_iter().chain(added("resource")).map(|r| format!("stub://{name}/{r}")),
                );
                let entry = |uri: String| {
                    let short = uri.rsplit('/').next().unwrap_or_default();
                    format!(r#"{{"uri":{},"name":{},"x":1.0}}"#, quote(&uri), quote(short))
                };
                ("resources", uris.into_iter().map(entry).collect())
            }
            "resources/templates/list" => {
                let entry = format!(
                    r#"{{"uriTemplate":"stub://{name}/item/{{id}}","name":"item","x":1.0}}"#
                );
                ("resourceTemplates", vec![entry])
            }
            "prompts/list" => {
                let mut names = vec!["prompt".to_owned()];
                names.extend(Vec::<String>::from_iter::<Vec<String>>(extra("p")));
                names.extend(added("prompt"));
                let entry = |prompt: String| format!(r#"{{"name":{},"x":1.0}}"#, quote(&prompt));
                ("prompts", names.into_iter().map(entry).collect())
            }
            _ => return None,
        };
        let start = match &params["cursor"] {
            Value::Null => 0,
            Value::String(cursor) => match cursor.strip_prefix("page ").map(str::parse) {
                Some(Ok(start)) if self.options.page > 0 && start < entries.len() => start,
                _ => return Some(Err(format!("no such cursor: {cursor}"))),
            },
            other => return Some(Err(format!("no cursor: {other}"))),
        };
        let end = match self.options.page {
            0 => entries.len(),
            page => entries.len().min(start + page),
        };
        let cursor = match end < entries.len() {
            true => format!(r#","nextCursor":"page {end}""#),
            false => String::new(),
        };
        Some(Ok(format!(r#"{{"{key}":[{}]{cursor}}}"#, entries[start..end].join(","))))
    }

    pub(crate) fn read(&self, id: &str, uri: &str) -> String {
        let name = &self.options.name;
        let own = uri.strip_prefix("stub://").and_then(|rest| rest.split_once('/'));
        let text = match own {
            _ if self.options.uri.as_deref() == Some(uri) => format!("{uri} of {name}"),
            Some((host, path)) if host == name => match path.strip_prefix("item/") {
                Some(item) => format!("item {item} of {name}"),
                None if path == "fixed" => {
                    return result(id, &texts::RICH_READ.replace("NAME", name));
                }
                None if path.starts_with('r') => format!("{path} of {name}"),
                None => return not_found(id, uri),
            },
            _ => return not_found(id, uri),
        };
        let (uri, text) = (quote(uri), quote(&text));
        result(id, &format!(r#"{{"contents":[{{"uri":{uri},"text":{text}}}]}}"#))
    }

    pub(crate) fn prompt(&self, id: &str, params: &Value) -> String {
        let asked = params["name"].as_str().unwrap_or_default();
        self.note(&format!("prompt {asked}"));
        match asked {
            "prompt" => result(id, &texts::RICH_PROMPT.replace("NAME", &self.options.name)),
            _ => error(id, -32602, &format!("stub has no prompt {asked}")),
        }
    }

    pub(crate) fn call(
        &self,
        session: &str,
        id: &str,
        params: &Value,
        body: &[u8],
        channel: &dyn Channel,
    ) -> Reply {
        let tool = params["name"].as_str().unwrap_or_default().to_owned();
        let arguments = &params["arguments"];
        let number = |key: &str, default: u64| arguments[key].as_u64().unwrap_or(default);
        let ms = |key: &str| Duration::from_millis(number(key, 0));
        *self.executions.lock().unwrap().entry(tool.clone()).or_default() += 1;
        self.note(&format!("call {tool} {id}"));
        let said = |text: &str| result(id, &text_result(text));
        let key = (session.to_owned(), id.to_owned());
        let job = Arc::<Job>::default();
        self.jobs.lock().unwrap().insert(key.clone(), job.clone());
        let reply = match tool.as_str() {
            "echo" => Reply::Answer(said(arguments["payload"].as_str().unwrap_or_default())),
            "raw" => Reply::Answer(said(&String::from_utf8_lossy(body))),
            "rich" => Reply::Answer(result(id, texts::RICH_RESULT)),
            "rich_error" => {
                let error = texts::RICH_ERROR;
                Reply::Answer(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#))
            }
            "stats" => Reply::Answer(said(&self.stats())),
            "crash" => {
                self.note("crash");
                match arguments["how"].as_str() {
                    Some("exit") => std::process::exit(3),
                    _ => std::process::abort(),
                }
            }
            "hang" => {
                job.pause(Duration::from_secs(600));
                Reply::Silence
            }
            "sleep" => match job.pause(ms("ms")) {
                true => Reply::Answer(said("slept")),
                false if arguments["stubborn"] == true => {
                    // A server that answers in spite of the cancellation: the answer is late.
                    std::thread::sleep(ms("late_ms"));
                    self.note(&format!("late {id}"));
                    Reply::Answer(said("late"))
                }
                false => Reply::Silence,
            },
            "progress" => self.progress(id, params, &job, channel),
            "big" => {
                let answer = said(&"x".repeat(number("bytes", 0) as usize));
                match arguments["chunked"] == true {
                    true => {
                        Reply::Pieces { answer, pieces: 100, pause: Duration::ZERO, chunked: true }
                    }
                    false => Reply::Answer(answer),
                }
            }
            "slow_body" => Reply::Pieces {
                answer: said(&"x".repeat(number("bytes", 100) as usize)),
                pieces: number("pieces", 10).max(1) as usize,
                pause: ms("ms"),
                chunked: arguments["chunked"] == true,
            },
            "raw_answer" => {
                let bytes = arguments["bytes"].as_str().unwrap_or_default();
                Reply::Raw {
                    bytes: bytes.replace("$ID", id).into_bytes(),
                    close: arguments["close"] == true,
                }
            }
            "wrong_id" => Reply::Answer(result(r#""nobody's""#, &text_result("wrong"))),
            "flood" => {
                flood_stderr(number("bytes", 0) as usize);
                Reply::Answer(said("flooded"))
            }
            "stop_reading" => Reply::StopReading(said("reading no more")),
            "add" => {
                let (kind, name) = (arguments["kind"].as_str(), arguments["name"].as_str());
                let kind = match kind {
                    Some("resource") => "resource",
                    Some("prompt") => "prompt",
                    _ => "tool",
                };
                let name = name.unwrap_or("added").to_owned();
                self.added.lock().unwrap().entry(kind).or_default().push(name);
                if arguments["quiet"] != true {
                    self.tell_all(&format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/{kind}s/list_changed"}}"#
                    ));
                }
                Reply::Answer(said("added"))
            }
            "reads" | "writes" | "adds" | "sets" | "search" => {
                self.unsteady(id, arguments, body, &job)
            }
            "poll" if self.options.polling => crate::polling::call(self, id, arguments),
            other if self.options.utilities && utilities::TOOLS.contains(&other) => {
                let said = self.utilities.call(self, session, id, other, arguments, channel);
                said.map_or(Reply::Silence, Reply::Answer)
            }
            other if self.is_extra(other) => {
                self.note(&format!("extra {other} {arguments}"));
                Reply::Answer(said(&format!("{other} called")))
            }
            other => {
                let asks = self.options.asks.then_some(());
                let asked =
                    asks.and_then(|()| crate::asks::call(self, session, id, params, &job, channel));
                let none =
                    || Reply::Answer(error(id, -32602, &format!("stub has no tool {other}")));
                asked.unwrap_or_else(none)
            }
        };
        self.jobs.lock().unwrap().remove(&key);
        reply
    }

    /// The tools of [`ANNOTATED`]: they say what they were sent, after `ms`; the first `fails`
    /// executions for one `key` fail in the way `how`.
    fn unsteady(&self, id: &str, arguments: &Value, body: &[u8], job: &Job) -> Reply {
        let key = arguments["key"].as_str().unwrap_or_default();
        let time = {
            let mut executions = self.executions.lock().unwrap();
            let time = executions.entry(format!("key {key}")).or_default();
            *time += 1;
            *time
        };
        self.note(&format!("unsteady {key} {time}"));
        let fails = arguments["fails"].as_u64().unwrap_or(0);
        if arguments["fail_at"].as_u64() == Some(time as u64) {
            return Reply::Answer(error(id, -32603, "as asked"));
        }
        if time as u64 > fails {
            if !job.pause(Duration::from_millis(arguments["ms"].as_u64().unwrap_or(0))) {
                return Reply::Silence;
            }
            let text = format!("{time} {}", String::from_utf8_lossy(body));
            return Reply::Answer(result(id, &text_result(&text)));
        }
        let http = |status: &str, more: &str| Reply::Raw {
            bytes: format!("HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\n\r\n").into_bytes(),
            close: false,
        };
        match arguments["how"].as_str().unwrap_or("internal") {
            "params" => Reply::Answer(error(id, -32602, "bad params")),
            "is_error" => {
                let result_text = r#"{"content":[{"type":"text","text":"no"}],"isError":true}"#;
                Reply::Answer(result(id, result_text))
            }
            "500" => http("500 Internal Server Error", ""),
            "503" => http("503 Service Unavailable", ""),
            "503 later" => http("503 Service Unavailable", "Retry-After: 60\r\n"),
            "502" => http("502 Bad Gateway", ""),
            "close" => Reply::Raw { bytes: Vec::new(), close: true },
            "late" => match job.pause(Duration::from_millis(arguments["ms"].as_u64().unwrap_or(0)))
            {
                true => Reply::Answer(error(id, -32603, "late")),
                false => Reply::Silence,
            },
            "hang" => {
                job.pause(Duration::from_secs(600));
                Reply::Silence
            }
            "slow" => {
                match job.pause(Duration::from_millis(arguments["slow_ms"].as_u64().unwrap_or(0))) {
                    true => Reply::Answer(result(id, &text_result(&format!("{time} slow")))),
                    false => {
                        self.note(&format!("stopped {key} {time}"));
                        Reply::Silence
                    }
                }
            }
            _ => Reply::Answer(error(id, -32603, "internal")),
        }
    }

    /// Whether it is one of the further tools, or was added.
    fn is_extra(&self, tool: &str) -> bool {
        let added = self.added.lock().unwrap();
        let added = added.get("tool").is_some_and(|names| names.iter().any(|name| name == tool));
        let added = added || self.options.tools.iter().any(|name| name == tool);
        let number = tool.strip_prefix('t').and_then(|digits| digits.parse::<usize>().ok());
        added || number.is_some_and(|number| number < self.options.extra)
    }

    fn progress(&self, id: &str, params: &Value, job: &Job, channel: &dyn Channel) -> Reply {
        let arguments = &params["arguments"];
        let steps = arguments["steps"].as_u64().unwrap_or(3);
        let pause = Duration::from_millis(arguments["ms"].as_u64().unwrap_or(0));
        let token = &params["_meta"]["progressToken"];
        for step in 1..=steps {
            if !job.pause(pause) {
                return Reply::Silence;
            }
            if token.is_null() {
                continue;
            }
            let extra = texts::PROGRESS_EXTRA;
            let note = quote(arguments["note"].as_str().unwrap_or_default());
            let said = channel.say(&format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progress":{step},"progressToken":{token},"total":{steps},"message":{note},{extra}}}}}"#
            ));
            if let Err(error) = said {
                self.note(&format!("progress failed: {error}"));
                return Reply::Silence;
            }
        }
        let text = arguments["note"].as_str().unwrap_or("done");
        Reply::Answer(result(id, &text_result(text)))
    }

    /// What it remembers, as JSON text.
    pub(crate) fn stats(&self) -> String {
        json!({
            "pid": std::process::id(),
            "executions": *self.executions.lock().unwrap(),
            "cancelled": *self.cancelled.lock().unwrap(),
            "sessions": self.sessions.lock().unwrap().len(),
            "jobs": self.jobs.lock().unwrap().len(),
        })
        .to_string()
    }
}

/// Tools with annotations, and one with a schema of interest: name, and the rest of the entry.
const ANNOTATED: [(&str, &str); 5] = [
    ("reads", r#""inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}"#),
    ("writes", r#""inputSchema":{"type":"object"},"annotations":{"destructiveHint":true}"#),
    ("adds", r#""inputSchema":{"type":"object"},"annotations":{"destructiveHint":false}"#),
    ("sets", r#""inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}"#),
    (
        "search",
        r#""inputSchema":{"type":"object","properties":{"q":{"type":"string"},"limit":{"type":"integer","maximum":9007199254740993},"secret":{"type":"string"}},"required":["q","limit","secret"]},"x":1.0"#,
    ),
];

/// Every tool, in the order of the list.
const TOOLS: [&str; 16] = [
    "echo",
    "raw",
    "rich",
    "rich_error",
    "stats",
    "crash",
    "hang",
    "sleep",
    "progress",
    "big",
    "slow_body",
    "raw_answer",
    "wrong_id",
    "flood",
    "stop_reading",
    "add",
];

pub(crate) fn flood_stderr(bytes: usize) {
    let line = format!("{}\n", "flood ".repeat(170));
    let mut stderr = io::stderr().lock();
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(line.len());
        stderr.write_all(&line.as_bytes()[..piece]).expect("stderr");
        left -= piece;
    }
}

pub(crate) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

pub(crate) fn text_result(text: &str) -> String {
    format!(r#"{{"content":[{{"type":"text","text":{}}}]}}"#, quote(text))
}

pub(crate) fn result(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

/// A JSON-RPC error.
pub(crate) fn error(id: &str, code: i32, message: &str) -> String {
    let message = quote(message);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#)
}

fn not_found(id: &str, uri: &str) -> String {
    let data = json!({ "uri": uri });
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32002,"message":"stub has it not","data":{data}}}}}"#
    )
}
