//! What may block says so, and what the reclaimer drops is in the order of locks (DESIGN I1, I7).
use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::Arc,
    time::Duration,
};

use rnic_engine::nonblocking::NonBlocking;

use crate::{
    lock_order::{Class, OrderedMutex, might_take},
    mapper::{MapRequest, Mapper},
    netlink::Scanner,
    poller::Poller,
    registry::{Work, Worker},
    testing::*,
};

#[test]
fn a_lock_that_a_reclaimed_destructor_takes_is_none_to_reclaim_under() {
    static LOCK: OrderedMutex<()> = OrderedMutex::new(Class::new("test reclaimed"), ());
    struct Takes;
    impl Drop for Takes {
        fn drop(&mut self) {
            drop(LOCK.lock());
        }
    }
    let ports = "addresses: [10.0.0.1/24]";
    let mut held = HeldControl::new(ports);
    let control = &mut held.control;
    let epoch = control.engine.start_grace();
    control.engine.retire(Box::new(Takes), epoch, 0);
    wait_for(|| control.has_passed(epoch));
    // Nothing is left to be freed, and nothing could deadlock; the order is wrong all the same.
    let passes = catch_unwind(AssertUnwindSafe(|| {
        let _held = LOCK.lock();
        control.has_passed(epoch)
    }));
    let report = *passes.expect_err("a report").downcast::<String>().unwrap();
    assert!(report.contains("reclaim is taken at"), "{report}");
    held.end();
}

/// Tells the test binary which call to make inside a section.
const CASE: &str = "RNIC_TEST_MAY_BLOCK";
const NAME: &str = "tests::blocking::every_call_that_may_block_says_so_before_anything_else";

/// Calls that may block, each inside a section. What they need is made before.
const MAY_BLOCK: [(&str, fn()); 7] = [
    ("lock", || {
        let lock = OrderedMutex::new(Class::new("test"), ());
        let _section = NonBlocking::enter();
        drop(lock.lock());
    }),
    ("might_take", || {
        let _section = NonBlocking::enter();
        might_take(Class::new("test"));
    }),
    ("submit_work", || {
        let (_worker, work) = worker();
        let _section = NonBlocking::enter();
        work.cancel();
    }),
    ("end_a_worker", || {
        let (worker, _work) = worker();
        let _section = NonBlocking::enter();
        drop(worker);
    }),
    ("map", || {
        let mapper = Mapper::start().unwrap();
        let request = MapRequest {
            fd: sealed_memfd(8192),
            offset: 0,
            length: 8192,
            fault: Arc::default(),
        };
        let _section = NonBlocking::enter();
        mapper.map(1, request);
    }),
    ("sleep", || {
        let poller = Poller::new().unwrap();
        let mut ready = Vec::new();
        let _section = NonBlocking::enter();
        poller.wait(Some(Duration::ZERO), &mut ready);
    }),
    ("look_at_an_interface", || {
        let mut scanner = Scanner::new().unwrap();
        let _section = NonBlocking::enter();
        let _ = scanner.look(1);
    }),
];

fn worker() -> (Worker, Work) {
    let worker = Worker::start("rnic-test").unwrap();
    let work = worker.queue().attach();
    (worker, work)
}

#[test]
fn every_call_that_may_block_says_so_before_anything_else() {
    if let Ok(case) = env::var(CASE) {
        return MAY_BLOCK.iter().find(|(name, _)| *name == case).unwrap().1();
    }
    for (case, _) in MAY_BLOCK {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CASE, case)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stderr);
        assert!(
            text.contains("a function that may block was called"),
            "{case} does not say that it may block: {text}"
        );
    }
}
