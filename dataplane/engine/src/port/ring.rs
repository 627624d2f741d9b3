//! Two ports joined back to back in one process, in Rust alone: what one sends the other receives, frame by
//! frame, without a copy.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::{
    frame::{Frame, FrameBurst, SharedPool},
    port::{Link, OpenPort, Port, PortCaps, PortStats, mac_of_name},
};

/// Frames each direction of each queue holds.
pub const RING_FRAMES: usize = 1024;

/// One end of a pair.
#[derive(Clone)]
pub struct RingEnd {
    /// Name of the port.
    pub name: String,
    /// Its MAC address; `None` for one made from the name.
    pub mac: Option<[u8; 6]>,
    /// Link MTU in bytes; cut to what a buffer of `pool` can hold beside the Ethernet header.
    pub mtu: u16,
    /// Where frames this end sends come from.
    pub pool: SharedPool,
}

/// Two ports of `queues` queues each (at least one), joined back to back: what one sends on queue *q* the other
/// receives on queue *q*, in order. Both take their frames from `pool`. Control thread only.
pub fn ring_pair(
    name_a: &str,
    name_b: &str,
    queues: u16,
    mtu: u16,
    pool: SharedPool,
) -> (OpenPort, OpenPort) {
    let end = |name: &str| RingEnd {
        name: name.to_owned(),
        mac: None,
        mtu,
        pool: Arc::clone(&pool),
    };
    ring_pair_of(end(name_a), end(name_b), queues, RING_FRAMES)
}

/// As [`ring_pair`], of two ends that differ, with `frames` places in each direction of each queue.
pub fn ring_pair_of(a: RingEnd, b: RingEnd, queues: u16, frames: usize) -> (OpenPort, OpenPort) {
    let up = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
    let (mut queues_a, mut queues_b) = (Vec::new(), Vec::new());
    for _ in 0..queues.max(1) {
        let (tx_a, rx_b) = RingBuffer::new(frames);
        let (tx_b, rx_a) = RingBuffer::new(frames);
        queues_a.push(RingPort::boxed(&a, &b, rx_a, tx_a));
        queues_b.push(RingPort::boxed(&b, &a, rx_b, tx_b));
    }
    let [up_a, up_b] = up;
    let link_a = RingLink {
        own: Arc::clone(&up_a),
        peer: Arc::clone(&up_b),
    };
    let link_b = RingLink {
        own: up_b,
        peer: up_a,
    };
    (open(a, queues_a, link_a), open(b, queues_b, link_b))
}

fn open(end: RingEnd, queues: Vec<Box<dyn Port>>, link: RingLink) -> OpenPort {
    OpenPort {
        mac: end.mac.unwrap_or_else(|| mac_of_name(&end.name)),
        mtu: end.link_mtu(),
        name: end.name,
        driver: "ring".to_owned(),
        numa_node: None,
        queues,
        pool: end.pool,
        link: Box::new(link),
    }
}

impl RingEnd {
    fn link_mtu(&self) -> u16 {
        let holds = self.pool.room().saturating_sub(ETHERNET);
        self.mtu.min(u16::try_from(holds).unwrap_or(u16::MAX))
    }
}

const ETHERNET: usize = 14;

struct RingPort {
    // Before the pools: frames still in the rings go back to them.
    rx: Consumer<Frame>,
    tx: Producer<Frame>,
    max_frame: usize,
    stats: PortStats,
    pool: SharedPool,
    /// The end that goes last gives back what the other has sent.
    _peer_pool: SharedPool,
}

impl RingPort {
    fn boxed(end: &RingEnd, peer: &RingEnd, rx: Consumer<Frame>, tx: Producer<Frame>) -> Box<dyn Port> {
        Box::new(RingPort {
            rx,
            tx,
            max_frame: usize::from(end.link_mtu()) + ETHERNET,
            stats: PortStats::default(),
            pool: Arc::clone(&end.pool),
            _peer_pool: Arc::clone(&peer.pool),
        })
    }
}

impl Port for RingPort {
    fn caps(&self) -> PortCaps {
        PortCaps {
            max_frame: self.max_frame,
            rss: false,
            needs_polling: true,
        }
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        let ready = self.rx.slots().min(out.remaining_capacity()).min(most);
        let Ok(chunk) = self.rx.read_chunk(ready) else {
            return 0;
        };
        for frame in chunk {
            self.stats.rx_bytes += frame.len() as u64;
            out.push(frame);
        }
        self.stats.rx_frames += ready as u64;
        ready
    }

    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        let n = frames.len().min(self.tx.slots());
        let Ok(chunk) = self.tx.write_chunk_uninit(n) else {
            return 0;
        };
        let bytes: usize = frames[..n].iter().map(Frame::len).sum();
        chunk.fill_from_iter(frames.drain(..n));
        self.stats.tx_frames += n as u64;
        self.stats.tx_bytes += bytes as u64;
        n
    }

    fn pool(&self) -> &SharedPool {
        &self.pool
    }

    fn stats(&self) -> PortStats {
        self.stats
    }
}

/// A pair is up until one of its ends is closed.
struct RingLink {
    own: Arc<AtomicBool>,
    peer: Arc<AtomicBool>,
}

impl Link for RingLink {
    fn is_up(&self) -> bool {
        self.own.load(Ordering::Acquire) && self.peer.load(Ordering::Acquire)
    }

    fn speed_mbps(&self) -> Option<u32> {
        None
    }

    fn close(&mut self) {
        self.own.store(false, Ordering::Release);
    }
}
