//! Contradictions in `control`, `eal`, `cores` and `limits`.

use super::{one_error, one_warning, parse, with};

#[test]
fn control_sockets_are_checked() {
    let section = |keys: &str| with(&format!("control: {{ {keys} }}"));
    one_error(
        &section("socket: rnicd.sock"),
        (2, 20),
        "control.socket",
        "not absolute",
    );
    one_error(
        &section("socket: /a, admin_socket: /a"),
        (2, 38),
        "control.admin_socket",
        "the same path",
    );
    let (fits, too_long) = (
        format!("socket: /{}", "a".repeat(106)),
        format!("socket: /{}", "a".repeat(107)),
    );
    assert!(parse(&section(&fits)).is_ok());
    one_error(&section(&too_long), (2, 20), "control.socket", "has 108 bytes");
    one_warning(
        &section("socket_mode: \"0666\""),
        (2, 25),
        "control.socket_mode",
        "every user",
    );
    one_error(
        &section("socket_group: \"\""),
        (2, 26),
        "control.socket_group",
        "name of a group",
    );
    one_error(
        &section("neighbour_lifetime: 10ms"),
        (2, 32),
        "control.neighbour_lifetime",
        "1s",
    );
    one_error(
        &section("socket_mode: \"0999\""),
        (2, 25),
        "control.socket_mode",
        "octal",
    );
}

#[test]
fn eal_arguments_that_contradict_are_refused() {
    let eal = |keys: &str| with(&format!("eal: {{ {keys} }}"));
    one_error(
        &eal("extra_args: [--in-memory]"),
        (2, 21),
        "eal.extra_args[0]",
        "exclude each other",
    );
    one_error(
        &eal("memory: hugepages, extra_args: [--no-huge]"),
        (2, 40),
        "eal.extra_args[0]",
        "exclude each other",
    );
    one_error(
        &eal("extra_args: [\"-m512\"]"),
        (2, 21),
        "eal.extra_args[0]",
        "use `eal.memory_size`",
    );
    one_error(
        &eal("extra_args: [--vdev=net_tap0]"),
        (2, 21),
        "eal.extra_args[0]",
        "use `ports`",
    );
    one_error(&eal("pci: false"), (2, 13), "eal.pci", "rnic0 is on the PCI bus");
    assert!(parse(&eal("extra_args: [\"--log-level=8\", \"--iova-mode=va\"]")).is_ok());
}

#[test]
fn quotas_must_fit_the_totals() {
    one_error(
        &with("limits: { qps: 10 }"),
        (2, 9),
        "limits.per_client.qps",
        "at most `limits.qps`",
    );
    let text = with("limits: { per_client: { bytes_awaiting_grace: 65MiB } }");
    one_error(
        &text,
        (2, 47),
        "limits.per_client.bytes_awaiting_grace",
        "all together 64MiB",
    );
    let text = with("limits: { per_client: { queue_memory: 1MiB } }");
    one_error(
        &text,
        (2, 39),
        "limits.per_client.queue_memory",
        "one queue of the depth allowed needs 4MiB",
    );
}

#[test]
fn core_lists_are_checked() {
    one_error(
        &with("cores: { poll: [1, 2, 1] }"),
        (2, 23),
        "cores.poll[2]",
        "listed twice",
    );
    one_error(
        &with("cores: { poll: [1, 2], count: 3 }"),
        (2, 31),
        "cores.count",
        "`poll` lists 2 CPUs",
    );
    one_warning(
        &with("cores: { poll: [1, 2], pin: false }"),
        (2, 29),
        "cores.pin",
        "without pinning",
    );
}
