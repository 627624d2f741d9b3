//! All transport headers of a packet: the BTH and what follows it before the payload (9.2, 9.3, A19.4).

use crate::bth::Bth;
use crate::bytes::{LOW_24, put, take};
use crate::extension::{Aeth, AtomicAckEth, AtomicEth, Deth, Feth, Reth, XrcEth};
use crate::header_set::HeaderSet;
use crate::opcode::{BTH_LEN, Opcode};
use crate::{EmitError, ParseError};

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

    /// Makes it [`Headers::new`] of another packet, in place.
    #[inline]
    pub fn begin(&mut self, bth: Bth) {
        self.bth = bth;
        self.xrceth = None;
        self.deth = None;
        self.reth = None;
        self.atomic = None;
        self.aeth = None;
        self.atomic_ack = None;
        self.imm = None;
        self.ieth = None;
        self.feth = None;
    }

    /// Parses the headers at the start of `ib`, the bytes from the BTH on, and returns them with their total length.
    ///
    /// Reserved bits are ignored. Payload, pad and ICRC after the headers are not looked at.
    #[inline(always)] // the result is large, and is to be made where it is wanted
    pub fn parse(ib: &[u8]) -> Result<(Headers, usize), ParseError> {
        let mut rest = ib;
        let Some(bth) = take(&mut rest) else {
            return Err(truncated(BTH_LEN, ib.len()));
        };
        let bth = Bth::parse(bth)?;
        let len = bth.opcode.header_len();
        let headers = if len == BTH_LEN {
            Some(Headers::new(bth))
        } else {
            Headers::parse_extensions(bth, rest)
        };
        match headers {
            Some(headers) => Ok((headers, len)),
            None => Err(truncated(len, ib.len())),
        }
    }

    /// Reads the headers that the opcode demands from the bytes behind the BTH; `None` when these do not suffice.
    #[inline(always)] // as above
    fn parse_extensions(bth: Bth, mut rest: &[u8]) -> Option<Self> {
        let set = bth.opcode.headers();
        let rest = &mut rest;
        let xrceth = read_if(set.contains(HeaderSet::XRCETH), rest, XrcEth::read)?;
        let deth = read_if(set.contains(HeaderSet::DETH), rest, Deth::read)?;
        let feth = read_if(set.contains(HeaderSet::FETH), rest, Feth::read)?;
        let reth = read_if(set.contains(HeaderSet::RETH), rest, Reth::read)?;
        let atomic = read_if(set.contains(HeaderSet::ATOMIC), rest, AtomicEth::read)?;
        let aeth = read_if(set.contains(HeaderSet::AETH), rest, Aeth::read)?;
        let atomic_ack = read_if(set.contains(HeaderSet::ATOMIC_ACK), rest, AtomicAckEth::read)?;
        let imm = read_if(set.contains(HeaderSet::IMM), rest, |b| u32::from_be_bytes(*b))?;
        let ieth = read_if(set.contains(HeaderSet::IETH), rest, |b| u32::from_be_bytes(*b))?;
        if set.contains(HeaderSet::CNP_RESERVED) {
            take::<16>(rest)?;
        }
        Some(Headers {
            bth,
            xrceth,
            deth,
            reth,
            atomic,
            aeth,
            atomic_ack,
            imm,
            ieth,
            feth,
        })
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
        self.emit_with_pad(self.bth.pad, out)
    }

    /// [`Headers::emit`] with a pad count in place of the BTH's own.
    #[inline]
    pub(crate) fn emit_with_pad(&self, pad: u8, out: &mut [u8]) -> Result<usize, EmitError> {
        let opcode = self.bth.opcode;
        if Opcode::from_u8(opcode.to_u8()) != Some(opcode) {
            return Err(EmitError::UndefinedOpcode {
                opcode: opcode.to_u8(),
            });
        }
        let required = opcode.headers();
        let present = self.present();
        if required.without(HeaderSet::CNP_RESERVED) != present {
            return Err(EmitError::WrongHeaders {
                opcode: opcode.to_u8(),
                required,
                present,
            });
        }
        let len = opcode.header_len();
        let have = out.len();
        let small = EmitError::BufferTooSmall { need: len, have };
        let mut rest = out.get_mut(..len).ok_or(small)?;
        for word in self.bth.words(pad) {
            put(&mut rest, word.to_be_bytes());
        }
        if !rest.is_empty() {
            self.emit_extensions(rest);
        }
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
            put(&mut rest, h.bytes());
        }
        if let Some(h) = self.atomic {
            put(&mut rest, h.bytes());
        }
        if let Some(h) = self.aeth {
            put(&mut rest, h.bytes());
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

/// Reads a header when the opcode has it; the outer `None` when the bytes do not suffice.
#[inline]
fn read_if<const N: usize, T>(
    present: bool,
    rest: &mut &[u8],
    read: impl Fn(&[u8; N]) -> T,
) -> Option<Option<T>> {
    if present {
        Some(Some(read(take(rest)?)))
    } else {
        Some(None)
    }
}

#[inline]
fn truncated(need: usize, have: usize) -> ParseError {
    ParseError::HeaderTruncated {
        need: need as u16,
        have: have as u16,
    }
}
