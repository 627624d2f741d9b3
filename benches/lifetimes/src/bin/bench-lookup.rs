//! What finding a QP costs on a poll core, beside a slice index and a locked hash map, without and with publications
//! by another thread, in turn. Two lines of JSON with the keys `ids`, `slice_cycles`, `lookup_cycles`,
//! `rwlock_map_cycles` (cycles of the time stamp counter for one lookup, medians over bursts), `ratio` (lookup to slice)
//! and `pubs_per_s`.
use std::{
    collections::HashMap,
    hint::black_box,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use rnic_bench::{Samples, clock_overhead, cycles, pace, pin, print, rounded};
use rnic_bench_lifetimes::Random;
use rnic_engine::view::{Kind, Leaf, Publisher, ViewCache, number, slot_of};
use rnic_qsbr::{Participant, Qsbr, Reclaimer};
use serde::Serialize;

/// Lookups a burst, as many as a port hands over at once.
const BURST: usize = 32;
/// Bursts of one phase before the next phase has its turn.
const TURN: usize = 64;
/// Turns before publications begin or end.
const ROUND: usize = 20;
/// Turns that warm caches and branch predictors.
const WARM_UP: usize = 2 * ROUND;

#[derive(Parser)]
struct Args {
    /// QPs in the table.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..1 << 18))]
    ids: u32,
    /// Turns of each phase, half of them beside publications.
    #[arg(long, default_value_t = 4_000)]
    turns: usize,
    /// Publications a second in every other round.
    #[arg(long, default_value_t = 10_000)]
    publications: u32,
}

#[derive(Serialize)]
struct Line {
    ids: u32,
    slice_cycles: f64,
    lookup_cycles: f64,
    rwlock_map_cycles: f64,
    ratio: f64,
    pubs_per_s: u64,
}

/// What is looked up in, and by which ids.
struct Bench {
    args: Args,
    qpns: Vec<u32>,
    slice: Vec<Leaf>,
    map: RwLock<HashMap<u32, Leaf>>,
    view: ViewCache,
    participant: Participant,
    overhead: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    pin(1);
    let qsbr = Arc::new(Qsbr::new(1));
    let mut publisher = Publisher::new(qsbr.clone(), 1);
    let mut random = Random::new(1);
    let qpns: Vec<_> = (0..args.ids)
        .map(|slot| number(slot, 1 + random.below(63)))
        .collect();
    let leaf = |qpn: u32| Leaf::new(qpn, 0, slot_of(qpn));
    let slice: Vec<_> = qpns.iter().map(|qpn| leaf(*qpn)).collect();
    for qpn in &qpns {
        publisher.add(Kind::Qp, *qpn, leaf(*qpn));
    }
    publisher.commit(|_, _| {});
    let mut participant = qsbr.register(0)?;
    let mut view = publisher.cache(0);
    participant.online();
    view.acquire();
    let mut bench = Bench {
        map: RwLock::new(qpns.iter().map(|qpn| (*qpn, leaf(*qpn))).collect()),
        slice,
        qpns,
        view,
        participant,
        overhead: clock_overhead(),
        args,
    };
    let (stop, publishing, count) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let last = bench.qpns.last().copied().unwrap_or_default();
    let rate = bench.args.publications;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(0);
            let mut waiting = Reclaimer::new();
            pace(rate, || {
                if publishing.load(Ordering::Relaxed) {
                    // One QP goes and comes back: a destroy and a create in one publication.
                    publisher.remove(Kind::Qp, last);
                    publisher.add(Kind::Qp, last, leaf(last));
                    publisher.commit(|view, epoch| waiting.retire(view, epoch, 0));
                    waiting.poll(&qsbr, |view| view.try_free());
                    count.fetch_add(1, Ordering::Relaxed);
                }
                !stop.load(Ordering::Relaxed)
            });
        });
        let (lines, time) = bench.measure(&publishing);
        stop.store(true, Ordering::Relaxed);
        let pubs_per_s = (count.load(Ordering::Relaxed) as f64 / time.as_secs_f64()).round() as u64;
        for (line, pubs_per_s) in lines.into_iter().zip([0, pubs_per_s]) {
            print(&Line { pubs_per_s, ..line })?;
        }
        Ok(())
    })
}

/// Times of one burst by each way of finding.
type Phases = [Samples; 3];

impl Bench {
    /// Without and with publications, and how long there were some.
    fn measure(&mut self, publishing: &AtomicBool) -> ([Line; 2], Duration) {
        let mut random = Random::new(7);
        let mut time = Duration::ZERO;
        let mut sides: [Phases; 2] = Default::default();
        for turn in 0..self.args.turns + WARM_UP {
            let side = turn / ROUND % 2;
            publishing.store(side == 1, Ordering::Relaxed);
            let start = Instant::now();
            let ids: Vec<[u32; BURST]> = (0..TURN)
                .map(|_| std::array::from_fn(|_| self.qpns[random.below(self.args.ids) as usize]))
                .collect();
            for (phase, samples) in sides[side].iter_mut().enumerate() {
                for burst in &ids {
                    let taken = match phase {
                        0 => self.slice(burst),
                        1 => self.lookup(burst),
                        _ => self.map(burst),
                    };
                    if turn >= WARM_UP {
                        samples.push(taken);
                    }
                }
            }
            time += if side == 1 {
                start.elapsed()
            } else {
                Duration::ZERO
            };
        }
        (sides.map(|phases| self.line(phases)), time)
    }

    fn line(&self, phases: Phases) -> Line {
        let [slice, lookup, map] = phases.map(|mut samples| {
            let burst = samples.percentile(50).saturating_sub(self.overhead);
            burst as f64 / BURST as f64
        });
        Line {
            ids: self.args.ids,
            slice_cycles: rounded(slice),
            lookup_cycles: rounded(lookup),
            rwlock_map_cycles: rounded(map),
            ratio: rounded(lookup / slice),
            pubs_per_s: 0,
        }
    }

    fn slice(&self, burst: &[u32; BURST]) -> u64 {
        let start = cycles();
        let sum: u32 = burst
            .iter()
            .map(|qpn| self.slice[slot_of(*qpn) as usize].slot)
            .fold(0, u32::wrapping_add);
        black_box(sum);
        cycles() - start
    }

    /// One pass of a poll core, as far as views go.
    fn lookup(&mut self, burst: &[u32; BURST]) -> u64 {
        let start = cycles();
        let observed = self.participant.observe();
        let view = self.view.refresh();
        for qpn in burst {
            view.prefetch(Kind::Qp, *qpn);
        }
        let sum: u32 = burst
            .iter()
            .filter_map(|qpn| view.qp(*qpn))
            .fold(0, |sum, leaf| sum.wrapping_add(leaf.slot));
        black_box(sum);
        self.participant.quiescent(observed);
        cycles() - start
    }

    fn map(&self, burst: &[u32; BURST]) -> u64 {
        let start = cycles();
        let sum = burst
            .iter()
            .filter_map(|qpn| self.map.read().ok()?.get(qpn).copied())
            .fold(0u32, |sum, leaf| sum.wrapping_add(leaf.slot));
        black_box(sum);
        cycles() - start
    }
}
