//! Bounds: idle connections are cheap, bodies over the limit are refused before they are read,
//! large results stream while others are served.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::client::{ACCEPT, Client, JSON, call_params, message};
use crate::support::http::Conn;
use crate::support::process::{
    HttpStub, Journal, Proxy, Setup, resident, scratch, stdio_backend, stub_path,
};
use crate::support::wait_for;

/// A process of its own that holds connections: this one may not open so many files.
struct Holder {
    child: std::process::Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Holder {
    fn start(proxy: &Proxy, count: usize) -> Holder {
        let script = r#"ulimit -n "$(ulimit -Hn)"; exec "$@""#;
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", stub_path(), "--hold", &proxy.addr.to_string()])
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let mut holder = Holder { child, stdout };
        assert_eq!(holder.line(), format!("held {count}"));
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    /// Lets go of all; how many had stayed open.
    fn finish(mut self) -> usize {
        drop(self.child.stdin.take());
        let line = self.line();
        self.child.wait().expect("wait");
        line.strip_prefix("open ").and_then(|count| count.parse().ok()).expect("open")
    }
}

#[test]
fn five_thousand_idle_connections_cost_at_most_4_kib_each() {
    let hard = Command::new("sh").args(["-c", "ulimit -Hn"]).output().expect("sh").stdout;
    let hard = String::from_utf8_lossy(&hard).trim().parse::<usize>().unwrap_or(usize::MAX);
    let count = match hard.saturating_mul(8) / 10 {
        room if room >= 5_300 => 5_000,
        room => {
            eprintln!("only {hard} open files are allowed: fewer connections");
            room.saturating_sub(300)
        }
    };
    let proxy = Setup {
        backends: stdio_backend("s", &[]),
        open_files: Some("$(ulimit -Hn)"),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["s__echo"]);
    // What the first connections cost once is not the cost of each.
    assert_eq!(Holder::start(&proxy, 200).finish(), 200);
    assert_eq!(client.call("s__echo", r#"{"payload":"x"}"#).said(), "x");
    let before = resident(proxy.pid());
    let holder = Holder::start(&proxy, count);
    // What served a request gives its buffers back when it has been idle for a while.
    let mut each = usize::MAX;
    for _ in 0..100 {
        each = resident(proxy.pid()).saturating_sub(before) / count;
        if each <= 4 * 1024 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(client.call("s__echo", r#"{"payload":"x"}"#).said(), "x");
    assert_eq!(holder.finish(), count, "the proxy closed some");
    eprintln!("{each} bytes for each of {count} idle connections");
    assert!(each <= 4 * 1024, "{each} bytes for each of {count} idle connections");
    assert_eq!(client.call("s__echo", r#"{"payload":"x"}"#).said(), "x");
}

#[test]
fn more_connections_than_there_are_files_for_are_turned_away_and_then_served_again() {
    let proxy =
        Setup { backends: stdio_backend("s", &[]), open_files: Some("128"), ..Setup::default() }
            .start();
    let mut client = proxy.client_seeing(&["s__echo"]);
    for _ in 0..3 {
        let mut crowd: Vec<Conn> = (0..300).map(|_| Conn::open(proxy.addr)).collect();
        // Whoever is in is served, whatever goes on at the door.
        for n in 0..20 {
            let told = client.call("s__echo", &format!(r#"{{"payload":"{n}"}}"#));
            assert_eq!(told.said(), n.to_string());
        }
        let mut turned_away = 0;
        for conn in &mut crowd {
            let _ = conn.try_send(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n");
            // Without a file for it, a connection can only be closed.
            match conn.try_head() {
                Some(head) if head.status == 503 => {
                    assert!(head.field("retry-after").is_some());
                    turned_away += 1;
                }
                Some(head) => {
                    assert_eq!(head.status, 404);
                    conn.body();
                }
                None => turned_away += 1,
            }
        }
        assert!(turned_away > 150, "{turned_away} of 300 turned away, with 128 files");
        drop(crowd);
        // They go as they came: then who was in is there alone, but for who asks.
        wait_for("room for new clients", || {
            let mut conn = Conn::try_open(proxy.addr)?;
            conn.try_send(b"GET /admin/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
            (conn.try_head()?.status == 200).then_some(())?;
            let page = String::from_utf8(conn.body()).ok()?;
            let connections =
                page.lines().find_map(|line| line.strip_prefix("mcp_proxy_connections "));
            (connections?.parse::<f64>().ok()? <= 2.0).then_some(())
        });
    }
    assert_eq!(proxy.client().call("s__echo", r#"{"payload":"x"}"#).said(), "x");
}

/// A connection with a call at a backend over HTTP takes two files: with all of them gone, new clients
/// hung in the backlog without an answer.
#[test]
fn without_files_new_clients_are_answered_or_closed_and_calls_go_on() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let stub = HttpStub::start("h", &["--journal", journal.path()]);
    let proxy =
        Setup { backends: stub.backend("h"), open_files: Some("128"), ..Setup::default() }.start();
    let mut client = proxy.client_seeing(&["h__sleep"]);
    let mut crowd = Vec::new();
    for n in 0..200 {
        let mut conn = Conn::open(proxy.addr);
        let body =
            message(&n.to_string(), "tools/call", &call_params("h__sleep", r#"{"ms":5000}"#));
        let lines = format!("{}{ACCEPT}{JSON}Content-Length: {}", client.lines(), body.len());
        let sent = conn.try_send(format!("POST /mcp HTTP/1.1\r\n{lines}\r\n\r\n{body}").as_bytes());
        crowd.extend(sent.ok().map(|()| conn));
    }
    journal.wait_count("call sleep", 20);
    for _ in 0..20 {
        let mut conn = Conn::open(proxy.addr);
        let _ = conn.try_send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        // A wait for an answer panics in the end.
        if let Some(head) = conn.try_head() {
            assert!([200, 503].contains(&head.status), "{head:?}");
        }
    }
    // Whether or not somebody still waits for them, the calls end.
    drop(crowd);
    wait_for("room for a new client", || {
        let mut conn = Conn::try_open(proxy.addr)?;
        conn.try_send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        (conn.try_head()?.status == 200).then_some(())
    });
    // Who was in stays in.
    assert_eq!(client.call_until_well("h__echo", r#"{"payload":"x"}"#).said(), "x");
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let proxy = Proxy::start(&[stdio_backend("s", &[])]);
    let client = proxy.client_seeing(&["s__echo"]);
    let head = format!("POST /mcp HTTP/1.1\r\n{}{ACCEPT}{JSON}", client.lines());
    for more in ["", "Expect: 100-continue\r\n"] {
        for length in ["4194305", "9000000000000000000"] {
            let mut conn = Conn::open(proxy.addr);
            // Not one byte of the body is sent.
            conn.send(format!("{head}{more}Content-Length: {length}\r\n\r\n").as_bytes());
            let answer = conn.answer();
            assert_eq!(answer.status, 413, "{more} {length}");
            assert!(conn.ends(), "the connection of an unread body is of no more use");
        }
    }
    // Chunked, nobody knows before; but no more than the limit is taken.
    let mut conn = Conn::open(proxy.addr);
    conn.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes());
    let chunk = [b"10000\r\n", &b" ".repeat(0x10000)[..], b"\r\n"].concat();
    let mut sent = 0;
    while sent < 64 && conn.try_send(&chunk).is_ok() {
        sent += 1;
    }
    if sent == 64 {
        // Exactly the limit, and one more.
        let _ = conn.try_send(&chunk);
    }
    // The answer may be lost to a reset when bytes were still under way; it is never a 200.
    if let Some(head) = conn.try_head() {
        assert_eq!(head.status, 413);
    }
}

#[test]
fn bodies_up_to_the_limit_arrive_whole() {
    let stub = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[stdio_backend("s", &[]), stub.backend("h")]);
    let mut client = proxy.client_seeing(&["s__echo", "h__echo"]);
    for backend in ["s", "h"] {
        let envelope = message("5", "tools/call", &call_params(&format!("{backend}__echo"), "{}"));
        for size in [100_000, 1_000_000, 4 * 1024 * 1024] {
            // Distinct everywhere, so that a lost or doubled piece shows.
            let mut payload = String::with_capacity(size);
            let room = size - envelope.len() - r#""payload":"""#.len();
            for n in 0.. {
                let piece = format!("{n:08} ");
                if payload.len() + piece.len() > room {
                    break;
                }
                payload += &piece;
            }
            payload += &"x".repeat(room - payload.len());
            let arguments = format!(r#"{{"payload":"{payload}"}}"#);
            let body =
                message("5", "tools/call", &call_params(&format!("{backend}__echo"), &arguments));
            assert_eq!(body.len(), size);
            let told = client.post(&body);
            assert!(told.said() == payload, "{backend} {size}");
        }
    }
    // The same in chunks of odd sizes.
    let body = message(
        "6",
        "tools/call",
        &call_params("h__echo", &format!(r#"{{"payload":"{}"}}"#, "y".repeat(200_000))),
    );
    let mut request = format!(
        "POST /mcp HTTP/1.1\r\n{}{ACCEPT}{JSON}Transfer-Encoding: chunked\r\n\r\n",
        client.lines()
    )
    .into_bytes();
    for piece in body.as_bytes().chunks(7_777) {
        write!(request, "{:X};ext=\"v\"\r\n", piece.len()).unwrap();
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
    client.conn.send(&request);
    assert_eq!(client.told().said().len(), 200_000);
}

#[test]
fn others_of_the_same_worker_are_served_while_15_mib_stream_through() {
    let stub = HttpStub::start("h", &[]);
    let proxy = Setup {
        backends: stdio_backend("s", &[]) + &stub.backend("h"),
        workers: Some(1),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["s__echo", "h__echo"]);
    for chunked in [false, true] {
        let done = Arc::new(AtomicBool::new(false));
        let (mut reader, seen) = (proxy.client(), done.clone());
        // 150 pieces with a pause after each: it lasts for seconds.
        let arguments = format!(r#"{{"bytes":15728640,"pieces":150,"ms":20,"chunked":{chunked}}}"#);
        let streaming = std::thread::spawn(move || {
            let told = reader.call("h__slow_body", &arguments);
            seen.store(true, Ordering::Relaxed);
            told.said().len()
        });
        let mut served = 0;
        while !done.load(Ordering::Relaxed) {
            for backend in ["s", "h"] {
                let told = client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#);
                assert_eq!(told.said(), "x");
            }
            served += 1;
        }
        assert_eq!(streaming.join().expect("the reader"), 15 << 20);
        assert!(served >= 10, "only {served} calls beside the stream");
    }
}

#[test]
fn memory_stays_bounded_while_slow_readers_take_15_mib_each() {
    const READERS: usize = 16;
    let stub = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[stub.backend("h")]);
    let mut client = proxy.client_seeing(&["h__echo"]);
    let arguments = r#"{"bytes":15728640}"#;
    assert_eq!(client.call("h__big", arguments).said().len(), 15 << 20);
    let before = resident(proxy.pid());
    let mut readers: Vec<Client> = (0..READERS).map(|_| proxy.client()).collect();
    for (n, reader) in readers.iter_mut().enumerate() {
        let chunked = format!(r#"{{"bytes":15728640,"chunked":{}}}"#, n % 2 == 0);
        reader.send(&message("1", "tools/call", &call_params("h__big", &chunked)));
    }
    let heads: Vec<_> = readers.iter_mut().map(|reader| reader.conn.head()).collect();
    assert!(heads.iter().all(|head| head.status == 200));
    // All of them are under way and nobody reads: whatever will be held is held soon.
    let mut most = 0;
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        most = most.max(resident(proxy.pid()).saturating_sub(before));
        assert_eq!(client.call("h__echo", r#"{"payload":"x"}"#).said(), "x");
    }
    eprintln!("{} KiB held for {READERS} readers of 15 MiB", most / 1024);
    assert!(most < READERS << 20, "{most} bytes held for {READERS} readers of 15 MiB");
    for reader in &mut readers {
        assert!(reader.conn.body().len() > 15 << 20);
    }
}

#[test]
fn connections_and_sessions_that_come_and_go_leave_nothing_behind() {
    let stub = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[stdio_backend("s", &[]), stub.backend("h")]);
    proxy.client_seeing(&["s__echo", "h__echo"]);
    let files = || std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().count();
    let round = |count: usize| {
        for n in 0..count {
            let mut client = proxy.client();
            let listening = (n % 4 == 0).then(|| client.listen());
            for backend in ["s", "h"] {
                let told = client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#);
                assert_eq!(told.said(), "x");
            }
            drop(listening);
            if n % 8 != 7 {
                assert!(client.delete().status < 300);
            }
        }
    };
    round(100);
    let settled = |what: &str| {
        // Closing is under way for a moment: the least of some looks.
        let mut least = usize::MAX;
        for _ in 0..20 {
            least = least.min(files());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        eprintln!("{least} files {what}");
        least
    };
    let before = settled("before");
    let memory = resident(proxy.pid());
    round(400);
    let after = settled("after");
    assert!(after <= before + 20, "{before} open files became {after}");
    let grown = resident(proxy.pid()).saturating_sub(memory);
    // 50 sessions were not deleted: 8 KiB each, and room for the allocator's rounding.
    assert!(grown < 8 << 20, "{grown} bytes more after 400 sessions");
    wait_for("the sessions at the backend to end", || {
        let stats = crate::support::http::once(stub.addr, "GET", "/control/stats", "").json();
        // Those that were not deleted stay, 13 and 50, beside the proxy's own.
        (stats["sessions"].as_u64()? < 75).then_some(())
    });
}
