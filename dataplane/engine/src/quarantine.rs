//! What becomes of freed memory in debug builds: it is poisoned and kept for a while, so that whoever still uses it is
//! found out. In release builds it is simply freed.
//!
//! A box is filled with a pattern that is no valid pointer, and looked at when it is really freed: whoever has written
//! to it since has written to freed memory. A mapping is replaced by one without any right: whoever still reads or
//! writes it dies of it, instead of touching what the kernel puts at the same address next.
use std::ptr::NonNull;

use rustix::mm::munmap;

use crate::{nonblocking::might_block, retire::Retired};

/// Frees what a poll core gave up, a grace period after it did. Control thread.
pub(crate) fn bury(what: Retired) {
    might_block();
    #[cfg(debug_assertions)]
    match what {
        Retired::Qp(qp) => kept::bury(qp),
        Retired::Cq(cq) => kept::bury(cq),
        Retired::Srq(srq) => kept::bury(srq),
        Retired::Client(client) => kept::bury(client),
        // Its parts are closed as they are dropped; nothing but its core ever knew where it was.
        Retired::Port(port) => drop(port),
    }
    #[cfg(not(debug_assertions))]
    drop(what);
}

/// Unmaps `len` bytes at `base`.
///
/// # Safety
/// They are one mapping of the caller's, and nobody uses it any more.
pub(crate) unsafe fn unmap(base: NonNull<u8>, len: usize) {
    might_block();
    #[cfg(debug_assertions)]
    // SAFETY: the caller's promise.
    if unsafe { kept::fence_off(base, len) } {
        return;
    }
    // SAFETY: the caller's promise.
    let _ = unsafe { munmap(base.as_ptr().cast(), len) };
}

#[cfg(debug_assertions)]
mod kept {
    use std::{
        alloc::{Layout, dealloc},
        collections::VecDeque,
        ptr::{self, NonNull},
        sync::{Mutex, PoisonError},
    };

    use crossbeam_queue::SegQueue;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    /// As a pointer not canonical, as a length too long for anything.
    const POISON: u8 = 0xDB;
    /// Boxes kept.
    const BOXES: usize = 512;
    /// Address ranges kept.
    const RANGES: usize = 64;

    /// A freed box. Its memory is ours until it is given back to the allocator.
    struct Box_ {
        base: NonNull<u8>,
        layout: Layout,
        what: &'static str,
    }

    // SAFETY: memory without an owner belongs to no thread.
    unsafe impl Send for Box_ {}

    static KEPT_BOXES: Mutex<VecDeque<Box_>> = Mutex::new(VecDeque::new());
    /// Several threads unmap. Not under a lock of the standard library: it is not instrumented where it waits, and then
    /// looks like a race to ThreadSanitizer.
    static KEPT_RANGES: SegQueue<(usize, usize)> = SegQueue::new();

    pub fn bury<T>(value: Box<T>) {
        let layout = Layout::new::<T>();
        let Some(base) = NonNull::new(Box::into_raw(value)) else {
            return;
        };
        // SAFETY: it came from a box, is dropped once, and then plain memory of its layout.
        unsafe {
            ptr::drop_in_place(base.as_ptr());
            ptr::write_bytes(base.as_ptr().cast::<u8>(), POISON, layout.size());
        }
        let mut kept = KEPT_BOXES.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(Box_ {
            base: base.cast(),
            layout,
            what: std::any::type_name::<T>(),
        });
        if kept.len() > BOXES
            && let Some(oldest) = kept.pop_front()
        {
            drop(kept);
            oldest.free();
        }
    }

    impl Box_ {
        fn free(self) {
            for at in 0..self.layout.size() {
                // SAFETY: inside the box, which was filled with initialised bytes.
                let byte = unsafe { self.base.add(at).read_volatile() };
                assert!(
                    byte == POISON,
                    "a freed {} was written to, {at} bytes from its start: {byte:#04x}",
                    self.what
                );
            }
            // SAFETY: it came from a box of this layout and is given back once.
            unsafe { dealloc(self.base.as_ptr(), self.layout) };
        }
    }

    /// Takes every right to a mapping away and keeps its addresses; false when that cannot be had.
    ///
    /// # Safety
    /// As [`super::unmap`].
    pub unsafe fn fence_off(base: NonNull<u8>, len: usize) -> bool {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is the caller's, who gives it up.
        let fenced = unsafe { mmap_anonymous(base.as_ptr().cast(), len, ProtFlags::empty(), flags) };
        if fenced.is_err() {
            return false;
        }
        KEPT_RANGES.push((base.as_ptr() as usize, len));
        if KEPT_RANGES.len() > RANGES
            && let Some((base, len)) = KEPT_RANGES.pop()
        {
            // SAFETY: a range that `fence_off` made, and that nobody else knows.
            let _ = unsafe { munmap(base as *mut _, len) };
        }
        true
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        #[should_panic(expected = "was written to, 8 bytes from its start")]
        fn a_write_to_a_freed_box_is_found_out() {
            let value = Box::new([1u64; 4]);
            let stale = (&raw const *value).cast_mut();
            bury(value);
            let mut kept = KEPT_BOXES.lock().unwrap();
            let at = kept.iter().position(|kept| kept.base.as_ptr().cast() == stale);
            let buried = kept.remove(at.expect("it is kept")).expect("it is kept");
            drop(kept);
            // SAFETY: the memory is still allocated; the write is what is to be found.
            unsafe { stale.cast::<u8>().add(8).write_volatile(7) };
            buried.free();
        }
    }
}
