//! The bounded form of the matrix, as part of all tests, and what is left of a harness that does not end by itself.
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rnic_tests::poll_until;

fn harness() -> Command {
    let mut harness = Command::new(env!("CARGO_BIN_EXE_rnic-interop"));
    harness.arg("--bounded");
    harness
}

#[test]
fn everything_is_right_between_rnicd_and_the_kernels_rxe() {
    let status = harness().status().expect("it can be started");
    assert!(status.success(), "it ended with {status}");
}

#[test]
fn a_harness_that_is_killed_leaves_nothing_behind() {
    let mut harness = harness()
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let mut lines = BufReader::new(harness.stdout.take().expect("it was asked for")).lines();
    if !lines.any(|line| line.is_ok_and(|line| line.starts_with("guest up"))) {
        // It has said why.
        assert!(harness.wait().expect("it is our child").success());
        return;
    }
    let network = network_of_child(harness.id()).expect("it has entered a namespace");
    let members = || {
        processes()
            .filter(|process| network_of(process) == Some(network.clone()))
            .count()
    };
    assert!(members() >= 3, "unshare, the harness inside, QEMU");
    harness.kill().expect("it is our child");
    harness.wait().expect("it is our child");
    let left = poll_until(Duration::from_secs(20), || (members() == 0).then_some(()));
    assert!(left.is_some(), "{} processes go on", members());
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let all = std::fs::read_dir("/proc").expect("Linux").flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path())
}

/// The network namespace of a process, by the link that names it.
fn network_of(process: &Path) -> Option<PathBuf> {
    std::fs::read_link(process.join("ns/net")).ok()
}

/// That of the only child of a process.
fn network_of_child(parent: u32) -> Option<PathBuf> {
    let parent = format!("PPid:\t{parent}");
    let is_child = |process: &PathBuf| {
        let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    };
    network_of(&processes().find(is_child)?)
}
