//! The two ends of the wire, in the terms of verbs, so that what is tested is written once for both.
use std::time::Duration;

use anyhow::Result;
use rnic::{Completion, Endpoint, Mtu, RemoteAddr, RemoteMr};
use rnic_tests::probe::{Op, Slot};

use crate::wire::Family;

/// What a QP does about loss: `enum ibv_qp_type`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Mends it.
    Rc,
    /// Drops the message.
    Uc,
    /// Drops the message, which is a single packet.
    Ud,
}

/// Q_Key of UD QPs.
pub const QKEY: u32 = 0x1111_1111;
/// Bytes in front of a datagram where it is received.
pub const GRH_AREA: usize = 40;

/// What an end makes for a test.
#[derive(Copy, Clone, Debug)]
pub struct Resources {
    /// Service type of the QP.
    pub service: Service,
    /// Addresses used.
    pub family: Family,
    /// Bytes of the memory region.
    pub memory: usize,
    /// Work requests in each queue of the QP.
    pub depth: u32,
    /// Its receives come from an SRQ.
    pub shared: bool,
}

/// Bytes in memory: guards all over the slot, but for the data.
#[derive(Copy, Clone, Debug)]
pub struct Image {
    /// Where.
    pub slot: Slot,
    /// Misalignment of the data.
    pub misaligned: usize,
    /// Bytes of data.
    pub len: usize,
    /// Seed of the data.
    pub seed: u64,
}

/// A range of memory, cut into entries of a gather or scatter list.
#[derive(Copy, Clone, Debug)]
pub struct Range {
    /// Offset in the memory region.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    /// Entries, at most; one or more.
    pub parts: usize,
}

impl Range {
    /// Nothing.
    pub const EMPTY: Range = Range {
        offset: 0,
        len: 0,
        parts: 1,
    };
}

/// A send work request, always signalled.
#[derive(Copy, Clone, Debug)]
pub struct SendWr {
    /// Its number.
    pub wr_id: u64,
    /// What to do.
    pub op: Op,
    /// Our memory.
    pub local: Range,
    /// The peer's, for operations that name it.
    pub remote: RemoteAddr,
    /// Immediate data, for operations that have some.
    pub imm: u32,
}

/// An atomic on 8 bytes, in host order.
#[derive(Copy, Clone, Debug)]
pub enum Atomic {
    /// FETCH_ADD, modulo 2^64.
    FetchAdd {
        /// What to add.
        add: u64,
    },
    /// CMP_SWP.
    CompareSwap {
        /// Swap only if this stands there.
        compare: u64,
        /// What to put there.
        swap: u64,
    },
}

impl Atomic {
    /// What stands there afterwards.
    pub fn apply(self, word: u64) -> u64 {
        match self {
            Atomic::FetchAdd { add } => word.wrapping_add(add),
            Atomic::CompareSwap { compare, swap } if compare == word => swap,
            Atomic::CompareSwap { .. } => word,
        }
    }
}

/// A work request for an atomic, always signalled.
#[derive(Copy, Clone, Debug)]
pub struct AtomicWr {
    /// Its number.
    pub wr_id: u64,
    /// What to do.
    pub atomic: Atomic,
    /// Offset in the memory region at which the result goes.
    pub local: usize,
    /// The peer's word.
    pub remote: RemoteAddr,
}

/// A receive work request.
#[derive(Copy, Clone, Debug)]
pub struct RecvWr {
    /// Its number.
    pub wr_id: u64,
    /// Our memory.
    pub local: Range,
}

/// One end: a QP with a CQ for both of its queues and one memory region with every right.
pub trait End {
    /// For messages.
    fn name(&self) -> &'static str;

    /// Makes everything anew, with the QP in INIT, and says what the peer must know. What there was is destroyed.
    fn open(&mut self, resources: &Resources) -> Result<(Endpoint, RemoteMr)>;

    /// Takes the QP to RTS.
    fn connect(&mut self, peer: &Endpoint, mtu: Mtu) -> Result<()>;

    /// Writes memory.
    fn fill(&mut self, images: &[Image]) -> Result<()>;

    /// Compares memory: for each image what is wrong with it, or nothing.
    fn check(&mut self, images: &[Image]) -> Result<Vec<Result<(), String>>>;

    /// Posts receives.
    fn post_recv(&mut self, list: &[RecvWr]) -> Result<()>;

    /// Posts sends.
    fn post_send(&mut self, list: &[SendWr]) -> Result<()>;

    /// Posts atomics.
    fn post_atomics(&mut self, list: &[AtomicWr]) -> Result<()>;

    /// Writes an aligned word of memory, in host order.
    fn poke(&mut self, offset: usize, value: u64) -> Result<()>;

    /// Reads one.
    fn peek(&mut self, offset: usize) -> Result<u64>;

    /// Completions: up to `count`, fewer when the time is over first.
    fn poll(&mut self, count: usize, limit: Duration) -> Result<Vec<Completion>>;

    /// Destroys what there is.
    fn close(&mut self) -> Result<()>;
}

/// Exponent of the local ACK timeout at both ends: 34 ms.
pub const TIMEOUT: u8 = 13;
