//! Congestion control packet by packet: CNPs, what they slow down, and what is never held back.

mod common;

use common::*;
use rnic_sim::{Node, Packet, connect, connect_as};
use rnic_transport::{
    Congestion, DcqcnSettings, DropReason, Limits, Mutation, QpState, QpType, RcQp, Received, Time, WcStatus,
    WrOpcode,
};
use rnic_wire::{Bth, Headers, Mtu, Opcode, Operation, Psn, Syndrome, Transport};

const US: u64 = 1_000;
/// 10 Gb/s.
const LINE: u64 = 1_250_000_000;

fn dcqcn() -> Congestion {
    Congestion::Dcqcn(DcqcnSettings::for_line_rate(LINE))
}

/// Two RC QPs with this congestion control.
fn pair(congestion: Congestion) -> (Node, Node) {
    pair_as(QpType::Rc, congestion)
}

fn pair_as(qp_type: QpType, congestion: Congestion) -> (Node, Node) {
    let (mut a, mut b) = connect_as(qp_type, Mtu::M1024, [100, 200], |_| ());
    for node in [&mut a, &mut b] {
        node.qp = node.qp.with_congestion(&congestion);
    }
    (a, b)
}

fn cnp(dest_qpn: u32) -> Packet {
    let bth = Bth {
        becn: true,
        mig_req: false,
        ..Bth::new(Opcode::CNP, dest_qpn, Psn::ZERO)
    };
    Packet::new(&Headers::new(bth), Vec::new())
}

/// A marked SEND arrives.
fn marked(node: &mut Node, psn: u32) {
    let packet = request(Operation::SendOnly, psn, b"x");
    let now = node.now;
    node.with(|qp, _| qp.marked(packet.headers.bth.opcode, now));
    node.host.post_recv(0, 16);
    assert_eq!(node.receive(&packet), Received::Accepted);
}

/// CNPs among what the node sends now.
fn cnps(node: &mut Node) -> Vec<Packet> {
    let mut packets = node.transmit_all();
    packets.retain(|packet| packet.headers.bth.opcode == Opcode::CNP);
    packets
}

#[test]
fn a_marked_packet_is_answered_by_a_cnp_before_anything_else() {
    for qp_type in [QpType::Rc, QpType::Uc] {
        let (_, mut b) = pair_as(qp_type, dcqcn());
        b.with(|qp, _| qp.marked(Opcode::new(Transport::Rc, Operation::WriteOnly), Time(0)));
        b.post_op(0, WrOpcode::Write, b"", 0, 0);
        let packets = b.transmit_all();
        let bth = packets[0].headers.bth;
        assert_eq!(
            (bth.opcode.to_u8(), bth.dest_qpn, bth.psn),
            (0x81, 0x11, Psn::ZERO)
        );
        assert!(bth.becn && !bth.fecn && !bth.mig_req && !bth.ack_req && !bth.solicited);
        assert_eq!(packets.len(), 2, "{:?}", trace(&packets));
    }
}

#[test]
fn cnps_about_one_qp_are_an_interval_apart_and_no_mark_is_forgotten() {
    let (_, mut b) = pair(dcqcn());
    marked(&mut b, 100);
    assert_eq!(cnps(&mut b).len(), 1);
    b.wait(10 * US);
    marked(&mut b, 101);
    marked(&mut b, 102);
    assert_eq!(cnps(&mut b).len(), 0, "too soon");
    assert_eq!(b.qp.poll_timeout(), Some(Time(50 * US)));
    b.wait(39 * US);
    assert_eq!(cnps(&mut b).len(), 0, "too soon by 1 us");
    b.wait(US);
    assert_eq!(cnps(&mut b).len(), 1, "one about both");
    b.wait(1_000 * US);
    assert_eq!((cnps(&mut b).len(), b.qp.poll_timeout()), (0, None));
}

#[test]
fn cnps_that_are_not_paced_or_not_sent_are_noticed() {
    let count = |mutation| {
        let (_, mut b) = pair(dcqcn());
        b.qp.mutate(mutation);
        marked(&mut b, 100);
        let first = cnps(&mut b).len();
        marked(&mut b, 101);
        first + cnps(&mut b).len()
    };
    assert_eq!(count(None), 1);
    assert_eq!(count(Some(Mutation::CnpPerMark)), 2);
    assert_eq!(count(Some(Mutation::ForgetCnp)), 0);
}

#[test]
fn who_has_no_dcqcn_neither_sends_cnps_nor_obeys_them_nor_asks_for_marks() {
    let settings = DcqcnSettings::for_line_rate(LINE);
    for (qp_type, congestion) in [
        (QpType::Rc, Congestion::Off),
        (QpType::Rc, Congestion::FixedRate { rate: LINE }),
        (QpType::Ud, Congestion::Dcqcn(settings)),
    ] {
        let (_, mut b) = pair_as(qp_type, congestion);
        assert!(!b.qp.is_ecn_capable());
        b.with(|qp, _| qp.marked(Opcode::new(Transport::Rc, Operation::SendOnly), Time(0)));
        assert_eq!(b.transmit_all(), []);
        let rate = b.qp.rate();
        assert_eq!(b.receive(&cnp(0x22)), Received::Dropped(DropReason::CnpIgnored));
        assert_eq!(b.qp.rate(), rate);
    }
    let (a, _) = pair(dcqcn());
    assert!(a.qp.is_ecn_capable());
    assert_eq!(a.qp.congestion(), dcqcn());
}

#[test]
fn a_cnp_that_is_marked_itself_is_not_answered() {
    let (_, mut b) = pair(dcqcn());
    b.with(|qp, _| qp.marked(Opcode::CNP, Time(0)));
    assert_eq!(b.transmit_all(), []);
}

#[test]
fn in_err_and_before_rtr_nobody_is_notified() {
    let (_, mut b) = pair(dcqcn());
    marked(&mut b, 100);
    b.set_state(QpState::Err).unwrap();
    b.flush_all();
    assert_eq!(b.transmit_all(), []);
    assert_eq!(b.receive(&cnp(0x22)), Received::Dropped(DropReason::CnpIgnored));
    let mut fresh = Node::new(RcQp::new(0x22).with_congestion(&dcqcn()), 4);
    fresh.with(|qp, _| qp.marked(Opcode::new(Transport::Rc, Operation::SendOnly), Time(0)));
    assert!(!fresh.qp.has_work());
}

#[test]
fn a_cnp_spaces_requests_out_at_the_rate() {
    let (mut a, mut b) = pair(dcqcn());
    register(&mut b, 8 << 10);
    a.post_op(0, WrOpcode::Write, &[1; 8 << 10], KEY, BASE);
    assert_eq!(a.receive(&cnp(0x11)), Received::Notified);
    assert_eq!(a.qp.rate(), Some(LINE / 2));
    // The first packet of 1024 + 28 + 50 bytes at 5 Gb/s, then those without RETH.
    let mut at = vec![];
    while a.qp.has_work() || a.qp.poll_timeout().is_some_and(|next| next < Time(100 * US)) {
        at.extend(a.transmit_all().iter().map(|_| a.now.0));
        let Some(next) = a.qp.poll_timeout() else { break };
        let nanos = next.0 - a.now.0;
        a.wait(nanos);
    }
    let gaps: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let wanted = |bytes: u64| bytes * 8 / 5;
    assert_eq!(gaps[0], wanted(1024 + 28 + 50));
    assert!(
        gaps[1..]
            .iter()
            .all(|gap| gap.abs_diff(wanted(1024 + 12 + 50)) <= 1),
        "{gaps:?}"
    );
    assert_eq!(gaps.len(), 7);
}

#[test]
fn a_cnp_that_changes_nothing_and_a_rate_that_holds_nothing_back_are_noticed() {
    let burst = |mutation| {
        let (mut a, _) = pair(dcqcn());
        a.qp.mutate(mutation);
        a.post_op(0, WrOpcode::Write, &[1; 8 << 10], KEY, BASE);
        a.receive(&cnp(0x11));
        a.transmit_all().len()
    };
    assert_eq!(burst(None), 1);
    assert_eq!(burst(Some(Mutation::IgnoreCnp)), 8);
    assert_eq!(burst(Some(Mutation::SendUnpaced)), 8);
}

#[test]
fn a_sequence_error_and_a_timeout_lower_the_rate() {
    let rate = |mutation, timeout: bool| {
        let (mut a, _) = pair(dcqcn());
        a.qp.mutate(mutation);
        a.post_bytes(0, b"x");
        a.transmit_all();
        if timeout {
            a.wait(4_096 << 10);
        } else {
            a.receive(&ack(100, SEQUENCE_NAK));
        }
        a.qp.rate()
    };
    for timeout in [false, true] {
        assert_eq!(rate(None, timeout), Some(LINE / 2));
        assert_eq!(rate(Some(Mutation::IgnoreLoss), timeout), None);
    }
}

#[test]
fn an_rnr_nak_says_nothing_about_congestion() {
    let (mut a, _) = pair(dcqcn());
    a.post_bytes(0, b"x");
    a.transmit_all();
    a.receive(&ack(100, Syndrome::RnrNak { timer: 1 }));
    assert_eq!(a.qp.rate(), None);
}

#[test]
fn read_responses_are_paced_and_acknowledgements_are_not() {
    let (_, mut b) = pair(Congestion::FixedRate { rate: 1_000_000 });
    register(&mut b, 8 << 10);
    // An ACK goes though the rate is used up.
    b.receive(&rdma(Operation::WriteOnly, 100, 1_000, &[0; 1_000]));
    assert_eq!(trace(&b.transmit_all()), [("ACK", 100)]);
    b.receive(&rdma(Operation::ReadRequest, 101, 2_048, b""));
    assert_eq!(trace(&b.transmit_all()), [("READ_RESP_FIRST", 101)]);
    b.receive(&fetch_add(103, BASE));
    assert_eq!(b.transmit_all(), [], "the READ is answered first");
    assert!(!b.qp.has_work());
    b.wait(2_000 * US);
    assert_eq!(
        trace(&b.transmit_all()),
        [("READ_RESP_LAST", 102), ("ATOMIC_ACK", 103)]
    );
    b.receive(&rdma(Operation::WriteOnly, 104, 4, &[0; 4]));
    assert_eq!(trace(&b.transmit_all()), [("ACK", 104)], "nothing is in its way");
}

#[test]
fn a_flow_that_waits_is_left_alone_until_its_deadline() {
    let (mut a, _) = pair_as(QpType::Uc, Congestion::FixedRate { rate: 1_000_000 });
    a.post_bytes(0, &[0; 1_024]);
    a.post_bytes(1, &[0; 1_024]);
    assert_eq!(a.transmit_all().len(), 1);
    assert!(!a.qp.has_work());
    assert_eq!(
        sends(&a),
        [(0, WcStatus::Success)],
        "what is out completes at once"
    );
    assert_eq!(a.qp.poll_timeout(), Some(Time(1_086 * US)));
    a.wait(1_086 * US - 1);
    assert_eq!(a.transmit_all(), []);
    a.wait(1);
    assert_eq!(a.transmit_all().len(), 1);
}

#[test]
fn datagrams_have_the_fixed_rate_too() {
    let (mut a, _) = pair_as(QpType::Ud, Congestion::FixedRate { rate: 2_000_000 });
    for id in 0..3 {
        a.post_bytes(id, &[0; 100]);
    }
    assert_eq!(a.transmit_all().len(), 1);
    a.wait(1_000 * US);
    assert_eq!(a.transmit_all().len(), 2, "what was missed is made up for");
}

#[test]
fn who_was_silent_gets_no_more_than_a_short_burst() {
    let (mut a, _) = pair(Congestion::FixedRate { rate: LINE });
    a.wait(1_000_000 * US);
    for id in 0..8 {
        a.post_op(id, WrOpcode::Write, &[0; 64 << 10], KEY, BASE);
    }
    let bytes: usize = a.transmit_all().iter().map(|packet| packet.payload.len()).sum();
    let burst = (LINE * (8 << 14) / 1_000_000_000) as usize;
    assert!(
        (burst * 9 / 10..burst + 2_048).contains(&bytes),
        "{bytes} of {burst}"
    );
}

#[test]
fn packets_far_apart_all_ask_for_an_ack() {
    let asking = |rate| {
        let (mut a, _) = pair(Congestion::FixedRate { rate });
        a.qp = a.qp.with_limits(Limits::new(1024, 4));
        a.post_op(0, WrOpcode::Write, &[0; 8 << 10], KEY, BASE);
        let mut packets = vec![];
        for _ in 0..8 {
            packets.extend(a.transmit_all());
            let next = a.qp.poll_timeout().map_or(0, |next| next.0 - a.now.0);
            a.wait(next.min(2_000 * US));
        }
        packets.iter().filter(|packet| packet.headers.bth.ack_req).count()
    };
    // The timeout is 4.2 ms: sixteen packets of 1.1 ms would take longer.
    assert_eq!(asking(LINE), 1);
    assert!(asking(1_000_000) >= 6);
}

#[test]
fn reset_forgets_the_rate_and_keeps_the_settings() {
    let (mut a, _) = pair(dcqcn());
    a.receive(&cnp(0x11));
    a.set_state(QpState::Reset).unwrap();
    assert_eq!((a.qp.rate(), a.qp.congestion()), (None, dcqcn()));
    assert!(a.qp.is_ecn_capable());
    a.with(|qp, _| qp.use_congestion_control(false));
    assert!(!a.qp.is_ecn_capable());
    a.with(|qp, _| qp.use_congestion_control(true));
    assert!(a.qp.is_ecn_capable());
}

#[test]
fn without_congestion_control_there_is_no_further_deadline() {
    let (mut a, mut b) = connect(Mtu::M1024, |_| ());
    register(&mut b, 1 << 10);
    a.post_op(0, WrOpcode::Write, &[0; 1 << 10], KEY, BASE);
    pump(&mut a, &mut b);
    assert_eq!((a.qp.poll_timeout(), b.qp.poll_timeout()), (None, None));
}
