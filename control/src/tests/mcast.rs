//! Multicast groups in raw ABI.
use rnic_abi::*;
use rustix::io::Errno;

use super::wire::{PORT, Station};
use crate::{device::Gid, testing::*};

fn ud_qp(client: &mut Client) -> CreateQpReply {
    let (pd, cq) = (client.pd(), client.cq());
    let arg = CreateQp {
        pd,
        send_cq: cq,
        recv_cq: cq,
        qp_type: 4,
        ..CreateQp::default()
    };
    client.call(Op::CreateQp, &arg).unwrap()
}

fn arg(handle: u32, group: &str) -> McastArg {
    McastArg {
        handle,
        reserved: 0,
        mgid: Gid::from(group.parse::<std::net::IpAddr>().unwrap()).0,
    }
}

#[test]
fn a_qp_attached_to_a_group_is_busy_until_it_is_detached() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let qp = ud_qp(&mut client);
    let (group, other) = (arg(qp.handle, "239.1.2.3"), arg(qp.handle, "ff0e::1"));
    client.call::<Empty>(Op::AttachMcast, &group).unwrap();
    let refused = client.destroy(Op::DestroyQp, qp.handle).unwrap_err();
    assert_eq!(refused.errno, Errno::BUSY);
    let refused = client.call::<Empty>(Op::DetachMcast, &other).unwrap_err();
    assert!(
        refused.text.contains("not attached to ff0e::1"),
        "{}",
        refused.text
    );
    client.call::<Empty>(Op::DetachMcast, &group).unwrap();
    client.destroy_counting(Op::DestroyQp, qp.handle);
    drop(client);
    // Clients that die leave their groups: else one would be full before long.
    for _ in 0..65 {
        let mut client = daemon.client();
        let qp = ud_qp(&mut client);
        client
            .call::<Empty>(Op::AttachMcast, &arg(qp.handle, "239.1.2.3"))
            .unwrap();
        drop(client);
        daemon.wait_for_baseline();
    }
}

#[test]
fn the_link_is_told_of_groups_by_igmp_and_mld() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[("10.0.0.9", 24), ("fd00::9", 64)]);
    let mut client = daemon.client();
    let qp = ud_qp(&mut client);
    // An IGMPv2 report to the group, and an MLDv2 report to all routers that speaks of it (RFC 2236, RFC 3810).
    let igmp: &dyn Fn(&[u8]) -> bool =
        &|frame| frame[12..14] == [8, 0] && frame[23] == 2 && frame[30..34] == [239, 1, 2, 3];
    let group = Gid::from("ff0e::1234".parse::<std::net::IpAddr>().unwrap()).0;
    let mld: &dyn Fn(&[u8]) -> bool =
        &|frame| frame[12..14] == [0x86, 0xDD] && frame.windows(16).any(|bytes| bytes == group);
    for (name, is_report) in [("239.1.2.3", igmp), ("ff0e::1234", mld)] {
        client
            .call::<Empty>(Op::AttachMcast, &arg(qp.handle, name))
            .unwrap();
        wait_for(|| station.serve().iter().any(|frame| is_report(frame)));
    }
    drop(client);
}
