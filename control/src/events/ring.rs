//! Asynchronous events of a client: the daemon's half of the protocol that `rnic_abi::event` documents.
//!
//! A slot stands in the ring at most once and the ring is as long as there are slots, so an event is never lost
//! and its sender never waits. When an object is destroyed its pending kinds are withdrawn, but the slot keeps
//! its place in the ring: the client finds it empty, or with events of the slot's next object.

use std::sync::atomic::Ordering;

use rnic_abi::{Cause, EventSlot, Handle, RING_ENTRIES, RegionLayout, RingIndices, event};
use rnic_engine::mem::{ClientMem, SharedU32};

/// The client wrote what no client may write into its event ring: it holds more entries than it has.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event ring's head is {head}, but only {tail} entries were ever written to a ring of {len}")]
pub struct ForgedRing {
    /// What the client wrote.
    pub head: u32,
    /// Entries written, modulo 2^32.
    pub tail: u32,
    /// Entries of the ring.
    pub len: u32,
}

/// What [`EventRing::raise`] did.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    /// Kinds that were not pending before: each is one event.
    pub reported: u32,
    /// The slot was put into the ring: the client is to be woken.
    pub wake: bool,
}

/// The producer of one client's event ring.
#[derive(Debug)]
pub struct EventRing {
    layout: RegionLayout,
}

impl EventRing {
    /// The ring of a region.
    pub fn new(layout: RegionLayout) -> Self {
        EventRing { layout }
    }

    /// Gives a slot to an object: from now on events in it are that object's. The events of the slot's object
    /// before are withdrawn.
    pub fn install(&self, region: &ClientMem, handle: Handle, number: u32) {
        let slot = handle.slot();
        self.store(region, slot, EventSlot::NUMBER, number);
        self.store(region, slot, EventSlot::SEQUENCE, 0);
        self.store(region, slot, EventSlot::HANDLE, handle.0);
    }

    /// Sets the sequence number of a port's slot, before [`EventRing::raise`].
    pub fn set_sequence(&self, region: &ClientMem, slot: u32, sequence: u32) {
        self.store(region, slot, EventSlot::SEQUENCE, sequence);
    }

    /// Makes `kinds` pending and puts the slot into the ring unless it stands there. The cause is that of the
    /// first pending kind. `tail` is the ring's next index, which begins at zero.
    pub fn raise(
        &self,
        region: &ClientMem,
        tail: &mut u32,
        handle: Handle,
        kinds: u32,
        cause: &Cause,
    ) -> Result<Raised, ForgedRing> {
        let slot = handle.slot();
        let Some(pending) = self.pending(region, slot) else {
            return Ok(Raised::default());
        };
        let raised = event::raise(&pending, handle.generation(), kinds, || {
            // Cannot fail: the slot was found.
            region.write(self.slot(slot) + EventSlot::CAUSE, cause);
        });
        if raised.push {
            self.push(region, tail, slot)?;
        }
        Ok(Raised {
            reported: raised.reported,
            wake: raised.push,
        })
    }

    /// Withdraws what is pending in a slot whose object is gone, and tells how many events that were.
    pub fn withdraw(&self, region: &ClientMem, slot: u32) -> u32 {
        self.pending(region, slot)
            .map_or(0, |pending| event::withdraw(&pending))
    }

    fn push(&self, region: &ClientMem, next: &mut u32, slot: u32) -> Result<(), ForgedRing> {
        let RegionLayout {
            events,
            event_ring_len: len,
            ..
        } = self.layout;
        let (Some(head), Some(tail)) = (
            region.u32(events + RingIndices::HEAD),
            region.u32(events + RingIndices::TAIL),
        ) else {
            return Ok(());
        };
        let head = head.load(Ordering::Acquire);
        // An honest ring has room: each slot stands in it at most once, and this one did not.
        if next.wrapping_sub(head) >= len {
            return Err(ForgedRing {
                head,
                tail: *next,
                len,
            });
        }
        let entry = events + RING_ENTRIES + 4 * (*next & (len - 1)) as usize;
        region.write(entry, &slot);
        *next = next.wrapping_add(1);
        tail.store(*next, Ordering::Release);
        Ok(())
    }

    fn slot(&self, slot: u32) -> usize {
        self.layout.event_slots + slot as usize * size_of::<EventSlot>()
    }

    fn pending(&self, region: &ClientMem, slot: u32) -> Option<SharedU32> {
        if slot >= self.layout.slots {
            return None;
        }
        region.u32(self.slot(slot) + EventSlot::PENDING)
    }

    fn store(&self, region: &ClientMem, slot: u32, field: usize, value: u32) {
        if slot < self.layout.slots
            && let Some(word) = region.u32(self.slot(slot) + field)
        {
            word.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rnic_abi::event_kind::{self, CQ_ERR, QP_ACCESS_ERR, QP_FATAL};

    use super::*;

    const SLOTS: u32 = 5;

    /// A client that keeps to the protocol.
    struct Client {
        region: ClientMem,
        layout: RegionLayout,
        head: u32,
        tail: u32,
    }

    impl Client {
        fn new() -> (EventRing, Client) {
            let layout = RegionLayout::new(SLOTS, 1, 4096);
            let (region, _) = ClientMem::create("test", layout.size, Arc::default()).unwrap();
            (
                EventRing::new(layout),
                Client {
                    region,
                    layout,
                    head: 0,
                    tail: 0,
                },
            )
        }

        fn word(&self, offset: usize) -> SharedU32 {
            self.region.u32(offset).unwrap()
        }

        fn in_ring(&self) -> u32 {
            self.word(self.layout.events)
                .load(Ordering::Acquire)
                .wrapping_sub(self.head)
        }

        /// Handle, kinds and cause of the next entry.
        fn pop(&mut self) -> Option<(u32, u32, Cause)> {
            if self.in_ring() == 0 {
                return None;
            }
            let at = self.layout.events + RING_ENTRIES;
            let entry = at + 4 * (self.head & (self.layout.event_ring_len - 1)) as usize;
            let slot: u32 = self.region.read(entry).unwrap();
            self.head = self.head.wrapping_add(1);
            self.word(self.layout.events + RingIndices::HEAD)
                .store(self.head, Ordering::Release);
            let at = self.layout.event_slots + slot as usize * size_of::<EventSlot>();
            let (kinds, details) = event::take(&self.word(at), || {
                let handle = self.word(at + EventSlot::HANDLE).load(Ordering::Relaxed);
                (handle, self.region.read(at + EventSlot::CAUSE).unwrap())
            });
            let (handle, cause) = details.unwrap_or_default();
            Some((handle, kinds, cause))
        }
    }

    fn cause(check: u8) -> Cause {
        Cause {
            check,
            ..Cause::default()
        }
    }

    #[test]
    fn kinds_gather_in_one_entry_with_the_cause_of_the_first() {
        let (ring, mut client) = Client::new();
        let handle = Handle::new(3, 1);
        ring.install(&client.region, handle, 77);
        let raised = ring
            .raise(&client.region, &mut client.tail, handle, QP_ACCESS_ERR, &cause(1))
            .unwrap();
        assert_eq!(
            raised,
            Raised {
                reported: 1,
                wake: true
            }
        );
        let raised = ring
            .raise(
                &client.region,
                &mut client.tail,
                handle,
                QP_ACCESS_ERR | QP_FATAL,
                &cause(2),
            )
            .unwrap();
        assert_eq!(
            raised,
            Raised {
                reported: 1,
                wake: false
            }
        );
        assert_eq!(
            client.pop(),
            Some((0x10_0003, QP_ACCESS_ERR | QP_FATAL, cause(1)))
        );
        assert_eq!(client.pop(), None);
        assert!(
            ring.raise(&client.region, &mut client.tail, handle, QP_FATAL, &cause(3))
                .unwrap()
                .wake
        );
        assert_eq!(client.pop(), Some((0x10_0003, QP_FATAL, cause(3))));
    }

    #[test]
    fn a_destroyed_objects_events_are_withdrawn_and_its_entry_serves_the_next_object() {
        let (ring, mut client) = Client::new();
        let (first, second) = (Handle::new(1, 1), Handle::new(1, 2));
        ring.install(&client.region, first, 5);
        ring.raise(&client.region, &mut client.tail, first, QP_FATAL, &cause(1))
            .unwrap();
        assert_eq!(ring.withdraw(&client.region, 1), 1);
        assert_eq!(ring.withdraw(&client.region, 1), 0);
        ring.install(&client.region, second, 6);
        let raised = ring
            .raise(&client.region, &mut client.tail, second, CQ_ERR, &cause(9))
            .unwrap();
        assert_eq!(
            raised,
            Raised {
                reported: 1,
                wake: false
            },
            "the entry is still there"
        );
        assert_eq!(client.pop(), Some((0x20_0001, CQ_ERR, cause(9))));
        assert_eq!(client.pop(), None);
    }

    #[test]
    fn a_client_that_never_reads_can_neither_fill_the_ring_nor_lose_an_event() {
        let (ring, mut client) = Client::new();
        for round in 0..1000u32 {
            for slot in 0..SLOTS {
                let handle = Handle::new(slot, round);
                ring.install(&client.region, handle, 0);
                ring.raise(&client.region, &mut client.tail, handle, QP_FATAL, &cause(1))
                    .unwrap();
                if round < 999 {
                    ring.withdraw(&client.region, slot);
                }
            }
        }
        assert_eq!(client.in_ring(), SLOTS);
        for slot in 0..SLOTS {
            assert_eq!(client.pop(), Some((999 << 20 | slot, QP_FATAL, cause(1))));
        }
    }

    #[test]
    fn a_forged_head_is_found_and_nothing_outside_the_ring_is_written() {
        for head in [1, 1000, u32::MAX, 1 << 31] {
            let (ring, mut client) = Client::new();
            client
                .word(client.layout.events + RingIndices::HEAD)
                .store(head, Ordering::Release);
            let result = ring.raise(&client.region, &mut client.tail, Handle(0), QP_FATAL, &cause(1));
            if 0u32.wrapping_sub(head) >= client.layout.event_ring_len {
                assert_eq!(
                    result,
                    Err(ForgedRing {
                        head,
                        tail: 0,
                        len: 8
                    }),
                    "{head}"
                );
            } else {
                assert!(result.is_ok());
            }
        }
    }

    #[test]
    fn bits_a_client_sets_itself_hurt_only_its_own_events() {
        let (ring, mut client) = Client::new();
        let pending = client.word(client.layout.event_slots);
        pending.store(u32::MAX, Ordering::Release);
        let raised = ring
            .raise(&client.region, &mut client.tail, Handle(0), QP_FATAL, &cause(1))
            .unwrap();
        assert_eq!(raised, Raised::default());
        assert_eq!(ring.withdraw(&client.region, 0), event_kind::NAMES.len() as u32);
        assert_eq!(
            ring.raise(
                &client.region,
                &mut client.tail,
                Handle(SLOTS),
                QP_FATAL,
                &cause(1)
            ),
            Ok(Raised::default())
        );
    }
}
