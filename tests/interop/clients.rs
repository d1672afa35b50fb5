//! Owns: the SDKs' clients, of both eras, that can do all that a client can, before one backend:
//! what each sees through the proxy is what it sees directly.
//! Never: an order that nobody promises; those things are compared as sets.

use serde_json::{Value, json};

use super::compare::{as_set, differ, direct_entries, own_entries, without_era};
use super::run::{self, Client, Everything, NodeServer, Reference};
use super::{EVERYTHING, LISTS, STEPS, everything_job, install, on};

/// What a client is told to speak.
#[derive(Clone, Copy, PartialEq)]
enum Era {
    /// With `initialize`, in an SDK that knows no other too.
    Legacy,
    /// What the other side turns out to speak.
    Auto,
    /// 2026-07-28 and nothing else.
    Modern,
}

/// How a server is reached, directly and by the proxy.
#[derive(Clone, Copy)]
enum Over {
    Http,
    /// As a child of the client's own, and through the proxy as one of its session.
    Stdio,
}

/// A job that makes use of all that server-everything has.
fn everything(prefix: &str) -> Value {
    let named = |name: &str| format!("{prefix}{name}");
    let call =
        |name: &str, arguments: Value| json!({ "name": named(name), "arguments": arguments });
    let mut job = everything_job(prefix, "");
    job.as_object_mut().expect("object").remove("cancel");
    let opened =
        json!({ "url": "https://example.org/", "message": "Open", "elicitationId": "e-1" });
    job["calls"].as_array_mut().expect("list").extend([
        call("trigger-sampling-request", json!({ "prompt": "Well?", "maxTokens": 7 })),
        call("trigger-elicitation-request", json!({})),
        call("trigger-url-elicitation", opened),
        call("get-roots-list", json!({})),
    ]);
    let prompt = json!({ "type": "ref/prompt", "name": named("completable-prompt") });
    let template =
        json!({ "type": "ref/resource", "uri": "demo://resource/dynamic/text/{resourceId}" });
    let engineers = json!({ "arguments": { "department": "Engineering" } });
    job["completes"] = json!([
        { "ref": prompt, "argument": { "name": "department", "value": "S" } },
        { "ref": prompt, "argument": { "name": "name", "value": "" }, "context": engineers },
        { "ref": template, "argument": { "name": "resourceId", "value": "1" } },
    ]);
    job["asks"] = json!(true);
    job
}

/// What only the era of sessions has: a level of the session's log, resources that it watches, and
/// the error that asks for a visit to a page.
fn with_session(mut job: Value, prefix: &str) -> Value {
    let named = |name: &str| format!("{prefix}{name}");
    job["level"] = json!("debug");
    job["watch"] = json!({
        "uri": "demo://resource/static/document/features.md",
        "toggle": { "name": named("toggle-subscriber-updates"), "arguments": {} },
    });
    let refused = json!({ "url": "https://example.org/", "message": "Open", "errorPath": true });
    job["calls"]
        .as_array_mut()
        .expect("list")
        .push(json!({ "name": named("trigger-url-elicitation"), "arguments": refused }));
    job
}

/// A job that makes use of what the reference server has in either era.
fn reference(prefix: &str) -> Value {
    let call = |name: &str, arguments: Value| json!({ "name": format!("{prefix}{name}"), "arguments": arguments });
    let get = call;
    let prompt = format!("{prefix}test_prompt_with_arguments");
    json!({
        "asks": true,
        "level": "debug",
        "progress": call("test_tool_with_progress", json!({})),
        "calls": [
            call("test_simple_text", json!({})),
            call("test_multiple_content_types", json!({})),
            call("test_audio_content", json!({})),
            call("test_error_handling", json!({})),
            call("test_tool_with_logging", json!({})),
            call("test_sampling", json!({ "prompt": "Well?" })),
            call("test_elicitation", json!({ "message": "Who?" })),
            call("test_elicitation_sep1034_defaults", json!({})),
            call("test_streaming_elicitation", json!({})),
            call("test_input_required_result_request_state", json!({})),
            call("test_input_required_result_multiple_inputs", json!({})),
            call("test_input_required_result_multi_round", json!({})),
            call("test_x_mcp_header", json!({ "region": "caf\u{e9} \u{1f980}" })),
            call("test_sampling", json!({})),
            call("no-such-tool", json!({})),
        ],
        "reads": ["test://static-text", "test://static-binary", "test://template/7/data", "test://none"],
        "gets": [
            get("test_simple_prompt", json!({})),
            get("test_prompt_with_arguments", json!({ "arg1": "a", "arg2": "b" })),
            get("test_prompt_with_embedded_resource", json!({ "resourceUri": "test://static-text" })),
            get("test_input_required_result_prompt", json!({})),
            get("test_prompt_with_arguments", json!({ "arg1": "a" })),
            get("no-such-prompt", json!({})),
        ],
        "completes": [{
            "ref": { "type": "ref/prompt", "name": prompt },
            "argument": { "name": "arg1", "value": "a" },
        }],
        "watch": { "uri": "test://watched-resource" },
        "listen": [
            call("test_trigger_tool_change", json!({})),
            call("test_trigger_prompt_change", json!({})),
        ],
    })
}

fn speaking(job: Value, era: Era) -> Value {
    let era = match era {
        Era::Legacy => "legacy",
        Era::Auto => "auto",
        Era::Modern => "modern",
    };
    on(job, "era", json!(era))
}

/// server-everything, which speaks the era of sessions alone: a client that is told to speak the
/// newer one sees through the proxy what it would see directly in the older one.
fn before_everything(client: Client, era: Era, over: Over) {
    let Some(home) = install::node().filter(|_| client.is_installed()) else { return };
    let scratch = tempfile::tempdir().expect("scratch folder");
    let log = |name: &str| scratch.path().join(name);
    let mut remote = None;
    let (on_it, table) = match over {
        Over::Http => {
            let remote = remote.insert(Everything::start(home, log("remote.log")));
            (("url", json!(remote.url)), remote.table("everything"))
        }
        Over::Stdio => {
            let child = |name| NodeServer::node(home, log(name), EVERYTHING, &[]);
            let table = child("through.log").table("everything") + "isolation = \"session\"\n";
            (("stdio", child("direct.log").job()), table)
        }
    };

    let job = |prefix: &str| match era {
        Era::Legacy => with_session(everything(prefix), prefix),
        Era::Auto | Era::Modern => everything(prefix),
    };
    let spoken = if era == Era::Modern { Era::Legacy } else { era };
    let (on_it, it) = on_it;
    let direct = client.run(&on(speaking(job(""), spoken), on_it, it));
    // There is something to compare.
    let count = |told: &Value| told.as_array().map_or(0, Vec::len);
    assert!(count(&direct["tools"]) >= 17 && count(&direct["asked"]) >= 4, "{direct}");
    assert_eq!(count(&direct["progress"]["notifications"]), STEPS, "{direct}");
    let told = count(&direct["messages"]).min(count(&direct["updated"]));
    assert!(era != Era::Legacy || told > 0, "{direct}");
    assert!(era != Era::Legacy || direct["calls"].to_string().contains("-32042"), "{direct}");

    let (_proxy, url) = run::proxy(&[table]);
    let through = client.run(&on(speaking(job("everything__"), era), "url", json!(url)));
    if era == Era::Legacy {
        compare(&direct, &through, "everything__", "demo://");
    } else {
        compare(&without_era(direct), &without_era(through), "everything__", "demo://");
    }
}

/// The reference server, which speaks both eras.
fn before_reference(client: Client, era: Era) {
    if install::reference().is_none() || !client.is_installed() {
        return;
    }
    let scratch = tempfile::tempdir().expect("scratch folder");
    let server = Reference::start(&scratch.path().join("reference.log"));
    let direct = client.run(&on(speaking(reference(""), era), "url", json!(server.url)));
    let version = if era == Era::Legacy { "2025-11-25" } else { "2026-07-28" };
    assert_eq!(direct["initialize"]["protocolVersion"], version);
    // There is something to compare.
    let count = |told: &Value| told.as_array().map_or(0, Vec::len);
    assert!(count(&direct["asked"]) >= 3 && count(&direct["messages"]) == 3, "{direct}");
    assert_eq!(count(&direct["progress"]["notifications"]), 3, "{direct}");
    assert!(era == Era::Legacy || count(&direct["listen"]["heard"]) == 2, "{direct}");

    let (_proxy, url) = run::proxy(&[server.table("reference")]);
    let through = client.run(&on(speaking(reference("reference__"), era), "url", json!(url)));
    assert_eq!(through["initialize"]["protocolVersion"], version);
    compare(&direct, &through, "reference__", "test://");
}

fn compare(direct: &Value, through: &Value, prefix: &str, scheme: &str) {
    // What the SDK itself refused has not been compared.
    assert!(!direct.to_string().contains("\"failed\":"), "{direct}");
    let mut differences = Vec::new();
    for list in LISTS {
        let own = match through[list].is_array() {
            true => own_entries(through, list, prefix, scheme),
            false => through[list].clone(),
        };
        differ(list, &direct_entries(direct, list), &own, &mut differences);
    }
    for answers in ["progress", "calls", "reads", "gets", "completes", "level", "watch", "listen"] {
        differ(answers, &direct[answers], &through[answers], &mut differences);
    }
    let mut messages = direct["messages"].clone();
    // Which backend a message is of stands in its logger.
    let backend = prefix.trim_end_matches('_');
    for message in messages.as_array_mut().into_iter().flatten() {
        let logger = match message["logger"].as_str() {
            Some(own) => format!("{backend}/{own}"),
            None => backend.to_owned(),
        };
        message["logger"] = json!(logger);
    }
    differ("messages", &as_set(&messages), &as_set(&through["messages"]), &mut differences);
    for told in ["asked", "updated"] {
        differ(told, &as_set(&direct[told]), &as_set(&through[told]), &mut differences);
    }
    let capabilities = |seen: &Value| seen["initialize"]["capabilities"].clone();
    for (name, _) in capabilities(direct).as_object().into_iter().flatten() {
        // The union of what backends have; tasks are promised by the proxy where it serves them.
        if name != "tasks" && !capabilities(through)[name].is_object() {
            differences.push(format!("initialize.capabilities.{name}: lost"));
        }
    }
    assert!(differences.is_empty(), "not as directly:\n{}", differences.join("\n"));
}

#[test]
fn older_typescript_before_everything_on_http() {
    before_everything(Client::TypeScript, Era::Legacy, Over::Http);
}

#[test]
fn older_typescript_before_everything_on_stdio() {
    before_everything(Client::TypeScript, Era::Legacy, Over::Stdio);
}

#[test]
fn older_typescript_before_the_reference() {
    before_reference(Client::TypeScript, Era::Legacy);
}

#[test]
fn typescript_legacy_before_everything_on_http() {
    before_everything(Client::TypeScript2, Era::Legacy, Over::Http);
}

#[test]
fn typescript_legacy_before_everything_on_stdio() {
    before_everything(Client::TypeScript2, Era::Legacy, Over::Stdio);
}

#[test]
fn typescript_legacy_before_the_reference() {
    before_reference(Client::TypeScript2, Era::Legacy);
}

#[test]
fn typescript_auto_before_everything_on_http() {
    before_everything(Client::TypeScript2, Era::Auto, Over::Http);
}

#[test]
fn typescript_auto_before_everything_on_stdio() {
    before_everything(Client::TypeScript2, Era::Auto, Over::Stdio);
}

#[test]
fn typescript_auto_before_the_reference() {
    before_reference(Client::TypeScript2, Era::Auto);
}

#[test]
fn typescript_modern_before_everything_on_http() {
    before_everything(Client::TypeScript2, Era::Modern, Over::Http);
}

#[test]
fn typescript_modern_before_everything_on_stdio() {
    before_everything(Client::TypeScript2, Era::Modern, Over::Stdio);
}

#[test]
fn typescript_modern_before_the_reference() {
    before_reference(Client::TypeScript2, Era::Modern);
}

#[test]
fn older_python_before_everything_on_http() {
    before_everything(Client::Python, Era::Legacy, Over::Http);
}

#[test]
fn older_python_before_everything_on_stdio() {
    before_everything(Client::Python, Era::Legacy, Over::Stdio);
}

#[test]
fn older_python_before_the_reference() {
    before_reference(Client::Python, Era::Legacy);
}

#[test]
fn python_legacy_before_everything_on_http() {
    before_everything(Client::Python2, Era::Legacy, Over::Http);
}

#[test]
fn python_legacy_before_everything_on_stdio() {
    before_everything(Client::Python2, Era::Legacy, Over::Stdio);
}

#[test]
fn python_legacy_before_the_reference() {
    before_reference(Client::Python2, Era::Legacy);
}

#[test]
fn python_auto_before_everything_on_http() {
    before_everything(Client::Python2, Era::Auto, Over::Http);
}

#[test]
fn python_auto_before_everything_on_stdio() {
    before_everything(Client::Python2, Era::Auto, Over::Stdio);
}

#[test]
fn python_auto_before_the_reference() {
    before_reference(Client::Python2, Era::Auto);
}

#[test]
fn python_modern_before_everything_on_http() {
    before_everything(Client::Python2, Era::Modern, Over::Http);
}

#[test]
fn python_modern_before_everything_on_stdio() {
    before_everything(Client::Python2, Era::Modern, Over::Stdio);
}

#[test]
fn python_modern_before_the_reference() {
    before_reference(Client::Python2, Era::Modern);
}
