//! Datagrams: each goes by an address handle of its own, and comes without a connection.
use rnic_wire::Datagram;

use super::{
    qp::{Qp, template},
    run::Core,
    service::{BYTE_BUDGET, PACKET_BUDGET},
};
use crate::mem::AhError;

impl Core {
    /// Sends what a UD QP has, within the budgets and the room of its port. A datagram for this appliance is handed over
    /// as a frame: its receiver gets the header in front of it.
    pub(super) fn transmit_datagrams(&mut self, qp: &mut Qp) -> usize {
        let port = qp.rec.id.port;
        let mut bytes = 0;
        for count in 0..PACKET_BUDGET {
            if bytes >= BYTE_BUDGET || !self.ports[usize::from(port)].ready() {
                return count;
            }
            let Some(emit) = qp.with(&mut self.env, |rc, ctx| rc.poll_transmit(ctx)) else {
                return count;
            };
            let Some(payload) = self.gather(qp, &emit) else {
                continue;
            };
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
            let (template, ident) = (template(&path), qp.next_ident());
            if path.direct {
                let owner = usize::from(self.view.refresh().owner(emit.headers.bth.dest_qpn));
                self.deliver_frame(owner, port, &template, ident, &emit, &payload);
            } else if let Some(frame) = self.build(usize::from(port), &template, ident, &emit, &payload) {
                self.env.counters.tx_roce += 1;
                self.ports[usize::from(port)].tx.push(frame);
            }
        }
        PACKET_BUDGET
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
