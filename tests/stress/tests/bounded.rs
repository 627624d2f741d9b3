//! The stress run in a bounded form; `make stress` is the long one.
use std::process::Command;

use rnic_tests::Turn;

fn stress(args: &[&str]) {
    let _turn = Turn::take();
    let output = Command::new(env!("CARGO_BIN_EXE_rnic-stress"))
        .args(args)
        .output()
        .expect("it was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "rnic-stress {}: {}\n{}{}",
        args.join(" "),
        output.status,
        text(&output.stderr),
        text(&output.stdout)
    );
}

#[test]
fn clients_that_do_everything_at_random_see_nothing_that_may_not_be_on_sleeping_cores() {
    stress(&["run", "--seconds", "25"]);
}

#[test]
fn clients_that_do_everything_at_random_see_nothing_that_may_not_be_on_polling_cores() {
    stress(&["run", "--seconds", "15", "--idle", "pause", "--kill-every", "300"]);
}
