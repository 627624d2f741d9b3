//! The frames: right ones, and what may be wrong with them.

use crate::common::{BASE, KEY};
use crate::siege::{READ_ONLY, REGION, SECRET};
use rnic_sim::{QKEY, Rng};
use rnic_transport::QpType;
use rnic_wire::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Deth, Feth, HeaderSet, Headers, NakCode, Opcode, Operation, Psn,
    Reth, SELECTIVE_ACK_LEN, Syndrome, Transport, XrcEth,
};

/// Path MTU in bytes.
pub const MTU: usize = 256;
/// The longest payload of a frame, wrong ones included.
pub const LONGEST: usize = 2_000;
/// The XRC SRQ of an XRC target's domain, and one of another.
pub const SRQ: u32 = 0x51;
pub const FOREIGN_SRQ: u32 = 0x61;
/// Key of a window that its owner binds to the region the peer may use.
pub const WINDOW: u32 = 0x6001;
/// First of the keys that may be invalidated.
pub const INVALIDATE: u32 = 0x5000;
/// How many there are.
pub const INVALIDATES: u32 = 16;

/// A message on its way to the QP.
#[derive(Copy, Clone, Debug)]
pub struct Message {
    /// A SEND; otherwise a WRITE.
    pub is_send: bool,
    /// Of a WRITE: bytes still to come.
    pub left: u32,
}

/// A frame: its headers and the bytes of its payload.
pub type Spec = (Headers, usize);

/// A frame with the headers its operation demands.
pub fn headers(transport: Transport, operation: Operation, psn: Psn) -> Headers {
    let mut bth = Bth::new(Opcode::new(transport, operation), 0x11, psn);
    let asks = bth.opcode.is_request() && bth.opcode.ends_message();
    bth.ack_req = asks && transport.is_reliable();
    fitting(&Headers::new(bth))
}

/// The same packet with exactly the headers that its opcode demands.
pub fn fitting(old: &Headers) -> Headers {
    let has = |set| old.bth.opcode.headers().contains(set);
    let reth = Reth {
        va: BASE,
        rkey: KEY,
        dma_len: 8,
    };
    let ack = Aeth {
        syndrome: Syndrome::ACK,
        msn: 0,
    };
    let atomic = AtomicEth {
        va: BASE + 64,
        rkey: KEY,
        swap_or_add: 1,
        compare: 2,
    };
    let feth = Feth {
        placement: 1,
        selectivity: 0,
    };
    let deth = Deth {
        qkey: QKEY,
        src_qpn: 0x22,
    };
    Headers {
        xrceth: has(HeaderSet::XRCETH).then(|| old.xrceth.unwrap_or(XrcEth { srqn: SRQ })),
        reth: has(HeaderSet::RETH).then(|| old.reth.unwrap_or(reth)),
        aeth: has(HeaderSet::AETH).then(|| old.aeth.unwrap_or(ack)),
        atomic: has(HeaderSet::ATOMIC).then(|| old.atomic.unwrap_or(atomic)),
        atomic_ack: has(HeaderSet::ATOMIC_ACK).then_some(AtomicAckEth { original: 3 }),
        deth: has(HeaderSet::DETH).then(|| old.deth.unwrap_or(deth)),
        feth: has(HeaderSet::FETH).then(|| old.feth.unwrap_or(feth)),
        imm: has(HeaderSet::IMM).then_some(7),
        ieth: has(HeaderSet::IETH).then(|| old.ieth.unwrap_or(INVALIDATE)),
        ..Headers::new(old.bth)
    }
}

/// A request that a QP expecting `psn` waits for, inside `message`. `key` is one that may be invalidated.
pub fn request(rng: &mut Rng, qp_type: QpType, message: Option<Message>, psn: Psn, key: u32) -> Spec {
    let imm = rng.chance(300);
    let small = rng.below(MTU as u64 + 1) as usize;
    let rest = 1 + rng.below(MTU as u64) as usize;
    let (operation, len, dma_len) = match message {
        Some(Message { is_send: true, .. }) if rng.chance(500) => (Operation::SendMiddle, MTU, 0),
        Some(Message { is_send: true, .. }) if imm => (Operation::SendLastImm, rest, 0),
        Some(Message { is_send: true, .. }) => (Operation::SendLast, rest, 0),
        Some(Message { left, .. }) if left as usize > MTU => (Operation::WriteMiddle, MTU, 0),
        Some(Message { left, .. }) if imm => (Operation::WriteLastImm, left as usize, 0),
        Some(Message { left, .. }) => (Operation::WriteLast, left as usize, 0),
        None if qp_type == QpType::Ud && imm => (Operation::SendOnlyImm, small, 0),
        None if qp_type == QpType::Ud => (Operation::SendOnly, small, 0),
        None => match rng.below(if qp_type.transport().is_reliable() { 13 } else { 6 }) {
            0 => (Operation::SendFirst, MTU, 0),
            1 => (Operation::SendOnly, small, 0),
            2 => (Operation::SendOnlyImm, small, 0),
            3 => (Operation::WriteFirst, MTU, 257 + rng.below(700) as u32),
            4 => (Operation::WriteOnly, small, small as u32),
            5 => (Operation::WriteOnlyImm, small, small as u32),
            6 => (Operation::FetchAdd, 0, 0),
            7 => (Operation::CompareSwap, 0, 0),
            8 if rng.chance(100) => (Operation::SendOnlyInv, small, 0),
            9 => (Operation::AtomicWrite, 8, 8),
            10 => (Operation::Flush, 0, rng.below(1_000) as u32),
            _ => (Operation::ReadRequest, 0, rng.below(1_000) as u32),
        },
    };
    let mut headers = headers(qp_type.transport(), operation, psn);
    if let Some(reth) = &mut headers.reth {
        reth.va = BASE + rng.below(REGION - 1_000);
        reth.dma_len = dma_len;
        if operation == Operation::AtomicWrite {
            reth.va &= !7;
        }
    }
    if let Some(atomic) = &mut headers.atomic {
        atomic.va = BASE + rng.below(4) * 8;
        (atomic.compare, atomic.swap_or_add) = (rng.below(3), rng.below(3));
    }
    headers.ieth = headers.ieth.map(|_| key);
    headers.bth.solicited = rng.chance(100);
    (headers, len)
}

/// Part of a WRITE that is under way, or of what may follow it, ahead of `psn`, which is expected; or a selective
/// acknowledgement of what lies around `sent`.
pub fn before_its_turn(rng: &mut Rng, message: Option<Message>, psn: Psn, sent: Psn) -> Spec {
    if rng.chance(100) {
        let mut bth = Bth::new(Opcode::SELECTIVE_ACK, 0x11, sent);
        bth.psn = sent.wrapping_sub(rng.below(9) as u32);
        let mut headers = fitting(&Headers::new(bth));
        headers.aeth = Some(Aeth {
            syndrome: Syndrome::Nak(NakCode::PsnSequenceError),
            msn: 0,
        });
        return (headers, SELECTIVE_ACK_LEN);
    }
    let left = message
        .filter(|message| !message.is_send)
        .map_or(0, |message| message.left);
    let packets = left.div_ceil(MTU as u32).max(1);
    let ahead = 1 + rng.below(u64::from(packets) + 2) as u32;
    let (operation, len) = match ahead + 1 {
        next if next < packets => (Operation::WriteMiddle, MTU),
        next if next == packets => (Operation::WriteLast, left as usize - ahead as usize * MTU),
        _ if rng.chance(500) => (Operation::WriteFirst, MTU),
        _ => (Operation::WriteOnly, 1 + rng.below(MTU as u64) as usize),
    };
    let mut headers = headers(Transport::Rc, operation, psn + ahead);
    if let Some(reth) = &mut headers.reth {
        reth.va = BASE + rng.below(REGION - 1_000);
        let more = if operation == Operation::WriteFirst {
            1 + rng.below(700) as u32
        } else {
            0
        };
        reth.dma_len = len as u32 + more;
    }
    (headers, len)
}

/// Makes one thing wrong.
pub fn twist(rng: &mut Rng, qp_type: QpType, (headers, len): &mut Spec) {
    let odd = rng.next_u64();
    match rng.below(14) {
        0 => headers.bth.psn += rng.pick(&[1, 2, 9, 0xFF_FFFF, 0xFF_FFF0, 0x80_0000, 0x7F_FFFF]),
        1 => {
            let own = rng.chance(900);
            let fits = |opcode: &Opcode| !own || opcode.transport == qp_type.transport();
            let opcodes: Vec<Opcode> = Opcode::all().filter(fits).collect();
            headers.bth.opcode = rng.pick(&opcodes);
            *headers = fitting(headers);
            if !headers.bth.opcode.has_payload() {
                *len = 0;
            }
        }
        2 if headers.bth.opcode.has_payload() => {
            *len = rng.pick(&[0, 1, MTU - 1, MTU, MTU + 1, 1_024, LONGEST]);
        }
        3 => {
            let (key, va) = rng.pick(&[
                READ_ONLY,
                SECRET,
                (WINDOW, BASE),
                (WINDOW, BASE + 64),
                (WINDOW, BASE + REGION - 1),
                (KEY, BASE + REGION - 1),
                (KEY, BASE - 1),
                (odd as u32, BASE),
                (KEY, odd),
                (KEY, u64::MAX - 3),
            ]);
            if let Some(reth) = &mut headers.reth {
                (reth.rkey, reth.va) = (key, va);
            }
            if let Some(atomic) = &mut headers.atomic {
                (atomic.rkey, atomic.va) = (key, va);
            }
        }
        4 => {
            if let Some(reth) = &mut headers.reth {
                reth.dma_len = rng.pick(&[0, 1, 256, 4_097, 1 << 31, u32::MAX]);
            }
        }
        5 => {
            if let Some(aeth) = &mut headers.aeth {
                aeth.syndrome = Syndrome::from_u8(rng.pick(&[0, 0x20, 0x60, 0x61, 0x62, 0x63, odd as u8]));
                aeth.msn = odd as u32 & 0xFF_FFFF;
            }
        }
        6 => headers.bth.ack_req = !headers.bth.ack_req,
        7 => headers.bth.solicited = !headers.bth.solicited,
        8 => {
            if let Some(deth) = &mut headers.deth {
                deth.qkey = rng.pick(&[0, QKEY ^ 1, odd as u32, 0x8000_0000]);
            }
        }
        9 => headers.ieth = headers.ieth.map(|_| rng.pick(&[KEY, READ_ONLY.0, odd as u32])),
        11 => {
            if let Some(feth) = &mut headers.feth {
                (feth.placement, feth.selectivity) = (odd as u8 & 15, (odd >> 8) as u8 & 3);
            }
        }
        10 => {
            if let Some(reth) = headers.reth.as_mut().filter(|reth| reth.dma_len == 8) {
                reth.va += rng.between(1, 7);
            }
            if let Some(atomic) = &mut headers.atomic {
                atomic.va += rng.between(1, 7);
            }
        }
        12 => {
            if let Some(xrceth) = &mut headers.xrceth {
                xrceth.srqn = rng.pick(&[FOREIGN_SRQ, 0, odd as u32 & 0xFF_FFFF]);
            }
        }
        _ => headers.bth.mig_req = false,
    }
}
