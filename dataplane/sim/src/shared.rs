//! Schedules of an SRQ: several connections whose receivers draw their receive WQEs from one queue, in which WQEs come late
//! and one of whose QPs may fail.

use crate::memory::Effect;
use crate::network::{Faults, Network};
use crate::node::{GRH_BYTE, Node, Packet, QKEY, connect_as};
use crate::rng::Rng;
use rnic_transport::{
    Access, Completion, CompletionFlags, EventKind, GRH_AREA, QpState, QpType, Queue, RcQp, RecvWqe,
    SendFlags, SendWr, Time, WcOpcode, WcStatus, WrOpcode,
};
use rnic_wire::Mtu;
use std::cmp::Ordering;
use std::collections::VecDeque;

/// Key and base address of each receiver's region.
const KEY: u32 = 0x100;
const BASE: u64 = 0x7F12_3456_7000;
/// A key that names nothing.
const NO_KEY: u32 = 0xDEAD;
/// Steps after which a run counts as endless.
const MAX_STEPS: u32 = 300_000;
/// When the network stops losing packets: by then no retry count can be used up.
const HEALED: Time = Time(4_000_000);
/// Local ACK timeout code: 1 ms.
const TIMEOUT: u8 = 8;

/// Everything that one seed decides.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where it came from.
    pub seed: u64,
    /// Path MTU.
    pub mtu: Mtu,
    /// The network.
    pub faults: Faults,
    /// Packets sent by a QP before something else happens, at most.
    pub burst: u64,
    lanes: Vec<Lane>,
    /// When the receive WQEs are posted to the SRQ.
    recvs: Vec<Time>,
    /// Bytes of each.
    capacity: u32,
}

/// One connection: what is sent, and by what service.
#[derive(Clone, Debug)]
struct Lane {
    qp_type: QpType,
    psns: [u32; 2],
    messages: Vec<Message>,
    /// In place of this message comes an atomic whose key names nothing.
    fails: Option<usize>,
}

#[derive(Clone)]
struct Message {
    opcode: WrOpcode,
    data: Vec<u8>,
    /// Where a WRITE goes, or what a READ or an atomic is for.
    addr: u64,
    at: Time,
}

/// What happened.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedTally {
    /// Connections.
    pub lanes: usize,
    /// Those made to fail.
    pub failed: usize,
    /// Messages that take a receive WQE.
    pub messages: usize,
    /// Those delivered.
    pub delivered: usize,
    /// Times that a message met an empty SRQ on a reliable connection.
    pub not_ready: usize,
    /// Packets.
    pub packets: usize,
}

type Verdict<T = ()> = Result<T, String>;

impl Shared {
    /// The scenario of a seed.
    pub fn new(seed: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0x5429);
        let mtu = rng.pick(&[Mtu::M256, Mtu::M256, Mtu::M512]);
        let level = |rng: &mut Rng| rng.pick(&[0, 0, 0, 10, 50, 100]);
        let faults = Faults {
            loss: level(rng),
            corruption: level(rng) / 4,
            duplication: level(rng),
            reordering: level(rng),
            delay: rng.between(500, 20_000),
            late_by: rng.pick(&[1_000, 20_000, 100_000]),
        };
        let count = rng.between(2, 4);
        let mut lanes: Vec<Lane> = (0..count).map(|_| lane(rng, mtu)).collect();
        if rng.chance(300) {
            let lane = &mut lanes[rng.clone().below(count) as usize];
            if lane.qp_type == QpType::Rc {
                lane.fails = Some(rng.below(lane.messages.len() as u64) as usize);
            }
        }
        let takers = lanes
            .iter()
            .flat_map(|lane| &lane.messages)
            .filter(|m| m.takes_receive());
        // The network may double datagrams, and a message given up may hold one.
        let datagrams = lanes.iter().filter(|lane| lane.qp_type == QpType::Ud);
        let doubled: usize = datagrams.map(|lane| lane.messages.len()).sum();
        let supply = takers.count() + doubled + lanes.len();
        let late = rng.pick(&[0, 0, 10_000, 60_000]);
        let mut at = Time(0);
        let recvs = (0..supply).map(|_| {
            at = at.saturating_add(rng.below(late + 1));
            at
        });
        let recvs = recvs.collect();
        let longest = lanes.iter().flat_map(|lane| &lane.messages).map(|m| m.data.len());
        Shared {
            seed,
            mtu,
            faults,
            burst: rng.between(1, 12),
            recvs,
            capacity: longest.max().unwrap_or(0) as u32 + GRH_AREA as u32,
            lanes,
        }
    }

    /// Plays it. The error says what was violated.
    pub fn run(&self) -> Verdict<SharedTally> {
        self.run_with(|_| {})
    }

    /// The same with QPs changed by `adjust` before they are used.
    pub fn run_with(&self, adjust: impl Fn(&mut RcQp)) -> Verdict<SharedTally> {
        let mut world = World::new(self, adjust);
        let played = world.play().and_then(|()| world.judge());
        played.map_err(|what| format!("at {} ns: {what}", world.now.0))
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (opcode, len, at) = (self.opcode, self.data.len(), self.at.0);
        write!(f, "{opcode:?} of {len} bytes at {at} ns")
    }
}

impl Message {
    fn takes_receive(&self) -> bool {
        matches!(
            self.opcode,
            WrOpcode::Send | WrOpcode::SendImm | WrOpcode::WriteImm
        )
    }
}

fn lane(rng: &mut Rng, mtu: Mtu) -> Lane {
    let qp_type = rng.pick(&[QpType::Rc, QpType::Rc, QpType::Rc, QpType::Uc, QpType::Ud]);
    let opcodes: &[WrOpcode] = match qp_type {
        QpType::Ud => &[WrOpcode::SendImm],
        QpType::Uc => &[WrOpcode::SendImm, WrOpcode::WriteImm],
        _ => &[
            WrOpcode::Send,
            WrOpcode::SendImm,
            WrOpcode::WriteImm,
            WrOpcode::Write,
            WrOpcode::Read,
            WrOpcode::FetchAdd,
        ],
    };
    let (mut at, mut addr) = (Time(0), BASE + 8);
    let messages = (0..rng.between(1, 8)).map(|_| {
        at = at.saturating_add(rng.pick(&[0, 0, 1_000, 50_000]));
        let opcode = rng.pick(opcodes);
        let len = match (opcode, qp_type) {
            (WrOpcode::FetchAdd, _) => 8,
            (_, QpType::Ud) => rng.below(mtu.bytes() as u64 + 1),
            _ => rng.below(4) * mtu.bytes() as u64 + rng.pick(&[0, 1, 17]),
        };
        let message = Message {
            opcode,
            data: rng.bytes(len as usize),
            // The first word is that of the atomics.
            addr: if opcode == WrOpcode::FetchAdd { BASE } else { addr },
            at,
        };
        addr += len;
        message
    });
    Lane {
        qp_type,
        messages: messages.collect(),
        psns: [0, 0].map(|_: u32| rng.pick(&[0xFF_FFF8, 0x7F_FFF8, 100]) + rng.below(8) as u32),
        fails: None,
    }
}

/// The queue: WQEs not taken, and every buffer.
#[derive(Default)]
struct Srq {
    queue: VecDeque<RecvWqe>,
    bufs: Vec<Vec<u8>>,
}

struct World<'a> {
    shared: &'a Shared,
    /// Sender and receiver of each connection.
    nodes: Vec<[Node; 2]>,
    srq: Srq,
    network: Network,
    rng: Rng,
    posted: Vec<usize>,
    given: usize,
    now: Time,
    tally: SharedTally,
}

impl<'a> World<'a> {
    fn new(shared: &'a Shared, adjust: impl Fn(&mut RcQp)) -> Self {
        let short = Rng::new(shared.seed ^ 0x540).chance(500);
        let nodes = shared.lanes.iter().map(|lane| {
            let (mut from, mut to) =
                connect_as(lane.qp_type, shared.mtu, lane.psns, |attr| attr.timeout = TIMEOUT);
            to.qp = to.qp.with_srq();
            adjust(&mut from.qp);
            adjust(&mut to.qp);
            to.short = short;
            let len: usize = 8 + lane.messages.iter().map(|m| m.data.len()).sum::<usize>();
            let mut region = vec![0; len];
            for message in lane.messages.iter().filter(|m| m.opcode == WrOpcode::Read) {
                let start = (message.addr - BASE) as usize;
                region[start..start + message.data.len()].copy_from_slice(&message.data);
            }
            let access = Access::REMOTE_WRITE.union(Access::REMOTE_READ);
            to.host
                .register(KEY, BASE, region, access.union(Access::REMOTE_ATOMIC));
            [from, to]
        });
        World {
            nodes: nodes.collect(),
            srq: Srq::default(),
            network: Network::new(shared.faults, Rng::new(shared.seed ^ 0x5EED)),
            rng: Rng::new(shared.seed ^ 0xB00),
            posted: vec![0; shared.lanes.len()],
            given: 0,
            now: Time(0),
            tally: SharedTally::default(),
            shared,
        }
    }

    fn play(&mut self) -> Verdict {
        for _ in 0..MAX_STEPS {
            if self.now >= HEALED {
                self.network.heal();
            }
            self.post_recvs();
            for lane in 0..self.nodes.len() {
                self.post_sends(lane)?;
            }
            while let Some((to, packet)) = self.network.arrive(self.now) {
                self.receive(to, &packet);
            }
            for at in 0..self.nodes.len() * 2 {
                self.serve(at)?;
            }
            let Some(next) = self.next() else { return Ok(()) };
            self.now = next.max(self.now);
            for node in self.nodes.iter_mut().flatten() {
                node.now = self.now;
            }
        }
        let states: Vec<_> = self
            .nodes
            .iter()
            .map(|pair| pair.each_ref().map(|n| n.qp.state()))
            .collect();
        Err(format!("never ends: {states:?}"))
    }

    fn post_recvs(&mut self) {
        while self.given < self.shared.recvs.len() && self.shared.recvs[self.given] <= self.now {
            self.srq.bufs.push(vec![0; self.shared.capacity as usize]);
            self.srq.queue.push_back(RecvWqe {
                wr_id: self.given as u64,
                capacity: self.shared.capacity,
                data: self.given as u32,
            });
            self.given += 1;
        }
    }

    fn post_sends(&mut self, lane: usize) -> Verdict {
        let plan = &self.shared.lanes[lane];
        while let Some(message) = plan.messages.get(self.posted[lane]).filter(|m| m.at <= self.now) {
            let (number, node) = (self.posted[lane], &mut self.nodes[lane][0]);
            self.posted[lane] += 1;
            let fetches = matches!(message.opcode, WrOpcode::Read | WrOpcode::FetchAdd);
            let data = node.host.add_send_buf(match fetches {
                true => vec![0xEE; message.data.len()],
                false => message.data.clone(),
            });
            let mut wr = SendWr {
                wr_id: number as u64,
                opcode: message.opcode,
                flags: SendFlags::SIGNALED,
                imm_or_rkey: number as u32,
                remote_addr: message.addr,
                rkey: if plan.fails == Some(number) { NO_KEY } else { KEY },
                compare_add: 1,
                length: message.data.len() as u32,
                data,
                ..SendWr::default()
            };
            if plan.fails == Some(number) {
                (wr.opcode, wr.length, wr.remote_addr) = (WrOpcode::FetchAdd, 8, BASE);
            }
            if plan.qp_type == QpType::Ud {
                wr = wr.to(0xABCD, 0x22, QKEY);
            }
            node.post(wr)
                .map_err(|error| format!("lane {lane} cannot post: {error}"))?;
        }
        Ok(())
    }

    /// Has the node work with the SRQ as its receive queue: even numbers send, odd ones receive.
    fn with<R>(&mut self, at: usize, f: impl FnOnce(&mut Node) -> R) -> R {
        let node = &mut self.nodes[at / 2][at % 2];
        let receives = at % 2 == 1;
        if receives {
            std::mem::swap(&mut node.host.recv_queue, &mut self.srq.queue);
            std::mem::swap(&mut node.host.recv_bufs, &mut self.srq.bufs);
        }
        let result = f(node);
        if receives {
            std::mem::swap(&mut node.host.recv_queue, &mut self.srq.queue);
            std::mem::swap(&mut node.host.recv_bufs, &mut self.srq.bufs);
        }
        result
    }

    fn receive(&mut self, to: usize, packet: &Packet) {
        let outcome = self.with(to, |node| node.receive(packet));
        self.tally.not_ready += usize::from(outcome == rnic_transport::Received::NotReady);
    }

    fn serve(&mut self, at: usize) -> Verdict {
        for _ in 0..self.rng.between(1, self.shared.burst) {
            let Some(packet) = self.with(at, Node::transmit) else {
                break;
            };
            self.tally.packets += 1;
            self.network.send(self.now, at ^ 1, packet);
        }
        self.with(at, |node| {
            if node.qp.poll_timeout().is_some_and(|due| due <= node.now) {
                node.wait(0);
            }
            if node.qp.state() == QpState::Err {
                node.flush_all();
            }
        });
        let node = &self.nodes[at / 2][at % 2];
        let answers = self.shared.lanes[at / 2].qp_type == QpType::Rc;
        if at % 2 == 1 && !answers && node.qp.has_work() {
            return Err(format!(
                "lane {}: an unreliable receiver has something to say",
                at / 2
            ));
        }
        Ok(())
    }

    fn next(&self) -> Option<Time> {
        let nodes = self.nodes.iter().flatten();
        let timers = nodes.clone().filter_map(|node| node.qp.poll_timeout());
        let work = nodes.filter(|node| node.qp.has_work() && !node.host.waits());
        let busy = work.map(|_| self.now.saturating_add(100));
        let posts = self.shared.lanes.iter().zip(&self.posted);
        let posts = posts.filter_map(|(lane, posted)| lane.messages.get(*posted).map(|m| m.at));
        let recvs = self.shared.recvs.get(self.given).copied();
        timers
            .chain(busy)
            .chain(posts)
            .chain(recvs)
            .chain(self.network.next_arrival())
            .min()
    }

    fn judge(&mut self) -> Verdict<SharedTally> {
        let mut used = vec![false; self.given];
        let mut held = 0;
        for lane in 0..self.nodes.len() {
            self.judge_sender(lane)
                .map_err(|what| format!("lane {lane}: {what}"))?;
            self.judge_receiver(lane, &mut used)
                .map_err(|what| format!("lane {lane}: {what}"))?;
            held += usize::from(self.nodes[lane][1].qp.receiving().is_some());
        }
        let used = used.iter().filter(|used| **used).count();
        if self.given != used + held + self.srq.queue.len() {
            return Err(format!(
                "{} receive WQEs were posted: {used} completed, {held} are in use, {} left",
                self.given,
                self.srq.queue.len()
            ));
        }
        Ok(self.tally)
    }

    /// Every request completed once, in order, with success until the one that must fail.
    fn judge_sender(&mut self, lane: usize) -> Verdict {
        let plan = &self.shared.lanes[lane];
        let node = &self.nodes[lane][0];
        let found = node.host.statuses(Queue::Send);
        let fails = plan.fails.unwrap_or(plan.messages.len());
        let done = found
            .iter()
            .take_while(|(_, status)| *status == WcStatus::Success)
            .count();
        let status = |number: usize| match number.cmp(&done) {
            Ordering::Less => WcStatus::Success,
            // When the NAK is lost the peer is in ERR, and silent: earlier requests may wait for an answer in vain, too.
            Ordering::Equal if number < fails || found[done].1 == WcStatus::RetryExcErr => {
                WcStatus::RetryExcErr
            }
            Ordering::Equal => WcStatus::RemAccessErr,
            Ordering::Greater => WcStatus::WrFlushErr,
        };
        let wanted: Vec<_> = (0..plan.messages.len())
            .map(|number| (number as u64, status(number)))
            .collect();
        if found != wanted || done > fails || plan.fails.is_none() && done < fails {
            return Err(format!(
                "sends completed as {found:?}, and request {:?} has to fail",
                plan.fails
            ));
        }
        let mut adds = 0u64;
        for (number, message) in plan.messages.iter().enumerate().take(fails) {
            if number >= done {
                adds += u64::from(message.opcode == WrOpcode::FetchAdd);
                continue;
            }
            let sound = match message.opcode {
                WrOpcode::Read => node.host.send_bufs[number] == message.data,
                WrOpcode::FetchAdd => {
                    adds += 1;
                    node.host.send_bufs[number] == (adds - 1).to_ne_bytes()
                }
                WrOpcode::Write | WrOpcode::WriteImm if plan.qp_type == QpType::Rc => {
                    let start = (message.addr - BASE) as usize;
                    let region = &self.nodes[lane][1].host.regions[0].bytes;
                    region[start..start + message.data.len()] == message.data
                }
                _ => true,
            };
            if !sound {
                return Err(format!("the data of request {number} is wrong"));
            }
        }
        let atomics = |effect: &&Effect| matches!(effect, Effect::Atomic { .. });
        let executed = self.nodes[lane][1].host.effects.iter().filter(atomics).count();
        if executed as u64 != adds {
            return Err(format!("{executed} atomics were executed of {adds}"));
        }
        Ok(())
    }

    /// What was delivered is whole, in order and once, each in a receive WQE of its own. A QP in error has said so, and taken
    /// nothing but what it had in use.
    fn judge_receiver(&mut self, lane: usize, used: &mut [bool]) -> Verdict {
        let plan = &self.shared.lanes[lane];
        let reliable = plan.qp_type == QpType::Rc;
        let node = &self.nodes[lane][1];
        let fails = plan.fails.is_some_and(|at| at < plan.messages.len());
        let due = &plan.messages[..plan.fails.unwrap_or(usize::MAX).min(plan.messages.len())];
        let takers: Vec<usize> = (0..due.len()).filter(|at| due[*at].takes_receive()).collect();
        let mut next = 0;
        for completion in &node.host.completions {
            if std::mem::replace(&mut used[completion.wr_id as usize], true) {
                return Err(format!("receive WQE {} completes again", completion.wr_id));
            }
            let mut behind = takers[next..].iter();
            let number = match reliable {
                true => behind.next(),
                // The network may double and reorder datagrams.
                false if plan.qp_type == QpType::Ud => {
                    takers.iter().find(|at| **at == completion.imm_or_rkey as usize)
                }
                false => behind.find(|at| **at == completion.imm_or_rkey as usize),
            };
            let Some(number) = number.copied() else {
                return Err(format!("{completion:?} is for no message that is due"));
            };
            next = takers.partition_point(|at| *at <= number);
            self.sound(plan, number, completion)?;
            self.tally.delivered += 1;
        }
        if reliable && next != takers.len() {
            return Err(format!("{next} of {} messages were delivered", takers.len()));
        }
        let wanted: &[EventKind] = match fails {
            true => &[EventKind::QpAccessErr, EventKind::LastWqeReached],
            false => &[],
        };
        let mut events = node.event_kinds();
        events.retain(|kind| *kind != EventKind::CommEst);
        let state = if fails { QpState::Err } else { QpState::Rts };
        if events != wanted || node.qp.state() != state {
            return Err(format!(
                "events {events:?} and {}, not {wanted:?} and {state}",
                node.qp.state()
            ));
        }
        self.tally.lanes += 1;
        self.tally.failed += usize::from(fails);
        self.tally.messages += takers.len();
        Ok(())
    }

    fn sound(&self, plan: &Lane, number: usize, completion: &Completion) -> Verdict {
        let message = &plan.messages[number];
        let len = message.data.len();
        let grh = if plan.qp_type == QpType::Ud { GRH_AREA } else { 0 };
        let (opcode, imm) = match message.opcode {
            WrOpcode::WriteImm => (WcOpcode::RecvRdmaWithImm, true),
            WrOpcode::SendImm => (WcOpcode::Recv, true),
            _ => (WcOpcode::Recv, false),
        };
        let said = completion.status == WcStatus::Success
            && completion.opcode == opcode
            && completion.flags.contains(CompletionFlags::WITH_IMM) == imm
            && (!imm || completion.imm_or_rkey as usize == number)
            && completion.byte_len as usize == grh + len;
        let buffer = &self.srq.bufs[completion.wr_id as usize];
        let placed = opcode == WcOpcode::RecvRdmaWithImm
            || buffer[grh..grh + len] == message.data && buffer[..grh].iter().all(|byte| *byte == GRH_BYTE);
        if said && placed {
            Ok(())
        } else {
            Err(format!(
                "message {number} came as {completion:?}, or with other bytes than were sent"
            ))
        }
    }
}
