//! One-line text forms for logs.

use crate::{
    Aeth, Datagram, Frame, HeaderSet, Headers, Kind, Link, NakCode, RnrTimer, Syndrome, Transport, classify,
};
use core::fmt::{Display, Formatter, Result};

/// Any frame as one line, RoCE or not, sound or broken.
///
/// ```
/// let line = rnic_wire::Summary::new(&[0xFF; 60], None);
/// assert_eq!(line.to_string(), "ff:ff:ff:ff:ff:ff>ff:ff:ff:ff:ff:ff type=0xffff len=60");
/// ```
#[derive(Copy, Clone, Debug)]
pub struct Summary<'a> {
    frame: &'a [u8],
    vlan_in_metadata: Option<u16>,
}

impl<'a> Summary<'a> {
    /// The text form of a frame from its Ethernet header on; see [`Datagram::parse`] for `vlan_in_metadata`.
    pub const fn new(frame: &'a [u8], vlan_in_metadata: Option<u16>) -> Self {
        Summary {
            frame,
            vlan_in_metadata,
        }
    }
}

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match classify(self.frame, self.vlan_in_metadata) {
            Kind::Roce(frame) => write!(f, "{frame}"),
            Kind::ReservedOpcode {
                datagram,
                opcode,
                dest_qpn,
                psn,
            } => {
                let class = Transport::of_opcode(opcode).map_or("manufacturer", Transport::name);
                write!(
                    f,
                    "{datagram} {class} reserved opcode {opcode:#04x} qp={dest_qpn:#08x} psn={psn}"
                )
            }
            Kind::Malformed(error) => {
                if let Ok((link, _)) = Link::parse(self.frame) {
                    write!(f, "{link} ")?;
                }
                write!(f, "malformed: {error} len={}", self.frame.len())
            }
            Kind::Other => match Link::parse(self.frame) {
                Ok((link, ethertype)) => write!(f, "{link} type={ethertype:#06x} len={}", self.frame.len()),
                Err(error) => write!(f, "malformed: {error}"),
            },
        }
    }
}

/// "vlan=5 10.0.0.1>10.0.0.2"
impl Display for Datagram<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for vid in self.vlan_ids() {
            if vid != 0 {
                write!(f, "vlan={vid} ")?;
            }
        }
        write!(f, "{}", self.net())
    }
}

/// "10.0.0.1>10.0.0.2 RC WRITE_ONLY qp=0x000029 psn=0x00e748 ackreq va=0x5591e5384388 rkey=0x1d80 dma=5 len=5"
impl Display for Frame<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} {}", self.datagram(), self.headers())?;
        if self.bth().opcode.has_payload() {
            write!(f, " len={}", self.payload_range().len())?;
        }
        Ok(())
    }
}

impl Display for Headers {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let bth = &self.bth;
        write!(f, "{} qp={:#08x} psn={}", bth.opcode, bth.dest_qpn, bth.psn)?;
        let flags = [
            (bth.solicited, " se"),
            (bth.ack_req, " ackreq"),
            (bth.fecn, " fecn"),
            (bth.becn, " becn"),
        ];
        for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
            f.write_str(name)?;
        }
        if bth.pkey != 0xFFFF {
            write!(f, " pkey={:#06x}", bth.pkey)?;
        }
        if let Some(h) = self.xrceth {
            write!(f, " srq={:#08x}", h.srqn)?;
        }
        if let Some(h) = self.deth {
            write!(f, " qkey={:#x} srcqp={:#08x}", h.qkey, h.src_qpn)?;
        }
        if let Some(h) = self.feth {
            write!(f, " placement={:#x} selectivity={}", h.placement, h.selectivity)?;
        }
        if let Some(h) = self.reth {
            write!(f, " va={:#x} rkey={:#x} dma={}", h.va, h.rkey, h.dma_len)?;
        }
        if let Some(h) = self.atomic {
            write!(
                f,
                " va={:#x} rkey={:#x} value={:#x} compare={:#x}",
                h.va, h.rkey, h.swap_or_add, h.compare
            )?;
        }
        if let Some(h) = self.aeth {
            write!(f, " {h}")?;
        }
        if let Some(h) = self.atomic_ack {
            write!(f, " original={:#x}", h.original)?;
        }
        if let Some(imm) = self.imm {
            write!(f, " imm={imm:#x}")?;
        }
        if let Some(rkey) = self.ieth {
            write!(f, " invalidate={rkey:#x}")?;
        }
        Ok(())
    }
}

/// "syndrome=ACK msn=7"
impl Display for Aeth {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "syndrome={} msn={}", self.syndrome, self.msn)
    }
}

/// "ACK", "ACK(credits=5)", "RNR_NAK(timer=12,640us)", "NAK(REMOTE_ACCESS_ERROR)"
impl Display for Syndrome {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match *self {
            Syndrome::ACK => f.write_str("ACK"),
            Syndrome::Ack { credits } => write!(f, "ACK(credits={credits})"),
            Syndrome::RnrNak { timer } => {
                write!(
                    f,
                    "RNR_NAK(timer={timer},{}us)",
                    RnrTimer::new(timer).nanos() / 1_000
                )
            }
            Syndrome::Nak(code) => write!(f, "NAK({code})"),
            Syndrome::Reserved(byte) => write!(f, "RESERVED({byte:#04x})"),
        }
    }
}

impl Display for NakCode {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            NakCode::PsnSequenceError => "PSN_SEQUENCE_ERROR",
            NakCode::InvalidRequest => "INVALID_REQUEST",
            NakCode::RemoteAccessError => "REMOTE_ACCESS_ERROR",
            NakCode::RemoteOperationalError => "REMOTE_OPERATIONAL_ERROR",
            NakCode::InvalidRdRequest => "INVALID_RD_REQUEST",
            NakCode::Reserved(value) => return write!(f, "RESERVED_{value}"),
        })
    }
}

/// "RETH+IMM"; the empty set is "none".
impl Display for HeaderSet {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut separator = "";
        for (set, name) in HeaderSet::NAMED {
            if self.contains(set) {
                write!(f, "{separator}{name}")?;
                separator = "+";
            }
        }
        if self.is_empty() {
            f.write_str("none")
        } else {
            Ok(())
        }
    }
}
