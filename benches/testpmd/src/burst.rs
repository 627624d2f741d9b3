//! Ports from which, and to which, fewer frames go at a time.
use rnic_engine::{
    frame::{FrameBurst, SharedPool},
    port::{OpenPort, Port, PortCaps, PortStats},
};

/// Has a port take and give at most `most` frames at a time.
pub fn limit(mut port: OpenPort, most: usize) -> OpenPort {
    let around = |inner| -> Box<dyn Port> {
        Box::new(Limited {
            inner,
            most,
            part: FrameBurst::new(),
        })
    };
    port.queues = port.queues.into_iter().map(around).collect();
    port
}

struct Limited {
    inner: Box<dyn Port>,
    most: usize,
    /// What is given at a time; empty between two calls.
    part: FrameBurst,
}

impl Port for Limited {
    fn caps(&self) -> PortCaps {
        self.inner.caps()
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        self.inner.rx_at_most(out, most.min(self.most))
    }

    /// Part by part, until all are sent or the port has no room: a core gives what it has at the end of a pass, and would
    /// otherwise have to hold the rest back.
    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        let mut sent = 0;
        while !frames.is_empty() {
            self.part.extend(frames.drain(..self.most.min(frames.len())));
            sent += self.inner.tx_burst(&mut self.part);
            if !self.part.is_empty() {
                self.part.extend(frames.drain(..));
                std::mem::swap(&mut self.part, frames);
                break;
            }
        }
        sent
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rnic_engine::{
        frame::BURST,
        port::{HeapPool, RingEnd, counted, ring_pair_of},
    };

    use super::*;

    /// A pair with room for `places` frames, limited to bursts of `most`, and the count of bursts by size below it.
    fn pair(places: usize, most: usize) -> (OpenPort, OpenPort) {
        let end = |name: &str| RingEnd {
            name: name.into(),
            mac: None,
            mtu: 1500,
            pool: Arc::new(HeapPool::new(256, 1600)),
        };
        let (a, b) = ring_pair_of(end("a"), end("b"), 1, places);
        (limit(counted(a), most), limit(counted(b), most))
    }

    fn frames(port: &OpenPort) -> FrameBurst {
        let mut frames = FrameBurst::new();
        assert_eq!(port.pool.alloc_burst(BURST, &mut frames), BURST);
        for (i, frame) in frames.iter_mut().enumerate() {
            assert!(frame.fill(&[i as u8; 60]));
        }
        frames
    }

    fn bursts(port: &OpenPort, name: &str) -> u64 {
        let counters = port.link.counters();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    #[test]
    fn a_port_gives_and_is_given_as_many_frames_at_a_time_as_said() {
        let (mut a, mut b) = pair(64, 4);
        let mut out = frames(&a);
        assert_eq!(a.queues[0].tx_burst(&mut out), BURST);
        assert_eq!(bursts(&a, "tx_bursts_of_4_to_7"), 8);
        let mut came = FrameBurst::new();
        for so_far in 1..=8 {
            assert_eq!(b.queues[0].rx_burst(&mut came), 4);
            assert_eq!(bursts(&b, "rx_bursts_of_4_to_7"), so_far);
        }
        let order: Vec<u8> = came.iter().map(|frame| frame.bytes()[0]).collect();
        assert_eq!(order, (0..BURST as u8).collect::<Vec<_>>());
    }

    #[test]
    fn what_the_port_has_no_room_for_stays_in_order() {
        let (mut a, mut b) = pair(10, 4);
        let mut out = frames(&a);
        assert_eq!(a.queues[0].tx_burst(&mut out), 10);
        assert_eq!(out.len(), BURST - 10);
        let (mut came, mut order) = (FrameBurst::new(), Vec::new());
        loop {
            a.queues[0].tx_burst(&mut out);
            if b.queues[0].rx_burst(&mut came) == 0 {
                break;
            }
            order.extend(came.drain(..).map(|frame| frame.bytes()[0]));
        }
        assert_eq!(order, (0..BURST as u8).collect::<Vec<_>>());
    }
}
