//! The examples do what they say, each in two processes.
mod common;
mod mock;

use std::io::{BufRead, BufReader, Read, Write};
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

/// What a pingpong says until it knows the address of its peer, which does not exist.
fn addresses(mut child: Child) -> String {
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        said += &line.unwrap();
        if said.contains("remote address") {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    said
}

fn text(output: &Output) -> String {
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&all));
    String::from_utf8(all).unwrap()
}

fn pingpong(daemon: &Daemon, device: &str, port: &str, options: &[&str]) -> Command {
    let mut command = example("pingpong");
    command.arg("--socket").arg(&daemon.socket);
    command.args(["-p", port, "-d", device]).args(options);
    command
}

#[test]
fn pingpong_plays_and_checks() {
    let daemon = Daemon::start();
    let port = free_port();
    for mode in [&["--chk"][..], &["--events", "-r", "7"]] {
        let options = [&["-n", "50", "-s", "9000"], mode].concat();
        let server = start(&mut pingpong(&daemon, "rnic0", &port, &options));
        let client = start(pingpong(&daemon, "rnic1", &port, &options).arg("localhost"));
        let said = text(&client.wait_with_output().unwrap());
        assert!(
            said.contains("900000 bytes in ") && said.contains("50 iters in "),
            "{said}"
        );
        text(&server.wait_with_output().unwrap());
    }
}

/// The line of rdma-core's tools: LID, QPN, PSN and GID in hexadecimal, and a NUL.
const LINE: &[u8; 52] = b"0000:00abcd:00fffe:00000000000000000000ffff0a000001\0";

#[test]
fn pingpong_tells_its_address_as_rdma_cores_tools_do() {
    let daemon = Daemon::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let client = start(pingpong(&daemon, "rnic0", &port, &[]).arg("127.0.0.1"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut line = [0; LINE.len()];
    stream.read_exact(&mut line).unwrap();
    let theirs = String::from_utf8(line.into()).unwrap();
    let widths: Vec<usize> = theirs.split(':').map(str::len).collect();
    assert_eq!(widths, [4, 6, 6, 33], "{theirs:?}");
    assert!(theirs.ends_with('\0'), "{theirs:?}");
    // It answers nothing but "done", whatever becomes of the connection.
    stream.write_all(LINE).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"done\0");
    let output = addresses(client);
    assert!(
        output.contains("QPN 0x00abcd, PSN 0x00fffe, GID ::ffff:10.0.0.1"),
        "{output}"
    );
}

#[test]
fn pingpong_answers_a_client_of_rdma_core() {
    let daemon = Daemon::start();
    let port = free_port();
    let mut server = start(&mut pingpong(&daemon, "rnic0", &port, &[]));
    let mut stream = loop {
        match std::net::TcpStream::connect(("localhost", port.parse().unwrap())) {
            Ok(stream) => break stream,
            Err(_) => assert!(server.try_wait().unwrap().is_none(), "the server ended"),
        }
    };
    stream.write_all(LINE).unwrap();
    let mut line = [0; LINE.len()];
    stream.read_exact(&mut line).unwrap();
    stream.write_all(b"done\0").unwrap();
    let output = addresses(server);
    let qpn = String::from_utf8_lossy(&line[5..11]).into_owned();
    assert!(
        output.contains(&format!("local address:  LID 0x0000, QPN 0x{qpn}")),
        "{output}"
    );
    assert!(
        output.contains("QPN 0x00abcd, PSN 0x00fffe, GID ::ffff:10.0.0.1"),
        "{output}"
    );
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
