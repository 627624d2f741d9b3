//! The base transport header (9.2).

use crate::bytes::{LOW_24, be32};
use crate::opcode::{BTH_LEN, Opcode};
use crate::{ParseError, Psn};

/// Base transport header. All fields in host order; fields narrower than their type are masked when emitted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Bth {
    /// Opcode, which decides the headers that follow.
    pub opcode: Opcode,
    /// Solicited event: the completion wakes a CQ armed for solicited ones.
    pub solicited: bool,
    /// Migration state. Hardware sends 1, old rxe sends 0 in ACKs: emit true, accept both.
    pub mig_req: bool,
    /// Pad bytes after the payload, 0 to 3.
    pub pad: u8,
    /// Transport header version, always 0 on the wire.
    pub tver: u8,
    /// Partition key.
    pub pkey: u16,
    /// Forward congestion notification. Outside the ICRC.
    pub fecn: bool,
    /// Backward congestion notification, set in CNPs. Outside the ICRC.
    pub becn: bool,
    /// Destination QP, 24 bits.
    pub dest_qpn: u32,
    /// The requester wants an acknowledgement (RC and XRC only).
    pub ack_req: bool,
    /// Packet sequence number.
    pub psn: Psn,
}

impl Bth {
    /// A BTH with the usual values: MigReq set, default partition, no pad, no flags.
    #[inline]
    pub const fn new(opcode: Opcode, dest_qpn: u32, psn: Psn) -> Self {
        Bth {
            opcode,
            solicited: false,
            mig_req: true,
            pad: 0,
            tver: 0,
            pkey: 0xFFFF,
            fecn: false,
            becn: false,
            dest_qpn,
            ack_req: false,
            psn,
        }
    }

    #[inline]
    pub(crate) fn parse(bytes: &[u8; BTH_LEN]) -> Result<Self, ParseError> {
        let flags = bytes[1];
        let dest_qpn = be32(bytes, 4) & LOW_24;
        let last = be32(bytes, 8);
        let psn = Psn::new(last);
        let tver = flags & 0x0F;
        if tver != 0 {
            return Err(ParseError::TransportVersion { tver });
        }
        let Some(opcode) = Opcode::from_u8(bytes[0]) else {
            return Err(ParseError::ReservedOpcode {
                opcode: bytes[0],
                dest_qpn,
                psn,
            });
        };
        Ok(Bth {
            opcode,
            solicited: flags & 0x80 != 0,
            mig_req: flags & 0x40 != 0,
            pad: flags >> 4 & 3,
            tver,
            pkey: u16::from_be_bytes([bytes[2], bytes[3]]),
            fecn: bytes[4] & 0x80 != 0,
            becn: bytes[4] & 0x40 != 0,
            dest_qpn,
            ack_req: last >> 31 != 0,
            psn,
        })
    }

    /// Its words, with another pad count. Field by field: a BTH was often made just now, and is not copied then.
    #[inline]
    pub(crate) fn words(&self, pad: u8) -> [u32; BTH_LEN / 4] {
        let flags =
            (self.solicited as u8) << 7 | (self.mig_req as u8) << 6 | (pad & 3) << 4 | self.tver & 0x0F;
        let ecn = (self.fecn as u8) << 7 | (self.becn as u8) << 6;
        [
            (self.opcode.to_u8() as u32) << 24 | (flags as u32) << 16 | self.pkey as u32,
            (ecn as u32) << 24 | self.dest_qpn & LOW_24,
            (self.ack_req as u32) << 31 | self.psn.get(),
        ]
    }
}
