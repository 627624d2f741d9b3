//! Work queues and completion queues.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{LINE, RingIndices};

/// Size of a WQE unit. A WQE takes 1 to [`Wqe::MAX_UNITS`] consecutive units; queue indices count units.
pub const WQE_UNIT: usize = 64;
/// Scatter/gather entries a WQE can have.
pub const MAX_SGE: usize = 32;
/// Bytes of payload a WQE can carry itself.
pub const MAX_INLINE: usize = SGES_IN_HEAD * size_of::<Sge>() + 14 * WQE_UNIT;
/// Scatter/gather entries that fit the first unit.
pub const SGES_IN_HEAD: usize = 2;
/// Scatter/gather entries in each further unit.
pub const SGES_PER_UNIT: usize = WQE_UNIT / size_of::<Sge>();

/// One scatter/gather entry.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sge {
    /// Address inside the memory region, in the terms of its registration (`iova`).
    pub addr: u64,
    /// Bytes; zero is allowed.
    pub length: u32,
    /// Local key of the region.
    pub lkey: u32,
}

/// The first unit of a WQE, send or receive. The opcodes are those of `enum ibv_wr_opcode`; a receive WQE has
/// opcode 0 and uses `wr_id`, `num_sge`, `units` and the entries only.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Wqe {
    /// Returned in the completion.
    pub wr_id: u64,
    /// `enum ibv_wr_opcode`.
    pub opcode: u8,
    /// [`wqe_flags`].
    pub flags: u8,
    /// Entries, 0 to [`MAX_SGE`]; must be zero with [`wqe_flags::INLINE`].
    pub num_sge: u8,
    /// Units of the whole WQE, 1 to [`Wqe::MAX_UNITS`].
    pub units: u8,
    /// Immediate data (host order) or the key to invalidate at the peer.
    pub imm_or_rkey: u32,
    /// Address at the peer (READ, WRITE, atomics); of a datagram see [`Wqe::to`].
    pub remote_addr: u64,
    /// Key at the peer; of a datagram its Q_Key.
    pub rkey: u32,
    /// Inline bytes when [`wqe_flags::INLINE`] is set, else zero.
    pub inline_len: u32,
    /// The first entries, or the first 32 inline bytes.
    pub sges: [Sge; SGES_IN_HEAD],
}

/// Operands of an atomic work request, in host order. They stand in the place of its second entry: it has one, of
/// 8 bytes, for what the atomic finds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AtomicOperands {
    /// What is compared with, or added.
    pub compare_add: u64,
    /// What is swapped in; no meaning in a fetch and add.
    pub swap: u64,
}

impl From<AtomicOperands> for Sge {
    fn from(operands: AtomicOperands) -> Sge {
        zerocopy::transmute!(operands)
    }
}

/// Operands of a memory window bind, in the place of its second entry. It has no entry: `remote_addr` is where the window
/// begins, `rkey` the key of the region, `imm_or_rkey` the key that the window is to have.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindOperands {
    /// Bytes.
    pub length: u64,
    /// `enum ibv_access_flags`: what peers may do.
    pub access: u32,
    /// Zero.
    pub reserved: u32,
}

/// Operands of a FLUSH, in the place of its second entry. It has no entry.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushOperands {
    /// Bytes.
    pub length: u32,
    /// `enum ibv_placement_type`: 1 global visibility, 2 persistence, or both.
    pub placement: u8,
    /// `enum ibv_selectivity_level`: 0 the range, 1 the whole region of the key.
    pub selectivity: u8,
    /// Zero.
    pub reserved: [u8; 10],
}

impl From<BindOperands> for Sge {
    fn from(operands: BindOperands) -> Sge {
        zerocopy::transmute!(operands)
    }
}

impl From<FlushOperands> for Sge {
    fn from(operands: FlushOperands) -> Sge {
        zerocopy::transmute!(operands)
    }
}

impl Wqe {
    /// Makes it a datagram (UD): through the address handle of number `ah`, to a QP, with a Q_Key whose highest bit stands
    /// for the sending QP's own.
    pub const fn to(mut self, ah: u32, remote_qpn: u32, remote_qkey: u32) -> Wqe {
        self.remote_addr = (ah as u64) << 32 | remote_qpn as u64;
        self.rkey = remote_qkey;
        self
    }

    /// The operands of an atomic work request.
    pub const fn atomic_operands(&self) -> AtomicOperands {
        zerocopy::transmute!(self.sges[1])
    }

    /// The operands of a memory window bind.
    pub const fn bind_operands(&self) -> BindOperands {
        zerocopy::transmute!(self.sges[1])
    }

    /// The operands of a FLUSH.
    pub const fn flush_operands(&self) -> FlushOperands {
        zerocopy::transmute!(self.sges[1])
    }

    /// Units of the longest WQE: of inline payload, over XRC.
    pub const MAX_UNITS: u32 = 16;

    /// Units a WQE with `sges` entries takes.
    pub const fn units_for_sges(sges: usize) -> u32 {
        1 + sges.saturating_sub(SGES_IN_HEAD).div_ceil(SGES_PER_UNIT) as u32
    }

    /// Units a WQE with `bytes` of inline payload takes.
    pub const fn units_for_inline(bytes: usize) -> u32 {
        1 + bytes
            .saturating_sub(SGES_IN_HEAD * size_of::<Sge>())
            .div_ceil(WQE_UNIT) as u32
    }
}

/// The last unit of a WQE with [`wqe_flags::XRC`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XrcUnit {
    /// Number of the XRC SRQ at the peer, 24 bits.
    pub remote_srqn: u32,
    /// Zero.
    pub reserved: [u32; 15],
}

const _: () = assert!(size_of::<XrcUnit>() == WQE_UNIT);

/// Bits of [`Wqe::flags`]: those of `enum ibv_send_flags`.
pub mod wqe_flags {
    /// Wait for earlier READs and atomics.
    pub const FENCE: u8 = 1;
    /// Make a completion even on success.
    pub const SIGNALED: u8 = 2;
    /// Wake a peer that waits for solicited completions.
    pub const SOLICITED: u8 = 4;
    /// The payload stands in the WQE.
    pub const INLINE: u8 = 8;
    /// Every bit of verbs that means something.
    pub const ALL: u8 = 15;
    /// The WQE ends with a unit more, an [`XrcUnit`](super::XrcUnit). Set in every WQE of an XRC initiator, and in no other.
    pub const XRC: u8 = 128;
}

/// A completion. `status` and `opcode` are those of `enum ibv_wc_status` and `enum ibv_wc_opcode`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cqe {
    /// From the work request.
    pub wr_id: u64,
    /// Handle (with generation) of the QP; completions of destroyed QPs are dropped by the library.
    pub handle: u32,
    /// Number of the QP.
    pub qpn: u32,
    /// Bytes received, or fetched by a READ or atomic.
    pub byte_len: u32,
    /// Immediate data or the key that was invalidated, as `flags` say.
    pub imm_or_rkey: u32,
    /// QPN of the sender (UD), else of the connected peer.
    pub src_qpn: u32,
    /// `enum ibv_wc_status`.
    pub status: u8,
    /// `enum ibv_wc_opcode`.
    pub opcode: u8,
    /// [`cqe_flags`].
    pub flags: u16,
    /// Why, for an error.
    pub cause: Cause,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub timestamp: u64,
    /// Zero.
    pub reserved: [u8; 16],
}

/// Bits of [`Cqe::flags`].
pub mod cqe_flags {
    /// `imm_or_rkey` is immediate data.
    pub const WITH_IMM: u16 = 1;
    /// `imm_or_rkey` is an invalidated key.
    pub const WITH_INV: u16 = 2;
    /// The sender asked for a solicited event.
    pub const SOLICITED: u16 = 4;
    /// The completion belongs to the receive queue.
    pub const RECV: u16 = 8;
    /// The first 40 bytes received are the GRH area of a datagram.
    pub const GRH: u16 = 16;
    /// Received over XRC: `handle` is that of the XRC SRQ, `qpn` that of the target QP.
    pub const XRC: u16 = 32;
}

/// Why an operation or an object failed. `check` is the number of the daemon's `Check`; 0 is "none".
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cause {
    /// The check that failed.
    pub check: u8,
    /// Opcode of the packet, as on the wire.
    pub opcode: u8,
    /// AETH syndrome received or sent, if any.
    pub syndrome: u8,
    /// Zero.
    pub reserved: u8,
    /// PSN of the packet.
    pub psn: u32,
}

/// Names of [`Cause::check`], by number, for people.
pub const CHECK_NAMES: [&str; 31] = [
    "none",
    "no such key, or no longer valid",
    "access not granted by the region",
    "address and length leave the region",
    "region of another protection domain",
    "length differs from what was announced",
    "message longer than the receive buffers",
    "opcode out of sequence",
    "reserved opcode",
    "operation not supported",
    "operation not permitted by the QP",
    "too many READs and atomics outstanding",
    "key could not be invalidated",
    "malformed receive work request",
    "local buffer not usable",
    "no answer within the retries",
    "receiver not ready within the retries",
    "refused by the peer",
    "response makes no sense",
    "completion queue overflow",
    "flushed",
    "malformed send work request",
    "memory went away",
    "device or port removed",
    "atomic not of 8 bytes at a multiple of 8",
    "no such address handle",
    "no such XRC SRQ, or another than the message began with",
    "XRC SRQ of another XRC domain",
    "memory window cannot be bound now",
    "memory windows bound to the region",
    "memory window bound on another QP",
];

/// Where a send or receive queue stands: [`RingIndices`], then `depth` units.
pub const fn work_queue_size(depth: u32) -> usize {
    size_of::<RingIndices>() + depth as usize * WQE_UNIT
}

/// Where a completion queue stands: one line with the arm word at its start, then `subrings` times
/// ([`RingIndices`], `depth` entries). Each poll core that feeds the queue has a sub-ring of full depth;
/// order is kept per QP.
pub const fn completion_queue_size(depth: u32, subrings: u32) -> usize {
    LINE + subrings as usize * cq_subring_size(depth)
}

/// Bytes of one sub-ring.
pub const fn cq_subring_size(depth: u32) -> usize {
    size_of::<RingIndices>() + depth as usize * size_of::<Cqe>()
}

/// Offset of sub-ring `i` in a completion queue.
pub const fn cq_subring_offset(depth: u32, i: u32) -> usize {
    LINE + i as usize * cq_subring_size(depth)
}

/// Offset of the entries behind [`RingIndices`].
pub const RING_ENTRIES: usize = size_of::<RingIndices>();

/// Values of a completion queue's arm word.
pub mod arm {
    /// No wake wanted.
    pub const NONE: u32 = 0;
    /// Wake at the next solicited completion or error.
    pub const SOLICITED: u32 = 1;
    /// Wake at the next completion.
    pub const ANY: u32 = 2;
}
