//! What is done with the bytes of a packet: ICRC, fused copy and CRC, classifying and parsing, emitting headers.
use std::{hint::black_box, mem::MaybeUninit};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rnic_bench_micro::{acknowledge, frame, template, write_only};
use rnic_simd::Crc;
use rnic_wire::{Crc32 as _, Kind, MAX_FRAME_HEADER_LEN, TableCrc, classify, verify_icrc};

const SIZES: [usize; 6] = [8, 64, 256, 1024, 2048, 4096];

fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("icrc");
    for size in SIZES {
        let bytes = frame(4, write_only(size), size);
        let Kind::Roce(packet) = classify(&bytes, None) else {
            continue;
        };
        group.throughput(Throughput::Bytes(size as u64));
        for crc in Crc::usable() {
            group.bench_function(BenchmarkId::new(crc.name(), size), |b| {
                b.iter(|| verify_icrc(&crc, black_box(packet.datagram())));
            });
        }
    }
    group.finish();
}

fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy-crc");
    for size in SIZES {
        let source = vec![0x5a; size];
        let mut target = vec![MaybeUninit::uninit(); size];
        group.throughput(Throughput::Bytes(size as u64));
        for crc in Crc::usable() {
            group.bench_function(BenchmarkId::new(crc.name(), size), |b| {
                b.iter(|| crc.copy_crc(black_box(!0), black_box(&mut target), black_box(&source)));
            });
        }
        let mut plain = vec![0; size];
        group.bench_function(BenchmarkId::new("copy alone", size), |b| {
            b.iter(|| black_box(&mut plain[..]).copy_from_slice(black_box(&source)));
        });
    }
    group.finish();
    c.bench_function("crc by tables/64", |b| {
        let bytes = [0x5a; 64];
        b.iter(|| TableCrc.update(black_box(!0), black_box(&bytes)));
    });
}

fn headers(c: &mut Criterion) {
    let mut group = c.benchmark_group("classify");
    for version in [4, 6] {
        for (name, bytes) in [
            ("write", frame(version, write_only(64), 64)),
            ("ack", frame(version, acknowledge(), 0)),
        ] {
            group.bench_function(BenchmarkId::new(name, format!("ipv{version}")), |b| {
                b.iter(|| match classify(black_box(&bytes), None) {
                    Kind::Roce(packet) => packet.bth().dest_qpn as usize + packet.payload().len(),
                    _ => 0,
                });
            });
        }
    }
    let mut arp = [0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    group.bench_function("arp", |b| {
        b.iter(|| matches!(classify(black_box(&arp), None), Kind::Other));
    });
    group.finish();
    let mut group = c.benchmark_group("emit");
    for version in [4, 6] {
        let (template, write) = (template(version), write_only(64));
        let mut out = [0; MAX_FRAME_HEADER_LEN];
        group.bench_function(BenchmarkId::new("write", format!("ipv{version}")), |b| {
            b.iter(|| {
                template
                    .emit_headers(black_box(&write), 7, 64, black_box(&mut out))
                    .ok()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, verify, copy, headers);
criterion_main!(benches);
