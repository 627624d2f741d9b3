//! A port: one DPDK device that clients see as one RDMA device.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Congestion, Dcqcn};
use crate::value::{Address, ByteSize, Chance, DeviceName, MacAddr, PciAddress, TimeSpan, ValueError, bad};

/// One port, which clients see as one RDMA device.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Name of the device as clients see it: rnic0, rnic1, … Unique.
    pub name: DeviceName,
    /// The DPDK device behind the port. Each may be used once.
    pub device: Device,
    /// Link MTU in bytes: the largest IP packet. The path MTU follows from it: 4096 needs 4192, 2048 needs
    /// 2144, 1024 needs 1120, 512 needs 608, 256 needs 352. 352 to 9600. Default 1500.
    #[serde(default = "defaults::mtu")]
    #[schemars(range(min = 352, max = 9600))]
    pub mtu: u16,
    /// MAC address. Default: that of the device, or one made from the port's name if it has none.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// IP addresses; each makes a RoCEv2 GID. At most 64.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub addresses: Vec<PortAddress>,
    /// Take the addresses of the kernel interface behind the device too, those it has and those that come and go
    /// later. They follow those of `addresses` in the GID table, are untagged, and are left out of `gateways`'
    /// checks. For net_af_packet and net_af_xdp, and net_tap with `remote`. On net_af_packet the kernel sees the
    /// port's frames: it goes on answering ARP, neighbour discovery and ping for its addresses, and the port does
    /// not; so do not list such an address in `addresses` as well. Default false.
    #[serde(default)]
    pub follow_netdev: bool,
    /// VLAN of all addresses that do not name their own. 1 to 4094. Default: untagged.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<u16>,
    /// Next hop out of the port's networks: at most one IPv4 and one IPv6 address, on the link.
    #[serde(default)]
    #[schemars(length(max = 2))]
    pub gateways: Vec<IpAddr>,
    /// Receive and transmit queues. 1 to 128. Default: one per poll core, as far as the device has them.
    #[serde(default)]
    #[schemars(range(min = 1, max = 128))]
    pub queues: Option<u16>,
    /// Descriptors of each receive queue. A power of two, 64 to 32768. Default 1024.
    #[serde(default = "defaults::descriptors")]
    #[schemars(range(min = 64, max = 32768))]
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue. A power of two, 64 to 32768. Default 1024.
    #[serde(default = "defaults::descriptors")]
    #[schemars(range(min = 64, max = 32768))]
    pub tx_descriptors: u16,
    /// Whether the device spreads frames over its queues. Default `auto`.
    #[serde(default)]
    pub rss: Rss,
    /// Packet buffers (mbufs) of the port. 512 to 4194304. Default: what its queues can hold, and 1024 more.
    #[serde(default)]
    #[schemars(range(min = 512, max = 4_194_304))]
    pub buffers: Option<u32>,
    /// Neighbours known without asking. At most 1024.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub neighbours: Vec<Neighbour>,
    /// How two queue pairs of this appliance reach each other. Default `direct`.
    #[serde(default)]
    pub loopback: Loopback,
    /// How queue pairs deal with congestion: `off`, `dcqcn`, `{ dcqcn: { … } }` or `{ fixed: 1Gbps }`. Those of this appliance
    /// that reach each other directly have none, and datagrams know a fixed rate alone. Default: `dcqcn`, and `off` on a ring.
    #[serde(default)]
    pub congestion: Option<Congestion>,
    /// Write every frame of the port to a file. Default: no capture.
    #[serde(default)]
    pub capture: Option<Capture>,
    /// Damage frames on purpose, to test what lies above. Default: no faults.
    #[serde(default)]
    pub faults: Option<Faults>,
}

mod defaults {
    use crate::value::ByteSize;

    pub(super) fn mtu() -> u16 {
        1500
    }
    pub(super) fn descriptors() -> u16 {
        1024
    }
    pub(super) fn capture_limit() -> ByteSize {
        ByteSize::mib(64)
    }
}

/// The DPDK device behind a port: exactly one of `pci`, `vdev`, `ring`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", try_from = "DeviceKeys", into = "DeviceKeys")]
#[schemars(!try_from, !into, deny_unknown_fields)]
pub enum Device {
    /// A PCI function bound to a DPDK driver such as vfio-pci.
    Pci(PciAddress),
    /// A DPDK virtual device, as EAL's `--vdev` takes it: driver and number, then arguments, such as
    /// `net_af_packet0,iface=veth0`.
    Vdev(String),
    /// One end of a pair of rings inside the daemon; the peer is the other end.
    Ring(RingPeer),
}

/// The other end of a ring pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RingPeer {
    /// Name of the port at the other end, which must name this one in turn.
    pub peer: DeviceName,
}

/// [`Device`] as written, before "exactly one" is checked.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DeviceKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pci: Option<PciAddress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vdev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ring: Option<RingPeer>,
}

impl TryFrom<DeviceKeys> for Device {
    type Error = ValueError;
    fn try_from(keys: DeviceKeys) -> Result<Self, ValueError> {
        match keys {
            DeviceKeys {
                pci: Some(address),
                vdev: None,
                ring: None,
            } => Ok(Self::Pci(address)),
            DeviceKeys {
                pci: None,
                vdev: Some(vdev),
                ring: None,
            } => Ok(Self::Vdev(vdev)),
            DeviceKeys {
                pci: None,
                vdev: None,
                ring: Some(ring),
            } => Ok(Self::Ring(ring)),
            DeviceKeys {
                pci: None,
                vdev: None,
                ring: None,
            } => Err(bad!("no device is given")),
            _ => Err(bad!("more than one device is given")),
        }
    }
}

impl From<Device> for DeviceKeys {
    fn from(device: Device) -> Self {
        match device {
            Device::Pci(address) => Self {
                pci: Some(address),
                ..Self::default()
            },
            Device::Vdev(vdev) => Self {
                vdev: Some(vdev),
                ..Self::default()
            },
            Device::Ring(ring) => Self {
                ring: Some(ring),
                ..Self::default()
            },
        }
    }
}

impl Device {
    /// The name DPDK gives the port (`rte_eth_dev_get_port_by_name`); none for a ring, which the daemon makes.
    pub fn dpdk_name(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Pci(address) => Some(address.to_string().into()),
            Self::Vdev(vdev) => Some(vdev.split(',').next().unwrap_or_default().into()),
            Self::Ring(_) => None,
        }
    }

    /// The driver of a virtual device without its number: `net_af_packet` of `net_af_packet0,iface=veth0`.
    pub fn vdev_driver(&self) -> Option<&str> {
        let Self::Vdev(vdev) = self else { return None };
        let name = vdev.split(',').next().unwrap_or_default();
        Some(name.trim_end_matches(|c: char| c.is_ascii_digit()))
    }

    /// The kernel interface behind the device: that of net_af_packet and net_af_xdp, and the one that net_tap makes,
    /// or is made `remote` of.
    pub fn netdev(&self) -> Option<&str> {
        match self.vdev_driver()? {
            "net_af_packet" | "net_af_xdp" => self.vdev_arg("iface"),
            "net_tap" => self.vdev_arg("remote").or_else(|| self.vdev_arg("iface")),
            _ => None,
        }
    }

    /// Whether the kernel's own stack sees the frames the port receives, and answers them.
    pub fn shares_frames_with_kernel(&self) -> bool {
        self.vdev_driver() == Some("net_af_packet")
    }

    /// The argument `key` of a virtual device: `veth0` for `iface`.
    pub fn vdev_arg(&self, key: &str) -> Option<&str> {
        let Self::Vdev(vdev) = self else { return None };
        vdev.split(',')
            .skip(1)
            .find_map(|arg| arg.split_once('=').filter(|(name, _)| *name == key))
            .map(|(_, v)| v)
    }
}

/// Bytes of headers and trailer beside the payload in the largest IP packet of RoCEv2: IPv6 40, UDP 8, BTH 12,
/// XRCETH 4, AtomicETH 28, ICRC 4. (No packet has all of them; this is the room every opcode is sure to fit.)
pub const HEADER_ROOM: u16 = 96;

/// Largest link MTU of DPDK's net_af_xdp driver, in bytes: what one 4 KiB frame of its UMEM leaves.
pub const AF_XDP_MAX_MTU: u16 = 3434;

impl Port {
    /// Link MTU the device will have, in bytes: `mtu`, but no more than its driver takes.
    pub fn link_mtu(&self) -> u16 {
        match self.device.vdev_driver() {
            Some("net_af_xdp") => self.mtu.min(AF_XDP_MAX_MTU),
            _ => self.mtu,
        }
    }

    /// Largest RoCE path MTU that fits the link: 256, 512, 1024, 2048 or 4096 bytes of payload.
    pub fn path_mtu(&self) -> u16 {
        let room = self.link_mtu().saturating_sub(HEADER_ROOM);
        [4096, 2048, 1024, 512]
            .into_iter()
            .find(|mtu| *mtu <= room)
            .unwrap_or(256)
    }

    /// Queue pairs of the device to ask for when `poll_cores` poll: `queues`, else one per core.
    pub fn queue_count(&self, poll_cores: u16) -> u16 {
        self.queues.unwrap_or(poll_cores)
    }

    /// Packet buffers of the port: `buffers`, else what its queues can hold and 1024 more.
    pub fn buffer_count(&self, poll_cores: u16) -> u32 {
        self.buffers.unwrap_or(self.descriptor_count(poll_cores) + 1024)
    }

    /// Descriptors of all queues, each of which may hold a buffer.
    pub fn descriptor_count(&self, poll_cores: u16) -> u32 {
        u32::from(self.queue_count(poll_cores))
            * (u32::from(self.rx_descriptors) + u32::from(self.tx_descriptors))
    }

    /// Data room of each packet buffer in bytes: DPDK's 128 of headroom, Ethernet with two VLAN tags and FCS,
    /// the link MTU, rounded up to cache lines.
    pub fn buffer_room(&self) -> u16 {
        (128 + 14 + 8 + 4 + self.link_mtu()).next_multiple_of(64)
    }

    /// How its queue pairs deal with congestion: `congestion`, else DCQCN where there is a wire.
    pub fn congestion(&self) -> Congestion {
        match (&self.congestion, &self.device) {
            (Some(given), _) => given.clone(),
            (None, Device::Ring(_)) => Congestion::Off,
            (None, _) => Congestion::Dcqcn(Dcqcn::default()),
        }
    }

    /// The VLAN of `address`: its own, else the port's, else none.
    pub fn vlan_of(&self, address: &PortAddress) -> Option<u16> {
        address.vlan.or(self.vlan)
    }

    /// The capture to write, unless the path is empty, which switches it off.
    pub fn active_capture(&self) -> Option<&Capture> {
        self.capture
            .as_ref()
            .filter(|capture| !capture.file.as_os_str().is_empty())
    }
}

/// An IP address of a port: `10.0.0.1/24`, or with a VLAN of its own `{address: 10.0.0.1/24, vlan: 5}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PortAddress {
    /// The address and the length of its network prefix.
    pub address: Address,
    /// VLAN of this address. 1 to 4094. Default: that of the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// [`PortAddress`] in its long form.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct LongAddress {
    /// The address and the length of its network prefix.
    address: Address,
    /// VLAN of this address. 1 to 4094. Default: that of the port.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4094))]
    vlan: Option<u16>,
}

impl<'de> Deserialize<'de> for PortAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShortOrLong;
        impl<'de> Visitor<'de> for ShortOrLong {
            type Value = PortAddress;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address with its prefix length, or a map with `address` and `vlan`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortAddress, E> {
                let address = text.parse().map_err(E::custom)?;
                Ok(PortAddress { address, vlan: None })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<PortAddress, A::Error> {
                let LongAddress { address, vlan } =
                    LongAddress::deserialize(MapAccessDeserializer::new(map))?;
                Ok(PortAddress { address, vlan })
            }
        }
        deserializer.deserialize_any(ShortOrLong)
    }
}

impl JsonSchema for PortAddress {
    fn schema_name() -> Cow<'static, str> {
        "PortAddress".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [generator.subschema_for::<Address>(), generator.subschema_for::<LongAddress>()]
        })
    }
}

/// A neighbour known without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// Its IP address. Unique among the neighbours of a port.
    pub ip: IpAddr,
    /// Its MAC address.
    pub mac: MacAddr,
}

/// Whether a device spreads received frames over its queues by a hash of their addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rss {
    /// If the device can.
    #[default]
    Auto,
    /// Required: a device that cannot is an error at start.
    On,
    /// All frames to the first queue; poll cores hand them on.
    Off,
}

/// How two queue pairs of one appliance reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loopback {
    /// Payload is copied from one to the other; no frame is built.
    #[default]
    Direct,
    /// Frames go out of the port and come back in, as between two machines.
    Wire,
}

/// A file with every frame of a port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// Path of the pcapng file; overwritten at start. An empty path (say, of `${RNIC_CAPTURE:-}`) means no
    /// capture.
    pub file: PathBuf,
    /// Size at which capturing stops. 64KiB to 1TiB. Default 64MiB.
    #[serde(default = "defaults::capture_limit")]
    pub limit: ByteSize,
}

/// Damage to frames on purpose, reproducible by its seed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Seed of the random choices: the same seed and the same frames give the same faults. Default 0.
    pub seed: u64,
    /// Faults of frames received.
    pub rx: FaultRates,
    /// Faults of frames sent.
    pub tx: FaultRates,
}

/// How often each fault happens to a frame of one direction; the chances are independent of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FaultRates {
    /// Frames lost. 0% to 100%. Default 0%.
    pub drop: Chance,
    /// Frames delivered twice. 0% to 100%. Default 0%.
    pub duplicate: Chance,
    /// Frames delivered after the one that follows. 0% to 100%. Default 0%.
    pub reorder: Chance,
    /// Frames with one bit flipped. 0% to 100%. Default 0%.
    pub corrupt: Chance,
    /// Frames whose ECN field is set to "congestion experienced". 0% to 100%. Default 0%.
    pub ecn_mark: Chance,
    /// Time by which every frame is held back. 0 to 10s. Default 0.
    pub delay: TimeSpan,
}
