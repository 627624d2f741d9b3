//! Messages of one packet that are posted and sent in one step (9.7.1 to 9.7.3). While nothing else waits to be sent, what
//! decides about a packet is the same for all of them, and is asked once.

use crate::qp::RcQp;
use crate::types::{QpState, QpType, Time};
use crate::work::{SendFlags, SendWr, WrOpcode};
use rnic_wire::{Reth, Whole};

impl RcQp {
    /// How many messages may be posted and sent by [`RcQp::send_whole`] now, for a send ring of `ring_len`: as many as window
    /// and ring have room for, if everything posted before is on its way for the first time and nothing has to be looked at
    /// packet by packet; else none.
    #[inline]
    pub fn whole_room(&self, ring_len: u32) -> u32 {
        let req = &self.req;
        let plain = self.qp_type == QpType::Rc
            && self.state == QpState::Rts
            && req.cur == req.tail
            && req.fresh == req.tail
            && req.next == req.max
            && !(req.failed || req.rnr_wait || req.local_begun)
            && !req.credit.is_bounded()
            && !self.pace.is_engaged()
            && !self.resp.has_work()
            && !self.is_mutated();
        if !plain {
            return 0;
        }
        let unacked = req.next.diff(req.una) as u32;
        self.sq_room(ring_len).min(self.window().saturating_sub(unacked))
    }

    /// Posts a SEND or WRITE and sends it, in one step; its effect is that of [`RcQp::post_send`] and [`RcQp::poll_transmit`].
    /// `fill` puts the work request in place, over what another left there: all fields but the transport's own. It has no
    /// immediate data, is not fenced, and fits a packet of the path MTU. `ring` is the storage of the send ring.
    ///
    /// To be called only as often as [`RcQp::whole_room`] says, before anything else happens to the QP.
    #[inline]
    pub fn send_whole(&mut self, ring: &mut [SendWr], now: Time, fill: impl FnOnce(&mut SendWr)) -> Whole {
        debug_assert!(self.whole_room(ring.len() as u32) > 0, "there is no room");
        let (tail, psn) = (self.req.tail, self.req.next);
        let wr = &mut ring[tail as usize & ring.len().wrapping_sub(1)];
        fill(wr);
        debug_assert!(
            matches!(wr.opcode, WrOpcode::Send | WrOpcode::Write)
                && !wr.flags.contains(SendFlags::FENCE)
                && wr.length as usize <= self.attrs.mtu.bytes(),
            "not a whole message: {wr:?}"
        );
        wr.remote_srqn = 0;
        (wr.first, wr.last) = (psn, psn);
        let sends = wr.opcode == WrOpcode::Send;
        let whole = Whole {
            dest_qpn: self.dest_qpn,
            psn,
            ack_req: true,
            solicited: sends && wr.flags.contains(SendFlags::SOLICITED),
            reth: (!sends).then_some(Reth {
                va: wr.remote_addr,
                rkey: wr.rkey,
                dma_len: wr.length,
            }),
        };
        let req = &mut self.req;
        let next = tail.wrapping_add(1);
        (req.tail, req.cur, req.fresh) = (next, next, next);
        (req.next, req.max) = (psn.next(), psn.next());
        req.blocked = false;
        req.credit.start(sends);
        if req.ack_deadline == Time::NEVER {
            self.arm_ack_timer(now);
        }
        if self.attrs.selective {
            self.note_first(psn, now);
        }
        whole
    }
}
