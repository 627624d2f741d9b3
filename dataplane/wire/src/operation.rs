//! What a packet does within its transport class (9.2.1, table 38; A19 for FLUSH and ATOMIC WRITE).

use crate::header_set::HeaderSet;
use crate::opcode::Transport;

/// What a packet does. Discriminants are the low five bits of the opcode; bit 5 tells those of no service type apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the names are the specification's
pub enum Operation {
    SendFirst = 0x00,
    SendMiddle = 0x01,
    SendLast = 0x02,
    SendLastImm = 0x03,
    SendOnly = 0x04,
    SendOnlyImm = 0x05,
    WriteFirst = 0x06,
    WriteMiddle = 0x07,
    WriteLast = 0x08,
    WriteLastImm = 0x09,
    WriteOnly = 0x0A,
    WriteOnlyImm = 0x0B,
    ReadRequest = 0x0C,
    ReadResponseFirst = 0x0D,
    ReadResponseMiddle = 0x0E,
    ReadResponseLast = 0x0F,
    ReadResponseOnly = 0x10,
    Acknowledge = 0x11,
    AtomicAcknowledge = 0x12,
    CompareSwap = 0x13,
    FetchAdd = 0x14,
    /// RD only, hence never part of a defined [`crate::Opcode`].
    Resync = 0x15,
    SendLastInv = 0x16,
    SendOnlyInv = 0x17,
    Flush = 0x1C,
    AtomicWrite = 0x1D,
    /// The one operation of [`Transport::Cnp`].
    CongestionNotification = 0x21,
    /// The one operation of [`Transport::Rnic`].
    SelectiveAcknowledge = 0x31,
}

use Operation::*;

impl Operation {
    /// Every operation, in the order of the enum.
    pub const ALL: [Operation; 28] = [
        SendFirst,
        SendMiddle,
        SendLast,
        SendLastImm,
        SendOnly,
        SendOnlyImm,
        WriteFirst,
        WriteMiddle,
        WriteLast,
        WriteLastImm,
        WriteOnly,
        WriteOnlyImm,
        ReadRequest,
        ReadResponseFirst,
        ReadResponseMiddle,
        ReadResponseLast,
        ReadResponseOnly,
        Acknowledge,
        AtomicAcknowledge,
        CompareSwap,
        FetchAdd,
        Resync,
        SendLastInv,
        SendOnlyInv,
        Flush,
        AtomicWrite,
        CongestionNotification,
        SelectiveAcknowledge,
    ];

    /// Whether the operation exists in a transport class (table 38, A19 for FLUSH and ATOMIC WRITE).
    pub(crate) const fn exists_in(self, transport: Transport) -> bool {
        match transport {
            Transport::Rc | Transport::Xrc => {
                !matches!(self, Resync | CongestionNotification | SelectiveAcknowledge)
            }
            Transport::Uc => (self as u8) <= WriteOnlyImm as u8,
            Transport::Ud => matches!(self, SendOnly | SendOnlyImm),
            Transport::Cnp => matches!(self, CongestionNotification),
            Transport::Rnic => matches!(self, SelectiveAcknowledge),
            Transport::Rd => false,
        }
    }

    /// The extension headers of the operation, apart from those which the transport adds.
    pub(crate) const fn headers(self) -> HeaderSet {
        match self {
            SendLastImm | SendOnlyImm | WriteLastImm => HeaderSet::IMM,
            SendLastInv | SendOnlyInv => HeaderSet::IETH,
            WriteFirst | WriteOnly | ReadRequest | AtomicWrite => HeaderSet::RETH,
            WriteOnlyImm => HeaderSet::RETH.with(HeaderSet::IMM),
            Flush => HeaderSet::FETH.with(HeaderSet::RETH),
            CompareSwap | FetchAdd => HeaderSet::ATOMIC,
            ReadResponseFirst | ReadResponseLast | ReadResponseOnly | Acknowledge | SelectiveAcknowledge => {
                HeaderSet::AETH
            }
            AtomicAcknowledge => HeaderSet::AETH.with(HeaderSet::ATOMIC_ACK),
            CongestionNotification => HeaderSet::CNP_RESERVED,
            SendFirst | SendMiddle | SendLast | SendOnly | WriteMiddle | WriteLast | ReadResponseMiddle
            | Resync => HeaderSet::EMPTY,
        }
    }

    /// The operation's name as the field writes it, "SEND_FIRST" say.
    pub const fn name(self) -> &'static str {
        match self {
            SendFirst => "SEND_FIRST",
            SendMiddle => "SEND_MIDDLE",
            SendLast => "SEND_LAST",
            SendLastImm => "SEND_LAST_IMM",
            SendOnly => "SEND_ONLY",
            SendOnlyImm => "SEND_ONLY_IMM",
            WriteFirst => "WRITE_FIRST",
            WriteMiddle => "WRITE_MIDDLE",
            WriteLast => "WRITE_LAST",
            WriteLastImm => "WRITE_LAST_IMM",
            WriteOnly => "WRITE_ONLY",
            WriteOnlyImm => "WRITE_ONLY_IMM",
            ReadRequest => "READ_REQUEST",
            ReadResponseFirst => "READ_RESP_FIRST",
            ReadResponseMiddle => "READ_RESP_MIDDLE",
            ReadResponseLast => "READ_RESP_LAST",
            ReadResponseOnly => "READ_RESP_ONLY",
            Acknowledge => "ACK",
            AtomicAcknowledge => "ATOMIC_ACK",
            CompareSwap => "CMP_SWAP",
            FetchAdd => "FETCH_ADD",
            Resync => "RESYNC",
            SendLastInv => "SEND_LAST_INV",
            SendOnlyInv => "SEND_ONLY_INV",
            Flush => "FLUSH",
            AtomicWrite => "ATOMIC_WRITE",
            CongestionNotification => "NOTIFY",
            SelectiveAcknowledge => "SELECTIVE_ACK",
        }
    }
}
