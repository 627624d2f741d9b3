//! Work requests as the state machines see them: fixed-width records without pointers.

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use crate::bit_set::bit_set;
use crate::record::record;
use crate::types::{Access, WcOpcode};
use rnic_wire::{Feth, Psn};

/// Operation of a send work request: `enum ibv_wr_opcode`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum WrOpcode {
    /// RDMA WRITE.
    Write = 0,
    /// RDMA WRITE with immediate.
    WriteImm = 1,
    /// SEND.
    #[default]
    Send = 2,
    /// SEND with immediate.
    SendImm = 3,
    /// RDMA READ.
    Read = 4,
    /// Compare and swap.
    CompSwap = 5,
    /// Fetch and add.
    FetchAdd = 6,
    /// Local invalidate: of the key in `imm_or_rkey`, without data. It begins when everything before it is done,
    /// and what follows begins when it is done.
    LocalInv = 7,
    /// Memory window bind: see [`Bind`]. It begins and ends as a local invalidate does.
    BindMw = 8,
    /// SEND with invalidate.
    SendInv = 9,
    /// FLUSH of a range of the peer's memory (A19): see [`Flush`].
    Flush = 14,
    /// ATOMIC WRITE of 8 bytes (A19).
    AtomicWrite = 15,
}

impl WrOpcode {
    /// The operation of a verbs number.
    pub const fn from_verbs(value: u8) -> Option<Self> {
        Some(match value {
            0 => WrOpcode::Write,
            1 => WrOpcode::WriteImm,
            2 => WrOpcode::Send,
            3 => WrOpcode::SendImm,
            4 => WrOpcode::Read,
            5 => WrOpcode::CompSwap,
            6 => WrOpcode::FetchAdd,
            7 => WrOpcode::LocalInv,
            8 => WrOpcode::BindMw,
            9 => WrOpcode::SendInv,
            14 => WrOpcode::Flush,
            15 => WrOpcode::AtomicWrite,
            _ => return None,
        })
    }

    /// The operation its completion names.
    #[inline]
    pub const fn wc_opcode(self) -> WcOpcode {
        match self {
            WrOpcode::Write | WrOpcode::WriteImm => WcOpcode::RdmaWrite,
            WrOpcode::Send | WrOpcode::SendImm | WrOpcode::SendInv => WcOpcode::Send,
            WrOpcode::Read => WcOpcode::RdmaRead,
            WrOpcode::CompSwap => WcOpcode::CompSwap,
            WrOpcode::FetchAdd => WcOpcode::FetchAdd,
            WrOpcode::LocalInv => WcOpcode::LocalInv,
            WrOpcode::BindMw => WcOpcode::BindMw,
            WrOpcode::Flush => WcOpcode::Flush,
            WrOpcode::AtomicWrite => WcOpcode::AtomicWrite,
        }
    }
}

/// Flags of a send work request: `enum ibv_send_flags`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct SendFlags(u8);

impl SendFlags {
    /// No flag.
    pub const NONE: SendFlags = SendFlags(0);
    /// Begin only when every earlier READ and atomic is done.
    pub const FENCE: SendFlags = SendFlags(1);
    /// Complete even on success.
    pub const SIGNALED: SendFlags = SendFlags(2);
    /// Ask for a solicited completion at the receiver.
    pub const SOLICITED: SendFlags = SendFlags(4);
    /// The data was copied into the WQE; the host's concern alone.
    pub const INLINE: SendFlags = SendFlags(8);
}

bit_set!(SendFlags, all: 0xF);

record! {
    /// One accepted send work request, in the QP's private ring. Plain data: it may be kept in an arena that
    /// outlives the process.
    #[derive(Copy, Clone, Debug, Default)]
    pub struct SendWr {
        /// The application's name of the work request.
        pub wr_id: u64,
        /// Remote address of WRITE, READ, atomics and FLUSH; where a window begins.
        pub remote_addr: u64,
        /// What an atomic compares with, or adds; bytes of a window or of a FLUSH.
        pub compare_add: u64,
        /// What a compare and swap puts there; rights of a window ([`Access::bits`](crate::Access::bits)); the FETH of a
        /// FLUSH ([`Flush::to_bits`]).
        pub swap: u64,
        /// Remote key of WRITE, READ, atomics and FLUSH; key of the region that a window is bound to.
        pub rkey: u32,
        /// Immediate data (as a number; the wire carries it big-endian), the key to invalidate, or the key that a
        /// window is to have.
        pub imm_or_rkey: u32,
        /// Message bytes, at most 2^31; 8 of an atomic, none of a FLUSH.
        pub length: u32,
        /// The host's own token, by which it finds the buffers.
        pub data: u32,
        /// Number of the XRC SRQ at the peer that it is for, 24 bits. Of an XRC initiator alone.
        pub remote_srqn: u32,
        /// Operation.
        pub opcode: WrOpcode,
        /// Flags.
        pub flags: SendFlags,
        /// The host's own: `compare_add` and `swap`, for which SEND, WRITE and READ have no use, say where the message lies.
        pub has_entry: bool,
        /// Zero.
        pub reserved: u8,
        /// First PSN. The transport's: set when the request is started, ignored when it is posted.
        pub first: Psn,
        /// Last PSN (of the last response, for READ and atomics). The transport's, like `first`.
        pub last: Psn,
    }
}

impl SendWr {
    /// Whether it counts against `max_rd_atomic`, and only its own response completes it.
    #[inline]
    pub(crate) fn is_rd_atomic(&self) -> bool {
        self.fetches() || self.is_bare()
    }

    /// Whether its response brings something back.
    #[inline]
    pub(crate) fn fetches(&self) -> bool {
        self.is_read() || self.is_atomic()
    }

    /// FLUSH or ATOMIC WRITE: its response is that of a READ of no bytes.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self.opcode, WrOpcode::Flush | WrOpcode::AtomicWrite)
    }

    #[inline]
    pub(crate) fn is_atomic(&self) -> bool {
        matches!(self.opcode, WrOpcode::CompSwap | WrOpcode::FetchAdd)
    }

    #[inline]
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.opcode, WrOpcode::Read)
    }

    /// Whether it concerns this side's keys alone: no packet is sent, and it has no PSN.
    #[inline]
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.opcode, WrOpcode::LocalInv | WrOpcode::BindMw)
    }
}

/// What a memory window bind asks for (10.6.7.2, 11.4.1.1).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The key that the window is to have: its number, and the key byte that the consumer chose.
    pub key: u32,
    /// Key of the region.
    pub region: u32,
    /// Where in the region the window begins, in the terms of the region.
    pub addr: u64,
    /// Bytes; none to unbind a window of type 1.
    pub len: u64,
    /// Rights of the peer: [`Access::REMOTE_WRITE`], [`Access::REMOTE_READ`], [`Access::REMOTE_ATOMIC`],
    /// [`Access::FLUSH_GLOBAL`]; and [`Access::ZERO_BASED`].
    pub access: Access,
}

impl Bind {
    /// The bind of a work request; `None` when it asks for rights that no window has.
    pub(crate) fn of(wr: &SendWr) -> Option<Bind> {
        const RIGHTS: Access = Access::REMOTE_WRITE
            .union(Access::REMOTE_READ)
            .union(Access::REMOTE_ATOMIC)
            .union(Access::FLUSH_GLOBAL)
            .union(Access::ZERO_BASED);
        let access = Access::from_bits(u32::try_from(wr.swap).ok()?)?;
        access.is_within(RIGHTS).then_some(Bind {
            key: wr.imm_or_rkey,
            region: wr.rkey,
            addr: wr.remote_addr,
            len: wr.compare_add,
            access,
        })
    }
}

/// How far a FLUSH goes, and what for: the FETH (A19.4.2).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    /// What has to be true of the data when it is answered: [`Access::FLUSH_GLOBAL`], [`Access::FLUSH_PERSISTENT`].
    pub placement: Access,
    /// The whole region (or window) of the key, whatever address and length say.
    pub whole: bool,
}

impl Flush {
    /// What a FETH asks for; `None` when it asks for nothing, or for what the specification reserves.
    pub(crate) fn of(feth: Feth) -> Option<Flush> {
        const KNOWN: u8 = Feth::GLOBAL_VISIBILITY | Feth::PERSISTENCE;
        if feth.placement == 0 || feth.placement & !KNOWN != 0 {
            return None;
        }
        let whole = match feth.selectivity {
            Feth::RANGE => false,
            Feth::REGION => true,
            _ => return None,
        };
        let mut placement = Access::NONE;
        if feth.placement & Feth::GLOBAL_VISIBILITY != 0 {
            placement = placement.union(Access::FLUSH_GLOBAL);
        }
        if feth.placement & Feth::PERSISTENCE != 0 {
            placement = placement.union(Access::FLUSH_PERSISTENT);
        }
        Some(Flush { placement, whole })
    }

    /// The FETH of a work request: placement in the lowest byte, selectivity in the next, as on the wire.
    pub const fn to_bits(placement: u8, selectivity: u8) -> u64 {
        placement as u64 | (selectivity as u64) << 8
    }

    /// The FETH of a work request's [`SendWr::swap`]; `None` when it is none that a responder takes.
    pub(crate) fn feth(bits: u64) -> Option<Feth> {
        let [placement, selectivity, rest @ ..] = bits.to_le_bytes();
        let feth = Feth {
            placement,
            selectivity,
        };
        (rest == [0; 6] && Flush::of(feth).is_some()).then_some(feth)
    }
}

record! {
    /// One receive WQE, taken by the host from the RQ or SRQ.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct RecvWqe {
        /// The application's name of the work request.
        pub wr_id: u64,
        /// Bytes its buffers hold together.
        pub capacity: u32,
        /// The host's own token, by which it finds the buffers.
        pub data: u32,
    }
}
