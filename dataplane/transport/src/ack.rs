//! The requester's receiving half: ACKs, NAKs, and what they complete (9.7.5).

use crate::host::{Completion, Host};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, RcQp, Received};
use crate::types::{Cause, Check, CompletionFlags, Queue, WcStatus};
use crate::work::{SendFlags, SendWr};
use rnic_wire::{Aeth, Headers, NakCode, Operation, Psn, RnrTimer, Syndrome};

impl RcQp {
    /// Takes a response.
    #[inline]
    pub(crate) fn response<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        if !self.state.sends() {
            return Received::Dropped(DropReason::State);
        }
        let psn = headers.bth.psn;
        if !psn.is_before(self.req.max) {
            return Received::Dropped(DropReason::UnexpectedResponse);
        }
        let room = headers.aeth.is_some_and(|aeth| self.take_credits(aeth));
        if psn.is_before(self.req.una) {
            // An ACK said again because there is room again.
            return match room {
                true => Received::Accepted,
                false => Received::Dropped(DropReason::StaleResponse),
            };
        }
        match (headers.bth.opcode.operation, headers.aeth) {
            (Operation::Acknowledge, Some(aeth)) => self.acknowledge(ctx, psn, aeth),
            (Operation::Acknowledge, None) => Received::Dropped(DropReason::UnexpectedResponse),
            _ => self.rd_atomic_response(ctx, headers, payload),
        }
    }

    #[inline]
    fn acknowledge<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, psn: Psn, aeth: Aeth) -> Received {
        let cause = Cause {
            psn: psn.get(),
            check: Check::RemoteNak,
            opcode: Operation::Acknowledge as u8,
            syndrome: aeth.syndrome.to_u8(),
        };
        match aeth.syndrome {
            Syndrome::Ack { .. } => {
                if self.complete_through(ctx, psn) {
                    Received::Accepted
                } else {
                    self.response_missing(ctx)
                }
            }
            Syndrome::RnrNak { timer } => {
                if !self.complete_before(ctx, psn) {
                    return self.response_missing(ctx);
                }
                if self.state.sends() {
                    self.receiver_not_ready(ctx, RnrTimer::new(timer), cause);
                }
                Received::Accepted
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                if self.mutated(Mutation::NakCompletesItsPsn) {
                    self.complete_through(ctx, psn);
                    return Received::Accepted;
                }
                if !self.complete_before(ctx, psn) {
                    return self.response_missing(ctx);
                }
                if self.state.sends() {
                    self.retry_on_nak(ctx);
                }
                Received::Accepted
            }
            Syndrome::Nak(_) if self.mutated(Mutation::RefusalCompletes) => {
                self.complete_through(ctx, psn);
                Received::Accepted
            }
            Syndrome::Nak(code) => match nak_status(code) {
                Some(status) => self.refused(ctx, psn, status, cause),
                None => Received::Dropped(DropReason::ReservedSyndrome),
            },
            Syndrome::Reserved(_) => Received::Dropped(DropReason::ReservedSyndrome),
        }
    }

    /// A NAK that ends the QP: the request at `psn` fails, after everything before it has completed.
    fn refused<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        psn: Psn,
        status: WcStatus,
        cause: Cause,
    ) -> Received {
        let reached = self.complete_before(ctx, psn);
        if !self.state.sends() {
            return Received::Accepted;
        }
        let last = ctx.wr(self.req.head).last;
        if !reached && last.is_before(psn) {
            // Responses of an earlier READ were lost, and it must not complete out of order: it is retried.
            return self.response_missing(ctx);
        }
        self.fail_oldest(ctx, status, cause);
        Received::Refused(Check::RemoteNak)
    }

    /// A later PSN was acknowledged while a READ or atomic waits: its response is lost, which is an implied NAK
    /// (9.7.5.1.2).
    pub(crate) fn response_missing<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) -> Received {
        if self.state.sends() {
            self.retry_on_nak(ctx);
        }
        Received::OutOfOrder
    }

    /// Everything before `psn` is acknowledged. `false` when a READ or atomic stands in the way.
    #[inline]
    pub(crate) fn complete_before<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, psn: Psn) -> bool {
        psn == self.req.una || self.complete_through(ctx, psn.prev())
    }

    /// Completes every work request whose last PSN is not after `psn`, which lies between `una` and `max`.
    /// `false` when a READ or atomic stands in the way: only its own responses complete it.
    fn complete_through<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, psn: Psn) -> bool {
        let una = self.req.una;
        let mut blocked = false;
        while self.req.head != self.req.fresh && self.state.sends() {
            let wr = *ctx.wr(self.req.head);
            if wr.first.is_after(psn) || (self.req.failed && self.req.failed_at == self.req.head) {
                break;
            }
            if wr.is_rd_atomic() && !self.mutated(Mutation::AckCompletesRead) {
                blocked = true;
                break;
            }
            if wr.last.is_after(psn) {
                self.req.una = psn.next();
                break;
            }
            self.req.una = wr.last.next();
            self.complete_oldest(ctx, &wr);
        }
        if self.req.una != una {
            self.progressed(ctx);
        }
        !blocked
    }

    /// The oldest work request succeeded.
    #[inline]
    pub(crate) fn complete_oldest<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, wr: &SendWr) {
        // It counts as on its way only if it was sent since the last go-back.
        if wr.is_rd_atomic() && self.req.head != self.req.cur {
            self.req.rd_atomics = self.req.rd_atomics.saturating_sub(1);
        }
        if self.req.head == self.req.cur {
            self.req.cur = self.req.head.wrapping_add(1);
        }
        self.req.head = self.req.head.wrapping_add(1);
        if !wr.flags.contains(SendFlags::SIGNALED) && !self.mutated(Mutation::CompleteUnsignalled) {
            return;
        }
        let completion = Completion {
            wr_id: wr.wr_id,
            status: WcStatus::Success,
            opcode: wr.opcode.wc_opcode(),
            queue: Queue::Send,
            flags: CompletionFlags::NONE,
            src_qpn: self.dest_qpn,
            byte_len: if wr.fetches() { wr.length } else { 0 },
            imm_or_rkey: 0,
            cause: Cause::of(Check::None),
        };
        self.complete(ctx, &completion);
    }
}

/// The status which a NAK gives its request; none for reserved codes and for the sequence error, which is
/// retried.
const fn nak_status(code: NakCode) -> Option<WcStatus> {
    match code {
        NakCode::InvalidRequest => Some(WcStatus::RemInvReqErr),
        NakCode::RemoteAccessError => Some(WcStatus::RemAccessErr),
        NakCode::RemoteOperationalError => Some(WcStatus::RemOpErr),
        NakCode::InvalidRdRequest => Some(WcStatus::RemInvRdReqErr),
        NakCode::PsnSequenceError | NakCode::Reserved(_) => None,
    }
}
