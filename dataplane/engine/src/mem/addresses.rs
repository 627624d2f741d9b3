//! The addresses of ports, for packets that come without a connection to be compared with: datagrams.
//!
//! Written by the control thread while cores look: an address is found, or is not yet or no longer; what stands still is
//! always found right. A cache: whoever takes an engine over fills it anew.
use std::sync::atomic::{AtomicU32, Ordering};

use super::snapshot::Snapshot;
use crate::PORT_SLOTS;

/// Addresses of a port, at most: as many as a GID table has indices.
pub const ADDRESSES: usize = 256;

/// An address of a port, as a GID (A17.4.1), and the id of its VLAN, `None` when it has none.
pub type PortAddress = ([u8; 16], Option<u16>);

/// Where the VLAN stands in the third word: beside bit 16, which says that there is one.
const TAGGED: u64 = 1 << 16;

struct Port {
    len: AtomicU32,
    /// Address and VLAN.
    entries: Box<[Snapshot<3>]>,
}

/// The addresses of all ports.
pub struct PortAddresses {
    ports: Box<[Port]>,
}

impl Default for PortAddresses {
    fn default() -> Self {
        let port = || Port {
            len: AtomicU32::new(0),
            entries: (0..ADDRESSES).map(|_| Snapshot::default()).collect(),
        };
        PortAddresses {
            ports: (0..PORT_SLOTS).map(|_| port()).collect(),
        }
    }
}

impl PortAddresses {
    /// Makes these the addresses of a port; those beyond [`ADDRESSES`] are left out. Control thread.
    pub fn set(&self, port: u16, addresses: impl IntoIterator<Item = PortAddress>) {
        let Some(port) = self.ports.get(usize::from(port)) else {
            return;
        };
        let mut len = 0;
        for (entry, address) in port.entries.iter().zip(addresses) {
            entry.store(&pack(&address));
            len += 1;
        }
        // Release: whoever looks at so many finds them.
        port.len.store(len, Ordering::Release);
    }

    /// Whether a port has an address on this VLAN. Any thread, without waiting.
    #[inline]
    pub fn has(&self, port: u16, address: &PortAddress) -> bool {
        self.any(port, |words| *words == pack(address))
    }

    /// Whether it has the address on any VLAN.
    #[inline]
    pub fn has_ip(&self, port: u16, ip: [u8; 16]) -> bool {
        let [high, low, _] = pack(&(ip, None));
        self.any(port, |words| words[..2] == [high, low])
    }

    /// Whether it has any address on this VLAN.
    #[inline]
    pub fn has_vlan(&self, port: u16, vlan: Option<u16>) -> bool {
        let [.., tag] = pack(&([0; 16], vlan));
        self.any(port, |words| words[2] == tag)
    }

    #[inline]
    fn any(&self, port: u16, good: impl Fn(&[u64; 3]) -> bool) -> bool {
        let Some(port) = self.ports.get(usize::from(port)) else {
            return false;
        };
        let len = port.len.load(Ordering::Acquire) as usize;
        let entries = port.entries.iter().take(len);
        entries.filter_map(Snapshot::load).any(|words| good(&words))
    }
}

fn pack((ip, vlan): &PortAddress) -> [u64; 3] {
    let ip = u128::from_be_bytes(*ip);
    let vlan = vlan.map_or(0, |id| TAGGED | u64::from(id));
    [(ip >> 64) as u64, ip as u64, vlan]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_on_its_port_and_vlan_until_it_is_replaced() {
        let addresses = PortAddresses::default();
        let (plain, tagged) = (([1; 16], None), ([2; 16], Some(0)));
        addresses.set(3, [plain, tagged]);
        assert!(addresses.has(3, &plain) && addresses.has(3, &tagged));
        assert!(!addresses.has(3, &([1; 16], Some(0))), "VLAN 0 is a VLAN here");
        assert!(addresses.has_ip(3, [2; 16]) && !addresses.has_ip(2, [2; 16]));
        assert!(
            addresses.has_vlan(3, None) && addresses.has_vlan(3, Some(0)) && !addresses.has_vlan(3, Some(1))
        );
        addresses.set(3, [tagged]);
        assert!(addresses.has(3, &tagged) && !addresses.has(3, &plain));
        addresses.set(3, (0..300).map(|i| ([i as u8; 16], Some(i))));
        assert!(addresses.has(3, &([255; 16], Some(255))), "a whole table");
        addresses.set(u16::MAX, [plain]);
        assert!(!addresses.has(u16::MAX, &plain));
    }
}
