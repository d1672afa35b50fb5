//! What stands around a call: time limits, rate limits, concurrency, breaker, retry, outlier
//! detection; through the real binary with two workers, over stdio and HTTP.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::Page;
use crate::support::client::{Client, Told, call_params, message};
use crate::support::process::{
    HttpStub, Journal, Proxy, Setup, free_port, http_backend, scratch, stdio_backend,
};
use crate::support::wait_until;

/// The stub over stdio, as JSON and as events over HTTP, each with these keys and a journal.
struct World {
    proxy: Proxy,
    journals: Vec<(&'static str, Journal)>,
    _stubs: Vec<HttpStub>,
    _scratch: tempfile::TempDir,
}

fn world(keys: &str) -> World {
    let scratch = scratch();
    let journals: Vec<(&str, Journal)> = ["pipe", "json", "sse"]
        .into_iter()
        .map(|name| (name, Journal::new(&scratch, name)))
        .collect();
    let path = |n: usize| journals[n].1.path();
    let stubs = vec![
        HttpStub::start("json", &["--annotated", "--journal", path(1)]),
        HttpStub::start("sse", &["--annotated", "--sse", "--journal", path(2)]),
    ];
    let proxy = Proxy::start(&[
        stdio_backend("pipe", &["--annotated", "--journal", path(0)]) + keys,
        stubs[0].backend("json") + keys,
        stubs[1].backend("sse") + keys,
    ]);
    proxy.client_seeing(&["pipe__reads", "json__reads", "sse__reads"]);
    World { proxy, journals, _stubs: stubs, _scratch: scratch }
}

/// One HTTP stub with these keys.
fn web(keys: &str) -> (Proxy, Journal, HttpStub, tempfile::TempDir) {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "web");
    let stub = HttpStub::start("web", &["--annotated", "--journal", journal.path()]);
    let proxy = Proxy::start(&[stub.backend("web") + keys]);
    proxy.client_seeing(&["web__reads"]);
    (proxy, journal, stub, scratch)
}

/// Connections until both workers have served some: the kernel spreads them.
fn clients(proxy: &Proxy, count: usize) -> Vec<Client> {
    (0..count).map(|_| proxy.client()).collect()
}

fn code(told: &Told) -> i64 {
    told.error().0
}

#[test]
fn a_hanging_backend_costs_its_time_and_hears_of_it() {
    let world = world("timeout = { seconds = 0.3, tools = { sleep = 2 } }\n");
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        let began = Instant::now();
        let (code, text) = client.call(&format!("{backend}__hang"), "{}").error();
        assert_eq!(code, -32001, "{text}");
        assert!(text.contains("0.3 s"), "{text}");
        assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
        journal.wait_count("cancelled", 1);
        assert_eq!(client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#).said(), "x");
        // A tool with a time of its own.
        let told = client.call(&format!("{backend}__sleep"), r#"{"ms":600}"#);
        assert_eq!(told.said(), "slept");
    }
}

#[test]
fn progress_resets_the_clock_only_where_configured() {
    for resets in [false, true] {
        let world = world(&format!("timeout = {{ seconds = 0.6, progress_resets = {resets} }}\n"));
        let mut client = world.proxy.client();
        for (backend, _) in &world.journals {
            let params = format!(
                r#"{{"name":"{backend}__progress","arguments":{{"steps":8,"ms":200}},"_meta":{{"progressToken":1}}}}"#
            );
            let told = client.ask("tools/call", &params);
            if resets {
                assert_eq!(told.said(), "done", "{backend}");
            } else {
                assert_eq!(code(&told), -32001, "{backend}");
            }
        }
    }
}

#[test]
fn the_total_bounds_all_attempts() {
    let world = world(
        "timeout = { seconds = 0.4, total_seconds = 1 }\n\
         retry = { max_retries = 50, initial_backoff_ms = 1, max_backoff_ms = 1 }\n",
    );
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        let began = Instant::now();
        let told =
            client.call(&format!("{backend}__reads"), r#"{"key":"h","fails":99,"how":"hang"}"#);
        assert_eq!(code(&told), -32001);
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        let attempts = journal.count("unsteady h ");
        assert!((2..=4).contains(&attempts), "{attempts}");
    }
}

#[test]
fn never_more_than_the_rate_over_all_workers_and_connections() {
    let (proxy, journal, _stub, _scratch) = web("rate_limit = { requests = 30 }\n");
    let clients = clients(&proxy, 8);
    std::thread::sleep(Duration::from_millis(1100));
    let admitted = Mutex::new(Vec::new());
    let refusals = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for mut client in clients {
            let (admitted, refusals) = (&admitted, &refusals);
            scope.spawn(move || {
                while began.elapsed() < Duration::from_secs(10) {
                    let sent = Instant::now();
                    let body = message("1", "tools/call", &call_params("web__sets", "{}"));
                    client.send(&body);
                    let head = client.conn.head();
                    let text = String::from_utf8(client.conn.body()).unwrap();
                    if text.contains("\"result\"") {
                        admitted.lock().unwrap().push((sent, Instant::now()));
                        continue;
                    }
                    refusals.fetch_add(1, Ordering::Relaxed);
                    assert!(text.contains("-32011") && text.contains("retryAfterMs"), "{text}");
                    assert!(head.field("retry-after").is_some());
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
        }
    });
    let mut admitted = admitted.into_inner().unwrap();
    admitted.sort_by_key(|(_, answered)| *answered);
    assert!(refusals.load(Ordering::Relaxed) > 100);
    assert_eq!(journal.count("call sets"), admitted.len());
    // An admission lies between sending and the answer, so of any 31 the first answer is at least
    // a second before the last... sending would be; the answer of the last is later still.
    for window in admitted.windows(31) {
        let first_sent = window.iter().map(|(sent, _)| *sent).min().unwrap();
        let last_answered = window[30].1;
        assert!(last_answered - first_sent >= Duration::from_millis(999));
    }
    let rate = admitted.len() as f64 / 10.0;
    assert!(rate >= 29.0, "{rate} a second");
    assert!(admitted.len() <= 30 * 11, "{}", admitted.len());
}

#[test]
fn the_global_limit_counts_every_request_and_no_notification() {
    let proxy = Setup {
        backends: stdio_backend("pipe", &[]),
        proxy: "[proxy.rate_limit]\nrequests = 4\nperiod_seconds = 3600\n".into(),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client();
    client.notify("notifications/cancelled", r#"{"requestId":5}"#);
    client.ask("ping", "{}").result();
    client.ask("ping", "{}").result();
    client.ask("tools/list", "{}").result();
    let told = client.ask("ping", "{}");
    assert_eq!(code(&told), -32011);
    assert!(told.json()["error"]["data"]["retryAfterMs"].as_u64().unwrap() > 3_000_000);
}

#[test]
fn each_principal_has_a_limit_of_its_own_over_all_workers() {
    let auth = "[auth]\ntype = \"bearer\"\ntokens = [\"one-token-of-many\"]\n\
        [[auth.scoped_tokens]]\ntoken = \"another-token-of-many\"\nname = \"other\"\n";
    let per = "rate_limit = { requests = 5, period_seconds = 3600, per = \"principal\" }\n";
    let web = HttpStub::start("web", &["--annotated"]);
    let proxy = Setup {
        backends: web.backend("web") + per + &stdio_backend("pipe", &["--annotated"]) + per,
        proxy: auth.into(),
        ..Setup::default()
    }
    .start();
    let connect = |token: &str| Client::connect_as(proxy.addr, token);
    connect("one-token-of-many").wait_for_tools(&["web__reads", "pipe__reads"]);
    for backend in ["web", "pipe"] {
        for token in ["one-token-of-many", "another-token-of-many"] {
            let mut clients: Vec<Client> = (0..8).map(|_| connect(token)).collect();
            let codes: Vec<Option<i64>> = clients
                .iter_mut()
                .map(|client| {
                    let told = client.call(&format!("{backend}__reads"), "{}");
                    told.json().get("error").map(|_| code(&told))
                })
                .collect();
            let well = codes.iter().filter(|code| code.is_none()).count();
            assert_eq!((well, codes[5..].to_vec()), (5, vec![Some(-32011); 3]), "{codes:?}");
        }
    }
    // All requests of one together, whatever they ask for.
    let proxy = Setup {
        backends: stdio_backend("pipe", &[]),
        proxy: format!("{per}{auth}"),
        ..Setup::default()
    }
    .start();
    for token in ["one-token-of-many", "another-token-of-many"] {
        // The first one is initialize.
        let mut client = Client::connect_as(proxy.addr, token);
        for _ in 0..4 {
            client.ask("ping", "{}").result();
        }
        assert_eq!(code(&client.ask("ping", "{}")), -32011);
    }
}

#[test]
fn one_at_a_time_in_order_and_a_bounded_queue() {
    let world =
        world("concurrency = { max_concurrent = 1, queue = 3, queue_timeout_seconds = 30 }\n");
    for (backend, journal) in &world.journals {
        let mut clients = clients(&world.proxy, 5);
        let mut last = clients.pop().unwrap();
        let name = format!("{backend}__reads");
        for (n, client) in clients.iter_mut().enumerate() {
            let ms = if n == 0 { 1500 } else { 50 };
            let arguments = format!(r#"{{"key":"q{n}","ms":{ms}}}"#);
            client.send(&message("1", "tools/call", &call_params(&name, &arguments)));
            // The order of arrival is the order in which they were sent.
            std::thread::sleep(Duration::from_millis(60));
        }
        let told = last.call(&name, r#"{"key":"over"}"#);
        assert_eq!(code(&told), -32012, "{told:?}");
        assert!(told.json()["error"]["data"]["retryAfterMs"].is_u64());
        // Refused at once: the first call is still the only one that the backend has.
        assert_eq!(journal.count("unsteady q"), 1, "{backend}");
        for client in &mut clients {
            assert!(client.told().said().starts_with("1 "));
        }
        let order: Vec<String> = journal
            .lines()
            .into_iter()
            .filter_map(|line| Some(line.strip_prefix("unsteady q")?.to_owned()))
            .collect();
        assert_eq!(order, ["0 1", "1 1", "2 1", "3 1"], "{backend}");
        assert_eq!(journal.count("unsteady over"), 0);
    }
}

#[test]
fn who_waits_too_long_or_leaves_is_not_executed() {
    let (proxy, journal, _stub, _scratch) =
        web("concurrency = { max_concurrent = 1, queue_timeout_seconds = 0.3 }\n");
    let mut clients = clients(&proxy, 4);
    let long = call_params("web__reads", r#"{"key":"long","ms":900}"#);
    clients[0].send(&message("1", "tools/call", &long));
    journal.wait_count("unsteady long", 1);
    let told = clients[1].call("web__reads", r#"{"key":"late"}"#);
    assert_eq!(code(&told), -32012);
    // One leaves while it waits: its place in the queue goes to nobody.
    let gone = call_params("web__reads", r#"{"key":"gone"}"#);
    clients[2].send(&message("1", "tools/call", &gone));
    std::thread::sleep(Duration::from_millis(50));
    clients.remove(2);
    clients[0].told().result();
    clients[2].call("web__reads", r#"{"key":"next"}"#).result();
    assert_eq!(journal.count("unsteady late") + journal.count("unsteady gone"), 0);
}

fn fails(how: &str, key: &str) -> String {
    format!(r#"{{"key":"{key}","fails":1000000,"how":"{how}"}}"#)
}

#[test]
fn the_breaker_opens_for_failures_of_the_backend_on_all_workers() {
    for (how, opens) in [
        ("internal", true),
        ("500", true),
        ("502", true),
        ("503", true),
        ("close", true),
        ("params", false),
        ("is_error", false),
    ] {
        let (proxy, journal, _stub, _scratch) =
            web("circuit_breaker = { minimum_calls = 5, wait_duration_seconds = 3600 }\n");
        let mut clients = clients(&proxy, 8);
        for client in clients.iter_mut().take(5) {
            client.call("web__writes", &fails(how, "k"));
        }
        let before = journal.count("unsteady");
        for client in &mut clients {
            let told = client.call("web__writes", &fails(how, "k"));
            let refused = told.json()["error"]["code"] == -32013;
            assert_eq!(refused, opens, "{how}: {told:?}");
            assert_eq!(told.json()["error"]["data"]["retryAfterMs"].is_u64(), opens);
        }
        let touched = journal.count("unsteady") > before;
        assert_eq!(touched, !opens, "{how}");
    }
}

#[test]
fn the_breaker_opens_for_timeouts_and_refused_connections() {
    let world = world(
        "timeout.seconds = 0.2\n\
         circuit_breaker = { minimum_calls = 2, wait_duration_seconds = 3600 }\n",
    );
    let mut client = world.proxy.client();
    for (backend, _) in &world.journals {
        for expected in [-32001, -32001, -32013] {
            assert_eq!(code(&client.call(&format!("{backend}__hang"), "{}")), expected);
        }
    }
    let proxy = Proxy::start(&[http_backend(
        "gone",
        format!("127.0.0.1:{}", free_port()).parse().unwrap(),
    ) + "startup_timeout_seconds = 1\ncircuit_breaker = { minimum_calls = 3 }\n"]);
    let mut client = proxy.client();
    let codes: Vec<i64> = (0..4).map(|_| code(&client.call("gone__x", "{}"))).collect();
    assert_eq!(codes, [-32010, -32010, -32010, -32013]);
}

#[test]
fn half_open_lets_exactly_the_permitted_calls_through() {
    let (proxy, journal, _stub, _scratch) =
        web("circuit_breaker = { minimum_calls = 2, wait_duration_seconds = 0.5, \
         permitted_calls_in_half_open = 3 }\n");
    let mut first = proxy.client();
    for _ in 0..2 {
        first.call("web__writes", &fails("internal", "k"));
    }
    assert_eq!(code(&first.call("web__writes", &fails("internal", "k"))), -32013);
    std::thread::sleep(Duration::from_millis(600));
    let mut clients = clients(&proxy, 8);
    for client in &mut clients {
        let slow = call_params("web__reads", r#"{"key":"probe","ms":700}"#);
        client.send(&message("1", "tools/call", &slow));
    }
    let told: Vec<Told> = clients.iter_mut().map(Client::told).collect();
    let well = told.iter().filter(|told| told.json().get("error").is_none()).count();
    assert_eq!((well, journal.count("unsteady probe")), (3, 3));
    // All three were well: it is closed.
    for client in &mut clients {
        client.call("web__reads", "{}").result();
    }
}

#[test]
fn a_breaker_with_a_window_of_time_forgets_what_is_older() {
    let (proxy, journal, _stub, _scratch) =
        web("circuit_breaker = { minimum_calls = 4, window_seconds = 3, \
         wait_duration_seconds = 3600 }\n");
    let mut clients = clients(&proxy, 4);
    for client in clients.iter_mut().take(3) {
        assert_eq!(code(&client.call("web__writes", &fails("internal", "k"))), -32603);
    }
    std::thread::sleep(Duration::from_millis(3_200));
    // These are the first ones again: three of them open nothing, the fourth does.
    for client in &mut clients {
        assert_eq!(code(&client.call("web__writes", &fails("internal", "k"))), -32603);
    }
    let before = journal.count("unsteady");
    for client in &mut clients {
        assert_eq!(code(&client.call("web__reads", "{}")), -32013);
    }
    assert_eq!((before, journal.count("unsteady")), (7, 7));
}

#[test]
fn a_failed_probe_opens_it_again() {
    let (proxy, _journal, _stub, _scratch) =
        web("circuit_breaker = { minimum_calls = 2, wait_duration_seconds = 0.4 }\n");
    let mut client = proxy.client();
    for expected in [-32603, -32603, -32013] {
        assert_eq!(code(&client.call("web__writes", &fails("internal", "k"))), expected);
    }
    std::thread::sleep(Duration::from_millis(500));
    for expected in [-32603, -32013] {
        assert_eq!(code(&client.call("web__writes", &fails("internal", "k"))), expected);
    }
}

#[test]
fn a_flaky_backend_succeeds_and_faults_of_the_caller_are_asked_once() {
    let world = world("retry = { max_retries = 3, initial_backoff_ms = 5, max_backoff_ms = 20 }\n");
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        let call = |client: &mut Client, key: &str, fails: usize, how: &str| {
            let arguments = format!(r#"{{"key":"{key}","fails":{fails},"how":"{how}"}}"#);
            client.call(&format!("{backend}__writes"), &arguments)
        };
        assert!(call(&mut client, "a", 3, "internal").said().starts_with("4 "));
        // No id is used twice in a session with the backend.
        let mut ids: Vec<String> =
            journal.lines().into_iter().filter(|line| line.starts_with("call writes ")).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 4, "{backend}: {ids:?}");
        assert_eq!(code(&call(&mut client, "b", 9, "internal")), -32603);
        assert_eq!(journal.count("unsteady b "), 4);
        assert_eq!(code(&call(&mut client, "c", 9, "params")), -32602);
        assert_eq!(journal.count("unsteady c "), 1);
        assert_eq!(call(&mut client, "d", 9, "is_error").result()["isError"], true);
        assert_eq!(journal.count("unsteady d "), 1);
    }
}

#[test]
fn what_may_have_been_executed_is_repeated_only_where_that_is_safe() {
    let (proxy, journal, _stub, _scratch) = web("timeout.seconds = 0.2\n\
         retry = { max_retries = 1, initial_backoff_ms = 1, max_backoff_ms = 5, tools = [\"add?\"] }\n");
    let mut client = proxy.client();
    for (how, always) in
        [("503", true), ("500", true), ("502", false), ("close", false), ("hang", false)]
    {
        for (tool, safe) in [("writes", false), ("reads", true), ("sets", true), ("adds", true)] {
            let key = format!("{how}-{tool}");
            client.call(&format!("web__{tool}"), &fails(how, &key)).error();
            let executions = journal.count(&format!("unsteady {key} "));
            assert_eq!(executions, if always || safe { 2 } else { 1 }, "{key}");
        }
    }
    // Asked to wait for longer than any pause, the error is the answer.
    let told = client.call("web__reads", &fails("503 later", "later"));
    assert_eq!(told.json()["error"]["data"]["retryAfterMs"], 60_000);
    assert_eq!(journal.count("unsteady later "), 1);
}

#[test]
fn the_budget_bounds_the_attempts() {
    let (proxy, journal, _stub, _scratch) =
        web("retry = { max_retries = 3, initial_backoff_ms = 0, max_backoff_ms = 0, \
         budget_percent = 20, min_retries_per_sec = 0 }\n");
    std::thread::scope(|scope| {
        for mut client in clients(&proxy, 8) {
            scope.spawn(move || {
                for _ in 0..125 {
                    assert_eq!(code(&client.call("web__writes", &fails("internal", "k"))), -32603);
                }
            });
        }
    });
    let attempts = journal.count("unsteady k ");
    assert!((1_100..=1_200).contains(&attempts), "{attempts}");
}

#[test]
fn a_cancelled_call_is_not_repeated() {
    let world = world("retry = { max_retries = 9, initial_backoff_ms = 1, max_backoff_ms = 1 }\n");
    for (backend, journal) in &world.journals {
        let mut client = world.proxy.client();
        let params = call_params(&format!("{backend}__reads"), &fails("hang", "x"));
        client.send(&message("77", "tools/call", &params));
        journal.wait_count("unsteady x", 1);
        client.again().notify("notifications/cancelled", r#"{"requestId":77}"#);
        journal.wait_count("cancelled", 1);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(journal.count("unsteady x"), 1, "{backend}");
    }
}

#[test]
fn a_backend_that_fails_in_a_row_is_ejected_and_returns() {
    let keys = "outlier_detection = { consecutive_errors = 3, base_ejection_seconds = 1, interval_seconds = 0.1 }\n";
    let world = world(keys);
    let mut clients = clients(&world.proxy, 6);
    // Of three backends half may go: one.
    for (n, (backend, journal)) in world.journals.iter().enumerate() {
        let name = format!("{backend}__writes");
        for client in clients.iter_mut().take(3) {
            client.call(&name, &fails("internal", "k")).error();
        }
        let before = journal.count("unsteady");
        for client in &mut clients {
            let told = client.call(&name, &fails("internal", "k"));
            assert_eq!(code(&told), if n == 0 { -32013 } else { -32603 }, "{backend}");
        }
        assert_eq!(journal.count("unsteady") == before, n == 0);
    }
    wait_until("the return", || clients[0].call("pipe__reads", "{}").json().get("error").is_none());
}

#[test]
fn a_hedge_cuts_the_tail_and_the_loser_is_cancelled() {
    let world = world("hedging = { delay_ms = 150, max_hedges = 2, tools = [\"adds\"] }\n");
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        for tool in ["reads", "sets", "adds"] {
            let key = format!("{backend}-{tool}");
            let began = Instant::now();
            let arguments = format!(r#"{{"key":"{key}","fails":1,"how":"slow","slow_ms":60000}}"#);
            let told = client.call(&format!("{backend}__{tool}"), &arguments);
            assert!(told.said().starts_with("2 "), "{told:?}");
            assert!(began.elapsed() >= Duration::from_millis(140));
            journal.wait_count(&format!("stopped {key} 1"), 1);
            assert_eq!(journal.count(&format!("unsteady {key} ")), 2);
        }
        // What is fast is not doubled.
        client.call(&format!("{backend}__reads"), r#"{"key":"fast"}"#).result();
        // Neither is what is not annotated and not listed.
        let slow = r#"{"key":"w","ms":500}"#;
        assert!(client.call(&format!("{backend}__writes"), slow).said().starts_with("1 "));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(journal.count("unsteady fast ") + journal.count("unsteady w "), 2);
        // Never more than one and its hedges.
        let all_slow = format!(r#"{{"key":"all-{backend}","ms":1000}}"#);
        client.call(&format!("{backend}__reads"), &all_slow).result();
        assert_eq!(journal.count("unsteady all-"), 3, "{backend}");
    }
}

#[test]
fn an_error_never_beats_a_success() {
    let world = world("hedging = { delay_ms = 100 }\n");
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        // The first is slow and well, the second fails at once; nobody hears of it.
        let scripted = r#"{"key":"s","ms":600,"fail_at":2}"#;
        let told = client.call(&format!("{backend}__reads"), scripted);
        assert!(told.said().starts_with("1 "), "{told:?}");
        assert_eq!(journal.count("unsteady s "), 2);
        // All fail: the error is the answer.
        let arguments = fails("internal", "f");
        assert_eq!(code(&client.call(&format!("{backend}__reads"), &arguments)), -32603);
        // Cancelled by its caller, all attempts are.
        let mut leaver = world.proxy.client();
        let params = call_params(&format!("{backend}__reads"), &fails("hang", "c"));
        leaver.send(&message("5", "tools/call", &params));
        journal.wait_count("unsteady c ", 2);
        leaver.again().notify("notifications/cancelled", r#"{"requestId":5}"#);
        journal.wait_count("cancelled", 2);
    }
}

#[test]
fn hedges_are_taken_from_the_budget() {
    let (proxy, journal, _stub, _scratch) = web("hedging = { delay_ms = 20 }\n\
         retry = { budget_percent = 10, min_retries_per_sec = 0 }\n");
    let mut client = proxy.client();
    for _ in 0..30 {
        client.call("web__reads", r#"{"key":"b","ms":60}"#).result();
    }
    let executions = journal.count("unsteady b ");
    assert!((31..=33).contains(&executions), "{executions}");
}

/// An answer that comes in pieces ends the race while it is still under way: it was cancelled there
/// together with the others, and clients saw a part of it.
#[test]
fn a_hedged_call_whose_answer_is_long_is_not_cancelled() {
    let world = world("hedging = { delay_ms = 60000, tools = [\"slow_body\"] }\n");
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        let arguments = r#"{"bytes":400000,"pieces":8,"ms":40}"#;
        let told = client.call(&format!("{backend}__slow_body"), arguments);
        assert_eq!(told.said().len(), 400_000, "{backend}");
        client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#).said();
        assert_eq!(journal.count("cancelled"), 0, "{backend}");
    }
}

/// The second attempt waits for the place that the first one has: it got it with the answer, and was
/// executed although nobody waited for it any more.
#[test]
fn a_hedge_that_waits_for_a_place_is_not_sent_behind_the_answer() {
    let world = world(
        "hedging = { delay_ms = 30, max_hedges = 2 }\n\
         concurrency = { max_concurrent = 1 }\n",
    );
    let mut client = world.proxy.client();
    for (backend, journal) in &world.journals {
        for n in 0..5 {
            let key = format!("{backend}{n}");
            let arguments = format!(r#"{{"key":"{key}","ms":200}}"#);
            let told = client.call(&format!("{backend}__reads"), &arguments);
            assert!(told.said().starts_with("1 "), "{told:?}");
            // The place goes through the queue to this one.
            client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#).said();
            assert_eq!(journal.count(&format!("unsteady {key} ")), 1, "{backend}");
        }
    }
}

/// Servers are told not to answer what is cancelled, so its place was taken until the wait for a late
/// answer ended: longer than anybody waits here.
#[test]
fn a_cancelled_call_gives_its_place_back_at_once() {
    let world = world("concurrency = { max_concurrent = 1, queue_timeout_seconds = 3 }\n");
    for (backend, journal) in &world.journals {
        let mut leaver = world.proxy.client();
        let hang = call_params(&format!("{backend}__hang"), "{}");
        leaver.send(&message("7", "tools/call", &hang));
        journal.wait_count("call hang", 1);
        leaver.again().notify("notifications/cancelled", r#"{"requestId":7}"#);
        let told = world.proxy.client().call(&format!("{backend}__reads"), "{}");
        assert!(told.said().starts_with("1 "), "{backend}: {told:?}");
    }
}

/// Losers of races were calls under way for as long, and took all places one after the other.
#[test]
fn losers_of_races_give_their_places_back() {
    let world = world(
        "hedging = { delay_ms = 30 }\n\
         concurrency = { max_concurrent = 2, queue_timeout_seconds = 3 }\n",
    );
    let mut client = world.proxy.client();
    for (backend, _) in &world.journals {
        for n in 0..3 {
            let slow = r#""fails":1,"how":"slow","slow_ms":60000"#;
            let arguments = format!(r#"{{"key":"{backend}{n}",{slow}}}"#);
            let told = client.call(&format!("{backend}__reads"), &arguments);
            assert!(told.said().starts_with("2 "), "{told:?}");
        }
    }
}

/// A second attempt that finds no place was counted as made, and a retry as the first attempt.
#[test]
fn attempts_are_counted_where_they_begin() {
    let (proxy, journal, _stub, _scratch) = web("hedging = { delay_ms = 20, max_hedges = 2 }\n\
         concurrency = { max_concurrent = 1, queue = 0 }\n\
         retry = { max_retries = 2, initial_backoff_ms = 1, max_backoff_ms = 1 }\n");
    let mut client = proxy.client();
    let arguments = r#"{"key":"a","fails":2,"how":"late","ms":200}"#;
    assert!(client.call("web__reads", arguments).said().starts_with("3 "));
    assert_eq!(journal.count("unsteady a "), 3);
    let page = Page::of(&proxy);
    let counts = ["first", "retry", "hedge"]
        .map(|kind| page.get("mcp_proxy_attempts_total", &[("backend", "web"), ("kind", kind)]));
    assert_eq!(counts, [1.0, 2.0, 0.0]);
}

/// What a hedge that was not made has cost is there for the next one.
#[test]
fn hedges_that_are_not_made_cost_nothing_of_the_budget() {
    let (proxy, journal, _stub, _scratch) = web("hedging = { delay_ms = 20, max_hedges = 2 }\n\
         concurrency = { max_concurrent = 1, queue = 0 }\n\
         retry = { max_retries = 1, initial_backoff_ms = 1, max_backoff_ms = 1, \
         budget_percent = 1, min_retries_per_sec = 1 }\n");
    let mut client = proxy.client();
    // More than the budget has, were they made.
    for _ in 0..8 {
        client.call("web__reads", r#"{"key":"slow","ms":100}"#).result();
    }
    assert_eq!(journal.count("unsteady slow "), 8);
    let told = client.call("web__reads", r#"{"key":"b","fails":1}"#);
    assert!(told.said().starts_with("2 "), "{told:?}");
}
