//! Views: what a poll core looks objects up in, published by one pointer (DESIGN I2).
//!
//! The control thread owns a [`Publisher`]: it changes roots by path copying, then [`Publisher::commit`] swaps
//! the view of every core that is concerned and advances the epoch. A poll core owns a [`ViewCache`] and
//! refreshes it after it has observed the epoch. Old views are dropped by the reclaimer on the control thread,
//! and only when it holds the last reference.
mod cache;
mod publisher;
mod radix;

pub use cache::ViewCache;
pub use publisher::{Publisher, RetiredView};
pub use radix::Radix;

/// Slots a table can hold: the part of a number below its generation.
pub const SLOT_BITS: u32 = Radix::<()>::KEY_BITS;
/// Generations of a 24-bit number (QPN, key index) before it repeats.
pub const GENERATION_BITS: u32 = 24 - SLOT_BITS;

/// Joins a slot and a generation to a 24-bit number.
pub const fn number(slot: u32, generation: u32) -> u32 {
    (slot & ((1 << SLOT_BITS) - 1)) | ((generation & ((1 << GENERATION_BITS) - 1)) << SLOT_BITS)
}

/// The slot of a 24-bit number.
pub const fn slot_of(number: u32) -> u32 {
    number & ((1 << SLOT_BITS) - 1)
}

/// Where a QP lives.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QpLeaf {
    /// The whole number, generation included: a frame for an earlier owner of the slot does not match.
    pub qpn: u32,
    /// Poll core that owns the QP.
    pub core: u16,
    /// Index in that core's arena.
    pub slot: u32,
}

/// One core's snapshot.
#[derive(Clone, Debug)]
pub struct CoreView {
    /// QPs this core owns, by slot of their number.
    pub qps: Radix<QpLeaf>,
    /// Owning core by `QPN & 0xff`.
    pub steering: [u16; 256],
}

impl CoreView {
    /// A view without objects: what a core holds while it is offline.
    pub fn empty() -> Self {
        CoreView {
            qps: Radix::new(),
            steering: [0; 256],
        }
    }

    /// The QP with this number, if this core owns it.
    #[inline]
    pub fn qp(&self, qpn: u32) -> Option<QpLeaf> {
        self.qps.get(slot_of(qpn)).filter(|leaf| leaf.qpn == qpn)
    }

    /// The core that owns `qpn`, whether or not there is such a QP.
    #[inline]
    pub fn owner(&self, qpn: u32) -> u16 {
        self.steering[(qpn & 0xff) as usize]
    }
}
