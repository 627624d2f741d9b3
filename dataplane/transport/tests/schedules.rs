//! Tens of thousands of seeded schedules of RC and of XRC: under any of them data arrives exactly once, in order,
//! byte-identical, or the QP ends in error with the right status.
//!
//! `RNIC_SIM_SEEDS=100000` widens the search, `RNIC_SIM_SEED=17` plays one seed of each. `unreliable.rs` has those of UC and UD,
//! `shared.rs` those of SRQs.

#[path = "common/seeds.rs"]
mod seeds;

use rnic_sim::{Injected, MIX, Outcome, Scenario, run};
use rnic_transport::{WcStatus, WrOpcode};
use seeds::Sum;
use std::collections::{BTreeMap, BTreeSet};

const RC_SEEDS: u64 = 48_000;
const XRC_SEEDS: u64 = 12_000;

/// Plays one seed; what went wrong comes with the way to see it again.
fn play(seed: u64, xrc: bool) -> Result<Played, String> {
    let scenario = Scenario::of(seed, xrc);
    let outcome = seeds::caught(|| run(&scenario))
        .map_err(|what| format!("{what}\n{scenario}{}", seeds::replay("schedules", seed)))?;
    Ok(Played { scenario, outcome })
}

struct Played {
    scenario: Scenario,
    outcome: Outcome,
}

/// What came of many.
#[derive(Default)]
struct Tally {
    schedules: u64,
    requests: usize,
    packets: u64,
    drains: usize,
    /// Failed though no error was built in.
    by_chance: u64,
    /// Schedules in which one QP had so many operations that differ.
    mixed: BTreeMap<usize, u64>,
    /// Requests that succeeded.
    succeeded: BTreeMap<u8, usize>,
    /// Those of them that used a memory window of the other side.
    windows: usize,
    /// Invalidations of memory windows that succeeded.
    closed: usize,
    /// Requests refused because they used a window after it was invalidated.
    refused: u64,
    failed: BTreeMap<u8, u64>,
}

impl Sum for Tally {
    type One = Played;

    fn count(&mut self, Played { scenario, outcome }: Played) {
        self.schedules += 1;
        self.requests += outcome.requests.iter().sum::<usize>();
        self.packets += outcome.packets;
        self.drains += outcome.drains;
        for (plan, succeeded) in scenario.plans.iter().zip(outcome.succeeded) {
            for op in &plan.ops[..succeeded] {
                *self.succeeded.entry(op.opcode as u8).or_default() += 1;
                self.windows += usize::from(op.is_through_window());
                self.closed += usize::from(op.closes_window());
            }
            self.refused += u64::from(plan.injected == Some((succeeded, Injected::ClosedWindow)));
        }
        let opcodes = |side: usize| {
            let ops = &scenario.plans[side].ops[..outcome.succeeded[side]];
            ops.iter()
                .map(|op| op.opcode as u8)
                .collect::<BTreeSet<_>>()
                .len()
        };
        *self.mixed.entry(opcodes(0).max(opcodes(1))).or_default() += 1;
        for status in outcome.failed.into_iter().flatten() {
            *self.failed.entry(status as u8).or_default() += 1;
        }
        let failed = outcome.failed.iter().any(Option::is_some);
        self.by_chance += u64::from(failed && !outcome.injected);
    }

    fn add(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.requests += other.requests;
        self.packets += other.packets;
        self.drains += other.drains;
        self.by_chance += other.by_chance;
        self.windows += other.windows;
        self.closed += other.closed;
        self.refused += other.refused;
        for (mixed, count) in other.mixed {
            *self.mixed.entry(mixed).or_default() += count;
        }
        for (opcode, count) in other.succeeded {
            *self.succeeded.entry(opcode).or_default() += count;
        }
        for (status, count) in other.failed {
            *self.failed.entry(status).or_default() += count;
        }
    }
}

fn play_all(count: u64, xrc: bool) {
    if let Some(seed) = seeds::one() {
        println!("{}", Scenario::of(seed, xrc));
        let played = play(seed, xrc).unwrap_or_else(|report| panic!("{report}"));
        println!("{:?}", played.outcome);
        return;
    }
    let count = seeds::count(count);
    let tally: Tally = seeds::play_all(count, |seed| play(seed, xrc));
    assert_eq!(tally.schedules, count);
    judge(&tally, xrc);
}

#[test]
fn data_arrives_exactly_once_in_order_and_intact_under_any_schedule() {
    play_all(RC_SEEDS, false);
}

#[test]
fn data_arrives_exactly_once_in_order_and_intact_at_the_srqs_of_xrc() {
    play_all(XRC_SEEDS, true);
}

/// The schedules must have shown what they are for: every operation, mixed with others, hardly any transport failure by
/// chance, and every error that is built in.
fn judge(tally: &Tally, xrc: bool) {
    let Tally {
        schedules,
        requests,
        packets,
        drains,
        ..
    } = tally;
    let name = if xrc { "XRC" } else { "RC" };
    println!("{schedules} schedules of {name}, {requests} requests, {packets} packets, {drains} drains");
    let named = |(opcode, count): (&u8, &usize)| (WrOpcode::from_verbs(*opcode), *count);
    println!(
        "succeeded: {:?}",
        tally.succeeded.iter().map(named).collect::<Vec<_>>()
    );
    let (windows, closed, refused) = (tally.windows, tally.closed, tally.refused);
    println!(
        "{windows} through memory windows of the other side, {closed} invalidated one, {refused} refused behind that"
    );
    println!(
        "schedules by operations that differ, on one QP: {:?}",
        tally.mixed
    );
    println!("errors by status: {:?}", tally.failed);
    if *schedules < 10_000 {
        return;
    }
    let thousandth = |count: u64| count * 1_000 / schedules;
    for opcode in MIX {
        let succeeded = tally.succeeded.get(&(opcode as u8)).copied().unwrap_or(0);
        assert!(
            thousandth(succeeded as u64) > 200,
            "only {succeeded} {opcode:?} succeeded"
        );
    }
    // The target of XRC binds nothing.
    assert!(
        xrc || thousandth(windows as u64) > 100 && thousandth(closed as u64) > 50 && refused > 0,
        "hardly any windows: {windows} used, {closed} invalidated, {refused} used after that"
    );
    let mixed = |least: usize| tally.mixed.range(least..).map(|(_, count)| *count).sum::<u64>();
    assert!(
        thousandth(mixed(3)) > 500 && thousandth(mixed(6)) > 100,
        "hardly mixed: {:?}",
        tally.mixed
    );
    assert!(thousandth(*drains as u64) > 100, "only {drains} drains");
    assert!(
        thousandth(tally.by_chance) < 50,
        "{} schedules failed without a built-in error",
        tally.by_chance
    );
    for status in [
        WcStatus::LocProtErr,
        WcStatus::MwBindErr,
        WcStatus::RemInvReqErr,
        WcStatus::RemAccessErr,
        WcStatus::RemOpErr,
        WcStatus::RetryExcErr,
        WcStatus::RnrRetryExcErr,
    ] {
        assert!(
            tally.failed.contains_key(&(status as u8)),
            "no schedule ended with {status:?}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let outcome = |seed| play(seed, seed % 2 == 1).map(|played| played.outcome);
    for seed in 0..50 {
        assert_eq!(outcome(seed), outcome(seed));
    }
}
