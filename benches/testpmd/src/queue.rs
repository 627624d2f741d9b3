//! The client's side of work queues and completion queues, over the same memfd and with the same protocol code as any
//! client's.
use std::sync::{Arc, atomic::Ordering};

use anyhow::{Context as _, Result};
use rnic_abi::{Cqe, RING_ENTRIES, RingIndices, WQE_UNIT, Wqe, protocol};
use rnic_engine::mem::{ClientMem, SharedU32};

/// A send or receive queue of WQEs of one unit.
pub struct WorkQueue {
    mem: Arc<ClientMem>,
    tail_word: SharedU32,
    need_kick: SharedU32,
    entries: usize,
    mask: u32,
    tail: u32,
}

impl WorkQueue {
    /// The queue of `depth` units at `offset`; a core has not looked at it yet.
    pub fn new(mem: &Arc<ClientMem>, offset: usize, depth: u32) -> Result<Self> {
        let word = |at: usize| mem.u32(offset + at).context("a queue leaves the region");
        let need_kick = word(RingIndices::NEED_KICK)?;
        need_kick.store(1, Ordering::Release);
        Ok(WorkQueue {
            mem: mem.clone(),
            tail_word: word(RingIndices::TAIL)?,
            need_kick,
            entries: offset + RING_ENTRIES,
            mask: depth - 1,
            tail: 0,
        })
    }

    /// Writes one WQE; nobody sees it before [`WorkQueue::publish`].
    #[inline]
    pub fn push(&mut self, wqe: &Wqe) {
        let at = self.entries + (self.tail & self.mask) as usize * WQE_UNIT;
        // Cannot leave the region: the slice was checked by the engine.
        self.mem.write(at, wqe);
        self.tail = self.tail.wrapping_add(1);
    }

    /// How many were written.
    #[inline]
    pub fn posted(&self) -> u32 {
        self.tail
    }

    /// Shows what was written; whether the doorbell is to be rung.
    #[inline]
    pub fn publish(&self) -> bool {
        protocol::publish_tail(&self.tail_word, self.tail, &self.need_kick)
    }

    /// Shows receives, which need no doorbell.
    #[inline]
    pub fn publish_receives(&self) {
        protocol::publish(&self.tail_word, self.tail);
    }
}

/// The consumer of one core's sub-ring of a completion queue.
pub struct CompletionQueue {
    mem: Arc<ClientMem>,
    tail_word: SharedU32,
    head_word: SharedU32,
    entries: usize,
    depth: u32,
    head: u32,
}

impl CompletionQueue {
    /// That of `core`, of the queue at `offset` with `depth` entries for each.
    pub fn new(mem: &Arc<ClientMem>, offset: usize, depth: u32, core: u32) -> Result<Self> {
        let ring = offset + rnic_abi::cq_subring_offset(depth, core);
        let word = |at: usize| mem.u32(ring + at).context("a queue leaves the region");
        Ok(CompletionQueue {
            mem: mem.clone(),
            tail_word: word(RingIndices::TAIL)?,
            head_word: word(RingIndices::HEAD)?,
            entries: ring + RING_ENTRIES,
            depth,
            head: 0,
        })
    }

    /// Gives every new entry to `take`, and its places back.
    #[inline]
    pub fn poll(&mut self, mut take: impl FnMut(&Cqe)) -> u32 {
        let available = protocol::available(&self.tail_word, self.head, self.depth).unwrap_or(0);
        for i in 0..available {
            let index = self.head.wrapping_add(i) & (self.depth - 1);
            if let Some(cqe) = self
                .mem
                .read::<Cqe>(self.entries + index as usize * size_of::<Cqe>())
            {
                take(&cqe);
            }
        }
        if available > 0 {
            self.head = self.head.wrapping_add(available);
            protocol::give_back(&self.head_word, self.head);
        }
        available
    }
}
