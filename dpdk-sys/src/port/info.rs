//! What a port is and what it can do.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use super::{PortShared, Rss};
use crate::error::{Error, check};
use crate::ffi;

/// What a device is and what it can do.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Driver, `net_af_packet` for instance.
    pub driver: String,
    /// Name of the device on its bus: PCI address or virtual device name.
    pub device: String,
    /// Number of the kernel interface behind it, if there is one.
    pub if_index: Option<u32>,
    /// NUMA node, if known.
    pub socket: Option<u32>,
    /// Smallest MTU.
    pub min_mtu: u16,
    /// Largest MTU, as far as known.
    pub max_mtu: u16,
    /// The largest MTU the driver accepts when it is configured.
    pub(super) max_configured_mtu: u16,
    /// Longest frame in bytes, Ethernet header included.
    pub max_frame: u32,
    /// Most receive queues.
    pub max_rx_queues: u16,
    /// Most transmit queues.
    pub max_tx_queues: u16,
    /// Fewest and most descriptors of a receive queue.
    pub rx_descriptors: (u16, u16),
    /// Fewest and most descriptors of a transmit queue.
    pub tx_descriptors: (u16, u16),
    /// Receive offloads, as DPDK's `RTE_ETH_RX_OFFLOAD_*` bits.
    pub rx_offloads: u64,
    /// Transmit offloads, as DPDK's `RTE_ETH_TX_OFFLOAD_*` bits.
    pub tx_offloads: u64,
    /// Hashes for RSS, as DPDK's `RTE_ETH_RSS_*` bits.
    pub rss_types: u64,
}

impl DeviceInfo {
    /// The part of `wanted` that the device can hash; `None` if that is nothing.
    pub fn usable_rss(&self, wanted: Rss) -> Option<Rss> {
        let usable = Rss {
            ipv4_udp: wanted.ipv4_udp && self.rss_types & ffi::DPDK_RSS_IPV4_UDP != 0,
            ipv6_udp: wanted.ipv6_udp && self.rss_types & ffi::DPDK_RSS_IPV6_UDP != 0,
        };
        (usable.ipv4_udp || usable.ipv6_udp).then_some(usable)
    }

    /// Whether the device can remove VLAN tags on receive.
    pub fn can_strip_vlan(&self) -> bool {
        self.rx_offloads & ffi::DPDK_RX_OFFLOAD_VLAN_STRIP != 0
    }
}

/// Drivers that report the standard Ethernet frame as their longest, and refuse to be configured for
/// more, but carry whatever fits their buffers (`bsize`, `framesz`).
const UNDERSTATED_FRAME: [&str; 2] = ["net_memif", "net_af_packet"];

/// The largest MTU that DPDK will let pass. It checks the frame, for which it adds to the MTU the
/// difference of the two limits if the driver has both, else Ethernet header and checksum.
fn max_configured_mtu(raw: &ffi::dpdk_port_info) -> u16 {
    const ETHERNET: u32 = 14 + 4;
    let both = raw.max_mtu != u16::MAX && raw.max_frame > u32::from(raw.max_mtu);
    let by_frame = raw.max_frame.saturating_sub(ETHERNET);
    if both {
        raw.max_mtu
    } else {
        raw.max_mtu.min(u16::try_from(by_frame).unwrap_or(u16::MAX))
    }
}

/// DPDK's bits for the hashes.
pub(super) fn rss_types(rss: Rss) -> u64 {
    let bit = |on, bit| if on { bit } else { 0 };
    bit(rss.ipv4_udp, ffi::DPDK_RSS_IPV4_UDP) | bit(rss.ipv6_udp, ffi::DPDK_RSS_IPV6_UDP)
}

/// Reads the device information of an open port.
pub(super) fn read(port: &PortShared) -> Result<DeviceInfo, Error> {
    let raw = raw_info(port.id);
    let raw = raw.map_err(|code| Error::call("query", format!("port {}", port.name), code))?;
    // SAFETY: null or a C string that lives as long as the device, which is there because the port is
    // open.
    let driver = unsafe { text(raw.driver) };
    let max_configured_mtu = max_configured_mtu(&raw);
    let understated = UNDERSTATED_FRAME.contains(&driver.as_str());
    Ok(DeviceInfo {
        driver,
        // SAFETY: as above.
        device: unsafe { text(raw.device) },
        if_index: (raw.if_index != 0).then_some(raw.if_index),
        socket: u32::try_from(raw.socket).ok(),
        min_mtu: raw.min_mtu,
        max_mtu: if understated {
            raw.max_mtu
        } else {
            max_configured_mtu
        },
        max_configured_mtu,
        max_frame: raw.max_frame,
        max_rx_queues: raw.max_rx_queues,
        max_tx_queues: raw.max_tx_queues,
        rx_descriptors: (raw.rx_desc_min, raw.rx_desc_max),
        tx_descriptors: (raw.tx_desc_min, raw.tx_desc_max),
        rx_offloads: raw.rx_offloads,
        tx_offloads: raw.tx_offloads,
        rss_types: raw.rss_types,
    })
}

fn raw_info(id: u16) -> Result<ffi::dpdk_port_info, i32> {
    let mut raw = MaybeUninit::uninit();
    // SAFETY: DPDK refuses numbers that are no port; the shim fills `raw` when it returns 0.
    match unsafe { ffi::dpdk_port_info(id, raw.as_mut_ptr()) } {
        // SAFETY: as just said.
        0 => Ok(unsafe { raw.assume_init() }),
        code => Err(code),
    }
}

/// Names of all ports. The caller holds the claim lock, so that none comes or goes.
pub(super) fn all_names() -> Vec<String> {
    // SAFETY: may be asked for any number; answers the number of a port, or one past the last.
    let next = |from: u16| unsafe { ffi::rte_eth_find_next(from) };
    let ids = std::iter::successors(Some(next(0)), |&id| Some(next(id + 1)));
    ids.take_while(|&id| u32::from(id) < ffi::DPDK_MAX_PORTS)
        .filter_map(name_of)
        .collect()
}

/// The name of a port.
pub(crate) fn name_of(id: u16) -> Option<String> {
    let mut name = [0 as c_char; ffi::DPDK_NAME_LEN as usize];
    // SAFETY: DPDK refuses numbers that are no port; the buffer has the length it documents.
    check("name", "a port", unsafe {
        ffi::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr())
    })
    .ok()?;
    // SAFETY: DPDK wrote a terminated string.
    Some(unsafe { text(name.as_ptr()) })
}

/// The port of this name. The caller holds the claim lock.
pub(crate) fn id_of(name: &CStr) -> Option<u16> {
    let mut id = 0;
    // SAFETY: a port exists only while EAL is up, which DPDK checks; it reads a C string and writes one u16.
    let code = unsafe { ffi::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut id) };
    (code == 0).then_some(id)
}

/// That there is no port of this name, with those there are. The caller holds the claim lock.
pub(crate) fn no_such(name: &str) -> Error {
    Error::NoSuchPort {
        name: name.to_owned(),
        present: all_names().join(", "),
    }
}

/// The device a port belongs to. The caller holds the claim lock.
pub(crate) fn device_of(id: u16) -> Option<String> {
    let raw = raw_info(id).ok()?;
    // SAFETY: null or a C string that lives as long as the device, which the claim lock keeps.
    Some(unsafe { text(raw.device) })
}

/// Copies a C string; null becomes empty.
///
/// # Safety
/// `pointer` must be null or point to a terminated string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by this function's own contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
