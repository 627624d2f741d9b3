//! A core that a test can hold in the middle of a pass.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use super::{Rig, port};

/// Holds the core that polls its port in the middle of a pass.
#[derive(Clone, Default)]
pub struct Hold {
    wanted: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
}

impl Hold {
    pub fn hold(&self) {
        self.wanted.store(true, SeqCst);
        until("the core is held", || self.held.load(SeqCst));
    }

    pub fn release(&self) {
        self.wanted.store(false, SeqCst);
    }
}

/// Two cores, of which the second can be held.
pub fn two_cores() -> (Rig, Hold) {
    let pool = port::no_frames();
    let hold = Hold::default();
    let holding = {
        let hold = hold.clone();
        port::queue(&pool, move |_, _| {
            while hold.wanted.load(SeqCst) {
                hold.held.store(true, SeqCst);
                std::thread::yield_now();
            }
            hold.held.store(false, SeqCst);
            0
        })
    };
    let queues = vec![port::queue(&pool, |_, _| 0), holding];
    let mut rig = Rig::new(2, vec![port::open(1500, pool, queues)]);
    // What is held up is not asked for again, however long that takes.
    rig.timeout = 0;
    (rig, hold)
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}
