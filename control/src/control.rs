//! The control thread: one event loop over clients, `rnicctl`, poll cores, mapped memory, timers and frames of the
//! slow path. Nothing in it waits for a client or a core; what has to wait is an [`crate::ops::Op`].

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rnic_config::Config;
use rnic_engine::{Engine, command::Message, view::SLOT_BITS};
use rnic_qsbr::Epoch;
use rustc_hash::FxHashMap;

use crate::{
    admin::AdminConnection,
    batch::{Batch, Patience},
    client::Connection,
    device::Device,
    follow_up::FollowUp,
    gid::{GidManager, Quiet, asked_by},
    grace::GraceAccount,
    hotplug::{Hotplug, Opener},
    mapper::Mapper,
    neighbour::Neighbours,
    netlink::{self, Monitor},
    notify::Notifier,
    objects::{AhSlots, Domains, Numbers, Object, Space, Table},
    ops::Ops,
    poller::{Interest, Poller, Ready, Source},
    quota::Quota,
    registry::Registry,
    session::Session,
    slowpath::SlowPath,
    socket::{Listener, Packet},
    stall::StallRecord,
    store::Store,
};

/// How long a stop waits for what clients own to be destroyed in order.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Connections that have not said hello, beyond the clients there may be.
pub(crate) const STRANGERS: usize = 64;
/// How long a connection may have a place without saying hello. Clients do so at once.
pub(crate) const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Admin connections.
const ADMINS: usize = 16;

/// Numbers of the whole daemon.
pub(crate) struct AllNumbers {
    pub clients: Numbers,
    pub pds: Numbers,
    pub keys: Numbers,
    pub cqs: Numbers,
    pub srqs: Numbers,
    pub xrcds: Numbers,
    pub qpns: Numbers,
}

/// The control thread.
pub struct Control {
    pub(crate) config: Config,
    pub(crate) quota: Quota,
    pub(crate) engine: Engine,
    /// XRC domains, shared by all who hold them.
    pub(crate) domains: Domains,
    /// By number; those that were removed stay until another takes their place.
    pub(crate) devices: Vec<Device>,
    pub(crate) hotplug: Hotplug,
    pub(crate) boot_epoch: u64,
    pub(crate) poller: Poller,
    pub(crate) objects: Table<Object>,
    /// What of them outlives the process.
    pub(crate) store: Arc<Store>,
    pub(crate) numbers: AllNumbers,
    pub(crate) connections: BTreeMap<u32, Connection>,
    /// Connection of each client by its index on the cores.
    pub(crate) by_index: FxHashMap<u32, u32>,
    pub(crate) ops: Ops,
    pub(crate) grace: GraceAccount,
    /// What is remembered of each core's stalls.
    pub(crate) stalls: Vec<StallRecord>,
    pub(crate) neighbours: Neighbours,
    pub(crate) ahs: AhSlots,
    /// Slots of address handles without an owner that wait for a grace period.
    pub(crate) dropped_ahs: VecDeque<(Epoch, u32)>,
    pub(crate) slow: SlowPath,
    pub(crate) mapper: Mapper,
    pub(crate) registry: Arc<Registry<Control>>,
    pub(crate) gids: Arc<GidManager>,
    pub(crate) netlink: Option<Monitor>,
    /// Once a port shares its addresses with the kernel.
    pub(crate) quiet: Option<Quiet>,
    pub(crate) packet: Option<Box<Packet>>,
    pub(crate) batch: Batch,
    pub(crate) admins: BTreeMap<u32, AdminConnection>,
    pub(crate) listener: Option<Listener>,
    pub(crate) admin_listener: Option<Listener>,
    stop: OwnedFd,
    pub(crate) inbox: Vec<(usize, Message)>,
    next_connection: u32,
    next_admin: u32,
    key_bytes: u64,
    pub(crate) next_check: Instant,
    /// When requests of this pass began to be served, or later; for what need not be known to the microsecond.
    pub(crate) now: Instant,
    pub(crate) follow_up: FollowUp,
    /// How often the loop has looked in vain whether a grace period is over.
    pub(crate) grace_looks: u32,
    pub(crate) patience: Patience,
    pub(crate) stopping: Option<Instant>,
    pub(crate) failed: bool,
    pub(crate) notifier: Notifier,
}

/// What the control thread is made of.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The running data path, its ports those of the configuration.
    pub engine: Engine,
    /// Where clients connect.
    pub listener: Listener,
    /// Where `rnicctl` connects.
    pub admin_listener: Listener,
    /// Readable when the daemon is to stop.
    pub stop: OwnedFd,
    /// Opens ports that are added later.
    pub opener: Opener,
}

impl Control {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts {
            config,
            engine,
            listener,
            admin_listener,
            stop,
            opener,
        } = parts;
        let now = Instant::now();
        let poller = Poller::new()?;
        let mapper = Mapper::start()?;
        let hotplug = Hotplug::new(opener)?;
        poller.add(&hotplug.plugger, Source::Plugger, Interest::Read)?;
        poller.add(&stop, Source::Signal, Interest::Read)?;
        poller.add(engine.wake_fd(), Source::Engine, Interest::Read)?;
        poller.add(&mapper, Source::Mapper, Interest::Read)?;
        poller.add(&listener, Source::Listener, Interest::Read)?;
        poller.add(&admin_listener, Source::AdminListener, Interest::Read)?;
        let gids = GidManager::start()?;
        poller.add(&*gids, Source::Gids, Interest::Read)?;
        // Before anything is looked at, so that no change after the look is missed.
        let netlink = netlink::watch();
        if let Some(monitor) = &netlink {
            poller.add(monitor, Source::Netlink, Interest::Read)?;
        }
        let limits = engine.limits();
        let pds = config.limits.clients.saturating_mul(config.limits.per_client.pds);
        let store = Store::create(engine.boot_epoch()).map_err(std::io::Error::other)?;
        let store = Arc::new(store);
        let space =
            |space, first, limit| Numbers::new(&store, space, 0, first, limit).map_err(std::io::Error::other);
        let numbers = AllNumbers {
            clients: space(Space::Clients, 0, limits.clients)?,
            pds: space(Space::Pds, 1, pds.saturating_add(1).min(1 << SLOT_BITS))?,
            // A key of zero reads like none.
            keys: space(Space::Keys, 1, limits.mrs)?,
            cqs: space(Space::Cqs, 0, limits.cqs)?,
            srqs: space(Space::Srqs, 0, limits.srqs)?,
            // Zero is the domain of what is in none.
            xrcds: space(Space::Xrcds, 1, pds.saturating_add(1).min(1 << SLOT_BITS))?,
            // QP0 and QP1 are the management QPs.
            qpns: space(Space::Qpns, 2, limits.qps)?,
        };
        let boot_epoch = engine.boot_epoch();
        let mut control = Control {
            domains: Domains::default(),
            quota: Quota {
                limits: config.limits.per_client.clone(),
            },
            neighbours: Neighbours::new(
                &[],
                limits.qps + limits.ahs,
                config.control.neighbour_lifetime.duration(),
                now,
            ),
            // The users of neighbours are QPs, by their slots, then address handles.
            ahs: AhSlots::new(space(Space::Ahs, 0, limits.ahs)?, limits.qps),
            dropped_ahs: VecDeque::new(),
            slow: SlowPath::new(&[], now),
            devices: Vec::new(),
            hotplug,
            boot_epoch,
            poller,
            objects: Table::default(),
            store,
            numbers,
            connections: BTreeMap::new(),
            by_index: FxHashMap::default(),
            ops: Ops::default(),
            grace: GraceAccount::default(),
            stalls: vec![StallRecord::default(); engine.core_count()],
            mapper,
            registry: Arc::default(),
            gids,
            netlink,
            quiet: None,
            packet: None,
            batch: Batch::default(),
            admins: BTreeMap::new(),
            listener: Some(listener),
            admin_listener: Some(admin_listener),
            stop,
            inbox: Vec::new(),
            next_connection: 0,
            next_admin: 0,
            key_bytes: boot_epoch | 1,
            next_check: now,
            now,
            follow_up: FollowUp::default(),
            grace_looks: 0,
            patience: Patience::default(),
            stopping: None,
            failed: false,
            notifier: Notifier::new(now),
            config,
            engine,
        };
        control.register_all();
        control.await_first_looks();
        Ok(control)
    }

    /// Runs until it is told to stop, then destroys what clients own and stops the poll cores. `false` when it
    /// stopped because a poll core has failed.
    pub fn run(mut self) -> bool {
        self.notifier.ready();
        let mut ready = Vec::new();
        while self.pass(&mut ready) {}
        if !self.connections.is_empty() {
            tracing::warn!(
                clients = self.connections.len(),
                "stopping before everything of clients was destroyed"
            );
        }
        let Control {
            engine,
            failed,
            connections,
            objects,
            mapper,
            ..
        } = self;
        let _reclaiming = crate::lock_order::reclaiming();
        engine.stop();
        drop((connections, objects, mapper));
        !failed
    }

    pub(crate) fn happened(&mut self, event: Ready) {
        match event.source {
            Source::Signal => self.begin_stop(),
            Source::Engine => {}
            Source::Mapper => self.mapped(),
            Source::Plugger => self.plugged(),
            Source::Listener => self.accept_clients(),
            Source::Client(conn) if event.closed => self.leave(conn),
            Source::Client(conn) => drop(self.serve(conn)),
            Source::AdminListener => self.accept_admins(),
            Source::Admin(id) => self.serve_admin(id, event.closed),
            Source::Netlink => self.hear_kernel(),
            Source::Gids => self.interfaces_looked_at(),
        }
    }

    pub(crate) fn begin_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        tracing::info!("stopping");
        self.notifier.stopping();
        self.poller.remove(&self.stop);
        self.stopping = Some(Instant::now() + STOP_WITHIN);
        (self.listener, self.admin_listener) = (None, None);
        let all: Vec<u32> = self.connections.keys().copied().collect();
        for conn in all {
            self.leave(conn);
        }
    }

    fn accept_clients(&mut self) {
        while let Some(socket) = self.accept(Source::Listener) {
            let id = self.next_connection;
            self.next_connection = self.next_connection.wrapping_add(1);
            if self.connections.len() >= self.config.limits.clients as usize + STRANGERS {
                tracing::warn!("too many connections; one was closed");
                continue;
            }
            let number = (self.boot_epoch << 32) | (u64::from(id) + 1);
            let session = Session::new(socket, number, id, &self.store).and_then(|session| {
                self.poller.add(&session, Source::Client(id), Interest::Read)?;
                Ok(session)
            });
            match session {
                Ok(session) => {
                    self.connections.insert(
                        id,
                        Connection {
                            session,
                            client: None,
                            leaving: false,
                            watched: true,
                            since: Instant::now(),
                        },
                    );
                }
                Err(errno) => tracing::warn!(%errno, "a client's connection could not be taken"),
            }
        }
    }

    /// Closes connections on which nobody has said hello in time: their places are others'.
    pub(crate) fn dismiss_strangers(&mut self, now: Instant) {
        let late: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, c)| c.is_stranger() && !c.leaving && now.duration_since(c.since) >= HELLO_WITHIN)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in late {
            if let Some(connection) = self.connections.get(&conn) {
                let peer = &connection.session.peer;
                tracing::warn!(
                    pid = peer.pid,
                    comm = %peer.comm,
                    within = ?HELLO_WITHIN,
                    "nobody said hello on a connection; it was closed"
                );
            }
            self.leave(conn);
        }
    }

    fn accept_admins(&mut self) {
        while let Some(socket) = self.accept(Source::AdminListener) {
            let id = self.next_admin;
            self.next_admin = self.next_admin.wrapping_add(1);
            if self.admins.len() < ADMINS
                && self
                    .poller
                    .add(&socket, Source::Admin(id), Interest::Read)
                    .is_ok()
            {
                self.admins.insert(id, AdminConnection::new(socket));
            }
        }
    }

    fn accept(&self, from: Source) -> Option<OwnedFd> {
        let listener = self.listener_of(from)?;
        match listener.accept() {
            Ok(socket) => socket,
            Err(errno) => {
                // Out of descriptors, say. Those who connect wait until the next check.
                tracing::warn!(%errno, ?from, "accept failed");
                self.poller.change(listener, from, Interest::Nothing);
                None
            }
        }
    }

    pub(crate) fn listener_of(&self, source: Source) -> Option<&Listener> {
        match source {
            Source::AdminListener => self.admin_listener.as_ref(),
            _ => self.listener.as_ref(),
        }
    }

    pub(crate) fn send_slow_frames(&mut self) {
        while let Some(out) = self.slow.next_outgoing() {
            let Some(port) = self.engine.port(out.port) else {
                continue;
            };
            if let Some(mut frame) = port.pool.alloc()
                && frame.fill(&out.bytes)
            {
                self.engine.transmit(out.port, frame);
            }
        }
    }

    /// Asks for neighbours whose time has come, and gives up on the silent.
    pub(crate) fn ask_neighbours(&mut self, now: Instant) {
        let (slow, devices) = (&mut self.slow, &self.devices);
        let failed = self
            .neighbours
            .tick(now, |target, whom| slow.ask(&asked_by(devices, target), whom));
        self.send_slow_frames();
        for resolved in failed {
            self.neighbour_silent(resolved);
        }
    }

    /// The byte of a key that its owner cannot foretell.
    pub(crate) fn next_key_byte(&mut self) -> u8 {
        // xorshift64.
        self.key_bytes ^= self.key_bytes << 13;
        self.key_bytes ^= self.key_bytes >> 7;
        self.key_bytes ^= self.key_bytes << 17;
        (self.key_bytes >> 32) as u8
    }
}
