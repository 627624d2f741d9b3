//! What of the control plane outlives the process: plain records in the daemon's own arenas (DESIGN I13).
//!
//! The table of objects, its trees of ids, mappings and sockets are rebuilt from these. An object's record is written
//! when it becomes findable, after each change ([`Object::save`]), and freed with the object; debug builds compare all
//! of them with their objects now and then.

use std::{io, os::fd::OwnedFd};

use rnic_abi::{Av, Handle};
use rnic_engine::{
    arena::{ArenaBox, ArenaError, ArenaId, RangeArena, SlotArena},
    core::NO_CLIENT,
    view::SLOT_BITS,
};
use rnic_transport::{Access, BadField, Cause, FieldPath, QpState, QpType, Record, record};

use crate::{
    client_record::ClientRecord,
    control::Control,
    events::LastError,
    moment::Moment,
    objects::{Cursor, Inode, Key, Kind, Object, Space, What},
    session_record::SessionRecord,
};

/// Bytes of number slots: address space, not memory.
const SLOT_BYTES: usize = 1 << 34;
/// Number spaces: those of the daemon, and one of each client.
const SPACES: u32 = 1 << 16;
/// Objects of all clients.
const OBJECTS: u32 = 9 << SLOT_BITS;
/// Connections, those that have not said hello included.
const SESSIONS: u32 = 1 << 17;
/// Clients.
pub const CLIENTS: u32 = 1 << 16;
/// Files of the control thread's arenas.
pub const FILES: usize = 5;

/// The arenas of the control thread.
pub struct Store {
    pub(crate) objects: SlotArena<ObjectRecord>,
    pub(crate) cursors: SlotArena<Cursor>,
    pub(crate) numbers: RangeArena,
    pub(crate) sessions: SlotArena<SessionRecord>,
    pub(crate) clients: SlotArena<ClientRecord>,
}

fn ids(epoch: u64) -> [ArenaId; FILES] {
    let owner = 0;
    ["objects", "cursors", "numbers", "sessions", "clients"].map(|kind| ArenaId { kind, owner, epoch })
}

/// What was found in arenas that another process has left.
#[derive(Debug)]
pub struct Found {
    pub objects: Vec<ArenaBox<ObjectRecord>>,
    pub cursors: Vec<ArenaBox<Cursor>>,
    pub sessions: Vec<ArenaBox<SessionRecord>>,
    pub clients: Vec<ArenaBox<ClientRecord>>,
}

impl Store {
    /// Empty arenas.
    pub fn create(epoch: u64) -> Result<Self, ArenaError> {
        let [objects, cursors, numbers, sessions, clients] = ids(epoch);
        Ok(Store {
            objects: SlotArena::create(objects, OBJECTS)?,
            cursors: SlotArena::create(cursors, SPACES)?,
            numbers: RangeArena::create(numbers, SLOT_BYTES)?,
            sessions: SlotArena::create(sessions, SESSIONS)?,
            clients: SlotArena::create(clients, CLIENTS)?,
        })
    }

    /// Arenas that another process has left, in the order of [`Store::files`]; sealed until [`Store::unseal`].
    pub fn open(epoch: u64, files: [OwnedFd; FILES]) -> Result<(Self, Found), ArenaError> {
        let [object, cursor, number, session, client] = ids(epoch);
        let [objects, cursors, numbers, sessions, clients] = files;
        let (objects, found) = SlotArena::<ObjectRecord>::open(object, objects, OBJECTS)?;
        check_all(object, &found, |record| record.check(objects.extent()))?;
        let (cursors, found_cursors) = SlotArena::open(cursor, cursors, SPACES)?;
        let numbers = RangeArena::open(number, numbers, SLOT_BYTES)?;
        let (sessions, found_sessions) = SlotArena::open(session, sessions, SESSIONS)?;
        check_all(session, &found_sessions, SessionRecord::check)?;
        let (clients, found_clients) = SlotArena::open(client, clients, CLIENTS)?;
        check_all(client, &found_clients, ClientRecord::check)?;
        let store = Store {
            objects,
            cursors,
            numbers,
            sessions,
            clients,
        };
        let found = Found {
            objects: found,
            cursors: found_cursors,
            sessions: found_sessions,
            clients: found_clients,
        };
        Ok((store, found))
    }

    /// From now on everything stays as it is, whoever lets go of it.
    pub fn seal(&self) {
        self.objects.seal();
        self.cursors.seal();
        self.numbers.seal();
        self.sessions.seal();
        self.clients.seal();
    }

    /// Everything was taken over.
    pub fn unseal(&self) {
        self.objects.unseal();
        self.cursors.unseal();
        self.numbers.unseal();
        self.sessions.unseal();
        self.clients.unseal();
    }

    /// The files.
    pub fn files(&self) -> io::Result<[OwnedFd; FILES]> {
        Ok([
            self.objects.fd().try_clone_to_owned()?,
            self.cursors.fd().try_clone_to_owned()?,
            self.numbers.fd().try_clone_to_owned()?,
            self.sessions.fd().try_clone_to_owned()?,
            self.clients.fd().try_clone_to_owned()?,
        ])
    }
}

/// Every record passes its own check.
fn check_all<T>(
    arena: ArenaId,
    found: &[ArenaBox<T>],
    check: impl Fn(&T) -> Result<(), BadField>,
) -> Result<(), ArenaError> {
    found.iter().try_for_each(|record| {
        check(record).map_err(|error| ArenaError::Contradiction {
            arena,
            slot: record.slot(),
            error,
        })
    })
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store of {}", self.objects.id())
    }
}

impl Record for Kind {
    fn invalid(bytes: &[u8]) -> Option<FieldPath> {
        zerocopy::TryFromBytes::try_read_from_bytes(bytes).map_or(Some(FieldPath::HERE), |_: Kind| None)
    }
}

impl Record for Space {
    fn invalid(bytes: &[u8]) -> Option<FieldPath> {
        zerocopy::TryFromBytes::try_read_from_bytes(bytes).map_or(Some(FieldPath::HERE), |_: Space| None)
    }
}

record! {
    /// A place in the table of objects. Generations begin at 1: zero is no key.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct KeyRecord {
        pub slot: u32,
        pub generation: u32,
    }
}

record! {
    /// A part of the client's region.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct SliceRecord {
        pub offset: u64,
        pub len: u64,
    }
}

record! {
    /// What of a QP is the control thread's; of an AH, its address vector.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct QpPart {
        /// The address vector given last, as the client gave it, if `has_av`.
        pub dgid: [u8; 16],
        pub flow_label: u32,
        pub sgid_index: u8,
        pub hop_limit: u8,
        pub traffic_class: u8,
        pub sl: u8,
        pub has_av: bool,
        pub state: QpState,
        pub dest_qpn: u32,
        pub qp_type: QpType,
        pub core: u32,
        pub core_bytes: u64,
    }
}

record! {
    /// What of an MR is not said by its length and its key.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct MrPart {
        /// Address by which work requests name the first byte.
        pub iova: u64,
        /// Where it begins in the client's memfd.
        pub offset: u64,
        pub access: Access,
        pub invalidatable: bool,
    }
}

record! {
    /// The file that an XRC domain stands for, if any.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct InodeRecord {
        pub set: bool,
        pub device: u64,
        pub number: u64,
    }
}

record! {
    /// The last error that an object reported, if any.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct ErrorRecord {
        set: bool,
        cause: Cause,
        at: Moment,
    }
}

impl ErrorRecord {
    fn of(error: Option<LastError>) -> Self {
        error.map_or_else(Self::default, |LastError { cause, at }| ErrorRecord {
            set: true,
            cause,
            at,
        })
    }

    /// The error.
    pub fn error(&self) -> Option<LastError> {
        let ErrorRecord { set, cause, at } = *self;
        set.then_some(LastError { cause, at })
    }
}

record! {
    /// An object of a client.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct ObjectRecord {
        pub kind: Kind,
        /// A CQ that has overflowed, an SRQ whose ring was forged.
        pub failed: bool,
        /// Where it stands in the table.
        pub key: KeyRecord,
        /// Connection and index of the client.
        pub owner: u32,
        pub client: u32,
        pub handle: u32,
        pub device: u32,
        /// Events reported.
        pub reported: u32,
        pub born: Moment,
        pub error: ErrorRecord,
        /// PD number, key, QPN, or number of a CQ, AH, SRQ, MW or XRC domain; zero for a channel and a hold on a target QP.
        pub number: u32,
        /// Entries of a CQ's sub-rings, units of an SRQ.
        pub depth: u32,
        /// Units of each receive of an SRQ, and what its limit is armed with; count and period of a CQ's moderation; the limit
        /// of an MW is its type.
        pub stride: u32,
        pub limit: u32,
        /// What it depends on: PD, CQs and SRQ of a QP, as many as its type has; the PD of an MR, MW, AH or SRQ, then CQ and
        /// domain of an XRC SRQ; the channel of a CQ; domain and QP of a hold on a target QP.
        pub depends: [KeyRecord; 4],
        /// Bytes of an MR.
        pub length: u64,
        pub mr: MrPart,
        /// Both queues of a QP, a CQ and what was left of it in its old place, or an SRQ.
        pub slices: [SliceRecord; 2],
        pub qp: QpPart,
        /// XRC domain of a target QP; of the domain itself see `number`.
        pub xrcd: u32,
        pub inode: InodeRecord,
    }
}

impl QpPart {
    fn take_av(&mut self, av: Option<&Av>) {
        if let Some(av) = av {
            *self = QpPart {
                has_av: true,
                dgid: av.dgid,
                flow_label: av.flow_label,
                sgid_index: av.sgid_index,
                hop_limit: av.hop_limit,
                traffic_class: av.traffic_class,
                sl: av.sl,
                ..*self
            };
        }
    }

    /// The address vector, if there is one.
    pub fn av(&self) -> Option<Av> {
        self.has_av.then_some(Av {
            dgid: self.dgid,
            flow_label: self.flow_label,
            sgid_index: self.sgid_index,
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            sl: self.sl,
        })
    }
}

impl ObjectRecord {
    /// What is to be kept of an object that stands at `key`.
    pub fn of(key: Key, client: u32, object: &Object) -> Self {
        let mut depends = [KeyRecord::default(); 4];
        for (to, from) in depends.iter_mut().zip(object.depends_on()) {
            *to = from.record();
        }
        let mut record = ObjectRecord {
            kind: object.kind(),
            failed: false,
            key: key.record(),
            owner: object.owner,
            client,
            handle: object.handle.0,
            device: object.device,
            reported: object.reported,
            born: object.born,
            error: ErrorRecord::of(object.last_error),
            number: 0,
            depth: 0,
            stride: 0,
            limit: 0,
            depends,
            length: 0,
            mr: MrPart::default(),
            slices: Default::default(),
            qp: QpPart::default(),
            xrcd: 0,
            inode: InodeRecord::default(),
        };
        let slice = |slice: &crate::region_alloc::Slice| SliceRecord {
            offset: slice.offset as u64,
            len: slice.len as u64,
        };
        match &object.what {
            What::Pd(pd) => record.number = pd.number,
            What::Channel(_) => {}
            What::Mr(mr) => {
                (record.number, record.length) = (mr.key, mr.length);
                record.mr = mr.part;
            }
            What::Cq(cq) => {
                (record.number, record.depth, record.failed) = (cq.number, cq.depth, cq.failed);
                (record.stride, record.limit) = (cq.moderation.0.into(), cq.moderation.1.into());
                record.slices = [slice(&cq.slice), cq.left.as_ref().map(slice).unwrap_or_default()];
            }
            What::Qp(qp) => {
                record.number = qp.qpn;
                record.slices = [&qp.sq, &qp.rq].map(|queue| queue.as_ref().map(slice).unwrap_or_default());
                record.xrcd = qp.xrcd;
                record.qp = QpPart {
                    state: qp.state,
                    dest_qpn: qp.dest_qpn,
                    qp_type: qp.qp_type,
                    core: qp.core as u32,
                    core_bytes: qp.core_bytes as u64,
                    ..QpPart::default()
                };
                record.qp.take_av(qp.av.as_ref());
            }
            What::Srq(srq) => {
                (record.number, record.depth, record.failed) = (srq.number, srq.depth, srq.failed);
                (record.stride, record.limit) = (srq.stride, srq.limit);
                record.slices[0] = slice(&srq.slice);
                record.qp.core = srq.core as u32;
            }
            What::Xrcd(xrcd) => {
                record.number = xrcd.number;
                record.qp.core = xrcd.core as u32;
                if let Some(Inode { device, number }) = xrcd.inode {
                    record.inode = InodeRecord {
                        set: true,
                        device,
                        number,
                    };
                }
            }
            What::Target(_) => {}
            What::Mw(mw) => (record.number, record.limit) = (mw.number, mw.kind as u32),
            What::Ah(ah) => {
                record.number = ah.number;
                record.qp.take_av(Some(&ah.av));
            }
        }
        record
    }

    /// Checks values against each other. Neither the table nor the arena ever has a place more than there were objects
    /// at once, of which `extent` is a bound.
    fn check(&self, extent: u32) -> Result<(), BadField> {
        let slot = self.key.slot;
        BadField::unless(
            slot < extent,
            "key.slot",
            slot,
            "a place that a table of so many objects has",
        )?;
        let generation = self.key.generation;
        BadField::unless(generation != 0, "key.generation", generation, "from 1 on")?;
        let of_nobody = self.kind == Kind::Qp && self.qp.qp_type == QpType::XrcTgt;
        BadField::unless(
            (self.client == NO_CLIENT) == of_nobody,
            "client",
            self.client,
            "a client's index, but of an XRC target QP",
        )?;
        let handle = Handle(self.handle);
        BadField::unless(
            handle.generation() != 0 || self.client == NO_CLIENT,
            "handle",
            self.handle,
            "of a generation from 1 on",
        )?;
        let needs = match self.kind {
            Kind::Pd | Kind::Channel | Kind::Cq | Kind::Xrcd => 0,
            // A hold that is being destroyed has let go of its QP.
            Kind::Mr | Kind::Mw | Kind::Ah | Kind::Srq | Kind::Target => 1,
            Kind::Qp if self.qp.qp_type.has_recv_queue() => 3,
            Kind::Qp if self.qp.qp_type.has_send_queue() => 2,
            Kind::Qp => 0,
        };
        let has = self.depends.iter().take_while(|key| key.generation != 0).count();
        BadField::unless(
            has >= needs,
            "depends",
            has as u64,
            "the objects its kind depends on",
        )?;
        let MrPart {
            iova, offset, access, ..
        } = self.mr;
        let rights = Access::from_bits(access.bits().into()).is_some();
        BadField::unless(rights, "mr.access", access.bits(), "access rights (0x33f)")?;
        let fits = iova.checked_add(self.length).is_some() && offset.checked_add(self.length).is_some();
        BadField::unless(
            fits,
            "length",
            self.length,
            "such that iova and offset and it fit 64 bits",
        )?;
        for slice in &self.slices {
            let end = slice.offset.checked_add(slice.len);
            BadField::unless(
                end.is_some(),
                "slices",
                slice.offset,
                "such that the end fits 64 bits",
            )?;
        }
        Ok(())
    }
}

impl Object {
    /// Writes its record, if it has one: after every change.
    pub(crate) fn save(&mut self) {
        if let Some(mut record) = self.record.take() {
            let key = Key::of(record.key);
            *record = ObjectRecord::of(key, record.client, self);
            self.record = Some(record);
        }
    }

    /// Whether its record says what it is.
    #[cfg(debug_assertions)]
    pub(crate) fn is_saved(&self) -> bool {
        self.record
            .as_ref()
            .is_none_or(|record| **record == ObjectRecord::of(Key::of(record.key), record.client, self))
    }
}

impl Control {
    /// The files of the registry's arenas: whoever keeps them open can rebuild it ([`crate::restore::Restored`]) when
    /// this process is gone, together with the engine's image.
    pub fn registry_files(&self) -> io::Result<[OwnedFd; FILES]> {
        self.store.files()
    }

    /// Writes the record of an object that was changed.
    pub(crate) fn save(&mut self, key: Key) {
        if let Some(object) = self.objects.peek_mut(key) {
            object.save();
        }
    }

    /// Debug builds: every record says what its object is.
    pub(crate) fn audit(&self) {
        #[cfg(debug_assertions)]
        for (key, object) in self.objects.iter() {
            assert!(object.is_saved(), "{key:?} was changed and not saved: {object:?}");
        }
    }
}
