//! Frames: owned packet buffers, whatever pool they come from.
use std::{fmt, mem::ManuallyDrop, ptr::NonNull, slice, sync::Arc};

use arrayvec::ArrayVec;

/// Frames a burst holds at most.
pub const BURST: usize = 32;

/// Frames on their way through a core.
pub type FrameBurst = ArrayVec<Frame, BURST>;

/// How a kind of buffer is given back.
#[derive(Debug)]
pub struct FrameOps {
    /// Returns one buffer to its pool. Called once for each frame, from any thread that owns it.
    ///
    /// # Safety
    /// The argument is the `raw` of a [`Frame`] with these ops that is not used afterwards.
    pub free: unsafe fn(NonNull<()>),
    /// The pool of a buffer: [`FramePool::id`] of the pool whose frames may be used anew as they are; zero when they have to
    /// go back and be allocated again.
    ///
    /// # Safety
    /// The argument is the `raw` of a [`Frame`] with these ops.
    pub pool: unsafe fn(NonNull<()>) -> usize,
}

/// One frame in one contiguous buffer, owned. Dropping it returns the buffer to its pool, without a lock or
/// an allocation.
pub struct Frame {
    raw: NonNull<()>,
    data: NonNull<u8>,
    len: u32,
    room: u32,
    vlan: Option<u16>,
    ops: &'static FrameOps,
}

// SAFETY: a Frame is the only owner of its buffer, and every pool behind `ops` takes buffers back from any
// thread (DPDK mempools and the heap pool are both multi-producer).
unsafe impl Send for Frame {}

impl Frame {
    /// Wraps a buffer.
    ///
    /// # Safety
    /// `raw` is owned by the caller and is handed over; `data` points to `room` initialised bytes of it that
    /// stay valid and unaliased until `ops.free(raw)`; `len <= room`.
    pub unsafe fn from_raw(
        raw: NonNull<()>,
        data: NonNull<u8>,
        len: u32,
        room: u32,
        vlan: Option<u16>,
        ops: &'static FrameOps,
    ) -> Self {
        debug_assert!(len <= room);
        Frame {
            raw,
            data,
            len,
            room,
            vlan,
            ops,
        }
    }

    /// The buffer behind the frame, no longer owned by it, and the frame's length.
    pub fn into_raw(self) -> (NonNull<()>, u32) {
        let this = ManuallyDrop::new(self);
        (this.raw, this.len)
    }

    /// The kind of buffer this is; a port takes only its own kind without copying.
    pub fn ops(&self) -> &'static FrameOps {
        self.ops
    }

    /// Bytes of the frame, from the Ethernet header on.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `from_raw` promised initialised bytes at `data`, and `&self` keeps writers away.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }

    /// The same, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only access.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
    }

    /// The whole buffer, for a builder that writes before it sets the length.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        // SAFETY: `from_raw` promised `room` initialised bytes at `data`, and `&mut self` makes this the only
        // access.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr(), self.room as usize) }
    }

    /// Bytes the buffer can hold.
    pub fn room(&self) -> usize {
        self.room as usize
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Sets the length, at most [`Frame::room`].
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.room as usize) as u32;
    }

    /// Fills the frame with a copy of `bytes`; `false` when there is no room.
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        let Some(buffer) = self.buffer_mut().get_mut(..bytes.len()) else {
            return false;
        };
        buffer.copy_from_slice(bytes);
        self.set_len(bytes.len());
        true
    }

    /// [`FramePool::id`] of its pool, or zero.
    #[inline]
    pub fn pool(&self) -> usize {
        // SAFETY: `raw` belongs to this frame and to `ops`.
        unsafe { (self.ops.pool)(self.raw) }
    }

    /// VLAN tag (TCI) that the driver took out of the frame.
    pub fn vlan(&self) -> Option<u16> {
        self.vlan
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: `raw` belongs to this frame and to `ops`, and nothing uses it after drop.
        unsafe { (self.ops.free)(self.raw) }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.len)
    }
}

/// A pool of frame buffers. Any thread may allocate and free, without a lock.
pub trait FramePool: Send + Sync {
    /// An empty frame, or `None` when the pool is empty.
    fn alloc(&self) -> Option<Frame>;
    /// Appends up to `n` empty frames to `out` and tells how many.
    fn alloc_burst(&self, n: usize, out: &mut FrameBurst) -> usize {
        let n = n.min(out.remaining_capacity());
        for i in 0..n {
            match self.alloc() {
                Some(frame) => out.push(frame),
                None => return i,
            }
        }
        n
    }
    /// Bytes a frame of this pool can hold.
    fn room(&self) -> usize;
    /// What tells this pool from all others, if a frame of it that was sent or received may be filled again without going
    /// back to the pool; else zero.
    fn id(&self) -> usize {
        0
    }
}

/// A shared pool.
pub type SharedPool = Arc<dyn FramePool>;
