//! Completions as the application sees them.
use std::fmt;

use rnic_abi::{Cqe, cqe_flags};

use crate::Cause;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// How a work request ended: `enum ibv_wc_status` (IBTA 10.10.3).
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[$doc])* $name,)*
            /// A number this library does not know.
            Other(u8),
        }

        impl Status {
            pub(crate) fn from_code(code: u8) -> Status {
                match code { $($number => Status::$name,)* other => Status::Other(other) }
            }
        }

        impl fmt::Display for Status {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Status::$name => f.write_str($text),)*
                    Status::Other(number) => write!(f, "status {number}"),
                }
            }
        }
    };
}

statuses! {
    /// Done.
    #[default]
    Success = 0, "success";
    /// A local length was wrong: message too long for the receive, or for the port.
    LocalLength = 1, "local length error";
    /// The QP could not do it.
    LocalQpOperation = 2, "local QP operation error";
    /// A local key or address was wrong.
    LocalProtection = 4, "local protection error";
    /// The QP had failed before this request ran.
    Flushed = 5, "flushed: the QP is in the error state";
    /// A memory window could not be bound.
    MwBind = 6, "memory window bind error";
    /// The peer answered nonsense.
    BadResponse = 7, "bad response";
    /// Local access was refused while receiving a WRITE with immediate.
    LocalAccess = 8, "local access error";
    /// The peer called the request invalid.
    RemoteInvalidRequest = 9, "remote invalid request error";
    /// The peer refused the key, the address or the access.
    RemoteAccess = 10, "remote access error";
    /// The peer failed while doing it.
    RemoteOperation = 11, "remote operation error";
    /// No answer after all retries.
    RetryExceeded = 12, "transport retry counter exceeded";
    /// The peer had no receive posted, after all retries.
    RnrRetryExceeded = 13, "RNR retry counter exceeded";
    /// The peer aborted the operation.
    RemoteAborted = 16, "remote aborted";
    /// The device failed.
    Fatal = 19, "fatal error";
    /// No answer in time.
    ResponseTimeout = 20, "response timeout";
    /// Something else.
    General = 21, "general error";
}

/// What a completed work request was: `enum ibv_wc_opcode`. Meaningful on success only.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Opcode {
    /// SEND in any form.
    #[default]
    Send,
    /// RDMA WRITE in any form.
    Write,
    /// RDMA READ.
    Read,
    /// COMPARE & SWAP.
    CompareSwap,
    /// FETCH & ADD.
    FetchAdd,
    /// Bound a memory window.
    BindMw,
    /// Invalidated a key of ours.
    LocalInvalidate,
    /// FLUSH.
    Flush,
    /// ATOMIC WRITE.
    AtomicWrite,
    /// Received a SEND.
    Recv,
    /// Received the immediate of an RDMA WRITE.
    RecvWriteImm,
    /// A number this library does not know.
    Other(u8),
}

impl Opcode {
    fn from_code(code: u8) -> Opcode {
        match code {
            0 => Opcode::Send,
            1 => Opcode::Write,
            2 => Opcode::Read,
            3 => Opcode::CompareSwap,
            4 => Opcode::FetchAdd,
            5 => Opcode::BindMw,
            6 => Opcode::LocalInvalidate,
            8 => Opcode::Flush,
            9 => Opcode::AtomicWrite,
            128 => Opcode::Recv,
            129 => Opcode::RecvWriteImm,
            other => Opcode::Other(other),
        }
    }
}

/// A completed work request.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The number given with the work request.
    pub wr_id: u64,
    /// Number of the QP.
    pub qpn: u32,
    /// How it ended.
    pub status: Status,
    /// What it was.
    pub opcode: Opcode,
    /// Whether it belongs to the receive queue; valid whatever the status.
    pub is_recv: bool,
    /// Bytes received, or read.
    pub byte_len: u32,
    /// Immediate data, in host order.
    pub imm: Option<u32>,
    /// The key of ours that the peer invalidated.
    pub invalidated_rkey: Option<u32>,
    /// Whether the sender asked for a solicited event.
    pub solicited: bool,
    /// Number of the peer's QP: of the sender of a datagram.
    pub src_qpn: u32,
    /// Whether the first 40 bytes received are the GRH area of a datagram ([`crate::Pd::create_ah_from_wc`]); they count in
    /// `byte_len`.
    pub has_grh: bool,
    /// Received over XRC: number of the SRQ it was received by; `qpn` is that of the [`TargetQp`](crate::TargetQp).
    pub srqn: Option<u32>,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub timestamp: u64,
    /// Why, for an error.
    pub cause: Option<Cause>,
}

impl Completion {
    pub(crate) fn new(cqe: &Cqe, wr_id: u64) -> Completion {
        let has = |flag| cqe.flags & flag != 0;
        Completion {
            wr_id,
            qpn: cqe.qpn,
            status: Status::from_code(cqe.status),
            opcode: Opcode::from_code(cqe.opcode),
            is_recv: has(cqe_flags::RECV),
            byte_len: cqe.byte_len,
            imm: has(cqe_flags::WITH_IMM).then_some(cqe.imm_or_rkey),
            invalidated_rkey: has(cqe_flags::WITH_INV).then_some(cqe.imm_or_rkey),
            solicited: has(cqe_flags::SOLICITED),
            src_qpn: cqe.src_qpn,
            has_grh: has(cqe_flags::GRH),
            srqn: None,
            timestamp: cqe.timestamp,
            cause: Cause::from_abi(cqe.cause),
        }
    }

    /// The completion itself when it is a success, else an error that says everything known.
    pub fn ok(self) -> Result<Completion, CompletionError> {
        if self.status == Status::Success {
            Ok(self)
        } else {
            Err(CompletionError(self))
        }
    }
}

/// A work request that failed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CompletionError(pub Completion);

impl fmt::Display for CompletionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Completion {
            wr_id,
            qpn,
            status,
            is_recv,
            cause,
            ..
        } = &self.0;
        let queue = if *is_recv { "receive" } else { "send" };
        write!(
            f,
            "work request {wr_id} ({queue} queue of QP {qpn:#x}) failed: {status}"
        )?;
        match cause {
            Some(cause) => write!(f, "; {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CompletionError {}
