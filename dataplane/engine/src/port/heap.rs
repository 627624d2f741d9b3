//! A pool of frame buffers on the heap: what ports use where DPDK is not built in or not wanted.
use std::{
    alloc::{self, Layout},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crossbeam_queue::ArrayQueue;

use crate::frame::{BURST, Frame, FrameBurst, FrameOps, FramePool, SharedPool};

/// Size and alignment of what precedes each buffer: a cache line, so that data starts on one.
const LINE: usize = 64;

static HEAP_OPS: FrameOps = FrameOps {
    free: give_back,
    pool: pool_of,
};

/// Equal buffers in one block of memory, with a lock-free list of those that are free. Nothing is allocated
/// after creation, and any thread may allocate and free.
///
/// Memory starts zeroed; a recycled frame holds what its last user left. The block is released with the pool, or with
/// the last frame if frames outlive the pool. No frame has a reference count: one that is freed on another thread in
/// the very moment the pool is dropped may leave the block to the end of the process.
#[derive(Debug)]
pub struct HeapPool {
    shared: NonNull<Shared>,
}

#[derive(Debug)]
struct Shared {
    block: NonNull<u8>,
    layout: Layout,
    stride: usize,
    room: usize,
    buffers: usize,
    free: ArrayQueue<u32>,
    /// The pool is gone; frames that are out count themselves back in `out`.
    orphaned: AtomicBool,
    out: AtomicUsize,
}

/// Stands before each buffer.
#[repr(C, align(64))]
struct Header {
    pool: NonNull<Shared>,
    index: u32,
}

const _: () = assert!(size_of::<Header>() == LINE && align_of::<Header>() == LINE);

// SAFETY: `Shared` is only read after creation, but for the queue, which synchronises by itself.
unsafe impl Send for HeapPool {}
// SAFETY: as above.
unsafe impl Sync for HeapPool {}

impl HeapPool {
    /// Makes `buffers` buffers (at least one) of `room` bytes each.
    ///
    /// # Panics
    /// When the pool would be larger than memory can be. Control thread only.
    pub fn new(buffers: u32, room: usize) -> Self {
        crate::nonblocking::might_block();
        let buffers = buffers.max(1) as usize;
        let stride = room
            .checked_next_multiple_of(LINE)
            .and_then(|r| r.checked_add(LINE));
        let layout = stride
            .and_then(|stride| stride.checked_mul(buffers))
            .and_then(|size| Layout::from_size_align(size, LINE).ok());
        let (Some(stride), Some(layout)) = (stride, layout) else {
            panic!("a pool of {buffers} buffers of {room} bytes does not fit in memory");
        };
        // SAFETY: the size is not zero, as there is at least one header.
        let block = unsafe { alloc::alloc_zeroed(layout) };
        let block = NonNull::new(block).unwrap_or_else(|| alloc::handle_alloc_error(layout));
        let shared = NonNull::from(Box::leak(Box::new(Shared {
            block,
            layout,
            stride,
            room,
            buffers,
            free: ArrayQueue::new(buffers),
            orphaned: AtomicBool::new(false),
            out: AtomicUsize::new(0),
        })));
        let pool = HeapPool { shared };
        for index in 0..buffers as u32 {
            // SAFETY: the header lies inside the block, which nobody else uses yet, at its alignment.
            unsafe {
                pool.shared().header(index).write(Header { pool: shared, index });
            }
            let _ = pool.shared().free.push(index);
        }
        pool
    }

    /// The same, for a port of this link MTU: frames with Ethernet header, two VLAN tags and FCS fit.
    pub fn for_mtu(buffers: u32, mtu: u16) -> SharedPool {
        Arc::new(Self::new(buffers, usize::from(mtu) + 14 + 2 * 4 + 4))
    }

    /// Buffers that nobody has at the moment.
    pub fn available(&self) -> usize {
        self.shared().free.len()
    }

    /// Buffers altogether.
    pub fn size(&self) -> usize {
        self.shared().buffers
    }

    fn shared(&self) -> &Shared {
        // SAFETY: lives until `drop` of the pool, and is never written.
        unsafe { self.shared.as_ref() }
    }
}

impl Shared {
    fn header(&self, index: u32) -> NonNull<Header> {
        // SAFETY: indices are below `buffers`, so this stays inside the block.
        unsafe { self.block.add(index as usize * self.stride).cast() }
    }

    fn frame(&self, index: u32) -> Frame {
        let header = self.header(index);
        // SAFETY: `index` came out of the free list, so this buffer is ours alone until `give_back` puts it
        // in again; `room` zeroed bytes follow the header.
        unsafe {
            let data = header.add(1).cast();
            Frame::from_raw(header.cast(), data, 0, self.room as u32, None, &HEAP_OPS)
        }
    }
}

/// Puts a buffer into the free list of its pool.
///
/// # Safety
/// As [`FrameOps::free`] says.
unsafe fn give_back(raw: NonNull<()>) {
    // SAFETY: `raw` is a header that `Shared::frame` handed out; it and its pool stay while the frame is out, see
    // `HeapPool::drop`.
    let (pool, index) = unsafe {
        let header = raw.cast::<Header>().as_ref();
        (header.pool, header.index)
    };
    // SAFETY: as above.
    let shared = unsafe { pool.as_ref() };
    if shared.orphaned.load(Ordering::Acquire) {
        // SAFETY: this one frame is back.
        unsafe { count_back(pool, 1) };
    } else {
        // There is a place for every buffer, so this cannot fail.
        let _ = shared.free.push(index);
    }
}

/// The address of what its pool shares.
///
/// # Safety
/// As [`FrameOps::pool`] says.
unsafe fn pool_of(raw: NonNull<()>) -> usize {
    // SAFETY: `raw` is a header that `Shared::frame` handed out, and its frame is still out.
    unsafe { raw.cast::<Header>().as_ref() }.pool.as_ptr() as usize
}

/// Counts `n` frames of an orphaned pool as back, and releases everything with the last one.
///
/// # Safety
/// Those frames must not be used afterwards, and the pool only by those who hold others.
unsafe fn count_back(pool: NonNull<Shared>, n: usize) {
    // SAFETY: the frames being counted have kept the pool until here.
    let before = unsafe { pool.as_ref() }.out.fetch_sub(n, Ordering::AcqRel);
    if before == n {
        // SAFETY: no frame is out and the handle is gone, so nothing refers to either; both were allocated as they
        // are freed here.
        unsafe {
            let shared = Box::from_raw(pool.as_ptr());
            alloc::dealloc(shared.block.as_ptr(), shared.layout);
        }
    }
}

impl FramePool for HeapPool {
    fn alloc(&self) -> Option<Frame> {
        let shared = self.shared();
        shared.free.pop().map(|index| shared.frame(index))
    }

    fn alloc_burst(&self, n: usize, out: &mut FrameBurst) -> usize {
        let shared = self.shared();
        let n = n.min(BURST).min(out.remaining_capacity());
        let before = out.len();
        out.extend(
            std::iter::from_fn(|| shared.free.pop())
                .take(n)
                .map(|i| shared.frame(i)),
        );
        out.len() - before
    }

    fn room(&self) -> usize {
        self.shared().room
    }

    fn id(&self) -> usize {
        self.shared.as_ptr() as usize
    }
}

impl Drop for HeapPool {
    fn drop(&mut self) {
        // A buffer that can be popped is one whose `give_back` has done with the pool: counting the list would
        // not tell that.
        let returned = |shared: &Shared| std::iter::from_fn(|| shared.free.pop()).count();
        let shared = self.shared();
        let before = returned(shared);
        // The extra one is this call's own.
        shared.out.store(shared.buffers - before + 1, Ordering::Relaxed);
        shared.orphaned.store(true, Ordering::Release);
        // A `give_back` that saw the pool alive may push until now, or later: then it is never counted, and the
        // block stays.
        let meanwhile = returned(shared);
        // SAFETY: these buffers were in the list, so nobody has them, and the handle is not used any more.
        unsafe { count_back(self.shared, meanwhile + 1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_pool_says_so_and_recovers_when_frames_return() {
        let pool = HeapPool::new(40, 100);
        let mut held = FrameBurst::new();
        assert_eq!(pool.alloc_burst(100, &mut held), 32);
        assert_eq!(pool.alloc_burst(1, &mut held), 0);
        let mut more = FrameBurst::new();
        assert_eq!(pool.alloc_burst(32, &mut more), 8);
        assert!(pool.alloc().is_none());
        more.clear();
        assert_eq!(pool.available(), 8);
        assert!(pool.alloc().is_some());
        assert_eq!(pool.room(), 100);
    }

    #[test]
    fn frames_are_distinct_zeroed_and_keep_what_is_written() {
        let pool = HeapPool::new(8, 70);
        let mut frames: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(frames.len(), 8);
        for (i, frame) in frames.iter_mut().enumerate() {
            assert!(frame.buffer_mut().iter().all(|&b| b == 0));
            assert!(frame.fill(&[i as u8; 70]));
            assert!(!frame.fill(&[0; 71]));
        }
        for (i, frame) in frames.iter().enumerate() {
            assert_eq!(frame.bytes(), [i as u8; 70]);
        }
    }

    #[test]
    fn frames_may_be_freed_by_other_threads() {
        let pool = Arc::new(HeapPool::new(64, 64));
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        let mut threads = Vec::new();
        for _ in 0..2 {
            let (send, receive) = std::sync::mpsc::sync_channel(8);
            let pool = Arc::clone(&pool);
            threads.push(std::thread::spawn(move || {
                for _ in 0..rounds {
                    let _ = pool.alloc().map(|frame| send.send(frame));
                }
            }));
            threads.push(std::thread::spawn(move || receive.iter().for_each(drop)));
        }
        for thread in threads {
            thread.join().expect("neither side panics");
        }
        assert_eq!(pool.available(), pool.size());
    }

    #[test]
    fn frames_outlive_their_pool() {
        let pool = HeapPool::new(3, 64);
        let mut frame = pool.alloc().expect("a fresh pool has frames");
        let other = pool.alloc();
        drop(pool);
        assert!(frame.fill(b"still here"));
        drop(other);
        assert_eq!(frame.bytes(), b"still here");
    }

    #[test]
    fn the_last_frame_of_a_dropped_pool_may_be_freed_by_another_thread() {
        let pool = HeapPool::new(16, 64);
        let frames: Vec<_> = std::iter::from_fn(|| pool.alloc()).take(12).collect();
        drop(pool);
        let threads = frames.into_iter().map(|frame| std::thread::spawn(|| drop(frame)));
        for thread in threads.collect::<Vec<_>>() {
            thread.join().expect("freeing does not panic");
        }
    }
}
