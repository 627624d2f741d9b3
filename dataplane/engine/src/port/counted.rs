//! Counts of how a port is used: how often it is polled and how full the bursts are.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{OpenPort, Port, PortCaps, PortStats, wrap};
use crate::frame::{FrameBurst, SharedPool};

/// Bursts of 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31 and 32 frames, received and sent, and frames not taken.
#[derive(Default)]
struct Usage {
    rx: [AtomicU64; 7],
    tx: [AtomicU64; 7],
    refused: AtomicU64,
}

const RX_NAMES: [&str; 7] = [
    "rx_bursts_of_0",
    "rx_bursts_of_1",
    "rx_bursts_of_2_to_3",
    "rx_bursts_of_4_to_7",
    "rx_bursts_of_8_to_15",
    "rx_bursts_of_16_to_31",
    "rx_bursts_of_32",
];
const TX_NAMES: [&str; 7] = [
    "tx_bursts_of_0",
    "tx_bursts_of_1",
    "tx_bursts_of_2_to_3",
    "tx_bursts_of_4_to_7",
    "tx_bursts_of_8_to_15",
    "tx_bursts_of_16_to_31",
    "tx_bursts_of_32",
];

/// Counts the bursts of a port by size, and the frames that sending refused; [`Link::counters`](super::Link::counters)
/// shows them, over all queues.
pub fn counted(port: OpenPort) -> OpenPort {
    let queues: Vec<Arc<Usage>> = port.queues.iter().map(|_| Arc::default()).collect();
    let mut next = queues.clone().into_iter();
    let around = |inner| -> Box<dyn Port> {
        let usage = next.next().unwrap_or_default();
        Box::new(Counted { inner, usage })
    };
    let counters = move || {
        let total = |pick: &dyn Fn(&Usage) -> &AtomicU64| -> u64 {
            queues
                .iter()
                .map(|usage| pick(usage).load(Ordering::Relaxed))
                .sum()
        };
        let rx = RX_NAMES
            .iter()
            .enumerate()
            .map(|(i, name)| (*name, total(&|usage| &usage.rx[i])));
        let tx = TX_NAMES
            .iter()
            .enumerate()
            .map(|(i, name)| (*name, total(&|usage| &usage.tx[i])));
        let refused = ("tx_refused", total(&|usage| &usage.refused));
        rx.chain(tx).chain([refused]).collect()
    };
    wrap::wrap(port, around, counters, || ())
}

struct Counted {
    inner: Box<dyn Port>,
    usage: Arc<Usage>,
}

/// The bucket for a burst of `n` frames: the number of bits `n` has.
fn bucket(n: usize) -> usize {
    (usize::BITS - n.leading_zeros()).min(6) as usize
}

/// Adds to a counter that this thread alone writes.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Port for Counted {
    fn caps(&self) -> PortCaps {
        self.inner.caps()
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        let n = self.inner.rx_at_most(out, most);
        add(&self.usage.rx[bucket(n)], 1);
        n
    }

    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        let n = self.inner.tx_burst(frames);
        add(&self.usage.tx[bucket(n)], 1);
        add(&self.usage.refused, frames.len() as u64);
        n
    }

    fn pool(&self) -> &SharedPool {
        self.inner.pool()
    }

    fn stats(&self) -> PortStats {
        self.inner.stats()
    }

    fn tick(&mut self, now_ns: u64) {
        self.inner.tick(now_ns);
    }
}
