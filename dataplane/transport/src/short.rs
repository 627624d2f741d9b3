//! Requests of one packet that are posted and sent in one step (9.7.1 to 9.7.3), and responses of one packet. While nothing else
//! waits to be sent, what decides about a packet is the same for all of them, and is asked once.

use crate::atomic::ATOMIC_LEN;
use crate::cold::Cold;
use crate::qp::{RcQp, Source};
use crate::responder::Answer;
use crate::types::{QpState, QpType, Time};
use crate::work::{SendFlags, SendWr, WrOpcode};
use rnic_wire::{Aeth, AtomicAckEth, Extension, Operation, Plain, Psn, Reth, Syndrome, Whole};

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
        let psn = self.req.next;
        let wr = self.put_next(ring, fill);
        debug_assert!(
            matches!(wr.opcode, WrOpcode::Send | WrOpcode::Write)
                && !wr.flags.contains(SendFlags::FENCE)
                && wr.length as usize <= self.attrs.mtu.bytes(),
            "not a whole message: {wr:?}"
        );
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
        self.req.credit.start(sends);
        self.sent(psn, now);
        whole
    }

    /// Whether a READ or atomic may be sent by [`RcQp::send_fetch`], where [`RcQp::whole_room`] has room.
    #[inline]
    pub fn may_fetch(&self) -> bool {
        self.req.rd_atomics < self.attrs.max_rd_atomic
    }

    /// Whether READs or atomics are on their way.
    #[inline]
    pub fn fetches(&self) -> bool {
        self.req.rd_atomics > 0
    }

    /// The same as [`RcQp::send_whole`] of a READ whose response is one packet, or of an atomic. To be called only while
    /// [`RcQp::may_fetch`] says so too.
    #[inline]
    pub fn send_fetch(&mut self, ring: &mut [SendWr], now: Time, fill: impl FnOnce(&mut SendWr)) -> Plain {
        debug_assert!(self.may_fetch(), "there is no room");
        let psn = self.req.next;
        let wr = self.put_next(ring, fill);
        debug_assert!(
            (wr.is_atomic() && wr.length == ATOMIC_LEN
                || wr.is_read() && wr.length as usize <= self.attrs.mtu.bytes())
                && !wr.flags.contains(SendFlags::FENCE),
            "not a READ or atomic of one packet: {wr:?}"
        );
        let (operation, extension) = match wr.opcode {
            WrOpcode::Read => {
                let reth = Reth {
                    va: wr.remote_addr,
                    rkey: wr.rkey,
                    dma_len: wr.length,
                };
                (Operation::ReadRequest, Extension::Reth(reth))
            }
            _ => {
                let (operation, eth) = wr.atomic_eth();
                (operation, Extension::Atomic(eth))
            }
        };
        self.req.rd_atomics += 1;
        self.req.credit.start(false);
        self.sent(psn, now);
        Plain {
            ack_req: true,
            ..self.plain(operation, psn, extension)
        }
    }

    /// A plain packet to the peer.
    #[inline]
    pub(crate) fn plain(&self, operation: Operation, psn: Psn, extension: Extension) -> Plain {
        Plain {
            operation,
            dest_qpn: self.dest_qpn,
            psn,
            ack_req: false,
            extension,
        }
    }

    /// Puts the next work request in place, with the next PSN.
    #[inline]
    fn put_next<'a>(&self, ring: &'a mut [SendWr], fill: impl FnOnce(&mut SendWr)) -> &'a mut SendWr {
        debug_assert!(self.whole_room(ring.len() as u32) > 0, "there is no room");
        let psn = self.req.next;
        let wr = &mut ring[self.req.tail as usize & ring.len().wrapping_sub(1)];
        fill(wr);
        wr.remote_srqn = 0;
        (wr.first, wr.last) = (psn, psn);
        wr
    }

    /// A work request was posted, and its packet sent for the first time.
    #[inline]
    fn sent(&mut self, psn: Psn, now: Time) {
        let req = &mut self.req;
        let next = req.tail.wrapping_add(1);
        (req.tail, req.cur, req.fresh) = (next, next, next);
        (req.next, req.max) = (psn.next(), psn.next());
        req.blocked = false;
        if req.ack_deadline == Time::NEVER {
            self.arm_ack_timer(now);
        }
        if self.attrs.selective {
            self.note_first(psn, now);
        }
    }

    /// What the responder would say next, if it is one packet that nothing has to be asked about: the only response to a READ
    /// that was asked for once, with where its payload lies; the result of an atomic; an acknowledgement.
    #[inline]
    pub fn response_ahead(&mut self, cold: &mut Cold) -> Option<(Plain, Source)> {
        let quiet = self.qp_type == QpType::Rc
            && !self.resp.invalidating
            && !self.pace.is_engaged()
            && !self.is_mutated();
        if !quiet {
            return None;
        }
        let ack = |msn| Aeth {
            syndrome: Syndrome::ACK,
            msn,
        };
        let Some(job) = self.resp.responses.current(&mut cold.jobs) else {
            let plain = self.resp.answer == Answer::Ack && !self.resp.early.is_gap();
            let (psn, msn) = (self.resp.taken, self.resp.msn());
            return plain.then(|| {
                let extension = Extension::Aeth(ack(msn));
                (self.plain(Operation::Acknowledge, psn, extension), Source::None)
            });
        };
        if job.packets != 1 || job.again {
            return None;
        }
        let job = *job;
        let (operation, extension, source) = if job.atomic {
            let original = AtomicAckEth {
                original: job.addr_or_original,
            };
            (
                Operation::AtomicAcknowledge,
                Extension::AtomicAck(ack(job.msn), original),
                Source::None,
            )
        } else {
            let source = match job.len {
                0 => Source::None,
                len => Source::Remote {
                    rkey: job.rkey,
                    addr: job.addr_or_original,
                    len,
                    srqn: job.srqn,
                },
            };
            (Operation::ReadResponseOnly, Extension::Aeth(ack(job.msn)), source)
        };
        Some((self.plain(operation, job.first, extension), source))
    }

    /// What [`RcQp::response_ahead`] was told about is sent.
    #[inline]
    pub fn response_sent(&mut self, cold: &Cold) {
        if self.resp.responses.is_empty() {
            self.resp.answer = Answer::Nothing;
        } else {
            self.resp.responses.pop(&cold.jobs);
        }
    }
}
