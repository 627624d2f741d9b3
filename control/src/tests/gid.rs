//! GID tables as clients and `rnicctl` see them.
use rnic_abi::*;

use crate::testing::*;

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
