//! Peers in an emulated guest, all of them there: the kernel's rxe, its TCP, and rnic built for this machine.
//!
//! rxe hands packets for its own device to itself, with headers and ICRC, and no interface is involved. What is most
//! like it is rnic with frames.
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rnic_guest::{Image, Machine, Overlay};
use tempfile::TempDir;

use crate::{
    host::{beside, figure, has_verbs},
    peers::{Metric, Peer, Session},
    run::find,
    tools::{self, Extent},
};

/// Two, so that who polls and who works for it need not share one.
pub const CPUS: u32 = 2;
const MEBIBYTES: u32 = 1024;
/// Bytes that one measurement of bandwidth moves, about, and most messages of it and of one of latency: a second or less.
const BUDGET: u64 = 32 << 20;
const MESSAGES: u64 = 20_000;
const ROUND_TRIPS: u64 = 2_000;
/// How long a tool may take, and what starts or ends a daemon.
const PATIENCE: Duration = Duration::from_secs(90);
const SECONDS: u64 = 1;
/// Of the device that rxe is on, and what a path MTU of 4096 needs.
const ADDRESS: &str = "10.0.0.9";
const LINK_MTU: u32 = 4200;
/// rxe's GID of its IPv4 address; ours.
const RXE_GID: u8 = 1;
const OUR_GID: u8 = 0;
const SOCKET: &str = "/tmp/rnicd.sock";
const CONFIG: &str = "etc/rnicd";
/// Where our libibverbs is.
const VERBS: &str = "usr/lib/rnic";
/// TCP ports at which servers listen: each its own, since an old one may be remembered.
const FIRST_PORT: u16 = 20_000;

/// How a peer is asked.
#[derive(Copy, Clone)]
pub enum Kind {
    /// `rnic-perf`.
    Rnic(Loopback),
    /// Our `pingpong`, which sleeps until something has come.
    RnicAsleep,
    /// The tools of perftest, on our libibverbs.
    RnicPerftest,
    /// The tools of perftest on rxe.
    Rxe,
    /// `ibv_rc_pingpong` on rxe, which sleeps.
    RxeAsleep,
    Tcp,
}

/// How our two ends reach each other.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Loopback {
    /// Between two ports.
    Frames,
    /// Within one port, from memory to memory.
    Direct,
}

impl Loopback {
    const ALL: [Loopback; 2] = [Loopback::Frames, Loopback::Direct];

    /// As the configuration has it.
    fn word(self) -> &'static str {
        match self {
            Loopback::Frames => "wire",
            Loopback::Direct => "direct",
        }
    }

    /// Devices of server and client.
    fn devices(self) -> [&'static str; 2] {
        match self {
            Loopback::Frames => ["rnic1", "rnic0"],
            Loopback::Direct => ["rnic0", "rnic0"],
        }
    }

    fn config(self) -> String {
        let word = self.word();
        format!(
            "version: 1
control: {{socket: {SOCKET}, admin_socket: /tmp/admin.sock}}
log: {{level: warn}}
eal: {{memory: none, memory_size: 64MiB}}
cores: {{poll: auto, count: 1, idle: {{policy: spin}}}}
ports:
  - {{name: rnic0, device: {{ring: {{peer: rnic1}}}}, mtu: {LINK_MTU}, addresses: [10.1.0.1/24], loopback: {word}}}
  - {{name: rnic1, device: {{ring: {{peer: rnic0}}}}, mtu: {LINK_MTU}, addresses: [10.1.0.2/24], loopback: {word}}}
"
        )
    }
}

const MODEL: &str = "rnic with frames";
const MODEL_ASLEEP: &str = "rnic with frames, asleep";

const fn peer(name: &'static str, beside: &'static str, kind: Kind) -> Peer<Kind> {
    Peer { name, beside, kind }
}

/// All of them. Who polls is compared with who polls, who sleeps with who sleeps.
pub const PEERS: [Peer<Kind>; 7] = [
    peer(MODEL, MODEL, Kind::Rnic(Loopback::Frames)),
    peer("rnic without frames", MODEL, Kind::Rnic(Loopback::Direct)),
    peer("rnic with frames, perftest", MODEL, Kind::RnicPerftest),
    peer("kernel rxe", MODEL, Kind::Rxe),
    peer("kernel TCP", MODEL, Kind::Tcp),
    peer(MODEL_ASLEEP, MODEL_ASLEEP, Kind::RnicAsleep),
    peer("kernel rxe, asleep", MODEL_ASLEEP, Kind::RxeAsleep),
];

/// The guest.
pub struct Guest {
    machine: rnic_guest::Guest,
    // Dropped after it.
    _dir: TempDir,
    /// Name of the kernel's package.
    pub kernel: String,
    verbs: PathBuf,
    port: Cell<u16>,
}

impl Guest {
    /// Boots one with all tools in it, out of an image that is kept below `work`.
    pub fn boot(work: &Path, verbs: &Path) -> anyhow::Result<Self> {
        rnic_guest::Guest::available()?;
        let image = Image::get(work)?;
        let dir = TempDir::with_prefix("rnic-compare-")?;
        let initramfs = dir.path().join("initramfs");
        overlay(verbs)?.write(&image, &initramfs)?;
        let machine = Machine {
            kernel: image.kernel(),
            initramfs,
            cpus: CPUS,
            mebibytes: MEBIBYTES,
            // rxe wants an interface. Nothing is said over it.
            network: [
                "-netdev",
                "user,id=net,restrict=on",
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
            ]
            .map(String::from)
            .into(),
            port: None,
        };
        let machine = rnic_guest::Guest::boot(&machine, dir.path())?;
        let set_up = format!(
            "ip link set lo up && ip link set eth0 mtu {LINK_MTU} up && ip addr add {ADDRESS}/24 dev eth0 && \
             rdma link add rxe0 type rxe netdev eth0"
        );
        machine.sh(&set_up).with_context(|| machine.describe())?;
        Ok(Guest {
            machine,
            _dir: dir,
            kernel: image.package(),
            verbs: verbs.into(),
            port: Cell::new(FIRST_PORT),
        })
    }

    /// Starts what a peer needs all the time.
    pub fn open(&self, kind: Kind) -> anyhow::Result<Box<dyn Session + '_>> {
        let session = InGuest { guest: self, kind };
        match kind {
            Kind::Rnic(loopback) => self.start_daemon(loopback)?,
            Kind::RnicPerftest => {
                has_verbs(&self.verbs)?;
                self.start_daemon(Loopback::Frames)?;
            }
            Kind::RnicAsleep => {
                self.needs("pingpong")?;
                self.start_daemon(Loopback::Frames)?;
            }
            Kind::Tcp => self.needs("qperf")?,
            Kind::Rxe | Kind::RxeAsleep => {}
        }
        Ok(Box::new(session))
    }

    fn needs(&self, program: &str) -> anyhow::Result<()> {
        let there = self.machine.run(&format!("command -v {program}"), PATIENCE)?;
        ensure!(
            there.status == 0,
            "{program} was not there to be copied into the guest"
        );
        Ok(())
    }

    fn start_daemon(&self, loopback: Loopback) -> anyhow::Result<()> {
        let config = format!("/{CONFIG}/{}.yaml", loopback.word());
        let command = format!(
            "rm -f {SOCKET}; (setsid rnicd --config {config} >/tmp/rnicd.log 2>&1 &); \
             for i in $(seq 300); do [ -S {SOCKET} ] && exit 0; sleep 0.1; done; cat /tmp/rnicd.log; exit 1"
        );
        let said = self.machine.run(&command, PATIENCE)?;
        ensure!(
            said.status == 0,
            "rnicd did not come up in the guest: {}",
            said.text
        );
        Ok(())
    }

    /// Runs a server, and a client when it listens; what the client prints.
    fn pair(&self, port: u16, server: &str, client: &str) -> anyhow::Result<String> {
        let seconds = PATIENCE.as_secs();
        let command = format!(
            "export RNIC_SOCKET={SOCKET}; timeout -s KILL {seconds} {server} >/tmp/server 2>&1 & p=$!; \
             for i in $(seq 100); do grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6 && break; sleep 0.1; done; \
             timeout -s KILL {seconds} {client}; s=$?; \
             if [ $s = 0 ]; then wait $p; else kill $p; cat /tmp/server; fi; exit $s"
        );
        let said = self.machine.run(&command, PATIENCE)?;
        ensure!(said.status == 0, "{client} in the guest: {}", said.text);
        Ok(said.text)
    }

    fn next_port(&self) -> u16 {
        self.port.replace(self.port.get() + 1)
    }
}

/// What the guest gets from here. Without `pingpong` and qperf some peers are missing; without the others there is nothing to
/// compare.
fn overlay(verbs: &Path) -> anyhow::Result<Overlay> {
    let mut overlay = Overlay::default();
    let daemon = beside("rnicd")?;
    overlay.program(&daemon)?;
    overlay.program(&beside("rnic-perf")?)?;
    for driver in drivers(&daemon)? {
        overlay.copy(&driver, &driver)?;
    }
    for loopback in Loopback::ALL {
        let name = Path::new(CONFIG).join(format!("{}.yaml", loopback.word()));
        overlay.file(&name, loopback.config().as_bytes())?;
    }
    for optional in [Some(beside("examples/pingpong")?), find("qperf")]
        .into_iter()
        .flatten()
    {
        if optional.is_file() {
            overlay.program(&optional)?;
        }
    }
    if verbs.is_file() {
        overlay.copy(verbs, &Path::new(VERBS).join("libibverbs.so.1"))?;
    }
    Ok(overlay)
}

/// The driver of DPDK's that is loaded when it starts, and that all pools of buffers need.
fn drivers(daemon: &Path) -> anyhow::Result<Vec<PathBuf>> {
    const NAME: &str = "librte_mempool_ring.so";
    let mut found = Vec::new();
    for library in rnic_guest::libraries(daemon)? {
        let is_dpdk = library.to_string_lossy().contains("/librte_eal.so");
        let Some(dir) = library.parent().filter(|_| is_dpdk) else {
            continue;
        };
        // Libraries are found by /lib, drivers by /usr/lib, which are one folder.
        let dir = Path::new("/usr/lib")
            .join(dir.file_name().unwrap_or_default())
            .join("dpdk");
        for version in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            for driver in std::fs::read_dir(version?.path())? {
                let driver = driver?.path();
                if driver
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(NAME))
                {
                    found.push(driver);
                }
            }
        }
    }
    Ok(found)
}

/// A peer that is ready in the guest.
struct InGuest<'a> {
    guest: &'a Guest,
    kind: Kind,
}

impl Session for InGuest<'_> {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let most = match metric {
            Metric::Latency => ROUND_TRIPS,
            Metric::Bandwidth => MESSAGES,
        };
        let messages = (BUDGET / size.max(1)).clamp(200, most);
        match self.kind {
            Kind::Rnic(loopback) => self.rnic(loopback, metric, size, messages),
            Kind::RnicPerftest => {
                let env = format!("env LD_LIBRARY_PATH=/{VERBS} ");
                self.perftest(&env, Loopback::Frames.devices(), OUR_GID, metric, size, messages)
            }
            Kind::Rxe => self.perftest("", ["rxe0"; 2], RXE_GID, metric, size, messages),
            Kind::Tcp => self.tcp(metric, size),
            // Pingpongs are about latency only.
            Kind::RnicAsleep | Kind::RxeAsleep if metric == Metric::Bandwidth => Ok(None),
            Kind::RnicAsleep => {
                self.pingpong("pingpong", Loopback::Frames.devices(), OUR_GID, size, messages)
            }
            Kind::RxeAsleep => self.pingpong("ibv_rc_pingpong", ["rxe0"; 2], RXE_GID, size, messages),
        }
    }
}

impl InGuest<'_> {
    fn rnic(
        &self,
        loopback: Loopback,
        metric: Metric,
        size: u64,
        messages: u64,
    ) -> anyhow::Result<Option<f64>> {
        let port = self.guest.next_port();
        let [server, client] = loopback.devices().map(|device| {
            let args = tools::rnic_perf(metric, device, port, size, Extent::Messages(messages));
            format!("rnic-perf {}", args.join(" "))
        });
        let text = self.guest.pair(port, &server, &format!("{client} 127.0.0.1"))?;
        figure("rnic-perf", tools::rnic_perf_value(&text, metric), &text)
    }

    fn perftest(
        &self,
        env: &str,
        devices: [&str; 2],
        gid: u8,
        metric: Metric,
        size: u64,
        messages: u64,
    ) -> anyhow::Result<Option<f64>> {
        let port = self.guest.next_port();
        let [(tool, server), (_, client)] =
            devices.map(|device| tools::perftest(metric, device, gid, port, size, messages));
        let [server, client] = [server, client].map(|args| format!("{env}{tool} {}", args.join(" ")));
        let text = self.guest.pair(port, &server, &format!("{client} 127.0.0.1"))?;
        figure(tool, tools::perftest_value(&text, metric, size), &text)
    }

    fn pingpong(
        &self,
        tool: &str,
        devices: [&str; 2],
        gid: u8,
        size: u64,
        rounds: u64,
    ) -> anyhow::Result<Option<f64>> {
        let port = self.guest.next_port();
        let [server, client] = devices
            .map(|device| format!("{tool} -d {device} -g {gid} -p {port} -s {size} -n {rounds} -m 4096 -e"));
        let text = self.guest.pair(port, &server, &format!("{client} 127.0.0.1"))?;
        figure(tool, tools::pingpong_value(&text), &text)
    }

    fn tcp(&self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let port = self.guest.next_port();
        let args = tools::qperf(metric, port, size, SECONDS).join(" ");
        // Its server serves until it is told not to.
        let client = format!("qperf {args} quit");
        let text = self.guest.pair(port, &format!("qperf -lp {port}"), &client)?;
        figure("qperf", tools::qperf_value(&text, metric), &text)
    }
}

impl Drop for InGuest<'_> {
    /// Ends the daemon, whose poll core would take a CPU from the next peer.
    fn drop(&mut self) {
        let command =
            "killall -q rnicd; for i in $(seq 100); do pidof rnicd >/dev/null || exit; sleep 0.1; done";
        let _ = self.guest.machine.run(command, PATIENCE);
    }
}
