//! Contradictions within a port and between ports.

use super::{errors, one_error, one_warning, parse, with, with_port};

#[test]
fn contradictions_within_a_port_are_found() {
    let port = |keys: &str| with_port(&format!("addresses: [10.0.0.1/24]\n    {keys}"));
    one_error(
        &port("gateways: [10.0.1.1]"),
        (6, 16),
        "ports[0].gateways[0]",
        "none of the port's networks",
    );
    one_error(
        &port("gateways: [10.0.0.1]"),
        (6, 16),
        "ports[0].gateways[0]",
        "the port itself",
    );
    one_error(
        &port("gateways: [10.0.0.2, 10.0.0.3]"),
        (6, 26),
        "ports[0].gateways[1]",
        "second gateway",
    );
    let neighbour = |ip: &str| format!("{{ ip: {ip}, mac: 02:00:00:00:00:02 }}");
    let twice = port(&format!("neighbours: [{0}, {0}]", neighbour("10.0.0.2")));
    one_error(&twice, (6, 66), "ports[0].neighbours[1].ip", "listed twice");
    let own = port(&format!("neighbours: [{}]", neighbour("10.0.0.1")));
    one_error(&own, (6, 24), "ports[0].neighbours[0].ip", "the port itself");
    one_error(
        &with_port("addresses: [fd00::1/64]\n    mtu: 1279"),
        (6, 10),
        "ports[0].mtu",
        "IPv6 needs 1280",
    );
    one_warning(&port("rss: on"), (6, 10), "ports[0].rss", "nothing to spread");
    one_warning(
        &port("buffers: 1500"),
        (6, 14),
        "ports[0].buffers",
        "can hold 2048",
    );
    one_warning(&with_port("mtu: 1500"), (3, 5), "ports[0].addresses", "no GID");
    one_warning(
        &port("faults: { rx: { drop: 1% } }"),
        (6, 13),
        "ports[0].faults",
        "damages frames",
    );
    let text = port("queues: 1").replace("version: 1", "version: 1\ncores: { poll: [1, 2] }");
    one_warning(
        &text,
        (7, 13),
        "ports[0].queues",
        "fewer queues (1) than there are poll cores (2)",
    );
    one_error(
        &with("eal: { memory_size: 64MiB }\ncores: { count: 64 }"),
        (2, 21),
        "eal.memory_size",
        "packet buffers",
    );
}

#[test]
fn device_strings_that_cannot_carry_the_mtu_are_warned_about() {
    let port = |vdev: &str| {
        format!(
            "version: 1\nports:\n  - name: rnic0\n    device: {{ vdev: \"{vdev}\" }}\n    mtu: 4200\n    addresses: [10.0.0.1/24]\n"
        )
    };
    let text = port("net_af_xdp0,iface=e");
    one_warning(&text, (5, 10), "ports[0].mtu", "3434");
    let config = parse(&text).unwrap();
    assert_eq!(
        (config.ports[0].link_mtu(), config.ports[0].path_mtu()),
        (3434, 2048)
    );
    one_warning(
        &port("net_af_packet0,iface=e"),
        (5, 10),
        "ports[0].mtu",
        "add `framesz=8192`",
    );
    one_warning(
        &port("net_memif0,role=server"),
        (5, 10),
        "ports[0].mtu",
        "add `bsize=8192`",
    );
    assert!(
        parse(&port("net_memif0,bsize=4352"))
            .unwrap()
            .warnings()
            .is_empty()
    );
    assert_eq!(
        parse(&port("net_memif0,bsize=4352")).unwrap().ports[0].path_mtu(),
        4096
    );
}

#[test]
fn only_an_interface_that_is_the_port_can_be_followed() {
    let port = |device: &str, keys: &str| {
        format!(
            "version: 1\nports:\n  - name: rnic0\n    device: {{ {device} }}\n    {keys}\n    follow_netdev: true\n"
        )
    };
    for vdev in [
        "net_af_packet0,iface=e",
        "net_af_xdp0,iface=e",
        "net_tap0,iface=t,remote=e",
    ] {
        let config = parse(&port(&format!("vdev: \"{vdev}\""), "gateways: [10.0.0.254]")).unwrap();
        assert_eq!(config.ports[0].device.netdev(), Some("e"), "{vdev}");
        assert!(
            config.warnings().is_empty(),
            "no address is needed, and gateways are not checked: {vdev}"
        );
    }
    let config = parse(&port("vdev: \"net_af_packet0,iface=e\"", "gateways: []")).unwrap();
    assert!(config.ports[0].device.shares_frames_with_kernel());
    let mac = port("vdev: \"net_af_packet0,iface=e\"", "mac: 02:00:00:00:00:01");
    one_error(&mac, (6, 20), "ports[0].follow_netdev", "remove `mac`");
    for device in ["pci: 01:00.0", "vdev: net_null0"] {
        let text = port(device, "addresses: [10.0.0.1/24]");
        one_error(&text, (6, 20), "ports[0].follow_netdev", "no kernel interface");
    }
    let tap = port("vdev: \"net_tap0,iface=t\"", "addresses: [10.0.0.1/24]");
    one_error(
        &tap,
        (6, 20),
        "ports[0].follow_netdev",
        "the station at its other end",
    );
    assert_eq!(
        parse(&tap.replace("follow_netdev: true", "mtu: 1500"))
            .unwrap()
            .ports[0]
            .device
            .netdev(),
        Some("t")
    );
}

/// Ports rnic0 and rnic1 on lines 3 and 4; `{}` of a port are its further keys.
fn pair(first: &str, second: &str) -> String {
    format!(
        "version: 1\nports:\n  - {{ name: rnic0, addresses: [10.0.0.1/24], {first} }}\n  - {{ name: rnic1, addresses: [10.0.0.2/24], {second} }}\n"
    )
}

#[test]
fn ring_peers_must_name_each_other_and_agree() {
    let ring = |peer: &str| format!("device: {{ ring: {{ peer: {peer} }} }}");
    assert!(
        parse(&pair(&ring("rnic1"), &ring("rnic0")))
            .unwrap()
            .warnings()
            .is_empty()
    );
    let peer = "ports[0].device.ring.peer";
    one_error(
        &pair(&ring("rnic0"), "device: { pci: 01:00.0 }"),
        (3, 70),
        peer,
        "wired to itself",
    );
    one_error(
        &pair(&ring("rnic2"), "device: { pci: 01:00.0 }"),
        (3, 70),
        peer,
        "no port named rnic2",
    );
    one_error(
        &pair(&ring("rnic1"), "device: { pci: 01:00.0 }"),
        (3, 70),
        peer,
        "not wired to rnic0 in turn",
    );
    let (a, b) = (ring("rnic1"), ring("rnic0"));
    one_error(
        &pair(&a, &format!("{b}, mtu: 4200")),
        (4, 86),
        "ports[1].mtu",
        "its ring peer rnic0 has 1500",
    );
    one_error(
        &pair(&a, &format!("{b}, queues: 2")),
        (4, 89),
        "ports[1].queues",
        "its ring peer rnic0 has 1",
    );
    one_error(
        &pair(&format!("{a}, rss: on"), &b),
        (3, 86),
        "ports[0].rss",
        "a ring cannot",
    );
}

#[test]
fn names_devices_addresses_and_files_are_used_once() {
    let (a, b) = ("device: { pci: 01:00.0 }", "device: { pci: \"01:00.1\" }");
    let text = pair(a, b);
    one_error(
        &text.replace("rnic1", "rnic0"),
        (4, 13),
        "ports[1].name",
        "`rnic1` is free",
    );
    one_error(
        &pair(a, "device: { pci: \"0000:01:00.0\" }"),
        (4, 61),
        "ports[1].device.pci",
        "that of rnic0 already",
    );
    let vdev = |name: &str| format!("device: {{ vdev: \"{name},iface=e\" }}");
    let text2 = pair(&vdev("net_tap0"), &vdev("net_tap0"));
    one_error(&text2, (4, 62), "ports[1].device.vdev", "differ by the number");
    one_warning(
        &pair(&vdev("net_tap0"), &vdev("net_tap1")),
        (4, 62),
        "ports[1].device.vdev",
        "interface e is",
    );
    one_error(
        &text.replace("10.0.0.2", "10.0.0.1"),
        (4, 32),
        "ports[1].addresses[0]",
        "an address of rnic0 already",
    );
    assert!(parse(&pair(a, &format!("{b}, vlan: 5")).replace("10.0.0.2", "10.0.0.1")).is_ok());
    let capture = |device: &str| format!("{device}, capture: {{ file: /x }}");
    let text = pair(&capture(a), &capture(b));
    let found = errors(&text);
    assert_eq!(
        (found.len(), found[0].line, found[0].key.to_string().as_str()),
        (1, 4, "ports[1].capture.file")
    );
}

#[test]
fn congestion_control_has_one_form_and_rates_within_the_link() {
    one_error(
        &with_port("congestion: { fixed: 1Gbps, dcqcn: {} }"),
        (5, 17),
        "ports[0].congestion",
        "exactly one of `fixed` and `dcqcn`",
    );
    one_error(
        &with_port("congestion: { fixed: 10 }"),
        (5, 26),
        "ports[0].congestion.fixed",
        "a rate in bps",
    );
    one_error(
        &with_port("congestion: { dcqcn: { line_rate: 1Gbps, min_rate: 2Gbps } }"),
        (5, 56),
        "ports[0].congestion.dcqcn.min_rate",
        "1Gbps",
    );
    one_error(
        &with_port("congestion: { dcqcn: { cnp_interval: 10s } }"),
        (5, 42),
        "ports[0].congestion.dcqcn.cnp_interval",
        "4s",
    );
}
