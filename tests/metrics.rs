//! `GET /admin/metrics`, read by a strict parser.

use std::collections::{BTreeMap, BTreeSet};

use crate::modern::Caller;
use crate::reload::reload;
use crate::support::http::once;
use crate::support::process::{HttpStub, Proxy, Setup, free_port, http_backend, stdio_backend};
use crate::support::{wait_for, wait_until};

/// A page of metrics: samples by name and labels.
pub(crate) struct Page {
    samples: BTreeMap<String, BTreeMap<BTreeMap<String, String>, f64>>,
    kinds: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
}

impl Page {
    pub(crate) fn of(proxy: &Proxy) -> Page {
        let answer = once(proxy.addr, "GET", "/admin/metrics", "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let media = answer.head.field("content-type").unwrap();
        assert!(media.starts_with("text/plain; version=0.0.4"), "{media}");
        Page::parse(answer.text())
    }

    /// Prometheus text format 0.0.4: every sample belongs to the family above it.
    fn parse(text: &str) -> Page {
        let mut page =
            Page { samples: BTreeMap::new(), kinds: BTreeMap::new(), helps: BTreeMap::new() };
        let mut family = String::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                let old = page.helps.insert(name.to_owned(), help.to_owned());
                assert!(!help.is_empty() && old.is_none(), "{line}");
                family = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, family, "HELP stands before TYPE");
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
                page.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                let (key, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = match key.split_once('{') {
                    Some((name, rest)) => (name, labels(rest.strip_suffix('}').expect("a brace"))),
                    None => (key, BTreeMap::new()),
                };
                let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line}"));
                let is_histogram = page.kinds[&family] == "histogram";
                match suffix {
                    "" => assert!(!is_histogram, "{line}"),
                    "_bucket" | "_sum" | "_count" => assert!(is_histogram, "{line}"),
                    _ => panic!("{line} below {family}"),
                }
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
                let old = page.samples.entry(name.to_owned()).or_default().insert(labels, value);
                assert!(old.is_none(), "twice: {line}");
            }
        }
        page
    }

    /// The sum of all samples of the name with these labels; 0 if there are none.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let rows = self.samples.get(name);
        let fits = |row: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| row.get(*label).is_some_and(|v| v == value))
        };
        rows.map_or(0.0, |rows| rows.iter().filter(|(row, _)| fits(row)).map(|(_, v)| v).sum())
    }

    fn series(&self) -> usize {
        self.samples.values().map(BTreeMap::len).sum()
    }
}

/// `a="x",b="y"` with escapes.
fn labels(text: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a label");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("the quote closes") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("an escape").1 {
                    'n' => value.push('\n'),
                    c @ ('"' | '\\') => value.push(c),
                    c => panic!("escape {c}"),
                },
                (_, c) => value.push(c),
            }
        };
        assert!(out.insert(name.to_owned(), value).is_none(), "{text}");
        rest = after[end + 1..].strip_prefix(',').unwrap_or(&after[end + 1..]);
    }
    out
}

#[test]
fn requests_are_counted_by_backend_method_and_outcome() {
    let web = HttpStub::start("web", &["--annotated"]);
    let retry = "retry = { max_retries = 2, initial_backoff_ms = 1 }\n";
    let proxy = Proxy::start(&[
        stdio_backend("pipe", &[]),
        web.backend("web") + retry,
        http_backend("dead", format!("127.0.0.1:{}", free_port()).parse().unwrap()),
    ]);
    // Several connections, so that both workers count.
    let mut clients: Vec<_> =
        (0..8).map(|_| proxy.client_seeing(&["pipe__echo", "web__echo"])).collect();
    for client in &mut clients {
        for _ in 0..3 {
            client.call("pipe__echo", r#"{"payload":"x"}"#).said();
        }
        client.call("web__echo", "{}").said();
        client.ask("ping", "{}").result();
    }
    let client = &mut clients[0];
    client.call("web__reads", r#"{"key":"a","fails":1,"how":"internal"}"#).said();
    let told = client.call("web__reads", r#"{"key":"b","fails":1,"how":"is_error"}"#);
    assert_eq!(told.result()["isError"], true);
    client.call("web__reads", r#"{"key":"c","fails":9,"how":"params"}"#).error();
    client.call("dead__x", "{}").error();
    client.call("nobody__x", "{}").error();
    client.ask("no/such/method", "{}").error();
    let page = Page::of(&proxy);
    let count = |backend: &str, method: &str, status: &str| {
        let labels = [("backend", backend), ("method", method), ("status", status)];
        page.get("mcp_proxy_requests_total", &labels)
    };
    assert_eq!(count("pipe", "tools/call", "ok"), 24.0);
    assert_eq!(count("web", "tools/call", "ok"), 9.0);
    assert_eq!(count("web", "tools/call", "tool_error"), 1.0);
    assert_eq!(count("web", "tools/call", "error"), 1.0);
    assert_eq!(count("dead", "tools/call", "error"), 1.0);
    assert_eq!(count("proxy", "tools/call", "error"), 1.0);
    assert_eq!(count("proxy", "ping", "ok"), 8.0);
    assert_eq!(count("proxy", "initialize", "ok"), 8.0);
    assert_eq!(count("proxy", "other", "error"), 1.0);
    let tool = |backend: &str, tool: &str, status: &str| {
        let labels = [("backend", backend), ("tool", tool), ("status", status)];
        page.get("mcp_proxy_tool_calls_total", &labels)
    };
    assert_eq!(tool("pipe", "echo", "ok"), 24.0);
    assert_eq!(tool("web", "reads", "tool_error"), 1.0);
    assert_eq!(tool("dead", "other", "error"), 1.0);
    let attempts = |backend: &str, kind: &str| {
        page.get("mcp_proxy_attempts_total", &[("backend", backend), ("kind", kind)])
    };
    assert_eq!((attempts("pipe", "first"), attempts("pipe", "retry")), (24.0, 0.0));
    assert_eq!((attempts("web", "first"), attempts("web", "retry")), (11.0, 1.0));
    // Histograms: cumulative, and as many as there were requests.
    let labels = [("backend", "pipe"), ("method", "tools/call")];
    let name = "mcp_proxy_request_duration_seconds";
    assert_eq!(page.get(&format!("{name}_count"), &labels), 24.0);
    assert!(page.get(&format!("{name}_sum"), &labels) > 0.0);
    let buckets: Vec<(f64, f64)> = page.samples[&format!("{name}_bucket")]
        .iter()
        .filter(|(row, _)| row["backend"] == "pipe" && row["method"] == "tools/call")
        .map(|(row, count)| (row["le"].parse().unwrap_or(f64::INFINITY), *count))
        .collect();
    let mut buckets = buckets;
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 24.0)));
    assert_eq!((buckets[0].0, buckets[buckets.len() - 2].0), (0.0001, 60.0));
    assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{buckets:?}");
    let all: f64 = page.get("mcp_proxy_requests_total", &[]);
    assert_eq!(page.get("mcp_proxy_overhead_seconds_count", &[]), all);
    // What is read elsewhere.
    assert_eq!(page.get("mcp_proxy_backend_up", &[("backend", "pipe")]), 1.0);
    assert_eq!(page.get("mcp_proxy_backend_up", &[("backend", "dead")]), 0.0);
    assert_eq!(page.get("mcp_proxy_sessions", &[]), 8.0);
    assert!(page.get("mcp_proxy_connections", &[]) >= 8.0);
    assert_eq!(page.get("mcp_proxy_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(page.samples["mcp_proxy_worker_busy_seconds_total"].len(), 2);
    assert!(page.get("mcp_proxy_worker_busy_seconds_total", &[]) > 0.0);
    assert!(page.get("process_resident_memory_bytes", &[]) > 1e6);
    assert!(page.get("process_open_fds", &[]) > 10.0);
    let cpu = page.get("process_cpu_seconds_total", &[]);
    let later = wait_for("more processor time", || {
        let later = Page::of(&proxy).get("process_cpu_seconds_total", &[]);
        (later > cpu).then_some(later)
    });
    assert!(later < cpu + 600.0);
}

/// Dashboards and alerts name them: every one is there from the start, in a proxy that has done
/// nothing, with what it is.
#[test]
fn every_family_is_there_from_the_start() {
    let proxy = Proxy::start(&[stdio_backend("pipe", &[])]);
    let page = Page::of(&proxy);
    for (kind, names) in [
        (
            "counter",
            "requests_total tool_calls_total attempts_total refused_total ejections_total \
             cache_requests_total coalesced_total child_restarts_total config_reloads_total \
             mirrored_total contested_reads_total worker_busy_seconds_total telemetry_lost_total",
        ),
        ("histogram", "request_duration_seconds overhead_seconds"),
        (
            "gauge",
            "backend_up backend_in_flight backend_connections breaker_state cache_entries \
             cache_bytes sessions connections streams name_conflicts config_last_reload_timestamp_seconds \
             build_info",
        ),
    ] {
        for name in names.split_whitespace() {
            let name = format!("mcp_proxy_{name}");
            assert_eq!(page.kinds.get(&name).map(String::as_str), Some(kind), "{name}");
        }
    }
    assert!(page.get("mcp_proxy_config_last_reload_timestamp_seconds", &[]) > 1e9);
    for result in ["applied", "refused"] {
        let rows = &page.samples["mcp_proxy_config_reloads_total"];
        assert!(rows.iter().any(|(row, count)| row["result"] == result && *count == 0.0));
    }
}

/// README.md has a row for each family, with its kind, labels and words, and no other row.
#[test]
fn every_family_is_in_the_readme() {
    let web = HttpStub::start("web", &[]);
    let (cache, mirror) = ("cache = { tool_ttl_seconds = 60 }\n", "mirror_of = \"web\"\n");
    let around = "circuit_breaker = {}\noutlier_detection = {}\n";
    let once_each = Setup {
        proxy: "[performance]\ncoalesce_requests = true\n".into(),
        backends: web.backend("web") + "hide_tools = [\"rich\"]\n" + cache + around,
        ..Setup::default()
    };
    let mirrored = Proxy::start(&[web.backend("web"), web.backend("copy") + mirror]);
    let proxies = [once_each.start(), mirrored];
    let mut families = BTreeMap::new();
    for proxy in &proxies {
        let mut client = proxy.client_seeing(&["web__echo"]);
        client.call("web__echo", "{}").said();
        client.call("web__rich", "{}");
        wait_until("the mirror", || {
            let is_mirrored = proxy.addr == proxies[1].addr;
            let page = Page::of(proxy);
            let count = page.get("mcp_proxy_mirrored_total", &[("result", "same")]);
            for (name, kind) in &page.kinds {
                let rows = [name.clone(), format!("{name}_count")];
                let rows = rows.iter().filter_map(|name| page.samples.get(name)).flatten();
                let words = (kind.clone(), page.helps[name].clone());
                let (_, labels): &mut (_, BTreeSet<String>) =
                    families.entry(name.clone()).or_insert((words, BTreeSet::new()));
                labels.extend(rows.flat_map(|(row, _)| row.keys().cloned()));
            }
            !is_mirrored || count >= 2.0
        });
    }

    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let readme = readme.expect("README.md");
    let table = readme.split("| name | kind | labels | meaning |\n").nth(1).expect("the table");
    let table = table.split("\n\n").next().expect("its end");
    let mut shown = BTreeMap::new();
    for row in table.lines().skip(1) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("{row}") };
        let name = name.trim_matches('`');
        let prefix = if name.starts_with("process_") { "" } else { "mcp_proxy_" };
        // Values stand behind a label, in brackets or behind a colon.
        let labels = labels.split(", ").filter_map(|word| word.strip_prefix('`'));
        let labels = labels.map(|word| word.split('`').next().expect("a label").to_owned());
        let words = (kind.to_owned(), help.to_owned());
        shown.insert(format!("{prefix}{name}"), (words, labels.collect::<BTreeSet<_>>()));
    }
    assert_eq!(shown, families);
}

#[test]
fn refusals_are_counted_by_their_reason() {
    let web = HttpStub::start("web", &["--annotated"]);
    let rate = HttpStub::start("rate", &[]);
    let proxy = Setup {
        backends: web.backend("web")
            + "hide_tools = [\"rich\"]\n\
               [backends.concurrency]\nmax_concurrent = 1\nqueue = 0\n\
               [backends.circuit_breaker]\nminimum_calls = 1\nwait_duration_seconds = 600\n"
            + &rate.backend("rate")
            + "rate_limit = { requests = 1, period_seconds = 600 }\n",
        proxy: "[security]\nmax_argument_size = 200\n".into(),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["web__echo", "rate__echo"]);
    let refused = |backend: &str, reason: &str| {
        let labels = [("backend", backend), ("reason", reason)];
        Page::of(&proxy).get("mcp_proxy_refused_total", &labels)
    };
    client.call("rate__echo", "{}").said();
    client.call("rate__echo", "{}").error();
    assert_eq!(refused("rate", "rate"), 1.0);
    client.call("web__rich", "{}").error();
    assert_eq!(refused("web", "filter"), 1.0);
    client.call("web__echo", &format!(r#"{{"payload":"{}"}}"#, "x".repeat(300))).error();
    assert_eq!(refused("web", "size"), 1.0);
    let mut other = proxy.client();
    let hang = r#"{"name":"web__hang","arguments":{}}"#;
    other.send(&crate::support::client::message("7", "tools/call", hang));
    wait_until("the call to take the place", || {
        Page::of(&proxy).get("mcp_proxy_backend_in_flight", &[("backend", "web")]) == 1.0
    });
    client.call("web__echo", "{}").error();
    assert_eq!(refused("web", "concurrency"), 1.0);
    other.again().notify("notifications/cancelled", r#"{"requestId":7}"#);
    wait_until("the place to be free", || {
        client.call("web__echo", "{}").json().get("error").is_none()
    });
    while client.call("web__reads", r#"{"key":"a","fails":9}"#).error().0 != -32013 {}
    assert!(refused("web", "breaker") >= 1.0);
    assert_eq!(Page::of(&proxy).get("mcp_proxy_breaker_state", &[("backend", "web")]), 2.0);
}

#[test]
fn unknown_names_add_no_series() {
    let proxy = Setup {
        backends: stdio_backend("bare", &[]) + "prefix = \"\"\n" + &stdio_backend("pipe", &[]),
        workers: Some(1),
        ..Setup::default()
    }
    .start();
    let mut client = proxy.client_seeing(&["echo", "pipe__echo"]);
    client.call("pipe__nothing", "{}").error();
    client.call("nothing", "{}").error();
    client.ask("nothing/at/all", "{}").error();
    let before = Page::of(&proxy).series();
    for n in 0..10_000 {
        match n % 3 {
            0 => client.call(&format!("pipe__x{n}"), "{}").error(),
            1 => client.call(&format!("x{n}"), "{}").error(),
            _ => client.ask(&format!("x{n}"), "{}").error(),
        };
    }
    let page = Page::of(&proxy);
    assert_eq!(page.series(), before);
    assert_eq!(page.get("mcp_proxy_tool_calls_total", &[("tool", "other")]), 6669.0);
}

#[test]
fn metrics_can_be_off() {
    let proxy = Setup {
        backends: stdio_backend("pipe", &[]),
        proxy: "[observability.metrics]\nenabled = false\n".into(),
        ..Setup::default()
    }
    .start();
    proxy.client_seeing(&["pipe__echo"]).call("pipe__echo", "{}").said();
    let answer = once(proxy.addr, "GET", "/admin/metrics", "");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"], "not_found");
}

/// Subscriptions and completions that a filter refused were errors, all others were denied.
#[test]
fn what_is_hidden_is_denied_however_it_is_asked_for() {
    let stub = HttpStub::start("web", &["--utilities", "--extra", "1"]);
    let keys = "hide_resources = [\"*fixed\", \"*item*\"]\nhide_prompts = [\"p0000\"]\n";
    let proxy = Proxy::start(&[stub.backend("web") + keys]);
    let mut client = proxy.client_seeing(&["web__touch"]);
    let uri = r#"{"uri":"stub://web/fixed"}"#;
    let asked =
        |kind: &str| format!(r#"{{"ref":{{"type":{kind}}},"argument":{{"name":"a","value":""}}}}"#);
    let fixed = asked(r#""ref/resource","uri":"stub://web/fixed""#);
    let template = asked(r#""ref/resource","uri":"stub://web/item/{id}""#);
    let prompt = asked(r#""ref/prompt","name":"web__p0000""#);
    for (n, (method, params)) in [
        ("resources/read", uri),
        ("resources/subscribe", uri),
        ("resources/unsubscribe", uri),
        ("completion/complete", &fixed),
        ("completion/complete", &template),
        ("completion/complete", &prompt),
    ]
    .into_iter()
    .enumerate()
    {
        client.ask(method, params).error();
        let page = Page::of(&proxy);
        let of = |name, label| page.get(name, &[("backend", "web"), label]);
        let denied = of("mcp_proxy_requests_total", ("status", "denied"));
        let refused = of("mcp_proxy_refused_total", ("reason", "filter"));
        assert_eq!((denied, refused), (n as f64 + 1.0, n as f64 + 1.0), "{method} {params}");
    }
}

#[test]
fn conflicts_are_counted() {
    let stubs = ["same", "same"].map(|name| HttpStub::start(name, &[]));
    let backends = ["one", "two"].iter().zip(&stubs).map(|(name, stub)| stub.backend(name));
    let backends: Vec<String> = backends.map(|text| text + "prefix = \"\"\n").collect();
    let proxy = Proxy::start(&backends);
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client_seeing(&["echo"])).collect();
    let get = |name: &str| Page::of(&proxy).get(name, &[]);
    // Tools, prompts, a resource and a template.
    wait_until("the conflicts", || get("mcp_proxy_name_conflicts") > 16.0);
    assert_eq!(get("mcp_proxy_contested_reads_total"), 0.0);
    for client in &mut clients {
        client.ask("resources/read", r#"{"uri":"stub://same/item/7"}"#).result();
    }
    assert_eq!(get("mcp_proxy_contested_reads_total"), 4.0);
    // Neither list nor counter begins anew with another configuration.
    reload(
        &proxy,
        "",
        &[backends[0].clone(), backends[1].replace("prefix = \"\"", "prefix = \"b\"")],
    );
    wait_until("fewer conflicts", || get("mcp_proxy_name_conflicts") < 16.0);
    assert_eq!(get("mcp_proxy_contested_reads_total"), 4.0);
}

/// Streams of clients without sessions were not counted.
#[test]
fn streams_of_either_era_are_counted() {
    let proxy = Proxy::start(&[stdio_backend("pipe", &[])]);
    let client = proxy.client_seeing(&["pipe__echo"]);
    let streams = || Page::of(&proxy).get("mcp_proxy_streams", &[]);
    let listening = client.listen();
    wait_until("a stream", || streams() == 1.0);
    let caller = Caller::new(&proxy);
    let all: Vec<_> = (0..5).map(|_| caller.listen(r#"{"toolsListChanged":true}"#)).collect();
    assert_eq!(streams(), 6.0);
    drop(all);
    wait_until("their end", || streams() == 1.0);
    drop(listening);
}
