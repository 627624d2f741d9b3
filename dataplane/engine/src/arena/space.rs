//! Which parts of a range arena are free: best fit, neighbours joined.
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Space {
    /// Free parts: length by offset.
    by_offset: BTreeMap<u64, u64>,
    /// The same by length, then offset.
    by_len: BTreeSet<(u64, u64)>,
}

impl Space {
    fn insert(&mut self, offset: u64, len: u64) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
    }

    fn remove(&mut self, offset: u64, len: u64) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }

    /// The shortest part of at least `len` bytes; its front.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let &(room, offset) = self.by_len.range((len, 0)..).next()?;
        self.remove(offset, room);
        if room > len {
            self.insert(offset + len, room - len);
        }
        Some(offset)
    }

    /// Takes exactly this part; `false` unless all of it is free.
    pub fn claim(&mut self, offset: u64, len: u64) -> bool {
        let Some((&start, &room)) = self.by_offset.range(..=offset).next_back() else {
            return false;
        };
        let (Some(end), room_end) = (offset.checked_add(len), start + room) else {
            return false;
        };
        if end > room_end {
            return false;
        }
        self.remove(start, room);
        if start < offset {
            self.insert(start, offset - start);
        }
        if end < room_end {
            self.insert(end, room_end - end);
        }
        true
    }

    /// Takes a part back, or a new one in.
    pub fn give(&mut self, mut offset: u64, mut len: u64) {
        if let Some((&before, &room)) = self.by_offset.range(..offset).next_back()
            && before + room == offset
        {
            self.remove(before, room);
            offset = before;
            len += room;
        }
        if let Some(&room) = self.by_offset.get(&(offset + len)) {
            self.remove(offset + len, room);
            len += room;
        }
        self.insert(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_split_and_joined_again() {
        let mut space = Space::default();
        space.give(64, 640);
        let taken: Vec<u64> = (0..10).map(|_| space.take(64).unwrap()).collect();
        assert_eq!(space.take(1), None);
        for offset in taken
            .iter()
            .rev()
            .step_by(2)
            .chain(taken.iter().rev().skip(1).step_by(2))
        {
            space.give(*offset, 64);
        }
        assert_eq!(space.take(640), Some(64));
    }

    #[test]
    fn the_shortest_part_that_fits_is_taken() {
        let mut space = Space::default();
        space.give(0, 1000);
        space.give(2000, 100);
        assert_eq!(space.take(100), Some(2000));
    }

    #[test]
    fn only_what_is_free_can_be_claimed() {
        let mut space = Space::default();
        space.give(100, 100);
        assert!(!space.claim(99, 2) && !space.claim(199, 2) && !space.claim(300, 1));
        assert!(!space.claim(150, u64::MAX));
        assert!(space.claim(120, 30));
        assert!(!space.claim(130, 1) && !space.claim(119, 2));
        assert!(space.claim(100, 20) && space.claim(150, 50));
        assert_eq!(space.take(1), None);
    }
}
