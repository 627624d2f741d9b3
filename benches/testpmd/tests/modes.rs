//! Every mode moves data, all of it arrives, and the JSON has its keys.
use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use serde_json::Value;

const KEYS: [&str; 20] = [
    "mode",
    "port",
    "size",
    "qps",
    "cores",
    "burst",
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
    "per_core",
];

fn testpmd(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rnic-testpmd"));
    command.args(args).output().unwrap()
}

/// What a run that succeeds prints.
fn json(args: &[&str]) -> Value {
    let output = testpmd(args);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap()
}

fn run(args: &[&str]) -> Value {
    json(&[&["--json", "--seconds", "1"], args].concat())
}

/// What a run that fails says.
fn refusal(args: &[&str]) -> String {
    let output = testpmd(args);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?}: {err}");
    err
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
        (
            &["--cores", "2", "--qps", "1"],
            "fewer connections than the 2 cores",
        ),
        (&["--cores", "2", "--bare"], "--bare is of one core"),
        (&["--burst", "0"], "1..=32"),
        (&["--burst", "33"], "1..=32"),
    ] {
        let err = refusal(args);
        assert!(err.contains(reason), "{args:?}: {err}");
    }
}

#[test]
fn a_fixed_number_of_messages_is_that_number_and_what_was_in_flight_beside_it() {
    let report = json(&[
        "--messages",
        "4800",
        "--mode",
        "rc-write",
        "--size",
        "8",
        "--qps",
        "3",
    ]);
    let messages = report["messages"].as_u64().unwrap();
    assert!((4800..4800 + 2 * 3 * 32).contains(&messages), "{report}");
    assert!(report["frames"].as_u64() > Some(messages), "{report}");
    assert_eq!(report["verified"], true, "{report}");
}

#[test]
fn cores_share_the_connections_and_are_summed_up() {
    if available_cpus() < 2 {
        eprintln!("SKIPPED: there is one CPU, and each core needs its own");
        return;
    }
    for args in [
        &["--mode", "io"][..],
        &["--mode", "rc-write", "--size", "8", "--qps", "7"],
        &["--mode", "mixed", "--port", "dpdk-ring"],
        &["--mode", "ud-send", "--qps", "2"],
    ] {
        let report = run(&[args, &["--cores", "2"]].concat());
        assert_eq!(report["cores"], 2, "{report}");
        assert_eq!(report["errors"], 0, "{report}");
        assert_eq!(report["verified"], true, "{report}");
        let cores = report["per_core"].as_array().unwrap();
        let cpus: BTreeSet<_> = cores.iter().map(|core| core["cpu"].as_u64().unwrap()).collect();
        assert_eq!(cpus.len(), 2, "each has a CPU to itself: {report}");
        let rates: Vec<u64> = cores
            .iter()
            .map(|core| core["msgs_per_s"].as_u64().unwrap())
            .collect();
        assert!(rates.iter().all(|rate| *rate > 0), "{report}");
        let all = report["msgs_per_s"].as_u64().unwrap();
        assert!(all.abs_diff(rates.iter().sum()) <= 2, "rounded down: {report}");
    }
}

#[test]
fn a_fixed_number_of_messages_is_spread_over_the_cores() {
    if available_cpus() < 2 {
        eprintln!("SKIPPED: there is one CPU, and each core needs its own");
        return;
    }
    let report = json(&["--messages", "4800", "--cores", "2", "--qps", "5"]);
    let messages = report["messages"].as_u64().unwrap();
    assert!((4800..4800 + 2 * 5 * 32).contains(&messages), "{report}");
    assert_eq!(report["verified"], true, "{report}");
}

#[test]
fn more_cores_than_cpus_are_refused() {
    let (cpus, cores) = (available_cpus(), available_cpus() + 1);
    let err = refusal(&["--cores", &cores.to_string()]);
    assert!(err.contains(&format!("and {cpus} may be used")), "{err}");
}

#[test]
fn small_bursts_carry_everything_too() {
    for args in [
        ["--mode", "io", "--burst", "1"],
        ["--mode", "rc-send", "--burst", "1"],
        ["--mode", "mixed", "--burst", "5"],
        ["--mode", "ud-send", "--burst", "31"],
    ] {
        let report = run(&args);
        assert_eq!(report["burst"].to_string(), args[3], "{report}");
        assert!(report["msgs_per_s"].as_u64() > Some(0), "{report}");
        assert_eq!(report["errors"], 0, "{report}");
        assert_eq!(report["verified"], true, "{report}");
    }
}

#[test]
fn every_second_and_the_end_have_forward_statistics_of_each_port() {
    let output = testpmd(&["--seconds", "2", "--mode", "io", "--size", "64"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for port in ["port 0", "port 1"] {
        assert_eq!(
            text.matches(&format!("NIC statistics for {port} ")).count(),
            2,
            "{text}"
        );
        assert_eq!(
            text.matches(&format!("Forward statistics for {port} ")).count(),
            1,
            "{text}"
        );
    }
    let all = |name| numbers(&text, name);
    // All frames go from the first port to the second.
    let (sent, received) = (all("Tx-pps:"), all("Rx-pps:"));
    let idle = |rates: [u64; 2]| rates == [0, 0];
    assert!(!sent[0..1].contains(&0) && !received[1..2].contains(&0), "{text}");
    assert!(
        idle([sent[1], sent[3]]) && idle([received[0], received[2]]),
        "{text}"
    );
    for (frames, bits) in sent.iter().zip(all("Tx-bps:")) {
        assert!(bits.abs_diff(frames * 64 * 8) <= 64 * 8, "{text}");
    }
    let (_, totals) = text.split_once("Forward statistics").unwrap();
    for name in ["RX-packets:", "TX-packets:", "RX-total:", "TX-total:"] {
        let [first, second, sum] = numbers(totals, name)[..] else {
            panic!("each port and all of them: {totals}");
        };
        assert!(first + second == sum && sum > 0, "{totals}");
    }
}

fn available_cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// The numbers behind a name, in their order.
fn numbers(text: &str, name: &str) -> Vec<u64> {
    let behind = text.split(name).skip(1);
    let words = behind.map(|rest| rest.split_whitespace().next().unwrap());
    words.map(|word| word.parse().unwrap()).collect()
}
