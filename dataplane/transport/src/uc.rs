//! Unreliable connections (9.8.2): a message arrives whole and in order, or not at all, and nobody is told.

use crate::host::Host;
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, Emit, RcQp, Received};
use crate::responder::{Answer, Outcome};
use crate::types::EventKind;
use rnic_wire::{Headers, MessageKind};

/// How far behind the expected PSN a packet counts as late or doubled, and is dropped: more than any network holds up.
/// Farther behind it comes after a gap of most of the PSN space. The specification, whose networks neither reorder nor
/// double packets, has no such bound: there every FIRST and ONLY begins a message.
const LATE: i32 = 1 << 16;

impl RcQp {
    /// The next packet of a UC requester. It never asks for an ACK.
    #[inline]
    pub(crate) fn poll_uc<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        self.complete_sent(ctx);
        // Whatever was posted before a local operation is out, and done, when its turn comes.
        let index = loop {
            let Some(index) = self.sendable() else {
                return false;
            };
            if !ctx.wr(index).is_local() {
                break index;
            }
            if !self.local_operation(ctx) {
                return false;
            }
        };
        if index == self.req.fresh {
            self.start_request(ctx, index);
        }
        let slot = index & (ctx.sq.len() as u32).wrapping_sub(1);
        self.data_packet(ctx.wr(index), slot, emit);
        emit.headers.bth.ack_req = false;
        true
    }

    /// Takes a request of a UC peer. Whatever is wrong with it costs its message and nothing else, but an error of our own
    /// buffers or queues, which ends the QP.
    #[inline]
    pub(crate) fn uc_request<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        if !self.state.receives() {
            return Received::Dropped(DropReason::State);
        }
        let (psn, opcode) = (headers.bth.psn, headers.bth.opcode);
        let place = psn.diff(self.resp.epsn);
        if (-LATE..0).contains(&place) && !self.mutated(Mutation::TakeLatePacket) {
            return Received::Duplicate;
        }
        self.resp.epsn = psn;
        let gap = place != 0 && !self.mutated(Mutation::OverlookGap);
        if gap || opcode.starts_message() {
            // The rest of the message under way is lost.
            self.resp.message = MessageKind::None;
        }
        if self.resp.message == MessageKind::None && !opcode.starts_message() {
            return self.drop_message(DropReason::MessageLost);
        }
        self.in_sequence(ctx);
        let step = if opcode.is_send() {
            self.send_in(ctx, headers, payload)
        } else {
            self.write_in(ctx, headers, payload)
        };
        // Nothing is acknowledged, whatever the peer asks for.
        self.resp.answer = Answer::Nothing;
        match step {
            Ok(Outcome::Done) if place == 0 => Received::Accepted,
            Ok(Outcome::Done) => Received::OutOfOrder,
            Ok(Outcome::NoReceiveWqe) => self.drop_message(DropReason::NoReceiveWqe),
            Err(refusal) if refusal.event == EventKind::QpFatal => {
                self.refuse(ctx, psn, opcode.to_u8(), &refusal)
            }
            Err(refusal) => self.drop_message(DropReason::Refused(refusal.check)),
        }
    }

    /// Forgets the message that the packet of the expected PSN belongs to. A receive WQE taken for it is used for the next
    /// one.
    fn drop_message(&mut self, reason: DropReason) -> Received {
        self.resp.message = MessageKind::None;
        self.resp.epsn = self.resp.epsn.next();
        Received::Dropped(reason)
    }
}
