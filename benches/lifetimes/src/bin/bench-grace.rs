//! What quiescent-state reclamation costs: rnic's own beside `rte_rcu_qsbr` of DPDK and crossbeam-epoch. One line of
//! JSON a scheme; their phases take turns in one run. Keys:
//!
//! - `scheme`: which.
//! - `report_idle_cycles`: a reader's report of a pass, of which there is nothing new (cycles of the time stamp counter,
//!   median). For crossbeam-epoch, which has no reports, a guard made and dropped.
//! - `report_busy_cycles`: the same when a grace period was begun in every pass.
//! - `read_cycles`: one read of a published pointer and of what it points to, in bursts of 32 with the protection of the
//!   burst included.
//! - `grace_p50_ns`, `grace_p99_ns`: a whole grace period beside one reader that passes all the time.
//! - `retire_cycles`: an object retired and later freed, in batches of 64.
use std::{
    collections::VecDeque,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::Context;
use clap::Parser;
use crossbeam_epoch as epoch;
use dpdk_sys::{RcuQsbr, RcuReader};
use rnic_bench::{Samples, clock_overhead, cycles, pin, print, rounded};
use rnic_qsbr::{Participant, Qsbr, Reclaimer};
use serde::Serialize;

/// Operations between two looks at the clock.
const BURST: u64 = 32;
/// Objects retired together.
const BATCH: u64 = 64;
/// Measurements of one phase before the next has its turn.
const TURN: usize = 64;

#[derive(Parser)]
struct Args {
    /// Turns of each phase.
    #[arg(long, default_value_t = 500)]
    turns: usize,
}

#[derive(Serialize)]
struct Line {
    scheme: &'static str,
    report_idle_cycles: f64,
    report_busy_cycles: f64,
    read_cycles: f64,
    grace_p50_ns: u64,
    grace_p99_ns: u64,
    retire_cycles: f64,
}

#[derive(Default)]
struct Figures {
    idle: Samples,
    busy: Samples,
    read: Samples,
    grace: Samples,
    retire: Samples,
}

/// A scheme of reclamation: what the measuring thread does with it as reader and as writer.
trait Scheme {
    /// A pass without reads.
    fn report(&mut self);
    /// Begins a grace period that nobody waits for.
    fn advance(&mut self);
    /// A burst of reads, protected.
    fn read(&mut self) -> u64;
    /// A grace period, with the reader of the other thread.
    fn grace(&mut self);
    /// Retires a batch and frees what may be freed.
    #[expect(clippy::vec_box, reason = "each object is retired and freed by itself")]
    fn retire(&mut self, batch: &mut Vec<Box<[u64; 8]>>);
}

/// Reads as a poll core does.
#[inline]
fn burst(pointer: &AtomicPtr<u64>) -> u64 {
    (0..BURST).fold(0, |sum, _| {
        // SAFETY: the objects of this bench are never freed.
        sum ^ unsafe { *black_box(pointer).load(Ordering::Acquire) }
    })
}

struct Own {
    qsbr: Arc<Qsbr>,
    me: Participant,
    /// A second domain, of the other thread's reader.
    beside: Arc<Qsbr>,
    pointer: AtomicPtr<u64>,
    reclaimer: Reclaimer<Box<[u64; 8]>>,
}

impl Scheme for Own {
    #[inline]
    fn report(&mut self) {
        let observed = self.me.observe();
        self.me.quiescent(black_box(observed));
    }
    fn advance(&mut self) {
        self.qsbr.advance();
    }
    #[inline]
    fn read(&mut self) -> u64 {
        let observed = self.me.observe();
        let sum = burst(&self.pointer);
        self.me.quiescent(observed);
        sum
    }
    fn grace(&mut self) {
        let epoch = self.beside.advance();
        while !self.beside.check(epoch) {
            std::hint::spin_loop();
        }
    }
    fn retire(&mut self, batch: &mut Vec<Box<[u64; 8]>>) {
        let (epoch, now) = (self.qsbr.advance(), Instant::now());
        for object in batch.drain(..) {
            self.reclaimer.retire_since(object, epoch, 64, now);
        }
        self.report();
        self.reclaimer.poll(&self.qsbr, |object| {
            drop(object);
            Ok(())
        });
    }
}

struct Dpdk {
    qsbr: Arc<RcuQsbr>,
    me: RcuReader,
    beside: Arc<RcuQsbr>,
    pointer: AtomicPtr<u64>,
    waiting: VecDeque<(u64, Box<[u64; 8]>)>,
}

impl Scheme for Dpdk {
    #[inline]
    fn report(&mut self) {
        self.me.quiescent();
    }
    fn advance(&mut self) {
        self.qsbr.start();
    }
    #[inline]
    fn read(&mut self) -> u64 {
        let sum = burst(&self.pointer);
        self.me.quiescent();
        sum
    }
    fn grace(&mut self) {
        let token = self.beside.start();
        while !self.beside.check(token) {
            std::hint::spin_loop();
        }
    }
    fn retire(&mut self, batch: &mut Vec<Box<[u64; 8]>>) {
        let token = self.qsbr.start();
        self.waiting.extend(batch.drain(..).map(|object| (token, object)));
        self.me.quiescent();
        while self
            .waiting
            .front()
            .is_some_and(|(token, _)| self.qsbr.check(*token))
        {
            self.waiting.pop_front();
        }
    }
}

struct Crossbeam {
    collector: epoch::Collector,
    me: epoch::LocalHandle,
    beside: epoch::LocalHandle,
    pointer: AtomicPtr<u64>,
}

impl Scheme for Crossbeam {
    #[inline]
    fn report(&mut self) {
        drop(black_box(self.me.pin()));
    }
    fn advance(&mut self) {
        self.me.pin().flush();
    }
    #[inline]
    fn read(&mut self) -> u64 {
        let guard = self.me.pin();
        let sum = burst(&self.pointer);
        drop(guard);
        sum
    }
    fn grace(&mut self) {
        let freed = Arc::new(AtomicBool::new(false));
        let mine = freed.clone();
        let guard = self.beside.pin();
        guard.defer(move || mine.store(true, Ordering::Release));
        guard.flush();
        drop(guard);
        // An epoch advances and what it frees is freed when someone flushes.
        while !freed.load(Ordering::Acquire) {
            self.beside.pin().flush();
        }
    }
    fn retire(&mut self, batch: &mut Vec<Box<[u64; 8]>>) {
        let guard = self.me.pin();
        for object in batch.drain(..) {
            guard.defer(move || drop(object));
        }
        guard.flush();
        drop(guard);
        black_box(&self.collector);
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let overhead = clock_overhead();
    let object: &'static mut u64 = Box::leak(Box::new(7));
    let pointer: *mut u64 = object;

    let (own, own_beside) = (Arc::new(Qsbr::new(1)), Arc::new(Qsbr::new(1)));
    let none = "rte_rcu_qsbr refuses one reader";
    let (dpdk, dpdk_beside) = (RcuQsbr::new(1).context(none)?, RcuQsbr::new(1).context(none)?);
    let (crossbeam, crossbeam_beside) = (epoch::Collector::new(), epoch::Collector::new());

    // The reader of the grace periods passes on another CPU, in the scheme whose turn it is.
    let turn = Arc::new(AtomicUsize::new(usize::MAX));
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let mut own = own_beside.register(0)?;
        let mut dpdk = dpdk_beside.reader(0).context(none)?;
        let (crossbeam, turn, over) = (crossbeam_beside.clone(), turn.clone(), over.clone());
        std::thread::spawn(move || {
            pin(1);
            let crossbeam = crossbeam.register();
            own.online();
            dpdk.online();
            while !over.load(Ordering::Relaxed) {
                match turn.load(Ordering::Relaxed) {
                    0 => {
                        let observed = own.observe();
                        own.quiescent(observed);
                    }
                    1 => dpdk.quiescent(),
                    2 => drop(crossbeam.pin()),
                    _ => std::thread::yield_now(),
                }
            }
        })
    };
    pin(0);

    let mut me = own.register(0)?;
    me.online();
    let mut own = Own {
        qsbr: own,
        me,
        beside: own_beside,
        pointer: AtomicPtr::new(pointer),
        reclaimer: Reclaimer::new(),
    };
    let mut me = dpdk.reader(0).context(none)?;
    me.online();
    let mut dpdk = Dpdk {
        qsbr: dpdk,
        me,
        beside: dpdk_beside,
        pointer: AtomicPtr::new(pointer),
        waiting: VecDeque::new(),
    };
    let mut crossbeam = Crossbeam {
        me: crossbeam.register(),
        beside: crossbeam_beside.register(),
        collector: crossbeam,
        pointer: AtomicPtr::new(pointer),
    };

    let mut figures: [Figures; 3] = Default::default();
    for _ in 0..args.turns {
        measure(&mut own, 0, &turn, overhead, &mut figures[0]);
        measure(&mut dpdk, 1, &turn, overhead, &mut figures[1]);
        measure(&mut crossbeam, 2, &turn, overhead, &mut figures[2]);
    }
    over.store(true, Ordering::Relaxed);
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader has panicked"))?;
    let names = ["rnic-qsbr", "rte_rcu_qsbr", "crossbeam-epoch"];
    for (scheme, mut f) in names.into_iter().zip(figures) {
        let per = |samples: &mut Samples, n: u64| rounded(samples.percentile(50) as f64 / n as f64);
        print(&Line {
            scheme,
            report_idle_cycles: per(&mut f.idle, BURST),
            report_busy_cycles: per(&mut f.busy, 1),
            read_cycles: per(&mut f.read, BURST),
            grace_p50_ns: f.grace.percentile(50),
            grace_p99_ns: f.grace.percentile(99),
            retire_cycles: per(&mut f.retire, BATCH),
        })?;
    }
    Ok(())
}

/// One turn of every phase of one scheme.
fn measure(
    scheme: &mut impl Scheme,
    number: usize,
    turn: &AtomicUsize,
    overhead: u64,
    figures: &mut Figures,
) {
    let timed = |samples: &mut Samples, work: &mut dyn FnMut()| {
        let start = cycles();
        work();
        samples.push((cycles() - start).saturating_sub(overhead));
    };
    for _ in 0..TURN {
        timed(&mut figures.idle, &mut || {
            (0..BURST).for_each(|_| scheme.report());
        });
    }
    for _ in 0..TURN {
        scheme.advance();
        timed(&mut figures.busy, &mut || scheme.report());
    }
    for _ in 0..TURN {
        timed(&mut figures.read, &mut || {
            black_box(scheme.read());
        });
    }
    turn.store(number, Ordering::Relaxed);
    for _ in 0..TURN {
        let start = Instant::now();
        scheme.grace();
        figures.grace.push(start.elapsed().as_nanos() as u64);
    }
    turn.store(usize::MAX, Ordering::Relaxed);
    let mut batch = Vec::new();
    for _ in 0..TURN {
        batch.extend((0..BATCH).map(|n| Box::new([n; 8])));
        timed(&mut figures.retire, &mut || scheme.retire(&mut batch));
    }
}
