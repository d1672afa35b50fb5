//! `[performance] busy_poll_us`: a worker with one call at a time looks for what comes before it
//! sleeps. How often its threads sleep is what the system counts (proc(5), voluntary_ctxt_switches).

use std::time::{Duration, Instant};

use crate::reload::reload;
use crate::support::client::Client;
use crate::support::process::{HttpStub, Proxy, stdio_backend};

const CALLS: u64 = 20;
/// Nobody looks while others want the cores, as other tests may for minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often the workers have gone to sleep so far.
fn sleeps(proxy: &Proxy) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("tasks");
    let read = |task: &std::fs::DirEntry, file| std::fs::read_to_string(task.path().join(file));
    let of = |task: std::fs::DirEntry| {
        let name = read(&task, "comm").ok()?;
        let status = read(&task, "status").ok().filter(|_| name.starts_with("worker-"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.expect("a count").trim().parse::<u64>().ok()
    };
    let counts: Vec<u64> = tasks.flatten().filter_map(of).collect();
    assert!(!counts.is_empty(), "no worker among the threads");
    counts.iter().sum()
}

/// Sleeps of the workers during calls one after the other.
fn sleeps_of_calls(proxy: &Proxy, client: &mut Client, tool: &str) -> u64 {
    let before = sleeps(proxy);
    for _ in 0..CALLS {
        assert_eq!(client.call(tool, r#"{"payload":"x"}"#).said(), "x");
    }
    sleeps(proxy) - before
}

#[test]
fn lone_calls_are_waited_for_awake_unless_that_is_off() {
    let stub = HttpStub::start("web", &[]);
    let backends = stub.backend("web") + &stdio_backend("pipe", &[]);
    let with = |us: u64| format!("{backends}[performance]\nbusy_poll_us = {us}\n");
    // The longest look, for others use these cores.
    let proxy = Proxy::start(&[with(1000)]);
    let mut client = proxy.client_seeing(&["web__echo", "pipe__echo"]);
    let mut both = |what: &str, is_right: &dyn Fn(u64) -> bool| {
        for tool in ["web__echo", "pipe__echo"] {
            let end = Instant::now() + PATIENCE;
            let seen = loop {
                let seen = sleeps_of_calls(&proxy, &mut client, tool);
                if is_right(seen) {
                    break seen;
                }
                assert!(Instant::now() < end, "{tool}: {what}: {seen} sleeps of {CALLS} calls");
            };
            eprintln!("{tool}: {what}: {seen} sleeps of {CALLS} calls");
        }
    };
    both("awake", &|sleeps| sleeps <= CALLS / 4);
    reload(&proxy, "", &[with(0)]);
    // One for the answer of the server, one for the next call, if neither has come by then.
    both("asleep", &|sleeps| sleeps >= CALLS * 3 / 4);
    reload(&proxy, "", &[with(1000)]);
    both("awake again", &|sleeps| sleeps <= CALLS / 4);
}
