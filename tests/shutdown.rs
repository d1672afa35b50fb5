//! The end: SIGTERM drains, a second one ends at once, and nothing is left behind, not even by
//! kill -9.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mcp_proxy::limits;

use crate::support::client::{ACCEPT, JSON, call_params, message};
use crate::support::http::Conn;
use crate::support::process::{
    HttpStub, Journal, Life, Proxy, Setup, command_backend, scratch, stdio_backend, stub_path,
};
use crate::support::wait_until;

#[test]
fn sigterm_and_sigint_finish_calls_end_streams_and_stop_children() {
    for name in ["TERM", "INT"] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "journal");
        let other = Journal::new(&scratch, "other");
        let stub = HttpStub::start("h", &["--journal", other.path()]);
        let mut proxy =
            Proxy::start(&[stdio_backend("s", &["--journal", journal.path()]), stub.backend("h")]);
        let mut callers = [proxy.client_seeing(&["s__echo", "h__echo"]), proxy.client()];
        let listening = callers[0].listen();
        let _idle = proxy.client();
        for (caller, backend) in callers.iter_mut().zip(["s", "h"]) {
            let sleep = call_params(&format!("{backend}__sleep"), r#"{"ms":1500}"#);
            caller.send(&message("1", "tools/call", &sleep));
        }
        journal.wait_count("call sleep", 1);
        other.wait_count("call sleep", 1);
        let child = journal.life();
        proxy.signal(name);
        for caller in &mut callers {
            assert_eq!(caller.told().said(), "slept", "{name}");
        }
        listening.until_end();
        assert_eq!(proxy.wait().code(), Some(0), "{name}: {}", proxy.stderr());
        assert!(!child.goes_on(), "{name}");
        assert_eq!(journal.last("end of"), "stdin", "{name}");
        assert!(TcpStream::connect(proxy.addr).is_err(), "{name}: still listening");
        // Sessions at HTTP backends are ended, too.
        other.wait_count("delete", 1);
    }
}

#[test]
fn under_load_every_call_that_a_backend_hears_is_answered() {
    let scratch = scratch();
    let journals = [Journal::new(&scratch, "pipe"), Journal::new(&scratch, "web")];
    let args = |n: usize| ["--annotated", "--journal", journals[n].path()];
    let web = HttpStub::start("web", &args(1));
    let mut proxy = Proxy::start(&[stdio_backend("pipe", &args(0)), web.backend("web")]);
    let client = proxy.client_seeing(&["pipe__reads", "web__reads"]);
    let listening = client.listen();
    let child = journals[0].life();
    // Each caller goes on until its connection is closed.
    let callers: Vec<_> = (0..16)
        .map(|n| {
            let mut client = proxy.client();
            std::thread::spawn(move || {
                let tool = ["pipe__reads", "web__reads"][n % 2];
                let mut answered = Vec::new();
                for call in 0.. {
                    let key = format!("k{n}-{call}");
                    let arguments = format!(r#"{{"key":"{key}","ms":5}}"#);
                    let params = call_params(tool, &arguments);
                    if !client.try_send(&message(&call.to_string(), "tools/call", &params)) {
                        break;
                    }
                    // One that is turned away was heard by nobody.
                    let Some(told) = client.try_told().filter(|told| told.status == 200) else {
                        break;
                    };
                    // Whole, its own, and no error: not even while the proxy ends.
                    assert_eq!(told.json()["id"], call, "{told:?}");
                    assert!(told.said().contains(&format!("{key:?}")), "{told:?}");
                    answered.push(key);
                }
                answered
            })
        })
        .collect();
    for journal in &journals {
        journal.wait_count("unsteady ", 100);
    }
    proxy.signal("TERM");
    let status = proxy.wait();
    assert_eq!(status.code(), Some(0), "{}", proxy.stderr());
    listening.until_end();
    assert!(!child.goes_on());
    assert_eq!(journals[0].last("end of"), "stdin");
    let mut answered = BTreeSet::new();
    for caller in callers {
        answered.extend(caller.join().expect("a caller"));
    }
    let heard: BTreeSet<String> = journals
        .iter()
        .flat_map(Journal::lines)
        .filter_map(|line| Some(line.strip_prefix("unsteady ")?.split(' ').next()?.to_owned()))
        .collect();
    assert!(answered.len() >= 200, "{}", answered.len());
    let lost: Vec<&String> = heard.difference(&answered).collect();
    assert!(lost.is_empty(), "{lost:?} of {} were heard and not answered", heard.len());
}

#[test]
fn calls_that_do_not_end_are_cut_at_the_time_limit() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let mut proxy = Setup {
        proxy: "shutdown_timeout_seconds = 1".into(),
        backends: stdio_backend("s", &["--journal", journal.path()]),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["s__hang"]);
    client.send(&message("1", "tools/call", &call_params("s__hang", "{}")));
    journal.wait_count("call hang", 1);
    let child = journal.life();
    proxy.signal("TERM");
    let status = proxy.wait();
    assert_eq!(status.code(), Some(0), "{}", proxy.stderr());
    wait_until("the end of the child", || !child.goes_on());
}

#[test]
fn a_second_signal_ends_at_once() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    // The time limit is longer than any deadline here.
    let mut proxy = Setup {
        proxy: "shutdown_timeout_seconds = 600".into(),
        backends: stdio_backend("s", &["--journal", journal.path()]),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["s__hang"]);
    client.send(&message("1", "tools/call", &call_params("s__hang", "{}")));
    journal.wait_count("call hang", 1);
    let child = journal.life();
    proxy.signal("TERM");
    wait_until("no listener", || TcpStream::connect(proxy.addr).is_err());
    // A signal that follows at once is taken for the echo of the first.
    std::thread::sleep(limits::SIGNAL_ECHO * 2);
    proxy.signal("TERM");
    proxy.wait();
    wait_until("the end of the child", || !child.goes_on());
}

#[test]
fn a_child_that_ignores_the_end_of_stdin_and_sigterm_is_killed() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let script = r#"trap "" TERM; exec "$@""#;
    let stubborn = command_backend(
        "s",
        "sh",
        &[
            "-c",
            script,
            "sh",
            stub_path(),
            "--name",
            "s",
            "--ignore-eof",
            "--journal",
            journal.path(),
        ],
    );
    let mut proxy = Proxy::start(&[stubborn]);
    proxy.client_seeing(&["s__echo"]);
    let child = journal.life();
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    assert_eq!(journal.last("end of"), "stdin");
    assert!(!child.goes_on());
}

/// A child gets seven seconds to end, and all children together got them behind the time limit: the
/// proxy took longer than it was told, and an orchestrator killed it.
#[test]
fn the_time_limit_holds_for_children_too() {
    for call in [false, true] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "journal");
        let script = r#"trap "" TERM; exec "$@""#;
        let args = ["-c", script, "sh", stub_path(), "--name", "s", "--ignore-eof", "--journal"];
        let args = [&args[..], &[journal.path()]].concat();
        let mut proxy = Setup {
            proxy: "shutdown_timeout_seconds = 1".into(),
            backends: command_backend("s", "sh", &args),
            ..Setup::default()
        }
        .start();
        let mut client = proxy.client_seeing(&["s__hang"]);
        if call {
            client.send(&message("1", "tools/call", &call_params("s__hang", "{}")));
            journal.wait_count("call hang", 1);
        }
        let child = journal.life();
        let began = Instant::now();
        proxy.signal("TERM");
        assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
        // What a child has where nobody hurries.
        let patience = limits::CHILD_TERM_AFTER + limits::CHILD_KILL_AFTER;
        assert!(began.elapsed() < patience, "{:?}", began.elapsed());
        assert!(proxy.stderr().contains("outlasts SIGTERM: killed"), "{}", proxy.stderr());
        wait_until("the end of the child", || !child.goes_on());
    }
}

#[test]
fn a_child_that_nobody_calls_does_not_wait_for_the_calls_of_others() {
    let scratch = scratch();
    let (busy, idle) = (Journal::new(&scratch, "busy"), Journal::new(&scratch, "idle"));
    let mut proxy = Setup {
        proxy: "shutdown_timeout_seconds = 600".into(),
        backends: stdio_backend("busy", &["--journal", busy.path()])
            + &stdio_backend("idle", &["--journal", idle.path()]),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["busy__hang", "idle__echo"]);
    client.send(&message("1", "tools/call", &call_params("busy__hang", "{}")));
    busy.wait_count("call hang", 1);
    proxy.signal("TERM");
    idle.wait_count("end of stdin", 1);
    assert_eq!(busy.count("end of stdin"), 0);
    std::thread::sleep(limits::SIGNAL_ECHO * 2);
    proxy.signal("TERM");
    proxy.wait();
}

/// Each of these held the end up for as long as it may take at other times.
#[test]
fn clients_that_say_nothing_whole_hold_nobody_up() {
    let mut proxy = Setup {
        proxy: "shutdown_timeout_seconds = 600".into(),
        backends: stdio_backend("s", &[]),
        ..Setup::default()
    }
    .start();
    let client = proxy.client_seeing(&["s__echo"]);
    let mut half = Conn::open(proxy.addr);
    half.send(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n");
    let mut body = Conn::open(proxy.addr);
    let lines = format!("{}{ACCEPT}{JSON}Content-Length: 100\r\n", client.lines());
    body.send(format!("POST /mcp HTTP/1.1\r\n{lines}\r\n{{").as_bytes());
    // What is refused is read on for a while, so that the refusal is not reset away.
    let mut refused = Conn::open(proxy.addr);
    let lines = lines.replace("100", "100000000");
    refused.send(format!("POST /mcp HTTP/1.1\r\n{lines}\r\n").as_bytes());
    assert_eq!(refused.answer().status, 413);
    proxy.signal("TERM");
    // No answer: that would be the one of the time limit.
    assert!(half.ends());
    assert_eq!(body.head().status, 408);
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    drop(refused);
}

#[test]
fn grandchildren_end_with_the_proxy() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let mut proxy =
        Proxy::start(&[stdio_backend("s", &["--grandchild", "--journal", journal.path()])]);
    proxy.client_seeing(&["s__echo"]);
    let grandchild = Life::of(journal.last("grandchild ").parse().unwrap());
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    wait_until("the end of the grandchild", || !grandchild.goes_on());
}

#[test]
fn kill_9_leaves_no_child_and_frees_the_port() {
    let scratch = scratch();
    let journals = [Journal::new(&scratch, "one"), Journal::new(&scratch, "two")];
    // They would stay when stdin ends: only the death of their parent ends them.
    let backend = |name: &str, journal: &Journal| {
        stdio_backend(name, &["--ignore-eof", "--journal", journal.path()])
    };
    let mut proxy = Proxy::start(&[backend("one", &journals[0]), backend("two", &journals[1])]);
    let client = proxy.client_seeing(&["one__echo", "two__echo"]);
    let children = journals.each_ref().map(Journal::life);
    let addr = proxy.addr;
    proxy.signal("KILL");
    assert_eq!(proxy.wait().code(), None);
    wait_until("the end of both children", || !children.iter().any(Life::goes_on));

    // A new one has the port at once, and knows nothing of the old sessions.
    let next = Setup {
        backends: backend("one", &journals[0]),
        args: vec!["--listen".into(), addr.to_string()],
        ..Setup::default()
    };
    let proxy = next.start();
    assert_eq!(proxy.addr, addr);
    let mut again = client.again();
    assert_eq!(again.post(&message("1", "ping", "{}")).status, 404);
    proxy.client_seeing(&["one__echo"]);
}

#[test]
fn it_ends_in_time_even_when_backends_never_came_up() {
    let scratch = scratch();
    let fault = scratch.path().join("fault");
    std::fs::write(&fault, "").unwrap();
    let fault = fault.to_str().unwrap();
    let stub = HttpStub::start("m", &["--mute-while", fault]);
    let mut proxy = Proxy::start(&[
        stub.backend("m"),
        stdio_backend("s", &["--mute-while", fault]),
        command_backend("d", "/does/not/exist", &[]),
    ]);
    std::thread::sleep(Duration::from_millis(300));
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
}
