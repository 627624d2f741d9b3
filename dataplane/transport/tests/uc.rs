//! Unreliable connections by hand (9.8.2): what is sent, what is dropped, what is not.

mod common;

use common::*;
use rnic_sim::{Node, Packet, connect_as};
use rnic_transport::{
    Check, DropReason, EventKind, PostError, QpState, QpType, Queue, Received, WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Transport};

fn pair() -> (Node, Node) {
    connect_as(QpType::Uc, Mtu::M256, [100, 200], |_| {})
}

/// The packets of one SEND of `len` bytes.
fn message(node: &mut Node, wr_id: u64, len: usize) -> Vec<Packet> {
    node.post_bytes(wr_id, &vec![wr_id as u8; len]);
    node.transmit_all()
}

#[test]
fn sends_complete_when_their_last_packet_is_out_and_no_ack_is_asked_for() {
    let (mut a, mut b) = pair();
    let packets = message(&mut a, 1, 600);
    assert_eq!(
        trace(&packets),
        [("SEND_FIRST", 100), ("SEND_MIDDLE", 101), ("SEND_LAST", 102)]
    );
    assert!(
        packets
            .iter()
            .all(|p| !p.headers.bth.ack_req && p.headers.bth.opcode.transport == Transport::Uc)
    );
    assert_eq!(sends(&a), [(1, WcStatus::Success)]);
    assert_eq!(a.qp.poll_timeout(), None, "nothing is waited for");
    b.host.post_recv(7, 1000);
    assert!(b.receive_all(&packets).iter().all(|r| *r == Received::Accepted));
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
    assert!(b.transmit_all().is_empty(), "no ACK");
    assert!(b.event_kinds().is_empty());
}

#[test]
fn a_peer_that_asks_for_an_ack_gets_none() {
    let (mut a, mut b) = pair();
    let mut packet = message(&mut a, 1, 10).remove(0);
    packet.headers.bth.ack_req = true;
    b.host.post_recv(7, 1000);
    assert_eq!(b.receive(&packet), Received::Accepted);
    assert!(b.transmit_all().is_empty());
}

#[test]
fn writes_with_and_without_immediate_arrive() {
    let (mut a, mut b) = pair();
    register(&mut b, 1000);
    a.post_op(1, WrOpcode::Write, &[1; 300], KEY, BASE);
    a.post_op(2, WrOpcode::WriteImm, &[2; 300], KEY, BASE + 300);
    b.host.post_recv(7, 0);
    let packets = a.transmit_all();
    b.receive_all(&packets);
    assert_eq!(b.host.regions[0].bytes[..600], [[1; 300], [2; 300]].concat());
    let (completion, imm) = (b.host.completions[0], 0x1234_5678);
    assert_eq!(
        (completion.wr_id, completion.imm_or_rkey, completion.byte_len),
        (7, imm, 300)
    );
    assert_eq!(sends(&a), [(1, WcStatus::Success), (2, WcStatus::Success)]);
}

#[test]
fn a_message_with_a_gap_is_dropped_as_a_whole_and_its_receive_wqe_serves_the_next() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    let (broken, whole) = (message(&mut a, 1, 900), message(&mut a, 2, 600));
    assert_eq!(b.receive(&broken[0]), Received::Accepted);
    assert_eq!(b.receive(&broken[2]), Received::Dropped(DropReason::MessageLost));
    assert_eq!(
        b.receive(&broken[1]),
        Received::Duplicate,
        "late: its message is lost"
    );
    assert_eq!(
        b.receive(&broken[3]),
        Received::Dropped(DropReason::MessageLost),
        "no new message begins here"
    );
    assert!(
        recvs(&b).is_empty() && b.transmit_all().is_empty(),
        "nobody is told"
    );
    b.receive_all(&whole);
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
    assert_eq!(b.host.recv_bufs[0][..600], [2; 600]);
}

#[test]
fn a_first_or_only_after_a_gap_begins_a_message() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    message(&mut a, 1, 900);
    let only = message(&mut a, 2, 10);
    assert_eq!(b.receive_all(&only), [Received::OutOfOrder]);
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
    // In the middle of a message too: it is the rest of that one that is lost.
    b.host.post_recv(8, 1000);
    let (half, next) = (message(&mut a, 3, 600), message(&mut a, 4, 20));
    b.receive_all(&half[..1]);
    assert_eq!(b.receive_all(&next), [Received::OutOfOrder]);
    assert_eq!(recvs(&b)[1], (8, WcStatus::Success));
    assert_eq!(b.host.recv_bufs[1][..20], [4; 20]);
}

#[test]
fn packets_that_come_twice_or_late_are_not_delivered_again() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    b.host.post_recv(8, 1000);
    let (first, second) = (message(&mut a, 1, 10), message(&mut a, 2, 10));
    b.receive_all(&second);
    for packet in first.iter().chain(&second) {
        assert_eq!(b.receive(packet), Received::Duplicate);
    }
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
}

#[test]
fn after_a_gap_of_most_of_the_psn_space_messages_are_taken_again() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    let mut packet = message(&mut a, 1, 10).remove(0);
    packet.headers.bth.psn += 1 << 23;
    assert_eq!(b.receive(&packet), Received::OutOfOrder);
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
}

#[test]
fn what_the_peer_does_wrong_costs_its_message_and_the_qp_stays_up() {
    let (mut a, mut b) = pair();
    register(&mut b, 1000);
    type Posts<'a> = &'a dyn Fn(&mut Node);
    let wrong: [(Posts, DropReason); 4] = [
        (
            &|a| a.post_op(1, WrOpcode::Write, &[1; 600], KEY + 1, BASE),
            DropReason::Refused(Check::Key),
        ),
        (
            &|a| a.post_op(1, WrOpcode::Write, &[1; 600], KEY, BASE + 999),
            DropReason::Refused(Check::Range),
        ),
        (
            &|a| a.post_op(1, WrOpcode::WriteImm, &[1; 10], KEY, BASE),
            DropReason::NoReceiveWqe,
        ),
        (&|a| a.post_bytes(1, &[1; 600]), DropReason::NoReceiveWqe),
    ];
    for (post, reason) in wrong {
        post(&mut a);
        let packets = a.transmit_all();
        assert_eq!(b.receive(&packets[0]), Received::Dropped(reason));
        let rest = b.receive_all(&packets[1..]);
        assert!(
            rest.iter()
                .all(|r| *r == Received::Dropped(DropReason::MessageLost)),
            "{rest:?}"
        );
    }
    b.host.post_recv(7, 100);
    let too_long = message(&mut a, 1, 200);
    let reason = DropReason::Refused(Check::MessageTooLong);
    assert_eq!(b.receive_all(&too_long), [Received::Dropped(reason)]);
    let fits = message(&mut a, 2, 100);
    assert_eq!(b.receive_all(&fits), [Received::Accepted]);
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
    assert_eq!((b.qp.state(), b.event_kinds()), (QpState::Rts, vec![]));
    assert!(b.transmit_all().is_empty(), "never a NAK");
}

#[test]
fn a_middle_or_last_that_no_first_went_before_is_dropped() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    let (first, second) = (message(&mut a, 1, 600), message(&mut a, 2, 600));
    b.receive_all(&first);
    let mut last = second[2].clone();
    last.headers.bth.psn = second[0].headers.bth.psn;
    assert_eq!(b.receive(&last), Received::Dropped(DropReason::MessageLost));
    assert_eq!(b.qp.state(), QpState::Rts);
}

#[test]
fn reserved_opcodes_and_those_of_another_class_are_dropped() {
    let (mut a, mut b) = pair();
    let reserved = 1 << 5 | 0x0C;
    let psn = rnic_wire::Psn::new(100);
    assert_eq!(
        b.with(|qp, ctx| qp.receive_reserved(ctx, reserved, psn)),
        Received::Dropped(DropReason::ReservedOpcode)
    );
    let mut packet = message(&mut a, 1, 10).remove(0);
    packet.headers.bth.opcode.transport = Transport::Rc;
    assert_eq!(b.receive(&packet), Received::Dropped(DropReason::OtherClass));
    assert_eq!((b.qp.state(), b.transmit_all().len()), (QpState::Rts, 0));
}

#[test]
fn an_unusable_local_buffer_of_a_receive_ends_the_qp() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    b.host.post_recv(8, 1000);
    b.host.bad_recv.push(0);
    let packets = message(&mut a, 1, 10);
    assert_eq!(b.receive_all(&packets), [Received::Refused(Check::Key)]);
    b.flush_all();
    assert_eq!(recvs(&b), [(7, WcStatus::LocProtErr), (8, WcStatus::WrFlushErr)]);
    assert_eq!(b.event_kinds(), [EventKind::QpFatal]);
    assert!(b.transmit_all().is_empty(), "never a NAK");
}

#[test]
fn an_unusable_send_buffer_stops_the_send_queue_until_it_is_modified_back() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 1000);
    a.host.bad_send.push(1);
    for wr_id in 0..3 {
        a.post_bytes(wr_id, &[wr_id as u8; 10]);
    }
    let packets = a.transmit_all();
    assert_eq!(trace(&packets), [("SEND_ONLY", 100)]);
    assert_eq!(a.qp.state(), QpState::Sqe);
    a.flush_all();
    let failed = [
        (0, WcStatus::Success),
        (1, WcStatus::LocProtErr),
        (2, WcStatus::WrFlushErr),
    ];
    assert_eq!(sends(&a), failed);
    assert!(a.event_kinds().is_empty());
    // The receive queue goes on meanwhile.
    a.host.post_recv(9, 100);
    let packets = message(&mut b, 5, 10);
    assert_eq!(a.receive_all(&packets), [Received::Accepted]);
    a.set_state(QpState::Rts).unwrap();
    let packets = message(&mut a, 6, 10);
    assert_eq!(trace(&packets), [("SEND_ONLY", 101)]);
    assert_eq!(sends(&a)[3], (6, WcStatus::Success));
}

#[test]
fn operations_that_uc_does_not_have_are_refused() {
    let (mut a, _) = pair();
    for opcode in [WrOpcode::Read, WrOpcode::SendInv, WrOpcode::CompSwap] {
        let wr = rnic_transport::SendWr {
            opcode,
            ..Default::default()
        };
        assert_eq!(a.post(wr), Err(PostError::Unsupported { opcode }));
    }
}

#[test]
fn in_sqd_what_was_begun_is_finished_and_nothing_else() {
    let (mut a, _) = pair();
    a.post_bytes(1, &[1; 600]);
    a.post_bytes(2, &[2; 10]);
    a.transmit().unwrap();
    let attr = rnic_transport::QpAttr {
        state: QpState::Sqd,
        sqd_async_notify: true,
        ..Default::default()
    };
    use rnic_transport::QpAttrMask as M;
    a.modify(&attr, M::STATE | M::EN_SQD_ASYNC_NOTIFY).unwrap();
    assert_eq!(
        trace(&a.transmit_all()),
        [("SEND_MIDDLE", 101), ("SEND_LAST", 102)]
    );
    assert_eq!(a.event_kinds(), [EventKind::SqDrained]);
    a.set_state(QpState::Rts).unwrap();
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 103)]);
}

#[test]
fn the_path_mtu_is_needed_and_retry_attributes_are_not_permitted() {
    use rnic_transport::{ModifyError, QpAttr, QpAttrMask as M, RcQp};
    let mut node = Node::new(RcQp::new(1).with_type(QpType::Uc), 4);
    let attr = QpAttr {
        state: QpState::Init,
        port: 1,
        ..Default::default()
    };
    node.modify(&attr, M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS)
        .unwrap();
    let rtr = QpAttr {
        state: QpState::Rtr,
        ..Default::default()
    };
    let needed = M::AV | M::PATH_MTU | M::DEST_QPN | M::RQ_PSN;
    let refused = node.modify(&rtr, M::STATE | M::AV | M::DEST_QPN | M::RQ_PSN);
    assert!(
        matches!(
            refused,
            Err(ModifyError::Missing {
                attribute: M::PATH_MTU,
                ..
            })
        ),
        "{refused:?}"
    );
    let refused = node.modify(&rtr, M::STATE | needed | M::MIN_RNR_TIMER);
    assert!(
        matches!(
            refused,
            Err(ModifyError::NotAllowed {
                attribute: M::MIN_RNR_TIMER,
                ..
            })
        ),
        "{refused:?}"
    );
    node.modify(&rtr, M::STATE | needed).unwrap();
    let rts = QpAttr {
        state: QpState::Rts,
        ..Default::default()
    };
    let refused = node.modify(&rts, M::STATE | M::SQ_PSN | M::TIMEOUT);
    assert!(
        matches!(
            refused,
            Err(ModifyError::NotAllowed {
                attribute: M::TIMEOUT,
                ..
            })
        ),
        "{refused:?}"
    );
    node.modify(&rts, M::STATE | M::SQ_PSN).unwrap();
    assert_eq!(node.host.statuses(Queue::Send), []);
    node.set_state(QpState::Reset).unwrap();
    assert_eq!(node.qp.qp_type(), QpType::Uc);
}
