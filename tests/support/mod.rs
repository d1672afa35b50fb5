//! Owns: what the tests stand on: the proxy and the stub as processes, raw HTTP, an MCP client.
//! Never: an assertion about time; waits have generous deadlines and name what they waited for.

pub(crate) mod client;
pub(crate) mod http;
pub(crate) mod process;
pub(crate) mod script;
#[path = "../stub/texts.rs"]
pub(crate) mod texts;
pub(crate) mod tls;

use std::time::{Duration, Instant};

/// The deadline of everything that must happen: far beyond what it takes on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Asks again and again until there is something; panics naming `what` at the deadline.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// [`wait_for`] a condition.
pub(crate) fn wait_until(what: &str, mut ask: impl FnMut() -> bool) {
    wait_for(what, || ask().then_some(()));
}

/// JSON, which is a TOML basic string too.
pub(crate) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
