//! What the benchmarks share: a clock of cycles, places for threads, order statistics, a daemon of their own.
use std::time::{Duration, Instant};

use serde::Serialize;

mod daemon;
pub mod line;
mod samples;

pub use daemon::Daemon;
pub use samples::Samples;

/// Time stamp counter, ordered after everything before it; nanoseconds where there is none.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has LFENCE and RDTSC.
    return unsafe {
        std::arch::x86_64::_mm_lfence();
        let now = std::arch::x86_64::_rdtsc();
        std::arch::x86_64::_mm_lfence();
        now
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }
}

/// How many of [`cycles`] a second has, measured.
pub fn cycles_per_second() -> f64 {
    let (start, before) = (Instant::now(), cycles());
    spin_until(start + Duration::from_millis(50));
    (cycles() - before) as f64 / start.elapsed().as_secs_f64()
}

/// Cycles that [`cycles`] itself takes between two calls.
pub fn clock_overhead() -> u64 {
    let mut samples = Samples::with_capacity(1024);
    for _ in 0..1024 {
        let start = cycles();
        samples.push(cycles() - start);
    }
    samples.percentile(50)
}

/// Pins the calling thread to the `n`-th CPU the process may run on, counted round; the CPU's number.
///
/// `None` when the CPUs are not known or the kernel refuses: the figures are noisier then, and no less true.
pub fn pin(n: usize) -> Option<usize> {
    let cpus = core_affinity::get_core_ids()?;
    let cpu = *cpus.get(n % cpus.len().max(1))?;
    core_affinity::set_for_current(cpu).then_some(cpu.id)
}

/// CPUs the process may run on.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Waits until `deadline` without giving the CPU away.
pub fn spin_until(deadline: Instant) {
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
}

/// Calls `work` `per_second` times a second until it returns false. What could not be done in time is made up for.
pub fn pace(per_second: u32, mut work: impl FnMut() -> bool) {
    let period = Duration::from_secs(1) / per_second.max(1);
    let mut next = Instant::now();
    while work() {
        next += period;
        spin_until(next);
    }
}

/// Prints a result: one line of JSON.
pub fn print(result: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

/// A figure with two decimals, which is more than any of them is worth.
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
