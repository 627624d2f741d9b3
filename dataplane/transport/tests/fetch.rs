//! Responses to READs and atomics, taken the short way: nothing differs from what they do the long way.

mod common;
mod twins;

use common::{BASE, KEY, register};
use rnic_sim::{Node, Packet, Rng, connect_at};
use rnic_transport::{DropReason, QpState, Received, SendFlags, SendWr, WrOpcode};
use rnic_wire::{Mtu, Operation, Syndrome};
use twins::Twins;

const MTU: usize = 256;
/// PSN of the first request.
const FIRST: u32 = 0xFF_FFF0;

/// One side of a connection, with memory.
fn side(index: usize, selective: bool) -> Node {
    let (a, b) = connect_at(Mtu::M256, [FIRST, 200], |attr| attr.selective = selective);
    let mut node = [a, b].into_iter().nth(index).unwrap();
    register(&mut node, 4 * MTU);
    node
}

/// Some work request, most often one that fetches; its buffer is one of `node`.
fn request(rng: &mut Rng, wr_id: u64, node: &mut Node) -> SendWr {
    use WrOpcode as O;
    let opcode = rng.pick(&[O::Read, O::Read, O::Read, O::CompSwap, O::FetchAdd, O::Write]);
    let length = match opcode {
        O::CompSwap | O::FetchAdd => 8,
        _ => rng.pick(&[0, 1, 8, MTU, MTU, MTU + 1, 3 * MTU]),
    };
    let signaled = if rng.chance(500) {
        SendFlags::SIGNALED
    } else {
        SendFlags::NONE
    };
    SendWr {
        wr_id,
        opcode,
        flags: signaled,
        rkey: KEY,
        remote_addr: BASE + 8 * rng.below(8),
        compare_add: wr_id,
        length: length as u32,
        data: node.host.add_send_buf(vec![0xEE; length]),
        ..SendWr::default()
    }
}

/// Spoils a response in one way that nobody of the wire would.
fn spoil(rng: &mut Rng, packet: &mut Packet) {
    let headers = &mut packet.headers;
    match rng.below(6) {
        0 => headers.bth.psn += 1,
        1 => headers.bth.psn = headers.bth.psn.prev(),
        2 => packet.payload.push(0),
        3 => drop(packet.payload.pop()),
        4 => {
            if let Some(aeth) = &mut headers.aeth {
                let syndromes = [0x00, 0x05, 0x1F, 0x20, 0x60, 0x61, 0xC0];
                aeth.syndrome = Syndrome::from_u8(rng.pick(&syndromes));
            }
        }
        _ => {
            headers.bth.opcode.operation = match headers.bth.opcode.operation {
                Operation::ReadResponseOnly => Operation::ReadResponseLast,
                other => other,
            };
        }
    }
}

#[test]
fn any_responses_do_the_same_the_short_way_and_the_long_way() {
    let (mut taken, mut seen) = (0, std::collections::BTreeMap::new());
    for seed in 0..800 {
        let rng = &mut Rng::new(seed);
        let (selective, wrong) = (rng.chance(300), rng.pick(&[0, 20, 200]));
        let mut twins = Twins::new(|| side(0, selective));
        let mut peer = side(1, selective);
        if rng.chance(wrong) {
            twins.both(|node| node.host.cq_capacity = 3);
        }
        let mut outstanding = Vec::new();
        for wr_id in 0..60 {
            match rng.below(8) {
                0..3 => {
                    let posts = rng.below(u64::MAX);
                    twins
                        .both(|node| {
                            let wr = request(&mut Rng::new(posts), wr_id, node);
                            node.post(wr)
                        })
                        .ok();
                }
                3 if rng.chance(wrong) => twins.both(|node| {
                    let last = node.host.send_bufs.len() as u32;
                    node.host.bad_send.push(last.saturating_sub(1));
                }),
                4 if rng.chance(wrong / 10) => {
                    let state = rng.pick(&[QpState::Sqd, QpState::Rts, QpState::Err]);
                    let _ = twins.both(|node| node.set_state(state));
                }
                5 if rng.chance(wrong) => twins.both(|node| node.wait(1 << 40)),
                _ => {}
            }
            for packet in twins.both(|node| node.transmit_all()) {
                peer.receive(&packet);
            }
            outstanding.extend(peer.transmit_all());
            while !outstanding.is_empty() && rng.chance(700) {
                let mut packet = outstanding.remove(0);
                if rng.chance(wrong) {
                    continue; // It is lost.
                }
                if rng.chance(wrong) {
                    outstanding.push(packet.clone());
                }
                if rng.chance(wrong) {
                    spoil(rng, &mut packet);
                }
                let outcome = twins.receive(&packet);
                *seen.entry(format!("{outcome:?}")).or_insert(0) += 1;
            }
        }
        taken += twins.taken;
    }
    println!("{taken} taken: {seen:#?}");
    assert!(taken > 3_000 && seen.len() > 8, "{taken} taken, {seen:?}");
}

#[test]
fn what_answers_a_fetch_is_taken_the_short_way_once() {
    let mut twins = Twins::new(|| side(0, false));
    let mut peer = side(1, false);
    twins.both(|node| {
        node.post_op(1, WrOpcode::Read, &[0; MTU], KEY, BASE);
        node.post_op(2, WrOpcode::FetchAdd, &[0; 8], KEY, BASE);
        node.post_op(3, WrOpcode::Read, b"", KEY, BASE);
    });
    for packet in twins.both(|node| node.transmit_all()) {
        peer.receive(&packet);
    }
    let responses = peer.transmit_all();
    assert_eq!(responses.len(), 3);
    for packet in &responses {
        assert_eq!(twins.receive(packet), Received::Accepted);
    }
    assert_eq!(twins.taken, 3);
    let stale = Received::Dropped(DropReason::UnexpectedResponse);
    assert_eq!(
        twins.receive(&responses[2]),
        Received::Dropped(DropReason::StaleResponse)
    );
    twins.both(|node| assert_eq!(node.host.completions.len(), 3));
    let mut early = responses[2].clone();
    early.headers.bth.psn += 1;
    assert_eq!(twins.receive(&early), stale);
    assert_eq!(twins.taken, 3);
}
