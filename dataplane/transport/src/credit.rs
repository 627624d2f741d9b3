//! End-to-end credits (9.7.7.2): a peer that says how many receive WQEs it has is not sent more than it can take.
//!
//! Messages are numbered from 1 in the order of their work requests (SSN); the peer counts those it has completed
//! (MSN). MSN and credits of an acknowledgement together are the last message there is room for. A SEND or WRITE with
//! immediate beyond it goes ahead by one packet, and alone: that packet asks for an acknowledgement, and its answer, an
//! ACK or an RNR NAK, says how to go on. So the peer's credits spare RNR NAKs, and never stop a QP for good.

use crate::mutation::Mutation;
use crate::qp::RcQp;
use crate::record::{BadField, record};
use crate::work::{SendWr, WrOpcode};
use rnic_wire::{Aeth, Credits, Psn, Syndrome};

record! {
    /// Numbers of messages, 24 bits.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Credit {
        /// SSN of the work request that is started next.
        next: Psn,
        /// LSN: that of the last one that the peer has room for.
        limit: Psn,
        /// The peer reports credits.
        bounded: bool,
    }
}

impl Credit {
    pub const fn new() -> Self {
        Credit {
            next: Psn::new(1),
            limit: Psn::ZERO,
            bounded: false,
        }
    }

    /// Whether the peer reports credits.
    #[inline]
    pub fn is_bounded(&self) -> bool {
        self.bounded
    }

    /// A work request begins. One that needs no receive WQE leaves the room for those behind it.
    #[inline]
    pub fn start(&mut self, takes_recv: bool) {
        self.next = self.next.next();
        if !takes_recv {
            self.limit = self.limit.next();
        }
    }

    /// Takes what an acknowledgement reports; whether there is more room than before.
    #[inline]
    fn hear(&mut self, code: u8, msn: u32) -> bool {
        let Some(wqes) = Credits::decode(code) else {
            return core::mem::replace(&mut self.bounded, false);
        };
        let limit = Psn::new(msn) + wqes;
        // One that was overtaken on the way takes nothing back.
        if self.bounded && !limit.is_after(self.limit) {
            return false;
        }
        self.limit = limit;
        self.bounded = true;
        true
    }

    pub fn check(&self) -> Result<(), BadField> {
        for (field, number) in [("req.credit.next", self.next), ("req.credit.limit", self.limit)] {
            BadField::unless(number.get() <= Psn::MAX.get(), field, number.get(), "24 bits")?;
        }
        Ok(())
    }
}

impl SendWr {
    /// Whether it takes a receive WQE of the peer.
    #[inline]
    pub(crate) fn takes_recv(&self) -> bool {
        matches!(
            self.opcode,
            WrOpcode::Send | WrOpcode::SendImm | WrOpcode::SendInv | WrOpcode::WriteImm
        )
    }
}

impl RcQp {
    /// Takes the credits of an acknowledgement. Whether there is more room than before, so that sending may go on.
    #[inline]
    pub(crate) fn take_credits(&mut self, aeth: Aeth) -> bool {
        let Syndrome::Ack { credits } = aeth.syndrome else {
            return false;
        };
        let room =
            (credits != Credits::NONE || self.req.credit.bounded) && self.req.credit.hear(credits, aeth.msn);
        self.req.blocked &= !room;
        room
    }

    /// Whether the next packet of the work request at `index` has to wait for credits.
    #[inline]
    pub(crate) fn out_of_credit(&self, index: u32, wr: &SendWr) -> bool {
        let (req, credit) = (&self.req, &self.req.credit);
        if !credit.bounded || !wr.takes_recv() || self.mutated(Mutation::IgnoreCredits) {
            return false;
        }
        let ssn = credit.next.wrapping_sub(req.fresh.wrapping_sub(index));
        if !ssn.is_after(credit.limit) {
            return false;
        }
        // Its first packet goes alone, and the others when that one was taken.
        if index == req.fresh || req.next == wr.first {
            req.next != req.una
        } else {
            !wr.first.is_before(req.una)
        }
    }

    /// Whether a packet may be the one that goes ahead of the credits, and so asks for an ACK.
    #[inline]
    pub(crate) fn is_probe(&self, wr: &SendWr, psn: Psn) -> bool {
        self.req.credit.bounded && psn == wr.first && wr.takes_recv()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_numbers_are_compared_across_the_wrap() {
        let mut credit = Credit::new();
        assert!(credit.hear(Credits::encode(4), 0xFF_FFFE));
        assert_eq!(credit.limit, Psn::new(2));
        assert!(!credit.hear(Credits::encode(1), 0xFF_FFFE), "less than before");
        assert!(credit.hear(Credits::encode(4), 0));
        assert_eq!(credit.limit, Psn::new(4));
        credit.limit = Psn::MAX;
        credit.start(false);
        assert_eq!(credit.limit, Psn::ZERO);
    }

    #[test]
    fn the_first_count_is_taken_whatever_it_is_and_none_ends_it() {
        let mut credit = Credit::new();
        for _ in 0..9 {
            credit.start(true);
        }
        assert!(!credit.hear(Credits::NONE, 3));
        assert!(credit.hear(Credits::encode(0), 3) && credit.bounded);
        assert!(credit.hear(Credits::NONE, 3) && !credit.bounded);
    }
}
