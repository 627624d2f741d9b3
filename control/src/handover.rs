//! Handing a daemon over to another process (DESIGN I13): the poll cores stop, and everything that is to outlive this
//! one is in the arenas. [`crate::restore::Restored`] and [`rnic_engine::Engine::resume`] take it from there.

use std::{collections::BTreeSet, fmt, io, os::fd::OwnedFd};

use rnic_engine::EngineImage;

use crate::{
    client_record::ClientRecord,
    control::Control,
    objects::{Key, Numbers},
    quota::Usage,
    region_alloc::RegionSpace,
    store::{FILES, ObjectRecord},
};

/// What a daemon leaves to the next one.
#[derive(Debug)]
pub struct Image {
    /// The data path's.
    pub engine: EngineImage,
    /// The files of the control thread's arenas, in the order in which [`crate::restore::Restored::open`] takes them.
    pub registry: [OwnedFd; FILES],
    /// A line for each object, client, session and number space, sorted: what
    /// [`crate::restore::Restored::inventory`] finds again.
    pub inventory: Vec<String>,
}

/// An object in one line, the same in every process. `users` depend on it.
pub(crate) fn object_line(record: &ObjectRecord, users: u32) -> String {
    format!("{record:?} users: {users}")
}

/// A client in one line, with what is counted of it, the same in every process.
pub(crate) fn client_line(
    record: &ClientRecord,
    usage: &Usage,
    objects: &BTreeSet<Key>,
    space: &RegionSpace,
) -> String {
    format!("{record:?} {usage:?} {objects:?} {space:?}")
}

/// A session in one line.
pub(crate) fn session_line(record: &impl fmt::Debug) -> String {
    format!("{record:?}")
}

impl Control {
    /// Stops the poll cores between two passes and leaves everything in the arenas. Requests that are under way are
    /// lost: their clients ask again, and what they had made so far is nobody's. Who waits for them to be answered runs
    /// passes of the event loop first.
    ///
    /// # Errors
    /// A descriptor could not be duplicated; everything is lost then.
    pub fn hand_over(mut self) -> io::Result<Image> {
        self.install_all();
        let registry = self.store.files()?;
        let inventory = self.inventory();
        self.store.seal();
        let engine = self.engine.hand_over()?;
        Ok(Image {
            engine,
            registry,
            inventory,
        })
    }

    /// What is handed over, line by line.
    fn inventory(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, object) in self.objects.iter() {
            let record = object.record.as_ref();
            lines.extend(record.map(|record| object_line(record, self.objects.users(key))));
        }
        let all = &self.numbers;
        let mut numbers: Vec<&Numbers> = vec![
            &all.clients,
            &all.pds,
            &all.keys,
            &all.cqs,
            &all.srqs,
            &all.xrcds,
            &all.qpns,
        ];
        numbers.push(self.ahs.numbers());
        for connection in self.connections.values() {
            lines.push(session_line(connection.session.record()));
            if let Some(client) = connection.client.as_deref() {
                lines.push(client.describe());
                numbers.push(client.handles());
            }
        }
        lines.extend(numbers.into_iter().map(Numbers::describe));
        lines.sort();
        lines
    }
}
