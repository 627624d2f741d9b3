//! Arenas of ranges: the parts of objects whose length differs from one to the next.
use std::{
    os::fd::{BorrowedFd, OwnedFd},
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rnic_transport::Record;
use rustix::fs::{FallocateFlags, fallocate};

use super::{
    ArenaError, ArenaId, ArenaSlice,
    map::{HEADER, Mapping},
    space::Space,
};
use crate::nonblocking::might_block;

/// Ranges begin at multiples of this.
const ALIGN: usize = 64;
/// What is as long as this goes back to the kernel when it is freed.
const PUNCH: u64 = 64 << 10;

/// The ranges of one arena, whatever lies in them.
pub(super) struct Ranges {
    map: Mapping,
    space: Mutex<Space>,
}

impl Ranges {
    fn lock(&self) -> MutexGuard<'_, Space> {
        might_block();
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, len: usize) -> Result<u64, ArenaError> {
        let mut space = self.lock();
        if let Some(offset) = space.take(len as u64) {
            return Ok(offset);
        }
        let extent = self.map.extent();
        self.map.grow(extent.saturating_add(len))?;
        space.give(extent as u64, (self.map.extent() - extent) as u64);
        let (arena, limit) = (self.map.id, extent as u64);
        space.take(len as u64).ok_or(ArenaError::Full { arena, limit })
    }

    /// Takes a range back, unless it is to outlive its owner.
    pub fn free(&self, offset: u64, bytes: usize) {
        if self.map.is_sealed() {
            return;
        }
        let len = bytes.next_multiple_of(ALIGN) as u64;
        if len >= PUNCH {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Without it the pages merely stay. Parts of pages at either end are filled with zeros.
            let _ = fallocate(self.map.fd(), flags, offset, len);
        }
        self.lock().give(offset, len);
    }
}

/// An arena of ranges. Owned by the control thread.
pub struct RangeArena(Arc<Ranges>);

impl RangeArena {
    /// An empty arena that may grow to `limit` bytes.
    pub fn create(id: ArenaId, limit: usize) -> Result<Self, ArenaError> {
        let map = Mapping::create(id, 1, ALIGN, HEADER + limit)?;
        Ok(RangeArena(Arc::new(Ranges {
            map,
            space: Mutex::default(),
        })))
    }

    /// An arena another process has left. All of it is free until it is [claimed](RangeArena::claim), range by
    /// range, by the records that name them. It is sealed: call [`RangeArena::unseal`] when all of it was taken
    /// over.
    pub fn open(id: ArenaId, fd: OwnedFd, limit: usize) -> Result<Self, ArenaError> {
        let map = Mapping::open(id, fd, 1, ALIGN, HEADER + limit)?;
        let mut space = Space::default();
        if map.extent() > HEADER {
            space.give(HEADER as u64, (map.extent() - HEADER) as u64);
        }
        let space = Mutex::new(space);
        Ok(RangeArena(Arc::new(Ranges { map, space })))
    }

    /// A range of `len` copies of `fill`. Control thread.
    pub fn put<T: Record + Copy>(&self, len: usize, fill: T) -> Result<ArenaSlice<T>, ArenaError> {
        might_block();
        const { assert!(align_of::<T>() <= ALIGN) };
        let (arena, limit) = (self.0.map.id, len as u64);
        let full = || ArenaError::Full { arena, limit };
        let bytes = size_of::<T>().checked_mul(len.max(1)).ok_or_else(full)?;
        let bytes = bytes.checked_next_multiple_of(ALIGN).ok_or_else(full)?;
        let offset = self.0.take(bytes)?;
        let first: NonNull<T> = self.0.map.at(offset as usize, bytes).ok_or_else(full)?.cast();
        for i in 0..len {
            // SAFETY: the range is mapped, aligned to 64, long enough for `len` records, and was just taken from the
            // free ones, so that nobody else refers to it.
            unsafe { first.add(i).write(fill) };
        }
        // SAFETY: just written; the range was taken once.
        Ok(unsafe { ArenaSlice::new(first, len, offset, self.0.clone()) })
    }

    /// The owner of a range that a record names.
    ///
    /// # Errors
    /// The range is not in the arena or not free, or its bytes are no records; `slot` says whose range it is.
    pub fn claim<T: Record>(&self, offset: u64, len: usize, slot: u32) -> Result<ArenaSlice<T>, ArenaError> {
        might_block();
        const { assert!(align_of::<T>() <= ALIGN) };
        let arena = self.0.map.id;
        let wrong = |why| ArenaError::Range {
            arena,
            offset,
            len: (len as u64).saturating_mul(size_of::<T>() as u64),
            why,
        };
        let outside = || wrong("leaves the arena");
        let bytes = size_of::<T>().checked_mul(len).ok_or_else(outside)?;
        let whole = bytes.max(1).checked_next_multiple_of(ALIGN).ok_or_else(outside)?;
        if !offset.is_multiple_of(ALIGN as u64) {
            return Err(wrong("is not aligned to 64 bytes"));
        }
        let at = usize::try_from(offset).map_err(|_| outside())?;
        let first = self.0.map.at(at, whole).ok_or_else(outside)?;
        if !self.0.lock().claim(offset, whole as u64) {
            return Err(wrong("belongs to another record too"));
        }
        // SAFETY: mapped and initialised (it is a file). The process that wrote it is gone, and no owner of these
        // bytes was made by this one: they were free until now.
        let found = unsafe { slice::from_raw_parts(first.as_ptr(), bytes) };
        for record in found.chunks_exact(size_of::<T>()) {
            if let Some(field) = T::invalid(record) {
                return Err(ArenaError::Invalid { arena, slot, field });
            }
            if T::try_ref_from_bytes(record).is_err() {
                return Err(wrong("holds bytes that are no records"));
            }
        }
        // SAFETY: every record was found valid, and the range was claimed once.
        Ok(unsafe { ArenaSlice::new(first.cast(), len, offset, self.0.clone()) })
    }

    /// From now on ranges stay when their owners are dropped.
    pub fn seal(&self) {
        self.0.map.seal();
    }

    /// Dropping an owner frees its range again.
    pub fn unseal(&self) {
        self.0.map.unseal();
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.map.fd()
    }

    /// Which it is.
    pub fn id(&self) -> ArenaId {
        self.0.map.id
    }
}
