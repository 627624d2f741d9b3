//! Units, ranges, names, addresses, variables.

use super::{one_error, parse, with, with_port};

#[test]
fn bad_units_name_the_right_ones() {
    one_error(
        &with("eal: { memory_size: 2GB }"),
        (2, 21),
        "eal.memory_size",
        "did you mean `2GiB`?",
    );
    one_error(
        &with("eal: { memory_size: lots }"),
        (2, 21),
        "eal.memory_size",
        "a size in bytes, KiB",
    );
    one_error(
        &with("cores: { idle: { max_sleep: 1000 } }"),
        (2, 29),
        "cores.idle.max_sleep",
        "has no unit",
    );
    one_error(
        &with("cores: { idle: { max_sleep: 1 hour } }"),
        (2, 29),
        "cores.idle.max_sleep",
        "units are ns, us, ms",
    );
    one_error(
        &with_port("faults: { tx: { drop: 5 } }"),
        (5, 27),
        "ports[0].faults.tx.drop",
        "0% and 100%",
    );
    one_error(
        &with_port("faults: { tx: { drop: 5ppm } }"),
        (5, 27),
        "ports[0].faults.tx.drop",
        "such as `5%`",
    );
}

#[test]
fn values_out_of_range_give_the_range() {
    one_error(
        &with_port("mtu: 351"),
        (5, 10),
        "ports[0].mtu",
        "from 352 to 9600",
    );
    one_error(
        &with_port("mtu: 70000"),
        (5, 10),
        "ports[0].mtu",
        "from 352 to 9600",
    );
    one_error(&with_port("mtu: -1"), (5, 10), "ports[0].mtu", "from 352 to 9600");
    one_error(
        &with_port("mtu: 99999999999999999999999"),
        (5, 10),
        "ports[0].mtu",
        "from 352 to 9600",
    );
    one_error(
        &with_port("vlan: 4095"),
        (5, 11),
        "ports[0].vlan",
        "from 1 to 4094",
    );
    one_error(
        &with_port("queues: 0"),
        (5, 13),
        "ports[0].queues",
        "from 1 to 128",
    );
    one_error(
        &with_port("rx_descriptors: 1000"),
        (5, 21),
        "ports[0].rx_descriptors",
        "use 512 or 1024",
    );
    one_error(
        &with_port("buffers: 600"),
        (5, 14),
        "ports[0].buffers",
        "alone hold 1024",
    );
    one_error(
        &with_port("addresses: [{ address: 10.0.0.1/24, vlan: 0 }]"),
        (5, 47),
        "ports[0].addresses[0].vlan",
        "1 to 4094",
    );
    one_error(
        &with_port("faults: { rx: { delay: 11s } }"),
        (5, 28),
        "ports[0].faults.rx.delay",
        "0s to 10s",
    );
    one_error(
        &with_port("capture: { file: a, limit: 1KiB }"),
        (5, 32),
        "ports[0].capture.limit",
        "64KiB to 1TiB",
    );
    one_error(
        &with("eal: { memory_size: 32MiB }"),
        (2, 21),
        "eal.memory_size",
        "64MiB to 1TiB",
    );
    one_error(
        &with("eal: { memory_size: 104857601 }"),
        (2, 21),
        "eal.memory_size",
        "whole number of 1MiB",
    );
    one_error(
        &with("eal: { memory: hugepages, memory_size: 101MiB }"),
        (2, 40),
        "eal.memory_size",
        "whole number of 2MiB",
    );
    one_error(
        &with("cores: { idle: { max_sleep: 1s } }"),
        (2, 29),
        "cores.idle.max_sleep",
        "1us to 100ms",
    );
    one_error(
        &with("cores: { count: 0 }"),
        (2, 17),
        "cores.count",
        "from 1 to 128",
    );
    one_error(
        &with("cores: { poll: [] }"),
        (2, 16),
        "cores.poll",
        "1 to 128 elements",
    );
    one_error(&with("limits: { qps: 0 }"), (2, 16), "limits.qps", "1 to 262142");
    one_error("version: 1\nports: []\n", (2, 8), "ports", "1 to 16 elements");
}

#[test]
fn bad_names_and_addresses_are_explained() {
    one_error(
        &with_port("addresses: [10.0.0.1]"),
        (5, 17),
        "ports[0].addresses[0]",
        "did you mean `10.0.0.1/24`",
    );
    one_error(
        &with_port("addresses: [10.0.0.1/33]"),
        (5, 17),
        "ports[0].addresses[0]",
        "1 to 32",
    );
    one_error(
        &with_port("addresses: [10.0.0.300/24]"),
        (5, 17),
        "ports[0].addresses[0]",
        "not an IP address",
    );
    one_error(
        &with_port("addresses: [10.0.0.255/24]"),
        (5, 17),
        "ports[0].addresses[0]",
        "broadcast",
    );
    one_error(
        &with_port("mac: 03:00:00:00:00:01"),
        (5, 10),
        "ports[0].mac",
        "multicast",
    );
    one_error(
        &with_port("gateways: [nowhere]"),
        (5, 16),
        "ports[0].gateways[0]",
        "expected an IP address",
    );
    let text = "version: 1\nports:\n  - { name: eth0, device: { pci: 01:00.0 } }\n";
    one_error(text, (3, 13), "ports[0].name", "rnic0, rnic1");
    let text = "version: 1\nports:\n  - { name: rnic0, device: { pci: eth0 } }\n";
    one_error(text, (3, 35), "ports[0].device.pci", "such as `0000:01:10.0`");
    let text = "version: 1\nports:\n  - { name: rnic0, device: { pci: 01:00.0, vdev: net_tap0 } }\n";
    one_error(
        text,
        (3, 28),
        "ports[0].device",
        "exactly one of `pci`, `vdev`, `ring`",
    );
    let text = "version: 1\nports:\n  - { name: rnic0, device: { vdev: \"net_tap, iface=x\" } }\n";
    one_error(text, (3, 36), "ports[0].device.vdev", "a driver with a number");
}

#[test]
fn variables_are_replaced_or_explained() {
    let config = parse(&with("control: { socket: \"/run/${TEN}/${NO:-a}\" }")).unwrap();
    assert_eq!(config.control.socket.to_str(), Some("/run/10/a"));
    one_error(
        &with("control: { socket: \"/run/${NO}\" }"),
        (2, 20),
        "control.socket",
        "${NO:-default}",
    );
    one_error(
        &with("control: { socket: \"/run/${NO\" }"),
        (2, 20),
        "control.socket",
        "not closed",
    );
    one_error(
        &with_port("mtu: ${TEN}"),
        (5, 10),
        "ports[0].mtu",
        "the text `10` does not fit",
    );
}
