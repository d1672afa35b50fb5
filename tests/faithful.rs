//! What a client sees through the proxy is what the backend said, byte for byte; and the other
//! way round.

use crate::support::client::{Client, call_params, message};
use crate::support::process::{HttpStub, Proxy, stdio_backend};
use crate::support::{quote, texts};

/// A proxy before the stub in every way that messages can travel; names of the backends.
fn proxy() -> (Proxy, Vec<HttpStub>, [&'static str; 5]) {
    let stubs = vec![
        HttpStub::start("json", &[]),
        HttpStub::start("sse", &["--sse"]),
        HttpStub::start("prime", &["--sse", "--prime"]),
        HttpStub::start("shared", &[]),
    ];
    let proxy = Proxy::start(&[
        stdio_backend("stdio", &[]),
        stubs[0].backend("json"),
        stubs[1].backend("sse"),
        stubs[2].backend("prime"),
        stubs[3].backend("shared") + "isolation = \"shared\"\n",
    ]);
    (proxy, stubs, ["stdio", "json", "sse", "prime", "shared"])
}

fn seeing(proxy: &Proxy) -> Client {
    proxy.client_seeing(&["stdio__echo", "json__echo", "sse__echo", "prime__echo", "shared__echo"])
}

#[test]
fn listed_entries_keep_every_byte_but_the_name() {
    let (proxy, _stubs, names) = proxy();
    let mut client = seeing(&proxy);
    let text = client.ask("tools/list", "{}").text;
    for name in names {
        let entry = format!(r#"{{"name":"{name}__rich",{}}}"#, texts::RICH_TOOL_REST);
        assert!(text.contains(&entry), "{entry}\nnot in\n{text}");
    }
    let text = client.ask("resources/list", "{}").text;
    for name in names {
        let entry = format!(r#"{{"uri":"stub://{name}/fixed","name":"fixed","x":1.0}}"#);
        assert!(text.contains(&entry), "{entry}\nnot in\n{text}");
    }
    let text = client.ask("prompts/list", "{}").text;
    assert!(text.contains(r#"{"name":"stdio__prompt","x":1.0}"#), "{text}");
}

#[test]
fn results_and_errors_keep_every_byte() {
    let (proxy, _stubs, names) = proxy();
    let mut client = seeing(&proxy);
    for name in names {
        let told = client.call(&format!("{name}__rich"), "{}");
        assert!(told.text.contains(texts::RICH_RESULT), "{name}: {}", told.text);
        // Nothing came before the answer, so it is JSON whatever the backend chose.
        assert!(!told.as_events, "{name}");
        let told = client.call(&format!("{name}__rich_error"), "{}");
        assert!(told.text.contains(texts::RICH_ERROR), "{name}: {}", told.text);
        assert_eq!(told.status, 200, "{name}");
        let get = format!(r#"{{"name":"{name}__prompt"}}"#);
        let told = client.ask("prompts/get", &get);
        assert!(told.text.contains(&texts::RICH_PROMPT.replace("NAME", name)), "{}", told.text);
        let told = client.ask("resources/read", &format!(r#"{{"uri":"stub://{name}/fixed"}}"#));
        assert!(told.text.contains(&texts::RICH_READ.replace("NAME", name)), "{}", told.text);
        let told =
            client.ask("resources/read", &format!(r#"{{"uri":"stub://{name}/item/..%2Fx"}}"#));
        assert_eq!(told.result()["contents"][0]["uri"], format!("stub://{name}/item/..%2Fx"));
    }
}

/// What a program makes that cuts a text in the midst of an emoji is JSON (RFC 8259 §8.2), if no text
/// that every reader takes; a number beyond a double is a number.
/// A text of JSON of so many bytes, with every escape that there is, and other scripts.
fn escaped(bytes: usize) -> String {
    let record = r#"{\"id\": 7, \"path\": \"C:\\dir\\new\/x\",\n\t\"said\": \"\u00e9\ud83d\ude00 é\b\f\r\"}, "#;
    // Another number of plain bytes each time, so that each escape meets each border.
    (0..)
        .map(|turn| record.to_owned() + &"a".repeat(turn % 67))
        .scan(0, |sum, text| {
            *sum += text.len();
            (*sum < bytes).then_some(text)
        })
        .collect()
}

#[test]
fn long_texts_of_escapes_keep_every_byte() {
    let (proxy, _stubs, names) = proxy();
    let mut client = seeing(&proxy);
    for bytes in [3_000, 300_000] {
        let escaped = escaped(bytes);
        let said: String = serde_json::from_str(&format!("\"{escaped}\"")).unwrap();
        for name in names {
            let told =
                client.call(&format!("{name}__echo"), &format!(r#"{{"payload":"{escaped}"}}"#));
            assert!(told.said() == said, "{name}: {} bytes", told.text.len());
        }
        // As they are written, where it is known how.
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":$ID,"result":{{"content":[{{"type":"text","text":"{escaped}"}}]}}}}"#
        );
        let told = client.call("json__raw_answer", &raw(&body));
        assert!(told.text.contains(&escaped), "{} bytes", told.text.len());
    }
}

/// The arguments of a call that is answered with this body; `$ID` in it is the call's own.
fn raw(body: &str) -> String {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{body}"
    );
    format!(r#"{{"bytes":{},"close":true}}"#, quote(&answer))
}

/// A long answer has begun to leave when a fault shows in it: it must not look whole.
#[test]
fn a_fault_far_in_a_long_text_is_no_whole_answer() {
    let (proxy, _stubs, _) = proxy();
    let good = escaped(300_000);
    for bad in [r"\x", r"\u12g4", "\n", "\u{1}", "\"", "\\"] {
        let mut client = seeing(&proxy);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":$ID,"result":{{"content":[{{"type":"text","text":"{good}{bad}z{good}"}}]}}}}"#
        );
        client.send(&message("7", "tools/call", &call_params("json__raw_answer", &raw(&body))));
        let head = client.conn.head();
        assert_eq!(head.status, 200, "{bad:?}");
        let mut passed = 0;
        let end = loop {
            match client.conn.piece() {
                Ok(Some(piece)) => passed += piece.len(),
                end => break end,
            }
        };
        assert!(end.is_err() && passed < body.len(), "{bad:?}: {passed} bytes");
        let said = seeing(&proxy).call("json__echo", r#"{"payload":"after"}"#).said();
        assert_eq!(said, "after", "{bad:?}");
    }
}

#[test]
fn what_only_some_readers_understand_is_theirs_to_judge() {
    let stub = HttpStub::start("json", &[]);
    let proxy = Proxy::start(&[stdio_backend("stdio", &[]), stub.backend("json")]);
    let mut client = proxy.client_seeing(&["stdio__echo", "json__echo"]);
    for cut in [r#""\ud83d""#, r#""a\ude00b\ud83d""#, "1e999", "-1e400", r#"{"\ud83d":"\ud83d"}"#] {
        let result = format!(r#"{{"content":[],"structuredContent":{{"cut":{cut}}}}}"#);
        let answer = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{result}}}"#);
        let length = answer.len();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
        // A child is asked under an id of the proxy's own.
        let of_child = answer.replace("\"id\":7", "\"id\":$ID") + "\n";
        for (name, raw) in
            [("stdio", of_child), ("json", format!("{head}{length}\r\n\r\n{answer}"))]
        {
            let arguments = format!(r#"{{"bytes":{}}}"#, quote(&raw));
            let params = call_params(&format!("{name}__raw_answer"), &arguments);
            let told = client.post(&message("7", "tools/call", &params));
            assert_eq!(told.text, answer, "{name}");
        }
        // And on the way there: the backend is the one who cannot make anything of it.
        let arguments = format!(r#"{{"payload":{cut},"more":1}}"#);
        let told = client.post(&message("8", "tools/call", &call_params("json__echo", &arguments)));
        assert!(!told.text.contains("not JSON"), "{}", told.text);
    }
}

#[test]
fn requests_keep_every_byte_but_name_id_and_token() {
    let (proxy, _stubs, names) = proxy();
    let mut client = seeing(&proxy);
    for name in names {
        let body = format!(
            r#" {{"zz":9007199254740993, "jsonrpc":"2.0","params":{{"x":[1.0, {{"name":"no"}}],"name" :"{name}__raw", "arguments":{{"k" : 1.00E+300,"a":"\u0041\/","deep":{{"id":5,"method":"x"}}}},"_meta":{{"vendor/x":1.10,"progressToken":"tok"}}}},"id":77,"method":"tools/call"}} "#
        );
        let told = client.post(&body);
        assert_eq!(told.json()["id"], 77);
        let seen = told.said();
        let parsed: serde_json::Value =
            serde_json::from_str(&seen).unwrap_or_else(|error| panic!("{name}: {error}: {seen}"));
        let id = parsed["id"].to_string();
        let token = parsed["params"]["_meta"]["progressToken"].to_string();
        let expected = body
            .replace(&format!("{name}__raw"), "raw")
            .replace(r#""id":77"#, &format!(r#""id":{id}"#))
            .replace(r#""progressToken":"tok""#, &format!(r#""progressToken":{token}"#));
        assert_eq!(seen.trim(), expected.trim(), "{name}");
    }
}

#[test]
fn no_credential_or_cookie_of_the_client_reaches_a_backend() {
    // A server that only records what it is sent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, heads) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Read, Write};
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut input = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let (mut head, mut length) = (String::new(), 0);
                    while !head.ends_with("\r\n\r\n") {
                        let start = head.len();
                        if input.read_line(&mut head).unwrap_or(0) == 0 {
                            return;
                        }
                        let line = head[start..].to_ascii_lowercase();
                        if let Some(value) = line.strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                    }
                    let mut body = vec![0; length];
                    input.read_exact(&mut body).unwrap();
                    let text = String::from_utf8(body).unwrap();
                    let _ = sender.send((head.clone(), text.clone()));
                    let message: serde_json::Value =
                        serde_json::from_str(&text).unwrap_or_default();
                    let result = match message["method"].as_str() {
                        Some("initialize") => serde_json::json!({
                            "protocolVersion": "2025-11-25",
                            "capabilities": { "tools": {} },
                            "serverInfo": { "name": "recorder", "version": "0" },
                        }),
                        Some("tools/list") => serde_json::json!({
                            "tools": [{ "name": "t", "inputSchema": { "type": "object" } }],
                        }),
                        _ => serde_json::json!({ "content": [] }),
                    };
                    let answer = serde_json::json!({
                        "jsonrpc": "2.0", "id": message["id"], "result": result,
                    })
                    .to_string();
                    let answer = match message.get("id") {
                        Some(_) => format!(
                            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
                            answer.len()
                        ),
                        None if head.starts_with("GET") => {
                            "HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n".into()
                        }
                        None => "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".into(),
                    };
                    (&stream).write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    let backend = crate::support::process::http_backend("r", addr)
        + "headers = { X-Own = \"configured\" }\nbearer_token = \"own-secret\"\n";
    let proxy = Proxy::start(&[backend]);
    let mut client = proxy.client_seeing(&["r__t"]);
    let body = crate::support::client::message(
        "1",
        "tools/call",
        &crate::support::client::call_params("r__t", "{}"),
    );
    let request = format!(
        "POST /mcp HTTP/1.1\r\n{}{}{}Authorization: Bearer stolen\r\nCookie: c=stolen\r\n\
         Proxy-Authorization: stolen\r\nX-Forwarded-For: stolen\r\nX-Own: stolen\r\n\
         Connection: keep-alive, X-Hop\r\nX-Hop: stolen\r\nContent-Length: {}\r\n\r\n{body}",
        client.lines(),
        crate::support::client::ACCEPT,
        crate::support::client::JSON,
        body.len()
    );
    client.conn.send(request.as_bytes());
    client.told().result();
    let mut called = false;
    for (head, body) in heads.try_iter() {
        assert!(!head.contains("stolen"), "{head}");
        assert!(!head.contains(&client.session), "{head}");
        let fields = head.to_ascii_lowercase();
        assert!(fields.contains("\r\nx-own: configured\r\n"), "{head}");
        assert!(fields.contains("\r\nauthorization: bearer own-secret\r\n"), "{head}");
        assert!(fields.contains(&format!("\r\nhost: {addr}\r\n")), "{head}");
        called |= body.contains("tools/call");
    }
    assert!(called);
    assert!(!proxy.stderr().contains("own-secret"));
}
