//! Frames in DPDK's packet buffers.
use std::{ptr, ptr::NonNull};

use dpdk_sys::{Burst, Mbuf, Mempool, ffi};

use crate::frame::{BURST, Frame, FrameBurst, FrameOps, FramePool};

/// Marks frames whose `raw` is an `rte_mbuf` of one segment.
static MBUF_OPS: FrameOps = FrameOps {
    free: give_back,
    // What the driver has noted in an mbuf is cleared when it is allocated.
    pool: |_| 0,
};

/// # Safety
/// As [`FrameOps::free`] says.
unsafe fn give_back(raw: NonNull<()>) {
    // SAFETY: frames with these ops are made by `frame_of` alone, from an mbuf they own.
    drop(unsafe { Mbuf::from_raw(raw.cast::<ffi::rte_mbuf>()) });
}

/// Makes a frame of a buffer of one segment.
#[inline]
pub(super) fn frame_of(mbuf: Mbuf) -> Frame {
    let vlan = mbuf.stripped_vlan();
    let len = u32::from(mbuf.data_len());
    let room = len + u32::from(mbuf.tailroom());
    // SAFETY: a buffer's data never starts at address zero.
    let data = unsafe { NonNull::new_unchecked(mbuf.data_ptr()) };
    let raw = mbuf.into_raw().cast();
    // SAFETY: the buffer is handed over; `room` bytes from `data` lie in its only segment. They are initialised,
    // as DPDK zeroes the memory pools are made of.
    unsafe { Frame::from_raw(raw, data, len, room, vlan, &MBUF_OPS) }
}

/// The buffer behind a frame, with the frame's length; the frame itself if it is of another kind.
#[inline]
pub(super) fn mbuf_of(frame: Frame) -> Result<Mbuf, Frame> {
    if !ptr::eq(frame.ops(), &MBUF_OPS) {
        return Err(frame);
    }
    let (raw, len) = frame.into_raw();
    // SAFETY: frames with these ops own an mbuf, which `into_raw` has handed over.
    let mut mbuf = unsafe { Mbuf::from_raw(raw.cast::<ffi::rte_mbuf>()) };
    let fits = u16::try_from(len).is_ok_and(|len| mbuf.set_len(len).is_ok());
    debug_assert!(fits, "a frame's length is within its buffer of one segment");
    Ok(mbuf)
}

/// A DPDK pool of packet buffers.
#[derive(Clone)]
pub(super) struct MbufPool {
    pool: Mempool,
    room: usize,
}

impl MbufPool {
    /// Wraps a pool whose buffers have `data_room` bytes, headroom included.
    pub fn new(pool: Mempool, data_room: u16) -> Self {
        let room = usize::from(data_room.saturating_sub(Mempool::HEADROOM));
        MbufPool { pool, room }
    }

    /// A copy of `bytes` in a buffer of this pool; `None` if there is none, or too small.
    pub fn copy(&self, bytes: &[u8]) -> Option<Mbuf> {
        let mut mbuf = self.pool.alloc()?;
        mbuf.set_len(u16::try_from(bytes.len()).ok()?).ok()?;
        mbuf.data_mut().copy_from_slice(bytes);
        Some(mbuf)
    }
}

impl FramePool for MbufPool {
    fn alloc(&self) -> Option<Frame> {
        self.pool.alloc().map(frame_of)
    }

    fn alloc_burst(&self, n: usize, out: &mut FrameBurst) -> usize {
        let n = n.min(out.remaining_capacity());
        let mut burst = Burst::<BURST>::new();
        if self.pool.alloc_burst(&mut burst, n).is_ok() {
            out.extend(burst.drain().map(frame_of));
            return n;
        }
        // The last few, which a bulk allocation does not give out.
        let before = out.len();
        out.extend(std::iter::from_fn(|| self.alloc()).take(n));
        out.len() - before
    }

    fn room(&self) -> usize {
        self.room
    }
}
