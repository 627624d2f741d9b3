//! What `rnicctl` prints: tables for people, JSON with stable keys for programs.
use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use rnic_tests::{Appliance, Bystanders, Setup, Turn, poll_until};
use serde_json::Value;

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

#[track_caller]
fn assert_has(value: &Value, wanted: &[&str]) {
    let keys = keys(value);
    for key in wanted {
        assert!(keys.contains(key), "{key} is missing in {value}");
    }
}

fn table(appliance: &Appliance, command: &str) -> String {
    let output = appliance.ctl(&[command]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn json_has_its_stable_keys_and_tables_the_same_numbers() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let socket = appliance.socket();
    let bystanders = Bystanders::start([(&socket, "rnic0"), (&socket, "rnic1")]);

    let status = appliance.ctl_json(&["status"]);
    let counts = [
        "clients",
        "pds",
        "mrs",
        "cqs",
        "qps",
        "ahs",
        "bytes_awaiting_grace",
        "oldest_grace_us",
    ];
    assert_has(&status, &counts);
    assert_has(&status, &["cores", "ports"]);
    assert!(counts.iter().all(|key| status[key].is_u64()), "{status}");
    assert_has(
        &status["cores"][0],
        &["id", "state", "epoch", "busy_cycles", "idle_cycles"],
    );
    for (port, host) in [(0, 1), (1, 2)] {
        let shown = &status["ports"][port];
        assert_has(shown, &["name", "state", "mtu", "gids"]);
        assert_eq!(shown["name"], format!("rnic{port}"));
        assert_eq!(shown["mtu"], 4200);
        let gids: Vec<Ipv6Addr> = shown["gids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|gid| gid.as_str().unwrap().parse().unwrap())
            .collect();
        let wanted = [format!("::ffff:10.0.0.{host}"), format!("fd00::{host}")];
        assert_eq!(gids, wanted.map(|gid| gid.parse::<Ipv6Addr>().unwrap()));
    }
    assert_eq!(
        (&status["clients"], &status["qps"], &status["mrs"]),
        (&2.into(), &2.into(), &10.into())
    );
    let text = table(&appliance, "status");
    assert!(text.contains("rnic0") && text.contains("rnic1"), "{text}");

    let devices = appliance.ctl_json(&["dev"]);
    assert_eq!(devices.as_array().map(Vec::len), Some(2), "{devices}");
    assert_has(
        &devices[0],
        &["name", "state", "mtu", "gids", "mac", "rx_frames", "tx_frames"],
    );
    assert!(devices[0]["tx_frames"].as_u64() > Some(0), "{devices}");
    assert!(table(&appliance, "dev").contains("rnic0"));

    let qps = appliance.ctl_json(&["qp"]);
    let qps = qps.as_array().expect("a list");
    assert_eq!(qps.len(), 2);
    let text = table(&appliance, "qp");
    for qp in qps {
        assert_has(qp, &["qpn", "device", "pid", "state", "dest_qpn", "path_mtu"]);
        assert_eq!(
            (&qp["state"], &qp["path_mtu"], &qp["comm"]),
            (&"RTS".into(), &1024.into(), &"rnic-probe".into())
        );
        let qpn = qp["qpn"].as_u64().unwrap();
        assert!(
            text.contains(&qpn.to_string()) || text.contains(&format!("{qpn:x}")),
            "{text}"
        );
    }
    for (kind, keys) in [
        ("qp", &["qpn", "state", "retries", "core"][..]),
        ("cq", &["cqn", "state", "depth"]),
        ("mr", &["mrn", "key", "state", "iova", "length", "access", "pdn"]),
        ("pd", &["pdn"]),
    ] {
        let shown = appliance.ctl_json(&["res", "show", kind]);
        let first = &shown[0];
        assert_has(
            first,
            &["device", "pid", "uid", "comm", "age_ms", "users", "last_error"],
        );
        assert_has(first, keys);
        assert_eq!(first["comm"], "rnic-probe");
    }
    for none in ["srq", "ah"] {
        assert_eq!(appliance.ctl_json(&["res", "show", none]), Value::Array(vec![]));
    }
    let text = String::from_utf8(appliance.ctl(&["res"]).stdout).unwrap();
    assert!(
        text.contains("0: rnic0: pd 1 cq 1 qp 1 mr 5 ctx 2 srq 0 ah 0"),
        "{text}"
    );
    bystanders.finish();
    let idle = poll_until(Duration::from_secs(10), || {
        let status = appliance.ctl_json(&["status"]);
        counts.iter().all(|key| status[key] == 0).then_some(())
    });
    assert!(idle.is_some(), "{}", appliance.ctl_json(&["status"]));
    appliance.stop();
}

#[test]
fn without_a_daemon_it_fails_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["status", "dev", "qp"] {
        let output = std::process::Command::new(rnic_tests::rnicd().with_file_name("rnicctl"))
            .arg(command)
            .env("RNIC_ADMIN_SOCKET", dir.path().join("none.sock"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("none.sock") && text.contains("rnicd"), "{text}");
    }
}

#[test]
fn nonsense_on_the_admin_socket_is_answered_and_harms_nobody() {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    let _turn = Turn::take();
    let mut appliance = Appliance::start(&Setup::back_to_back());
    let path = appliance.dir().join("admin.sock");
    for nonsense in ["\n", "{}\n", "[]\n", "{\"request\":\"reboot\"}\n"] {
        let mut socket = UnixStream::connect(&path).unwrap();
        socket.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).unwrap();
        assert!(answer.contains("error"), "{nonsense}: {answer}");
    }
    let idle: Vec<_> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut long = UnixStream::connect(&path).unwrap();
    let _ = long.write_all(&vec![b'x'; 1 << 20]);
    drop((idle, long));
    // It may not have seen yet that they are gone.
    let answers = poll_until(Duration::from_secs(10), || {
        appliance.ctl(&["status"]).status.success().then_some(())
    });
    assert!(answers.is_some(), "connections that are gone keep others out");
    appliance.assert_alive();
    appliance.stop();
}
