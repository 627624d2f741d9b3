//! Thousands of seeded schedules: under any of them data arrives exactly once, in order, byte-identical, or
//! the QP ends in error with the right status.
//!
//! `RNIC_SIM_SEEDS=100000` widens the search, `RNIC_SIM_SEED=17` plays one seed.

use rnic_sim::{Outcome, Scenario, run};
use rnic_transport::WcStatus;
use std::collections::BTreeMap;

const SEEDS: u64 = 60_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number"))
    })
}

/// Plays one seed; what went wrong comes with the way to see it again.
fn play(seed: u64) -> Result<Outcome, String> {
    let scenario = Scenario::new(seed);
    let result = std::panic::catch_unwind(|| run(&scenario)).unwrap_or_else(|_| Err("panicked".into()));
    result.map_err(|what| {
        let command =
            format!("RNIC_SIM_SEED={seed} cargo test -p rnic-transport --test schedules -- --nocapture");
        format!("seed {seed}: {what}\n{scenario}replay: {command}")
    })
}

#[test]
fn data_arrives_exactly_once_in_order_and_intact_under_any_schedule() {
    if let Some(seed) = number("RNIC_SIM_SEED") {
        println!("{}", Scenario::new(seed));
        println!("{:?}", play(seed).unwrap_or_else(|report| panic!("{report}")));
        return;
    }
    let seeds = number("RNIC_SIM_SEEDS").unwrap_or(SEEDS);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let results = std::thread::scope(|scope| {
        let work = |worker| {
            move || {
                (worker..seeds)
                    .step_by(workers as usize)
                    .map(play)
                    .collect::<Result<Vec<_>, _>>()
            }
        };
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(work(worker))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("play catches panics"))
            .collect::<Result<Vec<_>, _>>()
    });
    let outcomes = results.unwrap_or_else(|report| panic!("{report}")).concat();
    assert_eq!(outcomes.len() as u64, seeds);
    judge(&outcomes);
}

/// The schedules must have shown what they are for: hardly any transport failure by chance, and every error
/// that is built in.
fn judge(outcomes: &[Outcome]) {
    let mut by_status = BTreeMap::new();
    for status in outcomes.iter().flat_map(|outcome| outcome.failed).flatten() {
        *by_status.entry(status as u8).or_insert(0u64) += 1;
    }
    let drains: usize = outcomes.iter().map(|outcome| outcome.drains).sum();
    let packets: u64 = outcomes.iter().map(|outcome| outcome.packets).sum();
    let requests: usize = outcomes.iter().flat_map(|outcome| outcome.requests).sum();
    println!(
        "{} schedules, {requests} requests, {packets} packets, {drains} drains, errors by status {by_status:?}",
        outcomes.len()
    );
    if outcomes.len() < 1_000 {
        return;
    }
    assert!(drains > 100, "only {drains} drains");
    let clean = |outcome: &&Outcome| !outcome.injected && outcome.failed.iter().any(Option::is_some);
    let by_chance = outcomes.iter().filter(clean).count();
    assert!(
        by_chance * 20 < outcomes.len(),
        "{by_chance} schedules failed without a built-in error"
    );
    for status in [
        WcStatus::LocProtErr,
        WcStatus::RemInvReqErr,
        WcStatus::RemAccessErr,
        WcStatus::RemOpErr,
        WcStatus::RetryExcErr,
        WcStatus::RnrRetryExcErr,
    ] {
        assert!(
            by_status.contains_key(&(status as u8)),
            "no schedule ended with {status:?}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        assert_eq!(play(seed), play(seed));
    }
}
