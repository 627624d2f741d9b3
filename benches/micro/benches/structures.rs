//! What a pass of the poll loop looks at: tables, rings, timers, epochs.
use std::{hint::black_box, sync::Arc};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rnic_engine::{
    core::TimerWheel,
    view::{Kind, Leaf, Publisher, number},
};
use rnic_qsbr::{Qsbr, spsc};
use rnic_transport::Time;

/// Lookups, or elements, in one measured call.
const BURST: u32 = 32;

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    group.throughput(Throughput::Elements(BURST.into()));
    for count in [16, 10_000, 100_000] {
        let qsbr = Arc::new(Qsbr::new(1));
        let mut publisher = Publisher::new(qsbr, 1);
        let qpns: Vec<u32> = (0..count).map(|slot| number(slot, 1 + slot % 63)).collect();
        for (slot, qpn) in (0..).zip(&qpns) {
            publisher.add(Kind::Qp, *qpn, Leaf::new(*qpn, 0, slot));
        }
        publisher.commit(|_, _| {});
        let mut cache = publisher.cache(0);
        cache.acquire();
        let mut at = 0usize;
        group.bench_function(BenchmarkId::new("qp", count), |b| {
            b.iter(|| {
                let view = cache.refresh();
                let burst: [u32; BURST as usize] = std::array::from_fn(|_| {
                    // A step that shares no factor with the count: every QP in turn, and none near the last.
                    at = (at + 7_919) % qpns.len();
                    qpns[at]
                });
                for qpn in &burst {
                    view.prefetch(Kind::Qp, *qpn);
                }
                let slots = burst.iter().filter_map(|qpn| view.qp(*qpn));
                slots.fold(0u32, |sum, leaf| sum.wrapping_add(leaf.slot))
            });
        });
    }
    group.finish();
}

fn rings(c: &mut Criterion) {
    let mut group = c.benchmark_group("spsc");
    group.throughput(Throughput::Elements(BURST.into()));
    let (mut producer, mut consumer) = spsc::ring::<u64>(1024);
    group.bench_function("push and pop 32", |b| {
        b.iter(|| {
            for i in 0..u64::from(BURST) {
                let _ = producer.push(black_box(i));
            }
            let mut sum = 0;
            while let Some(i) = consumer.pop() {
                sum += i;
            }
            sum
        });
    });
    group.bench_function("look at an empty one", |b| b.iter(|| consumer.is_empty()));
    group.finish();
}

fn timers(c: &mut Criterion) {
    const QPS: usize = 10_000;
    const TIMEOUT: u64 = 1_000_000;
    let mut group = c.benchmark_group("timers");
    let mut wheel = TimerWheel::new(QPS, Time(0));
    let mut now = 0u64;
    group.bench_function("arm anew, later", |b| {
        wheel.arm(5, Time(TIMEOUT));
        b.iter(|| {
            now += 100;
            wheel.arm(black_box(5), Time(now + TIMEOUT));
        });
    });
    group.bench_function("nothing is due", |b| b.iter(|| wheel.expire(black_box(Time(0)))));
    group.throughput(Throughput::Elements(QPS as u64));
    group.bench_function("arm and expire 10000", |b| {
        b.iter_batched(
            || TimerWheel::new(QPS, Time(0)),
            |mut wheel| {
                for slot in 0..QPS as u32 {
                    wheel.arm(slot, Time(u64::from(slot) * 1_000));
                }
                let mut count = 0;
                while wheel.expire(Time(20_000_000)).is_some() {
                    count += 1;
                }
                assert_eq!(count, QPS);
                wheel
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn epochs(c: &mut Criterion) {
    let mut group = c.benchmark_group("qsbr");
    let qsbr = Arc::new(Qsbr::new(2));
    // The only participant that was ever registered under this number.
    let Ok(mut participant) = qsbr.register(0) else {
        return;
    };
    participant.online();
    group.bench_function("a pass without publications", |b| {
        b.iter(|| {
            let observed = participant.observe();
            participant.quiescent(observed);
        });
    });
    group.bench_function("a pass after a publication", |b| {
        b.iter(|| {
            qsbr.advance();
            let observed = participant.observe();
            participant.quiescent(observed);
        });
    });
    let mut epoch = qsbr.advance();
    group.bench_function("publish, pass and check", |b| {
        b.iter(|| {
            epoch = qsbr.advance();
            let observed = participant.observe();
            participant.quiescent(observed);
            qsbr.check(epoch)
        });
    });
    group.finish();
}

criterion_group!(benches, lookup, rings, timers, epochs);
criterion_main!(benches);
