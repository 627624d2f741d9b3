//! Invalidation of keys, by the owner (LOCAL_INV, 10.6.5) and by the peer (SEND with invalidate, 9.4.1.1.3): it is
//! done only when nobody uses the key any more.

mod common;

use common::*;
use rnic_sim::{Node, Packet, connect};
use rnic_transport::{
    Access, Cause, Check, CompletionFlags, DropReason, EventKind, QpAttr, QpAttrMask, QpState, Received,
    SendFlags, SendWr, WcOpcode, WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Operation, Syndrome};

/// A key that nobody reads or writes by.
const OTHER: u32 = 0x99;
/// How often a QP that waits is told that the key is still in use.
const BUSY: u32 = 3;

/// Two QPs; the keys of either stay in use for a while after their invalidation.
fn slow() -> (Node, Node) {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    for node in [&mut a, &mut b] {
        node.host.register(OTHER, 0, Vec::new(), Access::NONE);
        register(node, 1024);
        node.host.grace = BUSY + 1;
    }
    (a, b)
}

fn local_inv(wr_id: u64, key: u32) -> SendWr {
    SendWr {
        wr_id,
        opcode: WrOpcode::LocalInv,
        flags: SendFlags::SIGNALED,
        imm_or_rkey: key,
        ..SendWr::default()
    }
}

/// One look of a core at what there is to send.
fn poll(node: &mut Node) -> Option<&'static str> {
    let emit = node.with(|qp, ctx| qp.poll_transmit(ctx))?;
    Some(Packet::new(&emit.headers, Vec::new()).name())
}

fn is_valid(node: &Node, key: u32) -> bool {
    node.host.region(key).expect("registered").valid
}

fn send_inv(psn: u32, key: u32) -> Packet {
    with_headers(Operation::SendOnlyInv, psn, b"x", |headers| {
        headers.ieth = Some(key)
    })
}

#[test]
fn a_local_invalidate_waits_for_all_before_it_and_holds_all_behind_it() {
    let (mut a, mut b) = slow();
    b.host.post_recv(9, 16);
    a.post_op(1, WrOpcode::Write, b"before", KEY, BASE);
    a.post(local_inv(2, OTHER)).expect("RTS takes it");
    a.post_op(3, WrOpcode::Send, b"behind", 0, 0);
    let write = a.transmit().expect("the WRITE");
    assert_eq!(poll(&mut a), None);
    assert!(is_valid(&a, OTHER), "the WRITE is not acknowledged yet");
    assert!(!a.qp.has_work(), "it waits for the peer, not for its core");
    b.receive(&write);
    a.receive_all(&b.transmit_all());
    assert_eq!(sends(&a), [(1, WcStatus::Success)]);
    for _ in 0..BUSY {
        assert_eq!(poll(&mut a), None);
        assert!(!is_valid(&a, OTHER), "refused from the beginning on");
        assert!(a.qp.has_work(), "its core asks again");
        assert_eq!(sends(&a).len(), 1, "completed while somebody uses the key");
    }
    assert_eq!(poll(&mut a), Some("SEND_ONLY"));
    assert_eq!(sends(&a), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    assert_eq!(a.host.completions[1].opcode, WcOpcode::LocalInv);
}

#[test]
fn a_key_that_may_not_be_invalidated_fails_its_request_and_the_qp() {
    let (mut a, _) = slow();
    a.post(local_inv(1, 0xBAD)).expect("RTS takes it");
    a.post(local_inv(2, OTHER)).expect("RTS takes it");
    assert_eq!(poll(&mut a), None);
    a.flush_all();
    assert_eq!(sends(&a), [(1, WcStatus::MwBindErr), (2, WcStatus::WrFlushErr)]);
    let cause = Cause {
        psn: 100,
        ..Cause::of(Check::Key)
    };
    assert_eq!(a.host.completions[0].cause, cause);
    assert_eq!(a.qp.state(), QpState::Err);
    assert!(is_valid(&a, OTHER), "what was flushed was not executed");
}

#[test]
fn an_unsignalled_local_invalidate_completes_in_silence() {
    let (mut a, _) = slow();
    a.host.grace = 0;
    for wr_id in 0..200 {
        // More than the ring has room for, were they not done.
        a.host.region_mut(OTHER).expect("registered").valid = true;
        let wr = SendWr {
            flags: SendFlags::NONE,
            ..local_inv(wr_id, OTHER)
        };
        a.post(wr).expect("there is room");
        assert_eq!(poll(&mut a), None);
        assert!(!is_valid(&a, OTHER));
    }
    assert_eq!(sends(&a), []);
}

#[test]
fn a_send_queue_is_drained_only_when_its_invalidation_is_done() {
    let (mut a, _) = slow();
    a.post(local_inv(1, OTHER)).expect("RTS takes it");
    a.post(local_inv(2, KEY)).expect("RTS takes it");
    assert_eq!(poll(&mut a), None);
    let attr = QpAttr {
        state: QpState::Sqd,
        sqd_async_notify: true,
        ..QpAttr::default()
    };
    let mask = QpAttrMask::STATE | QpAttrMask::EN_SQD_ASYNC_NOTIFY;
    a.modify(&attr, mask).expect("RTS to SQD");
    assert_eq!(a.event_kinds(), []);
    for _ in 0..BUSY {
        assert_eq!(poll(&mut a), None);
    }
    assert_eq!(sends(&a), [(1, WcStatus::Success)]);
    assert_eq!(a.event_kinds(), [EventKind::SqDrained]);
    assert!(is_valid(&a, KEY), "the second was not begun");
    assert!(!a.qp.has_work());
}

#[test]
fn an_invalidation_under_way_is_flushed_when_the_qp_fails() {
    let (mut a, _) = slow();
    a.post(local_inv(1, OTHER)).expect("RTS takes it");
    assert_eq!(poll(&mut a), None);
    a.set_state(QpState::Err).expect("always legal");
    a.flush_all();
    assert_eq!(sends(&a), [(1, WcStatus::WrFlushErr)]);
    assert!(!is_valid(&a, OTHER), "it was begun and stays so");
    assert!(!a.qp.has_work());
}

#[test]
fn a_send_with_invalidate_is_neither_completed_nor_acknowledged_while_its_key_is_in_use() {
    let (_, mut b) = slow();
    b.host.post_recv(9, 16);
    b.receive(&send_inv(100, OTHER));
    for _ in 0..BUSY - 1 {
        assert!(!is_valid(&b, OTHER), "refused from the beginning on");
        assert_eq!(poll(&mut b), None);
        assert_eq!(recvs(&b), [], "completed while somebody uses the key");
        // The requester's timer may expire meanwhile.
        let again = b.receive(&send_inv(100, OTHER));
        assert_eq!(again, Received::Dropped(DropReason::Invalidating));
    }
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
    assert_eq!(recvs(&b), [(9, WcStatus::Success)]);
    let done = b.host.completions[0];
    assert_eq!(
        (done.flags, done.imm_or_rkey, done.byte_len),
        (CompletionFlags::WITH_INV, OTHER, 1)
    );
    assert_eq!(b.receive(&send_inv(100, OTHER)), Received::Duplicate);
    assert_eq!(recvs(&b).len(), 1);
}

#[test]
fn what_was_dropped_behind_an_invalidation_is_asked_for_at_once() {
    let (mut a, mut b) = slow();
    b.host.post_recv(9, 16);
    b.host.post_recv(10, 16);
    a.post(SendWr {
        opcode: WrOpcode::SendInv,
        ..local_inv(1, OTHER)
    })
    .expect("RTS takes it");
    a.post_op(2, WrOpcode::Send, b"behind", 0, 0);
    let packets = a.transmit_all();
    assert_eq!(packets.len(), 2);
    assert_eq!(
        b.receive_all(&packets),
        [Received::Accepted, Received::Dropped(DropReason::Invalidating)]
    );
    let nak = only(&mut b);
    assert_eq!(
        nak.aeth().map(|(psn, syndrome, _)| (syndrome, psn)),
        Some((SEQUENCE_NAK, 101))
    );
    a.receive(&nak);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    assert_eq!(recvs(&b), [(9, WcStatus::Success), (10, WcStatus::Success)]);
}

#[test]
fn the_receive_of_an_invalidation_under_way_is_flushed_when_the_qp_fails() {
    let (_, mut b) = slow();
    b.host.post_recv(9, 16);
    b.receive(&send_inv(100, OTHER));
    b.set_state(QpState::Err).expect("always legal");
    assert_eq!(poll(&mut b), None);
    b.flush_all();
    assert_eq!(recvs(&b), [(9, WcStatus::WrFlushErr)]);
    assert!(!b.qp.has_work());
}
