//! Keys, types and versions.

use super::{errors, one_error, parse, with, with_port};

#[test]
fn the_smallest_file_is_valid_without_warnings() {
    assert!(parse(&with("# nothing")).unwrap().warnings().is_empty());
}

#[test]
fn unknown_keys_are_refused_at_each_level_with_the_likely_name() {
    one_error(&with("contrl: {}"), (2, 1), "contrl", "did you mean `control`?");
    one_error(
        &with("control: { sokcet: /x }"),
        (2, 12),
        "control.sokcet",
        "did you mean `socket`?",
    );
    one_error(
        &with("log: { levle: info }"),
        (2, 8),
        "log.levle",
        "did you mean `level`?",
    );
    one_error(
        &with("eal: { memory-size: 1GiB }"),
        (2, 8),
        "eal.memory-size",
        "did you mean `memory_size`?",
    );
    one_error(
        &with("cores:\n  idle:\n    polcy: spin"),
        (4, 5),
        "cores.idle.polcy",
        "did you mean `policy`?",
    );
    one_error(
        &with("limits: { per_client: { qp: 1 } }"),
        (2, 25),
        "limits.per_client.qp",
        "`qps`?",
    );
    one_error(
        &with_port("congestion: { dcqcm: {} }"),
        (5, 19),
        "ports[0].congestion.dcqcm",
        "did you mean `dcqcn`?",
    );
    one_error(
        &with_port("mtuu: 4200"),
        (5, 5),
        "ports[0].mtuu",
        "did you mean `mtu`?",
    );
    one_error(
        &with_port("faults: { rx: { dorp: 5% } }"),
        (5, 21),
        "ports[0].faults.rx.dorp",
        "`drop`?",
    );
    one_error(
        &with_port("neighbours: [{ ip: 10.0.0.2, mac: 02:00:00:00:00:02, up: 1 }]"),
        (5, 58),
        "ports[0].neighbours[0].up",
        "`ip`, `mac`",
    );
    one_error(&with("1: 2"), (2, 1), "1", "unknown key");
    one_error(&with("<<: {}"), (2, 1), "<<", "merge keys are not supported");
}

#[test]
fn values_of_a_wrong_type_say_which_is_expected() {
    one_error(
        &with("log: loud"),
        (2, 6),
        "log",
        "expected a map with `format`, `level`",
    );
    one_error(&with("log: [info]"), (2, 6), "log", "a list does not fit");
    one_error(
        &with("cores: { pin: 1 }"),
        (2, 15),
        "cores.pin",
        "expected `true` or `false`",
    );
    one_error(
        &with("cores: { poll: 3 }"),
        (2, 16),
        "cores.poll",
        "`auto` or a list of CPU numbers, such as `[2,3]`",
    );
    one_error(&with("cores: { poll: all }"), (2, 16), "cores.poll", "`auto`");
    one_error(
        &with("cores: { poll: [0, one] }"),
        (2, 20),
        "cores.poll[1]",
        "an integer from 0 to 4095",
    );
    one_error(
        &with("control: { socket_mode: 660 }"),
        (2, 25),
        "control.socket_mode",
        "such as `0660`; put it in quotes",
    );
    one_error(
        &with("control: { socket_group: 100 }"),
        (2, 26),
        "control.socket_group",
        "put it in quotes",
    );
    one_error(
        &with("control: { socket: }"),
        (2, 12),
        "control.socket",
        "an empty value does not fit",
    );
    one_error(
        &with_port("mtu: big"),
        (5, 10),
        "ports[0].mtu",
        "expected an integer from 352 to 9600",
    );
    one_error(
        &with_port("mtu: 1500.5"),
        (5, 10),
        "ports[0].mtu",
        "expected an integer",
    );
    one_error(
        &with_port("rss: true"),
        (5, 10),
        "ports[0].rss",
        "expected `auto`, `on` or `off`",
    );
    one_error(
        &with_port("addresses: 10.0.0.1/24"),
        (5, 16),
        "ports[0].addresses",
        "expected a list",
    );
    one_error(
        &with_port("addresses: [7]"),
        (5, 17),
        "ports[0].addresses[0]",
        "such as `10.0.0.1/24` or a map",
    );
    one_error("version: 1\nports: {}\n", (2, 8), "ports", "expected a list");
    one_error("- version: 1\n", (1, 1), "", "a list does not fit");
    one_error("hello\n", (1, 1), "", "expected a map with `control`");
    one_error(
        "version: one\nports: []\n"
            .replace("[]", "[{ name: rnic0, device: { pci: 01:00.0 } }]")
            .as_str(),
        (1, 10),
        "version",
        "expected 1",
    );
}

#[test]
fn names_to_choose_from_are_listed() {
    one_error(
        &with("log: { level: inof }"),
        (2, 15),
        "log.level",
        "did you mean `info`?",
    );
    one_error(
        &with("eal: { memory: huge }"),
        (2, 16),
        "eal.memory",
        "expected `none` or `hugepages`",
    );
    one_error(
        &with("cores: { idle: { policy: nap } }"),
        (2, 26),
        "cores.idle.policy",
        "`spin`, `pause` or `sleep`",
    );
    one_error(
        &with_port("loopback: wired"),
        (5, 15),
        "ports[0].loopback",
        "did you mean `wire`?",
    );
    one_error(
        &with_port("congestion: on"),
        (5, 17),
        "ports[0].congestion",
        "`off` or `dcqcn`",
    );
}

#[test]
fn missing_keys_say_what_to_add() {
    one_error("version: 1\n", (1, 1), "ports", "add `ports:` with a list");
    one_error(
        "ports: [{ name: rnic0, device: { pci: 01:00.0 } }]\n",
        (1, 1),
        "version",
        "add `version:` with 1",
    );
    let text = "version: 1\nports:\n  - device: { pci: 01:00.0 }\n";
    one_error(text, (3, 5), "ports[0].name", "a device name, such as `rnic0`");
    one_error(
        "version: 1\nports:\n  - name: rnic0\n",
        (3, 5),
        "ports[0].device",
        "exactly one of `pci`, `vdev`, `ring`",
    );
    one_error(
        &with_port("capture: { limit: 1MiB }"),
        (5, 14),
        "ports[0].capture.file",
        "the key `file` is missing",
    );
    let text = "version: 1\nports:\n  - name: rnic0\n    device: {}\n";
    one_error(text, (4, 13), "ports[0].device", "no device is given");
}

#[test]
fn duplicate_keys_name_the_line_of_the_first() {
    one_error(
        &with_port("mtu: 1500\n    mtu: 4200"),
        (6, 5),
        "ports[0].mtu",
        "the first is on line 5",
    );
    one_error(&with("version: 1"), (2, 1), "version", "given twice");
    one_error(&with("x: { a: 1, \"a\": 2 }"), (2, 12), "x.a", "given twice");
}

#[test]
fn another_version_is_the_only_error_of_its_file() {
    one_error(
        "version: 2\nnovelty: true\n",
        (1, 10),
        "version",
        "write `version: 1`",
    );
}

#[test]
fn all_findings_are_reported_at_once_in_the_order_of_the_file() {
    let text = with_port("mtu: 1\n    rss: maybe\n    speed: 9\n    queues: many");
    let lines: Vec<_> = errors(&text).iter().map(|found| found.line).collect();
    assert_eq!(lines, [5, 6, 7, 8]);
    assert!(
        parse(&text)
            .unwrap_err()
            .to_string()
            .ends_with("4 errors in the configuration")
    );
}
