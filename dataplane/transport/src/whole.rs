//! Requests of one packet, a SEND or WRITE without immediate data, where everything is as it nearly always is.
//!
//! What they do is what [`RcQp::receive`] does with the same headers, without asking for all that other packets bring. It is
//! done only when nothing at all stands in its way; otherwise nothing is done here, and what is wrong is found by the ordinary
//! means.

use crate::host::{Host, Payload};
use crate::qp::{Ctx, MAX_MESSAGE, RcQp, Received};
use crate::refusal::Refusal;
use crate::responder::{Answer, Outcome, Step};
use crate::types::{Access, Check, CompletionFlags, QpState, QpType, WcOpcode, WcStatus};
use rnic_wire::{MessageKind, Psn, Reth, Whole};

impl RcQp {
    /// Takes one packet for this QP that is a whole message. As of [`RcQp::receive`], its addresses, ICRC and lengths were
    /// checked, and payload excludes pad. `None` when anything is out of the ordinary: nothing has happened then, and the
    /// packet is to be given to [`RcQp::receive`].
    #[inline(always)] // where it is known to be a WRITE, little of it is left
    pub fn receive_whole<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        whole: &Whole,
        payload: H::Payload<'_>,
    ) -> Option<Received> {
        if !self.is_undisturbed(whole.psn, payload.len()) {
            return None;
        }
        match &whole.reth {
            Some(reth) => self.whole_write(ctx, reth, whole.ack_req, payload),
            None => Some(self.whole_send(ctx, whole, payload)),
        }
    }

    /// Whether a message of one packet of this PSN is expected now, and nothing else is to be thought of.
    #[inline]
    pub(crate) fn is_undisturbed(&self, psn: Psn, len: usize) -> bool {
        let resp = &self.resp;
        self.qp_type == QpType::Rc
            && self.state == QpState::Rts
            && resp.epsn == psn
            && resp.message == MessageKind::None
            && !resp.nak_stands
            && !resp.invalidating
            && !resp.early.is_gap()
            && !matches!(resp.answer, Answer::Nak { .. })
            && len <= self.attrs.mtu.bytes()
            && !self.is_mutated()
    }

    /// A key that is refused here is looked up again by who says so to the peer: nothing was placed.
    #[inline(always)] // as above
    fn whole_write<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        reth: &Reth,
        ack_req: bool,
        payload: H::Payload<'_>,
    ) -> Option<Received> {
        let len = payload.len();
        if !self.attrs.access.contains(Access::REMOTE_WRITE) || len != reth.dma_len as usize {
            return None;
        }
        if len > 0 {
            ctx.host.write_remote(reth.rkey, reth.va, payload).ok()?;
        }
        let resp = &mut self.resp;
        (resp.write_addr, resp.write_rkey, resp.write_len) = (reth.va, reth.rkey, reth.dma_len);
        resp.received = reth.dma_len;
        self.taken(true, ack_req, MessageKind::Write);
        Some(Received::Accepted)
    }

    #[inline]
    fn whole_send<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        whole: &Whole,
        payload: H::Payload<'_>,
    ) -> Received {
        if !self.resp.has_wqe && ctx.host.receive_message(payload, whole.solicited, self.dest_qpn) {
            self.resp.received = payload.len() as u32;
            self.taken(true, whole.ack_req, MessageKind::Send);
            return Received::Accepted;
        }
        self.whole_send_in_steps(ctx, whole, payload)
    }

    #[inline(never)]
    fn whole_send_in_steps<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        whole: &Whole,
        payload: H::Payload<'_>,
    ) -> Received {
        match self.receive_message(ctx, whole, payload) {
            Ok(Outcome::Done) => Received::Accepted,
            Ok(Outcome::NoReceiveWqe) => self.not_ready(),
            Err(refusal) => self.refuse(ctx, whole.psn, whole.opcode().to_u8(), &refusal),
        }
    }

    #[inline]
    fn receive_message<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        whole: &Whole,
        payload: H::Payload<'_>,
    ) -> Step {
        if !self.take_recv(ctx)? {
            return Ok(Outcome::NoReceiveWqe);
        }
        // Before it has arrived it is of no length, as to those who refuse it.
        self.resp.received = 0;
        let len = payload.len() as u32;
        let wqe = self.resp.wqe;
        if len > wqe.capacity.min(MAX_MESSAGE) {
            let status = WcStatus::LocLenErr;
            return Err(Refusal {
                status,
                ..Refusal::invalid(Check::MessageTooLong)
            });
        }
        if len > 0 {
            ctx.host
                .scatter_recv(&wqe, 0, payload)
                .map_err(|err| Refusal::local(err.check(), WcStatus::LocProtErr))?;
        }
        self.resp.received = len;
        self.complete_recv(ctx, WcOpcode::Recv, CompletionFlags::NONE, 0, whole.solicited);
        self.taken(true, whole.ack_req, MessageKind::Send);
        Ok(Outcome::Done)
    }
}
