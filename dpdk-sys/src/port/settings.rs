//! Addresses, link, modes and counters of a port.

use std::mem::MaybeUninit;

use super::{DeviceInfo, EthDev, info};
use crate::error::Error;
use crate::ffi;

/// State of a port's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether frames can pass.
    pub up: bool,
    /// Megabits per second; 0 or `u32::MAX` if unknown.
    pub speed_mbps: u32,
    /// Full duplex.
    pub full_duplex: bool,
    /// Speed was negotiated.
    pub autoneg: bool,
}

/// Counters of a port since its start or the last reset. Drivers leave at zero what they do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames dropped because receive queues were full.
    pub rx_missed: u64,
    /// Broken frames received.
    pub rx_errors: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Times no buffer was there to receive into.
    pub rx_no_buffer: u64,
}

/// All of these take the port's lock: control thread only. Each fails with [`Error::PortClosed`] on a
/// closed port and [`Error::Call`] when the driver refuses; [`Error::is_unsupported`] tells when it
/// merely lacks the operation.
impl EthDev {
    /// What the device is and can do.
    ///
    /// # Errors
    /// As said above.
    pub fn info(&self) -> Result<DeviceInfo, Error> {
        let _open = self.control()?;
        info::read(&self.shared)
    }

    /// The port's MAC address; all zeroes on ring ports.
    ///
    /// # Errors
    /// As said above.
    pub fn mac_addr(&self) -> Result<[u8; 6], Error> {
        let _open = self.control()?;
        let mut address = ffi::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: the port is open; DPDK writes one address.
        self.check("read the MAC address of", unsafe {
            ffi::rte_eth_macaddr_get(self.id(), &mut address)
        })?;
        Ok(address.addr_bytes)
    }

    /// Sets the port's MAC address.
    ///
    /// # Errors
    /// As said above.
    pub fn set_mac_addr(&self, address: [u8; 6]) -> Result<(), Error> {
        let _open = self.control()?;
        let mut address = ffi::rte_ether_addr { addr_bytes: address };
        // SAFETY: the port is open; DPDK reads one address.
        let code = unsafe { ffi::rte_eth_dev_default_mac_addr_set(self.id(), &mut address) };
        self.check("set the MAC address of", code)
    }

    /// Link state as last known; does not wait for negotiation.
    ///
    /// # Errors
    /// As said above.
    pub fn link(&self) -> Result<Link, Error> {
        let _open = self.control()?;
        let mut link = MaybeUninit::uninit();
        // SAFETY: the port is open; the shim fills `link` when it returns 0, and `check` fails otherwise.
        let link = unsafe {
            self.check(
                "read the link state of",
                ffi::dpdk_port_link(self.id(), link.as_mut_ptr()),
            )?;
            link.assume_init()
        };
        Ok(Link {
            up: link.up,
            speed_mbps: link.speed_mbps,
            full_duplex: link.full_duplex,
            autoneg: link.autoneg,
        })
    }

    /// The MTU in bytes.
    ///
    /// # Errors
    /// As said above.
    pub fn mtu(&self) -> Result<u16, Error> {
        let _open = self.control()?;
        let mut mtu = 0;
        // SAFETY: the port is open; DPDK writes one u16.
        self.check("read the MTU of", unsafe {
            ffi::rte_eth_dev_get_mtu(self.id(), &mut mtu)
        })?;
        Ok(mtu)
    }

    /// Sets the MTU in bytes, of a kernel interface behind the port too. Drivers without this
    /// operation take the MTU of [`EthDev::configure`].
    ///
    /// # Errors
    /// As said above.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), Error> {
        let _open = self.control()?;
        // SAFETY: the port is open.
        self.check("set the MTU of", unsafe {
            ffi::rte_eth_dev_set_mtu(self.id(), mtu)
        })
    }

    /// Whether to receive frames for any address.
    ///
    /// # Errors
    /// As said above.
    pub fn set_promiscuous(&self, on: bool) -> Result<(), Error> {
        let _open = self.control()?;
        // SAFETY: the port is open.
        let code = unsafe {
            match on {
                true => ffi::rte_eth_promiscuous_enable(self.id()),
                false => ffi::rte_eth_promiscuous_disable(self.id()),
            }
        };
        self.check("set promiscuous mode of", code)
    }

    /// Whether to receive all multicast.
    ///
    /// # Errors
    /// As said above.
    pub fn set_allmulticast(&self, on: bool) -> Result<(), Error> {
        let _open = self.control()?;
        // SAFETY: the port is open.
        let code = unsafe {
            match on {
                true => ffi::rte_eth_allmulticast_enable(self.id()),
                false => ffi::rte_eth_allmulticast_disable(self.id()),
            }
        };
        self.check("set all-multicast mode of", code)
    }

    /// Replaces the list of multicast addresses to receive.
    ///
    /// # Errors
    /// As said above.
    pub fn set_multicast(&self, addresses: &[[u8; 6]]) -> Result<(), Error> {
        let _open = self.control()?;
        let mut list: Vec<_> = addresses
            .iter()
            .map(|&addr_bytes| ffi::rte_ether_addr { addr_bytes })
            .collect();
        let pointer = if list.is_empty() {
            std::ptr::null_mut()
        } else {
            list.as_mut_ptr()
        };
        // SAFETY: the port is open; DPDK reads list.len() addresses and keeps none.
        let code = unsafe { ffi::rte_eth_dev_set_mc_addr_list(self.id(), pointer, list.len() as u32) };
        self.check("set the multicast addresses of", code)
    }

    /// The port's counters.
    ///
    /// # Errors
    /// As said above.
    pub fn stats(&self) -> Result<Stats, Error> {
        let _open = self.control()?;
        let mut raw = MaybeUninit::<ffi::rte_eth_stats>::zeroed();
        // SAFETY: the port is open; all zeroes is a valid value, which DPDK fills in.
        let raw = unsafe {
            self.check(
                "read the counters of",
                ffi::rte_eth_stats_get(self.id(), raw.as_mut_ptr()),
            )?;
            raw.assume_init()
        };
        Ok(Stats {
            rx_packets: raw.ipackets,
            tx_packets: raw.opackets,
            rx_bytes: raw.ibytes,
            tx_bytes: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            tx_errors: raw.oerrors,
            rx_no_buffer: raw.rx_nombuf,
        })
    }

    /// Sets the port's counters to zero.
    ///
    /// # Errors
    /// As said above.
    pub fn reset_stats(&self) -> Result<(), Error> {
        let _open = self.control()?;
        // SAFETY: the port is open.
        self.check("reset the counters of", unsafe {
            ffi::rte_eth_stats_reset(self.id())
        })
    }
}
