//! One core's producer side of a completion queue.
use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use rnic_abi::{Cqe, RING_ENTRIES, RingIndices, protocol};
use rnic_transport::BadField;

use super::{
    queue::InitError,
    records::{CoreArenas, CqRecord},
};
use crate::{
    arena::{ArenaBox, ArenaError, ArenaId},
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
    rec: ArenaBox<CqRecord>,
    mem: Arc<ClientMem>,
    arm: SharedU32,
    tail: SharedU32,
    head: SharedU32,
    entries: usize,
    channel: Option<Arc<OwnedFd>>,
    /// Stands in the core's list of touched CQs.
    pub(super) listed: bool,
    pub(crate) link: RetireLink,
}

impl CompletionQueue {
    /// The producer of one sub-ring, with its record in the arenas of the core it is for. Control thread.
    pub(crate) fn new(init: CqInit, arenas: &CoreArenas) -> Result<Box<Self>, InitError> {
        let CqInit {
            handle,
            client,
            number,
            region,
            offset,
            depth,
            subring,
            channel,
        } = init;
        let record = CqRecord {
            offset,
            depth,
            subring,
            handle,
            client,
            number,
            next: 0,
            seen_head: 0,
            broken: false,
            error_pending: false,
            fresh: false,
            solicited: false,
            channel: channel.is_some(),
        };
        check(&record, &region)?;
        Self::over(arenas.cqs.put(record)?, region, channel)
    }

    /// The queue of a record.
    fn over(
        rec: ArenaBox<CqRecord>,
        mem: Arc<ClientMem>,
        channel: Option<Arc<OwnedFd>>,
    ) -> Result<Box<Self>, InitError> {
        check(&rec, &mem)?;
        let at = rec.offset as usize;
        let ring = at + rnic_abi::cq_subring_offset(rec.depth, rec.subring);
        let word = |o| mem.u32(o).ok_or_else(|| misplaced(&rec, &mem));
        Ok(Box::new(CompletionQueue {
            arm: word(at)?,
            tail: word(ring + RingIndices::TAIL)?,
            head: word(ring + RingIndices::HEAD)?,
            entries: ring + RING_ENTRIES,
            channel,
            listed: false,
            link: RetireLink::default(),
            rec,
            mem,
        }))
    }

    /// The queue of a record that was found in an opened arena. Control thread.
    pub(crate) fn resume(
        rec: ArenaBox<CqRecord>,
        arena: ArenaId,
        region: Arc<ClientMem>,
        channel: Option<Arc<OwnedFd>>,
    ) -> Result<Box<Self>, ArenaError> {
        let (slot, value) = (rec.slot(), rec.offset);
        Self::over(rec, region, channel).map_err(|_| ArenaError::Contradiction {
            arena,
            slot,
            error: BadField {
                field: "offset",
                value,
                must: "where a queue of its depth and sub-ring fits the client's region",
            },
        })
    }

    /// Whether something of it is to be told: completions the arm word was not looked at for, or an error.
    pub(super) fn is_touched(&self) -> bool {
        self.rec.fresh || self.rec.error_pending
    }

    /// What of it is the same before and after a restart, in words.
    pub(crate) fn describe(&self) -> String {
        format!("{:?}", *self.rec)
    }

    /// Client's handle.
    pub fn handle(&self) -> u32 {
        self.rec.handle
    }

    /// Index of the client.
    pub fn client(&self) -> u32 {
        self.rec.client
    }

    /// Slot of the CQ.
    pub fn number(&self) -> u32 {
        self.rec.number
    }

    /// Where the next completion is placed.
    #[inline]
    pub fn position(&self) -> u32 {
        self.rec.next
    }

    /// Places and publishes a completion; `false` when there is no room, now and for ever after.
    #[inline]
    pub fn push(&mut self, cqe: &Cqe, solicited: bool) -> bool {
        let rec = &mut *self.rec;
        if rec.broken || !has_room(rec, &self.head) {
            rec.error_pending |= !rec.broken;
            rec.broken = true;
            return false;
        }
        let at = self.entries + (rec.next & (rec.depth - 1)) as usize * size_of::<Cqe>();
        // Cannot fail: the slice was checked when the queue was made.
        self.mem.write(at, cqe);
        rec.next = rec.next.wrapping_add(1);
        protocol::publish(&self.tail, rec.next);
        rec.fresh = true;
        rec.solicited |= solicited;
        true
    }

    /// Whether it has completions that the arm word was not looked at for.
    #[inline]
    pub(super) fn is_fresh(&self) -> bool {
        self.rec.fresh
    }

    /// Whether CQ_ERR is to be raised.
    #[inline]
    pub(super) fn error_pending(&self) -> bool {
        self.rec.error_pending
    }

    /// CQ_ERR was raised.
    pub(super) fn error_told(&mut self) {
        self.rec.error_pending = false;
    }

    /// CQ_ERR was raised, and nobody has heard of it.
    pub(super) fn error_untold(&mut self) {
        self.rec.error_pending = true;
    }

    /// Wakes the client if it has armed the queue. Once after a burst, for each queue that has fresh
    /// completions.
    #[inline]
    pub fn notify(&mut self) {
        self.rec.fresh = false;
        let solicited = std::mem::take(&mut self.rec.solicited);
        if protocol::take_arm(&self.arm, solicited)
            && let Some(channel) = &self.channel
        {
            wake(channel, &self.rec.handle.to_le_bytes());
        }
    }
}

/// A consumer index beyond the producer's is forged; the queue then counts as full.
#[inline]
fn has_room(rec: &mut CqRecord, head: &SharedU32) -> bool {
    if rec.next.wrapping_sub(rec.seen_head) < rec.depth {
        return true;
    }
    rec.seen_head = protocol::given_back(head);
    rec.next.wrapping_sub(rec.seen_head) < rec.depth
}

fn misplaced(rec: &CqRecord, mem: &ClientMem) -> InitError {
    InitError::Slice {
        offset: rec.offset,
        depth: rec.depth,
        region: mem.len(),
    }
}

/// Checks that the queue fits the region.
fn check(rec: &CqRecord, mem: &ClientMem) -> Result<(), InitError> {
    let CqRecord {
        offset,
        depth,
        subring,
        ..
    } = *rec;
    if !depth.is_power_of_two() || depth > 1 << 24 || subring > 1 << 10 {
        return Err(misplaced(rec, mem));
    }
    let size = rnic_abi::completion_queue_size(depth, subring + 1) as u64;
    let fits = mem.range(offset, size);
    fits.map(drop).ok_or_else(|| misplaced(rec, mem))
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
