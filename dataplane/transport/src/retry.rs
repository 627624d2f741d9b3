//! Retries and the two timers: local ACK timeout and RNR (9.7.5.2.8, 9.9.2.1).

use crate::congestion::Signal;
use crate::host::{Completion, Host};
use crate::mutation::Mutation;
use crate::qp::{Ctx, RcQp};
use crate::types::{Cause, Check, CompletionFlags, Event, EventKind, QpState, Queue, Time, WcStatus};
use rnic_wire::RnrTimer;

/// `rnr_retry` of this value means for ever.
const RNR_FOR_EVER: u8 = 7;

impl RcQp {
    /// The next moment at which [`RcQp::handle_timeout`] wants to be called.
    #[inline]
    pub fn poll_timeout(&self) -> Option<Time> {
        let mut next = self.req.ack_deadline.min(self.req.rnr_deadline);
        next = next.min(self.req.resend.probe_at);
        if self.pace.is_engaged() {
            next = next.min(self.pace_deadline());
        }
        (next != Time::NEVER).then_some(next)
    }

    /// Acts on every deadline not after `ctx.now`. Early or repeated calls do nothing.
    pub fn handle_timeout<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if self.pace.is_engaged() {
            self.come_up(ctx.now);
        }
        if self.req.rnr_deadline <= ctx.now && self.req.rnr_wait {
            self.end_rnr_wait();
        }
        if self.req.resend.probe_at <= ctx.now {
            self.probe(ctx);
        }
        if self.req.ack_deadline <= ctx.now && self.req.ack_deadline != Time::NEVER {
            self.req.ack_deadline = Time::NEVER;
            if self.state.sends() && self.req.una != self.req.max {
                self.hear(Signal::Timeout, ctx.now);
                self.req.resend.forget();
                self.retry(ctx);
            }
        }
    }

    /// Starts the ACK timer, if the QP has one.
    #[inline]
    pub(crate) fn arm_ack_timer(&mut self, now: Time) {
        self.req.ack_deadline = match self.attrs.timeout.nanos() {
            Some(nanos) if !self.mutated(Mutation::NeverArmAckTimer) => now.saturating_add(nanos),
            _ => Time::NEVER,
        };
        if self.attrs.selective {
            self.arm_probe(now);
        }
    }

    /// The responder made progress: counts start anew, and the cursor never stays behind what is
    /// acknowledged.
    #[inline]
    pub(crate) fn progressed<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if !self.state.sends() {
            return;
        }
        let reset = !self.mutated(Mutation::RetryNeverResets);
        if self.attrs.selective {
            self.follow(ctx.cold, ctx.now);
        }
        let req = &mut self.req;
        if reset {
            req.retries = 0;
        }
        req.rnr_tries = 0;
        req.blocked = false;
        if req.next.is_before(req.una) {
            req.next = req.una;
            req.cur = req.head;
        }
        if req.rnr_wait {
            self.end_rnr_wait();
        }
        if self.req.una == self.req.max {
            self.req.ack_deadline = Time::NEVER;
        } else {
            self.arm_ack_timer(ctx.now);
        }
        self.fail_if_oldest(ctx);
        self.check_drained(ctx);
    }

    /// A NAK or a gap in READ responses: only the first retry without progress is immediate. After it the ACK
    /// timer sets the pace, so that no answer to a retry can cause another one at once.
    pub(crate) fn retry_on_nak<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if self.req.rnr_wait {
            return;
        }
        if self.req.retries == 0 || self.mutated(Mutation::RetryOnEveryNak) {
            self.hear(Signal::SequenceError, ctx.now);
            self.retry(ctx);
        } else if self.req.ack_deadline == Time::NEVER {
            self.arm_ack_timer(ctx.now);
        }
    }

    /// Resends everything not acknowledged, or fails the oldest request when `retry_cnt` is used up.
    fn retry<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        let more = u8::from(self.mutated(Mutation::RetryOnceMore));
        if self.req.retries >= self.attrs.retry_cnt + more {
            let cause = Cause {
                psn: self.req.una.get(),
                ..Cause::of(Check::RetryExceeded)
            };
            self.fail_oldest(ctx, WcStatus::RetryExcErr, cause);
            return;
        }
        self.req.retries += 1;
        self.go_back();
        self.arm_ack_timer(ctx.now);
    }

    /// Puts the send cursor back to the oldest PSN not acknowledged (go-back-N).
    fn go_back(&mut self) {
        let skip = u32::from(self.mutated(Mutation::GoBackTooLittle) && self.req.una.next() != self.req.max);
        let req = &mut self.req;
        req.next = req.una + skip;
        req.resend.all(req.max);
        req.cur = req.head;
        req.rd_atomics = 0;
        req.blocked = false;
    }

    /// An RNR NAK for `una`: nothing more is sent, and the ACK timer stands still, until the responder's
    /// delay is over.
    pub(crate) fn receiver_not_ready<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        timer: RnrTimer,
        cause: Cause,
    ) {
        if self.req.rnr_wait {
            // The same NAK twice, or one that was on its way: the wait has begun already.
            return;
        }
        let limit = self.attrs.rnr_retry;
        let more = u8::from(self.mutated(Mutation::RnrRetryOnceMore));
        if limit != RNR_FOR_EVER && self.req.rnr_tries >= limit + more {
            let cause = Cause {
                check: Check::RnrRetryExceeded,
                ..cause
            };
            self.fail_oldest(ctx, WcStatus::RnrRetryExcErr, cause);
            return;
        }
        self.req.rnr_tries = self.req.rnr_tries.saturating_add(1);
        // The peer is alive: waiting for it is no retry.
        self.req.retries = 0;
        self.go_back();
        if self.mutated(Mutation::IgnoreRnrTimer) {
            return;
        }
        self.req.rnr_wait = true;
        self.req.rnr_deadline = ctx.now.saturating_add(timer.nanos());
        self.req.resend.stop();
        if !self.mutated(Mutation::AckTimerDuringRnr) {
            self.req.ack_deadline = Time::NEVER;
        }
    }

    fn end_rnr_wait(&mut self) {
        self.req.rnr_wait = false;
        self.req.rnr_deadline = Time::NEVER;
    }

    /// The oldest work request fails: its completion says why, and the QP goes to ERR, or of an unreliable QP only the
    /// send queue goes to SQE.
    pub(crate) fn fail_oldest<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, status: WcStatus, cause: Cause) {
        let wr = *ctx.wr(self.req.head);
        self.req.head = self.req.head.wrapping_add(1);
        if self.qp_type.is_reliable() {
            self.enter_err(false);
        } else {
            self.enter_sqe();
        }
        let completion = Completion {
            wr_id: wr.wr_id,
            status,
            opcode: wr.opcode.wc_opcode(),
            queue: Queue::Send,
            flags: CompletionFlags::NONE,
            src_qpn: self.dest_qpn,
            byte_len: 0,
            imm_or_rkey: 0,
            cause,
        };
        self.complete(ctx, &completion);
    }

    /// A request with a local error fails once everything before it is done.
    #[inline]
    pub(crate) fn fail_if_oldest<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if self.req.failed && self.req.failed_at == self.req.head && self.state.sends() {
            let (status, cause) = (self.req.failed_status, self.req.failed_cause);
            self.fail_oldest(ctx, status, cause);
        }
    }

    /// In SQD: raises SQ_DRAINED once, when nothing that was started is left.
    #[inline]
    pub(crate) fn check_drained<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if self.state == QpState::Sqd
            && !self.req.drained
            && (self.req.is_idle() || self.mutated(Mutation::DrainedTooSoon))
        {
            self.req.drained = true;
            if self.attrs.sqd_async_notify {
                let cause = Cause::of(Check::None);
                ctx.host.event(&Event {
                    kind: EventKind::SqDrained,
                    cause,
                });
            }
        }
    }
}
