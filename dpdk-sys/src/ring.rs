//! Ports made of rings: what one sends the other receives, without a device.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::burst::Burst;
use crate::eal::Eal;
use crate::error::{Errno, Error, c_string};
use crate::ffi;
use crate::mempool::socket_id;
use crate::port::EthDev;

/// Makes two ports joined back to back, each with `queues` receive and transmit queues: what one port
/// sends on queue *q* the other receives on queue *q*, in order and without a copy. They behave like
/// other ports: configure them (with at most `queues` queues), set up queues, start.
///
/// The ports are named `net_ring_` and the name given, which is unique and at most 20 bytes.
/// `frames` is how many frames each direction of each queue holds. Control thread only.
///
/// # Errors
/// [`Error::Call`] with DPDK's reason: name taken or too long, more than 16 queues, memory short.
pub fn ring_pair(
    eal: &Eal,
    name_a: &str,
    name_b: &str,
    frames: u32,
    queues: u16,
) -> Result<(EthDev, EthDev), Error> {
    let a_to_b = rings(eal, name_a, frames, queues)?;
    let b_to_a = rings(eal, name_b, frames, queues)?;
    let a = port(eal, name_a, &b_to_a, &a_to_b)?;
    let b = port(eal, name_b, &a_to_b, &b_to_a)?;
    Ok((a, b))
}

/// The rings of one direction, one per queue.
type Rings = Arc<Vec<Ring>>;

/// What remains of a ring port after it is closed, and goes away then.
pub(crate) struct RingEnd {
    device: CString,
    /// Both directions, shared with the other end.
    _rings: [Rings; 2],
}

impl Drop for RingEnd {
    fn drop(&mut self) {
        // SAFETY: EAL is up, because the rings hold it, and the port made from this device is closed.
        unsafe { ffi::rte_vdev_uninit(self.device.as_ptr()) };
    }
}

/// A queue of pointers to buffers.
struct Ring {
    raw: NonNull<ffi::rte_ring>,
    _eal: Eal,
}

// SAFETY: the handle itself only creates and frees; the ring is used by the ports, each end from one
// thread.
unsafe impl Send for Ring {}
// SAFETY: as above: nothing can be done through a shared reference.
unsafe impl Sync for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut burst = Burst::<32>::new();
        loop {
            let (slots, spare) = burst.spare_raw();
            // SAFETY: the ports at both ends are closed, so nobody else uses the ring; `slots` has room
            // for `spare` pointers.
            let n = unsafe { ffi::dpdk_ring_dequeue_burst(self.raw.as_ptr(), slots, spare as u32) };
            if n == 0 {
                break;
            }
            // SAFETY: the ring held owned buffers only, and `n` of them are in `slots` now.
            unsafe { burst.grow(n as usize) };
            burst.clear();
        }
        // SAFETY: the ring is empty and nobody uses it.
        unsafe { ffi::rte_ring_free(self.raw.as_ptr()) };
    }
}

fn rings(eal: &Eal, name: &str, frames: u32, queues: u16) -> Result<Rings, Error> {
    (0..queues)
        .map(|queue| ring(eal, &format!("{name}_q{queue}"), frames))
        .collect::<Result<_, _>>()
        .map(Arc::new)
}

fn ring(eal: &Eal, name: &str, frames: u32) -> Result<Ring, Error> {
    let c_name = c_string(name)?;
    // Each end belongs to one queue, and that to one thread: single producer, single consumer.
    let flags = ffi::DPDK_RING_SP_SC_EXACT;
    // SAFETY: EAL is up; the name is a C string, which DPDK copies.
    let raw = unsafe { ffi::rte_ring_create(c_name.as_ptr(), frames, socket_id(None), flags) };
    match NonNull::new(raw) {
        Some(raw) => Ok(Ring {
            raw,
            _eal: eal.clone(),
        }),
        None => Err(Error::Call {
            action: "create",
            object: format!("ring {name}"),
            errno: Errno::last(),
        }),
    }
}

fn port(eal: &Eal, name: &str, rx: &Rings, tx: &Rings) -> Result<EthDev, Error> {
    let c_name = c_string(name)?;
    let device = format!("net_ring_{name}");
    let c_device = c_string(&device)?;
    let pointers = |rings: &Rings| rings.iter().map(|ring| ring.raw.as_ptr()).collect::<Vec<_>>();
    let (rx_rings, tx_rings) = (pointers(rx), pointers(tx));
    let count = rx_rings.len() as u32;

    let mut claimed = eal.claimed();
    // SAFETY: EAL is up; DPDK copies the name and the pointers. The rings outlive the port, which
    // keeps them in its `RingEnd`.
    let id = unsafe {
        ffi::rte_eth_from_rings(
            c_name.as_ptr(),
            rx_rings.as_ptr(),
            count,
            tx_rings.as_ptr(),
            count,
            0,
        )
    };
    let id = u16::try_from(id).map_err(|_| Error::Call {
        action: "create",
        object: format!("port {device}"),
        errno: Errno::last(),
    })?;
    claimed.insert(id);
    drop(claimed);
    let end = RingEnd {
        device: c_device,
        _rings: [Arc::clone(rx), Arc::clone(tx)],
    };
    Ok(EthDev::claimed(eal, id, &device, Some(end)))
}
