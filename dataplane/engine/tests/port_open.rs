//! Lists of ports that cannot be opened, and the order of those that can.
use rnic_engine::port::{DeviceSpec, OpenPort, PortSpec, open_all};

fn soft(name: &str, peer: &str) -> PortSpec {
    PortSpec::new(
        name,
        DeviceSpec::SoftRing {
            peer: peer.to_owned(),
        },
        1500,
    )
}

fn error(specs: &[PortSpec]) -> String {
    open_all(specs, &[]).expect_err("the list is wrong").to_string()
}

#[test]
fn ports_come_in_the_order_asked_for() {
    let specs = [soft("a", "d"), soft("b", "c"), soft("c", "b"), soft("d", "a")];
    let ports: Vec<OpenPort> = open_all(&specs, &[]).expect("every end has its peer");
    let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn the_ends_of_a_ring_must_name_each_other() {
    let help = "Let the two ends of a ring name each other as `peer`";
    assert_eq!(
        error(&[soft("a", "b")]),
        format!("port a: its ring peer b is not among the ports. {help}")
    );
    assert_eq!(
        error(&[soft("a", "a")]),
        format!("port a: its ring peer a is the port itself. {help}")
    );
    assert_eq!(
        error(&[soft("a", "b"), soft("b", "c"), soft("c", "b")]),
        format!("port a: its ring peer b names another port as its own peer. {help}")
    );
    let other_kind = PortSpec::new("b", DeviceSpec::Ring { peer: "a".to_owned() }, 1500);
    assert_eq!(
        error(&[soft("a", "b"), other_kind]),
        format!("port a: its ring peer b is not a ring of the same kind. {help}")
    );
}

#[test]
fn names_are_unique() {
    let message = "two ports are named a. Give each port a name of its own";
    assert_eq!(error(&[soft("a", "b"), soft("a", "b"), soft("b", "a")]), message);
}

#[cfg(not(feature = "dpdk"))]
#[test]
fn without_dpdk_rings_are_soft_and_other_devices_say_what_is_missing() {
    let ring = |name: &str, peer: &str| {
        PortSpec::new(
            name,
            DeviceSpec::Ring {
                peer: peer.to_owned(),
            },
            1500,
        )
    };
    let ports = open_all(&[ring("a", "b"), ring("b", "a")], &[]).expect("soft rings stand in");
    assert_eq!(ports[0].driver, "ring");
    let vdev = PortSpec::new("a", DeviceSpec::Vdev("net_null0".to_owned()), 1500);
    assert_eq!(
        error(&[vdev]),
        "port a: net_null0 needs DPDK, which is not built into this program. Build it with the feature `dpdk`, \
         or use a ring"
    );
}
