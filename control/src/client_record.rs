//! What of a client outlives the process, beside its session, its handles and its objects (DESIGN I13): the shape of its
//! region, how far its event ring was written, and which devices it was told of.

use rnic_abi::{Handle, PAGE, RegionLayout};
use rnic_engine::PORT_SLOTS;
use rnic_transport::{BadField, record};

use crate::{registry::DeviceId, store::CLIENTS};

/// Regions are mapped whole, and no larger ones fit an address space.
const MAX_QUEUE_BYTES: u64 = 1 << 46;

record! {
    /// A client's place for a device, of which there is never a second.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct DevicePlace {
        /// There is one, or was.
        pub known: bool,
        pub generation: u16,
        /// Sequence of the port's state that the client was told last.
        pub sequence: u32,
    }
}

record! {
    /// A client.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct ClientRecord {
        /// Its index on the poll cores.
        pub index: u32,
        /// Its connection.
        pub connection: u32,
        /// What the layout of its region is made of.
        slots: u32,
        cores: u32,
        queue_bytes: u64,
        /// Next index of the event ring, known to the daemon alone; the client sees a copy.
        pub event_tail: u32,
        /// By slot of the device.
        pub devices: [DevicePlace; PORT_SLOTS],
    }
}

impl ClientRecord {
    /// A client that was told nothing yet.
    pub fn new(index: u32, connection: u32, layout: &RegionLayout) -> Self {
        ClientRecord {
            index,
            connection,
            slots: layout.slots,
            cores: layout.cores,
            queue_bytes: (layout.size - layout.queues) as u64,
            event_tail: 0,
            devices: [DevicePlace::default(); PORT_SLOTS],
        }
    }

    /// The layout of its region.
    pub fn layout(&self) -> RegionLayout {
        RegionLayout::new(self.slots, self.cores, self.queue_bytes as usize)
    }

    /// The device it knows in a place.
    pub fn device_at(&self, place: u32) -> Option<DeviceId> {
        let slot = u16::try_from(place).ok()?;
        let place = self.devices.get(usize::from(slot)).filter(|place| place.known)?;
        let generation = place.generation;
        Some(DeviceId { slot, generation })
    }

    /// Checks values against each other, so that [`ClientRecord::layout`] is one.
    pub fn check(&self) -> Result<(), BadField> {
        BadField::unless(self.index < CLIENTS, "index", self.index, "that of a client")?;
        let slots = (1..=Handle::MAX_SLOTS).contains(&self.slots);
        BadField::unless(slots, "slots", self.slots, "as many as handles have slots")?;
        let cores = (1..=u32::from(u16::MAX)).contains(&self.cores);
        BadField::unless(cores, "cores", self.cores, "a number of cores")?;
        let whole = self.queue_bytes <= MAX_QUEUE_BYTES && self.queue_bytes.is_multiple_of(PAGE as u64);
        BadField::unless(whole, "queue_bytes", self.queue_bytes, "whole pages of a region")
    }
}
