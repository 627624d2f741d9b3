//! GID tables as clients and `rnicctl` see them, and how they follow a kernel's interface.
use rnic_abi::{event_kind::*, *};
use rnic_engine::port::OpenPort;
use rustix::io::Errno;

use crate::{netlink::tests::Inside, testing::*};

/// Holders of each index of rnic0.
fn holders(daemon: &TestDaemon) -> Vec<usize> {
    let of_first = |gid: &crate::status::GidState| (gid.device == "rnic0").then_some(gid.holders);
    daemon.gids().iter().filter_map(of_first).collect()
}

#[test]
fn a_qp_holds_its_gid_from_its_path_on_until_it_is_reset_or_destroyed() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let [a, b] = [client.qp(pd, cq), client.qp(pd, cq)].map(|qp| qp.handle);
    for qp in [a, b] {
        client.make_init(qp);
    }
    assert_eq!(holders(&daemon), [0, 0]);
    client.make_rtr(a, "10.0.0.2", 9).unwrap();
    assert_eq!(holders(&daemon), [1, 0]);
    let mut second = rtr("fd00::1", 9);
    second.ah_attr.sgid_index = 1;
    client.modify(b, RTR, second).unwrap();
    assert_eq!(holders(&daemon), [1, 1]);
    let reset = QpAttrs {
        qp_state: 0,
        ..QpAttrs::default()
    };
    client.modify(a, qp_mask::STATE, reset).unwrap();
    assert_eq!(holders(&daemon), [0, 1]);
    client.destroy_counting(Op::DestroyQp, b);
    assert_eq!(holders(&daemon), [0, 0]);
}

#[test]
fn what_a_client_held_is_let_go_of_when_it_dies_and_a_refused_path_holds_nothing() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq).handle;
    client.make_rtr(qp, "10.0.0.2", 9).unwrap_err();
    assert_eq!(holders(&daemon), [0, 0], "RESET has no path");
    client.make_init(qp);
    client.make_rtr(qp, "10.0.0.2", 9).unwrap();
    assert_eq!(holders(&daemon), [1, 0]);
    drop(client);
    daemon.wait_for_baseline();
    assert_eq!(holders(&daemon), [0, 0]);
}

/// A daemon whose port has the address 10.0.0.9 and is on the interface `d0`, which it follows.
fn following() -> (TestDaemon, OpenPort) {
    let port = "addresses: [10.0.0.9/24], follow_netdev: true";
    TestDaemon::with_wire_at("net_tap0,iface=t0,remote=d0", port)
}

/// Index, address and state of each GID.
fn table(daemon: &TestDaemon) -> Vec<(usize, String, String)> {
    let row = |gid: crate::status::GidState| (gid.index, gid.ip.to_string(), gid.state);
    daemon.gids().into_iter().map(row).collect()
}

/// The same, for live addresses: `(0, "10.0.0.9")`.
fn live(daemon: &TestDaemon) -> Vec<(usize, String)> {
    let row = |(index, ip, state): (usize, String, String)| (state == "live").then_some((index, ip));
    table(daemon).into_iter().filter_map(row).collect()
}

fn rows(rows: &[(usize, &str)]) -> Vec<(usize, String)> {
    rows.iter()
        .map(|(index, ip)| (*index, (*ip).to_owned()))
        .collect()
}

fn gid(client: &mut Client, index: u32) -> [u8; 16] {
    client
        .call::<GidReply>(Op::QueryGid, &GidArg { device: 0, index })
        .unwrap()
        .gid
}

/// A QP on the GID at an index, towards the daemon's own first address.
fn qp_on(client: &mut Client, sgid_index: u8) -> u32 {
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq).handle;
    client.make_init(qp);
    let mut attrs = rtr("10.0.0.9", 9);
    attrs.ah_attr.sgid_index = sgid_index;
    client.modify(qp, RTR, attrs).unwrap();
    qp
}

#[test]
fn addresses_of_the_interface_come_and_go_and_an_index_in_use_is_given_to_no_other() {
    let Some(inside) = Inside::new("follow") else {
        return;
    };
    inside.ip("link set d0 addrgenmode none up");
    inside.ip("addr add 10.0.0.1/24 dev d0");
    let (daemon, _wire) = following();
    let mut client = daemon.client();
    let port: PortReply = client.call(Op::QueryPort, &DeviceArg::default()).unwrap();
    assert_eq!(port.gids, 65, "there is room for what may come");
    assert_eq!(live(&daemon), rows(&[(0, "10.0.0.9"), (1, "10.0.0.1")]));

    inside.ip("addr add 10.0.0.2/24 dev d0");
    assert_eq!(client.event(0), (0, GID_CHANGE));
    assert_eq!(gid(&mut client, 2)[12..], [10, 0, 0, 2]);
    let sequence = |client: &Client| -> u32 {
        let context = client.context();
        context
            .region
            .read(context.layout.event_slots + EventSlot::SEQUENCE)
            .unwrap()
    };
    let before = sequence(&client);
    let qp = qp_on(&mut client, 2);

    inside.ip("addr del 10.0.0.2/24 dev d0");
    assert_eq!(client.event(1), (0, GID_CHANGE));
    assert_eq!(
        (before % 2, sequence(&client)),
        (0, before + 2),
        "changes of a port that stays active"
    );
    assert_eq!(gid(&mut client, 2), [0; 16], "no query finds it");
    let held = (2, "10.0.0.2".to_owned(), "held".to_owned());
    assert_eq!(table(&daemon)[2], held);
    let other = {
        let (pd, cq) = (client.pd(), client.cq());
        client.qp(pd, cq).handle
    };
    client.make_init(other);
    let mut attrs = rtr("10.0.0.9", 9);
    attrs.ah_attr.sgid_index = 2;
    let refused = client.modify(other, RTR, attrs).unwrap_err();
    assert!(refused.text.contains("sgid_index is 2"), "{}", refused.text);

    inside.ip("addr add 10.0.0.3/24 dev d0");
    assert_eq!(client.event(2), (0, GID_CHANGE));
    assert_eq!(
        live(&daemon),
        rows(&[(0, "10.0.0.9"), (1, "10.0.0.1"), (3, "10.0.0.3")])
    );
    inside.ip("addr add 10.0.0.2/24 dev d0");
    assert_eq!(client.event(3), (0, GID_CHANGE));
    assert_eq!(
        gid(&mut client, 2)[12..],
        [10, 0, 0, 2],
        "back at the index its QP holds"
    );

    inside.ip("addr del 10.0.0.2/24 dev d0");
    assert_eq!(client.event(4), (0, GID_CHANGE));
    client.destroy_counting(Op::DestroyQp, qp);
    inside.ip("addr add 10.0.0.4/24 dev d0");
    assert_eq!(client.event(5), (0, GID_CHANGE));
    let now = [(0, "10.0.0.9"), (1, "10.0.0.1"), (2, "10.0.0.4"), (3, "10.0.0.3")];
    assert_eq!(live(&daemon), rows(&now), "given away once nothing holds it");
}

#[test]
fn link_mtu_and_end_of_the_interface_are_told() {
    let Some(inside) = Inside::new("link") else { return };
    inside.ip("link set d0 addrgenmode none up");
    inside.ip("addr add 10.0.0.1/24 dev d0");
    let (daemon, _wire) = following();
    let mut client = daemon.client();
    let port =
        |client: &mut Client| -> PortReply { client.call(Op::QueryPort, &DeviceArg::default()).unwrap() };
    assert_eq!((port(&mut client).state, port(&mut client).link_mtu), (4, 1500));
    inside.ip("link set d0 down");
    assert_eq!(client.event(0), (0, PORT_ERR));
    assert_eq!(port(&mut client).state, 1);
    inside.ip("link set d0 up");
    assert_eq!(client.event(1), (0, PORT_ACTIVE));
    inside.ip("link set d0 mtu 700");
    wait_for(|| port(&mut client).link_mtu == 700);
    assert_eq!(port(&mut client).active_mtu, 2, "512 bytes fit");
    inside.ip("link set d0 mtu 9000");
    wait_for(|| port(&mut client).link_mtu == 1500);
    inside.ip("link del d0");
    wait_for(|| daemon.status().ports.is_empty());
    let (device, kinds) = client.event(2);
    assert_eq!((device, kinds & DEVICE_FATAL), (0, DEVICE_FATAL));
    let refused = client.call::<PortReply>(Op::QueryPort, &DeviceArg::default());
    assert_eq!(refused.unwrap_err().errno, Errno::NODEV);
}

#[test]
fn after_a_storm_that_overruns_the_daemon_its_table_is_the_kernels() {
    let Some(inside) = Inside::new("storm") else {
        return;
    };
    inside.ip("link set d0 addrgenmode none up");
    let (daemon, _wire) = following();
    let mut batch = "addr add 10.1.0.1/16 dev d0\naddr del 10.1.0.1/16 dev d0\n".repeat(3000);
    for n in 1..=20 {
        batch += &format!("addr add 10.2.0.{n}/24 dev d0\n");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch).unwrap();
    inside.ip(&format!("-batch {}", file.path().display()));
    let wanted = || -> Vec<String> {
        std::iter::once("10.0.0.9".to_owned())
            .chain((1..=20).map(|n| format!("10.2.0.{n}")))
            .collect()
    };
    let sorted = |daemon: &TestDaemon| {
        let mut ips: Vec<_> = live(daemon).into_iter().map(|(_, ip)| ip).collect();
        ips.sort_by_key(|ip| ip.parse::<std::net::Ipv4Addr>().unwrap());
        ips
    };
    wait_for(|| sorted(&daemon) == wanted());
    let client = daemon.client();
    inside.ip("addr add 10.3.0.1/24 dev d0");
    assert_eq!(client.event(0), (0, GID_CHANGE), "it still listens");
}

#[test]
fn more_addresses_than_indices_leave_the_rest_out_until_there_is_room() {
    let Some(inside) = Inside::new("full") else { return };
    inside.ip("link set d0 addrgenmode none up");
    let file = tempfile::NamedTempFile::new().unwrap();
    let batch: String = (1..=70)
        .map(|n| format!("addr add 10.2.0.{n}/24 dev d0\n"))
        .collect();
    std::fs::write(file.path(), batch).unwrap();
    inside.ip(&format!("-batch {}", file.path().display()));
    let (daemon, _wire) = following();
    assert_eq!(live(&daemon).len(), 65);
    inside.ip("addr del 10.2.0.7/24 dev d0");
    wait_for(|| live(&daemon).iter().all(|(_, ip)| ip != "10.2.0.7"));
    let table = live(&daemon);
    assert_eq!(table.len(), 65);
    assert_eq!(
        table[7],
        (7, "10.2.0.65".to_owned()),
        "the first that waited has its index"
    );
}

#[test]
fn a_port_that_does_not_follow_its_interface_keeps_the_configured_addresses() {
    let Some(inside) = Inside::new("fixed") else {
        return;
    };
    inside.ip("link set d0 addrgenmode none up");
    inside.ip("addr add 10.0.0.1/24 dev d0");
    let (daemon, _wire) = TestDaemon::with_wire_at("net_tap0,iface=t0,remote=d0", "addresses: [10.0.0.9/24]");
    let client = daemon.client();
    inside.ip("addr add 10.0.0.2/24 dev d0");
    // The link is told of after the address, so that the address has had its chance.
    inside.ip("link set d0 down");
    assert_eq!(client.event(0), (0, PORT_ERR));
    assert_eq!(live(&daemon), rows(&[(0, "10.0.0.9")]));
}
