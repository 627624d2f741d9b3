//! The middle of a long WRITE: many packets at once.
//!
//! The first packet of a message and its last go one by one, with every check there is. A stretch lies between them and is
//! sent only when nothing at all stands in its way; otherwise its packets go one by one too, and what is wrong is found by the
//! ordinary means.
//!
//! Of two QPs that one core has both of nobody sees packets. All that has to be as if there were some is what the two sides
//! remember: PSNs, how much of the message has arrived, the acknowledgement due.
use crate::host::Host;
use crate::qp::{Ctx, RcQp, Source};
use crate::responder::Answer;
use crate::types::{Access, QpState, QpType, Time};
use crate::work::WrOpcode;
use rnic_wire::{Bth, MessageKind, Mtu, Operation, Psn};

/// Packets in a row, each of a whole path MTU, neither first nor last of their WRITE.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// PSN of the first of them.
    pub psn: Psn,
    /// How many; at least two.
    pub packets: u32,
    /// Which packet of its message the first of them is.
    pub number: u32,
    /// The path MTU of the requester.
    pub mtu: Mtu,
    /// Where the payload of all of them lies.
    pub source: Source,
    /// Bytes of it.
    pub len: u32,
}

impl RcQp {
    /// What the requester would send next, as far as it is a stretch of at most `bytes`; `None` while the responder of
    /// this QP has something to say, so that both get their turns. Nothing has happened yet.
    #[inline]
    pub fn stretch_ahead<H: Host>(&self, ctx: &mut Ctx<'_, H>, bytes: u32) -> Option<Stretch> {
        let req = &self.req;
        let undisturbed = req.next == req.max && req.retries == 0 && req.rnr_tries == 0 && !req.failed;
        if self.qp_type != QpType::Rc
            || self.state != QpState::Rts
            || !req.may_send()
            || req.cur == req.fresh
            || !undisturbed
            || self.resp.has_work()
            || self.pace.is_engaged()
            || self.attrs.selective
            || self.is_mutated()
        {
            return None;
        }
        let mtu = self.attrs.mtu;
        let slot = req.cur & (ctx.sq.len() as u32).wrapping_sub(1);
        let wr = ctx.wr(req.cur);
        let number = req.next.diff(wr.first);
        if !matches!(wr.opcode, WrOpcode::Write | WrOpcode::WriteImm) || number < 1 {
            return None;
        }
        let left = u32::try_from(wr.last.diff(req.next)).ok()?;
        // The packet that fills the window asks for an acknowledgement, by itself.
        let unacked = req.next.diff(req.una) as u32;
        let room = self.limits.max_unacked.saturating_sub(unacked.saturating_add(1));
        let packets = left.min(room).min(bytes >> mtu.log2());
        if packets < 2 {
            return None;
        }
        let len = packets << mtu.log2();
        Some(Stretch {
            psn: req.next,
            packets,
            number: number as u32,
            mtu,
            source: Source::Send {
                wr_index: slot,
                data: wr.data,
                offset: (number as u32) << mtu.log2(),
                len,
            },
            len,
        })
    }

    /// The BTH of packet `i` of a stretch.
    #[inline]
    pub fn stretch_bth(&self, stretch: &Stretch, i: u32) -> Bth {
        let every = (1 << self.limits.ack_every_log2) - 1;
        let mut bth = self.bth(Operation::WriteMiddle, stretch.psn + i);
        bth.ack_req = (stretch.number + i) & every == every;
        bth
    }

    /// The requester has sent a stretch, or as much of it as its `packets` say.
    #[inline]
    pub fn stretch_sent<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, stretch: &Stretch) {
        self.advance(stretch.psn + stretch.packets, false);
        if self.req.ack_deadline == Time::NEVER {
            self.arm_ack_timer(ctx.now);
        }
    }

    /// Remote key and address where the responder would have the payload of a stretch placed; `None` when it would not just
    /// take it. The key is to be checked, with [`Access::REMOTE_WRITE`].
    #[inline]
    pub fn stretch_target(&self, stretch: &Stretch) -> Option<(u32, u64)> {
        let resp = &self.resp;
        let left = resp.write_len.saturating_sub(resp.received);
        let taken = self.qp_type == QpType::Rc
            && self.state.receives()
            && !resp.invalidating
            && !resp.early.is_gap()
            && !matches!(resp.answer, Answer::Nak { .. })
            && resp.message == MessageKind::Write
            && resp.epsn == stretch.psn
            && self.attrs.mtu == stretch.mtu
            && self.attrs.access.contains(Access::REMOTE_WRITE)
            && stretch.len < left;
        let addr = resp.write_addr.wrapping_add(u64::from(resp.received));
        taken.then_some((resp.write_rkey, addr))
    }

    /// The payload of a stretch, for which [`RcQp::stretch_target`] named a place, lies there. It is acknowledged.
    #[inline]
    pub fn stretch_taken(&mut self, stretch: &Stretch) {
        let resp = &mut self.resp;
        resp.received = resp.received.saturating_add(stretch.len);
        resp.taken = resp.epsn + (stretch.packets - 1);
        resp.epsn = resp.taken.next();
        resp.ack();
    }
}
