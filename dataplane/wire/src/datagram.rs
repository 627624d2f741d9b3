//! The view over what surrounds a transport packet: total parsing of Ethernet, IP and UDP.

use crate::ethernet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link, VLAN_TAG_LEN};
use crate::ip::{Ecn, IPV4_LEN, IPV6_LEN, IpVersion, Ipv4, Ipv6, Net, PROTOCOL_UDP, ones_complement_sum};
use crate::udp::UDP_LEN;
use crate::{ICRC_LEN, ParseError, ROCE_UDP_PORT};
use core::ops::Range;

/// IPv6 next header number of a fragment header.
const NEXT_HEADER_FRAGMENT: u8 = 44;

/// A RoCEv2 datagram: all that surrounds the transport packet has been checked, the packet itself not yet.
///
/// Checked are the Ethernet and IP headers, IPv4's checksum, UDP's port, and that IP's and UDP's lengths agree with each
/// other and lie within the frame. What the frame holds beyond IP's total length is Ethernet padding and is ignored.
/// UDP's checksum is not looked at: the ICRC is stronger, and senders leave it zero.
///
/// It is a view: fields are read from the frame when asked for.
#[derive(Copy, Clone, Debug)]
pub struct Datagram<'a> {
    /// The frame up to the end of IP.
    pub(crate) bytes: &'a [u8],
    metadata_tci: Option<u16>,
    version: IpVersion,
    /// Offset of the IP header, 14 to 22.
    ip_start: u8,
}

impl<'a> Datagram<'a> {
    /// Parses a frame that starts with its Ethernet header.
    ///
    /// `vlan_in_metadata` is the tag control word of an outermost VLAN tag that the driver took out of the frame.
    ///
    /// # Errors
    /// [`ParseError::is_foreign`] tells frames that are none of RoCE's business from broken ones.
    #[inline]
    pub fn parse(frame: &'a [u8], vlan_in_metadata: Option<u16>) -> Result<Self, ParseError> {
        let (ip_start, ethertype) = skip_link(frame)?;
        if vlan_in_metadata.is_some() && ip_start == ETHERNET_LEN + 2 * VLAN_TAG_LEN {
            return Err(ParseError::TooManyVlanTags);
        }
        let packet = frame.get(ip_start..).unwrap_or(&[]);
        let (version, ip_len) = match ethertype {
            ETHERTYPE_IPV4 => (IpVersion::V4, check_ipv4(packet)?),
            ETHERTYPE_IPV6 => (IpVersion::V6, check_ipv6(packet)?),
            ethertype => return Err(ParseError::NotIp { ethertype }),
        };
        let bytes = frame.get(..ip_start + ip_len).unwrap_or(frame);
        Ok(Datagram {
            bytes,
            metadata_tci: vlan_in_metadata,
            version,
            ip_start: ip_start as u8,
        })
    }

    /// The Ethernet header, with the tags that stand in the frame.
    #[inline]
    pub fn link(&self) -> Link {
        Link::parse(self.bytes).map(|(link, _)| link).unwrap_or_default()
    }

    /// The network header.
    #[inline]
    pub fn net(&self) -> Net {
        let at = self.ip_start as usize;
        match self.version {
            IpVersion::V4 => Net::V4(Ipv4::read(self.chunk(at))),
            IpVersion::V6 => Net::V6(Ipv6::read(self.chunk(at))),
        }
    }

    /// Whether it goes from one of these addresses to the other; those of IPv4 are mapped ones, as GIDs have it.
    #[inline]
    pub fn is_between(&self, src: &[u8; 16], dst: &[u8; 16]) -> bool {
        let at = self.ip_start as usize;
        match self.version {
            IpVersion::V4 => {
                let [a, b]: [[u8; 4]; 2] = [*self.chunk(at + 12), *self.chunk(at + 16)];
                mapped(src) == Some(a) && mapped(dst) == Some(b)
            }
            IpVersion::V6 => self.chunk(at + 8) == src && self.chunk(at + 24) == dst,
        }
    }

    /// The ECN bits, without the rest of the IP header.
    #[inline]
    pub fn ecn(&self) -> Ecn {
        let [first, second]: [u8; 2] = *self.chunk(self.ip_start as usize);
        Ecn::of(match self.version {
            IpVersion::V4 => second,
            IpVersion::V6 => first << 4 | second >> 4,
        })
    }

    /// The IP version.
    #[inline]
    pub fn version(&self) -> IpVersion {
        self.version
    }

    /// UDP source port.
    #[inline]
    pub fn udp_src_port(&self) -> u16 {
        u16::from_be_bytes(*self.chunk(self.udp_start()))
    }

    /// The tag control word of a tag which the driver delivered beside the frame.
    #[inline]
    pub fn metadata_tci(&self) -> Option<u16> {
        self.metadata_tci
    }

    /// The VLAN ids of the frame, outermost first, wherever their tags were delivered; 0 where there is none.
    ///
    /// Tags that carry only a priority (id 0) do not count, so equal results mean the same VLAN.
    #[inline]
    pub fn vlan_ids(&self) -> [u16; 2] {
        let mut ids = [0; 2];
        if self.metadata_tci.is_none() && self.ip_start as usize == ETHERNET_LEN {
            return ids;
        }
        let mut used = 0;
        let link = self.link();
        let in_frame = link.tags.as_slice().iter().map(|tag| tag.tci);
        for tci in self.metadata_tci.into_iter().chain(in_frame) {
            let vid = tci & 0x0FFF;
            if let Some(slot) = ids.get_mut(used)
                && vid != 0
            {
                *slot = vid;
                used += 1;
            }
        }
        ids
    }

    /// The innermost VLAN id, the one that belongs to the GID; `None` on an untagged frame.
    #[inline]
    pub fn vlan_id(&self) -> Option<u16> {
        match self.vlan_ids() {
            [0, _] => None,
            [only, 0] => Some(only),
            [_, inner] => Some(inner),
        }
    }

    /// The bytes from the BTH to the last before the ICRC: headers, payload, pad.
    #[inline]
    pub fn ib(&self) -> &'a [u8] {
        self.bytes.get(self.ib_range()).unwrap_or(&[])
    }

    /// The four bytes of the ICRC as they stand on the wire; zeros when the datagram cannot hold one.
    #[inline]
    pub fn icrc(&self) -> [u8; ICRC_LEN] {
        self.bytes.last_chunk().copied().unwrap_or_default()
    }

    /// Length of the frame without Ethernet padding.
    #[inline]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The first 40 bytes of a UD receive buffer: an IPv6 header, or an IPv4 header in the last 20 bytes after zeros.
    #[inline]
    pub fn grh(&self) -> [u8; 40] {
        let mut grh = [0; 40];
        let len = self.version.header_len();
        let start = self.ip_start as usize;
        if let Some(header) = self.bytes.get(start..start + len) {
            grh[40 - len..].copy_from_slice(header);
        }
        grh
    }

    /// What the ICRC covers once masked, from IP to the pad.
    #[inline]
    pub(crate) fn icrc_covered(&self) -> &'a [u8] {
        let end = self.bytes.len().saturating_sub(ICRC_LEN);
        self.bytes.get(self.ip_start as usize..end).unwrap_or(&[])
    }

    #[inline]
    fn udp_start(&self) -> usize {
        self.ip_start as usize + self.version.header_len()
    }

    #[inline]
    pub(crate) fn ib_range(&self) -> Range<usize> {
        self.udp_start() + UDP_LEN..self.bytes.len().saturating_sub(ICRC_LEN)
    }

    /// Bytes which parsing has found to be there.
    #[inline]
    fn chunk<const N: usize>(&self, at: usize) -> &'a [u8; N] {
        chunk_at(self.bytes, at).unwrap_or(&[0; N])
    }
}

/// The IPv4 address in a mapped one.
#[inline]
fn mapped(gid: &[u8; 16]) -> Option<[u8; 4]> {
    const PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF];
    let (prefix, address) = gid.split_first_chunk::<12>()?;
    if *prefix != PREFIX {
        return None;
    }
    address.first_chunk().copied()
}

/// Finds the IP header; returns its offset and the Ethernet type.
#[inline]
fn skip_link(frame: &[u8]) -> Result<(usize, u16), ParseError> {
    // Untagged IP, the usual case, needs no more than a look at the type.
    if let Some([.., high, low]) = frame.first_chunk::<ETHERNET_LEN>() {
        let ethertype = u16::from_be_bytes([*high, *low]);
        if ethertype == ETHERTYPE_IPV4 || ethertype == ETHERTYPE_IPV6 {
            return Ok((ETHERNET_LEN, ethertype));
        }
    }
    let (link, ethertype) = Link::parse(frame)?;
    Ok((link.byte_len(), ethertype))
}

/// Checks an IPv4 packet to RoCE's port; returns its total length, which lies within `packet`.
#[inline]
fn check_ipv4(packet: &[u8]) -> Result<usize, ParseError> {
    let Some(header) = packet.first_chunk::<IPV4_LEN>() else {
        return Err(truncated(packet, IPV4_LEN));
    };
    let (version, ihl) = (header[0] >> 4, header[0] & 0x0F);
    if version != 4 {
        return Err(ParseError::IpVersion { version });
    }
    let protocol = header[9];
    if protocol != PROTOCOL_UDP {
        return Err(ParseError::NotUdp { protocol });
    }
    // Only the don't-fragment bit and the reserved one may be set.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3FFF != 0 {
        return Err(ParseError::Fragment);
    }
    if ihl < 5 {
        return Err(ParseError::Ipv4HeaderLength { ihl });
    }
    let udp = check_port(packet, ihl as usize * 4)?;
    if ihl != 5 {
        return Err(ParseError::Ipv4Options { ihl });
    }
    if ones_complement_sum(header) != 0xFFFF {
        return Err(ParseError::Ipv4Checksum);
    }
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    check_lengths(packet, total, IPV4_LEN, udp)
}

/// Checks an IPv6 packet to RoCE's port; returns its total length, which lies within `packet`.
#[inline]
fn check_ipv6(packet: &[u8]) -> Result<usize, ParseError> {
    let Some(header) = packet.first_chunk::<IPV6_LEN>() else {
        return Err(truncated(packet, IPV6_LEN));
    };
    let version = header[0] >> 4;
    if version != 6 {
        return Err(ParseError::IpVersion { version });
    }
    match header[6] {
        PROTOCOL_UDP => {}
        NEXT_HEADER_FRAGMENT if packet.get(IPV6_LEN) == Some(&PROTOCOL_UDP) => {
            return Err(ParseError::Fragment);
        }
        protocol => return Err(ParseError::NotUdp { protocol }),
    }
    let udp = check_port(packet, IPV6_LEN)?;
    let total = u16::from_be_bytes([header[4], header[5]]) as usize + IPV6_LEN;
    check_lengths(packet, total, IPV6_LEN, udp)
}

/// The UDP header, when its destination is RoCE's port.
#[inline]
fn check_port(packet: &[u8], udp_start: usize) -> Result<&[u8; UDP_LEN], ParseError> {
    let Some(udp) = chunk_at::<UDP_LEN>(packet, udp_start) else {
        return Err(truncated(packet, udp_start + UDP_LEN));
    };
    let port = u16::from_be_bytes([udp[2], udp[3]]);
    if port == ROCE_UDP_PORT {
        Ok(udp)
    } else {
        Err(ParseError::NotRoce { port })
    }
}

/// Whether IP's total length has room for UDP, lies within what was received, and is what UDP says too.
#[inline]
fn check_lengths(
    packet: &[u8],
    total: usize,
    header_len: usize,
    udp: &[u8; UDP_LEN],
) -> Result<usize, ParseError> {
    if total < header_len + UDP_LEN {
        return Err(ParseError::IpLength { total: clamp(total) });
    }
    if total > packet.len() {
        return Err(truncated(packet, total));
    }
    let udp_len = u16::from_be_bytes([udp[4], udp[5]]);
    if udp_len as usize != total - header_len {
        return Err(ParseError::UdpLength {
            udp: udp_len,
            ip: clamp(total - header_len),
        });
    }
    Ok(total)
}

#[inline]
pub(crate) fn chunk_at<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

#[inline]
fn truncated(packet: &[u8], need: usize) -> ParseError {
    ParseError::IpTruncated {
        need: clamp(need),
        have: clamp(packet.len()),
    }
}

/// A length as errors report it.
#[inline]
pub(crate) fn clamp(len: usize) -> u16 {
    len.min(u16::MAX as usize) as u16
}
