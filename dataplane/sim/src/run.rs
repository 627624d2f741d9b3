//! Plays one scenario in virtual time.

use crate::check::{Checker, Verdict, outcome_of};
use crate::memory::SimSrq;
use crate::network::Network;
use crate::node::{Node, connect_at, connect_xrc};
use crate::rng::Rng;
use crate::scenario::{
    ATOMIC_BASE, ATOMIC_KEY, FOREIGN_SRQ, Injected, NO_KEY, READ_BASE, READ_KEY, RECV_ID, Recv, SRQS,
    Scenario, WRITE_BASE, WRITE_KEY, XRCD, bytes_of,
};
use crate::watch::Watch;
use crate::window;
use rnic_transport::{
    Access, EventKind, PostError, QpAttr, QpAttrMask, QpState, RcQp, Received, RecvWqe, SendWr, Time,
    WcStatus, WrOpcode,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Steps after which a run counts as endless.
const MAX_STEPS: u32 = 400_000;
/// Virtual time after which a run counts as hung: every timer of every retry fits many times.
const MAX_TIME: Time = Time(60_000_000_000);

/// How a run ended.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Status of the request that failed, per side.
    pub failed: [Option<WcStatus>; 2],
    /// Packets handed to the network.
    pub packets: u64,
    /// Requests that completed, per side, flushed ones included.
    pub requests: [usize; 2],
    /// The first so many of them succeeded, at least.
    pub succeeded: [usize; 2],
    /// An error was built in.
    pub injected: bool,
    /// Times that a side was drained in SQD.
    pub drains: usize,
    /// Virtual nanoseconds.
    pub nanos: u64,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    PostRecv,
    PostSend,
    Poll,
    Drain,
    Resume,
}

struct World<'a> {
    scenario: &'a Scenario,
    nodes: [Node; 2],
    checkers: [Checker; 2],
    watches: [Watch; 2],
    network: Network,
    rng: Rng,
    /// Of its own, so that marks change nothing else.
    rng_marks: Rng,
    agenda: BinaryHeap<Reverse<(Time, u64, usize, Event)>>,
    added: u64,
    polling: [bool; 2],
    posted: [usize; 2],
    recvs_posted: [usize; 2],
    /// Times that a side went to SQD.
    drained: [usize; 2],
    /// Packets troubled on the way until the last answer that took a side's requests further.
    troubled: [u64; 2],
    now: Time,
    outcome: Outcome,
}

/// Plays a scenario. The error says what was violated.
pub fn run(scenario: &Scenario) -> Result<Outcome, String> {
    run_with(scenario, |_| {})
}

/// The same with QPs changed by `adjust` before they connect.
pub fn run_with(scenario: &Scenario, adjust: impl Fn(&mut RcQp)) -> Result<Outcome, String> {
    let mut world = World::new(scenario, adjust);
    world
        .play()
        .map_err(|what| format!("at {} ns: {what}", world.now.0))?;
    Ok(world.outcome)
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, adjust: impl Fn(&mut RcQp)) -> Self {
        let attributes = |attr: &mut QpAttr| {
            attr.timeout = scenario.timeout;
            attr.retry_cnt = scenario.retry_cnt;
            attr.rnr_retry = scenario.rnr_retry;
            attr.min_rnr_timer = scenario.min_rnr_timer;
            attr.max_rd_atomic = scenario.max_rd_atomic;
            attr.max_dest_rd_atomic = scenario.max_rd_atomic;
            attr.selective = scenario.selective;
        };
        let (a, mut b) = if scenario.xrc {
            connect_xrc(XRCD, scenario.mtu, scenario.psns, attributes)
        } else {
            connect_at(scenario.mtu, scenario.psns, attributes)
        };
        if scenario.xrc {
            SRQS.iter().for_each(|srqn| b.host.add_srq(*srqn, XRCD));
            // Buffers of receive WQEs are those of the plan.
            let wqe = RecvWqe {
                wr_id: RECV_ID - 1,
                capacity: 1 << 16,
                data: u32::MAX,
            };
            b.host.srqs.extend([SimSrq {
                number: FOREIGN_SRQ,
                xrcd: XRCD + 1,
                queue: [wqe].into(),
            }]);
        }
        let mut nodes = [a, b];
        let short = Rng::new(scenario.seed ^ 0x540).chance(500);
        let sends_short = Rng::new(scenario.seed ^ 0x5047).chance(500);
        for (node, plan) in nodes.iter_mut().zip(&scenario.plans) {
            node.qp = node
                .qp
                .with_limits(scenario.limits)
                .with_congestion(&scenario.congestion);
            adjust(&mut node.qp);
            node.sq = vec![SendWr::default(); scenario.ring_len];
            node.host.grace = scenario.grace;
            node.sends_short = sends_short;
            node.short = short;
            let write = vec![0; plan.write_region as usize];
            node.host
                .register(WRITE_KEY, WRITE_BASE, write, window::access(WRITE_KEY));
            let read = plan.read_region.clone();
            node.host
                .register(READ_KEY, READ_BASE, read, window::access(READ_KEY));
        }
        for side in 0..2 {
            let words = bytes_of(&scenario.plans[side].words[0]);
            nodes[1 - side]
                .host
                .register(ATOMIC_KEY, ATOMIC_BASE, words, window::access(ATOMIC_KEY));
            for op in &scenario.plans[side].ops {
                let host = match op.opcode {
                    WrOpcode::SendInv => &mut nodes[1 - side].host,
                    WrOpcode::LocalInv | WrOpcode::BindMw => &mut nodes[side].host,
                    _ => continue,
                };
                match op.opcode {
                    _ if op.value == NO_KEY => {}
                    WrOpcode::BindMw => host.alloc_window(window::number(op.value)),
                    _ if window::is_key(op.value) => {}
                    _ => host.register(op.value, 0, Vec::new(), Access::NONE),
                }
                if op.opcode == WrOpcode::LocalInv {
                    host.own_keys.push(op.value);
                }
            }
        }
        let mut world = World {
            scenario,
            nodes,
            checkers: [0, 1].map(|side| Checker::new(&scenario.plans[side])),
            watches: [0, 1].map(|side| Watch::new(scenario, side)),
            network: Network::new(scenario.faults, Rng::new(scenario.seed ^ 0x5EED)),
            rng: Rng::new(scenario.seed ^ 0xB00),
            rng_marks: Rng::new(scenario.seed ^ 0x3A2C),
            agenda: BinaryHeap::new(),
            added: 0,
            polling: [false; 2],
            posted: [0; 2],
            recvs_posted: [0; 2],
            drained: [0; 2],
            troubled: [0; 2],
            now: Time(0),
            outcome: Outcome::default(),
        };
        world.load();
        world
    }

    /// Puts buffers and the whole plan in place.
    fn load(&mut self) {
        for side in 0..2 {
            let plan = &self.scenario.plans[side];
            for recv in &plan.recvs {
                self.add(Time(recv.at), side, Event::PostRecv);
            }
            for op in &plan.ops {
                let bytes = if op.kind().fetches() {
                    vec![0xEE; op.data.len()]
                } else {
                    op.data.clone()
                };
                self.nodes[side].host.add_send_buf(bytes);
                self.add(Time(op.at), side, Event::PostSend);
            }
            let Some((at, kind)) = plan.injected else { continue };
            match kind {
                Injected::LocalSend | Injected::LocalRead => self.nodes[side].host.bad_send.push(at as u32),
                Injected::LocalRecv => {
                    self.nodes[1 - side]
                        .host
                        .bad_recv
                        .extend(plan.ops[at].recv.map(|recv| recv as u32));
                }
                _ => {}
            }
            self.outcome.injected = true;
        }
        for (side, at) in &self.scenario.drains {
            self.add(Time(*at), *side, Event::Drain);
        }
    }

    fn add(&mut self, at: Time, side: usize, event: Event) {
        self.added += 1;
        self.agenda.push(Reverse((at, self.added, side, event)));
    }

    fn play(&mut self) -> Verdict {
        let mut steps = 0;
        while let Some(next) = self.next_time() {
            steps += 1;
            if steps > MAX_STEPS || next > MAX_TIME {
                return Err(format!("hangs: {steps} steps, QPs in {:?}", self.states()));
            }
            self.now = self.now.max(next);
            self.step()?;
        }
        self.finish()
    }

    fn next_time(&self) -> Option<Time> {
        let agenda = self.agenda.peek().map(|Reverse((at, ..))| *at);
        let timers = self.nodes.iter().filter_map(|node| node.qp.poll_timeout());
        timers.chain(agenda).chain(self.network.next_arrival()).min()
    }

    /// One thing that is due now, and what follows from it.
    fn step(&mut self) -> Verdict {
        let now = self.now;
        for node in &mut self.nodes {
            node.now = now;
        }
        let side = if let Some((to, packet)) = self.network.arrive(now) {
            if self.rng_marks.chance(self.scenario.marks) && self.nodes[1 - to].qp.is_ecn_capable() {
                self.nodes[to].with(|qp, _| qp.marked(packet.headers.bth.opcode, now));
            }
            let outcome = self.nodes[to].receive(&packet);
            if outcome == Received::Accepted && packet.takes_further() && self.checkers[to].failed.is_none() {
                self.troubled[to] = self.network.troubled;
            }
            self.watches[to].received(&self.nodes[to], &packet, outcome);
            to
        } else if self.agenda.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, _, side, event))) = self.agenda.pop() else {
                return Ok(());
            };
            match event {
                Event::PostRecv => self.post_recv(side),
                Event::PostSend => self.post_send(side)?,
                Event::Poll => self.polling[side] = false,
                Event::Drain => self.drain(side),
                Event::Resume => self.resume(side)?,
            }
            side
        } else {
            let due = |node: &Node| node.qp.poll_timeout().is_some_and(|at| at <= now);
            let side = usize::from(!due(&self.nodes[0]));
            self.nodes[side].wait(0);
            side
        };
        self.service(side)?;
        for side in 0..2 {
            let (from, to) = (&self.nodes[side], &self.nodes[1 - side]);
            let plan = &self.scenario.plans[side];
            self.checkers[side]
                .check(plan, from, to)
                .map_err(|what| format!("side {side}: {what}"))?;
        }
        Ok(())
    }

    fn post_recv(&mut self, side: usize) {
        let number = self.recvs_posted[side];
        self.recvs_posted[side] += 1;
        let Recv { capacity, srqn, .. } = self.scenario.plans[side].recvs[number];
        let (host, wr_id) = (&mut self.nodes[side].host, RECV_ID + number as u64);
        if self.scenario.xrc {
            host.post_srq_recv(srqn, wr_id, capacity);
        } else {
            host.post_recv(wr_id, capacity);
        }
    }

    fn post_send(&mut self, side: usize) -> Verdict {
        let number = self.posted[side];
        let op = &self.scenario.plans[side].ops[number];
        let waits = |after| self.checkers[1 - side].succeeded <= after;
        if op.after.is_some_and(waits) && !self.waits_in_vain(side) {
            self.post_later(side);
            return Ok(());
        }
        let wr = SendWr {
            wr_id: number as u64,
            opcode: op.opcode,
            flags: op.flags,
            imm_or_rkey: op.value,
            remote_addr: op.addr,
            rkey: op.rkey,
            compare_add: op.operands.0,
            swap: op.operands.1,
            length: op.data.len() as u32,
            data: number as u32,
            remote_srqn: op.srqn,
            ..SendWr::default()
        };
        match self.nodes[side].post(wr) {
            Ok(()) => self.posted[side] += 1,
            Err(PostError::Full) => self.post_later(side),
            Err(err) => return Err(format!("side {side} cannot post: {err}")),
        }
        Ok(())
    }

    /// Whether what a side waits for cannot come any more, and nothing of it is on its way either.
    fn waits_in_vain(&self, side: usize) -> bool {
        let failed = self.states().map(|state| state == QpState::Err);
        failed[side] || failed[1 - side] && self.network.next_arrival().is_none()
    }

    fn post_later(&mut self, side: usize) {
        let later = self.now.saturating_add(self.rng.between(1_000, 50_000));
        self.add(later, side, Event::PostSend);
    }

    /// Goes to SQD, and back once drained.
    fn drain(&mut self, side: usize) {
        let attr = QpAttr {
            state: QpState::Sqd,
            sqd_async_notify: true,
            ..QpAttr::default()
        };
        let mask = QpAttrMask::STATE | QpAttrMask::EN_SQD_ASYNC_NOTIFY;
        if self.nodes[side].qp.state() == QpState::Rts && self.nodes[side].modify(&attr, mask).is_ok() {
            self.drained[side] += 1;
            self.resume_later(side);
        }
    }

    fn resume_later(&mut self, side: usize) {
        let later = self.now.saturating_add(self.rng.between(10_000, 200_000));
        self.add(later, side, Event::Resume);
    }

    fn resume(&mut self, side: usize) -> Verdict {
        let node = &mut self.nodes[side];
        if node.qp.state() != QpState::Sqd {
            return Ok(());
        }
        let events = node
            .event_kinds()
            .into_iter()
            .filter(|kind| *kind == EventKind::SqDrained)
            .count();
        let draining = node.qp.query().sq_draining;
        if events + usize::from(draining) != self.drained[side] {
            return Err(format!(
                "side {side}: {events} SQ_DRAINED of {} drains",
                self.drained[side]
            ));
        }
        if draining {
            self.resume_later(side);
            return Ok(());
        }
        node.set_state(QpState::Rts).map_err(|err| err.to_string())
    }

    /// Lets a node send for a while, as an engine with a budget would.
    fn service(&mut self, side: usize) -> Verdict {
        for _ in 0..self.rng.between(1, self.scenario.burst) {
            let Some(packet) = self.nodes[side].transmit() else {
                break;
            };
            self.watches[side]
                .sent(&self.scenario.plans[side], &self.nodes[side], &packet)
                .map_err(|what| format!("side {side}: {what}"))?;
            self.outcome.packets += 1;
            self.network.send(self.now, 1 - side, packet);
        }
        let node = &mut self.nodes[side];
        let more = node.qp.state() == QpState::Err && node.with(|qp, ctx| qp.flush(ctx, 2));
        if (more || node.qp.has_work()) && !self.polling[side] {
            self.polling[side] = true;
            let soon = self.now.saturating_add(self.rng.between(100, 3_000));
            self.add(soon, side, Event::Poll);
        }
        Ok(())
    }

    fn states(&self) -> [QpState; 2] {
        [0, 1].map(|side| self.nodes[side].qp.state())
    }

    fn finish(&mut self) -> Verdict {
        for side in 0..2 {
            let (from, to) = (&self.nodes[side], &self.nodes[1 - side]);
            let plan = &self.scenario.plans[side];
            let say = |what: String| format!("side {side} at the end: {what}");
            self.checkers[side].finish(plan, from, to).map_err(say)?;
            self.check_status(side).map_err(say)?;
            self.outcome.failed[side] = self.checkers[side].failed.map(|(_, status)| status);
            self.outcome.requests[side] = plan.ops.len();
            self.outcome.succeeded[side] = self.checkers[side].succeeded;
        }
        self.outcome.drains = self.drained.iter().sum();
        self.outcome.nanos = self.now.0;
        Ok(())
    }

    /// The error, if any, is one that this scenario can explain.
    fn check_status(&self, side: usize) -> Verdict {
        let (node, peer) = (&self.nodes[side], &self.nodes[1 - side]);
        let checker = &self.checkers[side];
        let injected = self.scenario.plans[side].injected;
        let peer_in_error = peer.qp.state() == QpState::Err;
        // Every retry that fails takes a packet that met trouble; that of the first may have been sent
        // before.
        let troubled = self.network.troubled - self.troubled[side];
        let retries = u64::from(self.scenario.retry_cnt);
        if let Some((at, status)) = checker.failed {
            let explained = match status {
                WcStatus::RetryExcErr => troubled >= retries || peer_in_error,
                WcStatus::RnrRetryExcErr if self.scenario.slow_receiver => self.scenario.rnr_retry < 7,
                _ => injected.is_some_and(|(bad, kind)| bad == at && outcome_of(kind).0 == status),
            };
            if !explained {
                return Err(format!(
                    "request {at} failed with {status:?}, which nothing explains"
                ));
            }
        }
        let own = self.scenario.plans[1 - side]
            .injected
            .map(|(_, kind)| outcome_of(kind));
        let error_events: Vec<EventKind> = node
            .event_kinds()
            .into_iter()
            .filter(|kind| !matches!(kind, EventKind::CommEst | EventKind::SqDrained))
            .collect();
        match (error_events.as_slice(), own) {
            ([], _) => {}
            ([kind], Some((_, _, Some(wanted)))) if *kind == wanted => {}
            (events, _) => return Err(format!("events {events:?}, which nothing explains")),
        }
        if let Some(status) = self.checkers[1 - side].recv_failed
            && own.is_none_or(|(_, wanted, _)| wanted != Some(status))
        {
            return Err(format!(
                "a receive failed with {status:?}, which nothing explains"
            ));
        }
        let in_error = node.qp.state() == QpState::Err;
        // What is posted to XRC SRQs is nobody's to flush.
        if in_error
            && !self.scenario.xrc
            && self.checkers[1 - side].recvs_completed() != self.recvs_posted[side]
        {
            return Err("receive WQEs were not flushed".into());
        }
        let erred = checker.failed.is_some() || checker.flushed > 0 || !error_events.is_empty();
        if in_error && !erred {
            return Err("the QP is in ERR and never said why".into());
        }
        if !in_error && erred {
            return Err(format!("the QP failed, but is in {}", node.qp.state()));
        }
        Ok(())
    }
}
