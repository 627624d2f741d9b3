//! What ports are to be opened, and what can go wrong.
use std::{io, path::PathBuf};

use super::fault::FaultSpec;

/// One port to open with [`open_all`](super::open_all).
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Name of the device, unique.
    pub name: String,
    /// What is behind the port.
    pub device: DeviceSpec,
    /// MAC address; `None` for the device's own, or one made from the name if it has none that lasts.
    pub mac: Option<[u8; 6]>,
    /// Link MTU in bytes: the largest IP packet. An af_xdp device gets 3434 at most, see [`OpenPort::mtu`](super::OpenPort::mtu).
    pub mtu: u16,
    /// Queue pairs wanted; a device with fewer gets as many as it has.
    pub queues: u16,
    /// Descriptors of each receive queue; moved to what the device allows.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; moved to what the device allows.
    pub tx_descriptors: u16,
    /// Packet buffers of the port. Each descriptor may hold one, and each poll core a few hundred.
    pub buffers: u32,
    /// Spreading of received frames over the queues.
    pub rss: RssMode,
    /// Write all frames to a file.
    pub capture: Option<CaptureSpec>,
    /// Damage frames on purpose.
    pub faults: Option<FaultSpec>,
}

impl PortSpec {
    /// A port with one queue of 1024 descriptors each way and buffers to suit.
    pub fn new(name: impl Into<String>, device: DeviceSpec, mtu: u16) -> Self {
        PortSpec {
            name: name.into(),
            device,
            mac: None,
            mtu,
            queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            buffers: 3072,
            rss: RssMode::Auto,
            capture: None,
            faults: None,
        }
    }
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// A PCI function bound to a DPDK driver, by its address: `0000:3b:00.1`.
    Pci(String),
    /// A virtual device as EAL's `--vdev` takes it: `net_af_packet0,iface=veth0`. What af_packet and memif need
    /// for the port's MTU is added where it is not given.
    Vdev(String),
    /// One end of a pair of DPDK rings; of a [`DeviceSpec::SoftRing`] pair where DPDK is not built in.
    Ring {
        /// Name of the port at the other end, which must name this one in turn.
        peer: String,
    },
    /// One end of a pair of rings in Rust alone.
    SoftRing {
        /// Name of the port at the other end, which must name this one in turn.
        peer: String,
    },
}

/// Spreading of received frames over the queues by a hash of addresses and ports.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum RssMode {
    /// If the device can.
    #[default]
    Auto,
    /// A device with several queues that cannot is an error.
    On,
    /// The device is not asked to.
    Off,
}

/// A file with every frame of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSpec {
    /// Path of the pcapng file, overwritten.
    pub path: PathBuf,
    /// Size in bytes at which capturing stops.
    pub limit_bytes: u64,
}

/// Why a port could not be opened: which, what was tried, why it failed and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// DPDK itself did not start.
    #[error("port {port} needs DPDK, which did not start: {why}. {help}")]
    Dpdk {
        /// The first port that needs DPDK.
        port: String,
        /// The reason given.
        why: String,
        /// What to do.
        help: String,
    },
    /// The program was built without DPDK.
    #[error(
        "port {port}: {device} needs DPDK, which is not built into this program. \
         Build it with the feature `dpdk`, or use a ring"
    )]
    NotBuilt {
        /// The port.
        port: String,
        /// Its device.
        device: String,
    },
    /// A step of opening the device failed.
    #[error("port {port}: cannot {action} {device}: {why}. {help}")]
    Device {
        /// The port.
        port: String,
        /// What was tried, as a verb.
        action: &'static str,
        /// On which device.
        device: String,
        /// The reason given.
        why: String,
        /// What to do.
        help: String,
    },
    /// The two ends of a ring do not name each other.
    #[error("port {port}: its ring peer {peer} {why}. Let the two ends of a ring name each other as `peer`")]
    Peer {
        /// The port.
        port: String,
        /// The peer it names.
        peer: String,
        /// The rest of the sentence.
        why: &'static str,
    },
    /// Two ports have one name.
    #[error("two ports are named {0}. Give each port a name of its own")]
    SameName(String),
    /// The capture file cannot be written.
    #[error("port {port}: cannot write the capture file {}: {source}. Choose a path the daemon may write", .path.display())]
    Capture {
        /// The port.
        port: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}
