//! Peers on this machine itself.
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use rnic_bench::Daemon;
use tempfile::TempDir;

use crate::{
    peers::{Metric, Peer, Session},
    run::{Server, installed, output},
    tools::{self, Extent},
};

const HOST: &str = "127.0.0.1";
/// Bytes that one measurement moves, about, by tools that are told a number of messages, not a time.
const BUDGET: u64 = 512 << 20;

/// How many messages of a size that is.
fn messages(size: u64) -> u64 {
    (BUDGET / size.max(1)).clamp(200, 5_000)
}

const SECTIONS: &str = "
eal: {memory: none, memory_size: 64MiB}
cores: {poll: auto, count: 1, idle: {policy: spin}}
ports:
  - {name: rnic0, device: {ring: {peer: rnic1}}, mtu: 4200, addresses: [10.0.0.1/24], loopback: direct}
  - {name: rnic1, device: {ring: {peer: rnic0}}, mtu: 4200, addresses: [10.0.0.2/24], loopback: direct}
";

/// How a peer is asked.
#[derive(Copy, Clone)]
pub enum Kind {
    /// `bench-latency`: both ends on one thread, and the poll core.
    OneThread,
    /// `rnic-perf`: two processes and the poll core.
    TwoProcesses,
    /// The tools of perftest, on our libibverbs.
    Perftest,
    Tcp,
    /// With these transports.
    Ucx(&'static str),
    /// With this provider.
    Fabric(&'static str),
}

const MODEL: &str = "rnic, one thread";

const fn peer(name: &'static str, kind: Kind) -> Peer<Kind> {
    Peer {
        name,
        beside: MODEL,
        kind,
    }
}

/// All of them.
pub const PEERS: [Peer<Kind>; 8] = [
    peer(MODEL, Kind::OneThread),
    peer("rnic, two processes", Kind::TwoProcesses),
    peer("rnic, perftest", Kind::Perftest),
    peer("kernel TCP", Kind::Tcp),
    peer("UCX over TCP", Kind::Ucx("tcp,self")),
    peer("UCX over shared memory", Kind::Ucx("posix,sysv,cma,self")),
    peer("libfabric over TCP", Kind::Fabric("tcp")),
    peer("libfabric over shared memory", Kind::Fabric("shm")),
];

/// What peers need to know.
pub struct Host {
    /// Seconds that a measurement takes, about.
    pub seconds: u64,
    /// Our `libibverbs.so.1`, for programs that know nothing of us.
    pub verbs: PathBuf,
}

impl Host {
    /// Starts what runs all the time.
    pub fn open(&self, kind: Kind) -> anyhow::Result<Box<dyn Session>> {
        let seconds = self.seconds;
        Ok(match kind {
            Kind::OneThread => Box::new(OneThread(beside("bench-latency")?)),
            Kind::TwoProcesses => Box::new(TwoProcesses {
                daemon: Daemon::start(&beside("rnicd")?, SECTIONS)?,
                perf: beside("rnic-perf")?,
                seconds,
            }),
            Kind::Perftest => Box::new(Perftest::open(&self.verbs)?),
            Kind::Tcp => {
                installed("qperf")?;
                let port = free_port()?;
                let server = Server::start(Command::new("qperf").args(["-lp", &port.to_string()]))?;
                Box::new(Tcp {
                    server,
                    port,
                    seconds,
                })
            }
            Kind::Ucx(transports) => {
                installed("ucx_perftest")?;
                Box::new(Ucx(transports))
            }
            Kind::Fabric(provider) => {
                installed("fi_pingpong")?;
                Box::new(Fabric(provider))
            }
        })
    }
}

/// A program that is built together with this one.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// Fails when there is no libibverbs of ours.
pub fn has_verbs(library: &Path) -> anyhow::Result<()> {
    ensure!(
        library.is_file(),
        "rnic has no libibverbs for unmodified programs: {} is not there",
        library.display()
    );
    Ok(())
}

struct OneThread(PathBuf);

impl Session for OneThread {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let count = messages(size).to_string();
        let text = output(Command::new(&self.0).args(["--sizes", &size.to_string(), "--messages", &count]))?;
        let json: serde_json::Value = serde_json::from_str(&text).context("bench-latency printed no JSON")?;
        let value = match metric {
            Metric::Latency => json["pingpong_p50_ns"].as_f64().map(|ns| ns / 2000.0),
            Metric::Bandwidth => json["write_gbit"].as_f64(),
        };
        value.context("bench-latency printed other keys").map(Some)
    }
}

struct TwoProcesses {
    daemon: Daemon,
    perf: PathBuf,
    seconds: u64,
}

impl Session for TwoProcesses {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let args = tools::rnic_perf(metric, "rnic0", free_port()?, size, Extent::Seconds(self.seconds));
        let text = pair(|| {
            let mut command = Command::new(&self.perf);
            command.args(&args).env("RNIC_SOCKET", self.daemon.socket());
            command
        })?;
        figure("rnic-perf", tools::rnic_perf_value(&text, metric), &text)
    }
}

struct Perftest {
    daemon: Daemon,
    /// Has our libibverbs under the name by which programs look for it.
    libraries: TempDir,
}

impl Perftest {
    fn open(verbs: &Path) -> anyhow::Result<Self> {
        has_verbs(verbs)?;
        installed("ib_send_lat")?;
        let libraries = TempDir::with_prefix("rnic-compare-")?;
        std::os::unix::fs::symlink(verbs.canonicalize()?, libraries.path().join("libibverbs.so.1"))?;
        Ok(Perftest {
            daemon: Daemon::start(&beside("rnicd")?, SECTIONS)?,
            libraries,
        })
    }
}

impl Session for Perftest {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let (tool, args) = tools::perftest(metric, "rnic0", 0, free_port()?, size, messages(size));
        let text = pair(|| {
            let mut command = Command::new(tool);
            command
                .args(&args)
                .env("RNIC_SOCKET", self.daemon.socket())
                .env("LD_LIBRARY_PATH", self.libraries.path());
            command
        })?;
        figure(tool, tools::perftest_value(&text, metric, size), &text)
    }
}

struct Tcp {
    server: Server,
    port: u16,
    seconds: u64,
}

impl Session for Tcp {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let args = tools::qperf(metric, self.port, size, self.seconds);
        let text = self.server.client(|| {
            let mut command = Command::new("qperf");
            command.args(&args);
            command
        })?;
        figure("qperf", tools::qperf_value(&text, metric), &text)
    }
}

struct Ucx(&'static str);

impl Session for Ucx {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        let port = free_port()?.to_string();
        let test = match metric {
            Metric::Latency => "tag_lat",
            Metric::Bandwidth => "tag_bw",
        };
        let base = || {
            let mut command = Command::new("ucx_perftest");
            command.env("UCX_TLS", self.0).args(["-p", &port]);
            command
        };
        let mut server = Server::start(&mut base())?;
        let (size, count) = (size.to_string(), messages(size).to_string());
        let text = server.client(|| {
            let mut client = base();
            client.args([HOST, "-t", test, "-s", &size, "-n", &count, "-w", "200"]);
            // Final numbers only, comma separated.
            client.args(["-f", "-v"]);
            client
        })?;
        server.wait();
        figure("ucx_perftest", tools::ucx_value(&text, metric), &text)
    }
}

struct Fabric(&'static str);

impl Session for Fabric {
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>> {
        if metric == Metric::Bandwidth {
            // fi_pingpong knows round trips only.
            return Ok(None);
        }
        let (size, count) = (size.to_string(), messages(size).to_string());
        let port = free_port()?.to_string();
        let base = || {
            let mut command = Command::new("fi_pingpong");
            command.args(["-p", self.0, "-e", "rdm", "-I", &count, "-S", &size]);
            command
        };
        let mut server = Server::start(base().args(["-B", &port]))?;
        let text = server.client(|| {
            let mut client = base();
            client.args(["-P", &port, HOST]);
            client
        })?;
        server.wait();
        figure("fi_pingpong", tools::fabric_value(&text), &text)
    }
}

/// What the client prints of a tool whose client is its server and one argument more.
fn pair(make: impl Fn() -> Command) -> anyhow::Result<String> {
    let mut server = Server::start(&mut make())?;
    let text = server.client(|| {
        let mut client = make();
        client.arg(HOST);
        client
    })?;
    server.wait();
    Ok(text)
}

/// What a tool has found, or what it printed instead.
pub fn figure(tool: &str, value: Option<f64>, text: &str) -> anyhow::Result<Option<f64>> {
    let value = value.with_context(|| format!("{tool} printed no figures: {text}"))?;
    Ok(Some(value))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((HOST, 0))?.local_addr()?.port())
}
