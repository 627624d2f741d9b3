//! Owners of records and ranges.
use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::Arc,
};

use super::{ranges::Ranges, slots::Slots};
use crate::nonblocking::might_block;

/// The owner of one record of a [`SlotArena`](super::SlotArena). Made and dropped on the control thread.
pub struct ArenaBox<T> {
    record: NonNull<T>,
    slot: u32,
    slots: Arc<Slots>,
}

// SAFETY: it is the only way to its record, like a `Box`.
unsafe impl<T: Send> Send for ArenaBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ArenaBox<T> {}

impl<T> ArenaBox<T> {
    /// The owner of an initialised record.
    ///
    /// # Safety
    /// `record` is a valid `T` in slot `slot` of `slots`, and no other owner of it exists or will be made.
    pub(super) unsafe fn new(record: NonNull<T>, slot: u32, slots: Arc<Slots>) -> Self {
        ArenaBox { record, slot, slots }
    }

    /// The slot it lies in.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl<T> Deref for ArenaBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `new` promised a valid record of which this is the only owner; `slots` keeps it mapped.
        unsafe { self.record.as_ref() }
    }
}

impl<T> DerefMut for ArenaBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes this the only access.
        unsafe { self.record.as_mut() }
    }
}

impl<T> Drop for ArenaBox<T> {
    fn drop(&mut self) {
        might_block();
        self.slots.free(self.slot);
    }
}

impl<T: fmt::Debug> fmt::Debug for ArenaBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The owner of a range of a [`RangeArena`](super::RangeArena). Made and dropped on the control thread.
pub struct ArenaSlice<T> {
    first: NonNull<T>,
    len: usize,
    offset: u64,
    ranges: Arc<Ranges>,
}

// SAFETY: it is the only way to its range, like a boxed slice.
unsafe impl<T: Send> Send for ArenaSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ArenaSlice<T> {}

impl<T> ArenaSlice<T> {
    /// The owner of an initialised range.
    ///
    /// # Safety
    /// `first` points to `len` valid `T`s at `offset` of `ranges`, and no other owner of any of them exists or will
    /// be made.
    pub(super) unsafe fn new(first: NonNull<T>, len: usize, offset: u64, ranges: Arc<Ranges>) -> Self {
        ArenaSlice {
            first,
            len,
            offset,
            ranges,
        }
    }

    /// Where it lies in its arena.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl<T> Deref for ArenaSlice<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` promised valid records of which this is the only owner; `ranges` keeps them mapped.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for ArenaSlice<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only access.
        unsafe { slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for ArenaSlice<T> {
    fn drop(&mut self) {
        might_block();
        self.ranges.free(self.offset, size_of::<T>() * self.len);
    }
}

impl<T: fmt::Debug> fmt::Debug for ArenaSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
