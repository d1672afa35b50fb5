//! Backends that become others while clients of both eras listen: each is told, and what it lists then
//! is what is there.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::asks::ALL;
use crate::modern::{Caller, names};
use crate::support::client::{Client, Listening};
use crate::support::process::{HttpStub, Proxy, scratch, stdio_backend};

const CHANGED: &str = "notifications/tools/list_changed";

/// A server behind one URL, and one behind one command.
struct World {
    proxy: Proxy,
    web: Option<HttpStub>,
    /// What the child is told further when it starts.
    more: PathBuf,
    clients: Vec<Listener>,
    _scratch: tempfile::TempDir,
}

/// One client with a session and one without, that can do the same.
struct Listener {
    client: Client,
    hears: Listening,
    caller: Caller,
    caller_hears: crate::modern::Listening,
}

fn world(args: &[&str]) -> World {
    let scratch = scratch();
    let more = scratch.path().join("more");
    fs::write(&more, args.join("\n")).expect("file");
    let quick = "restart = { initial_ms = 50, max_ms = 500 }\n";
    let web = HttpStub::start("web", args);
    let pipe = stdio_backend("pipe", &["--more", more.to_str().expect("UTF-8")]);
    let proxy = Proxy::start(&[web.backend("web") + quick, pipe + quick]);
    proxy.client_seeing(&["web__echo", "pipe__echo"]);
    let clients = ["{}", ALL].map(|capabilities| {
        let client = Client::connect_with(proxy.addr, "2025-11-25", capabilities);
        let mut caller = Caller::new(&proxy);
        caller.capabilities = capabilities.into();
        let (agreed, caller_hears) = caller.listen(r#"{"toolsListChanged":true}"#);
        assert_eq!(agreed, json!({ "toolsListChanged": true }));
        Listener { hears: client.listen(), client, caller, caller_hears }
    });
    World { proxy, web: Some(web), more, clients: clients.into(), _scratch: scratch }
}

impl World {
    /// `backend` ends, and starts anew with these options.
    fn swap(&mut self, backend: &str, args: &[&str]) {
        if backend == "web" {
            self.web = self.web.take().map(|web| web.restart("web", args));
        } else {
            fs::write(&self.more, args.join("\n")).expect("file");
            let _ = Client::connect(self.proxy.addr).call("pipe__crash", r#"{"how":"exit"}"#);
        }
    }

    /// Every client is told, and lists then what is there; and calls find their way.
    fn all_learn(&mut self, backend: &str, has: &str, lacks: &str) {
        let (has, lacks) = (format!("{backend}__{has}"), format!("{backend}__{lacks}"));
        let right = |tools: &[String]| tools.contains(&has) && !tools.contains(&lacks);
        let echo = format!("{backend}__echo");
        for one in &mut self.clients {
            // A word may come that was about something before.
            while {
                one.hears.wait_for(CHANGED);
                !right(&one.client.names("tools/list"))
            } {}
            while {
                one.caller_hears.wait_for(CHANGED);
                !right(&names(&one.caller.ask("tools/list", "").result(), "tools"))
            } {}
            assert_eq!(one.client.call(&echo, r#"{"payload":"x"}"#).said(), "x");
            assert_eq!(one.caller.call(&echo, r#"{"payload":"y"}"#).said(), "y");
        }
    }

    fn add(&mut self, backend: &str, name: &str) {
        let mut client = Client::connect(self.proxy.addr);
        client.call(&format!("{backend}__add"), &json!({ "name": name }).to_string()).result();
    }
}

fn becomes_another(backend: &str) {
    let mut world = world(&["--asks"]);
    world.add(backend, "late");
    world.all_learn(backend, "late", "region");
    world.swap(backend, &["--asks", "--annotated"]);
    world.all_learn(backend, "reads", "late");
    // Of the other era.
    world.swap(backend, &["--modern"]);
    world.all_learn(backend, "region", "ask_many");
    world.add(backend, "later");
    world.all_learn(backend, "later", "late");
    // And of the first again.
    world.swap(backend, &["--asks"]);
    world.all_learn(backend, "ask_many", "region");
    world.add(backend, "last");
    world.all_learn(backend, "last", "later");
    // Of both: clients with sessions are served in them.
    world.swap(backend, &["--dual", "--annotated"]);
    world.all_learn(backend, "reads", "ask_many");
}

#[test]
fn a_server_that_becomes_another_at_its_url_is_learnt_by_all() {
    becomes_another("web");
}

#[test]
fn a_command_that_becomes_another_server_is_learnt_by_all() {
    becomes_another("pipe");
}
