//! Owns: task ids on their way between clients and backends.
//! Never: who may see which task (`backend`); what tasks do.
//! Next: `task_ids`, those of the request era.
//!
//! MCP 2025-11-25, Basic, Utilities, Tasks. To a client a task id carries its owner as a tool's name
//! does: the backend's prefix stands before it, or nothing where the backend exposes its own names.

use crate::jsonrpc::{self, Span, walk};
use crate::plan::{BackendId, Plan};

/// The member of `_meta` that names the task of a message.
const RELATED: &str = "io.modelcontextprotocol/related-task";
/// The method that tells of a task.
pub const STATUS: &str = "notifications/tasks/status";

/// What stands before the ids of a backend's tasks. Of several backends without a prefix only the
/// first keeps its ids bare: those of the others could not be told from them.
pub fn prefix(plan: &Plan, backend: BackendId) -> String {
    // Of one that leaves nothing is told any more.
    let Some(own) = plan.backends.get(backend) else { return String::new() };
    let mut all = plan.backends.iter();
    let first = all.find(|other| other.prefix.is_empty() && !other.unlisted);
    match own.prefix.is_empty() && first.is_none_or(|first| first.id != backend) {
        true => format!("{}{}", own.name, plan.separator),
        false => own.prefix.clone(),
    }
}

/// The backend of a task by the id that a client has of it, and how many bytes of it are not the
/// backend's own.
pub fn owner(plan: &Plan, id: &str) -> Option<(BackendId, usize)> {
    let listed = || plan.backends.iter().filter(|backend| !backend.unlisted);
    let with = |backend: BackendId| {
        let prefix = prefix(plan, backend);
        let leads = !prefix.is_empty() && id.len() > prefix.len() && id.starts_with(&prefix);
        leads.then_some((backend, prefix.len()))
    };
    listed().find_map(|backend| with(backend.id)).or_else(|| {
        let bare = listed().find(|backend| backend.prefix.is_empty())?;
        Some((bare.id, 0))
    })
}

/// What kind of message it is, which says where task ids stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The answer to a request that was to become a task.
    Created,
    /// The answer to `tasks/get` or `tasks/cancel`.
    State,
    /// The answer to `tasks/list`.
    List,
    /// Anything that may be related to a task, such as the answer to `tasks/result`.
    Related,
}

/// A message of a backend as its client shall see it: with the owner in every task id.
pub fn shown(message: Vec<u8>, shape: Shape, prefix: &str) -> Vec<u8> {
    if prefix.is_empty() {
        return message;
    }
    let mut quoted = Vec::with_capacity(prefix.len());
    jsonrpc::quote_into(prefix, &mut quoted);
    let edits = ids(&message, shape).into_iter().map(|id| {
        let inside = Span { start: id.start + 1, end: id.start + 1 };
        (inside, &quoted[..])
    });
    let edits: Vec<_> = edits.collect();
    if edits.is_empty() { message } else { jsonrpc::splice(&message, &edits) }
}

/// A message of a client as its backend shall see it: without that prefix before the id of the task
/// that it is related to.
pub fn own(message: Vec<u8>, prefix: &str) -> Vec<u8> {
    let found: Vec<_> = ids(&message, Shape::Related)
        .into_iter()
        .filter_map(|span| {
            let id = span.text(&message)?;
            let own = id.strip_prefix(prefix).filter(|_| !prefix.is_empty())?;
            let mut quoted = Vec::with_capacity(own.len() + 2);
            jsonrpc::quote(own, &mut quoted);
            Some((span, quoted))
        })
        .collect();
    if found.is_empty() {
        return message;
    }
    let edits: Vec<_> = found.iter().map(|(span, own)| (*span, &own[..])).collect();
    jsonrpc::splice(&message, &edits)
}

/// The id of the task that an answer says was created, or that a notification is about.
pub fn named(message: &[u8]) -> Option<String> {
    let result = member(message, whole(message), "result");
    let id = match result.and_then(|result| member(message, result, "task")) {
        Some(task) => member(message, task, "taskId"),
        None => {
            let params = member(message, whole(message), "params")?;
            member(message, params, "taskId").or_else(|| related(message, params))
        }
    };
    Some(id?.text(message)?.into_owned())
}

/// A task in a list: its own id, and its entry as clients see it.
pub type Listed = (String, Vec<u8>);

/// The entries of a list of tasks as a client shall see them, each with its own id; with the cursor
/// of the next page, a JSON string.
pub fn entries(answer: &[u8], prefix: &str) -> (Vec<Listed>, Option<Vec<u8>>) {
    let Some(result) = member(answer, whole(answer), "result") else { return Default::default() };
    let cursor = member(answer, result, "nextCursor").map(|cursor| cursor.of(answer).to_vec());
    let cursor = cursor.filter(|cursor| cursor.starts_with(b"\""));
    let mut found = Vec::new();
    if let Some(tasks) = member(answer, result, "tasks")
        && let Some(elements) = walk::elements_of_checked(tasks.of(answer))
    {
        for element in elements {
            let entry = element.of(tasks.of(answer));
            let Some(id) = member(entry, whole(entry), "taskId") else { continue };
            let Some(own) = id.text(entry) else { continue };
            let mut name = Vec::with_capacity(prefix.len());
            jsonrpc::quote_into(prefix, &mut name);
            let inside = Span { start: id.start + 1, end: id.start + 1 };
            found.push((own.into_owned(), jsonrpc::splice(entry, &[(inside, &name)])));
        }
    }
    (found, cursor)
}

/// All of a message.
pub(super) fn whole(message: &[u8]) -> Span {
    Span::new(0, message.len())
}

/// A member of an object within a message that was scanned.
pub(super) fn member(message: &[u8], object: Span, name: &str) -> Option<Span> {
    let text = object.of(message);
    let mut members = walk::members_of_checked(text)?;
    let (_, value) = members.find(|(key, _)| walk::key_is(key.of(text), name))?;
    Some(Span { start: object.start + value.start, end: object.start + value.end })
}

fn related(message: &[u8], object: Span) -> Option<Span> {
    let meta = member(message, object, "_meta")?;
    member(message, member(message, meta, RELATED)?, "taskId")
}

/// The task ids of a message that was scanned, in their order: JSON strings.
fn ids(message: &[u8], shape: Shape) -> Vec<Span> {
    let mut found = Vec::new();
    for part in ["params", "result"] {
        let Some(part) = member(message, whole(message), part) else { continue };
        found.extend(related(message, part));
        match shape {
            Shape::Created => {
                let task = member(message, part, "task");
                found.extend(task.and_then(|task| member(message, task, "taskId")));
            }
            Shape::State => found.extend(member(message, part, "taskId")),
            Shape::List | Shape::Related => {}
        }
    }
    found.retain(|id| id.of(message).starts_with(b"\""));
    found.sort_by_key(|id| id.start);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(message: &str, shape: Shape) -> String {
        String::from_utf8(shown(message.into(), shape, "a__")).unwrap()
    }

    #[test]
    fn ids_get_their_owner_where_they_stand_and_nowhere_else() {
        let related =
            r#""_meta":{"io.modelcontextprotocol\/related-task":{"taskId":"t"},"taskId":"t"}"#;
        let created = format!(
            r#"{{"id":1,"result":{{"task":{{"ttl":1.0,"taskId":"t"}},{related},"taskId":"t"}}}}"#
        );
        let there = seen(&created, Shape::Created);
        assert_eq!(there.matches(r#""a__t""#).count(), 2, "{there}");
        assert!(there.ends_with(r#","taskId":"t"},"taskId":"t"}}"#), "{there}");
        assert_eq!(String::from_utf8(own(there.into(), "a__")).unwrap().matches("a__t").count(), 1);
        let state = r#"{"id":1,"result":{"taskId":"t","task":{"taskId":"t"}}}"#;
        assert_eq!(
            seen(state, Shape::State),
            r#"{"id":1,"result":{"taskId":"a__t","task":{"taskId":"t"}}}"#
        );
        for shape in [Shape::Related, Shape::List] {
            assert_eq!(seen(state, shape), state);
        }
        let odd = r#"{"id":1,"result":{"taskId":7}}"#;
        assert_eq!(seen(odd, Shape::State), odd);
        assert_eq!(shown(state.into(), Shape::State, ""), state.as_bytes());
    }

    #[test]
    fn tasks_are_named() {
        for (message, wanted) in [
            (r#"{"result":{"task":{"taskId":"t"}}}"#, Some("t")),
            (r#"{"params":{"taskId":"t","status":"working"}}"#, Some("t")),
            (r#"{"result":{"taskId":"t"}}"#, None),
            (r#"{"error":{}}"#, None),
        ] {
            assert_eq!(named(message.as_bytes()).as_deref(), wanted, "{message}");
        }
    }

    #[test]
    fn lists_are_taken_apart() {
        let page =
            br#"{"result":{"nextCursor":"c","tasks":[{"x":1.0,"taskId":"t"},{},{"taskId":"u"}]}}"#;
        let (tasks, cursor) = entries(page, "a__");
        assert_eq!(cursor.as_deref(), Some(&br#""c""#[..]));
        assert_eq!(tasks[0], ("t".into(), br#"{"x":1.0,"taskId":"a__t"}"#.to_vec()));
        assert_eq!((tasks.len(), &*tasks[1].0), (2, "u"));
    }
}
