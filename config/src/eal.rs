//! The EAL argument vector that follows from a configuration.

use crate::machine::Machine;
use crate::schema::{Config, Device, Memory};

/// Arguments rnicd sets itself (long and short forms), with the key that says the same.
pub(crate) const OWN_ARGUMENTS: [(&str, &str); 19] = [
    ("-l", "cores.poll"),
    ("-c", "cores.poll"),
    ("--lcores", "cores.poll"),
    ("--main-lcore", "cores.poll"),
    ("-s", "cores.poll"),
    ("-S", "cores.poll"),
    ("-m", "eal.memory_size"),
    ("--socket-mem", "eal.memory_size"),
    ("--no-huge", "eal.memory"),
    ("--in-memory", "eal.memory"),
    ("--no-shconf", "eal.memory"),
    ("--no-pci", "eal.pci"),
    ("-a", "ports"),
    ("--allow", "ports"),
    ("-b", "ports"),
    ("--block", "ports"),
    ("--vdev", "ports"),
    ("--proc-type", "eal"),
    ("--no-telemetry", "eal"),
];

/// The arguments for `rte_eal_init`, without the program's name in front, with CPU 0 as EAL's only lcore.
///
/// EAL gets one lcore, as poll threads are the daemon's own and register themselves. `rte_eal_init` pins the thread
/// that calls it to that CPU, and fails if the daemon may not run there: [`eal_args_on`] avoids both. Nothing is
/// shared with other DPDK processes, so that any number of daemons run on one machine. Rings are made after
/// initialisation and are not among the arguments.
pub fn eal_args(config: &Config) -> Vec<String> {
    with_lcore(config, ["-l".into(), "0".into()].into())
}

/// As [`eal_args`], but EAL's lcore floats over all CPUs the daemon may run on, so that the calling thread keeps its
/// affinity mask.
pub fn eal_args_on(config: &Config, machine: &Machine) -> Vec<String> {
    let cpus: Vec<_> = machine.cpus.iter().map(u16::to_string).collect();
    if cpus.is_empty() {
        return eal_args(config);
    }
    with_lcore(config, vec![format!("--lcores=0@({})", cpus.join(","))])
}

fn with_lcore(config: &Config, mut args: Vec<String>) -> Vec<String> {
    if !config.uses_pci() {
        args.push("--no-pci".into());
    }
    // DPDK 22.11 refuses the two together; each keeps the daemon from leaving files behind.
    args.extend(match config.eal.memory {
        Memory::None => ["--no-huge", "--no-shconf"].map(String::from).to_vec(),
        Memory::Hugepages => vec!["--in-memory".into()],
    });
    args.extend([
        "-m".into(),
        (config.eal.memory_size.bytes() >> 20).to_string(),
        "--no-telemetry".into(),
    ]);
    for port in &config.ports {
        match &port.device {
            Device::Pci(address) => args.extend(["-a".into(), address.to_string()]),
            Device::Vdev(vdev) => args.push(format!("--vdev={vdev}")),
            Device::Ring(_) => {}
        }
    }
    args.extend(config.eal.extra_args.iter().cloned());
    args
}
