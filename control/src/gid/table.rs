//! The GID table of a device. An index once given to an address stays that address's: it is given to another only
//! when the address is gone *and* no QP or AH uses it any more.
//!
//! An address that is deleted while it is held becomes a zombie: no query finds it and nothing new may use it, but
//! its holders go on, and its index is not given away. It comes back to life if the address comes back, at the same
//! index; otherwise the index is free when the last holder is dropped. (The kernel's RoCE GID cache does the same,
//! except that there a returning address takes a new index.)
//!
//! Holds are counted by an `Arc` of nothing, so that dropping whatever owns a [`GidHold`] is the put: nothing that
//! dies on the way, a request, a QP, a client, can forget it. The count says only when an index may be given away.
//! Whether an address may be used is the state of its slot.

use std::{net::IpAddr, sync::Arc};

use crate::device::GidEntry;

/// Longest table: an address vector names an index by eight bits.
pub const TABLE_MAX: usize = 256;

/// Keeps an index its address's own. Held by everything whose path begins at that address.
#[derive(Debug)]
pub struct GidHold {
    _holder: Arc<()>,
}

/// An index in use.
#[derive(Debug)]
pub struct Slot {
    entry: GidEntry,
    live: bool,
    holders: Arc<()>,
}

impl Slot {
    /// The address.
    pub fn entry(&self) -> &GidEntry {
        &self.entry
    }

    /// Whether the device has the address; else only holders keep it.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// QPs, AHs and requests under way that use it.
    pub fn holders(&self) -> usize {
        // Only the control thread makes holds, so what it counts it can act on.
        Arc::strong_count(&self.holders) - 1
    }

    fn is_in_use(&self) -> bool {
        self.live || self.holders() > 0
    }
}

/// What [`GidTable::sync`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Addresses that can be used from now on, with their indices.
    pub added: Vec<(u8, GidEntry)>,
    /// Addresses that nothing new can use from now on, with their indices.
    pub removed: Vec<(u8, GidEntry)>,
    /// Addresses that keep their index but not their prefix, or not who answers for them.
    pub updated: Vec<(u8, GidEntry)>,
    /// Addresses the table has no room for.
    pub no_room: Vec<GidEntry>,
}

impl Changes {
    /// Whether clients see another table than before.
    pub fn is_visible(&self) -> bool {
        !self.added.is_empty() || !self.removed.is_empty()
    }

    /// Whether nothing at all is different.
    pub fn is_empty(&self) -> bool {
        !self.is_visible() && self.updated.is_empty()
    }
}

/// The table. Its length never changes: clients read it once.
#[derive(Debug)]
pub struct GidTable {
    slots: Vec<Option<Slot>>,
}

impl GidTable {
    /// An empty table of `len` indices, [`TABLE_MAX`] at most.
    pub fn new(len: usize) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(len.min(TABLE_MAX), || None);
        GidTable { slots }
    }

    #[cfg(test)]
    /// A table just long enough for these addresses, at their places.
    pub fn of(entries: impl IntoIterator<Item = GidEntry>) -> Self {
        let entries: Vec<_> = entries.into_iter().collect();
        let mut table = Self::new(entries.len());
        table.sync(&entries);
        table
    }

    /// Indices there are, used or not.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The address at an index; `None` when there is none, or it is gone and only still held.
    pub fn get(&self, index: usize) -> Option<&GidEntry> {
        self.slot(index).filter(|slot| slot.live).map(|slot| &slot.entry)
    }

    /// What is at an index, addresses that are only held included.
    pub fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)?.as_ref().filter(|slot| slot.is_in_use())
    }

    /// Every address that may be used.
    pub fn iter(&self) -> impl Iterator<Item = &GidEntry> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Whether this is an address of the device.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.iter().any(|entry| entry.ip == ip)
    }

    /// Keeps an index for the address at it. `None` as for [`GidTable::get`]: what is gone gets no new holders.
    pub fn hold(&self, index: usize) -> Option<GidHold> {
        let slot = self.slot(index).filter(|slot| slot.live)?;
        Some(GidHold {
            _holder: slot.holders.clone(),
        })
    }

    /// Makes these the addresses of the device: those not among them go, new ones take the first free index, in
    /// their order. An address listed twice counts once.
    pub fn sync(&mut self, wanted: &[GidEntry]) -> Changes {
        let mut changes = Changes::default();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot.as_mut().filter(|slot| slot.live) else {
                continue;
            };
            if !wanted.iter().any(|entry| entry.is_same_gid(&slot.entry)) {
                slot.live = false;
                changes.removed.push((index as u8, slot.entry));
            }
        }
        for (nth, entry) in wanted.iter().enumerate() {
            if !wanted[..nth].iter().any(|earlier| earlier.is_same_gid(entry)) {
                self.put_in(entry, &mut changes);
            }
        }
        changes
    }

    fn put_in(&mut self, entry: &GidEntry, changes: &mut Changes) {
        let known = |slot: &Option<Slot>| {
            slot.as_ref()
                .is_some_and(|slot| slot.is_in_use() && slot.entry.is_same_gid(entry))
        };
        let free = |slot: &Option<Slot>| !slot.as_ref().is_some_and(Slot::is_in_use);
        let place = self.slots.iter().position(known);
        let Some(index) = place.or_else(|| self.slots.iter().position(free)) else {
            changes.no_room.push(*entry);
            return;
        };
        match &mut self.slots[index] {
            Some(slot) if place.is_some() => {
                if !slot.live {
                    changes.added.push((index as u8, *entry));
                } else if slot.entry != *entry {
                    changes.updated.push((index as u8, *entry));
                }
                slot.live = true;
                slot.entry = *entry;
            }
            slot => {
                changes.added.push((index as u8, *entry));
                *slot = Some(Slot {
                    entry: *entry,
                    live: true,
                    holders: Arc::new(()),
                });
            }
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
