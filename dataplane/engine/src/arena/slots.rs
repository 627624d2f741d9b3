//! Arenas of records of one width.
use std::{
    marker::PhantomData,
    os::fd::{BorrowedFd, OwnedFd},
    ptr::NonNull,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rnic_transport::{FieldPath, Record};

use super::{
    ArenaBox, ArenaError, ArenaId,
    map::{HEADER, Mapping},
};
use crate::nonblocking::might_block;

/// The word of a slot in use. A slot never written is zero, and so is a freed one.
const LIVE: u64 = u64::from_le_bytes(*b"in use\r\n");

/// A slot: its word, then the record.
#[repr(C, align(64))]
pub(super) struct Slot<T> {
    word: u64,
    record: T,
}

impl<T> Slot<T> {
    pub const STRIDE: usize = size_of::<Self>();
    pub const RECORD: usize = std::mem::offset_of!(Self, record);

    /// Bytes of an arena with `limit` slots.
    pub const fn reserved(limit: u32) -> usize {
        HEADER + (limit as usize * Self::STRIDE).next_multiple_of(HEADER)
    }
}

/// The slots of one arena, whatever lies in them.
pub(super) struct Slots {
    pub map: Mapping,
    stride: usize,
    limit: u32,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// Slots that came back.
    slots: Vec<u32>,
    /// The first slot never used.
    fresh: u32,
    /// Debug builds: those of `slots` that were filled with [`POISON`] as they were freed.
    #[cfg(debug_assertions)]
    poisoned: std::collections::HashSet<u32>,
}

/// What freed records are filled with in debug builds.
#[cfg(debug_assertions)]
const POISON: u8 = 0xDB;

impl Slots {
    pub fn new(map: Mapping, stride: usize, limit: u32) -> Self {
        let free = Mutex::default();
        Slots {
            map,
            stride,
            limit,
            free,
        }
    }

    pub fn offset(&self, slot: u32) -> usize {
        HEADER + slot as usize * self.stride
    }

    /// Slots that lie within the file.
    pub fn count(&self) -> u32 {
        (((self.map.extent() - HEADER) / self.stride) as u32).min(self.limit)
    }

    /// The word of a slot.
    #[inline]
    pub fn word(&self, slot: u32) -> Option<&AtomicU64> {
        if slot >= self.limit {
            return None;
        }
        let at = self.map.at(self.offset(slot), self.stride)?;
        // SAFETY: the slot begins with its word, aligned to 64, mapped as long as `self` lives, and only ever
        // accessed as an atomic.
        Some(unsafe { AtomicU64::from_ptr(at.cast::<u64>().as_ptr()) })
    }

    /// Makes the file long enough for a slot.
    pub fn reach(&self, slot: u32) -> Result<(), ArenaError> {
        if slot >= self.limit {
            let (arena, limit) = (self.map.id, self.limit.into());
            return Err(ArenaError::Full { arena, limit });
        }
        self.map.grow(self.offset(slot) + self.stride)
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        might_block();
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<u32, ArenaError> {
        let mut free = self.lock();
        if let Some(slot) = free.slots.pop() {
            #[cfg(debug_assertions)]
            if free.poisoned.remove(&slot) {
                self.check_poison(slot);
            }
            return Ok(slot);
        }
        self.reach(free.fresh)?;
        free.fresh += 1;
        Ok(free.fresh - 1)
    }

    /// Frees a slot, unless its record is to outlive its owner.
    pub fn free(&self, slot: u32) {
        if self.map.is_sealed() {
            return;
        }
        if let Some(word) = self.word(slot) {
            word.store(0, Ordering::Release);
        }
        let mut free = self.lock();
        #[cfg(debug_assertions)]
        {
            self.poison(slot);
            free.poisoned.insert(slot);
        }
        free.slots.push(slot);
    }

    #[cfg(debug_assertions)]
    fn poison(&self, slot: u32) {
        if let Some((at, len)) = self.behind_word(slot) {
            // SAFETY: the record's bytes; its owner is being dropped and was the only way to them.
            unsafe { at.write_bytes(POISON, len) };
        }
    }

    /// Nobody has written to the record of a slot since it was freed.
    #[cfg(debug_assertions)]
    fn check_poison(&self, slot: u32) {
        let Some((at, len)) = self.behind_word(slot) else {
            return;
        };
        for i in 0..len {
            // SAFETY: the record's bytes; whoever writes them at this moment is what is looked for.
            let byte = unsafe { at.add(i).read_volatile() };
            let arena = self.map.id;
            assert!(
                byte == POISON,
                "{arena}: the freed record in slot {slot} was written to, {i} bytes from its start: {byte:#04x}"
            );
        }
    }

    /// The bytes of a slot after its word.
    #[cfg(debug_assertions)]
    fn behind_word(&self, slot: u32) -> Option<(NonNull<u8>, usize)> {
        let len = self.stride - size_of::<u64>();
        Some((self.map.at(self.offset(slot) + size_of::<u64>(), len)?, len))
    }

    /// The bytes of the record in a slot that nobody owns.
    ///
    /// # Safety
    /// Nobody writes the record as long as the bytes are borrowed.
    pub unsafe fn bytes<T>(&self, slot: u32) -> Option<&[u8]> {
        let at = self
            .map
            .at(self.offset(slot) + Slot::<T>::RECORD, size_of::<T>())?;
        // SAFETY: mapped and initialised (it is a file); the caller keeps writers away.
        Some(unsafe { slice::from_raw_parts(at.as_ptr(), size_of::<T>()) })
    }

    pub fn pointer<T>(&self, slot: u32) -> Option<NonNull<T>> {
        let at = self
            .map
            .at(self.offset(slot) + Slot::<T>::RECORD, size_of::<T>())?;
        Some(at.cast())
    }
}

/// An arena of records of type `T`. Owned by the control thread.
pub struct SlotArena<T> {
    slots: Arc<Slots>,
    _records: PhantomData<fn() -> T>,
}

impl<T: Record> SlotArena<T> {
    /// Bytes that a record takes.
    pub const STRIDE: usize = Slot::<T>::STRIDE;

    /// An empty arena for `limit` records. Memory is taken as it is used.
    pub fn create(id: ArenaId, limit: u32) -> Result<Self, ArenaError> {
        let stride = Slot::<T>::STRIDE;
        let map = Mapping::create(id, size_of::<T>(), stride, Slot::<T>::reserved(limit))?;
        Ok(Self::over(Slots::new(map, stride, limit)))
    }

    /// An arena another process has left, and the owners of everything in it. It is sealed: call
    /// [`SlotArena::unseal`] when all of it was taken over.
    pub fn open(id: ArenaId, fd: OwnedFd, limit: u32) -> Result<(Self, Vec<ArenaBox<T>>), ArenaError> {
        let stride = Slot::<T>::STRIDE;
        let map = Mapping::open(id, fd, size_of::<T>(), stride, Slot::<T>::reserved(limit))?;
        let slots = Slots::new(map, stride, limit);
        let mut found = Vec::new();
        let mut free = Free {
            fresh: slots.count(),
            ..Free::default()
        };
        for slot in 0..free.fresh {
            match slots.word(slot).map_or(0, |word| word.load(Ordering::Acquire)) {
                0 => free.slots.push(slot),
                LIVE => found.push((slot, check::<T>(&slots, slot)?)),
                found => {
                    return Err(ArenaError::State {
                        arena: id,
                        slot,
                        found,
                    });
                }
            }
        }
        // The lowest is taken first.
        free.slots.reverse();
        *slots.lock() = free;
        let arena = Self::over(slots);
        let own = |(slot, record)| {
            // SAFETY: `check` found a valid `T` in this slot, and each slot was visited once.
            unsafe { ArenaBox::new(record, slot, arena.slots.clone()) }
        };
        let found = found.into_iter().map(own).collect();
        Ok((arena, found))
    }

    fn over(slots: Slots) -> Self {
        SlotArena {
            slots: Arc::new(slots),
            _records: PhantomData,
        }
    }

    /// Puts a record in. Control thread.
    pub fn put(&self, record: T) -> Result<ArenaBox<T>, ArenaError> {
        might_block();
        let slot = self.slots.take()?;
        let (Some(at), Some(word)) = (self.slots.pointer::<T>(slot), self.slots.word(slot)) else {
            let (arena, limit) = (self.slots.map.id, self.slots.limit.into());
            return Err(ArenaError::Full { arena, limit });
        };
        // SAFETY: the slot is mapped, aligned (64 and the offset of the record in it), and was just taken from the
        // free ones, so that nobody else refers to it.
        unsafe { at.write(record) };
        // Only now does a restarted daemon find it.
        word.store(LIVE, Ordering::Release);
        // SAFETY: just written; the slot was taken once.
        Ok(unsafe { ArenaBox::new(at, slot, self.slots.clone()) })
    }

    /// Slots that lie within the file: no fewer than there ever were records at once.
    pub fn extent(&self) -> u32 {
        self.slots.count()
    }

    /// From now on records stay when their owners are dropped.
    pub fn seal(&self) {
        self.slots.map.seal();
    }

    /// Dropping an owner frees its record again.
    pub fn unseal(&self) {
        self.slots.map.unseal();
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

/// The record in a slot that nobody owns, if its bytes are one.
fn check<T: Record>(slots: &Slots, slot: u32) -> Result<NonNull<T>, ArenaError> {
    let invalid = |field| ArenaError::Invalid {
        arena: slots.map.id,
        slot,
        field,
    };
    // SAFETY: the arena was just opened: the process that wrote it is gone, and this one has made no owner yet.
    let bytes = unsafe { slots.bytes::<T>(slot) }.ok_or(invalid(FieldPath::HERE))?;
    if let Some(field) = T::invalid(bytes) {
        return Err(invalid(field));
    }
    match T::try_ref_from_bytes(bytes) {
        Ok(_) => slots.pointer(slot).ok_or(invalid(FieldPath::HERE)),
        Err(_) => Err(invalid(FieldPath::HERE)),
    }
}
