//! The examples do what they say, each in two processes.
mod common;
mod mock;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::Daemon;

/// An example's binary; `cargo test` builds them beside the tests, `cargo test --test examples` does not.
fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    assert!(
        path.exists(),
        "{} is missing; run `cargo build -p rnic --examples`",
        path.display()
    );
    Command::new(path)
}

/// A TCP port nobody listens on at the moment.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind(("::", 0)).unwrap();
    listener.local_addr().unwrap().port().to_string()
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn text(output: &Output) -> String {
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&all));
    String::from_utf8(all).unwrap()
}

#[test]
fn pingpong_plays_and_checks() {
    let daemon = Daemon::start();
    let port = free_port();
    for mode in [&[][..], &["--events"]] {
        let side = |device: &str| {
            let mut command = example("pingpong");
            command.arg("--socket").arg(&daemon.socket);
            command
                .args(["-p", &port, "-d", device, "-n", "50", "-s", "3000"])
                .args(mode);
            command
        };
        let server = start(&mut side("rnic0"));
        let client = start(side("rnic1").arg("localhost"));
        assert!(text(&client.wait_with_output().unwrap()).contains("50 round trips of 3000 bytes"));
        text(&server.wait_with_output().unwrap());
    }
}

#[test]
fn kv_read_reads_a_table_that_changes() {
    let daemon = Daemon::start();
    let port = free_port();
    let side = |command: &str, device: &str| {
        let mut side = example("kv_read");
        side.arg(command)
            .arg("--socket")
            .arg(&daemon.socket)
            .args(["-p", &port, "-d", device]);
        side
    };
    let server = start(side("serve", "rnic0").args(["--entries", "8"]));
    let client = start(side("get", "rnic1").args(["localhost", "0", "7", "-n", "200"]));
    let got = text(&client.wait_with_output().unwrap());
    assert!(got.contains("7: value ") && got.contains(" of key 7"), "{got}");
    assert!(text(&server.wait_with_output().unwrap()).contains("a client did 4"));
}

#[test]
fn without_a_daemon_an_example_says_so() {
    let output = example("pingpong")
        .args(["--socket", "/nonexistent.sock"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        error.starts_with("pingpong: cannot connect to rnicd at /nonexistent.sock"),
        "{error}"
    );
}
