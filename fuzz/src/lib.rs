//! Owns: what several fuzz targets share: JSON taken apart without a view of its own, futures that
//! never wait, a plan.
//! Never: code of the proxy written again; each target has its own naive second opinion.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mcp_proxy::plan::{
    BackendPlan, HostRule, Isolation, ListenPlan, OriginRule, Plan, Protocol, RestartPlan, Roster,
    StdioPlan, TransportPlan, WatchPlan,
};
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
    ONCE.call_once(|| unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    });
}

/// A plan of that many workers whose backends have these prefixes.
pub fn plan(workers: usize, prefixes: &[&str]) -> Plan {
    Plan {
        name: "p".into(),
        version: "1".into(),
        instructions: None,
        separator: "__".to_owned(),
        workers,
        sessions_max: 10,
        session_idle: Duration::from_secs(60),
        shutdown_timeout: Duration::from_secs(1),
        body_bytes_max: 1024,
        rate: None,
        access: None,
        listen: ListenPlan {
            addr: ([127, 0, 0, 1], 0).into(),
            origins: OriginRule::Loopback,
            hosts: HostRule::Loopback,
            public_url: None,
            tls: None,
        },
        watch: WatchPlan::default(),
        backends: Roster::new(
            prefixes.iter().enumerate().map(|(id, prefix)| backend(id, prefix)).collect(),
        ),
    }
}

fn backend(id: usize, prefix: &str) -> Arc<BackendPlan> {
    let second = Duration::from_secs(1);
    Arc::new(BackendPlan {
        id,
        name: format!("backend{id}").into(),
        prefix: prefix.to_owned(),
        transport: TransportPlan::Stdio(StdioPlan {
            command: "true".into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            children_max: 1,
            idle_stop: second,
        }),
        protocol: Protocol::Auto,
        isolation: Isolation::Shared,
        startup_timeout: second,
        restart: RestartPlan { initial: second, max: second, give_up_after: None },
        call_timeout: second,
        request_timeout: second,
        chain: Default::default(),
        around: Default::default(),
        unlisted: false,
    })
}
