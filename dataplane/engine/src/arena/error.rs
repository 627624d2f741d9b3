//! What can be wrong with an arena.
use rnic_transport::{BadField, FieldPath};
use rustix::io::Errno;

use super::ArenaId;

/// Why an arena cannot be made, or not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A system call failed.
    #[error("{arena}: {call} failed: {errno}")]
    Io {
        /// Which arena.
        arena: ArenaId,
        /// Which call.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// There is no room for one more record.
    #[error("{arena} is full: {limit} are possible")]
    Full {
        /// Which arena.
        arena: ArenaId,
        /// Records, or bytes of ranges.
        limit: u64,
    },
    /// The file is shorter than its header says.
    #[error("{arena} is cut short: {len} bytes of {need}; the dump is incomplete")]
    Truncated {
        /// Which arena.
        arena: ArenaId,
        /// Bytes there are.
        len: u64,
        /// Bytes there must be.
        need: u64,
    },
    /// The header is not that of this arena.
    #[error(
        "{arena}: {field} of the header is {found:#x}, not {expected:#x}; it is damaged, of another rnicd, or in \
         another's place"
    )]
    Header {
        /// Which arena.
        arena: ArenaId,
        /// Field of the header.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it would have to hold.
        expected: u64,
    },
    /// The word that says whether a slot is in use says something else.
    #[error("{arena}, slot {slot}: its state is {found:#x}; neither free nor in use")]
    State {
        /// Which arena.
        arena: ArenaId,
        /// Which slot.
        slot: u32,
        /// What its word holds.
        found: u64,
    },
    /// Bytes that are no value of their type.
    #[error("{arena}, slot {slot}: the bytes of {field} are no value of its type")]
    Invalid {
        /// Which arena.
        arena: ArenaId,
        /// Which slot.
        slot: u32,
        /// Which field.
        field: FieldPath,
    },
    /// A value that contradicts others.
    #[error("{arena}, slot {slot}: {error}")]
    Contradiction {
        /// Which arena.
        arena: ArenaId,
        /// Which slot.
        slot: u32,
        /// Which field, and why.
        error: BadField,
    },
    /// A range that is not in the arena, or that another record has too.
    #[error("{arena}: the range of {len} bytes at {offset:#x} {why}")]
    Range {
        /// Which arena.
        arena: ArenaId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}
