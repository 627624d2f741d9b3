//! Ports: where frames come from and go to.
use std::{fmt, marker::PhantomData};

use crate::frame::{BURST, FrameBurst, SharedPool};

mod capture;
mod counted;
#[cfg(feature = "dpdk")]
mod dpdk;
mod fault;
mod heap;
mod mac;
mod open;
mod packet;
mod ring;
mod spec;
mod wrap;

pub use counted::counted;
pub use fault::{FaultRates, FaultSpec};
pub use heap::HeapPool;
pub use mac::mac_of_name;
pub use open::open_all;
pub use ring::{RING_FRAMES, RingEnd, ring_pair, ring_pair_of};
pub use spec::{CaptureSpec, DeviceSpec, PortError, PortSpec, RssMode};

/// What one queue of a port can do.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PortCaps {
    /// Largest frame without VLAN tag and FCS, in bytes: link MTU + 14.
    pub max_frame: usize,
    /// The driver spreads flows over the queues by a hash of the 5-tuple.
    pub rss: bool,
    /// No file descriptor wakes the core when frames arrive: a sleeping core has to look now and then.
    pub needs_polling: bool,
}

/// What a queue has counted since it was opened.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames the driver could not deliver.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames given to the driver that it did not send.
    pub tx_dropped: u64,
}

impl PortStats {
    /// What this queue and another have counted.
    #[must_use]
    pub fn and(self, other: PortStats) -> PortStats {
        PortStats {
            rx_frames: self.rx_frames + other.rx_frames,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            rx_dropped: self.rx_dropped + other.rx_dropped,
            tx_frames: self.tx_frames + other.tx_frames,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            tx_dropped: self.tx_dropped + other.tx_dropped,
        }
    }
}

/// One queue pair of a port, owned by one poll core. No method blocks, allocates from the heap or takes a
/// lock after the port was opened.
pub trait Port: Send {
    /// What the queue can do.
    fn caps(&self) -> PortCaps;

    /// Appends received frames to `out`, up to its capacity, and tells how many.
    #[inline]
    fn rx_burst(&mut self, out: &mut FrameBurst) -> usize {
        self.rx_at_most(out, BURST)
    }

    /// The same of no more than `most` frames, of which the driver is asked for no more either.
    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize;

    /// Sends frames from the front of `frames` and takes those out that it accepted; the rest stays, in
    /// order, for a later call. Tells how many were accepted.
    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize;

    /// Where frames for this port are allocated.
    fn pool(&self) -> &SharedPool;

    /// Counts so far.
    fn stats(&self) -> PortStats;

    /// Called once in each pass of the poll loop with the monotonic time in nanoseconds, for wrappers that hold
    /// frames back.
    fn tick(&mut self, _now_ns: u64) {}
}

/// An opened port: one [`Port`] for each queue, and what the control thread needs to know. Dropping it whole closes
/// it.
pub struct OpenPort {
    /// Device name, as in the configuration.
    pub name: String,
    /// Driver, for `rnicctl`.
    pub driver: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Link MTU in bytes: the largest IP packet.
    pub mtu: u16,
    /// NUMA node, when the driver knows it.
    pub numa_node: Option<u32>,
    /// Queues, at most one a poll core.
    pub queues: Vec<Box<dyn Port>>,
    /// Pool for frames made by the control thread.
    pub pool: SharedPool,
    /// Link and administration, for the control thread.
    pub link: Box<dyn Link>,
}

impl fmt::Debug for OpenPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenPort")
            .field("name", &self.name)
            .field("driver", &self.driver)
            .field("mtu", &self.mtu)
            .field("queues", &self.queues.len())
            .finish_non_exhaustive()
    }
}

/// The control thread's side of a port.
pub trait Link: Send {
    /// Whether the link is up.
    fn is_up(&self) -> bool;
    /// Megabits a second, when known.
    fn speed_mbps(&self) -> Option<u32>;
    /// Further counts by name, for `rnicctl`: what the device counts itself, and what wrappers have done. May
    /// block.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// The kernel interface behind the device, if there is one.
    fn if_index(&self) -> Option<u32> {
        None
    }
    /// Whether the device has vanished by itself: it was unplugged, or the kernel interface behind it is deleted.
    /// Never true again false. May block.
    fn is_gone(&self) -> bool {
        false
    }
    /// Stops and closes the port. All its queues must have been dropped before, on whatever thread. Does nothing
    /// the second time; dropping the link does the same.
    fn close(&mut self);
}

/// While it lives, its thread is known to DPDK, so that it has mempool caches. It cannot leave its thread. Nothing
/// where DPDK is not built in or was not started.
pub struct ThreadRegistration {
    #[cfg(feature = "dpdk")]
    _registered: Option<dpdk_sys::RegisteredThread>,
    _not_send: PhantomData<*const ()>,
}

/// Registers the calling poll thread, after ports were opened. Not inside a non-blocking section.
pub fn register_thread() -> ThreadRegistration {
    crate::nonblocking::might_block();
    ThreadRegistration {
        #[cfg(feature = "dpdk")]
        _registered: dpdk::register_thread(),
        _not_send: PhantomData,
    }
}
