//! Owns: the tests of `link`: lines in and out, without a child.
//! Never: a process.
//! Next: nothing.

use super::*;

type Seen = Rc<RefCell<Vec<String>>>;

struct Listener(Seen, bool);

impl Outside for Listener {
    fn carry(&self, to: WorkerId, id: u64, item: Item) {
        let text = match item {
            Item::Notification(message) | Item::Ask(message) | Item::Answer(message) => {
                String::from_utf8(message).unwrap()
            }
            Item::Settled => "settled".to_owned(),
            Item::Failed(failure) => failure.to_string(),
        };
        self.0.borrow_mut().push(format!("{to} {id} {text}"));
    }

    fn changed(&self, flags: u32) {
        self.0.borrow_mut().push(format!("changed {flags}"));
    }

    fn updated(&self) {}

    fn answered(&self) {}

    fn said(&self, message: &[u8]) {
        self.0.borrow_mut().push(String::from_utf8_lossy(message).into_owned());
    }

    fn logged(&self, _: &[u8], caller: Option<Caller>) {
        let caller = caller.map(|caller| caller.id);
        self.0.borrow_mut().push(format!("logged {caller:?}"));
    }

    fn is_modern(&self) -> bool {
        self.1
    }

    fn asked(&self, message: &[u8], _: &Envelope, caller: Option<Caller>) -> Option<Vec<u8>> {
        let caller = caller.map(|caller| caller.id);
        self.0.borrow_mut().push(format!("asked {caller:?}"));
        message.ends_with(br#"refuse"}"#).then(|| b"refused".to_vec())
    }

    fn withdrawn(&self, _: &[u8], _: &Envelope) {}

    fn noted(&self, _: &[u8], caller: Option<Caller>) {
        let caller = caller.map(|caller| caller.id);
        self.0.borrow_mut().push(format!("noted {caller:?}"));
    }

    fn over(&self, id: u64) {
        self.0.borrow_mut().push(format!("over {id}"));
    }

    fn closed(&self) {}
}

fn link() -> (Rc<Link>, Seen) {
    link_of(false)
}

fn link_of(modern: bool) -> (Rc<Link>, Seen) {
    let seen = Seen::default();
    let listener = Box::new(Listener(seen.clone(), modern));
    (Link::new("child".into(), listener, Instant::now()), seen)
}

fn ask(link: &Link, id: u64, body: &str) -> Result<(), Failure> {
    let body = body.as_bytes();
    let envelope = jsonrpc::scan(body).unwrap();
    let (span, token) = (envelope.id.unwrap(), envelope.progress_token);
    let waiter = Waiter::new(Route::Worker(1), Own::of(body, span, token), Behind::Client);
    link.send(id, waiter, &Outgoing::Rename { body, id: span, token }, Instant::now())
}

#[test]
fn answers_find_their_call_and_only_theirs() {
    let (link, seen) = link();
    ask(
        &link,
        4,
        r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":"t"}}}"#,
    )
    .unwrap();
    ask(&link, 6, "{\"jsonrpc\":\"2.0\",\n\"id\":\"1\",\r\n\"method\":\"m\"}").unwrap();
    assert_eq!(
        String::from_utf8(link.queue.borrow().clone()).unwrap(),
        "{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"m\",\"params\":{\"_meta\":{\"progressToken\":4}}}\n\
             {\"jsonrpc\":\"2.0\", \"id\":6,  \"method\":\"m\"}\n"
    );
    for line in [
        "listening on stdio",
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":4,"progress":1}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":6,"progress":1}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"4","progress":1}}"#,
        r#"{"jsonrpc":"2.0","id":5,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":"4","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#,
        r#"[{"jsonrpc":"2.0","id":6,"result":{"a":1}},{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}]"#,
        r#"{"jsonrpc":"2.0","id":6,"result":{"again":1}}"#,
    ] {
        link.line(line.as_bytes());
    }
    link.close(Failure::new(Kind::Lost, "gone"));
    assert_eq!(
        *seen.borrow(),
        [
            r#"1 4 {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1}}"#,
            r#"1 6 {"jsonrpc":"2.0","id":"1","result":{"a":1}}"#,
            "changed 1",
            "1 4 Backend connection lost (gone)",
        ]
    );
    assert!(link.waiting.borrow().is_empty());
    assert_eq!(
        ask(&link, 8, r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#).unwrap_err().kind,
        Kind::Unavailable
    );
}

#[test]
fn the_queue_is_bounded_and_nothing_is_half_queued() {
    let (link, _) = link();
    let big = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"x":"{}"}}}}"#,
        "x".repeat(limits::CHILD_QUEUE_BYTES_MAX / 2)
    );
    ask(&link, 1, &big).unwrap();
    let queued = link.queue.borrow().len();
    assert_eq!(ask(&link, 2, &big).unwrap_err().kind, Kind::Busy);
    assert_eq!(link.queue.borrow().len(), queued);
    assert_eq!(link.waiting.borrow().len(), 1);
}

#[test]
fn the_forgotten_get_nothing_and_the_unknown_are_not_cancelled() {
    let (link, seen) = link();
    ask(&link, 1, r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#).unwrap();
    link.cancel(1, Some("enough"));
    link.cancel(2, None);
    link.forget(1);
    link.line(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    assert!(seen.borrow().is_empty());
    let queue = String::from_utf8(link.queue.borrow().clone()).unwrap();
    assert!(queue.ends_with(
            "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":1,\"reason\":\"enough\"}}\n"
        ));
    assert_eq!(queue.matches("cancelled").count(), 1);
}

#[test]
fn what_is_listened_for_finds_its_listener_in_the_request_era_alone() {
    let updated = |id: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}},"uri":"a"}}}}"#
        )
    };
    let torn = br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":4}}"#;
    for modern in [false, true] {
        let (link, seen) = link_of(modern);
        ask(&link, 4, r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen"}"#).unwrap();
        ask(&link, 6, r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#).unwrap();
        for id in ["4", "5", "\"4\""] {
            link.line(updated(id).as_bytes());
        }
        // In the session era such ids are the child's own.
        link.line(torn);
        link.line(torn);
        assert_eq!(link.waiting.borrow().len(), if modern { 1 } else { 2 });
        let heard = match modern {
            true => vec![
                format!("1 4 {}", updated("4")),
                "1 4 Backend connection lost (the child ended the stream)".to_owned(),
            ],
            false => ["4", "5", "\"4\""].map(updated).to_vec(),
        };
        assert_eq!(*seen.borrow(), heard);
    }
}

#[test]
fn log_messages_of_the_request_era_are_those_of_the_only_call_that_asks_for_them() {
    let (link, seen) = link_of(true);
    let log = br#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;
    let call = |level: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{{"a":1{level}}}}}}}"#)
    };
    let asks = call(r#","io.modelcontextprotocol/log\u004cevel":"info""#);
    ask(&link, 4, &call("")).unwrap();
    link.line(log);
    ask(&link, 6, &asks).unwrap();
    link.line(log);
    ask(&link, 8, &asks).unwrap();
    link.line(log);
    // It may be about the one that is forgotten.
    link.forget(8);
    link.line(log);
    link.line(br#"{"jsonrpc":"2.0","id":8,"result":{}}"#);
    link.line(log);
    let heard = format!("1 6 {}", std::str::from_utf8(log).unwrap());
    assert_eq!(*seen.borrow(), [heard.clone(), heard]);
}

#[test]
fn what_names_no_call_goes_to_the_newest_and_ends_with_it() {
    let (link, seen) = link();
    let note = br#"{"jsonrpc":"2.0","method":"notifications/other","params":{}}"#;
    let log = br#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;
    link.line(note);
    link.line(log);
    // Numbers of several workers do not tell the order.
    for id in [9, 4, 6] {
        ask(&link, id, r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#).unwrap();
    }
    link.line(note);
    link.line(log);
    link.line(br#"{"jsonrpc":"2.0","id":0,"method":"roots/list"}"#);
    link.line(br#"{"jsonrpc":"2.0","id":1,"method":"refuse"}"#);
    assert!(link.queue.borrow().ends_with(
        b"refused
"
    ));
    link.line(br#"{"jsonrpc":"2.0","id":6,"result":{}}"#);
    link.line(br#"{"jsonrpc":"2.0","id":2,"method":"roots/list"}"#);
    link.cancel(4, None);
    link.forget(4);
    link.forget(9);
    assert_eq!(
        *seen.borrow(),
        [
            "noted None",
            "logged None",
            "noted Some(6)",
            "logged Some(6)",
            "asked Some(6)",
            "asked Some(6)",
            r#"1 6 {"jsonrpc":"2.0","id":1,"result":{}}"#,
            "over 6",
            "asked Some(4)",
            "over 4",
        ]
    );
}

#[test]
fn requests_of_the_child_are_answered() {
    let (link, _) = link();
    link.line(br#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#);
    assert_eq!(&**link.queue.borrow(), b"{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{}}\n");
}

#[test]
fn an_answer_that_is_no_message_fails_its_call_at_once() {
    let (link, seen) = link();
    for id in [4, 5, 6] {
        ask(&link, id, r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#).unwrap();
    }
    link.line(br#"{"jsonrpc":"2.0","id":5,"error":"it is a text"}"#);
    link.line(br#"{"jsonrpc":"2.0","id":7,"error":"of nobody"}"#);
    link.line(br#"debug: {"id":4,"result":1}"#);
    link.line(br#"{"jsonrpc":"2.0","id":5,"result":{}}"#);
    link.line(br#"{"jsonrpc":"2.0","id":6,"result":{}}"#);
    let seen = seen.borrow();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[0].starts_with("1 5 ") && seen[0].contains("an answer that is none"), "{seen:?}");
    assert_eq!(seen[1], r#"1 6 {"jsonrpc":"2.0","id":1,"result":{}}"#);
}
