//! `completion/complete`: who is asked, and what about (MCP 2025-11-25, Completion).

use serde_json::{Value, json};

use crate::support::client::{Client, message};
use crate::support::process::{HttpStub, Proxy, stdio_backend};

const BACKENDS: [&str; 2] = ["pipe", "web"];

fn proxy(keys: &str) -> (Proxy, HttpStub) {
    let stub = HttpStub::start("web", &["--utilities", "--extra", "2"]);
    let proxy = Proxy::start(&[
        stdio_backend("pipe", &["--utilities", "--extra", "2"]) + keys,
        stub.backend("web") + keys,
    ]);
    proxy.client_seeing(&["pipe__log", "web__log"]);
    (proxy, stub)
}

/// The request as the backend saw it.
fn seen(client: &mut Client, params: &Value) -> Value {
    let result = client.ask("completion/complete", &params.to_string()).result();
    assert_eq!(result["completion"]["total"], 1);
    let body = result["completion"]["values"][0].as_str().expect("what was seen");
    serde_json::from_str::<Value>(body).expect("JSON")["params"].take()
}

#[test]
fn prompts_and_resources_lead_to_their_backend() {
    let (proxy, _stub) = proxy("");
    let mut client = proxy.client();
    assert_eq!(client.hello["capabilities"]["completions"], json!({}));
    for backend in BACKENDS {
        let rest = |reference: Value| {
            json!({
                "ref": reference,
                "argument": { "name": "name", "value": "v\u{e9}" },
                "context": { "arguments": { "ref": "x", "name": "pipe__prompt" } },
                "_meta": { "x": 1 },
            })
        };
        let prompt = json!({ "type": "ref/prompt", "name": format!("{backend}__prompt") });
        let saw = seen(&mut client, &rest(prompt));
        assert_eq!(saw, rest(json!({ "type": "ref/prompt", "name": "prompt" })));
        for path in ["item/{id}", "item/7", "fixed"] {
            let uri = format!("stub://{backend}/{path}");
            let asked = rest(json!({ "type": "ref/resource", "uri": uri }));
            assert_eq!(seen(&mut client, &asked), asked);
        }
        // Escapes in the name, and at every worker.
        for _ in 0..6 {
            let mut again = client.again();
            let told = again.ask(
                "completion/complete",
                &format!(
                    r#"{{"ref":{{"name":"{backend}__prom\u0070t","type":"ref/prompt"}},"argument":{{}}}}"#
                ),
            );
            assert!(told.text.contains(r#"\"name\":\"prompt\""#), "{told:?}");
        }
    }
}

#[test]
fn what_is_hidden_or_renamed_is_so_here_too() {
    let keys = "hide_prompts = [\"p0001\"]\nhide_resources = [\"*item*\"]\n\
                aliases = [{ from = \"p0000\", to = \"first\" }]\n";
    let (proxy, _stub) = proxy(keys);
    let mut client = proxy.client();
    for backend in BACKENDS {
        let of = |name: &str| {
            json!({
                "ref": { "type": "ref/prompt", "name": format!("{backend}__{name}") },
                "argument": { "name": "a", "value": "" },
            })
        };
        assert_eq!(seen(&mut client, &of("first"))["ref"]["name"], "p0000");
        for hidden in ["p0000", "p0001", "never"] {
            let told = client.ask("completion/complete", &of(hidden).to_string());
            assert_eq!(told.error(), (-32602, format!("Unknown prompt: {backend}__{hidden}")));
        }
        for hidden in ["item/{id}", "item/7"] {
            let uri = format!("stub://{backend}/{hidden}");
            let asked = json!({ "ref": { "type": "ref/resource", "uri": uri }, "argument": {} });
            let (code, text) = client.ask("completion/complete", &asked.to_string()).error();
            assert_eq!(code, -32602);
            assert!(text.contains("Unknown resource"), "{text}");
        }
    }
}

#[test]
fn what_is_no_reference_is_refused() {
    let (proxy, _stub) = proxy("");
    let mut client = proxy.client();
    for params in [
        r#"{}"#,
        r#"{"ref":5}"#,
        r#"{"ref":{}}"#,
        r#"{"ref":{"type":"ref/tool","name":"web__echo"}}"#,
        r#"{"ref":{"type":"ref/prompt"}}"#,
        r#"{"ref":{"type":"ref/prompt","name":7}}"#,
        r#"{"ref":{"type":"ref/prompt","name":"nobody__prompt"}}"#,
        r#"{"ref":{"type":"ref/resource","uri":"nobody://x"}}"#,
        // Two readers may see two references in these.
        r#"{"ref":{"type":"ref/prompt","name":"web__prompt","name":"pipe__prompt"}}"#,
        r#"{"ref":{"type":"ref/prompt","name":"web__prompt"},"r\u0065f":{"type":"ref/prompt","name":"pipe__prompt"}}"#,
    ] {
        let told = client.ask("completion/complete", params);
        assert_eq!(told.error().0, -32602, "{params}: {told:?}");
    }
}

#[test]
fn capabilities_tell_the_truth_and_batches_work() {
    let proxy = Proxy::start(&[stdio_backend("plain", &[])]);
    proxy.client_seeing(&["plain__echo"]);
    let mut client = proxy.client();
    for missing in ["completions", "logging"] {
        assert!(client.hello["capabilities"].get(missing).is_none(), "{}", client.hello);
    }
    assert!(client.hello["capabilities"]["resources"].get("subscribe").is_none());
    // The backend's own answer is the answer.
    let asked = r#"{"ref":{"type":"ref/prompt","name":"plain__prompt"},"argument":{}}"#;
    assert_eq!(client.ask("completion/complete", asked).error(), (-32601, "no such method".into()));

    let (proxy, _stub) = self::proxy("");
    let mut client = Client::connect_at(proxy.addr, "2025-03-26");
    let complete = message(
        "1",
        "completion/complete",
        r#"{"ref":{"type":"ref/prompt","name":"web__prompt"},"argument":{}}"#,
    );
    let level = message("2", "logging/setLevel", r#"{"level":"error"}"#);
    let subscribe = message("3", "resources/subscribe", r#"{"uri":"stub://pipe/fixed"}"#);
    let told = client.post(&format!("[{complete},{level},{subscribe}]"));
    let answers = told.json();
    let answers = answers.as_array().expect("an array");
    assert_eq!(answers.len(), 3, "{told:?}");
    assert!(answers.iter().all(|answer| answer["result"].is_object()), "{told:?}");
}
