//! What a selective acknowledgement carries: an extension of this appliance, for peers that have agreed on it.
//!
//! Its opcode is the manufacturer's 0xD1. The BTH's PSN is the one expected next, the AETH holds the syndrome of a
//! sequence error NAK and the MSN. Behind it stand [`SELECTIVE_ACK_LEN`] bytes: how many PSNs behind that one have been
//! seen (32 bits), and which of them have arrived (bit n of word w: the PSN 64 w + n + 1 behind it). All of it is big-endian.

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

/// Bytes behind the AETH of a selective acknowledgement.
pub const SELECTIVE_ACK_LEN: usize = 4 + 4 * 8;

/// A set of the [`PsnSet::REACH`] numbers from 0 on: of PSNs, by how far they lie from one that the owner knows.
///
/// Fixed-width and plain, as QP state has to be.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct PsnSet([u64; 4]);

impl PsnSet {
    /// One more than the greatest number.
    pub const REACH: u32 = 256;
    /// No number.
    pub const EMPTY: PsnSet = PsnSet([0; 4]);

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Whether a number is one of them; none is beyond the reach.
    #[inline]
    pub fn contains(&self, number: u32) -> bool {
        let word = self.0.get(number as usize / 64);
        word.is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Adds a number; nothing happens beyond the reach.
    #[inline]
    pub fn insert(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Lowers all numbers by `by`; those that would be negative are gone.
    pub fn lower(&mut self, by: u32) {
        let (words, bits) = (by as usize / 64, by % 64);
        let old = self.0;
        let word = |at: usize| old.get(at).copied().unwrap_or(0);
        for (at, new) in self.0.iter_mut().enumerate() {
            let at = at.saturating_add(words);
            // A shift by 64 in two steps, since there is none in one.
            *new = word(at) >> bits | word(at + 1) << 1 << (63 - bits);
        }
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let set = *self;
        (0..PsnSet::REACH).filter(move |number| set.contains(*number))
    }

    /// Whether all numbers are below a bound.
    pub fn is_below(&self, bound: u32) -> bool {
        let mut rest = *self;
        rest.lower(bound);
        rest.is_empty()
    }
}

/// What a responder has, of the PSNs behind the one that it expects.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SelectiveAck {
    /// The last PSN of which anything was seen lies so far behind the expected one. What has not arrived up to there is to
    /// be sent again.
    pub seen: u32,
    /// Those that have arrived: 0 is the PSN right behind the expected one.
    pub received: PsnSet,
}

impl SelectiveAck {
    /// As it stands on the wire.
    pub fn to_bytes(&self) -> [u8; SELECTIVE_ACK_LEN] {
        let mut bytes = [0; SELECTIVE_ACK_LEN];
        let (seen, words) = bytes.split_at_mut(4);
        seen.copy_from_slice(&self.seen.to_be_bytes());
        for (bytes, word) in words.chunks_exact_mut(8).zip(self.received.0) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// From the wire. Any bytes mean something.
    pub fn from_bytes(bytes: &[u8; SELECTIVE_ACK_LEN]) -> Self {
        let (seen, words) = bytes.split_at(4);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let mut received = PsnSet::EMPTY;
        for (word, bytes) in received.0.iter_mut().zip(words.chunks_exact(8)) {
            *word = number(bytes);
        }
        SelectiveAck {
            seen: number(seen) as u32,
            received,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    fn set(numbers: &[u32]) -> PsnSet {
        let mut set = PsnSet::EMPTY;
        numbers.iter().for_each(|number| set.insert(*number));
        set
    }

    #[test]
    fn a_set_has_what_was_inserted_and_lowering_it_drops_what_becomes_negative() {
        let numbers = [0, 1, 63, 64, 100, 127, 128, 191, 192, 255];
        let whole = set(&numbers);
        assert_eq!(whole.iter().collect::<Vec<_>>(), numbers);
        assert!(!whole.contains(2) && !whole.contains(256) && !whole.contains(u32::MAX));
        assert_eq!(set(&[256, u32::MAX]), PsnSet::EMPTY);
        for by in [
            0,
            1,
            2,
            62,
            63,
            64,
            65,
            127,
            128,
            200,
            255,
            256,
            257,
            1 << 23,
            u32::MAX,
        ] {
            let mut lowered = whole;
            lowered.lower(by);
            let wanted: Vec<u32> = numbers
                .iter()
                .filter_map(|number| number.checked_sub(by))
                .collect();
            assert_eq!(lowered.iter().collect::<Vec<_>>(), wanted, "by {by}");
            assert_eq!(whole.is_below(by), wanted.is_empty(), "below {by}");
        }
    }

    #[test]
    fn it_is_on_the_wire_as_documented_and_comes_back_the_same() {
        let ack = SelectiveAck {
            seen: 0x0102_0304,
            received: set(&[0, 65, 255]),
        };
        let mut wanted = [0; SELECTIVE_ACK_LEN];
        wanted[..4].copy_from_slice(&[1, 2, 3, 4]);
        (wanted[11], wanted[19], wanted[28]) = (1, 2, 0x80);
        assert_eq!(ack.to_bytes(), wanted);
        assert_eq!(SelectiveAck::from_bytes(&wanted), ack);
    }
}
