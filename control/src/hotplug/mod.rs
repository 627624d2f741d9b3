//! Ports that come and go while the daemon runs: `rnicctl port`, and devices that vanish by themselves.
//!
//! A port that goes, in order:
//!
//! 1. its device's state says so: new verbs on it are refused with ENODEV
//! 2. it is removed from every client of the registry: sessions have their QPs moved to ERR (and, by their cores,
//!    flushed), every client of the daemon that knows it gets DEVICE_FATAL, neighbours and slow path forget it
//! 3. every core gives up its part: the queue, its frames; then what others handed over to it
//! 4. every work request that was posted to those QPs has its completion; a grace period
//! 5. the port is closed, its place is free
//! 6. `rnicctl` is answered
//!
//! What clients made on it stays, in error, until they destroy it. A place that is free is given away late, and a
//! client never sees two devices in one place: to those who knew the one before, the next one does not exist.

mod clients;
mod plugger;
mod remove;
mod words;

use std::{collections::VecDeque, fmt, sync::Arc};

use rnic_config::{Config, Port};
use rnic_engine::{
    PORT_SLOTS,
    command::Command,
    port::{OpenPort, PortError},
};
use serde::{Deserialize, Serialize};

use self::{
    clients::{EventRelay, SessionClient, SlowPathClient},
    plugger::{Plugged, Plugger},
};
use crate::{
    admin::{AdminResponse, NOBODY, ok},
    control::Control,
    device::Device,
    netlink,
    ops::{Op, Work},
    registry::{DeviceId, DeviceState, Entry},
};

pub use plugger::Opener;
pub(crate) use remove::Removal;
pub use words::port_yaml;

/// Ports there may be at once, as in the configuration.
const MAX_PORTS: usize = 16;

/// The devices' coming and going.
pub(crate) struct Hotplug {
    /// Readable when ports were opened or closed.
    pub plugger: Plugger,
    /// The configuration of the port in each place, until it is closed.
    pub ports: Vec<Option<Port>>,
    /// Ports that are being opened.
    opening: Vec<Port>,
    /// Places that had a port, the one that has been free longest first.
    free: VecDeque<u16>,
    /// The removal whose clients are being told.
    removing: Option<u64>,
}

impl Hotplug {
    pub fn new(opener: Opener) -> std::io::Result<Self> {
        let mut ports = Vec::new();
        ports.resize_with(PORT_SLOTS, || None);
        Ok(Hotplug {
            plugger: Plugger::start(opener)?,
            ports,
            opening: Vec::new(),
            free: VecDeque::new(),
            removing: None,
        })
    }
}

/// Ports that are being added.
pub struct Addition {
    admin: u32,
    /// As they were asked for.
    ports: Vec<Port>,
    /// Where they are; empty while they are being opened.
    slots: Vec<u16>,
}

impl fmt::Debug for Addition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.ports.iter().map(|port| port.name.to_string()).collect();
        write!(f, "Addition({names:?})")
    }
}

/// One port of `rnicctl port add` and `remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortChange {
    /// Device name.
    pub name: String,
    /// Number of the device.
    pub device: u16,
}

impl Control {
    /// Registers the registry's own clients, and the devices of the configuration.
    pub(crate) fn register_all(&mut self) {
        let registry = self.registry.clone();
        registry.add_client(self, Arc::new(SlowPathClient));
        registry.add_client(self, Arc::new(EventRelay));
        registry.add_client(self, self.gids.clone());
        for (slot, port) in (0..).zip(self.config.ports.clone()) {
            self.make_device(slot, port);
            self.announce(slot);
        }
    }

    /// A session has been admitted.
    pub(crate) fn register_session(&mut self, conn: u32) {
        let registry = self.registry.clone();
        let id = registry.add_client(self, Arc::new(SessionClient { conn }));
        match self.client_mut(conn) {
            Ok(client) => client.registered = Some(id),
            Err(_) => drop(registry.remove_client(self, id)),
        }
    }

    /// Makes a device of the port at `slot`, which no client sees before it is announced.
    fn make_device(&mut self, slot: u16, config: Port) {
        let Some(port) = self.engine.port(slot) else {
            return;
        };
        let at = usize::from(slot);
        let generation = self
            .devices
            .get(at)
            .map_or(0, |before| before.entry.id.generation.wrapping_add(1));
        let id = DeviceId { slot, generation };
        let name = config.name.to_string();
        let netdev = config.device.netdev();
        let if_index = port
            .link
            .if_index()
            .or_else(|| netdev.and_then(netlink::index_of));
        let entry = Arc::new(Entry::new(id, &name, if_index));
        let device = Device::new(&config, port, entry.clone());
        // A place is first used in order, so there is never a gap.
        match self.devices.get_mut(at) {
            Some(before) => *before = device,
            None => self.devices.push(device),
        }
        self.show_addresses(at);
        self.hotplug.ports[at] = Some(config);
    }

    /// The port at `slot` is with the cores: its device can be used.
    fn announce(&mut self, slot: u16) {
        let Some(device) = self.devices.get(usize::from(slot)) else {
            return;
        };
        let entry = device.entry.clone();
        let registry = self.registry.clone();
        registry.announce(self, entry);
    }

    /// `rnicctl port add`: answered when the ports can be used.
    pub(crate) fn add_ports(&mut self, admin: u32, text: &str) -> Result<(), String> {
        let ports = Config::parse_ports(text, "port").map_err(|error| error.to_string())?;
        self.check_new(&ports)?;
        let mut config = self.config.clone();
        config.ports = ports.clone();
        self.hotplug.opening.extend(ports.iter().cloned());
        let slots = Vec::new();
        let number = self.begin(NOBODY, Work::AddPorts(Addition { admin, ports, slots }));
        self.hotplug.plugger.open(number, config);
        Ok(())
    }

    /// Whether ports can be added beside those there are. Each by itself was checked.
    fn check_new(&self, ports: &[Port]) -> Result<(), String> {
        let there: Vec<&Port> = self
            .hotplug
            .ports
            .iter()
            .flatten()
            .chain(&self.hotplug.opening)
            .collect();
        let (count, new) = (there.len(), ports.len());
        if count + new > MAX_PORTS || new > self.free_slots() {
            return Err(format!(
                "{count} ports are there, and there may be {MAX_PORTS}; remove one first"
            ));
        }
        for port in ports {
            let name = port.name;
            for other in &there {
                if other.name == name {
                    return Err(format!(
                        "there is a port {name} already; choose another name, or remove that one first"
                    ));
                }
                let device = port.device.dpdk_name();
                if device.is_some() && device == other.device.dpdk_name() {
                    let (device, owner) = (device.unwrap_or_default(), other.name);
                    return Err(format!(
                        "port {name}: the device {device} is that of {owner} already"
                    ));
                }
                let address = port.addresses.iter().find(|a| {
                    let same = |b: &&rnic_config::PortAddress| {
                        b.address.ip() == a.address.ip() && other.vlan_of(b) == port.vlan_of(a)
                    };
                    other.addresses.iter().find(same).is_some()
                });
                if let Some(address) = address {
                    let (ip, owner) = (address.address.ip(), other.name);
                    return Err(format!("port {name}: {ip} is an address of {owner} already"));
                }
            }
        }
        Ok(())
    }

    fn free_slots(&self) -> usize {
        PORT_SLOTS - self.devices.len() + self.hotplug.free.len()
    }

    /// A place for a port: one that never had any, so that all clients see it, else the one that has been free longest.
    fn take_slot(&mut self) -> Option<u16> {
        let fresh = u16::try_from(self.devices.len()).ok();
        fresh
            .filter(|slot| usize::from(*slot) < PORT_SLOTS)
            .or_else(|| self.hotplug.free.pop_front())
    }

    /// Takes the results of opening and closing.
    pub(crate) fn plugged(&mut self) {
        for (number, result) in self.hotplug.plugger.results() {
            let Some(op) = self.ops.take(number) else { continue };
            match (result, op) {
                (Plugged::Opened(result), op) => self.ports_opened(number, op, result),
                (Plugged::Closed, op) => self.port_closed(op),
            }
        }
    }

    fn ports_opened(&mut self, number: u64, mut op: Op, result: Result<Vec<OpenPort>, PortError>) {
        let Work::AddPorts(addition) = &mut op.work else {
            return;
        };
        let mut parts = Vec::new();
        let mut failed = None;
        match result {
            Ok(opened) => {
                for (port, config) in opened.into_iter().zip(&addition.ports) {
                    let Some(slot) = self.take_slot() else {
                        failed = Some("no place is free for the port".to_owned());
                        break;
                    };
                    match self.engine.add_port(slot, port) {
                        Ok(of_cores) => {
                            self.make_device(slot, config.clone());
                            addition.slots.push(slot);
                            parts.push((slot, of_cores));
                        }
                        Err(error) => failed = Some(error.to_string()),
                    }
                }
            }
            Err(error) => failed = Some(error.to_string()),
        }
        if let Some(why) = failed {
            let Work::AddPorts(addition) = op.work else { return };
            tracing::warn!(?addition, %why, "ports were not added");
            self.opening_ended(&addition.ports);
            // Those that were taken are with no core yet.
            for (slot, _) in parts {
                drop(self.engine.remove_port(slot));
                self.registry.gone(&self.devices[usize::from(slot)].entry);
                self.hotplug.ports[usize::from(slot)] = None;
                self.hotplug.free.push_back(slot);
            }
            return self.answer_admin(addition.admin, &AdminResponse::Error(why));
        }
        self.ops.put_back(number, op);
        for (port, of_cores) in parts {
            for (core, part) in of_cores.into_iter().enumerate() {
                self.command(number, core, |token| Command::AddPort { port, part, token });
            }
        }
    }

    /// Every core has its part of the ports.
    pub(crate) fn ports_added(&mut self, addition: Addition) {
        let Addition { admin, ports, slots } = addition;
        self.opening_ended(&ports);
        let mut changes = Vec::new();
        for (slot, port) in slots.into_iter().zip(ports) {
            let name = port.name.to_string();
            tracing::info!(port = %name, device = slot, "a port was added");
            self.announce(slot);
            changes.push(PortChange { name, device: slot });
        }
        self.answer_admin(admin, &ok(&changes));
    }

    fn opening_ended(&mut self, ports: &[Port]) {
        let ended = |port: &Port| ports.iter().any(|other| other.name == port.name);
        self.hotplug.opening.retain(|port| !ended(port));
    }

    /// Looks for devices that have vanished by themselves.
    pub(crate) fn check_gone(&mut self) {
        let gone: Vec<usize> = self
            .engine
            .ports()
            .filter(|(_, port)| port.link.is_gone())
            .map(|(slot, _)| slot.into())
            .collect();
        for slot in gone {
            self.device_vanished(slot);
        }
    }

    /// The device in a place has vanished by itself: its port is drained as if it had been removed.
    pub(crate) fn device_vanished(&mut self, slot: usize) {
        let Some(device) = self.devices.get(slot).filter(|device| device.entry.is_present()) else {
            return;
        };
        let name = device.name.clone();
        tracing::warn!(port = %name, "the device behind the port has vanished");
        // One that is still being added is found again.
        let _ = self.remove_port(None, &name);
    }

    /// Devices whose port is not closed yet.
    pub(crate) fn devices_there(&self) -> impl Iterator<Item = (usize, &Device)> {
        let all = self.devices.iter().enumerate();
        all.filter(|(_, device)| device.entry.state() != DeviceState::Gone)
    }
}
