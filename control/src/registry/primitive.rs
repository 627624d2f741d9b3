//! What the work queue is made of. The model (`tests/registry_model.rs`) puts loom's in its place.

pub(super) use std::thread::ThreadId;

pub(super) use std::sync::{Arc, Condvar};

pub(super) use crate::lock_order::{Class, OrderedMutex, Section, might_take};

/// The calling thread.
pub(super) fn current_thread() -> ThreadId {
    std::thread::current().id()
}
