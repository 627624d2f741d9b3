//! Packets of an enemy: whatever arrives, nothing panics, nothing runs for long, nothing outside the keys is
//! touched, and the invariants of completions hold.

mod common;

use common::*;
use rnic_sim::{Node, Packet, Rng, connect};
use rnic_transport::{Limits, QpState, SendFlags, SendWr, WrOpcode};
use rnic_wire::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Feth, HeaderSet, Headers, Mtu, Opcode, Psn, Reth, Syndrome, Transport,
};

/// A number that is often near an interesting one.
fn near(rng: &mut Rng, interesting: &[u32]) -> u32 {
    if rng.chance(100) {
        rng.next_u64() as u32
    } else {
        rng.pick(interesting)
            .wrapping_add(rng.between(0, 4) as u32)
            .wrapping_sub(2)
    }
}

/// Any RC packet whose headers could be parsed from a frame.
fn garbage(rng: &mut Rng, node: &Node) -> Packet {
    let opcodes: Vec<Opcode> = Opcode::all()
        .filter(|opcode| opcode.transport == Transport::Rc)
        .collect();
    let opcode = rng.pick(&opcodes);
    let attr = node.qp.query();
    let psn = near(
        rng,
        &[
            attr.rq_psn,
            attr.rq_psn,
            attr.sq_psn,
            attr.sq_psn.wrapping_sub(6),
            attr.rq_psn ^ 0x80_0000,
        ],
    );
    let mut bth = Bth::new(opcode, node.qp.qpn(), Psn::new(psn));
    (bth.ack_req, bth.solicited) = (rng.chance(500), rng.chance(500));
    let mut headers = Headers::new(bth);
    let has = |set| opcode.headers().contains(set);
    if has(HeaderSet::RETH) {
        headers.reth = Some(Reth {
            va: rng
                .pick(&[BASE, BASE + 4_000, 0, u64::MAX - 3])
                .wrapping_add(rng.below(200)),
            rkey: if rng.chance(900) {
                KEY
            } else {
                rng.next_u64() as u32
            },
            dma_len: near(rng, &[0, 4, 256, 512, 700, 1 << 31, u32::MAX]),
        });
    }
    if has(HeaderSet::AETH) {
        headers.aeth = Some(Aeth {
            syndrome: Syndrome::from_u8(rng.pick(&[0x1F, 0x1F, 0x60, 0x21, rng.clone().next_u64() as u8])),
            msn: 0,
        });
    }
    if has(HeaderSet::ATOMIC) {
        headers.atomic = Some(AtomicEth {
            va: rng.pick(&[BASE, BASE + 8, BASE + 4_088, BASE + 4_096, BASE + 4, u64::MAX - 7]),
            rkey: if rng.chance(900) { KEY } else { 0x5000 },
            swap_or_add: 1,
            compare: 2,
        });
    }
    if has(HeaderSet::ATOMIC_ACK) {
        headers.atomic_ack = Some(AtomicAckEth { original: 3 });
    }
    if has(HeaderSet::FETH) {
        headers.feth = Some(Feth {
            placement: 1,
            selectivity: 0,
        });
    }
    headers.imm = has(HeaderSet::IMM).then_some(7);
    headers.ieth = has(HeaderSet::IETH).then_some(rng.pick(&[KEY, 0x5000, 0x5001, 9]));
    let len = if rng.chance(700) {
        rng.pick(&[0, 256, 256, 44, 4])
    } else {
        rng.below(600) as usize
    };
    Packet::new(&headers, vec![0xAB; len])
}

fn besiege(seed: u64) {
    let mut rng = Rng::new(seed);
    let rng = &mut rng;
    let (mut a, _) = connect(Mtu::M256, |attr| attr.max_dest_rd_atomic = 4);
    a.qp = a.qp.with_limits(Limits::new(8, 2));
    register(&mut a, 4_096);
    a.host.register(0x5000, 0, vec![], rnic_transport::Access::NONE);
    let (mut posted, mut received) = (0, 0);
    for _ in 0..200 {
        match rng.below(10) {
            0 => {
                let opcode = rng.pick(&[
                    WrOpcode::Send,
                    WrOpcode::Write,
                    WrOpcode::Read,
                    WrOpcode::FetchAdd,
                    WrOpcode::SendInv,
                ]);
                let length = match opcode {
                    WrOpcode::FetchAdd => 8,
                    _ => rng.pick(&[0, 4, 600]),
                };
                let data = a.host.add_send_buf(vec![1; length as usize]);
                let wr = SendWr {
                    wr_id: posted,
                    opcode,
                    flags: SendFlags::SIGNALED,
                    length,
                    data,
                    ..SendWr::default()
                };
                posted += u64::from(a.post(wr).is_ok());
            }
            1 => {
                a.host.post_recv(received, rng.pick(&[0, 4, 600]));
                received += 1;
            }
            2 => a.wait(rng.below(8_000_000)),
            3 => {
                let sent = std::iter::from_fn(|| a.transmit()).take(10_000).count();
                assert!(sent < 10_000, "endless transmission");
            }
            4 => {
                let psn = Psn::new(near(rng, &[a.qp.query().rq_psn]));
                if rng.chance(50) {
                    a.with(|qp, ctx| qp.receive_reserved(ctx, 0x19, psn));
                }
            }
            _ => {
                let packet = garbage(rng, &a);
                a.receive(&packet);
            }
        }
    }
    a.set_state(QpState::Err).expect("always possible");
    a.flush_all();
    a.transmit_all();
    every_request_completed_once(&a, posted, received);
    assert!(!a.qp.has_work());
}

#[test]
fn any_sequence_of_packets_leaves_the_invariants_intact() {
    for seed in 0..3_000 {
        if std::panic::catch_unwind(|| besiege(seed)).is_err() {
            panic!("seed {seed} failed; play it alone with besiege({seed})");
        }
    }
}
