//! What the proxy tells to the outside, read by those who made the formats: Prometheus' checker and
//! its Python parser, OpenTelemetry's own messages, a validator of OpenAPI.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::install::{judges, promtool};
use crate::support::client::message;
use crate::support::http::once;
use crate::support::process::{HttpStub, stdio_backend};
use crate::support::{wait_for, wait_until};
use crate::traces;

/// Lets a program read `text`.
fn fed(program: &Path, arguments: &[&str], text: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    // Dropped behind the write: the program sees the end.
    let written = child.stdin.take().expect("a pipe").write_all(text);
    let output = child.wait_with_output().expect("its output");
    assert!(written.is_ok() || !output.status.success(), "{written:?}");
    output
}

/// What the judge of `kind` understood, which is an error if it refuses.
fn judged(kind: &str, text: &[u8]) -> Result<Value, String> {
    let (python, script) = judges().expect("seen before");
    let output = fed(python, &[script.to_str().expect("UTF-8"), kind], text);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
}

#[test]
fn others_understand_metrics_spans_and_the_description() {
    if judges().is_none() {
        return;
    }
    let collector = traces::Collector::start();
    let web = HttpStub::start("web", &["--annotated"]);
    let backends = stdio_backend("pipe", &[])
        + &web.backend("web")
        + "circuit_breaker = {}\ncache = { tool_ttl_seconds = 60 }\n";
    let proxy = traces::start(collector.addr, "", backends);
    let mut client = proxy.client_seeing(&["pipe__echo", "web__echo"]);
    for tool in ["pipe__echo", "web__echo", "web__echo", "no-such-tool \"\\\n"] {
        let name = Value::from(tool);
        client.post(&message("1", "tools/call", &format!(r#"{{"name":{name},"arguments":{{}}}}"#)));
    }

    // A page that counts all of these.
    let page = wait_for("a page with a call of web", || {
        let page = once(proxy.addr, "GET", "/admin/metrics", "").text().to_owned();
        page.contains(r#"backend="web""#).then_some(page)
    });
    let families = judged("metrics", page.as_bytes()).expect("accepted by prometheus_client");
    for (name, kind) in [
        // The parser takes the suffix `_total` off.
        ("mcp_proxy_requests", "counter"),
        ("mcp_proxy_request_duration_seconds", "histogram"),
        ("mcp_proxy_backend_up", "gauge"),
        ("mcp_proxy_breaker_state", "gauge"),
        ("process_cpu_seconds", "counter"),
    ] {
        assert_eq!(families[name]["type"], kind, "{name}: {families}");
        assert!(families[name]["samples"].as_u64() > Some(0), "{name}: {families}");
    }
    // The judge does refuse.
    assert!(judged("metrics", b"# TYPE a counter\na{b=\"c} 1\n").is_err());
    match promtool() {
        Ok(promtool) => {
            let check = |text: &[u8]| fed(&promtool, &["check", "metrics"], text);
            let output = check(page.as_bytes());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.is_empty(), "{said}");
            assert!(!check(b"a 1\na 2\n").status.success());
        }
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED the part of promtool: {why}");
        }
    }

    let understood = |kind: i64| {
        let requests = collector.requests.lock().unwrap().clone();
        let spans = requests.iter().flat_map(|request| {
            let spans = judged("spans", request).expect("decoded by opentelemetry-proto");
            spans.as_array().expect("a list").clone()
        });
        spans.filter(|span| span["kind"] == kind).collect::<Vec<_>>()
    };
    // SPAN_KIND_SERVER is 2, SPAN_KIND_CLIENT is 3.
    wait_until("spans of calls", || understood(3).len() >= 2);
    let (servers, attempts) = (understood(2), understood(3));
    for attempt in &attempts {
        let parent = servers.iter().find(|server| server["id"] == attempt["parent"]);
        let parent = parent.unwrap_or_else(|| panic!("{attempt} has no parent in {servers:?}"));
        assert_eq!(parent["trace"], attempt["trace"]);
        assert_eq!(parent["service"], attempt["service"]);
        let attributes = attempt["attributes"].as_array().expect("a list");
        assert!(attributes.contains(&Value::from("mcp.method.name")), "{attempt}");
    }
    assert!(judged("spans", b"\x0a\xff").is_err());

    let description = once(proxy.addr, "GET", "/admin/openapi.json", "");
    let paths = judged("openapi", &description.body).expect("accepted by openapi-spec-validator");
    assert!(paths["paths"].as_u64() >= Some(8), "{paths}");
    assert!(judged("openapi", br#"{"openapi":"3.1.0"}"#).is_err());
}
