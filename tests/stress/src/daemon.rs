//! The daemon under stress: its configuration, with everything scarce, and what it uses of the machine.
use std::fmt::Write;

use anyhow::{Context as _, Result, ensure};
use rnic_tests::{Appliance, Bystanders, Counts, poll_until};
use serde::Serialize;

use crate::worker::PATIENCE;

/// Ports from this number on are removed and added; the devices of those before have the same numbers as they.
pub const FIRST_THAT_GOES: u32 = 4;
/// Ports at the start.
const PORTS: u32 = 6;

/// The daemon's share of the machine, and what it holds.
#[derive(Copy, Clone, Debug, Serialize)]
pub struct Sample {
    /// Resident memory in KiB, without what it shares with clients.
    pub anonymous_kib: u64,
    /// All resident memory in KiB.
    pub rss_kib: u64,
    /// Descriptors.
    pub descriptors: usize,
}

/// Takes a sample.
pub fn sample(appliance: &Appliance) -> Result<Sample> {
    let path = format!("/proc/{}/status", appliance.pid());
    let text = std::fs::read_to_string(&path).context("the daemon has ended")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Ok(Sample {
        anonymous_kib: field("RssAnon:").context("no RssAnon")?,
        rss_kib: field("VmRSS:").context("no VmRSS")?,
        descriptors: appliance.descriptors(),
    })
}

/// What a daemon is configured with.
#[derive(Clone, Debug)]
pub struct Plan {
    pub cores: u32,
    pub idle: String,
    /// QPs of all clients: few, so that slots and generations come round.
    pub qps: u32,
    pub qps_per_client: u32,
    pub clients: usize,
    /// Loses, doubles, reorders and damages frames between `rnic0` and `rnic1`.
    pub faults: bool,
    /// Whether there are ports that come and go.
    pub ports_go: bool,
}

impl Plan {
    /// Starts a daemon: `rnic0` and `rnic1` for those under test, `rnic2` and `rnic3` for bystanders, then two more for
    /// those under test, which come and go.
    pub fn start(&self, dir: &std::path::Path) -> Result<Appliance> {
        let Plan {
            cores,
            idle,
            qps,
            qps_per_client,
            clients,
            ..
        } = self;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        let cores = cores.min(&cpus);
        let mut text = format!(
            "version: 1\n\
             control: {{ socket: \"${{RNIC_SOCKET}}\", admin_socket: \"${{RNIC_ADMIN_SOCKET}}\", socket_mode: \"0600\" }}\n\
             log: {{ level: warn }}\n\
             eal: {{ memory: none, memory_size: 128MiB }}\n\
             cores: {{ poll: auto, count: {cores}, pin: false, idle: {{ policy: {idle}, max_sleep: 1ms }} }}\n\
             limits:\n  clients: {clients}\n  qps: {qps}\n  bytes_awaiting_grace: 1MiB\n\
             \x20 per_client: {{ qps: {qps_per_client}, cqs: 8, mrs: 8, pds: 4, ahs: 8, srqs: 8, registered_memory: 64MiB, \
             queue_memory: 8MiB, wr_depth: 1024, cq_depth: 1024, bytes_awaiting_grace: 512KiB }}\n\
             ports:\n"
        );
        let ports = if self.ports_go { PORTS } else { FIRST_THAT_GOES };
        for port in 0..ports {
            self.write_port(&mut text, port)?;
        }
        let path = dir.join("stress.yaml");
        std::fs::write(&path, text)?;
        Ok(Appliance::start_file(&path))
    }

    /// The ports that come and go, as `rnicctl port add` reads them.
    pub fn ports_that_go(&self) -> Result<String> {
        let mut text = String::new();
        for port in FIRST_THAT_GOES..PORTS {
            self.write_port(&mut text, port)?;
        }
        Ok(text)
    }

    fn write_port(&self, text: &mut String, port: u32) -> Result<()> {
        let host = port + 1;
        writeln!(
            text,
            "  - name: rnic{port}\n    device: {{ ring: {{ peer: rnic{} }} }}\n    mtu: 1500\n    rx_descriptors: 256\n    tx_descriptors: 256\n    addresses: [\"10.0.0.{host}/24\"]",
            port ^ 1
        )?;
        if port >= FIRST_THAT_GOES {
            // So that frames are under way, in queues and rings, when a port goes.
            writeln!(text, "    loopback: wire")?;
        }
        if self.faults && !(2..FIRST_THAT_GOES).contains(&port) {
            writeln!(
                text,
                "    faults: {{ seed: {host}, rx: {{ drop: 0.5%, duplicate: 0.5%, reorder: 0.5%, corrupt: 0.2% }} }}"
            )?;
        }
        Ok(())
    }
}

/// Clients that move data between `rnic2` and `rnic3` all the time and must not notice anything.
pub fn bystanders(appliance: &Appliance) -> Bystanders {
    let socket = appliance.socket();
    Bystanders::start([(&socket, "rnic2"), (&socket, "rnic3")])
}

/// Waits until all that clients had is gone, nothing waits for a grace period, and the daemon has as many descriptors
/// as it had.
pub fn wait_for_nothing(appliance: &Appliance, descriptors: usize) -> Result<()> {
    let nothing = |counts: &Counts| {
        (counts.clients, counts.pds, counts.mrs, counts.cqs, counts.qps) == (0, 0, 0, 0, 0)
            && counts.bytes_awaiting_grace == 0
    };
    let gone = poll_until(PATIENCE, || nothing(&appliance.counts()).then_some(()));
    ensure!(
        gone.is_some(),
        "all clients are gone, and the daemon still has {:?}",
        appliance.counts()
    );
    // That of the last `rnicctl` goes a moment after it.
    let closed = poll_until(PATIENCE, || {
        (appliance.descriptors() <= descriptors).then_some(())
    });
    ensure!(
        closed.is_some(),
        "the daemon had {descriptors} descriptors before any client came, and has {} now",
        appliance.descriptors()
    );
    Ok(())
}
