//! Two appliances on a wire between them.
use rnic_tests::probe::Plan;
use rnic_tests::{Appliance, Namespace, PortSetup, Probe, Setup, Turn, Wire, privileged};

const ALL_MTUS: [u32; 5] = [256, 512, 1024, 2048, 4096];

/// Runs every operation between two appliances over IPv4 and IPv6.
fn assert_exact(a: &Appliance, b: &Appliance, size_max: usize, seed: u64) {
    for (gid_index, addresses) in [(0, ["10.0.0.1", "10.0.0.2"]), (1, ["fd00::1", "fd00::2"])] {
        let plan = Plan {
            gid_index,
            size_max,
            seed: seed + u64::from(gid_index),
            ..Plan::default()
        };
        let reports = Probe::run_pair([(&a.socket(), "rnic0"), (&b.socket(), "rnic0")], &plan);
        for (report, address) in reports.iter().zip(addresses) {
            assert_eq!(report.mtus, ALL_MTUS);
            assert_eq!(report.gid, address);
            assert!(report.messages >= 5 * 2 * 50, "{report:?}");
        }
    }
}

/// Faults of the port with this number: each in twenty received frames is lost.
fn lossy(port: PortSetup, number: u32) -> PortSetup {
    port.with(&format!("faults: {{ seed: {number}, rx: {{ drop: 5% }} }}"))
}

fn over_veth(loss: bool) {
    let wire = Wire::new();
    let port = |n| {
        if loss {
            lossy(PortSetup::veth(n), n)
        } else {
            PortSetup::veth(n)
        }
    };
    let a = Appliance::start_in("appliance a", &wire.a, &Setup::new([port(0)]));
    let b = Appliance::start_in("appliance b", &wire.b, &Setup::new([port(1)]));
    assert_exact(&a, &b, if loss { 9000 } else { 40_000 }, 20);
    assert_eq!(a.counter("retransmitted") + b.counter("retransmitted") > 0, loss);
    a.stop();
    b.stop();
}

fn over_memif(loss: bool) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let socket = dir.path().join("memif.sock");
    let (server, client) = (
        PortSetup::memif(0, "server", &socket),
        PortSetup::memif(1, "client", &socket),
    );
    let (server, client) = if loss {
        (lossy(server, 0), lossy(client, 1))
    } else {
        (server, client)
    };
    let a = Appliance::start(&Setup::new([server]));
    let b = Appliance::start(&Setup::new([client]));
    assert_exact(&a, &b, if loss { 9000 } else { 40_000 }, 30);
    assert_eq!(a.counter("retransmitted") + b.counter("retransmitted") > 0, loss);
    b.stop();
    a.stop();
}

#[test]
fn over_a_veth_pair_between_namespaces_every_byte_arrives_at_every_path_mtu() {
    let _turn = Turn::take();
    if privileged("over_a_veth_pair") {
        over_veth(false);
    }
}

#[test]
fn over_a_veth_pair_that_loses_one_frame_in_twenty_every_byte_arrives() {
    let _turn = Turn::take();
    if privileged("over_a_veth_pair_with_loss") {
        over_veth(true);
    }
}

#[test]
fn over_memif_every_byte_arrives_at_every_path_mtu() {
    let _turn = Turn::take();
    over_memif(false);
}

#[test]
fn over_memif_that_loses_one_frame_in_twenty_every_byte_arrives() {
    let _turn = Turn::take();
    over_memif(true);
}

/// Pings the appliance's addresses from a kernel's side of the wire.
fn ping(kernel: &Namespace) {
    for address in ["10.0.0.1", "fd00::1"] {
        for size in ["0", "56", "1400"] {
            let out = kernel.run("ping", &["-c", "3", "-i", "0.05", "-W", "5", "-s", size, address]);
            assert!(out.contains(" 0% packet loss"), "{out}");
        }
    }
}

#[test]
fn a_port_on_a_veth_answers_ping() {
    let _turn = Turn::take();
    if !privileged("a_port_on_a_veth_answers_ping") {
        return;
    }
    let wire = Wire::new();
    let appliance = Appliance::start_in("the appliance", &wire.a, &Setup::new([PortSetup::veth(0)]));
    wire.b.ipv6(true);
    wire.b.run("ip", &["addr", "add", "10.0.0.9/24", "dev", "veth0"]);
    wire.b
        .run("ip", &["addr", "add", "fd00::9/64", "dev", "veth0", "nodad"]);
    ping(&wire.b);
    appliance.stop();
}

#[test]
fn a_port_on_a_tap_answers_ping() {
    let _turn = Turn::take();
    if !privileged("a_port_on_a_tap_answers_ping") {
        return;
    }
    let namespace = Namespace::new();
    namespace.ipv6(true);
    let port = PortSetup::new(0, "{ vdev: \"net_tap0,iface=tap0\" }").mtu(1500);
    let appliance = Appliance::start_in("the appliance", &namespace, &Setup::new([port]));
    namespace.run("ip", &["addr", "add", "10.0.0.9/24", "dev", "tap0"]);
    namespace.run("ip", &["addr", "add", "fd00::9/64", "dev", "tap0", "nodad"]);
    namespace.run("ip", &["link", "set", "tap0", "up"]);
    ping(&namespace);
    appliance.stop();
}
