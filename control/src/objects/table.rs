//! The table of all objects: one lookup maps a kind of id and an id to an object.
//!
//! An object has several ids (a QP: its handle, its number, its doorbell), and each is one entry of the same
//! map. The verbs are `add`, `get`, `put` and `destroy`:
//!
//! - `add` makes an object findable by all its ids;
//! - `get` finds it and holds it against destruction, on behalf of an object that depends on it;
//! - `put` lets go;
//! - `destroy` refuses while it is held, else makes it unfindable by every id at once. The object stays in the
//!   table, dying, until [`Table::remove`] takes it out a grace period later.
//!
//! Whether an object may be used is its state, which `destroy` changes synchronously; the holds only say who
//! depends on it.

use std::collections::HashMap;

/// A kind of id.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// Handle of an object of the client with this index.
    Handle(u32),
    /// Doorbell bit of the client with this index.
    Doorbell(u32),
    /// QP number.
    Qpn,
    /// Number of a CQ.
    Cq,
    /// Key of a memory region.
    Key,
    /// Number of a PD.
    Pd,
}

/// An id of some kind.
pub type Id = (IdKind, u32);

/// An object in the table. Stays valid until the object is removed, and is never valid again after.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    slot: u32,
    generation: u32,
}

/// Objects that depend on one forbid its destruction.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// How many.
    pub dependants: u32,
}

#[derive(Debug)]
struct Entry<T> {
    object: T,
    ids: Vec<Id>,
    holds: u32,
    dying: bool,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<Entry<T>>,
}

/// The table.
#[derive(Debug)]
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    ids: HashMap<Id, Key>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table {
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::new(),
        }
    }
}

impl<T> Table<T> {
    /// Puts an object in, findable by `ids`. The ids must be new: they are made from numbers in use once.
    pub fn add(&mut self, object: T, ids: Vec<Id>) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                entry: None,
            });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.generation += 1;
        let key = Key {
            slot,
            generation: place.generation,
        };
        for id in &ids {
            let before = self.ids.insert(*id, key);
            debug_assert!(before.is_none(), "{id:?} names two objects");
        }
        place.entry = Some(Entry {
            object,
            ids,
            holds: 0,
            dying: false,
        });
        key
    }

    /// Finds a live object.
    pub fn find(&self, kind: IdKind, id: u32) -> Option<Key> {
        self.ids.get(&(kind, id)).copied()
    }

    /// Finds a live object and holds it.
    pub fn get(&mut self, kind: IdKind, id: u32) -> Option<Key> {
        let key = self.find(kind, id)?;
        self.entry_mut(key)?.holds += 1;
        Some(key)
    }

    /// Lets go of an object that [`Table::get`] has found.
    pub fn put(&mut self, key: Key) {
        let entry = self.entry_mut(key);
        debug_assert!(entry.as_ref().is_some_and(|e| e.holds > 0), "put without get");
        if let Some(entry) = entry {
            entry.holds = entry.holds.saturating_sub(1);
        }
    }

    /// Makes an object unfindable by each of its ids, unless something depends on it. Destroying it again is a
    /// no-op.
    pub fn destroy(&mut self, key: Key) -> Result<(), Busy> {
        let Some(entry) = self.entry_mut(key) else {
            return Ok(());
        };
        if entry.holds > 0 {
            return Err(Busy {
                dependants: entry.holds,
            });
        }
        entry.dying = true;
        for id in std::mem::take(&mut entry.ids) {
            self.ids.remove(&id);
        }
        Ok(())
    }

    /// Takes a destroyed object out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        debug_assert!(self.entry(key).is_none_or(|e| e.dying), "removed without destroy");
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let entry = place.entry.take()?;
        for id in entry.ids {
            self.ids.remove(&id);
        }
        self.free.push(key.slot);
        Some(entry.object)
    }

    /// An object, live or dying.
    pub fn peek(&self, key: Key) -> Option<&T> {
        Some(&self.entry(key)?.object)
    }

    /// The same, to change.
    pub fn peek_mut(&mut self, key: Key) -> Option<&mut T> {
        Some(&mut self.entry_mut(key)?.object)
    }

    /// Every object, live or dying.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, place)| {
            let key = Key {
                slot: slot as u32,
                generation: place.generation,
            };
            place.entry.as_ref().map(|entry| (key, &entry.object))
        })
    }

    fn entry(&self, key: Key) -> Option<&Entry<T>> {
        self.slots
            .get(key.slot as usize)
            .filter(|p| p.generation == key.generation)?
            .entry
            .as_ref()
    }

    fn entry_mut(&mut self, key: Key) -> Option<&mut Entry<T>> {
        self.slots
            .get_mut(key.slot as usize)
            .filter(|p| p.generation == key.generation)?
            .entry
            .as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QPN: Id = (IdKind::Qpn, 0x102);
    const HANDLE: Id = (IdKind::Handle(1), 7);

    #[test]
    fn every_id_of_an_object_finds_it_and_destroy_withdraws_all_of_them_at_once() {
        let mut table = Table::default();
        let key = table.add("qp", vec![QPN, HANDLE]);
        assert_eq!(table.find(QPN.0, QPN.1), Some(key));
        assert_eq!(table.find(HANDLE.0, HANDLE.1), Some(key));
        assert_eq!(table.find(IdKind::Handle(2), 7), None, "another client's handle");
        table.destroy(key).unwrap();
        assert_eq!(table.get(QPN.0, QPN.1), None);
        assert_eq!(table.get(HANDLE.0, HANDLE.1), None);
        assert_eq!(
            table.peek(key),
            Some(&"qp"),
            "its memory stays until it is removed"
        );
        assert_eq!(table.remove(key), Some("qp"));
        assert_eq!(table.peek(key), None);
    }

    #[test]
    fn an_object_others_depend_on_is_busy_and_stays_usable() {
        let mut table = Table::default();
        let pd = table.add("pd", vec![HANDLE]);
        assert_eq!(table.get(HANDLE.0, HANDLE.1), Some(pd));
        assert_eq!(table.get(HANDLE.0, HANDLE.1), Some(pd));
        assert_eq!(table.destroy(pd), Err(Busy { dependants: 2 }));
        assert_eq!(table.find(HANDLE.0, HANDLE.1), Some(pd));
        table.put(pd);
        table.put(pd);
        assert_eq!(table.destroy(pd), Ok(()));
    }

    #[test]
    fn the_key_of_a_removed_object_never_finds_its_successor() {
        let mut table = Table::default();
        let old = table.add(1, vec![]);
        table.destroy(old).unwrap();
        table.remove(old);
        let new = table.add(2, vec![]);
        assert_eq!(table.peek(old), None);
        assert_eq!(table.remove(old), None);
        assert_eq!(table.peek(new), Some(&2));
        assert_eq!(table.iter().count(), 1);
    }
}
