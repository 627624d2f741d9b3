//! A bounded single-producer single-consumer ring: the road of retire pages, of commands and of their answers.
//!
//! A slot says itself whether it holds an element, so that an element of up to [`INLINE`] bytes and the news of it cross
//! to the other core in one line: a consumer that looks for it has it. Only when the ring seems full does the producer
//! look at the consumer's index.

use std::mem::MaybeUninit;
use std::sync::Arc;

use crate::primitive::{AtomicUsize, Line, Ordering, UnsafeCell};

/// The size of an element that shares its line with nothing but its slot's turn.
pub const INLINE: usize = 56;

/// Half of a [`Line`]: neighbours are written by the same thread, one after the other.
#[repr(align(64))]
struct Slot<T> {
    value: UnsafeCell<MaybeUninit<T>>,
    /// One more than the index of the element that was put in last.
    turn: AtomicUsize,
}

/// Indices run freely and wrap. Slot `index & mask` holds element `index` from when its turn is `index + 1` until `head`
/// is past `index`.
struct Ring<T> {
    head: Line<AtomicUsize>,
    slots: Box<[Slot<T>]>,
    mask: usize,
}

// SAFETY: a slot is accessed by one thread at a time: by the consumer from when its turn tells of an element until `head`
// is past it, else by the producer. Ownership of it passes with the Release stores and Acquire loads of the turn and of
// `head`. Elements thus move between threads, which `T: Send` allows; no `&T` is ever shared.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: the ring owns its elements; as for `Sync`.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    /// Whether element `index`, which the consumer has not taken, is there.
    fn holds(&self, index: usize) -> bool {
        self.slots[index & self.mask].turn.load(Ordering::Acquire) == index.wrapping_add(1)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // A model that has failed is torn down with a slot in use; its elements stay.
        #[cfg(loom)]
        if std::thread::panicking() {
            return;
        }
        let mut head = self.head.load(Ordering::Acquire);
        while self.holds(head) {
            // SAFETY: both ends are gone, and the slot holds an element nobody has taken.
            self.slots[head & self.mask]
                .value
                .with_mut(|value| unsafe { (*value).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The end that puts in. Any thread may have it, one at a time.
pub struct Producer<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    /// The consumer's index as last seen.
    head: usize,
    /// For the model of a ring that lacks its order.
    #[cfg(all(test, loom))]
    unordered: bool,
}

/// The end that takes out. Any thread may have it, one at a time.
pub struct Consumer<T> {
    ring: Arc<Ring<T>>,
    head: usize,
}

/// A ring for at least `capacity` elements (the next power of two). Allocates; nothing done with its ends later does.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let size = capacity.max(1).next_power_of_two();
    let ring = Arc::new(Ring {
        head: Line(AtomicUsize::new(0)),
        // A slot's first element is that of its own index: no turn tells of it yet.
        slots: (0..size)
            .map(|_| Slot {
                value: UnsafeCell::new(MaybeUninit::uninit()),
                turn: AtomicUsize::new(0),
            })
            .collect(),
        mask: size - 1,
    });
    (
        Producer {
            ring: Arc::clone(&ring),
            tail: 0,
            head: 0,
            #[cfg(all(test, loom))]
            unordered: false,
        },
        Consumer { ring, head: 0 },
    )
}

impl<T> Producer<T> {
    /// Whether `wanted` more elements have room.
    pub fn has_room(&mut self, wanted: usize) -> bool {
        let room = |this: &Self| (this.ring.mask + 1).wrapping_sub(this.tail.wrapping_sub(this.head));
        if room(self) < wanted {
            self.head = self.ring.head.load(Ordering::Acquire);
        }
        room(self) >= wanted
    }

    /// Appends `value`.
    ///
    /// # Errors
    /// The ring is full; `value` comes back.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if !self.has_room(1) {
            return Err(value);
        }
        let slot = &self.ring.slots[self.tail & self.ring.mask];
        slot.value.with_mut(|place| {
            // SAFETY: `head` is past the element this slot held last, so it is the producer's, and holds none.
            unsafe { (*place).write(value) };
        });
        self.tail = self.tail.wrapping_add(1);
        slot.turn.store(self.tail, self.publish_order());
        Ok(())
    }

    /// Release: an element is written before it is published. The model weakens it to see that it is caught.
    #[inline]
    fn publish_order(&self) -> Ordering {
        #[cfg(all(test, loom))]
        if self.unordered {
            return Ordering::Relaxed;
        }
        Ordering::Release
    }
}

impl<T> Consumer<T> {
    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        !self.ring.holds(self.head)
    }

    /// How many elements the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.ring.mask + 1
    }

    /// Takes the oldest element.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: the slot's turn tells of this element, so the slot is the consumer's and holds it; moving `head` past it
        // makes sure that it is read once.
        let value = self.ring.slots[self.head & self.ring.mask]
            .value
            .with_mut(|value| unsafe { (*value).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.store(self.head, Ordering::Release);
        Some(value)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_the_consumer_has_left() {
        let (mut producer, mut consumer) = ring(3);
        assert_eq!(consumer.capacity(), 4);
        assert!(consumer.is_empty() && producer.has_room(4) && !producer.has_room(5));
        for n in 0..4 {
            assert!(producer.has_room(4 - n) && !producer.has_room(5 - n));
            producer.push(n).unwrap();
        }
        assert_eq!(producer.push(9), Err(9));
        assert!(!consumer.is_empty() && !producer.has_room(1));
        assert_eq!(consumer.pop(), Some(0));
        assert!(producer.has_room(1) && !producer.has_room(2));
        assert_eq!(
            std::iter::from_fn(|| consumer.pop()).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert!(consumer.is_empty() && producer.has_room(4));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;

    #[test]
    fn slots_are_reused_only_after_their_element_was_taken() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(1);
            let thread =
                loom::thread::spawn(move || (0..3).filter(|&n| producer.push(Box::new(n)).is_ok()).count());
            let mut got: Vec<i32> = (0..2).filter_map(|_| consumer.pop()).map(|n| *n).collect();
            let pushed = thread.join().unwrap();
            got.extend(std::iter::from_fn(|| consumer.pop()).map(|n| *n));
            assert_eq!(got.len(), pushed);
            assert!(got.is_sorted(), "{got:?}");
        });
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn an_element_published_without_order_is_caught_unwritten() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(1);
            producer.unordered = true;
            let thread = loom::thread::spawn(move || producer.push(7).is_ok());
            assert!(consumer.pop().is_none_or(|n| n == 7));
            thread.join().unwrap();
        });
    }
}
