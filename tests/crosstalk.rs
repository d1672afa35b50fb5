//! No answer ever reaches another caller.

use crate::support::client::{call_params, message};
use crate::support::process::{HttpStub, Proxy, sse_backend, stdio_backend};

const CLIENTS: usize = 64;
const CALLS: usize = 100_000;
const STRETCH: usize = 40;

#[test]
fn equal_ids_equal_tokens_distinct_payloads() {
    let stubs = [
        HttpStub::start("h", &[]),
        HttpStub::start("e", &["--sse"]),
        HttpStub::start("g", &[]),
        HttpStub::start("o", &["--old"]),
        HttpStub::start("p", &["--old"]),
    ];
    let proxy = Proxy::start(&[
        stdio_backend("s", &[]),
        stdio_backend("t", &[]),
        stubs[0].backend("h"),
        stubs[1].backend("e"),
        stubs[2].backend("g") + "isolation = \"shared\"\n",
        sse_backend("o", stubs[3].addr),
        sse_backend("p", stubs[4].addr) + "isolation = \"shared\"\n",
    ]);
    let backends = ["s", "h", "t", "e", "g", "o", "p"];
    proxy.client_seeing(
        &backends.map(|name| format!("{name}__echo")).each_ref().map(String::as_str),
    );
    let threads: Vec<_> = (0..CLIENTS)
        .map(|me| {
            let mut client = proxy.client();
            std::thread::spawn(move || {
                for n in 0..CALLS.div_ceil(CLIENTS) {
                    // Now one after the other, now a child so often that the connection goes to
                    // the worker of that child.
                    let backend = match n / STRETCH % 4 {
                        1 => "s",
                        3 => "t",
                        _ => backends[(me + n) % backends.len()],
                    };
                    let payload = format!("client {me} call {n}");
                    // The id is the same for all, and the token too; every third one reports.
                    let id = n % 4;
                    let params = if n % 16 == 0 {
                        format!(
                            r#"{{"name":"{backend}__progress","arguments":{{"steps":2,"note":"{payload}"}},"_meta":{{"progressToken":{id}}}}}"#
                        )
                    } else {
                        call_params(
                            &format!("{backend}__echo"),
                            &format!(r#"{{"payload":"{payload}"}}"#),
                        )
                    };
                    let told = client.post(&message(&id.to_string(), "tools/call", &params));
                    assert_eq!(told.said(), payload);
                    assert_eq!(told.json()["id"], id);
                    if n % 16 == 0 {
                        assert_eq!(told.before.len(), 2, "{told:?}");
                        for text in &told.before {
                            assert!(text.contains(&payload), "{payload}: {told:?}");
                            assert!(text.contains(&format!("\"progressToken\":{id},")), "{text}");
                        }
                    } else {
                        assert!(told.before.is_empty(), "{told:?}");
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a caller");
    }
}

#[test]
fn pipelined_calls_are_answered_in_order() {
    let stub = HttpStub::start("h", &[]);
    let proxy = Proxy::start(&[stdio_backend("s", &[]), stub.backend("h")]);
    let mut client = proxy.client_seeing(&["s__echo", "h__echo"]);
    for n in 0..50 {
        let backend = ["s", "h"][n % 2];
        let arguments = format!(r#"{{"payload":"{n}"}}"#);
        let body = call_params(&format!("{backend}__echo"), &arguments);
        client.send(&message("1", "tools/call", &body));
    }
    for n in 0..50 {
        assert_eq!(client.told().said(), n.to_string());
    }
}
