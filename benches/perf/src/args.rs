//! The command line, and the plan that the client makes of it and sends to the server.
use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use rnic::{Mtu, QpType};
use serde::{Deserialize, Serialize};

/// Measures bandwidth and latency of SEND, WRITE, READ and atomics between two processes.
///
/// Start it on the server without a host, then on the client with the server's host. What is measured is the
/// client's to say; the server needs the device, the socket and the port only.
#[derive(Parser, Debug)]
#[command(name = "rnic-perf", version)]
pub struct Args {
    /// Operation.
    #[arg(value_enum)]
    pub op: Op,
    /// What to measure.
    #[arg(value_enum)]
    pub metric: Metric,
    /// Host of the server; without it, be the server.
    pub host: Option<String>,
    /// TCP port on which client and server find each other.
    #[arg(short, long, default_value_t = 18515)]
    pub port: u16,
    /// Device to use.
    #[arg(short = 'd', long = "ib-dev", value_name = "DEVICE", default_value = "rnic0")]
    pub device: String,
    /// Socket of the daemon.
    #[arg(long, default_value_os_t = rnic::default_socket())]
    pub socket: PathBuf,
    /// Connection type: UC has SEND and WRITE, UD has SEND up to the path MTU.
    #[arg(short = 'c', long, alias = "transport", value_enum, ignore_case = true, default_value_t = Connection::Rc)]
    pub connection: Connection,
    /// Which atomic, for the operation `atomic`.
    #[arg(
        short = 'A',
        long,
        value_enum,
        ignore_case = true,
        default_value = "FETCH_AND_ADD"
    )]
    pub atomic_type: AtomicType,
    /// Bytes of a message; K and M are allowed.  [default: 65536 for bw (UD: 1024), 2 for lat; atomics have 8]
    #[arg(short, long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// All sizes from 2 bytes to 8 MiB.
    #[arg(short, long, conflicts_with = "size")]
    pub all: bool,
    /// Messages on each QP, or round trips.  [default: 5000 for bw, 1000 for lat]
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    pub iters: Option<u64>,
    /// Seconds to run for, instead of a number of messages.
    #[arg(short = 'D', long, conflicts_with = "iters", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub duration: Option<u64>,
    /// QPs (bw only).
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qps: u32,
    /// Messages in flight on a QP.
    #[arg(short, long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub tx_depth: u32,
    /// Path MTU in bytes.  [default: that of the ports]
    #[arg(short, long, value_parser = parse_mtu)]
    pub mtu: Option<Mtu>,
    /// Which of the device's GIDs to use.
    #[arg(short = 'x', long, default_value_t = 0)]
    pub gid_index: u8,
    /// Exponent of the local ACK timeout, 4.096 us x 2^u.
    #[arg(short = 'u', long, default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub timeout: u8,
    /// The server's QPs share one receive queue (send only).
    #[arg(long)]
    pub use_srq: bool,
    /// Resend only what is missing of WRITEs when packets are lost (RC).
    #[arg(long)]
    pub selective: bool,
    /// Check the bytes of what arrives. Slower, for SEND of several sizes much so: each receive needs its own place.
    #[arg(long)]
    pub verify: bool,
    /// Print bandwidth in Gb/s instead of MB/s (2^20 bytes).
    #[arg(long)]
    pub report_gbits: bool,
    /// Print a JSON object for each size instead of a table.
    #[arg(long)]
    pub json: bool,
    /// How the two are connected, for the JSON's `path`.
    #[arg(long, default_value = "wire", value_parser = ["wire", "loopback"])]
    pub path_label: String,
    /// Be the server too, in this process, on DEVICE.
    #[arg(long = "self", value_name = "DEVICE", conflicts_with = "host")]
    pub own_server: Option<String>,
}

/// An operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// SEND to a posted receive
    Send,
    /// RDMA WRITE
    Write,
    /// RDMA READ
    Read,
    /// Atomic on 8 bytes, one word for each QP
    Atomic,
}

/// A connection type.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// Reliable connection
    Rc,
    /// Unreliable connection; messages may be lost
    Uc,
    /// Unreliable datagrams; messages may be lost
    Ud,
}

impl Connection {
    pub fn qp_type(self) -> QpType {
        match self {
            Connection::Rc => QpType::Rc,
            Connection::Uc => QpType::Uc,
            Connection::Ud => QpType::Ud,
        }
    }

    fn has(self, op: Op) -> bool {
        match self {
            Connection::Rc => true,
            Connection::Uc => matches!(op, Op::Send | Op::Write),
            Connection::Ud => op == Op::Send,
        }
    }
}

/// An atomic operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum AtomicType {
    /// Fetch and add of 1
    #[value(name = "FETCH_AND_ADD")]
    FetchAndAdd,
    /// Compare and swap, of the number there is with the next one
    #[value(name = "CMP_AND_SWAP")]
    CmpAndSwap,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Send => "Send",
            Op::Write => "RDMA_Write",
            Op::Read => "RDMA_Read",
            Op::Atomic => "Atomic",
        })
    }
}

/// What is measured.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Bandwidth and message rate
    Bw,
    /// Latency: half a round trip, for READ and atomics a whole one
    Lat,
}

/// Bytes of an atomic.
const ATOMIC_SIZE: u64 = 8;

/// What the client wants measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// [`Plan::VERSION`].
    pub version: u32,
    pub op: Op,
    pub atomic_type: AtomicType,
    pub connection: Connection,
    pub metric: Metric,
    pub sizes: Vec<u64>,
    /// Messages on each QP, unless there is a duration.
    pub iters: u64,
    /// Seconds.
    pub duration: Option<u64>,
    pub qps: u32,
    pub tx_depth: u32,
    pub verify: bool,
    pub use_srq: bool,
    pub selective: bool,
}

impl Plan {
    const VERSION: u32 = 4;
    /// Bytes of the longest message: what fits a READ or WRITE (IBTA 9.7.2 allows 2 GiB).
    const MAX_SIZE: u64 = 1 << 30;
    /// The largest path MTU.
    const MAX_DATAGRAM: u64 = 4096;

    /// What clap cannot check, and what comes from a peer.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.version == Self::VERSION,
            "the client is another version of rnic-perf: it speaks {}, this one {}",
            self.version,
            Self::VERSION
        );
        ensure!(
            self.sizes.iter().all(|size| (1..=Self::MAX_SIZE).contains(size)),
            "the size must be 1 to {} bytes",
            Self::MAX_SIZE
        );
        ensure!(
            self.op != Op::Atomic || self.sizes == [ATOMIC_SIZE],
            "an atomic has 8 bytes; leave out --size and --all"
        );
        ensure!(
            self.connection.has(self.op),
            "{} has no {}",
            format!("{:?}", self.connection).to_uppercase(),
            self.op
        );
        ensure!(
            self.connection != Connection::Ud || self.max_size() <= Self::MAX_DATAGRAM,
            "a datagram has at most {} bytes, and no more than the path MTU",
            Self::MAX_DATAGRAM
        );
        ensure!(
            self.op == Op::Send || !self.use_srq,
            "only SEND takes receives; leave out --use-srq"
        );
        ensure!(
            self.metric == Metric::Bw || self.qps == 1,
            "latency is measured on one QP; leave out --qps"
        );
        ensure!(
            self.qps > 0 && self.tx_depth > 0,
            "--qps and --tx-depth must be at least 1"
        );
        Ok(())
    }

    pub fn max_size(&self) -> u64 {
        self.sizes.iter().copied().max().unwrap_or(1)
    }
}

impl Args {
    pub fn plan(&self) -> Result<Plan> {
        let (size, iters) = match (self.op, self.metric) {
            (Op::Atomic, Metric::Bw) => (ATOMIC_SIZE, 5000),
            (Op::Atomic, Metric::Lat) => (ATOMIC_SIZE, 1000),
            (_, Metric::Bw) if self.connection == Connection::Ud => (1024, 5000),
            (_, Metric::Bw) => (65536, 5000),
            (_, Metric::Lat) => (2, 1000),
        };
        let plan = Plan {
            version: Plan::VERSION,
            op: self.op,
            atomic_type: self.atomic_type,
            connection: self.connection,
            metric: self.metric,
            sizes: if self.all {
                (1..=23).map(|exponent| 1 << exponent).collect()
            } else {
                vec![self.size.unwrap_or(size)]
            },
            iters: self.iters.unwrap_or(iters),
            duration: self.duration,
            qps: self.qps,
            tx_depth: self.tx_depth,
            verify: self.verify,
            use_srq: self.use_srq,
            selective: self.selective,
        };
        plan.check()?;
        Ok(plan)
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number of bytes such as 4096, 4K or 1M".to_string())?;
    number.checked_mul(unit).ok_or_else(|| "too large".into())
}

fn parse_mtu(text: &str) -> Result<Mtu, String> {
    let bytes = text
        .parse()
        .map_err(|_| "256, 512, 1024, 2048 or 4096".to_string())?;
    Mtu::from_bytes(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_take_units() {
        assert_eq!(parse_size("4K"), Ok(4096));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(
            parse_size("").is_err()
                && parse_size("1G1").is_err()
                && parse_size("99999999999999999M").is_err()
        );
    }

    #[test]
    fn defaults_follow_the_metric() {
        let plan = |line: &str| Args::parse_from(line.split(' ')).plan();
        let bw = plan("rnic-perf write bw host").unwrap();
        assert_eq!((bw.sizes[0], bw.iters), (65536, 5000));
        let lat = plan("rnic-perf read lat host").unwrap();
        assert_eq!((lat.sizes[0], lat.iters), (2, 1000));
        assert!(plan("rnic-perf read lat -q 2").is_err());
        assert!(plan("rnic-perf read lat -s 0").is_err());
        assert_eq!(plan("rnic-perf atomic bw host").unwrap().sizes, [8]);
        assert!(plan("rnic-perf atomic bw -s 16").is_err() && plan("rnic-perf atomic bw -a").is_err());
        assert_eq!(plan("rnic-perf send bw -a").unwrap().max_size(), 8 << 20);
        assert_eq!(plan("rnic-perf send bw -c UD").unwrap().sizes, [1024]);
        assert!(plan("rnic-perf send bw -c ud -s 8K").is_err() && plan("rnic-perf write bw -c ud").is_err());
        assert!(plan("rnic-perf read lat -c uc").is_err() && plan("rnic-perf write lat -c uc").is_ok());
    }
}
