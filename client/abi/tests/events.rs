//! The two halves of the event slot's protocol, with each side stepping in between the other's look and its
//! exchange: every race there is, one at a time. `loom.rs` tries them all at once.
#![cfg(not(loom))]
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering, Ordering::Relaxed};

use rnic_abi::event::{self, Raised};
use rnic_abi::event_kind::{COMM_EST, CQ_ERR, QP_ACCESS_ERR, QP_FATAL, SQ_DRAINED};
use rnic_abi::protocol::Word32;
use rnic_abi::{GENERATION_SHIFT, IN_RING, event_kind};

/// A slot: `pending`, and one word for all that the daemon writes beside it.
#[derive(Default)]
struct Slot {
    pending: AtomicU32,
    cause: Cell<u32>,
}

impl Slot {
    fn raise(&self, generation: u32, kinds: u32, cause: u32) -> Raised {
        event::raise(&self.pending, generation, kinds, || self.cause.set(cause))
    }

    fn take(&self) -> (u32, Option<u32>) {
        event::take(&self.pending, || self.cause.get())
    }
}

#[test]
fn an_event_of_the_slots_next_object_is_not_taken_for_the_last_ones() {
    let slot = Slot::default();
    slot.raise(1, QP_FATAL, 10);
    let looks = Cell::new(0);
    // The client has read the slot; before it clears `pending` the object is destroyed, another one gets the
    // slot and fails by the same kind.
    let (kinds, cause) = event::take(&slot.pending, || {
        let cause = slot.cause.get();
        if looks.replace(looks.get() + 1) == 0 {
            assert_eq!(event::withdraw(&slot.pending), 1);
            assert!(!slot.raise(2, QP_FATAL, 20).push, "its place in the ring stands");
        }
        cause
    });
    assert_eq!((kinds, cause, looks.get()), (QP_FATAL, Some(20), 2));
    assert_eq!(slot.take(), (0, None), "told once");
}

#[test]
fn a_kind_that_comes_while_the_slot_is_read_is_taken_with_it() {
    let slot = Slot::default();
    slot.raise(1, QP_ACCESS_ERR, 10);
    let (kinds, cause) = event::take(&slot.pending, || {
        slot.raise(1, QP_FATAL, 20);
        slot.cause.get()
    });
    assert_eq!((kinds, cause), (QP_ACCESS_ERR | QP_FATAL, Some(10)));
}

#[test]
fn an_error_behind_what_is_no_error_has_its_own_cause() {
    let slot = Slot::default();
    slot.raise(1, COMM_EST, 0);
    assert!(!slot.raise(1, QP_ACCESS_ERR, 20).push);
    // No other after it changes that.
    slot.raise(1, SQ_DRAINED, 0);
    slot.raise(1, QP_FATAL, 30);
    let kinds = COMM_EST | SQ_DRAINED | QP_ACCESS_ERR | QP_FATAL;
    assert_eq!(slot.take(), (kinds, Some(20)));
}

#[test]
fn nothing_is_taken_of_an_object_destroyed_while_its_slot_is_read() {
    let slot = Slot::default();
    slot.raise(1, QP_FATAL, 10);
    let taken = event::take(&slot.pending, || event::withdraw(&slot.pending));
    assert_eq!(taken, (0, None));
    assert_eq!(
        slot.pending.load(Relaxed),
        0,
        "the place in the ring is given up by the client"
    );
}

#[test]
fn an_event_raised_while_the_last_one_is_taken_has_its_own_cause_and_its_own_entry() {
    let slot = Slot::default();
    slot.raise(1, QP_ACCESS_ERR, 10);
    slot.cause.set(10);
    // The daemon has seen the first event pending, so it leaves the cause alone; then the client takes it.
    let taken = Cell::new((0, None));
    let step = || taken.set(slot.take());
    let word = Interrupted {
        word: &slot.pending,
        step: Cell::new(Some(&step)),
    };
    let raised = event::raise(&word, 1, QP_FATAL, || slot.cause.set(20));
    assert_eq!(taken.get(), (QP_ACCESS_ERR, Some(10)));
    assert_eq!(
        raised,
        Raised {
            reported: 1,
            push: true
        }
    );
    assert_eq!(slot.take(), (QP_FATAL, Some(20)));
}

#[test]
fn a_client_that_never_lets_the_daemon_have_its_way_delays_it_four_times() {
    let slot = Slot::default();
    let tries = Cell::new(0);
    let raised = event::raise(&slot.pending, 1, QP_FATAL, || {
        tries.set(tries.get() + 1);
        slot.pending.store(tries.get() << GENERATION_SHIFT, Relaxed);
    });
    assert_eq!((tries.get(), raised.reported), (4, 1));
    assert_eq!(slot.take().0, QP_FATAL);
}

#[test]
fn every_kind_fits_below_the_generation() {
    let slot = Slot::default();
    assert_eq!(
        slot.raise(0xFFF, u32::MAX, 1).reported,
        event_kind::ALL.count_ones()
    );
    let word = slot.pending.load(Relaxed);
    assert_eq!(word, event_kind::ALL | 0xFFF << GENERATION_SHIFT | IN_RING);
    assert_eq!(slot.raise(0xFFF, CQ_ERR, 2).reported, 0, "pending already");
    assert_eq!(slot.take(), (event_kind::ALL, Some(1)));
}

/// A word whose first compare-and-exchange is preceded by a step of the other side.
struct Interrupted<'a> {
    word: &'a AtomicU32,
    step: Cell<Option<&'a dyn Fn()>>,
}

impl Word32 for Interrupted<'_> {
    fn load(&self, order: Ordering) -> u32 {
        self.word.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.word.store(value, order)
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.word.swap(value, order)
    }
    fn fetch_and(&self, value: u32, order: Ordering) -> u32 {
        self.word.fetch_and(value, order)
    }
    fn compare_exchange(&self, current: u32, new: u32, ok: Ordering, failed: Ordering) -> Result<u32, u32> {
        if let Some(step) = self.step.take() {
            step();
        }
        self.word.compare_exchange(current, new, ok, failed)
    }
    fn fence(order: Ordering) {
        std::sync::atomic::fence(order)
    }
}
