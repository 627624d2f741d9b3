//! The program, as scripts use it.

use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rnic-trace"))
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn capture(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures");
    dir.join(name).to_str().expect("a path in UTF-8").into()
}

#[test]
fn exit_codes_tell_a_good_trace_from_a_bad_one_and_from_none() {
    let good = capture("rc_send_bw.pcap");
    assert_eq!(run(&["--near", "all", &good]).status.code(), Some(0));
    let mut bytes = std::fs::read(&good).expect("a capture");
    // A payload byte of the first frame.
    bytes[24 + 16 + 200] ^= 1;
    let bad = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(bad.path(), bytes).expect("room for a file");
    let output = run(&[bad.path().to_str().expect("a path in UTF-8")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(": frame 1 at 0.000000 s, 192.168.77.2>192.168.77.1 RC SEND_FIRST"),
        "{text}"
    );
    assert!(text.contains("icrc (7.8.1, A17.3.3)"), "{text}");
    let output = run(&["/nowhere/a.pcap"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/a.pcap"));
    assert_eq!(run(&["--near", "nowhere", &good]).status.code(), Some(2));
}

#[test]
fn every_rule_says_where_it_stands_and_where_it_holds() {
    let output = run(&["--rules"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), 3 * rnic_trace::Rule::ALL.len());
}
