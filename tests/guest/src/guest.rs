//! The guest: a Linux kernel under emulation, and commands in it.
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::channel::Channel;

const QEMU: &str = "qemu-system-x86_64";
/// How long it may take from the start of QEMU to the first answer. It is ready after about six seconds on an idle
/// machine.
const BOOT: Duration = Duration::from_secs(180);
/// How long a command that only sets something up may take.
const COMMAND: Duration = Duration::from_secs(30);
/// The virtio-serial port through which commands go.
const COMMAND_PORT: &str = "command";

/// What is emulated.
#[derive(Debug)]
pub struct Machine {
    /// Linux.
    pub kernel: PathBuf,
    /// The initial file system, in which everything stays.
    pub initramfs: PathBuf,
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub mebibytes: u32,
    /// QEMU's arguments for network interfaces.
    pub network: Vec<String>,
    /// A virtio-serial port beside that of commands.
    pub port: Option<&'static str>,
}

/// A running guest. Killed on drop.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    dir: PathBuf,
    command: Mutex<Channel>,
    number: AtomicU32,
}

/// What a command in the guest printed, and its exit status.
#[derive(Debug)]
pub struct Output {
    /// Standard output and error.
    pub text: String,
    /// Exit status; 137 when it was killed at its deadline.
    pub status: i32,
}

impl Guest {
    /// Whether guests can be had here.
    pub fn available() -> Result<()> {
        let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
        ensure!(
            version.is_ok_and(|status| status.success()),
            "{QEMU} is not installed (`make deps`)"
        );
        Ok(())
    }

    /// Boots a machine, whose sockets and logs lie in `dir`, and waits until it takes commands.
    pub fn boot(machine: &Machine, dir: &Path) -> Result<Guest> {
        let log = File::create(dir.join("qemu.log")).context("a log for QEMU")?;
        let qemu = machine
            .command(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting QEMU")?;
        let command = match Channel::connect(&dir.join(COMMAND_PORT), COMMAND) {
            Ok(channel) => channel,
            Err(e) => {
                let mut qemu = qemu;
                let _ = qemu.kill();
                let _ = qemu.wait();
                let log = std::fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
                return Err(e.context(format!("QEMU said: {log}")));
            }
        };
        let guest = Guest {
            qemu,
            dir: dir.into(),
            command: Mutex::new(command),
            number: AtomicU32::new(0),
        };
        guest.run("true", BOOT).with_context(|| guest.describe())?;
        Ok(guest)
    }

    /// The host's end of a virtio-serial port; it can be connected to once at a time.
    pub fn port(&self, name: &str) -> Result<Channel> {
        Channel::connect(&self.dir.join(name), COMMAND)
    }

    /// Runs a shell command, of one line.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let seconds = limit.as_secs().max(1);
        let mut channel = self.command.lock().unwrap_or_else(|e| e.into_inner());
        channel.send(&format!("{number} {seconds} {command}\n"))?;
        // The guest kills the command at its deadline; so this one is for a guest that hangs.
        let deadline = Instant::now() + limit + COMMAND;
        let end = format!("\u{4} {number} ");
        let mut text = String::new();
        loop {
            let line = channel
                .line(deadline)
                .with_context(|| format!("in the guest: {command}"))?;
            if let Some(status) = line.strip_prefix(&end) {
                let status = status.trim().parse().context("an exit status")?;
                let text = text.trim_end().into();
                return Ok(Output { text, status });
            }
            if line.starts_with('\u{4}') {
                // The end of an earlier command that was given up.
                text.clear();
                continue;
            }
            text += &line;
            text.push('\n');
        }
    }

    /// Runs one that must succeed, and returns what it printed.
    pub fn sh(&self, command: &str) -> Result<String> {
        let Output { text, status } = self.run(command, COMMAND)?;
        ensure!(
            status == 0,
            "in the guest: {command}: exit status {status}: {text}"
        );
        Ok(text)
    }

    /// Its state, for an error.
    pub fn describe(&self) -> String {
        let console = std::fs::read(self.dir.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&console[console.len().saturating_sub(4000)..]).into_owned();
        format!("the guest's console ends with: {text}")
    }

    /// Fails when it has ended.
    pub fn assert_alive(&mut self) -> Result<()> {
        match self.qemu.try_wait() {
            Ok(None) => Ok(()),
            _ => bail!("the guest has ended; {}", self.describe()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    fn command(&self, dir: &Path) -> Command {
        let path = |name: &str| dir.join(name).display().to_string();
        let mut qemu = Command::new(QEMU);
        qemu.args("-machine q35 -accel tcg,thread=multi -cpu max,la57=off -nodefaults".split(' '))
            .args("-no-user-config -display none -no-reboot".split(' '))
            .args(["-smp", &self.cpus.to_string(), "-m", &self.mebibytes.to_string()])
            .args(["-serial", &format!("file:{}", path("console"))])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0",
            ])
            .args(&self.network)
            .args(["-device", "virtio-serial-pci"]);
        for port in [COMMAND_PORT].into_iter().chain(self.port) {
            qemu.args([
                "-chardev",
                &format!("socket,id={port},path={},server=on,wait=off", path(port)),
            ])
            .args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
        }
        qemu
    }
}
