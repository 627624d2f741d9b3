//! Two processes send one message back and forth and time it.
//!
//! Server: `pingpong`; client: `pingpong SERVER`. Each needs a running rnicd, or the other end may be the tool of
//! rdma-core that this one does the same as, on another device: `ibv_rc_pingpong`, `ibv_uc_pingpong`, `ibv_ud_pingpong`,
//! `ibv_srq_pingpong`, `ibv_xsrq_pingpong`.
mod address;
mod shared;
mod xrc;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use rnic::{
    Access, AddressVector, Ah, Completion, ConnectOptions, Context, Cq, Endpoint, Mr, MrSlice, Mtu, Qp,
    QpConfig, QpType, Status,
};

use address::Address;

/// Sends a message back and forth between two processes and tells how long that takes. Its options are those of
/// ibv_rc_pingpong and the like, which may be the other side.
#[derive(Parser)]
struct Args {
    /// Host where the other side runs without this argument; without it, be that side.
    host: Option<String>,
    /// TCP port on which the two sides find each other.
    #[arg(short, long, default_value_t = 18515)]
    port: u16,
    /// Device to use.
    #[arg(short = 'd', long = "ib-dev", default_value = "rnic0")]
    device: String,
    /// Socket of the daemon.
    #[arg(long, default_value_os_t = rnic::default_socket())]
    socket: PathBuf,
    /// Service of the QP.
    #[arg(short, long, value_enum, default_value_t = Transport::Rc)]
    transport: Transport,
    /// Bytes of a message; of a datagram at most the path MTU.  [default: 4096, or 2048 of UD]
    #[arg(short = 's', long = "size", value_name = "SIZE")]
    bytes: Option<usize>,
    /// Path MTU in bytes, the same on both sides; that of datagrams is the port's.
    #[arg(short, long, default_value_t = 1024)]
    mtu: u32,
    /// Receives to have posted at a time.
    #[arg(short, long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rx_depth: u32,
    /// QPs, which share what is received (srq).
    #[arg(short = 'q', long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    num_qp: u16,
    /// Clients that a server waits for (xsrq); `-c` of ibv_xsrq_pingpong.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Exchanges; of all QPs together (srq), with each client (xsrq).
    #[arg(short = 'n', long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,
    /// Sleep while waiting, instead of polling.
    #[arg(short, long)]
    events: bool,
    /// Which of the device's GIDs to use.
    #[arg(short, long = "gid-idx", default_value_t = 0)]
    gid_idx: u8,
    /// Check every byte received. The client changes the message each time; a server finds that, or what
    /// ibv_rc_pingpong sends.
    #[arg(short, long = "chk")]
    check: bool,
    /// The wire loses frames: stay until standard input ends, so that a peer can ask again for what it missed of the end.
    /// A peer that has gone before it acknowledged a last message of ours counts as one that got it.
    #[arg(long)]
    lossy: bool,
}

#[derive(Copy, Clone, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// Reliable connection, as ibv_rc_pingpong
    Rc,
    /// Unreliable connection, as ibv_uc_pingpong: a lost message ends it
    Uc,
    /// Datagrams, as ibv_ud_pingpong: a lost message ends it
    Ud,
    /// Reliable connections that share a receive queue, as ibv_srq_pingpong
    Srq,
    /// Extended reliable connections, as ibv_xsrq_pingpong: whatever client a message is for, it goes to the next
    Xsrq,
}

impl Args {
    fn size(&self) -> usize {
        let default = if self.transport == Transport::Ud {
            2048
        } else {
            4096
        };
        self.bytes.unwrap_or(default)
    }

    fn connect_options(&self, mtu: Mtu) -> ConnectOptions {
        ConnectOptions {
            gid_index: self.gid_idx,
            mtu: Some(mtu),
            rd_atomic: 1,
            ..ConnectOptions::default()
        }
    }

    /// The next completions, at most as many as there is room for.
    fn next(&self, cq: &Cq, out: &mut [Completion]) -> Result<usize> {
        let count = if self.events {
            cq.wait(out, Some(PATIENCE))?
        } else {
            cq.spin(out, Some(PATIENCE))?
        };
        ensure!(
            count > 0,
            "nothing for {} s: is the peer alive?",
            PATIENCE.as_secs()
        );
        Ok(count)
    }

    /// Whether a completion is a success. On a wire that loses frames, it is not for a message whose acknowledgement is
    /// still missing when the peer has all it waits for, and leaves. The peer knows whether it got the message; `left` is
    /// whether we got all of its own.
    fn acknowledged(&self, completion: &Completion, left: bool) -> Result<bool> {
        let gone = [Status::RetryExceeded, Status::Flushed].contains(&completion.status);
        if self.lossy && gone && left {
            return Ok(false);
        }
        completion.ok().context("a connection failed")?;
        Ok(true)
    }

    /// Keeps the QPs while a peer may need them.
    fn linger(&self) -> Result<()> {
        if self.lossy {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("standard input")?;
        }
        Ok(())
    }
}

/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(30);
/// What ibv_rc_pingpong fills its message with, and how long it takes a page to be.
const FILL: u8 = 0x7b;
const PAGE: usize = 4096;
/// The Q_Key of ibv_ud_pingpong.
const QKEY: u32 = 0x1111_1111;
/// Bytes in front of a received datagram.
const GRH_AREA: usize = 40;
/// `wr_id` of receives and sends.
const RECV: u64 = 1;
const SEND: u64 = 2;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pingpong: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    ensure!(
        !args.check || !matches!(args.transport, Transport::Srq | Transport::Xsrq),
        "--chk: all QPs of an SRQ receive into one buffer; there is nothing to check"
    );
    match args.transport {
        Transport::Srq => return shared::run(args),
        Transport::Xsrq => return xrc::run(args),
        Transport::Rc | Transport::Uc | Transport::Ud => {}
    }
    let mut side = Side::open(args)?;
    side.post_receives(args.rx_depth)?;
    let ours = side.address()?;
    println!("  local address:  {ours}");
    let mut connect = |theirs: Vec<Address>| {
        for address in theirs {
            println!("  remote address: {address}");
            side.connect(address)?;
        }
        Ok(())
    };
    match &args.host {
        Some(host) => connect(address::ask(host, args.port, &[ours])?),
        None => address::tell(args.port, &[ours], connect),
    }?;
    let begin = Instant::now();
    side.play()?;
    report(args, begin.elapsed());
    args.linger()
}

/// One end of the connection.
struct Side<'a> {
    args: &'a Args,
    options: ConnectOptions,
    mtu: Mtu,
    qp: Qp,
    cq: Cq,
    /// What was received is sent back from where it lies.
    buffer: Mr,
    /// The message in it: behind the GRH area, of datagrams.
    message: MrSlice,
    /// Where datagrams go.
    to: Option<(Ah, u32)>,
}

impl<'a> Side<'a> {
    fn open(args: &'a Args) -> Result<Self> {
        let mtu = Mtu::from_bytes(args.mtu)?;
        let context = Context::open(&args.socket, &args.device)?;
        let pd = context.alloc_pd()?;
        let cq = context.create_cq(args.rx_depth.saturating_add(1))?;
        let (qp_type, offset) = match args.transport {
            Transport::Rc => (QpType::Rc, 0),
            Transport::Uc => (QpType::Uc, 0),
            Transport::Ud => (QpType::Ud, GRH_AREA),
            Transport::Srq | Transport::Xsrq => bail!("these have sides of their own"),
        };
        let config = QpConfig::new(&cq, &cq)
            .qp_type(qp_type)
            .max_send_wr(1)
            .max_recv_wr(args.rx_depth);
        let options = args.connect_options(mtu);
        let qp = pd.create_qp(config)?;
        if qp_type == QpType::Ud {
            let mtu = context.query_port()?.active_mtu.bytes() as usize;
            ensure!(
                args.size() <= mtu,
                "a datagram of {} bytes is longer than the path MTU, {mtu}",
                args.size()
            );
            qp.activate(QKEY)?;
        } else {
            qp.init(&options)?;
        }
        let buffer = pd.alloc_mr((offset + args.size()).max(1), Access::LOCAL_WRITE)?;
        let message = buffer.slice(offset..offset + args.size());
        message.write_at(0, &vec![FILL; args.size()]);
        Ok(Side {
            args,
            options,
            mtu,
            qp,
            cq,
            buffer,
            message,
            to: None,
        })
    }

    fn address(&self) -> Result<Address> {
        let Endpoint {
            qpn, psn, gid, mtu, ..
        } = self.qp.endpoint(&self.options)?;
        ensure!(
            mtu == self.mtu || self.args.transport == Transport::Ud,
            "a path MTU of {} is more than the {mtu} of {}",
            self.mtu,
            self.args.device
        );
        Ok(Address { qpn, psn, gid })
    }

    fn connect(&mut self, peer: Address) -> Result<()> {
        let Address { qpn, gid, .. } = peer;
        if self.args.transport == Transport::Ud {
            let vector = AddressVector::to(gid).gid_index(self.args.gid_idx);
            self.to = Some((self.qp.pd().create_ah(&vector)?, qpn));
            return Ok(());
        }
        Ok(self.qp.connect(&peer.endpoint(self.mtu), &self.options)?)
    }

    fn post_receives(&self, count: u32) -> Result<()> {
        self.qp.post_recv(|batch| {
            for _ in 0..count {
                batch.recv(&self.buffer).wr_id(RECV);
            }
        })?;
        Ok(())
    }

    fn send(&self, round: u32) -> Result<()> {
        if self.args.check && self.args.host.is_some() {
            self.message.write_at(0, &message(round, self.message.len()));
        }
        self.qp.post(|batch| {
            let wr = match &self.to {
                Some((ah, qpn)) => batch.send_to(&self.message, ah, *qpn, QKEY),
                None => batch.send(&self.message),
            };
            wr.wr_id(SEND).signaled();
        })?;
        Ok(())
    }

    /// All exchanges. The client begins; a side sends when its last message is done and the answer has come.
    fn play(&self) -> Result<()> {
        let iters = self.args.iters;
        let mut posted = self.args.rx_depth;
        let (mut sent, mut received) = (0, 0);
        let mut pending = RECV;
        if self.args.host.is_some() {
            self.send(0)?;
            pending |= SEND;
        }
        while sent < iters || received < iters {
            let mut out = [Completion::default(); 2];
            let count = self.args.next(&self.cq, &mut out);
            let count = count.with_context(|| format!("{sent} messages sent and {received} received"))?;
            for completion in &out[..count] {
                if !self.args.acknowledged(completion, received >= iters)? {
                    sent += u32::from(!completion.is_recv);
                    continue;
                }
                let done = completion;
                if done.is_recv {
                    self.check(received, done.byte_len)?;
                    received += 1;
                    posted -= 1;
                    if posted <= 1 {
                        self.post_receives(self.args.rx_depth - posted)?;
                        posted = self.args.rx_depth;
                    }
                } else {
                    sent += 1;
                }
                pending &= !done.wr_id;
                if pending == 0 && sent < iters {
                    self.send(sent)?;
                    pending = SEND | RECV;
                }
            }
        }
        Ok(())
    }

    /// Checks what was received, as far as was asked for. A server sends back what it got, so both sides find what the
    /// client sent.
    fn check(&self, round: u32, length: u32) -> Result<()> {
        let size = self.message.len();
        let area = if self.args.transport == Transport::Ud {
            GRH_AREA
        } else {
            0
        };
        let length = (length as usize).saturating_sub(area);
        ensure!(length == size, "the peer was started with a size of {length}");
        if self.args.check {
            let found = self.message.read_vec(0, size);
            let original = self.args.host.is_none() && is_of_the_original(&found);
            ensure!(
                original || found == message(round, size),
                "message {round} came with wrong bytes"
            );
        }
        Ok(())
    }
}

/// What this program sends when it checks: different each time. Pages begin with a zero, the only thing that
/// ibv_rc_pingpong checks.
fn message(round: u32, size: usize) -> Vec<u8> {
    let factor = round.wrapping_mul(2) + 1;
    let byte = |at: usize| (at as u32).wrapping_mul(factor) as u8;
    (0..size)
        .map(|at| if at % PAGE == 0 { 0 } else { byte(at) })
        .collect()
}

/// Whether ibv_rc_pingpong sends this: one byte all over, or zeros where pages begin when it is told to check.
fn is_of_the_original(message: &[u8]) -> bool {
    let first = *message.first().unwrap_or(&FILL);
    (first == FILL || first == 0)
        && (message.iter().enumerate()).all(|(at, byte)| *byte == if at % PAGE == 0 { first } else { FILL })
}

fn report(args: &Args, elapsed: Duration) {
    let bytes = 2 * args.size() as u64 * u64::from(args.iters);
    let (seconds, micros) = (elapsed.as_secs_f64(), elapsed.as_secs_f64() * 1e6);
    println!(
        "{bytes} bytes in {seconds:.2} seconds = {:.2} Mbit/sec",
        bytes as f64 * 8.0 / micros
    );
    println!(
        "{} iters in {seconds:.2} seconds = {:.2} usec/iter",
        args.iters,
        micros / f64::from(args.iters)
    );
}
