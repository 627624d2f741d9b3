//! A client's doorbells for one core: a two-level bitmap the client sets and the core takes.
use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use rnic_abi::{DoorbellLayout, RegionLayout, protocol};

use super::queue::InitError;
use crate::{
    mem::{ClientMem, SharedU32, SharedU64},
    retire::RetireLink,
};

/// No QP behind a doorbell bit.
pub(super) const NO_QP: u32 = u32::MAX;

/// The consumer side, with the map from doorbell bits to the core's QPs.
pub struct ClientDoorbells {
    mem: Arc<ClientMem>,
    block: usize,
    layout: DoorbellLayout,
    /// Looked at in every pass.
    level1: Box<[SharedU64]>,
    sleeping: SharedU32,
    /// Slot in the core's arena by the slot of the client's handle.
    pub(super) qps: Box<[u32]>,
    /// The daemon's end of the socket by which the client wakes this core.
    wake: OwnedFd,
    pub(crate) link: RetireLink,
}

impl ClientDoorbells {
    /// The doorbells of block `core` of a region. Control thread.
    pub fn new(
        region: Arc<ClientMem>,
        layout: &RegionLayout,
        core: u32,
        wake: OwnedFd,
    ) -> Result<Box<Self>, InitError> {
        let block = layout.doorbells + core as usize * layout.doorbell.size();
        let error = || InitError::Slice {
            offset: block as u64,
            depth: layout.slots,
            region: region.len(),
        };
        if region
            .range(block as u64, layout.doorbell.size() as u64)
            .is_none()
        {
            return Err(error());
        }
        let sleeping = region.u32(block + DoorbellLayout::SLEEPING).ok_or_else(error)?;
        let level1 = (0..layout.doorbell.level1_words as usize)
            .map(|word| region.u64(block + DoorbellLayout::LEVEL1 + word * 8))
            .collect::<Option<_>>();
        Ok(Box::new(ClientDoorbells {
            block,
            layout: layout.doorbell,
            level1: level1.ok_or_else(error)?,
            sleeping,
            qps: vec![NO_QP; layout.slots as usize].into(),
            wake,
            link: RetireLink::default(),
            mem: region,
        }))
    }

    /// Memory of the daemon that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.qps) + size_of_val(&*self.level1)
    }

    /// Takes every doorbell that is set and calls `ring` with the slot of the QP in the core's arena. Bits
    /// without a QP are ignored: a client can set what it likes.
    #[inline]
    pub fn take(&self, mut ring: impl FnMut(u32)) {
        for (l1, word) in self.level1.iter().enumerate() {
            let mut words = protocol::take_doorbells(word);
            while words != 0 {
                let l0 = l1 * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                if l0 >= self.layout.level0_words as usize {
                    continue;
                }
                let Some(word) = self.mem.u64(self.block + self.layout.level0() + l0 * 8) else {
                    return;
                };
                let mut bits = protocol::take_doorbells(&word);
                while bits != 0 {
                    let slot = l0 * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    if let Some(&qp) = self.qps.get(slot)
                        && qp != NO_QP
                    {
                        ring(qp);
                    }
                }
            }
        }
    }

    /// The socket on which the core sleeps.
    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// Whether a doorbell is set.
    pub fn pending(&self) -> bool {
        self.level1.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Tells the client that it must wake the core after a doorbell.
    pub fn announce_sleep(&self) {
        protocol::announce_sleep(&self.sleeping);
    }

    /// Tells it that it need not.
    pub fn announce_wake(&self) {
        self.sleeping.store(0, Ordering::Relaxed);
    }

    /// Takes the wakes that have come in. They can be no more than what one socket holds.
    pub(super) fn drain_wakes(&self) {
        let mut buffer = [0u8; 64];
        for _ in 0..64 {
            let n = rustix::net::recv(&self.wake, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT);
            if !matches!(n, Ok((_, 1..))) {
                break;
            }
        }
    }
}
