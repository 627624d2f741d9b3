//! What can only be judged on the machine at hand.

use crate::check::Checks;
use crate::diagnostic::{ConfigError, Diagnostic, KeyPath, Severity};
use crate::schema::{Config, Device, IdlePolicy, Memory, PollCores};
use crate::value::{ByteSize, PciAddress};

/// The machine as the daemon finds it. `None` means not looked at, and then nothing is said about it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// CPUs the daemon may run on (its affinity mask at start), ascending.
    pub cpus: Vec<u16>,
    /// Memory in hugepages that are still free.
    pub free_hugepages: Option<ByteSize>,
    /// Names of the kernel's network interfaces.
    pub interfaces: Option<Vec<String>>,
    /// PCI functions bound to a driver DPDK can use, such as vfio-pci.
    pub dpdk_functions: Option<Vec<PciAddress>>,
}

impl Machine {
    /// The CPU of each poll core: those listed, else the last of [`Machine::cpus`], which leaves the first to the
    /// control thread. If there are fewer CPUs than poll cores, CPUs are repeated.
    pub fn poll_cpus(&self, config: &Config) -> Vec<u16> {
        match &config.cores.poll {
            PollCores::List(ids) => ids.clone(),
            PollCores::Auto => {
                let count = usize::from(config.poll_core_count());
                let spare = self.cpus.len().saturating_sub(count);
                self.cpus
                    .iter()
                    .skip(spare)
                    .copied()
                    .cycle()
                    .take(count)
                    .collect()
            }
        }
    }
}

impl Config {
    /// Checks what depends on the machine: CPUs, hugepages, interfaces, PCI functions. Returns warnings.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every finding, if one of them prevents the start.
    pub fn check_against(&self, machine: &Machine) -> Result<Vec<Diagnostic>, ConfigError> {
        let mut checks = Checks::new(self);
        cpus(&mut checks, machine);
        hugepages(&mut checks, machine);
        devices(&mut checks, machine);
        let found = checks.finish();
        if found.iter().any(|finding| finding.severity == Severity::Error) {
            return Err(ConfigError::Invalid(found));
        }
        Ok(found)
    }
}

fn cpus(checks: &mut Checks<'_>, machine: &Machine) {
    let config = checks.config;
    let poll = KeyPath::from("cores").key("poll");
    match &config.cores.poll {
        PollCores::List(ids) => {
            for (index, id) in ids
                .iter()
                .enumerate()
                .filter(|(_, id)| !machine.cpus.contains(id))
            {
                let help = format!("CPUs the daemon may run on are {}", ranges(&machine.cpus));
                checks.error(
                    poll.index(index),
                    format!("CPU {id} is not there or not allowed"),
                    help,
                );
            }
        }
        PollCores::Auto if usize::from(config.poll_core_count()) > machine.cpus.len() => {
            let (cores, cpus) = (config.poll_core_count(), machine.cpus.len());
            let help = format!("set it to at most {cpus}");
            checks.warn(
                poll.clone(),
                format!("{cores} poll cores share {cpus} CPUs"),
                help,
            );
        }
        PollCores::Auto => {}
    }
    let polled = machine.poll_cpus(config);
    let none_left = machine.cpus.iter().all(|cpu| polled.contains(cpu));
    if none_left && config.cores.idle.policy != IdlePolicy::Sleep {
        let message = "every CPU polls without sleeping: the control thread and clients must share one";
        let help = "leave a CPU free, or set `cores.idle.policy: sleep`";
        checks.warn(KeyPath::from("cores"), message, help);
    }
}

fn hugepages(checks: &mut Checks<'_>, machine: &Machine) {
    let (memory, needed) = (checks.config.eal.memory, checks.config.eal.memory_size);
    let Some(free) = machine.free_hugepages.filter(|_| memory == Memory::Hugepages) else {
        return;
    };
    if free < needed {
        let help = "reserve hugepages before starting, make `memory_size` smaller, or set `memory: none`";
        let message = format!("{needed} of hugepages are needed, but {free} are free");
        checks.error(KeyPath::from("eal").key("memory_size"), message, help);
    }
}

fn devices(checks: &mut Checks<'_>, machine: &Machine) {
    for (index, port) in checks.config.ports.iter().enumerate() {
        let device = KeyPath::from("ports").index(index).key("device");
        match (&port.device, &machine.dpdk_functions, &machine.interfaces) {
            (Device::Pci(address), Some(functions), _) if !functions.contains(address) => {
                let message = format!("{address} is not there or not bound to a driver DPDK can use");
                let help = format!("bind it: `dpdk-devbind.py --bind=vfio-pci {address}`");
                checks.error(device.key("pci"), message, help);
            }
            (Device::Vdev(_), _, Some(interfaces)) => {
                let kernel_port = matches!(port.device.vdev_driver(), Some("net_af_packet" | "net_af_xdp"));
                let Some(iface) = port.device.vdev_arg("iface").filter(|_| kernel_port) else {
                    continue;
                };
                if !interfaces.iter().any(|name| name == iface) {
                    let help = format!("interfaces here are {}", interfaces.join(", "));
                    checks.error(
                        device.key("vdev"),
                        format!("there is no interface `{iface}`"),
                        help,
                    );
                }
            }
            _ => {}
        }
    }
}

/// `0-3, 7` of `[0, 1, 2, 3, 7]`.
fn ranges(cpus: &[u16]) -> String {
    let mut text: Vec<String> = Vec::new();
    for run in cpus.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        match run {
            [only] => text.push(only.to_string()),
            [first, .., last] => text.push(format!("{first}-{last}")),
            [] => {}
        }
    }
    text.join(", ")
}
