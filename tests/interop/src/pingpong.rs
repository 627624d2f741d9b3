//! The pingpong tools of rdma-core, unmodified, in the guest, against the example of the same name of our library.
use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rnic::Mtu;
use rnic_tests::{Appliance, poll_until};

use crate::exchange::Moved;
use crate::guest::{Guest, HOST, THEIR_PORT};
use crate::wire::Family;

/// TCP port at which our side serves. Not theirs, which on our loopback leads into the guest.
const OUR_PORT: u16 = THEIR_PORT + 1;
/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a message.
const SIZE: u64 = 4096;
/// Messages each way.
const ITERS: u64 = 100;

/// A run of a tool.
#[derive(Clone, Debug)]
pub struct Pingpong {
    /// The tool of rdma-core: `ibv_rc_pingpong`.
    pub tool: &'static str,
    /// What makes our example do the same.
    pub args: &'static [&'static str],
    /// It sends datagrams, of the link's MTU.
    pub datagrams: bool,
    /// It can check what it receives.
    pub checks: bool,
    /// We are the server.
    pub serves: bool,
    /// Addresses used.
    pub family: Family,
    /// Path MTU.
    pub mtu: Mtu,
    /// The wire loses frames.
    pub lossy: bool,
}

impl Pingpong {
    /// Runs both; each checks what it receives, if it can.
    pub fn run(&self, appliance: &Appliance, guest: &Guest) -> Result<Moved> {
        let tool = self.tool;
        let gid = guest.gid_index(self.family)?;
        let theirs = format!("{tool} -d rxe0 -g {gid} {}", self.options());
        let result = if self.serves {
            self.serve(appliance, guest, &theirs)
        } else {
            self.call(appliance, guest, &theirs)
        };
        if result.is_err() {
            guest.run(&format!("killall -9 {tool}"), PATIENCE)?;
        }
        result?;
        Ok(Moved {
            messages: 2 * ITERS,
            bytes: 2 * ITERS * SIZE,
        })
    }

    /// What both sides are told.
    fn options(&self) -> String {
        let mtu = match self.datagrams {
            true => String::new(),
            false => format!(" -m {}", self.mtu),
        };
        let check = if self.checks { "-c " } else { "" };
        format!("-e {check}-s {SIZE} -n {ITERS} -p {}{mtu}", self.port())
    }

    fn port(&self) -> u16 {
        if self.serves { OUR_PORT } else { THEIR_PORT }
    }

    /// We are the server.
    fn serve(&self, appliance: &Appliance, guest: &Guest, theirs: &str) -> Result<()> {
        let mut ours = self.start(appliance, &[])?;
        let listening = || {
            ["tcp", "tcp6"]
                .iter()
                .any(|table| listens(Path::new("/proc/net").join(table)))
                .then_some(())
        };
        poll_until(PATIENCE, listening).context("our side does not listen")?;
        let output = guest.run(&format!("exec {theirs} {HOST}"), PATIENCE)?;
        ours.let_go();
        let said = ours.finish();
        ensure!(
            output.status == 0,
            "rxe: exit status {}: {}",
            output.status,
            output.text
        );
        said
    }

    /// The tool is the server.
    fn call(&self, appliance: &Appliance, guest: &Guest, theirs: &str) -> Result<()> {
        let socket = format!("{THEIR_PORT:04X} .* 0A ");
        guest.sh(&format!(
            "rm -f /tmp/out; (timeout -s KILL {limit} {theirs}; echo status $?) >/tmp/out 2>&1 & \
             for i in $(seq 100); do grep -q ':{socket}' /proc/net/tcp /proc/net/tcp6 && exit; sleep 0.1; done; \
             cat /tmp/out; exit 1",
            limit = PATIENCE.as_secs()
        ))?;
        let mut ours = self.start(appliance, &["127.0.0.1"])?;
        let ended =
            "for i in $(seq 600); do grep -q ^status /tmp/out && break; sleep 0.1; done; cat /tmp/out";
        let output = guest.run(ended, PATIENCE + PATIENCE)?.text;
        ours.let_go();
        let said = ours.finish();
        verdict(said, output.ends_with("status 0"), &output)
    }

    fn start(&self, appliance: &Appliance, args: &[&str]) -> Result<Ours> {
        let program = example()?;
        let child = Command::new(&program)
            .args(self.args)
            .args(["-d", "rnic0", "-g", &self.family.our_gid_index().to_string()])
            .args(self.options().split(' '))
            .arg("--socket")
            .arg(appliance.socket())
            .args(self.lossy.then_some("--lossy"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Ours(child))
    }
}

/// Both sides must have succeeded; what both say is of interest when one has not.
fn verdict(ours: Result<()>, succeeded: bool, theirs: &str) -> Result<()> {
    match (ours, succeeded) {
        (Ok(()), true) => Ok(()),
        (Err(ours), true) => Err(ours),
        (Ok(()), false) => bail!("rxe: {theirs}"),
        (Err(ours), false) => bail!("{ours:#}; rxe: {theirs}"),
    }
}

/// The example, where Cargo puts it beside this program.
fn example() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let path = program
        .parent()
        .context("this program's folder")?
        .join("examples/pingpong");
    ensure!(
        path.exists(),
        "{} is not there: run `cargo build -p rnic --examples` first",
        path.display()
    );
    Ok(path)
}

/// Whether a table of the kernel has a socket that listens on our port.
fn listens(table: PathBuf) -> bool {
    let port = format!(":{OUR_PORT:04X} ");
    let listens = |line: &str| line.contains(&port) && line.contains(" 0A ");
    read_to_string(table).is_ok_and(|text| text.lines().any(listens))
}

/// Our side. Killed on drop.
struct Ours(Child);

impl Ours {
    /// It need not stay for the tool any longer.
    fn let_go(&mut self) {
        self.0.stdin.take();
    }

    /// Waits for its end.
    fn finish(mut self) -> Result<()> {
        let status = poll_until(PATIENCE, || self.0.try_wait().ok().flatten())
            .context("rnic: pingpong does not end")?;
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said)?;
        }
        ensure!(status.success(), "rnic: {}", said.trim());
        Ok(())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
