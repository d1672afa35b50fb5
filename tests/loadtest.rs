//! The load harness, as people run it: what it says of a gateway is worth nothing before this holds.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{loadtest_path, scratch, signal};
use crate::support::wait_until;

#[path = "../loadtest/histogram.rs"]
mod histogram;

use histogram::Histogram;

/// Runs it with the proxy of this build, in a process group of its own, to its end.
fn run(folder: &Path, scenarios: &str, args: &[&str]) -> Output {
    let file = folder.join("scenarios.toml");
    std::fs::write(&file, scenarios).unwrap();
    let mut command = Command::new(loadtest_path());
    command.args(["--proxy", env!("CARGO_BIN_EXE_mcp-proxy"), "--rounds", "1"]);
    command.arg("--scenarios").arg(&file);
    command.arg("--json").arg(folder.join("out.json")).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().unwrap();
    let group = -(child.id() as i32);
    let output = child.wait_with_output().unwrap();
    // With a backend of its own group, which ends with the proxy, there is nobody left.
    wait_until("all processes of the load harness to end", || !signal("0", group));
    output
}

fn said(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn figures(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("out.json")).unwrap()).unwrap()
}

#[test]
fn percentiles_are_those_of_the_sorted_values() {
    let mut histogram = Histogram::new();
    let (mut half, mut other) = (Histogram::new(), Histogram::new());
    let mut values = Vec::new();
    let mut seed = 7_u64;
    for step in 0..20_000_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // From nanoseconds to a minute, evenly over the octaves.
        let value = (seed >> 20) >> (seed % 44);
        values.push(value);
        histogram.add(value);
        if step % 3 == 0 { half.add(value) } else { other.add(value) }
    }
    values.sort_unstable();
    for share in [0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
        let rank = ((values.len() as f64 * share).ceil() as usize).max(1);
        let exact = values[rank - 1] as f64 / 1000.0;
        let told = histogram.micros(share);
        assert!((told - exact).abs() <= exact * 0.016 + 0.001, "{share}: {told}, not {exact}");
    }
    assert_eq!(histogram.most_micros(), *values.last().unwrap() as f64 / 1000.0);
    half.merge(&other);
    assert_eq!((half.total(), half.parts()), (histogram.total(), histogram.parts()));
    let again = Histogram::of_parts(&histogram.parts());
    assert_eq!(again.parts(), histogram.parts());

    let mut extremes = Histogram::new();
    assert_eq!(extremes.micros(0.5), 0.0, "nothing was counted");
    extremes.add(0);
    extremes.add(u64::MAX);
    assert_eq!(extremes.micros(0.5), 0.0);
    assert!((extremes.micros(1.0) / (u64::MAX as f64 / 1000.0) - 1.0).abs() < 0.016);
}

const KINDS: &str = r#"
[[scenarios]]
name = "mixed"
title = "All kinds of calls <&>"
connections = 6
sessions = 20
tools = 30
rows = ["direct", "hyper", "relay", "proxy", "stdio"]
calls = [
    { share = 3 },
    { result_bytes = 65536 },
    { result_bytes = 65536, text = "json" },
    { argument_bytes = 65536 },
    { answer = "sse" },
    { answer = "sse", progress = 3 },
    { delay_ms = 3 },
    { method = "tools/list" },
]

[[scenarios]]
name = "modern"
connections = 3
era = "request"
rows = ["direct", "hyper", "relay", "proxy", "stdio"]
calls = [{}, { answer = "sse", progress = 2 }, { method = "tools/list" }]

[[scenarios]]
name = "bridge"
connections = 3
backend_era = "request"
rows = ["proxy", "plain"]
bearer = "0123456789abcdef"
proxy = '''
[auth]
type = "bearer"
tokens = ["0123456789abcdef"]
'''
backend = '''
[backends.timeout]
seconds = 30
'''

[[scenarios]]
name = "sessions"
connections = 40
idle = "sessions"
rows = ["proxy"]

[[scenarios]]
name = "connections"
connections = 40
idle = "connections"
rows = ["proxy"]

[[scenarios]]
name = "streams"
connections = 40
idle = "streams"
rows = ["proxy"]
"#;

#[test]
fn all_kinds_of_calls_are_measured_and_reported() {
    let scratch = scratch();
    let output = run(scratch.path(), KINDS, &["--seconds", "0.3"]);
    assert!(output.status.success(), "{}", said(&output));
    let figures = figures(scratch.path());
    let scenarios = figures["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 6, "{}", said(&output));
    for part in scenarios {
        let name = part["scenario"]["name"].as_str().unwrap();
        let rows = part["rows"].as_array().unwrap();
        let expected = part["scenario"]["rows"].as_array().unwrap().len();
        assert_eq!(rows.len(), expected, "{name}: {}", said(&output));
        for row in rows {
            assert_eq!(row["errors"], 0, "{name}: {row}");
            if part["scenario"]["idle"].is_null() {
                let load = &row["load"];
                assert!(load["requests"].as_u64().unwrap() > 0, "{name}: {row}");
                let at = |key: &str| load[key]["median"].as_f64().unwrap();
                assert!(at("p50_us") <= at("p90_us") && at("p99_us") <= at("p999_us"), "{load}");
                assert!(at("p999_us") <= at("most_us") && at("cpu_us_per_request") > 0.0, "{load}");
                assert!(!load["curve"].as_array().unwrap().is_empty(), "{load}");
            } else {
                assert_eq!(row["held"]["count"], 40);
                assert!(row["held"]["held_mib"].as_f64().unwrap() > 0.0, "{row}");
            }
        }
    }
    let ratio = &scenarios[0]["rows"][4]["load"]["cpu_ratios"];
    let to: Vec<&str> =
        ratio.as_array().unwrap().iter().map(|r| r["to"].as_str().unwrap()).collect();
    assert_eq!(to, ["hyper", "relay", "proxy"]);

    let page = std::fs::read_to_string(scratch.path().join("out.html")).unwrap();
    for reference in ["http:", "https:", "src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(reference), "the report refers to something: {reference}");
    }
    assert!(page.contains("All kinds of calls &lt;&amp;&gt;") && page.contains("<svg"));
    assert!(page.contains("CPU to relay"));
    assert!(said(&output).contains("to relay"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(page.matches("<table").count(), page.matches("</table>").count());
}

/// Two builds take turns, so that a change can be measured beside what was there before it.
#[test]
fn another_build_of_the_proxy_is_a_row() {
    let scratch = scratch();
    let scenario =
        "[[scenarios]]\nname = \"two\"\nconnections = 2\nrows = [\"direct\", \"proxy\"]\n";
    let with = |other: &str| run(scratch.path(), scenario, &["--seconds", "0.2", "--other", other]);
    let output = with(env!("CARGO_BIN_EXE_mcp-proxy"));
    assert!(output.status.success(), "{}", said(&output));
    let figures = figures(scratch.path());
    let rows = figures["scenarios"][0]["rows"].as_array().unwrap();
    let labels: Vec<&str> = rows.iter().map(|row| row["row"].as_str().unwrap()).collect();
    assert_eq!(labels, ["direct", "mcp-proxy, 1", "mcp-proxy other, 1"]);
    assert_eq!(rows[2]["load"]["cpu_ratios"][0]["to"], "proxy", "{}", rows[2]);
    assert_eq!((&rows[1]["errors"], &rows[2]["errors"]), (&0.into(), &0.into()));

    // It is the other program that runs there.
    let output = with("/bin/false");
    assert!(!output.status.success(), "{}", said(&output));
    let output = with("no/such/file");
    assert!(said(&output).contains("--other no/such/file: there is no such file"));
}

/// A server that stands still half of the time. A client that waits for its answer sees one slow
/// request in each stall; whoever would have asked meanwhile sees the rest of it.
#[test]
fn a_fixed_rate_sees_stalls_whole() {
    let scenario = r#"
[[scenarios]]
name = "stalls"
connections = 1
rate = 200.0
stall_ms = 300
stall_every_ms = 300
rows = ["direct"]
"#;
    let scratch = scratch();
    let output = run(scratch.path(), scenario, &["--seconds", "3"]);
    assert!(output.status.success(), "{}", said(&output));
    let figures = figures(scratch.path());
    let load = &figures["scenarios"][0]["rows"][0]["load"];
    let at = |key: &str| load[key]["median"].as_f64().unwrap();
    // None is left out because the server was slow.
    assert!(load["requests"].as_u64().unwrap() >= 590, "{load}");
    assert!(at("p90_us") > 100_000.0, "a third of a stall at least: {load}");
    assert!(at("p90_us") > 5.0 * at("service_p90_us"), "{load}");
}

/// Two connections get an answer every 20 ms at best: 100 a second, of which the pace is half.
#[test]
fn a_pace_is_a_share_of_what_was_managed() {
    let scenario = r#"
[[scenarios]]
name = "half"
connections = 2
of_capacity = 0.5
rows = ["direct", "relay"]
calls = [{ delay_ms = 20 }]
"#;
    let scratch = scratch();
    let output = run(scratch.path(), scenario, &["--seconds", "1"]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let figures = figures(scratch.path());
    let half = &figures["scenarios"][0];
    let rate = half["scenario"]["rate"].as_f64().unwrap();
    assert!((1.0..=52.0).contains(&rate), "{half}");
    assert!(text.contains("0.5 of what the slowest row manages"), "{text}");
    for row in half["rows"].as_array().unwrap() {
        let done = row["load"]["requests"].as_f64().unwrap();
        assert!(done <= rate * 1.1 + 2.0, "{row}");
    }
    // Who names a rate wants that one.
    let output = run(scratch.path(), scenario, &["--seconds", "0.3", "--rate", "30"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!said(&output).contains("slowest row"));
}

#[test]
fn faults_of_scenarios_and_arguments_are_told_before_anything_starts() {
    let scratch = scratch();
    let refused = |scenarios: &str, args: &[&str]| {
        let output = run(scratch.path(), scenarios, args);
        assert!(!output.status.success(), "{}", said(&output));
        assert!(!scratch.path().join("out.json").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = refused("[[scenarios]]\nname = \"a\"\nconections = 3\n", &[]);
    assert!(text.contains("scenarios.toml") && text.contains("conections"), "{text}");
    assert!(text.contains("line 3"), "{text}");
    let several = "[[scenarios]]\nname = \"a b\"\nconnections = 0\ncalls = [{ result_bytes = 10 }]\n\
                   [[scenarios]]\nname = \"c\"\nrate = -1.0\nof_capacity = 1.0\n[[scenarios]]\nname = \"c\"\n";
    let text = refused(several, &[]);
    for part in [
        "a name has",
        "connections = 0",
        "result_bytes = 10",
        "rate = -1;",
        "of_capacity = 1;",
        "without rate and idle",
        "twice",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let bridge = "[[scenarios]]\nname = \"b\"\nbackend_era = \"request\"\n\
                  rows = [\"relay\", \"proxy\"]\n";
    let text = refused(bridge, &[]);
    assert!(text.contains("row \"relay\" needs clients"), "{text}");
    assert!(!text.contains("\"proxy\" needs"), "{text}");
    let good = "[[scenarios]]\nname = \"good\"\n";
    assert!(refused(good, &["--scenario", "bad"]).contains("there are good"));
    assert!(refused(good, &["--rows", "prxy"]).contains("there are direct, nginx"));
    assert!(refused(good, &["--target", "gw=https://h/"]).contains("https is not spoken"));
    assert!(refused(good, &["--target", "gw=http://127.0.0.1:1/mcp"]).contains("--stub"));
    let without = ["--rows", "direct", "--other", env!("CARGO_BIN_EXE_mcp-proxy")];
    assert!(refused(good, &without).contains("--other stands beside the row \"proxy\""));
    assert!(refused(good, &["--soak", "20x"]).contains("20m"));
}

/// A part of the harness that runs alone: the stub, as people start it for a gateway of their own.
struct Part(Child);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn part(args: &[&str]) -> (Part, SocketAddr) {
    let mut command = Command::new(loadtest_path());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut part = Part(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(part.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (part, ([127, 0, 0, 1], line.trim().parse().unwrap()).into())
}

fn stub() -> (Part, SocketAddr) {
    part(&["stub"])
}

/// A connection whose reads do not wait for ever.
fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// The server hears all of it, and its end, before it says anything: each direction is closed alone.
#[test]
fn a_relay_carries_bytes_and_ends_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let (_relay, addr) = part(&["relay", &server.to_string(), "2"]);
    let sizes = [0, 1, 300, 65_536, 65_537, 3_000_000];
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                heard.reverse();
                stream.write_all(&heard).unwrap();
            });
        }
    });
    // Many at once: the bytes of one are not another's.
    let clients: Vec<_> = (0..4 * sizes.len())
        .map(|client| {
            let bytes = sizes[client % sizes.len()];
            std::thread::spawn(move || {
                let mut said: Vec<u8> =
                    (0..bytes).map(|at| ((at * 31 + client * 7) >> 3) as u8).collect();
                let mut stream = connect(addr);
                stream.write_all(&said).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                said.reverse();
                assert!(heard == said, "client {client}: {} of {bytes} bytes", heard.len());
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_relay_closes_what_has_no_server() {
    // A port that is taken, and by nobody who listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = connect(listener.local_addr().unwrap());
    let gone = taken.local_addr().unwrap();
    let (mut relay, addr) = part(&["relay", &gone.to_string(), "1"]);
    for _ in 0..3 {
        let mut stream = connect(addr);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
    assert!(relay.0.try_wait().unwrap().is_none(), "the relay has ended");
}

/// A gateway that passes bytes on, and lets `change` at those of the server.
fn gateway(server: SocketAddr, change: fn(&mut [u8], usize)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let back = TcpStream::connect(server).unwrap();
            // Answers that come in two pieces would wait for each other.
            client.set_nodelay(true).unwrap();
            let (from, to) = (client.try_clone().unwrap(), back.try_clone().unwrap());
            std::thread::spawn(move || pass(from, to, |_, _| {}));
            std::thread::spawn(move || pass(back, client, change));
        }
    });
    addr
}

fn pass(mut from: TcpStream, mut to: TcpStream, change: impl Fn(&mut [u8], usize)) {
    let mut room = [0; 4096];
    for turn in 0.. {
        match from.read(&mut room) {
            Ok(n @ 1..) => {
                change(&mut room[..n], turn);
                if to.write_all(&room[..n]).is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

const OWN_GATEWAY: &str = "[[scenarios]]\nname = \"own\"\nconnections = 2\nrows = [\"direct\"]\n";

#[test]
fn a_gateway_of_somebody_else_is_a_row() {
    let (_stub, server) = stub();
    let addr = gateway(server, |_, _| {});
    let scratch = scratch();
    let (target, server) = (format!("mine=http://{addr}/mcp"), server.to_string());
    let output = run(
        scratch.path(),
        OWN_GATEWAY,
        &["--seconds", "0.3", "--target", &target, "--stub", &server],
    );
    assert!(output.status.success(), "{}", said(&output));
    let figures = figures(scratch.path());
    let rows = figures["scenarios"][0]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["row"].as_str().unwrap()).collect();
    assert_eq!(names, ["direct", "mine"]);
    for row in rows {
        assert!(row["load"]["requests"].as_u64().unwrap() > 0, "{row}");
        // Whose port it is was found out.
        assert!(row["load"]["cpu_us_per_request"]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
}

/// One digit of one answer in fifty is another one.
#[test]
fn a_wrong_answer_is_not_taken_for_a_right_one() {
    let (_stub, server) = stub();
    let addr = gateway(server, |bytes, turn| {
        if turn % 50 == 49 {
            let at = bytes.len() - 6;
            bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
        }
    });
    let scratch = scratch();
    let (target, server) = (format!("liar=http://{addr}/mcp"), server.to_string());
    let output = run(
        scratch.path(),
        OWN_GATEWAY,
        &["--seconds", "0.3", "--target", &target, "--stub", &server],
    );
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("another result"), "{text}");
}

/// The text that scenarios ask for with `text = "json"` is JSON once it is read, and each byte counts.
#[test]
fn a_text_of_json_is_that_and_is_checked() {
    let (_stub, server) = stub();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"tag":"100000000000001","size":4096,"json":1}}}"#;
    let mut stream = connect(server);
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let message = loop {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..read]);
        let Some(head) = memchr::memmem::find(&bytes, b"\r\n\r\n") else { continue };
        if let Ok(message) = serde_json::from_slice::<Value>(&bytes[head + 4..]) {
            break message;
        }
    };
    let text = message["result"]["content"][0]["text"].as_str().unwrap();
    let records: Vec<&str> = text[15..].split(",\n").collect();
    assert!(records.len() > 40, "{text}");
    for record in &records[..records.len() - 1] {
        let record: Value = serde_json::from_str(record.trim()).unwrap();
        assert_eq!(record["mode"], "rw");
    }

    let addr = gateway(server, |bytes, turn| {
        // An answer comes in two pieces, a long one first.
        if turn % 50 == 48 && bytes.len() > 2000 {
            let at = bytes.len() - 1000;
            bytes[at] = if bytes[at] == b'r' { b's' } else { b'r' };
        }
    });
    let scratch = scratch();
    let (target, server) = (format!("liar=http://{addr}/mcp"), server.to_string());
    let scenario = format!("{OWN_GATEWAY}calls = [{{ result_bytes = 4096, text = \"json\" }}]\n");
    let output = run(
        scratch.path(),
        &scenario,
        &["--seconds", "0.3", "--target", &target, "--stub", &server],
    );
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("another result"), "{text}");
}

#[test]
fn a_soak_finds_restarts_excused_and_nothing_else() {
    let scratch = scratch();
    let args = ["--soak", "8s", "--restart-every", "2s", "--rate", "100"];
    let output = run(scratch.path(), "[[scenarios]]\nname = \"none\"\n", &args);
    let figures = figures(scratch.path());
    let soak = &figures["soak"];
    assert_eq!(soak["unexplained"], 0, "{}", said(&output));
    assert!(soak["requests"].as_u64().unwrap() > 100, "{soak}");
    assert!(!soak["restarts"].as_array().unwrap().is_empty(), "{soak}");
    assert!(soak["memory"].as_array().unwrap().len() > 3, "{soak}");
    let page = std::fs::read_to_string(scratch.path().join("out.html")).unwrap();
    assert!(page.contains("Resident memory"));
}
