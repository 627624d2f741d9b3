//! The control thread's handle on the data path.
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rnic_qsbr::{
    Epoch, ParticipantState, Qsbr, Reclaimer, RegisterError, RetireCollector,
    spsc::{self, Consumer, Producer},
};
use rustix::event::epoll;

use crate::{
    arena::ArenaError,
    command::{Command, Message, Sent},
    core::{
        COMMANDS, CompletionQueue, CongestionCounters, Core, CoreArenas, CoreInit, CoreStatus, CqInit, Idle,
        InitError, MESSAGES, Qp, QpInit, Shared, Srq, SrqInit,
    },
    grace::{Garbage, VIEWS_KEPT},
    mem::{AhTable, McastTable, MrTable, PortAddresses},
    port::{OpenPort, PortStats},
    retire::{self, Retired},
    view::{Publisher, RetiredView, SLOT_BITS},
    watch::{Traffic, Watch},
};

mod driven;
mod ports;
mod relocate;

pub use driven::DrivenCore;
use ports::split_ports;
pub use ports::{AddPortError, PORT_SLOTS, PortInfo};
pub use relocate::{EngineImage, Inheritance, Rebuilt, Regions, ResumeError};

/// How many objects there can be at once. Everything is allocated for them at start.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client contexts.
    pub clients: u32,
    /// Slots of QPs, at most 2^18; the first two are never used.
    pub qps: u32,
    /// Slots of CQs.
    pub cqs: u32,
    /// Slots of SRQs.
    pub srqs: u32,
    /// Slots of MRs, at most 2^18.
    pub mrs: u32,
    /// Slots of AHs, at most 2^18.
    pub ahs: u32,
}

/// One poll core.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// CPU to pin the thread to; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// What to do without work.
    pub idle: Idle,
}

/// What an engine is started with.
#[derive(Debug)]
pub struct EngineConfig {
    /// The poll cores, 1 to 256.
    pub cores: Vec<CoreConfig>,
    /// Sizes of the tables.
    pub limits: Limits,
    /// Opened ports, in the order of their indices, at most [`PORT_SLOTS`]. Queue `i` of a port goes to core `i`.
    pub ports: Vec<OpenPort>,
}

/// Why an engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Bad number of cores.
    #[error("{0} poll cores; there must be 1 to 256")]
    Cores(usize),
    /// Too large a table.
    #[error("limits.{what} is {value}; at most {max} are possible")]
    Limit {
        /// Which.
        what: &'static str,
        /// Value asked for.
        value: u32,
        /// Largest value.
        max: u32,
    },
    /// A port that cannot be taken.
    #[error(transparent)]
    Port(#[from] AddPortError),
    /// A system call failed.
    #[error("starting the poll cores failed: {0}")]
    Io(#[from] io::Error),
    /// The participants could not be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The arenas could not be made.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    thread: Option<JoinHandle<Core>>,
    commands: Producer<Command>,
    messages: Consumer<Sent>,
    /// Commands that did not fit the queue yet.
    waiting: VecDeque<Command>,
    /// Where what the core gives up comes in.
    pub(crate) retired: RetireCollector<Retired>,
    pub(crate) traffic: Traffic,
}

/// The data path: poll cores, views, memory regions, and what waits for a grace period. Owned by the control
/// thread; no method waits for a core, except [`Engine::stop`].
pub struct Engine {
    pub(crate) qsbr: Arc<Qsbr>,
    publisher: Publisher,
    mrs: Arc<MrTable>,
    ahs: Arc<AhTable>,
    addresses: Arc<PortAddresses>,
    mcast: Arc<McastTable>,
    boot_epoch: u64,
    arenas: Vec<CoreArenas>,
    pub(crate) cores: Vec<Handle>,
    /// By index; `None` where there is no port.
    ports: Vec<Option<PortInfo>>,
    control: Arc<crate::core::ControlWake>,
    pub(crate) reclaimer: Reclaimer<Garbage>,
    /// Replaced views, freed when nobody waits.
    pub(crate) views: Reclaimer<RetiredView>,
    /// Scratch of `collect`, kept for its capacity.
    pub(crate) batch: Vec<Retired>,
    /// What came back with answers and waits for an epoch to be opened.
    pub(crate) unopened: Vec<Retired>,
    pub(crate) watch: Watch,
    limits: Limits,
}

impl Engine {
    /// Starts the poll threads `rnic-poll-0` and so on.
    pub fn start(config: EngineConfig) -> Result<Engine, StartError> {
        Self::start_with(config, &mut spawn)
    }

    fn start_with(config: EngineConfig, begin: &mut Begin<'_>) -> Result<Engine, StartError> {
        crate::nonblocking::might_block();
        check_sizes(&config)?;
        let (count, limits, boot_epoch) = (config.cores.len() as u32, config.limits, boot_epoch());
        let arenas = (0..count)
            .map(|core| CoreArenas::create(core, boot_epoch, &limits))
            .collect::<Result<_, _>>()?;
        let mrs = MrTable::create(boot_epoch, limits.mrs)?;
        let ahs = AhTable::create(boot_epoch, limits.ahs)?;
        Self::launch(config, boot_epoch, arenas, mrs, ahs, begin)
    }

    fn launch(
        config: EngineConfig,
        boot_epoch: u64,
        arenas: Vec<CoreArenas>,
        mrs: MrTable,
        ahs: AhTable,
        begin: &mut Begin<'_>,
    ) -> Result<Engine, StartError> {
        let EngineConfig { cores, limits, ports } = config;
        let qsbr = Arc::new(Qsbr::new(cores.len()));
        let publisher = Publisher::new(qsbr.clone(), cores.len());
        let mrs = Arc::new(mrs);
        let ahs = Arc::new(ahs);
        let addresses = Arc::new(PortAddresses::default());
        let mcast = Arc::new(McastTable::default());
        let control = Arc::new(crate::core::ControlWake::new()?);
        let shared = (0..cores.len())
            .map(|_| Shared::new(control.clone(), PORT_SLOTS).map(Arc::new))
            .collect::<io::Result<Arc<[Arc<Shared>]>>>()?;
        let (infos, mut parts) = split_ports(ports, cores.len())?;
        let mut handles = Vec::new();
        for (id, core) in cores.iter().enumerate() {
            let (retire, retired) = retire::channel();
            let (commands, their_commands) = spsc::ring(COMMANDS);
            let (their_messages, messages) = spsc::ring(MESSAGES);
            let init = CoreInit {
                id,
                retire,
                commands: their_commands,
                messages: their_messages,
                cores: shared.clone(),
                participant: qsbr.register(id)?,
                view: publisher.cache(id),
                mrs: mrs.clone(),
                ahs: ahs.clone(),
                addresses: addresses.clone(),
                mcast: mcast.clone(),
                limits,
                idle: core.idle,
                ports: std::mem::take(&mut parts[id]),
            };
            let thread = begin(init, core.cpu)?;
            let shared = shared[id].clone();
            handles.push(Handle {
                shared,
                thread,
                commands,
                messages,
                waiting: VecDeque::new(),
                retired,
                traffic: Traffic::default(),
            });
        }
        let ports = infos;
        let watch = Watch::new(handles.len(), Instant::now());
        let reclaimer = Reclaimer::new();
        Ok(Engine {
            qsbr,
            publisher,
            mrs,
            ahs,
            addresses,
            mcast,
            boot_epoch,
            arenas,
            cores: handles,
            ports,
            control,
            reclaimer,
            views: Reclaimer::new(),
            batch: Vec::new(),
            unopened: Vec::new(),
            watch,
            limits,
        })
    }

    /// Poll cores.
    pub fn core_count(&self) -> usize {
        self.cores.len()
    }

    /// Sizes of the tables.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Names this start of the daemon: differs at every start, and is never zero. Arenas and shared headers carry it.
    pub fn boot_epoch(&self) -> u64 {
        self.boot_epoch
    }

    /// A QP in RESET, for the core that owns its number: hand it over by [`Command::AddQp`].
    pub fn make_qp(&self, init: QpInit) -> Result<Box<Qp>, InitError> {
        let core = usize::from(self.publisher.owner(init.qpn));
        Qp::new(init, &self.arenas[core])
    }

    /// A sub-ring of a CQ, for core `init.subring`: hand it over by [`Command::AddCq`].
    pub fn make_cq(&self, init: CqInit) -> Result<Box<CompletionQueue>, InitError> {
        match self.arenas.get(init.subring as usize) {
            Some(arenas) => CompletionQueue::new(init, arenas),
            None => Err(InitError::NoCore(init.subring)),
        }
    }

    /// An SRQ for core `init.core`: hand it over by [`Command::AddSrq`].
    pub fn make_srq(&self, init: SrqInit) -> Result<Box<Srq>, InitError> {
        match self.arenas.get(init.core as usize) {
            Some(arenas) => Srq::new(init, arenas),
            None => Err(InitError::NoCore(init.core)),
        }
    }

    /// The memory regions.
    pub fn mrs(&self) -> &Arc<MrTable> {
        &self.mrs
    }

    /// The address handles, as poll cores look them up.
    pub fn ahs(&self) -> &Arc<AhTable> {
        &self.ahs
    }

    /// Which QPs are attached to which multicast groups. Empty at the start.
    pub fn mcast(&self) -> &McastTable {
        &self.mcast
    }

    /// The addresses of all ports, which datagrams are received at. Empty at the start.
    pub fn addresses(&self) -> &PortAddresses {
        &self.addresses
    }

    /// What the next commit publishes.
    pub fn publisher(&mut self) -> &mut Publisher {
        &mut self.publisher
    }

    /// Hands a command to a core. Never blocks and never fails: what does not fit waits here, in order.
    pub fn submit(&mut self, core: usize, command: Command) {
        let handle = &mut self.cores[core];
        if let Command::AddClient {
            client, doorbells, ..
        } = &command
        {
            // The core sleeps on the client's wake socket too. Closing the socket takes it out again.
            let data = epoll::EventData::new_u64(u64::from(*client) + 1);
            let _ = epoll::add(
                &handle.shared.epoll,
                doorbells.wake_fd(),
                data,
                epoll::EventFlags::IN,
            );
        }
        if !matches!(command, Command::Transmit { .. } | Command::Stop) {
            handle.traffic.asked += 1;
        }
        handle.waiting.push_back(command);
        handle.push_waiting();
    }

    /// Moves waiting commands, gives every message to `f`, takes in what cores gave up, frees what may be freed.
    pub fn poll(&mut self, mut f: impl FnMut(usize, Message)) {
        if !self.unopened.is_empty() {
            self.start_grace();
        }
        for (id, core) in self.cores.iter_mut().enumerate() {
            core.push_waiting();
            // One look at a full queue; what comes in meanwhile rings again.
            for _ in 0..core.messages.capacity() {
                let Some(sent) = core.messages.pop() else {
                    break;
                };
                let message = match sent {
                    Sent::Message(message) => message,
                    Sent::GivenUp { token, what } => {
                        // On the account of whoever gave the command, and who is about to begin a grace period for it.
                        match what {
                            Retired::Port(port) => drop(port),
                            // Unpublished, and let go by its core at a quiescent state.
                            Retired::Qp(_) => {
                                let epoch = self.qsbr.epoch();
                                let garbage = Garbage::Object(what);
                                self.reclaimer.retire_since(garbage, epoch, 0, Instant::now());
                            }
                            _ => self.unopened.push(what),
                        }
                        Message::Removed { token, found: true }
                    }
                };
                if !matches!(message, Message::Event(_) | Message::Frame { .. }) {
                    core.traffic.answered += 1;
                }
                f(id, message);
            }
        }
        self.collect();
        self.reclaim();
        if self.views.len() > VIEWS_KEPT {
            self.tidy();
        }
    }

    /// Whether there may be something for [`Engine::poll`]: a look at what cores have sent, and no more.
    pub fn has_news(&self) -> bool {
        self.cores
            .iter()
            .any(|core| !core.messages.is_empty() || !core.retired.is_empty() || !core.waiting.is_empty())
    }

    /// Before the thread sleeps on [`Engine::wake_fd`]: from now on cores wake it. One more [`Engine::poll`] has to come
    /// between, for what was queued before.
    pub fn arm(&self) {
        self.control.arm();
    }

    /// After the sleep: no core makes a system call to wake a thread that is awake.
    pub fn disarm(&self) {
        self.control.disarm();
    }

    /// Readable when messages have come after [`Engine::arm`].
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.control.fd.as_fd()
    }

    /// Publishes what was changed in [`Engine::publisher`]. When the returned epoch has passed, no core finds
    /// what was removed.
    pub fn commit(&mut self) -> Epoch {
        let views = &mut self.views;
        let epoch = self
            .publisher
            .commit(|view, epoch| views.retire(view, epoch, RetiredView::BYTES));
        self.opened(epoch);
        epoch
    }

    /// State of a core.
    pub fn core_status(&self, core: usize) -> CoreStatus {
        let shared = &self.cores[core].shared;
        let (state, epoch) = match self.qsbr.state(core) {
            ParticipantState::Unregistered => ("stopped", 0),
            ParticipantState::Offline => ("sleeping", 0),
            ParticipantState::Online { reported } => ("running", reported.get()),
        };
        CoreStatus {
            state,
            epoch,
            busy_cycles: shared.busy_cycles.load(Ordering::Relaxed),
            idle_cycles: shared.idle_cycles.load(Ordering::Relaxed),
            counters: shared.counters(),
        }
    }

    /// Counts of a port, over all its queues.
    pub fn port_stats(&self, port: usize) -> PortStats {
        let queues = self.cores.iter().map(|core| core.shared.port(port));
        queues.fold(PortStats::default(), PortStats::and)
    }

    /// What the QPs of a port have counted about congestion, on all cores.
    pub fn port_congestion(&self, port: usize) -> CongestionCounters {
        let counters = self.cores.iter().map(|core| core.shared.congestion(port));
        counters.fold(CongestionCounters::default(), CongestionCounters::and)
    }

    /// Whether every poll thread still runs; one that has ended by itself has panicked.
    pub fn is_healthy(&self) -> bool {
        self.cores
            .iter()
            .all(|c| c.thread.as_ref().is_some_and(|t| !t.is_finished()))
    }

    /// Stops and joins the cores, frees everything, closes the ports.
    pub fn stop(mut self) {
        let stopped = self.halt();
        self.close(stopped);
    }

    /// Stops and joins the cores.
    pub(crate) fn halt(&mut self) -> Vec<Core> {
        crate::nonblocking::might_block();
        for core in 0..self.cores.len() {
            self.submit(core, Command::Stop);
        }
        let mut stopped = Vec::new();
        for core in &mut self.cores {
            while core.thread.as_ref().is_some_and(|t| !t.is_finished()) {
                core.push_waiting();
                std::thread::sleep(Duration::from_micros(200));
            }
            stopped.extend(core.thread.take().and_then(|t| t.join().ok()));
        }
        stopped
    }

    /// Frees everything, closes the ports.
    pub(crate) fn close(mut self, mut stopped: Vec<Core>) {
        // What nobody has taken in holds frames of ports too.
        stopped.iter_mut().for_each(Core::forget_commands);
        // The cores' queues go before their ports, and their views before the tables.
        drop(stopped);
        for core in &mut self.cores {
            core.waiting.clear();
            while core.messages.pop().is_some() {}
            while core.shared.inbound.pop().is_some() {}
        }
        self.unopened.clear();
        self.reclaim();
        self.tidy();
        for port in self.ports.iter_mut().flatten() {
            port.link.close();
        }
    }
}

impl Handle {
    fn push_waiting(&mut self) {
        let mut pushed = false;
        while let Some(command) = self.waiting.pop_front() {
            if let Err(command) = self.commands.push(command) {
                self.waiting.push_front(command);
                break;
            }
            pushed = true;
        }
        if pushed {
            self.shared.kick();
        }
    }
}

fn check_sizes(config: &EngineConfig) -> Result<(), StartError> {
    let EngineConfig { cores, limits, .. } = config;
    if cores.is_empty() || cores.len() > 256 {
        return Err(StartError::Cores(cores.len()));
    }
    for (what, value) in [("qps", limits.qps), ("mrs", limits.mrs), ("ahs", limits.ahs)] {
        let max = 1 << SLOT_BITS;
        if value > max {
            return Err(StartError::Limit { what, value, max });
        }
    }
    Ok(())
}

/// Differs at every start, and is never zero.
fn boot_epoch() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    (since.as_nanos() as u64 ^ u64::from(std::process::id()) << 40).max(1)
}

/// Has a core begin to run: on a thread, or by someone who drives it.
type Begin<'a> = dyn FnMut(CoreInit, Option<usize>) -> io::Result<Option<JoinHandle<Core>>> + 'a;

/// The core runs on a thread of its own.
fn spawn(init: CoreInit, cpu: Option<usize>) -> io::Result<Option<JoinHandle<Core>>> {
    let name = format!("rnic-poll-{}", init.id);
    let thread = std::thread::Builder::new().name(name);
    thread.spawn(move || poll(init, cpu)).map(Some)
}

/// A poll thread.
fn poll(init: CoreInit, cpu: Option<usize>) -> Core {
    if let Some(id) = cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(
            cpu = id,
            "cannot pin the poll core; it runs where the scheduler puts it"
        );
    }
    let _dpdk = crate::port::register_thread();
    Core::new(init).run()
}
