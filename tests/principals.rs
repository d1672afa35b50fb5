//! Two principals with the same wishes at the same time: nothing that is one's reaches the other.

use crate::support::client::{Client, call_params, message};
use crate::support::http::{Conn, Events};
use crate::support::process::{HttpStub, Journal, Setup, scratch, stdio_backend};

const AUTH: &str = r#"
[auth]
type = "bearer"
tokens = ["the-token-of-one-1", "the-token-of-two-2"]
"#;
const ONE: &str = "the-token-of-one-1";
const TWO: &str = "the-token-of-two-2";

#[test]
fn forwarded_tokens_are_never_swapped() {
    const CALLERS: usize = 16;
    const CALLS: usize = 60;
    let tokens: Vec<String> = (0..CALLERS).map(|n| format!("a-token-of-caller-{n:02}")).collect();
    let scratch = scratch();
    let journal = Journal::new(&scratch, "f");
    let mut args = vec!["--journal", journal.path()];
    tokens.iter().for_each(|token| args.extend(["--token", token]));
    let stub = HttpStub::start("f", &args);
    // A small pool: connections go from hand to hand.
    let backends = stub.backend("f") + "forward_auth = true\nmax_connections = 4\n";
    let auth = format!("[auth]\ntype = \"bearer\"\ntokens = {tokens:?}\n");
    let proxy = Setup { backends, proxy: auth, ..Setup::default() }.start();
    Client::connect_as(proxy.addr, &tokens[0]).wait_for_tools(&["f__echo"]);
    std::thread::scope(|scope| {
        for token in &tokens {
            scope.spawn(move || {
                let mut client = Client::connect_as(proxy.addr, token);
                let arguments = format!(r#"{{"payload":"{token}"}}"#);
                for n in 0..CALLS {
                    if n % 10 == 9 {
                        // Perhaps on the other worker.
                        client = client.again();
                    }
                    assert_eq!(client.call("f__echo", &arguments).said(), *token);
                }
            });
        }
    });
    // The backend saw of every call whose it is, and whose token came with it.
    let lines = journal.lines();
    let calls: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("echo ")).collect();
    assert_eq!(calls.len(), CALLERS * CALLS);
    for call in calls {
        let (payload, token) = call.split_once(' ').expect("both");
        assert_eq!(format!("Bearer {payload}"), token);
    }
}

#[test]
fn what_is_kept_or_runs_for_one_is_not_the_others() {
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let kept = "[backends.cache]\ntool_ttl_seconds = 600\nresource_ttl_seconds = 600\n";
    let setup = Setup {
        backends: stdio_backend("a", &["--annotated", "--journal", journal.path()]) + kept,
        proxy: format!("{AUTH}[performance]\ncoalesce_requests = true\n"),
        ..Setup::default()
    };
    let proxy = setup.start();
    let connect = |token| {
        let mut client = Client::connect_as(proxy.addr, token);
        client.wait_for_tools(&["a__reads"]);
        client
    };
    let (mut one, mut two) = (connect(ONE), connect(TWO));
    // Kept answers.
    let said = |client: &mut Client| client.call("a__reads", r#"{"key":"kept"}"#).said();
    let of_one = said(&mut one);
    assert_eq!(said(&mut one), of_one);
    assert_eq!(journal.count("unsteady kept "), 1);
    let of_two = said(&mut two);
    assert_ne!(of_one, of_two);
    assert_eq!((said(&mut two), said(&mut one)), (of_two, of_one));
    assert_eq!(journal.count("unsteady kept "), 2);
    // Calls at the same time: one execution for each principal, whatever the connection.
    let slow = message("1", "tools/call", &call_params("a__reads", r#"{"key":"s","ms":2500}"#));
    let mut callers: Vec<Client> = (0..4).flat_map(|_| [one.again(), two.again()]).collect();
    callers.iter_mut().for_each(|caller| caller.send(&slow));
    let answers: Vec<String> = callers.iter_mut().map(|caller| caller.told().said()).collect();
    assert_eq!(journal.count("unsteady s "), 2);
    for pair in answers.chunks(2) {
        assert_eq!((&pair[0], &pair[1]), (&answers[0], &answers[1]));
    }
    assert_ne!(answers[0], answers[1]);
}

#[test]
fn a_stream_is_resumed_by_its_principal_alone() {
    let setup = Setup { backends: stdio_backend("a", &[]), proxy: AUTH.into(), ..Setup::default() };
    let proxy = setup.start();
    let mut one = Client::connect_as(proxy.addr, ONE);
    one.wait_for_tools(&["a__progress"]);
    let params = concat!(
        r#"{"name":"a__progress","arguments":{"steps":5,"ms":100},"#,
        r#""_meta":{"progressToken":7}}"#
    );
    let mut calling = one.again();
    calling.send(&message("5", "tools/call", params));
    assert_eq!(calling.conn.head().status, 200);
    let first = calling.conn.any_event(&mut Events::default()).expect("an event");
    let last = first.id.expect("an event id");
    drop(calling);
    let resume = |lines: &str| {
        let mut conn = Conn::open(proxy.addr);
        let accept = "Accept: text/event-stream\r\n";
        let head = format!("GET /mcp HTTP/1.1\r\n{lines}{accept}Last-Event-ID: {last}\r\n\r\n");
        conn.send(head.as_bytes());
        conn
    };
    // With the id of the session as well as with an own one.
    let stolen = one.lines().replace(ONE, TWO);
    assert_eq!(resume(&stolen).answer().status, 404);
    let two = Client::connect_as(proxy.addr, TWO);
    assert_eq!(resume(&two.lines()).answer().status, 400);
    // Its owner has the rest.
    let mut owners = resume(&one.lines());
    assert_eq!(owners.head().status, 200);
    let mut events = Events::default();
    loop {
        let event = owners.any_event(&mut events).expect("the response");
        if event.data.contains(r#""result""#) {
            break;
        }
    }
}
