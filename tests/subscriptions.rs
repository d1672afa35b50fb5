//! `resources/subscribe`: who hears of an update, and what the backend is asked
//! (MCP 2025-11-25, Resources, Subscriptions).

use std::time::Duration;

use serde_json::{Value, json};

use crate::modern::Caller;
use crate::reload::reload;
use crate::support::client::{Client, Listening};
use crate::support::process::{HttpStub, Journal, Pair, Proxy, scratch, stdio_backend};
use crate::support::wait_until;

fn world(pipe_keys: &str, web_keys: &str) -> Pair {
    Pair::start(pipe_keys, web_keys, "touch")
}

fn ask(client: &mut Client, what: &str, uri: &str) -> Value {
    client.ask(&format!("resources/{what}"), &json!({ "uri": uri }).to_string()).result()
}

/// Waits for updates of `marker`; those of other resources that came before it.
fn until(listening: &Listening, marker: &str) -> Vec<String> {
    let mut before = Vec::new();
    loop {
        let update = listening.wait_for("notifications/resources/updated");
        let uri = update["params"]["uri"].as_str().expect("uri").to_owned();
        if uri == marker {
            return before;
        }
        before.push(uri);
    }
}

fn touch(client: &mut Client, backend: &str, uri: &str) {
    client.call_until_well(&format!("{backend}__touch"), &json!({ "uri": uri }).to_string());
}

#[test]
fn on_a_shared_channel_each_hears_what_it_wants_and_the_backend_is_asked_once() {
    let world = world("", "isolation = \"shared\"\n");
    for (backend, journal) in world.journals() {
        let uri = |path: &str| format!("stub://{backend}/{path}");
        let (fixed, item, end) = (uri("fixed"), uri("item/1"), uri("item/end"));
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        assert_eq!(clients[0].hello["capabilities"]["resources"]["subscribe"], true);
        journal.wait_count("initialized", 1);
        let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
        // The fourth wants to hear only of the end.
        for client in &mut clients {
            ask(client, "subscribe", &end);
        }
        for client in &mut clients[..3] {
            for _ in 0..2 {
                ask(&mut client.again(), "subscribe", &fixed);
            }
        }
        ask(&mut clients[0], "subscribe", &item);
        assert_eq!(journal.count(&format!("subscribe {fixed}")), 1);
        let mut other = world.proxy.client();
        for touched in [&fixed, &item, &format!("{item}/part"), &end] {
            touch(&mut other, backend, touched);
        }
        let part = format!("{item}/part");
        assert_eq!(until(&heard[0], &end), [fixed.clone(), item.clone(), part]);
        assert_eq!(until(&heard[1], &end), std::slice::from_ref(&fixed));
        assert_eq!(until(&heard[2], &end), std::slice::from_ref(&fixed));
        assert_eq!(until(&heard[3], &end), [""; 0]);
        // Who takes its word back hears no more; the backend is told by the last.
        ask(&mut clients[0], "unsubscribe", &fixed);
        ask(&mut clients[0], "unsubscribe", &item);
        assert_eq!(journal.count(&format!("unsubscribe {item}")), 1);
        for touched in [&fixed, &item, &end] {
            touch(&mut other, backend, touched);
        }
        assert_eq!(until(&heard[0], &end), [""; 0]);
        assert_eq!(until(&heard[1], &end), std::slice::from_ref(&fixed));
        ask(&mut clients[1], "unsubscribe", &fixed);
        assert_eq!(journal.count(&format!("unsubscribe {fixed}")), 0);
        // The end of a session is the end of what it wants.
        clients[2].delete();
        journal.wait_count(&format!("unsubscribe {fixed}"), 1);
        // Once more from the start.
        ask(&mut clients[3], "subscribe", &fixed);
        assert_eq!(journal.count(&format!("subscribe {fixed}")), 2);
        touch(&mut other, backend, &fixed);
        touch(&mut other, backend, &end);
        assert_eq!(until(&heard[3], &end), [""; 0], "the second round");
        assert_eq!(until(&heard[3], &end), std::slice::from_ref(&fixed));
    }
}

#[test]
fn a_child_that_was_started_anew_is_asked_again() {
    let world = world("", "isolation = \"shared\"\n");
    let mut client = world.proxy.client();
    let heard = client.listen();
    let (pipe, web) = ("stub://pipe/fixed", "stub://web/fixed");
    ask(&mut client, "subscribe", pipe);
    ask(&mut client, "subscribe", web);
    client.call("pipe__crash", "{}").error();
    world.pipe.wait_count(&format!("subscribe {pipe}"), 2);
    touch(&mut client, "pipe", pipe);
    until(&heard, pipe);
    world.stub.forget();
    client.call_until_well("web__echo", r#"{"payload":"x"}"#);
    world.web.wait_count(&format!("subscribe {web}"), 2);
    wait_until("an update", || {
        touch(&mut client, "web", web);
        std::thread::sleep(Duration::from_millis(50));
        heard.so_far().iter().any(|event| event.data.contains(web))
    });
}

/// Another server under the same name, by a reload: sessions of both workers, both kinds of channels,
/// and a server of the request era.
#[test]
fn what_takes_a_servers_place_is_asked_for_what_was_subscribed_to() {
    for (keys, args) in [
        ("isolation = \"shared\"\n", &[][..]),
        ("isolation = \"session\"\n", &[]),
        ("", &["--modern"]),
    ] {
        let world = world(keys, keys);
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
        for client in &mut clients {
            for (backend, _) in world.journals() {
                ask(client, "subscribe", &format!("stub://{backend}/fixed"));
                ask(client, "subscribe", &format!("stub://{backend}/item/1"));
                ask(client, "unsubscribe", &format!("stub://{backend}/item/1"));
            }
        }
        let scratch = scratch();
        let heirs = ["pipe", "web"].map(|name| Journal::new(&scratch, name));
        let [pipe, web] = &heirs;
        let with = |path| [&["--utilities", "--journal", path], args].concat();
        let stub = HttpStub::start("web", &with(web.path()));
        let backends = [stdio_backend("pipe", &with(pipe.path())), stub.backend("web")];
        reload(&world.proxy, "", &backends.map(|backend| backend + keys));
        for (backend, journal) in ["pipe", "web"].iter().zip(&heirs) {
            let (fixed, item) =
                (format!("stub://{backend}/fixed"), format!("stub://{backend}/item/1"));
            for (client, heard) in clients.iter_mut().zip(&heard) {
                let mut told = Vec::new();
                wait_until("an update by the new server", || {
                    touch(client, backend, &item);
                    touch(client, backend, &fixed);
                    std::thread::sleep(Duration::from_millis(50));
                    told.extend(heard.so_far());
                    told.iter().any(|event| event.data.contains(&fixed))
                });
                assert!(!told.iter().any(|event| event.data.contains(&item)), "{told:?}");
            }
            if args.is_empty() {
                let asked = if keys.contains("shared") { 1 } else { clients.len() };
                journal.wait_count(&format!("subscribe {fixed}"), asked);
            }
        }
    }
}

/// Another server under the same name, which goes down when it is asked the first time.
#[test]
fn what_takes_a_servers_place_and_goes_down_is_asked_again() {
    for keys in ["isolation = \"shared\"\n", "isolation = \"session\"\n"] {
        let world = world(keys, "");
        let uris = ["stub://pipe/fixed", "stub://pipe/item/1"];
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
        for client in &mut clients {
            for uri in uris {
                ask(client, "subscribe", uri);
            }
        }
        let scratch = scratch();
        let journal = Journal::new(&scratch, "heir");
        let trap = scratch.path().join("trap");
        std::fs::write(&trap, "").expect("trap");
        let args = [
            "--utilities",
            "--journal",
            journal.path(),
            "--die-subscribing",
            trap.to_str().unwrap(),
        ];
        reload(&world.proxy, "", &[stdio_backend("pipe", &args) + keys, world.stub.backend("web")]);
        journal.wait_count("die ", 1);
        for (client, heard) in clients.iter_mut().zip(&heard) {
            for uri in uris {
                wait_until("an update by the server that came back", || {
                    touch(client, "pipe", uri);
                    std::thread::sleep(Duration::from_millis(50));
                    heard.so_far().iter().any(|event| event.data.contains(uri))
                });
            }
        }
    }
}

/// The same server, of the other era from now on, and back.
#[test]
fn a_server_that_changes_its_era_is_asked_for_what_was_subscribed_to() {
    for keys in ["isolation = \"shared\"\n", "isolation = \"session\"\n"] {
        let mut world = world("", keys);
        let fixed = "stub://web/fixed";
        let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
        let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
        for client in &mut clients {
            ask(client, "subscribe", fixed);
        }
        for args in [&["--modern"][..], &["--utilities"], &["--modern"]] {
            world.stub = world.stub.restart("web", args);
            // As the stub tells it in that era.
            let mark = args == ["--modern"];
            for (client, heard) in clients.iter_mut().zip(&heard) {
                heard.so_far();
                wait_until("an update in the new era", || {
                    touch(client, "web", fixed);
                    std::thread::sleep(Duration::from_millis(50));
                    heard.so_far().iter().any(|event| {
                        event.data.contains(fixed) && event.data.contains("\"x\":1.0") == mark
                    })
                });
            }
        }
    }
}

#[test]
fn in_sessions_of_their_own_each_asks_for_itself() {
    let world = world("isolation = \"session\"\n", "");
    for (backend, journal) in world.journals() {
        let uri = format!("stub://{backend}/fixed");
        let mut clients: Vec<Client> = (0..2).map(|_| world.proxy.client()).collect();
        for client in &mut clients {
            let told = ask(client, "subscribe", &uri);
            assert_eq!(told, json!({ "x": 1.0 }), "the backend's own answer");
        }
        assert_eq!(journal.count(&format!("subscribe {uri}")), 2);
        ask(&mut clients[1], "unsubscribe", &uri);
        assert_eq!(journal.count(&format!("unsubscribe {uri}")), 1);
        if backend == "web" {
            // Both sessions are opened anew; one of them is subscribed.
            world.stub.forget();
            for client in &mut clients {
                client.call_until_well("web__echo", r#"{"payload":"x"}"#);
            }
            assert_eq!(journal.count(&format!("subscribe {uri}")), 3);
        }
    }
}

#[test]
fn a_child_of_ones_own_tells_nobody_else() {
    let world = world("isolation = \"session\"\nidle_stop_seconds = 1\n", "");
    let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
    let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
    let uri = |n: usize| format!("stub://pipe/item/{n}");
    for (n, client) in clients.iter_mut().enumerate() {
        ask(client, "subscribe", &uri(n));
        ask(client, "subscribe", "stub://pipe/fixed");
    }
    // One that is subscribed to is not idle.
    std::thread::sleep(Duration::from_secs(3));
    let starts = world.pipe.count("start ");
    for (n, client) in clients.iter_mut().enumerate() {
        for other in 0..4 {
            touch(client, "pipe", &uri(other));
        }
        touch(client, "pipe", "stub://pipe/fixed");
        assert_eq!(until(&heard[n], "stub://pipe/fixed"), [uri(n)]);
    }
    assert_eq!(world.pipe.count("start "), starts);
}

#[test]
fn what_cannot_be_subscribed_to() {
    let hide = "hide_resources = [\"*item*\"]\n";
    let world = world(hide, hide);
    let mut client = world.proxy.client();
    for (backend, journal) in world.journals() {
        for uri in [format!("stub://{backend}/item/1"), "nobody://x".to_owned()] {
            for what in ["subscribe", "unsubscribe"] {
                let told =
                    client.ask(&format!("resources/{what}"), &json!({ "uri": uri }).to_string());
                assert_eq!(told.error().0, -32002, "{uri}: {told:?}");
            }
        }
        assert_eq!(journal.count("subscribe "), 0);
    }
    let told = client.ask("resources/subscribe", "{}");
    assert_eq!(told.error().0, -32602);

    // What the backend refuses is refused, and may be asked for again.
    let only = Proxy::start(&[stdio_backend("pipe", &["--utilities"])]);
    let mut client = only.client_seeing(&["pipe__echo"]);
    for _ in 0..2 {
        let told = client.ask("resources/subscribe", r#"{"uri":"stub://pipe/nothing"}"#);
        assert_eq!(told.error(), (-32002, "stub has it not".into()));
    }
}

#[test]
fn over_http_updates_come_on_the_streams_of_ones_own_session() {
    let world = world("", "");
    let journal = &world.web;
    let mut clients: Vec<Client> = (0..4).map(|_| world.proxy.client()).collect();
    let before = journal.count("listener");
    let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
    let uri = |n: usize| format!("stub://web/item/{n}");
    for (n, client) in clients.iter_mut().enumerate() {
        ask(client, "subscribe", &uri(n));
        ask(client, "subscribe", "stub://web/fixed");
    }
    journal.wait_count("listener", before + 4);
    let mut other = world.proxy.client();
    for touched in [uri(0), uri(1), uri(2), uri(3), "stub://web/fixed".to_owned()] {
        touch(&mut other, "web", &touched);
    }
    for (n, heard) in heard.iter().enumerate() {
        assert_eq!(until(heard, "stub://web/fixed"), [uri(n)]);
    }
    // Who ended it hears no more.
    ask(&mut clients[0], "unsubscribe", &uri(0));
    for touched in [&uri(0), "stub://web/fixed"] {
        touch(&mut other, "web", touched);
    }
    assert!(until(&heard[0], "stub://web/fixed").is_empty());
    // A session that is opened anew at the server gets its stream and its subscriptions again.
    let before = journal.count("listener");
    world.stub.forget();
    clients[1].call_until_well("web__echo", r#"{"payload":"x"}"#);
    journal.wait_count("listener", before + 1);
    wait_until("an update", || {
        touch(&mut other, "web", &uri(1));
        heard[1].so_far().iter().any(|event| event.data.contains(&uri(1)))
    });
}

/// Callers without sessions before servers with sessions, each in its own way of the two.
#[test]
fn callers_without_sessions_hear_of_backends_that_have_them() {
    let mut world = world("", "");
    for (backend, journal) in world.journals() {
        let uri = |path: &str| format!("stub://{backend}/{path}");
        let (fixed, item, nothing) = (uri("fixed"), uri("item/1"), uri("nothing"));
        let filter = |uris: &[&String]| json!({ "resourceSubscriptions": uris }).to_string();
        // So many that each worker has some.
        let mut listeners = Vec::new();
        for _ in 0..4 {
            let caller = Caller::new(&world.proxy);
            let (agreed, first) = caller.listen(&filter(&[&fixed, &nothing]));
            assert_eq!(agreed, json!({ "resourceSubscriptions": [fixed] }), "{backend}");
            let (agreed, second) = caller.listen(&filter(&[&item]));
            assert_eq!(agreed, json!({ "resourceSubscriptions": [item] }), "{backend}");
            listeners.push((first, second));
        }
        let mut other = Caller::new(&world.proxy);
        let mut touch = |uri: &str| {
            let arguments = json!({ "uri": uri }).to_string();
            other.call(&format!("{backend}__touch"), &arguments).result();
        };
        let next = |listening: &mut crate::modern::Listening| {
            let update = listening.wait_for("notifications/resources/updated");
            update["params"]["uri"].as_str().expect("uri").to_owned()
        };
        touch(&uri("elsewhere"));
        touch(&item);
        touch(&fixed);
        for (first, second) in &mut listeners {
            assert_eq!(next(first), fixed);
            assert_eq!(next(second), item);
        }
        // Who leaves takes nothing from others, and the last one takes it back.
        let last = listeners.pop().expect("a listener").0;
        drop(listeners);
        journal.wait_count(&format!("unsubscribe {item}"), 1);
        let mut last = last;
        touch(&item);
        touch(&fixed);
        assert_eq!(next(&mut last), fixed);
        // The channel is opened anew: what changed meanwhile is not known, and what comes is heard.
        let before = journal.count(&format!("subscribe {fixed}"));
        if backend == "web" {
            world.stub.forget();
        } else {
            world.proxy.client().call("pipe__crash", "{}").error();
        }
        journal.wait_count(&format!("subscribe {fixed}"), before + 1);
        assert_eq!(next(&mut last), fixed);
        wait_until("an update that was told now", || {
            let told = Caller::new(&world.proxy)
                .call(&format!("{backend}__touch"), &json!({ "uri": fixed }).to_string());
            told.json()["result"].is_object()
        });
        assert_eq!(next(&mut last), fixed);
        drop(last);
        journal.wait_count(&format!("unsubscribe {fixed}"), 1);
    }
    // A server that is of the other era now is listened to in that way.
    let caller = Caller::new(&world.proxy);
    let fixed = "stub://web/fixed";
    let (agreed, mut listening) =
        caller.listen(r#"{"resourceSubscriptions":["stub://web/fixed"]}"#);
    assert_eq!(agreed, json!({ "resourceSubscriptions": [fixed] }));
    world.stub = world.stub.restart("web", &["--modern"]);
    let update = listening.wait_for("notifications/resources/updated");
    assert_eq!(update["params"]["uri"], fixed);
    wait_until("an update in the request era", || {
        let told = Caller::new(&world.proxy).call("web__touch", r#"{"uri":"stub://web/fixed"}"#);
        told.json()["result"].is_object()
    });
    loop {
        let update = listening.wait_for("notifications/resources/updated");
        // As the stub tells it in that era.
        if update["params"]["x"] == 1.0 {
            break;
        }
    }
}

#[test]
fn sessions_hear_of_backends_without() {
    let scratch = scratch();
    let journals = ["web", "pipe"].map(|name| Journal::new(&scratch, name));
    let web = HttpStub::start("web", &["--modern", "--journal", journals[0].path()]);
    let pipe = stdio_backend("pipe", &["--modern", "--journal", journals[1].path()]);
    let proxy = Proxy::start(&[web.backend("web"), pipe]);
    proxy.client_seeing(&["web__touch", "pipe__touch"]);
    for (backend, journal) in ["web", "pipe"].iter().zip(&journals) {
        let uri = |path: &str| format!("stub://{backend}/{path}");
        let (fixed, item) = (uri("fixed"), uri("item/1"));
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
        assert_eq!(clients[0].hello["capabilities"]["resources"]["subscribe"], true);
        let heard: Vec<Listening> = clients.iter().map(Client::listen).collect();
        for client in &mut clients {
            ask(client, "subscribe", &item);
            ask(client, "subscribe", &fixed);
        }
        let mut other = proxy.client();
        touch(&mut other, backend, &uri("elsewhere"));
        touch(&mut other, backend, &item);
        touch(&mut other, backend, &fixed);
        for heard in &heard {
            // While one request takes the place of the other, both may tell.
            assert!(until(heard, &fixed).iter().all(|uri| *uri == item));
            assert!(!heard.so_far().iter().any(|event| event.data.contains("subscriptionId")));
        }
        for client in &mut clients {
            ask(client, "unsubscribe", &item);
        }
        touch(&mut other, backend, &item);
        touch(&mut other, backend, &fixed);
        for heard in &heard {
            assert_eq!(until(heard, &fixed), [""; 0]);
        }
        // With the session its listening ends.
        let open = |journal: &Journal| journal.count("listening") - journal.count("deaf");
        if *backend == "web" {
            let before = open(journal);
            clients[0].delete();
            wait_until("the end of its request", || open(journal) < before);
        }
    }
}
