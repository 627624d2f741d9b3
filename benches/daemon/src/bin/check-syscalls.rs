//! What an appliance costs the machine: no system call of a poll thread under load, and next to nothing while idle.
//!
//! The load is RDMA WRITEs between two devices that are wired back to back, in both directions and with full windows.
//! A core with the idle policy `sleep`, that of the laptop sample, yields and sleeps whenever the client lets it run dry,
//! which is that policy's purpose; its calls are told and have no limit.
//!
//! One JSON object for each check; exit status 1 when a limit is missed or nothing moved. Where calls cannot be counted the
//! word SKIPPED and the reason stand instead.
use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use clap::Parser;
use rnic_bench::{Daemon, pin, print, rounded};
use rnic_bench_daemon::{
    Load, Pair, Progress, sibling,
    syscalls::{Calls, Method},
};
use serde::Serialize;

/// Most of a core that an idle appliance may use.
const IDLE_PERCENT: f64 = 3.0;
/// Frames are built and parsed, and the core never rests.
const SPINNING: &str = "
eal: {memory: none, memory_size: 64MiB}
cores: {poll: auto, count: 1, idle: {policy: spin}}
ports:
  - {name: rnic0, device: {ring: {peer: rnic1}}, mtu: 4200, addresses: [10.0.0.1/24], loopback: wire}
  - {name: rnic1, device: {ring: {peer: rnic0}}, mtu: 4200, addresses: [10.0.0.2/24], loopback: wire}
";
const SAMPLE: &str = "laptop";
const DEVICES: [&str; 2] = ["rnic0", "rnic1"];
const THREAD: &str = "rnic-poll-0";
const LOADS: [Load; 2] = [
    Load {
        size: 64,
        window: 64,
        batch: 16,
    },
    Load {
        size: 64 << 10,
        window: 16,
        batch: 4,
    },
];

#[derive(Parser)]
struct Args {
    /// Seconds of each load.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of idleness.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(10..=3600))]
    idle_seconds: u64,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    rnicd: Option<PathBuf>,
}

/// A poll thread under load.
#[derive(Serialize)]
struct Busy {
    check: &'static str,
    configuration: &'static str,
    thread: &'static str,
    method: &'static str,
    size: usize,
    seconds: u64,
    messages: u64,
    frames: u64,
    #[serde(flatten)]
    calls: Counted,
    limit: Option<u64>,
    ok: bool,
}

#[derive(Serialize)]
struct Counted {
    syscalls: u64,
    by_name: std::collections::BTreeMap<String, u64>,
}

/// An appliance without clients.
#[derive(Serialize)]
struct Idle {
    check: &'static str,
    configuration: &'static str,
    seconds: f64,
    cpu_percent: f64,
    limit: f64,
    ok: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let rnicd = match &args.rnicd {
        Some(path) => path.clone(),
        None => sibling("rnicd")?,
    };
    let mut ok = true;
    match Method::find() {
        Ok(method) => {
            let spinning = Daemon::start(&rnicd, SPINNING)?;
            ok &= busy(&args, &method, &spinning, ("spin", Some(0)))?;
            drop(spinning);
            let sample = Daemon::sample(&rnicd, SAMPLE)?;
            ok &= busy(&args, &method, &sample, (SAMPLE, None))?;
        }
        Err(why) => println!("SKIPPED the system calls of a poll thread: they cannot be counted here: {why}"),
    }
    ok &= idle(&args, &Daemon::sample(&rnicd, SAMPLE)?)?;
    Ok(match ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn busy(
    args: &Args,
    method: &Method,
    daemon: &Daemon,
    (configuration, limit): (&'static str, Option<u64>),
) -> anyhow::Result<bool> {
    let thread = daemon.thread(THREAD)?;
    let mut ok = true;
    for load in LOADS {
        let pair = Pair::connect(&daemon.socket(), DEVICES, 2 * load.size, load.window as u32)?;
        let progress = Progress::default();
        let (counted, messages, frames) = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                // The poll core has the last CPU to itself.
                pin(0);
                pair.write(load, &progress)
            });
            // Only within the load: before the first WRITE and after the last one the core may well sleep.
            let result = meanwhile(args, method, daemon, thread, &progress);
            progress.stop.store(true, Ordering::Relaxed);
            load.join().map_err(|_| anyhow!("the load panicked"))??;
            result
        })?;
        ensure!(messages > 0 && frames > 0, "nothing moved");
        let Calls { total, by_name } = counted;
        let within = limit.is_none_or(|limit| total <= limit);
        ok &= within;
        print(&Busy {
            check: "poll thread under load",
            configuration,
            thread: THREAD,
            method: method.name(),
            size: load.size,
            seconds: args.seconds,
            messages,
            frames,
            calls: Counted {
                syscalls: total,
                by_name,
            },
            limit,
            ok: within,
        })?;
    }
    Ok(ok)
}

/// Counts the calls of a thread under load: with how many WRITEs were done and how many frames moved meanwhile.
fn meanwhile(
    args: &Args,
    method: &Method,
    daemon: &Daemon,
    thread: u32,
    progress: &Progress,
) -> anyhow::Result<(Calls, u64, u64)> {
    let settle = || std::thread::sleep(Duration::from_millis(100));
    settle();
    let frames_before = frames(daemon)?;
    settle();
    let (calls, messages) = method.count(thread, || {
        let before = progress.done.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(args.seconds));
        progress.done.load(Ordering::Relaxed) - before
    })?;
    Ok((calls, messages, frames(daemon)? - frames_before))
}

fn idle(args: &Args, daemon: &Daemon) -> anyhow::Result<bool> {
    std::thread::sleep(Duration::from_secs(2));
    let (start, before) = (Instant::now(), daemon.cpu_time()?);
    std::thread::sleep(Duration::from_secs(args.idle_seconds));
    let (elapsed, used) = (start.elapsed(), daemon.cpu_time()? - before);
    let percent = 100.0 * used.as_secs_f64() / elapsed.as_secs_f64();
    print(&Idle {
        check: "idle appliance",
        configuration: SAMPLE,
        seconds: rounded(elapsed.as_secs_f64()),
        cpu_percent: rounded(percent),
        limit: IDLE_PERCENT,
        ok: percent < IDLE_PERCENT,
    })?;
    Ok(percent < IDLE_PERCENT)
}

/// Frames that the poll core has sent and received.
fn frames(daemon: &Daemon) -> anyhow::Result<u64> {
    let status = Command::new(sibling("rnicctl")?)
        .args(["status", "--json"])
        .env("RNIC_ADMIN_SOCKET", daemon.admin_socket())
        .output()?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).context("rnicctl status")?;
    let counters = &status["cores"][0]["counters"];
    let counted = |name: &str| counters[name].as_u64().unwrap_or(0);
    Ok(counted("tx_roce") + counted("rx_roce"))
}
