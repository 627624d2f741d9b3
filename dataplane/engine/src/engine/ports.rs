//! Ports of the running engine: they come and go by commands to the cores.
use super::Engine;
use crate::{
    command::Command,
    core::{CongestionCounters, PortPart},
    frame::{Frame, SharedPool},
    port::{Link, OpenPort, PortStats},
};

/// Ports there can be at once. Each core has a place for every one from the start.
pub const PORT_SLOTS: usize = 32;

/// Why a port cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum AddPortError {
    /// It has no queues.
    #[error("port {0} was opened without a queue")]
    NoQueue(String),
    /// There is no such place, or a port is there.
    #[error("port {name} cannot have index {index}: it is taken, or beyond the {PORT_SLOTS} there are")]
    Index {
        /// The port.
        name: String,
        /// The index asked for.
        index: usize,
    },
}

/// A port as the control thread knows it; its queues are with the cores.
pub struct PortInfo {
    /// Device name.
    pub name: String,
    /// Driver.
    pub driver: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Link MTU.
    pub mtu: u16,
    /// NUMA node, when known.
    pub numa_node: Option<u32>,
    /// Frames for the slow path.
    pub pool: SharedPool,
    /// Link state and closing.
    pub link: Box<dyn Link>,
    /// Queues it was opened with.
    pub queues: usize,
}

type Parts = Vec<Box<PortPart>>;

impl Engine {
    /// The ports with their indices, the numbers used in paths and messages.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &PortInfo)> {
        let slots = (0u16..).zip(&self.ports);
        slots.filter_map(|(index, port)| Some((index, port.as_ref()?)))
    }

    /// The port with this index.
    pub fn port(&self, index: u16) -> Option<&PortInfo> {
        self.ports.get(usize::from(index))?.as_ref()
    }

    /// Takes an opened port: what to give each core by [`Command::AddPort`], in order. It works when all have
    /// answered.
    ///
    /// # Errors
    /// [`AddPortError`]; the port is closed.
    pub fn add_port(&mut self, index: u16, port: OpenPort) -> Result<Parts, AddPortError> {
        let cores = self.cores.len();
        let slot = usize::from(index);
        let Some(place) = self.ports.get_mut(slot).filter(|place| place.is_none()) else {
            let name = port.name;
            return Err(AddPortError::Index { name, index: slot });
        };
        let (info, parts) = split(port, cores)?;
        *place = Some(info);
        for core in &self.cores {
            core.shared.publish_port(slot, PortStats::default());
            core.shared
                .publish_congestion(slot, &CongestionCounters::default());
        }
        Ok(parts)
    }

    /// Takes a port away, before its cores are told: what to give each of them by [`Command::RemovePort`], and the
    /// port. It may be closed when all have answered, their answers are dropped, and all have answered
    /// [`Command::DropFrames`] after that. `None` when there is no such port.
    pub fn remove_port(&mut self, index: u16) -> Option<(PortInfo, Parts)> {
        let port = self.ports.get_mut(usize::from(index))?.take()?;
        let parts = self.cores.iter().map(|_| Box::default()).collect();
        Some((port, parts))
    }

    /// Sends a frame of the slow path; dropped where there is no such port.
    pub fn transmit(&mut self, port: u16, frame: Frame) {
        if self.port(port).is_some() {
            // Every port has a queue there.
            self.submit(OWNER, Command::Transmit { port, frame });
        }
    }
}

/// The core that has a queue of every port.
const OWNER: usize = 0;

/// The control thread's part of a port, and each core's.
fn split(port: OpenPort, cores: usize) -> Result<(PortInfo, Parts), AddPortError> {
    let OpenPort {
        name,
        driver,
        mac,
        mtu,
        numa_node,
        queues,
        pool,
        link,
    } = port;
    if queues.is_empty() {
        return Err(AddPortError::NoQueue(name));
    }
    let count = queues.len().min(cores);
    let mut queues = queues.into_iter();
    let parts = (0..cores)
        .map(|_| PortPart::new(queues.next(), pool.clone(), OWNER as u16))
        .collect();
    // Queues that no core takes must be gone before the port is closed.
    drop(queues);
    let info = PortInfo {
        name,
        driver,
        mac,
        mtu,
        numa_node,
        pool,
        link,
        queues: count,
    };
    Ok((info, parts))
}

/// The ports by index, and by core its part of each.
pub(super) fn split_ports(
    ports: Vec<OpenPort>,
    cores: usize,
) -> Result<(Vec<Option<PortInfo>>, Vec<Parts>), AddPortError> {
    let mut infos = Vec::new();
    let mut by_core: Vec<Parts> = (0..cores).map(|_| Parts::with_capacity(PORT_SLOTS)).collect();
    for (index, port) in ports.into_iter().enumerate() {
        if index >= PORT_SLOTS {
            let name = port.name;
            return Err(AddPortError::Index { name, index });
        }
        let (info, parts) = split(port, cores)?;
        infos.push(Some(info));
        for (core, part) in by_core.iter_mut().zip(parts) {
            core.push(part);
        }
    }
    infos.resize_with(PORT_SLOTS, || None);
    for core in &mut by_core {
        core.resize_with(PORT_SLOTS, Box::default);
    }
    Ok((infos, by_core))
}
