//! What is done on DPDK's interrupt thread: closing ports whose driver works there too.

use std::ffi::{c_int, c_void};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::ffi;

/// Something DPDK does to a port.
pub(crate) type PortCall = unsafe extern "C" fn(u16) -> c_int;

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
    // SAFETY: the caller's promise.
    unsafe {
        let there = name.starts_with("net_memif");
        let code = there.then(|| on_interrupt_thread(call, port)).flatten();
        code.unwrap_or_else(|| call(port))
    }
}

/// Has `call(port)` made on the interrupt thread and waits for its result; `None`, without a call, when that thread
/// cannot be asked.
///
/// # Safety
/// `call(port)` must be sound on that thread at any time before this returns.
pub(crate) unsafe fn on_interrupt_thread(call: PortCall, port: u16) -> Option<c_int> {
    let (done, result) = sync_channel(1);
    let job = Box::into_raw(Box::new(Job { call, port, done }));
    // SAFETY: `run` takes the job over when the alarm goes off, once, at the earliest a microsecond from now.
    if unsafe { ffi::rte_eal_alarm_set(1, Some(run), job.cast()) } == 0 {
        // An alarm that goes off always answers.
        return Some(result.recv().unwrap_or(-libc::EIO));
    }
    // SAFETY: no alarm was set, so the job is still ours.
    drop(unsafe { Box::from_raw(job) });
    None
}

unsafe extern "C" fn run(job: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `on_interrupt_thread`, which leaves it to this one call.
    let job = unsafe { Box::from_raw(job.cast::<Job>()) };
    // SAFETY: what `on_interrupt_thread` was promised.
    let code = unsafe { (job.call)(job.port) };
    let _ = job.done.send(code);
}
