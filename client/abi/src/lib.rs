//! Every structure shared between `rnicd` and its clients, and the two halves of each protocol spoken over
//! shared words. Nothing here touches memory by itself: the daemon reads client memory through its own
//! `ClientMem`, the library through its own mapping.
//!
//! Layout rules: `repr(C)`, fixed-width little-endian integers, no implicit padding (`IntoBytes` refuses it),
//! reserved bytes are zero. Any change of a size or an offset is a new [`ABI_VERSION`]; the golden tests in
//! `tests/layout.rs` hold the numbers.
#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod event;
pub mod protocol;
pub mod queue;
pub mod region;

pub use control::*;
pub use event::{EventSlot, GENERATION_SHIFT, IN_RING, event_kind};
pub use queue::*;
pub use region::*;

/// Version of every layout in this crate. Client and daemon must agree exactly.
pub const ABI_VERSION: u32 = 1;

/// Distance between words written by different sides: two cache lines, since adjacent lines are prefetched
/// in pairs.
pub const LINE: usize = 128;

/// A client-visible object number: slot in the low [`Handle::SLOT_BITS`] bits, generation above. Zero is
/// never a valid handle.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

impl Handle {
    /// Bits of a handle that name the slot.
    pub const SLOT_BITS: u32 = 20;
    /// Largest number of slots a client can have.
    pub const MAX_SLOTS: u32 = 1 << Self::SLOT_BITS;

    /// Joins a slot and a generation; excess bits of either are cut off.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Handle((slot & (Self::MAX_SLOTS - 1)) | (generation << Self::SLOT_BITS))
    }

    /// The slot: index of the object's [`EventSlot`] and, for a QP, of its doorbell bit.
    pub const fn slot(self) -> u32 {
        self.0 & (Self::MAX_SLOTS - 1)
    }

    /// The generation: tells apart the objects that used the slot one after another.
    pub const fn generation(self) -> u32 {
        self.0 >> Self::SLOT_BITS
    }
}
