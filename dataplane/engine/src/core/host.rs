//! What the transport sees of the world: keys, memory, queues, completions, events.
use std::{
    marker::PhantomData,
    ops::RangeInclusive,
    ptr,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use rnic_abi::{Cqe, cqe_flags, event_kind};
use rnic_qsbr::{Epoch, Qsbr};
use rnic_simd::Crc;
use rnic_transport::{
    Access, AtomicOp, Bind, Cause, Check, Completion, CompletionFlags, CqFull, Event, EventKind, Flush, Host,
    KeyError, Payload, Queue, RecvError, RecvWqe, SendWr, Time, WcOpcode, WcStatus,
};
use rnic_wire::SELECTIVE_ACK_LEN;

use super::{
    cq::CompletionQueue,
    queue::{QueueError, Segments, SendQueue, Unit},
    records::{Cursor, Identity, Pending, Placed, QpCounters},
    recv_queue::{AcceptedRecv, RECV_UNITS, RecvQueue},
    shared::CoreCounters,
    srq::{Srq, XrcMeans},
    stages::{Stage, Stages},
};
use crate::mem::{AhTable, Begun, By, McastTable, MrTable, PortAddresses, RemoteRange, copy_bytes};
use crate::view::slot_of;

/// What all QPs of a core share.
pub(super) struct Env {
    pub now: Time,
    pub mrs: Arc<MrTable>,
    pub ahs: Arc<AhTable>,
    pub addresses: Arc<PortAddresses>,
    pub mcast: Arc<McastTable>,
    pub qsbr: Arc<Qsbr>,
    pub cqs: Vec<Option<Box<CompletionQueue>>>,
    /// CQs with fresh completions or an error, each once.
    pub touched: Vec<u32>,
    pub srqs: Vec<Option<Box<Srq>>>,
    /// SRQs with events to be told, each once.
    pub eventful_srqs: Vec<u32>,
    pub counters: CoreCounters,
    pub crc: Crc,
    pub stages: Stages,
}

impl Env {
    /// The XRC SRQ of this number.
    #[inline]
    pub(super) fn xrc_srq(&self, srqn: u32) -> Option<XrcMeans> {
        let srq = self.srqs.get(slot_of(srqn) as usize)?.as_ref()?;
        srq.xrc().filter(|means| means.number == srqn)
    }

    /// Claims a receive WQE of the SRQ at `slot`.
    #[inline]
    fn take_shared(
        &mut self,
        slot: u32,
        current: &mut [Unit; RECV_UNITS],
    ) -> Result<Option<AcceptedRecv>, QueueError> {
        let srq = self.srqs.get_mut(slot as usize).and_then(Option::as_mut);
        // There is one as long as there are QPs on it.
        let srq = srq.ok_or(QueueError::Forged)?;
        let taken = srq.take(current);
        if srq.is_eventful() && !srq.listed {
            srq.listed = true;
            self.eventful_srqs.push(slot);
        }
        taken
    }
}

/// Payload bytes of a packet with which the memory of the next one is loaded ahead. (What goes without frames is longer, and
/// summed by nobody.)
const LONG: RangeInclusive<usize> = 2048..=4096;

/// Begins to load `len` bytes that are to be written, whatever is there.
#[inline]
fn prefetch_for_write(base: *const u8, len: usize) {
    for at in (0..len).step_by(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: PREFETCHW changes nothing but caches, whatever the address; where a processor has none it does nothing.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_ET0>(base.wrapping_add(at).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (base, at);
    }
}

/// Has a CQ looked at after the pass: a completion is about to be placed in it.
#[inline]
fn touch(cq: &mut CompletionQueue, number: u32, touched: &mut Vec<u32>) {
    if !cq.listed {
        cq.listed = true;
        touched.push(number);
    }
}

/// The payload of a packet: checked ranges, of a frame or of the sender's memory.
#[derive(Copy, Clone)]
pub(super) struct Gathered<'a> {
    ranges: &'a [RemoteRange],
    len: usize,
    _bytes: PhantomData<&'a [u8]>,
}

impl<'a> Gathered<'a> {
    pub fn new(ranges: &'a [RemoteRange]) -> Self {
        Gathered {
            ranges,
            len: ranges.iter().map(|r| r.len).sum(),
            _bytes: PhantomData,
        }
    }

    /// Copies the payload to `targets`, which are as long together.
    #[inline(always)] // what is one piece on both sides, as nearly all is, is copied where it is known to be
    fn copy_to(&self, targets: &[RemoteRange]) {
        match (self.ranges, targets) {
            ([source], [target]) if source.len == target.len => {
                // SAFETY: both ranges were resolved in this pass of the loop, or are a part of a frame or a value that this
                // core owns: they are mapped and as long as they say. They may overlap.
                unsafe { copy_bytes(source.ptr.as_ptr(), target.ptr.as_ptr(), target.len) };
            }
            _ => copy_parts(self.ranges, targets),
        }
    }
}

/// Copies what `sources` have together to `targets`, which are as long together.
fn copy_parts(sources: &[RemoteRange], targets: &[RemoteRange]) {
    let mut sources = sources.iter();
    let mut source = RemoteRange {
        ptr: ptr::NonNull::dangling(),
        len: 0,
    };
    for target in targets {
        let mut done = 0;
        while done < target.len {
            if source.len == 0 {
                let Some(next) = sources.next() else { return };
                source = *next;
                continue;
            }
            let part = source.len.min(target.len - done);
            // SAFETY: both ranges were resolved in this pass of the loop (or are parts of a frame, or a
            // value, that this core owns), so they are mapped and at least `part` long from here. They may overlap, when a client
            // writes from and to the same region: that is allowed.
            unsafe {
                copy_bytes(source.ptr.as_ptr(), target.ptr.as_ptr().add(done), part);
                source.ptr = source.ptr.add(part);
            }
            source.len -= part;
            done += part;
        }
    }
}

impl Payload for Gathered<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    fn selective_ack(&self) -> Option<[u8; SELECTIVE_ACK_LEN]> {
        let mut bytes = [0; SELECTIVE_ACK_LEN];
        let target = RemoteRange {
            ptr: ptr::NonNull::from(&mut bytes).cast(),
            len: SELECTIVE_ACK_LEN,
        };
        (self.len == SELECTIVE_ACK_LEN).then(|| {
            self.copy_to(&[target]);
            bytes
        })
    }
}

/// The surroundings of one QP during one call.
pub(super) struct QpHost<'a> {
    pub env: &'a mut Env,
    pub id: &'a Identity,
    pub sq: &'a SendQueue,
    /// None when it draws from SRQs, or receives nothing.
    pub rq: Option<&'a RecvQueue>,
    /// Of an XRC target: what the XRC SRQ named last has.
    pub xrc: Option<XrcMeans>,
    /// The receive WQE in progress.
    pub recv: &'a mut [Unit; RECV_UNITS],
    pub recv_cursor: &'a mut Cursor,
    pub pending: &'a mut Pending,
    pub cause: &'a mut Cause,
    pub placed: &'a mut Placed,
    pub counters: &'a mut QpCounters,
    pub invalidating: &'a mut Option<Epoch>,
    /// The bind under way: the window's word, and the epoch after which it may be bound anew.
    pub binding: &'a mut Option<(u64, Epoch)>,
}

impl Host for QpHost<'_> {
    type Payload<'p> = Gathered<'p>;

    #[inline]
    fn check_remote(&mut self, rkey: u32, addr: u64, len: u64, access: Access) -> Result<(), KeyError> {
        let by = self.by();
        self.env.mrs.resolve_remote(rkey, by, addr, len, access).map(drop)
    }

    #[inline(always)] // where a packet is known to be a WRITE, nothing but registers is needed
    fn write_remote(&mut self, rkey: u32, addr: u64, payload: Gathered<'_>) -> Result<(), KeyError> {
        let len = payload.len as u64;
        let target = self
            .env
            .mrs
            .resolve_remote(rkey, self.by(), addr, len, Access::REMOTE_WRITE)?;
        let before = self.env.stages.enter(Stage::Copy);
        payload.copy_to(&[target]);
        self.env.stages.enter(before);
        if LONG.contains(&payload.len) {
            // The next packet of the message goes behind it, and is summed first.
            prefetch_for_write(target.ptr.as_ptr().wrapping_add(payload.len), payload.len);
        }
        Ok(())
    }

    fn atomic(&mut self, rkey: u32, addr: u64, op: AtomicOp) -> Result<u64, KeyError> {
        let right = Access::REMOTE_ATOMIC;
        let word = self.env.mrs.word(rkey, self.by(), addr, right)?;
        Ok(match op {
            AtomicOp::CompareSwap { compare, swap } => word
                .compare_exchange(compare, swap, Ordering::AcqRel, Ordering::Acquire)
                .unwrap_or_else(|found| found),
            AtomicOp::FetchAdd { add } => word.fetch_add(add, Ordering::AcqRel),
        })
    }

    #[inline]
    fn xrc_srq(&mut self, srqn: u32) -> Option<u32> {
        self.xrc = self.env.xrc_srq(srqn);
        self.xrc.map(|means| means.xrcd)
    }

    fn atomic_write(&mut self, rkey: u32, addr: u64, payload: Gathered<'_>) -> Result<(), KeyError> {
        let right = Access::REMOTE_WRITE;
        let word = self.env.mrs.word(rkey, self.by(), addr, right)?;
        let mut bytes = [0; 8];
        let target = RemoteRange {
            ptr: ptr::NonNull::from(&mut bytes).cast(),
            len: bytes.len(),
        };
        payload.copy_to(&[target]);
        word.store(u64::from_ne_bytes(bytes), Ordering::Release);
        Ok(())
    }

    fn flush(&mut self, rkey: u32, addr: u64, len: u32, flush: Flush) -> Result<(), KeyError> {
        let (mrs, by) = (&self.env.mrs, self.by());
        if flush.whole {
            mrs.check(rkey, by, flush.placement)?;
        } else {
            mrs.resolve_remote(rkey, by, addr, u64::from(len), flush.placement)?;
        }
        // All of a QP's payload is placed by its core, into memory that everybody else maps as well.
        fence(Ordering::SeqCst);
        Ok(())
    }

    #[inline]
    fn take_recv(&mut self) -> Result<Option<RecvWqe>, RecvError> {
        let taken = match (self.rq, &self.xrc) {
            (Some(rq), _) => rq.take(self.recv_cursor, self.recv),
            (None, Some(means)) => self.env.take_shared(slot_of(means.number), self.recv),
            (None, None) => self.env.take_shared(self.id.srq, self.recv),
        };
        match taken {
            Ok(wqe) => Ok(wqe.map(|w| RecvWqe {
                wr_id: w.wr_id,
                capacity: w.capacity,
                data: 0,
            })),
            Err(QueueError::Malformed { wr_id }) => Err(RecvError { wr_id: Some(wr_id) }),
            Err(QueueError::Forged) => Err(RecvError { wr_id: None }),
        }
    }

    #[inline]
    fn receive_message(&mut self, payload: Gathered<'_>, solicited: bool, src_qpn: u32) -> bool {
        let (Some(rq), None) = (self.rq, &self.xrc) else {
            return false;
        };
        let Some((wr_id, entry)) = rq.peek_single(self.recv_cursor) else {
            return false;
        };
        let (len, number) = (payload.len, self.id.recv_cq);
        let Some(cq) = self.env.cqs.get_mut(number as usize).and_then(Option::as_mut) else {
            return false;
        };
        if len > entry.length as usize || !cq.has_room() {
            return false;
        }
        if len > 0 {
            let (mrs, pd) = (&self.env.mrs, self.id.recv_pd);
            let Ok(target) = mrs.resolve(entry.lkey, pd, entry.addr, len as u64, Access::LOCAL_WRITE) else {
                return false;
            };
            let before = self.env.stages.enter(Stage::Copy);
            payload.copy_to(&[target]);
            self.env.stages.enter(before);
        }
        // As `complete` does; through it a message takes 100 instructions more.
        rq.take_single(self.recv_cursor);
        touch(cq, number, &mut self.env.touched);
        // Known before the completion is there: see the order of stores at `QpRecord`.
        self.placed.recv = cq.position();
        let flags = if solicited { cqe_flags::SOLICITED } else { 0 };
        let cqe = Cqe {
            wr_id,
            handle: self.id.handle,
            qpn: self.id.qpn,
            byte_len: len as u32,
            imm_or_rkey: 0,
            src_qpn,
            status: WcStatus::Success as u8,
            opcode: WcOpcode::Recv as u8,
            flags: flags | cqe_flags::RECV,
            cause: abi_cause(&Cause::of(Check::None)),
            timestamp: self.env.now.0,
            reserved: [0; 16],
        };
        cq.push(&cqe, solicited)
    }

    #[inline]
    fn scatter_recv(&mut self, _wqe: &RecvWqe, offset: u32, payload: Gathered<'_>) -> Result<(), KeyError> {
        let (pd, len) = (
            self.xrc.map_or(self.id.recv_pd, |means| means.pd),
            payload.len as u32,
        );
        if let Some(target) = RecvQueue::segment(self.recv, &self.env.mrs, pd, offset, len) {
            let before = self.env.stages.enter(Stage::Copy);
            payload.copy_to(&[target]);
            self.env.stages.enter(before);
            return Ok(());
        }
        let mut targets = Segments::new();
        RecvQueue::segments(self.recv, &self.env.mrs, pd, offset, len, &mut targets)?;
        let before = self.env.stages.enter(Stage::Copy);
        payload.copy_to(&targets);
        self.env.stages.enter(before);
        Ok(())
    }

    #[inline]
    fn scatter_send(&mut self, wr: &SendWr, offset: u32, payload: Gathered<'_>) -> Result<(), KeyError> {
        let (mrs, len) = (&self.env.mrs, payload.len as u32);
        let to = (self.id.pd, Access::LOCAL_WRITE);
        if let Some(target) = self.sq.segment(mrs, to, wr, offset, len) {
            let before = self.env.stages.enter(Stage::Copy);
            payload.copy_to(&[target]);
            self.env.stages.enter(before);
            return Ok(());
        }
        let mut targets = Segments::new();
        self.sq.segments(mrs, to, wr, offset, len, &mut targets)?;
        let before = self.env.stages.enter(Stage::Copy);
        payload.copy_to(&targets);
        self.env.stages.enter(before);
        Ok(())
    }

    fn scatter_atomic(&mut self, wr: &SendWr, original: u64) -> Result<(), KeyError> {
        let bytes = original.to_ne_bytes();
        let source = RemoteRange {
            ptr: ptr::NonNull::from(&bytes).cast(),
            len: bytes.len(),
        };
        self.scatter_send(wr, 0, Gathered::new(&[source]))
    }

    fn invalidate(&mut self, rkey: u32) -> Result<(), KeyError> {
        let by = self.by();
        let waits = self.env.mrs.invalidate_for(rkey, by)?;
        // Opened after the key went: a core that has passed it looks the key up in vain.
        *self.invalidating = waits.then(|| self.env.qsbr.advance());
        Ok(())
    }

    fn invalidated(&mut self) -> bool {
        if self.invalidating.is_some_and(|epoch| !self.env.qsbr.check(epoch)) {
            return false;
        }
        *self.invalidating = None;
        true
    }

    fn bind(&mut self, bind: &Bind, begin: bool) -> Result<bool, KeyError> {
        let by = self.by();
        let known = self.binding.take().filter(|_| !begin);
        let Some((word, epoch)) = known else {
            if let Begun::Wait(word) = self.env.mrs.begin_bind(bind, by, begin)? {
                // Opened after the old range went, whoever took it.
                *self.binding = Some((word, self.env.qsbr.advance()));
                return Ok(false);
            }
            return Ok(true);
        };
        if !self.env.qsbr.check(epoch) {
            *self.binding = Some((word, epoch));
            return Ok(false);
        }
        self.env.mrs.finish_bind(bind, by, word).map(|()| true)
    }

    #[inline]
    fn complete(&mut self, c: &Completion) -> Result<(), CqFull> {
        if c.queue == Queue::Send && c.status == WcStatus::Success {
            self.counters.sent_messages += 1;
        }
        if !matches!(c.status, WcStatus::Success | WcStatus::WrFlushErr) {
            *self.cause = c.cause;
        }
        let number = match c.queue {
            Queue::Send => self.id.send_cq,
            Queue::Recv => self.xrc.map_or(self.id.recv_cq, |means| means.cq),
        };
        let cqe = self.cqe(c);
        let Some(cq) = self.env.cqs.get_mut(number as usize).and_then(Option::as_mut) else {
            return Err(CqFull);
        };
        touch(cq, number, &mut self.env.touched);
        // Known before the completion is there: see the order of stores at `QpRecord`.
        match c.queue {
            Queue::Send => self.placed.send = cq.position(),
            Queue::Recv => self.placed.recv = cq.position(),
        }
        let solicited = c.flags.contains(CompletionFlags::SOLICITED) || c.status != WcStatus::Success;
        if cq.push(&cqe, solicited) {
            Ok(())
        } else {
            Err(CqFull)
        }
    }

    fn event(&mut self, event: &Event) {
        let kind = match event.kind {
            EventKind::QpFatal => event_kind::QP_FATAL,
            EventKind::QpReqErr => event_kind::QP_REQ_ERR,
            EventKind::QpAccessErr => event_kind::QP_ACCESS_ERR,
            EventKind::CommEst => event_kind::COMM_EST,
            EventKind::SqDrained => event_kind::SQ_DRAINED,
            EventKind::LastWqeReached => event_kind::LAST_WQE_REACHED,
        };
        self.pending.note(kind, event.cause);
        if kind & event_kind::ERRORS != 0 {
            *self.cause = event.cause;
        }
    }
}

impl QpHost<'_> {
    /// Protection domain of remote keys.
    #[inline]
    fn pd(&self) -> u32 {
        self.xrc.map_or(self.id.pd, |means| means.pd)
    }

    /// For whom keys are looked up.
    #[inline]
    fn by(&self) -> By {
        By {
            pd: self.pd(),
            qpn: self.id.qpn,
        }
    }

    #[inline]
    fn cqe(&self, c: &Completion) -> Cqe {
        let mut flags = 0;
        for (ours, theirs) in [
            (CompletionFlags::WITH_IMM, cqe_flags::WITH_IMM),
            (CompletionFlags::WITH_INV, cqe_flags::WITH_INV),
            (CompletionFlags::SOLICITED, cqe_flags::SOLICITED),
            (CompletionFlags::GRH, cqe_flags::GRH),
        ] {
            if c.flags.contains(ours) {
                flags |= theirs;
            }
        }
        if c.queue == Queue::Recv {
            flags |= cqe_flags::RECV;
        }
        if self.xrc.is_some() {
            flags |= cqe_flags::XRC;
        }
        Cqe {
            wr_id: c.wr_id,
            // A client that receives over XRC knows the XRC SRQ, and perhaps not the QP.
            handle: self.xrc.map_or(self.id.handle, |means| means.handle),
            qpn: self.id.qpn,
            byte_len: c.byte_len,
            imm_or_rkey: c.imm_or_rkey,
            src_qpn: c.src_qpn,
            status: c.status as u8,
            opcode: c.opcode as u8,
            flags,
            cause: abi_cause(&c.cause),
            timestamp: self.env.now.0,
            reserved: [0; 16],
        }
    }
}

/// A cause as clients see it.
pub fn abi_cause(cause: &Cause) -> rnic_abi::Cause {
    rnic_abi::Cause {
        check: cause.check as u8,
        opcode: cause.opcode,
        syndrome: cause.syndrome,
        reserved: 0,
        psn: cause.psn,
    }
}

#[cfg(test)]
mod tests {
    use rnic_transport::Check;

    #[test]
    fn every_check_has_its_name_in_the_abi() {
        let last = Check::WindowQp as usize;
        assert_eq!(rnic_abi::CHECK_NAMES.len(), last + 1);
        for (check, name) in [
            (Check::Key, "no such key, or no longer valid"),
            (Check::RdAtomicResources, "too many READs and atomics outstanding"),
            (Check::RemoteNak, "refused by the peer"),
            (Check::SendQueue, "malformed send work request"),
            (Check::DeviceRemoved, "device or port removed"),
            (Check::Alignment, "atomic not of 8 bytes at a multiple of 8"),
            (Check::WindowQp, "memory window bound on another QP"),
        ] {
            assert_eq!(rnic_abi::CHECK_NAMES[check as usize], name);
        }
    }
}
