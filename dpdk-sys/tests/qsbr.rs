//! DPDK's own quiescent-state reclamation through the raw bindings, which benchmarks compare with.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use dpdk_sys::ffi;

#[test]
fn a_grace_period_ends_when_every_online_thread_has_been_quiescent() {
    // SAFETY: the variable has the size DPDK asks for and the alignment of its type, thread ids are
    // below the number it was initialised for, and only this thread uses it.
    unsafe {
        let layout =
            Layout::from_size_align(ffi::rte_rcu_qsbr_get_memsize(2), align_of::<ffi::rte_rcu_qsbr>())
                .expect("a sane size");
        let qsbr = alloc_zeroed(layout).cast::<ffi::rte_rcu_qsbr>();
        assert!(!qsbr.is_null());
        assert_eq!(ffi::rte_rcu_qsbr_init(qsbr, 2), 0);
        for thread in 0..2 {
            assert_eq!(ffi::rte_rcu_qsbr_thread_register(qsbr, thread), 0);
            ffi::dpdk_qsbr_online(qsbr, thread);
        }

        let token = ffi::dpdk_qsbr_start(qsbr);
        assert_eq!(ffi::dpdk_qsbr_check(qsbr, token, false), 0);
        ffi::dpdk_qsbr_quiescent(qsbr, 0);
        assert_eq!(ffi::dpdk_qsbr_check(qsbr, token, false), 0);
        ffi::dpdk_qsbr_quiescent(qsbr, 1);
        assert_eq!(ffi::dpdk_qsbr_check(qsbr, token, false), 1);

        let token = ffi::dpdk_qsbr_start(qsbr);
        ffi::dpdk_qsbr_quiescent(qsbr, 0);
        ffi::dpdk_qsbr_offline(qsbr, 1);
        assert_eq!(ffi::dpdk_qsbr_check(qsbr, token, true), 1);

        ffi::dpdk_qsbr_offline(qsbr, 0);
        for thread in 0..2 {
            assert_eq!(ffi::rte_rcu_qsbr_thread_unregister(qsbr, thread), 0);
        }
        dealloc(qsbr.cast(), layout);
    }
}
