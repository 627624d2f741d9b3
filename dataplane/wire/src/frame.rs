//! Views over received frames: total parsing from Ethernet to the payload.

use crate::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link};
use crate::ip::{IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, Net, PROTOCOL_UDP, ones_complement_sum};
use crate::udp::UDP_LEN;
use crate::{Bth, FrameRepr, Headers, ICRC_LEN, ParseError, ROCE_UDP_PORT};
use core::ops::Range;

/// IPv6 next header number of a fragment header.
const NEXT_HEADER_FRAGMENT: u8 = 44;

/// A RoCEv2 datagram: all that surrounds the transport packet has been checked, the packet itself not yet.
///
/// Checked are the Ethernet and IP headers, IPv4's checksum, UDP's port, and that IP's and UDP's lengths agree with each
/// other and lie within the frame. What the frame holds beyond IP's total length is Ethernet padding and is ignored.
/// UDP's checksum is not looked at: the ICRC is stronger, and senders leave it zero.
#[derive(Copy, Clone, Debug)]
pub struct Datagram<'a> {
    /// The frame up to the end of IP.
    bytes: &'a [u8],
    link: Link,
    metadata_tci: Option<u16>,
    net: Net,
    udp_src_port: u16,
    /// Offset of the IP header, 14 to 22.
    ip_start: u8,
    /// Offset of the BTH, 42 to 70.
    ib_start: u8,
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
        let (link, ethertype) = Link::parse(frame)?;
        if vlan_in_metadata.is_some() && link.tags.as_slice().len() == 2 {
            return Err(ParseError::TooManyVlanTags);
        }
        let ip_start = link.byte_len();
        let packet = frame.get(ip_start..).unwrap_or(&[]);
        let (net, ip_len) = match ethertype {
            ETHERTYPE_IPV4 => check_ipv4(packet)?,
            ETHERTYPE_IPV6 => check_ipv6(packet)?,
            ethertype => return Err(ParseError::NotIp { ethertype }),
        };
        let udp_start = ip_start + net.version().header_len();
        let bytes = frame.get(..ip_start + ip_len).unwrap_or(frame);
        let udp: &[u8; UDP_LEN] = chunk_at(bytes, udp_start).ok_or_else(|| ip_length(ip_len))?;
        let udp_len = u16::from_be_bytes([udp[4], udp[5]]);
        let ip_payload = bytes.len() - udp_start;
        if udp_len as usize != ip_payload {
            return Err(ParseError::UdpLength {
                udp: udp_len,
                ip: clamp(ip_payload),
            });
        }
        Ok(Datagram {
            bytes,
            link,
            metadata_tci: vlan_in_metadata,
            net,
            udp_src_port: u16::from_be_bytes([udp[0], udp[1]]),
            ip_start: ip_start as u8,
            ib_start: (udp_start + UDP_LEN) as u8,
        })
    }

    /// The Ethernet header, with the tags that stand in the frame.
    #[inline]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The network header.
    #[inline]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// UDP source port.
    #[inline]
    pub fn udp_src_port(&self) -> u16 {
        self.udp_src_port
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
        let mut used = 0;
        let in_frame = self.link.tags.as_slice().iter().map(|tag| tag.tci);
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
        let len = self.net.version().header_len();
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
    fn ib_range(&self) -> Range<usize> {
        self.ib_start as usize..self.bytes.len().saturating_sub(ICRC_LEN)
    }
}

/// A well-formed RoCEv2 frame: the datagram and its transport headers. The ICRC is not verified by parsing.
#[derive(Copy, Clone, Debug)]
pub struct Frame<'a> {
    datagram: Datagram<'a>,
    headers: Headers,
    /// Offsets of the payload, pad left out, in the frame.
    payload_start: u32,
    payload_end: u32,
}

impl<'a> Frame<'a> {
    /// Parses a frame from its Ethernet header on; see [`Datagram::parse`] for `vlan_in_metadata`.
    ///
    /// # Errors
    /// Those of [`Datagram::parse`] and [`Frame::of_datagram`].
    #[inline]
    pub fn parse(frame: &'a [u8], vlan_in_metadata: Option<u16>) -> Result<Self, ParseError> {
        Frame::of_datagram(Datagram::parse(frame, vlan_in_metadata)?)
    }

    /// Parses the transport packet inside a datagram.
    ///
    /// Whether the payload's length suits the opcode and the path MTU is left to the QP, which knows both.
    ///
    /// # Errors
    /// Those of [`Headers::parse`]; a pad longer than what follows the headers; payload and pad that are no multiple of
    /// four bytes; payload behind an opcode that has none.
    #[inline]
    pub fn of_datagram(datagram: Datagram<'a>) -> Result<Self, ParseError> {
        let range = datagram.ib_range();
        let (headers, header_len) = Headers::parse(datagram.ib())?;
        let Bth { opcode, pad, .. } = headers.bth;
        let payload_start = range.start + header_len;
        let padded = range.end.saturating_sub(payload_start);
        if padded < pad as usize {
            return Err(ParseError::PadExceedsPayload {
                pad,
                payload: clamp(padded),
            });
        }
        if padded & 3 != 0 {
            return Err(ParseError::UnalignedPayload {
                padded: clamp(padded),
            });
        }
        if padded != 0 && !opcode.has_payload() {
            return Err(ParseError::UnexpectedPayload {
                opcode,
                len: clamp(padded),
            });
        }
        let payload_end = range.end - pad as usize;
        Ok(Frame {
            datagram,
            headers,
            payload_start: payload_start as u32,
            payload_end: payload_end as u32,
        })
    }

    /// The datagram around the packet: addresses, VLAN, ICRC.
    #[inline]
    pub fn datagram(&self) -> &Datagram<'a> {
        &self.datagram
    }

    /// The Ethernet header.
    #[inline]
    pub fn link(&self) -> &Link {
        &self.datagram.link
    }

    /// The network header.
    #[inline]
    pub fn net(&self) -> &Net {
        &self.datagram.net
    }

    /// UDP source port.
    #[inline]
    pub fn udp_src_port(&self) -> u16 {
        self.datagram.udp_src_port
    }

    /// The base transport header.
    #[inline]
    pub fn bth(&self) -> &Bth {
        &self.headers.bth
    }

    /// All transport headers.
    #[inline]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The bytes from the BTH to the last before the ICRC.
    #[inline]
    pub fn ib(&self) -> &'a [u8] {
        self.datagram.ib()
    }

    /// The payload, without pad.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.datagram.bytes.get(self.payload_range()).unwrap_or(&[])
    }

    /// Where in the frame the payload lies, without pad.
    #[inline]
    pub fn payload_range(&self) -> Range<usize> {
        self.payload_start as usize..self.payload_end as usize
    }

    /// The four bytes of the ICRC as they stand on the wire.
    #[inline]
    pub fn icrc(&self) -> [u8; ICRC_LEN] {
        self.datagram.icrc()
    }

    /// What emits the same headers again.
    #[inline]
    pub fn repr(&self) -> FrameRepr {
        FrameRepr {
            link: self.datagram.link,
            net: self.datagram.net,
            udp_src_port: self.datagram.udp_src_port,
            headers: self.headers,
        }
    }
}

/// Checks an IPv4 packet to RoCE's port; returns its header and total length, which lies within `packet`.
#[inline]
fn check_ipv4(packet: &[u8]) -> Result<(Net, usize), ParseError> {
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
    check_port(packet, ihl as usize * 4)?;
    if ihl != 5 {
        return Err(ParseError::Ipv4Options { ihl });
    }
    if ones_complement_sum(header) != 0xFFFF {
        return Err(ParseError::Ipv4Checksum);
    }
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    check_extent(packet, total, IPV4_LEN)?;
    Ok((Net::V4(Ipv4::read(header)), total))
}

/// Checks an IPv6 packet to RoCE's port; returns its header and total length, which lies within `packet`.
#[inline]
fn check_ipv6(packet: &[u8]) -> Result<(Net, usize), ParseError> {
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
    check_port(packet, IPV6_LEN)?;
    let total = u16::from_be_bytes([header[4], header[5]]) as usize + IPV6_LEN;
    check_extent(packet, total, IPV6_LEN)?;
    Ok((Net::V6(Ipv6::read(header)), total))
}

#[inline]
fn check_port(packet: &[u8], udp_start: usize) -> Result<(), ParseError> {
    let Some(udp) = chunk_at::<UDP_LEN>(packet, udp_start) else {
        return Err(truncated(packet, udp_start + UDP_LEN));
    };
    let port = u16::from_be_bytes([udp[2], udp[3]]);
    if port == ROCE_UDP_PORT {
        Ok(())
    } else {
        Err(ParseError::NotRoce { port })
    }
}

/// Whether IP's total length leaves room for UDP and lies within what was received.
#[inline]
fn check_extent(packet: &[u8], total: usize, header_len: usize) -> Result<(), ParseError> {
    if total < header_len + UDP_LEN {
        return Err(ip_length(total));
    }
    if total > packet.len() {
        return Err(truncated(packet, total));
    }
    Ok(())
}

#[inline]
fn chunk_at<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

#[inline]
fn truncated(packet: &[u8], need: usize) -> ParseError {
    ParseError::IpTruncated {
        need: clamp(need),
        have: clamp(packet.len()),
    }
}

#[inline]
fn ip_length(total: usize) -> ParseError {
    ParseError::IpLength { total: clamp(total) }
}

/// A length as errors report it.
#[inline]
fn clamp(len: usize) -> u16 {
    len.min(u16::MAX as usize) as u16
}
