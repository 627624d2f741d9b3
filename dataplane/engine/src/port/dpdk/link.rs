//! The control thread's side of a DPDK port.
use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
};

use dpdk_sys::{EthDev, Mempool};
use rustix::{io::Errno, net::netdevice};

use super::vdev::probe_socket;
use crate::{nonblocking::might_block, port::Link};

pub(super) struct DpdkLink {
    /// `None` once it is closed.
    dev: Option<EthDev>,
    /// Take the device off its bus on close, so that it can be made again.
    remove: bool,
    /// The kernel interface behind the device.
    if_index: Option<u32>,
    /// Pools whose buffers may be in the device until it is closed.
    _pools: SharedPools,
}

/// Pools that die with the last port that holds them. The ends of a ring pair hold each other's, as the rings may
/// be full of either's buffers.
pub(super) type SharedPools = Arc<Mutex<Vec<Mempool>>>;

impl DpdkLink {
    pub fn new(dev: EthDev, remove: bool, if_index: Option<u32>, pools: SharedPools) -> Self {
        DpdkLink {
            dev: Some(dev),
            remove,
            if_index,
            _pools: pools,
        }
    }

    fn state(&self) -> Option<dpdk_sys::Link> {
        might_block();
        self.dev.as_ref()?.link().ok()
    }
}

impl Link for DpdkLink {
    fn is_up(&self) -> bool {
        self.state().is_some_and(|link| link.up)
    }

    fn speed_mbps(&self) -> Option<u32> {
        let speed = self.state()?.speed_mbps;
        (speed != 0 && speed != u32::MAX).then_some(speed)
    }

    fn if_index(&self) -> Option<u32> {
        self.if_index
    }

    fn is_gone(&self) -> bool {
        might_block();
        // An index is not used again before the kernel has counted through all of them.
        let deleted = |index| {
            probe_socket().is_some_and(|socket| netdevice::index_to_name(&socket, index) == Err(Errno::NODEV))
        };
        self.dev.as_ref().is_some_and(EthDev::has_vanished) || self.if_index.is_some_and(deleted)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        might_block();
        let Some(stats) = self.dev.as_ref().and_then(|dev| dev.stats().ok()) else {
            return Vec::new();
        };
        vec![
            ("device_rx_missed", stats.rx_missed),
            ("device_rx_errors", stats.rx_errors),
            ("device_rx_no_buffer", stats.rx_no_buffer),
            ("device_tx_errors", stats.tx_errors),
        ]
    }

    fn close(&mut self) {
        might_block();
        let Some(dev) = self.dev.take() else { return };
        let closed = if self.remove { dev.remove() } else { dev.close() };
        if let Err(error) = closed {
            tracing::error!(port = dev.name(), %error, "a port could not be closed");
        }
    }
}

impl Drop for DpdkLink {
    fn drop(&mut self) {
        self.close();
    }
}

/// Name and MTU of a kernel interface.
pub(super) fn interface(index: u32) -> Option<(String, u16)> {
    let socket = probe_socket()?;
    let name = netdevice::index_to_name(&socket, index).ok()?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *target = byte as libc::c_char;
    }
    // SAFETY: the request is an ifreq with a terminated name, which SIOCGIFMTU wants and fills.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &mut request) };
    // SAFETY: the field was written by the call just made, or is still zero.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    (code == 0).then(|| (name, u16::try_from(mtu).unwrap_or(u16::MAX)))
}
