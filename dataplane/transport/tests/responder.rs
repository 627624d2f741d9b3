//! The responder: what it accepts, acknowledges, repeats and refuses.

mod common;

use common::*;
use rnic_sim::{Node, connect, connect_at};
use rnic_transport::{
    Access, Check, CompletionFlags, DropReason, EventKind, QpState, Queue, Received, WcOpcode, WcStatus,
    WrOpcode,
};
use rnic_wire::{Bth, Headers, Mtu, Opcode, Operation, Psn, Reth, Syndrome, Transport};

/// The second node of `connect` with memory and a receive WQE of 1,000 bytes.
fn responder() -> Node {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 1_024);
    b.host.post_recv(9, 1_000);
    b
}

#[test]
fn every_operation_of_every_size_around_every_mtu_arrives_intact() {
    for mtu in Mtu::ALL {
        let m = mtu.bytes();
        for len in [0, 1, m - 1, m, m + 1, 2 * m, 2 * m + 1, 5 * m - 3] {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            let (mut a, mut b) = connect(mtu, |_| ());
            register(&mut b, 5 * m);
            b.host.register(0x1234_5678, 0, vec![], Access::NONE);
            for wr_id in 0..4 {
                b.host.post_recv(wr_id, 5 * m as u32);
            }
            let operations = [
                WrOpcode::Send,
                WrOpcode::SendImm,
                WrOpcode::SendInv,
                WrOpcode::Write,
                WrOpcode::WriteImm,
            ];
            for (wr_id, opcode) in operations.into_iter().enumerate() {
                a.post_op(wr_id as u64, opcode, &bytes, KEY, BASE);
            }
            pump(&mut a, &mut b);
            assert_eq!(sends(&a).len(), 5);
            assert!(sends(&a).iter().all(|(_, status)| *status == WcStatus::Success));
            for buffer in &b.host.recv_bufs[..3] {
                assert_eq!(buffer[..len], bytes);
            }
            assert_eq!(b.host.regions[0].bytes[..len], bytes);
            let seen: Vec<_> = b
                .host
                .completions
                .iter()
                .map(|c| (c.opcode, c.flags, c.imm_or_rkey, c.byte_len))
                .collect();
            let (imm, inv, len) = (CompletionFlags::WITH_IMM, CompletionFlags::WITH_INV, len as u32);
            let expected = [
                (WcOpcode::Recv, CompletionFlags::NONE, 0, len),
                (WcOpcode::Recv, imm, 0x1234_5678, len),
                (WcOpcode::Recv, inv, 0x1234_5678, len),
                (WcOpcode::RecvRdmaWithImm, imm, 0x1234_5678, len),
            ];
            assert_eq!(seen, expected);
            assert!(
                !b.host.region(0x1234_5678).expect("registered").valid,
                "invalidated"
            );
        }
    }
}

#[test]
fn exactly_one_nak_is_outstanding_until_the_expected_psn_arrives() {
    let mut b = responder();
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 102, b"")),
        Received::OutOfOrder
    );
    assert_eq!(answer(&mut b), (SEQUENCE_NAK, 100));
    for psn in [103, 104, 101, 0x10_0000] {
        let outcome = b.receive(&request(Operation::SendOnly, psn, b""));
        assert_eq!(outcome, Received::Dropped(DropReason::NakOutstanding));
    }
    assert_eq!(b.transmit_all(), []);
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 100, b"")),
        Received::Accepted
    );
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 105, b"")),
        Received::OutOfOrder
    );
    assert_eq!(answer(&mut b), (SEQUENCE_NAK, 101));
}

#[test]
fn a_nak_that_was_not_sent_yet_is_withdrawn_when_the_expected_psn_arrives() {
    let mut b = responder();
    b.receive(&request(Operation::SendMiddle, 101, &[0; 256]));
    b.receive(&request(Operation::SendFirst, 100, &[0; 256]));
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
}

#[test]
fn after_an_rnr_nak_later_packets_are_dropped_silently() {
    let (_, mut b) = connect(Mtu::M256, |attr| attr.min_rnr_timer = 7);
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 100, b"x")),
        Received::NotReady
    );
    assert_eq!(answer(&mut b), (Syndrome::RnrNak { timer: 7 }, 100));
    let outcome = b.receive(&request(Operation::SendOnly, 101, b"x"));
    assert_eq!(outcome, Received::Dropped(DropReason::NakOutstanding));
    b.host.post_recv(1, 16);
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 100, b"x")),
        Received::Accepted
    );
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
}

#[test]
fn duplicate_sends_and_writes_are_acknowledged_again_but_not_executed() {
    let mut b = responder();
    b.host.post_recv(10, 1_000);
    let packets = [
        request(Operation::SendOnly, 100, b"once"),
        rdma(Operation::WriteOnly, 101, 4, b"once"),
        with_headers(Operation::WriteOnlyImm, 102, b"imm!", |headers| {
            headers.reth = Some(Reth {
                va: BASE + 8,
                rkey: KEY,
                dma_len: 4,
            });
            headers.imm = Some(5);
        }),
    ];
    b.receive_all(&packets);
    assert_eq!(only(&mut b).aeth(), Some((102, Syndrome::ACK, 3)));
    let (effects, completions) = (b.host.effects.clone(), b.host.completions.clone());
    for packet in &packets {
        assert_eq!(b.receive(packet), Received::Duplicate);
        assert_eq!(
            only(&mut b).aeth(),
            Some((102, Syndrome::ACK, 3)),
            "the latest PSN, the same MSN"
        );
    }
    assert_eq!((b.host.effects, b.host.completions), (effects, completions));
}

#[test]
fn acks_are_coalesced_and_the_msn_counts_messages() {
    let mut b = responder();
    b.host.post_recv(10, 1_000);
    for packet in [
        request(Operation::SendOnly, 100, b"1"),
        request(Operation::SendFirst, 101, &[0; 256]),
        request(Operation::SendLast, 102, b"2"),
        rdma(Operation::WriteOnly, 103, 0, b""),
    ] {
        assert_eq!(b.receive(&packet), Received::Accepted);
    }
    let packet = only(&mut b);
    assert_eq!(packet.aeth(), Some((103, Syndrome::Ack { credits: 31 }, 3)));
    assert!(!packet.headers.bth.ack_req, "responses ask for nothing");
}

#[test]
fn no_ack_is_sent_where_none_is_asked_for() {
    let mut b = responder();
    let mut packet = request(Operation::SendFirst, 100, &[0; 256]);
    packet.headers.bth.ack_req = false;
    assert_eq!(b.receive(&packet), Received::Accepted);
    assert_eq!(b.transmit_all(), []);
    assert!(!b.qp.has_work());
}

#[test]
fn psns_are_compared_across_the_wrap() {
    let (_, mut b) = connect_at(Mtu::M256, [0xFF_FFFF, 0], |_| ());
    b.host.post_recv(1, 16);
    b.host.post_recv(2, 16);
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 0, b"")),
        Received::OutOfOrder
    );
    assert_eq!(answer(&mut b), (SEQUENCE_NAK, 0xFF_FFFF));
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 0xFF_FFFF, b"")),
        Received::Accepted
    );
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 0, b"")),
        Received::Accepted
    );
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 0xFF_FFFF, b"")),
        Received::Duplicate
    );
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 0x80_0001, b"")),
        Received::Duplicate
    );
    assert_eq!(answer(&mut b), (Syndrome::ACK, 0));
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 0x80_0000, b"")),
        Received::OutOfOrder
    );
    assert_eq!(answer(&mut b), (SEQUENCE_NAK, 1));
}

#[test]
fn a_message_of_exactly_the_receive_wqe_fits() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(9, 1_000);
    a.post_bytes(0, &[3; 1_000]);
    pump(&mut a, &mut b);
    assert_eq!(recvs(&b), [(9, WcStatus::Success)]);
}

#[test]
fn a_zero_length_write_needs_no_key_and_none_on_replay() {
    let mut b = responder();
    let packet = with_headers(Operation::WriteOnly, 100, b"", |headers| {
        headers.reth = Some(Reth {
            va: u64::MAX,
            rkey: 0xBAD,
            dma_len: 0,
        });
    });
    assert_eq!(b.receive(&packet), Received::Accepted);
    assert_eq!(b.receive(&packet), Received::Duplicate);
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
    assert_eq!(b.host.effects, []);
}

#[test]
fn opcodes_of_another_class_are_dropped() {
    let mut b = responder();
    for transport in [Transport::Uc, Transport::Ud, Transport::Xrc, Transport::Cnp] {
        let headers = Headers::new(Bth::new(
            Opcode::new(transport, Operation::SendOnly),
            0x22,
            Psn::new(100),
        ));
        let outcome = b.with(|qp, ctx| qp.receive(ctx, &headers, b"x"));
        assert_eq!(outcome, Received::Dropped(DropReason::OtherClass));
    }
    assert_eq!((b.transmit_all(), b.qp.state()), (vec![], QpState::Rts));
}

#[test]
fn a_full_completion_queue_is_fatal_and_nothing_is_acknowledged() {
    let mut b = responder();
    b.host.post_recv(10, 16);
    b.host.cq_capacity = 1;
    b.receive(&request(Operation::SendOnly, 100, b"1"));
    b.transmit_all();
    b.receive(&request(Operation::SendOnly, 101, b"2"));
    assert_eq!(b.transmit_all(), [], "what has no completion is not acknowledged");
    assert_eq!(b.qp.state(), QpState::Err);
    assert_eq!(b.host.events.len(), 1);
    assert_eq!(
        (b.host.events[0].kind, b.host.events[0].cause.check),
        (EventKind::QpFatal, Check::CqOverflow)
    );
}

#[test]
fn solicited_completions_are_marked() {
    let mut b = responder();
    let mut packet = request(Operation::SendOnly, 100, b"x");
    packet.headers.bth.solicited = true;
    b.receive(&packet);
    assert_eq!(b.host.completions[0].flags, CompletionFlags::SOLICITED);
    assert_eq!(b.host.completions[0].queue, Queue::Recv);
}
