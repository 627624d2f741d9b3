//! NAKs, the ACK timer and the RNR timer at the requester.

mod common;

use common::*;
use rnic_sim::{connect, connect_at};
use rnic_transport::{Check, DropReason, Limits, QpState, Received, WcStatus, WrOpcode};
use rnic_wire::{Mtu, NakCode, Operation, Psn, RnrTimer, Syndrome};

/// The ACK timeout of `connect`, code 10.
const TIMEOUT: u64 = 4_096 << 10;

#[test]
fn a_lost_packet_is_resent_from_its_psn_on() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(1, 2_000);
    a.post_bytes(0, &[7; 1_000]);
    let mut packets = a.transmit_all();
    packets.remove(1);
    assert_eq!(b.receive(&packets[0]), Received::Accepted);
    assert_eq!(b.receive(&packets[1]), Received::OutOfOrder);
    a.receive_all(&b.transmit_all());
    let again = a.transmit_all();
    assert_eq!(
        trace(&again),
        [("SEND_MIDDLE", 101), ("SEND_MIDDLE", 102), ("SEND_LAST", 103)]
    );
    b.receive_all(&again);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(b.host.recv_bufs[0][..1_000], [7; 1_000]);
}

#[test]
fn a_silent_peer_is_retried_retry_cnt_times_and_then_the_request_fails() {
    let (mut a, _) = connect(Mtu::M256, |attr| attr.retry_cnt = 3);
    a.post_bytes(5, &[0; 10]);
    a.post_bytes(6, &[0; 10]);
    for _ in 0..4 {
        assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 100), ("SEND_ONLY", 101)]);
        a.wait(TIMEOUT - 1);
        assert_eq!(a.transmit_all(), []);
        a.wait(1);
    }
    assert_eq!(a.qp.state(), QpState::Err);
    a.flush_all();
    assert_eq!(sends(&a), [(5, WcStatus::RetryExcErr), (6, WcStatus::WrFlushErr)]);
    let cause = a.host.completions[0].cause;
    assert_eq!((cause.check, cause.psn), (Check::RetryExceeded, 100));
    assert_eq!(a.qp.poll_timeout(), None);
}

#[test]
fn progress_resets_the_retry_count() {
    let (mut a, _) = connect(Mtu::M256, |attr| attr.retry_cnt = 1);
    for id in 0..5 {
        a.post_bytes(id, &[0; 10]);
    }
    a.transmit_all();
    for psn in 100..104 {
        a.wait(TIMEOUT);
        assert_eq!(a.receive(&ack(psn, Syndrome::ACK)), Received::Accepted);
        a.transmit_all();
    }
    assert_eq!(a.qp.state(), QpState::Rts);
    a.wait(TIMEOUT);
    a.transmit_all();
    a.wait(TIMEOUT);
    assert_eq!(sends(&a)[4], (4, WcStatus::RetryExcErr));
}

#[test]
fn only_the_first_retry_without_progress_is_immediate() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_bytes(0, &[0; 10]);
    a.transmit_all();
    a.receive(&ack(100, SEQUENCE_NAK));
    assert_eq!(a.transmit_all().len(), 1);
    for _ in 0..50 {
        a.receive(&ack(100, SEQUENCE_NAK));
        assert_eq!(a.transmit_all(), [], "a NAK that repeats must not make a storm");
    }
    a.wait(TIMEOUT);
    assert_eq!(a.transmit_all().len(), 1);
}

#[test]
fn a_sequence_nak_acknowledges_everything_before_its_psn() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    for id in 0..3 {
        a.post_bytes(id, &[0; 10]);
    }
    a.transmit_all();
    a.receive(&ack(102, SEQUENCE_NAK));
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 102)]);
}

#[test]
fn a_timeout_of_code_0_never_fires() {
    let (mut a, _) = connect(Mtu::M256, |attr| attr.timeout = 0);
    a.post_bytes(0, &[0; 10]);
    a.transmit_all();
    assert_eq!(a.qp.poll_timeout(), None);
    a.wait(u64::MAX / 2);
    assert_eq!(a.transmit_all(), []);
    assert_eq!(a.qp.state(), QpState::Rts);
}

#[test]
fn an_rnr_nak_holds_requests_back_until_its_timer_ends() {
    let (mut a, mut b) = connect(Mtu::M256, |attr| attr.min_rnr_timer = 12);
    a.post_bytes(0, b"late");
    b.receive_all(&a.transmit_all());
    let nak = only(&mut b);
    assert_eq!(nak.aeth(), Some((100, Syndrome::RnrNak { timer: 12 }, 0)));
    a.receive(&nak);
    a.post_bytes(1, b"next");
    let delay = RnrTimer::new(12).nanos();
    a.wait(delay - 1);
    assert_eq!(a.transmit_all(), []);
    assert!(!a.qp.has_work());
    a.wait(1);
    b.host.post_recv(8, 16);
    b.host.post_recv(9, 16);
    pump(&mut a, &mut b);
    assert_eq!(recvs(&b), [(8, WcStatus::Success), (9, WcStatus::Success)]);
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
}

#[test]
fn the_ack_timer_does_not_fire_before_the_rnr_timer_ends() {
    // Code 0 is the longest delay, 655.36 ms: 156 ACK timeouts.
    let (mut a, _) = connect(Mtu::M256, |attr| attr.retry_cnt = 1);
    a.post_bytes(0, b"x");
    a.transmit_all();
    a.receive(&ack(100, Syndrome::RnrNak { timer: 0 }));
    assert_eq!(a.qp.poll_timeout().map(|at| at.0), Some(655_360_000));
    for _ in 0..156 {
        a.wait(TIMEOUT);
        assert_eq!((a.transmit_all().len(), a.qp.state()), (0, QpState::Rts));
    }
    a.wait(TIMEOUT);
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 100)]);
}

#[test]
fn rnr_retry_7_means_for_ever_and_fewer_are_counted() {
    for (rnr_retry, naks) in [(7, 1_000), (2, 2), (0, 0)] {
        let (mut a, _) = connect(Mtu::M256, |attr| attr.rnr_retry = rnr_retry);
        a.post_bytes(3, b"x");
        for _ in 0..naks {
            assert_eq!(a.transmit_all().len(), 1);
            a.receive(&ack(100, Syndrome::RnrNak { timer: 1 }));
            assert_eq!(a.qp.state(), QpState::Rts);
            a.wait(10_000);
        }
        if rnr_retry < 7 {
            a.transmit_all();
            a.receive(&ack(100, Syndrome::RnrNak { timer: 1 }));
            assert_eq!(sends(&a), [(3, WcStatus::RnrRetryExcErr)]);
            assert_eq!(a.host.completions[0].cause.check, Check::RnrRetryExceeded);
        }
    }
}

#[test]
fn an_rnr_nak_that_arrives_twice_neither_counts_nor_waits_twice() {
    let (mut a, _) = connect(Mtu::M256, |attr| attr.rnr_retry = 1);
    a.post_bytes(0, b"x");
    a.transmit_all();
    for _ in 0..5 {
        a.receive(&ack(100, Syndrome::RnrNak { timer: 12 }));
        a.wait(10);
    }
    assert_eq!(
        a.qp.poll_timeout().map(|at| at.0),
        Some(RnrTimer::new(12).nanos())
    );
    assert_eq!(a.qp.state(), QpState::Rts);
}

#[test]
fn every_nak_code_gives_the_request_its_status() {
    for (code, status) in [
        (NakCode::InvalidRequest, WcStatus::RemInvReqErr),
        (NakCode::RemoteAccessError, WcStatus::RemAccessErr),
        (NakCode::RemoteOperationalError, WcStatus::RemOpErr),
        (NakCode::InvalidRdRequest, WcStatus::RemInvRdReqErr),
    ] {
        let (mut a, _) = connect(Mtu::M256, |_| ());
        for id in 0..4 {
            a.post_bytes(id, &[0; 300]);
        }
        a.transmit_all();
        assert_eq!(
            a.receive(&ack(103, Syndrome::Nak(code))),
            Received::Refused(Check::RemoteNak)
        );
        a.flush_all();
        let flushed = WcStatus::WrFlushErr;
        assert_eq!(
            sends(&a),
            [(0, WcStatus::Success), (1, status), (2, flushed), (3, flushed)]
        );
        let cause = a.host.completions[1].cause;
        assert_eq!((cause.psn, cause.syndrome), (103, Syndrome::Nak(code).to_u8()));
    }
}

#[test]
fn reserved_syndromes_and_nak_codes_are_ignored() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_bytes(0, b"x");
    a.transmit_all();
    for syndrome in [
        Syndrome::Reserved(0x40),
        Syndrome::Reserved(0xFF),
        Syndrome::Nak(NakCode::Reserved(17)),
    ] {
        assert_eq!(
            a.receive(&ack(100, syndrome)),
            Received::Dropped(DropReason::ReservedSyndrome)
        );
    }
    assert_eq!((sends(&a), a.qp.state()), (vec![], QpState::Rts));
}

#[test]
fn responses_outside_what_is_outstanding_are_ignored() {
    let (mut a, _) = connect_at(Mtu::M256, [0xFF_FFFF, 0], |_| ());
    a.post_bytes(0, &[0; 300]);
    a.transmit_all();
    let outcomes = [0xFF_FFFE, 1, 0x7F_FFFF, 0x80_0000].map(|psn| a.receive(&ack(psn, Syndrome::ACK)));
    assert_eq!(outcomes[0], Received::Dropped(DropReason::StaleResponse));
    assert_eq!(outcomes[1], Received::Dropped(DropReason::UnexpectedResponse));
    assert!(
        outcomes[2..]
            .iter()
            .all(|outcome| matches!(outcome, Received::Dropped(_)))
    );
    assert_eq!(sends(&a), []);
    assert_eq!(a.receive(&ack(0, Syndrome::ACK)), Received::Accepted);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
}

#[test]
fn credits_of_any_value_are_accepted() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    for id in 0..32 {
        a.post_bytes(id, b"x");
        a.transmit_all();
        assert_eq!(
            a.receive(&ack(100 + id as u32, Syndrome::Ack { credits: id as u8 })),
            Received::Accepted
        );
    }
    assert_eq!(sends(&a).len(), 32);
}

#[test]
fn one_ack_completes_every_message_before_it() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    for id in 0..6 {
        a.post_bytes(id, &[0; 600]);
    }
    a.transmit_all();
    a.receive(&ack(113, Syndrome::ACK));
    assert_eq!(
        sends(&a).len(),
        4,
        "14 packets are four messages of three, and two packets"
    );
    a.receive(&ack(117, Syndrome::ACK));
    assert_eq!(sends(&a).len(), 6);
    assert_eq!(a.qp.poll_timeout(), None);
}

#[test]
fn the_window_bounds_packets_on_their_way() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.qp = a.qp.with_limits(Limits::new(4, 22));
    a.post_bytes(0, &[0; 2_560]);
    let packets = a.transmit_all();
    assert_eq!(packets.len(), 4);
    assert!(
        packets[3].headers.bth.ack_req,
        "nobody would open the window otherwise"
    );
    a.receive(&ack(101, Syndrome::ACK));
    assert_eq!(a.transmit_all().len(), 2);
}

#[test]
fn a_long_message_asks_for_acks_on_the_way_and_at_its_end() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.qp = a.qp.with_limits(Limits::new(1_024, 2));
    a.post_bytes(0, &[0; 256 * 10]);
    let asks: Vec<u32> = a
        .transmit_all()
        .iter()
        .filter(|p| p.headers.bth.ack_req)
        .map(|p| p.psn() - 100)
        .collect();
    assert_eq!(asks, [3, 7, 9]);
}

#[test]
fn a_retry_crosses_the_psn_wrap() {
    let (mut a, mut b) = connect_at(Mtu::M256, [0xFF_FFFE, 0], |_| ());
    b.host.post_recv(1, 4_096);
    let bytes: Vec<u8> = (0..1_024u32).map(|at| at as u8).collect();
    a.post_bytes(0, &bytes);
    let packets = a.transmit_all();
    assert_eq!(
        packets.iter().map(|p| p.psn()).collect::<Vec<_>>(),
        [0xFF_FFFE, 0xFF_FFFF, 0, 1]
    );
    b.receive_all(&packets[..1]);
    b.receive_all(&packets[2..]);
    assert_eq!(answer(&mut b), (SEQUENCE_NAK, 0xFF_FFFF));
    a.receive(&ack(0xFF_FFFF, SEQUENCE_NAK));
    pump(&mut a, &mut b);
    assert_eq!(b.host.recv_bufs[0][..1_024], bytes);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(Psn::new(a.qp.query().sq_psn), Psn::new(2));
}

#[test]
fn a_local_error_fails_its_request_after_those_before_it() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(1, 64);
    a.post_bytes(0, b"good");
    a.post_bytes(1, b"bad!");
    a.post_bytes(2, b"never");
    a.host.bad_send.push(1);
    let sent = a.transmit_all();
    assert_eq!(trace(&sent), [("SEND_ONLY", 100)]);
    assert_eq!(sends(&a), [], "the first request is not done yet");
    b.receive_all(&sent);
    pump(&mut a, &mut b);
    a.flush_all();
    let expected = [
        (0, WcStatus::Success),
        (1, WcStatus::LocProtErr),
        (2, WcStatus::WrFlushErr),
    ];
    assert_eq!(sends(&a), expected);
    assert_eq!(b.qp.state(), QpState::Rts);
}

#[test]
fn several_bad_requests_in_a_row_all_complete_with_an_error() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    for id in 0..4 {
        a.post_op(id, WrOpcode::Write, b"x", 0xBAD, 0);
    }
    pump(&mut a, &mut b);
    a.flush_all();
    let flushed = WcStatus::WrFlushErr;
    assert_eq!(
        sends(&a),
        [
            (0, WcStatus::RemAccessErr),
            (1, flushed),
            (2, flushed),
            (3, flushed)
        ]
    );
}

#[test]
fn the_peers_old_migreq_bit_is_accepted_and_ours_is_set() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_bytes(0, b"x");
    assert!(only(&mut a).headers.bth.mig_req);
    let mut packet = ack(100, Syndrome::ACK);
    packet.headers.bth.mig_req = false;
    assert_eq!(a.receive(&packet), Received::Accepted);
    let mut request = request(Operation::SendOnly, 100, b"x");
    request.headers.bth.mig_req = false;
    let (_, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(1, 16);
    assert_eq!(b.receive(&request), Received::Accepted);
    assert!(only(&mut b).headers.bth.mig_req);
}
