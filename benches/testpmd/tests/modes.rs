//! Every mode moves data, all of it arrives, and the JSON has its keys.
use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

const KEYS: [&str; 18] = [
    "mode",
    "port",
    "size",
    "qps",
    "cores",
    "msgs_per_s",
    "frames_per_s",
    "gbit_per_s",
    "cycles_per_msg",
    "cycles_per_frame",
    "errors",
    "tsc_hz",
    "path_mtu",
    "outstanding",
    "signal_every",
    "acks_per_msg",
    "icrc",
    "verified",
];

fn run(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_rnic-testpmd"))
        .args(["--json", "--seconds", "1"])
        .args(args)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn every_mode_moves_messages_and_all_of_them_arrive() {
    for (mode, size, qps) in [
        ("rc-write", "8", "16"),
        ("rc-write", "9000", "2"),
        ("rc-send", "64", "3"),
        ("rc-send", "5000", "1"),
        ("rc-read", "8", "16"),
        ("rc-read", "9000", "2"),
        ("rc-atomic", "8", "16"),
    ] {
        let report = run(&["--mode", mode, "--size", size, "--qps", qps]);
        assert!(report["msgs_per_s"].as_u64() > Some(0), "{report}");
        assert_eq!(report["errors"], 0, "{report}");
        assert_eq!(report["verified"], true, "{report}");
    }
}

#[test]
fn the_keys_of_the_json_are_what_they_were() {
    let report = run(&["--mode", "io"]);
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        BTreeSet::from_iter(keys),
        BTreeSet::from(KEYS),
        "a key that came or went"
    );
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    for (args, reason) in [
        (&["--mtu", "1500"][..], "--mtu 1500"),
        (&["--outstanding", "20"], "no multiple of --signal-every 16"),
        (&["--mode", "rc-atomic", "--size", "64"], "atomics have 8 bytes"),
        (&["--port", "nonsense"], "two virtual devices"),
        (&["--mode", "io", "--size", "1M"], "bytes at most"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_rnic-testpmd"))
            .args(args)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && err.contains(reason),
            "{args:?}: {err}"
        );
    }
}

#[test]
fn a_fixed_number_of_messages_is_that_number_and_what_was_in_flight_beside_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_rnic-testpmd"))
        .args([
            "--messages",
            "4800",
            "--mode",
            "rc-write",
            "--size",
            "8",
            "--qps",
            "3",
        ])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let messages = report["messages"].as_u64().unwrap();
    assert!((4800..4800 + 2 * 3 * 32).contains(&messages), "{report}");
    assert!(report["frames"].as_u64() > Some(messages), "{report}");
    assert_eq!(report["verified"], true, "{report}");
}
