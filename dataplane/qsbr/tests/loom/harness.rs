//! Running a model, and running one that has to fail.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::model::Builder;

const GOOD: u64 = 0x600d;
const POISON: u64 = 0xdead;

/// Memory that is freed by poisoning. loom itself reports an access that races with the poisoning.
pub struct Object(UnsafeCell<u64>);

// SAFETY: loom's cell panics on concurrent accesses before they do harm.
unsafe impl Sync for Object {}

impl Object {
    pub fn new() -> Self {
        Self(UnsafeCell::new(GOOD))
    }

    pub fn use_it(&self) {
        // SAFETY: loom's cell panics on an access concurrent with `free`; that is what is being tested.
        self.0
            .with(|value| assert_eq!(unsafe { *value }, GOOD, "used after free"));
    }

    pub fn free(&self) {
        self.0.with_mut(|value| {
            // SAFETY: as above.
            let before = unsafe { std::mem::replace(&mut *value, POISON) };
            assert_eq!(before, GOOD, "freed twice");
        });
    }
}

/// Explores all executions with at most `preemptions` forced switches.
pub fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Explores a model with a fault in it, which loom must find, and returns what it said.
pub fn explore_faulty(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| explore(preemptions, model)))
        .expect_err("the model has a fault in it, and loom found nothing");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic
            .downcast_ref::<&str>()
            .map_or_else(String::new, |message| message.to_string()),
    }
}
