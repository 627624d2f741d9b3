//! What `rnicd` says to configurations, right and wrong.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rnic_tests::rnicd;

fn check(file: &Path) -> Output {
    Command::new(rnicd())
        .arg("--check")
        .arg(file)
        .output()
        .expect("rnicd can be started")
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat()
}

fn samples() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/samples");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files
}

#[test]
fn every_sample_is_valid() {
    let samples = samples();
    assert!(samples.len() >= 3);
    for sample in samples {
        let output = check(&sample);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}: {}",
            sample.display(),
            text(&output)
        );
    }
}

/// A file with one port, whose further keys begin at line 5, column 5.
fn port(keys: &str) -> String {
    format!(
        "version: 1\nports:\n  - name: rnic0\n    device: {{ vdev: \"net_tap0,iface=tap0\" }}\n    {keys}\n"
    )
}

/// A file whose further keys begin at line 2, column 1.
fn top(keys: &str) -> String {
    format!("version: 1\n{keys}\nports: [{{ name: rnic0, device: {{ vdev: net_null0 }} }}]\n")
}

#[test]
fn each_kind_of_mistake_ends_with_2_and_names_place_key_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.yaml");
    let cases: &[(&str, String, &str, &str)] = &[
        // What, the file, its line and column, what it says.
        ("not YAML", "version: 1\nports: [\n".into(), "", "error"),
        (
            "a tab for indentation",
            "version: 1\nports:\n\t- name: rnic0\n".into(),
            "3:",
            "error",
        ),
        ("nothing", String::new(), "1:1", "error"),
        ("a list", "- version: 1\n".into(), "1:1", "map"),
        ("no version", "ports: []\n".into(), "1:1", "version"),
        (
            "a version of the future",
            "version: 2\nports: []\n".into(),
            "1:10",
            "1",
        ),
        ("no port", "version: 1\nports: []\n".into(), "2:8", "ports"),
        (
            "an unknown key",
            top("controll: {}"),
            "2:1",
            "did you mean `control`?",
        ),
        (
            "an unknown key below",
            top("log: { levle: info }"),
            "2:8",
            "did you mean `level`?",
        ),
        ("a key twice", top("log: {}\nlog: {}"), "3:1", "log"),
        ("a wrong type", top("log: loud"), "2:6", "expected a map"),
        ("an unknown word", top("log: { level: loud }"), "2:15", "info"),
        (
            "a size without unit",
            top("eal: { memory_size: 64 }"),
            "2:21",
            "MiB",
        ),
        (
            "a size of an unknown unit",
            top("eal: { memory_size: 64XB }"),
            "2:21",
            "MiB",
        ),
        (
            "a size too small",
            top("eal: { memory_size: 1MiB }"),
            "2:21",
            "64MiB",
        ),
        (
            "a time of an unknown unit",
            top("cores: { idle: { max_sleep: 1fortnight } }"),
            "2:29",
            "us",
        ),
        (
            "a number out of range",
            top("limits: { clients: 0 }"),
            "2:20",
            "1",
        ),
        (
            "a CPU twice",
            top("cores: { poll: [0, 0] }"),
            "2:20",
            "cores.poll",
        ),
        (
            "a relative socket",
            top("control: { socket: rnicd.sock }"),
            "2:20",
            "absolute",
        ),
        (
            "one path for both sockets",
            top("control: { socket: /a, admin_socket: /a }"),
            "2:",
            "socket",
        ),
        (
            "an environment variable that is not set",
            top("control: { socket: \"${NO_SUCH}/a\" }"),
            "2:",
            "NO_SUCH",
        ),
        ("an MTU out of range", port("mtu: 100"), "5:10", "352"),
        (
            "an MTU too small for IPv6",
            port("addresses: [fd00::1/64]\n    mtu: 1279"),
            "6:10",
            "1280",
        ),
        (
            "an address without prefix",
            port("addresses: [10.0.0.1]"),
            "5:17",
            "/24",
        ),
        (
            "an address that is none",
            port("addresses: [10.0.0.256/24]"),
            "5:17",
            "address",
        ),
        (
            "a prefix too long",
            port("addresses: [10.0.0.1/33]"),
            "5:17",
            "32",
        ),
        (
            "a MAC address that is none",
            port("mac: \"02:00\""),
            "5:10",
            "mac",
        ),
        ("a VLAN out of range", port("vlan: 4095"), "5:11", "4094"),
        (
            "a gateway off the link",
            port("addresses: [10.0.0.1/24]\n    gateways: [10.1.0.1]"),
            "6:16",
            "networks",
        ),
        (
            "descriptors that are no power of two",
            port("rx_descriptors: 1000"),
            "5:21",
            "1024",
        ),
        (
            "a chance of more than all",
            port("faults: { rx: { drop: 101% } }"),
            "5:27",
            "100%",
        ),
        (
            "a chance that is none",
            port("faults: { rx: { drop: often } }"),
            "5:27",
            "%",
        ),
        (
            "two devices",
            port("mtu: 1500").replace("vdev:", "pci: \"0000:01:00.0\", vdev:"),
            "4:",
            "device",
        ),
        (
            "no device",
            port("mtu: 1500").replace("vdev: \"net_tap0,iface=tap0\"", ""),
            "4:",
            "device",
        ),
        (
            "a PCI address that is none",
            port("mtu: 1500").replace("vdev: \"net_tap0,iface=tap0\"", "pci: eth0"),
            "4:",
            "pci",
        ),
        (
            "a peer that is not there",
            port("mtu: 1500").replace("vdev: \"net_tap0,iface=tap0\"", "ring: { peer: rnic7 }"),
            "4:",
            "rnic7",
        ),
        (
            "a port name of another form",
            port("mtu: 1500").replace("rnic0", "eth 0"),
            "3:11",
            "name",
        ),
        (
            "a port name twice",
            port("mtu: 1500\n  - { name: rnic0, device: { vdev: net_null1 } }"),
            "6:13",
            "rnic0",
        ),
        (
            "a congestion control that there is not",
            port("congestion: timely"),
            "5:17",
            "`off` or `dcqcn`",
        ),
    ];
    for (what, yaml, place, says) in cases {
        std::fs::write(&file, yaml).unwrap();
        let output = check(&file);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {text}");
        let place = format!("{}:{place}", file.display());
        assert!(text.contains(&place), "{what}: {text}\nlacks the place {place}");
        assert!(text.contains(says), "{what}: {text}\nlacks {says:?}");
    }
    std::fs::write(&file, b"version: 1\nports: \xFF\xFE\n").unwrap();
    assert_eq!(check(&file).status.code(), Some(2));
}

#[test]
fn a_file_that_is_not_there_is_said_so() {
    let output = check(Path::new("/nonexistent/rnicd.yaml"));
    assert_ne!(output.status.code(), Some(0));
    assert!(
        text(&output).contains("/nonexistent/rnicd.yaml"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_daemon_on_a_wrong_configuration_does_not_start_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.yaml");
    std::fs::write(&file, port("mtu: 100")).unwrap();
    let output = Command::new(rnicd()).arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("wrong.yaml:5:10"), "{}", text(&output));
}

#[test]
fn the_schema_is_json_and_knows_every_section() {
    let output = Command::new(rnicd()).arg("--print-schema").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for section in ["version", "control", "log", "eal", "cores", "ports", "limits"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}
