//! A bounded single-producer single-consumer ring, the road of retire pages.

use std::mem::MaybeUninit;
use std::sync::Arc;

use crate::primitive::{AtomicUsize, Line, Ordering, UnsafeCell};

/// Indices run freely and wrap; `tail - head` elements are in the ring, at `head & mask ..`.
struct Ring<T> {
    head: Line<AtomicUsize>,
    tail: Line<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    mask: usize,
}

// SAFETY: a slot is accessed by one thread at a time: by the producer while it lies outside `head..tail`, by the
// consumer while inside. Ownership of it passes with the Release stores and Acquire loads of the two indices. Elements
// thus move between threads, which `T: Send` allows; no `&T` is ever shared.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: the ring owns its elements; as for `Sync`.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // A model that has failed is torn down with a slot in use; its elements stay.
        #[cfg(loom)]
        if std::thread::panicking() {
            return;
        }
        let tail = self.tail.load(Ordering::Acquire);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: both ends are gone, and slots `head..tail` hold elements nobody has taken.
            self.slots[head & self.mask].with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The end that puts in.
pub(crate) struct Producer<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    /// The consumer's index as last seen.
    head: usize,
    /// For the model of a ring that lacks its order.
    #[cfg(all(test, loom))]
    unordered: bool,
}

/// The end that takes out.
pub(crate) struct Consumer<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    /// The producer's index as last seen.
    tail: usize,
}

/// A ring for at least `capacity` elements (the next power of two).
pub(crate) fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let size = capacity.max(1).next_power_of_two();
    let ring = Arc::new(Ring {
        head: Line(AtomicUsize::new(0)),
        tail: Line(AtomicUsize::new(0)),
        slots: (0..size)
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
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
        Consumer {
            ring,
            head: 0,
            tail: 0,
        },
    )
}

impl<T> Producer<T> {
    /// Appends `value`, or gives it back if the ring is full.
    pub(crate) fn push(&mut self, value: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head) > self.ring.mask {
            self.head = self.ring.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head) > self.ring.mask {
                return Err(value);
            }
        }
        self.ring.slots[self.tail & self.ring.mask].with_mut(|slot| {
            // SAFETY: the slot lies outside `head..tail`, so it is the producer's, and it holds no element.
            unsafe { (*slot).write(value) };
        });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.store(self.tail, self.publish_order());
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
    /// Takes the oldest element.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.head == self.tail {
            self.tail = self.ring.tail.load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        // SAFETY: the slot lies inside `head..tail`, so it is the consumer's and holds an element; moving `head` past
        // it makes sure that it is read once.
        let value = self.ring.slots[self.head & self.ring.mask]
            .with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.store(self.head, Ordering::Release);
        Some(value)
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
