//! The responder: requests in, effects and one pending acknowledgement out (9.7.4, 9.7.5.2, 9.9.3).

use crate::atomic::AtomicResults;
use crate::cold::Cold;
use crate::host::{Completion, Host, Payload};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, MAX_MESSAGE, MAX_WINDOW, RcQp, Received};
use crate::record::record;
use crate::refusal::Refusal;
use crate::replay::{ResponseJob, ResponseQueue};
use crate::selective::Early;
use crate::types::{
    Access, Cause, Check, CompletionFlags, Event, EventKind, QpState, Queue, WcOpcode, WcStatus,
};
use crate::work::RecvWqe;
use crate::xrc::named_srq;
use core::mem::offset_of;
use rnic_wire::{Headers, MessageKind, NakCode, Operation, Psn, Syndrome};
use zerocopy::{Immutable, KnownLayout, TryFromBytes};

/// The acknowledgement due, if any. Coalescing is that there is only one.
#[derive(Copy, Clone, Debug, PartialEq, Eq, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub(crate) enum Answer {
    Nothing,
    /// ACK of everything up to [`Responder::taken`].
    Ack,
    /// A NAK of any kind.
    Nak {
        psn: Psn,
        syndrome: u8,
    },
}

record! {
    /// Responder record.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Responder {
        /// The PSN expected next.
        pub(crate) epsn: Psn,
        /// PSN of the last packet of a SEND or WRITE that took effect: what an ACK is for. Never that of a READ or an
        /// atomic, for which nothing but its own response speaks: a requester that takes an ACK for it may believe it
        /// done without its data, or broken.
        pub(crate) taken: Psn,
        /// Messages completed, 24 bits.
        pub(crate) msn: u32,
        pub(crate) answer: Answer,
        /// The message under way.
        pub(crate) message: MessageKind,
        /// A sequence-error or RNR NAK stands until the expected PSN arrives.
        pub(crate) nak_stands: bool,
        /// COMM_EST was raised.
        established: bool,
        /// `wqe` is in use by the message under way.
        pub(crate) has_wqe: bool,
        /// Bytes of the message that have arrived.
        pub(crate) received: u32,
        /// The XRC SRQ that the message under way is for, or the last one was (XRC target).
        pub(crate) srqn: u32,
        /// Announced length of the WRITE under way.
        pub(crate) write_len: u32,
        pub(crate) write_rkey: u32,
        pub(crate) write_addr: u64,
        /// The last packet of a SEND with invalidate is here, and its key not yet out of use: the message
        /// completes and `epsn` moves on when it is. Until then nothing else is taken.
        pub(crate) invalidating: bool,
        /// Of that packet: whether it was solicited, and asks for an ACK.
        solicited: bool,
        ack_req: bool,
        /// Packets behind it were dropped meanwhile: their sender is told, instead of waiting for its timer.
        dropped: bool,
        /// The key.
        invalidated_key: u32,
        pub(crate) wqe: RecvWqe,
        /// READs accepted whose responses are still to be sent, and atomics whose results are.
        pub(crate) responses: ResponseQueue,
        pub(crate) atomics: AtomicResults,
        /// What has arrived before its turn.
        pub(crate) early: Early,
    }
}

impl Responder {
    /// Bytes at the start of the record that every packet needs.
    pub const HOT: usize = offset_of!(Responder, early) + size_of::<u64>();

    pub const fn new() -> Self {
        Responder {
            epsn: Psn::ZERO,
            taken: Psn::ZERO,
            msn: 0,
            answer: Answer::Nothing,
            message: MessageKind::None,
            nak_stands: false,
            established: false,
            has_wqe: false,
            received: 0,
            srqn: 0,
            write_len: 0,
            write_rkey: 0,
            write_addr: 0,
            invalidating: false,
            solicited: false,
            ack_req: false,
            dropped: false,
            invalidated_key: 0,
            wqe: RecvWqe {
                wr_id: 0,
                capacity: 0,
                data: 0,
            },
            responses: ResponseQueue::new(),
            atomics: AtomicResults::new(),
            early: Early::new(),
        }
    }

    /// Sets the first PSN, on the way to RTR.
    pub fn start(&mut self, psn: Psn) {
        self.epsn = psn;
        self.taken = psn.prev();
    }

    #[inline]
    pub fn expected(&self) -> Psn {
        self.epsn
    }

    #[inline]
    pub fn msn(&self) -> u32 {
        self.msn
    }

    #[inline]
    pub fn has_work(&self) -> bool {
        self.answer != Answer::Nothing || !self.responses.is_empty() || self.invalidating
    }

    /// Whether there is something to say, or to look at, that no READ response has to precede.
    #[inline]
    pub fn has_unpaced(&self) -> bool {
        self.has_work() && (self.invalidating || !self.responses.begins_with_read())
    }

    /// Forgets everything still to be said.
    pub fn silence(&mut self) {
        self.answer = Answer::Nothing;
        self.responses.clear();
    }

    pub fn holds_wqe(&self) -> bool {
        self.has_wqe
    }

    /// Gives up the receive WQE of the message under way; whether there was one.
    pub fn take_wqe(&mut self) -> bool {
        core::mem::take(&mut self.has_wqe)
    }

    /// An ACK is due, unless a NAK is already, which says more.
    #[inline]
    pub fn ack(&mut self) {
        if self.answer == Answer::Nothing {
            self.answer = Answer::Ack;
        }
    }
}

/// How a request in sequence ended.
pub(crate) enum Outcome {
    Done,
    NoReceiveWqe,
}

pub(crate) type Step = Result<Outcome, Refusal>;

impl RcQp {
    /// Takes a request.
    #[inline]
    pub(crate) fn request<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        if !self.state.receives() {
            return Received::Dropped(DropReason::State);
        }
        let psn = headers.bth.psn;
        let place = self.place(psn);
        if self.resp.invalidating {
            self.resp.dropped |= place > 0;
            return Received::Dropped(DropReason::Invalidating);
        }
        if place != 0 {
            return if place < 0 {
                self.duplicate(ctx, headers, payload)
            } else if self.attrs.selective {
                self.early(ctx, headers, payload, place as u32)
            } else {
                self.out_of_order()
            };
        }
        self.in_sequence(ctx);
        match self.execute(ctx, headers, payload) {
            Ok(Outcome::Done) => {
                if self.resp.early.is_gap() {
                    self.close_up(&mut ctx.cold.early, psn);
                }
                Received::Accepted
            }
            Ok(Outcome::NoReceiveWqe) => self.not_ready(),
            Err(refusal) => self.refuse(ctx, psn, headers.bth.opcode.to_u8(), &refusal),
        }
    }

    /// A request in sequence takes effect, or is refused.
    #[inline]
    fn execute<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, headers: &Headers, payload: H::Payload<'_>) -> Step {
        self.find_srq(ctx, headers)?;
        match headers.bth.opcode.operation {
            Operation::ReadRequest => self.read_request_in(ctx, headers, payload.len()),
            Operation::CompareSwap | Operation::FetchAdd => {
                let executed = self.atomic_in(ctx, headers, payload.len());
                executed.map(|()| Outcome::Done)
            }
            _ if headers.bth.opcode.is_send() => self.send_in(ctx, headers, payload),
            _ if headers.bth.opcode.is_write() => self.write_in(ctx, headers, payload),
            Operation::Flush => {
                let flushed = self.flush_in(ctx, headers, payload.len());
                flushed.map(|()| Outcome::Done)
            }
            Operation::AtomicWrite => {
                let written = self.atomic_write_in(ctx, headers, payload);
                written.map(|()| Outcome::Done)
            }
            _ => Err(Refusal::invalid(Check::UnsupportedOpcode)),
        }
    }

    /// Takes a reserved opcode of the QP's own class.
    pub(crate) fn reserved_request<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        opcode: u8,
        psn: Psn,
    ) -> Received {
        if !self.state.receives() {
            return Received::Dropped(DropReason::State);
        }
        match self.place(psn) {
            _ if self.resp.invalidating => Received::Dropped(DropReason::Invalidating),
            0 => self.refuse(ctx, psn, opcode, &Refusal::invalid(Check::ReservedOpcode)),
            ..0 => Received::Dropped(DropReason::ReplayRefused),
            1.. => self.out_of_order(),
        }
    }

    /// Where a PSN lies: 0 expected, negative seen before, positive too early (9.7.4.1).
    #[inline]
    fn place(&self, psn: Psn) -> i32 {
        if self.mutated(Mutation::UnsignedPsnCompare) {
            return psn.get() as i32 - self.resp.epsn.get() as i32;
        }
        psn.diff(self.resp.epsn)
    }

    /// The expected PSN is here: an outstanding NAK is answered, the connection is established.
    #[inline]
    pub(crate) fn in_sequence<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        self.resp.nak_stands = false;
        if matches!(self.resp.answer, Answer::Nak { .. }) {
            self.resp.answer = Answer::Nothing;
        }
        if self.state == QpState::Rtr && !self.resp.established {
            self.resp.established = true;
            ctx.host.event(&Event {
                kind: EventKind::CommEst,
                cause: Cause::of(Check::None),
            });
        }
    }

    /// Packets are missing: one NAK, then silence until the expected PSN arrives (9.7.5.2.1).
    pub(crate) fn out_of_order(&mut self) -> Received {
        if self.resp.nak_stands && !self.mutated(Mutation::NakTwice) {
            return Received::Dropped(DropReason::NakOutstanding);
        }
        self.resp.nak_stands = true;
        let psn = self.resp.epsn + u32::from(self.mutated(Mutation::NakNextPsn));
        self.nak(psn, Syndrome::Nak(NakCode::PsnSequenceError));
        Received::OutOfOrder
    }

    pub(crate) fn not_ready(&mut self) -> Received {
        self.resp.nak_stands = true;
        self.nak(
            self.resp.epsn,
            Syndrome::RnrNak {
                timer: self.attrs.min_rnr_timer.code(),
            },
        );
        Received::NotReady
    }

    pub(crate) fn nak(&mut self, psn: Psn, syndrome: Syndrome) {
        self.resp.answer = Answer::Nak {
            psn,
            syndrome: syndrome.to_u8(),
        };
    }

    /// Checks that a SEND or WRITE packet may come now, and that its size is one its opcode may have.
    #[inline]
    fn check_packet(&self, headers: &Headers, kind: MessageKind, len: usize) -> Result<(), Refusal> {
        let opcode = headers.bth.opcode;
        let wanted = if opcode.starts_message() {
            MessageKind::None
        } else {
            kind
        };
        if self.resp.message != wanted && !self.mutated(Mutation::IgnoreOpcodeSequence) {
            return Err(Refusal::invalid(Check::OpcodeSequence));
        }
        let mtu = self.attrs.mtu.bytes();
        let fits = match (opcode.starts_message(), opcode.ends_message()) {
            (_, false) => len == mtu,
            (true, true) => len <= mtu,
            (false, true) => 0 < len && len <= mtu,
        };
        if fits {
            Ok(())
        } else {
            Err(Refusal::invalid(Check::Length))
        }
    }

    /// Takes a receive WQE for the message; `false` when there is none.
    #[inline]
    pub(crate) fn take_recv<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) -> Result<bool, Refusal> {
        if self.resp.has_wqe {
            // Left over from a message that was dropped (UC, UD).
            return Ok(true);
        }
        match ctx.host.take_recv() {
            Ok(Some(wqe)) => {
                self.resp.wqe = wqe;
                self.resp.has_wqe = true;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(err) => {
                if let Some(wr_id) = err.wr_id {
                    self.resp.wqe = RecvWqe {
                        wr_id,
                        capacity: 0,
                        data: 0,
                    };
                    self.resp.has_wqe = true;
                }
                Err(Refusal::local(Check::ReceiveQueue, WcStatus::LocQpOpErr))
            }
        }
    }

    #[inline]
    pub(crate) fn send_in<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Step {
        let opcode = headers.bth.opcode;
        let len = payload.len();
        self.check_packet(headers, MessageKind::Send, len)?;
        if opcode.starts_message() {
            if !self.take_recv(ctx)? {
                return Ok(Outcome::NoReceiveWqe);
            }
            self.resp.received = 0;
        }
        // The size was checked against the MTU.
        let total = self.resp.received.saturating_add(len as u32);
        let capacity = self.resp.wqe.capacity.min(MAX_MESSAGE);
        if total > capacity && !self.mutated(Mutation::SkipReceiveCapacity) {
            let status = WcStatus::LocLenErr;
            return Err(Refusal {
                status,
                ..Refusal::invalid(Check::MessageTooLong)
            });
        }
        if len > 0 {
            let wqe = self.resp.wqe;
            ctx.host
                .scatter_recv(&wqe, self.resp.received, payload)
                .map_err(|err| Refusal::local(err.check(), WcStatus::LocProtErr))?;
        }
        self.resp.received = total;
        if opcode.ends_message() {
            if let Some(rkey) = headers.ieth {
                let refused = |err| Refusal {
                    check: Check::Invalidate,
                    status: WcStatus::RemInvReqErr,
                    ..Refusal::access(err)
                };
                if !self.mutated(Mutation::InvalidateNothing) {
                    ctx.host.invalidate(rkey).map_err(refused)?;
                }
                let resp = &mut self.resp;
                (resp.invalidating, resp.dropped) = (true, false);
                (resp.solicited, resp.ack_req) = (headers.bth.solicited, headers.bth.ack_req);
                resp.invalidated_key = rkey;
                self.finish_invalidation(ctx);
                return Ok(Outcome::Done);
            }
            let (flags, value) = match headers.imm {
                Some(imm) => (CompletionFlags::WITH_IMM, imm),
                None => (CompletionFlags::NONE, 0),
            };
            self.complete_recv(ctx, WcOpcode::Recv, flags, value, headers.bth.solicited);
        }
        self.taken(opcode.ends_message(), headers.bth.ack_req, MessageKind::Send);
        Ok(Outcome::Done)
    }

    #[inline]
    pub(crate) fn write_in<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Step {
        let opcode = headers.bth.opcode;
        let len = payload.len();
        self.check_packet(headers, MessageKind::Write, len)?;
        if !self.attrs.access.contains(Access::REMOTE_WRITE) {
            return Err(Refusal::invalid(Check::QpAccess));
        }
        let (addr, rkey, total, received) = match headers.reth {
            Some(reth) => (reth.va, reth.rkey, reth.dma_len, 0),
            None => (
                self.resp.write_addr,
                self.resp.write_rkey,
                self.resp.write_len,
                self.resp.received,
            ),
        };
        // What is left must end exactly with the message: not before, not after.
        let left = total.saturating_sub(received) as usize;
        let fits = if opcode.ends_message() {
            len == left
        } else {
            len < left
        };
        if total > MAX_MESSAGE || !fits && !self.mutated(Mutation::SkipLengthCheck) {
            return Err(Refusal::invalid(Check::Length));
        }
        // Of a packet that is the whole message, the access itself is the check.
        let whole = len == total as usize && headers.imm.is_none();
        let checks = headers.reth.is_some() && total > 0 && !whole;
        if checks && !self.mutated(Mutation::SkipKeyCheck) {
            ctx.host
                .check_remote(rkey, addr, u64::from(total), Access::REMOTE_WRITE)
                .map_err(Refusal::access)?;
        }
        if headers.imm.is_some() && !self.take_recv(ctx)? {
            return Ok(Outcome::NoReceiveWqe);
        }
        if len > 0 {
            let at = addr.wrapping_add(u64::from(received));
            ctx.host
                .write_remote(rkey, at, payload)
                .map_err(Refusal::access)?;
        }
        (self.resp.write_addr, self.resp.write_rkey, self.resp.write_len) = (addr, rkey, total);
        self.resp.received = received.saturating_add(len as u32);
        if let Some(imm) = headers.imm {
            let (opcode, flags) = (WcOpcode::RecvRdmaWithImm, CompletionFlags::WITH_IMM);
            self.complete_recv(ctx, opcode, flags, imm, headers.bth.solicited);
        }
        self.taken(opcode.ends_message(), headers.bth.ack_req, MessageKind::Write);
        Ok(Outcome::Done)
    }

    fn read_request_in<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, headers: &Headers, len: usize) -> Step {
        self.may_respond(ctx.cold, Access::REMOTE_READ)?;
        let Some(reth) = headers.reth else {
            return Err(Refusal::invalid(Check::Length));
        };
        let packets = self.attrs.mtu.packets(reth.dma_len);
        if len != 0 || reth.dma_len > MAX_MESSAGE || packets > MAX_WINDOW {
            return Err(Refusal::invalid(Check::Length));
        }
        if reth.dma_len > 0 && !self.mutated(Mutation::SkipKeyCheck) {
            ctx.host
                .check_remote(reth.rkey, reth.va, u64::from(reth.dma_len), Access::REMOTE_READ)
                .map_err(Refusal::access)?;
        }
        let first = self.resp.epsn;
        self.respond_from(ctx.cold, first, packets, |msn| {
            ResponseJob::read(&reth, named_srq(headers), first, packets, msn)
        });
        Ok(Outcome::Done)
    }

    /// Checks that a READ, atomic, FLUSH or ATOMIC WRITE may come now, that the QP grants it, and that there is room to answer it.
    pub(crate) fn may_respond(&self, cold: &Cold, access: Access) -> Result<(), Refusal> {
        let check = if self.resp.message != MessageKind::None {
            Check::OpcodeSequence
        } else if !self.attrs.access.contains(access) {
            Check::QpAccess
        } else if self.resp.responses.len() >= self.attrs.max_dest_rd_atomic
            && self.resp.responses.first_time(&cold.jobs) >= self.attrs.max_dest_rd_atomic
        {
            Check::RdAtomicResources
        } else {
            return Ok(());
        };
        Err(Refusal::invalid(check))
    }

    /// A READ or atomic is accepted: its responses take `packets` PSNs from the expected one, `first`.
    pub(crate) fn respond_from(
        &mut self,
        cold: &mut Cold,
        first: Psn,
        packets: u32,
        job: impl FnOnce(u32) -> ResponseJob,
    ) {
        let resp = &mut self.resp;
        resp.epsn = first + packets;
        resp.msn = next_msn(resp.msn);
        resp.responses.push(&mut cold.jobs, job(resp.msn));
        // They acknowledge everything before them.
        resp.answer = Answer::Nothing;
    }

    /// Completes the SEND with invalidate under way if its key is out of use, with its ACK.
    pub(crate) fn finish_invalidation<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if !ctx.host.invalidated() && !self.mutated(Mutation::InvalidateTooSoon) {
            return;
        }
        let Responder {
            solicited,
            ack_req,
            dropped,
            invalidated_key: key,
            ..
        } = self.resp;
        self.resp.invalidating = false;
        let psn = self.resp.epsn;
        self.complete_recv(ctx, WcOpcode::Recv, CompletionFlags::WITH_INV, key, solicited);
        self.taken(true, ack_req, MessageKind::Send);
        if self.resp.early.is_gap() {
            self.close_up(&mut ctx.cold.early, psn);
        }
        if dropped && self.state.receives() {
            // It acknowledges everything before it as well.
            self.out_of_order();
        }
    }

    /// The last packet of a message that uses a receive WQE: its completion, before the ACK.
    #[inline]
    pub(crate) fn complete_recv<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        opcode: WcOpcode,
        flags: CompletionFlags,
        imm_or_rkey: u32,
        solicited: bool,
    ) {
        self.resp.has_wqe = false;
        let flags = if solicited && !self.mutated(Mutation::ForgetSolicited) {
            flags.union(CompletionFlags::SOLICITED)
        } else {
            flags
        };
        let completion = Completion {
            wr_id: self.resp.wqe.wr_id,
            status: WcStatus::Success,
            opcode,
            queue: Queue::Recv,
            flags,
            src_qpn: self.dest_qpn,
            byte_len: self.resp.received,
            imm_or_rkey,
            cause: Cause::of(Check::None),
        };
        self.complete(ctx, &completion);
    }

    /// A packet of a SEND or WRITE took effect; `ends` its message.
    #[inline]
    pub(crate) fn taken(&mut self, ends: bool, ack_req: bool, kind: MessageKind) {
        let counts_too_much = self.mutated(Mutation::MsnCountsPackets);
        let resp = &mut self.resp;
        resp.taken = resp.epsn;
        resp.epsn = resp.epsn.next();
        if counts_too_much && !ends {
            resp.msn = next_msn(resp.msn);
        }
        if ends {
            resp.message = MessageKind::None;
            resp.msn = next_msn(resp.msn);
        } else {
            resp.message = kind;
        }
        if ack_req && self.state != QpState::Err {
            resp.ack();
        }
    }
}

#[inline]
pub(crate) const fn next_msn(msn: u32) -> u32 {
    (msn + 1) & 0x00FF_FFFF
}
