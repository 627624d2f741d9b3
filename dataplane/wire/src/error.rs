//! What can be wrong with a frame, and with a request to emit one.

use crate::Psn;
use crate::opcode::HeaderSet;
use thiserror::Error;

/// Why bytes are not a well-formed RoCEv2 packet.
///
/// Each variant is a reason to count. Only [`ParseError::ReservedOpcode`] may ever be answered, and only by an RC or
/// XRC responder whose own class the opcode belongs to; everything else is dropped in silence.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The packet ends before the header its opcode demands.
    #[error("transport header truncated: {have} bytes where {need} are needed")]
    HeaderTruncated {
        /// Bytes needed.
        need: u16,
        /// Bytes there.
        have: u16,
    },
    /// BTH.TVer is not 0, the only version there is.
    #[error("transport header version {tver} is not 0")]
    TransportVersion {
        /// The version found.
        tver: u8,
    },
    /// The opcode is not defined. An RC responder NAKs one of its own class as an invalid request.
    #[error("reserved opcode {opcode:#04x} to QP {dest_qpn:#08x}, PSN {psn}")]
    ReservedOpcode {
        /// The raw opcode; see [`crate::Transport::of_opcode`] for its class.
        opcode: u8,
        /// Destination QP of the BTH.
        dest_qpn: u32,
        /// PSN of the BTH.
        psn: Psn,
    },
}

/// Why a packet cannot be emitted. Each is a mistake of the caller; nothing was written that matters.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum EmitError {
    /// The output slice is too short.
    #[error("output buffer too small: {have} bytes where {need} are needed")]
    BufferTooSmall {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Class and operation do not go together.
    #[error("opcode {opcode:#04x} is not defined, choose an operation its transport class has")]
    UndefinedOpcode {
        /// The raw opcode.
        opcode: u8,
    },
    /// The optional headers filled in are not those the opcode carries.
    #[error("opcode {opcode:#04x} carries headers {required:?}, but {present:?} are set")]
    WrongHeaders {
        /// The raw opcode.
        opcode: u8,
        /// What the opcode demands.
        required: HeaderSet,
        /// What is `Some`.
        present: HeaderSet,
    },
}
