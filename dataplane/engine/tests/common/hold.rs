//! A core that a test can hold in the middle of a pass.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rnic_engine::{
    frame::{Frame, FrameBurst, FramePool, SharedPool},
    port::{Link, OpenPort, Port, PortCaps, PortStats},
};

use super::Rig;

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

pub struct HoldingPort {
    pool: SharedPool,
    hold: Option<Hold>,
}

pub struct NoFrames;

impl FramePool for NoFrames {
    fn alloc(&self) -> Option<Frame> {
        None
    }
    fn room(&self) -> usize {
        0
    }
}

impl Link for NoFrames {
    fn is_up(&self) -> bool {
        true
    }
    fn speed_mbps(&self) -> Option<u32> {
        None
    }
    fn close(&mut self) {}
}

impl Port for HoldingPort {
    fn caps(&self) -> PortCaps {
        PortCaps {
            max_frame: 1514,
            rss: false,
            needs_polling: true,
        }
    }
    fn rx_burst(&mut self, _out: &mut FrameBurst) -> usize {
        if let Some(hold) = &self.hold {
            while hold.wanted.load(SeqCst) {
                hold.held.store(true, SeqCst);
                std::thread::yield_now();
            }
            hold.held.store(false, SeqCst);
        }
        0
    }
    fn tx_burst(&mut self, _frames: &mut FrameBurst) -> usize {
        0
    }
    fn pool(&self) -> &SharedPool {
        &self.pool
    }
    fn stats(&self) -> PortStats {
        PortStats::default()
    }
}

/// Two cores, of which the second can be held.
pub fn two_cores() -> (Rig, Hold) {
    let pool: SharedPool = Arc::new(NoFrames);
    let hold = Hold::default();
    let queue = |hold| {
        Box::new(HoldingPort {
            pool: pool.clone(),
            hold,
        }) as Box<dyn Port>
    };
    let port = OpenPort {
        name: "rnic0".into(),
        driver: "holding".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        numa_node: None,
        queues: vec![queue(None), queue(Some(hold.clone()))],
        pool: pool.clone(),
        link: Box::new(NoFrames),
    };
    (Rig::new(2, vec![port]), hold)
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}
