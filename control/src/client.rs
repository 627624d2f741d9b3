//! A client: a session that said hello, its context region and what it owns.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rnic_abi::{Handle, Hello, HelloReply, LINE, RegionLayout};
use rnic_engine::{
    PORT_SLOTS,
    arena::ArenaBox,
    command::Command,
    core::ClientDoorbells,
    mem::{ClientMem, FaultCell},
    nonblocking::might_block,
};
use rustix::{fs::FallocateFlags, io::Errno};

use crate::{
    client_record::{ClientRecord, DevicePlace},
    control::Control,
    dispatch::Outcome,
    events::EventRing,
    handover::client_line,
    objects::{Id, IdKind, Key, Kind, Numbers, Object, Space},
    ops::Work,
    quota::Usage,
    refusal::{Refusal, Verb},
    region_alloc::{RegionSpace, Slice},
    registry::{ClientId, DeviceId},
    session::{Reply, Session},
    socket,
    store::ObjectRecord,
};

/// Slices from this size on are given back to the kernel when they are freed.
const PUNCH: usize = 64 << 10;

/// A connection of the verbs socket.
pub struct Connection {
    /// The session.
    pub session: Session,
    /// The client, once it said hello.
    pub client: Option<Box<Client>>,
    /// Its socket is closed or it is broken: no more requests, everything it owns is being destroyed.
    pub leaving: bool,
    /// The event loop is told of its requests.
    pub watched: bool,
    /// When it was accepted.
    pub since: Instant,
}

impl Connection {
    /// Whether nobody has said hello on it; one whose hello is being answered has.
    pub fn is_stranger(&self) -> bool {
        self.client.is_none()
    }
}

/// A client.
pub struct Client {
    /// Its index on the poll cores.
    pub index: u32,
    /// The context region.
    pub region: Arc<ClientMem>,
    /// The region's memfd.
    memfd: Arc<OwnedFd>,
    /// Free queue space of the region.
    space: RegionSpace,
    /// Where the queue space begins in the region.
    fixed: usize,
    /// What the cores keep for it, in bytes.
    core_bytes: usize,
    /// Producer of its asynchronous events.
    pub events: EventRing,
    /// The daemon's end of its event socket.
    event_socket: OwnedFd,
    /// Handles.
    handles: Numbers,
    /// Everything it owns.
    pub objects: BTreeSet<Key>,
    /// Numbers of its memory windows of type 2, which a QP that goes is looked for in.
    pub windows: BTreeSet<u32>,
    /// What it uses of its quota.
    pub usage: Usage,
    /// Set when its memory was not there.
    pub fault: Arc<FaultCell>,
    /// Bytes of its destroyed objects that await a grace period.
    pub awaiting_grace: usize,
    /// What of it outlives the process.
    pub record: ArenaBox<ClientRecord>,
    /// Its registration with the device registry.
    pub registered: Option<ClientId>,
}

impl Client {
    /// The client learns of a device; `false` when it knows, or knew, another in that place.
    pub fn see(&mut self, id: DeviceId) -> bool {
        let Some(place) = self.record.devices.get_mut(usize::from(id.slot)) else {
            return false;
        };
        if !place.known {
            *place = DevicePlace {
                known: true,
                generation: id.generation,
                sequence: 0,
            };
            // The first slots are the devices' own: port events have handles of generation 0.
            self.events.install(&self.region, Handle(id.slot.into()), 1);
        }
        self.sees(id)
    }

    /// Whether it knows a device.
    pub fn sees(&self, id: DeviceId) -> bool {
        self.device_at(u32::from(id.slot)) == Some(id)
    }

    /// The device it knows in a place.
    pub fn device_at(&self, place: u32) -> Option<DeviceId> {
        self.record.device_at(place)
    }

    /// Sets the sequence of a device's state, before its event is raised.
    pub fn set_sequence(&mut self, place: u32, sequence: u32) {
        if let Some(known) = self.record.devices.get_mut(place as usize) {
            known.sequence = sequence;
        }
        self.events.set_sequence(&self.region, place, sequence);
    }

    /// Its handles.
    pub fn handles(&self) -> &Numbers {
        &self.handles
    }

    /// What is handed over of it, in one line.
    pub fn describe(&self) -> String {
        client_line(&self.record, &self.usage, &self.objects, &self.space)
    }

    /// Tells it that there are events.
    pub fn wake(&self) {
        socket::wake(&self.event_socket);
    }

    /// Gives the whole queue space back to the kernel: no queue is left. Tells what the client still takes, in bytes.
    pub fn shrink(&self) -> usize {
        let len = self.region.len() - self.fixed;
        self.punch(self.fixed, len);
        self.fixed + self.core_bytes
    }

    /// Gives a part of the region back to the kernel. Without it the pages merely stay.
    fn punch(&self, offset: usize, len: usize) {
        might_block();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(self.memfd.as_fd(), flags, offset as u64, len as u64);
    }
}

impl Control {
    /// The client of a connection that has said hello.
    pub(crate) fn client_mut(&mut self, conn: u32) -> Verb<&mut Client> {
        let client = self
            .connections
            .get_mut(&conn)
            .and_then(|c| c.client.as_deref_mut());
        client.ok_or_else(|| Refusal::new(Errno::NOTCONN, "the client is gone"))
    }

    pub(crate) fn hello(&mut self, conn: u32, hello: &Hello) -> Verb<Outcome> {
        if hello.features != 0 {
            tracing::debug!(
                features = hello.features,
                "the client knows features this rnicd does not have"
            );
        }
        self.all_answer()?;
        let limit = self.config.limits.clients;
        let full = || {
            Refusal::again(format!(
                "{limit} clients are connected, as many as may be (limits.clients); try later"
            ))
        };
        let index = self.numbers.clients.take().ok_or_else(full)?.slot;
        match self.admit_client(conn, index) {
            Ok(()) => Ok(Outcome::Pending),
            Err(errno) => {
                self.numbers.clients.give(index);
                Err(Refusal::new(
                    errno,
                    format!("making the context region failed: {errno}"),
                ))
            }
        }
    }

    fn admit_client(&mut self, conn: u32, index: u32) -> Result<(), Errno> {
        let cores = self.engine.core_count() as u32;
        // The client's places for devices, those that may come later included.
        let devices = PORT_SLOTS as u32;
        let max_objects = self.quota.objects().min(Handle::MAX_SLOTS - devices);
        let queue_bytes =
            usize::try_from(self.quota.limits.queue_memory.bytes()).map_err(|_| Errno::NOMEM)?;
        // The first slots are the devices' own: port events have handles of generation 0.
        let layout = RegionLayout::new(devices + max_objects, cores, queue_bytes);
        let fault = Arc::<FaultCell>::default();
        let made = ClientMem::create("rnic-context", layout.size, fault.clone());
        let (region, memfd) = made.map_err(|error| {
            tracing::warn!(%error, "no context region for a client");
            Errno::NOMEM
        })?;
        let region = Arc::new(region);
        region.write(0, &layout.header(self.boot_epoch));
        let events = EventRing::new(layout);
        let (event_socket, their_events) = socket::pair()?;
        let mut fds = vec![Arc::new(memfd), Arc::new(their_events)];
        let memfd = fds[0].clone();
        let mut doorbells = Vec::new();
        for core in 0..cores {
            let (ours, theirs) = socket::pair()?;
            fds.push(Arc::new(theirs));
            let made = ClientDoorbells::new(region.clone(), &layout, core, ours);
            doorbells.push(made.map_err(|_| Errno::NOMEM)?);
        }
        let Some(connection) = self.connections.get_mut(&conn) else {
            return Err(Errno::NOTCONN);
        };
        let reply = HelloReply {
            session: connection.session.number(),
            boot_epoch: self.boot_epoch,
            region_size: layout.size as u64,
            devices,
            cores,
            max_objects,
            reserved: 0,
        };
        let handles = Numbers::new(&self.store, Space::Handles, index, devices, devices + max_objects);
        let handles = handles.map_err(|error| {
            tracing::warn!(%error, "no handles for a client");
            Errno::NOMEM
        })?;
        let record = self.store.clients.put(ClientRecord::new(index, conn, &layout));
        let record = record.map_err(|error| {
            tracing::warn!(%error, "no place for a client");
            Errno::NOMEM
        })?;
        let mut client = Box::new(Client {
            index,
            memfd,
            fixed: layout.queues,
            core_bytes: doorbells.iter().map(|doorbells| doorbells.bytes()).sum(),
            space: RegionSpace::new(layout.queues.next_multiple_of(LINE), layout.size),
            events,
            event_socket,
            handles,
            objects: BTreeSet::new(),
            windows: BTreeSet::new(),
            usage: Usage::default(),
            fault,
            awaiting_grace: 0,
            region,
            record,
            registered: None,
        });
        for device in self.devices.iter().filter(|device| device.entry.is_present()) {
            let id = device.entry.id;
            client.see(id);
            client.set_sequence(id.slot.into(), device.sequence);
        }
        connection.client = Some(client);
        self.by_index.insert(index, conn);
        let op = self.begin(conn, Work::Hello(Reply::with_fds(&reply, fds)));
        for (core, doorbells) in doorbells.into_iter().enumerate() {
            self.command(op, core, |token| Command::AddClient {
                client: index,
                doorbells,
                token,
            });
        }
        Ok(())
    }

    /// Every core watches the client's doorbells.
    pub(crate) fn client_admitted(&mut self, conn: u32) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            let Connection { session, client, .. } = connection;
            if let Some(client) = client {
                session.greet(client.index);
            }
            let peer = &session.peer;
            tracing::info!(session = session.number(), pid = peer.pid, comm = %peer.comm, "client connected");
            self.register_session(conn);
        }
    }

    /// Checks that the client may make one more object of a kind.
    pub(crate) fn allow(&mut self, conn: u32, kind: Kind) -> Verb<()> {
        let gate = self.grace_gate() as u64;
        let total = (self.bytes_awaiting_grace() as u64, self.grace.is_full());
        let client = self.client_mut(conn)?;
        let (own, usage) = (client.awaiting_grace as u64, client.usage.clone());
        let who = || self.who_holds_up(Instant::now());
        self.quota.check_grace(own, total, gate, who)?;
        self.quota.check(&usage, kind)
    }

    /// A new handle.
    pub(crate) fn take_handle(&mut self, conn: u32) -> Verb<Handle> {
        let number = self.client_mut(conn)?.handles.take();
        let number = number.ok_or_else(|| Refusal::exhausted("every handle of this client is in use"))?;
        Ok(Handle::new(number.slot, number.generation))
    }

    /// Takes back a handle.
    pub(crate) fn give_handle(&mut self, conn: u32, handle: Handle) {
        if let Ok(client) = self.client_mut(conn) {
            client.handles.give(handle.slot());
        }
    }

    /// Queue space in the client's region.
    pub(crate) fn take_queue_space(&mut self, conn: u32, len: usize) -> Verb<Slice> {
        let limit = self.quota.limits.queue_memory;
        let client = self.client_mut(conn)?;
        client.space.take(len).ok_or_else(|| {
            let used = client.space.used();
            Refusal::exhausted(format!(
                "a queue of {len} bytes does not fit: {used} of this client's {limit} are in use \
                 (limits.per_client.queue_memory)"
            ))
        })
    }

    /// A handle, and queue space behind it; both or neither.
    pub(crate) fn take_place(&mut self, conn: u32, len: usize) -> Verb<(Handle, Slice)> {
        let handle = self.take_handle(conn)?;
        let slice = self.take_queue_space(conn, len);
        let slice = slice.inspect_err(|_| self.give_handle(conn, handle))?;
        Ok((handle, slice))
    }

    /// Takes back queue space; large parts go back to the kernel.
    pub(crate) fn give_queue_space(&mut self, conn: u32, slice: Slice) {
        let Ok(client) = self.client_mut(conn) else { return };
        if slice.len >= PUNCH {
            client.punch(slice.offset, slice.len);
        }
        client.space.give(slice);
    }

    /// Holds an object of the client on behalf of one that will depend on it; also tells its device, which
    /// [`Self::check_present_for`] has looked at before.
    pub(crate) fn hold(&mut self, conn: u32, kind: Kind, handle: u32, field: &str) -> Verb<(Key, u32)> {
        let key = self.find(conn, kind, handle, field)?;
        let index = self.client_mut(conn)?.index;
        self.objects.get(IdKind::Handle(index), handle);
        Ok((key, self.objects.peek(key).map_or(0, |object| object.device)))
    }

    /// Refuses what is new on a device that is being removed or gone.
    pub(crate) fn check_present(&self, conn: u32, device: u32) -> Verb<()> {
        self.device(conn, device).map(drop)
    }

    /// The same of the device of a PD. Before quotas are looked at: no room would help who asks for a device that is gone.
    pub(crate) fn check_present_for(&mut self, conn: u32, pd: u32) -> Verb<()> {
        let key = self.find(conn, Kind::Pd, pd, "pd")?;
        let device = self.objects.peek(key).map_or(0, |object| object.device);
        self.check_present(conn, device)
    }

    /// A live object of the client.
    pub(crate) fn find(&mut self, conn: u32, kind: Kind, handle: u32, field: &str) -> Verb<Key> {
        let index = self.client_mut(conn)?.index;
        let found = self.objects.find(IdKind::Handle(index), handle);
        let object = found.and_then(|key| Some((key, self.objects.peek(key)?.kind())));
        match object {
            Some((key, of)) if of == kind => Ok(key),
            Some((_, of)) => Err(Refusal::invalid(format!(
                "{field} is {handle:#x}, which is a {of}; it must be a {kind}"
            ))),
            None => Err(Refusal::invalid(format!(
                "{field} is {handle:#x}; this client has no such {kind} (destroyed already?)"
            ))),
        }
    }

    /// Makes a complete object findable.
    pub(crate) fn publish(&mut self, object: Object, other: Option<Id>) {
        let (conn, handle, kind) = (object.owner, object.handle, object.kind());
        let Ok(client) = self.client_mut(conn) else { return };
        let index = client.index;
        let own = [(IdKind::Handle(index), handle.0)];
        // Both queues of a QP ring the same bit, which is the slot of its handle.
        let bits = [IdKind::SendDoorbell(index), IdKind::RecvDoorbell(index)];
        let doorbells = bits
            .into_iter()
            .filter(|_| kind == Kind::Qp)
            .map(|bit| (bit, handle.0));
        let key = self
            .objects
            .add(object, own.into_iter().chain(doorbells).chain(other));
        if let Some(object) = self.objects.peek_mut(key) {
            match self.store.objects.put(ObjectRecord::of(key, index, object)) {
                Ok(record) => object.record = Some(record),
                // It works all the same, but no other process will find it.
                Err(error) => tracing::error!(%error, "an object has no place in its arena"),
            }
        }
        if let Ok(client) = self.client_mut(conn) {
            client.objects.insert(key);
            client.usage.add(kind);
        }
    }
}
