//! An `rnicd` with a configuration of the benchmark's own, in a folder that goes with it.
use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long it may take to start, and to destroy what clients left.
const PATIENCE: Duration = Duration::from_secs(60);
const SOCKET: &str = "rnicd.sock";
const ADMIN_SOCKET: &str = "admin.sock";

/// A running daemon; ended on drop.
pub struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts `program` with this configuration, to which the sockets are added, and waits until it serves.
    pub fn start(program: &Path, sections: &str) -> anyhow::Result<Self> {
        let sockets = "control: {socket: \"${RNIC_SOCKET}\", admin_socket: \"${RNIC_ADMIN_SOCKET}\"}";
        Self::configured(
            program,
            &format!("version: 1\n{sockets}\nlog: {{level: warn}}\n{sections}"),
        )
    }

    /// Starts `program` with the sample configuration of this name, as it prints it, and waits until it serves.
    pub fn sample(program: &Path, name: &str) -> anyhow::Result<Self> {
        let printed = Command::new(program).args(["--print-sample", name]).output()?;
        ensure!(printed.status.success(), "rnicd has no sample named {name}");
        Self::configured(program, std::str::from_utf8(&printed.stdout)?)
    }

    fn configured(program: &Path, text: &str) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("rnic-bench-")?;
        let config = dir.path().join("rnicd.yaml");
        std::fs::write(&config, text)?;
        let log = File::create(dir.path().join("rnicd.log"))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&config)
            .env("RNIC_SOCKET", dir.path().join(SOCKET))
            .env("RNIC_ADMIN_SOCKET", dir.path().join(ADMIN_SOCKET))
            .env_remove("RNIC_CAPTURE")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}; build it first", program.display()))?;
        let mut daemon = Daemon { child, dir };
        let start = Instant::now();
        while UnixStream::connect(daemon.admin_socket()).is_err() {
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
        self.dir.path().join(SOCKET)
    }

    /// Where `rnicctl` connects.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.path().join(ADMIN_SOCKET)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its thread of this name, which may be about to start.
    pub fn thread(&self, name: &str) -> anyhow::Result<u32> {
        let start = Instant::now();
        loop {
            for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                let task = task?;
                let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
                if comm.trim() == name {
                    return Ok(task.file_name().to_string_lossy().parse()?);
                }
            }
            ensure!(start.elapsed() < PATIENCE, "rnicd has no thread named {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Time on a CPU so far, of all its threads.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name, which may contain anything, ends at the last parenthesis; 11 fields lie between it and the two.
        let fields = stat.rsplit_once(')').context("no name in /proc/PID/stat")?.1;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>)
            .sum::<Result<_, _>>()?;
        Ok(Duration::from_secs(ticks) / clock_ticks_per_second() as u32)
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
