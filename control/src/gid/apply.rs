//! What the control thread does with the state of an interface: GIDs, link, MTU, and the events that tell clients.

use std::time::{Duration, Instant};

use rnic_abi::event_kind;
use rnic_config::Port;
use rnic_engine::nonblocking::might_block;
use rnic_wire::Mtu;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Found, GidTable, Quiet};
use crate::{
    control::Control,
    device::{Device, GidEntry},
    netlink::{Netdev, NetdevAddress},
    registry::DeviceId,
};

/// Indices for addresses of the interface, beside those for the configured ones.
const FOLLOWED: usize = 64;
/// How long a start waits for the first look at every interface; what comes later comes with an event.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// Where the addresses of a device come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Those of the configuration, in its order.
    configured: Vec<GidEntry>,
    /// Those of the interface count too.
    follow: bool,
    /// The kernel sees the port's frames and answers for its own addresses.
    kernel_answers: bool,
}

impl Sources {
    /// As a port is configured.
    pub fn new(port: &Port) -> Self {
        let configured = port.addresses.iter().map(|a| GidEntry {
            ip: a.address.ip(),
            prefix_len: a.address.prefix_len(),
            vlan: port.vlan_of(a),
            kernel_answers: false,
        });
        Sources {
            configured: configured.collect(),
            follow: port.follow_netdev,
            kernel_answers: port.device.shares_frames_with_kernel(),
        }
    }

    /// The table at the start, with room for what may come.
    pub fn table(&self) -> GidTable {
        let room = if self.follow { FOLLOWED } else { 0 };
        let mut table = GidTable::new(self.configured.len() + room);
        table.sync(&self.configured);
        table
    }

    /// Whether the kernel gets RoCE packets for addresses of its own.
    fn shares_addresses(&self) -> bool {
        self.follow && self.kernel_answers
    }

    /// All addresses the device is to have, while its interface has these. A configured one stays as it is
    /// configured, whether or not the interface has it too.
    fn wanted(&self, found: &[NetdevAddress]) -> Vec<GidEntry> {
        let followed = found.iter().filter(|_| self.follow).map(|address| GidEntry {
            ip: address.ip,
            prefix_len: address.prefix_len,
            vlan: None,
            kernel_answers: self.kernel_answers,
        });
        self.configured.iter().copied().chain(followed).collect()
    }
}

impl Control {
    /// The kernel says that something has changed.
    pub(crate) fn hear_kernel(&mut self) {
        if let Some(monitor) = &mut self.netlink {
            let hints = monitor.drain();
            self.gids.rescan(&hints);
        }
    }

    /// Waits, at the start, until every interface was looked at: the first client is to find the whole table.
    pub(crate) fn await_first_looks(&mut self) {
        might_block();
        let deadline = Instant::now() + FIRST_LOOK;
        while self.gids.is_waiting() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("the kernel does not tell of its interfaces; their addresses will follow");
                return;
            }
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            // Woken early or in vain, it looks at the clock again.
            let _ = poll(&mut [PollFd::new(&*self.gids, PollFlags::IN)], Some(&left));
            self.interfaces_looked_at();
        }
    }

    /// Interfaces were looked at.
    pub(crate) fn interfaces_looked_at(&mut self) {
        for Found { device, netdev } in self.gids.take_found() {
            match netdev {
                Ok(Some(netdev)) => self.interface_is(device, &netdev),
                Ok(None) => self.interface_vanished(device),
                Err(error) => {
                    tracing::warn!(device = %device, %error, "its interface is looked at again soon")
                }
            }
        }
    }

    fn interface_is(&mut self, id: DeviceId, netdev: &Netdev) {
        let port = usize::from(id.slot);
        let here = |device: &&mut Device| device.entry.id == id && device.entry.is_present();
        let Some(device) = self.devices.get_mut(port).filter(here) else {
            return;
        };
        let mtu = device.port_mtu.min(netdev.mtu.try_into().unwrap_or(u16::MAX));
        if mtu != device.mtu {
            tracing::info!(device = %device.name, before = device.mtu, now = mtu, "the link MTU has changed");
            device.mtu = mtu;
            // QPs keep theirs; what no longer fits fails at the interface.
            device.path_mtu = Mtu::fitting(mtu.into()).unwrap_or(Mtu::M256);
            self.addresses_changed(port);
        }
        let Some(device) = self.devices.get_mut(port) else {
            return;
        };
        device.netdev_up = netdev.up;
        if device.sources.shares_addresses() && self.quiet.is_none() {
            self.quiet = Quiet::new()
                .inspect_err(|error| tracing::debug!(%error, "somebody else has the UDP port of RoCE"))
                .ok();
        }
        let wanted = device.sources.wanted(&netdev.addresses);
        self.set_gids(port, &wanted);
        self.check_links();
    }

    /// The interface behind a port is gone, and no frame will pass the port any more: so is the device.
    fn interface_vanished(&mut self, id: DeviceId) {
        let port = usize::from(id.slot);
        if self.devices.get(port).is_some_and(|device| device.entry.id == id) {
            self.device_vanished(port);
        }
    }

    /// Tells the slow path and the cores the addresses of a device.
    pub(crate) fn addresses_changed(&mut self, port: usize) {
        let device = &self.devices[port];
        self.slow.set_addresses(port as u16, device);
        self.show_addresses(port);
    }

    /// Tells the cores the addresses of a device.
    pub(crate) fn show_addresses(&self, port: usize) {
        let device = &self.devices[port];
        let address = |entry: &GidEntry| {
            (
                entry.gid().0,
                entry.vlan.map(|tci| tci & 0x0FFF).filter(|id| *id != 0),
            )
        };
        self.engine
            .addresses()
            .set(port as u16, device.gids.iter().map(address));
    }

    /// Makes these the addresses of a device, and tells everyone.
    pub(crate) fn set_gids(&mut self, port: usize, wanted: &[GidEntry]) {
        let device: &mut Device = &mut self.devices[port];
        let changes = device.gids.sync(wanted);
        for (index, entry) in &changes.removed {
            tracing::info!(device = %device.name, index, ip = %entry.ip, "GID removed");
        }
        for (index, entry) in &changes.added {
            tracing::info!(device = %device.name, index, ip = %entry.ip, "GID added");
        }
        for entry in &changes.no_room {
            tracing::warn!(
                device = %device.name, ip = %entry.ip, indices = device.gids.len(),
                "the GID table is full; the address cannot be used"
            );
        }
        if !changes.is_empty() {
            self.addresses_changed(port);
        }
        let device = &mut self.devices[port];
        if changes.is_visible() {
            // By two: its lowest bit is the state of the link.
            device.sequence = device.sequence.wrapping_add(2);
            self.device_event(port, event_kind::GID_CHANGE, &rnic_transport::Cause::default());
        }
    }
}
