//! Owns: the cost of the pieces of the hot path that have no benchmark of their own: names, lists,
//! keys, limits, mail; as `area/case/size`.
//! Never: sockets; `exchange` has the whole way.
//! Next: `instructions`, the same pieces counted instead of timed.
//!
//! Each area has its baseline: what the same work costs by the plainest means.

mod support;

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use mcp_proxy::mcp::catalog::ListKind;
use mcp_proxy::rt::Driver;
use mcp_proxy::rt::mailbox::mesh;

/// All pieces that this file does not add a baseline to are measured in their own files.
const AREAS: [&str; 5] = ["name/", "list/", "reuse/", "limit/", "auth/"];

fn pieces(criterion: &mut Criterion) {
    for (name, mut turn) in support::pieces() {
        if AREAS.iter().any(|area| name.starts_with(area)) {
            criterion.bench_function(name, |b| b.iter(&mut turn));
        }
    }
}

fn baselines(criterion: &mut Criterion) {
    let prefixes: Vec<String> = (0..100).map(|n| format!("backend{n}__")).collect();
    criterion.bench_function("name/each-in-turn/100-backends", |b| {
        b.iter(|| {
            let name = black_box("backend57__read_file");
            prefixes.iter().position(|prefix| name.starts_with(prefix.as_str()))
        });
    });
    let table: HashMap<String, usize> =
        prefixes.iter().enumerate().map(|(id, prefix)| (prefix.clone(), id)).collect();
    criterion.bench_function("name/hash-map/100-backends", |b| {
        b.iter(|| {
            let name = black_box("backend57__read_file");
            let end = name.find("__").map(|at| at + 2);
            end.and_then(|end| table.get(&name[..end]).copied())
        });
    });

    let (catalog, _) = support::catalog(200);
    let (whole, mut out) = (catalog.list(ListKind::Tools), Vec::new());
    criterion.bench_function("list/memcpy/200-tools", |b| {
        b.iter(|| {
            out.clear();
            out.extend_from_slice(black_box(&whole));
            black_box(&mut out);
        });
    });

    for (label, bytes) in [("200B", 200), ("4KiB", 4 << 10)] {
        let message = support::call(bytes);
        // A tree with its members in order, written again.
        criterion.bench_function(&format!("reuse/serde_json/{label}"), |b| {
            b.iter(|| {
                let value: serde_json::Value =
                    serde_json::from_slice(black_box(&message)).expect("JSON");
                let mut arguments: Vec<_> = value["params"]["arguments"]
                    .as_object()
                    .expect("arguments")
                    .iter()
                    .map(|(name, value)| (name.clone(), value.to_string()))
                    .collect();
                arguments.sort();
                arguments
            });
        });
        let (row, mut message) = (support::reuse(), message);
        let mut envelope = mcp_proxy::jsonrpc::scan(&message).expect("a good message");
        let key = support::key(&row, &mut message, &mut envelope);
        let mut cache = ahash::AHashMap::new();
        cache.insert(key.clone(), 1);
        criterion.bench_function(&format!("reuse/lookup/{label}"), |b| {
            b.iter(|| cache.get(black_box(&key)).copied());
        });
    }

    let counter = AtomicU64::new(0);
    criterion.bench_function("limit/atomic/1", |b| {
        b.iter(|| black_box(&counter).fetch_add(1, Ordering::SeqCst));
    });
}

/// Mail that a worker sends and another one takes, batch by batch; beside std's bounded channel.
fn mail(criterion: &mut Criterion) {
    const BATCH: u64 = 256;
    criterion.bench_function("mailbox/send-and-take/256", |b| {
        b.iter_custom(|turns| {
            let mut spent = Duration::ZERO;
            for _ in 0..turns {
                let (mut seats, _) = mesh::<u64>(1, 0, BATCH as usize).expect("eventfd");
                let seat = seats.remove(0);
                let took = Driver::Epoll.run(async move {
                    let began = Instant::now();
                    for mail in 0..BATCH {
                        assert!(seat.outbox.send(0, mail).is_ok());
                    }
                    // Its own outbox is the last: the mail ends with it.
                    drop(seat.outbox);
                    let mut sum = 0;
                    seat.inbox.serve(|_, mail| sum += mail).await.expect("a bell");
                    assert_eq!(sum, BATCH * (BATCH - 1) / 2);
                    began.elapsed()
                });
                spent += took.expect("a loop");
            }
            spent
        });
    });
    criterion.bench_function("mailbox/sync_channel/256", |b| {
        b.iter_custom(|turns| {
            let mut spent = Duration::ZERO;
            for _ in 0..turns {
                let (send, take) = std::sync::mpsc::sync_channel(BATCH as usize);
                let began = Instant::now();
                for mail in 0..BATCH {
                    send.send(mail).expect("a receiver");
                }
                drop(send);
                assert_eq!(take.iter().sum::<u64>(), BATCH * (BATCH - 1) / 2);
                spent += began.elapsed();
            }
            spent
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20);
    targets = pieces, baselines, mail
}
criterion_main!(benches);
