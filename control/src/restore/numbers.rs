//! Numbers of another process: those in use are their objects', and what nobody has comes back.

use std::collections::BTreeSet;

use rnic_abi::Handle;
use rnic_engine::{
    arena::{ArenaBox, ArenaError},
    core::NO_CLIENT,
    view,
};
use rnic_transport::BadField;

use super::{RestoreError, Restored};
use crate::{
    objects::{Cursor, Kind, Numbers, Space},
    store::ObjectRecord,
};

/// A slot of a number space of a client, or of the daemon (client 0).
type Taken = (Space, u32, u32);

/// The slots that an object has.
fn slots_of(record: &ObjectRecord) -> [Option<Taken>; 2] {
    let handle =
        (record.client != NO_CLIENT).then_some((Space::Handles, record.client, Handle(record.handle).slot()));
    let number = record.number;
    let (space, number) = match record.kind {
        Kind::Pd => (Space::Pds, number),
        Kind::Mr => (Space::Keys, number >> 8),
        Kind::Mw => (Space::Keys, number),
        Kind::Cq => (Space::Cqs, number),
        Kind::Qp => (Space::Qpns, number),
        Kind::Ah => (Space::Ahs, number),
        Kind::Srq => (Space::Srqs, number),
        Kind::Xrcd => (Space::Xrcds, number),
        Kind::Channel | Kind::Target => return [handle, None],
    };
    [handle, Some((space, 0, view::slot_of(number)))]
}

impl Restored {
    /// Takes number spaces in, each of which there is once.
    pub(super) fn put_numbers(&mut self, cursors: Vec<ArenaBox<Cursor>>) -> Result<(), RestoreError> {
        let arena = self.store.cursors.id();
        for cursor in cursors {
            let slot = cursor.slot();
            let numbers = Numbers::resume(&self.store, cursor)?;
            let (space, client) = numbers.space();
            if self.numbers.insert((space, client), numbers).is_some() {
                let error = BadField {
                    field: "space",
                    value: space as u64,
                    must: "another's than those before",
                };
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
        }
        Ok(())
    }

    /// Whatever has a number has one that is out: given back once more, it would have two owners.
    pub(super) fn check_numbers(&self) -> Result<(), RestoreError> {
        let is_out = |&(space, client, slot): &Taken| {
            let numbers = self.numbers.get(&(space, client));
            numbers.is_some_and(|numbers| numbers.is_out(slot))
        };
        for (_, object) in self.objects.iter() {
            if let Some(record) = &object.record
                && let Some((space, ..)) = slots_of(record).iter().flatten().find(|taken| !is_out(taken))
            {
                let (field, value) = match space {
                    Space::Handles => ("handle", record.handle),
                    _ => ("number", record.number),
                };
                return Err(self.wrong(record.slot(), field, value, "one that is given out"));
            }
        }
        for client in self.clients.values() {
            let index = client.record.index;
            if !is_out(&(Space::Clients, 0, index)) {
                let error = BadField {
                    field: "index",
                    value: index.into(),
                    must: "one that is given out",
                };
                let (arena, slot) = (self.store.clients.id(), client.record.slot());
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
        }
        Ok(())
    }

    /// Takes back the numbers that nobody has: of what was being made or destroyed, and those that were kept ready. No
    /// core of this process has seen them. Handles of a client that is not there go as a whole.
    pub(super) fn take_back_numbers(&mut self) {
        let mut owned: BTreeSet<Taken> = BTreeSet::new();
        for (_, object) in self.objects.iter() {
            if let Some(record) = &object.record {
                owned.extend(slots_of(record).into_iter().flatten());
            }
        }
        owned.extend(self.clients.keys().map(|index| (Space::Clients, 0, *index)));
        let clients = &self.clients;
        self.numbers
            .retain(|(space, client), _| *space != Space::Handles || clients.contains_key(client));
        for ((space, client), numbers) in &mut self.numbers {
            numbers.take_back(|slot| !owned.contains(&(*space, *client, slot)));
        }
    }

    /// The numbers of a space; of a client, if they are handles.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the restart"))]
    pub(crate) fn numbers(&mut self, space: Space, client: u32) -> Option<&mut Numbers> {
        let client = match space {
            Space::Handles => client,
            _ => 0,
        };
        self.numbers.get_mut(&(space, client))
    }
}
