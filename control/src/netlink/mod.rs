//! The kernel's network interfaces, by rtnetlink: what a port's interface is like now ([`Scanner`]), and that it may
//! have changed ([`Monitor`]).
//!
//! A notification is a hint that an interface is worth a look, no more. The truth is always a fresh look, so that
//! notifications that were lost, came twice, late or in a bad order cannot leave a wrong table behind: after an
//! overrun every interface is looked at.
//!
//! Sockets belong to the network namespace of the thread that makes them, which is the daemon's.

mod monitor;
mod scanner;

use std::net::IpAddr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};

pub use monitor::{Hints, Monitor};
pub use scanner::{ScanError, Scanner};

/// An interface, as one look found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    /// Its index, which lasts as long as the interface; its name may change.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It is switched on and has a carrier.
    pub up: bool,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// MAC address, for Ethernet interfaces.
    pub mac: Option<[u8; 6]>,
    /// Addresses that can be used now, in the kernel's order: IPv4 first.
    pub addresses: Vec<NetdevAddress>,
}

/// An address of an interface.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NetdevAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network prefix.
    pub prefix_len: u8,
}

/// The index of the interface with this name, if there is one.
pub fn index_of(name: &str) -> Option<u32> {
    let flags = SocketFlags::CLOEXEC;
    let any = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
    netdevice::name_to_index(&any, name).ok()
}

/// Subscribes to changes, where that is allowed; ports without an interface do well without.
pub fn watch() -> Option<Monitor> {
    Monitor::new()
        .inspect_err(|error| tracing::warn!(%error, "changes of network interfaces are not followed"))
        .ok()
}

/// Room for the largest message the kernel sends: one link's can pass a page by far.
const BUFFER: usize = 64 << 10;

#[cfg(test)]
pub(crate) mod tests;
