//! How far two CPUs are from each other.
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use crate::pin;

/// Alone on its cache lines.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU32);

/// Nanoseconds for a cache line from one CPU to another and one back, on average. Nothing else may run on them. In a
/// virtual machine this changes with where the host puts the CPUs, and with it what verbs cost that a poll core carries
/// out.
pub fn round_trip_ns(from: usize, to: usize) -> f64 {
    const ROUNDS: u32 = 200_000;
    let (there, back) = (&Line::default(), &Line::default());
    let wait = |line: &Line, round| {
        while line.0.load(Ordering::Acquire) != round {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(to);
            for round in 1..=ROUNDS {
                wait(there, round);
                back.0.store(round, Ordering::Release);
            }
        });
        let measured = scope.spawn(move || {
            pin(from);
            let start = Instant::now();
            for round in 1..=ROUNDS {
                there.0.store(round, Ordering::Release);
                wait(back, round);
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
        });
        measured.join().unwrap_or(f64::NAN)
    })
}
