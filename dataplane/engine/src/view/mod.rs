//! Views: what a poll core looks objects up in, published by one pointer (DESIGN I2).
//!
//! The control thread owns a [`Publisher`]: it changes tables by path copying, then [`Publisher::commit`] swaps
//! the view of every core that is concerned and advances the epoch. A poll core owns a [`ViewCache`] and
//! refreshes it after it has observed the epoch. Old views are dropped by the reclaimer on the control thread,
//! and only when it holds the last reference.
//!
//! The same tree and the same [`Tables`] serve the control thread's own registry, which shares no node with views.
mod cache;
mod publisher;
mod radix;
mod reuse;
mod table;

pub use cache::ViewCache;
pub use publisher::{Publisher, RetiredView};
pub use radix::Radix;
pub use table::{Entry, GENERATION_BITS, Kind, Leaf, SLOT_BITS, Tables, generation_of, number, slot_of};

/// One core's snapshot.
#[derive(Clone, Debug)]
pub struct CoreView {
    /// By kind: the QPs this core owns, and all objects of the other kinds.
    tables: Tables<Leaf>,
    /// Owning core by `QPN & 0xff`.
    steering: [u16; 256],
}

impl CoreView {
    /// A view without objects: what a core holds while it is offline.
    pub fn empty() -> Self {
        CoreView {
            tables: Tables::new(),
            steering: [0; 256],
        }
    }

    /// What has this number, if this core finds objects of the kind: all of them, but of QPs its own.
    #[inline]
    pub fn find(&self, kind: Kind, number: u32) -> Option<Leaf> {
        self.tables.get(kind, number)
    }

    /// Begins to load what [`CoreView::find`] will need. For all numbers of a burst, before the first is looked up: the
    /// misses then overlap.
    #[inline]
    pub fn prefetch(&self, kind: Kind, number: u32) {
        self.tables.prefetch(kind, number);
    }

    /// The QP with this number, if this core owns it.
    #[inline]
    pub fn qp(&self, qpn: u32) -> Option<Leaf> {
        self.find(Kind::Qp, qpn)
    }

    /// The core that owns `qpn`, whether or not there is such a QP.
    #[inline]
    pub fn owner(&self, qpn: u32) -> u16 {
        self.steering[(qpn & 0xff) as usize]
    }
}
