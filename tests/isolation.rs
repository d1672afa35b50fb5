//! `isolation`: who shares a backend session or a child with whom.

use std::collections::BTreeSet;

use crate::support::client::Client;
use crate::support::process::{HttpStub, Journal, Life, Proxy, scratch, stdio_backend};
use crate::support::wait_until;

fn pid(client: &mut Client) -> u32 {
    let stats: serde_json::Value =
        serde_json::from_str(&client.call_until_well("a__stats", "{}").said()).expect("stats");
    stats["pid"].as_u64().expect("pid") as u32
}

#[test]
fn clients_share_a_child_unless_each_session_is_to_have_its_own() {
    let proxy = Proxy::start(&[stdio_backend("a", &[])]);
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client_seeing(&["a__stats"])).collect();
    assert_eq!(clients.iter_mut().map(pid).collect::<BTreeSet<_>>().len(), 1);

    let proxy = Proxy::start(&[stdio_backend("a", &[]) + "isolation = \"session\"\n"]);
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client_seeing(&["a__stats"])).collect();
    let pids: Vec<u32> = clients.iter_mut().map(pid).collect();
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 6);
    // The same session has the same child on every connection, at whichever worker.
    for (client, pid_before) in clients.iter().zip(&pids) {
        for _ in 0..4 {
            assert_eq!(pid(&mut client.again()), *pid_before);
        }
    }
    // The end of the session is the end of its child, and of no other.
    let lives: Vec<Life> = pids.iter().map(|pid| Life::of(*pid)).collect();
    clients[0].delete();
    wait_until("the end of the child", || !lives[0].goes_on());
    assert!(lives[1..].iter().all(Life::goes_on));
    assert_eq!(pid(&mut clients[1]), pids[1]);
}

#[test]
fn a_child_of_a_session_is_stopped_when_idle_and_started_on_demand() {
    let a = stdio_backend("a", &[]) + "isolation = \"session\"\nidle_stop_seconds = 1\n";
    let proxy = Proxy::start(&[a]);
    let mut client = proxy.client_seeing(&["a__stats"]);
    let first = pid(&mut client);
    let life = Life::of(first);
    wait_until("the stop of the idle child", || !life.goes_on());
    assert_ne!(pid(&mut client), first);
}

#[test]
fn children_of_sessions_are_bounded() {
    let a = stdio_backend("a", &[]) + "isolation = \"session\"\nmax_children = 2\n";
    let proxy = Proxy::start(&[a]);
    proxy.client_seeing(&["a__stats"]);
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    let mut refused = 0;
    let mut pids = BTreeSet::new();
    for client in &mut clients {
        let told = client.call("a__stats", "{}");
        match told.json().get("error") {
            Some(error) => {
                assert_eq!(error["code"], -32012, "{told:?}");
                refused += 1;
            }
            None => {
                let stats: serde_json::Value = serde_json::from_str(&told.said()).unwrap();
                pids.insert(stats["pid"].as_u64());
            }
        }
    }
    assert!(refused > 0, "six children where two are allowed: {pids:?}");
    assert!(pids.len() <= 2, "{pids:?}");
    // Room comes back with the end of a session.
    for client in clients.iter_mut().take(5) {
        client.delete();
    }
    clients[5].call_until_well("a__stats", "{}");
}

#[test]
fn each_session_has_its_own_at_an_http_backend_and_ends_it() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "journal");
    let stub = HttpStub::start("a", &["--journal", journal.path()]);
    let proxy = Proxy::start(&[stub.backend("a")]);
    let mut clients: Vec<Client> = (0..5).map(|_| proxy.client_seeing(&["a__echo"])).collect();
    let opened = journal.count("initialize ");
    for client in &mut clients {
        for _ in 0..3 {
            assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
        }
        assert_eq!(client.again().call("a__echo", r#"{"payload":"y"}"#).said(), "y");
    }
    assert_eq!(journal.count("initialize ") - opened, 5, "one for each client session");
    for client in &mut clients {
        client.delete();
    }
    journal.wait_count("delete", 5);
    // What the client can do is what the backend is told.
    let hello = journal.lines().into_iter().rfind(|line| line.starts_with("initialize "));
    assert!(hello.unwrap().contains("\"clientInfo\""));

    let shared = Proxy::start(&[stub.backend("a") + "isolation = \"shared\"\n"]);
    let opened = journal.count("initialize ");
    let mut clients: Vec<Client> = (0..8).map(|_| shared.client_seeing(&["a__echo"])).collect();
    for client in &mut clients {
        assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    }
    // The proxy's own, which may be one a worker.
    assert!(journal.count("initialize ") - opened <= 2);
}
