//! Owns: tests of children.
//! Never: HTTP.
//! Next: `fake`.

use super::*;
use crate::error::Kind;

/// A server in shell: what it does for each tool is in `$1`-less cases of `tools`.
fn script(tools: &str) -> String {
    format!(
        r#"
        while IFS= read -r line; do
            id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
            answer() {{ printf '{{"jsonrpc":"2.0","id":%s,"result":%s}}\n' "$id" "$1"; }}
            case "$line" in
            *'"method":"initialize"'*)
                answer '{{"protocolVersion":"2025-06-18","serverInfo":{{"name":"sh","version":"1"}},"capabilities":{{"tools":{{}}}}}}' ;;
            *'"method":"tools/list"'*)
                answer '{{"tools":[{{"name":"pid","inputSchema":{{"type":"object"}}}}]}}' ;;
            *'"method":"ping"'*) answer '{{}}' ;;
            *'"name":"pid"'*) answer "$$" ;;
            {tools}
            esac
        done"#
    )
}

fn result(answer: &str) -> String {
    serde_json::from_str::<serde_json::Value>(answer).unwrap()["result"].to_string()
}

fn is_alive(pid: &str) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_shared_child_serves_all_workers() {
    run(async {
        let script = script(
            r#"*'"name":"token"'*)
                echo 'not JSON'
                printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1}}\n' "$id"
                answer '{}' ;;"#,
        );
        let world = World::start(2, child(&script, Isolation::Shared));
        world.until_up().await;
        assert_eq!(world.board.tools(0), 1);
        let one = world.call(0, &ask("pid").id("\"a b\"")).await.unwrap();
        let two = world.call(1, &ask("pid").id("77")).await.unwrap();
        assert!(one.starts_with(r#"{"jsonrpc":"2.0","id":"a b","result":"#), "{one}");
        assert!(two.starts_with(r#"{"jsonrpc":"2.0","id":77,"result":"#), "{two}");
        assert_eq!(result(&one), result(&two));
        for worker in [0, 1] {
            let call = ask("token").id("1").token("\"t\"");
            let mut replies = world.begin(worker, &call).await.unwrap();
            match replies.next().await.unwrap() {
                Reply::Notification(progress) => assert_eq!(
                    String::from_utf8(progress).unwrap(),
                    r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1}}"#
                ),
                other => panic!("{other:?}"),
            }
            assert!(matches!(replies.next().await.unwrap(), Reply::Answer(_)));
        }
        let pid = result(&one);
        assert!(is_alive(&pid));
        world.stop().await;
        assert!(!is_alive(&pid), "stopped and reaped");
        assert!(world.is_clean());
    });
}

#[test]
fn a_killed_child_fails_its_calls_and_is_started_again() {
    run(async {
        let script = script(r#"*'"name":"die"'*) kill -9 $$ ;; *'"name":"mute"'*) ;;"#);
        let world = Rc::new(World::start(2, child(&script, Isolation::Shared)));
        world.until_up().await;
        let before = result(&world.call(0, &ask("pid")).await.unwrap());
        // Others wait for it too, on both workers.
        let failed = Rc::new(RefCell::new(Vec::new()));
        for worker in [0, 1] {
            let (world, failed) = (world.clone(), failed.clone());
            rt::spawn("call", async move {
                let outcome = kind(world.call(worker, &ask("mute")).await);
                failed.borrow_mut().push(outcome);
            });
        }
        until("in flight", || world.board.in_flight(0) == 2).await;
        let error = error(world.call(1, &ask("die")).await);
        assert_eq!(error.public(), "Backend connection lost: back");
        until("all failed", || *failed.borrow() == [Kind::Lost; 2]).await;
        let mut after = None;
        let end = Instant::now() + PATIENCE;
        while after.is_none() && Instant::now() < end {
            after = world.call(1, &ask("pid")).await.ok();
            rt::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(result(&after.unwrap()), before);
        assert_eq!(world.board.restarts(0), 1);
        world.stop().await;
        assert!(world.is_clean());
    });
}

#[test]
fn a_child_that_cannot_start_is_tried_again_for_ever() {
    run(async {
        for script in ["exit 3", "exec sleep 1000 > /dev/null", "echo nonsense; exit 1"] {
            let world = World::start(2, child(script, Isolation::Shared));
            for worker in [1, 0] {
                let error = error(world.call(worker, &ask("pid")).await);
                assert_eq!(error.public(), "Backend unavailable: back", "{script}");
            }
            until("a crash loop", || world.board.state(0) == State::CrashLoop).await;
            assert!(world.board.restarts(0) >= 3);
            assert!(world.slices.borrow().is_empty());
            world.stop().await;
            assert!(world.is_clean());
        }
        // It does not say a word and does not end.
        let mut mute = child("exec sleep 1000", Isolation::Shared);
        mute.startup_timeout = Duration::from_millis(200);
        mute.restart.give_up_after = Some(2);
        let world = World::start(1, mute);
        until("given up", || world.board.state(0) == State::Failed).await;
        assert_eq!(kind(world.call(0, &ask("pid")).await), Kind::Unavailable);
        world.stop().await;
    });
}

#[test]
fn a_time_limit_cancels_at_the_child_and_leaves_nothing() {
    run(async {
        let script = script(
            r#"*'"name":"mute"'*) mute=$id ;;
               *notifications/cancelled*) said="$said,$line" ;;
               *'"name":"said"'*)
                    printf '{"jsonrpc":"2.0","id":%s,"result":"late"}\n' "$mute"
                    answer "[0$said]" ;;"#,
        );
        let world = World::start(2, child(&script, Isolation::Shared));
        world.until_up().await;
        for worker in [0, 1] {
            let call = ask("mute").id("\"m\"").timeout(Duration::from_millis(100));
            let error = error(world.call(worker, &call).await);
            assert_eq!(error.public(), "Request timed out: back after 0.1 s");
            let call = ask("mute").id("\"m\"");
            let (outcome, ()) = rt::join(world.call(worker, &call), async {
                rt::time::sleep(Duration::from_millis(50)).await;
                call.handle.cancel(Some("x".into()));
            })
            .await;
            assert_eq!(kind(outcome), Kind::Cancelled);
        }
        assert!(world.is_clean());
        // The late answer goes nowhere; what was cancelled is what was asked.
        let said = result(&world.call(0, &ask("said")).await.unwrap());
        assert_eq!(said.matches("notifications/cancelled").count(), 4, "{said}");
        assert_eq!(said.matches(r#""reason":"x""#).count(), 2, "{said}");
        world.stop().await;
    });
}

#[test]
fn each_session_has_a_child_of_its_own() {
    run(async {
        let mut plan = child(&script(r#"*'"name":"die"'*) exit 1 ;;"#), Isolation::Session);
        if let TransportPlan::Stdio(stdio) = &mut plan.transport {
            stdio.children_max = 2;
        }
        let world = World::start(2, plan);
        world.until_up().await;
        let (one, two, three) = (session(0, 1), session(1, 2), session(1, 3));
        let pid = |worker, session: &Arc<SessionRecord>| {
            let call = ask("pid").session(session);
            let world = &world;
            async move { world.call(worker, &call).await.map(|answer| result(&answer)) }
        };
        let first = pid(0, &one).await.unwrap();
        assert_eq!(pid(1, &one).await.unwrap(), first);
        let second = pid(0, &two).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(pid(1, &two).await.unwrap(), second);
        assert_eq!(kind(pid(0, &three).await), Kind::Busy);
        assert_eq!(world.board.children(0), 2);

        // Its session ends: so does the child, and there is room again.
        one.end();
        world.workers[0].end_session(&one);
        until("gone", || !is_alive(&first)).await;
        until("room", || world.board.children(0) == 1).await;
        let third = pid(0, &three).await.unwrap();

        // It dies: the next call gets a new one.
        assert_eq!(kind(world.call(1, &ask("die").session(&three)).await), Kind::Lost);
        let end = Instant::now() + PATIENCE;
        let fourth = loop {
            if let Ok(pid) = pid(0, &three).await {
                break pid;
            }
            assert!(Instant::now() < end);
            rt::time::sleep(Duration::from_millis(5)).await;
        };
        assert_ne!(third, fourth);
        world.stop().await;
        assert!(!is_alive(&second) && !is_alive(&fourth));
        assert!(world.is_clean());
    });
}

#[test]
fn an_idle_child_of_a_session_is_stopped_and_comes_back_on_demand() {
    run(async {
        let mut plan = child(&script(""), Isolation::Session);
        if let TransportPlan::Stdio(stdio) = &mut plan.transport {
            stdio.idle_stop = Duration::from_millis(100);
        }
        let world = World::start(1, plan);
        world.until_up().await;
        let client = session(0, 1);
        let first = result(&world.call(0, &ask("pid").session(&client)).await.unwrap());
        until("stopped", || !is_alive(&first)).await;
        let second = result(&world.call(0, &ask("pid").session(&client)).await.unwrap());
        assert_ne!(first, second);
        world.stop().await;
    });
}

#[test]
fn a_child_that_ignores_everything_is_killed_with_its_group() {
    run(async {
        let script = format!("trap '' TERM; sleep 1000 & {}; sleep 1000", script(""));
        let world = World::start(1, child(&script, Isolation::Shared));
        world.until_up().await;
        let pid = result(&world.call(0, &ask("pid")).await.unwrap());
        world.stop().await;
        until("killed", || !is_alive(&pid)).await;
    });
}

#[test]
fn a_frozen_child_is_shown_as_down_only_after_a_ping_and_comes_back() {
    run(async {
        let world = World::start(1, child(&script(""), Isolation::Shared));
        world.until_up().await;
        let pid = result(&world.call(0, &ask("pid")).await.unwrap());
        let signal = |name: &str| {
            let status = std::process::Command::new("kill").args([name, &pid]).status();
            assert!(status.unwrap().success());
        };
        signal("-STOP");
        let call = ask("pid").timeout(Duration::from_millis(100));
        assert_eq!(kind(world.call(0, &call).await), Kind::Timeout);
        // The failed call makes the supervisor ask at once.
        until("down", || world.board.state(0) == State::Down).await;
        signal("-CONT");
        world.until_up().await;
        assert_eq!(result(&world.call(0, &ask("pid")).await.unwrap()), pid, "the same child");
        world.stop().await;
    });
}
