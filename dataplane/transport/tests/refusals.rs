//! What the responder refuses: the NAK, the event, the state and the flush of every error.

mod common;

use common::*;
use rnic_sim::{Effect, Node, connect};
use rnic_transport::{Access, Check, DropReason, EventKind, Mutation, QpState, Received, WcStatus};
use rnic_wire::{Mtu, Operation, Psn, Reth, Syndrome};

/// The second node of `connect` with memory and a receive WQE of 1,000 bytes.
fn responder() -> Node {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 1_024);
    b.host.post_recv(9, 1_000);
    b
}

/// Refuses `packet`: the NAK, the event, the state and the flush are those of an error.
fn refuses(b: &mut Node, packet: &rnic_sim::Packet, check: Check, syndrome: Syndrome, event: EventKind) {
    assert_eq!(b.receive(packet), Received::Refused(check), "{}", packet.name());
    assert_eq!(b.qp.state(), QpState::Err);
    assert_eq!(answer(b), (syndrome, packet.psn()));
    let events: Vec<_> = b
        .host
        .events
        .iter()
        .filter(|event| event.kind != EventKind::CommEst)
        .collect();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, event);
    let cause = events[0].cause;
    assert_eq!(
        (cause.check, cause.psn, cause.syndrome),
        (check, packet.psn(), syndrome.to_u8())
    );
    assert_eq!(cause.opcode, packet.headers.bth.opcode.to_u8());
    b.flush_all();
    assert!(b.host.recv_queue.is_empty(), "receive WQEs are flushed");
    assert_eq!(b.receive(packet), Received::Dropped(DropReason::State));
}

#[test]
fn a_wrong_opcode_sequence_is_an_invalid_request() {
    use Operation as O;
    let full = [0u8; 256];
    let cases: [(&[O], O); 9] = [
        (&[], O::SendMiddle),
        (&[], O::SendLast),
        (&[], O::WriteMiddle),
        (&[], O::WriteLast),
        (&[O::SendFirst], O::SendFirst),
        (&[O::SendFirst], O::SendOnly),
        (&[O::SendFirst], O::WriteMiddle),
        (&[O::SendFirst, O::SendMiddle], O::ReadRequest),
        (&[O::WriteFirst], O::SendLast),
    ];
    for (before, wrong) in cases {
        let mut b = responder();
        let packet = |operation, psn| match operation {
            O::WriteFirst => rdma(operation, psn, 700, &full),
            O::ReadRequest => rdma(operation, psn, 700, &[]),
            _ => request(operation, psn, &full),
        };
        for (at, operation) in before.iter().enumerate() {
            assert_eq!(
                b.receive(&packet(*operation, 100 + at as u32)),
                Received::Accepted
            );
        }
        b.transmit_all();
        let wrong = packet(wrong, 100 + before.len() as u32);
        refuses(
            &mut b,
            &wrong,
            Check::OpcodeSequence,
            INVALID,
            EventKind::QpReqErr,
        );
        let expected = if before.first() == Some(&O::SendFirst) {
            WcStatus::RemInvReqErr
        } else {
            WcStatus::WrFlushErr
        };
        assert_eq!(recvs(&b), [(9, expected)]);
    }
}

#[test]
fn packets_of_a_size_their_opcode_may_not_have_are_invalid_requests() {
    use Operation as O;
    for (first, wrong, len) in [
        (None, O::SendFirst, 255),
        (None, O::SendFirst, 257),
        (None, O::SendFirst, 0),
        (None, O::SendOnly, 257),
        (Some(O::SendFirst), O::SendMiddle, 100),
        (Some(O::SendFirst), O::SendLast, 0),
        (Some(O::SendFirst), O::SendLast, 257),
    ] {
        let mut b = responder();
        if let Some(first) = first {
            b.receive(&request(first, 100, &[0; 256]));
            b.transmit_all();
        }
        let psn = 100 + u32::from(first.is_some());
        refuses(
            &mut b,
            &request(wrong, psn, &vec![0; len]),
            Check::Length,
            INVALID,
            EventKind::QpReqErr,
        );
    }
}

#[test]
fn a_write_whose_payload_is_not_as_long_as_announced_is_an_invalid_request() {
    use Operation as O;
    let cases = [
        (O::WriteOnly, 10, 9),
        (O::WriteOnly, 10, 11),
        (O::WriteOnly, 0, 1),
        (O::WriteOnly, 300, 256),
        (O::WriteFirst, 256, 256),
        (O::WriteFirst, 0, 256),
        (O::WriteFirst, (1 << 31) + 1, 256),
    ];
    for (operation, dma_len, len) in cases {
        let packet = rdma(operation, 100, dma_len, &vec![0; len]);
        refuses(
            &mut responder(),
            &packet,
            Check::Length,
            INVALID,
            EventKind::QpReqErr,
        );
    }
    for (operation, len) in [(O::WriteLast, 43), (O::WriteLast, 45), (O::WriteMiddle, 256)] {
        let mut b = responder();
        b.receive(&rdma(O::WriteFirst, 100, 300, &[0; 256]));
        b.transmit_all();
        let packet = request(operation, 101, &vec![0; len]);
        refuses(&mut b, &packet, Check::Length, INVALID, EventKind::QpReqErr);
        assert!(!b.host.effects.contains(&Effect::Write {
            addr: BASE,
            len: 256 + len as u64
        }));
    }
}

#[test]
fn the_length_check_is_what_refuses_an_overlong_write() {
    // The same packets as above do harm once the check is gone.
    let mut b = responder();
    b.qp.mutate(Some(Mutation::SkipLengthCheck));
    b.receive(&rdma(Operation::WriteFirst, 100, 300, &[0; 256]));
    assert_eq!(
        b.receive(&request(Operation::WriteLast, 101, &[0; 200])),
        Received::Accepted
    );
    assert_eq!(b.host.effects, [Effect::Write { addr: BASE, len: 456 }]);
}

#[test]
fn the_sequence_check_is_what_refuses_a_middle_without_a_first() {
    let mut b = responder();
    b.qp.mutate(Some(Mutation::IgnoreOpcodeSequence));
    assert_ne!(
        b.receive(&request(Operation::SendLast, 100, b"x")),
        Received::Refused(Check::OpcodeSequence)
    );
}

#[test]
fn a_message_longer_than_its_receive_wqe_is_an_invalid_request_and_a_local_length_error() {
    let mut b = responder();
    let parts = [Operation::SendFirst, Operation::SendMiddle, Operation::SendMiddle];
    for (psn, operation) in (100..).zip(parts) {
        assert_eq!(b.receive(&request(operation, psn, &[0; 256])), Received::Accepted);
    }
    b.transmit_all();
    // 768 bytes have arrived, 232 more would fit.
    let packet = request(Operation::SendLast, 103, &[0; 233]);
    refuses(
        &mut b,
        &packet,
        Check::MessageTooLong,
        INVALID,
        EventKind::QpReqErr,
    );
    assert_eq!(recvs(&b), [(9, WcStatus::LocLenErr)]);
}

#[test]
fn key_range_and_access_violations_are_remote_access_errors_with_their_check() {
    let cases = [
        (KEY + 1, BASE, 4, Check::Key),
        (KEY, BASE + 1_021, 4, Check::Range),
        (KEY, BASE - 1, 4, Check::Range),
        (KEY, u64::MAX - 1, 4, Check::Range),
        (0x99, 0, 4, Check::Access),
    ];
    for (rkey, va, dma_len, check) in cases {
        for operation in [Operation::WriteOnly, Operation::ReadRequest] {
            let mut b = responder();
            b.host.register(0x99, 0, vec![0; 8], Access::NONE);
            let payload: &[u8] = if operation == Operation::ReadRequest {
                b""
            } else {
                b"data"
            };
            let packet = with_headers(operation, 100, payload, |headers| {
                headers.reth = Some(Reth { va, rkey, dma_len });
            });
            refuses(&mut b, &packet, check, ACCESS, EventKind::QpAccessErr);
            assert_eq!(b.host.effects, []);
            assert_eq!(
                recvs(&b),
                [(9, WcStatus::WrFlushErr)],
                "NAKed although no WQE was consumed"
            );
        }
    }
}

#[test]
fn the_whole_range_is_checked_before_the_first_byte_is_written() {
    let mut b = responder();
    let packet = rdma(Operation::WriteFirst, 100, 2_000, &[1; 256]);
    refuses(&mut b, &packet, Check::Range, ACCESS, EventKind::QpAccessErr);
    assert_eq!(b.host.effects, []);
}

#[test]
fn a_key_invalidated_between_packets_stops_the_write() {
    let mut b = responder();
    b.receive(&rdma(Operation::WriteFirst, 100, 300, &[1; 256]));
    b.transmit_all();
    b.host.region_mut(KEY).expect("registered").valid = false;
    refuses(
        &mut b,
        &request(Operation::WriteLast, 101, &[1; 44]),
        Check::Key,
        ACCESS,
        EventKind::QpAccessErr,
    );
}

#[test]
fn operations_the_qp_does_not_grant_are_invalid_requests() {
    for operation in [Operation::WriteOnly, Operation::ReadRequest] {
        let (_, mut b) = connect(Mtu::M256, |attr| attr.access = Access::LOCAL_WRITE);
        register(&mut b, 16);
        refuses(
            &mut b,
            &rdma(operation, 100, 0, b""),
            Check::QpAccess,
            INVALID,
            EventKind::QpReqErr,
        );
    }
}

#[test]
fn a_reserved_opcode_of_the_own_class_is_an_invalid_request_in_sequence() {
    let mut b = responder();
    let reserved = |b: &mut Node, psn| b.with(|qp, ctx| qp.receive_reserved(ctx, 0x1F, Psn::new(psn)));
    assert_eq!(reserved(&mut b, 99), Received::Dropped(DropReason::ReplayRefused));
    assert_eq!(reserved(&mut b, 101), Received::OutOfOrder);
    assert_eq!(answer(&mut b), (SEQUENCE_NAK, 100));
    assert_eq!(reserved(&mut b, 100), Received::Refused(Check::ReservedOpcode));
    assert_eq!(answer(&mut b), (INVALID, 100));
    assert_eq!(
        (b.qp.state(), b.event_kinds()),
        (QpState::Err, vec![EventKind::QpReqErr])
    );
    assert_eq!(b.host.events[0].cause.opcode, 0x1F);
}

#[test]
fn a_receive_buffer_that_cannot_be_written_is_an_operational_error() {
    let mut b = responder();
    b.host.bad_recv.push(0);
    let packet = request(Operation::SendOnly, 100, b"x");
    refuses(&mut b, &packet, Check::Key, OPERATIONAL, EventKind::QpFatal);
    assert_eq!(recvs(&b), [(9, WcStatus::LocProtErr)]);
}

#[test]
fn a_forged_receive_ring_is_an_operational_error() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    b.host.forged_recv = true;
    let packet = request(Operation::SendOnly, 100, b"x");
    refuses(
        &mut b,
        &packet,
        Check::ReceiveQueue,
        OPERATIONAL,
        EventKind::QpFatal,
    );
}

#[test]
fn a_send_that_cannot_invalidate_its_key_is_refused_and_not_delivered() {
    let mut b = responder();
    let packet = with_headers(Operation::SendOnlyInv, 100, b"x", |headers| {
        headers.ieth = Some(0xBAD)
    });
    refuses(&mut b, &packet, Check::Invalidate, ACCESS, EventKind::QpAccessErr);
    assert_eq!(recvs(&b), [(9, WcStatus::RemInvReqErr)]);
}
