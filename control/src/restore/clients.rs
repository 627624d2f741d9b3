//! Clients and sessions of another process: who they are, and what they have in use, counted anew.

use std::collections::{BTreeMap, BTreeSet};

use rnic_abi::{Handle, LINE};
use rnic_engine::{
    arena::{ArenaBox, ArenaError, ArenaId},
    core::NO_CLIENT,
};
use rnic_transport::BadField;

use super::{RestoreError, Restored, slice};
use crate::{
    client_record::ClientRecord,
    handover::client_line,
    objects::{Key, Kind},
    quota::Usage,
    region_alloc::RegionSpace,
    session_record::SessionRecord,
    store::ObjectRecord,
};

/// What there was of a client.
pub(crate) struct RestoredClient {
    /// Its record.
    pub record: ArenaBox<ClientRecord>,
    /// What it uses of its quota.
    pub usage: Usage,
    /// What it owns.
    pub objects: BTreeSet<Key>,
    /// Free queue space of its region.
    pub space: RegionSpace,
}

impl RestoredClient {
    /// The same as of the client that was handed over.
    pub(super) fn describe(&self) -> String {
        client_line(&self.record, &self.usage, &self.objects, &self.space)
    }
}

fn twice(arena: ArenaId, slot: u32, field: &'static str, value: u64) -> RestoreError {
    let must = "another's than those before";
    let error = BadField { field, value, must };
    ArenaError::Contradiction { arena, slot, error }.into()
}

impl Restored {
    /// Takes clients and sessions in. Each client has a session, and each session that was greeted a client.
    pub(super) fn put_clients(
        &mut self,
        cores: usize,
        clients: Vec<ArenaBox<ClientRecord>>,
        sessions: Vec<ArenaBox<SessionRecord>>,
    ) -> Result<(), RestoreError> {
        let arena = self.store.clients.id();
        let mut places = BTreeMap::new();
        for record in clients {
            let layout = record.layout();
            let (slot, index) = (record.slot(), record.index);
            if layout.cores as usize != cores {
                let error = BadField {
                    field: "cores",
                    value: layout.cores.into(),
                    must: "the number of poll cores there are",
                };
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
            places.insert(record.connection, index);
            let client = RestoredClient {
                record,
                usage: Usage::default(),
                objects: BTreeSet::new(),
                space: RegionSpace::new(layout.queues.next_multiple_of(LINE), layout.size),
            };
            if self.clients.insert(index, client).is_some() {
                return Err(twice(arena, slot, "index", index.into()));
            }
        }
        let arena = self.store.sessions.id();
        let mut connections = BTreeSet::new();
        for record in sessions {
            let SessionRecord {
                number,
                connection,
                client,
                greeted,
                ..
            } = *record;
            let slot = record.slot();
            if !connections.insert(connection) {
                return Err(twice(arena, slot, "connection", connection.into()));
            }
            if greeted && places.get(&connection) != Some(&client) {
                let error = BadField {
                    field: "client",
                    value: client.into(),
                    must: "the index of the client of this connection",
                };
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
            if self.sessions.insert(number, record).is_some() {
                return Err(twice(arena, slot, "number", number));
            }
        }
        for client in self.clients.values() {
            let connection = client.record.connection;
            if !connections.contains(&connection) || places.get(&connection) != Some(&client.record.index) {
                let error = BadField {
                    field: "connection",
                    value: connection.into(),
                    must: "that of a session, and no other client's",
                };
                let (arena, slot) = (self.store.clients.id(), client.record.slot());
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
        }
        Ok(())
    }

    /// Counts an object among those of its client, and takes its queues out of the free queue space.
    pub(super) fn charge(&mut self, record: &ArenaBox<ObjectRecord>) -> Result<(), RestoreError> {
        let ObjectRecord { kind, key, .. } = **record;
        let (arena, slot) = (self.store.objects.id(), record.slot());
        let wrong = |field, value: u64, must| {
            let error = BadField { field, value, must };
            RestoreError::from(ArenaError::Contradiction { arena, slot, error })
        };
        if record.client == NO_CLIENT {
            // An XRC target QP counts with those who hold it.
            return Ok(());
        }
        let client = self.clients.get_mut(&record.client);
        let client = client.filter(|client| client.record.connection == record.owner);
        let Some(client) = client else {
            let must = "the connection of the client it is of";
            return Err(wrong("owner", record.owner.into(), must));
        };
        if Handle(record.handle).slot() >= client.record.layout().slots {
            return Err(wrong("handle", record.handle.into(), "one of its client's"));
        }
        if matches!(kind, Kind::Qp | Kind::Srq | Kind::Xrcd) && record.qp.core >= client.record.layout().cores
        {
            return Err(wrong("qp.core", record.qp.core.into(), "a poll core there is"));
        }
        let queues = match kind {
            Kind::Qp if record.qp.qp_type.has_recv_queue() && record.depends[3].generation == 0 => {
                &record.slices[..]
            }
            Kind::Cq if record.slices[1].len != 0 => &record.slices[..],
            Kind::Qp | Kind::Cq | Kind::Srq => &record.slices[..1],
            Kind::Pd | Kind::Mr | Kind::Mw | Kind::Channel | Kind::Ah | Kind::Xrcd | Kind::Target => &[],
        };
        for queue in queues {
            if !client.space.claim(slice(*queue)) {
                let must = "lines of the client's region that are no other queue's";
                return Err(wrong("slices", queue.offset, must));
            }
        }
        client.objects.insert(Key::of(key));
        client.usage.add(kind);
        client.usage.register(record.length);
        Ok(())
    }
}
