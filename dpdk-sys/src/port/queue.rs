//! Bursts in and out.

use std::sync::Arc;

use super::PortShared;
use crate::burst::Burst;
use crate::ffi;

/// A receive queue, to be polled by the one thread that holds it. While it lives, its port stays
/// started.
///
/// Drop handles before the port: dropping the very last reference closes the port, which blocks.
pub struct RxQueue {
    port: u16,
    queue: u16,
    // In this order: once the lease is gone the port may be stopped.
    _lease: Arc<()>,
    _shared: Arc<PortShared>,
}

/// A transmit queue, to be used by the one thread that holds it. While it lives, its port stays
/// started.
pub struct TxQueue {
    port: u16,
    queue: u16,
    _lease: Arc<()>,
    _shared: Arc<PortShared>,
}

impl RxQueue {
    pub(super) fn new(shared: Arc<PortShared>, lease: Arc<()>, queue: u16) -> Self {
        RxQueue {
            port: shared.id,
            queue,
            _lease: lease,
            _shared: shared,
        }
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// Appends received frames to `burst`, as many as are there and fit. Returns how many came. Never
    /// blocks. Frames may have several segments if the port's driver makes such; see
    /// [`Burst::linearise_all`].
    pub fn rx_burst<const N: usize>(&mut self, burst: &mut Burst<N>) -> usize {
        self.rx_at_most(burst, N)
    }

    /// The same of no more than `most` frames.
    pub fn rx_at_most<const N: usize>(&mut self, burst: &mut Burst<N>, most: usize) -> usize {
        let (slots, spare) = burst.spare_raw();
        let spare = spare.min(most);
        // SAFETY: the lease keeps the port started; `&mut self` of the only handle keeps other threads
        // off the queue; `slots` has room for `spare` pointers, which fits 16 bits.
        let received = unsafe { ffi::dpdk_rx_burst(self.port, self.queue, slots, spare as u16) };
        let received = usize::from(received);
        // SAFETY: DPDK has put `received` buffers there, and they are ours now.
        unsafe { burst.grow(received) };
        received
    }
}

impl TxQueue {
    pub(super) fn new(shared: Arc<PortShared>, lease: Arc<()>, queue: u16) -> Self {
        TxQueue {
            port: shared.id,
            queue,
            _lease: lease,
            _shared: shared,
        }
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// Sends frames from the front of `burst`, as many as the device takes. Returns how many; the rest
    /// stays in the burst, in order. Never blocks. An accepted frame is not yet on the wire.
    pub fn tx_burst<const N: usize>(&mut self, burst: &mut Burst<N>) -> usize {
        let (slots, len) = burst.filled_raw();
        // SAFETY: the lease keeps the port started; `&mut self` of the only handle keeps other threads
        // off the queue; the first `len` slots are owned buffers, and the count fits 16 bits.
        let sent = unsafe { ffi::dpdk_tx_burst(self.port, self.queue, slots, len as u16) };
        let sent = usize::from(sent);
        // SAFETY: the device owns the first `sent` buffers now.
        unsafe { burst.forget_front(sent) };
        sent
    }
}
