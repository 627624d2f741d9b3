//! Shared receive queues.
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rnic_abi::{
    CreateSrq, CreateSrqReply, CreateXrcSrq, Empty, HandleArg, ModifySrq, Op, QuerySrqReply, RING_ENTRIES,
    RingIndices, SGES_IN_HEAD, SGES_PER_UNIT, Sge, WQE_UNIT, Wqe, srq_mask, work_queue_size,
};
use zerocopy::IntoBytes;

use crate::cq::Source;
use crate::mr::Region;
use crate::queue::{check_slices, sge};
use crate::session::Session;
use crate::{Cq, Error, MrSlice, Pd, Result, Xrcd};

/// A shared receive queue: receives posted here serve whichever of its QPs ([`crate::QpConfig::srq`]) gets a message.
/// Cheap to clone; any thread. Destroyed with its last clone and QP.
///
/// Receives are taken in the order in which they were posted, but complete in the order in which messages end: in the
/// CQs of the QPs that took them. A QP that goes to the error state leaves them to the others, and raises
/// [`LastWqeReached`](crate::EventKind::LastWqeReached).
#[derive(Clone, Debug)]
pub struct Srq(pub(crate) Arc<SrqInner>);

/// Attributes of an SRQ.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SrqAttr {
    /// Receives it holds.
    pub max_wr: u32,
    /// Scatter/gather entries of each.
    pub max_sge: u32,
    /// The limit that is armed; 0 when none is.
    pub srq_limit: u32,
}

#[derive(Debug)]
pub(crate) struct SrqInner {
    pd: Pd,
    handle: u32,
    /// Where its [`RingIndices`] stand in the region.
    ring: usize,
    /// Units of the ring, and of each receive.
    depth: u32,
    stride: u32,
    pub slots: Arc<Slots>,
    /// What an XRC SRQ keeps besides.
    xrc: Option<XrcPart>,
}

#[derive(Debug)]
struct XrcPart {
    /// The CQ of its receives.
    cq: Cq,
    xrcd: Xrcd,
}

/// Receives in flight: what CQs need to know of an SRQ.
#[derive(Debug)]
pub(crate) struct Slots {
    pub number: u32,
    max_sge: usize,
    /// Receives posted and not completed, by the slot that their WQE carries.
    entries: Box<[Entry]>,
    /// Slots whose receives have completed, still to be freed.
    retired: Mutex<Vec<u32>>,
    producer: Mutex<Producer>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The application's number.
    wr_id: AtomicU64,
    /// Counts the uses of the slot: the WQE carries it, so that a completion out of nowhere retires nothing.
    generation: AtomicU32,
    in_flight: AtomicBool,
}

#[derive(Debug)]
struct Producer {
    /// Units posted.
    tail: u32,
    free: Vec<u32>,
    /// Slots of the batch being built.
    batch: Vec<u32>,
    /// `max_sge` references a slot.
    held: Box<[Option<Arc<Region>>]>,
}

impl Srq {
    pub(crate) fn create(pd: &Pd, max_wr: u32, max_sge: u32) -> Result<Srq> {
        let session = &pd.context().session;
        let body = CreateSrq {
            pd: pd.0.handle,
            max_wr,
            max_sge,
            reserved: 0,
        };
        let made = session.control.request(Op::CreateSrq, &body)?;
        Srq::of(pd, &made, None)
    }

    pub(crate) fn create_xrc(pd: &Pd, xrcd: &Xrcd, cq: &Cq, max_wr: u32, max_sge: u32) -> Result<Srq> {
        let session = &pd.context().session;
        if !cq.0.is_of(session) || !Arc::ptr_eq(&xrcd.context().session, session) {
            return Err(Error::InvalidArgument(
                "the CQ or the XRC domain belongs to another context than the PD".into(),
            ));
        }
        let body = CreateXrcSrq {
            xrcd: xrcd.handle(),
            pd: pd.0.handle,
            cq: cq.0.handle(),
            max_wr,
            max_sge,
            reserved: 0,
        };
        let made = session.control.request(Op::CreateXrcSrq, &body)?;
        let (cq, xrcd) = (cq.clone(), xrcd.clone());
        Srq::of(pd, &made, Some(XrcPart { cq, xrcd }))
    }

    fn of(pd: &Pd, made: &CreateSrqReply, xrc: Option<XrcPart>) -> Result<Srq> {
        let session = &pd.context().session;
        let depth = session.check_depth(made.depth)?;
        let ring = session.check_queue(made.offset, work_queue_size(depth))?;
        let stride = made.stride;
        let room = depth.checked_div(stride).unwrap_or(0);
        if !(1..=Wqe::MAX_UNITS).contains(&stride) || made.max_wr > room {
            return Err(Error::Protocol(format!(
                "an SRQ of {} receives, in {depth} units of which each takes {stride}",
                made.max_wr
            )));
        }
        let max_sge = made.max_sge.min(rnic_abi::MAX_SGE as u32) as usize;
        let slots = Arc::new(Slots {
            number: made.srqn,
            max_sge,
            entries: (0..made.max_wr).map(|_| Entry::default()).collect(),
            retired: Mutex::new(Vec::with_capacity(made.max_wr as usize)),
            producer: Mutex::new(Producer {
                tail: session
                    .region
                    .u32(ring + RingIndices::TAIL)
                    .load(Ordering::Relaxed),
                free: (0..made.max_wr).rev().collect(),
                batch: Vec::with_capacity(made.max_wr as usize),
                held: vec![None; made.max_wr as usize * max_sge].into(),
            }),
        });
        if let Some(xrc) = &xrc {
            xrc.cq.0.attach(made.handle, Source::Srq(slots.clone()));
        }
        Ok(Srq(Arc::new(SrqInner {
            pd: pd.clone(),
            handle: made.handle,
            ring,
            depth,
            stride,
            slots,
            xrc,
        })))
    }

    /// Its number in asynchronous events; of an XRC SRQ also the one that peers name it by.
    pub fn number(&self) -> u32 {
        self.0.slots.number
    }

    /// Its XRC domain and the CQ that its receives complete to, if it is an XRC SRQ.
    pub fn xrc(&self) -> Option<(&Xrcd, &Cq)> {
        self.0.xrc.as_ref().map(|xrc| (&xrc.xrcd, &xrc.cq))
    }

    /// The protection domain of the memory its receives name. QPs may be of others.
    pub fn pd(&self) -> &Pd {
        &self.0.pd
    }

    /// Receives that can be outstanding. One stays so until its completion is polled.
    pub fn max_wr(&self) -> u32 {
        self.0.slots.entries.len() as u32
    }

    /// Starts a batch of receives. See [`SrqBatch`] for what it holds.
    pub fn batch(&self) -> SrqBatch<'_> {
        let producer = self
            .0
            .slots
            .producer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        SrqBatch {
            srq: &self.0,
            producer: Some(producer),
            error: None,
        }
    }

    /// Builds a batch of receives and posts it; tells how many there were.
    pub fn post_recv(&self, build: impl FnOnce(&mut SrqBatch<'_>)) -> Result<usize> {
        let mut batch = self.batch();
        build(&mut batch);
        batch.post()
    }

    /// Arms the limit: [`SrqLimitReached`](crate::EventKind::SrqLimitReached) comes, once, when fewer than `limit`
    /// receives are posted and not taken; at once if they are already. 0 disarms it.
    pub fn arm_limit(&self, limit: u32) -> Result<()> {
        let body = ModifySrq {
            handle: self.0.handle,
            mask: srq_mask::LIMIT,
            max_wr: 0,
            srq_limit: limit,
        };
        self.0
            .session()
            .control
            .request::<Empty>(Op::ModifySrq, &body)
            .map(|_| ())
    }

    /// Its attributes as the daemon has them.
    pub fn query(&self) -> Result<SrqAttr> {
        let arg = HandleArg {
            handle: self.0.handle,
            reserved: 0,
        };
        let QuerySrqReply {
            max_wr,
            max_sge,
            srq_limit,
            ..
        } = self.0.session().control.request(Op::QuerySrq, &arg)?;
        Ok(SrqAttr {
            max_wr,
            max_sge,
            srq_limit,
        })
    }
}

impl SrqInner {
    fn session(&self) -> &Session {
        &self.pd.context().session
    }

    pub fn handle(&self) -> u32 {
        self.handle
    }

    pub fn is_of(&self, session: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.pd.context().session, session)
    }

    /// Where a unit stands in the region.
    fn unit(&self, index: u32) -> usize {
        self.ring + RING_ENTRIES + (index & (self.depth - 1)) as usize * WQE_UNIT
    }
}

impl Slots {
    /// The receive that carried `cookie` has completed. The application's number of it, or `None` when no such
    /// receive is in flight: the daemon made it up.
    pub fn retire(&self, cookie: u64) -> Option<u64> {
        let (slot, generation) = (cookie as u32, (cookie >> 32) as u32);
        let entry = self.entries.get(slot as usize)?;
        if entry.generation.load(Ordering::Acquire) != generation
            || !entry.in_flight.swap(false, Ordering::AcqRel)
        {
            return None;
        }
        let wr_id = entry.wr_id.load(Ordering::Relaxed);
        self.retired().push(slot);
        Some(wr_id)
    }

    /// Frees what was retired, unless someone is posting, who will do it after unlocking.
    pub fn settle(&self) {
        match self.producer.try_lock() {
            Ok(mut producer) => self.release(&mut producer),
            Err(TryLockError::Poisoned(poisoned)) => self.release(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn release(&self, producer: &mut Producer) {
        let mut retired = self.retired();
        while let Some(slot) = retired.pop() {
            self.free(producer, slot);
        }
    }

    fn free(&self, producer: &mut Producer, slot: u32) {
        let first = slot as usize * self.max_sge;
        for held in &mut producer.held[first..first + self.max_sge] {
            *held = None;
        }
        producer.free.push(slot);
    }

    fn retired(&self) -> MutexGuard<'_, Vec<u32>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SrqInner {
    fn drop(&mut self) {
        // Nothing to tell anyone: a daemon that is gone has destroyed it.
        let _ = self.session().destroy(Op::DestroySrq, self.handle);
        if let Some(xrc) = &self.xrc {
            xrc.cq.0.detach(self.handle);
        }
    }
}

/// Receives of an SRQ that are posted together: all of them, or on an error none. Other threads that post to the SRQ
/// wait meanwhile, and this thread must not start another batch on it before the end of this one. Polling is free.
#[derive(Debug)]
#[must_use = "a batch does nothing until it is posted"]
pub struct SrqBatch<'q> {
    srq: &'q SrqInner,
    /// `Some` until the end.
    producer: Option<MutexGuard<'q, Producer>>,
    error: Option<Error>,
}

impl<'q> SrqBatch<'q> {
    /// Receives a message into `local`, which is filled in order and whose regions, of the SRQ's protection domain,
    /// need [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    pub fn recv(&mut self, local: impl AsRef<[MrSlice]>) -> SrqRecv<'_> {
        let added = match self.error {
            Some(_) => Err(None),
            None => self.append(local.as_ref()).map_err(Some),
        };
        match added {
            Ok(slot) => SrqRecv {
                entry: Some(&self.srq.slots.entries[slot as usize]),
            },
            Err(error) => {
                self.error = self.error.take().or(error);
                SrqRecv { entry: None }
            }
        }
    }

    /// Posts the batch and tells how many receives it has.
    pub fn post(mut self) -> Result<usize> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let srq = self.srq;
        let producer = self.producer();
        let count = producer.batch.len();
        for slot in producer.batch.drain(..) {
            srq.slots.entries[slot as usize]
                .in_flight
                .store(true, Ordering::Release);
        }
        producer.tail = producer.tail.wrapping_add(count as u32 * srq.stride);
        let tail = producer.tail;
        srq.session()
            .region
            .u32(srq.ring + RingIndices::TAIL)
            .store(tail, Ordering::Release);
        Ok(count)
    }

    fn append(&mut self, local: &[MrSlice]) -> Result<u32> {
        let srq = self.srq;
        check_slices(local, srq.slots.max_sge, &srq.pd, || {
            format!("SRQ {}", srq.slots.number)
        })?;
        let producer = self.producer();
        if producer.free.is_empty() {
            srq.slots.release(producer);
        }
        let slot = producer.free.pop().ok_or(Error::QueueFull {
            queue: "shared receive",
            qpn: srq.slots.number,
            depth: srq.slots.entries.len() as u32,
        })?;
        let first = producer
            .tail
            .wrapping_add(producer.batch.len() as u32 * srq.stride);
        producer.batch.push(slot);
        let held = &mut producer.held[slot as usize * srq.slots.max_sge..];
        for (to, slice) in held.iter_mut().zip(local) {
            *to = Some(slice.region().clone());
        }
        let entry = &srq.slots.entries[slot as usize];
        let generation = entry.generation.load(Ordering::Relaxed).wrapping_add(1);
        entry.generation.store(generation, Ordering::Release);
        entry.wr_id.store(0, Ordering::Relaxed);
        let mut head = Wqe {
            wr_id: u64::from(generation) << 32 | u64::from(slot),
            num_sge: local.len() as u8,
            units: srq.stride as u8,
            ..Wqe::default()
        };
        let (in_head, rest) = local.split_at(local.len().min(SGES_IN_HEAD));
        for (to, slice) in head.sges.iter_mut().zip(in_head) {
            *to = sge(slice);
        }
        let region = &srq.session().region;
        region.write(srq.unit(first), head.as_bytes());
        for (i, chunk) in (1..).zip(rest.chunks(SGES_PER_UNIT)) {
            let mut unit = [Sge::default(); SGES_PER_UNIT];
            for (to, slice) in unit.iter_mut().zip(chunk) {
                *to = sge(slice);
            }
            region.write(srq.unit(first.wrapping_add(i)), unit.as_bytes());
        }
        Ok(slot)
    }

    fn producer(&mut self) -> &mut Producer {
        self.producer.as_mut().expect("held until the batch is dropped")
    }
}

impl Drop for SrqBatch<'_> {
    fn drop(&mut self) {
        if let Some(mut producer) = self.producer.take() {
            while let Some(slot) = producer.batch.pop() {
                self.srq.slots.free(&mut producer, slot);
            }
        }
        if self.srq.slots.producer.is_poisoned() {
            // A panic while a batch was built took the batch back, so the queue is whole.
            self.srq.slots.producer.clear_poison();
        }
        // Whoever retired something meanwhile has left it to this thread.
        self.srq.slots.settle();
    }
}

/// The receive just added to a batch. Errors, such as a full queue, come from posting.
#[derive(Debug)]
pub struct SrqRecv<'b> {
    entry: Option<&'b Entry>,
}

impl SrqRecv<'_> {
    /// The number its completion will carry; 0 if not given.
    pub fn wr_id(self, wr_id: u64) -> Self {
        if let Some(entry) = self.entry {
            entry.wr_id.store(wr_id, Ordering::Relaxed);
        }
        self
    }
}
