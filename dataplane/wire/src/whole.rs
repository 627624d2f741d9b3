//! Packets that are a whole message of RC: a SEND or WRITE without immediate data that fits one packet. Busy wires are full of
//! them, and the options of all other packets are not looked at for them.

use crate::bytes::put;
use crate::opcode::BTH_LEN;
use crate::repr::FrameTemplate;
use crate::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Headers, ICRC_LEN, IPV4_LEN, IpVersion, Opcode, Operation, Psn, Reth,
    Transport, UDP_LEN, pad_len,
};

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
    /// The BTH; its pad is ignored.
    pub bth: Bth,
    /// What its opcode demands behind it.
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
    /// All of its headers.
    pub const fn headers(&self) -> Headers {
        let mut headers = Headers::new(self.bth);
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
        match &plain.extension {
            Extension::Reth(reth) => self.emit_with(&plain.bth, reth.bytes(), ident, payload_len, out),
            Extension::Atomic(eth) => self.emit_with(&plain.bth, eth.bytes(), ident, payload_len, out),
            Extension::Aeth(aeth) => self.emit_with(&plain.bth, aeth.bytes(), ident, payload_len, out),
            Extension::AtomicAck(aeth, ack) => {
                let mut both = [0; 12];
                let mut rest = both.as_mut_slice();
                put(&mut rest, aeth.bytes());
                put(&mut rest, ack.original.to_be_bytes());
                self.emit_with(&plain.bth, both, ident, payload_len, out)
            }
        }
    }

    #[inline]
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
