//! Atomics: executed once, answered in order, their results kept for duplicates.

mod common;

use common::*;
use rnic_sim::{Effect, Node, connect, connect_at};
use rnic_transport::{
    Access, AtomicOp, Check, DropReason, EventKind, PostError, QpAttr, QpAttrMask, QpState, Received,
    SendFlags, SendWr, WcOpcode, WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Operation, Syndrome};

const TIMEOUT: u64 = 4_096 << 10;
const ADD: AtomicOp = AtomicOp::FetchAdd { add: 1 };

/// Two nodes, the second with 64 bytes of memory whose words are 10, 20, 30 …
fn nodes() -> (Node, Node) {
    let (a, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 64);
    let words = (1..=8).flat_map(|n| (n * 10_u64).to_ne_bytes());
    b.host.region_mut(KEY).expect("registered").bytes = words.collect();
    (a, b)
}

fn word(b: &Node, at: usize) -> u64 {
    let bytes = &b.host.region(KEY).expect("registered").bytes[at * 8..at * 8 + 8];
    u64::from_ne_bytes(bytes.try_into().expect("8 bytes"))
}

/// What the atomic posted as number `at` brought back.
fn fetched(a: &Node, at: usize) -> u64 {
    u64::from_ne_bytes(a.host.send_bufs[at].as_slice().try_into().expect("8 bytes"))
}

#[test]
fn compare_and_swap_swaps_only_what_equals_and_both_bring_back_what_was_there() {
    let (mut a, mut b) = nodes();
    let swap = |compare| AtomicOp::CompareSwap { compare, swap: 99 };
    a.post_atomic(0, swap(10), KEY, BASE);
    a.post_atomic(1, swap(10), KEY, BASE);
    a.post_atomic(2, AtomicOp::FetchAdd { add: u64::MAX }, KEY, BASE + 8);
    pump(&mut a, &mut b);
    assert_eq!([0, 1, 2].map(|at| fetched(&a, at)), [10, 99, 20]);
    assert_eq!((word(&b, 0), word(&b, 1)), (99, 19), "adding wraps");
    assert_eq!(sends(&a), [0, 1, 2].map(|id| (id, WcStatus::Success)));
    let [first, _, last] = [0, 1, 2].map(|at| a.host.completions[at]);
    assert_eq!((first.opcode, first.byte_len), (WcOpcode::CompSwap, 8));
    assert_eq!((last.opcode, last.byte_len), (WcOpcode::FetchAdd, 8));
}

#[test]
fn operands_and_result_are_big_endian_on_the_wire_and_in_their_places() {
    let (mut a, mut b) = nodes();
    let (compare, swap) = (0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
    b.host.region_mut(KEY).expect("registered").bytes[..8].copy_from_slice(&u64::to_ne_bytes(compare));
    a.post_atomic(0, AtomicOp::CompareSwap { compare, swap }, KEY, BASE);
    let request = only(&mut a);
    let mut frame = [0; 64];
    let len = request.headers.emit(&mut frame).expect("legal");
    // BTH 12, VA 8, R_Key 4, then swap data before compare data (9.4.5.1).
    assert_eq!(frame[24..32], swap.to_be_bytes());
    assert_eq!(frame[32..len], compare.to_be_bytes());
    b.receive(&request);
    let response = only(&mut b);
    let len = response.headers.emit(&mut frame).expect("legal");
    assert_eq!(frame[16..len], compare.to_be_bytes());
    a.receive(&response);
    assert_eq!(a.host.send_bufs[0], compare.to_ne_bytes());
    assert_eq!(word(&b, 0), swap);
}

#[test]
fn a_duplicate_atomic_is_answered_with_its_saved_result_and_not_executed() {
    let (mut a, mut b) = nodes();
    a.post_atomic(0, ADD, KEY, BASE);
    let request = only(&mut a);
    b.receive(&request);
    let first = only(&mut b);
    assert_eq!(b.receive(&fetch_add(101, BASE)), Received::Accepted);
    b.transmit_all();
    assert_eq!(b.receive(&request), Received::Duplicate);
    let again = only(&mut b);
    assert_eq!((again.name(), again.psn()), ("ATOMIC_ACK", 100));
    assert_eq!(again.headers.atomic_ack, first.headers.atomic_ack);
    assert_eq!(word(&b, 0), 12, "executed once each");
    a.receive(&again);
    assert_eq!((fetched(&a, 0), sends(&a)), (10, vec![(0, WcStatus::Success)]));
}

#[test]
fn a_lost_atomic_ack_is_asked_for_again_and_nothing_is_added_twice() {
    let (mut a, mut b) = nodes();
    for id in 0..3 {
        a.post_atomic(id, ADD, KEY, BASE);
    }
    b.receive_all(&a.transmit_all());
    let answers = b.transmit_all();
    a.receive(&answers[1]);
    assert_eq!(sends(&a), [], "the first one's answer is missing");
    pump(&mut a, &mut b);
    assert_eq!([0, 1, 2].map(|at| fetched(&a, at)), [10, 11, 12]);
    assert_eq!(word(&b, 0), 13);
    assert_eq!(a.host.scattered, [8, 8, 8], "each result was placed once");
}

#[test]
fn an_ack_for_a_later_psn_is_an_implied_nak_for_a_pending_atomic() {
    let (mut a, _) = nodes();
    a.post_atomic(0, ADD, KEY, BASE);
    a.post_bytes(1, b"after");
    a.transmit_all();
    assert_eq!(a.receive(&ack(101, Syndrome::ACK)), Received::OutOfOrder);
    assert_eq!(
        sends(&a),
        [],
        "the atomic is not complete, hence nothing after it"
    );
    assert_eq!(trace(&a.transmit_all()), [("FETCH_ADD", 100), ("SEND_ONLY", 101)]);
    assert_eq!(a.receive(&ack(100, Syndrome::ACK)), Received::OutOfOrder);
    assert_eq!(
        sends(&a),
        [],
        "an ACK without its result does not complete it either"
    );
    a.receive(&atomic_ack(100, Syndrome::ACK, 10));
    a.receive(&ack(101, Syndrome::ACK));
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
}

#[test]
fn atomics_and_reads_are_answered_in_order_and_acknowledge_what_was_before() {
    let (mut a, mut b) = nodes();
    b.host.post_recv(9, 16);
    a.post_op(0, WrOpcode::Write, &30_u64.to_ne_bytes(), KEY, BASE);
    a.post_op(1, WrOpcode::Read, &[0; 8], KEY, BASE + 8);
    a.post_atomic(2, ADD, KEY, BASE);
    a.post_op(3, WrOpcode::Read, &[0; 8], KEY, BASE);
    a.post_bytes(4, b"last");
    b.receive_all(&a.transmit_all());
    let answers = b.transmit_all();
    let expected = [
        ("READ_RESP_ONLY", 101),
        ("ATOMIC_ACK", 102),
        ("READ_RESP_ONLY", 103),
        ("ACK", 104),
    ];
    assert_eq!(trace(&answers), expected);
    let msns: Vec<_> = answers
        .iter()
        .filter_map(|p| p.aeth())
        .map(|aeth| aeth.2)
        .collect();
    assert_eq!(msns, [2, 3, 4, 5]);
    a.receive_all(&answers);
    assert_eq!(fetched(&a, 2), 30, "the WRITE before it is done");
    assert_eq!(
        a.host.send_bufs[3],
        31_u64.to_ne_bytes(),
        "the READ after it sees it"
    );
}

#[test]
fn atomics_and_reads_outstanding_are_bounded_by_max_rd_atomic_together() {
    let (mut a, _) = connect(Mtu::M256, |attr| attr.max_rd_atomic = 2);
    a.post_atomic(0, ADD, KEY, BASE);
    a.post_op(1, WrOpcode::Read, &[0; 4], KEY, BASE);
    a.post_atomic(2, ADD, KEY, BASE);
    assert_eq!(
        trace(&a.transmit_all()),
        [("FETCH_ADD", 100), ("READ_REQUEST", 101)]
    );
    a.receive(&atomic_ack(100, Syndrome::ACK, 10));
    assert_eq!(trace(&a.transmit_all()), [("FETCH_ADD", 102)]);
    a.wait(TIMEOUT);
    assert_eq!(
        trace(&a.transmit_all()),
        [("READ_REQUEST", 101), ("FETCH_ADD", 102)]
    );
}

#[test]
fn more_atomics_and_reads_than_max_dest_rd_atomic_are_an_invalid_request() {
    let (_, mut b) = connect(Mtu::M256, |attr| attr.max_dest_rd_atomic = 2);
    register(&mut b, 64);
    b.receive(&rdma(Operation::ReadRequest, 100, 4, b""));
    b.receive(&fetch_add(101, BASE));
    let refused = b.receive(&fetch_add(102, BASE));
    assert_eq!(refused, Received::Refused(Check::RdAtomicResources));
    let sent = b.transmit_all();
    assert_eq!(
        trace(&sent),
        [("READ_RESP_ONLY", 100), ("ATOMIC_ACK", 101), ("ACK", 102)]
    );
    assert_eq!(sent[2].aeth().map(|(_, syndrome, _)| syndrome), Some(INVALID));
    let atomics = b
        .host
        .effects
        .iter()
        .filter(|e| matches!(e, Effect::Atomic { .. }));
    assert_eq!(atomics.count(), 1, "what is refused is not executed");
}

#[test]
fn every_atomic_that_may_still_be_asked_for_is_kept_across_the_psn_wrap() {
    let (mut a, mut b) = connect_at(Mtu::M256, [0xFF_FFF8, 0], |_| ());
    register(&mut b, 64);
    for id in 0..16 {
        a.post_atomic(id, ADD, KEY, BASE);
    }
    let requests = a.transmit_all();
    assert_eq!(requests.len(), 16);
    b.receive_all(&requests);
    let first: Vec<_> = b.transmit_all().iter().map(|p| p.headers.atomic_ack).collect();
    assert_eq!(b.receive_all(&requests), [Received::Duplicate; 16]);
    let again: Vec<_> = b.transmit_all().iter().map(|p| p.headers.atomic_ack).collect();
    assert_eq!(first, again);
    assert_eq!(again.len(), 16);
}

#[test]
fn a_duplicate_atomic_whose_result_is_no_longer_kept_is_dropped() {
    let (_, mut b) = nodes();
    for psn in 100..117 {
        assert_eq!(b.receive(&fetch_add(psn, BASE)), Received::Accepted);
        b.transmit_all();
    }
    let gone = b.receive(&fetch_add(100, BASE));
    assert_eq!(gone, Received::Dropped(DropReason::ReplayRefused));
    assert_eq!(b.receive(&fetch_add(101, BASE)), Received::Duplicate);
    assert_eq!(word(&b, 0), 10 + 17);
}

#[test]
fn a_duplicate_of_another_kind_than_was_executed_is_dropped() {
    let (_, mut b) = nodes();
    b.host.post_recv(9, 16);
    b.receive(&request(Operation::SendOnly, 100, b"x"));
    b.receive(&fetch_add(101, BASE));
    const REFUSED: Received = Received::Dropped(DropReason::ReplayRefused);
    assert_eq!(b.receive(&fetch_add(100, BASE)), REFUSED, "it was a SEND");
    // Its answer is still due: a READ must not take its place.
    assert_eq!(b.receive(&rdma(Operation::ReadRequest, 101, 8, b"")), REFUSED);
    assert_eq!(trace(&b.transmit_all()), [("ATOMIC_ACK", 101)]);
}

#[test]
fn lowering_max_dest_rd_atomic_keeps_the_results_of_atomics_already_executed() {
    let (_, mut b) = nodes();
    for psn in 100..104 {
        b.receive(&fetch_add(psn, BASE));
    }
    b.set_state(QpState::Sqd).expect("legal");
    let attr = QpAttr {
        max_dest_rd_atomic: 1,
        ..QpAttr::default()
    };
    b.modify(&attr, QpAttrMask::MAX_DEST_RD_ATOMIC).expect("legal");
    assert_eq!(b.transmit_all().len(), 4);
    assert_eq!(b.receive(&fetch_add(100, BASE)), Received::Duplicate);
    assert_eq!(b.transmit_all().len(), 1);
    assert_eq!(word(&b, 0), 14);
}

/// Posted behind an atomic, with `flags`.
fn behind_an_atomic(flags: SendFlags) -> Vec<(&'static str, u32)> {
    let (mut a, _) = nodes();
    a.post_atomic(0, ADD, KEY, BASE);
    let data = a.host.add_send_buf(b"after".to_vec());
    let wr = SendWr {
        flags,
        length: 5,
        data,
        ..SendWr::default()
    };
    a.post(wr).expect("room");
    let before = a.transmit_all();
    a.receive(&atomic_ack(100, Syndrome::ACK, 10));
    assert_eq!(before.len() + a.transmit_all().len(), 2);
    trace(&before)
}

#[test]
fn a_fence_waits_for_earlier_atomics() {
    assert_eq!(behind_an_atomic(SendFlags::FENCE), [("FETCH_ADD", 100)]);
    assert_eq!(behind_an_atomic(SendFlags::NONE).len(), 2);
}

#[test]
fn atomics_that_are_wrong_are_refused_each_in_its_way_and_not_executed() {
    let with = |va: u64, rkey: u32, payload: &'static [u8]| {
        let mut packet = fetch_add(100, va);
        packet.headers.atomic = packet
            .headers
            .atomic
            .map(|eth| rnic_wire::AtomicEth { rkey, ..eth });
        rnic_sim::Packet::new(&packet.headers, payload.to_vec())
    };
    let cases = [
        (with(BASE + 4, KEY, b""), Check::Alignment, INVALID),
        (with(BASE + 1, KEY, b""), Check::Alignment, INVALID),
        (with(BASE, KEY, &[0; 8]), Check::Length, INVALID),
        (with(BASE, 0xBAD, b""), Check::Key, ACCESS),
        (with(BASE + 64, KEY, b""), Check::Range, ACCESS),
        (with(u64::MAX - 7, KEY, b""), Check::Range, ACCESS),
        (with(0x7000, 0x70, b""), Check::Access, ACCESS),
    ];
    for (packet, check, syndrome) in cases {
        let (mut a, mut b) = nodes();
        let no_atomics = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
        b.host.register(0x70, 0x7000, vec![0; 8], no_atomics);
        assert_eq!(b.receive(&packet), Received::Refused(check));
        assert_eq!(answer(&mut b), (syndrome, 100));
        let event = match syndrome {
            ACCESS => EventKind::QpAccessErr,
            _ => EventKind::QpReqErr,
        };
        assert_eq!((b.qp.state(), b.event_kinds()), (QpState::Err, vec![event]));
        assert_eq!(b.host.effects, []);
        a.post_atomic(0, ADD, KEY, BASE);
        a.transmit_all();
        a.receive(&ack(100, syndrome));
        let status = match syndrome {
            ACCESS => WcStatus::RemAccessErr,
            _ => WcStatus::RemInvReqErr,
        };
        assert_eq!(sends(&a), [(0, status)]);
    }
}

#[test]
fn an_atomic_the_qp_does_not_grant_or_inside_a_message_is_an_invalid_request() {
    let (_, mut b) = connect(Mtu::M256, |attr| attr.access = Access::REMOTE_WRITE);
    register(&mut b, 64);
    assert_eq!(
        b.receive(&fetch_add(100, BASE)),
        Received::Refused(Check::QpAccess)
    );
    assert_eq!(answer(&mut b), (INVALID, 100));
    let (_, mut b) = nodes();
    b.host.post_recv(9, 1_000);
    b.receive(&request(Operation::SendFirst, 100, &[0; 256]));
    assert_eq!(
        b.receive(&fetch_add(101, BASE)),
        Received::Refused(Check::OpcodeSequence)
    );
    assert_eq!(b.host.effects.len(), 1, "the SEND's payload alone");
}

#[test]
fn answers_to_an_atomic_that_make_no_sense_fail_it() {
    let reserved = Syndrome::from_u8(0x41);
    let wrong = [
        response(Operation::ReadResponseOnly, 100, &[0; 8]),
        response(Operation::ReadResponseMiddle, 100, &[0; 256]),
        atomic_ack(100, ACCESS, 10),
        atomic_ack(100, reserved, 10),
        rnic_sim::Packet::new(&atomic_ack(100, Syndrome::ACK, 10).headers, vec![0; 4]),
    ];
    for packet in wrong {
        let (mut a, _) = nodes();
        a.post_atomic(0, ADD, KEY, BASE);
        a.transmit_all();
        assert_eq!(a.receive(&packet), Received::Refused(Check::BadResponse));
        assert_eq!(sends(&a), [(0, WcStatus::BadRespErr)]);
        assert_eq!(a.host.send_bufs[0], [0xEE; 8], "nothing was placed");
    }
    let (mut a, _) = nodes();
    a.post_op(0, WrOpcode::Read, &[0; 8], KEY, BASE);
    a.transmit_all();
    assert_eq!(
        a.receive(&atomic_ack(100, Syndrome::ACK, 10)),
        Received::Refused(Check::BadResponse)
    );
    let (mut a, _) = nodes();
    a.post_bytes(0, b"x");
    a.transmit_all();
    assert_eq!(
        a.receive(&atomic_ack(100, Syndrome::ACK, 10)),
        Received::Dropped(DropReason::UnexpectedResponse)
    );
}

#[test]
fn an_atomic_into_memory_that_is_gone_is_a_local_protection_error() {
    let (mut a, mut b) = nodes();
    a.post_atomic(0, ADD, KEY, BASE);
    a.host.bad_send.push(0);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::LocProtErr)]);
}

#[test]
fn an_atomic_of_another_length_or_without_resources_is_not_accepted() {
    let (mut a, _) = nodes();
    for opcode in [WrOpcode::CompSwap, WrOpcode::FetchAdd] {
        for length in [0, 7, 16] {
            let wr = SendWr {
                opcode,
                length,
                ..SendWr::default()
            };
            assert_eq!(a.post(wr), Err(PostError::AtomicLength { length }));
        }
    }
    let (mut a, _) = connect(Mtu::M256, |attr| attr.max_rd_atomic = 0);
    let wr = SendWr {
        opcode: WrOpcode::FetchAdd,
        length: 8,
        ..SendWr::default()
    };
    assert_eq!(a.post(wr), Err(PostError::NoRdAtomicResources));
}
