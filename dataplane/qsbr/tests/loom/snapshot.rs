//! The engine's `Snapshot`, its very source: a reader finds one of the states that were stored, whole. Without its
//! fences it is caught with a mixture.

use std::cell::Cell;

use loom::sync::Arc;
use loom::thread;

use crate::harness::{explore, explore_faulty};

thread_local! {
    /// Whether the fences of the source do anything. loom runs a whole model on the thread that asked for it.
    static FENCED: Cell<bool> = const { Cell::new(true) };
}

mod primitive {
    pub use loom::sync::atomic::{AtomicU64, Ordering};

    pub fn fence(order: Ordering) {
        if super::FENCED.get() {
            loom::sync::atomic::fence(order);
        }
    }
}

#[path = "../../../engine/src/mem/snapshot.rs"]
mod source;

fn model() {
    let snapshot = Arc::new(source::Snapshot::<2>::default());
    let writer = thread::spawn({
        let snapshot = snapshot.clone();
        move || {
            for state in 1..=3 {
                snapshot.store(&[state; 2]);
            }
        }
    });
    if let Some([a, b]) = snapshot.load() {
        assert_eq!(a, b, "torn");
    }
    writer.join().unwrap();
    assert_eq!(snapshot.load(), Some([3; 2]));
}

#[test]
fn a_reader_never_finds_a_mixture_of_two_states() {
    explore(3, model);
}

#[test]
fn without_its_fences_a_reader_is_caught_with_a_mixture() {
    FENCED.set(false);
    let said = explore_faulty(3, model);
    assert!(said.contains("torn"), "failed for another reason: {said}");
}
