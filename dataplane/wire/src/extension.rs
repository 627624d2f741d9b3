//! The extension headers (9.3, A19.4). Fields are in host order; those narrower than their type are masked when emitted.

use crate::bytes::{LOW_24, be32, be64, put};
use crate::syndrome::Syndrome;

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

impl Reth {
    #[inline]
    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.va.to_be_bytes());
        put(&mut rest, self.rkey.to_be_bytes());
        put(&mut rest, self.dma_len.to_be_bytes());
        bytes
    }

    #[inline]
    pub(crate) fn read(b: &[u8; 16]) -> Self {
        Reth {
            va: be64(b, 0),
            rkey: be32(b, 8),
            dma_len: be32(b, 12),
        }
    }
}

/// ACK extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Aeth {
    /// ACK, RNR NAK or NAK.
    pub syndrome: Syndrome,
    /// Messages completed by the responder, modulo 2^24.
    pub msn: u32,
}

impl Aeth {
    #[inline]
    pub(crate) fn bytes(&self) -> [u8; 4] {
        ((self.syndrome.to_u8() as u32) << 24 | self.msn & LOW_24).to_be_bytes()
    }

    #[inline]
    pub(crate) fn read(b: &[u8; 4]) -> Self {
        Aeth {
            syndrome: Syndrome::from_u8(b[0]),
            msn: be32(b, 0) & LOW_24,
        }
    }
}

/// Datagram extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Deth {
    /// Queue key.
    pub qkey: u32,
    /// Source QP, 24 bits.
    pub src_qpn: u32,
}

impl Deth {
    #[inline]
    pub(crate) fn read(b: &[u8; 8]) -> Self {
        Deth {
            qkey: be32(b, 0),
            src_qpn: be32(b, 4) & LOW_24,
        }
    }
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

impl AtomicEth {
    #[inline]
    pub(crate) fn bytes(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.va.to_be_bytes());
        put(&mut rest, self.rkey.to_be_bytes());
        put(&mut rest, self.swap_or_add.to_be_bytes());
        put(&mut rest, self.compare.to_be_bytes());
        bytes
    }

    #[inline]
    pub(crate) fn read(b: &[u8; 28]) -> Self {
        AtomicEth {
            va: be64(b, 0),
            rkey: be32(b, 8),
            swap_or_add: be64(b, 12),
            compare: be64(b, 20),
        }
    }
}

/// Atomic ACK extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AtomicAckEth {
    /// The remote value before the operation.
    pub original: u64,
}

impl AtomicAckEth {
    #[inline]
    pub(crate) fn read(b: &[u8; 8]) -> Self {
        AtomicAckEth {
            original: u64::from_be_bytes(*b),
        }
    }
}

/// XRC extended transport header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct XrcEth {
    /// The target's SRQ, 24 bits.
    pub srqn: u32,
}

impl XrcEth {
    #[inline]
    pub(crate) fn read(b: &[u8; 4]) -> Self {
        XrcEth {
            srqn: be32(b, 0) & LOW_24,
        }
    }
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

    #[inline]
    pub(crate) fn read(b: &[u8; 4]) -> Self {
        Feth {
            placement: b[3] & 0x0F,
            selectivity: b[3] >> 4 & 3,
        }
    }
}
