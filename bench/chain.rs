//! What the rows cost in a call, as `area/case`: the baseline is a copy and a scan of the message, which
//! a call through no row at all needs too.
//!
//! `chain`: rows that look at requests. `off`: there are none; `idle`: all are there, and none has to
//! do with this call; `all`: each has something to do. `around`: what stands around a call, from
//! admission to the count of its outcome, likewise.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mcp_proxy::jsonrpc;
use mcp_proxy::mcp::catalog::ListKind;
use mcp_proxy::mcp::hints::Hints;
use mcp_proxy::middleware::alias::Alias;
use mcp_proxy::middleware::breaker::{self, Breaker};
use mcp_proxy::middleware::concurrency::Concurrency;
use mcp_proxy::middleware::filter::{Filter, Rule};
use mcp_proxy::middleware::inject::Inject;
use mcp_proxy::middleware::mirror::{Mirror, Spread};
use mcp_proxy::middleware::outlier::{self, Outlier};
use mcp_proxy::middleware::params::{Override, Params};
use mcp_proxy::middleware::pattern::{Pattern, Patterns};
use mcp_proxy::middleware::rate::RateLimit;
use mcp_proxy::middleware::retry::Budget;
use mcp_proxy::middleware::reuse::{Cache, Reuse};
use mcp_proxy::middleware::validation::SizeLimit;
use mcp_proxy::middleware::{Chain, Known, Request};

/// A call of some 200 bytes.
fn message() -> Vec<u8> {
    let text = "x".repeat(90);
    format!(
        r#"{{"jsonrpc":"2.0","id":4711,"method":"tools/call","params":{{"name":"query","arguments":{{"sql":"{text}","limit":10}}}}}}"#
    )
    .into_bytes()
}

fn patterns(text: &str) -> Patterns {
    Patterns(vec![Pattern::parse(text).unwrap()])
}

fn args(name: &str) -> Vec<(String, Box<[u8]>)> {
    vec![(name.to_owned(), b"1000"[..].into())]
}

/// Every row, of which those that can be are about `tool` alone.
fn chain(tool: &str) -> Chain {
    let mut alias = Alias::default();
    let shown = if tool == "query" { "query" } else { "other" };
    alias.add(&format!("{tool}_own"), shown).unwrap();
    let mut params = Params::default();
    let rename = vec![("max_rows".to_owned(), "limit".to_owned())];
    let change = Override { hide: vec!["secret".to_owned()], defaults: Vec::new(), rename };
    params.0.insert(format!("{tool}_own"), change);
    let mut inject = Inject::new(Vec::new());
    inject.add(&format!("{tool}_own"), args("timeout"), true);
    let cache = Cache {
        tool_ttl: Some(Duration::from_secs(60)),
        resource_ttl: None,
        max_entries: 1000,
        max_bytes: 1 << 26,
        tools: patterns(&format!("{tool}_own")),
        shared: false,
    };
    Chain {
        alias: Some(alias),
        filter: Some(Filter { tools: Rule::Hide(patterns("drop_*")), ..Filter::default() }),
        validation: Some(SizeLimit(65_536)),
        params: Some(params),
        reuse: Some(Reuse { backend: 0, cache: Some(cache), coalesce: None }),
        mirror: Some(Mirror(vec![(1, Spread::new(if tool == "query" { 10 } else { 0 }))])),
        inject: Some(inject),
    }
}

fn run(chain: &Chain, message: &[u8], own: &str) {
    let mut message = message.to_vec();
    let mut envelope = jsonrpc::scan(&message).unwrap();
    let mut ask = Request {
        what: ListKind::Tools,
        called: "db__query",
        own: "query".to_owned(),
        known: Some(Known { own, hints: Hints::default() }),
        listed: true,
        message: &mut message,
        envelope: &mut envelope,
        copies: Vec::new(),
        principal: None,
        revision: "2025-11-25",
        look: &|_| None,
        held: None,
        reusable: None,
        backend: "db",
        custom: None,
        watch: None,
        decided: None,
    };
    assert!(chain.request(&mut ask).is_ok());
    black_box((&ask.copies, &ask.reusable));
    black_box(message);
}

fn chains(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chain");
    let message = message();
    group.throughput(Throughput::Bytes(message.len() as u64));
    group.bench_function("baseline", |b| {
        b.iter(|| {
            let copy = black_box(&message).clone();
            black_box(jsonrpc::scan(&copy).unwrap());
        });
    });
    for (case, chain, own) in [
        ("off", Chain::default(), "query"),
        ("idle", chain("delete"), "query"),
        ("all", chain("query"), "query_own"),
    ] {
        group.bench_function(case, |b| b.iter(|| run(&chain, black_box(&message), own)));
    }
    group.finish();
}

/// What stands around a call, each of it or nothing.
struct Stand {
    budget: Option<Budget>,
    concurrency: Option<Concurrency>,
    rate: Option<RateLimit>,
    breaker: Option<Breaker>,
    outlier: Option<Outlier>,
}

impl Stand {
    /// One call that ends well.
    fn call(&self, now: Duration) {
        if let Some(budget) = &self.budget {
            budget.call(now);
        }
        let place = self.concurrency.as_ref().map(|limit| assert!(limit.take()));
        if let Some(rate) = &self.rate {
            assert!(rate.admit(now, Some("caller")).is_ok());
        }
        let pass = self.breaker.as_ref().map(|breaker| breaker.admit(now).unwrap());
        if let Some(outlier) = &self.outlier {
            assert!(outlier.admit(now).is_ok());
        }
        if let (Some(breaker), Some(pass)) = (&self.breaker, pass) {
            breaker.record(0, pass, false, now);
        }
        if let Some(outlier) = &self.outlier {
            outlier.succeeded();
        }
        if let (Some(limit), Some(())) = (&self.concurrency, place) {
            black_box(limit.pass_on());
        }
    }
}

fn around(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("around");
    let start = Instant::now();
    group.bench_function("baseline", |b| b.iter(|| black_box(start.elapsed())));
    let off =
        || Stand { budget: None, concurrency: None, rate: None, breaker: None, outlier: None };
    let settings = |window| breaker::Settings {
        failure_rate: 0.5,
        minimum_calls: 5,
        wait: Duration::from_secs(30),
        permitted: 3,
        window,
    };
    let ejection = outlier::Settings {
        consecutive_errors: 5,
        base: Duration::from_secs(30),
        interval: Duration::from_secs(10),
        max_percent: 50,
    };
    // Rings that never are full: more cannot be admitted in a bench.
    let (many, period) = (1 << 20, Duration::from_micros(1));
    let calls = breaker::Span::Calls(100);
    let time = breaker::Span::Time(Duration::from_secs(60));
    let rate = || Some(RateLimit::new(many, period));
    let each = || Some(RateLimit::per_principal(1 << 10, Duration::from_nanos(1)));
    let cases = [
        ("off", off()),
        ("budget", Stand { budget: Some(Budget::new(20.0, 10)), ..off() }),
        (
            "concurrency",
            Stand {
                concurrency: Some(Concurrency::new(64, 1024, Duration::from_secs(10), 2)),
                ..off()
            },
        ),
        ("rate", Stand { rate: rate(), ..off() }),
        ("rate-principal", Stand { rate: each(), ..off() }),
        ("breaker", Stand { breaker: Some(Breaker::new(settings(calls), 2)), ..off() }),
        ("breaker-time", Stand { breaker: Some(Breaker::new(settings(time), 2)), ..off() }),
        ("outlier", Stand { outlier: Some(Outlier::new(ejection)), ..off() }),
        (
            "all",
            Stand {
                budget: Some(Budget::new(20.0, 10)),
                concurrency: Some(Concurrency::new(64, 1024, Duration::from_secs(10), 2)),
                rate: rate(),
                breaker: Some(Breaker::new(settings(calls), 2)),
                outlier: Some(Outlier::new(ejection)),
            },
        ),
    ];
    for (case, stand) in &cases {
        group.bench_function(*case, |b| b.iter(|| stand.call(start.elapsed())));
    }
    group.finish();
}

criterion_group!(benches, chains, around);
criterion_main!(benches);
