//! One core's producer side of a completion queue.
use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use rnic_abi::{Cqe, RING_ENTRIES, RingIndices, protocol};
use rnic_transport::{BadField, Time};

use super::{
    queue::InitError,
    records::{CoreArenas, CqPlace, CqRecord},
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
    ring: Ring,
    channel: Option<Arc<OwnedFd>>,
    /// Stands in the core's list of touched CQs.
    pub(super) listed: bool,
    pub(crate) link: RetireLink,
}

/// Where the sub-ring stands: found again whenever the CQ moves.
struct Ring {
    arm: SharedU32,
    tail: SharedU32,
    head: SharedU32,
    entries: usize,
}

impl Ring {
    /// The sub-ring of a CQ at `place`, if it fits the region.
    fn at(place: CqPlace, subring: u32, mem: &ClientMem) -> Option<Ring> {
        if !place.is_sound() || subring > 1 << 10 {
            return None;
        }
        let size = rnic_abi::completion_queue_size(place.depth(), subring + 1);
        mem.range(place.offset(), size as u64)?;
        let at = place.offset() as usize;
        let ring = at + rnic_abi::cq_subring_offset(place.depth(), subring);
        Some(Ring {
            arm: mem.u32(at)?,
            tail: mem.u32(ring + RingIndices::TAIL)?,
            head: mem.u32(ring + RingIndices::HEAD)?,
            entries: ring + RING_ENTRIES,
        })
    }
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
        let misplaced = || InitError::Slice {
            offset,
            depth,
            region: region.len(),
        };
        let place = CqPlace::new(offset, depth).ok_or_else(misplaced)?;
        let ring = Ring::at(place, subring, &region).ok_or_else(misplaced)?;
        let record = CqRecord {
            place,
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
            count: 0,
            period: 0,
            told: 0,
            due: Time::NEVER,
        };
        Ok(Self::over(arenas.cqs.put(record)?, ring, region, channel))
    }

    /// The queue of a record.
    fn over(
        rec: ArenaBox<CqRecord>,
        ring: Ring,
        mem: Arc<ClientMem>,
        channel: Option<Arc<OwnedFd>>,
    ) -> Box<Self> {
        Box::new(CompletionQueue {
            rec,
            mem,
            ring,
            channel,
            listed: false,
            link: RetireLink::default(),
        })
    }

    /// The queue of a record that was found in an opened arena. Control thread.
    pub(crate) fn resume(
        rec: ArenaBox<CqRecord>,
        arena: ArenaId,
        region: Arc<ClientMem>,
        channel: Option<Arc<OwnedFd>>,
    ) -> Result<Box<Self>, ArenaError> {
        let (slot, value) = (rec.slot(), rec.place.offset());
        let ring = Ring::at(rec.place, rec.subring, &region).ok_or(ArenaError::Contradiction {
            arena,
            slot,
            error: BadField {
                field: "place",
                value,
                must: "where a queue of its depth and sub-ring fits the client's region",
            },
        })?;
        Ok(Self::over(rec, ring, region, channel))
    }

    /// Goes on in another place, where the client has nothing to read yet: what stands in the old one is older, and was
    /// told there. Nothing happens when it is there already; nothing, too, when it does not fit, which the control
    /// thread has seen to.
    pub(super) fn resize(&mut self, offset: u64, depth: u32) {
        let place = CqPlace::new(offset, depth).filter(|place| *place != self.rec.place);
        let Some((place, ring)) =
            place.and_then(|place| Some((place, Ring::at(place, self.rec.subring, &self.mem)?)))
        else {
            return;
        };
        if self.rec.fresh {
            self.wake_if_armed();
        }
        // The indices go on, so that a position means one completion for good.
        protocol::give_back(&ring.head, self.rec.next);
        protocol::publish(&ring.tail, self.rec.next);
        self.rec.place = place;
        self.rec.seen_head = self.rec.next;
        self.ring = ring;
    }

    /// Wakes the client from now on after `count` completions or `period` microseconds after the first of them.
    pub(super) fn moderate(&mut self, count: u16, period: u16) {
        (self.rec.count, self.rec.period) = (count, period);
        self.rec.due = Time::NEVER;
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

    /// Whether the next completion finds room.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        !self.rec.broken && has_room(&mut self.rec, &self.ring.head)
    }

    /// Places and publishes a completion; `false` when there is no room, now and for ever after.
    #[inline]
    pub fn push(&mut self, cqe: &Cqe, solicited: bool) -> bool {
        let rec = &mut *self.rec;
        if rec.broken || !has_room(rec, &self.ring.head) {
            rec.error_pending |= !rec.broken;
            rec.broken = true;
            return false;
        }
        let at = self.ring.entries + (rec.next & (rec.place.depth() - 1)) as usize * size_of::<Cqe>();
        // Cannot fail: the slice was checked when the queue was made.
        self.mem
            .write_words::<{ size_of::<Cqe>() / 8 }>(at, zerocopy::transmute!(*cqe));
        rec.next = rec.next.wrapping_add(1);
        protocol::publish(&self.ring.tail, rec.next);
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

    /// Wakes the client if it has armed the queue. Once after a burst, for each queue that has fresh completions. When it
    /// is to be woken later, by when: then ask again in the next pass.
    #[inline]
    pub(super) fn notify(&mut self, now: Time) -> Option<Time> {
        if self.rec.period != 0
            && let Some(due) = self.waits(now)
        {
            return Some(due);
        }
        self.wake_if_armed();
        None
    }

    /// The time by which a moderated queue wakes a client that is waiting for it; `None` when it does so now, or nobody
    /// waits.
    fn waits(&mut self, now: Time) -> Option<Time> {
        let rec = &mut *self.rec;
        let enough = rec.count > 0 && rec.next.wrapping_sub(rec.told) >= u32::from(rec.count);
        if enough || rec.due <= now {
            return None;
        }
        if rec.due == Time::NEVER {
            if !protocol::is_armed(&self.ring.arm, rec.solicited) {
                return None;
            }
            rec.due = now.saturating_add(u64::from(rec.period) * 1000);
        }
        Some(rec.due)
    }

    #[inline]
    fn wake_if_armed(&mut self) {
        let rec = &mut *self.rec;
        rec.fresh = false;
        (rec.told, rec.due) = (rec.next, Time::NEVER);
        let solicited = std::mem::take(&mut rec.solicited);
        if protocol::take_arm(&self.ring.arm, solicited)
            && let Some(channel) = &self.channel
        {
            wake(channel, &rec.handle.to_le_bytes());
        }
    }
}

/// A consumer index beyond the producer's is forged; the queue then counts as full.
#[inline]
fn has_room(rec: &mut CqRecord, head: &SharedU32) -> bool {
    let depth = rec.place.depth();
    if rec.next.wrapping_sub(rec.seen_head) < depth {
        return true;
    }
    rec.seen_head = protocol::given_back(head);
    rec.next.wrapping_sub(rec.seen_head) < depth
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
