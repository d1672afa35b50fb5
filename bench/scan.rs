//! Owns: the cost of looking at a message, by its size.
//! Never: sockets, or what the messages mean.
//! Next: `framing`, the bytes around them.
//!
//! Cases are `area/case/size`. Baselines: `memcpy` is the floor of anything that touches each byte;
//! `serde_json` and `simd_json` build the tree that the scanner does without.

#[allow(dead_code, reason = "the pieces are measured elsewhere")]
mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mcp_proxy::jsonrpc::{Watch, scan};
use mcp_proxy::mcp::catalog::{List, ListKind};
use support::{backend, call, json, rows, tools};

const SIZES: [(&str, usize); 4] =
    [("200B", 200), ("4KiB", 4 << 10), ("64KiB", 64 << 10), ("1MiB", 1 << 20)];

fn messages(criterion: &mut Criterion) {
    for (case, make) in [("text", call as fn(usize) -> Vec<u8>), ("json", json), ("rows", rows)] {
        let mut group = criterion.benchmark_group("message");
        for (label, bytes) in SIZES {
            let message = make(bytes);
            scan(&message).expect("a good message");
            group.throughput(Throughput::Bytes(message.len() as u64));
            let id = |who: &str| BenchmarkId::new(format!("{case}-{who}"), label);
            group.bench_with_input(id("scan"), &message, |b, message| {
                b.iter(|| scan(black_box(message)));
            });
            if case != "text" {
                group.bench_with_input(id("watch-16KiB"), &message, |b, message| {
                    b.iter(|| {
                        let mut watch = Watch::new();
                        for piece in message.chunks(16 << 10) {
                            watch.feed(black_box(piece)).expect("a good piece");
                        }
                        watch.finish()
                    });
                });
            }
            group.bench_with_input(id("serde_json"), &message, |b, message| {
                b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(message)));
            });
            // It parses in place, so a copy belongs to its cost: the bytes are still to be sent.
            group.bench_with_input(id("simd_json"), &message, |b, message| {
                let mut buffers = simd_json::Buffers::new(message.len());
                let mut copy = Vec::with_capacity(message.len());
                b.iter(|| {
                    copy.clear();
                    copy.extend_from_slice(black_box(message));
                    simd_json::to_tape_with_buffers(&mut copy, &mut buffers)
                        .map(|tape| black_box(tape.0.len()))
                });
            });
            group.bench_with_input(id("memcpy"), &message, |b, message| {
                let mut copy = vec![0u8; message.len()];
                b.iter(|| copy.copy_from_slice(black_box(message)));
            });
        }
        group.finish();
    }
}

/// Building a list of 200 tools, against parsing and writing it with simd-json.
fn lists(criterion: &mut Criterion) {
    let page = tools(200);
    let backend = backend();
    let mut group = criterion.benchmark_group("list");
    group.throughput(Throughput::Bytes(page.len() as u64));
    let pages = vec![page.clone()];
    group.bench_function("build/200-tools", |b| {
        b.iter(|| List::build(&backend, ListKind::Tools, black_box(&pages)));
    });
    group.bench_function("simd_json-and-back/200-tools", |b| {
        b.iter(|| {
            let mut copy = page.clone();
            let mut value = simd_json::to_owned_value(&mut copy).expect("a good list");
            use simd_json::prelude::*;
            for tool in value["tools"].as_array_mut().expect("an array") {
                let name = format!("files__{}", tool["name"].as_str().expect("a string"));
                tool["name"] = name.into();
            }
            value.encode()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20);
    targets = messages, lists
}
criterion_main!(benches);
