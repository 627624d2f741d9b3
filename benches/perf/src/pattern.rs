//! What messages consist of, so that misplaced or stale bytes are found.
use rnic::MrSlice;

/// Patterns that differ from place to place, and whose bytes differ within.
pub struct Pattern {
    bytes: Vec<u8>,
    size: usize,
}

/// Places after which patterns repeat: a prime, so that they do not repeat with the places of a queue.
const PERIOD: u64 = 251;

impl Pattern {
    pub fn new(size: usize) -> Pattern {
        let bytes = (0..size + PERIOD as usize).map(|i| {
            let word = (i as u32).wrapping_mul(0x9E37_79B1);
            (word >> 24) as u8
        });
        Pattern {
            bytes: bytes.collect(),
            size,
        }
    }

    /// The bytes of place `slot`.
    pub fn of(&self, slot: u64) -> &[u8] {
        let start = (slot % PERIOD) as usize;
        &self.bytes[start..start + self.size]
    }

    /// Puts the pattern of each of `slots` places there.
    pub fn fill(&self, memory: &MrSlice, slots: u64) {
        for slot in 0..slots {
            memory.write_at(slot as usize * self.size, self.of(slot));
        }
    }

    /// Whether the place at `offset` holds the pattern of `slot`.
    pub fn is_at(&self, memory: &MrSlice, offset: usize, slot: u64) -> bool {
        memory.read_vec(offset, self.size) == self.of(slot)
    }
}
