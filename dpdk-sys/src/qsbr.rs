//! DPDK's quiescent-state reclamation (`rte_rcu_qsbr`), with which benchmarks compare rnic's own.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ffi;

/// A variable with a fixed number of readers. Needs no EAL.
#[derive(Debug)]
pub struct RcuQsbr {
    variable: NonNull<ffi::rte_rcu_qsbr>,
    layout: Layout,
    taken: Box<[AtomicBool]>,
}

// SAFETY: the variable is made for use by many threads: each function accesses it by atomics, and what belongs to one
// reader is changed through its only `RcuReader`.
unsafe impl Send for RcuQsbr {}
// SAFETY: as above.
unsafe impl Sync for RcuQsbr {}

impl RcuQsbr {
    /// A variable for readers `0..readers`; `None` when DPDK refuses that number. Allocates.
    pub fn new(readers: u32) -> Option<Arc<Self>> {
        // SAFETY: a pure computation.
        let size = unsafe { ffi::rte_rcu_qsbr_get_memsize(readers) };
        let layout = Layout::from_size_align(size, align_of::<ffi::rte_rcu_qsbr>()).ok()?;
        // DPDK answers 1 to a number it refuses.
        if size < size_of::<ffi::rte_rcu_qsbr>() {
            return None;
        }
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(layout) }.cast::<ffi::rte_rcu_qsbr>();
        let variable = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        let qsbr = RcuQsbr {
            variable,
            layout,
            taken: (0..readers).map(|_| AtomicBool::new(false)).collect(),
        };
        // SAFETY: the memory has the size DPDK asks for and the alignment of its type, and is nobody else's yet.
        let made = unsafe { ffi::rte_rcu_qsbr_init(qsbr.variable.as_ptr(), readers) };
        (made == 0).then(|| Arc::new(qsbr))
    }

    /// The handle of a reader, offline; `None` when there is no such reader or it is taken.
    pub fn reader(self: &Arc<Self>, id: u32) -> Option<RcuReader> {
        if self.taken.get(id as usize)?.swap(true, Ordering::AcqRel) {
            return None;
        }
        let reader = RcuReader {
            qsbr: Arc::clone(self),
            id,
            not_sync: PhantomData,
        };
        // SAFETY: the variable is initialised and the id below its number of readers.
        let registered = unsafe { ffi::rte_rcu_qsbr_thread_register(self.variable.as_ptr(), id) };
        (registered == 0).then_some(reader)
    }

    /// Begins a grace period; [`RcuQsbr::check`] tells when it is over.
    #[inline]
    pub fn start(&self) -> u64 {
        // SAFETY: the variable is initialised.
        unsafe { ffi::dpdk_qsbr_start(self.variable.as_ptr()) }
    }

    /// Whether every online reader was quiescent since the grace period began. Never waits.
    #[inline]
    pub fn check(&self, token: u64) -> bool {
        // SAFETY: the variable is initialised.
        unsafe { ffi::dpdk_qsbr_check(self.variable.as_ptr(), token, false) == 1 }
    }
}

impl Drop for RcuQsbr {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; readers keep the variable alive, so none is left.
        unsafe { dealloc(self.variable.as_ptr().cast(), self.layout) }
    }
}

/// One reader, of one thread at a time.
#[derive(Debug)]
pub struct RcuReader {
    qsbr: Arc<RcuQsbr>,
    id: u32,
    not_sync: PhantomData<Cell<()>>,
}

impl RcuReader {
    /// Grace periods wait for it from now on.
    pub fn online(&mut self) {
        // SAFETY: the variable is initialised and the reader registered.
        unsafe { ffi::dpdk_qsbr_online(self.qsbr.variable.as_ptr(), self.id) }
    }

    /// They do so no longer: it holds nothing.
    pub fn offline(&mut self) {
        // SAFETY: as above.
        unsafe { ffi::dpdk_qsbr_offline(self.qsbr.variable.as_ptr(), self.id) }
    }

    /// It holds nothing that it found before.
    #[inline]
    pub fn quiescent(&mut self) {
        // SAFETY: as above.
        unsafe { ffi::dpdk_qsbr_quiescent(self.qsbr.variable.as_ptr(), self.id) }
    }
}

impl Drop for RcuReader {
    fn drop(&mut self) {
        self.offline();
        // SAFETY: as above.
        unsafe { ffi::rte_rcu_qsbr_thread_unregister(self.qsbr.variable.as_ptr(), self.id) };
        self.qsbr.taken[self.id as usize].store(false, Ordering::Release);
    }
}
