//! A work queue in a client's region, whose place was checked once.
use std::{
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rnic_abi::{RING_ENTRIES, RingIndices, WQE_UNIT};

use super::client_mem::{ClientMem, SharedU32};

/// Its indices and units. Every index names one of its units, whatever it is; what stands there is the client's, and changes as it likes.
pub struct SharedQueue {
    base: NonNull<u8>,
    depth: u32,
    _mem: Arc<ClientMem>,
}

// SAFETY: `_mem` keeps what `base` points to mapped, in every thread; all accesses are atomic.
unsafe impl Send for SharedQueue {}
// SAFETY: as above.
unsafe impl Sync for SharedQueue {}

impl SharedQueue {
    /// The queue of `depth` units at `offset`; `None` when the depth is no power of two up to 2^24, or the queue is not
    /// aligned to 8 or leaves the region.
    pub fn new(mem: &Arc<ClientMem>, offset: u64, depth: u32) -> Option<Self> {
        if !depth.is_power_of_two() || depth > 1 << 24 {
            return None;
        }
        let base = mem.range(offset, rnic_abi::work_queue_size(depth) as u64)?;
        base.cast::<AtomicU64>().is_aligned().then(|| SharedQueue {
            base,
            depth,
            _mem: mem.clone(),
        })
    }

    /// Units, a power of two.
    #[inline]
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Next index the client will fill.
    #[inline]
    pub fn tail(&self) -> SharedU32 {
        self.word::<{ RingIndices::TAIL }>()
    }

    /// Next index that will be taken.
    #[inline]
    pub fn head(&self) -> SharedU32 {
        self.word::<{ RingIndices::HEAD }>()
    }

    /// Not zero when the client has to ring.
    #[inline]
    pub fn need_kick(&self) -> SharedU32 {
        self.word::<{ RingIndices::NEED_KICK }>()
    }

    #[inline]
    fn word<const AT: usize>(&self) -> SharedU32 {
        const { assert!(AT.is_multiple_of(4) && AT + 4 <= RING_ENTRIES) };
        // SAFETY: the indices stand before the units, so that they are mapped (`new`) as long as `_mem`, which the caller
        // borrows through `self`; aligned, as `base` is to 8 and the offset to 4.
        unsafe { SharedU32::at(self.base.add(AT)) }
    }

    /// The words of the unit at a free-running index, each read exactly once: what is validated afterwards is what is used.
    #[inline]
    pub fn unit(&self, index: u32) -> [u64; WQE_UNIT / 8] {
        let words = self.place(index).cast::<AtomicU64>();
        std::array::from_fn(|i| {
            // SAFETY: within the unit, which is mapped and aligned (`place`); an atomic tolerates writers.
            unsafe { words.add(i).as_ref() }.load(Ordering::Relaxed)
        })
    }

    /// Where that unit lies.
    #[inline]
    pub fn place(&self, index: u32) -> NonNull<u8> {
        let at = RING_ENTRIES + (index & (self.depth - 1)) as usize * WQE_UNIT;
        const { assert!(RING_ENTRIES.is_multiple_of(8) && WQE_UNIT.is_multiple_of(8)) };
        // SAFETY: the index is below the depth, and the queue has as many units behind its indices (`new`).
        unsafe { self.base.add(at) }
    }

    /// Where the indices lie.
    #[inline]
    pub fn indices(&self) -> NonNull<u8> {
        self.base
    }
}
