//! Owns: the stream of a client that listens for changes.
//! Never: who says what on it (`world`, `backend`).
//! Next: `own`, what the proxy answers by itself.
//!
//! MCP 2026-07-28, Subscriptions: first the word what will be told, then nothing but that, all of it
//! under the name that the client gave its request; at the end of the proxy a result.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use serde::Deserialize;

use super::{Asked, fail, offer, tasks};
use crate::backend::{Agreed, Heard, Subscription, Wanted};
use crate::error::{Error, Kind, Result};
use crate::exchange::Ask;
use crate::exchange::answer::{EVENTS, with};
use crate::exchange::call::{Who, shape};
use crate::http::{Connection, sse};
use crate::jsonrpc::{self, walk};
use crate::limits;
use crate::mcp::catalog::{Changes, ListKind};
use crate::mcp::envelope::{self, key};
use crate::mcp::method::Method;
use crate::plan::BackendId;
use crate::rt::{self, Either};
use crate::world::World;

/// What a client wants to hear.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    tools_list_changed: bool,
    prompts_list_changed: bool,
    resources_list_changed: bool,
    resource_subscriptions: Vec<String>,
    task_ids: Vec<String>,
}

impl Filter {
    fn read(params: &[u8]) -> Result<Filter> {
        #[derive(Deserialize)]
        struct Params {
            notifications: Filter,
        }
        let params: Params = serde_json::from_slice(params)
            .map_err(|fault| Error::new(Kind::InvalidParams).context(fault.to_string()))?;
        if params.notifications.resource_subscriptions.len() > limits::SUBSCRIPTIONS_MAX {
            return Err(Error::new(Kind::InvalidParams).context("too many resources"));
        }
        if params.notifications.task_ids.len() > limits::LISTENED_TASKS_MAX {
            return Err(Error::new(Kind::InvalidParams).context("too many tasks"));
        }
        Ok(params.notifications)
    }

    /// As JSON, without what is not wanted.
    fn text(&self) -> Vec<u8> {
        let mut members: Vec<(&str, &[u8])> = Vec::new();
        for (name, wanted) in [
            ("toolsListChanged", self.tools_list_changed),
            ("promptsListChanged", self.prompts_list_changed),
            ("resourcesListChanged", self.resources_list_changed),
        ] {
            members.extend(wanted.then_some((name, &b"true"[..])));
        }
        let uris = jsonrpc::strings(&self.resource_subscriptions);
        if !self.resource_subscriptions.is_empty() {
            members.push(("resourceSubscriptions", &uris));
        }
        let tasks = jsonrpc::strings(&self.task_ids);
        if !self.task_ids.is_empty() {
            members.push(("taskIds", &tasks));
        }
        envelope::rebuilt(b"{}", &[], &members)
    }
}

/// Serves `subscriptions/listen`. A drop ends what is listened for at backends.
pub(super) async fn listen(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    asked: Asked,
) -> io::Result<()> {
    let params = asked.envelope.params.map_or(&b"null"[..], |params| params.of(&asked.message));
    let mut filter = match Filter::read(params) {
        Ok(filter) => filter,
        Err(error) => return fail(connection, ask, &error, &asked.id).await,
    };
    if !filter.task_ids.is_empty() && !asked.caller.tasks {
        return fail(connection, ask, &tasks::missing(), &asked.id).await;
    }
    world.settled().await;
    // From here on no change is missed.
    let ear = world.open_ear();
    let (sender, mut heard) = rt::local::queue(limits::HEARD_MAX);
    let mut wanted = split(world, ask, std::mem::take(&mut filter.resource_subscriptions)).await;
    tasks::split(world, ask, std::mem::take(&mut filter.task_ids), &mut wanted);
    let mut waiting = wanted.len();
    let mut hearings: Vec<Subscription> = Vec::new();
    for (backend, wanted) in &wanted {
        hearings.push(world.backends.subscribe(*backend, &asked.caller, wanted, sender.clone()));
    }
    // The first word of each tells what it will tell. One that is away does so when it comes back.
    let mut promised = Agreed::default();
    for Wanted { uris, tasks } in wanted.into_values() {
        promised.uris.extend(uris);
        promised.tasks.extend(tasks.into_iter().map(|task| task.shown));
    }
    let words = async {
        let mut all = Agreed::default();
        while waiting > 0 {
            match heard.recv().await {
                Some(Heard::Agreed(agreed)) => {
                    waiting -= 1;
                    all.uris.extend(agreed.uris);
                    all.tasks.extend(agreed.tasks);
                }
                Some(_) => {}
                None => break,
            }
        }
        all
    };
    let words = rt::time::timeout(limits::LISTEN_ACK_WAIT, words);
    let agreed = match rt::race(words, connection.closed()).await {
        Either::Left(agreed) => agreed.ok(),
        Either::Right(()) => {
            connection.abort();
            return Ok(());
        }
    };
    if let Some(agreed) = agreed {
        promised.uris.retain(|uri| agreed.uris.contains(uri));
        promised.tasks.retain(|task| agreed.tasks.contains(task));
    }
    (filter.resource_subscriptions, filter.task_ids) = (promised.uris, promised.tasks);
    offered(world, &mut filter);
    let stream = Stream { id: &asked.id, filter: &filter };
    let mut first = Vec::new();
    sse::write(&mut first, None, &stream.acknowledgement());
    ask.facts.well();
    ear.streams();
    connection.begin_with(200, &with(EVENTS, &ask.cors), None, &first).await?;
    loop {
        let news = rt::race(heard.recv(), ear.changed());
        let over = rt::race(world.draining.wait(), world.dismissed.wait());
        let end = rt::race(connection.closed(), over);
        let wait = rt::race(rt::time::timeout(limits::SSE_COMMENT_INTERVAL, news), end).await;
        let messages = match wait {
            Either::Left(Ok(Either::Left(Some(heard)))) if may_hear_of(ask, &heard) => {
                stream.heard(heard)
            }
            Either::Left(Ok(Either::Left(Some(_)))) => Vec::new(),
            // The sender of this very function lives.
            Either::Left(Ok(Either::Left(None))) => Vec::new(),
            Either::Left(Ok(Either::Right(changes))) => stream.changed(changes),
            Either::Left(Err(rt::time::Elapsed)) => {
                connection.chunk(sse::COMMENT.to_vec()).await?;
                continue;
            }
            Either::Right(Either::Left(())) => {
                connection.abort();
                return Ok(());
            }
            Either::Right(Either::Right(_)) => {
                let mut last = Vec::new();
                sse::write(&mut last, None, &stream.end(world));
                return connection.finish_with(&last).await;
            }
        };
        let mut events = Vec::new();
        for message in messages {
            sse::write(&mut events, None, &message);
        }
        if !events.is_empty() {
            connection.chunk(events).await?;
        }
    }
}

/// Takes off what nobody here could tell.
fn offered(world: &World, filter: &mut Filter) {
    let catalog = world.catalog.borrow();
    filter.tools_list_changed &= catalog.offers(ListKind::Tools);
    filter.prompts_list_changed &= catalog.offers(ListKind::Prompts);
    filter.resources_list_changed &=
        catalog.offers(ListKind::Resources) || catalog.offers(ListKind::Templates);
}

/// Which backends to ask about which resources: those that own them, and tell of changes. What is
/// hidden is nobody's.
async fn split(world: &Rc<World>, ask: &Ask, uris: Vec<String>) -> BTreeMap<BackendId, Wanted> {
    let mut wanted: BTreeMap<BackendId, Wanted> = BTreeMap::new();
    for uri in uris {
        if !may_hear(ask, &uri) {
            continue;
        }
        let owner = world.catalog.borrow().owner_of_uri(&uri).or(world.only);
        let Some(backend) = owner.filter(|backend| world.backends.can_subscribe(*backend)) else {
            continue;
        };
        let plan = &world.plan.backends[backend];
        if !plan.chain.spares_calls() {
            let mut like =
                br#"{"jsonrpc":"2.0","id":0,"method":"resources/read","params":{"uri":"#.to_vec();
            jsonrpc::quote(&uri, &mut like);
            like.extend_from_slice(b"}}");
            let Ok(mut seen) = jsonrpc::scan(&like) else { continue };
            let method = Method::ResourcesRead;
            let who = Who::fresh();
            let shaped = shape(world, &who, plan, None, method, &mut like, &mut seen);
            if Box::pin(shaped).await.is_err() {
                continue;
            }
        }
        let list = &mut wanted.entry(backend).or_default().uris;
        if !list.contains(&uri) {
            list.push(uri);
        }
    }
    wanted
}

/// Whether the caller may know of a resource.
fn may_hear(ask: &Ask, uri: &str) -> bool {
    ask.who.rights().is_none_or(|rights| rights.shows(ListKind::Resources, uri))
}

/// The same of what an update names: a server may tell of others than it was asked about.
fn may_hear_of(ask: &Ask, heard: &Heard) -> bool {
    let Heard::Updated(message) = heard else { return true };
    if ask.who.rights().is_none() {
        return true;
    }
    let uri = || {
        let params = jsonrpc::scan(message).ok()?.params?.of(message);
        walk::member(params, "uri")?.text(params)
    };
    uri().is_some_and(|uri| may_hear(ask, &uri))
}

/// What is said on one stream.
struct Stream<'a> {
    /// The client's name for it, raw.
    id: &'a [u8],
    filter: &'a Filter,
}

impl Stream<'_> {
    fn notification(&self, method: &str, member: Option<(&str, &[u8])>) -> Vec<u8> {
        let meta = envelope::rebuilt(b"{}", &[], &[(key::SUBSCRIPTION, self.id)]);
        let mut members: Vec<(&str, &[u8])> = vec![("_meta", &meta)];
        members.extend(member);
        let params = envelope::rebuilt(b"{}", &[], &members);
        let mut out = Vec::with_capacity(params.len() + 96);
        jsonrpc::notification(&mut out, method, Some(&params));
        out
    }

    fn acknowledgement(&self) -> Vec<u8> {
        let filter = self.filter.text();
        let member = Some(("notifications", &filter[..]));
        self.notification("notifications/subscriptions/acknowledged", member)
    }

    fn changed(&self, changes: Changes) -> Vec<Vec<u8>> {
        let filter = self.filter;
        let all = [
            (changes.tools && filter.tools_list_changed, "notifications/tools/list_changed"),
            (
                changes.resources && filter.resources_list_changed,
                "notifications/resources/list_changed",
            ),
            (changes.prompts && filter.prompts_list_changed, "notifications/prompts/list_changed"),
        ];
        let due = all.into_iter().filter(|(due, _)| *due);
        due.map(|(_, method)| self.notification(method, None)).collect()
    }

    fn heard(&self, heard: Heard) -> Vec<Vec<u8>> {
        match heard {
            Heard::Updated(message) | Heard::Task(message) => match jsonrpc::scan(&message) {
                Ok(seen) => vec![envelope::tagged(&message, &seen, self.id)],
                Err(_) => Vec::new(),
            },
            // It was away, or came only now: what it would have told meanwhile is not known.
            Heard::Agreed(Agreed { uris, .. }) | Heard::Again(uris) => {
                let known = uris.into_iter();
                let known = known.filter(|uri| self.filter.resource_subscriptions.contains(uri));
                known
                    .map(|uri| {
                        let mut quoted = Vec::new();
                        jsonrpc::quote(&uri, &mut quoted);
                        self.notification("notifications/resources/updated", Some(("uri", &quoted)))
                    })
                    .collect()
            }
        }
    }

    fn end(&self, world: &World) -> Vec<u8> {
        let mut result = b"{\"resultType\":\"complete\"".to_vec();
        offer::signature(world, &[(key::SUBSCRIPTION, self.id)], &mut result);
        result.push(b'}');
        let mut answer = Vec::with_capacity(result.len() + 64);
        jsonrpc::result(&mut answer, self.id, &result);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_told() {
        let filter = Filter::read(
            br#"{"notifications":{"toolsListChanged":true,"x":1,"resourceSubscriptions":["a://b"]}}"#,
        )
        .unwrap();
        let stream = Stream { id: b"\"l\"", filter: &filter };
        let text = |message: Vec<u8>| String::from_utf8(message).unwrap();
        assert_eq!(
            text(stream.acknowledgement()),
            r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"l"},"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a://b"]}}}"#
        );
        let all = Changes { tools: true, resources: true, prompts: true };
        let told = stream.changed(all);
        assert_eq!(told.len(), 1);
        assert!(text(told[0].clone()).contains("tools/list_changed"));
        let again = stream.heard(Heard::Again(vec!["a://b".into(), "a://c".into()]));
        assert_eq!(again.len(), 1);
        assert!(Filter::read(b"{}").is_err() && Filter::read(b"null").is_err());
        assert_eq!(Filter::read(br#"{"notifications":{}}"#).unwrap(), Filter::default());
    }
}
