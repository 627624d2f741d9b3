//! The table of all objects: one lookup maps a kind of id and an id to an object.
//!
//! An object has several ids (a QP: its number, its handle, the doorbells of its two queues), and each is one entry of a
//! tree of its kind: the trees of the poll cores' views, with none of their nodes. The verbs are `add`, `get`, `put` and
//! `destroy`:
//!
//! - `add` makes an object findable by all its ids;
//! - `get` finds it and holds it against destruction, on behalf of an object that depends on it;
//! - `put` lets go;
//! - `destroy` refuses while it is held, else makes it unfindable by every id at once. The object stays in the
//!   table, dying, until [`Table::remove`] takes it out a grace period later.
//!
//! Whether an object may be used is its state, which `destroy` changes synchronously; the holds only say who
//! depends on it.

use std::num::NonZeroU16;

use crate::store::KeyRecord;
use arrayvec::ArrayVec;
use rnic_abi::Handle;
use rnic_engine::view::{self, Entry as _, Radix, Tables, generation_of};

/// A kind of id.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// Handle of an object of the client with this index.
    Handle(u32),
    /// Doorbell of the send queue of a QP of this client: the handle, whose slot is the bit.
    SendDoorbell(u32),
    /// Doorbell of the receive queue of a QP of this client: the handle, whose slot is the bit.
    RecvDoorbell(u32),
    /// Number of the daemon: QPN, key without its lowest byte, number of a CQ and so on.
    Number(view::Kind),
}

/// An id of some kind.
pub type Id = (IdKind, u32);

/// Ids an object has at most.
const MAX_IDS: usize = 5;

/// An object in the table. Stays valid until the object is removed, and is never valid again after.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    /// Its place in the table: the order in which objects are listed.
    pub fn slot(self) -> u32 {
        self.slot
    }

    /// The same in a record.
    pub fn record(self) -> KeyRecord {
        let Key { slot, generation } = self;
        KeyRecord { slot, generation }
    }

    /// The key of a record.
    pub fn of(record: KeyRecord) -> Self {
        let KeyRecord { slot, generation } = record;
        Key { slot, generation }
    }
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
    ids: ArrayVec<Id, MAX_IDS>,
    holds: u32,
    dying: bool,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<Entry<T>>,
}

/// What an id's tree holds.
#[derive(Copy, Clone, Debug)]
struct Name {
    key: Key,
    /// Of the id.
    generation: NonZeroU16,
}

impl view::Entry for Name {
    fn generation(&self) -> NonZeroU16 {
        self.generation
    }
}

/// Ids of one kind of a client, by the slot of the handle.
type Handles = Radix<Name, { 1 << (Handle::SLOT_BITS - 12) }>;

const _: () = assert!(Handles::KEY_BITS == Handle::SLOT_BITS);

/// The ids of one client: handles, send doorbells, receive doorbells.
#[derive(Debug, Default)]
struct ClientIds([Handles; 3]);

/// The trees of all kinds.
#[derive(Debug, Default)]
struct Ids {
    numbers: Tables<Name>,
    /// By index of the client.
    clients: Vec<Option<Box<ClientIds>>>,
}

/// The trees of one client among [`Ids::clients`], and which of them an id is in.
const fn place(kind: IdKind) -> Result<view::Kind, (usize, usize)> {
    match kind {
        IdKind::Number(kind) => Ok(kind),
        IdKind::Handle(client) => Err((client as usize, 0)),
        IdKind::SendDoorbell(client) => Err((client as usize, 1)),
        IdKind::RecvDoorbell(client) => Err((client as usize, 2)),
    }
}

/// Generation of an id; none has zero.
fn generation((kind, id): Id) -> Option<NonZeroU16> {
    match kind {
        IdKind::Number(_) => generation_of(id),
        _ => NonZeroU16::new(Handle(id).generation() as u16),
    }
}

impl Ids {
    fn find(&self, id: Id) -> Option<Key> {
        let name = match place(id.0) {
            Ok(kind) => self.numbers.get(kind, id.1)?,
            Err((client, tree)) => {
                let ids = self.clients.get(client)?.as_ref()?;
                ids.0[tree].get(Handle(id.1).slot())?
            }
        };
        (Some(name.generation()) == generation(id)).then_some(name.key)
    }

    fn add(&mut self, id: Id, key: Key) {
        debug_assert!(self.find(id).is_none(), "{id:?} names two objects");
        let Some(generation) = generation(id) else {
            debug_assert!(false, "{id:?} has no generation");
            return;
        };
        let name = Name { key, generation };
        match place(id.0) {
            Ok(kind) => drop(self.numbers.add(kind, id.1, name)),
            Err((client, tree)) => {
                if self.clients.len() <= client {
                    self.clients.resize_with(client + 1, || None);
                }
                let ids = self.clients[client].get_or_insert_default();
                ids.0[tree].insert(Handle(id.1).slot(), name);
            }
        }
    }

    fn remove(&mut self, id: Id) {
        match place(id.0) {
            Ok(kind) => drop(self.numbers.remove(kind, id.1)),
            Err((client, tree)) => {
                let Some(place) = self.clients.get_mut(client) else {
                    return;
                };
                let Some(ids) = place else { return };
                ids.0[tree].remove(Handle(id.1).slot());
                if ids.0.iter().all(Radix::is_empty) {
                    *place = None;
                }
            }
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    ids: Ids,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table {
            slots: Vec::new(),
            free: Vec::new(),
            ids: Ids::default(),
        }
    }
}

impl<T> Table<T> {
    /// Puts an object in, findable by `ids`. The ids must be new: they are made from numbers in use once.
    ///
    /// # Panics
    /// When there are more than five ids: a kind of object with more needs more room here.
    pub fn add(&mut self, object: T, ids: impl IntoIterator<Item = Id>) -> Key {
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
        let ids: ArrayVec<Id, MAX_IDS> = ids.into_iter().collect();
        for id in &ids {
            self.ids.add(*id, key);
        }
        place.entry = Some(Entry {
            object,
            ids,
            holds: 0,
            dying: false,
        });
        key
    }

    /// Puts an object back where it stood in another process. Call [`Table::hold`] for what it depends on, when all
    /// are back, and [`Table::restored`] at last. `false` when its place or one of its ids is another's.
    pub fn restore(&mut self, key: Key, object: T, ids: impl IntoIterator<Item = Id>) -> bool {
        let index = key.slot as usize;
        let ids: ArrayVec<Id, MAX_IDS> = ids.into_iter().take(MAX_IDS).collect();
        let taken = self.slots.get(index).is_some_and(|place| place.entry.is_some());
        if taken
            || ids
                .iter()
                .any(|id| generation(*id).is_none() || self.ids.find(*id).is_some())
        {
            return false;
        }
        while self.slots.len() <= index {
            self.slots.push(Slot {
                generation: 0,
                entry: None,
            });
        }
        for id in &ids {
            self.ids.add(*id, key);
        }
        self.slots[index] = Slot {
            generation: key.generation,
            entry: Some(Entry {
                object,
                ids,
                holds: 0,
                dying: false,
            }),
        };
        true
    }

    /// Holds an object on behalf of one that was put back; `false` when there is no such object.
    pub fn hold(&mut self, key: Key) -> bool {
        let entry = self.entry_mut(key);
        entry.map(|entry| entry.holds += 1).is_some()
    }

    /// All that is to be put back is back: other places are free.
    pub fn restored(&mut self) {
        let empty = |place: &(usize, &Slot<T>)| place.1.entry.is_none();
        let free = self.slots.iter().enumerate().rev().filter(empty);
        self.free = free.map(|(slot, _)| slot as u32).collect();
    }

    /// Finds a live object. An id of an earlier generation finds nothing.
    pub fn find(&self, kind: IdKind, id: u32) -> Option<Key> {
        self.ids.find((kind, id))
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
            self.ids.remove(id);
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
            self.ids.remove(id);
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

    /// How many objects depend on one.
    pub fn users(&self, key: Key) -> u32 {
        self.entry(key).map_or(0, |entry| entry.holds)
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

    const QPN: Id = (IdKind::Number(view::Kind::Qp), view::number(0x102, 1));
    const HANDLE: Id = (IdKind::Handle(1), Handle::new(7, 1).0);
    const SEND: Id = (IdKind::SendDoorbell(1), HANDLE.1);
    const RECV: Id = (IdKind::RecvDoorbell(1), HANDLE.1);

    #[test]
    fn every_id_of_an_object_finds_it_and_destroy_withdraws_all_of_them_at_once() {
        let mut table = Table::default();
        let all = [QPN, HANDLE, SEND, RECV];
        let key = table.add("qp", all);
        for (kind, id) in all {
            assert_eq!(table.find(kind, id), Some(key), "{kind:?}");
        }
        assert_eq!(
            table.find(IdKind::Handle(2), HANDLE.1),
            None,
            "another client's handle"
        );
        let cq = IdKind::Number(view::Kind::Cq);
        assert_eq!(table.find(cq, QPN.1), None, "a CQ of the same number");
        table.destroy(key).unwrap();
        for (kind, id) in all {
            assert_eq!(table.get(kind, id), None, "{kind:?}");
        }
        assert_eq!(
            table.peek(key),
            Some(&"qp"),
            "its memory stays until it is removed"
        );
        assert_eq!(table.remove(key), Some("qp"));
        assert_eq!(table.peek(key), None);
    }

    #[test]
    fn an_id_of_an_earlier_generation_finds_nothing() {
        let mut table = Table::default();
        let later = [
            (QPN.0, view::number(0x102, 2)),
            (HANDLE.0, Handle::new(7, 2).0),
            (SEND.0, Handle::new(7, 2).0),
        ];
        let key = table.add((), later);
        for (kind, id) in [QPN, HANDLE, SEND] {
            assert_eq!(table.get(kind, id), None, "{kind:?}");
        }
        for (kind, id) in later {
            assert_eq!(table.find(kind, id), Some(key));
        }
        // Slot without generation: what a client makes up.
        assert_eq!(table.find(HANDLE.0, 7), None);
        assert_eq!(table.find(QPN.0, 0x102), None);
    }

    #[test]
    fn an_object_others_depend_on_is_busy_and_stays_usable() {
        let mut table = Table::default();
        let pd = table.add("pd", [HANDLE]);
        assert_eq!(table.get(HANDLE.0, HANDLE.1), Some(pd));
        assert_eq!(table.get(HANDLE.0, HANDLE.1), Some(pd));
        assert_eq!(table.destroy(pd), Err(Busy { dependants: 2 }));
        assert_eq!(table.find(HANDLE.0, HANDLE.1), Some(pd));
        table.put(pd);
        assert_eq!(table.destroy(pd), Err(Busy { dependants: 1 }));
        table.put(pd);
        assert_eq!(table.destroy(pd), Ok(()));
    }

    #[test]
    fn the_key_of_a_removed_object_never_finds_its_successor() {
        let mut table = Table::default();
        let old = table.add(1, []);
        table.destroy(old).unwrap();
        table.remove(old);
        let new = table.add(2, []);
        assert_eq!(table.peek(old), None);
        assert_eq!(table.remove(old), None);
        assert_eq!(table.peek(new), Some(&2));
        assert_eq!(table.iter().count(), 1);
    }

    #[test]
    fn the_trees_of_a_client_go_with_its_last_id() {
        let mut table = Table::default();
        let keys = [HANDLE, SEND, RECV].map(|id| table.add((), [id]));
        for key in keys {
            assert!(table.ids.clients[1].is_some());
            table.destroy(key).unwrap();
        }
        assert!(table.ids.clients[1].is_none());
    }
}
