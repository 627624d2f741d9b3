//! Small types of verbs: access rights, MTU, states.
use std::fmt;
use std::ops::BitOr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a memory region or a QP may be used for: `enum ibv_access_flags`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(pub(crate) u32);

impl Access {
    /// Local reading only, which needs no flag.
    pub const NONE: Access = Access(0);
    /// The device may write: receives, and the local side of READ.
    pub const LOCAL_WRITE: Access = Access(1);
    /// A peer may write. Needs [`Access::LOCAL_WRITE`] too.
    pub const REMOTE_WRITE: Access = Access(1 << 1);
    /// A peer may read.
    pub const REMOTE_READ: Access = Access(1 << 2);
    /// A peer may do atomics. Needs [`Access::LOCAL_WRITE`] too.
    pub const REMOTE_ATOMIC: Access = Access(1 << 3);
    /// Memory windows may be bound to the region ([`crate::MemoryWindow`]).
    pub const MW_BIND: Access = Access(1 << 4);
    /// Of a memory window of type 2: peers' addresses count from its first byte.
    pub const ZERO_BASED: Access = Access(1 << 5);
    /// A peer may flush what it wrote ([`crate::Batch::flush`]).
    pub const FLUSH_GLOBAL: Access = Access(1 << 8);

    /// For memory regions: their keys may be invalidated, by a local invalidate on a QP of their PD
    /// ([`crate::Batch::local_invalidate`]) and by a peer's SEND with invalidate. No right of verbs: there it comes
    /// with fast-register regions.
    pub const INVALIDATE: Access = Access(rnic_abi::INVALIDATABLE);

    /// Whether every right of `other` is in `self`.
    pub const fn contains(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of `enum ibv_access_flags`, and that of [`Access::INVALIDATE`].
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for Access {
    type Output = Access;
    fn bitor(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }
}

/// A path MTU: payload bytes of a packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum Mtu {
    /// 256 bytes.
    Mtu256 = 1,
    /// 512 bytes.
    Mtu512 = 2,
    /// 1024 bytes.
    Mtu1024 = 3,
    /// 2048 bytes.
    Mtu2048 = 4,
    /// 4096 bytes.
    Mtu4096 = 5,
}

impl Mtu {
    const ALL: [Mtu; 5] = [Mtu::Mtu256, Mtu::Mtu512, Mtu::Mtu1024, Mtu::Mtu2048, Mtu::Mtu4096];

    /// Payload bytes of a packet.
    pub const fn bytes(self) -> u32 {
        128 << self as u32
    }

    /// The MTU of so many bytes: 256, 512, 1024, 2048 or 4096.
    pub fn from_bytes(bytes: u32) -> Result<Mtu> {
        Self::ALL
            .into_iter()
            .find(|mtu| mtu.bytes() == bytes)
            .ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{bytes} is no path MTU; 256, 512, 1024, 2048 and 4096 are"
                ))
            })
    }

    /// The MTU of a number of `enum ibv_mtu`.
    pub(crate) fn from_code(code: u32) -> Option<Mtu> {
        Self::ALL.into_iter().find(|mtu| *mtu as u32 == code)
    }
}

impl TryFrom<u32> for Mtu {
    type Error = Error;
    fn try_from(bytes: u32) -> Result<Mtu> {
        Mtu::from_bytes(bytes)
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> u32 {
        mtu.bytes()
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

/// Service type of a QP: `enum ibv_qp_type`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum QpType {
    /// Reliable connection: everything arrives, in order, or the QP fails.
    #[default]
    Rc = 2,
    /// Unreliable connection: SEND and WRITE without acknowledgement. A message of which a packet is lost is not
    /// delivered, and nobody is told.
    Uc = 3,
    /// Unreliable datagram: SENDs of one packet to any QP, through address handles.
    Ud = 4,
    /// The sending half of an extended reliable connection: each request names an SRQ at the peer
    /// ([`Wr::to_srq`](crate::Wr::to_srq)), whose other half is a [`TargetQp`](crate::TargetQp).
    XrcIni = 9,
    /// The receiving half ([`TargetQp`](crate::TargetQp)), which no [`QpConfig`](crate::QpConfig) makes.
    XrcTgt = 10,
}

impl QpType {
    pub(crate) fn from_code(code: u32) -> Option<QpType> {
        use QpType::*;
        [Rc, Uc, Ud, XrcIni, XrcTgt]
            .into_iter()
            .find(|qp_type| *qp_type as u32 == code)
    }
}

/// State of a port: `enum ibv_port_state`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortState {
    /// No link.
    Down,
    /// Ready for traffic.
    Active,
    /// Another state, by its number.
    Other(u32),
}

impl From<u32> for PortState {
    fn from(number: u32) -> PortState {
        match number {
            1 => PortState::Down,
            4 => PortState::Active,
            other => PortState::Other(other),
        }
    }
}

/// State of a QP: `enum ibv_qp_state` (IBTA 10.3).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum QpState {
    /// Made, or reset: neither sends nor receives, queues empty.
    Reset = 0,
    /// Receives may be posted.
    Init = 1,
    /// Ready to receive.
    Rtr = 2,
    /// Ready to send.
    Rts = 3,
    /// The send queue is being drained.
    Sqd = 4,
    /// The send queue failed.
    Sqe = 5,
    /// Failed: everything posted is flushed.
    Error = 6,
}

impl QpState {
    pub(crate) fn from_code(code: u8) -> Option<QpState> {
        use QpState::*;
        [Reset, Init, Rtr, Rts, Sqd, Sqe, Error]
            .into_iter()
            .find(|state| *state as u8 == code)
    }
}

impl fmt::Display for QpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QpState::Reset => "RESET",
            QpState::Init => "INIT",
            QpState::Rtr => "RTR",
            QpState::Rts => "RTS",
            QpState::Sqd => "SQD",
            QpState::Sqe => "SQE",
            QpState::Error => "ERR",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_codes_are_those_of_verbs() {
        let codes: Vec<_> = [256, 512, 1024, 2048, 4096]
            .map(|b| Mtu::from_bytes(b).unwrap() as u32)
            .into();
        assert_eq!(codes, [1, 2, 3, 4, 5]);
        assert!(Mtu::from_bytes(1500).is_err());
        assert_eq!(Mtu::from_code(6), None);
    }
}
