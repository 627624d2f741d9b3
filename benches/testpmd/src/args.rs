//! The command line.
use clap::{Parser, ValueEnum};
use rnic_engine::frame::BURST;
use serde::Serialize;

/// Measures the data path of rnicd in one process: poll cores with both ends of every connection on one of them, driven by the
/// threads that also post the work requests and take the completions, over a pair of ports joined back to back.
#[derive(Parser, Clone, Debug)]
#[command(name = "rnic-testpmd", version)]
pub struct Args {
    /// What the cores do.
    #[arg(long, value_enum, default_value_t = Mode::RcWrite)]
    pub mode: Mode,
    /// The ports between the two ends: `ring` (in this process, without DPDK), `dpdk-ring`, or two virtual devices of DPDK
    /// that are joined outside, separated by `+`.
    #[arg(long, default_value = "ring")]
    pub port: String,
    /// Bytes of a message; K and M are allowed. With `io`, of a frame.
    #[arg(long, default_value = "64", value_parser = parse_size)]
    pub size: u32,
    /// Connections; one a core unless said.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub qps: Option<u32>,
    /// Poll cores of the engine, each with a thread, a CPU and a queue of each port to itself. The connections are spread over
    /// them, and both ends of one are on the same core, by the numbers of their QPs, as in rnicd. On ports with fewer queues
    /// than cores, or that spread frames otherwise, cores hand each other frames.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub cores: u32,
    /// Frames taken from a port, and given to one, at a time; 32 at most.
    #[arg(long, default_value_t = BURST as u32, value_parser = clap::value_parser!(u32).range(1..=BURST as i64))]
    pub burst: u32,
    /// Messages in flight on a connection.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub outstanding: u32,
    /// Every how many messages one is signalled; that many are posted with one doorbell.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub signal_every: u32,
    /// Path MTU in bytes: 256, 512, 1024, 2048 or 4096.
    #[arg(long, default_value_t = 4096)]
    pub mtu: u32,
    /// Seconds to measure, after one to warm up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// So many messages instead of some seconds, and none to warm up: every run on one core does the same. Prints JSON without
    /// rates.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// The same buffer for all messages of a connection, instead of as many as are in flight.
    #[arg(long)]
    pub reuse: bool,
    /// Measure as well what copying and summing the payload costs without anything around it, over the same buffers. Of one
    /// core.
    #[arg(long)]
    pub bare: bool,
    /// Tell how many cycles a message spends in each stage of the data path. For builds with the feature `stages`, which are
    /// slower.
    #[arg(long)]
    pub stages: bool,
    /// CPU of the first core, counted round those allowed; the other cores have the next ones.
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Frames from port to port, without an RNIC: the limit to compare with
    Io,
    /// RC SEND
    RcSend,
    /// RC RDMA WRITE
    RcWrite,
    /// RC RDMA READ
    RcRead,
    /// RC FETCH_ADD
    RcAtomic,
    /// RC WRITE, SEND, READ and FETCH_ADD in turn
    Mixed,
    /// UD SEND; what does not arrive is an error
    UdSend,
}

fn parse_size(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    let number: u32 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no number of bytes"))?;
    number
        .checked_mul(unit)
        .filter(|size| *size <= 1 << 30)
        .ok_or_else(|| "at most 1024M".to_owned())
}
