//! The registry of another process, rebuilt from its arenas (DESIGN I13): the table of objects with all its ids and
//! holds, the numbers, which go on in the order in which they would have, the sessions with their last replies, and what
//! each client has in use.

mod clients;
mod numbers;

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc};

use rnic_abi::Handle;
use rnic_engine::{
    arena::{ArenaBox, ArenaError},
    core::NO_CLIENT,
    mem::{ClientMem, WindowType},
    view,
};
use rnic_transport::{BadField, QpType};

pub(crate) use clients::RestoredClient;

use crate::{
    handover::{object_line, session_line},
    objects::{
        Ah, Channel, Cq, Id, IdKind, Inode, Key, Kind, Mr, Mw, Numbers, Object, Pd, Qp, Space, Srq, Table,
        Target, What, XrcKeys, Xrcd,
    },
    region_alloc::Slice,
    session::Session,
    session_record::SessionRecord,
    store::{FILES, ObjectRecord, SliceRecord, Store},
};

/// What objects have in this process alone.
pub trait Resources {
    /// The mapping behind a key: `length` bytes from `offset` of the client's memfd.
    fn mapping(&mut self, key: u32, offset: u64, length: u64) -> Option<ClientMem>;
    /// The daemon's end of a completion channel, by index of the client and handle.
    fn channel(&mut self, client: u32, handle: u32) -> Option<Arc<OwnedFd>>;
}

/// Why a registry cannot be rebuilt. The arenas stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// An arena is damaged.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Memory or a socket of an object is not there.
    #[error("the {kind} with handle {handle:#x} of client {client} lacks its {what}")]
    Missing {
        /// What sort of object.
        kind: &'static str,
        /// Its handle.
        handle: u32,
        /// Index of its client.
        client: u32,
        /// What it lacks.
        what: &'static str,
    },
    /// There is no such session, or it was resumed before.
    #[error("there is no session {0:#x} to be resumed")]
    NoSession(u64),
    /// The last reply of a session cannot be sent again as it was.
    #[error("the last reply of session {session:#x} brought {need} descriptors ({kind}); there are {got}")]
    Descriptors {
        /// Its number.
        session: u64,
        /// What they were.
        kind: &'static str,
        /// How many the reply brought.
        need: u32,
        /// How many there are.
        got: usize,
    },
}

/// A registry that was rebuilt.
pub struct Restored {
    pub(crate) objects: Table<Object>,
    numbers: BTreeMap<(Space, u32), Numbers>,
    /// By number.
    sessions: BTreeMap<u64, ArenaBox<SessionRecord>>,
    /// By index.
    pub(crate) clients: BTreeMap<u32, RestoredClient>,
    store: Arc<Store>,
}

impl Restored {
    /// Rebuilds what the daemon of this boot epoch, with as many poll `cores`, has left in its arenas (in the order of
    /// `Store::files`). Until [`Restored::take_over`] they are only read.
    ///
    /// # Errors
    /// Records that are damaged or contradict each other, each with its place; resources that are not there.
    pub fn open(
        boot_epoch: u64,
        cores: usize,
        files: [OwnedFd; FILES],
        resources: &mut impl Resources,
    ) -> Result<Self, RestoreError> {
        let (store, found) = Store::open(boot_epoch, files)?;
        let store = Arc::new(store);
        let mut restored = Restored {
            objects: Table::default(),
            numbers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            store,
        };
        restored.put_clients(cores, found.clients, found.sessions)?;
        let mut holds = Vec::new();
        for record in found.objects {
            let depends = record.depends;
            restored.charge(&record)?;
            let needed = depends.into_iter().filter(|key| key.generation != 0);
            holds.extend(needed.map(|key| (record.slot(), Key::of(key))));
            restored.put_back(record, resources)?;
        }
        for (slot, key) in holds {
            if !restored.objects.hold(key) {
                let value = key.record().slot;
                let must = "the place of an object that is there";
                return Err(restored.wrong(slot, "depends", value, must));
            }
        }
        restored.objects.restored();
        restored.know_holders()?;
        restored.put_numbers(found.cursors)?;
        restored.check_numbers()?;
        Ok(restored)
    }

    /// From now on the arenas are this process's: what is destroyed is freed in them, and numbers that nobody has are
    /// free.
    pub fn take_over(&mut self) {
        self.store.unseal();
        self.take_back_numbers();
    }

    /// The session of this number, over a new socket, with the descriptors of its last reply made anew and in their
    /// order. Who asks for that reply again gets it.
    ///
    /// # Errors
    /// There is no such session, or the last reply brought another number of descriptors.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the restart"))]
    pub(crate) fn session(
        &mut self,
        number: u64,
        socket: OwnedFd,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Result<Session, RestoreError> {
        let record = self
            .sessions
            .get(&number)
            .ok_or(RestoreError::NoSession(number))?;
        if let Some(kept) = record.last()
            && kept.fds as usize != fds.len()
        {
            return Err(RestoreError::Descriptors {
                session: number,
                kind: kept.descriptors.name(),
                need: kept.fds,
                got: fds.len(),
            });
        }
        let record = self.sessions.remove(&number);
        let record = record.ok_or(RestoreError::NoSession(number))?;
        Ok(Session::resume(socket, record, fds))
    }

    /// A line for each object, client, session and number space, sorted: the same as in
    /// [`crate::handover::Image::inventory`].
    pub fn inventory(&self) -> Vec<String> {
        let line = |(key, object): (Key, &Object)| {
            let record = object.record.as_ref()?;
            Some(object_line(record, self.objects.users(key)))
        };
        let mut lines: Vec<String> = self.objects.iter().filter_map(line).collect();
        lines.extend(self.clients.values().map(RestoredClient::describe));
        lines.extend(self.sessions.values().map(|record| session_line(&**record)));
        lines.extend(self.numbers.values().map(Numbers::describe));
        lines.sort();
        lines
    }

    fn wrong(
        &self,
        slot: u32,
        field: &'static str,
        value: impl Into<u64>,
        must: &'static str,
    ) -> RestoreError {
        let (arena, value) = (self.store.objects.id(), value.into());
        let error = BadField { field, value, must };
        ArenaError::Contradiction { arena, slot, error }.into()
    }

    /// Every XRC target QP learns who holds it.
    fn know_holders(&mut self) -> Result<(), RestoreError> {
        let holds: Vec<(u32, Key, Key)> = self
            .objects
            .iter()
            .filter_map(|(key, object)| match &object.what {
                What::Target(target) => Some((object.record.as_ref()?.slot(), key, target.qp?)),
                _ => None,
            })
            .collect();
        for (slot, holder, qp) in holds {
            match self.objects.peek_mut(qp).map(|object| &mut object.what) {
                Some(What::Qp(qp)) if qp.qp_type == QpType::XrcTgt => qp.holders.push(holder),
                _ => {
                    let value = qp.record().slot;
                    return Err(self.wrong(slot, "depends", value, "the place of an XRC target QP"));
                }
            }
        }
        Ok(())
    }

    fn put_back(
        &mut self,
        record: ArenaBox<ObjectRecord>,
        resources: &mut impl Resources,
    ) -> Result<(), RestoreError> {
        let (slot, key, ids) = (record.slot(), Key::of(record.key), ids(&record));
        let what = self.what(slot, &record, resources)?;
        let mut object = Object::new(record.owner, Handle(record.handle), record.device, what);
        object.reported = record.reported;
        (object.born, object.last_error) = (record.born, record.error.error());
        object.record = Some(record);
        if self.objects.restore(key, object, ids) {
            return Ok(());
        }
        Err(self.wrong(
            slot,
            "key",
            key.record().slot,
            "a place, and ids, that no other object has",
        ))
    }

    fn what(
        &self,
        slot: u32,
        record: &ObjectRecord,
        resources: &mut impl Resources,
    ) -> Result<What, RestoreError> {
        let ObjectRecord {
            number,
            client,
            handle,
            length,
            mr,
            qp,
            ..
        } = *record;
        let missing = |kind, what| RestoreError::Missing {
            kind,
            handle,
            client,
            what,
        };
        let depends = record.depends.map(Key::of);
        let key = |at: usize| (record.depends[at].generation != 0).then_some(depends[at]);
        let slices = record.slices.map(slice);
        Ok(match record.kind {
            Kind::Pd => What::Pd(Pd { number }),
            Kind::Channel => {
                let socket = resources.channel(client, handle);
                let socket = socket.ok_or_else(|| missing("completion channel", "socket"))?;
                What::Channel(Channel { socket })
            }
            Kind::Mr => {
                let mem = resources
                    .mapping(number, mr.offset, length)
                    .filter(|mem| mem.len() as u64 >= length);
                What::Mr(Mr {
                    pd: depends[0],
                    slot: view::slot_of(number >> 8),
                    key: number,
                    length,
                    part: mr,
                    invalidated: None,
                    mem: mem.ok_or_else(|| missing("MR", "memory"))?,
                })
            }
            Kind::Cq => {
                if !record.depth.is_power_of_two() {
                    return Err(self.wrong(slot, "depth", record.depth, "a power of two"));
                }
                let sixteen = |field, value: u32| {
                    u16::try_from(value).map_err(|_| self.wrong(slot, field, value, "16 bits of a CQ"))
                };
                let moderation = (sixteen("stride", record.stride)?, sixteen("limit", record.limit)?);
                What::Cq(Cq {
                    number,
                    slice: slices[0],
                    depth: record.depth,
                    channel: (record.depends[0].generation != 0).then_some(depends[0]),
                    failed: record.failed,
                    left: (record.slices[1].len != 0).then_some(slices[1]),
                    moderation,
                })
            }
            Kind::Srq => {
                if !record.depth.is_power_of_two() || record.stride == 0 || record.stride > record.depth {
                    let must = "1 to the units of a ring whose depth is a power of two";
                    return Err(self.wrong(slot, "stride", record.stride, must));
                }
                What::Srq(Srq {
                    number,
                    pd: depends[0],
                    core: qp.core as usize,
                    slice: slices[0],
                    depth: record.depth,
                    stride: record.stride,
                    limit: record.limit,
                    failed: record.failed,
                    xrc: (record.depends[2].generation != 0).then_some(XrcKeys {
                        cq: depends[1],
                        xrcd: depends[2],
                    }),
                })
            }
            Kind::Mw => {
                let Some(kind) = WindowType::from_verbs(record.limit) else {
                    return Err(self.wrong(slot, "limit", record.limit, "1 or 2, the type of an MW"));
                };
                What::Mw(Mw {
                    pd: depends[0],
                    number,
                    kind,
                })
            }
            Kind::Ah => {
                let Some(av) = qp.av() else {
                    return Err(self.wrong(slot, "qp.has_av", 0u8, "set in an AH"));
                };
                What::Ah(Ah::restored(depends[0], number, av))
            }
            Kind::Xrcd => What::Xrcd(Xrcd {
                number,
                core: qp.core as usize,
                inode: record.inode.set.then_some(Inode {
                    device: record.inode.device,
                    number: record.inode.number,
                }),
            }),
            Kind::Target => What::Target(Target {
                xrcd: depends[0],
                qp: key(1),
            }),
            Kind::Qp => What::Qp(Box::new(Qp {
                qpn: number,
                qp_type: qp.qp_type,
                pd: key(0),
                send_cq: key(1),
                recv_cq: key(2),
                core: qp.core as usize,
                here: None,
                sq: qp.qp_type.has_send_queue().then_some(slices[0]),
                rq: (qp.qp_type.has_recv_queue() && key(3).is_none()).then_some(slices[1]),
                srq: key(3),
                core_bytes: qp.core_bytes as usize,
                state: qp.state,
                av: qp.av(),
                // Resolved again when it is next changed; its core has the path itself.
                path: None,
                hop: None,
                // A hold of a table of this process: taken again when the devices are there.
                gid: None,
                dest_qpn: qp.dest_qpn,
                groups: Vec::new(),
                xrcd: record.xrcd,
                holders: Vec::new(),
            })),
        })
    }
}

fn slice(record: SliceRecord) -> Slice {
    Slice {
        offset: record.offset as usize,
        len: record.len as usize,
    }
}

/// By what an object is found, besides its handle.
pub(crate) fn number_of(kind: Kind, number: u32) -> Option<Id> {
    Some(match kind {
        Kind::Pd => (IdKind::Number(view::Kind::Pd), number),
        // Without the byte that its owner cannot foretell.
        Kind::Mr => (IdKind::Number(view::Kind::Mr), number >> 8),
        Kind::Cq => (IdKind::Number(view::Kind::Cq), number),
        Kind::Qp => (IdKind::Number(view::Kind::Qp), number),
        Kind::Mw => (IdKind::Number(view::Kind::Mw), number),
        Kind::Ah => (IdKind::Number(view::Kind::Ah), number),
        Kind::Srq => (IdKind::Number(view::Kind::Srq), number),
        Kind::Channel | Kind::Xrcd | Kind::Target => return None,
    })
}

fn ids(record: &ObjectRecord) -> impl Iterator<Item = Id> + use<> {
    let (client, handle) = (record.client, record.handle);
    let doorbells = [IdKind::SendDoorbell(client), IdKind::RecvDoorbell(client)];
    let qp = record.kind == Kind::Qp;
    let doorbells = doorbells
        .into_iter()
        .filter(move |_| qp)
        .map(move |kind| (kind, handle));
    let of_client = [(IdKind::Handle(client), handle)].into_iter().chain(doorbells);
    of_client
        .filter(move |_| client != NO_CLIENT)
        .chain(number_of(record.kind, record.number))
}
