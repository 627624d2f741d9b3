//! Pools of packet buffers.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::burst::Burst;
use crate::eal::Eal;
use crate::error::{Errno, Error, c_string};
use crate::ffi;
use crate::mbuf::Mbuf;

/// What a pool is made of.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Unique in the process, at most 25 bytes.
    pub name: String,
    /// Number of buffers. Memory is used best by a power of two minus one.
    pub buffers: u32,
    /// Buffers cached per registered thread: 0 to 512, and at most two thirds of `buffers`. Each
    /// thread's cache may hold 1.5 times this many, which other threads then cannot get.
    pub cache: u32,
    /// Bytes per buffer including [`Mempool::HEADROOM`]; see [`Mempool::data_room_for_mtu`].
    pub data_room: u16,
    /// NUMA node, or `None` for any.
    pub socket: Option<u32>,
}

/// A pool of packet buffers. Clones are handles to the same pool; any thread may use them.
///
/// The pool is freed with its last handle if all its buffers are back by then. If some are not, it
/// is left to the end of the process instead of being freed under their owners, and EAL with it
/// ([`Eal::cleanup`] says so). Drop the last handle after the threads that use the pool are done.
#[derive(Clone)]
pub struct Mempool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    raw: NonNull<ffi::rte_mempool>,
    size: u32,
    /// Keeps EAL up while the pool exists.
    eal: Eal,
}

// SAFETY: pools are made for several threads: allocation and freeing synchronise inside DPDK, and
// per-thread caches are indexed by the calling thread's own id.
unsafe impl Send for PoolInner {}
// SAFETY: as above.
unsafe impl Sync for PoolInner {}

/// Why no buffers were allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The pool has not that many left (some may sit in other threads' caches).
    #[error("the pool of packet buffers is exhausted")]
    PoolEmpty,
    /// The burst has no room for that many.
    #[error("the burst has no room for that many buffers")]
    BurstFull,
}

impl Mempool {
    /// Bytes that are kept free before the data of a fresh buffer.
    pub const HEADROOM: u16 = ffi::DPDK_HEADROOM as u16;

    /// The data room for frames of a port with this MTU (which excludes the Ethernet header) to be
    /// received in one segment: headroom, two VLAN tags, Ethernet header and checksum, rounded up to
    /// cache lines. `None` if that passes 65,535.
    pub fn data_room_for_mtu(mtu: u16) -> Option<u16> {
        const ETHERNET: u32 = 14 + 2 * 4 + 4;
        let bytes = u32::from(Self::HEADROOM) + u32::from(mtu) + ETHERNET;
        u16::try_from(bytes.next_multiple_of(64)).ok()
    }

    /// Creates a pool.
    ///
    /// # Errors
    /// [`Error::Call`] with DPDK's reason: memory short, name taken or too long, cache too large.
    pub fn create(eal: &Eal, config: &PoolConfig) -> Result<Mempool, Error> {
        let name = c_string(&config.name)?;
        let socket = socket_id(config.socket);
        // SAFETY: EAL is up, and the name is a C string, which DPDK copies.
        let raw = unsafe {
            ffi::rte_pktmbuf_pool_create(
                name.as_ptr(),
                config.buffers,
                config.cache,
                0,
                config.data_room,
                socket,
            )
        };
        match NonNull::new(raw) {
            Some(raw) => {
                let inner = PoolInner {
                    raw,
                    size: config.buffers,
                    eal: eal.clone(),
                };
                Ok(Mempool {
                    inner: Arc::new(inner),
                })
            }
            None => Err(Error::Call {
                action: "create",
                object: format!(
                    "pool {} of {} buffers of {} bytes",
                    config.name, config.buffers, config.data_room
                ),
                errno: Errno::last(),
            }),
        }
    }

    /// One empty buffer; `None` if the pool is exhausted.
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is alive.
        let raw = NonNull::new(unsafe { ffi::dpdk_mbuf_alloc(self.raw()) })?;
        // SAFETY: the buffer was just allocated, so it is ours alone.
        Some(unsafe { Mbuf::from_raw(raw) })
    }

    /// Appends `n` empty buffers to `burst`, or none at all.
    ///
    /// # Errors
    /// [`AllocError::BurstFull`], [`AllocError::PoolEmpty`].
    pub fn alloc_burst<const N: usize>(&self, burst: &mut Burst<N>, n: usize) -> Result<(), AllocError> {
        let (slots, spare) = burst.spare_raw();
        if n > spare {
            return Err(AllocError::BurstFull);
        }
        // SAFETY: the pool is alive, and `slots` has room for `n` pointers; a burst counts in 16 bits.
        let code = unsafe { ffi::dpdk_mbuf_alloc_bulk(self.raw(), slots, n as u32) };
        if code != 0 {
            return Err(AllocError::PoolEmpty);
        }
        // SAFETY: DPDK has filled `n` slots with buffers that are ours alone.
        unsafe { burst.grow(n) };
        Ok(())
    }

    /// Number of buffers in the pool, free or not.
    pub fn size(&self) -> u32 {
        self.inner.size
    }

    /// Buffers that are out, approximately while other threads work. Walks all caches: not for poll
    /// threads.
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool is alive; the count only reads.
        unsafe { ffi::rte_mempool_in_use_count(self.raw()) }
    }

    pub(crate) fn raw(&self) -> *mut ffi::rte_mempool {
        self.inner.raw.as_ptr()
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        // SAFETY: the pool is alive; counting only reads.
        if unsafe { ffi::dpdk_pool_is_full(self.raw.as_ptr()) } {
            // SAFETY: no handle is left, so nobody allocates; all buffers are back, so nobody frees.
            unsafe { ffi::rte_mempool_free(self.raw.as_ptr()) };
        } else {
            // Buffers are out, and stopping EAL would unmap them.
            std::mem::forget(self.eal.clone());
        }
    }
}

/// DPDK's form of an optional NUMA node.
pub(crate) fn socket_id(socket: Option<u32>) -> i32 {
    socket
        .and_then(|node| i32::try_from(node).ok())
        .unwrap_or(ffi::DPDK_SOCKET_ID_ANY)
}
