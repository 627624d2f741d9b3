//! Memory windows (10.6.7): keys for parts of regions, in slots of the same table as the regions.
//!
//! A window's word says, beside the key that is valid, how often it has changed, so that whoever waited between unbinding
//! it and binding it anew finds out that somebody else was there. A window of type 1 is used by every QP of its protection
//! domain: between what it stood for before and what it stands for next lies a grace period. One of type 2 is used by the
//! QP it was bound on, hence by one core, and needs none (DESIGN I9).
//!
//! A window holds its region, which cannot be deregistered meanwhile; and whoever uses the window looks at the region's
//! word as well, so that a region that went all the same takes its windows along.
use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use rnic_transport::{Access, Bind, KeyError};

use super::mr::{CLAIMED, MrRecord, MrTable, RemoteRange, Slot, VALID, WORD_STEP, is_valid};
use crate::arena::ArenaError;

/// Bits of [`Slot::owner`]: it is a window, …
pub(super) const WINDOW: u32 = 1 << 31;
/// … of type 2; then the lowest 24 bits are the QP it was bound on.
const TYPE_2: u32 = 1 << 30;
const QPN: u32 = (1 << 24) - 1;
/// Bit of [`Slot::windows`]: the region takes no more windows.
pub(super) const CLOSED: u32 = 1 << 31;

/// The type of a window, with verbs' numbers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WindowType {
    /// Bound for all QPs of its protection domain.
    One = 1,
    /// Bound for one QP (type 2B), and invalidated like one.
    Two = 2,
}

impl WindowType {
    /// The type of a verbs number.
    pub const fn from_verbs(number: u32) -> Option<Self> {
        match number {
            1 => Some(WindowType::One),
            2 => Some(WindowType::Two),
            _ => None,
        }
    }
}

/// Who asks for a key: a QP and its protection domain.
#[derive(Copy, Clone, Debug)]
pub struct By {
    /// Protection domain.
    pub pd: u32,
    /// QPN.
    pub qpn: u32,
}

/// What a window is bound to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its key.
    pub key: u32,
    /// Key of the region.
    pub region: u32,
    /// Address of its first byte, as peers name it.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Rights.
    pub access: Access,
    /// The QP it was bound on, if of type 2.
    pub qpn: Option<u32>,
}

/// How a bind goes on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is done.
    Done,
    /// [`MrTable::finish_bind`], with this word, when a grace period that begins now is over.
    Wait(u64),
}

impl MrTable {
    /// Makes a window, not bound, under a number that no region and no window has. Control thread.
    ///
    /// # Errors
    /// There is no room for its record.
    pub fn alloc_window(&self, number: u32, kind: WindowType, pd: u32) -> Result<(), ArenaError> {
        let key = number << 8;
        let owner = match kind {
            WindowType::One => WINDOW,
            WindowType::Two => WINDOW | TYPE_2,
        };
        let record = MrRecord::unbound(pd, owner);
        self.records
            .publish(Self::slot_of_key(key) as u32, unbound(key), record)?;
        if let Some(slot) = self.slots.get(Self::slot_of_key(key)) {
            slot.owner.store(owner, Ordering::Relaxed);
            slot.pd.store(pd, Ordering::Relaxed);
            slot.number.store(number, Ordering::Release);
        }
        Ok(())
    }

    /// Unbinds a window, and lets nobody bind it any more. A bind that another core is about may still be made: after a
    /// grace period [`MrTable::release_window`] ends it. Control thread; preallocated state only.
    pub fn withdraw_window(&self, number: u32) {
        if let Some(slot) = self.slots.get(Self::slot_of_key(number << 8)) {
            let ours = slot
                .number
                .compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed);
            if ours.is_ok() {
                self.unbind(slot);
            }
        }
    }

    /// The grace period of a withdrawn window is over: its slot may be used again. Control thread.
    pub fn release_window(&self, number: u32) {
        let key = number << 8;
        if let Some(slot) = self.slots.get(Self::slot_of_key(key)) {
            self.unbind(slot);
            slot.owner.store(0, Ordering::Relaxed);
            self.records.withdraw(Self::slot_of_key(key) as u32, unbound(key));
        }
    }

    /// Unbinds a window of type 2 that was bound on a QP that is gone. Control thread, when no core has the QP any more.
    pub fn unbind_from(&self, number: u32, qpn: u32) {
        if let Some(slot) = self.slots.get(Self::slot_of_key(number << 8))
            && slot.number.load(Ordering::Acquire) == number
            && slot.owner.load(Ordering::Relaxed) == WINDOW | TYPE_2 | qpn
        {
            self.unbind(slot);
        }
    }

    /// What a window is bound to, if it is. Any thread; for reports.
    pub fn binding(&self, number: u32) -> Option<Binding> {
        let slot = self.slots.get(Self::slot_of_key(number << 8))?;
        let word = slot.word.load(Ordering::Acquire);
        let owner = slot.owner.load(Ordering::Relaxed);
        let binding = Binding {
            key: word as u32,
            region: slot.region.load(Ordering::Relaxed),
            addr: slot.iova.load(Ordering::Relaxed),
            len: slot.len.load(Ordering::Relaxed),
            access: Access::from_bits(slot.access.load(Ordering::Relaxed))?,
            qpn: (owner & TYPE_2 != 0).then_some(owner & QPN),
        };
        let stands = word & VALID != 0 && slot.word.load(Ordering::Acquire) == word;
        (stands && binding.key >> 8 == number).then_some(binding)
    }

    /// Lets a region take no more windows. `false` when some are bound to it: then nothing has changed. Any thread.
    pub fn close(&self, key: u32) -> bool {
        self.slots.get(Self::slot_of_key(key)).is_none_or(Slot::close)
    }

    /// Begins a bind on a QP. Poll cores.
    ///
    /// `begin` is as in [`rnic_transport::Host::bind`].
    ///
    /// # Errors
    /// The key that the window is to have is none of a window of the QP's protection domain, the region is none that the
    /// window may be bound to, or the window cannot be bound now. Nothing has changed, or (type 1, when only the region is
    /// wrong at the end) the window is not bound.
    pub fn begin_bind(&self, bind: &Bind, by: By, begin: bool) -> Result<Begun, KeyError> {
        let window = self.window(bind.key, by.pd)?;
        let word = window.word.load(Ordering::Acquire);
        if word & CLAIMED != 0 {
            return Err(KeyError::WindowState);
        }
        if window.owner.load(Ordering::Relaxed) & TYPE_2 == 0 {
            // One of type 1 is bound to nothing by a bind of no bytes (10.6.7.2.1). Its addresses are never zero-based.
            if bind.len > 0 {
                self.bindable(bind, by.pd)?;
            }
            if bind.access.contains(Access::ZERO_BASED) {
                return Err(KeyError::Access);
            }
            let word = match word & VALID {
                0 => word,
                _ => self.unbind_at(window, word).ok_or(KeyError::WindowState)?,
            };
            return Ok(Begun::Wait(word));
        }
        if bind.len == 0 {
            return Err(KeyError::WindowState);
        }
        if word & VALID != 0 {
            // Bound by this very request, in a process that was killed before it could note so?
            let redone = !begin && self.is_bound_as(window, word, bind, by.qpn);
            return redone.then_some(Begun::Done).ok_or(KeyError::WindowState);
        }
        self.bind_at(window, word, bind, by)?;
        Ok(Begun::Done)
    }

    /// Ends the bind of a window of type 1. Poll cores.
    ///
    /// # Errors
    /// As of [`MrTable::begin_bind`]: the window is not bound, or somebody else has bound it meanwhile.
    pub fn finish_bind(&self, bind: &Bind, by: By, word: u64) -> Result<(), KeyError> {
        let window = self.window(bind.key, by.pd)?;
        if bind.len == 0 {
            return Ok(());
        }
        self.bind_at(window, word, bind, by)
    }

    /// The window that a key is to be of, in a protection domain.
    fn window(&self, key: u32, pd: u32) -> Result<&Slot, KeyError> {
        let slot = self.slots.get(Self::slot_of_key(key)).ok_or(KeyError::Key)?;
        if key >> 8 == 0 || slot.number.load(Ordering::Acquire) != key >> 8 {
            return Err(KeyError::Key);
        }
        match slot.pd.load(Ordering::Relaxed) == pd {
            true => Ok(slot),
            false => Err(KeyError::PdMismatch),
        }
    }

    /// The region of a bind, if a window may be bound to it as the bind wants, and where in it the window begins.
    fn bindable(&self, bind: &Bind, pd: u32) -> Result<(&Slot, u64), KeyError> {
        let mut needed = Access::MW_BIND;
        // C10-74: what a peer may change, the owner may.
        if bind.access.bits() & Access::REMOTE_WRITE.union(Access::REMOTE_ATOMIC).bits() != 0 {
            needed = needed.union(Access::LOCAL_WRITE);
        }
        if bind.access.contains(Access::FLUSH_GLOBAL) {
            needed = needed.union(Access::FLUSH_GLOBAL);
        }
        let region = self.find(bind.region, pd, needed)?;
        if region.owner.load(Ordering::Relaxed) != 0 {
            return Err(KeyError::Key);
        }
        let (offset, _) = region.offset(bind.addr, bind.len)?;
        Ok((region, offset))
    }

    /// Binds a window whose word is still `word`, which says that it is not bound.
    fn bind_at(&self, window: &Slot, word: u64, bind: &Bind, by: By) -> Result<(), KeyError> {
        let (region, offset) = self.bindable(bind, by.pd)?;
        region.hold_for_window()?;
        let claimed = word.wrapping_add(WORD_STEP) | CLAIMED;
        let claim = window
            .word
            .compare_exchange(word, claimed, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_err() {
            region.windows.fetch_sub(1, Ordering::Release);
            return Err(KeyError::WindowState);
        }
        let owner = window.owner.load(Ordering::Relaxed) & !QPN;
        let owner = if owner & TYPE_2 != 0 {
            owner | by.qpn & QPN
        } else {
            owner
        };
        let record = MrRecord {
            iova: if bind.access.contains(Access::ZERO_BASED) {
                0
            } else {
                bind.addr
            },
            len: bind.len,
            pd: by.pd,
            access: bind.access,
            invalidatable: false,
            owner,
            region: bind.region,
            offset,
        };
        window.fill(&record, offset as usize);
        window.owner.store(owner, Ordering::Relaxed);
        let number = Self::slot_of_key(bind.key) as u32;
        let valid = VALID | u64::from(bind.key);
        let recorded = self.records.replace(number, unbound(bind.key), valid, record);
        debug_assert!(recorded, "whoever has claimed a window has its record");
        let bound = word.wrapping_add(WORD_STEP) & !u64::from(u32::MAX) | VALID | u64::from(bind.key);
        window.word.store(bound, Ordering::Release);
        Ok(())
    }

    fn is_bound_as(&self, window: &Slot, word: u64, bind: &Bind, qpn: u32) -> bool {
        let addr = match bind.access.contains(Access::ZERO_BASED) {
            true => 0,
            false => bind.addr,
        };
        is_valid(word, bind.key)
            && window.owner.load(Ordering::Relaxed) & QPN == qpn
            && window.region.load(Ordering::Relaxed) == bind.region
            && window.iova.load(Ordering::Relaxed) == addr
            && window.len.load(Ordering::Relaxed) == bind.len
            && window.access.load(Ordering::Relaxed) == u32::from(bind.access.bits())
    }

    /// Unbinds a window, if it is bound.
    fn unbind(&self, window: &Slot) -> bool {
        let word = window.word.load(Ordering::Acquire);
        word & VALID != 0 && self.unbind_at(window, word).is_some()
    }

    /// The same, if its word is `word`: the word it has then.
    fn unbind_at(&self, window: &Slot, word: u64) -> Option<u64> {
        // Nobody binds it before its record says that it is not bound: until then it is claimed.
        let next = word.wrapping_add(WORD_STEP) & !(u64::from(u32::MAX) | VALID);
        let claimed = next | CLAIMED;
        window
            .word
            .compare_exchange(word, claimed, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        let region = window.region.load(Ordering::Relaxed);
        let key = word as u32;
        let valid = VALID | u64::from(key);
        self.records
            .turn(Self::slot_of_key(key) as u32, valid, unbound(key));
        if let Some(region) = self.slots.get(Self::slot_of_key(region)) {
            region.windows.fetch_sub(1, Ordering::Release);
        }
        window.word.store(next, Ordering::Release);
        Some(next)
    }

    /// Invalidates a window on behalf of a QP: only one of type 2, and only on the QP that it was bound on.
    pub(super) fn invalidate_window(&self, window: &Slot, word: u64, by: By) -> Result<(), KeyError> {
        let owner = window.owner.load(Ordering::Relaxed);
        if owner & TYPE_2 == 0 {
            return Err(KeyError::Access);
        }
        if owner & QPN != by.qpn {
            return Err(KeyError::WindowQp);
        }
        self.unbind_at(window, word).map(drop).ok_or(KeyError::Key)
    }

    /// The bytes of a window, whose key, domain and right were checked.
    #[cold]
    pub(super) fn resolve_window(
        &self,
        window: &Slot,
        owner: u32,
        by: By,
        addr: u64,
        len: u64,
    ) -> Result<RemoteRange, KeyError> {
        let region = self.region_of(window, owner, by)?;
        let (offset, len) = window.offset(addr, len)?;
        let start = window.base.load(Ordering::Relaxed) as u64;
        let start = start.checked_add(offset).ok_or(KeyError::Range)?;
        let end = start.checked_add(len).ok_or(KeyError::Range)?;
        if end > region.len.load(Ordering::Relaxed) {
            return Err(KeyError::Range);
        }
        let base = region.base.load(Ordering::Relaxed) as *mut u8;
        // `wrapping_add`: the range check above keeps it inside the mapping.
        let ptr = NonNull::new(base.wrapping_add(start as usize)).ok_or(KeyError::Key)?;
        Ok(RemoteRange {
            ptr,
            len: len as usize,
        })
    }

    /// The region of a window that a QP may use, if the region is valid.
    pub(super) fn region_of(&self, window: &Slot, owner: u32, by: By) -> Result<&Slot, KeyError> {
        if owner & TYPE_2 != 0 && owner & QPN != by.qpn {
            return Err(KeyError::WindowQp);
        }
        let key = window.region.load(Ordering::Relaxed);
        let region = self.slots.get(Self::slot_of_key(key)).ok_or(KeyError::Key)?;
        match is_valid(region.word.load(Ordering::Acquire), key) {
            true => Ok(region),
            false => Err(KeyError::Key),
        }
    }

    /// Makes the window of a record again, and binds it if it was and its region is valid again. Control thread.
    pub(crate) fn resume_window(&self, key: u32, record: &MrRecord) {
        let Some(slot) = self.slots.get(Self::slot_of_key(key)) else {
            return;
        };
        slot.fill(record, record.offset as usize);
        slot.owner.store(record.owner, Ordering::Relaxed);
        slot.number.store(key >> 8, Ordering::Release);
        if !record.is_bound() {
            return;
        }
        let region = self.slots.get(Self::slot_of_key(record.region));
        let inside = |region: &&Slot| {
            let end = record.offset.checked_add(record.len);
            is_valid(region.word.load(Ordering::Acquire), record.region)
                && end.is_some_and(|end| end <= region.len.load(Ordering::Relaxed))
        };
        match region.filter(inside) {
            Some(region) => {
                region.windows.fetch_add(1, Ordering::Relaxed);
                slot.word.store(VALID | u64::from(key), Ordering::Release);
            }
            None => {
                let at = Self::slot_of_key(key) as u32;
                self.records.turn(at, VALID | u64::from(key), unbound(key));
            }
        }
    }
}

/// The word of the record of a window that is not bound.
pub(super) const fn unbound(key: u32) -> u64 {
    CLAIMED | (key & !0xFF) as u64
}

impl MrRecord {
    /// The record of a window that is not bound, of `owner`'s type.
    pub(super) const fn unbound(pd: u32, owner: u32) -> Self {
        MrRecord {
            iova: 0,
            len: 0,
            pd,
            access: Access::NONE,
            invalidatable: false,
            owner: owner & !QPN,
            region: 0,
            offset: 0,
        }
    }
}

impl Slot {
    fn close(&self) -> bool {
        let closed = self
            .windows
            .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        // Closed before is as good.
        closed.is_ok_and(|_| true) || closed == Err(CLOSED)
    }

    /// One more window is bound to the region.
    fn hold_for_window(&self) -> Result<(), KeyError> {
        let more = |count: u32| (count & CLOSED == 0 && count + 1 < CLOSED).then_some(count + 1);
        self.windows
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .map(drop)
            .map_err(|_| KeyError::Key)
    }

    /// Where a range begins behind the first byte, and its length, if it lies inside.
    #[inline]
    pub(super) fn offset(&self, addr: u64, len: u64) -> Result<(u64, u64), KeyError> {
        let offset = addr
            .checked_sub(self.iova.load(Ordering::Relaxed))
            .ok_or(KeyError::Range)?;
        let end = offset.checked_add(len).ok_or(KeyError::Range)?;
        match end > self.len.load(Ordering::Relaxed) {
            true => Err(KeyError::Range),
            false => Ok((offset, len)),
        }
    }
}

/// Whether a region has windows.
pub(super) fn has_windows(windows: &AtomicU32) -> bool {
    windows.load(Ordering::Acquire) & !CLOSED != 0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        mem::{ClientMem, MrDescriptor},
        view::number,
    };

    const PD: u32 = 1;
    const QP: By = By { pd: PD, qpn: 7 };
    const REGION: u32 = MrTable::key(1, 1, 5);
    const WINDOW: u32 = number(2, 1);
    const KEY: u32 = WINDOW << 8 | 9;

    /// A table with a region of 8192 bytes from 0x1000 on, and a window.
    fn table(kind: WindowType, access: Access) -> (MrTable, ClientMem) {
        let (mem, _fd) = ClientMem::create("mw", 8192, Arc::default()).unwrap();
        let table = MrTable::create(1, 8).unwrap();
        let descriptor = MrDescriptor {
            mem: &mem,
            pd: PD,
            access,
            iova: 0x1000,
            len: 8192,
            invalidatable: true,
        };
        assert!(table.validate(REGION, &descriptor));
        table.alloc_window(WINDOW, kind, PD).unwrap();
        (table, mem)
    }

    fn bindable(kind: WindowType) -> (MrTable, ClientMem) {
        table(kind, Access::MW_BIND.union(Access::LOCAL_WRITE))
    }

    fn bind(addr: u64, len: u64) -> Bind {
        Bind {
            key: KEY,
            region: REGION,
            addr,
            len,
            access: Access::REMOTE_READ,
        }
    }

    /// Binds, as if the grace period were over at once.
    fn make(table: &MrTable, bind: &Bind, by: By) -> Result<(), KeyError> {
        match table.begin_bind(bind, by, true)? {
            Begun::Done => Ok(()),
            Begun::Wait(word) => table.finish_bind(bind, by, word),
        }
    }

    fn read(table: &MrTable, by: By, addr: u64, len: u64) -> Result<usize, KeyError> {
        let range = table.resolve_remote(KEY, by, addr, len, Access::REMOTE_READ);
        range.map(|range| range.len)
    }

    #[test]
    fn windows_are_used_by_their_qp_or_pd_alone_and_one_of_type_1_is_not_invalidated() {
        for kind in [WindowType::One, WindowType::Two] {
            let (table, mem) = bindable(kind);
            make(&table, &bind(0x1800, 256), QP).unwrap();
            let range = table.resolve_remote(KEY, QP, 0x1810, 8, Access::REMOTE_READ);
            assert_eq!(Some(range.unwrap().ptr), mem.range(0x810, 8));
            assert_eq!(read(&table, QP, 0x1800 + 256, 1), Err(KeyError::Range));
            assert_eq!(read(&table, QP, 0x17FF, 1), Err(KeyError::Range));
            assert_eq!(
                read(&table, By { pd: 2, ..QP }, 0x1800, 1),
                Err(KeyError::PdMismatch)
            );
            let write = table.resolve_remote(KEY, QP, 0x1800, 1, Access::REMOTE_WRITE);
            assert_eq!(write.err(), Some(KeyError::Access));
            let local = table.resolve(KEY, PD, 0x1800, 1, Access::NONE);
            assert_eq!(local.err(), Some(KeyError::Key), "it is no local key");
            let other = By { qpn: 8, ..QP };
            let (used, invalidated, own) = match kind {
                WindowType::One => (Ok(1), KeyError::Access, Err(KeyError::Access)),
                WindowType::Two => (Err(KeyError::WindowQp), KeyError::WindowQp, Ok(false)),
            };
            assert_eq!(read(&table, other, 0x1800, 1), used);
            assert_eq!(table.invalidate_for(KEY, other), Err(invalidated));
            assert_eq!(table.invalidate_for(KEY, QP), own);
        }
    }

    #[test]
    fn a_bind_checks_region_rights_and_range() {
        let (table, _mem) = bindable(WindowType::Two);
        let refused = |bind: &Bind, by| make(&table, bind, by).unwrap_err();
        assert_eq!(refused(&bind(0xFFF, 8), QP), KeyError::Range);
        assert_eq!(refused(&bind(0x3000 - 4, 8), QP), KeyError::Range);
        assert_eq!(refused(&bind(u64::MAX, 8), QP), KeyError::Range);
        assert_eq!(refused(&bind(0x1000, 0), QP), KeyError::WindowState);
        assert_eq!(
            refused(&bind(0x1000, 8), By { pd: 2, ..QP }),
            KeyError::PdMismatch
        );
        let unknown = Bind {
            region: REGION ^ 1,
            ..bind(0x1000, 8)
        };
        assert_eq!(refused(&unknown, QP), KeyError::Key);
        let none = Bind {
            key: 0x7700,
            ..bind(0x1000, 8)
        };
        assert_eq!(refused(&none, QP), KeyError::Key);
        let flush = Bind {
            access: Access::FLUSH_GLOBAL,
            ..bind(0x1000, 8)
        };
        assert_eq!(
            refused(&flush, QP),
            KeyError::Access,
            "the region does not grant it"
        );
        for access in [Access::LOCAL_WRITE, Access::MW_BIND] {
            let (table, _mem) = self::table(WindowType::Two, access);
            for wanted in [Access::REMOTE_WRITE, Access::REMOTE_ATOMIC] {
                let bind = Bind {
                    access: wanted,
                    ..bind(0x1000, 8)
                };
                assert_eq!(make(&table, &bind, QP), Err(KeyError::Access));
            }
        }
        let based = Bind {
            access: Access::REMOTE_READ.union(Access::ZERO_BASED),
            ..bind(0x1800, 8)
        };
        make(&table, &based, QP).unwrap();
        assert_eq!(
            (read(&table, QP, 0, 8), read(&table, QP, 1, 8)),
            (Ok(8), Err(KeyError::Range))
        );
        let (table, _mem) = bindable(WindowType::One);
        assert_eq!(make(&table, &based, QP), Err(KeyError::Access), "type 1");
    }

    #[test]
    fn a_window_without_its_region_reaches_no_memory() {
        for kind in [WindowType::One, WindowType::Two] {
            let (table, _mem) = bindable(kind);
            make(&table, &bind(0x1000, 64), QP).unwrap();
            assert!(!table.close(REGION));
            assert_eq!(table.invalidate_for(REGION, QP), Err(KeyError::WindowsBound));
            // A client's death asks nobody.
            assert!(table.invalidate(REGION));
            assert_eq!(read(&table, QP, 0x1000, 1), Err(KeyError::Key));
            table.withdraw_window(WINDOW);
            assert!(table.close(REGION));
        }
    }

    #[test]
    fn a_closed_region_takes_no_window_and_one_without_windows_can_be_closed() {
        let (table, _mem) = bindable(WindowType::Two);
        make(&table, &bind(0x1000, 64), QP).unwrap();
        assert_eq!(table.invalidate_for(KEY, QP), Ok(false));
        assert!(table.close(REGION) && table.close(REGION));
        assert_eq!(make(&table, &bind(0x1000, 64), QP), Err(KeyError::Key));
        assert!(table.is_valid(REGION), "it can still be used itself");
    }

    #[test]
    fn of_two_binds_of_one_window_at_once_the_later_one_is_refused() {
        let (table, _mem) = bindable(WindowType::One);
        let first = table.begin_bind(&bind(0x1000, 64), QP, true).unwrap();
        let second = table.begin_bind(&bind(0x2000, 64), QP, true).unwrap();
        let (Begun::Wait(first), Begun::Wait(second)) = (first, second) else {
            panic!("type 1 waits");
        };
        table.finish_bind(&bind(0x2000, 64), QP, second).unwrap();
        let late = table.finish_bind(&bind(0x1000, 64), QP, first);
        assert_eq!(late, Err(KeyError::WindowState));
        // Unbound since, it is in another state than the first one found all the same.
        table.begin_bind(&bind(0x1000, 0), QP, true).unwrap();
        let late = table.finish_bind(&bind(0x1000, 64), QP, first);
        assert_eq!(late, Err(KeyError::WindowState));
        assert!(table.close(REGION), "what was refused holds nothing");
    }

    #[test]
    fn a_bind_that_an_earlier_process_has_made_is_done_and_no_other_is() {
        let (table, mem) = bindable(WindowType::Two);
        make(&table, &bind(0x1800, 64), QP).unwrap();
        let fd = table.fd().try_clone_to_owned().unwrap();
        let next = MrTable::open(1, fd, 8).unwrap();
        for (key, record) in next.entries().unwrap() {
            match record.is_window() {
                true => next.resume_window(key, &record),
                false => assert!(next.resume(key, &record, &mem)),
            }
        }
        assert_eq!(next.binding(WINDOW), table.binding(WINDOW));
        assert!(!next.close(REGION));
        assert_eq!(next.begin_bind(&bind(0x1800, 64), QP, false), Ok(Begun::Done));
        for (bind, begin) in [(bind(0x1800, 64), true), (bind(0x1800, 65), false)] {
            assert_eq!(next.begin_bind(&bind, QP, begin), Err(KeyError::WindowState));
        }
        assert_eq!(next.invalidate_for(KEY, QP), Ok(false));
        let unbound = next.entries().unwrap();
        assert!(
            unbound
                .iter()
                .any(|(_, record)| record.is_window() && !record.is_bound())
        );
    }
}
