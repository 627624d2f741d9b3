//! Packets that are a whole message of RC: a SEND or WRITE without immediate data that fits one packet. Busy wires are full of
//! them, and the options of all other packets are not looked at for them.

use crate::bytes::{LOW_24, be32, put};
use crate::ethernet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::ip::{IPV6_LEN, PROTOCOL_UDP, mapped, ones_complement_sum};
use crate::opcode::BTH_LEN;
use crate::repr::FrameTemplate;
use crate::{
    Bth, Headers, ICRC_LEN, IPV4_LEN, IpVersion, Opcode, Operation, Psn, ROCE_UDP_PORT, Reth, Transport,
    UDP_LEN, pad_len,
};

const RETH_LEN: usize = 16;
/// Headers from IP to the BTH.
const V4_LEN: usize = IPV4_LEN + UDP_LEN + BTH_LEN;
const V6_LEN: usize = IPV6_LEN + UDP_LEN + BTH_LEN;

/// The headers of such a packet, as far as they vary: SEND only, or WRITE only.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Destination QP, 24 bits.
    pub dest_qpn: u32,
    /// Its PSN.
    pub psn: Psn,
    /// The requester wants an acknowledgement.
    pub ack_req: bool,
    /// Solicited event.
    pub solicited: bool,
    /// Where a WRITE goes; `None` of a SEND.
    pub reth: Option<Reth>,
}

impl Whole {
    /// The same with all that does not vary, but for the pad.
    #[inline]
    pub const fn headers(&self) -> Headers {
        let mut bth = Bth::new(self.opcode(), self.dest_qpn, self.psn);
        bth.ack_req = self.ack_req;
        bth.solicited = self.solicited;
        let mut headers = Headers::new(bth);
        headers.reth = self.reth;
        headers
    }

    /// Its opcode.
    #[inline]
    pub const fn opcode(&self) -> Opcode {
        let operation = match self.reth {
            Some(_) => Operation::WriteOnly,
            None => Operation::SendOnly,
        };
        Opcode::new(Transport::Rc, operation)
    }

    /// The same of the headers of any packet; `None` where it is no such packet.
    #[inline]
    pub fn of(headers: &Headers) -> Option<Whole> {
        let bth = &headers.bth;
        let reth = match bth.opcode {
            opcode if opcode == Opcode::new(Transport::Rc, Operation::WriteOnly) => Some(headers.reth?),
            opcode if opcode == Opcode::new(Transport::Rc, Operation::SendOnly) => None,
            _ => return None,
        };
        Some(Whole {
            dest_qpn: bth.dest_qpn,
            psn: bth.psn,
            ack_req: bth.ack_req,
            solicited: bth.solicited,
            reth,
        })
    }
}

impl FrameTemplate {
    /// Writes all headers of such a packet from Ethernet up to the payload to the start of `out`, as
    /// [`FrameTemplate::emit_headers`] does, and returns their length. `None` when `out` is too small for the longest headers
    /// of any frame, or the payload too long for IP.
    #[inline]
    pub fn emit_whole(&self, whole: &Whole, ident: u16, payload_len: usize, out: &mut [u8]) -> Option<usize> {
        let pad = pad_len(payload_len);
        let len = match whole.reth {
            Some(_) => BTH_LEN + RETH_LEN,
            None => BTH_LEN,
        };
        let udp_len = u16::try_from(UDP_LEN + len + payload_len + pad as usize + ICRC_LEN).ok()?;
        let total = udp_len.checked_add(IPV4_LEN as u16)?;
        let (head, rest) = self.copy_prefix(out)?;
        let ib = rest.first_chunk_mut::<{ BTH_LEN + RETH_LEN }>()?;
        let bth = Bth {
            ack_req: whole.ack_req,
            solicited: whole.solicited,
            ..Bth::new(whole.opcode(), whole.dest_qpn, whole.psn)
        };
        let mut at = ib.as_mut_slice();
        for word in bth.words(pad) {
            put(&mut at, word.to_be_bytes());
        }
        if let Some(reth) = whole.reth {
            put(&mut at, reth.va.to_be_bytes());
            put(&mut at, reth.rkey.to_be_bytes());
            put(&mut at, reth.dma_len.to_be_bytes());
        }
        match self.version() {
            IpVersion::V4 => self.fill_ipv4(head, total, ident)?,
            IpVersion::V6 => {
                let ip = head.get_mut(self.ip_start()..)?.first_chunk_mut::<6>()?;
                [ip[4], ip[5]] = udp_len.to_be_bytes();
            }
        }
        let [.., high, low, _, _] = head else { return None };
        [*high, *low] = udp_len.to_be_bytes();
        Some(self.prefix_len() + len)
    }
}

/// Source and destination of a packet, side by side as its IP header has them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Of IPv4.
    V4([u8; 8]),
    /// Of IPv6.
    V6([u8; 32]),
}

impl Ends {
    /// Those of packets from one address to another; those of IPv4 are mapped ones, as GIDs have it.
    pub fn new(src: &[u8; 16], dst: &[u8; 16]) -> Self {
        match (mapped(src), mapped(dst)) {
            (Some([a, b, c, d]), Some([e, f, g, h])) => Ends::V4([a, b, c, d, e, f, g, h]),
            _ => {
                let mut both = [0; 32];
                let (first, second) = both.split_at_mut(16);
                first.copy_from_slice(src);
                second.copy_from_slice(dst);
                Ends::V6(both)
            }
        }
    }
}

/// A well-formed frame of such a packet, untagged and plain in everything else. The ICRC is not verified by parsing.
#[derive(Copy, Clone, Debug)]
pub struct WholeFrame<'a> {
    /// The headers.
    pub whole: Whole,
    /// The payload, without pad.
    pub payload: &'a [u8],
    ends: EndsIn<'a>,
}

/// [`Ends`] where they stand in a frame.
#[derive(Copy, Clone, Debug)]
enum EndsIn<'a> {
    V4(&'a [u8; 8]),
    V6(&'a [u8; 32]),
}

impl<'a> WholeFrame<'a> {
    /// Parses a frame that starts with its Ethernet header. `None` of all other frames, and of whatever is not plainly as it
    /// usually is: [`classify`](crate::classify) says what those are. A frame that is parsed here is one that it finds
    /// well-formed, with the same headers and the same payload; it is not marked "congestion experienced", and is in the
    /// default partition.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (link, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
        match u16::from_be_bytes([link[12], link[13]]) {
            ETHERTYPE_IPV4 => Self::of_ipv4(ip),
            ETHERTYPE_IPV6 => Self::of_ipv6(ip),
            _ => None,
        }
    }

    #[inline]
    fn of_ipv4(ip: &'a [u8]) -> Option<Self> {
        let head = ip.first_chunk::<V4_LEN>()?;
        let (header, ib) = head.split_first_chunk::<IPV4_LEN>()?;
        let first = be32(header, 0);
        let total = first & 0xFFFF;
        // Version and header length; neither fragment nor more of them; UDP.
        let unusual = first >> 24 ^ 0x45 | be32(header, 4) & 0x3FFF | header[9] as u32 ^ PROTOCOL_UDP as u32;
        if unusual != 0 || first >> 16 & 3 == 3 || ones_complement_sum(header) != 0xFFFF {
            return None;
        }
        let addresses = header.last_chunk()?;
        let rest = ip.get(V4_LEN..total as usize)?;
        Self::of_udp(
            ib.first_chunk()?,
            rest,
            total - IPV4_LEN as u32,
            EndsIn::V4(addresses),
        )
    }

    #[inline]
    fn of_ipv6(ip: &'a [u8]) -> Option<Self> {
        let head = ip.first_chunk::<V6_LEN>()?;
        let (header, ib) = head.split_first_chunk::<IPV6_LEN>()?;
        let first = be32(header, 0);
        let unusual = first >> 28 ^ 6 | header[6] as u32 ^ PROTOCOL_UDP as u32;
        if unusual != 0 || first >> 20 & 3 == 3 {
            return None;
        }
        let len = be32(header, 4) >> 16;
        let addresses = header.last_chunk()?;
        let rest = ip.get(V6_LEN..IPV6_LEN + len as usize)?;
        Self::of_udp(ib.first_chunk()?, rest, len, EndsIn::V6(addresses))
    }

    /// `head` is the UDP header and the BTH, `rest` what IP's length has behind them, `len` the length of UDP by IP.
    #[inline]
    fn of_udp(head: &[u8; UDP_LEN + BTH_LEN], rest: &'a [u8], len: u32, ends: EndsIn<'a>) -> Option<Self> {
        const WRITE: u32 = Opcode::new(Transport::Rc, Operation::WriteOnly).to_u8() as u32;
        const SEND: u32 = Opcode::new(Transport::Rc, Operation::SendOnly).to_u8() as u32;
        let udp = be32(head, 0) & 0xFFFF ^ ROCE_UDP_PORT as u32 | be32(head, 4) >> 16 ^ len;
        let first = be32(head, UDP_LEN);
        // The transport version, and the partition but for the bit that says whether its members are full ones.
        if udp != 0 || first & 0x000F_7FFF != 0x7FFF {
            return None;
        }
        let (reth, padded) = match first >> 24 {
            SEND => (None, rest.get(..rest.len().checked_sub(ICRC_LEN)?)?),
            WRITE => {
                let (reth, behind) = rest.split_first_chunk::<RETH_LEN>()?;
                let padded = behind.get(..behind.len().checked_sub(ICRC_LEN)?)?;
                (Some(Reth::read(reth)), padded)
            }
            _ => return None,
        };
        let pad = (first >> 20 & 3) as usize;
        if padded.len() & 3 != 0 {
            return None;
        }
        let last = be32(head, UDP_LEN + 8);
        Some(WholeFrame {
            whole: Whole {
                dest_qpn: be32(head, UDP_LEN + 4) & LOW_24,
                psn: Psn::new(last),
                ack_req: last >> 31 != 0,
                solicited: first >> 23 & 1 != 0,
                reth,
            },
            payload: padded.get(..padded.len().checked_sub(pad)?)?,
            ends,
        })
    }

    /// Whether it goes from one of these addresses to the other.
    #[inline]
    pub fn is_between(&self, ends: &Ends) -> bool {
        match (self.ends, ends) {
            (EndsIn::V4(here), Ends::V4(there)) => here == there,
            (EndsIn::V6(here), Ends::V6(there)) => here == there,
            _ => false,
        }
    }
}
