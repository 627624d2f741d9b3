//! Shared receive queues: one ring of receives, many QPs that draw from it.
mod common;

use std::time::Duration;

use common::{EVERY_RIGHT, PD, Rig, path, wqe};
use rnic_abi::{RingIndices, Wqe, event_kind};
use rnic_engine::{
    command::ObjectEvent,
    mem::{MrDescriptor, MrTable},
    nonblocking::CheckedAllocator,
};
use rnic_transport::{Check, QpAttr, QpAttrMask, QpState};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const SEND: u8 = 2;
const A: usize = 0;
const B: usize = 1 << 20;
/// Of the SRQ's own protection domain.
const SRQ_PD: u32 = PD + 1;
const SRQ_KEY: u32 = MrTable::key(4, 1, 0);

/// An SRQ on core 0, of a PD of its own, and two pairs of QPs of which the second ones draw from it.
fn appliance(stride: u32) -> (Rig, usize, [(usize, usize); 2]) {
    let mut rig = Rig::new(2, vec![]);
    let data = rig.data.clone();
    let descriptor = MrDescriptor {
        mem: &data,
        pd: SRQ_PD,
        access: EVERY_RIGHT,
        iova: 0,
        len: data.len() as u64,
        invalidatable: false,
    };
    assert!(rig.engine.mrs().validate(SRQ_KEY, &descriptor));
    let srq = rig.create_srq(3, 0, SRQ_PD, stride);
    let pairs = [(10, 12, 1), (16, 14, 3)].map(|(from, to, host)| {
        let (a, b) = (rig.create_qp(from), rig.create_qp_on(to, Some(srq)));
        assert_eq!(rig.qps[b].core, 0, "on its SRQ's core");
        rig.connect(
            a,
            b,
            path(host, host + 1, true),
            path(host + 1, host, true),
            Mtu::M1024,
        );
        (a, b)
    });
    (rig, srq, pairs)
}

/// A receive of `length` bytes at `B + at`.
fn receive(rig: &mut Rig, srq: usize, wr_id: u64, at: usize, length: u32) {
    let mut sge = rig.sge((B + at) as u64, length);
    sge.lkey = SRQ_KEY;
    rig.post_srq_recv(srq, wr_id, &[sge]);
}

fn send(rig: &mut Rig, from: usize, wr_id: u64, len: usize) -> Vec<u8> {
    let sent = rig.fill(A + wr_id as usize * 8192, len, wr_id as u8);
    let sge = rig.sge(A as u64 + wr_id * 8192, len as u32);
    rig.post_send(from, wqe(wr_id, SEND, sge, 0, 0));
    sent
}

/// The next event of these kinds.
fn event(rig: &mut Rig, kinds: u32) -> ObjectEvent {
    loop {
        if let Some(at) = rig.events.iter().position(|event| event.kinds & kinds != 0) {
            return rig.events.remove(at);
        }
        rig.poll();
        std::thread::yield_now();
    }
}

/// No event of these kinds comes with what a core was asked before.
fn quiet(rig: &mut Rig, qp: usize, kinds: u32) -> bool {
    rig.query(qp);
    rig.query(qp);
    rig.events.iter().all(|event| event.kinds & kinds == 0)
}

#[test]
fn qps_claim_the_wqes_of_their_srq_one_at_a_time_and_in_order() {
    let (mut rig, srq, [(a, b), (c, d)]) = appliance(1);
    for n in 0..4 {
        receive(&mut rig, srq, 100 + n, n as usize * 8192, 5000);
    }
    for (n, (from, to)) in [(a, b), (c, d), (c, d), (a, b)].into_iter().enumerate() {
        let sent = send(&mut rig, from, n as u64, 5000);
        let got = rig.wait_cqe(to);
        assert_eq!((got.wr_id, got.status, got.byte_len), (100 + n as u64, 0, 5000));
        assert_eq!(got.qpn, rig.qps[to].qpn);
        assert_eq!(rig.wait_cqe(from).status, 0);
        assert_eq!(rig.bytes(B + n * 8192, 5000), sent);
    }
    rig.engine.stop();
}

#[test]
fn an_empty_srq_keeps_senders_waiting_until_a_receive_is_posted() {
    let (mut rig, srq, [(a, b), _]) = appliance(2);
    let sent = send(&mut rig, a, 0, 300);
    std::thread::sleep(Duration::from_millis(5));
    assert!(rig.poll_cq(a).is_none() && rig.poll_cq(b).is_none());
    receive(&mut rig, srq, 7, 0, 300);
    assert_eq!((rig.wait_cqe(b).wr_id, rig.wait_cqe(a).status), (7, 0));
    assert_eq!(rig.bytes(B, 300), sent);
    rig.engine.stop();
}

#[test]
fn the_limit_is_told_once_each_time_it_is_armed_and_at_once_when_there_are_too_few() {
    const LIMIT: u32 = event_kind::SRQ_LIMIT_REACHED;
    let (mut rig, srq, [(a, b), _]) = appliance(3);
    let take = |rig: &mut Rig| {
        send(rig, a, 0, 16);
        assert_eq!((rig.wait_cqe(b).status, rig.wait_cqe(a).status), (0, 0));
    };
    for n in 0..5 {
        receive(&mut rig, srq, n, 0, 16);
    }
    rig.arm_srq(srq, 4);
    assert!(quiet(&mut rig, b, LIMIT), "five are posted");
    take(&mut rig);
    assert!(quiet(&mut rig, b, LIMIT), "four are not below four");
    take(&mut rig);
    let told = event(&mut rig, LIMIT);
    assert_eq!(
        (told.handle, told.number),
        (rig.srqs[srq].handle, rig.srqs[srq].number)
    );
    take(&mut rig);
    assert!(quiet(&mut rig, b, LIMIT), "it is not armed any more");
    rig.arm_srq(srq, 3);
    event(&mut rig, LIMIT);
    rig.arm_srq(srq, 0);
    take(&mut rig);
    take(&mut rig);
    assert!(quiet(&mut rig, b, LIMIT), "0 disarms it");
    rig.engine.stop();
}

#[test]
fn a_qp_in_error_has_taken_its_last_wqe_and_leaves_the_rest_to_the_others() {
    let (mut rig, srq, [(a, b), (c, d)]) = appliance(1);
    for n in 0..2 {
        receive(&mut rig, srq, n, 0, 100);
    }
    let attr = QpAttr {
        state: QpState::Err,
        ..QpAttr::default()
    };
    rig.modify(b, attr, QpAttrMask::STATE, None).unwrap();
    let told = event(&mut rig, event_kind::LAST_WQE_REACHED);
    assert_eq!(told.number, rig.qps[b].qpn);
    assert!(rig.poll_cq(b).is_none(), "an SRQ is not flushed");
    send(&mut rig, c, 0, 100);
    assert_eq!((rig.wait_cqe(d).wr_id, rig.wait_cqe(c).status), (0, 0));
    rig.destroy_qp(b);
    send(&mut rig, c, 1, 100);
    assert_eq!((rig.wait_cqe(d).wr_id, rig.wait_cqe(c).status), (1, 0));
    let _ = a;
    rig.engine.stop();
}

#[test]
fn a_malformed_receive_fails_the_qp_that_takes_it_and_nobody_else() {
    let (mut rig, srq, [(a, b), (c, d)]) = appliance(2);
    let sge = rig.sge(B as u64, 100);
    let wrong = Wqe {
        wr_id: 5,
        num_sge: 40,
        ..Wqe::default()
    };
    rig.post_srq_wqe(srq, Wqe { units: 2, ..wrong });
    // Its key is of the QP's PD and not of the SRQ's.
    rig.post_srq_recv(srq, 6, &[sge]);
    receive(&mut rig, srq, 7, 0, 100);
    send(&mut rig, a, 0, 100);
    let failed = rig.wait_cqe(b);
    assert_eq!((failed.wr_id, failed.status), (5, 2), "local QP operation error");
    assert_eq!(rig.wait_cqe(a).status, 11, "remote operational error");
    event(&mut rig, event_kind::LAST_WQE_REACHED);
    send(&mut rig, c, 0, 100);
    let failed = rig.wait_cqe(d);
    assert_eq!((failed.wr_id, failed.status), (6, 4), "local protection error");
    assert!(quiet(&mut rig, d, event_kind::SRQ_ERR));
    rig.engine.stop();
}

#[test]
fn a_forged_ring_breaks_the_srq_and_whoever_draws_from_it() {
    type Forge = fn(&mut Rig, usize);
    let forges: [Forge; 2] = [
        |rig, srq| {
            let tail = rig.region.u32(rig.srqs[srq].offset as usize + RingIndices::TAIL);
            tail.unwrap()
                .store(1_000_000, std::sync::atomic::Ordering::Release);
        },
        |rig, srq| {
            let short = Wqe {
                units: 1,
                ..Wqe::default()
            };
            rig.post_srq_wqe(srq, short);
        },
    ];
    for forge in forges {
        let (mut rig, srq, [(a, b), (c, d)]) = appliance(2);
        forge(&mut rig, srq);
        send(&mut rig, a, 0, 100);
        let told = event(&mut rig, event_kind::SRQ_ERR);
        assert_eq!(
            (told.number, told.cause.check),
            (rig.srqs[srq].number, Check::ReceiveQueue)
        );
        assert_eq!(rig.wait_cqe(a).status, 11, "remote operational error");
        assert_eq!(rig.query(b).attr.state, QpState::Err);
        // It stays broken, and is told once.
        send(&mut rig, c, 0, 100);
        assert_eq!(rig.wait_cqe(c).status, 11);
        assert_eq!(rig.query(d).attr.state, QpState::Err);
        assert!(quiet(&mut rig, d, event_kind::SRQ_ERR));
        rig.engine.stop();
    }
}
