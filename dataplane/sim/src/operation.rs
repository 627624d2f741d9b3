//! What the schedules know of each operation. A new one is added here:
//!
//! 1. its opcode in [`MIX`], and how it works in [`Kind::of`];
//! 2. what it is aimed at and must fetch, in [`Aim::op`];
//! 3. what it does to the peer in [`effects`]: an [`Effect`], which `SimHost` notes when the `Host` is called;
//!    what it does to its own side, in [`own_effect`];
//! 4. that its data is where it belongs, in [`is_intact`];
//! 5. what its request carries, in [`carries`].
//!
//! What goes through memory windows, `window.rs` says.
//!
//! An error that can be built into it is an [`Injected`]: whom it suits and how it is built in stands in `scenario.rs`,
//! what comes of it in `check.rs`. Whether schedules really have the operation, `schedules.rs` counts.

use crate::check::NEVER;
use crate::memory::{Effect, SimHost, apply};
use crate::node::{Node, Packet};
use crate::rng::Rng;
use crate::scenario::{
    ATOMIC_BASE, ATOMIC_KEY, INVALIDATE_KEY, Injected, NO_KEY, OWN_KEY, Op, Plan, READ_BASE, READ_KEY,
    READ_REGION, RECV_ID, WRITE_BASE, WRITE_KEY,
};
use crate::window;
use rnic_transport::{AtomicOp, CompletionFlags, Flush, SendFlags, WcOpcode, WrOpcode};
use rnic_wire::{Feth, Mtu, Reth};

/// What is drawn from for every request: all operations of an RC QP, mixed.
pub const MIX: [WrOpcode; 14] = [
    WrOpcode::Send,
    WrOpcode::SendImm,
    WrOpcode::SendInv,
    WrOpcode::Write,
    WrOpcode::WriteImm,
    WrOpcode::Read,
    WrOpcode::Read,
    WrOpcode::Read,
    WrOpcode::CompSwap,
    WrOpcode::FetchAdd,
    WrOpcode::AtomicWrite,
    WrOpcode::Flush,
    WrOpcode::LocalInv,
    WrOpcode::BindMw,
];

/// Words that atomics work on: few, so that they meet.
const ATOMIC_WORDS: u64 = 3;

/// How an operation works.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its data goes into a receive WQE.
    Send,
    /// Its data goes to an address of the peer.
    Write,
    /// It fetches data.
    Read,
    /// It fetches a word, and changes it.
    Atomic,
    /// Its word goes to an address of the peer, in one piece.
    AtomicWrite,
    /// What was written before it is to be seen.
    Flush,
    /// Nothing of it is sent.
    Local,
}

impl Kind {
    pub fn of(opcode: WrOpcode) -> Kind {
        match opcode {
            WrOpcode::Write | WrOpcode::WriteImm => Kind::Write,
            WrOpcode::Read => Kind::Read,
            WrOpcode::CompSwap | WrOpcode::FetchAdd => Kind::Atomic,
            WrOpcode::AtomicWrite => Kind::AtomicWrite,
            WrOpcode::Flush => Kind::Flush,
            WrOpcode::LocalInv | WrOpcode::BindMw => Kind::Local,
            _ => Kind::Send,
        }
    }

    /// Whether its response brings something back.
    pub fn fetches(self) -> bool {
        matches!(self, Kind::Read | Kind::Atomic)
    }
}

impl Op {
    pub(crate) fn kind(&self) -> Kind {
        Kind::of(self.opcode)
    }

    /// PSNs it takes.
    pub(crate) fn packets(&self, mtu: Mtu) -> u32 {
        match self.kind() {
            Kind::Local => 0,
            _ => mtu.packets(self.data.len() as u32),
        }
    }

    /// Whether a FLUSH is of the whole region.
    pub(crate) fn is_whole(&self) -> bool {
        self.kind() == Kind::Flush && self.operands.1 == flush_bits(Feth::REGION)
    }

    /// Bytes of the peer's memory that it is about.
    pub(crate) fn span(&self) -> u64 {
        match self.kind() {
            Kind::Flush => self.operands.0,
            _ => self.data.len() as u64,
        }
    }

    /// Whether it uses a memory window of the peer.
    pub fn is_through_window(&self) -> bool {
        window::is_key(self.rkey)
    }

    /// Whether it invalidates a memory window, of the peer or its own.
    pub fn closes_window(&self) -> bool {
        matches!(self.opcode, WrOpcode::SendInv | WrOpcode::LocalInv) && window::is_key(self.value)
    }
}

/// A FLUSH, as a work request says it.
fn flush_bits(selectivity: u8) -> u64 {
    Flush::to_bits(Feth::GLOBAL_VISIBILITY, selectivity)
}

/// Whether it uses a receive WQE of the peer.
pub(crate) fn takes_receive(opcode: WrOpcode) -> bool {
    Kind::of(opcode) == Kind::Send || opcode == WrOpcode::WriteImm
}

/// What the operations of one side are aimed at, and what those before have left there.
pub(crate) struct Aim {
    /// The words of the atomics.
    pub words: Vec<u64>,
    /// Where the next WRITE goes.
    pub write_at: u64,
    /// Keys to invalidate: the peer's, and its own.
    invalidate: u32,
    own: u32,
    /// The key of its next window.
    window: u32,
}

impl Aim {
    pub fn new(rng: &mut Rng) -> Self {
        Aim {
            words: (0..ATOMIC_WORDS).map(|_| rng.next_u64()).collect(),
            write_at: WRITE_BASE,
            invalidate: INVALIDATE_KEY,
            own: OWN_KEY,
            window: window::FIRST_KEY,
        }
    }

    /// The next operation: with so many bytes, if it is one that may have any number. `peer` is what the other side does.
    pub fn op(&mut self, rng: &mut Rng, opcode: WrOpcode, len: usize, peer: &Plan) -> Op {
        let kind = Kind::of(opcode);
        let len = match kind {
            Kind::Atomic | Kind::AtomicWrite => 8,
            Kind::Local | Kind::Flush => 0,
            _ => len,
        };
        let mut op = Op {
            opcode,
            flags: SendFlags::NONE,
            value: rng.next_u64() as u32,
            rkey: NO_KEY,
            addr: 0,
            operands: (0, 0),
            data: rng.bytes(len),
            at: 0,
            after: None,
            recv: None,
            srqn: 0,
        };
        match kind {
            Kind::Send if opcode == WrOpcode::SendInv => op.value = next(&mut self.invalidate, 1),
            Kind::Local if opcode == WrOpcode::BindMw => {
                op.value = next(&mut self.window, window::NEXT);
                (op.rkey, op.addr) = (READ_KEY, READ_BASE);
                op.operands = (rng.between(1, READ_REGION), window::rights(READ_KEY));
            }
            Kind::Local => op.value = next(&mut self.own, 1),
            Kind::Write | Kind::AtomicWrite if len > 0 => {
                if kind == Kind::AtomicWrite {
                    self.write_at = self.write_at.next_multiple_of(8);
                }
                (op.rkey, op.addr) = (WRITE_KEY, self.write_at);
                // A gap, so that two messages are never one effect.
                self.write_at += len as u64 + rng.between(1, 64);
            }
            Kind::Flush => {
                let written = self.write_at - WRITE_BASE;
                let start = rng.below(written + 1);
                (op.rkey, op.addr) = (WRITE_KEY, WRITE_BASE + start);
                let selectivity = rng.pick(&[Feth::RANGE, Feth::RANGE, Feth::REGION]);
                op.operands = (rng.below(written - start + 1), flush_bits(selectivity));
            }
            Kind::Read if len > 0 => {
                let start = rng.below(READ_REGION - len as u64) as usize;
                (op.rkey, op.addr) = (READ_KEY, READ_BASE + start as u64);
                op.data.copy_from_slice(&peer.read_region[start..start + len]);
            }
            Kind::Atomic => {
                let at = rng.below(ATOMIC_WORDS);
                let word = &mut self.words[at as usize];
                (op.rkey, op.addr) = (ATOMIC_KEY, ATOMIC_BASE + at * 8);
                op.data = word.to_ne_bytes().to_vec();
                let hits = opcode == WrOpcode::CompSwap && rng.chance(700);
                op.operands = (if hits { *word } else { rng.next_u64() }, rng.next_u64());
                *word = apply(atomic_op(opcode, op.operands), *word);
            }
            _ => {}
        }
        op
    }
}

fn next(key: &mut u32, step: u32) -> u32 {
    *key += step;
    *key - step
}

/// The atomic that a work request of these operands asks for.
fn atomic_op(opcode: WrOpcode, (compare_add, swap): (u64, u64)) -> AtomicOp {
    match opcode {
        WrOpcode::CompSwap => AtomicOp::CompareSwap {
            compare: compare_add,
            swap,
        },
        _ => AtomicOp::FetchAdd { add: compare_add },
    }
}

/// Adds what an operation does to the peer. Behind [`NEVER`] stands what its error keeps from happening.
pub(crate) fn effects(op: &Op, injected: Option<Injected>, effects: &mut Vec<Effect>) {
    let (kind, len) = (op.kind(), op.data.len());
    let wr_id = RECV_ID + op.recv.unwrap_or(0) as u64;
    // Some errors show only after part of the message, or all of it, has taken effect.
    let at_once = match injected {
        None | Some(Injected::TooLong | Injected::BadInvalidate | Injected::LocalRead) => false,
        Some(Injected::NoReceive) => op.opcode != WrOpcode::WriteImm,
        Some(_) => true,
    };
    if at_once {
        effects.push(NEVER);
    }
    match kind {
        Kind::Write if len > 0 => effects.push(Effect::Write {
            addr: op.addr,
            len: len as u64,
        }),
        Kind::Atomic => effects.push(Effect::Atomic {
            addr: op.addr,
            original: u64::from_ne_bytes(op.data.as_slice().try_into().expect("8 bytes")),
        }),
        Kind::AtomicWrite => effects.push(Effect::AtomicWrite { addr: op.addr }),
        Kind::Flush => {
            let whole = op.is_whole();
            let (addr, len) = if whole {
                (0, 0)
            } else {
                (op.addr, op.span() as u32)
            };
            effects.push(Effect::Flush { addr, len, whole });
        }
        Kind::Send if len > 0 => effects.push(Effect::Receive {
            wr_id,
            offset: 0,
            len: len as u32,
        }),
        _ => {}
    }
    if injected.is_some() && !kind.fetches() {
        effects.push(NEVER);
    }
    if op.opcode == WrOpcode::SendInv {
        effects.push(Effect::Invalidate { rkey: op.value });
    }
    if op.recv.is_none() {
        return;
    }
    let (mut flags, value) = match op.opcode {
        WrOpcode::SendImm | WrOpcode::WriteImm => (CompletionFlags::WITH_IMM, op.value),
        WrOpcode::SendInv => (CompletionFlags::WITH_INV, op.value),
        _ => (CompletionFlags::NONE, 0),
    };
    if op.flags.contains(SendFlags::SOLICITED) {
        flags = flags.union(CompletionFlags::SOLICITED);
    }
    let opcode = match kind {
        Kind::Send => WcOpcode::Recv,
        _ => WcOpcode::RecvRdmaWithImm,
    };
    effects.push(Effect::Received {
        wr_id,
        opcode,
        byte_len: len as u32,
        flags: flags.bits(),
        value,
    });
}

/// Whether some of these requests, a side's first ones, still lack what they fetch.
pub(crate) fn is_fetching(ops: &[Op], host: &SimHost) -> bool {
    let lacks = |(op, got): (&Op, &u32)| op.kind().fetches() && *got < op.data.len() as u32;
    ops.iter().zip(&host.scattered).any(lacks)
}

/// What an operation does to its own side.
pub(crate) fn own_effect(op: &Op) -> Effect {
    match op.opcode {
        WrOpcode::BindMw => Effect::Bind { rkey: op.value },
        _ => Effect::Invalidate { rkey: op.value },
    }
}

/// Whether the data of request `at` is where it belongs, of `from` or of `to`.
pub(crate) fn is_intact(op: &Op, at: usize, from: &Node, to: &Node) -> bool {
    let len = op.data.len();
    match op.kind() {
        Kind::Read | Kind::Atomic => {
            from.host.send_bufs[at] == op.data && from.host.scattered[at] == len as u32
        }
        Kind::Write | Kind::AtomicWrite => {
            let start = op.addr.wrapping_sub(WRITE_BASE) as usize;
            len == 0 || to.host.regions[0].bytes[start..start + len] == op.data
        }
        Kind::Send => op
            .recv
            .is_none_or(|recv| to.host.recv_bufs[recv][..len] == op.data),
        Kind::Flush => true,
        Kind::Local => from.host.own_effects.contains(&own_effect(op)),
    }
}

/// Whether a request packet carries what it must, `offset` bytes into the operation.
pub(crate) fn carries(op: &Op, offset: usize, mtu: Mtu, packet: &Packet) -> bool {
    let rest = &op.data[offset..];
    let headers = &packet.headers;
    let asks = |reth: Reth, len: usize| {
        let addr = op.addr.wrapping_add(offset as u64);
        (reth.va, reth.rkey, reth.dma_len as usize) == (addr, op.rkey, len)
    };
    match op.kind() {
        Kind::Read => headers.reth.is_some_and(|reth| asks(reth, rest.len())) && packet.payload.is_empty(),
        Kind::AtomicWrite => headers.reth.is_some_and(|reth| asks(reth, 8)) && packet.payload == rest,
        Kind::Flush => {
            let asked = headers
                .feth
                .map(|feth| Flush::to_bits(feth.placement, feth.selectivity));
            headers
                .reth
                .is_some_and(|reth| asks(reth, op.operands.0 as usize))
                && asked == Some(op.operands.1)
                && packet.payload.is_empty()
        }
        Kind::Atomic => {
            let asked = headers.atomic.map(|eth| match op.opcode {
                WrOpcode::CompSwap => (eth.va, eth.rkey, (eth.compare, eth.swap_or_add)),
                _ => (eth.va, eth.rkey, (eth.swap_or_add, op.operands.1)),
            });
            asked == Some((op.addr, op.rkey, op.operands)) && packet.payload.is_empty()
        }
        Kind::Send | Kind::Write => packet.payload == rest[..rest.len().min(mtu.bytes())],
        Kind::Local => false,
    }
}
