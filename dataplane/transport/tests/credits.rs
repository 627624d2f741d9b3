//! End-to-end credits (9.7.7.2): a peer that reports them is not sent more than it can take.

mod common;

use common::*;
use rnic_sim::{Node, Packet, connect};
use rnic_transport::{DropReason, Mutation, Received, WcStatus, WrOpcode};
use rnic_wire::{Credits, Mtu, Operation, RnrTimer, Syndrome};

/// An ACK with room for `credits` more messages than the `msn` that are done.
fn credit_ack(psn: u32, msn: u32, credits: u32) -> Packet {
    let code = Credits::encode(credits);
    let mut packet = ack(psn, Syndrome::Ack { credits: code });
    packet.headers.aeth.as_mut().unwrap().msn = msn;
    packet
}

/// A requester whose first SEND, of PSN 100, was acknowledged with room for `credits` more.
fn bounded(credits: u32) -> Node {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_bytes(0, b"first");
    a.transmit_all();
    assert_eq!(a.receive(&credit_ack(100, 1, credits)), Received::Accepted);
    a
}

#[test]
fn sends_beyond_the_credits_go_one_by_one_and_alone() {
    let mut a = bounded(2);
    for id in 1..6 {
        a.post_bytes(id, b"x");
    }
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 101), ("SEND_ONLY", 102)]);
    assert!(!a.qp.has_work());
    // No more room, but what was sent is done: one goes ahead.
    a.receive(&credit_ack(102, 3, 0));
    let probe = only(&mut a);
    assert_eq!((probe.psn(), probe.headers.bth.ack_req), (103, true));
    a.receive(&credit_ack(103, 4, 4));
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 104), ("SEND_ONLY", 105)]);
    a.receive(&credit_ack(105, 6, 2));
    assert_eq!(sends(&a).len(), 6);
}

#[test]
fn credits_that_are_ignored_are_noticed() {
    let sent = |mutation| {
        let mut a = bounded(1);
        a.qp.mutate(mutation);
        for id in 1..6 {
            a.post_bytes(id, b"x");
        }
        a.transmit_all().len()
    };
    assert_eq!((sent(None), sent(Some(Mutation::IgnoreCredits))), (1, 5));
}

#[test]
fn a_peer_that_reports_none_is_sent_everything() {
    let mut a = bounded(0);
    for id in 1..4 {
        a.post_bytes(id, b"x");
    }
    assert_eq!(a.transmit_all().len(), 1);
    a.receive(&ack(101, Syndrome::ACK));
    assert_eq!(a.transmit_all().len(), 2, "31: no credits are reported any more");
}

#[test]
fn of_a_long_message_beyond_the_credits_one_packet_goes_ahead() {
    let mut a = bounded(0);
    a.post_bytes(1, &[0; 700]);
    let first = only(&mut a);
    assert_eq!(
        (first.name(), first.psn(), first.headers.bth.ack_req),
        ("SEND_FIRST", 101, true)
    );
    // It was taken, and the credits count what the message under way holds no more.
    a.receive(&credit_ack(101, 1, 0));
    assert_eq!(
        trace(&a.transmit_all()),
        [("SEND_MIDDLE", 102), ("SEND_LAST", 103)]
    );
}

#[test]
fn an_rnr_nak_of_the_packet_that_went_ahead_is_waited_for() {
    let mut a = bounded(0);
    a.post_bytes(1, b"x");
    a.post_bytes(2, b"x");
    assert_eq!(only(&mut a).psn(), 101);
    a.receive(&ack(101, Syndrome::RnrNak { timer: 1 }));
    assert_eq!(a.transmit_all(), []);
    a.wait(RnrTimer::new(1).nanos());
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 101)], "and still alone");
    a.receive(&credit_ack(101, 2, 1));
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 102)]);
    a.receive(&credit_ack(102, 3, 0));
    assert_eq!(sends(&a), [0, 1, 2].map(|id| (id, WcStatus::Success)));
}

#[test]
fn room_that_is_told_later_lets_sending_go_on() {
    let mut a = bounded(1);
    for id in 1..4 {
        a.post_bytes(id, b"x");
    }
    assert_eq!(a.transmit_all().len(), 1);
    assert_eq!(a.transmit_all(), []);
    // The last ACK once more, with more room: the receiver has posted WQEs.
    assert_eq!(a.receive(&credit_ack(100, 1, 4)), Received::Accepted);
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 102), ("SEND_ONLY", 103)]);
    // One that was overtaken takes nothing back.
    let stale = a.receive(&credit_ack(100, 1, 0));
    assert_eq!(stale, Received::Dropped(DropReason::StaleResponse));
    a.post_bytes(4, b"x");
    assert_eq!(a.transmit_all().len(), 1);
}

#[test]
fn writes_and_reads_need_no_credits_and_leave_them_to_others() {
    let mut a = bounded(1);
    for id in 1..3 {
        a.post_op(id, WrOpcode::Write, b"x", KEY, BASE);
    }
    a.post_op(3, WrOpcode::Read, b"x", KEY, BASE);
    a.post_bytes(4, b"x");
    a.post_op(5, WrOpcode::WriteImm, b"x", KEY, BASE);
    let names: Vec<_> = a.transmit_all().iter().map(Packet::name).collect();
    assert_eq!(names, ["WRITE_ONLY", "WRITE_ONLY", "READ_REQUEST", "SEND_ONLY"]);
    assert_eq!(a.transmit_all(), [], "a WRITE with immediate takes a receive WQE");
}

#[test]
fn a_retry_keeps_within_the_credits() {
    let mut a = bounded(3);
    for id in 1..5 {
        a.post_bytes(id, b"x");
    }
    assert_eq!(a.transmit_all().len(), 3);
    a.receive(&ack(101, SEQUENCE_NAK));
    assert_eq!(
        trace(&a.transmit_all()),
        [("SEND_ONLY", 101), ("SEND_ONLY", 102), ("SEND_ONLY", 103)]
    );
}

#[test]
fn a_read_response_reports_credits_too() {
    let mut a = bounded(0);
    a.post_op(1, WrOpcode::Read, b"x", KEY, BASE);
    a.post_bytes(2, b"x");
    a.post_bytes(3, b"x");
    assert_eq!(trace(&a.transmit_all()), [("READ_REQUEST", 101)]);
    let mut packet = response(Operation::ReadResponseOnly, 101, b"x");
    packet.headers.aeth = credit_ack(101, 2, 2).headers.aeth;
    a.receive(&packet);
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 102), ("SEND_ONLY", 103)]);
}
