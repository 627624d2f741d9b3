//! Two processes send one message back and forth and time it.
//!
//! Server: `pingpong`; client: `pingpong SERVER`. Both need a running rnicd.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use rnic::{Access, Completion, ConnectOptions, Context, QpConfig, exchange};

/// Sends a message back and forth between two processes and tells how long that takes.
#[derive(Parser)]
struct Args {
    /// Host where the other side runs without this argument; without it, be that side.
    server: Option<String>,
    /// TCP port on which the two sides find each other.
    #[arg(short, long, default_value_t = 18515)]
    port: u16,
    /// Device to use.
    #[arg(short, long, default_value = "rnic0")]
    device: String,
    /// Socket of the daemon.
    #[arg(long, default_value_os_t = rnic::default_socket())]
    socket: PathBuf,
    /// Bytes of a message.
    #[arg(short, long, default_value_t = 64)]
    size: usize,
    /// Round trips.
    #[arg(short = 'n', long, default_value_t = 1000)]
    iters: u32,
    /// Which of the device's GIDs to use.
    #[arg(short = 'x', long, default_value_t = 0)]
    gid_index: u8,
    /// Sleep while waiting, instead of polling.
    #[arg(short, long)]
    events: bool,
}

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
    ensure!(args.iters > 0, "--iters must be at least 1");
    let context = Context::open(&args.socket, &args.device)?;
    let pd = context.alloc_pd()?;
    let cq = context.create_cq(16)?;
    let qp = pd.create_qp(QpConfig::new(&cq, &cq))?;
    let outgoing = pd.alloc_mr(args.size.max(1), Access::NONE)?;
    let incoming = pd.alloc_mr(args.size.max(1), Access::LOCAL_WRITE)?;

    let options = ConnectOptions {
        gid_index: args.gid_index,
        ..ConnectOptions::default()
    };
    let mut peer = match &args.server {
        Some(host) => exchange::connect((host.as_str(), args.port), Some(Duration::from_secs(10)))?,
        None => {
            println!("waiting for a client on TCP port {}", args.port);
            exchange::listen(("::", args.port))?.accept()?
        }
    };
    let (endpoint, their_size) = peer.swap(&(qp.endpoint(&options)?, args.size))?;
    ensure!(
        their_size == args.size,
        "the other side was started with --size {their_size}"
    );
    qp.connect(&endpoint, &options)?;

    let receive = || {
        qp.post_recv(|batch| {
            batch.recv(incoming.slice(..args.size));
        })
    };
    let send = |round: u32| {
        outgoing.write_at(0, &vec![round as u8; args.size]);
        qp.post(|batch| {
            batch.send(outgoing.slice(..args.size)).signaled();
        })
    };
    // A receive is posted before the peer can send: before the barrier, then before each answer.
    receive()?;
    peer.barrier()?;
    let starts = args.server.is_some();
    let begin = Instant::now();
    if starts {
        send(0)?;
    }
    for round in 0..args.iters {
        let mut received = false;
        while !received {
            let mut out = [Completion::default(); 4];
            let timeout = Some(Duration::from_secs(10));
            let count = if args.events {
                cq.wait(&mut out, timeout)?
            } else {
                cq.spin(&mut out, timeout)?
            };
            if count == 0 {
                bail!("no message for 10 s in round {round}: is the peer alive?");
            }
            for completion in &out[..count] {
                received |= completion.ok().context("the connection failed")?.is_recv;
            }
        }
        ensure!(
            incoming.read_vec(0, args.size) == vec![round as u8; args.size],
            "round {round}: wrong bytes"
        );
        receive()?;
        if !starts {
            send(round)?;
        } else if round + 1 < args.iters {
            send(round + 1)?;
        }
    }
    let elapsed = begin.elapsed();
    peer.barrier()?;
    println!(
        "{} round trips of {} bytes in {:.3} ms: {:.2} us each, {:.2} us one way",
        args.iters,
        args.size,
        elapsed.as_secs_f64() * 1e3,
        elapsed.as_secs_f64() * 1e6 / f64::from(args.iters),
        elapsed.as_secs_f64() * 5e5 / f64::from(args.iters),
    );
    Ok(())
}
