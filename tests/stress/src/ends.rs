//! QPs and the links between them: made, connected or half connected, and destroyed.
use anyhow::{Context as _, Result, bail, ensure};
use rnic_abi::{CreateQp, CreateQpReply, Empty, Op, event_kind};

use crate::link::{ERRORS, End, Link, Region};
use crate::objects::UNREACHABLE;
use crate::qp::{Peer, Qp, UNITS};
use crate::worker::{Home, Worker, gid};

impl Worker {
    pub(crate) fn make_link(&mut self) -> Result<()> {
        // Between the devices, or on one of them.
        let sides = match self.home {
            Home::Both => [[0, 0], [1, 1]][self.rng.below(2)],
            Home::Steady | Home::Restless => [[0, 1], [1, 0], [0, 0], [1, 1]][self.rng.below(4)],
        };
        if sides.iter().any(|side| !self.is_there(*side)) {
            return Ok(());
        }
        let cqs: Vec<Vec<u32>> = sides.iter().map(|side| self.sorted_cqs(*side)).collect();
        let mut ends = [None; 2];
        for (end, side) in sides.into_iter().enumerate() {
            let (Some(send), Some(recv)) = (self.pick(cqs[end].len()), self.pick(cqs[end].len())) else {
                break;
            };
            ends[end] = self.make_end(side, cqs[end][send], cqs[end][recv])?;
            if ends[end].is_none() {
                break;
            }
        }
        let [Some(a), Some(b)] = ends else {
            for end in ends.into_iter().flatten() {
                self.destroy_end(end)?;
            }
            return Ok(());
        };
        self.connect(a, b)
    }

    /// A QP with memory.
    pub(crate) fn make_end(&mut self, side: usize, send_cq: u32, recv_cq: u32) -> Result<Option<End>> {
        let free = |region: &Region| region.lanes.contains(&false);
        let candidates: Vec<usize> = (0..self.regions[side].len())
            .filter(|i| free(&self.regions[side][*i]))
            .collect();
        let Some(choice) = self.pick(candidates.len()) else {
            return Ok(None);
        };
        let index = candidates[choice];
        let (pd, mr) = (self.regions[side][index].pd, self.regions[side][index].handle);
        let session = &mut self.sessions[side];
        session.graves.close(&session.region)?;
        let arg = CreateQp {
            pd,
            send_cq,
            recv_cq,
            qp_type: 2,
            sq_units: UNITS,
            rq_units: UNITS,
            ..CreateQp::default()
        };
        let answer = session.request::<CreateQpReply>(Op::CreateQp, &arg, &[]);
        let Some(made) = self.make(side, "QPs made", answer)? else {
            return Ok(None);
        };
        let psn = self.rng.next() as u32 & 0xFF_FFFF;
        let mut qp = Qp::new(&made, pd, send_cq, recv_cq, psn);
        qp.events.explained = event_kind::COMM_EST;
        let session = &mut self.sessions[side];
        for cq in [send_cq, recv_cq] {
            if let Some(cq) = session.cqs.get_mut(&cq) {
                cq.users += 1;
            }
        }
        ensure!(
            session.qps.insert(made.handle, qp).is_none(),
            "handle {:#x} was given out twice",
            made.handle
        );
        self.use_pd(side, pd, 1);
        let lanes = &mut self.regions[side][index].lanes;
        let lane = lanes.iter().position(|used| !used).unwrap_or_default();
        lanes[lane] = true;
        Ok(Some(End {
            side,
            qp: made.handle,
            mr,
            lane,
        }))
    }

    /// Connects two ends, or stops half way.
    pub(crate) fn connect(&mut self, a: End, b: End) -> Result<()> {
        let mtu = 1 + self.rng.below(3) as u8;
        let steps = if self.rng.below(10) == 0 {
            self.rng.below(3)
        } else {
            3
        };
        // Half connected: good for being destroyed.
        let mut spoiled = steps < 3;
        for (own, other) in [(a, b), (b, a)] {
            spoiled |= !self.connect_end(own, other, mtu, steps)?;
        }
        self.done.count("QP pairs connected");
        self.links.push(Link {
            ends: [Some(a), Some(b)],
            round: None,
            expected: None,
            spoiled,
        });
        Ok(())
    }

    /// The first transitions of one end; false when a device has been removed.
    fn connect_end(&mut self, own: End, other: End, mtu: u8, steps: usize) -> Result<bool> {
        let session = &self.sessions[other.side];
        let peer = session.qps.get(&other.qp).context("a live QP")?;
        let peer = Peer {
            qpn: peer.qpn,
            psn: peer.psn,
            gid: gid(session.port),
        };
        let transitions = self.sessions[own.side].qps[&own.qp].transitions(peer, mtu);
        for change in &transitions[..steps] {
            let session = &mut self.sessions[own.side];
            let Err(refused) = session.request::<Empty>(Op::ModifyQp, change, &[])? else {
                continue;
            };
            if self.is_gone(own.side, "modify_qp", &refused)? {
                return Ok(false);
            }
            let session = &mut self.sessions[other.side];
            if refused.errno == UNREACHABLE && session.may_go() {
                // Its address went with it.
                session.refused_as_gone("modify_qp of the peer")?;
                return Ok(false);
            }
            bail!("modify_qp: errno {}: {}", refused.errno, refused.text);
        }
        Ok(true)
    }

    /// Destroys one end of a link, whatever it is doing.
    pub(crate) fn drop_end(&mut self) -> Result<()> {
        let Some(index) = self.pick(self.links.len()) else {
            return Ok(());
        };
        // Half of the time only after everything due has come.
        if self.rng.below(2) == 0 {
            self.settle(index)?;
        }
        let first = self.rng.below(2);
        let which = [first, 1 - first]
            .into_iter()
            .find(|w| self.links[index].ends[*w].is_some());
        let both = self.rng.below(2) == 0;
        if let Some(which) = which {
            self.spoil(index);
            self.drop_this_end(index, which)?;
            if both && self.links[index].ends[1 - which].is_some() {
                self.drop_this_end(index, 1 - which)?;
            }
        }
        if self.links[index].ends.iter().all(Option::is_none) {
            self.links.swap_remove(index);
        }
        Ok(())
    }

    pub(crate) fn drop_this_end(&mut self, index: usize, which: usize) -> Result<()> {
        if let Some(end) = self.links[index].ends[which].take() {
            self.destroy_end(end)?;
        }
        Ok(())
    }

    pub(crate) fn destroy_end(&mut self, end: End) -> Result<()> {
        let pd = self.sessions[end.side].qps.get(&end.qp).map(|qp| qp.pd);
        let answer = self.sessions[end.side].destroy(Op::DestroyQp, end.qp);
        self.unmake("QPs destroyed", false, answer)?;
        self.use_pd(end.side, pd.context("a live QP")?, -1);
        let mut regions = self.regions[end.side].iter_mut();
        if let Some(region) = regions.find(|region| region.handle == end.mr) {
            region.lanes[end.lane] = false;
        }
        Ok(())
    }

    /// Whatever a link does from now on may fail, at either end.
    pub(crate) fn spoil(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.spoiled = true;
        link.expected = None;
        if let Some(round) = &mut link.round {
            round.unverified = true;
        }
        for end in link.ends.into_iter().flatten() {
            if let Some(qp) = self.sessions[end.side].qps.get_mut(&end.qp) {
                qp.events.explained |= ERRORS;
            }
        }
    }
}
