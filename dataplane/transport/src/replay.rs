//! READs and atomics at the responder: the queue of those to be answered, and duplicates of any request
//! (9.7.5.1.3, 9.7.5.1.5).

use crate::cold::Jobs;
use crate::host::{Host, Payload};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, MAX_MESSAGE, MAX_WINDOW, RcQp, Received};
use crate::record::record;
use crate::responder::Answer;
use crate::types::{Access, Cause, Check, CompletionFlags, QpState, Queue, WcOpcode, WcStatus};
use crate::xrc::named_srq;
use crate::{Completion, RecvWqe};
use core::ops::Range;
use rnic_wire::{Headers, NakCode, Operation, Psn, Reth, Syndrome};

record! {
    /// One READ whose responses are still to be sent, or an atomic that was executed and is to be acknowledged.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct ResponseJob {
        /// Of a READ: where. Of an atomic: what it found.
        pub addr_or_original: u64,
        pub rkey: u32,
        pub len: u32,
        /// PSN of the first response.
        pub first: Psn,
        /// Responses in all.
        pub packets: u32,
        /// Responses sent.
        pub sent: u32,
        /// MSN after this request.
        pub msn: u32,
        /// Of a READ of an XRC target: the XRC SRQ that its request named.
        pub srqn: u32,
        /// It was answered before: it does not count against `max_dest_rd_atomic`.
        pub again: bool,
        /// A response with its MSN was sent, though all of them may have to be sent anew.
        pub told: bool,
        /// An atomic: one response, without `rkey` and `len`.
        pub atomic: bool,
    }
}

impl ResponseJob {
    pub const EMPTY: ResponseJob = ResponseJob {
        addr_or_original: 0,
        rkey: 0,
        len: 0,
        first: Psn::ZERO,
        packets: 0,
        sent: 0,
        msn: 0,
        srqn: 0,
        again: false,
        told: false,
        atomic: false,
    };

    pub fn read(reth: &Reth, srqn: u32, first: Psn, packets: u32, msn: u32) -> Self {
        ResponseJob {
            addr_or_original: reth.va,
            rkey: reth.rkey,
            len: reth.dma_len,
            srqn,
            first,
            packets,
            msn,
            ..ResponseJob::EMPTY
        }
    }

    pub fn atomic(psn: Psn, original: u64, msn: u32) -> Self {
        ResponseJob {
            addr_or_original: original,
            first: psn,
            packets: 1,
            msn,
            atomic: true,
            ..ResponseJob::EMPTY
        }
    }

    /// One past the last response's PSN.
    fn end(&self) -> Psn {
        self.first + self.packets
    }
}

record! {
    /// Where in [`Cold`] the READs and atomics lie that are to be answered, in PSN order; the first is being answered.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct ResponseQueue {
        /// Where the first lies; the others follow.
        begin: u8,
        len: u8,
        /// The first is a READ.
        begins_with_read: bool,
    }
}

impl ResponseQueue {
    pub const fn new() -> Self {
        ResponseQueue {
            begin: 0,
            len: 0,
            begins_with_read: false,
        }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn clear(&mut self) {
        *self = ResponseQueue::new();
    }

    /// Whether a READ is being answered, or is next.
    #[inline]
    pub fn begins_with_read(&self) -> bool {
        self.begins_with_read
    }

    fn look_at_first(&mut self, jobs: &Jobs) {
        self.begins_with_read = self.live(jobs).first().is_some_and(|job| !job.atomic);
    }

    /// Those asked for once, which the requester may count as outstanding.
    pub fn first_time(&self, jobs: &Jobs) -> u8 {
        self.live(jobs).iter().filter(|job| !job.again).count() as u8
    }

    /// The one being answered.
    #[inline]
    pub fn current<'a>(&self, jobs: &'a mut Jobs) -> Option<&'a mut ResponseJob> {
        jobs[self.range()].first_mut()
    }

    /// How many wait, as the record says.
    #[inline]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// The same; `None` when the record holds more than there is room for.
    pub fn jobs<'a>(&self, jobs: &'a Jobs) -> Option<&'a [ResponseJob]> {
        jobs.get(self.range())
    }

    #[inline]
    fn range(&self) -> Range<usize> {
        usize::from(self.begin)..usize::from(self.begin) + usize::from(self.len)
    }

    #[inline]
    fn live<'a>(&self, jobs: &'a Jobs) -> &'a [ResponseJob] {
        &jobs[self.range()]
    }

    /// Makes room behind the last one, if there is any at all.
    fn close_up(&mut self, jobs: &mut Jobs) {
        jobs.copy_within(self.range(), 0);
        self.begin = 0;
    }

    /// Appends a new one. When duplicates fill the queue, one of them gives way: whoever still wants it
    /// asks again.
    pub fn push(&mut self, jobs: &mut Jobs, job: ResponseJob) {
        if usize::from(self.len) == jobs.len() {
            let Some(stale) = self.live(jobs).iter().position(|job| job.again) else {
                return;
            };
            self.remove(jobs, stale);
        }
        if self.range().end == jobs.len() {
            self.close_up(jobs);
        }
        jobs[self.range().end] = job;
        self.len += 1;
        self.look_at_first(jobs);
    }

    #[inline]
    pub fn pop(&mut self, jobs: &Jobs) {
        self.begin += 1;
        self.len -= 1;
        if self.len == 0 {
            self.begin = 0;
        }
        self.look_at_first(jobs);
    }

    /// Gives up the one being answered if `psn` is that of a response to it.
    pub fn abandon(&mut self, jobs: &Jobs, psn: Psn) {
        let answered = |job: &&ResponseJob| !psn.is_before(job.first) && psn.is_before(job.end());
        if self.live(jobs).first().filter(answered).is_some() {
            self.pop(jobs);
        }
    }

    fn remove(&mut self, jobs: &mut Jobs, at: usize) {
        self.close_up(jobs);
        let len = usize::from(self.len);
        jobs.copy_within(at + 1..len, at);
        self.len -= 1;
    }

    /// Puts a repeated one where its PSN belongs; `false` when it contradicts what was asked or finds no
    /// room.
    pub fn replay(&mut self, jobs: &mut Jobs, job: ResponseJob) -> bool {
        let taken = self.put_in_place(jobs, job);
        self.look_at_first(jobs);
        taken
    }

    fn put_in_place(&mut self, jobs: &mut Jobs, job: ResponseJob) -> bool {
        self.close_up(jobs);
        let len = usize::from(self.len);
        let overlaps = |old: &ResponseJob| job.first.is_before(old.end()) && old.first.is_before(job.end());
        if let Some(old) = jobs[..len].iter_mut().find(|old| overlaps(old)) {
            // Still being answered: it starts anew where the requester wants it, and must end where it did.
            let fits = job.end() == old.end() && job.atomic == old.atomic;
            if fits {
                *old = ResponseJob {
                    msn: old.msn,
                    again: old.again,
                    told: old.told,
                    ..job
                };
            }
            return fits;
        }
        if len == jobs.len() {
            return false;
        }
        let at = self
            .live(jobs)
            .iter()
            .position(|old| job.first.is_before(old.first))
            .unwrap_or(len);
        // What follows is not finished, so its MSN must not be told yet, unless it was told already.
        let msn = match self.live(jobs).get(at) {
            Some(next) if next.again || next.told => next.msn,
            Some(next) => next.msn.wrapping_sub(1) & 0x00FF_FFFF,
            None => job.msn,
        };
        if at == 0 && len > 0 {
            // The answer interrupted here starts anew: the requester went back beyond it.
            jobs[0].sent = 0;
        }
        jobs.copy_within(at..len, at + 1);
        jobs[at] = ResponseJob { msn, ..job };
        self.len += 1;
        true
    }
}

impl RcQp {
    /// A request seen before. SEND and WRITE are acknowledged again and not executed; a READ is executed
    /// again; of an atomic the result is said again.
    pub(crate) fn duplicate<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        if self.mutated(Mutation::IgnoreDuplicate) {
            return Received::Duplicate;
        }
        let opcode = headers.bth.opcode;
        match opcode.operation {
            Operation::ReadRequest => return self.duplicate_read(ctx, headers, payload.len()),
            Operation::CompareSwap | Operation::FetchAdd => {
                return self.duplicate_atomic(ctx, headers, payload.len());
            }
            Operation::Flush | Operation::AtomicWrite => return self.duplicate_bare(ctx, headers, payload),
            _ => {}
        }
        if opcode.is_send() || opcode.is_write() {
            if self.mutated(Mutation::ReexecuteDuplicateSend) && opcode.is_send() {
                self.reexecute(ctx);
            }
            self.resp.ack();
            return Received::Duplicate;
        }
        Received::Dropped(DropReason::ReplayRefused)
    }

    fn duplicate_read<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload_len: usize,
    ) -> Received {
        const REFUSED: Received = Received::Dropped(DropReason::ReplayRefused);
        let Some(reth) = headers.reth else { return REFUSED };
        let psn = headers.bth.psn;
        let packets = self.attrs.mtu.packets(reth.dma_len);
        let sane = payload_len == 0 && reth.dma_len <= MAX_MESSAGE && packets <= MAX_WINDOW;
        // Every PSN it asks for must lie before the expected one.
        let room = self.resp.expected().diff(psn);
        if !sane || packets > room.unsigned_abs() || !self.attrs.access.contains(Access::REMOTE_READ) {
            return REFUSED;
        }
        if let Err(refusal) = self.find_srq_again(ctx, headers) {
            self.nak_again(psn, refusal.nak);
            return Received::Refused(refusal.check);
        }
        if reth.dma_len > 0
            && let Err(err) =
                ctx.host
                    .check_remote(reth.rkey, reth.va, u64::from(reth.dma_len), Access::REMOTE_READ)
        {
            self.nak_again(psn, NakCode::RemoteAccessError);
            return Received::Refused(err.check());
        }
        let job = ResponseJob {
            again: true,
            ..ResponseJob::read(&reth, named_srq(headers), psn, packets, self.resp.msn())
        };
        if self.resp.responses.replay(&mut ctx.cold.jobs, job) {
            Received::Duplicate
        } else {
            REFUSED
        }
    }

    /// A repeated READ may not be executed any more. A requester still waiting for it is told; but the
    /// packet may as well be an old one from the network, so that this QP lives on.
    pub(crate) fn nak_again(&mut self, psn: Psn, code: NakCode) {
        let says_more = match self.resp.answer {
            // Whoever still waits for the READ learns from an ACK that its responses are lost, and asks again.
            Answer::Nothing => self.resp.invalidating,
            Answer::Ack => self.resp.taken.is_after(psn),
            Answer::Nak { .. } => true,
        };
        if !says_more {
            self.nak(psn, Syndrome::Nak(code));
        }
    }

    /// The fault of [`Mutation::ReexecuteDuplicateSend`].
    fn reexecute<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if self.state == QpState::Err {
            return;
        }
        if let Ok(Some(RecvWqe { wr_id, .. })) = ctx.host.take_recv() {
            let completion = Completion {
                wr_id,
                status: WcStatus::Success,
                opcode: WcOpcode::Recv,
                queue: Queue::Recv,
                flags: CompletionFlags::NONE,
                src_qpn: self.dest_qpn,
                byte_len: 0,
                imm_or_rkey: 0,
                cause: Cause::of(Check::None),
            };
            self.complete(ctx, &completion);
        }
    }
}
