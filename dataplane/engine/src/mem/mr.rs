//! Memory regions: preallocated slots, each with one atomic word that says which key is valid (DESIGN I9).
//!
//! A lookup is: slot of the key, its word (Acquire), compare, then the descriptor. Deregistration clears the
//! word first, so that later packets fail; the mapping goes after a grace period, so that the copy of a packet
//! in progress ends in mapped memory.
use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use rnic_transport::{Access, KeyError};

use super::ClientMem;
use crate::view::{SLOT_BITS, number};

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
}

#[derive(Default)]
struct Slot {
    /// `VALID | key`, or zero.
    word: AtomicU64,
    base: AtomicUsize,
    iova: AtomicU64,
    len: AtomicU64,
    pd: AtomicU32,
    access: AtomicU32,
    /// Debug builds: it was invalidated, and its grace period is not known to be over.
    #[cfg(debug_assertions)]
    dying: std::sync::atomic::AtomicBool,
}

const VALID: u64 = 1 << 32;

/// All regions of the daemon, in slots made at start.
pub struct MrTable {
    slots: Box<[Slot]>,
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
    /// Room for `capacity` regions.
    pub fn new(capacity: u32) -> Self {
        MrTable {
            slots: (0..capacity.min(1 << SLOT_BITS))
                .map(|_| Slot::default())
                .collect(),
        }
    }

    /// Number of slots.
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The key of a slot: 24 bits of number (slot and generation), 8 bits of key byte.
    pub const fn key(slot: u32, generation: u32, key_byte: u8) -> u32 {
        number(slot, generation) << 8 | key_byte as u32
    }

    const fn slot_of_key(key: u32) -> usize {
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
        slot.base.store(base.as_ptr() as usize, Ordering::Relaxed);
        slot.iova.store(descriptor.iova, Ordering::Relaxed);
        slot.len.store(descriptor.len, Ordering::Relaxed);
        slot.pd.store(descriptor.pd, Ordering::Relaxed);
        slot.access
            .store(descriptor.access.bits().into(), Ordering::Relaxed);
        slot.word.store(VALID | u64::from(key), Ordering::Release);
        true
    }

    /// Makes `key` invalid: no later lookup finds it. The invalidation is complete, and the mapping may go, when
    /// a grace period begun after this call has ended. Uses preallocated state only.
    pub fn invalidate(&self, key: u32) -> bool {
        let valid = VALID | u64::from(key);
        self.slots.get(Self::slot_of_key(key)).is_some_and(|slot| {
            let was_valid = slot
                .word
                .compare_exchange(valid, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
            #[cfg(debug_assertions)]
            slot.dying.fetch_or(was_valid, Ordering::Relaxed);
            was_valid
        })
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

    /// Checks key, PD, right and range, and resolves them. Poll cores, within one pass of the loop.
    #[inline]
    pub fn resolve(
        &self,
        key: u32,
        pd: u32,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<RemoteRange, KeyError> {
        let slot = self.slots.get(Self::slot_of_key(key)).ok_or(KeyError::Key)?;
        if slot.word.load(Ordering::Acquire) != VALID | u64::from(key) {
            return Err(KeyError::Key);
        }
        if slot.pd.load(Ordering::Relaxed) != pd {
            return Err(KeyError::PdMismatch);
        }
        if !Access::from_bits(slot.access.load(Ordering::Relaxed)).is_some_and(|a| a.contains(access)) {
            return Err(KeyError::Access);
        }
        let offset = addr
            .checked_sub(slot.iova.load(Ordering::Relaxed))
            .ok_or(KeyError::Range)?;
        let end = offset.checked_add(len).ok_or(KeyError::Range)?;
        if end > slot.len.load(Ordering::Relaxed) {
            return Err(KeyError::Range);
        }
        let base = slot.base.load(Ordering::Relaxed) as *mut u8;
        // `wrapping_add`: the range check above keeps it inside the mapping.
        let ptr = NonNull::new(base.wrapping_add(offset as usize)).ok_or(KeyError::Key)?;
        Ok(RemoteRange {
            ptr,
            len: len as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn keys_ranges_rights_and_domains_are_checked() {
        let (mem, _fd) = ClientMem::create("mr", 8192, Arc::default()).unwrap();
        let table = MrTable::new(8);
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
                len: 8192
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
}
