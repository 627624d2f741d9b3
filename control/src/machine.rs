//! The machine the daemon runs on, as far as a configuration can be judged by it.

use std::{fs, path::Path};

use rnic_config::{ByteSize, Machine};

/// Kernel drivers under which DPDK can use a PCI function.
const DPDK_DRIVERS: [&str; 5] = ["vfio-pci", "uio_pci_generic", "igb_uio", "mlx4_core", "mlx5_core"];

/// Looks at the machine, without side effects.
pub fn look() -> Machine {
    look_at(Path::new("/sys"))
}

fn look_at(sys: &Path) -> Machine {
    Machine {
        cpus: allowed_cpus(),
        free_hugepages: free_hugepages(&sys.join("kernel/mm/hugepages")),
        interfaces: names(&sys.join("class/net")),
        dpdk_functions: sys.join("bus/pci/devices").exists().then(|| {
            let bound = DPDK_DRIVERS
                .iter()
                .filter_map(|driver| names(&sys.join("bus/pci/drivers").join(driver)));
            // The folder of a driver holds more than its functions; what is no address is something else.
            bound.flatten().filter_map(|name| name.parse().ok()).collect()
        }),
    }
}

fn allowed_cpus() -> Vec<u16> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return vec![0];
    };
    (0..rustix::thread::CpuSet::MAX_CPU as u16)
        .filter(|cpu| set.is_set(usize::from(*cpu)))
        .collect()
}

fn names(folder: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(folder).ok()?;
    Some(
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect(),
    )
}

/// Of every size together: DPDK takes what it finds.
fn free_hugepages(folder: &Path) -> Option<ByteSize> {
    let pools = names(folder)?.into_iter().filter_map(|name| {
        let size: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let free: u64 = fs::read_to_string(folder.join(name).join("free_hugepages"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        size.checked_mul(free)
    });
    Some(ByteSize::kib(pools.sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugepages_interfaces_and_functions_are_read_from_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n");
        write("kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "1\n");
        write("class/net/veth0/mtu", "1500");
        write("bus/pci/devices/x", "");
        write("bus/pci/drivers/vfio-pci/0000:01:10.0/x", "");
        write("bus/pci/drivers/vfio-pci/new_id", "");
        write("bus/pci/drivers/e1000/0000:02:00.0/x", "");
        let machine = look_at(dir.path());
        assert_eq!(machine.free_hugepages, Some(ByteSize::mib(1024 + 6)));
        assert_eq!(machine.interfaces, Some(vec!["veth0".into()]));
        assert_eq!(
            machine.dpdk_functions,
            Some(vec!["0000:01:10.0".parse().unwrap()])
        );
        assert!(!machine.cpus.is_empty());
        let nothing = look_at(Path::new("/nowhere"));
        assert!(nothing.free_hugepages.is_none() && nothing.dpdk_functions.is_none());
    }
}
