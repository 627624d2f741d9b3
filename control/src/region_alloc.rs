//! Hands out slices of a context region's queue space.

use std::collections::{BTreeMap, BTreeSet};

use rnic_abi::LINE;

/// A part of the queue space.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Offset in the region, a multiple of [`LINE`].
    pub offset: usize,
    /// Bytes, a multiple of [`LINE`].
    pub len: usize,
}

/// Best fit over the free parts, which are joined with their neighbours when they come back.
#[derive(Debug)]
pub struct RegionSpace {
    /// Free parts: length by offset.
    free: BTreeMap<usize, usize>,
    /// The same parts: length, then offset.
    by_length: BTreeSet<(usize, usize)>,
    used: usize,
}

impl RegionSpace {
    /// The space from `start` to `end`, both multiples of [`LINE`].
    pub fn new(start: usize, end: usize) -> Self {
        debug_assert!(start.is_multiple_of(LINE) && end.is_multiple_of(LINE) && start <= end);
        RegionSpace {
            free: BTreeMap::from([(start, end - start)]),
            by_length: BTreeSet::from([(end - start, start)]),
            used: 0,
        }
    }

    /// A slice of at least `len` bytes; `None` when no free part is as long.
    pub fn take(&mut self, len: usize) -> Option<Slice> {
        let len = len.max(1).checked_next_multiple_of(LINE)?;
        let &(room, offset) = self.by_length.range((len, 0)..).next()?;
        self.remove(offset);
        if room > len {
            self.insert(offset + len, room - len);
        }
        self.used += len;
        Some(Slice { offset, len })
    }

    /// Takes exactly this slice; `false` unless all of it is free and it is made of lines.
    pub fn claim(&mut self, Slice { offset, len }: Slice) -> bool {
        if len == 0 || !len.is_multiple_of(LINE) || !offset.is_multiple_of(LINE) {
            return false;
        }
        let Some(end) = offset.checked_add(len) else {
            return false;
        };
        let Some((&start, &room)) = self.free.range(..=offset).next_back() else {
            return false;
        };
        let room_end = start + room;
        if end > room_end {
            return false;
        }
        self.remove(start);
        if start < offset {
            self.insert(start, offset - start);
        }
        if end < room_end {
            self.insert(end, room_end - end);
        }
        self.used += len;
        true
    }

    /// Takes a slice back.
    pub fn give(&mut self, slice: Slice) {
        let Slice { mut offset, mut len } = slice;
        self.used -= len;
        if let Some((&before, &room)) = self.free.range(..offset).next_back() {
            debug_assert!(before + room <= offset, "a slice came back twice");
            if before + room == offset {
                self.remove(before);
                offset = before;
                len += room;
            }
        }
        len += self.remove(offset + len);
        self.insert(offset, len);
    }

    fn insert(&mut self, offset: usize, len: usize) {
        self.free.insert(offset, len);
        self.by_length.insert((len, offset));
    }

    /// Length of the free part that began at `offset`.
    fn remove(&mut self, offset: usize) -> usize {
        let len = self.free.remove(&offset).unwrap_or(0);
        self.by_length.remove(&(len, offset));
        len
    }

    /// Bytes handed out.
    pub fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn freed_neighbours_join_again() {
        let mut space = RegionSpace::new(4096, 8192);
        let slices: Vec<_> = (0..4).map(|_| space.take(1000).unwrap()).collect();
        assert_eq!(space.take(1), None);
        for i in [1, 3, 0, 2] {
            space.give(slices[i]);
        }
        assert_eq!(space.used(), 0);
        assert_eq!(
            space.take(4096),
            Some(Slice {
                offset: 4096,
                len: 4096
            })
        );
    }

    #[test]
    fn only_what_is_free_can_be_claimed_and_it_comes_back_like_the_rest() {
        let slice = |offset, len| Slice { offset, len };
        let mut space = RegionSpace::new(4096, 8192);
        let middle = slice(4096 + 1024, 512);
        assert!(space.claim(middle) && !space.claim(middle));
        for wrong in [
            slice(4096, 1025),
            slice(4096, 0),
            slice(4096 + 1, 128),
            slice(4096, 2048),
            slice(8192, 128),
            slice(usize::MAX - 127, 128),
            slice(0, 128),
        ] {
            assert!(!space.claim(wrong), "{wrong:?}");
        }
        assert!(space.claim(slice(4096, 1024)) && space.claim(slice(8192 - 128, 128)));
        assert_eq!(space.used(), 1024 + 512 + 128);
        for taken in [middle, slice(8192 - 128, 128), slice(4096, 1024)] {
            space.give(taken);
        }
        assert_eq!(space.take(4096), Some(slice(4096, 4096)));
    }

    #[test]
    fn absurd_lengths_are_refused() {
        let mut space = RegionSpace::new(0, 1 << 20);
        assert_eq!(space.take(usize::MAX), None);
        assert_eq!(space.take((1 << 20) + 1), None);
    }

    proptest! {
        #[test]
        fn slices_never_overlap_and_everything_comes_back(
            steps in prop::collection::vec((any::<bool>(), 1usize..5000), 1..200)
        ) {
            let (start, end) = (4096, 4096 + 64 * 1024);
            let mut space = RegionSpace::new(start, end);
            let mut held: Vec<Slice> = Vec::new();
            for (take, n) in steps {
                if take || held.is_empty() {
                    if let Some(slice) = space.take(n) {
                        prop_assert!(slice.len >= n && slice.offset >= start && slice.offset + slice.len <= end);
                        prop_assert_eq!(slice.offset % LINE, 0);
                        for other in &held {
                            let apart = slice.offset + slice.len <= other.offset
                                || other.offset + other.len <= slice.offset;
                            prop_assert!(apart);
                        }
                        held.push(slice);
                    }
                } else {
                    space.give(held.swap_remove(n % held.len()));
                }
                prop_assert_eq!(space.used(), held.iter().map(|s| s.len).sum::<usize>());
            }
            for slice in held {
                space.give(slice);
            }
            prop_assert_eq!(space.take(end - start), Some(Slice { offset: start, len: end - start }));
        }
    }
}
