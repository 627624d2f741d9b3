//! One core's producer side of a completion queue.
use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use rnic_abi::{Cqe, RING_ENTRIES, RingIndices, protocol};

use super::queue::InitError;
use crate::{
    mem::{ClientMem, SharedU32},
    retire::RetireLink,
};

/// What the control thread knows when it makes a CQ.
pub struct CqInit {
    /// Client's handle.
    pub handle: u32,
    /// Index of the client.
    pub client: u32,
    /// Slot of the CQ.
    pub number: u32,
    /// The client's region.
    pub region: Arc<ClientMem>,
    /// Where the queue stands in it.
    pub offset: u64,
    /// Entries of each sub-ring, a power of two.
    pub depth: u32,
    /// Which sub-ring: the core's index.
    pub subring: u32,
    /// The daemon's end of the completion channel.
    pub channel: Option<Arc<OwnedFd>>,
}

/// The producer. It stops for good when the client lets it overflow, as a CQ of an RNIC does.
pub struct CompletionQueue {
    mem: Arc<ClientMem>,
    arm: SharedU32,
    tail: SharedU32,
    head: SharedU32,
    entries: usize,
    depth: u32,
    next: u32,
    /// The consumer's index when it was last looked at.
    seen_head: u32,
    handle: u32,
    client: u32,
    number: u32,
    channel: Option<Arc<OwnedFd>>,
    /// Overflown; reported once.
    broken: bool,
    /// CQ_ERR is to be raised.
    pub(super) error_pending: bool,
    /// Stands in the core's list of touched CQs.
    pub(super) listed: bool,
    /// Completions since the last look at the arm word, and whether one was solicited.
    pub(super) fresh: bool,
    solicited: bool,
    pub(crate) link: RetireLink,
}

impl CompletionQueue {
    /// The producer of one sub-ring. Control thread.
    pub fn new(init: CqInit) -> Result<Box<Self>, InitError> {
        let CqInit {
            handle,
            client,
            number,
            region: mem,
            offset,
            depth,
            subring,
            channel,
        } = init;
        let error = || InitError::Slice {
            offset,
            depth,
            region: mem.len(),
        };
        if !depth.is_power_of_two() || depth > 1 << 24 || subring > 1 << 10 {
            return Err(error());
        }
        let size = rnic_abi::completion_queue_size(depth, subring + 1) as u64;
        mem.range(offset, size).ok_or_else(error)?;
        let at = offset as usize;
        let ring = at + rnic_abi::cq_subring_offset(depth, subring);
        let word = |o| mem.u32(o).ok_or_else(error);
        Ok(Box::new(CompletionQueue {
            arm: word(at)?,
            tail: word(ring + RingIndices::TAIL)?,
            head: word(ring + RingIndices::HEAD)?,
            entries: ring + RING_ENTRIES,
            depth,
            next: 0,
            seen_head: 0,
            handle,
            client,
            number,
            channel,
            broken: false,
            error_pending: false,
            listed: false,
            fresh: false,
            solicited: false,
            link: RetireLink::default(),
            mem,
        }))
    }

    /// Client's handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Index of the client.
    pub fn client(&self) -> u32 {
        self.client
    }

    /// Slot of the CQ.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Places and publishes a completion; `false` when there is no room, now and for ever after.
    #[inline]
    pub fn push(&mut self, cqe: &Cqe, solicited: bool) -> bool {
        if self.broken || !self.has_room() {
            self.error_pending |= !self.broken;
            self.broken = true;
            return false;
        }
        let at = self.entries + (self.next & (self.depth - 1)) as usize * size_of::<Cqe>();
        // Cannot fail: the slice was checked when the queue was made.
        self.mem.write(at, cqe);
        self.next = self.next.wrapping_add(1);
        self.tail.store(self.next, Ordering::Release);
        self.fresh = true;
        self.solicited |= solicited;
        true
    }

    /// A consumer index beyond the producer's is forged; the queue then counts as full.
    #[inline]
    fn has_room(&mut self) -> bool {
        if self.next.wrapping_sub(self.seen_head) < self.depth {
            return true;
        }
        self.seen_head = self.head.load(Ordering::Acquire);
        self.next.wrapping_sub(self.seen_head) < self.depth
    }

    /// Wakes the client if it has armed the queue. Once after a burst, for each queue that has fresh
    /// completions.
    #[inline]
    pub fn notify(&mut self) {
        self.fresh = false;
        let solicited = std::mem::take(&mut self.solicited);
        if protocol::take_arm(&self.arm, solicited)
            && let Some(channel) = &self.channel
        {
            wake(channel, &self.handle.to_le_bytes());
        }
    }
}

/// One non-blocking datagram. A client that does not read its socket loses wakes, and nobody else does.
pub(super) fn wake(socket: &OwnedFd, message: &[u8]) {
    // SAFETY: the buffer is valid for its length; the flags keep the call from blocking and from SIGPIPE.
    unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
}
