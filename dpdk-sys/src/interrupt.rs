//! Closing ports whose driver works on DPDK's interrupt thread too.

use std::ffi::{c_int, c_void};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::ffi;

/// Something DPDK does to a port.
type PortCall = unsafe extern "C" fn(u16) -> c_int;

struct Job {
    call: PortCall,
    port: u16,
    done: SyncSender<c_int>,
}

/// Closes the port `name` by `call`, on the thread where its driver tolerates it.
///
/// net_memif frees a connection both when its port is closed and when the peer hangs up, the latter on the interrupt
/// thread and without a lock. Closing on that thread too puts the two in order.
///
/// # Safety
/// `call(port)` must be sound on any thread while nobody else uses the port.
pub(crate) unsafe fn close_port(name: &str, call: PortCall, port: u16) -> c_int {
    if name.starts_with("net_memif") {
        let (done, result) = sync_channel(1);
        let job = Box::into_raw(Box::new(Job { call, port, done }));
        // SAFETY: `run` takes the job over when the alarm goes off, once, at the earliest a microsecond from now.
        if unsafe { ffi::rte_eal_alarm_set(1, Some(run), job.cast()) } == 0 {
            // An alarm that goes off always answers.
            return result.recv().unwrap_or(-libc::EIO);
        }
        // SAFETY: no alarm was set, so the job is still ours.
        drop(unsafe { Box::from_raw(job) });
    }
    // SAFETY: the caller's promise.
    unsafe { call(port) }
}

unsafe extern "C" fn run(job: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `close_port`, which leaves it to this one call.
    let job = unsafe { Box::from_raw(job.cast::<Job>()) };
    // SAFETY: what `close_port` was promised.
    let code = unsafe { (job.call)(job.port) };
    let _ = job.done.send(code);
}
