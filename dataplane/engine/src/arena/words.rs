//! Tables of records whose validity is one atomic word.
use std::{
    marker::PhantomData,
    os::fd::{BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
};

use rnic_transport::{FieldPath, Record};

use super::{
    ArenaError, ArenaId,
    map::Mapping,
    slots::{Slot, Slots},
};
use crate::nonblocking::might_block;

/// A table of records in fixed slots, each valid exactly while its word is not zero. The control thread publishes; any
/// thread may withdraw, and whoever has a slot may replace what is in it.
pub struct WordTable<T> {
    slots: Slots,
    _records: PhantomData<fn() -> T>,
}

impl<T: Record + Copy> WordTable<T> {
    /// An empty table of `limit` slots. Memory is taken as it is used.
    pub fn create(id: ArenaId, limit: u32) -> Result<Self, ArenaError> {
        let stride = Slot::<T>::STRIDE;
        let map = Mapping::create(id, size_of::<T>(), stride, Slot::<T>::reserved(limit))?;
        Ok(Self::over(map, limit))
    }

    /// A table another process has left. Nothing of it was looked at yet: see [`WordTable::entries`].
    pub fn open(id: ArenaId, fd: OwnedFd, limit: u32) -> Result<Self, ArenaError> {
        let stride = Slot::<T>::STRIDE;
        let map = Mapping::open(id, fd, size_of::<T>(), stride, Slot::<T>::reserved(limit))?;
        Ok(Self::over(map, limit))
    }

    fn over(map: Mapping, limit: u32) -> Self {
        WordTable {
            slots: Slots::new(map, Slot::<T>::STRIDE, limit),
            _records: PhantomData,
        }
    }

    /// Makes a record valid under `word`. Control thread only; the slot's word is zero and whoever withdrew it has
    /// nothing more to do with it.
    ///
    /// # Errors
    /// There is no such slot, the file cannot grow, or the slot is in use.
    pub fn publish(&self, slot: u32, word: u64, record: T) -> Result<(), ArenaError> {
        might_block();
        self.slots.reach(slot)?;
        let arena = self.slots.map.id;
        let full = ArenaError::Full {
            arena,
            limit: slot.into(),
        };
        let (Some(at), Some(valid)) = (self.slots.pointer::<T>(slot), self.slots.word(slot)) else {
            return Err(full);
        };
        let found = valid.load(Ordering::Acquire);
        if found != 0 {
            return Err(ArenaError::State { arena, slot, found });
        }
        // SAFETY: the slot is mapped and aligned. No thread but the control thread, which this is, ever touches a
        // record, and the only references into the table are words.
        unsafe { at.write(record) };
        valid.store(word, Ordering::Release);
        Ok(())
    }

    /// Puts another record into a slot that was published under `word`, valid under `new`, with preallocated state only;
    /// `false` when it is under `word` no more. Any thread; only one at a time has the slot to do so, and nobody lists the
    /// entries meanwhile.
    #[inline]
    pub fn replace(&self, slot: u32, word: u64, new: u64, record: T) -> bool {
        let (Some(at), Some(valid)) = (self.slots.pointer::<T>(slot), self.slots.word(slot)) else {
            return false;
        };
        if word == 0 || valid.load(Ordering::Acquire) != word {
            return false;
        }
        // SAFETY: the slot was published, hence is mapped and aligned. The caller alone has it, and the only references
        // into the table are words.
        unsafe { at.write(record) };
        valid.store(new, Ordering::Release);
        true
    }

    /// Makes the record that is valid under `word` invalid; `false` when it is valid no more. Any thread, with
    /// preallocated state only.
    #[inline]
    pub fn withdraw(&self, slot: u32, word: u64) -> bool {
        self.turn(slot, word, 0)
    }

    /// Makes the record that is valid under `word` valid under another one; `false` when it is not. Any thread, with
    /// preallocated state only.
    #[inline]
    pub fn turn(&self, slot: u32, word: u64, new: u64) -> bool {
        self.slots.word(slot).is_some_and(|valid| {
            valid
                .compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Every valid record with its slot and its word. Control thread, while nobody replaces any.
    ///
    /// # Errors
    /// Bytes that are no record.
    pub fn entries(&self) -> Result<Vec<(u32, u64, T)>, ArenaError> {
        might_block();
        let mut found = Vec::new();
        for slot in 0..self.slots.count() {
            let word = self
                .slots
                .word(slot)
                .map_or(0, |word| word.load(Ordering::Acquire));
            if word == 0 {
                continue;
            }
            let invalid = |field| ArenaError::Invalid {
                arena: self.slots.map.id,
                slot,
                field,
            };
            // SAFETY: only the control thread, which this is, writes records.
            let bytes = unsafe { self.slots.bytes::<T>(slot) }.ok_or(invalid(FieldPath::HERE))?;
            if let Some(field) = T::invalid(bytes) {
                return Err(invalid(field));
            }
            let record = T::try_read_from_bytes(bytes).map_err(|_| invalid(FieldPath::HERE))?;
            found.push((slot, word, record));
        }
        Ok(found)
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.slots.map.fd()
    }

    /// Which it is.
    pub fn id(&self) -> ArenaId {
        self.slots.map.id
    }
}
