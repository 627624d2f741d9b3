//! Why a PCI function cannot be used.
use std::{fs, path::Path};

/// Kernel modules that hand a function to user space.
const USER_SPACE: [&str; 3] = ["vfio-pci", "igb_uio", "uio_pci_generic"];
/// Kernel drivers that DPDK works beside.
const BIFURCATED: [&str; 3] = ["mlx5_core", "mlx4_core", "mana"];

/// What to do when DPDK has no port for the function at `address`.
pub(super) fn help(address: &str) -> String {
    help_at(Path::new("/sys/bus/pci/devices"), address)
}

fn help_at(devices: &Path, address: &str) -> String {
    let device = devices.join(address);
    if !device.exists() {
        return format!("No PCI function is at {address}: `lspci -D` lists them, with the domain in front");
    }
    let driver = fs::read_link(device.join("driver")).ok();
    let driver = driver
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    match driver {
        None => format!("It is bound to no driver: bind it with `dpdk-devbind.py -b vfio-pci {address}`"),
        Some(driver) if BIFURCATED.contains(&driver) => {
            format!(
                "It belongs to {driver}, beside which DPDK can work: check that DPDK's driver for it and rdma-core are installed"
            )
        }
        Some(driver) if !USER_SPACE.contains(&driver) => {
            format!(
                "It is bound to the kernel driver {driver}: bind it with `dpdk-devbind.py -b vfio-pci {address}`"
            )
        }
        Some("vfio-pci") => vfio(&device),
        Some(driver) => format!("It is bound to {driver}, which needs root; prefer vfio-pci"),
    }
}

fn vfio(device: &Path) -> String {
    let group = fs::read_link(device.join("iommu_group")).ok();
    let Some(group) = group
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
    else {
        return "There is no IOMMU group: enable the IOMMU (intel_iommu=on or amd_iommu=on)".to_owned();
    };
    match fs::File::options().read(true).write(true).open(format!("/dev/vfio/{group}")) {
        Err(error) => format!(
            "/dev/vfio/{group} cannot be opened ({error}): let the daemon's user own it, and free it of other users"
        ),
        Ok(_) => "Check that DPDK has a driver for the function, that its whole IOMMU group is bound to vfio-pci, and \
                  that the process may lock memory (LimitMEMLOCK=infinity); the device needs hugepages or an IOMMU"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn help_tells_a_missing_function_from_one_with_the_wrong_driver() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let address = "0000:3b:00.1";
        assert!(help_at(root.path(), address).starts_with("No PCI function is at 0000:3b:00.1"));
        let device = root.path().join(address);
        fs::create_dir(&device).expect("the directory is new");
        assert!(help_at(root.path(), address).contains("bound to no driver"));
        let bind = |driver: &str| {
            let _ = fs::remove_file(device.join("driver"));
            symlink(format!("../../drivers/{driver}"), device.join("driver")).expect("a link");
            help_at(root.path(), address)
        };
        assert!(bind("ixgbe").contains("kernel driver ixgbe: bind it with `dpdk-devbind.py -b vfio-pci"));
        assert!(bind("mlx5_core").contains("rdma-core"));
        assert!(bind("vfio-pci").contains("no IOMMU group"));
    }
}
