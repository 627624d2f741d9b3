//! What clients make.

mod ah;
mod channel;
mod cq;
mod mcast;
mod mr;
mod mw;
mod numbers;
mod pd;
mod qp;
mod srq;
mod table;
mod target;
mod xrcd;

use std::fmt;

use rnic_abi::Handle;
use rnic_engine::arena::ArenaBox;
use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use crate::{events::LastError, moment::Moment, store::ObjectRecord};

#[cfg(test)]
pub use ah::NotNow;
pub use ah::{Ah, AhCreation, AhSlots, RESERVE as AH_RESERVE};
pub use channel::Channel;
pub use cq::{Cq, CqCreation};
pub(crate) use mr::rights;
pub use mr::{Mapping, Mr};
pub use mw::Mw;
pub use numbers::{Cursor, Number, Numbers, Space};
pub use pd::Pd;
pub use qp::Qp;
pub use srq::{Srq, SrqCreation, XrcKeys};
pub use table::{Id, IdKind, Key, Table};
pub use target::Target;
pub use xrcd::{Domains, Inode, Xrcd};

/// A kind of object.
#[derive(Copy, Clone, Debug, PartialEq, Eq, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum Kind {
    /// Protection domain.
    Pd,
    /// Memory region.
    Mr,
    /// Completion channel.
    Channel,
    /// Completion queue.
    Cq,
    /// Queue pair.
    Qp,
    /// Address handle.
    Ah,
    /// Shared receive queue.
    Srq,
    /// A client's opening of an XRC domain.
    Xrcd,
    /// A client's hold on an XRC target QP.
    Target,
    /// Memory window.
    Mw,
}

impl Kind {
    /// Kinds there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::Pd,
        Kind::Mr,
        Kind::Channel,
        Kind::Cq,
        Kind::Qp,
        Kind::Ah,
        Kind::Srq,
        Kind::Xrcd,
        Kind::Target,
        Kind::Mw,
    ];

    /// Several of them, in messages.
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::Pd => "PDs",
            Kind::Mr => "MRs",
            Kind::Channel => "completion channels",
            Kind::Cq => "CQs",
            Kind::Qp => "QPs",
            Kind::Ah => "AHs",
            Kind::Srq => "SRQs",
            Kind::Xrcd => "XRC domains",
            Kind::Target => "XRC target QPs",
            Kind::Mw => "MWs",
        }
    }

    /// Key of its quota below `limits.per_client`.
    pub const fn limit_key(self) -> &'static str {
        match self {
            // A domain counts like a PD, and a target QP like any other.
            Kind::Pd | Kind::Xrcd => "pds",
            Kind::Mr => "mrs",
            Kind::Cq | Kind::Channel => "cqs",
            Kind::Qp | Kind::Target => "qps",
            Kind::Ah => "ahs",
            Kind::Srq => "srqs",
            Kind::Mw => "mws",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Pd => "PD",
            Kind::Mr => "MR",
            Kind::Channel => "completion channel",
            Kind::Cq => "CQ",
            Kind::Qp => "QP",
            Kind::Ah => "AH",
            Kind::Srq => "SRQ",
            Kind::Xrcd => "XRC domain",
            Kind::Target => "XRC target QP",
            Kind::Mw => "MW",
        })
    }
}

/// An object of a client.
#[derive(Debug)]
pub struct Object {
    /// Connection of the client; [`crate::admin::NOBODY`] of an XRC target QP itself.
    pub owner: u32,
    /// The client's handle.
    pub handle: Handle,
    /// Device it belongs to.
    pub device: u32,
    /// Events reported so far.
    pub reported: u32,
    /// When it was made.
    pub born: Moment,
    /// The last error it reported.
    pub last_error: Option<LastError>,
    /// What it is.
    pub what: What,
    /// What of it outlives the process; written by [`Object::save`].
    pub record: Option<ArenaBox<ObjectRecord>>,
}

/// What an object is.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum What {
    Pd(Pd),
    Mr(Mr),
    Channel(Channel),
    Cq(Cq),
    Qp(Box<Qp>),
    Ah(Ah),
    Srq(Srq),
    Xrcd(Xrcd),
    Target(Target),
    Mw(Mw),
}

impl Object {
    /// A fresh object of a client.
    pub fn new(owner: u32, handle: Handle, device: u32, what: What) -> Self {
        Object {
            owner,
            handle,
            device,
            reported: 0,
            born: Moment::now(),
            last_error: None,
            what,
            record: None,
        }
    }

    /// What kind it is of.
    pub fn kind(&self) -> Kind {
        match self.what {
            What::Pd(_) => Kind::Pd,
            What::Mr(_) => Kind::Mr,
            What::Channel(_) => Kind::Channel,
            What::Cq(_) => Kind::Cq,
            What::Qp(_) => Kind::Qp,
            What::Ah(_) => Kind::Ah,
            What::Srq(_) => Kind::Srq,
            What::Xrcd(_) => Kind::Xrcd,
            What::Target(_) => Kind::Target,
            What::Mw(_) => Kind::Mw,
        }
    }

    /// The objects it depends on.
    pub fn depends_on(&self) -> impl Iterator<Item = Key> {
        let keys = match &self.what {
            What::Pd(_) | What::Channel(_) | What::Xrcd(_) => [None; 4],
            What::Mr(mr) => [Some(mr.pd), None, None, None],
            What::Mw(mw) => [Some(mw.pd), None, None, None],
            What::Ah(ah) => [Some(ah.pd), None, None, None],
            What::Srq(srq) => {
                let [cq, xrcd] = srq.xrc.map_or([None; 2], |xrc| [Some(xrc.cq), Some(xrc.xrcd)]);
                [Some(srq.pd), cq, xrcd, None]
            }
            What::Target(target) => [Some(target.xrcd), target.qp, None, None],
            What::Cq(cq) => [cq.channel, None, None, None],
            What::Qp(qp) => [qp.pd, qp.send_cq, qp.recv_cq, qp.srq],
        };
        keys.into_iter().flatten()
    }
}
