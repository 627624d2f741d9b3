//! The one EAL of the process.
use std::sync::{Mutex, OnceLock, PoisonError};

use dpdk_sys::{Eal, EalError, Error};

use crate::port::PortError;

static EAL: OnceLock<Eal> = OnceLock::new();

/// EAL, started with `args` the first time. Devices among the arguments that the caller names in `vdevs` are left
/// out: they are plugged in later, one by one, so that a failure has a name.
pub(super) fn start(port: &str, args: &[String], vdevs: &[&str]) -> Result<Eal, PortError> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(eal) = EAL.get() {
        return Ok(eal.clone());
    }
    let args = without_vdevs(args, vdevs);
    let eal = Eal::init(&args).map_err(|error| PortError::Dpdk {
        port: port.to_owned(),
        help: help(&error, &args),
        why: error.to_string(),
    })?;
    Ok(EAL.get_or_init(|| eal).clone())
}

fn help(error: &EalError, args: &[String]) -> String {
    let with_hugepages = !args.iter().any(|arg| arg == "--no-huge");
    match error {
        EalError::Init { .. } if with_hugepages && no_hugepages() => {
            "The machine has no hugepages set aside: write a number to /proc/sys/vm/nr_hugepages, or do without \
             (`memory: none`), which software ports hardly notice"
                .to_owned()
        }
        EalError::Init { .. } => {
            "DPDK's own lines before this one name the step; check the memory size, the lcore's CPU and the extra \
             arguments"
                .to_owned()
        }
        _ => "Restart the process".to_owned(),
    }
}

/// Whether the kernel has set no hugepage of any size aside.
fn no_hugepages() -> bool {
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return true;
    };
    !sizes.flatten().any(|size| {
        let count = std::fs::read_to_string(size.path().join("nr_hugepages"));
        count.is_ok_and(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
    })
}

fn without_vdevs(args: &[String], vdevs: &[&str]) -> Vec<String> {
    let names_one = |device: &str| vdevs.contains(&device.split(',').next().unwrap_or_default());
    let mut kept = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        if arg == "--vdev" && args.peek().is_some_and(|device| names_one(device)) {
            args.next();
        } else if !arg.strip_prefix("--vdev=").is_some_and(names_one) {
            kept.push(arg.clone());
        }
    }
    kept
}

/// See [`crate::port::register_thread`].
pub(crate) fn register_thread() -> Option<dpdk_sys::RegisteredThread> {
    match EAL.get()?.register_thread() {
        Ok(registered) => Some(registered),
        // The thread that started EAL, which has a cache already.
        Err(Error::ThreadRegistered(_)) => None,
        Err(error) => {
            tracing::warn!(%error, "a poll thread goes without a cache of packet buffers, which is slower");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_ports_are_taken_out_of_the_arguments_in_both_spellings() {
        let args = [
            "-l",
            "0",
            "--vdev=net_memif0,role=server",
            "--vdev",
            "net_memif1,id=1",
            "--vdev=net_memif10",
            "--vdev",
            "net_other0",
        ];
        let kept = without_vdevs(&args.map(str::to_owned), &["net_memif0", "net_memif1"]);
        assert_eq!(kept, ["-l", "0", "--vdev=net_memif10", "--vdev", "net_other0"]);
    }
}
