//! BTH opcodes: three bits of transport class, five bits of operation (9.2.1, table 38; A17.9.1 for the CNP).

use crate::header_set::HeaderSet;
use crate::operation::Operation::{self, *};
use core::fmt;

/// The transport class of a packet: the top three bits of its opcode.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Transport {
    /// Reliable connection.
    Rc = 0,
    /// Unreliable connection.
    Uc = 1,
    /// Reliable datagram. Known as a class only: none of its opcodes is defined here, since nobody builds it.
    Rd = 2,
    /// Unreliable datagram.
    Ud = 3,
    /// Congestion notification of RoCEv2.
    Cnp = 4,
    /// Extended reliable connection.
    Xrc = 5,
    /// The first of the two manufacturer classes, as appliances of this kind use it between each other.
    Rnic = 6,
}

impl Transport {
    /// The class of a raw opcode, defined or not; `None` for the second manufacturer class (0b111).
    #[inline]
    pub const fn of_opcode(opcode: u8) -> Option<Self> {
        match opcode >> 5 {
            0 => Some(Transport::Rc),
            1 => Some(Transport::Uc),
            2 => Some(Transport::Rd),
            3 => Some(Transport::Ud),
            4 => Some(Transport::Cnp),
            5 => Some(Transport::Xrc),
            6 => Some(Transport::Rnic),
            _ => None,
        }
    }

    /// Whether requests are acknowledged: RC, RD and XRC.
    #[inline]
    pub const fn is_reliable(self) -> bool {
        matches!(self, Transport::Rc | Transport::Rd | Transport::Xrc)
    }

    /// The name as the field writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Rc => "RC",
            Transport::Uc => "UC",
            Transport::Rd => "RD",
            Transport::Ud => "UD",
            Transport::Cnp => "CNP",
            Transport::Xrc => "XRC",
            Transport::Rnic => "RNIC",
        }
    }
}

/// Bytes of the base transport header.
pub(crate) const BTH_LEN: usize = 12;

/// The longest transport header of any opcode: an atomic on XRC.
pub const MAX_HEADER_LEN: usize = BTH_LEN + HeaderSet::XRCETH.with(HeaderSet::ATOMIC).len();

/// The longest transport header before payload: WRITE with immediate on XRC.
pub(crate) const MAX_PAYLOAD_HEADER_LEN: usize =
    BTH_LEN + HeaderSet::XRCETH.with(HeaderSet::RETH).with(HeaderSet::IMM).len();

/// What is looked up by the raw opcode, so that parsing is one load rather than a chain of branches.
#[derive(Copy, Clone)]
struct Entry {
    opcode: Option<Opcode>,
    headers: HeaderSet,
    header_len: u8,
}

static TABLE: [Entry; 256] = build_table();

const fn build_table() -> [Entry; 256] {
    let mut table = [Entry {
        opcode: None,
        headers: HeaderSet::EMPTY,
        header_len: BTH_LEN as u8,
    }; 256];
    let mut raw = 0;
    while raw < 256 {
        if let Some(transport) = Transport::of_opcode(raw as u8) {
            let mut i = 0;
            while i < Operation::ALL.len() {
                let opcode = Opcode::new(transport, Operation::ALL[i]);
                if opcode.to_u8() == raw as u8 && opcode.operation.exists_in(transport) {
                    let headers = opcode.build_headers();
                    table[raw] = Entry {
                        opcode: Some(opcode),
                        headers,
                        header_len: (BTH_LEN + headers.len()) as u8,
                    };
                }
                i += 1;
            }
        }
        raw += 1;
    }
    table
}

/// A BTH opcode.
///
/// [`Opcode::from_u8`] yields defined opcodes only. [`Opcode::new`] joins any two halves; whether the result is defined
/// is for [`Opcode::is_defined`] to say, and emitting an undefined one is an error.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Opcode {
    /// The transport class.
    pub transport: Transport,
    /// The operation within it.
    pub operation: Operation,
}

impl Opcode {
    /// The opcode of CNPs, 0x81.
    pub const CNP: Opcode = Opcode::new(Transport::Cnp, CongestionNotification);

    /// The opcode of selective acknowledgements ([`crate::SelectiveAck`]), 0xD1.
    pub const SELECTIVE_ACK: Opcode = Opcode::new(Transport::Rnic, SelectiveAcknowledge);

    /// Joins class and operation, unchecked (see [`Opcode::is_defined`]).
    #[inline]
    pub const fn new(transport: Transport, operation: Operation) -> Self {
        Opcode { transport, operation }
    }

    /// Decodes a defined opcode; `None` for every reserved, manufacturer and RD one.
    #[inline]
    pub fn from_u8(raw: u8) -> Option<Self> {
        TABLE[raw as usize].opcode
    }

    /// The byte on the wire.
    #[inline]
    pub const fn to_u8(self) -> u8 {
        (self.transport as u8) << 5 | (self.operation as u8 & 0x1F)
    }

    /// Whether the operation exists in the transport class.
    #[inline]
    pub const fn is_defined(self) -> bool {
        self.operation.exists_in(self.transport)
    }

    /// Every defined opcode, ascending.
    pub fn all() -> impl Iterator<Item = Opcode> {
        TABLE.iter().filter_map(|entry| entry.opcode)
    }

    const fn build_headers(self) -> HeaderSet {
        let own = self.operation.headers();
        match self.transport {
            Transport::Ud => own.with(HeaderSet::DETH),
            Transport::Xrc if self.is_request() => own.with(HeaderSet::XRCETH),
            _ => own,
        }
    }

    /// The extension headers which follow the BTH; empty for an undefined opcode.
    #[inline]
    pub fn headers(self) -> HeaderSet {
        TABLE[self.to_u8() as usize].headers
    }

    /// Bytes of the transport header, BTH included (for a CNP also its 16 reserved bytes).
    #[inline]
    pub fn header_len(self) -> usize {
        TABLE[self.to_u8() as usize].header_len as usize
    }

    /// Sent by a requester. A CNP is neither request nor response.
    #[inline]
    pub const fn is_request(self) -> bool {
        !self.is_response() && !matches!(self.operation, CongestionNotification)
    }

    /// Sent by a responder: READ responses, ACK, atomic ACK, selective ACK.
    #[inline]
    pub const fn is_response(self) -> bool {
        matches!(
            self.operation,
            ReadResponseFirst
                | ReadResponseMiddle
                | ReadResponseLast
                | ReadResponseOnly
                | Acknowledge
                | AtomicAcknowledge
                | SelectiveAcknowledge
        )
    }

    /// The FIRST packet of several.
    #[inline]
    pub const fn is_first(self) -> bool {
        matches!(self.operation, SendFirst | WriteFirst | ReadResponseFirst)
    }

    /// A MIDDLE packet.
    #[inline]
    pub const fn is_middle(self) -> bool {
        matches!(self.operation, SendMiddle | WriteMiddle | ReadResponseMiddle)
    }

    /// The LAST packet of several, with immediate or invalidation or neither.
    #[inline]
    pub const fn is_last(self) -> bool {
        matches!(
            self.operation,
            SendLast | SendLastImm | SendLastInv | WriteLast | WriteLastImm | ReadResponseLast
        )
    }

    /// An opcode named ONLY, with immediate or invalidation or neither.
    #[inline]
    pub const fn is_only(self) -> bool {
        matches!(
            self.operation,
            SendOnly | SendOnlyImm | SendOnlyInv | WriteOnly | WriteOnlyImm | ReadResponseOnly
        )
    }

    /// The first or sole packet of its message: everything but MIDDLE and LAST.
    #[inline]
    pub const fn starts_message(self) -> bool {
        !self.is_middle() && !self.is_last()
    }

    /// The last or sole packet of its message: everything but FIRST and MIDDLE.
    #[inline]
    pub const fn ends_message(self) -> bool {
        !self.is_first() && !self.is_middle()
    }

    /// Any packet of a SEND.
    #[inline]
    pub const fn is_send(self) -> bool {
        matches!(
            self.operation,
            SendFirst
                | SendMiddle
                | SendLast
                | SendLastImm
                | SendLastInv
                | SendOnly
                | SendOnlyImm
                | SendOnlyInv
        )
    }

    /// Any packet of an RDMA WRITE. ATOMIC WRITE is not one.
    #[inline]
    pub const fn is_write(self) -> bool {
        matches!(
            self.operation,
            WriteFirst | WriteMiddle | WriteLast | WriteLastImm | WriteOnly | WriteOnlyImm
        )
    }

    /// Any packet of a READ response.
    #[inline]
    pub const fn is_read_response(self) -> bool {
        matches!(
            self.operation,
            ReadResponseFirst | ReadResponseMiddle | ReadResponseLast | ReadResponseOnly
        )
    }

    /// COMPARE SWAP or FETCH ADD.
    #[inline]
    pub const fn is_atomic(self) -> bool {
        matches!(self.operation, CompareSwap | FetchAdd)
    }

    /// Whether payload may follow the headers: SEND, WRITE, READ response, ATOMIC WRITE, selective ACK.
    #[inline]
    pub const fn has_payload(self) -> bool {
        self.is_send()
            || self.is_write()
            || self.is_read_response()
            || matches!(self.operation, AtomicWrite | SelectiveAcknowledge)
    }

    /// Carries a RETH.
    #[inline]
    pub fn has_reth(self) -> bool {
        self.headers().contains(HeaderSet::RETH)
    }

    /// Carries an AETH.
    #[inline]
    pub fn has_aeth(self) -> bool {
        self.headers().contains(HeaderSet::AETH)
    }

    /// Carries immediate data.
    #[inline]
    pub fn has_imm(self) -> bool {
        self.headers().contains(HeaderSet::IMM)
    }

    /// Carries an IETH, the key to invalidate.
    #[inline]
    pub fn has_ieth(self) -> bool {
        self.headers().contains(HeaderSet::IETH)
    }

    /// Carries a DETH.
    #[inline]
    pub fn has_deth(self) -> bool {
        self.headers().contains(HeaderSet::DETH)
    }

    /// Carries an XRCETH.
    #[inline]
    pub fn has_xrceth(self) -> bool {
        self.headers().contains(HeaderSet::XRCETH)
    }

    /// Carries an AtomicETH.
    #[inline]
    pub fn has_atomic_eth(self) -> bool {
        self.headers().contains(HeaderSet::ATOMIC)
    }

    /// Carries an AtomicAckETH.
    #[inline]
    pub fn has_atomic_ack_eth(self) -> bool {
        self.headers().contains(HeaderSet::ATOMIC_ACK)
    }

    /// Carries a FETH.
    #[inline]
    pub fn has_feth(self) -> bool {
        self.headers().contains(HeaderSet::FETH)
    }
}

/// "RC SEND_FIRST"; a CNP is just "CNP".
impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Cnp => f.write_str("CNP"),
            transport => write!(f, "{} {}", transport.name(), self.operation.name()),
        }
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opcode({:#04x} {self})", self.to_u8())
    }
}
