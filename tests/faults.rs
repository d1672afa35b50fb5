//! Every fault of a backend: it costs the calls that it concerns and nothing else, and the backend
//! is back without anybody's help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::client::{Client, call_params, message};
use crate::support::process::{
    HttpStub, Journal, Life, Proxy, command_backend, free_port, http_backend, scratch,
    stdio_backend, stub_path,
};
use crate::support::{quote, wait_until};

/// A short first start, and a pause between starts that does not grow beyond a test's patience.
const QUICK: &str = "startup_timeout_seconds = 1\nrestart = { initial_ms = 100, max_ms = 1000 }\n";
/// Calls end after a second.
const ONE_SECOND: &str = "[backends.timeout]\nseconds = 1\n";

/// Somebody who calls another backend all the while, and must never notice anything.
struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Neighbour {
    /// Starts calling `tool`, an echo.
    fn start(proxy: &Proxy, tool: &str) -> Neighbour {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = proxy.client_seeing(&[tool]);
        let (seen, tool) = (stop.clone(), tool.to_owned());
        let thread = std::thread::spawn(move || {
            let mut calls = 0;
            while !seen.load(Ordering::Relaxed) {
                let payload = format!("neighbour {calls}");
                let told = client.call(&tool, &format!(r#"{{"payload":"{payload}"}}"#));
                assert_eq!(told.said(), payload);
                calls += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            calls
        });
        Neighbour { stop, thread: Some(thread) }
    }

    /// Ends; panics if it noticed anything.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let calls = self.thread.take().unwrap().join().expect("the neighbour noticed");
        assert!(calls > 0, "the neighbour never called");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The code and the text of a failure, which must name backend `a`.
fn failure(told: &crate::support::client::Told, code: i64) {
    let (said, text) = told.error();
    assert_eq!(said, code, "{told:?}");
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    assert!(words.contains(&"a"), "it does not name the backend: {text}");
    assert_eq!(told.status, 200, "{told:?}");
}

fn echo(client: &mut Client, payload: &str) -> crate::support::client::Told {
    client.call("a__echo", &format!(r#"{{"payload":"{payload}"}}"#))
}

/// Until an echo of `a` succeeds; every echo that does must be right.
fn wait_well(client: &mut Client) {
    assert_eq!(client.call_until_well("a__echo", r#"{"payload":"well"}"#).said(), "well");
}

#[test]
fn an_http_backend_that_is_down_at_start_is_announced_when_it_comes() {
    let port = free_port();
    let addr = format!("127.0.0.1:{port}").parse().unwrap();
    let proxy = Proxy::start(&[http_backend("a", addr) + QUICK, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client();
    assert!(!client.names("tools/list").iter().any(|name| name.starts_with("a__")));
    failure(&echo(&mut client, "x"), -32010);
    // As long as it is unknown, the session is promised what it might bring.
    assert_eq!(client.hello["capabilities"]["tools"]["listChanged"], true);
    let listening = client.listen();
    let _stub = HttpStub::start_on(port, "a", &[]);
    listening.wait_for("notifications/tools/list_changed");
    client.wait_for_tools(&["a__echo"]);
    assert_eq!(echo(&mut client, "x").said(), "x");
    neighbour.finish();
}

#[test]
fn a_child_that_exits_at_start_is_tried_again_for_ever() {
    let scratch = scratch();
    let fault = scratch.path().join("fault");
    std::fs::write(&fault, "").unwrap();
    let a = stdio_backend("a", &["--exit-while", fault.to_str().unwrap()]) + QUICK;
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client();
    for _ in 0..5 {
        failure(&echo(&mut client, "x"), -32010);
        std::thread::sleep(Duration::from_millis(300));
    }
    wait_until("its last words in the log", || proxy.stderr().contains("refusing to start"));
    let listening = client.listen();
    std::fs::remove_file(&fault).unwrap();
    listening.wait_for("notifications/tools/list_changed");
    assert_eq!(echo(&mut client, "x").said(), "x");
    neighbour.finish();
}

#[test]
fn a_command_that_does_not_exist_is_tried_again_for_ever() {
    let scratch = scratch();
    let command = scratch.path().join("late");
    let a = command_backend("a", command.to_str().unwrap(), &["--name", "a"]) + QUICK;
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client();
    failure(&echo(&mut client, "x"), -32010);
    wait_until("a word in the log", || proxy.stderr().contains("late"));
    std::os::unix::fs::symlink(stub_path(), &command).unwrap();
    wait_well(&mut client);
    client.wait_for_tools(&["a__echo"]);
    neighbour.finish();
}

#[test]
fn a_backend_that_is_mute_at_start_delays_nobody_and_is_tried_again() {
    for http in [false, true] {
        let scratch = scratch();
        let fault = scratch.path().join("fault");
        std::fs::write(&fault, "").unwrap();
        let args = ["--mute-while", fault.to_str().unwrap()];
        let stub = http.then(|| HttpStub::start("a", &args));
        let a = match &stub {
            Some(stub) => stub.backend("a"),
            None => stdio_backend("a", &args),
        };
        let proxy = Proxy::start(&[a + QUICK, stdio_backend("b", &[])]);
        let neighbour = Neighbour::start(&proxy, "b__echo");
        let mut client = proxy.client();
        failure(&echo(&mut client, "x"), -32010);
        std::fs::remove_file(&fault).unwrap();
        wait_well(&mut client);
        client.wait_for_tools(&["a__echo"]);
        neighbour.finish();
    }
}

#[test]
fn a_child_killed_in_mid_call_fails_its_calls_and_is_started_again() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let a = stdio_backend("a", &["--journal", journal.path()]) + QUICK;
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    proxy.client_seeing(&["a__echo"]);
    for round in 0..3 {
        // Calls from both workers, all in flight when it dies.
        let mut clients: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
        for client in &mut clients {
            client.send(&message("1", "tools/call", &call_params("a__hang", "{}")));
        }
        journal.wait_count("call hang", 8 * (round + 1));
        let old = journal.pid();
        assert!(journal.signal("KILL"));
        for client in &mut clients {
            failure(&client.told(), -32010);
        }
        wait_well(&mut clients[0]);
        assert_ne!(journal.pid(), old);
        for client in &mut clients {
            assert_eq!(echo(client, "each").said(), "each");
        }
    }
    neighbour.finish();
}

#[test]
fn a_child_that_crashes_or_exits_in_a_call_fails_that_call_and_is_started_again() {
    let proxy = Proxy::start(&[stdio_backend("a", &[]) + QUICK, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    for how in ["abort", "exit", "abort"] {
        wait_well(&mut client);
        failure(&client.call("a__crash", &format!(r#"{{"how":"{how}"}}"#)), -32010);
    }
    wait_well(&mut client);
    neighbour.finish();
}

#[test]
fn an_http_backend_killed_in_mid_call_fails_its_calls_and_is_found_again() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let args = ["--journal", journal.path()];
    let mut stub = HttpStub::start("a", &args);
    let proxy = Proxy::start(&[stub.backend("a") + QUICK, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    proxy.client_seeing(&["a__echo"]);
    for round in 0..3 {
        let mut clients: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
        for client in &mut clients {
            client.send(&message("1", "tools/call", &call_params("a__hang", "{}")));
        }
        journal.wait_count("call hang", 8 * (round + 1));
        let port = stub.addr.port();
        drop(stub);
        for client in &mut clients {
            failure(&client.told(), -32010);
        }
        // Dead: said at once, by name, whatever the time-out of calls is.
        for client in &mut clients {
            failure(&echo(client, "x"), -32010);
        }
        stub = HttpStub::start_on(port, "a", &args);
        wait_well(&mut clients[0]);
        for client in &mut clients {
            assert_eq!(client.call_until_well("a__echo", r#"{"payload":"e"}"#).said(), "e");
        }
    }
    neighbour.finish();
}

#[test]
fn an_http_backend_restarted_while_idle_is_not_noticed() {
    for isolation in ["session", "shared"] {
        let mut stub = HttpStub::start("a", &[]);
        let a = stub.backend("a") + QUICK + &format!("isolation = \"{isolation}\"\n");
        let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
        let mut clients: Vec<Client> = (0..6).map(|_| proxy.client_seeing(&["a__echo"])).collect();
        for round in 0..3 {
            for client in &mut clients {
                assert_eq!(echo(client, "before").said(), "before");
            }
            stub = stub.restart("a", &[]);
            // The ends of the pooled connections are on their way; the sessions are gone. Only
            // whoever meets the proxy's own moment of noticing may be told that it is down.
            wait_well(&mut clients[round % 6]);
            for client in &mut clients {
                assert_eq!(echo(client, "after").said(), "after", "{isolation} {round}");
            }
        }
    }
}

#[test]
fn a_child_killed_while_idle_is_started_again() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let a = stdio_backend("a", &["--journal", journal.path()]) + QUICK;
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    assert_eq!(echo(&mut client, "x").said(), "x");
    assert!(journal.signal("KILL"));
    // Nobody calls: it comes back by itself.
    journal.wait_count("initialized", 2);
    wait_well(&mut client);
    neighbour.finish();
}

#[test]
fn a_lost_backend_session_is_opened_again_and_the_call_repeated_once() {
    for lost in ["404", "400"] {
        for isolation in ["session", "shared"] {
            let scratch = scratch();
            let journal = Journal::new(&scratch, "journal");
            let stub = HttpStub::start("a", &["--lost", lost, "--journal", journal.path()]);
            let a = stub.backend("a") + &format!("isolation = \"{isolation}\"\n");
            let proxy = Proxy::start(&[a]);
            let mut clients: Vec<Client> =
                (0..6).map(|_| proxy.client_seeing(&["a__echo"])).collect();
            let mut echoes = 0;
            for round in 0..3 {
                for client in &mut clients {
                    let payload = format!("{lost} {round}");
                    assert_eq!(echo(client, &payload).said(), payload, "{lost} {isolation}");
                    echoes += 1;
                }
                stub.forget();
            }
            // All at once, too.
            let threads: Vec<_> = clients
                .into_iter()
                .map(|mut client| {
                    std::thread::spawn(move || assert_eq!(echo(&mut client, "x").said(), "x"))
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
                echoes += 1;
            }
            assert_eq!(
                journal.count("call echo"),
                echoes,
                "executed once each: {lost} {isolation}"
            );
            assert_eq!(journal.count("premature"), 0);
        }
    }
}

#[test]
fn a_frozen_backend_fails_at_the_time_out_and_answers_when_it_thaws() {
    for http in [false, true] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "journal");
        let args = ["--journal", journal.path()];
        let stub = http.then(|| HttpStub::start("a", &args));
        let a = match &stub {
            Some(stub) => stub.backend("a"),
            None => stdio_backend("a", &args),
        };
        let proxy = Proxy::start(&[a + QUICK + ONE_SECOND, stdio_backend("b", &[])]);
        let neighbour = Neighbour::start(&proxy, "b__echo");
        let mut client = proxy.client_seeing(&["a__echo"]);
        assert_eq!(echo(&mut client, "x").said(), "x");
        journal.freeze();
        failure(&echo(&mut client, "frozen"), -32001);
        // Whether the next one waits too or is told that it is down depends on what has been
        // noticed; it fails, and names it.
        let (code, text) = echo(&mut client, "frozen").error();
        assert!([-32001, -32010].contains(&code) && text.contains('a'), "{code} {text}");
        // It may have been replaced meanwhile: then nobody is left to thaw.
        journal.signal("CONT");
        wait_well(&mut client);
        assert_eq!(echo(&mut client, "y").said(), "y");
        neighbour.finish();
    }
}

#[test]
fn a_hung_call_fails_at_its_time_out_is_cancelled_and_its_late_answer_reaches_nobody() {
    for http in [false, true] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "journal");
        let args = ["--journal", journal.path()];
        let stub = http.then(|| HttpStub::start("a", &args));
        let a = match &stub {
            Some(stub) => stub.backend("a"),
            None => stdio_backend("a", &args),
        };
        let proxy = Proxy::start(&[a + ONE_SECOND, stdio_backend("b", &[])]);
        let neighbour = Neighbour::start(&proxy, "b__echo");
        let mut client = proxy.client_seeing(&["a__echo"]);
        failure(&client.call("a__hang", "{}"), -32001);
        journal.wait_count("cancelled", 1);
        let arguments = r#"{"ms":600000,"stubborn":true,"late_ms":200}"#;
        failure(&client.call("a__sleep", arguments), -32001);
        journal.wait_count("late", 1);
        for n in 0..50 {
            assert_eq!(echo(&mut client, &n.to_string()).said(), n.to_string());
        }
        // Slower than the time-out of another, quicker than its own: no matter.
        neighbour.finish();
    }
}

#[test]
fn a_flapping_backend_never_gives_a_wrong_answer_and_settles() {
    for http in [false, true] {
        let scratch = scratch();
        let journal = Journal::new(&scratch, "journal");
        let args = ["--journal", journal.path()];
        let mut stub = http.then(|| HttpStub::start("a", &args));
        let a = match &stub {
            Some(stub) => stub.backend("a"),
            None => stdio_backend("a", &args),
        };
        let proxy = Proxy::start(&[a + QUICK, stdio_backend("b", &[])]);
        let neighbour = Neighbour::start(&proxy, "b__echo");
        proxy.client_seeing(&["a__echo"]);
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let (mut client, stop) = (proxy.client(), stop.clone());
                std::thread::spawn(move || {
                    let mut right = 0;
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let payload = format!("{caller} {n}");
                        let told = echo(&mut client, &payload);
                        n += 1;
                        match told.json().get("error") {
                            None => {
                                assert_eq!(told.said(), payload);
                                right += 1;
                            }
                            Some(_) => {
                                failure(&told, -32010);
                                std::thread::sleep(Duration::from_millis(10));
                            }
                        }
                    }
                    (client, right)
                })
            })
            .collect();
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(300));
            match stub.take() {
                Some(running) => stub = Some(running.restart("a", &args)),
                None => drop(journal.signal("KILL")),
            }
        }
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            let (mut client, right) = caller.join().expect("a caller");
            assert!(right > 0, "nothing ever succeeded");
            wait_well(&mut client);
        }
        neighbour.finish();
    }
}

#[test]
fn a_child_whose_stdout_is_closed_while_it_lives_is_replaced() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    // The shell stays, without a stdout, after the stub that it started has gone.
    let script = r#"exec 3<&0; "$@" <&3 3<&- & exec 1>&- 0<&- 3<&-; echo "shell $$" >> "$JOURNAL"; wait; sleep 600"#;
    let a = command_backend(
        "a",
        "sh",
        &["-c", script, "sh", stub_path(), "--name", "a", "--journal", journal.path()],
    ) + &format!("env = {{ JOURNAL = {} }}\n", quote(journal.path()))
        + QUICK;
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    let shell = Life::of(journal.last("shell ").parse().unwrap());
    failure(&client.call("a__crash", r#"{"how":"exit"}"#), -32010);
    wait_well(&mut client);
    wait_until("the end of the old shell", || !shell.goes_on());
    neighbour.finish();
}

#[test]
fn a_flood_on_stderr_is_drained_and_the_log_stays_bounded() {
    let a = stdio_backend("a", &["--flood", "16000000"]);
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    for _ in 0..3 {
        assert_eq!(client.call("a__flood", r#"{"bytes":4000000}"#).said(), "flooded");
    }
    assert_eq!(echo(&mut client, "x").said(), "x");
    let logged = proxy.stderr();
    assert!(logged.contains("flood"), "nothing of it is in the log");
    // 28 MB were written; 64 KiB a second may pass.
    assert!(logged.len() < 8_000_000, "{} bytes in the log", logged.len());
    neighbour.finish();
}

#[test]
fn a_child_that_never_reads_is_bounded_and_replaced() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let a = stdio_backend("a", &["--journal", journal.path()]) + QUICK + ONE_SECOND;
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    let old = journal.pid();
    assert_eq!(client.call("a__stop_reading", "{}").said(), "reading no more");
    // Eight of a megabyte fill its pipe and the queue before it.
    let payload = "x".repeat(1_000_000);
    let mut callers: Vec<Client> = (0..16).map(|_| proxy.client()).collect();
    let body = message(
        "1",
        "tools/call",
        &call_params("a__echo", &format!(r#"{{"payload":"{payload}"}}"#)),
    );
    for caller in &mut callers {
        caller.send(&body);
    }
    let mut refused = 0;
    for caller in &mut callers {
        let told = caller.told();
        let (code, text) = told.error();
        assert!([-32001, -32012].contains(&code), "{code} {text}");
        refused += usize::from(code == -32012);
    }
    assert!(refused > 0, "the queue has no bound");
    // It takes nothing for its 30 seconds; then there is another one.
    let end = std::time::Instant::now() + 3 * crate::support::DEADLINE;
    while journal.pid() == old {
        assert!(std::time::Instant::now() < end, "it is not replaced");
        std::thread::sleep(Duration::from_millis(200));
    }
    wait_well(&mut client);
    neighbour.finish();
}

#[test]
fn a_grandchild_that_holds_the_pipes_delays_nothing_and_is_killed() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let a = stdio_backend("a", &["--grandchild", "--journal", journal.path()]) + QUICK;
    let mut proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    let grandchild = Life::of(journal.last("grandchild ").parse().unwrap());
    failure(&client.call("a__crash", "{}"), -32010);
    wait_well(&mut client);
    wait_until("the end of the grandchild", || !grandchild.goes_on());
    neighbour.finish();
    // Not killed as other tests end: nobody else would end the grandchild of the second child.
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn lines_that_are_no_messages_are_skipped() {
    let proxy = Proxy::start(&[stdio_backend("a", &[]), stdio_backend("b", &[])]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    for noise in [
        "Starting up...\n",
        "\n\n  \n",
        "{\n",
        "[]\n",
        "{\"jsonrpc\":\"2.0\",\"id\":999999,\"result\":{}}\n",
        "{\"jsonrpc\":\"2.0\",\"id\":\"unknown\",\"result\":{}}\n",
        "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"?\"}}\n",
        "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":77,\"progress\":1}}\n",
        "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/unheard\"}\r\n",
        "\u{1b}[31mred\u{1b}[0m\n",
    ] {
        let answer = "{\"jsonrpc\":\"2.0\",\"id\":$ID,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"after\"}]}}\n";
        let arguments = format!(r#"{{"bytes":{}}}"#, quote(&format!("{noise}{answer}")));
        let told = client.call("a__raw_answer", &arguments);
        assert_eq!(told.said(), "after", "{noise:?}");
        assert!(told.before.is_empty(), "{noise:?}: {told:?}");
    }
    assert_eq!(echo(&mut client, "x").said(), "x");
}

#[test]
fn a_second_answer_to_one_request_reaches_nobody() {
    let proxy = Proxy::start(&[stdio_backend("a", &[])]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    let answer = "{\"jsonrpc\":\"2.0\",\"id\":$ID,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"twice\"}]}}\n";
    let arguments = format!(r#"{{"bytes":{}}}"#, quote(&answer.repeat(3)));
    for n in 0..50 {
        assert_eq!(client.call("a__raw_answer", &arguments).said(), "twice");
        assert_eq!(echo(&mut client, &n.to_string()).said(), n.to_string());
    }
}

#[test]
fn an_answer_with_a_foreign_id_is_never_forwarded() {
    let stub = HttpStub::start("a", &[]);
    let proxy = Proxy::start(&[stub.backend("a") + ONE_SECOND, stdio_backend("b", &[])]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    let told = client.call("a__wrong_id", "{}");
    let (code, text) = told.error();
    assert!([-32010, -32001].contains(&code), "{code} {text}");
    assert!(!told.text.contains("wrong"), "{told:?}");
    assert_eq!(echo(&mut client, "x").said(), "x");

    let proxy = Proxy::start(&[stdio_backend("a", &[]) + ONE_SECOND]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    failure(&client.call("a__wrong_id", "{}"), -32001);
    assert_eq!(echo(&mut client, "x").said(), "x");
}

#[test]
fn http_answers_out_of_protocol_cost_their_caller_and_their_connection() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let stub = HttpStub::start("a", &["--journal", journal.path()]);
    let a = stub.backend("a") + "[backends.timeout]\nseconds = 3\n";
    let proxy = Proxy::start(&[a, stdio_backend("b", &[])]);
    let neighbour = Neighbour::start(&proxy, "b__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    let good = "{\"jsonrpc\":\"2.0\",\"id\":$ID,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"smuggled\"}]}}";
    let json = "Content-Type: application/json\r\n";
    let length = format!("Content-Length: {}\r\n", 72);
    let broken = [
        // Not HTTP.
        "nonsense\r\n\r\n".to_owned(),
        format!("HTTP/2 200 OK\r\n{json}{length}\r\n{good}"),
        "HTTP/1.1 20 OK\r\n\r\n".into(),
        // Ambiguous framing.
        format!("HTTP/1.1 200 OK\r\n{json}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        format!(
            "HTTP/1.1 200 OK\r\n{json}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!("HTTP/1.1 200 OK\r\n{json}Content-Length: +5\r\n\r\nhello"),
        format!("HTTP/1.1 200 OK\r\n{json}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{json}X y: z\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("HTTP/1.1 200 OK\n{json}Content-Length: 2\n\n{{}}"),
        // Cut short.
        format!("HTTP/1.1 200 OK\r\n{json}Content-Length: 5000\r\n\r\n{good}"),
        format!("HTTP/1.1 200 OK\r\n{json}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"jso"),
        format!(
            "HTTP/1.1 200 OK\r\n{json}Transfer-Encoding: chunked\r\n\r\nzz\r\n{good}\r\n0\r\n\r\n"
        ),
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            .into(),
        "HTTP/1.1 200 OK\r\n".into(),
        String::new(),
        // Never asked for.
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".into(),
    ];
    // Well-formed, and not what was asked for: the connection may stay.
    let wrong: [String; 9] = [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html".into(),
        format!("HTTP/1.1 200 OK\r\n{json}Content-Length: 8\r\n\r\nnot json"),
        format!("HTTP/1.1 200 OK\r\n{json}Content-Length: 0\r\n\r\n"),
        "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\nstack traces"
            .into(),
        "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n".into(),
    ];
    let all = broken.iter().map(|raw| (raw, true)).chain(wrong.iter().map(|raw| (raw, false)));
    for (raw, close) in all {
        let arguments = format!(r#"{{"bytes":{},"close":{close}}}"#, quote(raw));
        let told = client.call("a__raw_answer", &arguments);
        let (code, text) = told.error();
        assert!([-32010, -32001].contains(&code), "{raw:?}: {code} {text}");
        assert!(text.contains(": a"), "it does not name the backend: {raw:?}: {text}");
        for leak in ["smuggled", "stack traces", "<html", "127.0.0.1"] {
            assert!(!told.text.contains(leak), "{raw:?}: {told:?}");
        }
        assert_eq!(echo(&mut client, "after").said(), "after", "{raw:?}");
    }
    // One answer too many on a connection that stays open: it must not be the next caller's.
    let answer = |text: &str| {
        let body = good.replace("smuggled", text).replace("$ID", "1");
        format!("HTTP/1.1 200 OK\r\n{json}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    for n in 0..20 {
        let bytes = quote(&(answer("first") + &answer("smuggled")));
        let arguments = format!(r#"{{"bytes":{bytes}}}"#);
        let body = call_params("a__raw_answer", &arguments);
        assert_eq!(client.post(&message("1", "tools/call", &body)).said(), "first");
        let body = call_params("a__echo", &format!(r#"{{"payload":"{n}"}}"#));
        assert_eq!(client.post(&message("1", "tools/call", &body)).said(), n.to_string());
    }
    neighbour.finish();
}

#[test]
fn an_http_backend_that_closes_every_connection_is_served() {
    let stub = HttpStub::start("a", &["--requests-per-connection", "1"]);
    let proxy = Proxy::start(&[stub.backend("a")]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    for n in 0..100 {
        assert_eq!(echo(&mut client, &n.to_string()).said(), n.to_string());
    }
}

#[test]
fn a_message_over_the_bound_fails_its_caller_and_the_backend_answers_again() {
    let stub = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[
        stdio_backend("a", &[]) + QUICK + "[backends.timeout]\nseconds = 20\n",
        stub.backend("h"),
    ]);
    let neighbour = Neighbour::start(&proxy, "h__echo");
    let mut client = proxy.client_seeing(&["a__echo"]);
    // A line that must be held whole: 16 MiB are the most.
    let told = client.call("a__big", r#"{"bytes":17825792}"#);
    let (code, _) = told.error();
    assert!([-32010, -32001].contains(&code), "{told:?}");
    wait_well(&mut client);
    assert_eq!(client.call("a__big", r#"{"bytes":15728640}"#).said().len(), 15 << 20);
    neighbour.finish();
}

#[test]
fn everything_at_once_and_the_listener_answers() {
    // No backend works at all; the endpoint does.
    let scratch = scratch();
    let fault = scratch.path().join("fault");
    std::fs::write(&fault, "").unwrap();
    let fault = fault.to_str().unwrap();
    let port = free_port();
    let mute = HttpStub::start("m", &["--mute-while", fault]);
    let proxy = Proxy::start(&[
        http_backend("a", format!("127.0.0.1:{port}").parse().unwrap()) + QUICK,
        stdio_backend("b", &["--mute-while", fault]) + QUICK,
        stdio_backend("c", &["--exit-while", fault]) + QUICK,
        command_backend("d", "/does/not/exist", &[]) + QUICK,
        mute.backend("m") + QUICK,
        http_backend("n", "127.0.0.1:1".parse().unwrap())
            .replace("127.0.0.1:1", "no.such.host.invalid:1")
            + QUICK,
    ]);
    let mut client = proxy.client();
    client.ask("ping", "{}").result();
    assert_eq!(client.names("tools/list"), Vec::<String>::new());
    for backend in ["a", "b", "c", "d", "m", "n"] {
        let (code, text) = client.call(&format!("{backend}__echo"), "{}").error();
        assert_eq!(code, -32010, "{text}");
        assert!(text.ends_with(&format!(": {backend}")) || text.contains(backend), "{text}");
    }
}

/// It is answered, if not as it should be: to wait for the time limit brings nothing.
#[test]
fn a_child_that_answers_with_what_is_no_message_costs_the_call_no_time() {
    let proxy = Proxy::start(&[stdio_backend("a", &[])]);
    let mut client = proxy.client_seeing(&["a__raw_answer"]);
    for raw in [
        r#"{"jsonrpc":"2.0","id":$ID,"error":"a text"}"#,
        r#"{"jsonrpc":"2.0","id":$ID,"id":$ID,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":$ID,"result":{}} and more"#,
        &format!(r#"{{"jsonrpc":"2.0","id":$ID,"result":{}"#, "[".repeat(5000)),
    ] {
        let arguments = format!(r#"{{"bytes":{}}}"#, quote(&format!("{raw}\n")));
        failure(&client.call("a__raw_answer", &arguments), -32010);
        assert_eq!(echo(&mut client, "after").said(), "after", "{raw}");
    }
}
