//! Packets that are a whole message of RC: a SEND or WRITE without immediate data that fits one packet. Busy wires are full of
//! them, and the options of all other packets are not looked at for them.

use crate::bytes::{LOW_24, be32, put};
use crate::datagram::chunk_at;
use crate::ethernet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::ip::{Ecn, IPV6_LEN, PROTOCOL_UDP};
use crate::opcode::BTH_LEN;
use crate::repr::FrameTemplate;
use crate::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Crc32, Headers, ICRC_LEN, IPV4_LEN, Icrc, IpVersion, Opcode,
    Operation, Psn, ROCE_UDP_PORT, Reth, Transport, UDP_LEN, pad_len,
};

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

/// A packet with at most one header behind the BTH, or with the two that acknowledge an atomic.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    /// What it is, of RC.
    pub operation: Operation,
    /// Destination QP, 24 bits.
    pub dest_qpn: u32,
    /// Its PSN.
    pub psn: Psn,
    /// The requester wants an acknowledgement.
    pub ack_req: bool,
    /// What its operation demands behind the BTH.
    pub extension: Extension,
}

/// What follows the BTH of a [`Plain`] packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the headers' own types say what they are
pub enum Extension {
    Reth(Reth),
    Atomic(AtomicEth),
    Aeth(Aeth),
    AtomicAck(Aeth, AtomicAckEth),
}

impl Plain {
    /// The same of the headers of any packet; `None` of those that are no such packet, and of all but RC.
    pub fn of(headers: &Headers) -> Option<Plain> {
        if headers.bth.opcode.transport != Transport::Rc {
            return None;
        }
        let extension = match (headers.bth.opcode.operation, headers.aeth) {
            (Operation::ReadRequest, _) => Extension::Reth(headers.reth?),
            (Operation::CompareSwap | Operation::FetchAdd, _) => Extension::Atomic(headers.atomic?),
            (Operation::ReadResponseOnly | Operation::Acknowledge, Some(aeth)) => Extension::Aeth(aeth),
            (Operation::AtomicAcknowledge, Some(aeth)) => Extension::AtomicAck(aeth, headers.atomic_ack?),
            _ => return None,
        };
        let bth = &headers.bth;
        Some(Plain {
            operation: bth.opcode.operation,
            dest_qpn: bth.dest_qpn,
            psn: bth.psn,
            ack_req: bth.ack_req,
            extension,
        })
    }

    /// Its BTH, with everything else as it usually is.
    #[inline]
    pub const fn bth(&self) -> Bth {
        let mut bth = Bth::new(
            Opcode::new(Transport::Rc, self.operation),
            self.dest_qpn,
            self.psn,
        );
        bth.ack_req = self.ack_req;
        bth
    }

    /// All of its headers.
    pub const fn headers(&self) -> Headers {
        let mut headers = Headers::new(self.bth());
        match self.extension {
            Extension::Reth(reth) => headers.reth = Some(reth),
            Extension::Atomic(eth) => headers.atomic = Some(eth),
            Extension::Aeth(aeth) => headers.aeth = Some(aeth),
            Extension::AtomicAck(aeth, ack) => (headers.aeth, headers.atomic_ack) = (Some(aeth), Some(ack)),
        }
        headers
    }
}

impl FrameTemplate {
    /// Writes all headers of such a packet from Ethernet up to the payload to the start of `out`, as
    /// [`FrameTemplate::emit_headers`] does, and returns their length. `None` when `out` is too small for the longest headers
    /// of any frame, or the payload too long for IP.
    #[inline]
    pub fn emit_whole(&self, whole: &Whole, ident: u16, payload_len: usize, out: &mut [u8]) -> Option<usize> {
        let bth = Bth {
            ack_req: whole.ack_req,
            solicited: whole.solicited,
            ..Bth::new(whole.opcode(), whole.dest_qpn, whole.psn)
        };
        match &whole.reth {
            Some(reth) => self.emit_with(&bth, reth.bytes(), ident, payload_len, out),
            None => self.emit_with(&bth, [], ident, payload_len, out),
        }
    }

    /// The same of a packet in the middle of a message, which has no header but the BTH.
    #[inline]
    pub fn emit_middle(&self, bth: &Bth, ident: u16, payload_len: usize, out: &mut [u8]) -> Option<usize> {
        self.emit_with(bth, [], ident, payload_len, out)
    }

    /// The same of a plain packet.
    #[inline]
    pub fn emit_plain(&self, plain: &Plain, ident: u16, payload_len: usize, out: &mut [u8]) -> Option<usize> {
        let bth = &plain.bth();
        match &plain.extension {
            Extension::Reth(reth) => self.emit_with(bth, reth.bytes(), ident, payload_len, out),
            Extension::Atomic(eth) => self.emit_with(bth, eth.bytes(), ident, payload_len, out),
            Extension::Aeth(aeth) => self.emit_with(bth, aeth.bytes(), ident, payload_len, out),
            Extension::AtomicAck(aeth, ack) => {
                let mut both = [0; 12];
                let mut rest = both.as_mut_slice();
                put(&mut rest, aeth.bytes());
                put(&mut rest, ack.original.to_be_bytes());
                self.emit_with(bth, both, ident, payload_len, out)
            }
        }
    }

    #[inline(always)] // most of a BTH is known to who calls it
    fn emit_with<const N: usize>(
        &self,
        bth: &Bth,
        extension: [u8; N],
        ident: u16,
        payload_len: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let pad = pad_len(payload_len);
        let len = BTH_LEN + N;
        let udp_len = u16::try_from(UDP_LEN + len + payload_len + pad as usize + ICRC_LEN).ok()?;
        let total = udp_len.checked_add(IPV4_LEN as u16)?;
        let (head, rest) = self.copy_prefix(out)?;
        let mut at = rest.get_mut(..len)?;
        for word in bth.words(pad) {
            put(&mut at, word.to_be_bytes());
        }
        put(&mut at, extension);
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

/// A well-formed frame of RC that is all there is to a request or response ([`Whole`], or a READ request, atomic,
/// acknowledgement, atomic ACK, or only READ response), untagged and plain in everything else. The ICRC is not verified by parsing.
#[derive(Copy, Clone, Debug)]
pub struct PlainFrame<'a> {
    /// From IP to the ICRC.
    packet: &'a [u8],
    /// Destination QP.
    dest_qpn: u32,
    /// The last word of the BTH: PSN, and whether an acknowledgement is wanted.
    last: u32,
    /// Where in the packet the payload begins, and its length without pad.
    start: u16,
    len: u16,
    solicited: bool,
    opcode: u8,
    version: IpVersion,
}

impl<'a> PlainFrame<'a> {
    /// Parses a frame that starts with its Ethernet header. `None` of all other frames, and of whatever is not plainly as it
    /// usually is: [`classify`](crate::classify) says what those are. A frame that is parsed here is one that it finds
    /// well-formed, with the same headers and the same payload; it is not marked "congestion experienced", and is in the
    /// default partition.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (link, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
        let ethertype = [link[12], link[13]];
        if ethertype == ETHERTYPE_IPV4.to_be_bytes() {
            Self::of_ipv4(ip)
        } else if ethertype == ETHERTYPE_IPV6.to_be_bytes() {
            Self::of_ipv6(ip)
        } else {
            None
        }
    }

    #[inline]
    fn of_ipv4(ip: &'a [u8]) -> Option<Self> {
        let head = ip.first_chunk::<V4_LEN>()?;
        let (h, ib) = head.split_first_chunk::<IPV4_LEN>()?;
        let extension_len = extension_len(ib[UDP_LEN])?;
        let total = u16::from_be_bytes([h[2], h[3]]);
        if !V4_FORM.fits(h.first_chunk()?) || is_marked(h[1]) || h[9] != PROTOCOL_UDP || !is_summed(h) {
            return None;
        }
        let packet = ip.get(..total as usize)?;
        let udp_len = total.wrapping_sub(IPV4_LEN as u16);
        Self::of_udp(extension_len, ib.first_chunk()?, udp_len, packet, IpVersion::V4)
    }

    #[inline]
    fn of_ipv6(ip: &'a [u8]) -> Option<Self> {
        let head = ip.first_chunk::<V6_LEN>()?;
        let (h, ib) = head.split_first_chunk::<IPV6_LEN>()?;
        let extension_len = extension_len(ib[UDP_LEN])?;
        let udp_len = u16::from_be_bytes([h[4], h[5]]);
        if h[0] >> 4 != 6 || is_marked(h[1] >> 4) || h[6] != PROTOCOL_UDP {
            return None;
        }
        let packet = ip.get(..IPV6_LEN + udp_len as usize)?;
        Self::of_udp(extension_len, ib.first_chunk()?, udp_len, packet, IpVersion::V6)
    }

    /// `h` is the UDP header and the BTH, `udp_len` the length of UDP by IP, and `packet` as long as IP says.
    #[inline]
    fn of_udp(
        extension_len: usize,
        h: &[u8; UDP_LEN + BTH_LEN],
        udp_len: u16,
        packet: &'a [u8],
        version: IpVersion,
    ) -> Option<Self> {
        let len = u16::from_be_bytes([h[4], h[5]]);
        let flags = h[UDP_LEN + 1];
        let (_, form) = h.split_first_chunk::<4>()?;
        if [h[2], h[3]] != ROCE_UDP_PORT.to_be_bytes()
            || len != udp_len
            || !BTH_FORM.fits(form.first_chunk()?)
        {
            return None;
        }
        let opcode = h[UDP_LEN];
        let header_len = (UDP_LEN + BTH_LEN + extension_len) as u16;
        let padded = udp_len.checked_sub(header_len + ICRC_LEN as u16)?;
        let pad = (flags >> 4 & 3) as u16;
        if padded & 3 != 0 || padded != 0 && !has_payload(opcode) {
            return None;
        }
        Some(PlainFrame {
            packet,
            dest_qpn: be32(h, UDP_LEN + 4) & LOW_24,
            last: be32(h, UDP_LEN + 8),
            start: version.header_len() as u16 + header_len,
            len: padded.checked_sub(pad)?,
            solicited: flags >> 7 != 0,
            opcode,
            version,
        })
    }

    /// Destination QP.
    #[inline]
    pub fn dest_qpn(&self) -> u32 {
        self.dest_qpn
    }

    /// The headers of a message of one packet; `None` of all others.
    #[inline(always)] // that they are made and taken apart again need not happen
    pub fn whole(&self) -> Option<Whole> {
        let reth = match self.opcode {
            WRITE => Some(Reth::read(self.extension()?)),
            SEND => None,
            _ => return None,
        };
        Some(Whole {
            dest_qpn: self.dest_qpn,
            psn: Psn::new(self.last),
            ack_req: self.last >> 31 != 0,
            solicited: self.solicited,
            reth,
        })
    }

    /// The headers of a READ request or atomic, or of the only packet that answers one, with MigReq and partition as they
    /// usually are; `None` of all others.
    #[inline(always)] // as above
    pub fn fetch(&self) -> Option<Plain> {
        let (operation, extension) = match self.opcode {
            READ => (
                Operation::ReadRequest,
                Extension::Reth(Reth::read(self.extension()?)),
            ),
            READ_RESPONSE => (
                Operation::ReadResponseOnly,
                Extension::Aeth(Aeth::read(self.extension()?)),
            ),
            CMP_SWP => (
                Operation::CompareSwap,
                Extension::Atomic(AtomicEth::read(self.extension()?)),
            ),
            FETCH_ADD => (
                Operation::FetchAdd,
                Extension::Atomic(AtomicEth::read(self.extension()?)),
            ),
            ATOMIC_ACK => {
                let both: &[u8; 12] = self.extension()?;
                let (aeth, original) = (both.first_chunk()?, both.last_chunk()?);
                (
                    Operation::AtomicAcknowledge,
                    Extension::AtomicAck(Aeth::read(aeth), AtomicAckEth::read(original)),
                )
            }
            _ => return None,
        };
        Some(Plain {
            operation,
            dest_qpn: self.dest_qpn,
            psn: Psn::new(self.last),
            ack_req: self.last >> 31 != 0,
            extension,
        })
    }

    /// All headers.
    #[inline(always)] // they are large, and are to be made where they are wanted
    pub fn headers(&self) -> Option<Headers> {
        let bth = chunk_at(self.packet, self.version.header_len() + UDP_LEN)?;
        let mut headers = Headers::new(Bth::parse(bth).ok()?);
        match self.opcode {
            WRITE | READ => headers.reth = Some(Reth::read(self.extension()?)),
            CMP_SWP | FETCH_ADD => headers.atomic = Some(AtomicEth::read(self.extension()?)),
            READ_RESPONSE | ACK => headers.aeth = Some(Aeth::read(self.extension()?)),
            ATOMIC_ACK => {
                let both: &[u8; 12] = self.extension()?;
                headers.aeth = both.first_chunk().map(Aeth::read);
                headers.atomic_ack = both.last_chunk().map(AtomicAckEth::read);
            }
            _ => {}
        }
        Some(headers)
    }

    /// What lies between BTH and payload, which has this length.
    #[inline(always)]
    fn extension<const N: usize>(&self) -> Option<&'a [u8; N]> {
        chunk_at(self.packet, (self.start as usize).checked_sub(N)?)
    }

    /// The payload, without pad.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        let start = self.start as usize;
        self.packet.get(start..start + self.len as usize).unwrap_or(&[])
    }

    /// Whether it has the addresses of a template's frames the other way round, and these are untagged like it.
    #[inline(always)] // a few instructions, asked for every packet
    pub fn answers(&self, template: &FrameTemplate) -> bool {
        let Some(ip) = template
            .untagged_ip()
            .filter(|_| template.version() == self.version)
        else {
            return false;
        };
        match self.version {
            IpVersion::V4 => {
                let ends = |bytes| chunk_at(bytes, 12).map(|ends| u64::from_be_bytes(*ends));
                ends(self.packet).map(|ends| ends.rotate_left(32)) == ends(ip)
            }
            IpVersion::V6 => {
                let end = |bytes, at| chunk_at::<16>(bytes, at).map(|end| u128::from_be_bytes(*end));
                end(self.packet, 8) == end(ip, 24) && end(self.packet, 24) == end(ip, 8)
            }
        }
    }

    /// As [`verify_icrc`](crate::verify_icrc) of the datagram.
    #[inline]
    pub fn verify_icrc(&self, crc: &impl Crc32) -> bool {
        let sum = |(covered, icrc): (&[u8], &[u8; ICRC_LEN])| {
            Icrc::finish(Icrc::start(crc, covered, self.version)) == *icrc
        };
        self.packet.split_last_chunk().is_some_and(sum)
    }
}

/// What eight bytes have to be, as far as it is not up to the packet: looked at together.
struct Form {
    /// The bits that are fixed, and what they are.
    mask: u64,
    value: u64,
}

impl Form {
    const fn new(mask: [u8; 8], value: [u8; 8]) -> Self {
        Form {
            mask: u64::from_ne_bytes(mask),
            value: u64::from_ne_bytes(value),
        }
    }

    #[inline(always)]
    const fn fits(&self, bytes: &[u8; 8]) -> bool {
        u64::from_ne_bytes(*bytes) & self.mask == self.value
    }
}

/// The start of an IPv4 header: version 4, no options, and neither a fragment nor one with more to come.
const V4_FORM: Form = Form::new([0xFF, 0, 0, 0, 0, 0, 0x3F, 0xFF], [0x45, 0, 0, 0, 0, 0, 0, 0]);

/// From the length of UDP to the partition: of version 0, and of the partition that all are in, as a full member or not.
const BTH_FORM: Form = Form::new([0, 0, 0, 0, 0, 0x0F, 0x7F, 0xFF], [0, 0, 0, 0, 0, 0, 0x7F, 0xFF]);

const SEND: u8 = Opcode::new(Transport::Rc, Operation::SendOnly).to_u8();
const WRITE: u8 = Opcode::new(Transport::Rc, Operation::WriteOnly).to_u8();
const READ: u8 = Opcode::new(Transport::Rc, Operation::ReadRequest).to_u8();
const READ_RESPONSE: u8 = Opcode::new(Transport::Rc, Operation::ReadResponseOnly).to_u8();
const ACK: u8 = Opcode::new(Transport::Rc, Operation::Acknowledge).to_u8();
const ATOMIC_ACK: u8 = Opcode::new(Transport::Rc, Operation::AtomicAcknowledge).to_u8();
const CMP_SWP: u8 = Opcode::new(Transport::Rc, Operation::CompareSwap).to_u8();
const FETCH_ADD: u8 = Opcode::new(Transport::Rc, Operation::FetchAdd).to_u8();

/// Bytes between BTH and payload; `None` of opcodes that are not plain. To be asked first: nothing decides more.
#[inline]
fn extension_len(opcode: u8) -> Option<usize> {
    match opcode {
        SEND => Some(0),
        READ_RESPONSE | ACK => Some(4),
        ATOMIC_ACK => Some(12),
        WRITE | READ => Some(16),
        CMP_SWP | FETCH_ADD => Some(28),
        _ => None,
    }
}

/// Whether a plain packet may have payload.
#[inline]
fn has_payload(opcode: u8) -> bool {
    matches!(opcode, SEND | WRITE | READ_RESPONSE)
}

/// Whether a byte ends in the ECN bits "congestion experienced".
#[inline]
fn is_marked(tos: u8) -> bool {
    tos & 3 == Ecn::Ce as u8
}

/// Whether the checksum of an IPv4 header that is not all zeros is right.
///
/// It does not matter to it in which byte order words are added, nor how long they are, as long as carries come around.
#[inline]
fn is_summed(header: &[u8; IPV4_LEN]) -> bool {
    let Some((first, rest)) = header.split_first_chunk::<8>() else {
        return false;
    };
    let Some((second, last)) = rest.split_first_chunk::<8>() else {
        return false;
    };
    let last = last.first_chunk().copied().unwrap_or_default();
    let add = |a: u64, b: u64| {
        let (sum, carry) = a.overflowing_add(b);
        sum + carry as u64
    };
    let sum = add(u64::from_le_bytes(*first), u64::from_le_bytes(*second));
    let sum = add(sum, u32::from_le_bytes(last) as u64);
    // The upper half of a sum with its own halves exchanged is the sum of both, the carry of which has come around.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    sum.wrapping_add(sum.rotate_left(16)) >> 16 == 0xFFFF
}
