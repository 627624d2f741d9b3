//! Tests of the tests: every deliberate fault of the state machines is noticed by a script, by a simulated schedule, or by
//! the test named for it.

use rnic_conformance::{Script, play_with, scripts};
use rnic_sim::{Scenario, run_with};
use rnic_transport::Mutation;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Schedules tried before a fault counts as unnoticed.
const SEEDS: u64 = 20_000;

/// Faults of what neither scripts nor schedules of RC do, and the tests of `rnic-transport` that notice them.
const ELSEWHERE: [(Mutation, &str); 10] = [
    (
        Mutation::SkipLengthCheck,
        "the_length_check_is_what_refuses_an_overlong_write",
    ),
    (
        Mutation::IgnoreOpcodeSequence,
        "the_sequence_check_is_what_refuses_a_middle_without_a_first",
    ),
    (
        Mutation::ChangeXrcSrq,
        "the_check_of_the_srq_is_what_refuses_a_message_that_changes_it",
    ),
    (
        Mutation::FlushSharedReceives,
        "a_qp_in_error_that_flushes_the_srq_is_caught",
    ),
    (
        Mutation::ForgetLastWqe,
        "a_qp_that_does_not_say_that_it_takes_no_more_of_the_srq_is_caught",
    ),
    (
        Mutation::IgnoreLoss,
        "a_sequence_error_and_a_timeout_lower_the_rate",
    ),
    (Mutation::IgnoreCredits, "credits_that_are_ignored_are_noticed"),
    (
        Mutation::PlaceOverlapping,
        "a_write_to_memory_of_one_that_is_not_finished_waits_for_it",
    ),
    (Mutation::ResendReceived, "only_what_is_missing_is_sent_again"),
    (
        Mutation::NeverProbe,
        "a_lost_retransmission_is_probed_for_after_some_round_trips",
    ),
];

/// What is said about a run; a panic counts as well.
fn noticed<T>(run: impl FnOnce() -> Result<T, String>) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(_)) => None,
        Ok(Err(what)) => Some(what.lines().next().unwrap_or_default().into()),
        Err(_) => Some("panicked".into()),
    }
}

fn by_script(scripts: &[Script], mutation: Mutation) -> Option<String> {
    scripts.iter().find_map(|script| {
        noticed(|| play_with(script, |qp| qp.mutate(Some(mutation)))).map(|what| format!("script {what}"))
    })
}

fn by_schedule(mutation: Mutation) -> Option<String> {
    (0..SEEDS).find_map(|seed| {
        let scenario = Scenario::new(seed);
        let what = noticed(|| run_with(&scenario, |qp| qp.mutate(Some(mutation))))?;
        Some(format!("schedule {seed}: {what}"))
    })
}

fn load() -> Vec<Script> {
    let read = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(path).expect("a script");
        Script::parse(&name, &text).unwrap_or_else(|error| panic!("{error}"))
    };
    scripts().iter().map(read).collect()
}

#[test]
fn every_fault_is_noticed() {
    let scripts = load();
    assert!(Mutation::ALL.len() >= 30);
    let mut unnoticed = Vec::new();
    for mutation in Mutation::ALL {
        let elsewhere = ELSEWHERE
            .iter()
            .find(|(known, _)| *known == mutation)
            .map(|(_, test)| format!("test {test}"));
        match elsewhere
            .or_else(|| by_script(&scripts, mutation))
            .or_else(|| by_schedule(mutation))
        {
            Some(by) => println!("{mutation:?}: {by}"),
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "nothing notices {unnoticed:?}");
}

#[test]
fn faults_noticed_elsewhere_have_their_tests() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dataplane/transport/tests");
    let files = [
        "refusals.rs",
        "shared.rs",
        "xrc.rs",
        "pacing.rs",
        "credits.rs",
        "selective.rs",
    ];
    let sources: String = files
        .iter()
        .map(|file| std::fs::read_to_string(format!("{dir}/{file}")).expect("a test file"))
        .collect();
    for (mutation, test) in ELSEWHERE {
        let at = sources
            .find(&format!("fn {test}()"))
            .unwrap_or_else(|| panic!("there is no test {test}"));
        let body = sources[at..].split("\n}\n").next().unwrap_or_default();
        assert!(
            body.contains(&format!("Mutation::{mutation:?}")),
            "{test} is not about {mutation:?}"
        );
    }
}

#[test]
fn without_a_fault_no_script_complains() {
    for script in load() {
        assert_eq!(noticed(|| play_with(&script, |qp| qp.mutate(None))), None);
    }
}
