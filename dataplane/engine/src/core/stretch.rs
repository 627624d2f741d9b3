//! Long WRITEs between two QPs of one core: all packets of a pass but the first and the last at once.
use rnic_transport::{Host, Stretch};

use super::{
    deliver::are_peers,
    host::{Env, Gathered},
    qp::Qp,
    queue::Segments,
    run::Core,
};

impl Core {
    /// Moves what comes next of a WRITE of `qp`, at most `budget` bytes of it, to the peer; how many were moved. None
    /// where anything is out of the ordinary: packets then go one by one.
    #[inline]
    pub(super) fn stretch(&mut self, qp: &mut Qp, budget: usize) -> usize {
        let bytes = u32::try_from(budget).unwrap_or(u32::MAX);
        let ahead = qp.with(&mut self.env, |rc, ctx| rc.stretch_ahead(ctx, bytes));
        ahead.map_or(0, |stretch| self.move_stretch(qp, &stretch))
    }

    fn move_stretch(&mut self, qp: &mut Qp, stretch: &Stretch) -> usize {
        let dest = qp.rec.rc.dest_qpn();
        let view = self.view.refresh();
        if usize::from(view.owner(dest)) != self.id || dest == qp.qpn() {
            return 0;
        }
        let Some(slot) = view.qp(dest).map(|leaf| leaf.slot) else {
            return 0;
        };
        let Some(mut peer) = self.qps.get_mut(slot as usize).and_then(Option::take) else {
            return 0;
        };
        let moved = stretch_to(&mut self.env, qp, &mut peer, stretch);
        if moved.is_some() {
            self.after(slot, &mut peer);
        }
        self.qps[slot as usize] = Some(peer);
        moved.unwrap_or(0)
    }
}

#[inline]
fn stretch_to(env: &mut Env, qp: &mut Qp, peer: &mut Qp, stretch: &Stretch) -> Option<usize> {
    let target = peer.rec.rc.stretch_target(stretch);
    let (rkey, addr) = target.filter(|_| are_peers(qp, peer))?;
    let mut source = Segments::new();
    qp.gather(env, &stretch.source, &mut source).ok()?;
    let placed = peer.with(env, |_, ctx| {
        ctx.host.write_remote(rkey, addr, Gathered::new(&source))
    });
    placed.ok()?;
    qp.with(env, |rc, ctx| rc.stretch_sent(ctx, stretch));
    peer.rec.rc.stretch_taken(stretch);
    peer.rec.counters.received_packets += u64::from(stretch.packets);
    env.counters.direct_packets += u64::from(stretch.packets);
    Some(stretch.len as usize)
}
