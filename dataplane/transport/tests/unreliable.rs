//! Seeded schedules of UC and UD: a message is delivered whole or not at all, and on UC in order and never twice.
//! With deliberate faults, to show that the schedules would notice them.

#[path = "common/seeds.rs"]
mod seeds;

use rnic_sim::{Tally, Unreliable};
use rnic_transport::{Mutation, QpType};
use seeds::Sum;

const SEEDS: u64 = 20_000;

/// Plays one seed; what went wrong comes with the scenario.
fn play(qp_type: QpType, seed: u64, mutation: Option<Mutation>) -> Result<Tally, String> {
    let scenario = Unreliable::new(qp_type, seed);
    let run = || scenario.run_with(|qp| qp.mutate(mutation));
    seeds::caught(run).map_err(|what| {
        let replay = seeds::replay("unreliable", seed);
        format!("{qp_type}: {what}\n{scenario:?}\n{replay}")
    })
}

#[derive(Default)]
struct Sums(Tally);

impl Sum for Sums {
    type One = Tally;

    fn count(&mut self, one: Tally) {
        self.0.messages += one.messages;
        self.0.delivered += one.delivered;
        self.0.packets += one.packets;
    }

    fn add(&mut self, other: Self) {
        self.count(other.0);
    }
}

fn play_all(qp_type: QpType) {
    if let Some(seed) = seeds::one() {
        let tally = play(qp_type, seed, None);
        println!("{:?}", tally.unwrap_or_else(|report| panic!("{report}")));
        return;
    }
    let count = seeds::count(SEEDS);
    let Sums(sum) = seeds::play_all(count, |seed| play(qp_type, seed, None));
    println!("{count} schedules of {qp_type}: {sum:?}");
    // Both happens: the schedules are neither all calm nor all hopeless.
    assert!(
        sum.delivered * 2 > sum.messages && sum.delivered < sum.messages * 95 / 100,
        "{sum:?}"
    );
}

#[test]
fn a_uc_message_is_delivered_whole_in_order_and_once_or_not_at_all() {
    play_all(QpType::Uc);
}

#[test]
fn a_datagram_is_delivered_whole_to_those_who_know_the_qkey_or_not_at_all() {
    play_all(QpType::Ud);
}

/// That some schedule notices a fault.
fn is_caught(qp_type: QpType, mutation: Mutation) {
    let caught = (0..SEEDS).find_map(|seed| play(qp_type, seed, Some(mutation)).err());
    let report = caught.unwrap_or_else(|| panic!("{SEEDS} schedules do not notice {mutation:?}"));
    println!("{mutation:?} is caught: {}", report.lines().next().unwrap_or(""));
}

#[test]
fn a_message_that_goes_on_after_a_gap_is_caught() {
    is_caught(QpType::Uc, Mutation::OverlookGap);
}

#[test]
fn a_message_delivered_twice_or_late_is_caught() {
    is_caught(QpType::Uc, Mutation::TakeLatePacket);
}

#[test]
fn an_unchecked_qkey_is_caught() {
    is_caught(QpType::Ud, Mutation::SkipQkeyCheck);
}
