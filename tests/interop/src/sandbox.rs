//! Network, mount and process namespaces of the harness's own. They are unnamed, so that the kernel removes what is in
//! them, processes first, when their first process ends, however that comes about.
use std::io::Read;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use rnic_guest::run;

/// Argument of the process inside.
pub const INSIDE: &str = "--inside";
/// Temporary files inside: in memory, and gone with the mount namespace.
const TEMPORARY: &str = "/dev/shm";

/// Runs this program again as the first process of new namespaces, with the same arguments and [`INSIDE`], and waits
/// for it.
pub fn enter() -> Result<ExitCode> {
    let mut inside = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg(INSIDE)
        .env("TMPDIR", TEMPORARY)
        .stdin(Stdio::piped())
        .spawn()
        .context("starting unshare")?;
    // Held until the end: it closes with this process, killed or not, and the process inside reads it.
    let _line = inside.stdin.take();
    let status = inside.wait().context("waiting for unshare")?;
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Called first inside: ends the process, and so everything in the namespaces, when the one outside is gone.
pub fn settle() -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        eprintln!("interop: the harness was ended; everything it started ends with it");
        std::process::exit(130);
    });
    run("mount", &["-t", "tmpfs", "interop", TEMPORARY])?;
    // It shows the devices of the network namespace in which it was mounted.
    run("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
    run("ip", &["link", "set", "lo", "up"])
}
