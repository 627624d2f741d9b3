//! Every script, in virtual time; and what becomes of scripts that are wrong.

use rnic_conformance::{Script, play, scripts};

fn load(path: &std::path::Path) -> Result<Script, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Script::parse(&name, &text).map_err(|error| error.to_string())
}

#[test]
fn every_script_holds_in_virtual_time() {
    let paths = scripts();
    assert!(paths.len() >= 30, "{} scripts", paths.len());
    let failures: Vec<String> = paths
        .iter()
        .filter_map(|path| load(path).and_then(|script| play(&script)).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        paths.len(),
        failures.join("\n")
    );
}

/// What is said about a script of these lines.
fn said(text: &str) -> String {
    let script = Script::parse("x.txt", text).expect("a script");
    play(&script).expect_err("it does not hold")
}

#[test]
fn a_trace_that_is_another_is_shown_beside_what_was_expected() {
    let report = said("post a send 4\n> a SEND_ONLY 0\n> b NAK access 0");
    assert!(
        report.starts_with("x.txt: line 3: b sent ACK 0 instead"),
        "{report}"
    );
    assert!(
        report.contains("  > a SEND_ONLY 0    # at 0 ns\n  > b ACK 0    # at 1000 ns"),
        "{report}"
    );
    let report = said("post a send 4\n> a SEND_ONLY 0");
    assert!(
        report.contains("b sent ACK 0 after the last frame of the script"),
        "{report}"
    );
    let report = said("post a send 4\n> a SEND_ONLY 0\n> b ACK 0\n> b ACK 0");
    assert!(report.contains("line 4: the trace ends before it"), "{report}");
    let report = said("post a send 4\n> a SEND_ONLY 0\n> b ACK 0 after 1ms");
    assert!(report.contains("line 3: sent after 1000 ns already"), "{report}");
}

#[test]
fn completions_events_and_counts_must_be_those_of_the_script() {
    assert!(said("post a write 4 bad_key\nevent b qp_access_err").contains("A's send completions are"));
    assert!(
        said("post a write 4 bad_key\ndone a send 0 rem_access_err").contains("B's events are [QpAccessErr]")
    );
    assert!(said("post a send 4\ndone a send 0 rem_access_err").contains("A's send completions are"));
    assert!(
        said("post a send 4\ndone b recv 0 loc_len_err").contains("B's receive 0 completes with Success")
    );
    assert!(said("post a send 4\nevent a qp_fatal").contains("A's events are [] instead of [QpFatal]"));
    assert!(said("service uc\npost a send 4\nheard b none").contains("B's receive 0 completes without"));
    assert!(said("service uc\npost a send 4\ndrop a any 0").contains("B has received 0 of 1 messages"));
    assert!(said("service uc\npost a send 4\ndrop a any 0\nheard b some").contains("B has received 0 of 1"));
    assert!(said("service ud\npost a send 4\npost a send 5\nheard b 1 0").contains("B's receive 0 is wrong"));
    assert!(said("post a send 4\n\ncount b ACK 0 2").contains("line 3: 1 such frames instead of 2"));
}

#[test]
fn errors_name_file_line_column_and_what_may_stand_there() {
    for (text, at, expected) in [
        ("mtu 256\nport a send 4", "2:1", "service, mtu, congestion"),
        ("mtu 300", "1:5", "a path MTU: 256"),
        ("congestion on", "1:12", "off or dcqcn"),
        ("post c send 4", "1:6", "a or b"),
        ("post a sent 4", "1:8", "send, send_imm, write"),
        ("post a send", "1:12", "a number"),
        ("post a send 4 fenced", "1:20", "the end of the line"),
        ("drop a SEND_ONCE 1", "1:8", "the name of a frame"),
        ("drop a SEND_ONLY first", "1:18", "a relative PSN, or any"),
        ("delay a any 0 by 10", "1:20", "a time, such as 40us"),
        ("rate a drop 101%", "1:13", "a share from 0% to 100%"),
        ("heard b ten", "1:9", "some, none, or numbers"),
        ("> b NAK 0", "1:9", "sequence, invalid, access"),
        ("done a send 0 bad", "1:15", "a status as ibv_wc_status"),
        ("service rd", "1:9", "rc, xrc, uc or ud"),
        ("post a send 4 srq third", "1:19", "first, second, foreign"),
        ("set a mtu 4", "1:7", "an attribute as ibv_qp_attr"),
    ] {
        let error = Script::parse("x.txt", text).expect_err(text).to_string();
        assert!(
            error.starts_with(&format!("x.txt:{at}: expected {expected}")),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn only_what_does_not_depend_on_the_machine_is_for_an_appliance() {
    let live = |text: &str| Script::parse("x.txt", text).expect("a script").is_live();
    assert!(live(
        "rate a drop 5%\npost a send 4 fence\ndone a send 0 success\n> a SEND_ONLY 0"
    ));
    assert!(!live("drop a any 0\npost a send 4"));
    assert!(!live("post a send 4 at 1ms"));
    assert!(
        scripts()
            .iter()
            .filter(|path| load(path).is_ok_and(|script| script.is_live()))
            .count()
            >= 8
    );
}

#[test]
fn a_mark_that_is_not_answered_is_told() {
    let marked = "congestion dcqcn\nmark a any any always\npost a send 4\n";
    assert!(said(&format!("{marked}count b CNP any 0")).contains("1 such frames instead of 0"));
}
