//! A core with its connections: what the thread that drives it posts, and takes.
use std::sync::Arc;

use anyhow::Result;
use rnic_abi::{AtomicOperands, DoorbellLayout, Handle, RegionLayout, Sge, Wqe, protocol, wqe_flags};
use rnic_engine::{
    DrivenCore,
    core::CoreCounters,
    mem::{ClientMem, MrTable},
    view::number,
};

use crate::{
    args::Mode,
    drive::{TURNS, Work},
    payload,
    plan::{Operation, Plan},
    queue::{CompletionQueue, WorkQueue},
    report::{Sample, cycles},
};

/// Of all the data.
pub const KEY: u32 = MrTable::key(1, 1, 0x5a);
/// Entries of the initiator's and of the target's CQ are told apart by it.
pub const CQS: [u32; 2] = [0, 1];
pub const QKEY: u32 = 0x1111_1111;
/// Address handle from the initiators to the targets.
pub const AH: u32 = number(1, 1);

/// The number of the QP in a slot.
pub const fn qpn(slot: u32) -> u32 {
    number(slot, 1)
}

/// One QP.
pub struct End {
    pub slot: u32,
    pub sq: WorkQueue,
    pub rq: WorkQueue,
}

/// Both ends of a connection.
pub struct Connection {
    initiator: End,
    target: End,
    posted: u32,
    received: u32,
}

impl Connection {
    pub fn new(initiator: End, target: End) -> Self {
        Connection {
            initiator,
            target,
            posted: 0,
            received: 0,
        }
    }
}

/// The memory that clients and cores share.
#[derive(Clone)]
pub struct Memory {
    /// Queues and doorbells.
    pub region: Arc<ClientMem>,
    pub layout: RegionLayout,
    /// Where the completion queues begin.
    pub cqs: [usize; 2],
    /// The buffers of both sides.
    pub data: Arc<ClientMem>,
}

/// A core, and all that its thread has to do with. It shares no cache line, and no pair of them, with another core's.
#[repr(align(128))]
pub struct Lane {
    plan: Plan,
    core: DrivenCore,
    memory: Memory,
    /// Where the doorbells of the core are.
    doorbells: usize,
    /// The number of its first connection.
    first: u32,
    connections: Vec<Connection>,
    cqs: [CompletionQueue; 2],
    /// Connections with a completion, kept for its capacity.
    done: Vec<u32>,
    /// Messages posted.
    posted: u64,
    /// Messages that took a receive.
    arrived: u64,
    /// Turns since all messages were done.
    idle: u32,
    /// Messages completed.
    pub messages: u64,
    /// Completions that were errors.
    pub errors: u64,
}

impl Lane {
    /// Core `index`, without connections.
    pub fn new(plan: Plan, index: u32, core: DrivenCore, memory: Memory) -> Result<Self> {
        let cq = |at| CompletionQueue::new(&memory.region, at, plan.cq_depth(), index);
        let cqs = [cq(memory.cqs[0])?, cq(memory.cqs[1])?];
        let layout = &memory.layout;
        Ok(Lane {
            plan,
            core,
            doorbells: layout.doorbells + index as usize * layout.doorbell.size(),
            memory,
            first: plan.connections(index).start,
            connections: Vec::new(),
            cqs,
            done: Vec::new(),
            posted: 0,
            arrived: 0,
            idle: 0,
            messages: 0,
            errors: 0,
        })
    }

    /// Adds the next connection of the core.
    pub fn add(&mut self, connection: Connection) {
        self.connections.push(connection);
    }

    /// A pass of the core alone.
    pub fn pass(&mut self) {
        self.core.pass();
    }

    /// One turn: a pass of the core; then what has completed is posted again, unless this is the end.
    #[inline]
    fn take_turn(&mut self, again: bool) {
        self.core.pass();
        let mut done = std::mem::take(&mut self.done);
        for side in CQS {
            self.cqs[side as usize].poll(|cqe| match cqe.status {
                0 => done.push(cqe.wr_id as u32),
                _ => self.errors += 1,
            });
            for connection in done.drain(..) {
                let connection = connection as usize;
                if side == CQS[0] {
                    self.messages += u64::from(self.plan.signal_every);
                    if again {
                        self.post(connection);
                    }
                } else {
                    self.received(connection);
                }
            }
        }
        self.done = done;
    }

    /// A message came at the target.
    #[inline]
    fn received(&mut self, connection: usize) {
        let state = &mut self.connections[connection];
        self.arrived += 1;
        state.received += 1;
        if state.received == self.plan.signal_every {
            state.received = 0;
            self.post_receives(connection, self.plan.signal_every);
        }
    }

    /// Posts a batch with one doorbell; its last request is signalled.
    #[inline]
    fn post(&mut self, connection: usize) {
        let (plan, number) = (self.plan, self.first + connection as u32);
        self.posted += u64::from(plan.signal_every);
        let state = &mut self.connections[connection];
        for i in 0..plan.signal_every {
            let index = state.posted;
            state.posted = index.wrapping_add(1);
            let mut wqe = Wqe {
                wr_id: connection as u64,
                opcode: match plan.operation(index) {
                    Operation::Write => 0,
                    Operation::Send => 2,
                    Operation::Read => 4,
                    Operation::FetchAdd => 6,
                },
                flags: if i + 1 == plan.signal_every {
                    wqe_flags::SIGNALED
                } else {
                    0
                },
                num_sge: 1,
                units: 1,
                remote_addr: plan.buffer(number, index, true),
                rkey: KEY,
                ..Wqe::default()
            };
            wqe.sges[0] = Sge {
                addr: plan.buffer(number, index, false),
                length: plan.size,
                lkey: KEY,
            };
            if plan.mode == Mode::UdSend {
                wqe = wqe.to(AH, qpn(state.target.slot), QKEY);
            }
            if plan.operation(index) == Operation::FetchAdd {
                wqe.remote_addr = plan.buffer(number, plan.counter(), true);
                wqe.sges[0].length = 8;
                wqe.sges[1] = AtomicOperands {
                    compare_add: 1,
                    swap: 0,
                }
                .into();
            }
            state.initiator.sq.push(&wqe);
        }
        if state.initiator.sq.publish() {
            let slot = Handle::new(state.initiator.slot, 1).slot();
            self.ring(slot);
        }
    }

    fn post_receives(&mut self, connection: usize, count: u32) {
        let (plan, number) = (self.plan, self.first + connection as u32);
        let state = &mut self.connections[connection];
        for _ in 0..count {
            let index = plan.receiver(state.target.rq.posted());
            let mut wqe = Wqe {
                wr_id: connection as u64,
                num_sge: 1,
                units: 1,
                ..Wqe::default()
            };
            wqe.sges[0] = Sge {
                addr: plan.buffer(number, index, true) - plan.headroom(),
                length: plan.size + plan.headroom() as u32,
                lkey: KEY,
            };
            state.target.rq.push(&wqe);
        }
        state.target.rq.publish_receives();
    }

    fn ring(&self, slot: u32) {
        let (region, shape, block) = (&self.memory.region, &self.memory.layout.doorbell, self.doorbells);
        let level0 = region.u64(block + shape.level0() + slot as usize / 64 * 8);
        let level1 = region.u64(block + DoorbellLayout::LEVEL1 + slot as usize / 4096 * 8);
        if let (Some(level0), Some(level1), Some(sleeping)) = (level0, level1, region.u32(block)) {
            // A driven core does not sleep.
            let _ = protocol::ring_doorbell(&level0, &level1, slot, &sleeping);
        }
    }

    /// Whether every byte is where it belongs.
    pub fn verify(&self) -> bool {
        let mut connections = (self.first..).zip(&self.connections);
        connections.all(|(number, connection)| {
            payload::verify(&self.plan, &self.memory.data, number, connection.posted)
        })
    }

    /// Messages that were posted and are not done.
    pub fn unfinished(&self) -> u64 {
        self.posted.saturating_sub(self.messages)
    }

    /// Datagrams that have not arrived.
    pub fn lost(&self) -> u64 {
        match self.plan.mode {
            Mode::UdSend => self.posted.saturating_sub(self.arrived),
            _ => 0,
        }
    }

    pub fn counters(&self) -> CoreCounters {
        self.core.counters()
    }

    /// Whether the build looks where cycles go.
    pub fn has_stages(&self) -> bool {
        self.core.spent().is_some()
    }

    /// The core, for its end.
    pub fn into_core(self) -> DrivenCore {
        self.core
    }
}

impl Work for Lane {
    /// Posts what may be in flight on every connection, in the order of a random permutation.
    fn begin(&mut self) {
        let count = self.connections.len();
        let mut order: Vec<usize> = (0..count).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for i in (1..count).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(i, (state % (i as u64 + 1)) as usize);
        }
        for &connection in &order {
            if self.plan.receives() {
                self.post_receives(connection, self.plan.rq_depth());
            }
            for _ in 0..self.plan.outstanding / self.plan.signal_every {
                self.post(connection);
            }
        }
    }

    #[inline]
    fn turn(&mut self) {
        self.take_turn(true);
    }

    fn wind_down(&mut self) -> bool {
        self.take_turn(false);
        if self.unfinished() > 0 {
            return false;
        }
        // Of a datagram nobody hears that it has arrived.
        self.idle = self.idle.saturating_add(1);
        self.lost() == 0 || self.idle > TURNS
    }

    fn sample(&self) -> Sample {
        Sample {
            cycles: cycles(),
            messages: self.messages,
            frames: self.core.counters().tx_roce,
            ports: [0, 1].map(|port| self.core.port_stats(port)),
            spent: self.core.spent(),
        }
    }
}
