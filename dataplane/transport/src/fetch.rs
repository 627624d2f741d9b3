//! READs of one response and atomics, where everything is as it nearly always is: a request that is answered at once, and the
//! packet that answers one. As of [`RcQp::receive_whole`]: either all is done that [`RcQp::receive`] does with the same
//! headers, or nothing.

use crate::atomic::{AtomicOp, is_aligned};
use crate::host::{Host, Payload};
use crate::qp::{Ctx, RcQp, Received};
use crate::responder::{Answer, next_msn};
use crate::types::{Access, QpState, QpType};
use crate::work::WrOpcode;
use rnic_wire::{Aeth, AtomicAckEth, AtomicEth, Extension, Operation, Plain, Psn, Reth, Syndrome};

impl RcQp {
    /// The response to a READ request of this PSN, which came without payload, if it can be sent at once: it is expected and
    /// granted, nothing has to be said before it, and it is one packet. Nothing has happened yet: the caller resolves what the
    /// READ names (with [`Access::REMOTE_READ`]), sends the response, and says so ([`RcQp::fetch_answered`]). `None`, and where
    /// that fails: the packet is to be given to [`RcQp::receive`].
    #[inline]
    pub fn answer_read(&self, psn: Psn, reth: &Reth) -> Option<Plain> {
        if !self.may_answer(psn, Access::REMOTE_READ) || reth.dma_len as usize > self.attrs.mtu.bytes() {
            return None;
        }
        Some(self.answer_to(Operation::ReadResponseOnly, psn, Extension::Aeth))
    }

    /// The same of an atomic, which has been executed and is answered: what is left is to send the response.
    #[inline]
    pub fn answer_atomic<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        operation: Operation,
        psn: Psn,
        eth: &AtomicEth,
    ) -> Option<Plain> {
        if !self.may_answer(psn, Access::REMOTE_ATOMIC) || !is_aligned(eth) {
            return None;
        }
        let op = AtomicOp::of(operation, eth);
        let original = ctx.host.atomic(eth.rkey, eth.va, op).ok()?;
        self.resp.atomics.keep(ctx.cold, psn, original);
        let extension = |aeth| Extension::AtomicAck(aeth, AtomicAckEth { original });
        let plain = self.answer_to(Operation::AtomicAcknowledge, psn, extension);
        self.fetch_answered();
        Some(plain)
    }

    /// The response that [`RcQp::answer_read`] gave is sent.
    #[inline]
    pub fn fetch_answered(&mut self) {
        let resp = &mut self.resp;
        resp.epsn = resp.epsn.next();
        resp.msn = next_msn(resp.msn);
        // It acknowledges everything before it.
        resp.answer = Answer::Nothing;
    }

    #[inline]
    fn may_answer(&self, psn: Psn, access: Access) -> bool {
        self.is_undisturbed(psn, 0)
            && self.attrs.access.contains(access)
            && self.resp.responses.is_empty()
            && self.attrs.max_dest_rd_atomic > 0
            && !self.pace.is_engaged()
    }

    #[inline]
    fn answer_to(&self, operation: Operation, psn: Psn, extension: impl FnOnce(Aeth) -> Extension) -> Plain {
        let aeth = Aeth {
            syndrome: Syndrome::ACK,
            msn: next_msn(self.resp.msn),
        };
        self.plain(operation, psn, extension(aeth))
    }

    /// Takes one packet for this QP that is all that answers a READ or an atomic; other plain packets are never taken. As of
    /// [`RcQp::receive`], its addresses, ICRC and lengths were checked, and payload excludes pad. `None` when anything is out of
    /// the ordinary: nothing has happened then, and the packet is to be given to [`RcQp::receive`].
    #[inline]
    pub fn receive_fetched<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        plain: &Plain,
        payload: H::Payload<'_>,
    ) -> Option<Received> {
        let psn = plain.psn;
        let wr = *ctx.wr(self.req.head);
        let is_next = |aeth| self.is_next_response(psn, aeth) && wr.first == psn && wr.last == psn;
        match (&plain.extension, plain.operation) {
            (Extension::Aeth(aeth), Operation::ReadResponseOnly) => {
                let fits = wr.opcode == WrOpcode::Read && wr.length as usize == payload.len();
                if !fits || !is_next(aeth) {
                    return None;
                }
                if !payload.is_empty() {
                    ctx.host.scatter_send(&wr, 0, payload).ok()?;
                }
            }
            (Extension::AtomicAck(aeth, ack), _) => {
                if !payload.is_empty() || !wr.is_atomic() || !is_next(aeth) {
                    return None;
                }
                ctx.host.scatter_atomic(&wr, ack.original).ok()?;
            }
            _ => return None,
        }
        self.req.una = psn.next();
        self.complete_oldest(ctx, &wr);
        self.progressed(ctx);
        Some(Received::Accepted)
    }

    /// Whether a response of this PSN is the one that is waited for, and says nothing but that here it is.
    #[inline]
    fn is_next_response(&self, psn: Psn, aeth: &Aeth) -> bool {
        let req = &self.req;
        self.qp_type == QpType::Rc
            && self.state == QpState::Rts
            && req.una == psn
            && req.max != psn
            && req.head != req.fresh
            && aeth.syndrome == Syndrome::ACK
            && !(req.failed || req.rnr_wait || req.credit.is_bounded())
            && !self.is_mutated()
    }
}
