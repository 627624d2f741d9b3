//! The EAL argument vector that follows from a configuration.

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

/// The arguments for `rte_eal_init`, without the program's name in front.
///
/// EAL gets one lcore: poll threads are the daemon's own and register themselves. Note that `rte_eal_init` pins
/// the thread that calls it to that lcore, so its former CPU mask must be put back afterwards. Nothing is shared
/// with other DPDK processes, so that any number of daemons run on one machine. Rings are made after
/// initialisation and are not among the arguments.
pub fn eal_args(config: &Config) -> Vec<String> {
    let mut args: Vec<String> = ["-l", "0"].map(String::from).into();
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
