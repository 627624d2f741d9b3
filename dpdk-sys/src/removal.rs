//! Devices that vanish by themselves, as their drivers tell it on DPDK's interrupt thread.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::eal::Eal;
use crate::error::{Error, c_string, check};
use crate::ffi;
use crate::interrupt::on_interrupt_thread;
use crate::port;

/// By port: its device has vanished. Not behind a pointer that a callback could keep too long.
static VANISHED: [AtomicBool; ffi::DPDK_MAX_PORTS as usize] =
    [const { AtomicBool::new(false) }; ffi::DPDK_MAX_PORTS as usize];

/// Whether the device of a watched port has vanished.
pub(crate) fn has_vanished(port: u16) -> bool {
    VANISHED
        .get(usize::from(port))
        .is_some_and(|vanished| vanished.load(Ordering::Acquire))
}

/// Forgets what was told of an earlier port of this number, which is not watched any more.
pub(crate) fn forget(port: u16) {
    if let Some(vanished) = VANISHED.get(usize::from(port)) {
        vanished.store(false, Ordering::Release);
    }
}

/// Has it told when the device of a port vanishes. The second time changes nothing.
pub(crate) fn watch(port: u16) -> c_int {
    // SAFETY: DPDK checks the number; `removed` may be called at any time from any thread.
    unsafe { ffi::dpdk_removal_register(port, Some(removed)) }
}

/// The opposite: when it returns, nothing more is told. Not on the interrupt thread.
pub(crate) fn unwatch(port: u16) {
    // SAFETY: DPDK checks the number, and takes out nothing but `removed`.
    while unsafe { ffi::dpdk_removal_unregister(port, Some(removed)) } == -libc::EAGAIN {
        // It is being called.
        std::thread::yield_now();
    }
}

/// Runs under a lock of the driver's or of DPDK's, perhaps: it sets a flag and nothing else.
unsafe extern "C" fn removed(
    port: u16,
    _event: ffi::rte_eth_event_type,
    _of_callback: *mut c_void,
    _result: *mut c_void,
) -> c_int {
    if let Some(vanished) = VANISHED.get(usize::from(port)) {
        vanished.store(true, Ordering::Release);
    }
    0
}

/// Raises the event that the driver of port `name` raises when its device is unplugged, on the thread on which it would.
/// The device stays. For tests: hardly any virtual device can be unplugged.
///
/// # Errors
/// [`Error::NoSuchPort`]; [`Error::Call`] when the interrupt thread cannot be reached.
pub fn pretend_removal(eal: &Eal, name: &str) -> Result<(), Error> {
    // As long as this is held, no port comes or goes.
    let _plugging = eal.claimed();
    let id = port::id_of(&c_string(name)?).ok_or_else(|| port::no_such(name))?;
    // SAFETY: the port is there and stays, so that its callbacks may be called, which DPDK does from any thread.
    let code = unsafe { on_interrupt_thread(ffi::dpdk_removal_raise, id) };
    check("pretend the removal of", name, code.unwrap_or(-libc::EAGAIN))
}
