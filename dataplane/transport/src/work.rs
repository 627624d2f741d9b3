//! Work requests as the state machines see them: fixed-width records without pointers.

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use crate::bit_set::bit_set;
use crate::record::record;
use crate::types::WcOpcode;
use rnic_wire::Psn;

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
    /// Memory window bind. Not implemented yet: refused by `post_send`.
    BindMw = 8,
    /// SEND with invalidate.
    SendInv = 9,
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
        /// Remote address of WRITE, READ and atomics.
        pub remote_addr: u64,
        /// What an atomic compares with, or adds.
        pub compare_add: u64,
        /// What a compare and swap puts there.
        pub swap: u64,
        /// Remote key of WRITE, READ and atomics.
        pub rkey: u32,
        /// Immediate data (as a number; the wire carries it big-endian) or the key to invalidate.
        pub imm_or_rkey: u32,
        /// Message bytes, at most 2^31; 8 of an atomic.
        pub length: u32,
        /// The host's own token, by which it finds the buffers.
        pub data: u32,
        /// Number of the XRC SRQ at the peer that it is for, 24 bits. Of an XRC initiator alone.
        pub remote_srqn: u32,
        /// Operation.
        pub opcode: WrOpcode,
        /// Flags.
        pub flags: SendFlags,
        /// Zero.
        pub reserved: u16,
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
        self.is_read() || self.is_atomic()
    }

    #[inline]
    pub(crate) fn is_atomic(&self) -> bool {
        matches!(self.opcode, WrOpcode::CompSwap | WrOpcode::FetchAdd)
    }

    #[inline]
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.opcode, WrOpcode::Read)
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
