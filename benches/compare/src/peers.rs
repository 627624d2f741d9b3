//! Who is compared, and how each is asked.
use std::{net::TcpListener, path::PathBuf, process::Command};

use anyhow::Context as _;
use rnic_bench::Daemon;
use serde::Serialize;

use crate::run::{Server, installed, output};

const HOST: &str = "127.0.0.1";
/// Bytes that one measurement of UCX or libfabric moves, about: they are told a number of messages, not a time.
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

/// What is measured.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Half a round trip in microseconds: the median where the tool tells it (rnic, UCX), else the mean.
    Latency,
    /// Gbit/s in one direction.
    Bandwidth,
}

/// One that moves bytes.
pub struct Peer {
    /// As it is shown.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Copy, Clone)]
enum Kind {
    /// `bench-latency`: both ends on one thread, and the poll core.
    OneThread,
    /// `rnic-perf`: two processes and the poll core.
    TwoProcesses,
    Tcp,
    /// With these transports.
    Ucx(&'static str),
    /// With this provider.
    Fabric(&'static str),
}

/// Rnic first: the others are compared with it.
pub const PEERS: [Peer; 7] = [
    Peer {
        name: "rnic, one thread",
        kind: Kind::OneThread,
    },
    Peer {
        name: "rnic, two processes",
        kind: Kind::TwoProcesses,
    },
    Peer {
        name: "kernel TCP",
        kind: Kind::Tcp,
    },
    Peer {
        name: "UCX over TCP",
        kind: Kind::Ucx("tcp,self"),
    },
    Peer {
        name: "UCX over shared memory",
        kind: Kind::Ucx("posix,sysv,cma,self"),
    },
    Peer {
        name: "libfabric over TCP",
        kind: Kind::Fabric("tcp"),
    },
    Peer {
        name: "libfabric over shared memory",
        kind: Kind::Fabric("shm"),
    },
];

/// A peer that is ready.
pub enum Session {
    OneThread(PathBuf),
    TwoProcesses { daemon: Daemon, perf: PathBuf },
    Tcp { server: Server, port: u16 },
    Ucx(&'static str),
    Fabric(&'static str),
}

impl Peer {
    /// Starts what runs all the time.
    pub fn open(&self) -> anyhow::Result<Session> {
        let beside =
            |name: &str| -> anyhow::Result<PathBuf> { Ok(std::env::current_exe()?.with_file_name(name)) };
        Ok(match self.kind {
            Kind::OneThread => Session::OneThread(beside("bench-latency")?),
            Kind::TwoProcesses => Session::TwoProcesses {
                daemon: Daemon::start(&beside("rnicd")?, SECTIONS)?,
                perf: beside("rnic-perf")?,
            },
            Kind::Tcp => {
                installed("qperf")?;
                let port = free_port()?;
                let server = Server::start(Command::new("qperf").args(["-lp", &port.to_string()]))?;
                Session::Tcp { server, port }
            }
            Kind::Ucx(transports) => {
                installed("ucx_perftest")?;
                Session::Ucx(transports)
            }
            Kind::Fabric(provider) => {
                installed("fi_pingpong")?;
                Session::Fabric(provider)
            }
        })
    }
}

impl Session {
    /// One measurement; `None` when the peer's tool has none of this kind.
    pub fn measure(&mut self, metric: Metric, size: u64, seconds: u64) -> anyhow::Result<Option<f64>> {
        match self {
            Session::OneThread(program) => one_thread(program, metric, size).map(Some),
            Session::TwoProcesses { daemon, perf } => rnic(daemon, perf, metric, size, seconds).map(Some),
            Session::Tcp { server, port } => tcp(server, *port, metric, size, seconds).map(Some),
            Session::Ucx(transports) => ucx(transports, metric, size).map(Some),
            Session::Fabric(provider) if metric == Metric::Latency => fabric(provider, size).map(Some),
            // fi_pingpong knows round trips only.
            Session::Fabric(_) => Ok(None),
        }
    }
}

fn one_thread(program: &PathBuf, metric: Metric, size: u64) -> anyhow::Result<f64> {
    let count = messages(size).to_string();
    let text = output(Command::new(program).args(["--sizes", &size.to_string(), "--messages", &count]))?;
    let json: serde_json::Value = serde_json::from_str(&text).context("bench-latency printed no JSON")?;
    let value = match metric {
        Metric::Latency => json["pingpong_p50_ns"].as_f64().map(|ns| ns / 2000.0),
        Metric::Bandwidth => json["write_gbit"].as_f64(),
    };
    value.context("bench-latency printed other keys")
}

fn rnic(daemon: &Daemon, perf: &PathBuf, metric: Metric, size: u64, seconds: u64) -> anyhow::Result<f64> {
    let port = free_port()?.to_string();
    let (op, kind) = match metric {
        Metric::Latency => ("send", "lat"),
        Metric::Bandwidth => ("write", "bw"),
    };
    let command = |host: Option<&str>| {
        let mut command = Command::new(perf);
        command
            .args([
                op,
                kind,
                "-d",
                "rnic0",
                "-p",
                &port,
                "--json",
                "--path-label",
                "loopback",
            ])
            .args(["-s", &size.to_string(), "-D", &seconds.to_string()])
            .args(host)
            .env("RNIC_SOCKET", daemon.socket());
        command
    };
    let mut server = Server::start(&mut command(None))?;
    let text = server.client(|| command(Some(HOST)))?;
    server.wait();
    let line = text.lines().find(|line| line.starts_with('{'));
    let json: serde_json::Value = serde_json::from_str(line.context("rnic-perf printed no JSON")?)?;
    let value = match metric {
        Metric::Latency => json["p50_ns"].as_f64().map(|ns| ns / 1000.0),
        Metric::Bandwidth => json["gbit_per_s"].as_f64(),
    };
    value.context("rnic-perf printed other keys")
}

fn tcp(server: &mut Server, port: u16, metric: Metric, size: u64, seconds: u64) -> anyhow::Result<f64> {
    let (test, key) = match metric {
        Metric::Latency => ("tcp_lat", "latency"),
        Metric::Bandwidth => ("tcp_bw", "bw"),
    };
    let text = server.client(|| {
        let mut command = Command::new("qperf");
        // Times in nanoseconds, bandwidth in bytes a second.
        command
            .args([HOST, "-lp", &port.to_string(), "-uu", "-t", &seconds.to_string()])
            .args(["-m", &size.to_string(), test]);
        command
    })?;
    let value = qperf_value(&text, key).with_context(|| format!("qperf printed no {key}: {text}"))?;
    Ok(match metric {
        Metric::Latency => value / 1e3,
        Metric::Bandwidth => value * 8.0 / 1e9,
    })
}

/// The number behind `key  =`, in nanoseconds or bytes a second.
fn qperf_value(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_start().starts_with(key))?;
    let (_, value) = line.split_once('=')?;
    let mut words = value.split_whitespace();
    let number: f64 = words.next()?.replace(',', "").parse().ok()?;
    let scale = match words.next()? {
        "ns" | "bytes/sec" => 1.0,
        "us" | "KB/sec" => 1e3,
        "ms" | "MB/sec" => 1e6,
        "sec" | "GB/sec" => 1e9,
        _ => return None,
    };
    Some(number * scale)
}

fn ucx(transports: &str, metric: Metric, size: u64) -> anyhow::Result<f64> {
    let port = free_port()?.to_string();
    let test = match metric {
        Metric::Latency => "tag_lat",
        Metric::Bandwidth => "tag_bw",
    };
    let count = messages(size).to_string();
    let base = |program: &mut Command| {
        program.env("UCX_TLS", transports).args(["-p", &port]);
    };
    let mut server = Command::new("ucx_perftest");
    base(&mut server);
    let mut server = Server::start(&mut server)?;
    let text = server.client(|| {
        let mut client = Command::new("ucx_perftest");
        client.arg(HOST);
        base(&mut client);
        // Final numbers only, comma separated.
        client.args([
            "-t",
            test,
            "-s",
            &size.to_string(),
            "-n",
            &count,
            "-w",
            "200",
            "-f",
            "-v",
        ]);
        client
    })?;
    server.wait();
    let numbers = ucx_numbers(&text).with_context(|| format!("ucx_perftest printed no figures: {text}"))?;
    Ok(match metric {
        Metric::Latency => numbers[1],
        // Of 2^20 bytes.
        Metric::Bandwidth => numbers[5] * 8.0 * 1.048_576 / 1e3,
    })
}

/// Iterations, median, average and overall latency in microseconds, average and overall bandwidth in MB/s, and so on.
fn ucx_numbers(text: &str) -> Option<Vec<f64>> {
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with(|c: char| c.is_ascii_digit()))?;
    let numbers: Vec<f64> = line
        .split(',')
        .map_while(|word| word.trim().parse().ok())
        .collect();
    (numbers.len() >= 6).then_some(numbers)
}

fn fabric(provider: &str, size: u64) -> anyhow::Result<f64> {
    let count = messages(size).to_string();
    let port = free_port()?.to_string();
    let command = |client: bool| {
        let mut command = Command::new("fi_pingpong");
        command.args(["-p", provider, "-e", "rdm", "-I", &count, "-S", &size.to_string()]);
        match client {
            true => command.args(["-P", &port, HOST]),
            false => command.args(["-B", &port]),
        };
        command
    };
    let mut server = Server::start(&mut command(false))?;
    let text = server.client(|| command(true))?;
    server.wait();
    fabric_value(&text).with_context(|| format!("fi_pingpong printed no figures: {text}"))
}

/// Microseconds a transfer: the last column but one.
fn fabric_value(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with(|c: char| c.is_ascii_digit()))?;
    line.split_whitespace().rev().nth(1)?.parse().ok()
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_the_tools_print() {
        let qperf = "tcp_lat:\n    latency  =  9,637 ns\n";
        assert_eq!(qperf_value(qperf, "latency"), Some(9637.0));
        assert_eq!(qperf_value("tcp_bw:\n    bw  =  2.5 GB/sec\n", "bw"), Some(2.5e9));
        assert_eq!(qperf_value("failed", "bw"), None);
        let ucx = "iterations,50.0_percentile_lat\n20000,0.185,2.883,2.9,21.17,21.2,346883,346880\n";
        assert_eq!(ucx_numbers(ucx).unwrap()[1], 0.185);
        assert_eq!(ucx_numbers("refused"), None);
        let fabric = "bytes #sent #ack total time MB/sec usec/xfer Mxfers/sec\n\
                      64      2k      =2k      250k        0.43s      0.60     107.35       0.01\n";
        assert_eq!(fabric_value(fabric), Some(107.35));
        assert_eq!(fabric_value("bytes"), None);
    }
}
