//! Heads, bodies and event streams, as `area/case/size`; httparse and a plain copy are the
//! baselines: the one for what another parser costs, the other for what touching the bytes costs.

#[allow(dead_code, reason = "the pieces are measured elsewhere")]
mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mcp_proxy::http::body::{Decoder, LAST_CHUNK, write_chunk};
use mcp_proxy::http::{Framing, RequestHead, ResponseHead, request_head, sse};
use std::hint::black_box;
use support::{ANSWER_HEAD as ANSWER, CALL_HEAD as CALL};

/// A head near its bounds: many fields, long values.
fn large() -> Vec<u8> {
    let mut head = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
    for field in 0..90 {
        head.extend_from_slice(format!("X-Field-{field}: {}\r\n", "v".repeat(200)).as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn copy(bytes: &[u8], into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(black_box(bytes));
    black_box(into);
}

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head");
    let large = large();
    for wire in [CALL, large.as_slice()] {
        let size = wire.len();
        group.throughput(Throughput::Bytes(size as u64));
        let mut head = RequestHead::default();
        group.bench_function(BenchmarkId::new("request", size), |b| {
            b.iter(|| {
                head.reset();
                assert_eq!(head.parse(black_box(wire)), Ok(Some(size)));
            });
        });
        group.bench_function(BenchmarkId::new("request-httparse", size), |b| {
            b.iter(|| {
                let mut fields = [httparse::EMPTY_HEADER; 100];
                let mut request = httparse::Request::new(&mut fields);
                let status = request.parse(black_box(wire));
                assert_eq!(status, Ok(httparse::Status::Complete(size)));
            });
        });
        let mut copied = Vec::with_capacity(size);
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            b.iter(|| copy(wire, &mut copied));
        });
    }
    let mut head = RequestHead::default();
    head.parse(CALL).unwrap();
    group.bench_function(BenchmarkId::new("field", CALL.len()), |b| {
        b.iter(|| black_box(head.field(black_box("mcp-session-id"))));
    });
    let size = ANSWER.len();
    group.throughput(Throughput::Bytes(size as u64));
    let mut head = ResponseHead::default();
    group.bench_function(BenchmarkId::new("response", size), |b| {
        b.iter(|| {
            head.reset();
            assert_eq!(head.parse(black_box(ANSWER), false), Ok(Some(size)));
        });
    });
    group.bench_function(BenchmarkId::new("response-httparse", size), |b| {
        b.iter(|| {
            let mut fields = [httparse::EMPTY_HEADER; 100];
            let mut response = httparse::Response::new(&mut fields);
            let status = response.parse(black_box(ANSWER));
            assert_eq!(status, Ok(httparse::Status::Complete(size)));
        });
    });
    let mut out = Vec::new();
    let lines = "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n";
    request_head(&mut out, "POST", "/mcp", "localhost:9000", lines, Some(205));
    let size = out.len();
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function(BenchmarkId::new("write", size), |b| {
        b.iter(|| {
            out.clear();
            request_head(&mut out, "POST", "/mcp", "localhost:9000", black_box(lines), Some(205));
            black_box(&mut out);
        });
    });
    group.finish();
}

fn bodies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("body");
    for size in [205, 4096, 65536] {
        let content = vec![b'x'; size];
        let mut wire = Vec::new();
        for piece in content.chunks(16 * 1024) {
            write_chunk(&mut wire, piece);
        }
        wire.extend_from_slice(LAST_CHUNK);
        group.throughput(Throughput::Bytes(size as u64));
        let mut out = Vec::with_capacity(size);
        let cases = [
            ("chunked", Framing::Chunked, wire.as_slice()),
            ("length", Framing::Length(size as u64), content.as_slice()),
        ];
        for (case, framing, wire) in cases {
            group.bench_function(BenchmarkId::new(case, size), |b| {
                b.iter(|| {
                    out.clear();
                    let mut decoder = Decoder::new(framing, u64::MAX).unwrap();
                    assert_eq!(decoder.decode(black_box(wire), &mut out), Ok(wire.len()));
                    assert!(decoder.is_done());
                });
            });
        }
        group.bench_function(BenchmarkId::new("write", size), |b| {
            b.iter(|| {
                out.clear();
                write_chunk(&mut out, black_box(&content));
                black_box(&mut out);
            });
        });
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            b.iter(|| copy(&content, &mut out));
        });
    }
    group.finish();
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sse");
    for size in [205, 4096, 65536] {
        let data = vec![b'x'; size];
        let mut wire = Vec::new();
        sse::write(&mut wire, Some("12-345"), &data);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("read", size), |b| {
            let mut reader = sse::Reader::default();
            b.iter(|| {
                let mut input = black_box(wire.as_slice());
                let event = reader.take(&mut input).unwrap().unwrap();
                assert_eq!(event.data.len(), size);
            });
        });
        let mut out = Vec::with_capacity(size + 64);
        group.bench_function(BenchmarkId::new("write", size), |b| {
            b.iter(|| {
                out.clear();
                sse::write(&mut out, Some("12-345"), black_box(&data));
                black_box(&mut out);
            });
        });
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            b.iter(|| copy(&data, &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, heads, bodies, events);
criterion_main!(benches);
