//! Ports without a driver.
use std::sync::Arc;

use rnic_engine::{
    frame::{Frame, FrameBurst, FramePool, SharedPool},
    port::{Link, OpenPort, Port, PortCaps, PortStats},
};

/// A pool that is always empty.
pub fn no_frames() -> SharedPool {
    Arc::new(NoFrames)
}

struct NoFrames;

impl FramePool for NoFrames {
    fn alloc(&self) -> Option<Frame> {
        None
    }
    fn room(&self) -> usize {
        0
    }
}

/// A link that is up.
struct Up;

impl Link for Up {
    fn is_up(&self) -> bool {
        true
    }
    fn speed_mbps(&self) -> Option<u32> {
        None
    }
    fn close(&mut self) {}
}

/// A queue that sends nothing.
struct Receiving<F> {
    pool: SharedPool,
    receive: F,
}

impl<F: FnMut(&SharedPool, &mut FrameBurst) -> usize + Send> Port for Receiving<F> {
    fn caps(&self) -> PortCaps {
        PortCaps {
            max_frame: 1514,
            rss: false,
            needs_polling: true,
        }
    }
    #[inline(never)]
    fn rx_at_most(&mut self, out: &mut FrameBurst, _most: usize) -> usize {
        (self.receive)(&self.pool, out)
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

/// A queue of which a poll core receives what `receive` says, in each of its passes.
pub fn queue(
    pool: &SharedPool,
    receive: impl FnMut(&SharedPool, &mut FrameBurst) -> usize + Send + 'static,
) -> Box<dyn Port> {
    let pool = pool.clone();
    Box::new(Receiving { pool, receive })
}

/// A port of such queues.
pub fn open(mtu: u16, pool: SharedPool, queues: Vec<Box<dyn Port>>) -> OpenPort {
    OpenPort {
        name: "rnic0".into(),
        driver: "test".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu,
        numa_node: None,
        queues,
        pool,
        link: Box::new(Up),
    }
}
