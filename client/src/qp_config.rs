//! What a QP is made with.
use rnic_abi::{MAX_INLINE, MAX_SGE, Wqe};

use crate::queue::Limits;
use crate::{Cq, Error, QpType, Result, Srq};

/// What a QP is made with; each limit can be set by the method of its name.
#[derive(Clone, Debug)]
pub struct QpConfig {
    pub(crate) send_cq: Cq,
    pub(crate) recv_cq: Cq,
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_sge: u32,
    pub(crate) max_inline: u32,
    pub(crate) sq_sig_all: bool,
    pub(crate) qp_type: QpType,
    pub(crate) srq: Option<Srq>,
}

impl QpConfig {
    /// RC, 128 sends and 128 receives of one scatter/gather entry, no inline payload, signalled on request.
    pub fn new(send_cq: &Cq, recv_cq: &Cq) -> QpConfig {
        QpConfig {
            send_cq: send_cq.clone(),
            recv_cq: recv_cq.clone(),
            max_send_wr: 128,
            max_recv_wr: 128,
            max_sge: 1,
            max_inline: 0,
            sq_sig_all: false,
            qp_type: QpType::Rc,
            srq: None,
        }
    }

    /// Another service type.
    pub fn qp_type(mut self, qp_type: QpType) -> Self {
        self.qp_type = qp_type;
        self
    }

    /// The sending half of an extended reliable connection, which receives nothing: [`Qp::recv_cq`](crate::Qp::recv_cq) is
    /// its send CQ as well.
    pub fn xrc_ini(send_cq: &Cq) -> QpConfig {
        QpConfig::new(send_cq, send_cq).qp_type(QpType::XrcIni)
    }

    /// Sends that can be outstanding, each as long as the other limits allow.
    pub fn max_send_wr(mut self, max: u32) -> Self {
        self.max_send_wr = max;
        self
    }

    /// Receives that can be outstanding.
    pub fn max_recv_wr(mut self, max: u32) -> Self {
        self.max_recv_wr = max;
        self
    }

    /// Scatter/gather entries of a send or receive, up to 32.
    pub fn max_sge(mut self, max: u32) -> Self {
        self.max_sge = max;
        self
    }

    /// Inline bytes of a send, up to 928.
    pub fn max_inline(mut self, max: u32) -> Self {
        self.max_inline = max;
        self
    }

    /// Makes every send signalled.
    pub fn sq_sig_all(mut self, all: bool) -> Self {
        self.sq_sig_all = all;
        self
    }

    /// Draws its receives from `srq`, which may be of another protection domain, and has no receive queue of its own.
    pub fn srq(mut self, srq: &Srq) -> Self {
        self.srq = Some(srq.clone());
        self
    }

    pub(crate) fn send_limits(&self) -> Limits {
        Limits {
            max_sge: self.max_sge as usize,
            max_inline: self.max_inline as usize,
            xrc: self.qp_type == QpType::XrcIni,
        }
    }

    pub(crate) fn recv_limits(&self) -> Limits {
        Limits {
            max_sge: self.max_sge as usize,
            max_inline: 0,
            xrc: false,
        }
    }

    /// Units of 64 bytes of the send and of the receive queue.
    pub(crate) fn units(&self) -> Result<(u32, u32)> {
        let within = |what: &str, value: u32, max: usize| {
            if value as usize <= max {
                Ok(value as usize)
            } else {
                Err(Error::InvalidArgument(format!(
                    "{what} {value}; at most {max} can be had"
                )))
            }
        };
        let sges = Wqe::units_for_sges(within("max_sge", self.max_sge, MAX_SGE)?);
        let inline = Wqe::units_for_inline(within("max_inline", self.max_inline, MAX_INLINE)?);
        let total = |what: &str, count: u32, each: u32| {
            count
                .max(1)
                .checked_mul(each)
                .ok_or_else(|| Error::InvalidArgument(format!("{what} {count} is too many")))
        };
        let xrc = self.qp_type == QpType::XrcIni;
        let send = sges.max(inline) + u32::from(xrc);
        let recv = match xrc {
            true => 0,
            false => total("max_recv_wr", self.max_recv_wr, sges)?,
        };
        Ok((total("max_send_wr", self.max_send_wr, send)?, recv))
    }
}
