//! A shared receive queue on its core: one ring of receive WQEs for many QPs (10.2.9).
//!
//! It lives on one core, and so do all QPs that draw from it: a WQE is claimed by the QP whose message needs it, one
//! at a time, copied into that QP's record, and from then on that QP's alone.
use std::sync::Arc;

use rnic_abi::event_kind;
use rnic_transport::{BadField, Cause, Check};

use super::{
    queue::{InitError, QueueError, Ring, Unit},
    records::{CoreArenas, Cursor, NO_XRCD, Pending, SrqRecord},
    recv_queue::{AcceptedRecv, RECV_UNITS, RecvQueue},
};
use crate::{
    arena::{ArenaBox, ArenaError, ArenaId},
    command::ObjectEvent,
    mem::ClientMem,
    retire::RetireLink,
    view::slot_of,
};

/// What the control thread knows when it makes an SRQ.
pub struct SrqInit {
    /// Its number, whose slot is below `Limits::srqs`.
    pub number: u32,
    /// The core it is to live on.
    pub core: u32,
    /// Client's handle.
    pub handle: u32,
    /// Index of the client.
    pub client: u32,
    /// Protection domain of the memory its WQEs name.
    pub pd: u32,
    /// The client's region.
    pub region: Arc<ClientMem>,
    /// Where the ring stands in it.
    pub offset: u64,
    /// Units of the ring, a power of two.
    pub depth: u32,
    /// Units of each WQE, 1 to 9, whatever entries it has: WQEs can be counted.
    pub stride: u32,
    /// What an XRC SRQ has besides.
    pub xrc: Option<XrcPart>,
}

/// What an XRC SRQ has and others do not.
#[derive(Copy, Clone, Debug)]
pub struct XrcPart {
    /// Its XRC domain, from 1 on, whose target QPs live on the same core.
    pub xrcd: u32,
    /// Slot of the CQ that its receives complete to.
    pub cq: u32,
}

/// What an XRC target QP has from the XRC SRQ that a request names.
#[derive(Copy, Clone, Debug)]
pub(super) struct XrcMeans {
    pub number: u32,
    /// The handle by which its client knows it.
    pub handle: u32,
    /// Protection domain of keys and buffers.
    pub pd: u32,
    pub xrcd: u32,
    /// The CQ of receives.
    pub cq: u32,
}

/// A shared receive queue.
pub struct Srq {
    rec: ArenaBox<SrqRecord>,
    ring: RecvQueue,
    /// Stands in the core's list of SRQs with events.
    pub(super) listed: bool,
    pub(crate) link: RetireLink,
}

impl Srq {
    /// An SRQ with its record in the arenas of the core it is for. Control thread; it is moved there by
    /// [`crate::command::Command::AddSrq`].
    pub(crate) fn new(init: SrqInit, arenas: &CoreArenas) -> Result<Box<Self>, InitError> {
        let cursor = Cursor {
            offset: init.offset,
            depth: init.depth,
            next: 0,
        };
        let ring = Ring::new(&init.region, &cursor)?;
        let rec = arenas.srqs.put(SrqRecord {
            number: init.number,
            handle: init.handle,
            client: init.client,
            pd: init.pd,
            ring: cursor,
            stride: init.stride,
            limit: 0,
            xrcd: init.xrc.map_or(NO_XRCD, |xrc| xrc.xrcd),
            cq: init.xrc.map_or(0, |xrc| xrc.cq),
            failed: false,
            pending: Pending::default(),
        })?;
        Ok(Box::new(Self::over(rec, ring)))
    }

    fn over(rec: ArenaBox<SrqRecord>, ring: Ring) -> Self {
        Srq {
            rec,
            ring: RecvQueue::new(ring),
            listed: false,
            link: RetireLink::default(),
        }
    }

    /// The SRQ of a record that was found in an opened arena. Control thread.
    pub(crate) fn resume(
        rec: ArenaBox<SrqRecord>,
        arena: ArenaId,
        region: &Arc<ClientMem>,
    ) -> Result<Box<Self>, ArenaError> {
        let slot = rec.slot();
        let wrong = |field, value, must| {
            let error = BadField { field, value, must };
            ArenaError::Contradiction { arena, slot, error }
        };
        let stride = u64::from(rec.stride);
        if !(1..=RECV_UNITS as u64).contains(&stride) {
            return Err(wrong("stride", stride, "1 to 9 units"));
        }
        let place = "where a queue of its depth fits the client's region";
        let ring = Ring::new(region, &rec.ring).map_err(|_| wrong("ring.offset", rec.ring.offset, place))?;
        Ok(Box::new(Self::over(rec, ring)))
    }

    /// Claims the next WQE for a QP, which copies it to `current`. Below the limit it is disarmed, and
    /// SRQ_LIMIT_REACHED is noted.
    #[inline]
    pub(super) fn take(
        &mut self,
        current: &mut [Unit; RECV_UNITS],
    ) -> Result<Option<AcceptedRecv>, QueueError> {
        let rec = &mut *self.rec;
        if rec.failed {
            return Err(QueueError::Forged);
        }
        let taken = self.ring.take_strided(&mut rec.ring, current, rec.stride);
        match taken {
            Err(QueueError::Forged) => {
                rec.failed = true;
                rec.pending
                    .note(event_kind::SRQ_ERR, Cause::of(Check::ReceiveQueue));
            }
            Ok(None) => {}
            _ => self.look_at_limit(),
        }
        taken
    }

    /// Arms the limit: SRQ_LIMIT_REACHED is noted once fewer WQEs are posted, now if they are already. 0 disarms it.
    pub(super) fn arm(&mut self, limit: u32) {
        self.rec.limit = limit;
        self.look_at_limit();
    }

    #[inline]
    fn look_at_limit(&mut self) {
        let rec = &mut *self.rec;
        if rec.limit == 0 {
            return;
        }
        // A forged tail is found by the next QP that takes a WQE.
        let posted = self.ring.available(&rec.ring).unwrap_or(0) / rec.stride;
        if posted < rec.limit {
            rec.limit = 0;
            rec.pending.note(event_kind::SRQ_LIMIT_REACHED, Cause::default());
        }
    }

    /// Whether it has events to be told.
    #[inline]
    pub(super) fn is_eventful(&self) -> bool {
        self.rec.pending.kinds != 0
    }

    /// The events that were not told yet.
    pub(super) fn take_event(&mut self) -> ObjectEvent {
        let Pending { kinds, cause } = std::mem::take(&mut self.rec.pending);
        ObjectEvent {
            client: self.rec.client,
            handle: self.rec.handle,
            kinds,
            number: self.rec.number,
            cause,
        }
    }

    /// Events were told, and nobody has heard of them.
    pub(super) fn event_untold(&mut self, kinds: u32, cause: Cause) {
        let later = std::mem::replace(&mut self.rec.pending, Pending { kinds, cause });
        self.rec.pending.note(later.kinds, later.cause);
    }

    /// What of it is the same before and after a restart, in words.
    pub(crate) fn describe(&self) -> String {
        format!("{:?}", *self.rec)
    }

    /// What it is to XRC target QPs; `None` unless it is an XRC SRQ.
    #[inline]
    pub(super) fn xrc(&self) -> Option<XrcMeans> {
        let SrqRecord {
            number,
            handle,
            pd,
            xrcd,
            cq,
            ..
        } = *self.rec;
        (xrcd != NO_XRCD).then_some(XrcMeans {
            number,
            handle,
            pd,
            xrcd,
            cq,
        })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.rec.number
    }

    /// Its slot: index on its core.
    pub fn slot(&self) -> u32 {
        slot_of(self.rec.number)
    }

    /// Memory of the daemon that is released with it, in bytes.
    pub const fn bytes() -> usize {
        size_of::<Self>() + size_of::<SrqRecord>()
    }
}
