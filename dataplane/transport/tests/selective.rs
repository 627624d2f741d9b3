//! Selective retransmission, packet by packet.

mod common;

use common::*;
use rnic_sim::{Node, Packet, connect};
use rnic_transport::{
    Access, Check, DropReason, Mutation, QpAttr, QpAttrMask, QpState, QpType, RcQp, Received, WcStatus,
    WrOpcode,
};
use rnic_wire::{
    Aeth, Bth, Headers, Mtu, Opcode, Operation, Psn, PsnSet, Reth, SelectiveAck, Syndrome, Transport,
};

const MTU: usize = 256;
const US: u64 = 1_000;

/// Two QPs that have agreed on it; the second has 16 KiB for the first to write to.
fn pair() -> (Node, Node) {
    let (a, mut b) = connect(Mtu::M256, |attr| attr.selective = true);
    b.host
        .register(KEY, BASE, vec![0; 16 << 10], Access::REMOTE_WRITE);
    (a, b)
}

fn bytes(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at / MTU) as u8 ^ at as u8 ^ salt).collect()
}

fn write(node: &mut Node, wr_id: u64, data: &[u8], offset: u64) {
    node.post_op(wr_id, WrOpcode::Write, data, KEY, BASE + offset);
}

fn memory(node: &Node, offset: usize, len: usize) -> &[u8] {
    &node.host.region(KEY).expect("it was registered").bytes[offset..offset + len]
}

/// PSNs.
fn psns(packets: &[Packet]) -> Vec<u32> {
    packets.iter().map(Packet::psn).collect()
}

/// What a selective acknowledgement says: the PSN expected, how far was seen, and what has arrived, all as distances.
fn said(packet: &Packet) -> (u32, u32, Vec<u32>) {
    assert_eq!(packet.headers.bth.opcode, Opcode::SELECTIVE_ACK, "{packet:?}");
    let payload = packet.payload.as_slice().try_into().expect("of its length");
    let ack = SelectiveAck::from_bytes(payload);
    let arrived = ack.received.iter().map(|number| number + 1).collect();
    (packet.psn(), ack.seen, arrived)
}

/// A selective acknowledgement to the first node.
fn selective_ack(psn: u32, seen: u32, arrived: &[u32]) -> Packet {
    let mut received = PsnSet::EMPTY;
    arrived.iter().for_each(|distance| received.insert(distance - 1));
    let mut headers = Headers::new(Bth::new(Opcode::SELECTIVE_ACK, 0x11, Psn::new(psn)));
    headers.aeth = Some(Aeth {
        syndrome: SEQUENCE_NAK,
        msn: 0,
    });
    Packet::new(&headers, SelectiveAck { seen, received }.to_bytes().to_vec())
}

/// All packets but those at these places.
fn without(packets: &[Packet], lost: &[usize]) -> Vec<Packet> {
    let kept = |(at, packet): (usize, &Packet)| (!lost.contains(&at)).then(|| packet.clone());
    packets.iter().enumerate().filter_map(kept).collect()
}

#[test]
fn what_comes_before_its_turn_is_placed_and_counts_when_the_gap_is_closed() {
    let (mut a, mut b) = pair();
    let data = bytes(8 * MTU, 1);
    write(&mut a, 0, &data, 0);
    let sent = a.transmit_all();
    let outcomes = b.receive_all(&without(&sent, &[2, 5]));
    assert_eq!(outcomes[..2], [Received::Accepted; 2]);
    assert_eq!(outcomes[2..], [Received::Early; 4]);
    assert_eq!(memory(&b, 3 * MTU, 2 * MTU), &data[3 * MTU..5 * MTU], "placed");
    let acks = b.transmit_all();
    assert_eq!(acks.len(), 1, "{:?}", trace(&acks));
    assert_eq!(said(&acks[0]), (102, 5, vec![1, 2, 4, 5]));
    assert_eq!(acks[0].aeth(), Some((102, SEQUENCE_NAK, 0)), "no message is done");

    assert_eq!(a.receive(&acks[0]), Received::Accepted);
    let again = a.transmit_all();
    assert_eq!(psns(&again), [102, 105], "what is missing, and nothing else");
    assert!(again.iter().all(|packet| packet.headers.bth.ack_req));
    assert_eq!(b.receive(&again[0]), Received::Accepted);
    assert_eq!(b.qp.query().rq_psn, 105);
    assert_eq!(said(&only(&mut b)), (105, 2, vec![1, 2]));
    assert_eq!(b.receive(&again[1]), Received::Accepted);
    let ack = only(&mut b);
    assert_eq!((ack.name(), ack.aeth()), ("ACK", Some((107, Syndrome::ACK, 1))));
    a.receive(&ack);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(memory(&b, 0, data.len()), data);
}

#[test]
fn messages_behind_the_gap_count_one_by_one_and_in_order() {
    let (mut a, mut b) = pair();
    let messages = [(4 * MTU, 0), (3 * MTU + 7, 2_048), (40, 4_096), (2 * MTU, 5_000)];
    for (at, (len, offset)) in messages.into_iter().enumerate() {
        write(&mut a, at as u64, &bytes(len, at as u8), offset);
    }
    let sent = a.transmit_all();
    // Of the first message, and the one that begins the third.
    b.receive_all(&without(&sent, &[1, 8]));
    let acks = b.transmit_all();
    assert_eq!(said(&acks[0]).0, 101);
    a.receive_all(&acks);
    let again = a.transmit_all();
    assert_eq!(psns(&again)[..2], [101, 108]);
    assert_eq!(b.receive(&again[0]), Received::Accepted);
    let (psn, _, msn) = only(&mut b).aeth().unwrap();
    assert_eq!(
        (psn, msn),
        (108, 2),
        "two messages, and not what lies behind the third"
    );
    b.receive_all(&again[1..]);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [0, 1, 2, 3].map(|at| (at, WcStatus::Success)));
    for (at, (len, offset)) in messages.into_iter().enumerate() {
        assert_eq!(
            memory(&b, offset as usize, len),
            bytes(len, at as u8),
            "message {at}"
        );
    }
}

#[test]
fn what_belongs_to_no_message_that_is_known_is_not_placed() {
    let (mut a, mut b) = pair();
    write(&mut a, 0, &bytes(2 * MTU, 1), 0);
    write(&mut a, 1, &bytes(3 * MTU, 2), 1_024);
    let sent = a.transmit_all();
    // The first packets of both are lost.
    assert_ne!(b.receive(&sent[1]), Received::Early);
    assert_ne!(b.receive(&sent[3]), Received::Early);
    assert_eq!(b.receive(&sent[0]), Received::Accepted);
    assert_ne!(b.receive(&sent[4]), Received::Early);
    assert_eq!(memory(&b, 1_024, 3 * MTU), vec![0; 3 * MTU]);
}

/// Two WRITEs to the same place, of which the first loses a packet: what is there in the end, of the second?
fn overwritten(mutation: Option<Mutation>) -> bool {
    let (mut a, mut b) = pair();
    b.qp.mutate(mutation);
    write(&mut a, 0, &bytes(4 * MTU, 1), 0);
    let last = bytes(2 * MTU, 0x77);
    write(&mut a, 1, &last, MTU as u64);
    let sent = a.transmit_all();
    b.receive_all(&without(&sent, &[1, 2]));
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [0, 1].map(|at| (at, WcStatus::Success)));
    memory(&b, MTU, last.len()) == last
}

#[test]
fn a_write_to_memory_of_one_that_is_not_finished_waits_for_it() {
    assert!(overwritten(None));
    assert!(
        !overwritten(Some(Mutation::PlaceOverlapping)),
        "the fault is not noticed"
    );
}

#[test]
fn a_write_by_another_key_may_be_to_the_same_memory_and_waits() {
    let (mut a, mut b) = pair();
    b.host
        .register(KEY + 1, BASE, vec![0; 4_096], Access::REMOTE_WRITE);
    write(&mut a, 0, &bytes(3 * MTU, 1), 0);
    a.post_op(1, WrOpcode::Write, &bytes(MTU, 2), KEY + 1, BASE + 2_048);
    let sent = a.transmit_all();
    let outcomes = b.receive_all(&without(&sent, &[1]));
    assert_eq!(
        outcomes,
        [Received::Accepted, Received::Early, Received::OutOfOrder]
    );
    pump(&mut a, &mut b);
    assert_eq!(sends(&a).len(), 2);
}

#[test]
fn sends_immediates_and_reads_keep_their_order() {
    let (mut a, mut b) = pair();
    b.host.regions[0].access = Access::REMOTE_WRITE.union(Access::REMOTE_READ);
    (0..3).for_each(|at| b.host.post_recv(at, 4_096));
    let data = bytes(4 * MTU, 9);
    a.post_op(0, WrOpcode::WriteImm, &data, KEY, BASE);
    a.post_bytes(1, &bytes(2 * MTU, 3));
    a.post_op(2, WrOpcode::Read, &[0; 3 * MTU], KEY, BASE);
    a.post_op(3, WrOpcode::Write, &bytes(MTU, 4), KEY, BASE + 8_192);
    let sent = a.transmit_all();
    let outcomes = b.receive_all(&without(&sent, &[1]));
    assert_eq!(outcomes[..2], [Received::Accepted, Received::Early]);
    assert!(!outcomes[2..].contains(&Received::Early), "{outcomes:?}");
    assert_eq!(recvs(&b), [], "nothing completes before its turn");
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [0, 1, 2, 3].map(|at| (at, WcStatus::Success)));
    assert_eq!(recvs(&b), [0, 1].map(|at| (at, WcStatus::Success)));
    assert_eq!(
        a.host.send_bufs[2],
        data[..3 * MTU],
        "the READ sees what was written before it"
    );
    assert_eq!(a.host.scattered[2], 3 * MTU as u32);
}

#[test]
fn a_key_that_goes_while_packets_are_missing_refuses_the_rest() {
    let (mut a, mut b) = pair();
    write(&mut a, 0, &bytes(4 * MTU, 1), 0);
    let sent = a.transmit_all();
    b.receive_all(&without(&sent, &[1, 2]));
    b.host.region_mut(KEY).unwrap().valid = false;
    let before = memory(&b, 0, 4 * MTU).to_vec();
    let outcome = b.receive(&sent[2]);
    assert_eq!(
        outcome,
        Received::Dropped(DropReason::NakOutstanding),
        "refused in its turn alone"
    );
    assert_eq!(b.receive(&sent[1]), Received::Refused(Check::Key));
    assert_eq!(memory(&b, 0, 4 * MTU), before);
    a.receive_all(&b.transmit_all());
    assert_eq!(sends(&a), [(0, WcStatus::RemAccessErr)]);
}

#[test]
fn what_is_wrong_is_refused_when_its_turn_comes_and_not_before() {
    let (mut a, mut b) = pair();
    write(&mut a, 0, &bytes(3 * MTU, 1), 0);
    let sent = a.transmit_all();
    b.receive(&sent[0]);
    // Too short for a MIDDLE; a FIRST inside a message; a LAST before the end; a message beyond the region.
    let far = with_headers(Operation::WriteOnly, 103, &[5; 8], |headers| {
        headers.reth = Some(Reth {
            va: BASE + (16 << 10) - 4,
            rkey: KEY,
            dma_len: 8,
        })
    });
    for wrong in [
        request(Operation::WriteMiddle, 101, &[5; 100]),
        rdma(Operation::WriteFirst, 102, 1_000, &[5; MTU]),
        request(Operation::WriteMiddle, 102, &[5; MTU]),
        request(Operation::WriteLast, 102, &[5; 100]),
        far,
    ] {
        let outcome = b.receive(&wrong);
        let refused = matches!(outcome, Received::Refused(_));
        assert!(outcome != Received::Early, "{wrong:?}");
        assert_eq!(refused, wrong.psn() == 101, "{wrong:?}");
        if refused {
            return;
        }
    }
    unreachable!("the first has its turn");
}

#[test]
fn only_what_is_missing_is_sent_again() {
    let again = |mutation| {
        let (mut a, mut b) = pair();
        a.qp.mutate(mutation);
        write(&mut a, 0, &bytes(20 * MTU, 1), 0);
        let sent = a.transmit_all();
        b.receive_all(&without(&sent, &[3, 4, 17]));
        a.receive_all(&b.transmit_all());
        psns(&a.transmit_all())
    };
    assert_eq!(again(None), [103, 104, 117]);
    assert_eq!(
        again(Some(Mutation::ResendReceived)).len(),
        17,
        "the fault is not noticed"
    );
}

#[test]
fn what_is_said_twice_is_sent_again_once() {
    let (mut a, _) = pair();
    write(&mut a, 0, &bytes(10 * MTU, 1), 0);
    a.transmit_all();
    a.receive(&selective_ack(102, 2, &[1, 2]));
    assert_eq!(psns(&a.transmit_all()), [102]);
    a.receive(&selective_ack(102, 2, &[1, 2]));
    assert_eq!(a.transmit_all(), [], "it is on its way");
    a.receive(&selective_ack(102, 6, &[1, 2, 4, 6]));
    assert_eq!(psns(&a.transmit_all()), [105, 107], "what else is missing");
}

#[test]
fn a_retransmission_that_is_lost_shows_when_later_packets_arrive() {
    let (mut a, _) = pair();
    write(&mut a, 0, &bytes(4 * MTU, 1), 0);
    a.transmit_all();
    a.receive(&selective_ack(101, 2, &[1, 2]));
    assert_eq!(psns(&a.transmit_all()), [101]);
    write(&mut a, 1, &bytes(2 * MTU, 2), 4_096);
    assert_eq!(psns(&a.transmit_all()), [104, 105]);
    a.receive(&selective_ack(101, 2, &[1, 2]));
    assert_eq!(a.transmit_all(), [], "all that has arrived was sent before it");
    a.receive(&selective_ack(101, 3, &[1, 2, 3]));
    assert_eq!(
        psns(&a.transmit_all()),
        [101],
        "what was sent after it has arrived"
    );
}

/// Nanoseconds after which a packet is sent again whose retransmission was the last that went out.
fn probed(mutation: Option<Mutation>) -> u64 {
    let (mut a, _) = pair();
    a.qp.mutate(mutation);
    write(&mut a, 0, &bytes(MTU, 1), 0);
    a.transmit_all();
    a.wait(10 * US);
    a.receive(&ack(100, Syndrome::ACK));
    write(&mut a, 1, &bytes(4 * MTU, 1), 0);
    a.transmit_all();
    a.receive(&selective_ack(102, 2, &[1, 2]));
    assert_eq!(psns(&a.transmit_all()), [102]);
    let start = a.now;
    loop {
        let due = a.qp.poll_timeout().expect("something is outstanding");
        a.wait(due.0 - a.now.0);
        let again = psns(&a.transmit_all());
        if !again.is_empty() {
            assert_eq!(again[0], 102);
            return a.now.0 - start.0;
        }
    }
}

#[test]
fn a_lost_retransmission_is_probed_for_after_some_round_trips() {
    assert_eq!(probed(None), 90 * US, "four round trips of 10 us, and 50 us");
    let timer = probed(Some(Mutation::NeverProbe));
    assert_eq!(timer, 4_194_304, "the fault is not noticed");
}

#[test]
fn probes_become_rarer_and_end_in_the_retries_of_the_ack_timer() {
    let (mut a, _) = pair();
    write(&mut a, 0, &bytes(MTU, 1), 0);
    a.transmit_all();
    a.wait(10 * US);
    a.receive(&ack(100, Syndrome::ACK));
    write(&mut a, 1, &bytes(4 * MTU, 1), 0);
    a.transmit_all();
    let mut sent = 0;
    while a.qp.state() == QpState::Rts {
        let due = a.qp.poll_timeout().expect("something is outstanding");
        a.wait(due.0.saturating_sub(a.now.0));
        sent += a.transmit_all().len();
    }
    assert_eq!(sends(&a).last(), Some(&(1, WcStatus::RetryExcErr)));
    // Seven retries of four packets each, and a handful of probes to every one.
    assert!((28..28 + 8 * 7).contains(&sent), "{sent} packets");
}

#[test]
fn a_peer_that_claims_to_have_everything_is_not_believed_for_long() {
    let (mut a, mut b) = pair();
    write(&mut a, 0, &bytes(8 * MTU, 1), 0);
    a.transmit_all();
    let all: Vec<u32> = (1..=256).collect();
    a.receive(&selective_ack(100, u32::MAX, &all));
    assert_eq!(psns(&a.transmit_all()), [100]);
    a.wait(5_000 * US);
    let again = a.transmit_all();
    assert_eq!(again.len(), 8, "the ACK timer came up");
    b.receive_all(&again);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
}

#[test]
fn selective_acks_that_make_no_sense_are_dropped() {
    let (mut a, _) = pair();
    write(&mut a, 0, &bytes(4 * MTU, 1), 0);
    a.transmit_all();
    a.receive(&ack(101, Syndrome::ACK));
    let mut positive = selective_ack(102, 1, &[1]);
    positive.headers.aeth = Some(Aeth {
        syndrome: Syndrome::ACK,
        msn: 0,
    });
    let mut short = selective_ack(102, 1, &[1]);
    short.payload.pop();
    for (packet, reason) in [
        (selective_ack(101, 1, &[1]), DropReason::StaleResponse),
        (selective_ack(104, 1, &[1]), DropReason::UnexpectedResponse),
        (positive, DropReason::ReservedSyndrome),
        (short, DropReason::UnexpectedResponse),
    ] {
        assert_eq!(a.receive(&packet), Received::Dropped(reason));
        assert_eq!(a.transmit_all(), []);
    }
}

#[test]
fn who_has_not_agreed_goes_back_n_and_takes_no_selective_acks() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    b.host.register(KEY, BASE, vec![0; 4_096], Access::REMOTE_WRITE);
    write(&mut a, 0, &bytes(4 * MTU, 1), 0);
    let sent = a.transmit_all();
    let outcomes = b.receive_all(&without(&sent, &[1]));
    assert_eq!(
        outcomes[1..],
        [
            Received::OutOfOrder,
            Received::Dropped(DropReason::NakOutstanding)
        ]
    );
    assert_eq!(memory(&b, 2 * MTU, MTU), [0; MTU]);
    let nak = only(&mut b);
    assert_eq!((nak.name(), nak.psn()), ("ACK", 101));
    let unknown = a.receive(&selective_ack(101, 1, &[1]));
    assert_eq!(unknown, Received::Dropped(DropReason::OtherClass));
    a.receive(&nak);
    assert_eq!(psns(&a.transmit_all()), [101, 102, 103]);
}

#[test]
fn it_is_agreed_on_between_init_and_rtr_by_rc_alone() {
    let mask = QpAttrMask::STATE | QpAttrMask::FEATURES;
    for qp_type in [QpType::Uc, QpType::Ud, QpType::XrcIni, QpType::XrcTgt] {
        let verdict = rnic_transport::check_modify(qp_type, QpState::Init, QpState::Rtr, mask);
        assert!(verdict.is_err(), "{qp_type}");
    }
    let (mut a, _) = pair();
    assert!(a.qp.query().selective);
    let attr = QpAttr {
        state: QpState::Rts,
        ..QpAttr::default()
    };
    assert!(a.modify(&attr, mask).is_err());
    a.set_state(QpState::Reset).unwrap();
    assert!(!a.qp.query().selective, "a QP begins anew");
    assert_eq!(RcQp::new(1).query().selective, QpAttr::default().selective);
}

#[test]
fn a_gap_beyond_the_reach_is_a_sequence_error_as_ever() {
    let (_, mut b) = pair();
    b.receive(&rdma(Operation::WriteFirst, 100, 3 * MTU as u32, &[1; MTU]));
    b.transmit_all();
    assert_eq!(
        b.receive(&rdma(Operation::WriteOnly, 101 + 257, 8, &[1; 8])),
        Received::OutOfOrder
    );
    let nak = only(&mut b);
    assert_eq!((nak.name(), nak.psn()), ("ACK", 101));
    assert_eq!(
        nak.headers.bth.opcode,
        Opcode::new(Transport::Rc, Operation::Acknowledge)
    );
}
