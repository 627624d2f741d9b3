//! Many flows through one port: a line rate, a queue that marks and overflows, and losses by chance.

use crate::node::{Node, Packet, connect_as};
use crate::rng::Rng;
use rnic_transport::{
    Access, Congestion, DcqcnSettings, QpAttr, QpType, RcQp, Received, SendFlags, SendWr, Time, WrOpcode,
};
use rnic_wire::{Mtu, Opcode};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Key and address of each receiver's region.
const KEY: u32 = 0x100;
const BASE: u64 = 0x10_0000;
/// Messages that each sender has posted.
const DEPTH: u32 = 4;
/// Ethernet with FCS, IPv4, UDP, ICRC: what a packet takes beside its transport headers and payload.
const FRAMING: u64 = 50;
const NANOS: u64 = 1_000_000_000;

/// The port and the flows through it.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// Of everything that happens by chance.
    pub seed: u64,
    /// Flows: one QP each, and its peer.
    pub flows: usize,
    /// RC or UC.
    pub qp_type: QpType,
    /// With selective retransmission (RC).
    pub selective: bool,
    /// Local ACK timeout code.
    pub timeout: u8,
    /// Path MTU.
    pub mtu: Mtu,
    /// Congestion control of all QPs.
    pub congestion: Congestion,
    /// Bytes a second of the port, and of every sender's own link.
    pub line_rate: u64,
    /// Bytes that the port's queue holds.
    pub queue: u64,
    /// Bytes in the queue from which packets are marked, and from which all are.
    pub mark: (u64, u64),
    /// Marked just before the upper end of that, in thousandths.
    pub mark_most: u32,
    /// Nanoseconds from sender to port, and from port to receiver; answers take both together.
    pub delay: u64,
    /// Timers come up at multiples of 2^this nanoseconds, behind their deadline, as a timer wheel's do; 0: exactly.
    pub granularity_log2: u32,
    /// Bytes of each message, a WRITE.
    pub message: u32,
}

impl Bottleneck {
    /// `flows` RC QPs of DCQCN through a port of 10 Gb/s, which marks from 5 KB on and all from 200 KB on (as in the paper),
    /// with room for 1 MB.
    pub fn new(seed: u64, flows: usize) -> Self {
        let line_rate = 1_250_000_000;
        Bottleneck {
            seed,
            flows,
            qp_type: QpType::Rc,
            selective: false,
            timeout: 10,
            mtu: Mtu::M1024,
            congestion: Congestion::Dcqcn(DcqcnSettings::for_line_rate(line_rate)),
            line_rate,
            queue: 1 << 20,
            mark: (5_000, 200_000),
            mark_most: 10,
            delay: 2_000,
            granularity_log2: 14,
            message: 64 << 10,
        }
    }
}

/// What was counted since the beginning.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Data packets that came to the port.
    pub packets: u64,
    /// Lost because the queue was full.
    pub overflowed: u64,
    /// Lost by chance, in both directions.
    pub lost: u64,
    /// Marked "congestion experienced".
    pub marked: u64,
    /// CNPs that arrived.
    pub cnps: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A packet reaches the port.
    Enqueue(usize, u64),
    /// The port has sent its first packet.
    Sent,
    /// A packet reaches a node.
    Arrive(usize, u64, bool),
    /// The sender's own link is free.
    Free(usize),
    /// A timer of a node.
    Timer(usize),
}

/// Flows under way. Node 2i is the sender of flow i, node 2i + 1 its receiver.
pub struct Flows {
    setup: Bottleneck,
    nodes: Vec<Node>,
    /// When a timer of the node is due to be looked at.
    timers: Vec<Option<Time>>,
    /// The sender's link is in use.
    busy: Vec<bool>,
    delivered: Vec<u64>,
    /// Messages posted, by flow.
    posted: Vec<u64>,
    agenda: BinaryHeap<Reverse<(Time, u64, Event)>>,
    packets: std::collections::HashMap<u64, Packet>,
    queue: VecDeque<(usize, u64, bool)>,
    queued: u64,
    events: u64,
    rng: Rng,
    /// Lost packets, and in how many.
    loss: (u32, u32),
    now: Time,
    /// What was counted.
    pub traffic: Traffic,
}

impl Flows {
    /// All flows connected, and with messages to send.
    pub fn new(setup: Bottleneck, adjust: impl Fn(&mut RcQp)) -> Self {
        let mut flows = Flows {
            nodes: Vec::new(),
            timers: vec![None; 2 * setup.flows],
            busy: vec![false; 2 * setup.flows],
            delivered: vec![0; setup.flows],
            posted: vec![0; setup.flows],
            agenda: BinaryHeap::new(),
            packets: Default::default(),
            queue: VecDeque::new(),
            queued: 0,
            events: 0,
            rng: Rng::new(setup.seed ^ 0xB0771E),
            loss: (0, 1),
            now: Time(0),
            traffic: Traffic::default(),
            setup,
        };
        for flow in 0..flows.setup.flows {
            let (selective, timeout) = (flows.setup.selective, flows.setup.timeout);
            let attributes = |attr: &mut QpAttr| (attr.selective, attr.timeout) = (selective, timeout);
            let (mut a, mut b) = connect_as(flows.setup.qp_type, flows.setup.mtu, [100, 200], attributes);
            for node in [&mut a, &mut b] {
                node.qp = node.qp.with_congestion(&flows.setup.congestion);
                adjust(&mut node.qp);
            }
            let message = vec![0; flows.setup.message as usize];
            let region = vec![0; message.len() * DEPTH as usize];
            b.host.register(KEY, BASE, region, Access::REMOTE_WRITE);
            a.host.add_send_buf(message);
            flows.nodes.extend([a, b]);
            flows.refill(2 * flow);
            // Nobody begins at quite the same time.
            let at = Time(flows.rng.below(10_000));
            flows.busy[2 * flow] = true;
            flows.add(at, Event::Free(2 * flow));
        }
        flows
    }

    /// From now on so many packets in a thousand are lost, in both directions.
    pub fn lose(&mut self, per_mille: u32) {
        self.lose_of(per_mille, 1_000);
    }

    /// From now on so many packets in so many are lost, in both directions.
    pub fn lose_of(&mut self, lost: u32, of: u32) {
        self.loss = (lost, of);
    }

    /// Payload bytes that have arrived and were taken, by flow.
    pub fn delivered(&self) -> &[u64] {
        &self.delivered
    }

    /// The sending QP of a flow.
    pub fn sender(&self, flow: usize) -> &Node {
        &self.nodes[2 * flow]
    }

    /// Plays until `end`, in nanoseconds.
    pub fn run_until(&mut self, end: u64) {
        while let Some(Reverse((at, ..))) = self.agenda.peek()
            && at.0 <= end
        {
            let Some(Reverse((at, _, event))) = self.agenda.pop() else {
                break;
            };
            self.now = at;
            self.happen(event);
        }
        self.now = Time(end);
    }

    fn add(&mut self, at: Time, event: Event) {
        self.events += 1;
        self.agenda.push(Reverse((at, self.events, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Enqueue(to, number) => self.enqueue(to, number),
            Event::Sent => self.depart(),
            Event::Arrive(node, number, marked) => self.arrive(node, number, marked),
            Event::Free(node) => {
                self.busy[node] = false;
                self.serve(node);
            }
            Event::Timer(node) => {
                if self.timers[node].is_some_and(|at| at <= self.now) {
                    self.timers[node] = None;
                    self.nodes[node].now = self.now;
                    self.nodes[node].wait(0);
                    self.serve(node);
                }
            }
        }
    }

    /// Lets a node send: a sender one packet as its link is free, a receiver what it has to answer.
    fn serve(&mut self, node: usize) {
        self.nodes[node].now = self.now;
        let is_sender = node.is_multiple_of(2);
        if is_sender {
            self.refill(node);
        }
        while !self.busy[node] {
            let Some(packet) = self.nodes[node].transmit() else {
                break;
            };
            let number = self.events;
            let size = bytes_of(&packet);
            self.packets.insert(number, packet);
            if is_sender {
                let free = self.now.saturating_add(size * NANOS / self.setup.line_rate);
                self.busy[node] = true;
                self.add(free, Event::Free(node));
                let there = free.saturating_add(self.setup.delay);
                self.add(there, Event::Enqueue(node + 1, number));
            } else if self.is_lost() {
                self.packets.remove(&number);
                self.events += 1;
            } else {
                let there = self.now.saturating_add(2 * self.setup.delay);
                self.add(there, Event::Arrive(node - 1, number, false));
            }
        }
        if let Some(deadline) = self.nodes[node].qp.poll_timeout() {
            let log2 = self.setup.granularity_log2;
            let at = match log2 {
                0 => deadline,
                _ => Time(((deadline.0 >> log2) + 1) << log2),
            };
            let at = at.max(self.now);
            if self.timers[node].is_none_or(|armed| at < armed) {
                self.timers[node] = Some(at);
                self.add(at, Event::Timer(node));
            }
        }
    }

    fn is_lost(&mut self) -> bool {
        let (lost, of) = self.loss;
        let lost = self.rng.below(of.into()) < lost.into();
        self.traffic.lost += u64::from(lost);
        lost
    }

    fn enqueue(&mut self, to: usize, number: u64) {
        self.traffic.packets += 1;
        let size = bytes_of(&self.packets[&number]);
        if self.queued + size > self.setup.queue {
            self.traffic.overflowed += 1;
            self.packets.remove(&number);
            return;
        }
        if self.is_lost() {
            self.packets.remove(&number);
            return;
        }
        let (from, all) = self.setup.mark;
        let share = match self.queued {
            n if n >= all => 1_000_000,
            n if n > from => u64::from(self.setup.mark_most) * 1_000 * (n - from) / (all - from),
            _ => 0,
        };
        let marked = self.rng.below(1_000_000) < share && self.nodes[to - 1].qp.is_ecn_capable();
        self.traffic.marked += u64::from(marked);
        self.queued += size;
        self.queue.push_back((to, number, marked));
        if self.queue.len() == 1 {
            self.begin(size);
        }
    }

    /// The first packet of the queue begins to go out.
    fn begin(&mut self, size: u64) {
        let at = self.now.saturating_add(size * NANOS / self.setup.line_rate);
        self.add(at, Event::Sent);
    }

    fn depart(&mut self) {
        let Some((to, number, marked)) = self.queue.pop_front() else {
            return;
        };
        self.queued -= bytes_of(&self.packets[&number]);
        let there = self.now.saturating_add(self.setup.delay);
        self.add(there, Event::Arrive(to, number, marked));
        if let Some((_, next, _)) = self.queue.front() {
            let size = bytes_of(&self.packets[next]);
            self.begin(size);
        }
    }

    fn arrive(&mut self, at: usize, number: u64, marked: bool) {
        let packet = self.packets.remove(&number).expect("it was on its way");
        let now = self.now;
        let node = &mut self.nodes[at];
        node.now = now;
        if marked {
            node.with(|qp, _| qp.marked(packet.headers.bth.opcode, now));
        }
        let outcome = node.receive(&packet);
        node.host.effects.clear();
        self.traffic.cnps += u64::from(packet.headers.bth.opcode == Opcode::CNP);
        // On UC a message after a gap is taken as well.
        let taken = match outcome {
            Received::Accepted | Received::Early => true,
            Received::OutOfOrder => self.setup.qp_type == QpType::Uc,
            _ => false,
        };
        if taken {
            self.delivered[at / 2] += packet.payload.len() as u64;
        }
        self.serve(at);
    }

    /// Keeps a sender in messages.
    fn refill(&mut self, node: usize) {
        let posted = &mut self.posted[node / 2];
        let node = &mut self.nodes[node];
        node.host.completions.clear();
        let len = node.sq.len() as u32;
        while len - node.qp.sq_room(len) < DEPTH {
            // No two messages on their way go to the same place.
            let slot = *posted % u64::from(DEPTH);
            *posted += 1;
            node.post(SendWr {
                opcode: WrOpcode::Write,
                flags: SendFlags::SIGNALED,
                remote_addr: BASE + slot * u64::from(self.setup.message),
                rkey: KEY,
                length: self.setup.message,
                ..SendWr::default()
            })
            .expect("the flow lives");
        }
    }
}

fn bytes_of(packet: &Packet) -> u64 {
    FRAMING + packet.headers.bth.opcode.header_len() as u64 + packet.payload.len().next_multiple_of(4) as u64
}

/// Jain's index of fairness: 1 when all are equal, 1/n when one has everything.
pub fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}
