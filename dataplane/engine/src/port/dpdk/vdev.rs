//! Virtual devices: their argument strings, and why they fail.
use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use dpdk_sys::Mempool;
use rustix::{
    net::{AddressFamily, SocketType, netdevice},
    thread::{CapabilitySet, capabilities},
};

/// Ethernet header, VLAN tag, FCS.
const ETHERNET: usize = 14 + 4 + 4;
/// What af_packet puts before each frame: the aligned header of TPACKET_V2 and a socket address.
const AF_PACKET_HEADER: usize = 66;
/// Smallest frame slot to ask af_packet for, the driver's default.
const AF_PACKET_FRAME: usize = 2048;
const AF_PACKET_BLOCK: usize = 128 << 10;

/// `XDP_PACKET_HEADROOM` of the kernel.
const XDP_HEADROOM: u16 = 256;
/// The largest data room with which a buffer and its header stay within a page, as AF_XDP wants it.
const XDP_DATA_ROOM: u16 = 3840;

/// A device string, taken apart.
pub(super) struct Vdev {
    /// Driver and number: `net_af_packet0`.
    pub name: String,
    /// `key=value` and bare keys, in order.
    args: Vec<String>,
}

impl Vdev {
    /// Takes `name,key=value,...` apart, and adds what the driver needs for frames of `mtu` where nothing is
    /// given.
    pub fn new(text: &str, mtu: u16) -> Self {
        let mut parts = text.split(',').map(str::to_owned);
        let mut vdev = Vdev {
            name: parts.next().unwrap_or_default(),
            args: parts.filter(|arg| !arg.is_empty()).collect(),
        };
        vdev.complete(usize::from(mtu));
        vdev
    }

    fn complete(&mut self, mtu: usize) {
        match self.driver() {
            "net_af_packet" => {
                if !["framesz", "blocksz", "framecnt"]
                    .iter()
                    .any(|key| self.arg(key).is_some())
                {
                    let frame = (mtu + ETHERNET + AF_PACKET_HEADER)
                        .next_power_of_two()
                        .max(AF_PACKET_FRAME);
                    self.args.push(format!("framesz={frame}"));
                    self.args.push(format!("blocksz={}", AF_PACKET_BLOCK.max(frame)));
                    self.args.push("framecnt=1024".to_owned());
                }
                self.default("qdisc_bypass", "1".to_owned());
            }
            "net_memif" => self.default(
                "bsize",
                (mtu + ETHERNET).next_multiple_of(64).max(2048).to_string(),
            ),
            _ => {}
        }
    }

    fn default(&mut self, key: &str, value: String) {
        if self.arg(key).is_none() {
            self.args.push(format!("{key}={value}"));
        }
    }

    /// The driver: the name without its number.
    pub fn driver(&self) -> &str {
        self.name.trim_end_matches(|c: char| c.is_ascii_digit())
    }

    /// The value of an argument.
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args
            .iter()
            .find_map(|arg| arg.split_once('=').filter(|(k, _)| *k == key).map(|(_, v)| v))
    }

    /// The arguments as DPDK takes them.
    pub fn args(&self) -> String {
        self.args.join(",")
    }

    /// The data room that buffers need, when frames of the port's MTU need `by_mtu` bytes of it.
    pub fn data_room(&self, by_mtu: u16) -> Option<u16> {
        match self.driver() {
            // The driver wants a buffer to hold a whole slot.
            "net_af_packet" => {
                let slot = self
                    .arg("framesz")
                    .map_or(Some(AF_PACKET_FRAME), |v| v.parse().ok())?;
                let by_slot = slot.checked_add(usize::from(Mempool::HEADROOM))?;
                Some(by_mtu.max(u16::try_from(by_slot).ok()?))
            }
            // The kernel keeps room for itself in every buffer.
            "net_af_xdp" => Some(by_mtu.saturating_add(XDP_HEADROOM).min(XDP_DATA_ROOM)),
            _ => Some(by_mtu),
        }
    }

    /// The largest MTU at which frames fit the buffers, if that is less than the driver says: what does not fit is
    /// lost without a trace.
    pub fn max_mtu(&self) -> Option<u16> {
        let room = XDP_DATA_ROOM - XDP_HEADROOM - Mempool::HEADROOM;
        (self.driver() == "net_af_xdp").then_some(room - ETHERNET as u16)
    }

    /// Whether the driver makes up an address at each start, or one that is the same everywhere.
    pub fn lacks_address(&self) -> bool {
        let makes_up = [
            "net_memif",
            "net_vhost",
            "net_virtio_user",
            "net_null",
            "net_ring",
        ];
        makes_up.contains(&self.driver()) && self.arg("mac").is_none()
    }

    /// Must be there before the others: virtio_user connects to the socket of a vhost device when it is made.
    pub fn comes_first(&self) -> bool {
        self.driver() == "net_vhost"
    }

    /// What to do after the driver has refused the device.
    pub fn help(&self) -> String {
        let found = match self.driver() {
            "net_af_packet" => self.interface("iface").or_else(|| lacks(CapabilitySet::NET_RAW)),
            "net_af_xdp" => self
                .interface("iface")
                .or_else(|| lacks(CapabilitySet::NET_RAW))
                .or_else(|| lacks(CapabilitySet::NET_ADMIN)),
            "net_tap" => self
                .remote()
                .or_else(|| lacks(CapabilitySet::NET_ADMIN))
                .or_else(tun),
            "net_memif" => self.memif(),
            "net_vhost" => self.vhost(),
            "net_virtio_user" => self.virtio_user(),
            _ => None,
        };
        found.unwrap_or_else(|| {
            format!(
                "Check the arguments {:?} and that the driver {} is installed; DPDK's own lines before this one \
                 say more",
                self.args(),
                self.driver()
            )
        })
    }

    fn interface(&self, key: &str) -> Option<String> {
        let Some(name) = self.arg(key) else {
            return Some(format!(
                "Add {key}=NAME: the kernel interface that the device is to use"
            ));
        };
        let socket = probe_socket()?;
        netdevice::name_to_index(&socket, name).is_err().then(|| {
            format!("No network interface is named {name} here: create it, or correct {key}= (names are per network namespace)")
        })
    }

    fn remote(&self) -> Option<String> {
        self.arg("remote").and_then(|_| self.interface("remote"))
    }

    fn memif(&self) -> Option<String> {
        let path = self.arg("socket").unwrap_or("/run/memif.sock");
        if self.arg("socket-abstract") != Some("no") {
            return None;
        }
        no_directory(path)
    }

    fn vhost(&self) -> Option<String> {
        let Some(path) = self.arg("iface") else {
            return Some("Add iface=PATH: the socket that the device is to listen on".to_owned());
        };
        no_directory(path).or_else(|| {
            Path::new(path)
                .exists()
                .then(|| format!("{path} exists: remove it if no other process listens there"))
        })
    }

    fn virtio_user(&self) -> Option<String> {
        let Some(path) = self.arg("path") else {
            return Some("Add path=PATH: the vhost socket or device that serves this device".to_owned());
        };
        (!Path::new(path).exists())
            .then(|| format!("{path} does not exist: start the vhost side first, or add server=1"))
    }
}

fn no_directory(path: &str) -> Option<String> {
    let parent: PathBuf = Path::new(path).parent()?.into();
    (!parent.is_dir()).then(|| format!("The directory {} does not exist: create it", parent.display()))
}

fn tun() -> Option<String> {
    fs::File::open("/dev/net/tun").err().map(|error| {
        format!("/dev/net/tun cannot be opened ({error}): load the module tun, or allow the device")
    })
}

/// What to say when this process lacks a capability.
fn lacks(capability: CapabilitySet) -> Option<String> {
    let name = match capability {
        CapabilitySet::NET_RAW => "CAP_NET_RAW",
        _ => "CAP_NET_ADMIN",
    };
    let has = capabilities(None).is_ok_and(|sets| sets.effective.contains(capability));
    (!has).then(|| {
        format!(
            "The process lacks {name}: run it as root, or with AmbientCapabilities={name} in its systemd unit"
        )
    })
}

/// A socket to ask about interfaces.
pub(super) fn probe_socket() -> Option<OwnedFd> {
    rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn af_packet_gets_slots_that_hold_the_mtu_unless_told_otherwise() {
        let vdev = Vdev::new("net_af_packet0,iface=veth0", 4200);
        assert_eq!(
            (vdev.name.as_str(), vdev.driver()),
            ("net_af_packet0", "net_af_packet")
        );
        assert_eq!(
            vdev.args(),
            "iface=veth0,framesz=8192,blocksz=131072,framecnt=1024,qdisc_bypass=1"
        );
        assert_eq!(vdev.data_room(4416), Some(8192 + Mempool::HEADROOM));
        let own = Vdev::new(
            "net_af_packet1,iface=veth0,framesz=4608,blocksz=36864,qdisc_bypass=0",
            4200,
        );
        assert_eq!(
            own.args(),
            "iface=veth0,framesz=4608,blocksz=36864,qdisc_bypass=0"
        );
        assert_eq!(own.data_room(4416), Some(4608 + Mempool::HEADROOM));
    }

    #[test]
    fn af_xdp_has_room_for_the_kernel_in_buffers_that_fit_a_page() {
        let vdev = Vdev::new("net_af_xdp0,iface=veth0", 1500);
        assert_eq!((vdev.data_room(1664), vdev.max_mtu()), (Some(1920), Some(3434)));
        assert_eq!(vdev.data_room(3648), Some(3840));
        assert_eq!(Vdev::new("net_tap0", 1500).max_mtu(), None);
    }

    #[test]
    fn memif_gets_buffers_that_hold_the_mtu() {
        assert_eq!(
            Vdev::new("net_memif0,role=server", 4200).arg("bsize"),
            Some("4224")
        );
        assert_eq!(
            Vdev::new("net_memif0,bsize=9000", 4200).arg("bsize"),
            Some("9000")
        );
        assert_eq!(Vdev::new("net_null0", 1500).args(), "");
    }

    #[test]
    fn help_names_what_is_missing() {
        let help = |text| Vdev::new(text, 1500).help();
        assert!(help("net_af_packet0,iface=nosuch9").contains("No network interface is named nosuch9"));
        assert!(help("net_af_packet0").contains("Add iface=NAME"));
        assert!(help("net_virtio_user0,path=/nonexistent/s").contains("start the vhost side first"));
        assert!(help("net_vhost0,iface=/nonexistent/s").contains("directory /nonexistent does not exist"));
        assert!(help("net_nosuch0,a=1").contains("driver net_nosuch is installed"));
    }
}
