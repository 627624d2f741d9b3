//! What a rule may demand depends on the point of the capture.

mod common;

use common::{Trace, good, good_uc, good_ud};
use rnic_trace::{Near, Options, Rule, check_file};
use std::path::PathBuf;

fn captures() -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../captures");
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "pcap"));
    paths.sort();
    paths
}

#[test]
fn every_capture_of_linux_hosts_passes_at_any_point() {
    let paths = captures();
    assert!(paths.len() >= 23, "{} captures", paths.len());
    let mut applied = [0; Rule::ALL.len()];
    for path in &paths {
        for near in [Near::Everybody, Near::Nobody] {
            let options = Options {
                near,
                ..Options::default()
            };
            let report =
                check_file(path, &options).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                report.violations.is_empty(),
                "{}: {:#?}",
                path.display(),
                report.violations
            );
            assert_eq!(report.roce, report.frames, "{}", path.display());
            for rule in Rule::ALL {
                applied[rule as usize] += report.applied(rule);
            }
        }
    }
    for rule in [
        Rule::RequestGap,
        Rule::GoBackN,
        Rule::Msn,
        Rule::ReadResponsePsn,
        Rule::UcPsn,
        Rule::UdPsn,
    ] {
        assert!(applied[rule as usize] > 0, "{rule} is never applied");
    }
}

#[test]
fn loss_before_the_point_is_no_violation_of_a_far_host() {
    let mut trace = good_uc();
    trace.remove(3);
    assert!(trace.check(Near::Nobody).violations.is_empty());
    let mut trace = good_ud();
    trace.repeat(1);
    assert!(trace.check(Near::Nobody).violations.is_empty());
    // The second copies of 105 and 106 are all that came by.
    let mut trace = good();
    trace.remove(8);
    trace.remove(9);
    trace.remove(10);
    assert!(trace.check(Near::Nobody).violations.is_empty());
}

#[test]
fn reordering_and_doubling_before_the_point_are_no_violation_of_a_far_host() {
    let mut trace = good();
    trace.move_before(3, 2);
    trace.move_before(28, 27);
    trace.repeat(8);
    let report = trace.check(Near::Nobody);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    assert!(!trace.check(Near::Everybody).violations.is_empty());
}

#[test]
fn an_ack_of_what_never_went_by_is_one_at_any_point() {
    let mut trace = good();
    trace.remove(8);
    trace.remove(11);
    let report = trace.check(Near::Nobody);
    assert_eq!(
        report.violations[0].rule,
        Rule::AckUnseen,
        "{:#?}",
        report.violations
    );
}

#[test]
fn damage_before_the_point_counts_as_loss_where_it_is_allowed_and_the_sender_is_far() {
    let mut trace = good();
    trace.records[1].bytes[100] ^= 1;
    let options = |near, damage| Options {
        near,
        damage,
        ..Options::default()
    };
    let rules = |near, damage| {
        let report = trace.check_with(&options(near, damage));
        report.violations.iter().map(|v| v.rule).collect::<Vec<_>>()
    };
    assert!(!rules(Near::Nobody, true).contains(&Rule::Icrc));
    assert!(rules(Near::Nobody, false).contains(&Rule::Icrc));
    assert!(rules(Near::Everybody, true).contains(&Rule::Icrc));
    assert_eq!(trace.check_with(&options(Near::Nobody, true)).damaged, 1);
}

#[test]
fn after_frames_that_were_not_captured_connections_are_followed_anew() {
    let mut trace = good();
    for number in 5..=8 {
        trace.remove(number);
    }
    assert!(!trace.check(Near::Everybody).violations.is_empty());
    trace.records[4].missed = 4;
    let report = trace.check(Near::Everybody);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
}

#[test]
fn a_cnp_about_a_frame_that_was_not_captured_is_no_violation_and_one_more_is() {
    let mut trace = good();
    // A marked frame, right before the CNP about it.
    trace.remove(33);
    let about_cnps = |trace: &Trace| {
        let report = trace.check(Near::Everybody);
        report.violations.iter().any(|v| v.rule == Rule::CnpCause)
    };
    assert!(about_cnps(&trace));
    trace.records[32].missed = 1;
    assert!(!about_cnps(&trace));
    let mut again = trace.records[32].clone();
    again.missed = 0;
    again.nanos += 1_000_000;
    trace.records.push(again);
    assert!(about_cnps(&trace), "one CNP too many");
}
