//! Ports of DPDK.
//!
//! A device is plugged in, configured, given buffers and queues, and started, in that order; what it merely lacks
//! (RSS, filters) is left out. Closing is the reverse: the poll cores drop the queues, then the control thread
//! closes the [`Link`](super::Link), which stops the device and takes it off its bus.
mod eal;
mod link;
mod opening;
mod pci;
mod pool;
mod queue;
mod vdev;

use dpdk_sys::{Eal, Error, EthDev};

pub(crate) use eal::register_thread;
use link::SharedPools;
use opening::Opening;
use vdev::Vdev;

use super::{DeviceSpec, OpenPort, PortError, PortSpec, mac_of_name};

/// Most queues net_ring has.
const MAX_RINGS: u16 = 16;
/// Longest name of an end that net_ring takes, in bytes.
const MAX_RING_NAME: usize = 20;

/// DPDK, running.
pub(super) struct Dpdk {
    eal: Eal,
}

impl Dpdk {
    /// Starts DPDK for the ports among `specs` that need it, the first of which is `first`.
    pub fn start(first: &PortSpec, specs: &[PortSpec], args: &[String]) -> Result<Self, PortError> {
        let vdevs: Vec<_> = specs
            .iter()
            .filter_map(|spec| match &spec.device {
                DeviceSpec::Vdev(vdev) => vdev.split(',').next(),
                _ => None,
            })
            .collect();
        Ok(Dpdk {
            eal: eal::start(&first.name, args, &vdevs)?,
        })
    }

    /// Opens a PCI function.
    pub fn open_pci(&self, spec: &PortSpec, address: &str) -> Result<OpenPort, PortError> {
        let failed = |error: Error| {
            failure(
                spec,
                "open",
                &format!("PCI function {address}"),
                &error,
                pci::help(address),
            )
        };
        let dev = EthDev::open(&self.eal, address).or_else(|_| {
            // Not among the devices EAL was started with, or it has lost its port: plug it in.
            dpdk_sys::dev_probe(&self.eal, address)?;
            EthDev::open(&self.eal, address)
        });
        Opening::new(&self.eal, spec, dev.map_err(failed)?).finish()
    }

    /// Makes a virtual device and opens it.
    pub fn open_vdev(&self, spec: &PortSpec, text: &str) -> Result<OpenPort, PortError> {
        let vdev = Vdev::new(text, spec.mtu);
        let failed = |error: Error| failure(spec, "make virtual device", &vdev.name, &error, vdev.help());
        if !EthDev::names(&self.eal).contains(&vdev.name) {
            dpdk_sys::vdev_init(&self.eal, &vdev.name, &vdev.args()).map_err(failed)?;
        }
        let dev = EthDev::open(&self.eal, &vdev.name).map_err(failed)?;
        let mut spec = spec.clone();
        if let Some(most) = vdev.max_mtu().filter(|most| *most < spec.mtu) {
            tracing::warn!(port = %spec.name, wanted = spec.mtu, mtu = most, "the device takes no larger MTU");
            spec.mtu = most;
        }
        let opened = Opening::new(&self.eal, &spec, dev).of_vdev(&vdev).finish();
        if opened.is_err() {
            // Another attempt finds the name free.
            let _ = dpdk_sys::vdev_uninit(&self.eal, &vdev.name);
        }
        opened
    }

    /// Makes two ports joined by rings.
    pub fn open_rings(&self, a: &PortSpec, b: &PortSpec) -> Result<(OpenPort, OpenPort), PortError> {
        let queues = a.queues.min(b.queues).clamp(1, MAX_RINGS);
        let frames = [a, b].map(|end| end.rx_descriptors.max(end.tx_descriptors));
        let frames = u32::from(frames[0].max(frames[1]));
        let pair = dpdk_sys::ring_pair(
            &self.eal,
            &ring_name(&a.name),
            &ring_name(&b.name),
            frames,
            queues,
        );
        let (dev_a, dev_b) = pair.map_err(|error| {
            let help = "Give DPDK more memory, or the ports fewer descriptors".to_owned();
            failure(a, "make", &format!("the ring to {}", b.name), &error, help)
        })?;
        let pools = SharedPools::default();
        let open = |spec, dev| Opening::new(&self.eal, spec, dev).of_rings(&pools).finish();
        Ok((open(a, dev_a)?, open(b, dev_b)?))
    }
}

/// Whether a virtual device must be made before the others.
pub(super) fn comes_first(vdev: &str) -> bool {
    Vdev::new(vdev, 0).comes_first()
}

/// A name for a ring that net_ring takes.
fn ring_name(name: &str) -> String {
    if name.len() <= MAX_RING_NAME {
        return name.to_owned();
    }
    mac_of_name(name)
        .iter()
        .fold("ring_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn failure(
    spec: &PortSpec,
    action: &'static str,
    device: &str,
    why: &dyn std::fmt::Display,
    help: String,
) -> PortError {
    PortError::Device {
        port: spec.name.clone(),
        action,
        device: device.to_owned(),
        why: why.to_string(),
        help,
    }
}
