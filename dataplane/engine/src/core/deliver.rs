//! Delivery between two QPs of one appliance, without frames where both are on this core.
use rnic_transport::{DropReason, Emit, Received};
use rnic_wire::FrameTemplate;

use super::{host::Gathered, qp::Qp, queue::Segments, run::Core, shared::Handoff};

impl Core {
    /// Gives a packet of `qp` to the QP it is for. A peer on another core, or the QP itself, gets it as a frame
    /// through the hand-off queue; a packet that cannot be delivered is lost, as on a wire, and retried.
    pub(super) fn deliver(&mut self, qp: &mut Qp, emit: &Emit, payload: &Segments) {
        let dest = qp.rec.rc.dest_qpn();
        let view = self.view.refresh();
        let owner = usize::from(view.owner(dest));
        if owner != self.id || dest == qp.qpn() {
            let ident = qp.next_ident();
            if let (Some(route), Some(template)) = (&qp.route, &qp.template) {
                self.deliver_frame(owner, route.port, template, ident, emit, payload);
            }
            return;
        }
        let Some(slot) = view.qp(dest).map(|leaf| leaf.slot) else {
            self.env.counters.unknown_qp += 1;
            return;
        };
        let Some(mut peer) = self.qps.get_mut(slot as usize).and_then(Option::take) else {
            self.env.counters.unknown_qp += 1;
            return;
        };
        self.env.counters.direct_packets += 1;
        if are_peers(qp, &peer) {
            let headers = &emit.headers;
            let outcome = peer.with(&mut self.env, |rc, ctx| {
                rc.receive(ctx, headers, Gathered::new(payload))
            });
            self.received(slot, &mut peer, outcome);
            if headers.bth.ack_req {
                self.asked = Some(slot);
            }
        } else {
            self.env.counters.address_mismatch += 1;
        }
        self.qps[slot as usize] = Some(peer);
    }

    /// One packet of a QP that was asked for an acknowledgement, out of its turn: whoever asked has it in this pass, and not
    /// in the next when its peer's turn came before its own.
    pub(super) fn answer_direct(&mut self, slot: u32) {
        let Some(mut qp) = self.qps.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        let (mut emit, mut payload) = (Emit::EMPTY, Segments::new());
        if qp.route.is_some_and(|route| route.direct)
            && qp.with(&mut self.env, |rc, ctx| rc.poll_transmit_into(ctx, &mut emit))
            && self.gather(&mut qp, &emit, &mut payload)
        {
            self.deliver(&mut qp, &emit, &payload);
        }
        self.after(slot, &mut qp);
        self.qps[slot as usize] = Some(qp);
        // What that packet asks for has time.
        self.asked = None;
    }

    /// Hands a packet as a frame to the core that owns the QP it is for.
    pub(super) fn deliver_frame(
        &mut self,
        owner: usize,
        port: u16,
        template: &FrameTemplate,
        ident: u16,
        emit: &Emit,
        payload: &Segments,
    ) {
        if !self.ports[usize::from(port)].ready(&mut self.env) {
            return;
        }
        let Some(frame) = self.build(usize::from(port), template, ident, emit, payload) else {
            return;
        };
        let core = &self.cores[owner];
        if core
            .inbound
            .push(Handoff::Received {
                port,
                frame,
                direct: true,
            })
            .is_err()
        {
            self.env.counters.handoff_dropped += 1;
        }
        core.kick();
    }

    /// Counts what became of a packet and sees to it that the QP's answer goes out.
    #[inline]
    pub(super) fn received(&mut self, slot: u32, qp: &mut Qp, outcome: Received) {
        let c = &mut self.env.counters;
        match outcome {
            Received::Accepted | Received::Early => qp.rec.counters.received_packets += 1,
            Received::Duplicate => c.duplicate += 1,
            Received::OutOfOrder => c.out_of_order += 1,
            Received::NotReady => c.rnr_nak_sent += 1,
            Received::Notified => self.ports[usize::from(qp.rec.id.port)].congestion.rp_cnp_handled += 1,
            Received::Refused(_) => c.refused += 1,
            Received::Dropped(DropReason::CnpIgnored) => {
                self.ports[usize::from(qp.rec.id.port)].congestion.rp_cnp_ignored += 1;
            }
            Received::Dropped(reason) => {
                *match reason {
                    DropReason::MessageLost => &mut c.message_lost,
                    DropReason::NoReceiveWqe => &mut c.no_receive_wqe,
                    DropReason::Refused(_) => &mut c.message_refused,
                    DropReason::Qkey => &mut c.qkey_mismatch,
                    _ => &mut c.no_effect,
                } += 1;
                qp.rec.counters.dropped_packets += 1;
            }
        }
        self.after(slot, qp);
    }
}

/// Whether the address vectors of both name each other, as the addresses in a frame would have to.
#[inline]
pub(super) fn are_peers(qp: &Qp, peer: &Qp) -> bool {
    qp.rec.path.is_reverse_of(&peer.rec.path)
}
