//! Modify and query of a QP.

use crate::attr::{MIGRATED, ModifyError, QpAttr, check_values};
use crate::attr_mask::QpAttrMask;
use crate::host::Host;
use crate::modify_table::check_modify;
use crate::qp::{Ctx, RcQp};
use crate::types::{QpState, QpType};

/// What changes in SQD only once everything started is done: where packets go, and how many requests of a kind may be
/// on their way.
const NEED_DRAINED: [QpAttrMask; 4] = [
    QpAttrMask::PKEY_INDEX,
    QpAttrMask::PORT,
    QpAttrMask::AV,
    QpAttrMask::MAX_QP_RD_ATOMIC,
];

impl RcQp {
    /// Changes state and attributes (11.2.5.2). On error nothing changed.
    ///
    /// RESET forgets everything outstanding without completions; ERR leaves it to [`RcQp::flush`].
    pub fn modify<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        attr: &QpAttr,
        mask: QpAttrMask,
    ) -> Result<(), ModifyError> {
        self.change(attr, mask)?;
        if self.state == QpState::Sqd {
            self.check_drained(ctx);
        }
        Ok(())
    }

    /// [`RcQp::modify`] of a QP that is in RESET or INIT and stays so: nothing of the world around it takes part.
    /// Going anywhere else is refused as illegal. On error nothing changed.
    pub fn modify_alone(&mut self, attr: &QpAttr, mask: QpAttrMask) -> Result<(), ModifyError> {
        let (from, to) = (self.state, self.target(attr, mask));
        let alone = |state| matches!(state, QpState::Reset | QpState::Init);
        if !(alone(from) && alone(to)) {
            return Err(ModifyError::IllegalTransition { from, to });
        }
        self.change(attr, mask)
    }

    fn target(&self, attr: &QpAttr, mask: QpAttrMask) -> QpState {
        match mask.contains(QpAttrMask::STATE) {
            true => attr.state,
            false => self.state,
        }
    }

    fn change(&mut self, attr: &QpAttr, mask: QpAttrMask) -> Result<(), ModifyError> {
        let (from, to) = (self.state, self.target(attr, mask));
        if mask.contains(QpAttrMask::CUR_STATE) && attr.cur_state != from {
            return Err(ModifyError::WrongCurrentState {
                given: attr.cur_state,
                actual: from,
            });
        }
        check_modify(self.qp_type, from, to, mask)?;
        check_values(attr, mask)?;
        if from == QpState::Sqd && to == QpState::Sqd && !self.req.is_idle() {
            for attribute in NEED_DRAINED {
                if mask.contains(attribute) {
                    return Err(ModifyError::NotDrained { attribute });
                }
            }
        }
        self.attrs.apply(attr, mask);
        if mask.contains(QpAttrMask::DEST_QPN) {
            self.dest_qpn = attr.dest_qpn;
        }
        self.enter(from, to, attr, mask);
        Ok(())
    }

    fn enter(&mut self, from: QpState, to: QpState, attr: &QpAttr, mask: QpAttrMask) {
        if to == QpState::Reset {
            self.reset();
            return;
        }
        if to == QpState::Err {
            if from != QpState::Err {
                self.enter_err(false);
            }
            return;
        }
        self.state = to;
        // Whatever stood in the way of sending may have changed.
        self.req.blocked = false;
        match (from, to) {
            (QpState::Init, QpState::Rtr) => self.resp.start(self.attrs.rq_psn),
            (QpState::Sqe, QpState::Rts) => self.resume_sends(),
            (QpState::Rtr, QpState::Rts) => self.req.start(self.attrs.sq_psn),
            (QpState::Rts, QpState::Sqd) => {
                self.attrs.sqd_async_notify =
                    mask.contains(QpAttrMask::EN_SQD_ASYNC_NOTIFY) && attr.sqd_async_notify;
                self.req.drained = false;
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        let mut fresh = RcQp::new(self.qpn).with_type(self.qp_type);
        if self.qp_type == QpType::Ud {
            // The port's, which no modify gives.
            fresh.attrs.mtu = self.attrs.mtu;
        }
        fresh.xrcd = self.xrcd;
        *self = RcQp {
            uses_srq: self.uses_srq,
            limits: self.limits,
            pace: self.pace,
            flow: self.flow,
            mutation: self.mutation,
            ..fresh
        };
        // A fresh flow, with congestion control as it is set.
        let on = self.pace.is_on();
        self.use_congestion_control(on);
    }

    /// The attributes as they are now; PSNs are the next ones of either direction.
    pub fn query(&self) -> QpAttr {
        let attrs = &self.attrs;
        QpAttr {
            state: self.state,
            cur_state: self.state,
            path_mtu: attrs.mtu,
            qkey: attrs.qkey,
            rq_psn: self.resp.expected().get(),
            sq_psn: self.req.max.get(),
            dest_qpn: self.dest_qpn,
            access: attrs.access,
            pkey_index: attrs.pkey_index,
            port: attrs.port,
            sqd_async_notify: attrs.sqd_async_notify,
            max_rd_atomic: attrs.max_rd_atomic,
            max_dest_rd_atomic: attrs.max_dest_rd_atomic,
            min_rnr_timer: attrs.min_rnr_timer.code(),
            timeout: attrs.timeout.code(),
            retry_cnt: attrs.retry_cnt,
            rnr_retry: attrs.rnr_retry,
            path_mig_state: MIGRATED,
            sq_draining: self.state == QpState::Sqd && !self.req.is_idle(),
            selective: attrs.selective,
        }
    }
}
