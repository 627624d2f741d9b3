//! Extended reliable connections (A14): who sends, who answers, and which XRC SRQ a message belongs to.

mod common;

use common::*;
use rnic_sim::{Node, Packet, connect_xrc};
use rnic_transport::{
    AtomicOp, Cause, Check, CompletionFlags, DropReason, EventKind, Mutation, PostError, QpState, QpType,
    Queue, RcQp, Received, SendFlags, SendWr, WcOpcode, WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Opcode, Operation, Psn, Syndrome, Transport, XrcEth};

/// The target's domain, its XRC SRQs, and one of another domain.
const XRCD: u32 = 5;
const FIRST: u32 = 0x31;
const SECOND: u32 = 0x32;
const FOREIGN: u32 = 0x41;

/// An initiator and its target, whose two XRC SRQs have two receive WQEs each: 10 and 11, 20 and 21.
fn pair() -> (Node, Node) {
    let (a, mut b) = connect_xrc(XRCD, Mtu::M256, [100, 200], |_| ());
    for (srqn, first) in [(FIRST, 10), (SECOND, 20)] {
        b.host.add_srq(srqn, XRCD);
        b.host.post_srq_recv(srqn, first, 1024);
        b.host.post_srq_recv(srqn, first + 1, 1024);
    }
    b.host.add_srq(FOREIGN, XRCD + 1);
    b.host.post_srq_recv(FOREIGN, 30, 1024);
    register(&mut b, 1024);
    (a, b)
}

fn post(node: &mut Node, wr_id: u64, opcode: WrOpcode, srqn: u32, bytes: &[u8]) {
    let data = node.host.add_send_buf(bytes.to_vec());
    node.post(SendWr {
        wr_id,
        opcode,
        flags: SendFlags::SIGNALED,
        imm_or_rkey: 0x1234_5678,
        remote_addr: BASE,
        rkey: KEY,
        length: bytes.len() as u32,
        data,
        remote_srqn: srqn,
        ..SendWr::default()
    })
    .expect("the QP takes work requests");
}

/// A request to the target, whose expected PSN is 100.
fn xrc(srqn: u32, packet: &Packet) -> Packet {
    let mut headers = packet.headers;
    headers.bth.opcode = Opcode::new(Transport::Xrc, headers.bth.opcode.operation);
    headers.xrceth = Some(XrcEth { srqn });
    Packet::new(&headers, packet.payload.clone())
}

/// Receive completions of the target: work request, status, XRC SRQ.
fn received(node: &Node) -> Vec<(u64, WcStatus, u32)> {
    let host = &node.host;
    let each = host.completions.iter().zip(&host.completed_to);
    each.map(|(done, srqn)| (done.wr_id, done.status, *srqn))
        .collect()
}

fn refused(b: &Node, check: Check) {
    assert_eq!(b.qp.state(), QpState::Err);
    assert_eq!(
        b.event_kinds(),
        [EventKind::CommEst, EventKind::QpReqErr][2 - b.host.events.len()..]
    );
    assert_eq!(b.host.events.last().expect("an event").cause.check, check);
}

#[test]
fn every_request_packet_names_the_srq_of_its_work_request_and_no_response_does() {
    let (mut a, mut b) = pair();
    post(&mut a, 1, WrOpcode::Send, FIRST, &[7; 600]);
    post(&mut a, 2, WrOpcode::WriteImm, SECOND, b"write");
    post(&mut a, 3, WrOpcode::Read, FIRST, &[0; 300]);
    a.post(SendWr {
        wr_id: 4,
        opcode: WrOpcode::FetchAdd,
        flags: SendFlags::SIGNALED,
        remote_addr: BASE,
        rkey: KEY,
        compare_add: 1,
        length: 8,
        remote_srqn: SECOND,
        ..SendWr::default()
    })
    .expect("the QP takes work requests");
    let requests = a.transmit_all();
    let named: Vec<_> = requests
        .iter()
        .map(|packet| (packet.name(), packet.headers.xrceth.map(|xrceth| xrceth.srqn)))
        .collect();
    assert_eq!(
        named,
        [
            ("SEND_FIRST", Some(FIRST)),
            ("SEND_MIDDLE", Some(FIRST)),
            ("SEND_LAST", Some(FIRST)),
            ("WRITE_ONLY_IMM", Some(SECOND)),
            ("READ_REQUEST", Some(FIRST)),
            ("FETCH_ADD", Some(SECOND)),
        ]
    );
    b.receive_all(&requests);
    let responses = b.transmit_all();
    for packet in requests.iter().chain(&responses) {
        assert_eq!(packet.headers.bth.opcode.transport, Transport::Xrc);
    }
    assert!(responses.iter().all(|packet| packet.headers.xrceth.is_none()));
    a.receive_all(&responses);
    assert_eq!(sends(&a), [1, 2, 3, 4].map(|wr_id| (wr_id, WcStatus::Success)));
    assert_eq!(
        received(&b),
        [(10, WcStatus::Success, FIRST), (20, WcStatus::Success, SECOND)]
    );
    let [send, write] = &b.host.completions[..] else {
        unreachable!("two of them")
    };
    assert_eq!(
        (send.opcode, send.byte_len, send.src_qpn),
        (WcOpcode::Recv, 600, 0x11)
    );
    assert_eq!(
        (write.opcode, write.flags, write.imm_or_rkey),
        (WcOpcode::RecvRdmaWithImm, CompletionFlags::WITH_IMM, 0x1234_5678)
    );
}

#[test]
fn each_srq_runs_out_of_receives_by_itself() {
    let (mut a, mut b) = pair();
    for wr_id in 0..3 {
        post(&mut a, wr_id, WrOpcode::Send, FIRST, b"x");
    }
    let packets = a.transmit_all();
    assert_eq!(
        b.receive_all(&packets),
        [Received::Accepted, Received::Accepted, Received::NotReady]
    );
    let answers = b.transmit_all();
    let rnr = |packet: &Packet| matches!(packet.aeth(), Some((102, Syndrome::RnrNak { .. }, _)));
    assert!(answers.iter().any(rnr), "{:?}", trace(&answers));
    assert_eq!(b.host.srqs[1].queue.len(), 2, "the other one was left alone");
    b.host.post_srq_recv(FIRST, 12, 16);
    a.receive_all(&answers);
    a.wait(1_000_000_000);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a).len(), 3);
    assert_eq!(received(&b)[2], (12, WcStatus::Success, FIRST));
}

#[test]
fn a_number_that_names_no_srq_is_an_invalid_request_whatever_the_operation() {
    let requests = [
        request(Operation::SendOnly, 100, b"x"),
        rdma(Operation::WriteOnly, 100, 4, b"four"),
        rdma(Operation::ReadRequest, 100, 4, b""),
        fetch_add(100, BASE),
    ];
    for packet in requests {
        let (_, mut b) = pair();
        let before = b.host.region(KEY).expect("registered").bytes.clone();
        assert_eq!(b.receive(&xrc(0x99, &packet)), Received::Refused(Check::XrcSrq));
        assert_eq!(answer(&mut b), (INVALID, 100));
        refused(&b, Check::XrcSrq);
        assert_eq!(b.host.region(KEY).expect("registered").bytes, before);
        assert_eq!(received(&b), []);
    }
}

#[test]
fn an_srq_of_another_domain_is_an_invalid_request() {
    let (mut a, mut b) = pair();
    post(&mut a, 1, WrOpcode::Send, FOREIGN, b"x");
    let packets = a.transmit_all();
    assert_eq!(b.receive_all(&packets), [Received::Refused(Check::XrcDomain)]);
    refused(&b, Check::XrcDomain);
    assert_eq!(b.host.srqs[2].queue.len(), 1, "its WQE was not taken");
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(1, WcStatus::RemInvReqErr)]);
}

#[test]
fn a_message_ends_with_the_srq_it_began_with() {
    let (_, mut b) = pair();
    b.receive(&xrc(FIRST, &request(Operation::SendFirst, 100, &[1; 256])));
    let last = xrc(SECOND, &request(Operation::SendLast, 101, b"x"));
    assert_eq!(b.receive(&last), Received::Refused(Check::XrcSrq));
    refused(&b, Check::XrcSrq);
    // The WQE in use completes to the SRQ it came from.
    assert_eq!(received(&b), [(10, WcStatus::RemInvReqErr, FIRST)]);
    assert_eq!(b.host.srqs[1].queue.len(), 2);
}

#[test]
fn the_check_of_the_srq_is_what_refuses_a_message_that_changes_it() {
    let (_, mut b) = pair();
    b.qp.mutate(Some(Mutation::ChangeXrcSrq));
    b.receive(&xrc(FIRST, &request(Operation::SendFirst, 100, &[1; 256])));
    let last = xrc(SECOND, &request(Operation::SendLast, 101, b"x"));
    assert_eq!(b.receive(&last), Received::Accepted);
}

#[test]
fn the_receive_of_a_message_cut_short_by_another_completes_to_its_own_srq() {
    let (_, mut b) = pair();
    b.receive(&xrc(FIRST, &request(Operation::SendFirst, 100, &[1; 256])));
    let other = xrc(SECOND, &request(Operation::SendOnly, 101, b"x"));
    assert_eq!(b.receive(&other), Received::Refused(Check::OpcodeSequence));
    assert_eq!(received(&b), [(10, WcStatus::RemInvReqErr, FIRST)]);
}

#[test]
fn the_receive_in_use_is_flushed_to_its_srq_and_those_posted_are_left_alone() {
    let (_, mut b) = pair();
    b.receive(&xrc(SECOND, &request(Operation::SendFirst, 100, &[1; 256])));
    b.set_state(QpState::Err).expect("always legal");
    b.flush_all();
    assert_eq!(received(&b), [(20, WcStatus::WrFlushErr, SECOND)]);
    assert!(!b.qp.has_work());
    let left: Vec<usize> = b.host.srqs.iter().map(|srq| srq.queue.len()).collect();
    assert_eq!(left, [2, 1, 1]);
}

#[test]
fn an_srq_destroyed_under_a_message_takes_its_receive_along() {
    let (_, mut b) = pair();
    b.receive(&xrc(FIRST, &request(Operation::SendFirst, 100, &[1; 256])));
    assert_eq!(b.qp.xrc_srqn(), FIRST);
    b.host.srqs.remove(0);
    let last = xrc(FIRST, &request(Operation::SendLast, 101, b"x"));
    assert_eq!(b.receive(&last), Received::Refused(Check::XrcSrq));
    b.flush_all();
    assert_eq!(received(&b), []);
}

#[test]
fn read_responses_name_the_srq_of_their_request_to_the_engine() {
    let (_, mut b) = pair();
    b.receive(&xrc(SECOND, &rdma(Operation::ReadRequest, 100, 300, b"")));
    b.receive(&xrc(FIRST, &rdma(Operation::ReadRequest, 102, 4, b"")));
    let sources: Vec<_> = std::iter::from_fn(|| b.with(|qp, ctx| qp.poll_transmit(ctx)))
        .map(|emit| match emit.source {
            rnic_transport::Source::Remote { srqn, .. } => srqn,
            other => unreachable!("{other:?}"),
        })
        .collect();
    assert_eq!(sources, [SECOND, SECOND, FIRST]);
}

#[test]
fn a_repeated_read_of_another_srq_may_come_in_the_midst_of_a_message() {
    let (_, mut b) = pair();
    let read = xrc(SECOND, &rdma(Operation::ReadRequest, 100, 4, b""));
    b.receive(&read);
    b.receive(&xrc(FIRST, &rdma(Operation::WriteFirst, 101, 260, &[1; 256])));
    assert_eq!(b.receive(&read), Received::Duplicate);
    let last = xrc(FIRST, &request(Operation::WriteLast, 102, b"last"));
    assert_eq!(b.receive(&last), Received::Accepted);
}

#[test]
fn a_repeated_read_of_an_srq_that_is_gone_is_refused_and_the_qp_lives_on() {
    let (_, mut b) = pair();
    let read = xrc(FIRST, &rdma(Operation::ReadRequest, 100, 4, b""));
    b.receive(&read);
    assert_eq!(b.transmit_all().len(), 1);
    b.host.srqs.remove(0);
    assert_eq!(b.receive(&read), Received::Refused(Check::XrcSrq));
    assert_eq!(answer(&mut b), (INVALID, 100));
    assert_eq!(b.qp.state(), QpState::Rts);
}

#[test]
fn an_initiator_takes_no_requests_and_a_target_no_responses() {
    let (mut a, mut b) = pair();
    let send = xrc(FIRST, &request(Operation::SendOnly, 200, b"x"));
    assert_eq!(a.receive(&send), Received::Dropped(DropReason::OtherHalf));
    let mut ack = ack(200, Syndrome::ACK);
    ack.headers.bth.opcode = Opcode::new(Transport::Xrc, Operation::Acknowledge);
    assert_eq!(b.receive(&ack), Received::Dropped(DropReason::OtherHalf));
    let rc = request(Operation::SendOnly, 100, b"x");
    assert_eq!(b.receive(&rc), Received::Dropped(DropReason::OtherClass));
    assert_eq!((a.transmit_all().len(), b.transmit_all().len()), (0, 0));
    let reserved = |node: &mut Node| node.with(|qp, ctx| qp.receive_reserved(ctx, 0xBE, Psn::new(100)));
    assert_eq!(reserved(&mut a), Received::Dropped(DropReason::OtherHalf));
    assert_eq!(reserved(&mut b), Received::Refused(Check::ReservedOpcode));
    assert_eq!(answer(&mut b), (INVALID, 100));
}

#[test]
fn nothing_is_posted_to_a_target() {
    let (_, mut b) = pair();
    let opcode = WrOpcode::Send;
    assert_eq!(b.post(SendWr::default()), Err(PostError::Unsupported { opcode }));
    assert!(!QpType::XrcTgt.has_send_queue() && !QpType::XrcIni.has_recv_queue());
}

#[test]
fn an_initiator_in_error_flushes_its_sends_and_nothing_else() {
    let (mut a, _) = pair();
    post(&mut a, 1, WrOpcode::Send, FIRST, b"x");
    post(&mut a, 2, WrOpcode::Write, FIRST, b"y");
    a.host.post_recv(9, 16);
    a.with(|qp, ctx| qp.fatal(ctx, Cause::of(Check::SendQueue)));
    a.flush_all();
    assert_eq!(sends(&a), [(1, WcStatus::WrFlushErr), (2, WcStatus::WrFlushErr)]);
    assert_eq!(a.host.statuses(Queue::Recv), []);
    assert_eq!(a.event_kinds(), [EventKind::QpFatal]);
    assert!(!a.qp.has_work());
}

#[test]
fn a_repeated_atomic_is_answered_from_memory_whatever_became_of_its_srq() {
    let (mut a, mut b) = pair();
    a.post_atomic(1, AtomicOp::FetchAdd { add: 1 }, KEY, BASE);
    let request = xrc(FIRST, &only(&mut a));
    b.receive(&request);
    let first = only(&mut b);
    b.host.srqs.clear();
    assert_eq!(b.receive(&request), Received::Duplicate);
    assert_eq!(only(&mut b).headers.atomic_ack, first.headers.atomic_ack);
}

#[test]
fn a_target_keeps_its_domain_through_reset() {
    let (_, mut b) = pair();
    b.set_state(QpState::Reset).expect("always legal");
    assert_eq!((b.qp.qp_type(), b.qp.xrcd()), (QpType::XrcTgt, XRCD));
    assert_eq!(RcQp::new(1).with_type(QpType::XrcIni).xrcd(), 0);
}
