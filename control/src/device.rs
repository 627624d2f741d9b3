//! Devices: a port of the appliance as clients see it, and its GID table.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use rnic_config::{Congestion, Loopback, Port};
use rnic_engine::PortInfo;
use rnic_wire::Mtu;

#[cfg(test)]
use crate::registry::DeviceId;
use crate::{
    gid::{GidTable, Sources},
    registry::Entry,
};

/// A GID of RoCE v2: an IPv6 address, or an IPv4 address mapped into one (A17.4.1).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl From<IpAddr> for Gid {
    fn from(ip: IpAddr) -> Self {
        Gid(match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }
}

impl Gid {
    /// The address it stands for.
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

/// One entry of a GID table: an address of the port.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network prefix.
    pub prefix_len: u8,
    /// VLAN it is used on.
    pub vlan: Option<u16>,
    /// The kernel has this address on the port's own netdev and sees the port's frames: it answers ARP, neighbour
    /// discovery and echo requests, so the slow path does not.
    pub kernel_answers: bool,
}

impl GidEntry {
    /// The GID.
    pub fn gid(&self) -> Gid {
        self.ip.into()
    }

    /// Whether both are the same entry of a table: the same address on the same VLAN.
    pub fn is_same_gid(&self, other: &GidEntry) -> bool {
        (self.ip, self.vlan) == (other.ip, other.vlan)
    }

    /// Whether `ip` is reached without a router.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let ((ours, width), (theirs, other_width)) = (bits(self.ip), bits(ip));
        let shift = 128 - u32::from(self.prefix_len.min(width));
        width == other_width && (ours ^ theirs).checked_shr(shift).unwrap_or(0) == 0
    }
}

/// A device.
#[derive(Debug)]
pub struct Device {
    /// Its number, and whether it may be used.
    pub entry: Arc<Entry>,
    /// Name, `rnic0`.
    pub name: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Link MTU in bytes: that of the port, or of the kernel interface behind it if that is less.
    pub mtu: u16,
    /// What the port was opened with.
    pub port_mtu: u16,
    /// Largest path MTU that fits the link.
    pub path_mtu: Mtu,
    /// The GID table: the addresses of the configuration first, in its order.
    pub gids: GidTable,
    /// Where its addresses come from.
    pub sources: Sources,
    /// Next hops out of the port's networks.
    pub gateways: Vec<IpAddr>,
    /// How its QPs deal with congestion, as configured.
    pub congestion: Congestion,
    /// QPs of this appliance reach each other without frames.
    pub direct: bool,
    /// Whether the link is up.
    pub up: bool,
    /// Whether the kernel interface behind the port is up; `true` where there is none.
    pub netdev_up: bool,
    /// Megabits a second, when known.
    pub speed_mbps: Option<u32>,
    /// Counts the changes of `up` and of the GID table: even while it is up, odd while it is down.
    pub sequence: u32,
}

impl Device {
    /// The device of an opened port.
    pub fn new(config: &Port, port: &PortInfo, entry: Arc<Entry>) -> Self {
        let sources = Sources::new(config);
        let up = port.link.is_up();
        Device {
            entry,
            name: config.name.to_string(),
            mac: port.mac,
            mtu: port.mtu,
            port_mtu: port.mtu,
            path_mtu: Mtu::fitting(port.mtu.into()).unwrap_or(Mtu::M256),
            gids: sources.table(),
            sources,
            gateways: config.gateways.clone(),
            congestion: config.congestion(),
            direct: config.loopback == Loopback::Direct,
            up,
            netdev_up: true,
            speed_mbps: port.link.speed_mbps(),
            sequence: u32::from(!up),
        }
    }

    /// EUI-64 of the MAC address: the node GUID.
    pub fn node_guid(&self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        u64::from_be_bytes([a ^ 2, b, c, 0xFF, 0xFE, d, e, f])
    }

    /// Whether it has this address.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.gids.contains(ip)
    }
}

#[cfg(test)]
pub(crate) fn sample(name: &str, mac: u8, addresses: &[(&str, u8)]) -> Device {
    let entry = |(ip, prefix_len): &(&str, u8)| GidEntry {
        ip: ip.parse().unwrap(),
        prefix_len: *prefix_len,
        vlan: None,
        kernel_answers: false,
    };
    let id = DeviceId {
        slot: 0,
        generation: 0,
    };
    Device {
        entry: Arc::new(Entry::new(id, name, None)),
        name: name.into(),
        mac: [2, 0, 0, 0, 0, mac],
        mtu: 1500,
        port_mtu: 1500,
        path_mtu: Mtu::M1024,
        gids: GidTable::of(addresses.iter().map(entry)),
        sources: Sources::default(),
        gateways: vec![],
        congestion: Congestion::Off,
        direct: true,
        up: true,
        netdev_up: true,
        speed_mbps: None,
        sequence: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped_into_its_gid_and_back() {
        let gid = Gid::from("10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(gid.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, 0, 1]);
        assert_eq!(gid.ip().to_string(), "10.0.0.1");
        let gid = Gid::from("fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(gid.ip().to_string(), "fd00::1");
    }

    #[test]
    fn on_link_is_what_shares_the_prefix_and_the_family() {
        let device = sample("rnic0", 1, &[("10.0.0.1", 24), ("fd00::1", 64), ("10.9.9.9", 32)]);
        let on_link = |ip: &str| device.gids.iter().any(|g| g.is_on_link(ip.parse().unwrap()));
        assert!(on_link("10.0.0.200") && on_link("fd00::ffff") && on_link("10.9.9.9"));
        assert!(!on_link("10.0.1.1") && !on_link("fd00:0:0:1::1") && !on_link("10.9.9.8"));
    }

    #[test]
    fn the_node_guid_is_the_eui_64_of_the_mac() {
        assert_eq!(sample("rnic0", 9, &[]).node_guid(), 0x0000_00FF_FE00_0009);
    }
}
