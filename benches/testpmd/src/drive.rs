//! Cores at work: each has a thread, and that thread a CPU, to itself.
use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use core_affinity::CoreId;
use rnic_engine::port::register_thread;

use crate::report::Sample;

/// Turns between two looks at the clock.
pub const TURNS: u32 = 256;
pub const WARM_UP: Duration = Duration::from_secs(1);
/// How long what is in flight at the end may take.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What one core does.
pub trait Work: Send {
    /// Before the first turn.
    fn begin(&mut self);
    /// One turn.
    fn turn(&mut self);
    /// One more turn, without new work; whether nothing is under way any more.
    fn wind_down(&mut self) -> bool;
    /// Where it stands.
    fn sample(&self) -> Sample;
}

/// Has all cores work for so many seconds after they have warmed up, from the same moment on. `each` is told of every second
/// where all of them stood before and after it. Returns where they stood at the first and the last moment.
pub fn measure<W: Work>(
    works: &mut [W],
    cpus: &[CoreId],
    seconds: u64,
    mut each: impl FnMut(&[Sample], &[Sample]),
) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let under_way = AtomicUsize::new(works.len());
    thread::scope(|scope| {
        let (mut threads, mut starts, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        for ((core, work), cpu) in works.iter_mut().enumerate().zip(cpus) {
            let (start, started) = mpsc::channel();
            let (sampled, sample) = mpsc::channel();
            let under_way = &under_way;
            threads.push(spawn(scope, core, *cpu, move || {
                work.begin();
                turn_for(work, WARM_UP);
                // Whoever has not been told to start is not needed: another thread has failed.
                if sampled.send(work.sample()).is_ok() && started.recv().is_ok() {
                    record(work, seconds, &sampled);
                    wind_down(work, under_way);
                }
            })?);
            starts.push(start);
            samples.push(sample);
        }
        let warm = all(&samples);
        let go = warm.and_then(|_| starts.iter().try_for_each(|start| Ok(start.send(())?)));
        drop(starts);
        let measured = go.and_then(|()| {
            let begin = all(&samples)?;
            let mut last = begin.clone();
            for _ in 0..seconds {
                let now = all(&samples)?;
                each(&last, &now);
                last = now;
            }
            Ok((begin, last))
        });
        join(threads)?;
        measured
    })
}

/// Has each core work until it has done `enough`.
pub fn complete<W: Work>(works: &mut [W], cpus: &[CoreId], enough: impl Fn(&W) -> bool + Sync) -> Result<()> {
    let (under_way, enough) = (AtomicUsize::new(works.len()), &enough);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for ((core, work), cpu) in works.iter_mut().enumerate().zip(cpus) {
            let under_way = &under_way;
            threads.push(spawn(scope, core, *cpu, move || {
                work.begin();
                while !enough(work) {
                    work.turn();
                }
                wind_down(work, under_way);
            })?);
        }
        join(threads)
    })
}

type Thread<'scope> = ScopedJoinHandle<'scope, ()>;

/// A thread for a core, pinned and known to DPDK.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    core: usize,
    cpu: CoreId,
    work: impl FnOnce() + Send + 'scope,
) -> Result<Thread<'scope>> {
    let thread = thread::Builder::new().name(format!("rnic-poll-{core}"));
    let spawned = thread.spawn_scoped(scope, move || {
        if !core_affinity::set_for_current(cpu) {
            eprintln!("core {core} cannot be pinned to CPU {}", cpu.id);
        }
        let _dpdk = register_thread();
        work();
    });
    spawned.context("no thread for a core")
}

fn join(threads: Vec<Thread<'_>>) -> Result<()> {
    // All of them: one that is left would have the scope panic.
    let failed = threads
        .into_iter()
        .filter_map(|thread| thread.join().err())
        .count();
    ensure!(failed == 0, "{failed} cores have panicked");
    Ok(())
}

/// One sample of each core.
fn all(samples: &[Receiver<Sample>]) -> Result<Vec<Sample>> {
    samples.iter().map(|sample| Ok(sample.recv()?)).collect()
}

/// Tells where the work stands now and after each second.
fn record(work: &mut impl Work, seconds: u64, sampled: &Sender<Sample>) {
    for second in 0..=seconds {
        if second > 0 {
            turn_for(work, Duration::from_secs(1));
        }
        // Nobody listens any more when another core has failed.
        let _ = sampled.send(work.sample());
    }
}

fn turn_for(work: &mut impl Work, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..TURNS {
            work.turn();
        }
    }
}

/// Lets what is in flight end, on all cores: one may have frames of another on its queue.
fn wind_down(work: &mut impl Work, under_way: &AtomicUsize) {
    let (start, mut mine) = (Instant::now(), true);
    while under_way.load(Ordering::Relaxed) > 0 && start.elapsed() < DRAIN {
        if work.wind_down() && mine {
            mine = false;
            under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
