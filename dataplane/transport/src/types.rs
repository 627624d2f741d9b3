//! Plain numbers and enums shared by every state machine; discriminants are those of verbs where verbs has
//! them.

use core::fmt;

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use crate::bit_set::bit_set;
use crate::record::record;
use rnic_wire::Transport;

/// A point in time: nanoseconds of one monotonic clock, which the caller reads. The transport has no clock
/// of its own.
#[derive(
    Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, TryFromBytes, KnownLayout, Immutable,
)]
#[repr(transparent)]
pub struct Time(pub u64);

impl Time {
    /// A deadline that never comes. [`crate::RcQp::poll_timeout`] says `None` instead.
    pub const NEVER: Time = Time(u64::MAX);

    /// `nanos` later, or `None` when the clock cannot hold it.
    #[inline]
    pub const fn checked_add(self, nanos: u64) -> Option<Time> {
        match self.0.checked_add(nanos) {
            Some(t) => Some(Time(t)),
            None => None,
        }
    }

    /// `nanos` later, or [`Time::NEVER`].
    #[inline]
    pub const fn saturating_add(self, nanos: u64) -> Time {
        Time(self.0.saturating_add(nanos))
    }
}

/// State of a queue pair (10.3.1), with verbs' numbers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum QpState {
    /// Nothing is configured.
    #[default]
    Reset = 0,
    /// Receive WQEs may be posted; packets are dropped.
    Init = 1,
    /// Ready to receive.
    Rtr = 2,
    /// Ready to send as well.
    Rts = 3,
    /// Send queue draining or drained: what was started is finished, nothing new is begun.
    Sqd = 4,
    /// Send queue in error (UC and UD only); the receive side goes on.
    Sqe = 5,
    /// Error: everything is flushed, every packet dropped.
    Err = 6,
}

impl QpState {
    /// The state of a verbs number, 0 to 6.
    pub const fn from_verbs(value: u8) -> Option<Self> {
        Some(match value {
            0 => QpState::Reset,
            1 => QpState::Init,
            2 => QpState::Rtr,
            3 => QpState::Rts,
            4 => QpState::Sqd,
            5 => QpState::Sqe,
            6 => QpState::Err,
            _ => return None,
        })
    }

    /// Whether incoming requests are processed: RTR, RTS, SQD and SQE.
    #[inline]
    pub const fn receives(self) -> bool {
        matches!(self, QpState::Rtr | QpState::Rts | QpState::Sqd | QpState::Sqe)
    }

    /// Whether started send work requests proceed: RTS and SQD.
    #[inline]
    pub const fn sends(self) -> bool {
        matches!(self, QpState::Rts | QpState::Sqd)
    }
}

impl fmt::Display for QpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QpState::Reset => "RESET",
            QpState::Init => "INIT",
            QpState::Rtr => "RTR",
            QpState::Rts => "RTS",
            QpState::Sqd => "SQD",
            QpState::Sqe => "SQE",
            QpState::Err => "ERR",
        })
    }
}

/// Service type of a queue pair, with verbs' numbers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum QpType {
    /// Reliable connection.
    #[default]
    Rc = 2,
    /// Unreliable connection.
    Uc = 3,
    /// Unreliable datagram.
    Ud = 4,
    /// The requester of an extended reliable connection (A14): it has no receive queue.
    XrcIni = 9,
    /// The responder of an extended reliable connection (A14): it has no queue at all, and its receive WQEs come from the
    /// XRC SRQs of its domain.
    XrcTgt = 10,
}

impl QpType {
    /// The type of a verbs number that this crate implements.
    pub const fn from_verbs(value: u32) -> Option<Self> {
        Some(match value {
            2 => QpType::Rc,
            3 => QpType::Uc,
            4 => QpType::Ud,
            9 => QpType::XrcIni,
            10 => QpType::XrcTgt,
            _ => return None,
        })
    }

    /// The class of its packets.
    #[inline]
    pub const fn transport(self) -> Transport {
        match self {
            QpType::Rc => Transport::Rc,
            QpType::Uc => Transport::Uc,
            QpType::Ud => Transport::Ud,
            QpType::XrcIni | QpType::XrcTgt => Transport::Xrc,
        }
    }

    /// Whether requests are acknowledged, and an error ends the QP.
    #[inline]
    pub const fn is_reliable(self) -> bool {
        self.transport().is_reliable()
    }

    /// Whether it is one half of an extended reliable connection.
    #[inline]
    pub const fn is_xrc(self) -> bool {
        matches!(self, QpType::XrcIni | QpType::XrcTgt)
    }

    /// Whether work requests can be posted to its send queue.
    #[inline]
    pub const fn has_send_queue(self) -> bool {
        !matches!(self, QpType::XrcTgt)
    }

    /// Whether it has a receive queue, or an SRQ in its place.
    #[inline]
    pub const fn has_recv_queue(self) -> bool {
        !self.is_xrc()
    }
}

impl fmt::Display for QpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QpType::XrcIni => "XRC_INI",
            QpType::XrcTgt => "XRC_TGT",
            other => other.transport().name(),
        })
    }
}

/// Access rights of a QP, of a memory region or of a memory window: verbs' bits.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Access(u16);

impl Access {
    /// No right.
    pub const NONE: Access = Access(0);
    /// The owner's own work requests may write.
    pub const LOCAL_WRITE: Access = Access(1);
    /// The peer may write.
    pub const REMOTE_WRITE: Access = Access(2);
    /// The peer may read.
    pub const REMOTE_READ: Access = Access(4);
    /// The peer may execute atomics.
    pub const REMOTE_ATOMIC: Access = Access(8);
    /// Memory windows may be bound to the region (10.6.7).
    pub const MW_BIND: Access = Access(0x10);
    /// Of a memory window: its addresses count from 0 on, not from where it begins.
    pub const ZERO_BASED: Access = Access(0x20);
    /// The peer may flush what it wrote, so that all of this host sees it (A19).
    pub const FLUSH_GLOBAL: Access = Access(0x100);
    /// The peer may flush what it wrote, so that it outlives a loss of power (A19).
    pub const FLUSH_PERSISTENT: Access = Access(0x200);

    /// Whether every member is one of `other`.
    #[inline]
    pub const fn is_within(self, other: Access) -> bool {
        other.contains(self)
    }
}

bit_set!(Access: u16, all: 0x33F);

/// Status of a completion: `enum ibv_wc_status`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum WcStatus {
    /// Done.
    #[default]
    Success = 0,
    /// The message does not fit the receive WQE, or a local length is out of range.
    LocLenErr = 1,
    /// The WQE is malformed.
    LocQpOpErr = 2,
    /// A local SGE names memory it may not use.
    LocProtErr = 4,
    /// Not executed: the QP was in error.
    WrFlushErr = 5,
    /// A memory management operation failed: binding a window, local invalidate (11.6.2).
    MwBindErr = 6,
    /// The responder's answer makes no sense.
    BadRespErr = 7,
    /// A local buffer was inaccessible while a remote operation used it.
    LocAccessErr = 8,
    /// The responder calls the request invalid.
    RemInvReqErr = 9,
    /// The responder refuses key, range or access.
    RemAccessErr = 10,
    /// The responder could not finish the operation.
    RemOpErr = 11,
    /// `retry_cnt` exhausted without an answer.
    RetryExcErr = 12,
    /// `rnr_retry` exhausted: the responder has no receive WQE.
    RnrRetryExcErr = 13,
    /// RD only; what a NAK of code 4 turns into.
    RemInvRdReqErr = 15,
    /// The QP broke down.
    FatalErr = 19,
    /// Anything else.
    GeneralErr = 21,
}

/// Operation of a completion: `enum ibv_wc_opcode`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WcOpcode {
    /// SEND in any form.
    #[default]
    Send = 0,
    /// RDMA WRITE, with or without immediate.
    RdmaWrite = 1,
    /// RDMA READ.
    RdmaRead = 2,
    /// Compare and swap.
    CompSwap = 3,
    /// Fetch and add.
    FetchAdd = 4,
    /// Memory window bind.
    BindMw = 5,
    /// Local invalidate.
    LocalInv = 6,
    /// FLUSH.
    Flush = 8,
    /// ATOMIC WRITE.
    AtomicWrite = 9,
    /// A message arrived by SEND.
    Recv = 128,
    /// A message arrived by WRITE with immediate.
    RecvRdmaWithImm = 129,
}

/// Which queue a completion belongs to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Queue {
    /// The send queue.
    Send = 0,
    /// The receive queue (or SRQ).
    Recv = 1,
}

/// Flags of a completion.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CompletionFlags(u8);

impl CompletionFlags {
    /// Nothing set.
    pub const NONE: CompletionFlags = CompletionFlags(0);
    /// `imm_or_rkey` holds immediate data, as the number the sender gave.
    pub const WITH_IMM: CompletionFlags = CompletionFlags(1);
    /// `imm_or_rkey` holds the R_Key that was invalidated.
    pub const WITH_INV: CompletionFlags = CompletionFlags(2);
    /// Wake a CQ that is armed for solicited completions only.
    pub const SOLICITED: CompletionFlags = CompletionFlags(4);
    /// The first 40 bytes received are the GRH area (UD).
    pub const GRH: CompletionFlags = CompletionFlags(8);
}

bit_set!(CompletionFlags);

/// The check that failed: the "why" of every error completion and event.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum Check {
    /// Nothing failed.
    #[default]
    None = 0,
    /// No such key, or one that is no longer valid.
    Key = 1,
    /// The region lacks the right asked for.
    Access = 2,
    /// Address and length leave the region.
    Range = 3,
    /// The region belongs to another protection domain.
    PdMismatch = 4,
    /// Payload and announced length differ, or a packet is not of the size its opcode demands.
    Length = 5,
    /// The message is longer than the receive WQE.
    MessageTooLong = 6,
    /// The opcode may not follow the one before it.
    OpcodeSequence = 7,
    /// An opcode the specification reserves.
    ReservedOpcode = 8,
    /// An operation not implemented.
    UnsupportedOpcode = 9,
    /// The QP's access flags do not permit the operation.
    QpAccess = 10,
    /// More READs and atomics outstanding than `max_dest_rd_atomic`.
    RdAtomicResources = 11,
    /// The key of a SEND with invalidate could not be invalidated.
    Invalidate = 12,
    /// A receive WQE or its ring is malformed.
    ReceiveQueue = 13,
    /// A local SGE is not usable.
    LocalProtection = 14,
    /// No answer within `retry_cnt` retries.
    RetryExceeded = 15,
    /// RNR NAKs beyond `rnr_retry`.
    RnrRetryExceeded = 16,
    /// The peer sent a NAK; `Cause::syndrome` is its byte.
    RemoteNak = 17,
    /// A READ response or atomic ACK of the wrong opcode or length.
    BadResponse = 18,
    /// The completion queue is full.
    CqOverflow = 19,
    /// The QP entered ERR earlier, by another work request or by the application.
    Flushed = 20,
    /// The send ring's indices or a send WQE were forged.
    SendQueue = 21,
    /// Memory of the client went away under an access.
    MemoryFault = 22,
    /// The port or device is gone.
    DeviceRemoved = 23,
    /// An atomic's address is no multiple of 8, or its length not 8.
    Alignment = 24,
    /// No such address handle, or one of another protection domain.
    AddressHandle = 25,
    /// No XRC SRQ of the number in the XRCETH, or another than the message began with (A14).
    XrcSrq = 26,
    /// The XRC SRQ belongs to another XRC domain than the QP (A14).
    XrcDomain = 27,
    /// The memory window cannot be bound now: it is bound already (type 2), or to no range at all.
    WindowState = 28,
    /// Memory windows are bound to the region.
    WindowsBound = 29,
    /// The memory window was bound on another QP.
    WindowQp = 30,
}

record! {
    /// Why an error happened: fixed-width, small enough for every CQE.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cause {
        /// PSN of the packet or request concerned, 24 bits.
        pub psn: u32,
        /// The check that failed.
        pub check: Check,
        /// BTH opcode of the packet concerned.
        pub opcode: u8,
        /// AETH syndrome byte received or sent; 0 when none was involved.
        pub syndrome: u8,
    }
}

impl Cause {
    /// A cause without a packet.
    pub const fn of(check: Check) -> Self {
        Cause {
            psn: 0,
            check,
            opcode: 0,
            syndrome: 0,
        }
    }
}

/// Kind of an asynchronous event of a QP.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// The QP went to ERR for a local reason that no completion can carry.
    QpFatal,
    /// The responder met an invalid request.
    QpReqErr,
    /// The responder met a violation of key, range or access (C9-222.1.1).
    QpAccessErr,
    /// The first packet arrived in RTR.
    CommEst,
    /// SQD: everything that had been started is done.
    SqDrained,
    /// A QP on an SRQ is in ERR and consumes no further receive WQE.
    LastWqeReached,
}

/// An asynchronous event.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Why.
    pub cause: Cause,
}
