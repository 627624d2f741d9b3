//! What poll cores give up, on its way to the reclaimer (DESIGN I7).
//!
//! A core frees nothing itself: [`Core::retire`](crate::core) puts an object into a preallocated page, or on the
//! object's own link when all pages are under way, and the control thread collects the pages, tags what is in them
//! with an epoch and frees it when that has passed. What was asked for by a command comes back in the answer, which has
//! its place already: an answered command has nothing left on its core.
use rnic_qsbr::{Linked, RetireCache, RetireCollector, retire_channel};

use crate::core::{ClientDoorbells, CompletionQueue, PortPart, Qp, Srq};

/// Pages of each core.
const PAGES: usize = 32;
/// Objects a page holds: what a core can give up in one pass by commands.
const PAGE_OBJECTS: usize = 64;

/// The part of an object that a core needs to give it up.
#[derive(Default)]
pub struct RetireLink {
    next: Option<Retired>,
}

/// What a core gives up. A further kind is one more variant with a [`RetireLink`] in its box.
pub enum Retired {
    /// A QP.
    Qp(Box<Qp>),
    /// A completion queue.
    Cq(Box<CompletionQueue>),
    /// A shared receive queue.
    Srq(Box<Srq>),
    /// A client's doorbells.
    Client(Box<ClientDoorbells>),
    /// A core's part of a port, or the empty one in whose place it came.
    Port(Box<PortPart>),
}

impl Retired {
    /// Memory of the daemon that is released with it, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Retired::Qp(qp) => qp.bytes(),
            Retired::Cq(_) => size_of::<CompletionQueue>(),
            Retired::Srq(_) => Srq::bytes(),
            Retired::Client(client) => client.bytes(),
            Retired::Port(_) => size_of::<PortPart>(),
        }
    }

    fn link(&mut self) -> &mut RetireLink {
        match self {
            Retired::Qp(qp) => &mut qp.link,
            Retired::Cq(cq) => &mut cq.link,
            Retired::Srq(srq) => &mut srq.link,
            Retired::Client(client) => &mut client.link,
            Retired::Port(port) => &mut port.link,
        }
    }
}

impl Linked for Retired {
    fn next(&mut self) -> &mut Option<Self> {
        &mut self.link().next
    }
}

/// The way from one core to the control thread.
pub(crate) fn channel() -> (RetireCache<Retired>, RetireCollector<Retired>) {
    retire_channel(PAGES, PAGE_OBJECTS)
}
