//! READ responses and atomic ACKs at the requester (9.7.5.1.8, 9.7.3.1).

use crate::host::{Host, Payload};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, RcQp, Received};
use crate::types::{Cause, Check, WcStatus};
use crate::work::SendWr;
use rnic_wire::{Headers, Operation, Psn, Syndrome};

impl RcQp {
    /// Takes one READ response or atomic ACK whose PSN lies between `una` and `max`.
    #[inline]
    pub(crate) fn rd_atomic_response<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        let psn = headers.bth.psn;
        if !self.waits_for_response(ctx, psn) {
            return Received::Dropped(DropReason::UnexpectedResponse);
        }
        // A response acknowledges every request before it; one that skips others says that they are lost.
        if !self.complete_before(ctx, psn) && !self.mutated(Mutation::OverlookMissingResponse) {
            return self.response_missing(ctx);
        }
        if !self.state.sends() {
            return Received::Accepted;
        }
        let wr = *ctx.wr(self.req.head);
        if !wr.is_rd_atomic() {
            return Received::Dropped(DropReason::UnexpectedResponse);
        }
        let cause = Cause {
            psn: psn.get(),
            check: Check::BadResponse,
            opcode: headers.bth.opcode.to_u8(),
            syndrome: headers.aeth.map_or(0, |aeth| aeth.syndrome.to_u8()),
        };
        if !self.fits(&wr, headers, payload.len()) {
            self.fail_oldest(ctx, WcStatus::BadRespErr, cause);
            return Received::Refused(Check::BadResponse);
        }
        let placed = match headers.atomic_ack {
            Some(ack) => ctx.host.scatter_atomic(&wr, ack.original),
            None if payload.is_empty() => Ok(()),
            None => {
                let offset = self.read_offset(&wr, psn);
                ctx.host.scatter_send(&wr, offset, payload)
            }
        };
        if let Err(err) = placed {
            self.fail_oldest(
                ctx,
                WcStatus::LocProtErr,
                Cause {
                    check: err.check(),
                    ..cause
                },
            );
            return Received::Refused(err.check());
        }
        self.req.una = psn.next();
        if psn == wr.last {
            self.complete_oldest(ctx, &wr);
        }
        self.progressed(ctx);
        Received::Accepted
    }

    /// Whether the request that a PSN between `una` and `max` belongs to is a READ or an atomic.
    fn waits_for_response<H: Host>(&self, ctx: &mut Ctx<'_, H>, psn: Psn) -> bool {
        let mut index = self.req.head;
        while index != self.req.fresh {
            let wr = ctx.wr(index);
            if !psn.is_after(wr.last) {
                return wr.is_rd_atomic();
            }
            index = index.wrapping_add(1);
        }
        false
    }

    #[inline]
    fn read_offset(&self, wr: &SendWr, psn: Psn) -> u32 {
        (psn.diff(wr.first) as u32) << self.attrs.mtu.log2()
    }

    /// Whether opcode and length are those which a response at this PSN must have.
    ///
    /// FIRST and ONLY begin the answer to a request, and requests begin at the message's first PSN or where
    /// it was resumed; responses to an earlier request of the same READ may still arrive with MIDDLE or LAST.
    #[inline]
    fn fits(&self, wr: &SendWr, headers: &Headers, len: usize) -> bool {
        let psn = headers.bth.psn;
        let opcode = headers.bth.opcode;
        if wr.is_atomic() || opcode.operation == Operation::AtomicAcknowledge {
            let acked = headers
                .aeth
                .is_some_and(|aeth| matches!(aeth.syndrome, Syndrome::Ack { .. }));
            return wr.is_atomic() && opcode.operation == Operation::AtomicAcknowledge && acked && len == 0;
        }
        if wr.is_bare() {
            return opcode.operation == Operation::ReadResponseOnly && len == 0;
        }
        let mtu = self.attrs.mtu.bytes();
        let left = (wr.length - self.read_offset(wr, psn)) as usize;
        let starts = if opcode.starts_message() {
            psn == wr.first || psn == self.req.resumed
        } else {
            psn != wr.first
        };
        let ends = opcode.ends_message() == (psn == wr.last);
        starts && ends && len == left.min(mtu)
    }
}
