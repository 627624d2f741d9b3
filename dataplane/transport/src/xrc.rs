//! Extended reliable connections (A14): a requester whose every work request names an XRC SRQ at the peer, and a responder
//! that serves the XRC SRQs of its domain.
//!
//! Every request packet carries the number of its XRC SRQ (XRCETH). From it come the receive WQEs of SEND and WRITE with
//! immediate, the CQ that these complete to, and the protection domain of the keys and buffers that the request names: the
//! target QP has none of its own.

use crate::host::Host;
use crate::mutation::Mutation;
use crate::qp::{Ctx, RcQp};
use crate::refusal::Refusal;
use crate::types::{Check, QpType};
use crate::work::SendWr;
use rnic_wire::{Headers, MessageKind, XrcEth};

/// The XRC SRQ that a request names; 0 on other transports.
#[inline]
pub(crate) fn named_srq(headers: &Headers) -> u32 {
    headers.xrceth.map_or(0, |xrceth| xrceth.srqn)
}

impl RcQp {
    /// An XRC target QP in RESET, of an XRC domain.
    pub const fn new_xrc_tgt(qpn: u32, xrcd: u32) -> Self {
        let mut qp = RcQp::new(qpn).with_type(QpType::XrcTgt);
        qp.xrcd = xrcd;
        qp
    }

    /// XRC domain of an XRC target QP; 0 on others.
    #[inline]
    pub const fn xrcd(&self) -> u32 {
        self.xrcd
    }

    /// XRC SRQ of the message under way at an XRC target, or of the last one.
    #[inline]
    pub const fn xrc_srqn(&self) -> u32 {
        self.resp.srqn
    }

    /// The XRCETH of a request.
    #[inline]
    pub(crate) fn xrceth(&self, wr: &SendWr) -> Option<XrcEth> {
        let other = u32::from(self.mutated(Mutation::NameOtherSrq));
        (self.qp_type == QpType::XrcIni).then_some(XrcEth {
            srqn: wr.remote_srqn ^ other,
        })
    }

    /// At an XRC target: finds the XRC SRQ that a request names. It is refused when there is none, when it is of another
    /// domain, or when it is not the one that the message began with.
    #[inline]
    pub(crate) fn find_srq<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
    ) -> Result<(), Refusal> {
        if self.qp_type != QpType::XrcTgt {
            return Ok(());
        }
        let srqn = named_srq(headers);
        let under_way = self.resp.message != MessageKind::None;
        let goes_on = under_way && !headers.bth.opcode.starts_message();
        if goes_on && srqn != self.resp.srqn && !self.mutated(Mutation::ChangeXrcSrq) {
            return Err(Refusal::invalid(Check::XrcSrq));
        }
        self.look_up_srq(ctx, srqn)?;
        if !under_way {
            self.resp.srqn = srqn;
        }
        Ok(())
    }

    /// At an XRC target: the same for a request seen before, which may come in the midst of a message.
    pub(crate) fn find_srq_again<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
    ) -> Result<(), Refusal> {
        match self.qp_type {
            QpType::XrcTgt => self.look_up_srq(ctx, named_srq(headers)),
            _ => Ok(()),
        }
    }

    fn look_up_srq<H: Host>(&self, ctx: &mut Ctx<'_, H>, srqn: u32) -> Result<(), Refusal> {
        match ctx.host.xrc_srq(srqn) {
            None => Err(Refusal::invalid(Check::XrcSrq)),
            Some(xrcd) if xrcd != self.xrcd && !self.mutated(Mutation::SkipXrcDomain) => {
                Err(Refusal::invalid(Check::XrcDomain))
            }
            Some(_) => Ok(()),
        }
    }

    /// At an XRC target: names the XRC SRQ of the receive WQE in use to the host. Whether there is one still: an XRC SRQ that
    /// is destroyed under a message takes its WQE along without a completion, and what comes of the message is refused.
    /// Always `true` on other QPs.
    #[inline]
    pub(crate) fn name_srq_in_use<H: Host>(&self, ctx: &mut Ctx<'_, H>) -> bool {
        self.qp_type != QpType::XrcTgt || ctx.host.xrc_srq(self.resp.srqn).is_some()
    }
}
