//! Owns: what backends of the request era are asked to say by themselves: a request that stays open,
//! opened again when it ends.
//! Never: clients' streams (`exchange`).
//! Next: `subscribed`, for sessions.
//!
//! MCP 2026-07-28, Subscriptions. The proxy listens for changed lists on its own behalf, and for
//! changed resources and tasks on that of each client that listens for them.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::attempt::{self, Ended};
use super::entry::{self, Entry};
use super::handle::CallHandle;
use super::health::Backoff;
use super::http::Request;
use super::leg::Leg;
use super::own::{self, Said};
use super::{Backends, Call, Caller, Reply, Wire, era, line, listeners, modern, supervise};
use crate::jsonrpc::{self, Raw};
use crate::limits;
use crate::mcp::envelope;
use crate::mcp::task_ids;
use crate::plan::{BackendId, RestartPlan};
use crate::rt::local::{Event, Sender};
use crate::rt::{self, Either, race};

const LISTEN: &str = "subscriptions/listen";

/// Listening that goes on until it is dropped.
pub struct Subscription(Rc<Event>);

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// What a client listens for at one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Resources.
    pub uris: Vec<String>,
    /// Tasks.
    pub tasks: Vec<TaskName>,
}

/// A task by both its names.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskName {
    /// The backend's own id.
    pub own: String,
    /// The caller's.
    pub shown: String,
}

/// What a client that listens hears of a backend.
#[derive(Debug)]
pub enum Heard {
    /// The first word: of these it will tell.
    Agreed(Agreed),
    /// It was away meanwhile: any of these resources may have changed.
    Again(Vec<String>),
    /// `notifications/resources/updated`, whole.
    Updated(Vec<u8>),
    /// `notifications/tasks`, whole, under the caller's id.
    Task(Vec<u8>),
}

/// Of what a backend will tell.
#[derive(Debug, Default, PartialEq)]
pub struct Agreed {
    /// Resources.
    pub uris: Vec<String>,
    /// Tasks, by the caller's ids.
    pub tasks: Vec<String>,
}

impl Agreed {
    /// Of these resources alone.
    pub(super) fn resources(uris: Vec<String>) -> Agreed {
        Agreed { uris, tasks: Vec::new() }
    }
}

/// For whom is listened.
enum Ear {
    Own,
    Client { out: Sender<Heard>, tasks: Rc<[TaskName]> },
}

/// How a stream ended.
enum End {
    /// It does not know how to.
    Refused,
    /// It may be opened again.
    Closed { opened: bool },
    /// Nobody listens any more.
    Deaf,
}

impl Backends {
    /// Whether a backend tells of changed resources.
    pub fn can_subscribe(&self, backend: BackendId) -> bool {
        let Some(entry) = self.entry(backend) else { return false };
        let slice = entry.slice.borrow();
        slice.as_ref().is_some_and(|slice| slice.can_subscribe())
    }

    /// Listens on behalf of `caller`, until the value is dropped or nobody takes what is heard. The
    /// first thing heard is [`Heard::Agreed`]. Tasks are those of backends of the request era alone.
    pub fn subscribe(
        self: &Rc<Self>,
        backend: BackendId,
        caller: &Caller,
        wanted: &Wanted,
        out: Sender<Heard>,
    ) -> Subscription {
        let stop = Rc::new(Event::new());
        let Some(entry) = self.entry(backend) else {
            // Nothing will be heard of it.
            let _ = out.try_send(Heard::Agreed(Agreed::default()));
            return Subscription(stop);
        };
        let (backends, caller, wanted) = (self.clone(), caller.clone(), wanted.clone());
        let stopped = stop.clone();
        rt::spawn("client that listens", async move {
            loop {
                // A server that is another one now is listened to in another way.
                let era = entry.era_changed.notified();
                if entry.era.get().is_modern() {
                    let _listening = client(&backends, &entry, &caller, &wanted, out.clone());
                    let over = race(stopped.wait(), entry.closing.wait());
                    if let Either::Right(_) = race(era, over).await {
                        return;
                    }
                    continue;
                }
                let uris = &wanted.uris;
                let attending = listeners::attend(&backends, &entry, &caller, uris, &out);
                let over = race(stopped.wait(), entry.closing.wait());
                let ended = race(era, over);
                match race(Box::pin(attending), ended).await {
                    Either::Right(Either::Left(())) => {}
                    Either::Left(()) | Either::Right(Either::Right(_)) => return,
                }
            }
        });
        Subscription(stop)
    }
}

/// Listens for a client at a backend of the request era.
pub(super) fn client(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    caller: &Caller,
    wanted: &Wanted,
    out: Sender<Heard>,
) -> Subscription {
    let uris = jsonrpc::strings(&wanted.uris);
    let tasks = jsonrpc::strings(wanted.tasks.iter().map(|task| &task.own));
    let all = [
        ("resourceSubscriptions", &uris[..], wanted.uris.is_empty()),
        ("taskIds", &tasks[..], wanted.tasks.is_empty()),
    ];
    let some = all.into_iter().filter(|(_, _, is_empty)| !is_empty);
    let some: Vec<(&str, &[u8])> = some.map(|(name, list, _)| (name, list)).collect();
    let with = envelope::members(&caller.capabilities, &caller.client, None);
    let meta = envelope::rebuilt(b"{}", &[], &with);
    let params = |filter: &[(&str, &[u8])]| {
        let filter = envelope::rebuilt(b"{}", &[], filter);
        let params = [("_meta", &meta[..]), ("notifications", &filter[..])];
        envelope::rebuilt(b"{}", &[], &params)
    };
    let whole = params(&some);
    // It may refuse all for a task that is gone: then it is asked for the resources.
    let rest = (some.len() > 1).then(|| params(&some[..1]));
    let tasks = wanted.tasks.as_slice().into();
    keep(backends, entry, whole, rest, Ear::Client { out, tasks })
}

/// Listens for changed lists, until the value is dropped.
pub(super) fn own(backends: &Rc<Backends>, entry: &Rc<Entry>) -> Subscription {
    let params = br#"{"notifications":{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true}}"#;
    let params = era::own_params(&backends.plan.borrow(), Some(params));
    keep(backends, entry, params, None, Ear::Own)
}

/// Keeps a stream open for `params`; if they are refused, for `rest`.
fn keep(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    mut params: Vec<u8>,
    mut rest: Option<Vec<u8>>,
    ear: Ear,
) -> Subscription {
    let stop = Rc::new(Event::new());
    let (backends, entry, stopped) = (backends.clone(), entry.clone(), stop.clone());
    rt::spawn("backend listener", async move {
        let plan = RestartPlan {
            initial: limits::RESTART_INITIAL,
            max: limits::HTTP_RETRY_MAX,
            give_up_after: None,
        };
        let mut backoff = Backoff::new(plan, backends.chance());
        let mut times = 0;
        loop {
            let began = Instant::now();
            // Dropped on stop, which ends the request.
            let stream = stream(&backends, &entry, &params, &ear, &mut times);
            let over = race(stopped.wait(), entry.closing.wait());
            let opened = match race(stream, over).await {
                Either::Left(End::Closed { opened }) => opened,
                Either::Left(End::Refused) => match rest.take() {
                    Some(rest) => {
                        params = rest;
                        continue;
                    }
                    None => break,
                },
                Either::Left(End::Deaf) | Either::Right(_) => return,
            };
            if opened && began.elapsed() >= limits::LIVED_WELL {
                backoff.reset();
            }
            if matches!(ear, Ear::Own) && (!opened || began.elapsed() < limits::PROBE_PAUSE) {
                // Whether the server is there at all is the supervisor's question.
                backends.hint(&entry, supervise::FAILED);
            }
            let pause = backoff.next(limits::HTTP_RETRY_MAX).unwrap_or(limits::HTTP_RETRY_MAX);
            let over = race(stopped.wait(), entry.closing.wait());
            if rt::time::timeout(pause, over).await.is_ok() {
                return;
            }
        }
        match ear {
            Ear::Client { out, .. } => drop(out.send(Heard::Agreed(Agreed::default())).await),
            // It will not say when its lists change: they are looked at now and then.
            Ear::Own => {
                while rt::time::timeout(limits::LIST_POLL, stopped.wait()).await.is_err() {
                    entry.bell.ring(supervise::STALE);
                }
            }
        }
    });
    Subscription(stop)
}

/// Ends a request that stays open, before its replies are dropped.
struct Cancel(Rc<CallHandle>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel(None);
    }
}

/// One stream, from its opening to its end. A drop ends it at the backend too.
async fn stream(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    params: &[u8],
    ear: &Ear,
    times: &mut u32,
) -> End {
    let number = backends.number();
    let asked = Raw::number(number);
    let mut body = Vec::with_capacity(params.len() + 96);
    jsonrpc::request(&mut body, &asked, LISTEN, Some(params));
    let handle = Rc::new(CallHandle::deaf());
    let opening = open(backends, entry, body, asked, &handle);
    let mut wire = match rt::time::timeout(limits::REQUEST_TIMEOUT, opening).await {
        Ok(Ok(wire)) => wire,
        Ok(Err(_)) | Err(_) => return End::Closed { opened: false },
    };
    // After `wire`, so that it is dropped first.
    let _cancel = Cancel(handle);
    let mut opened = false;
    loop {
        let reply = match &mut wire {
            Wire::Http(http) => http.next().await,
            Wire::Line(line) => line.next().await,
            Wire::Crossed(_) | Wire::Aside(_) => return End::Refused,
        };
        match reply {
            Ok(Reply::Notification(message)) => {
                match hear(backends, entry, &message, ear, times).await {
                    Some(true) => {
                        opened = true;
                        if let Ear::Own = ear {
                            // What changed before, or while nobody listened, was not heard.
                            entry.bell.ring(supervise::STALE);
                        }
                    }
                    Some(false) => {}
                    None => return End::Deaf,
                }
            }
            Ok(Reply::Answer(answer)) => {
                return match own::said(&answer) {
                    Ok(Said::Result(_)) => End::Closed { opened },
                    // Full, or not there just now.
                    Ok(Said::Error { .. }) if is_for_now(wire.beside().status) => {
                        End::Closed { opened }
                    }
                    Ok(Said::Error { .. }) | Err(_) => End::Refused,
                };
            }
            // Servers of that era ask nothing.
            Ok(Reply::Ask(_) | Reply::Away { .. }) => {}
            Ok(Reply::Streaming { .. }) => return End::Refused,
            Err(Ended::Failed(failure))
                if (400..500).contains(&failure.status) && !is_for_now(failure.status) =>
            {
                return End::Refused;
            }
            Err(_) => return End::Closed { opened },
        }
    }
}

/// Whether a status says that the same may be granted later.
fn is_for_now(status: u16) -> bool {
    matches!(status, 408 | 409 | 425 | 429 | 502..=504)
}

async fn open(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    body: Vec<u8>,
    asked: Raw,
    handle: &Rc<CallHandle>,
) -> Result<Wire, Ended> {
    if let entry::Wire::Http(_) = &entry.wire {
        let leg = Rc::new(Leg::modern(entry.http().0, &modern::lines(LISTEN, None)));
        let request =
            Request { body: &body, rename: None, asked, whole: true, caller: None, renewed: false };
        let sent = attempt::sent(backends, entry, &leg, &request, handle, true).await;
        return sent.map(Wire::Http);
    }
    let id = jsonrpc::scan(&body).ok().and_then(|message| message.id).unwrap_or_default();
    let call = Call {
        backend: entry.id,
        session: None,
        tool_call: false,
        safe: true,
        id,
        progress_token: None,
        body,
        // Not counted among the calls, and without a clock: it stays open.
        timeout: Duration::MAX,
        tool: None,
        modern: None,
        again: false,
        handle: handle.clone(),
    };
    line::call(backends, entry, call).await.map(Wire::Line)
}

/// One message of a stream: `Some(true)` for the word that it is open, `None` if nobody listens.
async fn hear(
    backends: &Backends,
    entry: &Entry,
    message: &[u8],
    ear: &Ear,
    times: &mut u32,
) -> Option<bool> {
    let Ok(envelope) = jsonrpc::scan(message) else { return Some(false) };
    match (envelope.method_name(message).as_deref(), ear) {
        (Some("notifications/subscriptions/acknowledged"), _) => {
            *times += 1;
            if *times > 1 {
                // What changed meanwhile was not heard.
                backends.board.outdate(entry.id, false, true);
            }
            if let Ear::Client { out, tasks } = ear {
                let agreed = agreed(message, &envelope, tasks);
                let word = match *times {
                    1 => Heard::Agreed(agreed),
                    _ => Heard::Again(agreed.uris),
                };
                out.send(word).await.ok()?;
            }
            Some(true)
        }
        (Some("notifications/resources/updated"), Ear::Client { out, .. })
            if message.len() <= limits::SSE_QUEUE_BYTES_MAX =>
        {
            out.send(Heard::Updated(message.to_vec())).await.ok()?;
            Some(false)
        }
        (Some(task_ids::NOTIFICATION), Ear::Client { out, tasks }) => {
            let Some(at) = task_ids::asked(message, &envelope) else { return Some(false) };
            let own = at.text(message);
            // Of another one it was not asked to tell.
            let task = tasks.iter().find(|task| own.as_deref() == Some(&*task.own));
            let Some(task) = task else { return Some(false) };
            if message.len() > limits::HEARD_TASK_BYTES_MAX {
                tracing::warn!(
                    backend = entry.name(),
                    bytes = message.len(),
                    "the state of a task is too long to be told: its client has to ask for it"
                );
                return Some(false);
            }
            out.send(Heard::Task(task_ids::renamed(message, at, &task.shown))).await.ok()?;
            Some(false)
        }
        _ => Some(false),
    }
}

/// What an acknowledgement names, as far as it was asked for.
fn agreed(message: &[u8], envelope: &jsonrpc::Envelope, tasks: &[TaskName]) -> Agreed {
    #[derive(Default, serde::Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Filter {
        resource_subscriptions: Vec<String>,
        task_ids: Vec<String>,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Params {
        notifications: Filter,
    }
    let params = envelope.params.map_or(&b"{}"[..], |params| params.of(message));
    let params: Params = serde_json::from_slice(params).unwrap_or_default();
    let Filter { resource_subscriptions: uris, task_ids } = params.notifications;
    let tasks = tasks.iter().filter(|task| task_ids.contains(&task.own));
    Agreed { uris, tasks: tasks.map(|task| task.shown.clone()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_agreed() {
        let task = |own: &str| TaskName { own: own.into(), shown: format!("web__{own}") };
        let tasks = [task("t"), task("u")];
        let text = |filter: &str| {
            format!(r#"{{"jsonrpc":"2.0","method":"n","params":{{"notifications":{filter}}}}}"#)
        };
        for (filter, uris, shown) in [
            ("{}", vec![], vec![]),
            (
                r#"{"taskIds":["u","v"],"resourceSubscriptions":["a:b"]}"#,
                vec!["a:b"],
                vec!["web__u"],
            ),
            (r#"{"taskIds":["web__t"],"toolsListChanged":true}"#, vec![], vec![]),
            (r#"{"taskIds":7}"#, vec![], vec![]),
        ] {
            let message = text(filter);
            let envelope = jsonrpc::scan(message.as_bytes()).unwrap();
            let agreed = agreed(message.as_bytes(), &envelope, &tasks);
            assert_eq!(agreed.uris, uris, "{filter}");
            assert_eq!(agreed.tasks, shown, "{filter}");
        }
    }
}
