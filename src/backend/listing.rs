//! Owns: reading a backend's lists, all pages of them.
//! Never: what is in the pages (`mcp::catalog`).
//! Next: `views`, what clients of different kinds see.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::failure::Failure;
use super::leg;
use super::own::{Channel, Said};
use super::relay::changed;
use super::{Backends, Caller, bridge};
use crate::error::Kind;
use crate::limits;
use crate::mcp::catalog::{List, ListKind, Pages, Slice, next_cursor};
use crate::mcp::session::SessionRecord;

/// JSON-RPC: the method does not exist.
const METHOD_NOT_FOUND: i64 = -32601;

/// The lists that a flag of [`changed`] is about.
pub(super) fn kinds(flags: u32) -> impl Iterator<Item = ListKind> {
    ListKind::ALL.into_iter().filter(move |kind| {
        let flag = match kind {
            ListKind::Tools => changed::TOOLS,
            ListKind::Resources | ListKind::Templates => changed::RESOURCES,
            ListKind::Prompts => changed::PROMPTS,
        };
        flags & flag != 0
    })
}

/// Reads the lists that `flags` are about into `pages`, of those that the backend says it has.
///
/// A list that the backend refuses, or that cannot be read to its end, stays as it was: the others
/// are worth having.
///
/// # Errors
/// The backend cannot be reached, or forgot the session.
pub(super) async fn read(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    channel: &Channel,
    capable: &Slice,
    flags: u32,
    pages: &mut Pages,
) -> Result<(), Failure> {
    let limit = entry.plan.startup_timeout;
    for kind in kinds(flags) {
        if !capable.can(kind.capability()) {
            continue;
        }
        match list(backends, entry, channel, kind, limit).await {
            Ok(list) => *pages.of_mut(kind) = list,
            Err(failure) if failure.session_lost || failure.kind != Kind::BadAnswer => {
                return Err(failure);
            }
            Err(failure) => {
                tracing::warn!(backend = entry.name(), list = kind.method(), %failure, "list not read");
            }
        }
    }
    Ok(())
}

/// Whose view of a list is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Viewer<'a> {
    /// Of a client with a session.
    Session(&'a Arc<SessionRecord>),
    /// Of a client without.
    Caller(&'a Caller),
}

/// One list of a backend as a client sees it: with what that client showed, and through its own
/// session there if the backend has sessions.
///
/// # Errors
/// It could not be read, within the bound of any other request.
pub(super) async fn of_client(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    viewer: Viewer<'_>,
    kind: ListKind,
) -> Result<List, Failure> {
    let limit = entry.plan.request_timeout;
    let build = |pages: &[Vec<u8>]| {
        List::build(&entry.plan, kind, pages)
            .map_err(|error| Failure::new(Kind::BadAnswer, error.to_string()))
    };
    if entry.era.get().is_modern() {
        let shown = match viewer {
            Viewer::Session(session) => session.authorization(),
            Viewer::Caller(caller) => caller.authorization.clone(),
        };
        let channel = shown.map_or(Channel::Posts, Channel::PostsOf);
        return build(&list(backends, entry, &channel, kind, limit).await?);
    }
    let session = match viewer {
        Viewer::Session(session) => session.clone(),
        Viewer::Caller(caller) => bridge::record(backends, entry, caller)?.record.clone(),
    };
    let mut lost = None;
    loop {
        let leg = leg::get(backends, entry, Some(&session), lost).await?;
        let generation = leg.generation;
        match list(backends, entry, &Channel::Leg(leg), kind, limit).await {
            Err(failure) if failure.session_lost && lost.is_none() => lost = Some(generation),
            Err(failure) => return Err(failure),
            Ok(pages) => {
                return build(&pages);
            }
        }
    }
}

async fn list(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    channel: &Channel,
    kind: ListKind,
    limit: Duration,
) -> Result<Vec<Vec<u8>>, Failure> {
    let bad = |cause: String| Failure::new(Kind::BadAnswer, cause);
    let mut pages = Vec::new();
    let mut bytes = 0;
    let mut cursors: HashSet<Vec<u8>> = HashSet::new();
    let mut params: Option<Vec<u8>> = None;
    loop {
        let said = channel.ask(backends, entry, kind.method(), params.as_deref(), limit).await?;
        let page = match said {
            Said::Result(page) => page,
            // Many servers promise resources and do not know templates.
            Said::Error { code: METHOD_NOT_FOUND, .. } => return Ok(Vec::new()),
            Said::Error { code, message } => {
                let message: String = message.chars().take(200).collect();
                return Err(bad(format!("error {code}: {}", message.escape_debug())));
            }
        };
        let cursor = next_cursor(&page)
            .map_err(|error| bad(error.to_string()))?
            .map(|cursor| cursor.of(&page).to_vec());
        bytes += page.len();
        pages.push(page);
        let Some(cursor) = cursor else { return Ok(pages) };
        if pages.len() >= limits::LIST_PAGES_MAX || bytes > limits::LIST_BYTES_MAX {
            tracing::warn!(
                backend = entry.name(),
                list = kind.method(),
                pages = pages.len(),
                bytes,
                "list cut: too long"
            );
            return Ok(pages);
        }
        let mut next = br#"{"cursor":"#.to_vec();
        next.extend_from_slice(&cursor);
        next.push(b'}');
        if !cursors.insert(cursor) {
            tracing::warn!(
                backend = entry.name(),
                list = kind.method(),
                pages = pages.len(),
                "list cut: its cursors repeat"
            );
            return Ok(pages);
        }
        params = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_resources_concerns_templates_too() {
        assert_eq!(kinds(changed::ANY).collect::<Vec<_>>(), ListKind::ALL);
        assert_eq!(
            kinds(changed::RESOURCES).collect::<Vec<_>>(),
            [ListKind::Resources, ListKind::Templates]
        );
        assert_eq!(kinds(changed::TOOLS | 64).collect::<Vec<_>>(), [ListKind::Tools]);
        assert_eq!(kinds(64).count(), 0);
    }
}
