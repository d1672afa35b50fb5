//! Owns: what several fuzz targets share: JSON taken apart without a view of its own, futures that
//! never wait, a plan.
//! Never: code of the proxy written again; each target has its own naive second opinion.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use mcp_proxy::plan::{BackendPlan, Plan};
use serde_json::value::RawValue;

/// All members of an object as they stand there, those that stand twice too.
pub struct Members(pub Vec<(String, Box<RawValue>)>);

impl Members {
    /// Of a JSON text; `None` if it is no object.
    pub fn of(text: &str) -> Option<Members> {
        serde_json::from_str(text).ok()
    }

    /// Whether no name stands twice.
    pub fn are_distinct(&self) -> bool {
        let mut names: Vec<&String> = self.0.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.windows(2).all(|pair| pair[0] != pair[1])
    }
}

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct All;
        impl<'de> serde::de::Visitor<'de> for All {
            type Value = Members;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// Whether in this JSON text no object, however deep, says a name twice. Its nesting must be
/// bounded: let serde_json parse it first.
pub fn is_unambiguous(text: &str) -> bool {
    if let Some(members) = Members::of(text) {
        return members.are_distinct()
            && members.0.iter().all(|(_, value)| is_unambiguous(value.get()));
    }
    match serde_json::from_str::<Vec<Box<RawValue>>>(text) {
        Ok(items) => items.iter().all(|item| is_unambiguous(item.get())),
        Err(_) => true,
    }
}

/// serde_json takes an object with this key for one of its raw values, and has no opinion of its
/// own then.
pub fn is_private(text: &[u8]) -> bool {
    text.windows(20).any(|window| window == b"serde_json::private:")
}

/// What a future gives that has nothing to wait for; panics if it waits all the same.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing was to be waited for"),
    }
}

/// libFuzzer's own `main` leaves SIGPIPE as it is: a write to a peer that has left would end the
/// process, where a Rust program sees an error.
pub fn without_sigpipe() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: it only sets a disposition, before the target's loop uses any socket.
    // JUSTIFICATION: std has no signal(2), and no switch for a `main` that is not Rust's.
    ONCE.call_once(|| unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    });
}

/// A plan of that many workers whose backends have these prefixes.
pub fn plan(workers: usize, prefixes: &[&str]) -> Plan {
    let backends = prefixes.iter().enumerate();
    let bare =
        |(id, prefix): (usize, &&str)| BackendPlan::bare(id, &format!("backend{id}"), prefix);
    Plan::bare(workers, backends.map(bare).collect())
}
