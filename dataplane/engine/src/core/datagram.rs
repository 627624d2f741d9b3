//! Datagrams: each goes by an address handle of its own, and comes without a connection.
use rnic_transport::Emit;
use rnic_wire::{self as wire, Datagram, Kind, Qpn, classify};

use super::{
    qp::{Qp, template},
    queue::Segments,
    run::Core,
    service::{BYTE_BUDGET, PACKET_BUDGET},
    shared::Handoff,
};
use crate::{frame::Frame, mem::AhError};

impl Core {
    /// Sends what a UD QP has, within the budgets and the room of its port. A datagram for this appliance is handed over
    /// as a frame: its receiver gets the header in front of it.
    pub(super) fn transmit_datagrams(&mut self, qp: &mut Qp) -> usize {
        let port = qp.rec.id.port;
        // Large: filled in place.
        let (mut emit, mut payload) = (Emit::EMPTY, Segments::new());
        let mut bytes = 0;
        for count in 0..PACKET_BUDGET {
            if bytes >= BYTE_BUDGET {
                return count;
            }
            if !self.ports[usize::from(port)].ready(&mut self.env) {
                self.stuck += 1;
                return count;
            }
            if !qp.with(&mut self.env, |rc, ctx| rc.poll_transmit_into(ctx, &mut emit)) {
                return count;
            }
            if !self.gather(qp, &emit, &mut payload) {
                continue;
            }
            let path = match self.env.ahs.resolve(emit.ah.unwrap_or(0), qp.rec.id.pd) {
                Ok(path) => path,
                Err(AhError::Changing) => {
                    // Lost, as any datagram may be.
                    self.env.counters.gather_errors += 1;
                    continue;
                }
                Err(_) => {
                    qp.with(&mut self.env, |rc, ctx| rc.address_failed(ctx, &emit));
                    continue;
                }
            };
            bytes += payload.iter().map(|r| r.len).sum::<usize>();
            let (template, ident) = (template(&path, false), qp.next_ident());
            if emit.headers.bth.dest_qpn == Qpn::MULTICAST.get() {
                // The link does not bring it back to this port's own members.
                let owner = usize::from(self.view.refresh().owner(Qpn::MULTICAST.get()));
                self.deliver_frame(owner, port, &template, ident, &emit, &payload);
                if !self.ports[usize::from(port)].ready(&mut self.env) {
                    continue;
                }
            }
            if path.direct {
                let owner = usize::from(self.view.refresh().owner(emit.headers.bth.dest_qpn));
                self.deliver_frame(owner, port, &template, ident, &emit, &payload);
            } else if self.queue(usize::from(port), &template, ident, &emit, &payload) {
                self.env.counters.tx_roce += 1;
            }
        }
        PACKET_BUDGET
    }

    /// A multicast datagram, at the core that owns multicast: to every QP attached to its group, here or on other cores.
    pub(super) fn receive_multicast(
        &mut self,
        port: u16,
        packet: &wire::Frame<'_>,
        frame: &Frame,
        direct: bool,
    ) {
        let members = self.env.mcast.attached(port, &packet.net().dst_gid());
        if members.is_empty() {
            self.env.counters.no_mcast_group += 1;
            return;
        }
        self.give_to_members(port, packet, &members, direct);
        for core in (0..self.cores.len()).filter(|core| *core != self.id) {
            let view = self.view.refresh();
            if !members.iter().any(|qpn| usize::from(view.owner(*qpn)) == core) {
                continue;
            }
            let state = &mut self.ports[usize::from(port)];
            let copy = if state.ready(&mut self.env) {
                state.spare.pop()
            } else {
                None
            };
            let copied = copy.and_then(|mut copy| copy.fill(frame.bytes()).then_some(copy));
            let handoff = copied.map(|frame| Handoff::Copied { port, frame, direct });
            let core = &self.cores[core];
            if handoff.is_none_or(|handoff| core.inbound.push(handoff).is_err()) {
                self.env.counters.handoff_dropped += 1;
            }
            core.kick();
        }
    }

    /// A copy of a multicast datagram, whose ICRC was verified, for this core's own QPs.
    pub(super) fn receive_copy(&mut self, port: u16, frame: &Frame, direct: bool) {
        if let Kind::Roce(packet) = classify(frame.bytes(), frame.vlan()) {
            let members = self.env.mcast.attached(port, &packet.net().dst_gid());
            self.give_to_members(port, &packet, &members, direct);
        }
    }

    fn give_to_members(&mut self, port: u16, packet: &wire::Frame<'_>, members: &[u32], direct: bool) {
        let tagged = packet.datagram().vlan_id();
        let vlan = direct || self.env.addresses.has_vlan(port, tagged);
        if !vlan || !is_station(packet.net().src_gid()) {
            self.env.counters.address_mismatch += 1;
            return;
        }
        let sender = packet.headers().deth.map(|deth| deth.src_qpn);
        for &qpn in members {
            let here = usize::from(self.view.refresh().owner(qpn)) == self.id;
            if !here || direct && sender == Some(qpn) {
                continue;
            }
            let Some((slot, mut qp)) = self.find(qpn, packet.bth().pkey, None) else {
                continue;
            };
            let outcome = self.give(&mut qp, packet);
            self.received(slot, &mut qp, outcome);
            self.qps[slot as usize] = Some(qp);
        }
    }

    /// Whether a datagram that came in by `from` is for an address of `port`, and from one a station may have.
    #[inline]
    pub(super) fn is_for_port(&self, port: u16, datagram: &Datagram<'_>, from: u16, direct: bool) -> bool {
        let net = datagram.net();
        let (src, dst) = (net.src_gid(), net.dst_gid());
        let addresses = &self.env.addresses;
        let ours = if direct {
            addresses.has_ip(port, dst)
        } else {
            port == from && addresses.has(port, &(dst, datagram.vlan_id()))
        };
        ours && is_station(src)
    }
}

/// Whether a GID may be that of a single station: neither unspecified nor multicast.
#[inline]
fn is_station(gid: [u8; 16]) -> bool {
    match super::qp::ipv4_of(gid) {
        Some(v4) => v4 != [0; 4] && v4[0] & 0xF0 != 0xE0,
        None => gid != [0; 16] && gid[0] != 0xFF,
    }
}
