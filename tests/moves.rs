//! Connections that go to the worker to which their calls go: their clients notice nothing.

use crate::support::client::{Client, call_params, message};
use crate::support::http::once;
use crate::support::process::{HttpStub, Proxy, Setup, stdio_backend};
use crate::support::wait_until;

/// Enough that both workers have some: the kernel spreads them.
const CLIENTS: usize = 16;
/// More than it takes.
const CALLS: usize = 40;

/// Children of one worker and of the other, and a server that belongs to neither.
fn world(stub: &HttpStub) -> Proxy {
    Setup {
        backends: stdio_backend("s", &[]) + &stdio_backend("t", &[]) + &stub.backend("h"),
        proxy: "[observability.metrics]\nenabled = true\n".into(),
        args: vec!["--log-level".into(), "debug".into()],
        ..Setup::default()
    }
    .start()
}

fn moves(proxy: &Proxy) -> usize {
    proxy.stderr().matches("a connection goes where its calls go").count()
}

/// Those that are open, the one that asks included.
fn connections(proxy: &Proxy) -> usize {
    let page = once(proxy.addr, "GET", "/admin/metrics", "");
    let line = page.text().lines().find_map(|line| line.strip_prefix("mcp_proxy_connections "));
    line.expect("a count").parse().expect("a number")
}

fn payload(backend: &str, client: usize, call: usize) -> String {
    format!("{backend} {client} {call}")
}

/// Calls one backend again and again, now one call at a time and now several ahead.
fn call(clients: &mut [Client], backend: &str) {
    for (me, client) in clients.iter_mut().enumerate() {
        let echo = |n| {
            let arguments = format!(r#"{{"payload":"{}"}}"#, payload(backend, me, n));
            message("7", "tools/call", &call_params(&format!("{backend}__echo"), &arguments))
        };
        let ahead = [1, 8][me % 2];
        for n in (0..CALLS).step_by(ahead) {
            (n..n + ahead).for_each(|n| client.send(&echo(n)));
            for n in n..n + ahead {
                assert_eq!(client.told().said(), payload(backend, me, n));
            }
        }
    }
}

#[test]
fn a_connection_goes_where_its_calls_go() {
    let stub = HttpStub::start("h", &[]);
    let mut proxy = world(&stub);
    let connect = |_| proxy.client_seeing(&["s__echo", "t__echo", "h__echo"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    call(&mut clients, "h");
    assert_eq!(moves(&proxy), 0, "a server over HTTP is called from every worker");
    // There and back again; a worker that has much to do takes nobody for a while.
    for backend in ["s", "t", "s", "t"] {
        let before = moves(&proxy);
        wait_until("connections that go to the worker of their calls", || {
            call(&mut clients, backend);
            moves(&proxy) > before
        });
    }
    // What a session has said of itself, and what it hears, is not bound to a worker.
    let stream = clients[0].listen();
    clients[1].call("t__add", r#"{"kind":"tool","name":"fresh"}"#).result();
    stream.wait_for("notifications/tools/list_changed");
    let progress = r#"{"name":"t__progress","arguments":{"steps":3,"note":"n"},"_meta":{"progressToken":"p"}}"#;
    for client in &mut clients {
        for _ in 0..20 {
            let told = client.ask("tools/call", progress);
            assert_eq!((told.before.len(), told.said().as_str()), (3, "n"), "{told:?}");
        }
        assert_eq!(client.call("h__echo", r#"{"payload":"x"}"#).said(), "x");
        client.wait_for_tools(&["t__fresh"]);
    }
    // Whatever way they went, connections are counted once.
    drop(stream);
    wait_until("the count of connections", || connections(&proxy) == CLIENTS + 1);
    clients.truncate(1);
    wait_until("the count of connections", || connections(&proxy) == 1 + 1);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    assert!(!proxy.stderr().contains("connections are cut"), "{}", proxy.stderr());
}

#[test]
fn calls_here_and_there_keep_a_connection_where_it_is() {
    let stub = HttpStub::start("h", &[]);
    let proxy = world(&stub);
    let connect = |_| proxy.client_seeing(&["s__echo", "t__echo"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    for client in &mut clients {
        for n in 0..2 * CALLS {
            let backend = ["s", "t"][n % 2];
            assert_eq!(client.call(&format!("{backend}__echo"), r#"{"payload":"x"}"#).said(), "x");
        }
    }
    assert_eq!(moves(&proxy), 0);
}
