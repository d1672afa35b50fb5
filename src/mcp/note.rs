//! Owns: notifications of backends as a client shall see them.
//! Never: who gets them.
//! Next: `logging`.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::{logging, tasks};
use crate::jsonrpc::{self, Kind};
use crate::plan::{BackendId, Plan};

/// The start of a notification of progress, as it is usually written.
const PROGRESS: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/progress","#;

/// A notification of a backend on its way to a client that asked for log messages from `least` on:
/// names the backend in log messages and task ids. `None`: it is not for this client. It was scanned
/// before.
pub fn shaped(
    message: Vec<u8>,
    least: Option<logging::Level>,
    plan: &Plan,
    backend: BackendId,
) -> Option<Vec<u8>> {
    // What most of them are needs no scan: a message has one method.
    if message.starts_with(PROGRESS) {
        return Some(related(message, plan, backend));
    }
    let Ok(envelope) = jsonrpc::scan(&message) else { return Some(message) };
    if envelope.kind != Kind::Notification {
        return Some(message);
    }
    let shape = match envelope.method_name(&message).as_deref() {
        Some(logging::MESSAGE) => {
            let message = logging::shaped(message, least, plan.backends.get(backend)?)?;
            return Some(related(message, plan, backend));
        }
        Some(tasks::STATUS) => tasks::Shape::State,
        _ => return Some(related(message, plan, backend)),
    };
    Some(tasks::shown(message, shape, &tasks::prefix(plan, backend)))
}

/// A message that may be related to a task: most are not. Its id as the client knows it.
pub fn related(message: Vec<u8>, plan: &Plan, backend: BackendId) -> Vec<u8> {
    match is_related(&message) {
        false => message,
        true => tasks::shown(message, tasks::Shape::Related, &tasks::prefix(plan, backend)),
    }
}

/// A message of a client likewise, with the backend's own id.
pub fn own_related(message: Vec<u8>, plan: &Plan, backend: BackendId) -> Vec<u8> {
    match is_related(&message) {
        false => message,
        true => tasks::own(message, &tasks::prefix(plan, backend)),
    }
}

/// Whether a message may be related to a task.
fn is_related(message: &[u8]) -> bool {
    // Made once: a search that is made for each message costs more than it does.
    static MARK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"related-task"));
    MARK.find(message).is_some()
}
