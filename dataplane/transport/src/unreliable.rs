//! What the requesters of UC and UD have in common: nothing is acknowledged, so a work request is done when its last
//! packet is out, and a local error stops the send queue alone (9.8.1, 10.3.1.6).

use crate::host::Host;
use crate::qp::{Ctx, RcQp};
use crate::types::{QpState, QpType};
use crate::work::WrOpcode;

impl RcQp {
    /// Whether the QP's type has the operation (10.2.2.1, table 73), and this device does.
    #[inline]
    pub(crate) fn supports(&self, opcode: WrOpcode) -> bool {
        match self.qp_type {
            QpType::Rc | QpType::XrcIni => true,
            QpType::XrcTgt => false,
            QpType::Uc => matches!(
                opcode,
                WrOpcode::Send | WrOpcode::SendImm | WrOpcode::Write | WrOpcode::WriteImm
            ),
            QpType::Ud => matches!(opcode, WrOpcode::Send | WrOpcode::SendImm),
        }
    }

    /// Whether a work request is out and its completion is not.
    #[inline]
    pub(crate) fn has_sent(&self) -> bool {
        !self.qp_type.is_reliable() && self.req.head != self.req.cur
    }

    /// Completes what is out.
    ///
    /// That is looked at when the next packet is asked for: by then the payload of the last one was read, or
    /// [`RcQp::gather_failed`] has said that it could not be.
    #[inline]
    pub(crate) fn complete_sent<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        while self.state.sends() && self.req.head != self.req.cur {
            let wr = *ctx.wr(self.req.head);
            self.complete_oldest(ctx, &wr);
        }
        self.req.una = self.req.next;
        self.check_drained(ctx);
    }

    /// The work request that may be sent now: the one under way, or in RTS the next.
    #[inline]
    pub(crate) fn sendable(&mut self) -> Option<u32> {
        if !self.state.sends() || !self.req.may_send() {
            return None;
        }
        let index = self.req.cur;
        if index == self.req.fresh && self.state == QpState::Sqd {
            self.req.blocked = true;
            return None;
        }
        Some(index)
    }

    /// A local error: what was posted is flushed, the receive queue goes on.
    pub(crate) fn enter_sqe(&mut self) {
        self.state = QpState::Sqe;
        self.req.stop();
        self.req.failed = false;
    }

    /// SQE to RTS: goes on with what was posted last and is not flushed, and with the next PSN.
    pub(crate) fn resume_sends(&mut self) {
        let req = &mut self.req;
        (req.cur, req.fresh) = (req.head, req.head);
        (req.una, req.max) = (req.next, req.next);
    }
}
