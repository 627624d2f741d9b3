//! Packets that are a whole message of RC: a SEND or WRITE without immediate data that fits one packet. Busy wires are full of
//! them, and the options of all other packets are not looked at for them.

use crate::bytes::put;
use crate::opcode::BTH_LEN;
use crate::repr::FrameTemplate;
use crate::{
    Bth, Headers, ICRC_LEN, IPV4_LEN, IpVersion, Opcode, Operation, Psn, Reth, Transport, UDP_LEN, pad_len,
};

const RETH_LEN: usize = 16;

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
        let bth = Bth {
            ack_req: whole.ack_req,
            solicited: whole.solicited,
            ..Bth::new(whole.opcode(), whole.dest_qpn, whole.psn)
        };
        self.emit_plain(&bth, whole.reth.as_ref(), ident, payload_len, out)
    }

    /// The same of a packet in the middle of a message, which has no header but the BTH.
    #[inline]
    pub fn emit_middle(&self, bth: &Bth, ident: u16, payload_len: usize, out: &mut [u8]) -> Option<usize> {
        self.emit_plain(bth, None, ident, payload_len, out)
    }

    #[inline(always)] // its callers know whether there is a RETH
    fn emit_plain(
        &self,
        bth: &Bth,
        reth: Option<&Reth>,
        ident: u16,
        payload_len: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let pad = pad_len(payload_len);
        let len = match reth {
            Some(_) => BTH_LEN + RETH_LEN,
            None => BTH_LEN,
        };
        let udp_len = u16::try_from(UDP_LEN + len + payload_len + pad as usize + ICRC_LEN).ok()?;
        let total = udp_len.checked_add(IPV4_LEN as u16)?;
        let (head, rest) = self.copy_prefix(out)?;
        let ib = rest.first_chunk_mut::<{ BTH_LEN + RETH_LEN }>()?;
        let mut at = ib.as_mut_slice();
        for word in bth.words(pad) {
            put(&mut at, word.to_be_bytes());
        }
        if let Some(reth) = reth {
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
