//! What can be wrong with a frame, and with a request to emit one.

use crate::header_set::HeaderSet;
use crate::{Opcode, Psn};
use thiserror::Error;

/// Why bytes are not a well-formed RoCEv2 packet.
///
/// Each variant is a reason to count, see [`ParseError::index`]. Only [`ParseError::ReservedOpcode`] may ever be
/// answered, and only by a reliable responder whose own class the opcode belongs to; the rest is dropped in silence.
/// Lengths are bytes; those beyond 65,535 are reported as 65,535.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The frame ends within its Ethernet header or VLAN tags.
    #[error("runt: {have} bytes do not hold an Ethernet header")]
    Runt {
        /// Bytes there.
        have: u16,
    },
    /// More than two VLAN tags, one in the driver's metadata included.
    #[error("more than two VLAN tags")]
    TooManyVlanTags,
    /// Neither IPv4 nor IPv6: not RoCE.
    #[error("Ethernet type {ethertype:#06x} is not IP")]
    NotIp {
        /// The Ethernet type behind the last tag.
        ethertype: u16,
    },
    /// IP, but not UDP: not RoCE.
    #[error("IP protocol {protocol} is not UDP")]
    NotUdp {
        /// Protocol or next header.
        protocol: u8,
    },
    /// UDP to another port: not RoCE.
    #[error("UDP port {port} is not RoCE's")]
    NotRoce {
        /// Destination port.
        port: u16,
    },
    /// The frame is shorter than its IP header, or than the length which that header claims.
    #[error("IP packet truncated: {have} bytes where {need} are needed")]
    IpTruncated {
        /// Bytes needed.
        need: u16,
        /// Bytes there.
        have: u16,
    },
    /// The version in the IP header is not the one of the Ethernet type.
    #[error("IP version {version} does not match the Ethernet type")]
    IpVersion {
        /// The version found.
        version: u8,
    },
    /// The IPv4 header claims to be shorter than 20 bytes.
    #[error("IPv4 header length of {ihl} words is less than 5")]
    Ipv4HeaderLength {
        /// The header length in words of four bytes.
        ihl: u8,
    },
    /// IPv4 options, which the ICRC has no rule for.
    #[error("IPv4 header of {ihl} words has options")]
    Ipv4Options {
        /// The header length in words of four bytes.
        ihl: u8,
    },
    /// A fragment of a UDP datagram. RoCE does not fragment, and fragments are not reassembled.
    #[error("IP fragment")]
    Fragment,
    /// The IPv4 header checksum is wrong.
    #[error("IPv4 header checksum is wrong")]
    Ipv4Checksum,
    /// IP's length leaves no room for the UDP header.
    #[error("IP length {total} has no room for UDP")]
    IpLength {
        /// Total length, IP header included.
        total: u16,
    },
    /// UDP's length is not what IP's leaves for it.
    #[error("UDP length {udp} differs from the {ip} bytes inside IP")]
    UdpLength {
        /// UDP's length field.
        udp: u16,
        /// Bytes after the IP header.
        ip: u16,
    },
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
    /// More pad than there are bytes after the headers.
    #[error("pad count {pad} exceeds the {payload} bytes after the headers")]
    PadExceedsPayload {
        /// BTH.PadCnt.
        pad: u8,
        /// Bytes after the headers.
        payload: u16,
    },
    /// Payload and pad together are not a multiple of four, so the pad count is wrong.
    #[error("payload with pad is {padded} bytes, not a multiple of four")]
    UnalignedPayload {
        /// Bytes after the headers.
        padded: u16,
    },
    /// Bytes follow the headers of an opcode that carries no payload.
    #[error("{len} bytes of payload in a {opcode}")]
    UnexpectedPayload {
        /// The opcode.
        opcode: Opcode,
        /// Bytes after the headers.
        len: u16,
    },
}

impl ParseError {
    /// Names of the variants for counters, by [`ParseError::index`].
    pub const NAMES: [&'static str; 19] = [
        "runt",
        "too_many_vlan_tags",
        "not_ip",
        "not_udp",
        "not_roce",
        "ip_truncated",
        "ip_version",
        "ipv4_header_length",
        "ipv4_options",
        "ip_fragment",
        "ipv4_checksum",
        "ip_length",
        "udp_length",
        "header_truncated",
        "transport_version",
        "reserved_opcode",
        "pad_exceeds_payload",
        "unaligned_payload",
        "unexpected_payload",
    ];

    /// The variant's place in [`ParseError::NAMES`], for an array of counters.
    pub const fn index(&self) -> usize {
        match self {
            ParseError::Runt { .. } => 0,
            ParseError::TooManyVlanTags => 1,
            ParseError::NotIp { .. } => 2,
            ParseError::NotUdp { .. } => 3,
            ParseError::NotRoce { .. } => 4,
            ParseError::IpTruncated { .. } => 5,
            ParseError::IpVersion { .. } => 6,
            ParseError::Ipv4HeaderLength { .. } => 7,
            ParseError::Ipv4Options { .. } => 8,
            ParseError::Fragment => 9,
            ParseError::Ipv4Checksum => 10,
            ParseError::IpLength { .. } => 11,
            ParseError::UdpLength { .. } => 12,
            ParseError::HeaderTruncated { .. } => 13,
            ParseError::TransportVersion { .. } => 14,
            ParseError::ReservedOpcode { .. } => 15,
            ParseError::PadExceedsPayload { .. } => 16,
            ParseError::UnalignedPayload { .. } => 17,
            ParseError::UnexpectedPayload { .. } => 18,
        }
    }

    /// Whether the frame is none of RoCE's business, as opposed to broken: work for the slow path.
    #[inline]
    pub const fn is_foreign(&self) -> bool {
        matches!(
            self,
            ParseError::NotIp { .. } | ParseError::NotUdp { .. } | ParseError::NotRoce { .. }
        )
    }
}

/// Why a packet cannot be emitted. Each is a mistake of the caller; what the output holds then is meaningless.
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
    #[error("opcode {opcode:#04x} carries {required}, but {present} are set")]
    WrongHeaders {
        /// The raw opcode.
        opcode: u8,
        /// What the opcode demands.
        required: HeaderSet,
        /// What is `Some`.
        present: HeaderSet,
    },
    /// Payload behind an opcode that carries none.
    #[error("{opcode} carries no payload, but {len} bytes were given")]
    UnexpectedPayload {
        /// The opcode.
        opcode: Opcode,
        /// Bytes of payload.
        len: usize,
    },
    /// The packet would be longer than IP can say.
    #[error("{len} bytes of payload do not fit an IP packet")]
    PayloadTooLong {
        /// Bytes of payload.
        len: usize,
    },
}
