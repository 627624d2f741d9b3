//! Numbers of objects: a slot, and a generation that tells its users apart (DESIGN I4). Generations and the order of
//! free slots lie in an arena, so that no number of a killed daemon comes back too early.

use std::sync::Arc;

use rnic_engine::arena::{ArenaBox, ArenaError, ArenaSlice};
use rnic_transport::{BadField, record};
use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use crate::store::Store;

/// A slot that was handed out, with the generation of this use.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Number {
    /// Index, dense from the first slot on.
    pub slot: u32,
    /// Counts the uses of the slot, from 1. Whoever packs it into a number cuts off what does not fit.
    pub generation: u32,
}

/// What numbers are of.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Space {
    Clients,
    Pds,
    Keys,
    Cqs,
    Qpns,
    Ahs,
    Srqs,
    Xrcds,
    /// Of one client.
    Handles,
}

record! {
    /// How far a space was used, and which of its slots is free first and last.
    #[derive(Copy, Clone, Debug)]
    pub struct Cursor {
        pub space: Space,
        /// Index of the client, for handles.
        pub client: u32,
        first: u32,
        limit: u32,
        /// Slots that were ever used.
        used: u32,
        /// Slots that wait, as a list from `head` to `tail`.
        waiting: u32,
        head: u32,
        tail: u32,
        /// Where the slots lie, and how many there is room for.
        slots: u64,
        room: u32,
    }
}

record! {
    /// The slot of a number.
    #[derive(Copy, Clone, Debug, Default)]
    pub struct NumberSlot {
        generation: u32,
        /// The slot that waits behind this one.
        next: u32,
        taken: bool,
    }
}

/// Hands out slots. A slot that comes back waits behind all that came back before it, and is not taken again
/// as long as few are waiting and fresh ones remain: a number returns late.
#[derive(Debug)]
pub struct Numbers {
    cursor: ArenaBox<Cursor>,
    slots: ArenaSlice<NumberSlot>,
    store: Arc<Store>,
}

/// Slots that wait, as long as there are fresh ones.
const WAITING: u32 = 32;
/// Room for slots at first.
const ROOM: usize = 64;

impl Numbers {
    /// Slots `first..limit`. `client` is the one whose handles they are.
    pub fn new(
        store: &Arc<Store>,
        space: Space,
        client: u32,
        first: u32,
        limit: u32,
    ) -> Result<Self, ArenaError> {
        let slots = store.numbers.put(ROOM, NumberSlot::default())?;
        let cursor = Cursor {
            space,
            client,
            first,
            limit: limit.max(first),
            used: 0,
            waiting: 0,
            head: 0,
            tail: 0,
            slots: slots.offset(),
            room: ROOM as u32,
        };
        let cursor = store.cursors.put(cursor)?;
        let store = store.clone();
        Ok(Numbers { cursor, slots, store })
    }

    /// The numbers of a cursor that another process has left.
    ///
    /// # Errors
    /// What of it contradicts its slots.
    pub fn resume(store: &Arc<Store>, cursor: ArenaBox<Cursor>) -> Result<Self, ArenaError> {
        let place = cursor.slot();
        let slots = store.numbers.claim(cursor.slots, cursor.room as usize, place)?;
        let numbers = Numbers {
            cursor,
            slots,
            store: store.clone(),
        };
        numbers.check().map_err(|error| ArenaError::Contradiction {
            arena: store.cursors.id(),
            slot: place,
            error,
        })?;
        Ok(numbers)
    }

    fn check(&self) -> Result<(), BadField> {
        let cursor = &*self.cursor;
        let size = cursor.limit.checked_sub(cursor.first);
        BadField::unless(size.is_some(), "limit", cursor.limit, "not below first")?;
        let of_client = cursor.space == Space::Handles || cursor.client == 0;
        BadField::unless(of_client, "client", cursor.client, "0 where no client's")?;
        let used = cursor.used <= cursor.room && size.is_some_and(|size| cursor.used <= size);
        BadField::unless(used, "used", cursor.used, "within room and limit")?;
        let known = &self.slots[..cursor.used as usize];
        let free = known.iter().filter(|slot| !slot.taken).count() as u32;
        BadField::unless(
            free == cursor.waiting,
            "waiting",
            cursor.waiting,
            "the number of free slots",
        )?;
        let mut seen = vec![false; known.len()];
        let mut at = cursor.head;
        for left in (0..cursor.waiting).rev() {
            let slot = known.get(at as usize).filter(|slot| !slot.taken);
            let fresh = seen
                .get_mut(at as usize)
                .is_some_and(|seen| !std::mem::replace(seen, true));
            let Some(slot) = slot.filter(|_| fresh) else {
                return BadField::unless(false, "head", at, "a list of free slots, each once");
            };
            if left == 0 {
                BadField::unless(at == cursor.tail, "tail", cursor.tail, "the last of the list")?;
            }
            at = slot.next;
        }
        Ok(())
    }

    /// What they are of: the space, and the client whose handles they are.
    pub fn space(&self) -> (Space, u32) {
        (self.cursor.space, self.cursor.client)
    }

    /// Whether a slot was handed out and did not come back.
    pub fn is_out(&self, slot: u32) -> bool {
        let index = slot.checked_sub(self.cursor.first);
        let known = &self.slots[..self.cursor.used as usize];
        index.is_some_and(|index| known.get(index as usize).is_some_and(|slot| slot.taken))
    }

    /// Takes back every slot that is out and `stray`, the lowest first.
    pub fn take_back(&mut self, stray: impl Fn(u32) -> bool) {
        let Cursor { first, used, .. } = *self.cursor;
        for slot in first..first + used {
            if self.is_out(slot) && stray(slot) {
                self.give(slot);
            }
        }
    }

    /// How far it is, and every slot, in one line: the same in every process.
    pub fn describe(&self) -> String {
        let known = &self.slots[..self.cursor.used as usize];
        format!("{:?} {known:?}", *self.cursor)
    }

    /// The next slot; `None` when all are in use, or when there is no memory to count more.
    pub fn take(&mut self) -> Option<Number> {
        let Cursor {
            first,
            limit,
            used,
            waiting,
            head,
            ..
        } = *self.cursor;
        let index = if waiting > WAITING || first + used >= limit {
            if waiting == 0 {
                return None;
            }
            self.cursor.head = self.slots[head as usize].next;
            self.cursor.waiting -= 1;
            head
        } else {
            if used == self.cursor.room {
                self.grow().ok()?;
            }
            self.cursor.used += 1;
            used
        };
        let NumberSlot {
            generation, taken, ..
        } = &mut self.slots[index as usize];
        *taken = true;
        // Zero stays free for numbers of another sort, whatever width the generation is cut to.
        *generation = generation.wrapping_add(1);
        if generation.is_multiple_of(64) {
            *generation += 1;
        }
        Some(Number {
            slot: first + index,
            generation: *generation,
        })
    }

    /// The next slot for which `suits`. Those before it go to the end of the line: nobody has seen them.
    pub fn take_where(&mut self, suits: impl Fn(u32) -> bool) -> Option<Number> {
        let mut others = Vec::new();
        let taken = loop {
            match self.take() {
                Some(number) if !suits(number.slot) => others.push(number.slot),
                taken => break taken,
            }
        };
        for slot in others {
            self.give(slot);
        }
        taken
    }

    /// Room for as many slots again.
    fn grow(&mut self) -> Result<(), ArenaError> {
        let room = self.slots.len() * 2;
        let mut slots = self.store.numbers.put(room, NumberSlot::default())?;
        slots[..self.slots.len()].copy_from_slice(&self.slots);
        (self.cursor.slots, self.cursor.room) = (slots.offset(), room as u32);
        self.slots = slots;
        Ok(())
    }

    /// Takes a slot back, a grace period after its object was unpublished. One that is not out stays where it is: given
    /// twice it would have two owners.
    pub fn give(&mut self, slot: u32) {
        let used = self.cursor.used as usize;
        let index = slot.checked_sub(self.cursor.first);
        let taken = index.and_then(|index| self.slots[..used].get_mut(index as usize));
        let was_taken = taken.is_some_and(|slot| std::mem::take(&mut slot.taken));
        debug_assert!(was_taken, "slot {slot} came back twice, or was never out");
        if let Some(index) = index.filter(|_| was_taken) {
            let Cursor { waiting, tail, .. } = *self.cursor;
            match waiting {
                0 => self.cursor.head = index,
                _ => self.slots[tail as usize].next = index,
            }
            self.cursor.tail = index;
            self.cursor.waiting += 1;
        }
    }

    #[cfg(test)]
    pub fn used(&self) -> usize {
        (self.cursor.used - self.cursor.waiting) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(first: u32, limit: u32) -> Numbers {
        let store = Arc::new(Store::create(1).unwrap());
        Numbers::new(&store, Space::Qpns, 0, first, limit).unwrap()
    }

    #[test]
    fn slots_come_back_in_the_order_they_were_given_and_late() {
        let mut numbers = fresh(2, 2 + 64);
        let first = numbers.take().unwrap();
        assert_eq!(
            first,
            Number {
                slot: 2,
                generation: 1
            }
        );
        numbers.give(first.slot);
        let others: Vec<_> = (0..63).map(|_| numbers.take().unwrap()).collect();
        assert!(
            others.iter().all(|n| n.slot != 2),
            "a slot was taken again though fresh ones remained"
        );
        for number in &others[..3] {
            numbers.give(number.slot);
        }
        assert_eq!(
            numbers.take(),
            Some(Number {
                slot: 2,
                generation: 2
            })
        );
        assert_eq!(numbers.take().unwrap().slot, others[0].slot);
        assert_eq!(numbers.take().unwrap().slot, others[1].slot);
        assert_eq!(numbers.take().unwrap().slot, others[2].slot);
        assert_eq!(numbers.take(), None);
        assert_eq!(numbers.used(), 64);
    }

    #[test]
    fn a_slot_that_suits_is_found_wherever_it_stands_in_line() {
        let mut numbers = fresh(2, 2 + 64);
        let even = |slot: u32| slot.is_multiple_of(2);
        let mut taken: Vec<u32> = (0..32).map(|_| numbers.take_where(even).unwrap().slot).collect();
        taken.sort_unstable();
        assert_eq!(taken, (1..33).map(|n| 2 * n).collect::<Vec<_>>());
        assert_eq!(numbers.take_where(even), None);
        assert_eq!(numbers.used(), 32, "those that did not suit are free");
        numbers.give(6);
        assert_eq!(numbers.take_where(even).map(|number| number.slot), Some(6));
        assert!((0..32).all(|_| numbers.take().is_some()));
    }

    #[test]
    fn a_generation_is_never_zero_even_when_cut_to_six_bits() {
        let mut numbers = fresh(0, 1);
        for _ in 0..200 {
            let number = numbers.take().unwrap();
            assert_ne!(number.generation & 63, 0);
            numbers.give(number.slot);
        }
    }
}
