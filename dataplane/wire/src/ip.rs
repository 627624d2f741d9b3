//! IPv4 and IPv6 as RoCEv2 uses them: no options, no extension headers, no fragments (A17.3; RFC 791, RFC 8200).

use crate::bytes::{be32, put};
use crate::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Protocol number of UDP.
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// The version of IP, which decides what the ICRC masks.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Bytes of its header.
    #[inline]
    pub const fn header_len(self) -> usize {
        match self {
            IpVersion::V4 => IPV4_LEN,
            IpVersion::V6 => IPV6_LEN,
        }
    }
}

/// The two ECN bits of an IP header (RFC 3168).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// 00: the sender does not take part.
    #[default]
    NotEct = 0,
    /// 01.
    Ect1 = 1,
    /// 10: what data frames leave as when congestion control is on.
    Ect0 = 2,
    /// 11: a queue on the way was congested.
    Ce = 3,
}

impl Ecn {
    /// The low two bits of a TOS or traffic class byte.
    #[inline]
    pub const fn of(tos: u8) -> Self {
        match tos & 3 {
            0 => Ecn::NotEct,
            1 => Ecn::Ect1,
            2 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// `tos` with these ECN bits.
    #[inline]
    pub const fn on(self, tos: u8) -> u8 {
        tos & !3 | self as u8
    }
}

/// The fields of an IPv4 header that a RoCEv2 frame chooses.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4 {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// DSCP (6 bits) and ECN (2).
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Identification.
    pub ident: u16,
    /// Whether routers may not fragment; set by every known sender.
    pub dont_fragment: bool,
}

/// The fields of an IPv6 header that a RoCEv2 frame chooses.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ipv6 {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// DSCP (6 bits) and ECN (2).
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
}

/// The network header of a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Net {
    /// IPv4.
    V4(Ipv4),
    /// IPv6.
    V6(Ipv6),
}

impl Net {
    /// The IP version.
    #[inline]
    pub const fn version(&self) -> IpVersion {
        match self {
            Net::V4(_) => IpVersion::V4,
            Net::V6(_) => IpVersion::V6,
        }
    }

    /// Source address.
    #[inline]
    pub const fn src(&self) -> IpAddr {
        match self {
            Net::V4(ip) => IpAddr::V4(ip.src),
            Net::V6(ip) => IpAddr::V6(ip.src),
        }
    }

    /// Destination address.
    #[inline]
    pub const fn dst(&self) -> IpAddr {
        match self {
            Net::V4(ip) => IpAddr::V4(ip.dst),
            Net::V6(ip) => IpAddr::V6(ip.dst),
        }
    }

    /// Source address as a GID; IPv4 becomes `::ffff:a.b.c.d` (A17.4.1).
    #[inline]
    pub const fn src_gid(&self) -> [u8; 16] {
        match self {
            Net::V4(ip) => ip.src.to_ipv6_mapped().octets(),
            Net::V6(ip) => ip.src.octets(),
        }
    }

    /// Destination address as a GID; IPv4 becomes `::ffff:a.b.c.d` (A17.4.1).
    #[inline]
    pub const fn dst_gid(&self) -> [u8; 16] {
        match self {
            Net::V4(ip) => ip.dst.to_ipv6_mapped().octets(),
            Net::V6(ip) => ip.dst.octets(),
        }
    }

    /// TOS of IPv4, traffic class of IPv6.
    #[inline]
    pub const fn traffic_class(&self) -> u8 {
        match self {
            Net::V4(ip) => ip.tos,
            Net::V6(ip) => ip.traffic_class,
        }
    }

    /// The ECN bits.
    #[inline]
    pub const fn ecn(&self) -> Ecn {
        Ecn::of(self.traffic_class())
    }

    /// TTL of IPv4, hop limit of IPv6.
    #[inline]
    pub const fn hop_limit(&self) -> u8 {
        match self {
            Net::V4(ip) => ip.ttl,
            Net::V6(ip) => ip.hop_limit,
        }
    }

    #[inline]
    pub(crate) const fn ethertype(&self) -> u16 {
        match self {
            Net::V4(_) => ETHERTYPE_IPV4,
            Net::V6(_) => ETHERTYPE_IPV6,
        }
    }

    /// Writes the header with zeros for total or payload length, for IPv4's checksum, and nothing else left out.
    #[inline]
    pub(crate) fn emit_without_length(&self, out: &mut &mut [u8]) {
        match self {
            Net::V4(ip) => {
                let flags = if ip.dont_fragment { 0x40 } else { 0 };
                put(out, [0x45, ip.tos, 0, 0]);
                put(out, ip.ident.to_be_bytes());
                put(out, [flags, 0, ip.ttl, PROTOCOL_UDP, 0, 0]);
                put(out, ip.src.octets());
                put(out, ip.dst.octets());
            }
            Net::V6(ip) => {
                let first = 6 << 28 | (ip.traffic_class as u32) << 20 | ip.flow_label & 0x000F_FFFF;
                put(out, first.to_be_bytes());
                put(out, [0, 0, PROTOCOL_UDP, ip.hop_limit]);
                put(out, ip.src.octets());
                put(out, ip.dst.octets());
            }
        }
    }
}

impl Ipv4 {
    /// Reads a header whose version, length and flags have been checked.
    #[inline]
    pub(crate) fn read(h: &[u8; IPV4_LEN]) -> Self {
        Ipv4 {
            src: Ipv4Addr::from_bits(be32(h, 12)),
            dst: Ipv4Addr::from_bits(be32(h, 16)),
            tos: h[1],
            ttl: h[8],
            ident: u16::from_be_bytes([h[4], h[5]]),
            dont_fragment: h[6] & 0x40 != 0,
        }
    }
}

impl Ipv6 {
    /// Reads a header whose version has been checked.
    #[inline]
    pub(crate) fn read(h: &[u8; IPV6_LEN]) -> Self {
        let first = be32(h, 0);
        let address = |at: usize| {
            let word = |i: usize| (be32(h, at + i) as u128) << (96 - 8 * i);
            Ipv6Addr::from_bits(word(0) | word(4) | word(8) | word(12))
        };
        Ipv6 {
            src: address(8),
            dst: address(24),
            traffic_class: (first >> 20) as u8,
            flow_label: first & 0x000F_FFFF,
            hop_limit: h[7],
        }
    }
}

/// The ones' complement sum of a header's 16-bit words, folded to 16 bits: 0xFFFF for a header with a right checksum.
#[inline]
pub(crate) fn ones_complement_sum(header: &[u8; IPV4_LEN]) -> u16 {
    let (words, _) = header.as_chunks::<4>();
    let mut sum = 0u64;
    for word in words {
        sum += u32::from_be_bytes(*word) as u64;
    }
    fold(sum)
}

/// Folds a sum of 16- or 32-bit big-endian words to 16 bits.
#[inline]
pub(crate) const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    sum as u16
}

/// "10.0.0.1>10.0.0.2"; ECN marks are shown when a queue has set them.
impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}>{}", self.src(), self.dst())?;
        if self.ecn() == Ecn::Ce {
            f.write_str(" CE")?;
        }
        Ok(())
    }
}
