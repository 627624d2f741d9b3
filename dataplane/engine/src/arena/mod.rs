//! Arenas: where the records lie that are to outlive the process (DESIGN I13).
//!
//! An arena is a memfd that no client ever maps: a header, then records of one fixed width ([`SlotArena`],
//! [`WordTable`], [`CellTable`]; of two parts, [`PairArena`]) or ranges of several lengths ([`RangeArena`]). Whatever holds a
//! pointer, a `Vec`, an `Arc` or a descriptor is not in an arena; it is a cache, and rebuilt from the records.
//!
//! Records are made and freed on the control thread only: an [`ArenaBox`] or an [`ArenaSlice`] owns its place and
//! travels to a poll core inside the object it belongs to, exactly like the box it stands in for. What a core does
//! with a record is a plain `&mut` access.
//!
//! To hand over, an engine [seals](SlotArena::seal) its arenas: from then on dropping an owner leaves the record in
//! place. Whoever opens an arena trusts none of its bytes: a header that does not match, bytes that are no value of
//! their type, ranges that leave the file or overlap are errors which name arena, slot and field. An opened arena is
//! sealed until its new owner has taken everything over, so that a failed attempt destroys nothing.
mod cells;
mod error;
mod map;
mod owner;
#[cfg(test)]
mod pair_tests;
mod pairs;
mod ranges;
mod slots;
mod space;
#[cfg(test)]
mod tests;
mod words;

pub use cells::{AtomicWords, CellTable};
pub use error::ArenaError;
pub use owner::{ArenaBox, ArenaSlice};
pub use pairs::{PairArena, PairBox};
pub use ranges::RangeArena;
pub use slots::SlotArena;
pub use words::WordTable;

/// Version of the layout of arenas and of all records in them. Records of another version are not read.
pub const LAYOUT_VERSION: u32 = 2;

/// Which arena a file is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ArenaId {
    /// What is in it, for messages and for its name: `qps`.
    pub kind: &'static str,
    /// The poll core or device it belongs to; 0 for those of the whole daemon.
    pub owner: u32,
    /// Start of the daemon that made it: arenas of two daemons do not go together.
    pub epoch: u64,
}

impl std::fmt::Display for ArenaId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "arena {}.{}", self.kind, self.owner)
    }
}
