//! The loop of a poll core.
use std::{collections::VecDeque, sync::Arc, sync::atomic::Ordering};

use rnic_qsbr::{
    Participant, RetireCache, Retirer,
    spsc::{Consumer, Producer},
};
use rnic_simd::Crc;
use rnic_transport::Time;
use rnic_wire::SELECTIVE_ACK_LEN;
use rustix::time::{ClockId, clock_gettime};

use super::{
    command::BUDGET, cq::CompletionQueue, doorbell::ClientDoorbells, host::Env, idle::Idle, port::PortPart,
    qp::Qp, shared::CoreCounters, shared::Shared, stages::Spent, stages::Stage, stages::Stages,
    timer::TimerWheel,
};
use crate::{
    command::{Command, Sent},
    engine::Limits,
    mem::{AhTable, McastTable, MrTable, PortAddresses},
    nonblocking::NonBlocking,
    port::PortStats,
    retire::Retired,
    view::ViewCache,
};

/// What a core is started with.
pub(crate) struct CoreInit {
    pub id: usize,
    pub cores: Arc<[Arc<Shared>]>,
    pub participant: Participant,
    pub view: ViewCache,
    pub mrs: Arc<MrTable>,
    pub ahs: Arc<AhTable>,
    pub addresses: Arc<PortAddresses>,
    pub mcast: Arc<McastTable>,
    pub limits: Limits,
    pub idle: Idle,
    /// This core's part of each port, empty where there is none.
    #[allow(clippy::vec_box, reason = "the boxes come and go by command")]
    pub ports: Vec<Box<PortPart>>,
    pub retire: RetireCache<Retired>,
    pub commands: Consumer<Command>,
    pub messages: Producer<Sent>,
}

/// A poll core. All of it belongs to one thread; every container has its full capacity from the start.
pub(crate) struct Core {
    pub(super) id: usize,
    pub(super) me: Arc<Shared>,
    pub(super) cores: Arc<[Arc<Shared>]>,
    pub(super) participant: Participant,
    pub(super) view: ViewCache,
    pub(super) env: Env,
    pub(super) qps: Vec<Option<Box<Qp>>>,
    pub(super) clients: Vec<Option<Box<ClientDoorbells>>>,
    pub(super) client_list: Vec<u32>,
    /// QPs to be served in the next pass, each once.
    pub(super) active: VecDeque<u32>,
    /// Of this pass: QPs that found no room at their port.
    pub(super) stuck: u32,
    /// The QP that was just asked for an acknowledgement without frames.
    pub(super) asked: Option<u32>,
    /// QPs with events to be told, each once.
    pub(super) eventful: VecDeque<u32>,
    pub(super) timers: TimerWheel,
    /// When the next client of a moderated CQ is to be woken.
    pub(super) wake_due: Time,
    /// The way of everything the core gives up.
    retirer: Retirer<Retired>,
    pub(super) orders: Consumer<Command>,
    pub(super) messages: Producer<Sent>,
    /// By index.
    #[allow(clippy::vec_box, reason = "the boxes come and go by command")]
    pub(super) ports: Vec<Box<PortPart>>,
    /// The indices at which there is a port.
    pub(super) port_list: Vec<u16>,
    pub(super) idle: Idle,
    pub(super) last_work: Time,
    /// Answers that wait for the end of the pass: their objects are given up when the core has passed a quiescent state.
    pub(super) parting: Vec<Sent>,
    /// Something for the control thread was queued in this pass.
    pub(super) control_called: bool,
    pub(super) stopping: bool,
    /// Payload of the selective acknowledgement being sent.
    pub(super) missing: Box<[u8; SELECTIVE_ACK_LEN]>,
    busy_cycles: u64,
    idle_cycles: u64,
    pub(super) passes: u64,
}

/// QPs that are served in turn, from which on whoever has no work is left to its doorbell, and whoever a burst was for is served
/// behind it.
const CROWDED: usize = 64;
/// The same from which on they are loaded ahead: with fewer, loading costs more than it saves.
const SPREAD: usize = 512;
/// Passes between two publications of the counters while busy.
const PUBLISH_EVERY: u64 = 1024;

impl Core {
    /// Allocates everything the core will ever need. Not on the poll thread's hot path: before the section.
    pub fn new(init: CoreInit) -> Self {
        let Limits {
            clients,
            qps,
            cqs,
            srqs,
            ..
        } = init.limits;
        let now = now();
        let qsbr = init.participant.qsbr().clone();
        let empty = |n: u32| (0..n).map(|_| None::<Box<CompletionQueue>>).collect::<Vec<_>>();
        Core {
            id: init.id,
            me: init.cores[init.id].clone(),
            cores: init.cores,
            participant: init.participant,
            view: init.view,
            env: Env {
                now,
                mrs: init.mrs,
                ahs: init.ahs,
                addresses: init.addresses,
                mcast: init.mcast,
                qsbr,
                cqs: empty(cqs),
                touched: Vec::with_capacity(cqs as usize),
                srqs: (0..srqs).map(|_| None).collect(),
                eventful_srqs: Vec::with_capacity(srqs as usize),
                counters: CoreCounters::default(),
                crc: Crc::detect(),
                stages: Stages::new(),
            },
            qps: (0..qps).map(|_| None).collect(),
            clients: (0..clients).map(|_| None).collect(),
            client_list: Vec::with_capacity(clients as usize),
            active: VecDeque::with_capacity(qps as usize),
            stuck: 0,
            asked: None,
            eventful: VecDeque::with_capacity(qps as usize),
            timers: TimerWheel::new(qps as usize, now),
            wake_due: Time::NEVER,
            retirer: init.retire.into(),
            orders: init.commands,
            messages: init.messages,
            port_list: listed(&init.ports),
            ports: init.ports,
            idle: init.idle,
            last_work: now,
            parting: Vec::with_capacity(BUDGET),
            control_called: false,
            stopping: false,
            missing: Box::new([0; SELECTIVE_ACK_LEN]),
            busy_cycles: 0,
            idle_cycles: 0,
            passes: 0,
        }
    }

    /// Runs until [`crate::command::Command::Stop`], and returns everything to be freed by the caller.
    pub fn run(mut self) -> Self {
        self.begin();
        let section = NonBlocking::enter();
        let mut before = cycles();
        while !self.stopping {
            let work = self.pass();
            before = self.account(before, work);
        }
        drop(section);
        self.end();
        self
    }

    /// Before the first pass, on the thread that runs the core.
    pub(crate) fn begin(&mut self) {
        self.participant.online();
        self.view.acquire();
    }

    /// After the last one.
    pub(crate) fn end(&mut self) {
        self.view.release();
        self.participant.offline();
        self.publish();
    }

    /// One pass of the loop. Tells how much there was to do.
    #[inline]
    pub(crate) fn pass(&mut self) -> usize {
        // The epoch is read before the view is refreshed, and this reading is what is reported at the end
        // (DESIGN I2).
        let observed = self.participant.observe();
        self.env.stages.begin();
        self.view.refresh();
        self.env.now = now();
        let mut work = self.receive_inbound();
        work += self.receive_ports();
        self.env.stages.enter(Stage::StateMachine);
        work += self.serve();
        self.flush_ports();
        self.notify();
        self.env.stages.enter(Stage::Other);
        let commands = self.commands();
        if commands > 0 {
            self.tell_control();
        }
        work += commands;
        work += self.doorbells();
        work += self.timers();
        self.participant.quiescent(observed);
        self.part();
        self.env.stages.end(work);
        work
    }

    /// Gives an object up that nobody finds any more: the reclaimer frees it after a grace period. Never fails, blocks
    /// or allocates; at any point of the pass.
    #[inline]
    pub(super) fn retire(&mut self, what: Retired) {
        if !self.retirer.retire(what) {
            self.env.counters.retired_without_page += 1;
        }
    }

    /// Sends what was given up to the control thread, as far as there are pages.
    #[inline]
    pub(super) fn flush_retired(&mut self) {
        self.control_called |= self.retirer.flush();
    }

    /// Whether something given up waits for a page.
    pub(super) fn retired_waiting(&self) -> bool {
        self.retirer.waiting() > 0
    }

    /// Whether it serves so many QPs at the moment that each waits long for its turn.
    #[inline]
    pub(super) fn is_crowded(&self) -> bool {
        self.active.len() > CROWDED
    }

    /// Whether it serves so many QPs at the moment that the cache does not have them all.
    #[inline]
    pub(super) fn is_spread(&self) -> bool {
        self.active.len() > SPREAD
    }

    fn account(&mut self, before: u64, work: usize) -> u64 {
        self.passes += 1;
        if work > 0 {
            self.last_work = self.env.now;
            if self.passes.is_multiple_of(PUBLISH_EVERY) {
                self.publish();
            }
            let after = cycles();
            self.busy_cycles += after.wrapping_sub(before);
            return after;
        }
        if self.passes.is_multiple_of(64) {
            self.publish();
        }
        self.rest();
        let after = cycles();
        self.idle_cycles += after.wrapping_sub(before);
        after
    }

    /// Its counters, as they are now.
    pub(crate) fn counters(&self) -> super::shared::CoreCounters {
        self.env.counters.clone()
    }

    /// What its queue of a port has counted; nothing where it has none.
    pub(crate) fn port_stats(&self, port: usize) -> PortStats {
        let queue = self.ports.get(port).and_then(|part| part.queue.as_ref());
        queue.map(|queue| queue.stats()).unwrap_or_default()
    }

    /// Where its cycles went, in the order of [`Stage::ALL`]; `None` in builds that do not look.
    pub(crate) fn spent(&self) -> Option<[Spent; Stage::ALL.len()]> {
        self.env.stages.spent()
    }

    /// Its index.
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// Drops what it was told and has not done. After its thread has ended.
    pub(crate) fn forget_commands(&mut self) {
        while self.orders.pop().is_some() {}
    }

    /// A line for each object of this core, the same in every process that has it.
    pub(crate) fn describe(&self) -> Vec<String> {
        let cqs = self.env.cqs.iter().flatten().map(|cq| cq.describe());
        let qps = self.qps.iter().flatten().map(|qp| qp.describe());
        let srqs = self.env.srqs.iter().flatten().map(|srq| srq.describe());
        cqs.chain(srqs).chain(qps).collect()
    }

    /// Shows counters and cycles to the control thread.
    pub(super) fn publish(&mut self) {
        self.me.busy_cycles.store(self.busy_cycles, Ordering::Relaxed);
        self.me.idle_cycles.store(self.idle_cycles, Ordering::Relaxed);
        self.me.publish_counters(&self.env.counters);
        for &port in &self.port_list {
            let port = usize::from(port);
            let part = &self.ports[port];
            if let Some(queue) = &part.queue {
                self.me.publish_port(port, queue.stats());
            }
            self.me.publish_congestion(port, &part.congestion);
        }
    }
}

/// The indices at which there is a port, with room for all.
fn listed(ports: &[Box<PortPart>]) -> Vec<u16> {
    let mut list = Vec::with_capacity(ports.len());
    list.extend(
        (0u16..)
            .zip(ports)
            .filter(|(_, part)| part.is_there())
            .map(|(port, _)| port),
    );
    list
}

/// Nanoseconds of the monotonic clock (no system call: the vDSO's).
pub fn now() -> Time {
    let t = clock_gettime(ClockId::Monotonic);
    Time(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// The time stamp counter, or nanoseconds where there is none.
pub(super) fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has RDTSC.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    now().0
}
