//! The requester's sending half: posting, segmentation, windows, fence (9.7.1 to 9.7.3).

use crate::atomic::ATOMIC_LEN;
use crate::credit::Credit;
use crate::host::{Host, KeyError};
use crate::mutation::Mutation;
use crate::qp::{Ctx, Emit, MAX_MESSAGE, MAX_WINDOW, PostError, RcQp, Source};
use crate::record::record;
use crate::selective::Resend;
use crate::types::{Cause, Check, QpState, Time, WcStatus};
use crate::work::{Bind, SendFlags, SendWr, WrOpcode};
use core::mem::offset_of;
use rnic_wire::{Operation, Psn, Reth};

record! {
    /// Requester record.
    ///
    /// Indices of the send ring run free: `head` ≤ `cur` ≤ `fresh` ≤ `tail`. PSNs: `una` ≤ `next` ≤ `max`. After
    /// a go-back `cur` and `next` lie before `fresh` and `max` until everything was sent again.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Requester {
        /// Oldest work request not completed.
        pub head: u32,
        /// The one being sent.
        pub cur: u32,
        /// The first one never started: it has no PSNs yet.
        pub fresh: u32,
        /// Where the next one is posted.
        pub tail: u32,
        /// Oldest PSN not acknowledged; inside a READ, the next response expected.
        pub una: Psn,
        /// The next PSN to send.
        pub next: Psn,
        /// One past the last PSN ever sent.
        pub max: Psn,
        /// PSN at which the READ at the head was last resumed.
        pub resumed: Psn,
        /// READs and atomics on their way: started, not completed, and sent since the last go-back.
        pub rd_atomics: u8,
        /// Retries since the last progress.
        pub retries: u8,
        /// RNR NAKs since the last progress.
        pub rnr_tries: u8,
        /// Waiting for `rnr_deadline`; nothing is sent.
        pub rnr_wait: bool,
        /// Sending cannot go on before something happens: acknowledgement, post, modify.
        pub blocked: bool,
        /// The work request `failed_at` met a local error and fails when it is the oldest.
        pub failed: bool,
        pub failed_status: WcStatus,
        /// The LOCAL_INV or BIND_MW at the head was begun; it is done when nobody uses the key that went.
        pub local_begun: bool,
        /// SQD: SQ_DRAINED was raised, or was not asked for.
        pub drained: bool,
        pub failed_at: u32,
        pub failed_cause: Cause,
        /// End-to-end credits.
        pub credit: Credit,
        pub ack_deadline: Time,
        pub rnr_deadline: Time,
        /// What the peer has of what was sent.
        pub resend: Resend,
    }
}

impl Requester {
    /// Bytes at the start of the record that every packet needs.
    pub const HOT: usize = offset_of!(Requester, resend) + size_of::<Time>();

    pub const fn new() -> Self {
        Requester {
            head: 0,
            cur: 0,
            fresh: 0,
            tail: 0,
            una: Psn::ZERO,
            next: Psn::ZERO,
            max: Psn::ZERO,
            resumed: Psn::ZERO,
            rd_atomics: 0,
            retries: 0,
            rnr_tries: 0,
            rnr_wait: false,
            blocked: false,
            failed: false,
            failed_status: WcStatus::Success,
            local_begun: false,
            drained: false,
            failed_at: 0,
            failed_cause: Cause::of(Check::None),
            credit: Credit::new(),
            ack_deadline: Time::NEVER,
            rnr_deadline: Time::NEVER,
            resend: Resend::new(),
        }
    }

    /// Sets the first PSN, on the way to RTS.
    pub fn start(&mut self, psn: Psn) {
        (self.una, self.next, self.max) = (psn, psn, psn);
        self.resend.start(psn);
    }

    /// Cancels timers, on the way to ERR.
    pub fn stop(&mut self) {
        self.ack_deadline = Time::NEVER;
        self.rnr_deadline = Time::NEVER;
        self.resend.stop();
        self.rnr_wait = false;
        self.local_begun = false;
    }

    #[inline]
    pub fn may_send(&self) -> bool {
        self.cur != self.tail && !self.blocked && !self.rnr_wait
    }

    /// How far an index lies ahead of the oldest work request.
    #[inline]
    pub(crate) fn ahead(&self, index: u32) -> u32 {
        index.wrapping_sub(self.head)
    }

    /// Every started work request is done.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.head == self.fresh && !self.local_begun
    }
}

/// Which packet of its message is being sent.
#[derive(Copy, Clone)]
struct Place {
    first: bool,
    last: bool,
}

impl Place {
    fn operation(self, opcode: WrOpcode) -> Operation {
        use Operation as O;
        match (opcode, self.first, self.last) {
            (WrOpcode::Write | WrOpcode::WriteImm, true, false) => O::WriteFirst,
            (WrOpcode::Write | WrOpcode::WriteImm, false, false) => O::WriteMiddle,
            (WrOpcode::Write, false, true) => O::WriteLast,
            (WrOpcode::Write, true, true) => O::WriteOnly,
            (WrOpcode::WriteImm, false, true) => O::WriteLastImm,
            (WrOpcode::WriteImm, true, true) => O::WriteOnlyImm,
            (WrOpcode::Read, ..) => O::ReadRequest,
            (WrOpcode::SendImm, false, true) => O::SendLastImm,
            (WrOpcode::SendImm, true, true) => O::SendOnlyImm,
            (WrOpcode::SendInv, false, true) => O::SendLastInv,
            (WrOpcode::SendInv, true, true) => O::SendOnlyInv,
            (_, true, false) => O::SendFirst,
            (_, false, false) => O::SendMiddle,
            (_, false, true) => O::SendLast,
            (_, true, true) => O::SendOnly,
        }
    }
}

impl RcQp {
    /// Accepts one send work request. In ERR it is accepted too, and flushed.
    ///
    /// On success it lies in the ring; on error nothing changed.
    #[inline]
    pub fn post_send<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, wr: SendWr) -> Result<(), PostError> {
        self.post_send_with(ctx.sq, |place| *place = wr)
    }

    /// The same of a work request that `fill` puts in place, over what another left there: all fields but the transport's
    /// own. `ring` is the storage of the send ring ([`Ctx::sq`]).
    #[inline]
    pub fn post_send_with(
        &mut self,
        ring: &mut [SendWr],
        fill: impl FnOnce(&mut SendWr),
    ) -> Result<(), PostError> {
        debug_assert!(
            ring.is_empty() || ring.len().is_power_of_two(),
            "the ring is indexed by a mask"
        );
        match self.state {
            QpState::Rts | QpState::Sqd | QpState::Sqe | QpState::Err => {}
            state => return Err(PostError::BadState { state }),
        }
        if self.sq_room(ring.len() as u32) == 0 {
            return Err(PostError::Full);
        }
        let tail = self.req.tail;
        let mask = ring.len().wrapping_sub(1);
        let wr = &mut ring[tail as usize & mask];
        fill(wr);
        wr.remote_srqn &= Psn::MAX.get();
        match wr.opcode {
            _ if !self.supports(wr.opcode) => return Err(PostError::Unsupported { opcode: wr.opcode }),
            _ if wr.is_rd_atomic() && self.attrs.max_rd_atomic == 0 => {
                return Err(PostError::NoRdAtomicResources);
            }
            WrOpcode::Read if self.attrs.mtu.packets(wr.length) > MAX_WINDOW => {
                return Err(PostError::TooLong { length: wr.length });
            }
            WrOpcode::Flush if wr.flush_eth().is_none() || wr.length != 0 => {
                return Err(PostError::BadFlush {
                    feth: wr.swap,
                    length: wr.length,
                });
            }
            _ if (wr.is_atomic() || wr.opcode == WrOpcode::AtomicWrite) && wr.length != ATOMIC_LEN => {
                return Err(PostError::AtomicLength { length: wr.length });
            }
            _ if wr.length > MAX_MESSAGE => return Err(PostError::TooLong { length: wr.length }),
            _ => {}
        }
        self.req.tail = tail.wrapping_add(1);
        self.req.blocked &= self.req.cur != tail;
        Ok(())
    }

    /// The next packet of a requester of RC or XRC.
    #[inline]
    pub(crate) fn poll_request<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        if self.req.next != self.req.max && self.attrs.selective {
            self.skip_received(ctx);
        }
        let index = loop {
            if !self.state.sends() || !self.req.may_send() {
                return false;
            }
            let index = self.req.cur;
            if !self.may_begin(ctx, index) {
                self.req.blocked = true;
                self.refuse_rd_atomic(ctx, index);
                return false;
            }
            if !ctx.wr(index).is_local() {
                break index;
            }
            if !self.local_operation(ctx) {
                return false;
            }
        };
        if index == self.req.fresh {
            self.start_request(ctx, index);
        }
        let slot = index & (ctx.sq.len() as u32).wrapping_sub(1);
        let wr = &*ctx.wr(index);
        let retransmitted = self.req.next != self.req.max;
        match wr.opcode {
            WrOpcode::Read => self.read_request(wr, emit),
            WrOpcode::CompSwap | WrOpcode::FetchAdd => self.atomic_request(wr, emit),
            WrOpcode::Flush => self.flush_request(wr, emit),
            WrOpcode::AtomicWrite => self.atomic_write_request(wr, slot, emit),
            _ => self.data_packet(wr, slot, emit),
        }
        if self.req.ack_deadline == Time::NEVER {
            self.arm_ack_timer(ctx.now);
        }
        if self.attrs.selective {
            self.note_sent(&emit.headers.bth, retransmitted, ctx.now);
        }
        emit.retransmitted = retransmitted;
        true
    }

    /// Gives a work request its PSNs.
    #[inline]
    pub(crate) fn start_request<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, index: u32) {
        let (mtu, first) = (self.attrs.mtu, self.req.next);
        let wr = ctx.wr(index);
        wr.first = first;
        wr.last = first + (mtu.packets(wr.length) - 1);
        let takes_recv = wr.takes_recv();
        self.req.fresh = index.wrapping_add(1);
        self.req.credit.start(takes_recv);
    }

    /// Whether the packet at `next` may go out now: window, credits, fence, limit of READs and atomics, drain, an earlier local error.
    #[inline]
    fn may_begin<H: Host>(&self, ctx: &mut Ctx<'_, H>, index: u32) -> bool {
        let req = &self.req;
        if req.failed && req.ahead(index) >= req.ahead(req.failed_at) {
            return false;
        }
        let fresh = index == req.fresh;
        let draining = self.state == QpState::Sqd && !self.mutated(Mutation::BeginInSqd);
        if fresh && draining && !req.local_begun {
            return false;
        }
        let unacked = req.next.diff(req.una) as u32;
        if unacked >= self.window() {
            return false;
        }
        let mtu = self.attrs.mtu;
        let wr = ctx.wr(index);
        if wr.is_local() {
            // As if fenced by all that stands before it (10.6.5.1): its key may be in use there. For a bind that is
            // more than is asked for (10.8.3.3); what matters is that nothing behind it begins before it is done.
            return index == req.head;
        }
        if wr.is_rd_atomic() {
            // A READ takes the PSNs of its responses: those too must fit half the PSN space.
            let psns = if fresh { mtu.packets(wr.length) } else { 1 };
            let many = req.rd_atomics >= self.attrs.max_rd_atomic && !self.mutated(Mutation::IgnoreReadLimit);
            if many || unacked + psns > MAX_WINDOW {
                return false;
            }
        }
        if self.out_of_credit(index, wr) {
            return false;
        }
        let fenced = fresh && req.rd_atomics > 0 && wr.flags.contains(SendFlags::FENCE);
        !fenced || self.mutated(Mutation::IgnoreFence)
    }

    /// A READ or atomic that was posted before `max_rd_atomic` became 0 would wait for ever: it fails when its turn comes.
    #[cold]
    fn refuse_rd_atomic<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, index: u32) {
        let begins = index == self.req.fresh && self.state == QpState::Rts && !self.req.failed;
        if !begins || self.attrs.max_rd_atomic > 0 || !ctx.wr(index).is_rd_atomic() {
            return;
        }
        let req = &mut self.req;
        (req.failed, req.failed_at) = (true, index);
        req.failed_status = WcStatus::LocQpOpErr;
        req.failed_cause = Cause {
            psn: req.next.get(),
            ..Cause::of(Check::RdAtomicResources)
        };
        self.fail_if_oldest(ctx);
    }

    /// Goes on with the LOCAL_INV or BIND_MW at the head; `true` when it is done and the next request may begin.
    ///
    /// It has no PSN: while it stands at the head nothing is outstanding and nothing behind it has begun, so
    /// neither acknowledgements nor retries ever meet it.
    pub(crate) fn local_operation<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) -> bool {
        let wr = *ctx.wr(self.req.head);
        let done = match wr.opcode {
            WrOpcode::BindMw => self.bind(ctx, &wr),
            _ => self.local_invalidate(ctx, &wr),
        };
        match done {
            Ok(true) => {}
            Ok(false) => return false,
            Err(err) => {
                let cause = Cause {
                    psn: self.req.next.get(),
                    ..Cause::of(err.check())
                };
                self.fail_oldest(ctx, WcStatus::MwBindErr, cause);
                return false;
            }
        }
        self.req.local_begun = false;
        self.req.fresh = self.req.head.wrapping_add(1);
        self.complete_oldest(ctx, &wr);
        self.check_drained(ctx);
        true
    }

    fn local_invalidate<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, wr: &SendWr) -> Result<bool, KeyError> {
        if !self.req.local_begun {
            ctx.host.invalidate(wr.imm_or_rkey)?;
            self.req.local_begun = true;
        }
        Ok(ctx.host.invalidated() || self.mutated(Mutation::InvalidateTooSoon))
    }

    fn bind<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, wr: &SendWr) -> Result<bool, KeyError> {
        // Noted first: whoever goes on with this QP after the process has died is to know that it may be done.
        let begin = !core::mem::replace(&mut self.req.local_begun, true);
        let bind = Bind::of(wr).ok_or(KeyError::Access)?;
        if self.mutated(Mutation::BindNothing) {
            return Ok(true);
        }
        let done = ctx.host.bind(&bind, begin)?;
        Ok(done || self.mutated(Mutation::BindTooSoon))
    }

    /// The request of a READ, for what has not arrived of it yet.
    fn read_request(&mut self, wr: &SendWr, emit: &mut Emit) {
        let psn = self.req.next;
        let offset = (psn.diff(wr.first) as u32) << self.attrs.mtu.log2();
        if offset > 0 {
            self.req.resumed = psn;
        }
        let at = if self.mutated(Mutation::ResumeReadAtStart) {
            0
        } else {
            offset
        };
        let mut bth = self.bth(Operation::ReadRequest, psn);
        bth.ack_req = true;
        emit.begin(bth);
        emit.headers.reth = Some(Reth {
            va: wr.remote_addr.wrapping_add(u64::from(at)),
            rkey: wr.rkey,
            dma_len: wr.length - offset,
        });
        emit.headers.xrceth = self.xrceth(wr);
        self.req.rd_atomics += 1;
        self.advance(wr.last.next(), true);
    }

    /// One packet of a SEND or WRITE.
    #[inline]
    pub(crate) fn data_packet(&mut self, wr: &SendWr, slot: u32, emit: &mut Emit) {
        let psn = self.req.next;
        let mtu = self.attrs.mtu;
        let number = psn.diff(wr.first) as u32;
        let offset = number << mtu.log2();
        let len = (wr.length - offset).min(mtu.bytes() as u32);
        let place = Place {
            first: number == 0,
            last: psn == wr.last,
        };
        let mut bth = self.bth(place.operation(wr.opcode), psn);
        let every = (1 << self.limits.ack_every_log2) - 1;
        // The last packet a window lets out has to ask as well, or nobody would open the window again.
        let fills_window = psn.diff(self.req.una) as u32 + 1 >= self.window();
        // So does the first of a retry, which shows soonest that it helped, and each packet that is resent alone.
        let retried = psn != self.req.max && (psn == self.req.una || self.attrs.selective);
        let alone = self.is_slow() || self.is_probe(wr, psn);
        bth.ack_req = place.last || number & every == every || fills_window || retried || alone;
        emit.begin(bth);
        let headers = &mut emit.headers;
        headers.xrceth = self.xrceth(wr);
        if place.first && matches!(wr.opcode, WrOpcode::Write | WrOpcode::WriteImm) {
            headers.reth = Some(Reth {
                va: wr.remote_addr,
                rkey: wr.rkey,
                dma_len: wr.length,
            });
        }
        if place.last {
            match wr.opcode {
                WrOpcode::SendImm | WrOpcode::WriteImm => headers.imm = Some(wr.imm_or_rkey),
                WrOpcode::SendInv => headers.ieth = Some(wr.imm_or_rkey),
                _ => {}
            }
            let notifies = !matches!(wr.opcode, WrOpcode::Write);
            headers.bth.solicited = notifies && wr.flags.contains(SendFlags::SOLICITED);
        }
        self.advance(psn.next(), place.last);
        if len > 0 {
            emit.source = Source::Send {
                wr_index: slot,
                data: wr.data,
                offset,
                len,
            };
        }
    }

    /// Moves the send cursor to `next`, and to the next work request when this one is out.
    #[inline]
    pub(crate) fn advance(&mut self, next: Psn, done: bool) {
        let req = &mut self.req;
        req.next = next;
        if next.is_after(req.max) {
            req.max = next;
        }
        req.cur = req.cur.wrapping_add(u32::from(done));
    }

    /// A local error while reading the payload of the work request in `slot` of the ring.
    pub(crate) fn request_gather_failed<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        slot: u32,
        psn: Psn,
        opcode: u8,
        err: KeyError,
    ) {
        if !self.state.sends() {
            return;
        }
        let mask = (ctx.sq.len() as u32).wrapping_sub(1);
        // The slot is that of one of the requests between head and fresh.
        let index = self
            .req
            .head
            .wrapping_add(slot.wrapping_sub(self.req.head) & mask);
        let req = &mut self.req;
        if req.ahead(index) >= req.ahead(req.fresh) {
            return;
        }
        if !req.failed || req.ahead(index) < req.ahead(req.failed_at) {
            req.failed = true;
            req.failed_at = index;
            req.failed_status = WcStatus::LocProtErr;
            req.failed_cause = Cause {
                psn: psn.get(),
                check: err.check(),
                opcode,
                syndrome: 0,
            };
        }
        if req.next == psn.next() {
            // The packet was not sent after all. If it was the first attempt its PSN was never used.
            if req.max == req.next {
                req.max = psn;
                req.resend.end_at(psn);
            }
            req.next = psn;
            req.cur = index;
            if ctx.wr(index).is_rd_atomic() {
                req.rd_atomics = req.rd_atomics.saturating_sub(1);
            }
        }
        self.fail_if_oldest(ctx);
    }
}
