//! Seeded schedules of SRQs: each receive WQE serves one message of one of the QPs, and a QP that fails takes along the one it
//! had in use, and says that it was the last. With deliberate faults, to show that the schedules would notice them.

#[path = "common/seeds.rs"]
mod seeds;

use rnic_sim::{Shared, SharedTally};
use rnic_transport::Mutation;
use seeds::Sum;

const SEEDS: u64 = 20_000;

/// Plays one seed; what went wrong comes with the scenario.
fn play(seed: u64, mutation: Option<Mutation>) -> Result<SharedTally, String> {
    let scenario = Shared::new(seed);
    let run = || scenario.run_with(|qp| qp.mutate(mutation));
    seeds::caught(run).map_err(|what| format!("{what}\n{scenario:?}\n{}", seeds::replay("shared", seed)))
}

#[derive(Default)]
struct Sums(SharedTally);

impl Sum for Sums {
    type One = SharedTally;

    fn count(&mut self, one: SharedTally) {
        let sum = &mut self.0;
        sum.lanes += one.lanes;
        sum.failed += one.failed;
        sum.messages += one.messages;
        sum.delivered += one.delivered;
        sum.not_ready += one.not_ready;
        sum.packets += one.packets;
    }

    fn add(&mut self, other: Self) {
        self.count(other.0);
    }
}

#[test]
fn each_receive_of_an_srq_serves_one_message_whichever_qp_it_is_for() {
    if let Some(seed) = seeds::one() {
        println!(
            "{:?}",
            play(seed, None).unwrap_or_else(|report| panic!("{report}"))
        );
        return;
    }
    let count = seeds::count(SEEDS);
    let Sums(sum) = seeds::play_all(count, |seed| play(seed, None));
    println!("{count} schedules of SRQs: {sum:?}");
    assert!(sum.lanes as u64 >= 2 * count && sum.delivered * 2 > sum.messages);
    // An SRQ is often empty when a message comes, and QPs do fail.
    assert!(
        sum.not_ready as u64 * 5 > count && sum.failed as u64 * 20 > count,
        "{sum:?}"
    );
}

fn is_caught(mutation: Mutation) {
    let caught = (0..SEEDS).find_map(|seed| play(seed, Some(mutation)).err());
    let report = caught.unwrap_or_else(|| panic!("{SEEDS} schedules do not notice {mutation:?}"));
    println!("{mutation:?} is caught: {}", report.lines().next().unwrap_or(""));
}

#[test]
fn a_qp_in_error_that_flushes_the_srq_is_caught() {
    is_caught(Mutation::FlushSharedReceives);
}

#[test]
fn a_qp_that_does_not_say_that_it_takes_no_more_of_the_srq_is_caught() {
    is_caught(Mutation::ForgetLastWqe);
}
