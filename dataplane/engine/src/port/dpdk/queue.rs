//! One queue pair of a DPDK port.
use std::sync::Arc;

use dpdk_sys::{Burst, RxQueue, TxQueue};

use super::pool::{MbufPool, frame_of, mbuf_of};
use crate::{
    frame::{BURST, Frame, FrameBurst, SharedPool},
    port::{Port, PortCaps, PortStats},
};

pub(super) struct DpdkPort {
    /// Received, but beyond what the caller had room for.
    surplus: FrameBurst,
    rx: RxQueue,
    tx: TxQueue,
    caps: PortCaps,
    stats: PortStats,
    /// For copies of frames of another kind.
    copies: MbufPool,
    pool: SharedPool,
}

impl DpdkPort {
    pub fn new(rx: RxQueue, tx: TxQueue, caps: PortCaps, pool: MbufPool) -> Self {
        DpdkPort {
            surplus: FrameBurst::new_const(),
            rx,
            tx,
            caps,
            stats: PortStats::default(),
            pool: Arc::new(pool.clone()),
            copies: pool,
        }
    }

    fn take_surplus(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        let n = self.surplus.len().min(out.remaining_capacity()).min(most);
        out.extend(self.surplus.drain(..n));
        n
    }

    /// A buffer to send for `frame`. The frame comes back when no buffer is left for its copy; nothing comes back
    /// when it is too long ever to be copied.
    #[cold]
    fn copy(&mut self, frame: Frame) -> Result<Option<dpdk_sys::Mbuf>, Frame> {
        if frame.len() > self.pool.room() {
            self.stats.tx_dropped += 1;
            return Ok(None);
        }
        match self.copies.copy(frame.bytes()) {
            Some(copy) => Ok(Some(copy)),
            None => Err(frame),
        }
    }
}

impl Port for DpdkPort {
    fn caps(&self) -> PortCaps {
        self.caps
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        if !self.surplus.is_empty() {
            return self.take_surplus(out, most);
        }
        if out.is_full() {
            return 0;
        }
        let mut burst = Burst::<BURST>::new();
        if self.rx.rx_at_most(&mut burst, most) == 0 {
            return 0;
        }
        let (before, mut bytes) = (out.len(), 0);
        for mut mbuf in burst.drain() {
            if mbuf.nb_segs() != 1 && mbuf.linearise().is_err() {
                self.stats.rx_dropped += 1;
                continue;
            }
            let frame = frame_of(mbuf);
            self.stats.rx_frames += 1;
            bytes += frame.len() as u64;
            if let Err(full) = out.try_push(frame) {
                self.surplus.push(full.element());
            }
        }
        self.stats.rx_bytes += bytes;
        out.len() - before
    }

    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        let offered = frames.len();
        let mut burst = Burst::<BURST>::new();
        // Frames for which there is no buffer now, in order behind those in `burst`.
        let mut kept = FrameBurst::new_const();
        for frame in frames.drain(..) {
            let mbuf = match mbuf_of(frame) {
                Ok(mbuf) if kept.is_empty() => Ok(Some(mbuf)),
                Ok(mbuf) => Err(frame_of(mbuf)),
                Err(frame) if kept.is_empty() => self.copy(frame),
                Err(frame) => Err(frame),
            };
            match mbuf {
                // As many buffers fit as the caller's burst has frames.
                Ok(Some(mbuf)) => drop(burst.push(mbuf)),
                Ok(None) => {}
                Err(frame) => kept.push(frame),
            }
        }
        let total: u64 = burst.iter().map(|mbuf| u64::from(mbuf.pkt_len())).sum();
        let sent = self.tx.tx_burst(&mut burst);
        let refused: u64 = burst.iter().map(|mbuf| u64::from(mbuf.pkt_len())).sum();
        self.stats.tx_frames += sent as u64;
        self.stats.tx_bytes += total - refused;
        frames.extend(burst.drain().map(frame_of));
        frames.extend(kept);
        offered - frames.len()
    }

    fn pool(&self) -> &SharedPool {
        &self.pool
    }

    fn stats(&self) -> PortStats {
        self.stats
    }
}
