//! Transport headers: the BTH and everything that may follow it before the payload (9.2, 9.3, A19.4).

use crate::opcode::{BTH_LEN, HeaderSet, Opcode};
use crate::{EmitError, ParseError, Psn};

const LOW_24: u32 = 0x00FF_FFFF;

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
    fn parse(bytes: &[u8; BTH_LEN]) -> Result<Self, ParseError> {
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

    #[inline]
    fn to_bytes(self) -> [u8; BTH_LEN] {
        let flags =
            (self.solicited as u8) << 7 | (self.mig_req as u8) << 6 | (self.pad & 3) << 4 | self.tver & 0x0F;
        let pkey = self.pkey.to_be_bytes();
        let qpn = (self.dest_qpn & LOW_24).to_be_bytes();
        let ecn = (self.fecn as u8) << 7 | (self.becn as u8) << 6;
        let psn = ((self.ack_req as u32) << 31 | self.psn.get()).to_be_bytes();
        [
            self.opcode.to_u8(),
            flags,
            pkey[0],
            pkey[1],
            ecn,
            qpn[1],
            qpn[2],
            qpn[3],
            psn[0],
            psn[1],
            psn[2],
            psn[3],
        ]
    }
}

/// RDMA extended transport header: the remote range of a WRITE, READ, ATOMIC WRITE or FLUSH.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Reth {
    /// Remote virtual address.
    pub va: u64,
    /// Remote key.
    pub rkey: u32,
    /// Bytes of the whole message.
    pub dma_len: u32,
}

/// ACK extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Aeth {
    /// ACK, RNR NAK or NAK.
    pub syndrome: crate::Syndrome,
    /// Messages completed by the responder, modulo 2^24.
    pub msn: u32,
}

/// Datagram extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Deth {
    /// Queue key.
    pub qkey: u32,
    /// Source QP, 24 bits.
    pub src_qpn: u32,
}

/// Atomic extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AtomicEth {
    /// Remote virtual address, 8-byte aligned in a valid request.
    pub va: u64,
    /// Remote key.
    pub rkey: u32,
    /// The value to swap in, or to add.
    pub swap_or_add: u64,
    /// The value compared with (COMPARE SWAP only).
    pub compare: u64,
}

/// Atomic ACK extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AtomicAckEth {
    /// The remote value before the operation.
    pub original: u64,
}

/// XRC extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct XrcEth {
    /// The target's SRQ, 24 bits.
    pub srqn: u32,
}

/// FLUSH extended transport header (A19.4.2).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Feth {
    /// Placement type, 4 bits: [`Feth::GLOBAL_VISIBILITY`], [`Feth::PERSISTENCE`].
    pub placement: u8,
    /// Selectivity, 2 bits: [`Feth::RANGE`] or [`Feth::REGION`].
    pub selectivity: u8,
}

impl Feth {
    /// Placement bit: visible to every agent of the responder.
    pub const GLOBAL_VISIBILITY: u8 = 1;
    /// Placement bit: survives power loss.
    pub const PERSISTENCE: u8 = 2;
    /// Selectivity: the range of the RETH.
    pub const RANGE: u8 = 0;
    /// Selectivity: the whole memory region of the RETH's key.
    pub const REGION: u8 = 1;
}

/// All transport headers of one packet; which options are `Some` is decided by `bth.opcode`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the headers' own types say what they are
pub struct Headers {
    pub bth: Bth,
    pub xrceth: Option<XrcEth>,
    pub deth: Option<Deth>,
    pub reth: Option<Reth>,
    pub atomic: Option<AtomicEth>,
    pub aeth: Option<Aeth>,
    pub atomic_ack: Option<AtomicAckEth>,
    /// Immediate data: four opaque bytes, read as a big-endian number.
    pub imm: Option<u32>,
    /// The key that SEND with invalidate names.
    pub ieth: Option<u32>,
    pub feth: Option<Feth>,
}

impl Headers {
    /// A packet of the BTH alone; fill in the options its opcode demands.
    #[inline]
    pub const fn new(bth: Bth) -> Self {
        Headers {
            bth,
            xrceth: None,
            deth: None,
            reth: None,
            atomic: None,
            aeth: None,
            atomic_ack: None,
            imm: None,
            ieth: None,
            feth: None,
        }
    }

    /// Parses the headers at the start of `ib`, the bytes from the BTH on, and returns them with their total length.
    ///
    /// Reserved bits are ignored. Payload, pad and ICRC after the headers are not looked at.
    #[inline]
    pub fn parse(ib: &[u8]) -> Result<(Headers, usize), ParseError> {
        let mut rest = ib;
        let Some(bth) = take(&mut rest) else {
            return Err(truncated(BTH_LEN, ib.len()));
        };
        let mut headers = Headers::new(Bth::parse(bth)?);
        let len = headers.bth.opcode.header_len();
        if ib.len() < len {
            return Err(truncated(len, ib.len()));
        }
        if headers.parse_extensions(&mut rest).is_none() {
            return Err(truncated(len, ib.len()));
        }
        Ok((headers, len))
    }

    #[inline]
    fn parse_extensions(&mut self, rest: &mut &[u8]) -> Option<()> {
        let set = self.bth.opcode.headers();
        if set.is_empty() {
            return Some(());
        }
        if set.contains(HeaderSet::XRCETH) {
            self.xrceth = Some(XrcEth {
                srqn: u32::from_be_bytes(*take(rest)?) & LOW_24,
            });
        }
        if set.contains(HeaderSet::DETH) {
            let b: &[u8; 8] = take(rest)?;
            self.deth = Some(Deth {
                qkey: be32(b, 0),
                src_qpn: be32(b, 4) & LOW_24,
            });
        }
        if set.contains(HeaderSet::FETH) {
            let bits: &[u8; 4] = take(rest)?;
            self.feth = Some(Feth {
                placement: bits[3] & 0x0F,
                selectivity: bits[3] >> 4 & 3,
            });
        }
        if set.contains(HeaderSet::RETH) {
            let b: &[u8; 16] = take(rest)?;
            self.reth = Some(Reth {
                va: be64(b, 0),
                rkey: be32(b, 8),
                dma_len: be32(b, 12),
            });
        }
        if set.contains(HeaderSet::ATOMIC) {
            let b: &[u8; 28] = take(rest)?;
            self.atomic = Some(AtomicEth {
                va: be64(b, 0),
                rkey: be32(b, 8),
                swap_or_add: be64(b, 12),
                compare: be64(b, 20),
            });
        }
        if set.contains(HeaderSet::AETH) {
            let word = u32::from_be_bytes(*take(rest)?);
            let syndrome = crate::Syndrome::from_u8((word >> 24) as u8);
            self.aeth = Some(Aeth {
                syndrome,
                msn: word & LOW_24,
            });
        }
        if set.contains(HeaderSet::ATOMIC_ACK) {
            self.atomic_ack = Some(AtomicAckEth {
                original: u64::from_be_bytes(*take(rest)?),
            });
        }
        if set.contains(HeaderSet::IMM) {
            self.imm = Some(u32::from_be_bytes(*take(rest)?));
        }
        if set.contains(HeaderSet::IETH) {
            self.ieth = Some(u32::from_be_bytes(*take(rest)?));
        }
        Some(())
    }

    /// Bytes that [`Headers::emit`] writes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // there is always a BTH
    pub fn len(&self) -> usize {
        self.bth.opcode.header_len()
    }

    /// Writes the headers to the start of `out` and returns their length. Reserved bits are written as zero.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let opcode = self.bth.opcode;
        let required = opcode.headers();
        let present = self.present();
        if required.without(HeaderSet::CNP_RESERVED) != present {
            return Err(EmitError::WrongHeaders {
                opcode: opcode.to_u8(),
                required,
                present,
            });
        }
        if !opcode.is_defined() {
            return Err(EmitError::UndefinedOpcode {
                opcode: opcode.to_u8(),
            });
        }
        let len = opcode.header_len();
        let have = out.len();
        let small = EmitError::BufferTooSmall { need: len, have };
        let mut rest = out.get_mut(..len).ok_or(small)?;
        put(&mut rest, self.bth.to_bytes());
        self.emit_extensions(rest);
        Ok(len)
    }

    #[inline]
    fn emit_extensions(&self, mut rest: &mut [u8]) {
        if let Some(h) = self.xrceth {
            put(&mut rest, (h.srqn & LOW_24).to_be_bytes());
        }
        if let Some(h) = self.deth {
            put(&mut rest, h.qkey.to_be_bytes());
            put(&mut rest, (h.src_qpn & LOW_24).to_be_bytes());
        }
        if let Some(h) = self.feth {
            put(
                &mut rest,
                [0, 0, 0, (h.selectivity & 3) << 4 | h.placement & 0x0F],
            );
        }
        if let Some(h) = self.reth {
            put(&mut rest, h.va.to_be_bytes());
            put(&mut rest, h.rkey.to_be_bytes());
            put(&mut rest, h.dma_len.to_be_bytes());
        }
        if let Some(h) = self.atomic {
            put(&mut rest, h.va.to_be_bytes());
            put(&mut rest, h.rkey.to_be_bytes());
            put(&mut rest, h.swap_or_add.to_be_bytes());
            put(&mut rest, h.compare.to_be_bytes());
        }
        if let Some(h) = self.aeth {
            put(
                &mut rest,
                ((h.syndrome.to_u8() as u32) << 24 | h.msn & LOW_24).to_be_bytes(),
            );
        }
        if let Some(h) = self.atomic_ack {
            put(&mut rest, h.original.to_be_bytes());
        }
        if let Some(imm) = self.imm {
            put(&mut rest, imm.to_be_bytes());
        }
        if let Some(rkey) = self.ieth {
            put(&mut rest, rkey.to_be_bytes());
        }
        // Whatever is left is a CNP's reserved bytes.
        rest.fill(0);
    }

    /// The options that are `Some`.
    #[inline]
    fn present(&self) -> HeaderSet {
        HeaderSet::XRCETH
            .when(self.xrceth.is_some())
            .with(HeaderSet::DETH.when(self.deth.is_some()))
            .with(HeaderSet::FETH.when(self.feth.is_some()))
            .with(HeaderSet::RETH.when(self.reth.is_some()))
            .with(HeaderSet::ATOMIC.when(self.atomic.is_some()))
            .with(HeaderSet::AETH.when(self.aeth.is_some()))
            .with(HeaderSet::ATOMIC_ACK.when(self.atomic_ack.is_some()))
            .with(HeaderSet::IMM.when(self.imm.is_some()))
            .with(HeaderSet::IETH.when(self.ieth.is_some()))
    }
}

#[inline]
fn truncated(need: usize, have: usize) -> ParseError {
    ParseError::HeaderTruncated {
        need: need as u16,
        have: have as u16,
    }
}

#[inline]
fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(head)
}

/// Writes `bytes` at the start of `rest` and moves past them; does nothing when there is no room.
#[inline]
fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    if let Some((head, tail)) = core::mem::take(rest).split_first_chunk_mut() {
        *head = bytes;
        *rest = tail;
    }
}

#[inline]
fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    (be32(bytes, at) as u64) << 32 | be32(bytes, at + 4) as u64
}
