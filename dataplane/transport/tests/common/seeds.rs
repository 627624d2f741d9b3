//! Many seeds, on every processor.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What came of many seeds.
pub trait Sum: Default + Send {
    /// What comes of one.
    type One;

    /// Counts one in.
    fn count(&mut self, one: Self::One);

    /// Counts in what others came to.
    fn add(&mut self, other: Self);
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// The one seed to play, if there is one.
pub fn one() -> Option<u64> {
    number("RNIC_SIM_SEED")
}

/// How many seeds to play.
pub fn count(default: u64) -> u64 {
    number("RNIC_SIM_SEEDS").unwrap_or(default)
}

/// How to see a seed again.
pub fn replay(test: &str, seed: u64) -> String {
    format!("replay: RNIC_SIM_SEED={seed} cargo test -p rnic-transport --test {test} -- --nocapture")
}

/// A panic is an error like others.
pub fn caught<T>(play: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|_| Err("panicked".into()))
}

/// Plays the first `count` seeds.
///
/// # Panics
/// With what is said of the first one that goes wrong.
pub fn play_all<S: Sum>(count: u64, play: impl Fn(u64) -> Result<S::One, String> + Sync) -> S {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let work = |worker: u64| {
        let mut sum = S::default();
        for seed in (worker..count).step_by(workers as usize) {
            sum.count(play(seed).map_err(|what| format!("seed {seed}: {what}"))?);
        }
        Ok(sum)
    };
    let mut all = S::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        for thread in threads {
            let sum: Result<S, String> = thread.join().expect("play catches panics");
            all.add(sum.unwrap_or_else(|report| panic!("{report}")));
        }
    });
    all
}
