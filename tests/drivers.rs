//! The essentials on the epoll driver, and what the log says of the driver that runs.

use crate::support::client::{call_params, message};
use crate::support::process::{HttpStub, Journal, Setup, scratch, stdio_backend};
use crate::support::{texts, wait_until};

#[test]
fn the_essentials_on_epoll() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let quick = "restart = { initial_ms = 100, max_ms = 1000 }\n";
    let mut stub = HttpStub::start("h", &["--sse"]);
    let mut proxy = Setup {
        backends: stdio_backend("s", &["--page", "5", "--journal", journal.path()])
            + quick
            + &stub.backend("h")
            + quick,
        args: vec!["--driver".into(), "epoll".into()],
        ..Setup::default()
    }
    .start();
    wait_until("the driver in the log", || proxy.stderr().contains("epoll"));
    let mut clients: Vec<_> = (0..8).map(|_| proxy.client_seeing(&["s__add", "h__add"])).collect();
    let streams: Vec<_> = clients.iter().map(|client| client.listen()).collect();
    for client in &mut clients {
        for backend in ["s", "h"] {
            let told = client.call(&format!("{backend}__rich"), "{}");
            assert!(told.text.contains(texts::RICH_RESULT), "{}", told.text);
            let params = format!(
                r#"{{"name":"{backend}__progress","arguments":{{"steps":3,"note":"n"}},"_meta":{{"progressToken":"t"}}}}"#
            );
            let told = client.ask("tools/call", &params);
            assert_eq!((told.before.len(), told.said().as_str()), (3, "n"), "{told:?}");
            let bytes = client.call(&format!("{backend}__big"), r#"{"bytes":3000000}"#);
            assert_eq!(bytes.said().len(), 3_000_000);
        }
    }
    clients[0].call("s__add", r#"{"kind":"tool","name":"fresh"}"#).result();
    for stream in &streams {
        stream.wait_for("notifications/tools/list_changed");
    }
    clients[7].wait_for_tools(&["s__fresh"]);

    clients[1].send(&message("9", "tools/call", &call_params("s__hang", "{}")));
    journal.wait_count("call hang", 1);
    clients[1].again().notify("notifications/cancelled", r#"{"requestId":9}"#);
    journal.wait_count("cancelled", 1);

    clients[2].send(&message("9", "tools/call", &call_params("s__hang", "{}")));
    journal.wait_count("call hang", 2);
    assert!(journal.signal("KILL"));
    assert_eq!(clients[2].told().error().0, -32010);
    assert_eq!(clients[2].call_until_well("s__echo", r#"{"payload":"x"}"#).said(), "x");
    stub = stub.restart("h", &["--sse"]);
    assert_eq!(clients[2].call_until_well("h__echo", r#"{"payload":"x"}"#).said(), "x");
    stub.forget();
    assert_eq!(clients[2].call("h__echo", r#"{"payload":"x"}"#).said(), "x");

    let child = journal.life();
    proxy.signal("TERM");
    for stream in &streams {
        stream.until_end();
    }
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    assert!(!child.goes_on());
}

#[test]
fn the_log_says_which_driver_runs() {
    let proxy = Setup { backends: stdio_backend("s", &[]), ..Setup::default() }.start();
    proxy.client_seeing(&["s__echo"]);
    wait_until("the driver in the log", || {
        let log = proxy.stderr();
        log.contains("io_uring") || log.contains("epoll")
    });
}
