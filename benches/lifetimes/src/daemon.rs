//! An `rnicd` with a configuration of the benchmark's own, in a folder that goes with it.
use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long it may take to start, and to destroy what clients left.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon; ended on drop.
pub struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts `program` with this configuration, to which the sockets are added, and waits until it serves.
    pub fn start(program: &Path, sections: &str) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("rnic-bench-")?;
        let at = dir.path().display();
        let config = dir.path().join("rnicd.yaml");
        let text = format!(
            "version: 1\ncontrol: {{socket: {at}/rnicd.sock, admin_socket: {at}/admin.sock}}\n\
             log: {{level: warn}}\n{sections}"
        );
        std::fs::write(&config, text)?;
        let log = File::create(dir.path().join("rnicd.log"))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}; build it first", program.display()))?;
        let mut daemon = Daemon { child, dir };
        let start = Instant::now();
        while UnixStream::connect(daemon.dir.path().join("admin.sock")).is_err() {
            if daemon.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(daemon.dir.path().join("rnicd.log")).unwrap_or_default();
                bail!("rnicd did not come up:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("rnicd.sock")
    }

    /// Kilobytes of memory it has in use, shared memory included.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
