//! BTH opcodes: three bits of transport class, five bits of operation (9.2.1, table 38; A17.9.1 for the CNP).

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
}

impl Transport {
    /// The class of a raw opcode, defined or not; `None` for the two manufacturer classes (0b110 and 0b111).
    #[inline]
    pub const fn of_opcode(opcode: u8) -> Option<Self> {
        match opcode >> 5 {
            0 => Some(Transport::Rc),
            1 => Some(Transport::Uc),
            2 => Some(Transport::Rd),
            3 => Some(Transport::Ud),
            4 => Some(Transport::Cnp),
            5 => Some(Transport::Xrc),
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
        }
    }
}

/// What a packet does. Discriminants are the low five bits of the opcode; the CNP's is told apart by bit 5.
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
    /// RD only, hence never part of a defined [`Opcode`].
    Resync = 0x15,
    SendLastInv = 0x16,
    SendOnlyInv = 0x17,
    Flush = 0x1C,
    AtomicWrite = 0x1D,
    /// The one operation of [`Transport::Cnp`].
    CongestionNotification = 0x21,
}

use Operation::*;

impl Operation {
    /// Every operation, in the order of the enum.
    pub const ALL: [Operation; 27] = [
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
    ];

    /// Whether the operation exists in a transport class (table 38, A19 for FLUSH and ATOMIC WRITE).
    const fn exists_in(self, transport: Transport) -> bool {
        match transport {
            Transport::Rc | Transport::Xrc => !matches!(self, Resync | CongestionNotification),
            Transport::Uc => (self as u8) <= WriteOnlyImm as u8,
            Transport::Ud => matches!(self, SendOnly | SendOnlyImm),
            Transport::Cnp => matches!(self, CongestionNotification),
            Transport::Rd => false,
        }
    }

    /// The extension headers of the operation, apart from those which the transport adds.
    const fn headers(self) -> HeaderSet {
        match self {
            SendLastImm | SendOnlyImm | WriteLastImm => HeaderSet::IMM,
            SendLastInv | SendOnlyInv => HeaderSet::IETH,
            WriteFirst | WriteOnly | ReadRequest | AtomicWrite => HeaderSet::RETH,
            WriteOnlyImm => HeaderSet::RETH.with(HeaderSet::IMM),
            Flush => HeaderSet::FETH.with(HeaderSet::RETH),
            CompareSwap | FetchAdd => HeaderSet::ATOMIC,
            ReadResponseFirst | ReadResponseLast | ReadResponseOnly | Acknowledge => HeaderSet::AETH,
            AtomicAcknowledge => HeaderSet::AETH.with(HeaderSet::ATOMIC_ACK),
            CongestionNotification => HeaderSet::CNP_RESERVED,
            SendFirst | SendMiddle | SendLast | SendOnly | WriteMiddle | WriteLast | ReadResponseMiddle
            | Resync => HeaderSet::EMPTY,
        }
    }
}

/// A set of extension headers, those which follow the BTH.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct HeaderSet(u16);

#[allow(missing_docs)] // the names are the specification's
impl HeaderSet {
    pub const EMPTY: HeaderSet = HeaderSet(0);
    pub const XRCETH: HeaderSet = HeaderSet(1 << 0);
    pub const DETH: HeaderSet = HeaderSet(1 << 1);
    pub const FETH: HeaderSet = HeaderSet(1 << 2);
    pub const RETH: HeaderSet = HeaderSet(1 << 3);
    pub const ATOMIC: HeaderSet = HeaderSet(1 << 4);
    pub const AETH: HeaderSet = HeaderSet(1 << 5);
    pub const ATOMIC_ACK: HeaderSet = HeaderSet(1 << 6);
    pub const IMM: HeaderSet = HeaderSet(1 << 7);
    pub const IETH: HeaderSet = HeaderSet(1 << 8);
    /// The 16 reserved bytes of a CNP: zero when sent, ignored when received.
    pub const CNP_RESERVED: HeaderSet = HeaderSet(1 << 9);

    /// Bytes of each header, by bit number.
    const LENS: [u8; 10] = [4, 8, 4, 16, 28, 4, 8, 4, 4, 16];

    /// The union of both sets.
    #[inline]
    pub const fn with(self, other: HeaderSet) -> HeaderSet {
        HeaderSet(self.0 | other.0)
    }

    /// Whether every header of `other` is in this set.
    #[inline]
    pub const fn contains(self, other: HeaderSet) -> bool {
        self.0 & other.0 == other.0
    }

    /// `self` when `present`, else the empty set.
    #[inline]
    pub(crate) const fn when(self, present: bool) -> HeaderSet {
        HeaderSet(self.0 * present as u16)
    }

    /// The set without `other`.
    #[inline]
    pub(crate) const fn without(self, other: HeaderSet) -> HeaderSet {
        HeaderSet(self.0 & !other.0)
    }

    /// Total bytes of the headers in the set.
    pub const fn len(self) -> usize {
        let mut sum = 0;
        let mut bit = 0;
        while bit < Self::LENS.len() {
            if self.0 & (1 << bit) != 0 {
                sum += Self::LENS[bit] as usize;
            }
            bit += 1;
        }
        sum
    }

    /// Whether the set is empty.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
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

    /// Sent by a responder: READ responses, ACK, atomic ACK.
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

    /// Whether payload may follow the headers: SEND, WRITE, READ response, ATOMIC WRITE.
    #[inline]
    pub const fn has_payload(self) -> bool {
        self.is_send() || self.is_write() || self.is_read_response() || matches!(self.operation, AtomicWrite)
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

    /// The operation's name as the field writes it, "SEND_FIRST" say.
    pub const fn operation_name(self) -> &'static str {
        match self.operation {
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
        }
    }
}

/// "RC SEND_FIRST"; a CNP is just "CNP".
impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Cnp => f.write_str("CNP"),
            transport => write!(f, "{} {}", transport.name(), self.operation_name()),
        }
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opcode({:#04x} {self})", self.to_u8())
    }
}
