//! Tables of every kind of number: one lookup maps a kind and a number to what has it.
use std::num::NonZeroU16;

use super::Radix;

/// Slots a table can hold: the part of a number below its generation.
pub const SLOT_BITS: u32 = Radix::<()>::KEY_BITS;
/// Generations of a 24-bit number (QPN, key index) before it repeats.
pub const GENERATION_BITS: u32 = 24 - SLOT_BITS;

/// Joins a slot and a generation to a 24-bit number. What does not fit is cut off.
pub const fn number(slot: u32, generation: u32) -> u32 {
    (slot & ((1 << SLOT_BITS) - 1)) | ((generation & ((1 << GENERATION_BITS) - 1)) << SLOT_BITS)
}

/// The slot of a 24-bit number.
pub const fn slot_of(number: u32) -> u32 {
    number & ((1 << SLOT_BITS) - 1)
}

/// The generation of a number; `None` for those of the first users, QP0 and QP1, which are in no table.
pub const fn generation_of(number: u32) -> Option<NonZeroU16> {
    match number >> SLOT_BITS {
        generation @ 1..=0xFFFF => NonZeroU16::new(generation as u16),
        _ => None,
    }
}

/// What a number is the number of. A new kind is one more variant.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// QPN. Each core finds the QPs it owns.
    Qp,
    /// Completion queue.
    Cq,
    /// Shared receive queue.
    Srq,
    /// Address handle.
    Ah,
    /// Memory region: its key without the lowest byte. Packets find regions by slot (`crate::mem::MrTable`).
    Mr,
    /// Memory window: its key without the lowest byte.
    Mw,
    /// Protection domain.
    Pd,
}

impl Kind {
    /// Kinds there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::Qp,
        Kind::Cq,
        Kind::Srq,
        Kind::Ah,
        Kind::Mr,
        Kind::Mw,
        Kind::Pd,
    ];

    /// Whether each core's view holds only what that core owns; else all views share one tree.
    pub const fn is_sharded(self) -> bool {
        matches!(self, Kind::Qp)
    }
}

/// What stands in a table.
pub trait Entry: Copy {
    /// The generation of the number it was put in under. Never zero, so that an empty entry needs no flag.
    fn generation(&self) -> NonZeroU16;
}

/// Where an object lives: what a poll core's lookup finds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Index in that core's arena.
    pub slot: u32,
    /// Poll core that owns it.
    pub core: u16,
    generation: NonZeroU16,
}

// An entry is one word: 64 of them are what a packet's lookup may miss.
const _: () = assert!(size_of::<Option<Leaf>>() == 8);

impl Leaf {
    /// The leaf of the object with this number.
    ///
    /// # Panics
    /// When the number has no generation: the control thread makes none such.
    pub const fn new(number: u32, core: u16, slot: u32) -> Self {
        let Some(generation) = generation_of(number) else {
            panic!("a number without a generation");
        };
        Leaf {
            slot,
            core,
            generation,
        }
    }
}

impl Entry for Leaf {
    #[inline]
    fn generation(&self) -> NonZeroU16 {
        self.generation
    }
}

/// A tree for each kind of number. Cloning takes a snapshot of all.
#[derive(Clone, Debug)]
pub struct Tables<V: Copy>([Radix<V>; Kind::COUNT]);

impl<V: Entry> Tables<V> {
    /// Empty tables.
    pub fn new() -> Self {
        Tables(std::array::from_fn(|_| Radix::new()))
    }

    /// What has this number now. A number of an earlier user of the slot finds nothing.
    #[inline]
    pub fn get(&self, kind: Kind, number: u32) -> Option<V> {
        let entry = self.0[kind as usize].get(slot_of(number))?;
        (u32::from(entry.generation().get()) == number >> SLOT_BITS).then_some(entry)
    }

    /// Begins to load what [`Tables::get`] will need.
    #[inline]
    pub fn prefetch(&self, kind: Kind, number: u32) {
        self.0[kind as usize].prefetch(slot_of(number));
    }

    /// Puts an entry in under a number of its own generation, and returns the one whose place it took.
    pub fn add(&mut self, kind: Kind, number: u32, entry: V) -> Option<V> {
        debug_assert_eq!(u32::from(entry.generation().get()), number >> SLOT_BITS);
        self.0[kind as usize].insert(slot_of(number), entry)
    }

    /// Takes out what has this number.
    pub fn remove(&mut self, kind: Kind, number: u32) -> Option<V> {
        self.get(kind, number)?;
        self.0[kind as usize].remove(slot_of(number))
    }

    /// The tree of one kind.
    pub fn of(&self, kind: Kind) -> &Radix<V> {
        &self.0[kind as usize]
    }

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut Radix<V> {
        &mut self.0[kind as usize]
    }
}

impl<V: Entry> Default for Tables<V> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_finds_its_own_numbers_and_no_other_kinds() {
        for kind in Kind::ALL {
            let mut tables = Tables::new();
            let id = number(77, 3);
            tables.add(kind, id, Leaf::new(id, 1, 77));
            for other in Kind::ALL {
                assert_eq!(tables.get(other, id).is_some(), other == kind, "{other:?}");
            }
            assert_eq!(tables.remove(kind, id), Some(Leaf::new(id, 1, 77)));
            assert_eq!(tables.get(kind, id), None);
        }
        assert!(Kind::ALL.iter().enumerate().all(|(i, kind)| *kind as usize == i));
    }

    #[test]
    fn a_stale_generation_is_never_found_nor_removed() {
        let mut tables = Tables::new();
        let new = number(9, 2);
        tables.add(Kind::Ah, new, Leaf::new(new, 0, 9));
        for generation in (0..64).filter(|generation| *generation != 2) {
            let stale = number(9, generation);
            assert_eq!(tables.get(Kind::Ah, stale), None, "generation {generation}");
            assert_eq!(tables.remove(Kind::Ah, stale), None, "generation {generation}");
        }
        // Bits above the 24 of a number are no part of it, and a lookup that ignored them would find it.
        assert_eq!(tables.get(Kind::Ah, new | 1 << 30), None);
        assert!(tables.get(Kind::Ah, new).is_some());
    }
}
