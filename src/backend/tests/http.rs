//! Owns: tests of backends over HTTP.
//! Never: children.
//! Next: nothing: these are the last.

use serde_json::json;

use super::fake::{Fake, Step, chunk, end, events, json_answer, status, tools};
use super::*;
use crate::error::Kind;
use crate::limits;

#[test]
fn a_client_session_has_its_own_and_its_bytes_pass_untouched() {
    run(async {
        let fake = Fake::start(|_| None);
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        let call = ask("echo").id(r#""a\u0062""#).token("7").session(&client);
        let answer = world.call(0, &call).await.unwrap();
        // The server wrote the same id in another way; the client gets back what it sent.
        assert_eq!(
            answer,
            r#"{"jsonrpc":"2.0","id":"a\u0062","result":{"tool":"echo","session":"s2"}}"#
        );
        world.call(0, &call.again().id("3")).await.unwrap();

        let seen = fake.seen();
        let mine: Vec<_> =
            seen.iter().filter(|s| s.field("mcp-session-id") == Some("s2")).collect();
        let methods: Vec<_> = mine.iter().map(|seen| seen.method()).collect();
        assert_eq!(methods, ["notifications/initialized", "tools/call", "tools/call"]);
        assert_eq!(
            mine[1].raw,
            r#"{"jsonrpc":"2.0","id":"a\u0062","method":"tools/call","params":{"name":"echo","arguments":{},"_meta":{"progressToken":7}}}"#
        );
        for seen in mine {
            // What the server negotiated, not what the client did.
            assert_eq!(seen.field("mcp-protocol-version"), Some("2025-03-26"));
            assert_eq!(seen.field("x-key"), Some("k"));
            assert_eq!(seen.field("accept"), Some("application/json, text/event-stream"));
            assert_eq!(seen.field("accept-encoding"), None);
        }
        let hellos: Vec<_> = seen.iter().filter(|seen| seen.method() == "initialize").collect();
        assert_eq!(hellos.len(), 2);
        assert_eq!(hellos[1].body["params"]["protocolVersion"], "2025-06-18");
        assert_eq!(hellos[1].body["params"]["clientInfo"]["name"], "proxy");
        assert_eq!(hellos[1].field("mcp-protocol-version"), None);

        client.end();
        world.workers[0].end_session(&client);
        until("deleted", || {
            fake.seen()
                .iter()
                .any(|seen| seen.verb == "DELETE" && seen.field("mcp-session-id") == Some("s2"))
        })
        .await;
        world.stop().await;
        assert!(world.is_clean());
        let deleted = fake.seen();
        assert!(
            deleted.iter().any(|s| s.verb == "DELETE" && s.field("mcp-session-id") == Some("s1"))
        );
    });
}

#[test]
fn connections_are_used_again() {
    run(async {
        let fake = Fake::start(|_| None);
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        for _ in 0..20 {
            world.call(0, &ask("echo").session(&client)).await.unwrap();
        }
        let fresh = fake.calls("echo").iter().filter(|seen| seen.place == 0).count();
        assert_eq!(fresh, 0, "calls should follow others on their connection");
        world.stop().await;
    });
}

#[test]
fn an_answer_to_another_request_reaches_nobody() {
    run(async {
        let fake = Fake::start(|seen| match seen.tool() {
            "number" => Some(json_answer("2", &json!({}))),
            "text" => Some(json_answer("\"1\"", &json!({}))),
            "event" => Some(events(&["data: {\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}\n\n"])),
            "none" => Some(status(
                200,
                "Content-Type: application/json\r\n",
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}"#,
            )),
            "junk" => Some(status(200, "Content-Type: application/json\r\n", "<html>")),
            "request" => Some(status(
                200,
                "Content-Type: application/json\r\n",
                r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#,
            )),
            "html" => Some(status(200, "Content-Type: text/html\r\n", "<html>")),
            "gzip" => Some(status(
                200,
                "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
                "x",
            )),
            "accepted" => Some(status(202, "", "")),
            _ => None,
        });
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        for tool in
            ["number", "text", "event", "none", "junk", "request", "html", "gzip", "accepted"]
        {
            let error = error(world.call(0, &ask(tool).session(&client)).await);
            assert_eq!(error.kind(), Kind::BadAnswer, "{tool}: {error}");
            assert!(error.public().contains("back"), "{error}");
            assert!(!error.public().contains("html"), "{error}");
        }
        // And the backend is well for all others.
        world.call(0, &ask("echo").session(&client)).await.unwrap();
        assert_eq!(world.board.state(0), State::Up);
        world.stop().await;
    });
}

#[test]
fn statuses_are_told_and_an_error_of_the_call_is_passed_on() {
    run(async {
        let fake = Fake::start(|seen| match seen.tool() {
            "" => None,
            "own" => Some(status(
                400,
                "Content-Type: application/json\r\n",
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"bad","data":[1.50]}}"#,
            )),
            "echo" => None,
            other => Some(status(other.parse().unwrap(), "", "secret")),
        });
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        let answer = world.call(0, &ask("own").session(&client)).await.unwrap();
        assert_eq!(
            answer,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"bad","data":[1.50]}}"#
        );
        for (code, kind) in [
            ("503", Kind::Unavailable),
            ("401", Kind::Unavailable),
            ("500", Kind::BadAnswer),
            ("502", Kind::Lost),
            ("307", Kind::BadAnswer),
        ] {
            let error = error(world.call(0, &ask(code).session(&client)).await);
            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.public().ends_with(&format!(": back: HTTP {code}")), "{error}");
            assert!(!error.to_string().contains("secret"));
        }
        assert_eq!(fake.count("initialize"), 2);
        world.stop().await;
    });
}

#[test]
fn long_answers_stream_and_are_checked_before_their_last_piece() {
    fn long(id: &str, cut: usize, chunked: bool) -> Vec<Step> {
        let text = "x".repeat(300_000);
        let body = format!(r#"{{"jsonrpc":"2.0","result":{{"text":"{text}"}},"id":{id}}}"#);
        let body = &body[..body.len() - cut];
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        let mut steps = Vec::new();
        if chunked {
            steps.push(Step::Bytes(format!("{head}Transfer-Encoding: chunked\r\n\r\n").into()));
            steps.extend(
                body.as_bytes()
                    .chunks(50_000)
                    .map(|piece| chunk(std::str::from_utf8(piece).unwrap())),
            );
            steps.push(if cut == 0 { end() } else { Step::Close });
        } else {
            let length = body.len() + cut;
            steps.push(Step::Bytes(format!("{head}Content-Length: {length}\r\n\r\n{body}").into()));
            if cut > 0 {
                steps.push(Step::Close);
            }
        }
        steps
    }
    run(async {
        let fake = Fake::start(|seen| match seen.tool() {
            "length" => Some(long(&seen.id(), 0, false)),
            "chunked" => Some(long(&seen.id(), 0, true)),
            "other" => Some(long("77", 0, true)),
            "cut" => Some(long(&seen.id(), 10, false)),
            "cut chunks" => Some(long(&seen.id(), 10, true)),
            _ => None,
        });
        for isolation in [Isolation::Session, Isolation::Shared] {
            let world = World::start(1, over_http(fake.port(), isolation));
            world.until_up().await;
            let client = session(0, 1);
            for tool in ["length", "chunked"] {
                let answer = world.call(0, &ask(tool).id("\"q\"").session(&client)).await.unwrap();
                assert!(answer.starts_with(r#"{"jsonrpc":"2.0","result":{"text":"xxx"#));
                assert!(answer.ends_with(r#"xxx"},"id":"q"}"#), "{isolation:?} {tool}");
                assert_eq!(answer.len(), 300_047);
            }
            for (tool, kind) in
                [("other", Kind::BadAnswer), ("cut", Kind::Lost), ("cut chunks", Kind::Lost)]
            {
                let mut got = Vec::new();
                let mut replies = match world.begin(0, &ask(tool).session(&client)).await {
                    Ok(replies) => replies,
                    Err(error) => panic!("{error}"),
                };
                let outcome = async {
                    match replies.next().await? {
                        Reply::Streaming { .. } => {}
                        other => panic!("{tool}: {other:?}"),
                    }
                    while let Some(piece) = replies.chunk().await? {
                        got.extend_from_slice(&piece);
                    }
                    Ok(())
                };
                let error = match outcome.await {
                    Err::<(), Error>(error) => error,
                    Ok(()) => panic!("{isolation:?} {tool} must fail"),
                };
                assert_eq!(error.kind(), kind, "{isolation:?} {tool}: {error}");
                assert!(!got.ends_with(b"}"), "the end must not be passed on");
            }
            world.stop().await;
            assert!(world.is_clean());
        }
    });
}

#[test]
fn an_event_stream_gives_notifications_then_the_answer() {
    run(async {
        let fake = Fake::start(|seen| match seen.tool() {
            "stream" => {
                let id = seen.id();
                let token = seen.body["params"]["_meta"]["progressToken"].to_string();
                let mut steps = events(&[
                    "id: 1\ndata: \n\n",
                    ": nothing\n\n",
                    &format!(
                        "data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":{token},\"progress\":1}}}}\n\n"
                    ),
                    "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\ndata: \"params\":{\"progressToken\":\"not mine\"}}\n\n",
                    "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\"}}\n\n",
                    "data: {\"jsonrpc\":\"2.0\",\"id\":\"q\",\"method\":\"roots/list\"}\n\n",
                    "data: {\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"ping\"}\n\n",
                    "data: [{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}]\n\n",
                ]);
                steps.push(Step::Bytes(b"1\r\nd\r\n".to_vec()));
                steps.push(chunk(&format!(
                    "ata: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"a\":1}}}}\n\n"
                )));
                steps.push(end());
                Some(steps)
            }
            "early" => {
                let mut steps = events(&[
                    "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n",
                ]);
                steps.push(end());
                Some(steps)
            }
            "never ends" => Some(events(&[&format!(
                "data: {{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{}}}}\n\n",
                seen.id()
            )])),
            _ => None,
        });
        for (isolation, words) in [(Isolation::Session, 4), (Isolation::Shared, 3)] {
            let world = World::start(1, over_http(fake.port(), isolation));
            world.until_up().await;
            let client = session(0, 1);
            let mut replies = world
                .begin(0, &ask("stream").id("\"x\"").token("\"t\"").session(&client))
                .await
                .unwrap();
            let mut told = Vec::new();
            let answer = loop {
                match replies.next().await.unwrap() {
                    Reply::Notification(message) => told.push(String::from_utf8(message).unwrap()),
                    Reply::Answer(answer) => break String::from_utf8(answer).unwrap(),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(answer, r#"{"jsonrpc":"2.0","id":"x","result":{"a":1}}"#);
            assert!(told[0].contains(r#""progressToken":"t","progress":1"#), "{told:?}");
            // On a shared channel progress of a token that is not ours is nobody's.
            assert_eq!(told.len(), words, "{told:?}");
            drop(replies);
            assert_eq!(kind(world.call(0, &ask("early").session(&client)).await), Kind::Lost);
            world.call(0, &ask("never ends").session(&client)).await.unwrap();
            world.stop().await;
            assert!(world.is_clean());
        }
        until("answered", || {
            let seen = fake.seen();
            let has = |id: &str, part: &str| {
                seen.iter().any(|s| s.body["id"] == id && s.raw.contains(part))
            };
            has("p", r#""result":{}"#) && has("q", "-32601")
        })
        .await;
    });
}

#[test]
fn on_a_shared_session_equal_ids_are_told_apart() {
    run(async {
        let fake = Fake::start(|seen| match seen.tool() {
            "slow" => {
                let mut steps = vec![Step::Gate];
                steps.extend(json_answer(
                    &seen.id(),
                    &json!({"token": seen.body["params"]["_meta"]["progressToken"]}),
                ));
                Some(steps)
            }
            _ => None,
        });
        let world = World::start(2, over_http(fake.port(), Isolation::Shared));
        world.until_up().await;
        let calls = [ask("slow").token("1"), ask("slow").id("\"1\"")];
        let (one, two) = rt::join(
            world.call(0, &calls[0]),
            rt::join(world.call(1, &calls[1]), async {
                until("both there", || fake.calls("slow").len() == 2).await;
                fake.open_gate();
            }),
        )
        .await;
        let upstream: Vec<_> =
            fake.calls("slow").iter().map(|seen| seen.body["id"].as_u64().unwrap()).collect();
        assert_ne!(upstream[0], upstream[1]);
        let (one, two) = (one.unwrap(), two.0.unwrap());
        assert!(one.starts_with(r#"{"jsonrpc":"2.0","id":1,"#), "{one}");
        assert!(two.starts_with(r#"{"jsonrpc":"2.0","id":"1","#), "{two}");
        let with = fake
            .calls("slow")
            .into_iter()
            .find(|seen| !seen.body["params"]["_meta"].is_null())
            .unwrap();
        assert_eq!(with.body["params"]["_meta"]["progressToken"], with.body["id"]);
        // One session for all: the supervisor's.
        assert_eq!(fake.count("initialize"), 1);
        world.stop().await;
    });
}

#[test]
fn a_lost_session_is_opened_once_and_the_calls_repeated() {
    run(async {
        let fake = Fake::start(|_| None);
        let world = World::start(2, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(1, 1);
        for worker in [0, 1] {
            world.call(worker, &ask("echo").session(&client)).await.unwrap();
        }
        assert_eq!(fake.count("initialize"), 2, "the owner opened one for both workers");
        fake.forget();
        let calls: Vec<_> =
            (0..6).map(|n| (n % 2, ask("echo").id(&n.to_string()).session(&client))).collect();
        let done = Rc::new(RefCell::new(0));
        let world = Rc::new(world);
        for (worker, call) in calls {
            let (world, done) = (world.clone(), done.clone());
            rt::spawn("call", async move {
                let answer = world.call(worker, &call).await.unwrap();
                assert!(
                    answer.contains(r#""session":"s"#)
                        && answer.contains(&format!(r#""id":{},"#, call.id))
                );
                *done.borrow_mut() += 1;
            });
        }
        until("all answered", || *done.borrow() == 6).await;
        // The proxy's own session was lost too; the hint makes it look.
        until("the supervisor has a new one", || fake.count("initialize") == 4).await;
        // Whoever called, all repeats went to the one new session.
        let sessions: std::collections::BTreeSet<_> = fake
            .calls("echo")
            .iter()
            .map(|seen| seen.field("mcp-session-id").unwrap().to_owned())
            .collect();
        assert_eq!(sessions.len(), 2, "{sessions:?}");
        world.stop().await;
        assert!(world.is_clean());
    });
}

#[test]
fn a_server_that_loses_every_session_fails_the_call_after_one_repeat() {
    run(async {
        let fake = Fake::start(|seen| {
            (seen.tool() == "lost").then(|| status(400, "", r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#))
        });
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let error = error(world.call(0, &ask("lost").session(&session(0, 1))).await);
        assert_eq!(error.public(), "Backend answered out of protocol: back: HTTP 400");
        assert_eq!(fake.calls("lost").len(), 2);
        world.stop().await;
    });
}

#[test]
fn a_dead_pooled_connection_costs_nothing_when_nothing_was_executed() {
    run(async {
        // Closes on a request that is not the first of its connection, without a word.
        let fake = Fake::start(|seen| {
            (seen.place > 0 && seen.tool().starts_with("fragile")).then(|| vec![Step::Close])
        });
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        world.call(0, &ask("echo").session(&client)).await.unwrap();
        // It may have been executed: a tool is not called again.
        let error = error(world.call(0, &ask("fragile").session(&client)).await);
        assert_eq!(error.kind(), Kind::Lost, "{error}");
        assert_eq!(fake.calls("fragile").len(), 1);
        // A read is.
        world.call(0, &ask("echo").session(&client)).await.unwrap();
        world.call(0, &ask("fragile read").safe().session(&client)).await.unwrap();
        assert_eq!(fake.calls("fragile read").len(), 2);
        // Connections that the server closed while they were idle are noticed before.
        world.call(0, &ask("echo").session(&client)).await.unwrap();
        fake.hang_up();
        rt::time::sleep(Duration::from_millis(20)).await;
        world.call(0, &ask("echo").session(&client)).await.unwrap();
        world.stop().await;
    });
}

#[test]
fn a_time_limit_tells_the_backend_and_closes_the_connection() {
    run(async {
        let fake = Fake::start(|seen| {
            match seen.tool() {
            "mute" => Some(vec![Step::Gate]),
            "half" => Some(vec![Step::Bytes(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{".to_vec()), Step::Gate]),
            _ => None,
        }
        });
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        for (id, tool) in [("\"a\"", "mute"), ("\"b\"", "half")] {
            let call = ask(tool).id(id).session(&client).timeout(Duration::from_millis(150));
            let error = error(world.call(0, &call).await);
            assert_eq!(error.public(), "Request timed out: back after 0.15 s");
            until("told", || {
                fake.seen().iter().any(|seen| {
                    seen.method() == "notifications/cancelled"
                        && seen.body["params"]["requestId"] == id.trim_matches('"')
                })
            })
            .await;
        }
        world.call(0, &ask("echo").session(&client)).await.unwrap();
        world.stop().await;
        assert!(world.is_clean());
    });
}

#[test]
fn a_cancelled_call_is_told_and_may_still_be_answered() {
    run(async {
        let fake = Fake::start(|seen| match seen.tool() {
            "slow" => {
                let mut steps = vec![Step::Gate];
                steps.extend(json_answer(&seen.id(), &json!({})));
                Some(steps)
            }
            "mute" => Some(vec![Step::Bytes(b"HTTP".to_vec()), Step::Gate, Step::Close]),
            _ => None,
        });
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let client = session(0, 1);
        let call = ask("slow").id("5").session(&client);
        let (outcome, ()) = rt::join(world.call(0, &call), async {
            until("there", || fake.calls("slow").len() == 1).await;
            call.handle.cancel(Some("enough".into()));
            until("told", || fake.count("notifications/cancelled") == 1).await;
            fake.open_gate();
        })
        .await;
        assert!(outcome.unwrap().contains(r#""id":5"#));
        let told =
            fake.seen().into_iter().find(|s| s.method() == "notifications/cancelled").unwrap();
        assert_eq!(told.body["params"], json!({"requestId": 5, "reason": "enough"}));
        world.stop().await;
        drop(fake);

        let fake = Fake::start(|seen| (seen.tool() == "mute").then(|| vec![Step::Gate]));
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let call = ask("mute").session(&client);
        let began = Instant::now();
        let (outcome, ()) = rt::join(world.call(0, &call), async {
            until("there", || fake.calls("mute").len() == 1).await;
            call.handle.cancel(None);
        })
        .await;
        assert_eq!(kind(outcome), Kind::Cancelled);
        assert!(began.elapsed() >= limits::CANCEL_GRACE);
        // Cancelled and dropped at once, it is told all the same.
        let call = ask("mute").id("9").session(&client);
        let drop_it = async {
            until("there", || fake.calls("mute").len() == 2).await;
            call.handle.cancel(None);
        };
        let _ = rt::race(drop_it, world.call(0, &call)).await;
        until("told", || fake.count("notifications/cancelled") == 2).await;
        world.stop().await;
        assert!(world.is_clean());
    });
}

#[test]
fn a_backend_that_is_down_fails_calls_at_once_and_comes_back_by_itself() {
    run(async {
        let address = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        let world = World::start(2, over_http(address.port(), Isolation::Session));
        let client = session(0, 1);
        // The first start has not ended: the call waits for that, then tries by itself.
        let error_first = error(world.call(1, &ask("echo").session(&client)).await);
        assert_eq!(error_first.public(), "Backend unavailable: back");
        until("down", || world.board.state(0) == State::Down).await;
        assert!(world.workers.iter().all(|worker| worker.is_settled(0)));
        for round in 0..2 {
            let fake = Fake::at(address, |_| None);
            world.until_up().await;
            assert_eq!(world.board.tools(0), 1);
            world.call(1, &ask("echo").session(&client)).await.unwrap();
            drop(fake);
            let error = error(world.call(1, &ask("echo").session(&client)).await);
            assert!(matches!(error.kind(), Kind::Unavailable | Kind::Lost), "{error}");
            until("down", || world.board.state(0) == State::Down).await;
            assert_eq!(world.board.restarts(0), round);
        }
        // The lists never left.
        assert_eq!(world.slices.borrow().len(), 2, "one for each worker");
        world.stop().await;
        assert_eq!(world.board.state(0), State::Stopped);
    });
}

#[test]
fn lists_are_read_page_by_page_and_again_when_they_change() {
    run(async {
        let changed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let after = changed.clone();
        let fake = Fake::start(move |seen| {
            let done = after.load(std::sync::atomic::Ordering::SeqCst);
            let page = |names: &[&str], cursor: Option<&str>| {
                let mut result = tools(names);
                if let Some(cursor) = cursor {
                    result["nextCursor"] = json!(cursor);
                }
                Some(json_answer(&seen.id(), &result))
            };
            match (seen.verb.as_str(), seen.method()) {
                ("GET", _) => {
                    let mut steps = events(&[]);
                    steps.push(Step::Gate);
                    steps.push(chunk("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n"));
                    Some(steps)
                }
                (_, "tools/list") if done => page(&["d"], None),
                (_, "tools/list") => match seen.body["params"]["cursor"].as_str() {
                    None => page(&["a"], Some("q\"1")),
                    Some("q\"1") => page(&["b"], Some("2")),
                    // It repeats for ever.
                    Some(_) => page(&["c"], Some("2")),
                },
                _ => None,
            }
        });
        let world = World::start(2, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        until("published", || world.slices.borrow().len() == 2).await;
        let names = |slice: &Option<Arc<Slice>>| -> Vec<String> {
            slice.as_ref().unwrap().tools.iter().map(|(name, _)| name.to_owned()).collect()
        };
        assert_eq!(names(&world.slices.borrow()[0].1), ["a", "b", "c"]);
        assert_eq!(world.board.tools(0), 3);
        until("listening", || fake.seen().iter().any(|seen| seen.verb == "GET")).await;
        changed.store(true, std::sync::atomic::Ordering::SeqCst);
        fake.open_gate();
        until("published again", || world.slices.borrow().len() == 4).await;
        assert_eq!(names(&world.slices.borrow()[3].1), ["d"]);
        until("counted", || world.board.tools(0) == 1).await;
        world.stop().await;
    });
}

#[test]
fn calls_are_bounded() {
    run(async {
        let fake = Fake::start(|_| None);
        let world = World::start(1, over_http(fake.port(), Isolation::Session));
        world.until_up().await;
        let entry = world.workers[0].entries()[0].clone();
        entry.in_flight.set(limits::IN_FLIGHT_MAX);
        assert_eq!(kind(world.begin(0, &ask("echo")).await), Kind::Busy);
        entry.in_flight.set(0);
        world.call(0, &ask("echo")).await.unwrap();
        world.stop().await;
        assert_eq!(kind(world.begin(0, &ask("echo")).await), Kind::Capacity);
    });
}
