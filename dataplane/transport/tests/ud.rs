//! Datagrams by hand (9.8.3): the DETH, Q_Keys, the GRH area, and what is dropped.

mod common;

use common::*;
use rnic_sim::{GRH_BYTE, Node, QKEY, connect_as};
use rnic_transport::{
    Check, CompletionFlags, DropReason, EventKind, GRH_AREA, PostError, QpState, QpType, Received, SendFlags,
    SendWr, WcStatus, WrOpcode,
};
use rnic_wire::{Deth, Mtu, Transport};

const AH: u32 = 0x12_3456;

fn pair() -> (Node, Node) {
    connect_as(QpType::Ud, Mtu::M256, [100, 200], |_| {})
}

fn post(node: &mut Node, opcode: WrOpcode, bytes: &[u8], qkey: u32) -> Result<(), PostError> {
    let data = node.host.add_send_buf(bytes.to_vec());
    let wr = SendWr {
        wr_id: 1,
        opcode,
        flags: SendFlags::SIGNALED,
        imm_or_rkey: 0x1234_5678,
        length: bytes.len() as u32,
        data,
        ..SendWr::default()
    };
    node.post(wr.to(AH, 0x22, qkey))
}

#[test]
fn a_datagram_carries_qkey_and_source_and_goes_by_its_address_handle() {
    let (mut a, _) = pair();
    post(&mut a, WrOpcode::SendImm, &[1; 10], QKEY).unwrap();
    let emit = a.with(|qp, ctx| qp.poll_transmit(ctx)).unwrap();
    assert_eq!(emit.ah, Some(AH));
    assert_eq!(
        emit.headers.deth,
        Some(Deth {
            qkey: QKEY,
            src_qpn: 0x11
        })
    );
    let bth = emit.headers.bth;
    assert_eq!((bth.dest_qpn, bth.psn.get(), bth.ack_req), (0x22, 100, false));
    assert_eq!(
        (bth.opcode.transport, bth.opcode.operation.name()),
        (Transport::Ud, "SEND_ONLY_IMM")
    );
    assert_eq!(emit.headers.imm, Some(0x1234_5678));
    assert!(sends(&a).is_empty(), "its payload was not read yet");
    assert_eq!(a.with(|qp, ctx| qp.poll_transmit(ctx)), None);
    assert_eq!(sends(&a), [(1, WcStatus::Success)]);
}

#[test]
fn the_high_bit_of_a_qkey_means_the_qps_own() {
    let (mut a, _) = pair();
    post(&mut a, WrOpcode::Send, &[], 0x8000_0000).unwrap();
    post(&mut a, WrOpcode::Send, &[], 0x7FFF_FFFF).unwrap();
    let keys: Vec<u32> = a
        .transmit_all()
        .iter()
        .map(|p| p.headers.deth.unwrap().qkey)
        .collect();
    assert_eq!(keys, [QKEY, 0x7FFF_FFFF]);
}

#[test]
fn the_grh_area_comes_first_and_the_completion_names_the_sender() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 50);
    post(&mut a, WrOpcode::SendImm, &[9; 10], QKEY).unwrap();
    assert_eq!(b.receive_all(&a.transmit_all()), [Received::Accepted]);
    let completion = b.host.completions[0];
    assert_eq!(
        (completion.wr_id, completion.status, completion.src_qpn),
        (7, WcStatus::Success, 0x11)
    );
    assert_eq!(completion.byte_len as usize, GRH_AREA + 10);
    assert!(
        completion
            .flags
            .contains(CompletionFlags::GRH.union(CompletionFlags::WITH_IMM))
    );
    assert_eq!(
        b.host.recv_bufs[0],
        [[GRH_BYTE; 40].as_slice(), &[9; 10]].concat()
    );
}

#[test]
fn another_qkey_is_dropped_without_taking_a_receive() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 100);
    post(&mut a, WrOpcode::Send, &[1; 10], QKEY + 1).unwrap();
    assert_eq!(
        b.receive_all(&a.transmit_all()),
        [Received::Dropped(DropReason::Qkey)]
    );
    assert_eq!((b.host.recv_queue.len(), b.qp.state()), (1, QpState::Rts));
}

#[test]
fn a_datagram_without_a_receive_or_too_long_for_it_is_dropped_and_the_receive_serves_the_next() {
    let (mut a, mut b) = pair();
    for len in [10, 11, 10] {
        post(&mut a, WrOpcode::Send, &vec![1; len], QKEY).unwrap();
    }
    let packets = a.transmit_all();
    assert_eq!(
        b.receive(&packets[0]),
        Received::Dropped(DropReason::NoReceiveWqe)
    );
    b.host.post_recv(7, 50);
    let too_long = DropReason::Refused(Check::MessageTooLong);
    assert_eq!(
        b.receive(&packets[1]),
        Received::Dropped(too_long),
        "the GRH area counts"
    );
    assert_eq!(b.receive(&packets[2]), Received::Accepted);
    assert_eq!(recvs(&b), [(7, WcStatus::Success)]);
    assert!(b.event_kinds().is_empty() && b.transmit_all().is_empty());
}

#[test]
fn a_message_longer_than_the_path_mtu_completes_with_success_and_is_never_sent() {
    // C10-93.1.1.
    let (mut a, _) = pair();
    post(&mut a, WrOpcode::Send, &[1; 257], QKEY).unwrap();
    post(&mut a, WrOpcode::Send, &[1; 256], QKEY).unwrap();
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 100)]);
    assert_eq!(sends(&a), [(1, WcStatus::Success), (1, WcStatus::Success)]);
}

#[test]
fn datagrams_need_no_sequence() {
    let (mut a, mut b) = pair();
    for _ in 0..3 {
        post(&mut a, WrOpcode::Send, &[1; 10], QKEY).unwrap();
        b.host.post_recv(7, 100);
    }
    let packets = a.transmit_all();
    for packet in packets.iter().rev() {
        assert_eq!(b.receive(packet), Received::Accepted);
    }
}

#[test]
fn an_address_handle_that_is_not_valid_fails_its_request_and_stops_the_send_queue() {
    let (mut a, _) = pair();
    a.host.bad_ahs.push(AH);
    post(&mut a, WrOpcode::Send, &[1; 10], QKEY).unwrap();
    post(&mut a, WrOpcode::Send, &[1; 10], QKEY).unwrap();
    assert!(a.transmit_all().is_empty());
    a.flush_all();
    assert_eq!(sends(&a), [(1, WcStatus::LocQpOpErr), (1, WcStatus::WrFlushErr)]);
    assert_eq!(a.host.completions[0].cause.check, Check::AddressHandle);
    assert_eq!(a.qp.state(), QpState::Sqe);
    a.host.bad_ahs.clear();
    a.set_state(QpState::Rts).unwrap();
    post(&mut a, WrOpcode::Send, &[1; 10], QKEY).unwrap();
    assert_eq!(
        trace(&a.transmit_all()),
        [("SEND_ONLY", 100)],
        "the PSN was not used"
    );
}

#[test]
fn an_unusable_receive_buffer_ends_the_qp() {
    let (mut a, mut b) = pair();
    b.host.post_recv(7, 100);
    b.host.bad_recv.push(0);
    post(&mut a, WrOpcode::Send, &[1; 10], QKEY).unwrap();
    assert_eq!(b.receive_all(&a.transmit_all()), [Received::Refused(Check::Key)]);
    assert_eq!(recvs(&b), [(7, WcStatus::LocProtErr)]);
    assert_eq!(b.event_kinds(), [EventKind::QpFatal]);
}

#[test]
fn reserved_opcodes_and_those_of_another_class_are_dropped() {
    let (mut a, mut b) = pair();
    let psn = rnic_wire::Psn::new(100);
    let outcome = b.with(|qp, ctx| qp.receive_reserved(ctx, 3 << 5, psn));
    assert_eq!(outcome, Received::Dropped(DropReason::ReservedOpcode));
    post(&mut a, WrOpcode::Send, &[1; 10], QKEY).unwrap();
    let mut packet = a.transmit_all().remove(0);
    packet.headers.bth.opcode.transport = Transport::Rc;
    assert_eq!(b.receive(&packet), Received::Dropped(DropReason::OtherClass));
}

#[test]
fn only_sends_are_datagrams() {
    let (mut a, _) = pair();
    for opcode in [
        WrOpcode::Write,
        WrOpcode::WriteImm,
        WrOpcode::Read,
        WrOpcode::SendInv,
        WrOpcode::LocalInv,
    ] {
        assert_eq!(
            post(&mut a, opcode, &[], QKEY),
            Err(PostError::Unsupported { opcode })
        );
    }
}

#[test]
fn a_qkey_is_needed_and_no_path_is_permitted() {
    use rnic_transport::{ModifyError, QpAttr, QpAttrMask as M, RcQp};
    let mut node = Node::new(RcQp::new_ud(1, Mtu::M1024), 4);
    let init = QpAttr {
        state: QpState::Init,
        port: 1,
        qkey: QKEY,
        ..Default::default()
    };
    let refused = node.modify(&init, M::STATE | M::PKEY_INDEX | M::PORT);
    assert!(
        matches!(
            refused,
            Err(ModifyError::Missing {
                attribute: M::QKEY,
                ..
            })
        ),
        "{refused:?}"
    );
    node.modify(&init, M::STATE | M::PKEY_INDEX | M::PORT | M::QKEY)
        .unwrap();
    let rtr = QpAttr {
        state: QpState::Rtr,
        ..Default::default()
    };
    let refused = node.modify(&rtr, M::STATE | M::AV);
    assert!(
        matches!(refused, Err(ModifyError::NotAllowed { attribute: M::AV, .. })),
        "{refused:?}"
    );
    node.set_state(QpState::Rtr).unwrap();
    let rts = QpAttr {
        state: QpState::Rts,
        qkey: 5,
        ..Default::default()
    };
    node.modify(&rts, M::STATE | M::SQ_PSN | M::QKEY).unwrap();
    assert_eq!(node.qp.query().qkey, 5);
    node.set_state(QpState::Reset).unwrap();
    assert_eq!(
        (node.qp.qp_type(), node.qp.query().path_mtu),
        (QpType::Ud, Mtu::M1024),
        "the port's MTU stays"
    );
}
