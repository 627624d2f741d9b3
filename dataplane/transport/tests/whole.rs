//! Packets that are a whole message, taken the short way: nothing differs from what they do the long way.

mod common;
mod twins;

use common::{BASE, KEY, rdma, register, request};
use rnic_sim::{Node, Packet, Rng, connect_as, connect_at};
use rnic_transport::{Access, DropReason, QpState, QpType, Received};
use rnic_wire::{Mtu, Operation};
use twins::Twins;

const MTU: usize = 256;
/// Bytes of memory.
const SIZE: usize = 600;

/// The responder of `connect_at`, which expects `psn`, with memory.
fn responder(psn: u32, selective: bool, access: Access) -> Node {
    let (_, mut node) = connect_at(Mtu::M256, [psn, 200], |attr| {
        attr.selective = selective;
        attr.access = access;
    });
    register(&mut node, SIZE);
    node
}

fn rights() -> Access {
    Access::REMOTE_WRITE
        .union(Access::REMOTE_READ)
        .union(Access::REMOTE_ATOMIC)
}

/// Some packet at `psn`, of a message of its own or part of one; `wrong` times in a thousand a wrong one.
fn packet(rng: &mut Rng, psn: u32, wrong: u32) -> Packet {
    use Operation as O;
    let operation = match rng.below(5) {
        _ if rng.chance(wrong) => rng.pick(&[
            O::SendFirst,
            O::SendMiddle,
            O::SendLast,
            O::SendOnlyImm,
            O::SendOnlyInv,
            O::WriteFirst,
            O::WriteMiddle,
            O::WriteLast,
            O::WriteOnlyImm,
        ]),
        0 | 1 => O::WriteOnly,
        2 => O::ReadRequest,
        3 => rng.pick(&[O::FetchAdd, O::CompareSwap]),
        _ => O::SendOnly,
    };
    let begins = matches!(
        operation,
        O::SendFirst | O::SendMiddle | O::WriteFirst | O::WriteMiddle
    );
    let len = match operation {
        O::ReadRequest | O::FetchAdd | O::CompareSwap if !rng.chance(wrong / 8) => 0,
        _ if begins => MTU,
        _ if rng.chance(wrong / 8) => MTU + 1,
        _ => rng.pick(&[0, 1, 8, 64, MTU]),
    };
    let mut packet = request(O::SendOnly, psn, &rng.bytes(len));
    let model = match operation {
        O::WriteFirst => rdma(operation, psn, 2 * MTU as u32, b""),
        O::WriteOnly => rdma(operation, psn, len as u32, b""),
        O::ReadRequest => {
            let asked = rng.pick(&[0, 1, 8, 64, MTU as u32, MTU as u32, MTU as u32 + 1]);
            rdma(operation, psn, asked, b"")
        }
        O::FetchAdd | O::CompareSwap => {
            let mut atomic = common::fetch_add(psn, BASE + 8 * rng.below(SIZE as u64 / 8));
            atomic.headers.bth.opcode.operation = operation;
            atomic
        }
        O::WriteOnlyImm => common::with_headers(operation, psn, b"", |headers| {
            *headers = rdma(O::WriteOnly, psn, len as u32, b"").headers;
            headers.bth.opcode.operation = operation;
            headers.imm = Some(7);
        }),
        O::SendOnlyImm => common::with_headers(operation, psn, b"", |headers| headers.imm = Some(7)),
        O::SendOnlyInv => common::with_headers(operation, psn, b"", |headers| headers.ieth = Some(KEY)),
        _ => request(operation, psn, b""),
    };
    packet.headers = model.headers;
    if let Some(eth) = &mut packet.headers.atomic {
        match rng.below(3) {
            _ if !rng.chance(wrong) => {}
            0 => eth.rkey ^= 1,
            1 => eth.va += 1,
            _ => eth.va += SIZE as u64,
        }
    }
    packet.headers.bth.ack_req = rng.chance(500);
    packet.headers.bth.solicited = rng.chance(300);
    if let Some(reth) = &mut packet.headers.reth {
        reth.va = BASE + rng.below((SIZE - MTU) as u64);
        match rng.below(6) {
            _ if !rng.chance(wrong) => {}
            0 => reth.rkey ^= 1,
            1 => reth.va = BASE + SIZE as u64 - 1,
            2 => reth.va = u64::MAX - 3,
            3 => reth.dma_len += 1,
            4 => reth.dma_len = reth.dma_len.wrapping_sub(1),
            _ => reth.dma_len = u32::MAX,
        }
    }
    packet
}

#[test]
fn any_packets_do_the_same_the_short_way_and_the_long_way() {
    let (mut taken, mut refused, mut seen) = (0, 0, std::collections::BTreeMap::new());
    for seed in 0..600 {
        let rng = &mut Rng::new(seed);
        let (first, wrong) = (rng.pick(&[100, 0xFF_FFF0]), rng.pick(&[5, 50, 300]));
        let access = if rng.chance(50) {
            Access::REMOTE_READ
        } else {
            rights()
        };
        let selective = rng.chance(300);
        let mut twins = Twins::new(|| responder(first, selective, access));
        if rng.chance(wrong) {
            let capacity = 1 + rng.below(6) as usize;
            twins.both(|node| node.host.cq_capacity = capacity);
        }
        let (mut next, mut last) = (0, 0);
        for number in 0..60 {
            match rng.below(12) {
                0..6 => {
                    let capacity = rng.pick(&[8, 256, 256, 256, 512]);
                    twins.both(|node| node.host.post_recv(number, capacity));
                }
                6 => drop(twins.both(|node| node.transmit_all())),
                7 if rng.chance(wrong / 10) => twins.both(|node| node.host.forged_recv = true),
                8 if rng.chance(wrong / 2) => twins.both(|node| {
                    let last = node.host.recv_bufs.len() as u32;
                    node.host.bad_recv.push(last);
                }),
                9 if rng.chance(wrong / 10) => {
                    let state = rng.pick(&[QpState::Sqd, QpState::Rts, QpState::Err]);
                    let _ = twins.both(|node| node.set_state(state));
                }
                _ => {}
            }
            let ahead = if rng.chance(wrong) {
                rng.pick(&[-2, -1, 1, 2])
            } else {
                0
            };
            let psn = (first + next).wrapping_add_signed(ahead) & 0xFF_FFFF;
            let outcome = twins.receive(&packet(rng, psn, wrong));
            next = twins.long.qp.query().rq_psn.wrapping_sub(first) & 0xFF_FFFF;
            *seen.entry(format!("{outcome:?}")).or_insert(0) += 1;
            refused += usize::from(matches!(outcome, Received::Refused(_)));
            last += usize::from(twins.long.qp.state() == QpState::Err);
            if last == 3 {
                break;
            }
        }
        twins.both(|node| node.transmit_all());
        twins.same();
        taken += twins.taken;
    }
    println!("{seen:#?}");
    assert!(taken > 5_000 && refused > 200, "{taken} taken, {refused} refused");
}

#[test]
fn what_is_as_usual_is_taken_the_short_way() {
    for len in [0, 1, 8, MTU] {
        let mut twins = Twins::new(|| responder(100, false, rights()));
        twins.both(|node| node.host.post_recv(1, MTU as u32));
        let payload = vec![7; len];
        let write = rdma(Operation::WriteOnly, 100, len as u32, &payload);
        assert_eq!(twins.receive(&write), Received::Accepted);
        assert_eq!(
            twins.receive(&request(Operation::SendOnly, 101, &payload)),
            Received::Accepted
        );
        let read = rdma(Operation::ReadRequest, 102, len as u32, b"");
        assert_eq!(twins.receive(&read), Received::Accepted);
        let atomic = common::fetch_add(103, BASE);
        assert_eq!(twins.receive(&atomic), Received::Accepted);
        assert_eq!(twins.taken, 4, "{len} bytes");
        assert_eq!(
            twins.both(|node| node.transmit_all()).len(),
            0,
            "all was answered"
        );
    }
}

#[test]
fn what_is_not_as_usual_goes_the_long_way() {
    let write = |psn| rdma(Operation::WriteOnly, psn, 8, &[7; 8]);
    // A packet is missing, and another; then the one that was: a NAK stands until it has come.
    let mut twins = Twins::new(|| responder(100, false, rights()));
    assert_eq!(twins.receive(&write(101)), Received::OutOfOrder);
    let silent = Received::Dropped(DropReason::NakOutstanding);
    assert_eq!(twins.receive(&write(102)), silent);
    assert_eq!(twins.receive(&write(100)), Received::Accepted);
    assert_eq!(twins.taken, 0, "the NAK was answered");
    assert_eq!(twins.receive(&write(101)), Received::Accepted);
    assert_eq!(twins.receive(&write(101)), Received::Duplicate);
    assert_eq!(twins.taken, 1);
    // Another message is under way.
    let mut twins = Twins::new(|| responder(100, false, rights()));
    twins.receive(&rdma(Operation::WriteFirst, 100, 300, &[1; MTU]));
    assert!(matches!(twins.receive(&write(101)), Received::Refused(_)));
    assert_eq!(twins.taken, 0);
    // It is not connected yet, as far as its owner knows: the first packet tells.
    let mut twins = Twins::new(|| {
        let mut node = Node::new(rnic_transport::RcQp::new(0x22), 16);
        let attr = rnic_transport::QpAttr {
            dest_qpn: 0x11,
            rq_psn: 100,
            path_mtu: Mtu::M256,
            ..rnic_sim::default_attr()
        };
        node.to_rtr(&attr).unwrap();
        register(&mut node, SIZE);
        node
    });
    assert_eq!(twins.receive(&write(100)), Received::Accepted);
    assert_eq!((twins.taken, twins.long.event_kinds().len()), (0, 1));
}

#[test]
fn what_is_said_of_a_repeated_read_gives_way_to_the_next_message() {
    let mut twins = Twins::new(|| responder(100, false, rights()));
    let read = rdma(Operation::ReadRequest, 100, 8, b"");
    assert_eq!(twins.receive(&read), Received::Accepted);
    twins.both(|node| node.transmit_all());
    twins.both(|node| node.host.region_mut(KEY).unwrap().valid = false);
    twins.receive(&read);
    twins.both(|node| node.host.region_mut(KEY).unwrap().valid = true);
    let write = rdma(Operation::WriteOnly, 101, 8, &[7; 8]);
    assert_eq!(twins.receive(&write), Received::Accepted);
    assert_eq!(twins.taken, 1, "a NAK was due");
    assert_eq!(twins.both(|node| node.transmit_all()).len(), 1);
}

#[test]
fn nothing_is_taken_while_a_key_is_invalidated() {
    let mut twins = Twins::new(|| {
        let mut node = responder(100, false, rights());
        node.host.register(9, 0, vec![0; 8], Access::REMOTE_WRITE);
        node.host.post_recv(1, 8);
        node.host.grace = 5;
        node
    });
    let send = common::with_headers(Operation::SendOnlyInv, 100, b"data", |headers| {
        headers.ieth = Some(9)
    });
    assert_eq!(twins.receive(&send), Received::Accepted);
    let again = Received::Dropped(DropReason::Invalidating);
    assert_eq!(twins.receive(&rdma(Operation::WriteOnly, 100, 8, &[7; 8])), again);
    assert_eq!(twins.receive(&rdma(Operation::WriteOnly, 101, 8, &[7; 8])), again);
}

#[test]
fn qps_of_other_types_take_no_message_of_rc() {
    for qp_type in [QpType::Uc, QpType::Ud, QpType::XrcIni] {
        let mut twins = Twins::new(|| {
            let (_, mut node) = connect_as(qp_type, Mtu::M256, [100, 200], |_| ());
            register(&mut node, SIZE);
            node
        });
        let write = rdma(Operation::WriteOnly, 100, 8, &[7; 8]);
        let other = Received::Dropped(DropReason::OtherClass);
        assert_eq!(twins.receive(&write), other, "{qp_type:?}");
    }
}
