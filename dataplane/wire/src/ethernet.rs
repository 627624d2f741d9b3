//! Ethernet: addresses, up to two VLAN tags, the type field (IEEE 802.3, 802.1Q, 802.1ad).

use crate::ParseError;
use crate::bytes::take;
use core::fmt;

/// Bytes of an untagged Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of one VLAN tag.
pub const VLAN_TAG_LEN: usize = 4;

/// Ethernet type of IPv4.
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethernet type of IPv6.
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86DD;

/// An Ethernet address.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The broadcast address.
    pub const BROADCAST: MacAddr = MacAddr([0xFF; 6]);

    /// Whether the group bit is set: multicast or broadcast.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The protocol identifier that introduces a VLAN tag.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Tpid {
    /// 0x8100, a customer tag.
    #[default]
    Customer = 0x8100,
    /// 0x88A8, a service (outer) tag.
    Service = 0x88A8,
}

/// One VLAN tag.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// Which kind of tag.
    pub tpid: Tpid,
    /// Priority (3 bits), drop eligibility (1), VLAN id (12).
    pub tci: u16,
}

impl VlanTag {
    /// A customer tag.
    #[inline]
    pub const fn customer(tci: u16) -> Self {
        VlanTag {
            tpid: Tpid::Customer,
            tci,
        }
    }

    /// A service tag.
    #[inline]
    pub const fn service(tci: u16) -> Self {
        VlanTag {
            tpid: Tpid::Service,
            tci,
        }
    }

    /// The VLAN id, 0 to 4095; 0 is a tag that carries a priority only.
    #[inline]
    pub const fn vid(self) -> u16 {
        self.tci & 0x0FFF
    }

    /// The priority code point, 0 to 7.
    #[inline]
    pub const fn pcp(self) -> u8 {
        (self.tci >> 13) as u8
    }
}

/// The VLAN tags of a frame: none, one or two, outermost first.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VlanTags {
    // Unused slots stay at their default, so that the derived equality is right.
    tags: [VlanTag; 2],
    len: u8,
}

impl VlanTags {
    /// An untagged frame.
    pub const NONE: VlanTags = VlanTags {
        tags: [VlanTag::customer(0); 2],
        len: 0,
    };

    /// A single tag.
    #[inline]
    pub const fn one(tag: VlanTag) -> Self {
        VlanTags {
            tags: [tag, VlanTag::customer(0)],
            len: 1,
        }
    }

    /// Two tags.
    #[inline]
    pub const fn two(outer: VlanTag, inner: VlanTag) -> Self {
        VlanTags {
            tags: [outer, inner],
            len: 2,
        }
    }

    /// The tags, outermost first.
    #[inline]
    pub fn as_slice(&self) -> &[VlanTag] {
        match self.len {
            0 => &[],
            1 => &self.tags[..1],
            _ => &self.tags,
        }
    }

    /// Bytes the tags take in the frame.
    #[inline]
    pub const fn byte_len(&self) -> usize {
        self.len as usize * VLAN_TAG_LEN
    }

    /// Appends an inner tag.
    #[inline]
    fn push(&mut self, tag: VlanTag) -> Result<(), ParseError> {
        let slot = self
            .tags
            .get_mut(self.len as usize)
            .ok_or(ParseError::TooManyVlanTags)?;
        *slot = tag;
        self.len += 1;
        Ok(())
    }
}

/// The Ethernet header of a frame, apart from the type field.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    /// Destination address.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// Tags that stand in the frame itself.
    pub tags: VlanTags,
}

impl Link {
    /// Bytes of the header, tags and type field included: 14, 18 or 22.
    #[inline]
    pub const fn byte_len(&self) -> usize {
        ETHERNET_LEN + self.tags.byte_len()
    }

    /// Parses the header and returns it with the Ethernet type behind the last tag.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<(Link, u16), ParseError> {
        let mut rest = frame;
        let runt = ParseError::Runt {
            have: frame.len().min(u16::MAX as usize) as u16,
        };
        let addresses: &[u8; 12] = take(&mut rest).ok_or(runt)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = *addresses;
        let mut link = Link {
            dst: MacAddr([d0, d1, d2, d3, d4, d5]),
            src: MacAddr([s0, s1, s2, s3, s4, s5]),
            tags: VlanTags::NONE,
        };
        loop {
            let ethertype = u16::from_be_bytes(*take(&mut rest).ok_or(runt)?);
            let tpid = match ethertype {
                0x8100 => Tpid::Customer,
                0x88A8 => Tpid::Service,
                _ => return Ok((link, ethertype)),
            };
            let tci = u16::from_be_bytes(*take(&mut rest).ok_or(runt)?);
            link.tags.push(VlanTag { tpid, tci })?;
        }
    }

    /// Writes the header with `ethertype` to the start of `out`, which holds at least [`Link::byte_len`] bytes.
    #[inline]
    pub(crate) fn emit(&self, ethertype: u16, out: &mut &mut [u8]) {
        use crate::bytes::put;
        put(out, self.dst.0);
        put(out, self.src.0);
        for tag in self.tags.as_slice() {
            put(out, (tag.tpid as u16).to_be_bytes());
            put(out, tag.tci.to_be_bytes());
        }
        put(out, ethertype.to_be_bytes());
    }
}

/// "52:54:00:77:00:02>52:54:00:77:00:01", then " vlan 5" for each tag.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}>{}", self.src, self.dst)?;
        for tag in self.tags.as_slice() {
            write!(f, " vlan {}", tag.vid())?;
        }
        Ok(())
    }
}
