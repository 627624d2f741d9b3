//! Work queues: the ring in the context region, and what each entry in flight holds.
//!
//! Indices count units of 64 bytes and run freely, as in the region. Three of them divide a queue:
//! `released <= retired <= posted`. Completions move `retired` (under the lock of their CQ); posting moves
//! `posted` and frees what lies between `released` and `retired` (under the queue's lock). So polling never
//! waits for posting, and a thread may poll while it builds a batch.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rnic_abi::{
    Cqe, MAX_SGE, RING_ENTRIES, RingIndices, SGES_IN_HEAD, SGES_PER_UNIT, Sge, WQE_UNIT, Wqe, XrcUnit,
    cqe_flags, wqe_flags,
};
use zerocopy::IntoBytes;

use crate::mr::Region;
use crate::session::Session;
use crate::{Ah, Error, MemoryWindow, MrSlice, Pd, Result, Srq};

/// Longest message (IBTA 9.7.2).
const MAX_MESSAGE: u64 = 1 << 31;

/// Both queues of a QP: what its CQs need to know of it.
#[derive(Debug)]
pub(crate) struct QpQueues {
    pub send: WorkQueue,
    pub recv: Receives,
}

/// Where the receives of a QP are.
#[derive(Debug)]
pub(crate) enum Receives {
    Own(WorkQueue),
    Shared(Srq),
    /// An XRC initiator has none.
    Nowhere,
}

impl QpQueues {
    /// What a completion retires: the application's number of it.
    pub fn retire(&self, cqe: &Cqe) -> Option<u64> {
        match &self.recv {
            _ if cqe.flags & cqe_flags::RECV == 0 => self.send.retire(cqe.wr_id),
            Receives::Own(queue) => queue.retire(cqe.wr_id),
            Receives::Shared(srq) => srq.0.slots.retire(cqe.wr_id),
            Receives::Nowhere => None,
        }
    }

    /// Frees what was retired, unless someone is posting, who will do it.
    pub fn settle(&self) {
        self.send.settle();
        match &self.recv {
            Receives::Own(queue) => queue.settle(),
            Receives::Shared(srq) => srq.0.slots.settle(),
            Receives::Nowhere => {}
        }
    }
}

/// What a queue allows.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Limits {
    pub max_sge: usize,
    pub max_inline: usize,
    /// Each request ends with an [`XrcUnit`].
    pub xrc: bool,
}

/// One side of a QP.
#[derive(Debug)]
pub(crate) struct WorkQueue {
    name: &'static str,
    qpn: u32,
    /// Where its [`RingIndices`] stand in the region.
    ring: usize,
    depth: u32,
    limits: Limits,
    doorbell: Doorbell,
    /// By the first unit of each entry.
    entries: Box<[Entry]>,
    posted: AtomicU32,
    retired: AtomicU32,
    producer: Mutex<Producer>,
}

/// Which bit wakes the core for a queue.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Doorbell {
    pub block: u32,
    pub slot: u32,
}

#[derive(Debug, Default)]
struct Entry {
    /// The application's number; the WQE itself carries the index of its first unit, which comes back in the
    /// completion and says what is retired even when the application's numbers repeat.
    wr_id: AtomicU64,
    /// Index after its last unit.
    end: AtomicU32,
}

#[derive(Debug)]
struct Producer {
    released: u32,
    /// [`SGES_PER_UNIT`] references a unit, which covers every entry of a WQE of any length.
    held: Box<[Option<Arc<Region>>]>,
    /// By the first unit of each entry; made with the first datagram.
    ahs: Box<[Option<Ah>]>,
    /// The same; made with the first bind.
    windows: Box<[Option<MemoryWindow>]>,
}

impl WorkQueue {
    /// The queue whose ring, checked by the caller, stands at `ring`.
    pub fn new(
        session: &Session,
        name: &'static str,
        qpn: u32,
        ring: usize,
        depth: u32,
        limits: Limits,
        doorbell: Doorbell,
    ) -> WorkQueue {
        let tail = session
            .region
            .u32(ring + RingIndices::TAIL)
            .load(Ordering::Relaxed);
        WorkQueue {
            name,
            qpn,
            ring,
            depth,
            limits,
            doorbell,
            entries: (0..depth).map(|_| Entry::default()).collect(),
            posted: AtomicU32::new(tail),
            retired: AtomicU32::new(tail),
            producer: Mutex::new(Producer {
                released: tail,
                held: vec![None; depth as usize * SGES_PER_UNIT].into(),
                ahs: Box::default(),
                windows: Box::default(),
            }),
        }
    }

    /// Units.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Starts a batch; other threads wait to post here until it ends.
    pub fn writer<'q>(&'q self, session: &'q Session, pd: &'q Pd) -> Writer<'q> {
        let producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let start = self.posted.load(Ordering::Relaxed);
        Writer {
            queue: self,
            session,
            pd,
            producer: Some(producer),
            start,
            next: start,
            count: 0,
            current: None,
            remote_srqn: None,
            error: None,
        }
    }

    /// Retires the entry that begins at index `cookie`, and all before it. The application's number of it, or
    /// `None` when no such entry is in flight: the daemon made it up, or the queue was reset since.
    ///
    /// Called under the lock of the queue's CQ.
    pub fn retire(&self, cookie: u64) -> Option<u64> {
        let index = u32::try_from(cookie).ok()?;
        let retired = self.retired.load(Ordering::Relaxed);
        let in_flight = self.posted.load(Ordering::Acquire).wrapping_sub(retired);
        if index.wrapping_sub(retired) >= in_flight {
            return None;
        }
        let entry = &self.entries[self.position(index)];
        let end = entry.end.load(Ordering::Relaxed);
        // An index inside an entry finds the leftovers of another.
        let units = end.wrapping_sub(index);
        if !(1..=Wqe::MAX_UNITS).contains(&units) || end.wrapping_sub(retired) > in_flight {
            return None;
        }
        let wr_id = entry.wr_id.load(Ordering::Relaxed);
        self.retired.store(end, Ordering::Release);
        Some(wr_id)
    }

    /// Retires everything: after a reset of the QP. Called while the queue's CQ is not polled.
    pub fn retire_all(&self) {
        self.retired
            .store(self.posted.load(Ordering::Acquire), Ordering::Release);
    }

    /// Frees what was retired, unless someone is posting, who will do it.
    ///
    /// The fence here pairs with the lock's release: of two threads that meet, either the one finds the
    /// lock free or the other, which looks again after unlocking, sees what the one retired.
    pub fn settle(&self) {
        loop {
            fence(Ordering::SeqCst);
            let released = match self.producer.try_lock() {
                Ok(mut producer) => self.release(&mut producer),
                Err(TryLockError::Poisoned(poisoned)) => self.release(&mut poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => return,
            };
            fence(Ordering::SeqCst);
            if released == self.retired.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn release(&self, producer: &mut Producer) -> u32 {
        let retired = self.retired.load(Ordering::Acquire);
        while producer.released != retired {
            self.free_unit(producer, producer.released);
            producer.released = producer.released.wrapping_add(1);
        }
        retired
    }

    fn free_unit(&self, producer: &mut Producer, index: u32) {
        let first = self.position(index) * SGES_PER_UNIT;
        for held in &mut producer.held[first..first + SGES_PER_UNIT] {
            *held = None;
        }
        if let Some(ah) = producer.ahs.get_mut(self.position(index)) {
            *ah = None;
        }
        if let Some(window) = producer.windows.get_mut(self.position(index)) {
            *window = None;
        }
    }

    fn position(&self, index: u32) -> usize {
        (index & (self.depth - 1)) as usize
    }

    /// Where a unit stands in the region.
    fn unit(&self, index: u32) -> usize {
        self.ring + RING_ENTRIES + self.position(index) * WQE_UNIT
    }
}

/// A batch being written: nothing of it is visible to the daemon until [`Writer::commit`]; dropping it takes
/// it back. The first error stops it.
#[derive(Debug)]
pub(crate) struct Writer<'q> {
    queue: &'q WorkQueue,
    session: &'q Session,
    pd: &'q Pd,
    /// `Some` until the end.
    producer: Option<MutexGuard<'q, Producer>>,
    start: u32,
    next: u32,
    count: usize,
    /// The head of the newest entry, with its index, which can still be changed.
    current: Option<(u32, u64, Wqe)>,
    /// The XRC SRQ that it is for.
    remote_srqn: Option<u32>,
    error: Option<Error>,
}

impl Writer<'_> {
    /// Appends an entry with this head and these scatter/gather entries.
    pub fn append(&mut self, mut head: Wqe, local: &[MrSlice]) {
        if let Err(error) = self.try_append(&mut head, local) {
            self.refuse(error);
        }
    }

    /// Ends the batch with an error, unless it has one.
    pub fn refuse(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// Appends an entry that carries its payload.
    pub fn append_inline(&mut self, mut head: Wqe, payload: &[u8]) {
        if let Err(error) = self.try_append_inline(&mut head, payload) {
            self.refuse(error);
        }
    }

    /// The newest entry's number and head, unless it was refused.
    pub fn current(&mut self) -> Option<(&mut u64, &mut Wqe)> {
        let stopped = self.error.is_some();
        self.current
            .as_mut()
            .filter(|_| !stopped)
            .map(|(_, wr_id, head)| (wr_id, head))
    }

    /// Says which XRC SRQ at the peer the newest entry is for.
    pub fn address(&mut self, remote_srqn: u32) {
        self.remote_srqn = Some(remote_srqn);
    }

    /// Makes the whole batch visible with one doorbell, and tells how many entries it has.
    pub fn commit(mut self) -> Result<usize> {
        self.finish_current();
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.count > 0 {
            let queue = self.queue;
            queue.posted.store(self.next, Ordering::Release);
            self.start = self.next;
            self.session
                .publish(queue.ring, self.next, queue.doorbell.block, queue.doorbell.slot);
        }
        Ok(self.count)
    }

    fn try_append(&mut self, head: &mut Wqe, local: &[MrSlice]) -> Result<()> {
        let queue = self.queue;
        let limit = queue.limits.max_sge.min(MAX_SGE);
        check_slices(local, limit, self.pd, || {
            format!("the {} queue of QP {:#x}", queue.name, queue.qpn)
        })?;
        let (in_head, rest) = local.split_at(local.len().min(SGES_IN_HEAD));
        for (to, slice) in head.sges.iter_mut().zip(in_head) {
            *to = sge(slice);
        }
        head.num_sge = local.len() as u8;
        let first = self.reserve(Wqe::units_for_sges(local.len()), head)?;
        self.hold(first, in_head);
        for (i, chunk) in rest.chunks(SGES_PER_UNIT).enumerate() {
            let index = first.wrapping_add(1 + i as u32);
            let mut unit = [Sge::default(); SGES_PER_UNIT];
            for (to, slice) in unit.iter_mut().zip(chunk) {
                *to = sge(slice);
            }
            self.session.region.write(self.queue.unit(index), unit.as_bytes());
            self.hold(index, chunk);
        }
        Ok(())
    }

    fn try_append_inline(&mut self, head: &mut Wqe, payload: &[u8]) -> Result<()> {
        let limit = self.queue.limits.max_inline;
        if payload.len() > limit {
            return Err(Error::InvalidArgument(format!(
                "{} inline bytes on QP {:#x}, which was made for {limit}",
                payload.len(),
                self.queue.qpn
            )));
        }
        head.flags |= wqe_flags::INLINE;
        head.inline_len = payload.len() as u32;
        let (in_head, rest) = payload.split_at(payload.len().min(head.sges.as_bytes().len()));
        head.sges.as_mut_bytes()[..in_head.len()].copy_from_slice(in_head);
        let first = self.reserve(Wqe::units_for_inline(payload.len()), head)?;
        for (i, chunk) in rest.chunks(WQE_UNIT).enumerate() {
            let index = first.wrapping_add(1 + i as u32);
            self.session.region.write(self.queue.unit(index), chunk);
        }
        Ok(())
    }

    /// Takes units for an entry that becomes the current one; the first of them.
    fn reserve(&mut self, units: u32, head: &mut Wqe) -> Result<u32> {
        self.finish_current();
        let queue = self.queue;
        let first = self.next;
        let units = units + u32::from(queue.limits.xrc);
        if queue.limits.xrc {
            head.flags |= wqe_flags::XRC;
        }
        let end = first.wrapping_add(units);
        let producer = self.producer();
        if end.wrapping_sub(producer.released) > queue.depth {
            queue.release(producer);
        }
        if end.wrapping_sub(producer.released) > queue.depth {
            return Err(Error::QueueFull {
                queue: queue.name,
                qpn: queue.qpn,
                depth: queue.depth,
            });
        }
        head.units = units as u8;
        head.wr_id = first.into();
        queue.entries[queue.position(first)]
            .end
            .store(end, Ordering::Relaxed);
        self.next = end;
        self.count += 1;
        self.current = Some((first, 0, *head));
        Ok(first)
    }

    /// Keeps an address handle until the current entry is done.
    pub fn hold_ah(&mut self, ah: &Ah) {
        let Some((first, ..)) = self.current else { return };
        let (position, depth) = (self.queue.position(first), self.queue.depth as usize);
        let producer = self.producer();
        if producer.ahs.is_empty() {
            producer.ahs = vec![None; depth].into();
        }
        producer.ahs[position] = Some(ah.clone());
    }

    /// Notes a bind of a window under `key`, unless the current entry was refused, and keeps the window until it is done,
    /// with what it was and will be bound to.
    pub fn hold_window(&mut self, window: &MemoryWindow, local: Option<&MrSlice>, key: u32) {
        let Some((first, ..)) = self.current.filter(|_| self.error.is_none()) else {
            return;
        };
        let (position, depth) = (self.queue.position(first), self.queue.depth as usize);
        let before = window.rebind(local, key);
        let producer = self.producer();
        if producer.windows.is_empty() {
            producer.windows = vec![None; depth].into();
        }
        producer.windows[position] = Some(window.clone());
        let [old, new, ..] = &mut producer.held[position * SGES_PER_UNIT..] else {
            return;
        };
        (*old, *new) = (before, local.map(|local| local.region().clone()));
    }

    fn hold(&mut self, unit: u32, slices: &[MrSlice]) {
        let first = self.queue.position(unit) * SGES_PER_UNIT;
        let held = &mut self.producer().held[first..];
        for (to, slice) in held.iter_mut().zip(slices) {
            *to = Some(slice.region().clone());
        }
    }

    fn finish_current(&mut self) {
        if let Some((index, wr_id, head)) = self.current.take() {
            self.queue.entries[self.queue.position(index)]
                .wr_id
                .store(wr_id, Ordering::Relaxed);
            self.session.region.write(self.queue.unit(index), head.as_bytes());
            self.finish_address(index, &head);
        }
    }

    /// Writes whom an entry is for, where that is to be said.
    fn finish_address(&mut self, index: u32, head: &Wqe) {
        let remote_srqn = self.remote_srqn.take();
        let qpn = self.queue.qpn;
        let wrong = |what: &str| Error::InvalidArgument(format!("a work request on QP {qpn:#x} {what}"));
        match (self.queue.limits.xrc, remote_srqn) {
            (true, Some(remote_srqn)) if remote_srqn >> 24 == 0 => {
                let unit = XrcUnit {
                    remote_srqn,
                    ..XrcUnit::default()
                };
                let last = index.wrapping_add(u32::from(head.units) - 1);
                self.session.region.write(self.queue.unit(last), unit.as_bytes());
            }
            (true, Some(remote_srqn)) => {
                self.refuse(wrong(&format!(
                    "names the SRQ {remote_srqn:#x}; numbers have 24 bits"
                )));
            }
            (true, None) => self.refuse(wrong("names no SRQ at the peer; an XRC initiator needs `to_srq`")),
            (false, Some(remote_srqn)) if remote_srqn != 0 => {
                self.refuse(wrong("names an SRQ at the peer; only an XRC initiator does"));
            }
            (false, _) => {}
        }
    }

    fn producer(&mut self) -> &mut Producer {
        self.producer.as_mut().expect("held until the writer is dropped")
    }
}

/// Checks what a work request on `queue` names: at most `limit` slices, of one protection domain, not too long.
pub(crate) fn check_slices(
    local: &[MrSlice],
    limit: usize,
    pd: &Pd,
    queue: impl Fn() -> String,
) -> Result<()> {
    let refused = |why| Err(Error::InvalidArgument(why));
    if local.len() > limit {
        let count = local.len();
        return refused(format!(
            "{count} scatter/gather entries on {}, which was made for {limit}",
            queue()
        ));
    }
    if local.iter().map(|slice| slice.len() as u64).sum::<u64>() > MAX_MESSAGE {
        return refused("a message of more than 2 GiB".into());
    }
    if local.iter().any(|slice| !slice.region().is_of(pd)) {
        return refused(format!(
            "the memory region belongs to another protection domain than {}",
            queue()
        ));
    }
    Ok(())
}

/// The entry for a slice.
pub(crate) fn sge(slice: &MrSlice) -> Sge {
    Sge {
        addr: slice.addr(),
        length: slice.len() as u32,
        lkey: slice.lkey(),
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if let Some(mut producer) = self.producer.take() {
            while self.start != self.next {
                self.queue.free_unit(&mut producer, self.start);
                self.start = self.start.wrapping_add(1);
            }
        }
        if self.queue.producer.is_poisoned() {
            // A panic while a batch was built took the batch back, so the queue is whole.
            self.queue.producer.clear_poison();
        }
        self.queue.settle();
    }
}
