//! A client process for tests: moves seeded data to and from its peer, checks every byte, and prints what it saw
//! as a line of JSON. Ends with 1 when anything is wrong.
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use rnic::{Context, exchange};
use rnic_tests::probe::{self, Plan, Report};

#[derive(Parser)]
#[command(about = "A client process for tests of rnicd")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Waits for a peer, whose plan it takes part in; prints the address first.
    Serve {
        #[command(flatten)]
        at: At,
        /// Address to listen at.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
    },
    /// Carries out a plan with the peer that serves.
    Run {
        #[command(flatten)]
        at: At,
        /// Address of the peer.
        #[arg(long)]
        peer: String,
        /// The plan as JSON; what it leaves out is as usual.
        #[arg(long, default_value = "{}")]
        plan: String,
        /// Path MTU in bytes, in place of the plan's.
        #[arg(long)]
        mtu: Option<u32>,
        /// Operations, such as `send,write_imm`, in place of the plan's.
        #[arg(long)]
        ops: Option<String>,
        /// Seed, in place of the plan's.
        #[arg(long)]
        seed: Option<u64>,
        /// Bytes of the longest message, in place of the plan's.
        #[arg(long)]
        size_max: Option<usize>,
        /// How often to go through all operations and sizes, in place of the plan's.
        #[arg(long)]
        iters: Option<usize>,
    },
}

#[derive(Args)]
struct At {
    /// Socket of the daemon.
    #[arg(long, default_value_os_t = rnic::default_socket())]
    socket: PathBuf,
    /// Device.
    #[arg(long, default_value = "rnic0")]
    device: String,
}

fn main() -> ExitCode {
    match work(Cli::parse().role) {
        Ok(report) => match print(&report) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("rnic-probe {}: {error:#}", std::process::id());
            ExitCode::FAILURE
        }
    }
}

fn work(role: Role) -> Result<Report> {
    match role {
        Role::Serve { at, listen } => {
            let listener = exchange::listen(&listen)?;
            println!("{}", listener.local_addr()?);
            let mut line = listener.accept()?;
            let plan: Plan = line.receive()?;
            carry_out(&at, &plan, 0, &mut line)
        }
        Role::Run {
            at,
            peer,
            plan,
            mtu,
            ops,
            seed,
            size_max,
            iters,
        } => {
            let mut plan: Plan = serde_json::from_str(&plan).context("the plan")?;
            plan.mtus = mtu.map_or(plan.mtus, |mtu| vec![mtu]);
            plan.seed = seed.unwrap_or(plan.seed);
            plan.size_max = size_max.unwrap_or(plan.size_max);
            plan.repeat = iters.unwrap_or(plan.repeat);
            if let Some(ops) = ops {
                let names = ops.split(',').map(|op| serde_json::from_value(op.into()));
                plan.ops = names.collect::<Result<_, _>>().context("the operations")?;
            }
            let mut line = exchange::connect(&peer, Some(Duration::from_secs(20)))?;
            line.send(&plan)?;
            carry_out(&at, &plan, 1, &mut line)
        }
    }
}

fn carry_out(at: &At, plan: &Plan, side: u64, line: &mut exchange::Exchange) -> Result<Report> {
    let context = Context::open(&at.socket, &at.device)?;
    let more = Arc::new(AtomicBool::new(true));
    if plan.endless {
        let more = more.clone();
        // Ends with the process; reads only to see the end.
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            more.store(false, Ordering::Relaxed);
        });
    }
    probe::run(&context, plan, side, line, || more.load(Ordering::Relaxed), print)
}

fn print(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
