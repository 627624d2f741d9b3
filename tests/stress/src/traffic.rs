//! What a worker does with its links: moving data, and provoking errors of which it knows what must come.
use anyhow::{Context as _, Result, bail, ensure};
use rnic_abi::{Empty, Op, Sge, Wqe, event_kind};

use crate::link::{End, Expected, Kind, Link, Region, Round, data, request};
use crate::qp::FLUSHED;
use crate::session::names;
use crate::worker::Worker;

/// `enum ibv_wc_status`.
mod status {
    pub const LOCAL_QP_OPERATION: u8 = 2;
    pub const LOCAL_PROTECTION: u8 = 4;
    pub const REMOTE_INVALID_REQUEST: u8 = 9;
    pub const REMOTE_ACCESS: u8 = 10;
    pub const RNR_RETRY_EXCEEDED: u8 = 13;
}

/// `enum ibv_qp_state`.
const RTS: u8 = 3;
const SQD: u8 = 4;

impl Worker {
    /// Posts a few messages on a link that is idle.
    pub(crate) fn start_round(&mut self) -> Result<()> {
        let Some(index) = self.pick_usable() else {
            return Ok(());
        };
        let from = self.rng.below(2);
        let messages: Vec<(Kind, usize)> = (0..self.window())
            .map(|_| {
                let kind = [Kind::Send, Kind::Write, Kind::Read, Kind::FetchAdd][self.rng.below(4)];
                let len = if kind == Kind::FetchAdd { 8 } else { self.length() };
                (kind, len)
            })
            .collect();
        let round = Round {
            from,
            messages,
            seed: self.rng.next(),
            unverified: false,
        };
        self.post(index, &round)?;
        let from = round.from;
        self.links[index].round = Some(round);
        self.done.count("rounds of messages");
        if self.rng.below(4) == 0 {
            self.drain(index, from)?;
        }
        Ok(())
    }

    /// Stops the send queue of one end in the middle of what it does (SQD), and lets it go on.
    fn drain(&mut self, index: usize, which: usize) -> Result<()> {
        let (own, other) = self.ends(index, which)?;
        for state in [SQD, RTS] {
            let session = &mut self.sessions[own.side];
            let change = session.qps[&own.qp].to_state(state);
            let Err(refused) = session.request::<Empty>(Op::ModifyQp, &change, &[])? else {
                continue;
            };
            // In error, since a device has gone.
            let may_fail = [own, other].iter().any(|end| self.sessions[end.side].may_go());
            if may_fail || self.is_gone(own.side, "modify_qp", &refused)? {
                return Ok(());
            }
            bail!("modify_qp to {state}: errno {}: {}", refused.errno, refused.text);
        }
        self.done.count("send queues stopped and resumed");
        Ok(())
    }

    fn post(&mut self, index: usize, round: &Round) -> Result<()> {
        let (own, other) = self.ends(index, round.from)?;
        let first_id = self.next_id;
        self.next_id += round.messages.len() as u64;
        for (i, &(kind, len)) in round.messages.iter().enumerate() {
            let data = data(round.seed, i, len);
            let (source, target) = if kind.fetches() {
                (other, own)
            } else {
                (own, other)
            };
            self.region(source)?.fill(source.lane, i, &data);
            self.region(target)?.guard(target.lane, i);
            if kind == Kind::Send {
                let sge = self.region(other)?.sge(Region::incoming(other.lane, i), len);
                self.post_recv(other, first_id + i as u64, sge, Some(len as u32))?;
            }
        }
        for (i, &(kind, len)) in round.messages.iter().enumerate() {
            let (here, there) = (self.region(own)?, self.region(other)?);
            let (local, remote) = match kind {
                _ if kind.fetches() => (Region::incoming(own.lane, i), Region::outgoing(other.lane, i)),
                _ => (Region::outgoing(own.lane, i), Region::incoming(other.lane, i)),
            };
            let target = (there.memory.address() + remote as u64, there.key);
            let wqe = request(kind, first_id + i as u64, here.sge(local, len), target);
            self.put_send(own, &wqe, kind.fetches().then_some(len as u32))?;
        }
        self.publish(own)
    }

    /// Looks whether the round of a link has ended, and whether anything failed that may not.
    pub(crate) fn look_at(&mut self, index: usize) -> Result<()> {
        let link = &self.links[index];
        if link.spoiled || link.expected.is_some() {
            return Ok(());
        }
        let mut failed = false;
        for end in link.ends.iter().flatten() {
            let qp = self.sessions[end.side].qps.get(&end.qp).context("a live QP")?;
            failed |= qp.failed();
        }
        if failed && self.blame_removal(index)? {
            return Ok(());
        }
        for end in self.links[index].ends.iter().flatten() {
            let qp = self.sessions[end.side].qps.get(&end.qp).context("a live QP")?;
            ensure!(
                !qp.failed(),
                "QP {:#x}: send {:?}, receive {:?} failed, and nothing was done to it",
                qp.qpn,
                qp.send_failure,
                qp.recv_failure
            );
        }
        if self.outstanding(index) == 0
            && let Some(round) = self.links[index].round.take()
        {
            self.verify(index, &round)?;
        }
        Ok(())
    }

    fn verify(&mut self, index: usize, round: &Round) -> Result<()> {
        if round.unverified {
            return Ok(());
        }
        let (own, other) = self.ends(index, round.from)?;
        for (i, &(kind, len)) in round.messages.iter().enumerate() {
            let target = if kind.fetches() { own } else { other };
            let data = data(round.seed, i, len);
            self.region(target)?
                .compare(target.lane, i, &data)
                .map_err(|why| anyhow::anyhow!("message {i} ({kind:?} of {len} bytes): {why}"))?;
            ensure!(
                kind != Kind::FetchAdd || self.region(other)?.was_added(other.lane, i, &data),
                "message {i}: the addition was not made once"
            );
            self.done.add("bytes verified", len as u64);
        }
        self.done.add("messages verified", round.messages.len() as u64);
        Ok(())
    }

    /// Does something to a link that must fail in a way that is known.
    pub(crate) fn provoke(&mut self) -> Result<()> {
        let Some(index) = self.pick_usable() else {
            return Ok(());
        };
        let from = self.rng.below(2);
        let (own, other) = self.ends(index, from)?;
        let to = 1 - from;
        let id = self.next_id;
        self.next_id += 1;
        let len = 1 + self.rng.below(700);
        let (here, there) = (self.region(own)?, self.region(other)?);
        let local = here.sge(Region::outgoing(own.lane, 0), len);
        let remote = there.memory.address() + Region::incoming(other.lane, 0) as u64;
        let (key, end_of_region) = (there.key, there.memory.address() + there.memory.len() as u64);
        let mut events = [0; 2];
        let (what, statuses): (&'static str, &'static [u8]) = match self.rng.below(8) {
            0 => {
                let kind = [Kind::Write, Kind::Read][self.rng.below(2)];
                self.put_send(own, &request(kind, id, local, (remote, key ^ 0x5A)), None)?;
                events[to] = event_kind::QP_ACCESS_ERR;
                ("bad R_Keys", &[status::REMOTE_ACCESS])
            }
            1 => {
                let target = (end_of_region - self.rng.below(len) as u64, key);
                self.put_send(own, &request(Kind::Write, id, local, target), None)?;
                events[to] = event_kind::QP_ACCESS_ERR;
                ("WRITEs past the end", &[status::REMOTE_ACCESS])
            }
            2 => {
                let Some(&dead) = self.dead_keys[other.side].back() else {
                    return Ok(());
                };
                self.put_send(own, &request(Kind::Write, id, local, (remote, dead)), None)?;
                events[to] = event_kind::QP_ACCESS_ERR;
                ("dead R_Keys", &[status::REMOTE_ACCESS])
            }
            3 => {
                self.put_send(own, &request(Kind::Send, id, local, (0, 0)), None)?;
                ("receivers not ready", &[status::RNR_RETRY_EXCEEDED])
            }
            4 => {
                let bad = Sge {
                    lkey: local.lkey ^ 0x5A,
                    ..local
                };
                self.put_send(own, &request(Kind::Write, id, bad, (remote, key)), None)?;
                (
                    "bad L_Keys",
                    &[status::LOCAL_PROTECTION, status::LOCAL_QP_OPERATION],
                )
            }
            5 => {
                let wqe = Wqe {
                    opcode: 77,
                    ..request(Kind::Write, id, local, (remote, key))
                };
                self.put_send(own, &wqe, None)?;
                events[from] = event_kind::QP_FATAL;
                ("unknown opcodes", &[status::LOCAL_QP_OPERATION])
            }
            6 => {
                let session = &mut self.sessions[own.side];
                let qp = session.qps.get_mut(&own.qp).context("a live QP")?;
                qp.forge(&session.region);
                let (block, slot) = (qp.block, qp.slot());
                session.ring(block, slot);
                events[from] = event_kind::QP_FATAL;
                ("forged tails", &[])
            }
            _ => {
                let short = self.region(other)?.sge(Region::incoming(other.lane, 0), len - 1);
                self.post_recv(other, id, short, None)?;
                self.put_send(own, &request(Kind::Send, id, local, (0, 0)), None)?;
                events[to] = event_kind::QP_REQ_ERR;
                ("short receives", &[status::REMOTE_INVALID_REQUEST])
            }
        };
        for (which, end) in [(from, own), (to, other)] {
            let qp = self.sessions[end.side]
                .qps
                .get_mut(&end.qp)
                .context("a live QP")?;
            qp.events.explained |= events[which];
        }
        self.links[index].expected = Some(Expected {
            from,
            statuses,
            events,
            what,
        });
        self.done.count(what);
        if statuses.is_empty() {
            return Ok(());
        }
        self.publish(own)
    }

    /// Moves an idle QP with receives posted to the error state: all of them are flushed.
    fn flush(&mut self, index: usize) -> Result<()> {
        let which = self.rng.below(2);
        let (own, _) = self.ends(index, which)?;
        let sge = self.region(own)?.sge(Region::incoming(own.lane, 0), 64);
        for _ in 0..self.window() {
            let id = self.next_id;
            self.next_id += 1;
            self.post_recv(own, id, sge, None)?;
        }
        self.spoil(index);
        let session = &mut self.sessions[own.side];
        let change = session.qps[&own.qp].to_error();
        if let Err(refused) = session.request::<Empty>(Op::ModifyQp, &change, &[])? {
            bail!("modify_qp to ERR: errno {}: {}", refused.errno, refused.text);
        }
        self.wait("flushed receives", |worker| {
            worker.sessions[own.side].qps[&own.qp].outstanding() == 0
        })?;
        let failure = self.sessions[own.side].qps[&own.qp].recv_failure;
        ensure!(
            failure == Some(FLUSHED),
            "a receive ended with {failure:?}, and not flushed"
        );
        self.done.count("QPs flushed");
        Ok(())
    }

    /// Waits for all that must still come of some link.
    pub(crate) fn settle_one(&mut self) -> Result<()> {
        if self.rng.below(3) == 0
            && let Some(index) = self.pick_usable()
        {
            return self.flush(index);
        }
        match self.pick(self.links.len()) {
            Some(index) => self.settle(index),
            None => Ok(()),
        }
    }

    /// Waits for all that must still come of a link, and compares.
    pub(crate) fn settle(&mut self, index: usize) -> Result<()> {
        if self.links[index].spoiled {
            // Whether anything comes depends on what was taken away, and when.
            return Ok(());
        }
        let Some(expected) = self.links[index].expected else {
            return self.wait("a round of messages", |worker| {
                let link = &worker.links[index];
                link.round.is_none()
            });
        };
        let what = format!(
            "{}: completions and events {:?}",
            expected.what,
            expected.events.map(names)
        );
        self.wait(&what, |worker| {
            let link = &worker.links[index];
            let events = link.ends.iter().zip(expected.events);
            let seen = worker.outstanding(index) == 0
                && events.into_iter().all(|(end, kinds)| {
                    let qp = end.and_then(|end| worker.sessions[end.side].qps.get(&end.qp));
                    qp.is_none_or(|qp| qp.events.seen & kinds == kinds)
                });
            seen || link.spoiled
        })
        .with_context(|| format!("{:?}", self.describe(index)))?;
        if self.links[index].spoiled {
            // Its device was removed meanwhile.
            return Ok(());
        }
        let (own, _) = self.ends(index, expected.from)?;
        let status = self.sessions[own.side]
            .qps
            .get(&own.qp)
            .and_then(|qp| qp.send_failure);
        if !expected.statuses.is_empty() && !status.is_some_and(|status| expected.statuses.contains(&status))
        {
            ensure!(
                self.blame_removal(index)?,
                "{}: the request ended with {status:?} and not {:?}",
                expected.what,
                expected.statuses
            );
            return Ok(());
        }
        self.done.count("provoked errors seen to the end");
        self.spoil(index);
        Ok(())
    }

    fn describe(&self, index: usize) -> Vec<String> {
        let ends = self.links[index].ends.iter().flatten();
        let qps = ends.filter_map(|end| self.sessions[end.side].qps.get(&end.qp));
        qps.map(|qp| format!("{qp:?}")).collect()
    }

    /// Makes a CQ overflow: it says so once, and the QP that fed it fails once.
    pub(crate) fn overflow(&mut self, side: usize) -> Result<()> {
        let Some(small) = self.make_cq(side, Some(4))? else {
            return Ok(());
        };
        if let Some(cq) = self.sessions[side].cqs.get_mut(&small) {
            cq.muted = true;
            cq.events.explained = event_kind::CQ_ERR;
        }
        let depth = self.sessions[side].cqs[&small].depth as usize;
        let (a, b) = (
            self.make_end(side, small, small)?,
            self.make_end(side, small, small)?,
        );
        let (Some(a), Some(b)) = (a, b) else {
            for end in [a, b].into_iter().flatten() {
                self.destroy_end(end)?;
            }
            return self.destroy_cq(side, small);
        };
        let index = self.links.len();
        self.connect(a, b)?;
        let whole = !self.links[index].spoiled;
        self.spoil(index);
        if whole && depth < 12 {
            for _ in 0..depth + 3 {
                let id = self.next_id;
                self.next_id += 1;
                let there = self.region(b)?;
                let target = there.memory.address() + Region::incoming(b.lane, 0) as u64;
                let local = self.region(a)?.sge(Region::outgoing(a.lane, 0), 8);
                let wqe = request(Kind::Write, id, local, (target, self.region(b)?.key));
                self.put_send(a, &wqe, None)?;
            }
            self.publish(a)?;
            if self.rng.below(4) > 0 {
                self.wait("the events of a CQ overflow", |worker| {
                    let session = &worker.sessions[side];
                    let lost = session.lost;
                    lost || session.cqs[&small].events.seen & event_kind::CQ_ERR != 0
                        && session.qps[&a.qp].events.seen & event_kind::QP_FATAL != 0
                })?;
            }
            self.done.count("CQs overflown");
        }
        for which in 0..2 {
            self.drop_this_end(index, which)?;
        }
        self.links.swap_remove(index);
        self.destroy_cq(side, small)
    }

    /// A link that is idle and whole.
    fn pick_usable(&mut self) -> Option<usize> {
        let usable: Vec<usize> = (0..self.links.len())
            .filter(|index| self.links[*index].is_usable())
            .collect();
        self.pick(usable.len()).map(|choice| usable[choice])
    }

    fn ends(&self, index: usize, from: usize) -> Result<(End, End)> {
        let Link { ends, .. } = &self.links[index];
        let own = ends[from].context("both ends live")?;
        let other = ends[1 - from].context("both ends live")?;
        Ok((own, other))
    }

    fn region(&self, end: End) -> Result<&Region> {
        let mut regions = self.regions[end.side].iter();
        regions.find(|r| r.handle == end.mr).context("the region lives")
    }

    fn outstanding(&self, index: usize) -> usize {
        let ends = self.links[index].ends.iter().flatten();
        let qps = ends.filter_map(|end| self.sessions[end.side].qps.get(&end.qp));
        qps.map(|qp| qp.outstanding()).sum()
    }

    fn put_send(&mut self, end: End, wqe: &Wqe, len: Option<u32>) -> Result<()> {
        let session = &mut self.sessions[end.side];
        let qp = session.qps.get_mut(&end.qp).context("a live QP")?;
        ensure!(qp.send_room() > 0, "no room in the send queue");
        qp.put_send(&session.region, wqe, len);
        Ok(())
    }

    pub(crate) fn post_recv(&mut self, end: End, id: u64, sge: Sge, len: Option<u32>) -> Result<()> {
        let session = &mut self.sessions[end.side];
        let qp = session.qps.get_mut(&end.qp).context("a live QP")?;
        if qp.post_recv(&session.region, id, sge, len) {
            let (block, slot) = (qp.block, qp.slot());
            session.ring(block, slot);
        }
        Ok(())
    }

    fn publish(&self, end: End) -> Result<()> {
        let session = &self.sessions[end.side];
        let qp = session.qps.get(&end.qp).context("a live QP")?;
        if qp.publish(&session.region) {
            session.ring(qp.block, qp.slot());
        }
        Ok(())
    }
}
