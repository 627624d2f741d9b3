//! A loom model of the registry's work queue: when cancelling returns, nothing of that work runs or will run. The code
//! under test is the daemon's own file, on loom's locks; a twin whose waiting does not wait must be caught.

#![allow(clippy::duplicate_mod, reason = "once sound, once broken")]

use std::panic::{AssertUnwindSafe, catch_unwind};

/// loom's locks under the names that the file uses. `WAITS` says whether waiting waits.
macro_rules! primitives {
    ($waits:literal) => {
        #[allow(dead_code, reason = "the model uses a part")]
        mod primitive {
            pub(super) use loom::{
                sync::{Arc, Condvar, Mutex, MutexGuard},
                thread::ThreadId,
            };

            pub(super) struct Class;
            impl Class {
                pub const fn new(_: &'static str) -> Self {
                    Class
                }
            }
            pub(super) struct Section;
            impl Section {
                pub fn enter(_: Class) -> Self {
                    Section
                }
            }
            pub(super) fn might_take(_: Class) {}
            pub(super) fn current_thread() -> ThreadId {
                loom::thread::current().id()
            }

            pub(super) struct OrderedMutex<T>(Mutex<T>);
            impl<T> OrderedMutex<T> {
                pub fn new(_: Class, value: T) -> Self {
                    OrderedMutex(Mutex::new(value))
                }
                pub fn lock(&self) -> OrderedGuard<'_, T> {
                    OrderedGuard(self.0.lock().unwrap())
                }
            }
            pub(super) struct OrderedGuard<'a, T>(MutexGuard<'a, T>);
            impl<T> OrderedGuard<'_, T> {
                pub fn wait_while(
                    mut self,
                    changed: &Condvar,
                    mut condition: impl FnMut(&mut T) -> bool,
                ) -> Self {
                    // The worker's own waiting is for work and must work in both.
                    while condition(&mut self.0) {
                        if !$waits && super::CANCELLING.with(|c| c.get()) {
                            break;
                        }
                        self = OrderedGuard(changed.wait(self.0).unwrap());
                    }
                    self
                }
            }
            impl<T> std::ops::Deref for OrderedGuard<'_, T> {
                type Target = T;
                fn deref(&self) -> &T {
                    &self.0
                }
            }
            impl<T> std::ops::DerefMut for OrderedGuard<'_, T> {
                fn deref_mut(&mut self) -> &mut T {
                    &mut self.0
                }
            }
        }

        #[allow(dead_code, reason = "the model uses a part")]
        #[path = "../src/registry/work.rs"]
        mod work;

        loom::thread_local! {
            static CANCELLING: std::cell::Cell<bool> = std::cell::Cell::new(false);
        }

        /// Two tasks are queued, then their work is closed while a thread carries them out.
        pub fn model(flush: bool) {
            use loom::{
                sync::atomic::{AtomicUsize, Ordering::SeqCst},
                thread,
            };

            let queue = work::WorkQueue::new();
            let served = queue.clone();
            let worker = thread::spawn(move || served.run());
            let work = queue.attach();
            let removed = loom::sync::Arc::new(AtomicUsize::new(0));
            let ran = loom::sync::Arc::new(AtomicUsize::new(0));
            for _ in 0..2 {
                let (removed, ran) = (removed.clone(), ran.clone());
                let task = move || {
                    assert_eq!(removed.load(SeqCst), 0, "work on a removed device");
                    ran.fetch_add(1, SeqCst);
                    assert_eq!(removed.load(SeqCst), 0, "removed during work");
                };
                work.submit(task).unwrap();
            }
            CANCELLING.with(|c| c.set(true));
            if flush {
                work.flush()
            } else {
                work.cancel()
            }
            removed.store(1, SeqCst);
            CANCELLING.with(|c| c.set(false));
            assert!(work.submit(|| ()).is_err(), "work after the removal");
            if flush {
                assert_eq!(ran.load(SeqCst), 2, "finished, not dropped");
            }
            queue.stop();
            worker.join().unwrap();
        }
    };
}

#[path = "."]
mod sound {
    primitives!(true);
}

/// Waiting does not wait: what a removal by reference counts, or by nothing at all, comes to.
#[path = "."]
mod impatient {
    primitives!(false);
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn nothing_runs_after_cancelling_has_returned() {
    explore(|| sound::model(false));
}

#[test]
fn all_has_run_when_flushing_has_returned() {
    explore(|| sound::model(true));
}

#[test]
fn a_cancel_that_does_not_wait_for_what_runs_is_caught() {
    let found = catch_unwind(AssertUnwindSafe(|| explore(|| impatient::model(false))));
    let panic = found.expect_err("loom found nothing wrong with it");
    let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(
        text.contains("removed during work") || text.contains("on a removed device"),
        "{text}"
    );
}
