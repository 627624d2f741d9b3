//! The tool as it is used, against a daemon in miniature. With `RNIC_TEST_SOCKET` set, against the daemon there.
#[path = "../../../client/tests/mock/mod.rs"]
mod mock;

use std::process::{Command, Output};

use serde_json::Value;

struct Tool {
    mock: Option<mock::Mock>,
    socket: std::path::PathBuf,
}

impl Tool {
    fn start() -> Tool {
        match std::env::var_os("RNIC_TEST_SOCKET") {
            Some(socket) => Tool {
                mock: None,
                socket: socket.into(),
            },
            None => {
                let mock = mock::Mock::start();
                Tool {
                    socket: mock.socket.clone(),
                    mock: Some(mock),
                }
            }
        }
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rnic-perf"));
        command.args(args.split(' ')).arg("--socket").arg(&self.socket);
        command
    }

    fn run(&self, args: &str) -> String {
        let output = self.command(args).output().unwrap();
        text(&output, args)
    }

    fn json(&self, args: &str) -> Vec<Value> {
        let text = self.run(&format!("{args} --json --self rnic1"));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn text(output: &Output, args: &str) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rnic-perf {args}: {error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn every_test_moves_and_verifies_messages() {
    let tool = Tool::start();
    for op in ["send", "write", "read"] {
        for (metric, size) in [("bw", "1"), ("bw", "70000"), ("lat", "1"), ("lat", "5000")] {
            let args = format!("{op} {metric} -s {size} -n 150 -t 8 --verify --path-label loopback");
            let runs = tool.json(&args);
            assert_eq!(runs.len(), 1, "{args}");
            let run = &runs[0];
            assert_eq!(
                (run["op"].as_str(), run["metric"].as_str()),
                (Some(op), Some(metric))
            );
            assert_eq!(
                (run["iters"].as_u64(), run["errors"].as_u64()),
                (Some(150), Some(0)),
                "{args}"
            );
            assert_eq!(run["size"].to_string(), size);
            assert_eq!(
                (run["path"].as_str(), run["version"].as_u64()),
                (Some("loopback"), Some(1))
            );
            assert!(run["msgs_per_s"].as_f64() > Some(0.0) && run["gbit_per_s"].as_f64() > Some(0.0));
            assert!(run["p50_ns"].as_u64() > Some(0) && run["p99_ns"].as_u64() >= run["p50_ns"].as_u64());
        }
    }
}

#[test]
fn atomics_count_and_each_finds_the_number_before() {
    let tool = Tool::start();
    for kind in ["FETCH_AND_ADD", "CMP_AND_SWAP"] {
        for (test, qps, count) in [("bw -q 3 -n 150 -t 8", 3, 450), ("lat -n 50", 1, 50)] {
            let run = &tool.json(&format!("atomic {test} -A {kind} --verify"))[0];
            assert_eq!(
                (&run["op"], &run["size"], &run["qps"]),
                (&"atomic".into(), &8.into(), &qps.into())
            );
            assert_eq!(
                (&run["iters"], &run["errors"]),
                (&count.into(), &0.into()),
                "{kind} {test}"
            );
        }
    }
}

#[test]
fn verification_finds_damaged_bytes() {
    let tool = Tool::start();
    let Some(mock) = &tool.mock else { return };
    mock.state().corrupt = true;
    for test in [
        "send bw",
        "write bw",
        "read bw",
        "send lat",
        "write lat",
        "read lat",
        "atomic bw",
        "atomic lat",
    ] {
        let size = if test.starts_with("atomic") { 8 } else { 64 };
        let args = format!("{test} -s {size} -n 10 --verify --json --self rnic1");
        let output = tool.command(&args).output().unwrap();
        assert!(!output.status.success(), "{args}");
        let run: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(run["errors"].as_u64() >= Some(10), "{args}: {run}");
    }
}

#[test]
fn several_queue_pairs_share_the_work() {
    let tool = Tool::start();
    for op in ["send", "write", "read"] {
        let run = &tool.json(&format!("{op} bw -s 300 -n 100 -q 3 --verify"))[0];
        assert_eq!(
            (run["iters"].as_u64(), run["qps"].as_u64(), run["errors"].as_u64()),
            (Some(300), Some(3), Some(0))
        );
    }
}

#[test]
fn all_sizes_run_one_after_another_and_a_duration_ends() {
    let tool = Tool::start();
    for test in ["send lat", "write bw"] {
        let runs = tool.json(&format!("{test} -a -n 4 --verify"));
        let sizes: Vec<_> = runs.iter().map(|run| run["size"].as_u64().unwrap()).collect();
        assert_eq!(sizes, (1..=23).map(|exponent| 1 << exponent).collect::<Vec<_>>());
        assert!(runs.iter().all(|run| run["errors"] == 0));
    }
    let run = &tool.json("send bw -D 1 -s 64 --verify")[0];
    assert!(run["iters"].as_u64() > Some(0) && run["errors"] == 0);
}

#[test]
fn server_and_client_print_a_table() {
    let tool = Tool::start();
    let port = std::net::TcpListener::bind(("::", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = tool
        .command(&format!("write bw -d rnic1 -p {port}"))
        .spawn()
        .unwrap();
    let table = tool.run(&format!("write bw -p {port} -n 100 localhost"));
    assert!(
        table.contains("RDMA_Write BW Test") && table.contains("BW average[MB/sec]"),
        "{table}"
    );
    let row = table.lines().rev().nth(1).unwrap();
    let columns: Vec<_> = row.split_whitespace().collect();
    assert_eq!(columns[..2], ["65536", "100"]);
    assert_eq!(columns.len(), 5);
    assert!(server.wait_with_output().unwrap().status.success());

    let table = tool.run("read lat -n 20 --self rnic1");
    assert!(
        table.contains("t_typical[usec]") && table.contains("99.9%[usec]"),
        "{table}"
    );
    assert_eq!(table.lines().rev().nth(1).unwrap().split_whitespace().count(), 9);
}

#[test]
fn mistakes_are_told() {
    let tool = Tool::start();
    let fails = |args: &str| {
        let output = tool.command(args).output().unwrap();
        assert!(!output.status.success(), "rnic-perf {args}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(fails("send lat -q 2 --self rnic1").contains("one QP"));
    assert!(fails("send bw -d rnic9 --self rnic1").contains("no device \"rnic9\""));
    assert!(fails("send bw --self rnic9").contains("no device \"rnic9\""));
    assert!(fails("send bw --mtu 1500").contains("1500 is no path MTU"));
    if tool.mock.is_some() {
        let output = Command::new(env!("CARGO_BIN_EXE_rnic-perf"))
            .args(["send", "bw", "--self", "rnic1", "--socket", "/nonexistent.sock"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("is the daemon running"));
    }
}
