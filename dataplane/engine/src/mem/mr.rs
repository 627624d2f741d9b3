//! Memory regions: preallocated slots, each with one atomic word that says which key is valid (DESIGN I9).
//!
//! A lookup is: slot of the key, its word (Acquire), compare, then the descriptor. Deregistration clears the
//! word first, so that later packets fail; the mapping goes after a grace period, so that the copy of a packet
//! in progress ends in mapped memory.
use std::{
    os::fd::{BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use rnic_transport::{Access, BadField, KeyError, record};

use super::{
    ClientMem, SharedU64,
    mw::{By, CLOSED, WINDOW, has_windows, unbound},
};
use crate::{
    arena::{ArenaError, ArenaId, WordTable},
    view::{SLOT_BITS, number},
};

/// What a key stands for.
#[derive(Debug)]
pub struct MrDescriptor<'a> {
    /// The mapping; the caller keeps it alive until a grace period after [`MrTable::invalidate`].
    pub mem: &'a ClientMem,
    /// Protection domain, unique in the daemon.
    pub pd: u32,
    /// Rights.
    pub access: Access,
    /// Address by which work requests name the first byte.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// A LOCAL_INV of its owner, or a SEND with invalidate of a peer, may invalidate the key.
    pub invalidatable: bool,
}

/// A region, or a window (`mw.rs`).
#[derive(Default)]
pub(super) struct Slot {
    /// `VALID | key`, or zero; of a window, in the highest bits, also a count of its changes.
    pub word: AtomicU64,
    /// Address of the mapping; of a window where it begins in its region.
    pub base: AtomicUsize,
    pub iova: AtomicU64,
    pub len: AtomicU64,
    pub pd: AtomicU32,
    pub access: AtomicU32,
    /// Zero of a region.
    pub owner: AtomicU32,
    /// Of a region: windows bound to it, and whether it takes any more.
    pub windows: AtomicU32,
    /// Of a window: key of its region.
    pub region: AtomicU32,
    /// Of a window: its key without the key byte; zero when there is none.
    pub number: AtomicU32,
    invalidatable: AtomicBool,
    /// Debug builds: it was invalidated, and its grace period is not known to be over.
    #[cfg(debug_assertions)]
    dying: AtomicBool,
}

impl Slot {
    /// Makes the key of a region valid.
    fn set(&self, key: u32, record: &MrRecord, base: NonNull<u8>) {
        self.fill(record, base.as_ptr() as usize);
        self.owner.store(0, Ordering::Relaxed);
        self.windows.store(0, Ordering::Relaxed);
        self.word.store(VALID | u64::from(key), Ordering::Release);
    }

    pub fn fill(&self, record: &MrRecord, base: usize) {
        self.base.store(base, Ordering::Relaxed);
        self.region.store(record.region, Ordering::Relaxed);
        self.iova.store(record.iova, Ordering::Relaxed);
        self.len.store(record.len, Ordering::Relaxed);
        self.pd.store(record.pd, Ordering::Relaxed);
        self.access.store(record.access.bits().into(), Ordering::Relaxed);
        self.invalidatable.store(record.invalidatable, Ordering::Relaxed);
    }

    /// A range of a region.
    #[inline]
    fn range(&self, addr: u64, len: u64) -> Result<RemoteRange, KeyError> {
        let (offset, len) = self.offset(addr, len)?;
        let base = self.base.load(Ordering::Relaxed) as *mut u8;
        // `wrapping_add`: the range was checked, which keeps it inside the mapping.
        let ptr = NonNull::new(base.wrapping_add(offset as usize)).ok_or(KeyError::Key)?;
        Ok(RemoteRange {
            ptr,
            len: len as usize,
        })
    }
}

/// Bit of a slot's word: the key in its lower half is valid.
pub(super) const VALID: u64 = 1 << 32;
/// Bit of a window's word: a core is binding it.
pub(super) const CLAIMED: u64 = 1 << 33;
/// What a window's word grows by with each change.
pub(super) const WORD_STEP: u64 = 1 << 34;

/// Whether a word says that this key is valid.
#[inline]
pub(super) const fn is_valid(word: u64, key: u32) -> bool {
    word & (VALID | u32::MAX as u64) == VALID | key as u64
}

record! {
    /// What of a region, or of a window that is bound, outlives the process: everything but where it is mapped.
    #[derive(Copy, Clone, Debug)]
    pub struct MrRecord {
        /// Address by which work requests name the first byte.
        pub iova: u64,
        /// Bytes.
        pub len: u64,
        /// Protection domain, unique in the daemon.
        pub pd: u32,
        /// Rights.
        pub access: Access,
        /// A LOCAL_INV of its owner, or a SEND with invalidate of a peer, may invalidate the key.
        pub invalidatable: bool,
        /// Zero of a region; of a window its type and, of type 2, the QP it was bound on.
        pub owner: u32,
        /// Of a window: key of its region.
        pub region: u32,
        /// Of a window: where it begins in the region.
        pub offset: u64,
    }
}

impl MrRecord {
    /// Whether it is of a window.
    pub const fn is_window(&self) -> bool {
        self.owner & WINDOW != 0
    }

    /// Of a window: whether it is bound.
    pub const fn is_bound(&self) -> bool {
        self.region != 0
    }
}

/// All regions of the daemon, in slots made at start.
///
/// What a key stands for lies in an arena, with the word that makes it valid. The slots are what poll cores look
/// at: the same, and the address of the mapping, which is another in each process.
pub struct MrTable {
    pub(super) slots: Box<[Slot]>,
    pub(super) records: WordTable<MrRecord>,
}

/// A range of a region that was checked. Use it within the pass of the poll loop that made it.
#[derive(Copy, Clone, Debug)]
pub struct RemoteRange {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Bytes.
    pub len: usize,
}

impl MrTable {
    fn arena(epoch: u64) -> ArenaId {
        ArenaId {
            kind: "mrs",
            owner: 0,
            epoch,
        }
    }

    /// Room for `capacity` regions and windows of the daemon whose boot epoch is `epoch`.
    pub fn create(epoch: u64, capacity: u32) -> Result<Self, ArenaError> {
        WordTable::create(Self::arena(epoch), capacity).map(|records| Self::over(records, capacity))
    }

    /// The table another process has left. No key is valid before [`MrTable::resume`].
    pub(crate) fn open(epoch: u64, fd: OwnedFd, capacity: u32) -> Result<Self, ArenaError> {
        WordTable::open(Self::arena(epoch), fd, capacity).map(|records| Self::over(records, capacity))
    }

    fn over(records: WordTable<MrRecord>, capacity: u32) -> Self {
        let capacity = capacity.min(1 << SLOT_BITS);
        MrTable {
            slots: (0..capacity).map(|_| Slot::default()).collect(),
            records,
        }
    }

    /// Every valid key with what it stands for, and every window that is not bound, by slot. Control thread, while no core
    /// binds any.
    pub fn entries(&self) -> Result<Vec<(u32, MrRecord)>, ArenaError> {
        let arena = self.records.id();
        let checked = |(slot, word, record): (u32, u64, MrRecord)| {
            let key = word as u32;
            let window = record.is_window();
            let unbound = window && word == unbound(key);
            if word != VALID | u64::from(key) && !unbound || Self::slot_of_key(key) != slot as usize {
                return Err(ArenaError::State {
                    arena,
                    slot,
                    found: word,
                });
            }
            let wrong = |field, value, must| {
                let error = BadField { field, value, must };
                Err(ArenaError::Contradiction { arena, slot, error })
            };
            if unbound {
                return Ok((key, MrRecord::unbound(record.pd, record.owner)));
            }
            if Access::from_bits(record.access.bits().into()).is_none() {
                return wrong("access", record.access.bits().into(), "access rights (0x33f)");
            }
            if record.iova.checked_add(record.len).is_none() {
                return wrong("len", record.len, "such that iova + len fits 64 bits");
            }
            Ok((key, record))
        };
        self.records.entries()?.into_iter().map(checked).collect()
    }

    /// Makes a key of [`MrTable::entries`] valid again over a new mapping of its memory; `false` when that is
    /// shorter than the region. Control thread.
    pub(crate) fn resume(&self, key: u32, record: &MrRecord, mem: &ClientMem) -> bool {
        let (Some(slot), Some(base)) = (self.slots.get(Self::slot_of_key(key)), mem.range(0, record.len))
        else {
            return false;
        };
        slot.set(key, record, base);
        true
    }

    /// The arena's file.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.records.fd()
    }

    /// Number of slots.
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The key of a slot: 24 bits of number (slot and generation), 8 bits of key byte.
    pub const fn key(slot: u32, generation: u32, key_byte: u8) -> u32 {
        number(slot, generation) << 8 | key_byte as u32
    }

    pub(super) const fn slot_of_key(key: u32) -> usize {
        (key >> 8 & ((1 << SLOT_BITS) - 1)) as usize
    }

    /// Makes `key` valid. Control thread only; the slot must be free (a grace period after its last
    /// invalidation). `false` when there is no such slot.
    pub fn validate(&self, key: u32, descriptor: &MrDescriptor<'_>) -> bool {
        let Some(slot) = self.slots.get(Self::slot_of_key(key)) else {
            return false;
        };
        let Some(base) = descriptor.mem.range(0, descriptor.len) else {
            return false;
        };
        #[cfg(debug_assertions)]
        assert!(
            !slot.dying.load(Ordering::Relaxed),
            "the slot of key {key:#x} is used again before the grace period of its last owner is over"
        );
        let record = MrRecord {
            iova: descriptor.iova,
            len: descriptor.len,
            pd: descriptor.pd,
            access: descriptor.access,
            invalidatable: descriptor.invalidatable,
            owner: 0,
            region: 0,
            offset: 0,
        };
        let number = Self::slot_of_key(key) as u32;
        if let Err(error) = self.records.publish(number, VALID | u64::from(key), record) {
            tracing::error!(%error, "a memory region has no place in its arena");
            return false;
        }
        slot.set(key, &record, base);
        true
    }

    /// Makes `key` invalid: no later lookup finds it. The invalidation is complete, and the mapping may go, when
    /// a grace period begun after this call has ended. Uses preallocated state only.
    pub fn invalidate(&self, key: u32) -> bool {
        // The record first: of a daemon killed in between, the next one finds the key invalid.
        let number = Self::slot_of_key(key);
        let valid = VALID | u64::from(key);
        let withdrawn = self.records.withdraw(number as u32, valid);
        // The word even if another thread was faster with the record: whoever returns from here may begin a grace
        // period, and that must find the word cleared.
        let cleared = self.slots.get(number).is_some_and(|slot| {
            let word = &slot.word;
            if is_valid(word.load(Ordering::Acquire), key) {
                slot.windows.fetch_or(CLOSED, Ordering::AcqRel);
            }
            word.compare_exchange(valid, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        #[cfg(debug_assertions)]
        if cleared {
            self.slots[number].dying.store(true, Ordering::Relaxed);
        }
        #[cfg(not(debug_assertions))]
        let _ = cleared;
        withdrawn
    }

    /// The grace period of an invalidated key is over: its slot may be used again. Control thread. Debug builds check
    /// that no slot is used again without, and leave an address in it that nobody can use.
    pub fn release(&self, key: u32) {
        #[cfg(debug_assertions)]
        if let Some(slot) = self.slots.get(Self::slot_of_key(key)) {
            assert_eq!(
                slot.word.load(Ordering::Relaxed),
                0,
                "key {key:#x} is still valid"
            );
            slot.base.store(
                usize::from_ne_bytes([0xDB; size_of::<usize>()]),
                Ordering::Relaxed,
            );
            slot.dying.store(false, Ordering::Relaxed);
        }
        #[cfg(not(debug_assertions))]
        let _ = key;
    }

    /// The same on behalf of a QP, whose owner or peer asks for it: only keys of its PD, and only those of windows of
    /// type 2 and of regions that were registered for it and have no windows (10.6.5, C9-51): a plain region is
    /// deregistered by its owner or not at all. Poll cores.
    ///
    /// Whether somebody else may still use the key, until the end of a grace period that begins now.
    ///
    /// # Errors
    /// The key is not valid (or not any more), is another PD's, or does not permit it; nothing changed.
    pub fn invalidate_for(&self, key: u32, by: By) -> Result<bool, KeyError> {
        let slot = self.slots.get(Self::slot_of_key(key)).ok_or(KeyError::Key)?;
        let word = slot.word.load(Ordering::Acquire);
        if !is_valid(word, key) {
            return Err(KeyError::Key);
        }
        if slot.pd.load(Ordering::Relaxed) != by.pd {
            return Err(KeyError::PdMismatch);
        }
        if slot.owner.load(Ordering::Relaxed) != 0 {
            return self.invalidate_window(slot, word, by).map(|()| false);
        }
        if !slot.invalidatable.load(Ordering::Relaxed) {
            return Err(KeyError::Access);
        }
        if has_windows(&slot.windows) || !self.close(key) {
            return Err(KeyError::WindowsBound);
        }
        // Somebody else may have been faster, and by the key's generation no later region is meant.
        if self.invalidate(key) {
            Ok(true)
        } else {
            Err(KeyError::Key)
        }
    }

    /// Whether a key is valid now. Any thread; for reports.
    pub fn is_valid(&self, key: u32) -> bool {
        let slot = self.slots.get(Self::slot_of_key(key));
        slot.is_some_and(|slot| is_valid(slot.word.load(Ordering::Relaxed), key))
    }

    #[inline(always)] // as below
    pub(super) fn find(&self, key: u32, pd: u32, access: Access) -> Result<&Slot, KeyError> {
        let slot = self.slots.get(Self::slot_of_key(key)).ok_or(KeyError::Key)?;
        if !is_valid(slot.word.load(Ordering::Acquire), key) {
            return Err(KeyError::Key);
        }
        if slot.pd.load(Ordering::Relaxed) != pd {
            return Err(KeyError::PdMismatch);
        }
        if !Access::from_bits(slot.access.load(Ordering::Relaxed)).is_some_and(|a| a.contains(access)) {
            return Err(KeyError::Access);
        }
        Ok(slot)
    }

    /// Checks key, PD, right and range of a QP's own work requests, and resolves them: windows are for peers. Poll cores,
    /// within one pass of the loop.
    #[inline(always)] // of most packets the greater part of what is left to do
    pub fn resolve(
        &self,
        key: u32,
        pd: u32,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<RemoteRange, KeyError> {
        let slot = self.find(key, pd, access)?;
        match slot.owner.load(Ordering::Relaxed) {
            0 => slot.range(addr, len),
            _ => Err(KeyError::Key),
        }
    }

    /// The same of a peer's request, whose key may be that of a window.
    #[inline(always)] // as above
    pub fn resolve_remote(
        &self,
        key: u32,
        by: By,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<RemoteRange, KeyError> {
        let slot = self.find(key, by.pd, access)?;
        match slot.owner.load(Ordering::Relaxed) {
            0 => slot.range(addr, len),
            owner => self.resolve_window(slot, owner, by, addr, len),
        }
    }

    /// Checks key, PD and right of a peer's request alone. Poll cores.
    pub fn check(&self, key: u32, by: By, access: Access) -> Result<(), KeyError> {
        let slot = self.find(key, by.pd, access)?;
        match slot.owner.load(Ordering::Relaxed) {
            0 => Ok(()),
            owner => self.region_of(slot, owner, by).map(drop),
        }
    }

    /// The 8 bytes at `addr` as a word for remote atomics and ATOMIC WRITE (their rights differ), checked like any range.
    /// Poll cores, within one pass of the loop.
    ///
    /// # Errors
    /// [`KeyError::Alignment`] too: whatever its address says, the memory behind it is what must be aligned.
    #[inline]
    pub fn word(&self, key: u32, by: By, addr: u64, access: Access) -> Result<SharedU64, KeyError> {
        let range = self.resolve_remote(key, by, addr, 8, access)?;
        // SAFETY: 8 bytes of the region's mapping, which outlives this pass of the loop: the grace period after an
        // invalidation waits for its end, and only then may the mapping go.
        unsafe { SharedU64::at(range.ptr) }.ok_or(KeyError::Alignment)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn by(pd: u32) -> By {
        By { pd, qpn: 2 }
    }

    #[test]
    fn keys_ranges_rights_and_domains_are_checked() {
        let (mem, _fd) = ClientMem::create("mr", 8192, Arc::default()).unwrap();
        let table = MrTable::create(1, 8).unwrap();
        let key = MrTable::key(5, 3, 0xab);
        let iova = u64::MAX - 8191;
        let access = Access::REMOTE_READ;
        assert!(table.validate(
            key,
            &MrDescriptor {
                mem: &mem,
                pd: 1,
                access,
                iova,
                len: 8192,
                invalidatable: false,
            }
        ));
        let resolve = |key, pd, addr, len, access| table.resolve(key, pd, addr, len, access).map(|r| r.len);
        assert_eq!(resolve(key, 1, iova, 8192, access), Ok(8192));
        assert_eq!(resolve(key, 1, iova + 8000, 192, access), Ok(192));
        assert_eq!(resolve(key, 1, iova + 8000, 193, access), Err(KeyError::Range));
        assert_eq!(resolve(key, 1, iova, u64::MAX, access), Err(KeyError::Range));
        assert_eq!(resolve(key, 1, 0, 1, access), Err(KeyError::Range));
        assert_eq!(resolve(key, 2, iova, 1, access), Err(KeyError::PdMismatch));
        assert_eq!(
            resolve(key, 1, iova, 1, Access::REMOTE_WRITE),
            Err(KeyError::Access)
        );
        assert_eq!(resolve(key ^ 1, 1, iova, 1, access), Err(KeyError::Key));
        assert_eq!(
            resolve(MrTable::key(5, 4, 0xab), 1, iova, 1, access),
            Err(KeyError::Key)
        );
        assert_eq!(resolve(u32::MAX, 1, iova, 1, access), Err(KeyError::Key));
        assert!(table.invalidate(key) && !table.invalidate(key));
        assert_eq!(resolve(key, 1, iova, 1, access), Err(KeyError::Key));
    }

    #[test]
    fn only_a_key_registered_for_it_is_invalidated_for_a_qp_and_only_for_one_of_its_pd() {
        let (mem, _fd) = ClientMem::create("mr", 4096, Arc::default()).unwrap();
        let table = MrTable::create(1, 8).unwrap();
        let [plain, free] = [(2, false), (3, true)].map(|(slot, invalidatable)| {
            let key = MrTable::key(slot, 1, 7);
            let descriptor = MrDescriptor {
                mem: &mem,
                pd: 1,
                access: Access::NONE,
                iova: 0,
                len: 4096,
                invalidatable,
            };
            assert!(table.validate(key, &descriptor));
            key
        });
        assert_eq!(table.invalidate_for(plain, by(1)), Err(KeyError::Access));
        assert_eq!(table.invalidate_for(free, by(2)), Err(KeyError::PdMismatch));
        assert_eq!(table.invalidate_for(free ^ 1, by(1)), Err(KeyError::Key));
        assert_eq!(table.invalidate_for(u32::MAX, by(1)), Err(KeyError::Key));
        assert!(
            table.resolve(free, 1, 0, 1, Access::NONE).is_ok(),
            "nothing changed"
        );
        assert_eq!(table.invalidate_for(free, by(1)), Ok(true));
        assert_eq!(table.invalidate_for(free, by(1)), Err(KeyError::Key));
        assert!(!table.invalidate(free), "deregistration finds it done");
    }
}
