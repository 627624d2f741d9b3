//! QPs that no core has got to know, and how one gets to know them.

use rnic_abi::*;

use crate::testing::{Client, HeldControl, TestDaemon, wait_for};

fn state(client: &mut Client, handle: u32) -> u8 {
    let reply: QueryQpReply = client
        .call(Op::QueryQp, &HandleArg { handle, reserved: 0 })
        .unwrap();
    reply.attrs.qp_state
}

fn to(client: &mut Client, handle: u32, qp_state: u8) {
    let attrs = QpAttrs {
        qp_state,
        ..QpAttrs::default()
    };
    client.modify(handle, qp_mask::STATE, attrs).unwrap();
}

#[test]
fn qps_in_reset_and_init_are_made_changed_shown_and_destroyed_while_their_core_does_not_go_on() {
    let (mut daemon, gate) = HeldControl::gated("");
    let (mut client, pd, cq) = daemon.serve(|socket| {
        let mut client = Client::connect(socket);
        client.hello();
        let (pd, cq) = (client.pd(), client.cq());
        (client, pd, cq)
    });
    let commits = daemon.control.engine.publisher().commits();
    gate.close();
    let client = daemon.serve(move |_| {
        let qp = client.qp(pd, cq).handle;
        assert_eq!(state(&mut client, qp), 0);
        client.make_init(qp);
        assert_eq!(state(&mut client, qp), 1);
        to(&mut client, qp, 0);
        assert_eq!(state(&mut client, qp), 0);
        let refused = client.modify(qp, qp_mask::PORT, QpAttrs::default());
        assert!(refused.is_err(), "{refused:?}");
        client.make_init(qp);
        client.destroy_counting(Op::DestroyQp, qp);
        client
    });
    assert_eq!(daemon.control.engine.publisher().commits(), commits);
    drop(gate);
    drop(client);
    daemon.end();
}

#[test]
fn a_qp_that_goes_from_init_to_err_flushes_what_was_posted() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let pd = client.pd();
    let cq = client.try_cq(64, 0).unwrap();
    let qp = client.qp(pd, cq.handle);
    client.make_init(qp.handle);
    let ring = qp.rq_offset as usize;
    let wqe = Wqe {
        units: 1,
        ..Wqe::default()
    };
    let region = &client.context().region;
    region.write(ring + RING_ENTRIES, &wqe);
    let tail = region.u32(ring + RingIndices::TAIL).unwrap();
    tail.store(1, std::sync::atomic::Ordering::Release);
    to(&mut client, qp.handle, 6);
    assert_eq!(state(&mut client, qp.handle), 6);
    wait_for(|| {
        let of = |core| cq.offset as usize + cq_subring_offset(cq.depth, core) + RingIndices::TAIL;
        let tails = (0..2).map(|core| client.context().region.u32(of(core)).unwrap());
        tails
            .map(|tail| tail.load(std::sync::atomic::Ordering::Acquire))
            .sum::<u32>()
            == 1
    });
    // It stays on its core, whatever state it goes to; and in RTR it is found.
    to(&mut client, qp.handle, 0);
    client.make_init(qp.handle);
    assert_eq!(state(&mut client, qp.handle), 1);
    client.make_rtr(qp.handle, "10.0.0.1", qp.qpn).unwrap();
    client.destroy_counting(Op::DestroyQp, qp.handle);
}

#[test]
fn a_first_change_that_the_core_refuses_leaves_the_qp_as_it_was() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    client.make_init(qp.handle);
    let attrs = QpAttrs {
        min_rnr_timer: 99,
        ..crate::testing::rtr("10.0.0.1", qp.qpn)
    };
    let refused = client.modify(qp.handle, crate::testing::RTR, attrs).unwrap_err();
    assert!(refused.text.contains("99"), "{}", refused.text);
    assert_eq!(state(&mut client, qp.handle), 1);
    client.make_rtr(qp.handle, "10.0.0.1", qp.qpn).unwrap();
    assert_eq!(state(&mut client, qp.handle), 2);
    client.destroy_counting(Op::DestroyQp, qp.handle);
}
