//! Flushing in ERR (10.3.1.7): what was not completed completes with a flush error, in order, a bounded
//! number per call.

use crate::host::{Completion, Host};
use crate::mutation::Mutation;
use crate::qp::{Ctx, RcQp};
use crate::types::{Cause, Check, CompletionFlags, Event, EventKind, QpState, Queue, WcOpcode, WcStatus};

impl RcQp {
    /// In SQE: does so with the send queue alone. In ERR: completes up to `budget` outstanding work requests of both queues with `WrFlushErr`. Whether
    /// more is left.
    ///
    /// Call it while it returns `true`, and again whenever WQEs are posted to a QP in ERR (sends also in SQE). A receive queue
    /// that is an SRQ is not flushed; LAST_WQE_REACHED is raised instead.
    pub fn flush<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, budget: u32) -> bool {
        let mut left = budget;
        if self.state == QpState::Sqe {
            while left > 0 && self.req.head != self.req.tail {
                self.flush_send(ctx);
                left -= 1;
            }
            return self.req.head != self.req.tail;
        }
        if self.state != QpState::Err {
            return false;
        }
        if left > 0 && self.resp.take_wqe() {
            self.flush_recv(ctx, self.resp.wqe.wr_id);
            left -= 1;
        }
        while left > 0 && self.req.head != self.req.tail {
            self.flush_send(ctx);
            left -= 1;
        }
        let shared = self.uses_srq && !self.mutated(Mutation::FlushSharedReceives);
        let own_queue = self.qp_type.has_recv_queue() && !shared;
        self.recv_flushed |= !own_queue;
        while left > 0 && own_queue {
            // A malformed WQE is flushed like any other; a forged ring has nothing to flush.
            let wr_id = match ctx.host.take_recv() {
                Ok(wqe) => wqe.map(|wqe| wqe.wr_id),
                Err(err) => err.wr_id,
            };
            self.recv_flushed = wr_id.is_none();
            let Some(wr_id) = wr_id else { break };
            self.flush_recv(ctx, wr_id);
            left -= 1;
        }
        let more = self.req.head != self.req.tail || self.resp.holds_wqe() || !self.recv_flushed;
        if !more && self.uses_srq && !self.last_wqe_raised {
            self.last_wqe_raised = true;
            if self.mutated(Mutation::ForgetLastWqe) {
                return false;
            }
            let cause = Cause::of(Check::Flushed);
            ctx.host.event(&Event {
                kind: EventKind::LastWqeReached,
                cause,
            });
        }
        more
    }

    fn flush_send<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        let wr = *ctx.wr(self.req.head);
        self.req.head = self.req.head.wrapping_add(1);
        let status = if self.mutated(Mutation::FlushWithSuccess) {
            WcStatus::Success
        } else {
            WcStatus::WrFlushErr
        };
        let completion = self.flushed(wr.wr_id, Queue::Send, wr.opcode.wc_opcode());
        self.complete(ctx, &Completion { status, ..completion });
    }

    fn flush_recv<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, wr_id: u64) {
        let completion = self.flushed(wr_id, Queue::Recv, WcOpcode::Recv);
        self.complete(ctx, &completion);
    }

    pub(crate) fn flushed(&self, wr_id: u64, queue: Queue, opcode: WcOpcode) -> Completion {
        Completion {
            wr_id,
            status: WcStatus::WrFlushErr,
            opcode,
            queue,
            flags: CompletionFlags::NONE,
            src_qpn: self.dest_qpn,
            byte_len: 0,
            imm_or_rkey: 0,
            cause: Cause::of(Check::Flushed),
        }
    }
}
