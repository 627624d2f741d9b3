//! What the requesters of UC and UD have in common: nothing is acknowledged, so a work request is done when its last
//! packet is out, and a local error stops the send queue alone (9.8.1, 10.3.1.6).

use crate::host::Host;
use crate::qp::{Ctx, RcQp};
use crate::record::BadField;
use crate::responder::Answer;
use crate::types::{QpState, QpType, Time};
use crate::work::WrOpcode;
use rnic_wire::MessageKind;

impl RcQp {
    /// Whether the QP's type has the operation (10.2.2.1, table 73), and this device does.
    #[inline]
    pub(crate) fn supports(&self, opcode: WrOpcode) -> bool {
        match self.qp_type {
            QpType::Rc | QpType::XrcIni => true,
            QpType::XrcTgt => false,
            QpType::Uc => matches!(
                opcode,
                WrOpcode::Send
                    | WrOpcode::SendImm
                    | WrOpcode::Write
                    | WrOpcode::WriteImm
                    | WrOpcode::LocalInv
                    | WrOpcode::BindMw
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
        if index == self.req.fresh && self.state == QpState::Sqd && !self.req.local_begun {
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

    /// What holds of the record of one whose peer neither hears nor gives an answer, and of no other.
    pub(crate) fn check_unreliable(&self) -> Result<(), BadField> {
        let reliable = self.qp_type.transport().is_reliable();
        let state = !reliable || self.state != QpState::Sqe;
        BadField::unless(
            state,
            "state",
            self.state as u8,
            "another than SQE on a reliable QP",
        )?;
        if reliable {
            return Ok(());
        }
        let (req, resp) = (&self.req, &self.resp);
        let quiet = resp.answer == Answer::Nothing && resp.responses.is_empty() && !resp.invalidating;
        BadField::unless(quiet, "resp.answer", !quiet, "nothing on an unreliable QP")?;
        let atomics = resp.atomics.cursors().0;
        BadField::unless(atomics == 0, "resp.atomics.len", atomics, "0 on an unreliable QP")?;
        BadField::unless(
            req.rd_atomics == 0,
            "req.rd_atomics",
            req.rd_atomics,
            "0 on an unreliable QP",
        )?;
        let idle = req.ack_deadline == Time::NEVER && req.rnr_deadline == Time::NEVER;
        BadField::unless(
            idle,
            "req.ack_deadline",
            req.ack_deadline.0,
            "never on an unreliable QP",
        )?;
        BadField::unless(
            req.next == req.max,
            "req.next",
            req.next.get(),
            "max on an unreliable QP, which sends nothing again",
        )?;
        let single = self.qp_type != QpType::Ud || resp.message == MessageKind::None;
        BadField::unless(single, "resp.message", resp.message as u8, "none on UD")
    }
}
