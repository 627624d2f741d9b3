//! From an address vector to the next hop.

use std::net::IpAddr;

use rnic_abi::Av;
use rnic_engine::command::Path;
use rnic_wire::udp_source_port;
use rustix::io::Errno;

use crate::{
    device::{Device, Gid, GidEntry},
    neighbour::Target,
    refusal::Refusal,
};

/// Where the priority stands in a VLAN tag, beside the VLAN's id.
const PCP_SHIFT: u32 = 13;

/// Hop limit of an address vector that says 0.
const DEFAULT_HOP_LIMIT: u8 = 64;

/// Highest service level: an Ethernet priority has three bits (A17.4.1; IEEE 802.1Q, 9.6).
const MAX_SL: u8 = 7;

/// How the peer is reached.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// It is an address of this appliance.
    Own {
        /// MAC address of its port.
        mac: [u8; 6],
        /// No frames are needed.
        direct: bool,
    },
    /// Every station of the link that has joined the group.
    Group {
        /// MAC address of the group.
        mac: [u8; 6],
    },
    /// Through a station on the link, whose MAC address is to be found.
    Neighbour(Target),
}

/// A checked address vector.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Port the packets leave by.
    pub port: u16,
    /// Local address.
    pub local: GidEntry,
    /// The peer.
    pub remote: IpAddr,
    /// The next hop.
    pub next_hop: NextHop,
}

/// What is wrong with an address vector. Plain values, so that finding it out allocates nothing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// No such device.
    Device {
        /// The index asked for.
        device: u32,
    },
    /// No such entry of the GID table.
    GidIndex {
        /// Index of the device.
        device: u32,
        /// The index asked for.
        index: u8,
    },
    /// More than 20 bits.
    FlowLabel(u32),
    /// More than 3 bits.
    ServiceLevel(u8),
    /// Unspecified, multicast or loopback.
    NoStation(IpAddr),
    /// Local and remote address of different families.
    Family {
        /// Index of the local GID.
        index: u8,
        /// The local address.
        local: IpAddr,
        /// The remote address.
        remote: IpAddr,
    },
    /// Not on the link, and there is no gateway.
    Unreachable {
        /// Index of the device.
        device: u32,
        /// The remote address.
        remote: IpAddr,
    },
}

impl RouteError {
    /// The refusal that tells it to a client.
    pub fn refusal(self, devices: &[Device]) -> Refusal {
        let name = |device: u32| devices.get(device as usize).map_or("?", |d| &d.name);
        match self {
            Self::Device { device } => {
                Refusal::invalid(format!("device is {device}; there are {}", devices.len()))
            }
            Self::GidIndex { device, index } => {
                let count = devices.get(device as usize).map_or(0, |d| d.gids.len());
                let name = name(device);
                Refusal::invalid(if usize::from(index) < count {
                    format!("ah_attr.sgid_index is {index}, where {name} has no GID (any more)")
                } else {
                    format!("ah_attr.sgid_index is {index}; {name} has {count} GIDs, from 0")
                })
            }
            Self::FlowLabel(label) => {
                Refusal::invalid(format!("ah_attr.flow_label is {label:#x}; it has 20 bits"))
            }
            Self::ServiceLevel(sl) => Refusal::invalid(format!(
                "ah_attr.sl is {sl}; it is the priority in the VLAN tag, 0 to 7"
            )),
            Self::NoStation(remote) => {
                Refusal::invalid(format!("ah_attr.dgid is {remote}, which is no station's address"))
            }
            Self::Family { index, local, remote } => Refusal::invalid(format!(
                "ah_attr.dgid is {remote}, but GID {index} is {local}: both must be of one address family"
            )),
            Self::Unreachable { device, remote } => Refusal::new(
                Errno::NETUNREACH,
                format!(
                    "ah_attr.dgid is {remote}, which is in no network of {}; add an address of that network or a \
                     gateway to the configuration",
                    name(device)
                ),
            ),
        }
    }
}

/// Finds the way to the peer of an address vector on `devices[device]`. Allocates nothing.
pub fn route(devices: &[Device], device: u32, av: &Av) -> Result<Route, RouteError> {
    let route = datagram_route(devices, device, av)?;
    match route.next_hop {
        NextHop::Group { .. } => Err(RouteError::NoStation(route.remote)),
        _ => Ok(route),
    }
}

/// MAC address of a multicast group (RFC 1112, 6.4; RFC 2464, 7).
fn group_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(v4) => {
            let [_, b, c, d] = v4.octets();
            [0x01, 0x00, 0x5E, b & 0x7F, c, d]
        }
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

/// The same for datagrams, which may go to a multicast group.
pub fn datagram_route(devices: &[Device], device: u32, av: &Av) -> Result<Route, RouteError> {
    let own = devices
        .get(device as usize)
        .ok_or(RouteError::Device { device })?;
    let index = av.sgid_index;
    let local = own.gids.get(usize::from(index));
    let local = *local.ok_or(RouteError::GidIndex { device, index })?;
    let remote = Gid(av.dgid).ip();
    if av.flow_label >> 20 != 0 {
        return Err(RouteError::FlowLabel(av.flow_label));
    }
    if av.sl > MAX_SL {
        return Err(RouteError::ServiceLevel(av.sl));
    }
    if remote.is_unspecified() || remote.is_loopback() {
        return Err(RouteError::NoStation(remote));
    }
    if remote.is_ipv4() != local.ip.is_ipv4() {
        let local = local.ip;
        return Err(RouteError::Family { index, local, remote });
    }
    let next_hop = match devices.iter().position(|d| d.has(remote)) {
        _ if remote.is_multicast() => NextHop::Group {
            mac: group_mac(remote),
        },
        Some(peer) => NextHop::Own {
            mac: devices[peer].mac,
            // A link does not bring a station's frames back to itself, so on one port there is no wire path.
            direct: peer == device as usize || (own.direct && devices[peer].direct),
        },
        None => NextHop::Neighbour(Target {
            port: device as u16,
            vlan: local.vlan,
            ip: hop(own, &local, remote).ok_or(RouteError::Unreachable { device, remote })?,
            from: local.ip,
        }),
    };
    Ok(Route {
        port: device as u16,
        local,
        remote,
        next_hop,
    })
}

fn hop(device: &Device, local: &GidEntry, remote: IpAddr) -> Option<IpAddr> {
    let link_local = matches!(remote, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let on_link = || {
        device
            .gids
            .iter()
            .any(|g| g.vlan == local.vlan && g.is_on_link(remote))
    };
    if link_local || on_link() {
        return Some(remote);
    }
    let gateway = device.gateways.iter().find(|g| g.is_ipv4() == remote.is_ipv4());
    gateway.copied()
}

impl Route {
    /// The station whose MAC address is to be found, if there is one.
    pub fn target(&self) -> Option<Target> {
        match self.next_hop {
            NextHop::Own { .. } | NextHop::Group { .. } => None,
            NextHop::Neighbour(target) => Some(target),
        }
    }

    /// That nobody answers for the next hop.
    pub fn silent(&self) -> Refusal {
        let asked = match self.next_hop {
            NextHop::Neighbour(target) if target.ip != self.remote => {
                format!("{} (next hop of {})", target.ip, self.remote)
            }
            _ => self.remote.to_string(),
        };
        Refusal::new(
            Errno::HOSTUNREACH,
            format!(
                "ah_attr.dgid: nobody on the link answers for {asked}; is the peer up, on this network and VLAN?"
            ),
        )
    }

    /// The path of a QP by this route, with the MAC address that was found for the next hop.
    pub fn path(&self, devices: &[Device], av: &Av, mac: [u8; 6], local_qpn: u32, remote_qpn: u32) -> Path {
        Path {
            port: self.port,
            local_ip: self.local.gid().0,
            remote_ip: Gid::from(self.remote).0,
            local_mac: devices[usize::from(self.port)].mac,
            remote_mac: mac,
            // Without a VLAN there is no tag to carry a priority.
            vlan: self.local.vlan.map(|vid| vid | u16::from(av.sl) << PCP_SHIFT),
            hop_limit: if av.hop_limit == 0 {
                DEFAULT_HOP_LIMIT
            } else {
                av.hop_limit
            },
            traffic_class: av.traffic_class,
            flow_label: av.flow_label,
            udp_source: udp_source_port(av.flow_label, local_qpn, remote_qpn),
            direct: matches!(self.next_hop, NextHop::Own { direct: true, .. }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sample;

    fn av(dgid: &str, sgid_index: u8) -> Av {
        Av {
            dgid: Gid::from(dgid.parse::<IpAddr>().unwrap()).0,
            sgid_index,
            ..Av::default()
        }
    }

    fn two() -> Vec<Device> {
        vec![
            sample("rnic0", 1, &[("10.0.0.1", 24), ("fd00::1", 64)]),
            sample("rnic1", 2, &[("10.0.0.2", 24)]),
        ]
    }

    #[test]
    fn datagrams_go_to_groups_by_their_mac_address_and_connections_do_not() {
        let devices = two();
        for (group, index, mac) in [
            ("239.129.2.3", 0, [0x01, 0x00, 0x5E, 1, 2, 3]),
            ("ff0e::1:ff02:304", 1, [0x33, 0x33, 0xFF, 0x02, 0x03, 0x04]),
        ] {
            let av = av(group, index);
            let found = datagram_route(&devices, 0, &av).unwrap();
            assert_eq!(found.next_hop, NextHop::Group { mac });
            assert!(found.target().is_none());
            let refused = route(&devices, 0, &av).unwrap_err();
            assert_eq!(refused, RouteError::NoStation(group.parse().unwrap()));
        }
    }

    #[test]
    fn own_addresses_are_direct_unless_a_port_asks_for_the_wire() {
        let mut devices = two();
        let next = |devices: &[Device], dgid| route(devices, 0, &av(dgid, 0)).unwrap().next_hop;
        assert_eq!(
            next(&devices, "10.0.0.2"),
            NextHop::Own {
                mac: devices[1].mac,
                direct: true
            }
        );
        devices[1].direct = false;
        assert_eq!(
            next(&devices, "10.0.0.2"),
            NextHop::Own {
                mac: devices[1].mac,
                direct: false
            }
        );
        devices[0].direct = false;
        assert_eq!(
            next(&devices, "10.0.0.1"),
            NextHop::Own {
                mac: devices[0].mac,
                direct: true
            }
        );
    }

    #[test]
    fn others_are_neighbours_or_behind_the_gateway_of_their_family() {
        let mut devices = two();
        let target = |devices: &[Device], dgid: &str| match route(devices, 0, &av(dgid, 0)) {
            Ok(Route {
                next_hop: NextHop::Neighbour(target),
                ..
            }) => target.ip.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(target(&devices, "10.0.0.77"), "10.0.0.77");
        let away = route(&devices, 0, &av("192.0.2.1", 0))
            .unwrap_err()
            .refusal(&devices);
        assert_eq!(away.errno(), Errno::NETUNREACH);
        devices[0].gateways.push("fd00::fe".parse().unwrap());
        assert!(route(&devices, 0, &av("192.0.2.1", 0)).is_err());
        devices[0].gateways.push("10.0.0.254".parse().unwrap());
        assert_eq!(target(&devices, "192.0.2.1"), "10.0.0.254");
    }

    #[test]
    fn nonsense_in_an_address_vector_is_named() {
        let devices = two();
        for (av, text) in [
            (av("10.0.0.7", 2), "sgid_index is 2; rnic0 has 2 GIDs"),
            (av("10.0.0.7", 1), "one address family"),
            (av("224.0.0.1", 0), "no station's address"),
            (av("ff02::1", 1), "no station's address"),
            (
                Av {
                    flow_label: 1 << 20,
                    ..av("10.0.0.7", 0)
                },
                "20 bits",
            ),
            (
                Av {
                    sl: 8,
                    ..av("10.0.0.7", 0)
                },
                "ah_attr.sl is 8",
            ),
            (
                Av {
                    sgid_index: 1,
                    ..Av::default()
                },
                "no station's address",
            ),
        ] {
            let refusal = route(&devices, 0, &av).unwrap_err().refusal(&devices);
            assert!(refusal.text().contains(text), "{}", refusal.text());
        }
    }

    #[test]
    fn the_service_level_is_the_priority_of_a_tag_where_the_gid_has_a_vlan() {
        let mut devices = two();
        let mut local = devices[0].gids.get(0).copied().unwrap();
        local.vlan = Some(5);
        let plain = devices[0].gids.get(1).copied().unwrap();
        devices[0].gids = crate::gid::GidTable::of([local, plain]);
        let tag = |dgid, index, sl| {
            let av = Av {
                sl,
                ..av(dgid, index)
            };
            let route = route(&devices, 0, &av).unwrap();
            route.path(&devices, &av, [9; 6], 1, 2).vlan
        };
        assert_eq!(tag("10.0.0.77", 0, 0), Some(5));
        assert_eq!(tag("10.0.0.77", 0, 7), Some(7 << 13 | 5));
        assert_eq!(tag("fd00::77", 1, 7), None);
    }

    #[test]
    fn a_path_has_the_defaults_of_its_address_vector() {
        let devices = two();
        let av = av("10.0.0.77", 0);
        let route = route(&devices, 0, &av).unwrap();
        let path = route.path(&devices, &av, [9; 6], 0x102, 0x103);
        assert_eq!((path.hop_limit, path.direct, path.port), (64, false, 0));
        assert!(path.udp_source >= 0xC000);
        let back = route.path(&devices, &av, [9; 6], 0x103, 0x102);
        assert_eq!(back.udp_source, path.udp_source, "both directions take one path");
    }
}
