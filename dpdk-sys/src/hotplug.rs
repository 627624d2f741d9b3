//! Plugging devices in and out while EAL runs.
//!
//! DPDK names the port after the device (`net_af_packet0`, `0000:3b:00.1`), which is the name that
//! [`EthDev::open`](crate::EthDev::open) takes. Taking a device away is refused while one of its ports
//! is held. Control thread only.

use crate::eal::Eal;
use crate::error::{Error, c_string, check};
use crate::ffi;
use crate::port;
use crate::shield::SignalMask;

/// Creates a virtual device: the driver is the name without its trailing digits, and `args` is what
/// follows the name in `--vdev`, without the comma.
///
/// # Errors
/// [`Error::Call`] with the driver's reason.
pub fn vdev_init(eal: &Eal, name: &str, args: &str) -> Result<(), Error> {
    let (c_name, c_args) = (c_string(name)?, c_string(args)?);
    let _plugging = eal.claimed();
    // Drivers may start threads.
    let _mask = SignalMask::block();
    // SAFETY: EAL is up; both are C strings, which DPDK copies.
    check("create virtual device", name, unsafe {
        ffi::rte_vdev_init(c_name.as_ptr(), c_args.as_ptr())
    })
}

/// Destroys a virtual device and its ports.
///
/// # Errors
/// [`Error::PortInUse`] while one of its ports is held, else [`Error::Call`].
pub fn vdev_uninit(eal: &Eal, name: &str) -> Result<(), Error> {
    let c_name = c_string(name)?;
    let claimed = eal.claimed();
    refuse_claimed(&claimed, name)?;
    // SAFETY: EAL is up, the name is a C string, and no handle to the device's ports exists or can
    // appear while the lock is held.
    check("destroy virtual device", name, unsafe {
        ffi::rte_vdev_uninit(c_name.as_ptr())
    })
}

/// Plugs in the device of a devargs string, as in `0000:3b:00.1` or `vdev:net_null0,size=64`.
///
/// # Errors
/// [`Error::Call`] with the bus' or driver's reason.
pub fn dev_probe(eal: &Eal, devargs: &str) -> Result<(), Error> {
    let c_devargs = c_string(devargs)?;
    let _plugging = eal.claimed();
    let _mask = SignalMask::block();
    // SAFETY: EAL is up; the string is a C string, which DPDK copies.
    check("plug in", devargs, unsafe {
        ffi::rte_dev_probe(c_devargs.as_ptr())
    })
}

/// Plugs in a device by bus (`pci`, `vdev`), name, and driver arguments.
///
/// # Errors
/// [`Error::Call`] with the bus' or driver's reason.
pub fn hotplug_add(eal: &Eal, bus: &str, device: &str, args: &str) -> Result<(), Error> {
    let (c_bus, c_device, c_args) = (c_string(bus)?, c_string(device)?, c_string(args)?);
    let _plugging = eal.claimed();
    let _mask = SignalMask::block();
    // SAFETY: EAL is up; all three are C strings, which DPDK copies.
    let code = unsafe { ffi::rte_eal_hotplug_add(c_bus.as_ptr(), c_device.as_ptr(), c_args.as_ptr()) };
    check("plug in", device, code)
}

/// Unplugs a device by bus and name.
///
/// # Errors
/// [`Error::PortInUse`] while one of its ports is held, else [`Error::Call`].
pub fn hotplug_remove(eal: &Eal, bus: &str, device: &str) -> Result<(), Error> {
    let (c_bus, c_device) = (c_string(bus)?, c_string(device)?);
    let claimed = eal.claimed();
    refuse_claimed(&claimed, device)?;
    // SAFETY: EAL is up, both are C strings, and no handle to the device's ports exists or can
    // appear while the lock is held.
    let code = unsafe { ffi::rte_eal_hotplug_remove(c_bus.as_ptr(), c_device.as_ptr()) };
    check("unplug", device, code)
}

/// Fails if a claimed port belongs to `device`.
fn refuse_claimed(claimed: &std::collections::BTreeSet<u16>, device: &str) -> Result<(), Error> {
    for &id in claimed {
        if port::device_of(id).is_some_and(|owner| owner == device) {
            return Err(Error::PortInUse(
                port::name_of(id).unwrap_or_else(|| device.to_owned()),
            ));
        }
    }
    Ok(())
}
