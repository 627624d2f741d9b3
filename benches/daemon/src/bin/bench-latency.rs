//! Client to client through the daemon on loopback: one client thread owns both QPs and polls both CQs, the poll core has
//! the last CPU to itself. One JSON object (one for each size, with `--sizes`), times in nanoseconds:
//!
//! - `write_*`: an 8-byte WRITE, from before it is posted until its completion was polled; `write_inline_*` with the
//!   payload in the work request;
//! - `pingpong_*`: a SEND of 8 bytes and one back, from before the first is posted until the second's receive completion;
//! - `write_1m_gbit`: WRITEs of 1 MiB, a few in flight, beside `memcpy_gbit`: the client's own `memcpy` between the very
//!   same buffers, in turns with them; `ratio` is the first to the second;
//! - `line_ns`: a cache line from one CPU to the other and back, the floor of all that; `clock_ns`: what reading the clock
//!   adds to each time.
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use clap::Parser;
use rnic::{Completion, Mr};
use rnic_bench::{
    Daemon, Samples, clock_overhead, cpus, cycles, cycles_per_second, line, pin, print, rounded,
};
use rnic_bench_daemon::{End, Load, Pair, sibling};
use serde::Serialize;

const SECTIONS: &str = "
eal: {memory: none, memory_size: 64MiB}
cores: {poll: auto, count: 1, idle: {policy: spin}}
ports:
  - {name: rnic0, device: {ring: {peer: rnic1}}, mtu: 4200, addresses: [10.0.0.1/24], loopback: direct}
  - {name: rnic1, device: {ring: {peer: rnic0}}, mtu: 4200, addresses: [10.0.0.2/24], loopback: direct}
";
const SMALL: usize = 8;
const LARGE: usize = 1 << 20;
/// Large WRITEs in flight.
const WINDOW: usize = 4;
/// Large WRITEs, or copies, in a turn.
const TURN: usize = 64;
/// Receives that wait at each end.
const RECEIVES: usize = 16;
/// Numbers of work requests.
const SEND: u64 = 1;
const RECEIVE: u64 = 2;
/// Most bytes of a SEND that go in the work request.
const INLINE: usize = 64;
/// Bytes of one flow, at most.
const FLOW_BYTES: u64 = 8 << 30;
/// How long nothing may complete.
const STALL: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Args {
    /// Small messages of each kind.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(100..))]
    messages: u32,
    /// Turns of large ones.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    rnicd: Option<PathBuf>,
    /// Instead, for each of these message sizes (up to 1 MiB), an object with `size`, `pingpong_p50_ns` (SEND and one back)
    /// and `write_gbit`.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=LARGE as u64))]
    sizes: Vec<u64>,
    /// Exit with status 1 when a limit is missed: 600 ns for `write_p50_ns`, 1.5 us for `pingpong_p50_ns`, 0.85 for `ratio`.
    #[arg(long)]
    check: bool,
}

#[derive(Serialize)]
struct Report {
    write_p50_ns: u64,
    write_p99_ns: u64,
    write_inline_p50_ns: u64,
    write_inline_p99_ns: u64,
    pingpong_p50_ns: u64,
    pingpong_p99_ns: u64,
    memcpy_gbit: f64,
    write_1m_gbit: f64,
    ratio: f64,
    messages: u32,
    line_ns: u64,
    clock_ns: u64,
    cpus: [Option<usize>; 2],
}

/// Of one message size.
#[derive(Serialize)]
struct OfSize {
    size: usize,
    pingpong_p50_ns: u64,
    write_gbit: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let rnicd = match &args.rnicd {
        Some(path) => path.clone(),
        None => sibling("rnicd")?,
    };
    let last = cpus() - 1;
    let line_ns = match last {
        0 => 0,
        _ => line::round_trip_ns(0, last).round() as u64,
    };
    let daemon = Daemon::start(&rnicd, SECTIONS)?;
    let hz = cycles_per_second();
    let ns = |cycles: u64| (cycles as f64 * 1e9 / hz).round() as u64;
    let client_cpu = pin(0);
    let pair = Pair::connect(&daemon.socket(), ["rnic0", "rnic0"], 2 * LARGE, 64)?;
    if !args.sizes.is_empty() {
        for size in args.sizes.iter().map(|size| *size as usize) {
            let mut trips = pingpong(&args, &pair, size)?;
            print(&OfSize {
                size,
                pingpong_p50_ns: ns(trips.percentile(50)),
                write_gbit: rounded(flow(&args, &pair, size)?),
            })?;
        }
        return Ok(());
    }
    let mut write = timed(&args, || write_small(&pair, false))?;
    let mut inline = timed(&args, || write_small(&pair, true))?;
    let mut pingpong = pingpong(&args, &pair, SMALL)?;
    let (memcpy_gbit, write_1m_gbit) = large(&args, &pair)?;
    let report = Report {
        write_p50_ns: ns(write.percentile(50)),
        write_p99_ns: ns(write.percentile(99)),
        write_inline_p50_ns: ns(inline.percentile(50)),
        write_inline_p99_ns: ns(inline.percentile(99)),
        pingpong_p50_ns: ns(pingpong.percentile(50)),
        pingpong_p99_ns: ns(pingpong.percentile(99)),
        memcpy_gbit: rounded(memcpy_gbit),
        write_1m_gbit: rounded(write_1m_gbit),
        ratio: rounded(write_1m_gbit / memcpy_gbit),
        messages: args.messages,
        line_ns,
        clock_ns: ns(clock_overhead()),
        cpus: [client_cpu, Some(last)],
    };
    print(&report)?;
    if args.check {
        ensure!(
            report.write_p50_ns <= 600,
            "an 8-byte WRITE takes more than 600 ns"
        );
        ensure!(
            report.pingpong_p50_ns <= 1500,
            "a ping-pong takes more than 1.5 us"
        );
        ensure!(report.ratio >= 0.85, "1 MiB WRITEs have less than 85 % of memcpy");
    }
    Ok(())
}

/// The cycles of each of many operations, after a tenth as many to warm up.
fn timed(args: &Args, mut operation: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Samples> {
    let mut samples = Samples::with_capacity(args.messages as usize);
    for _ in 0..args.messages / 10 {
        operation()?;
    }
    for _ in 0..args.messages {
        let start = cycles();
        operation()?;
        samples.push(cycles() - start);
    }
    Ok(samples)
}

/// Polls both CQs until that of `end` has a completion with this number; others are of no interest.
fn await_one(pair: &Pair, end: usize, wr_id: u64) -> anyhow::Result<()> {
    let mut out = [Completion::default(); 1];
    let mut polls = 0u32;
    let mut start = None;
    loop {
        for at in [end, 1 - end] {
            if pair.ends[at].cq.poll(&mut out) == 1 {
                out[0].ok()?;
                if at == end && out[0].wr_id == wr_id {
                    return Ok(());
                }
            }
        }
        polls += 1;
        if polls.is_multiple_of(1 << 20) && start.get_or_insert_with(Instant::now).elapsed() > STALL {
            bail!("nothing completed for {STALL:?}");
        }
    }
}

/// A small WRITE of the first end.
fn write_small(pair: &Pair, inline: bool) -> anyhow::Result<()> {
    let [own, peer] = &pair.ends;
    let remote = peer.memory.remote().at(LARGE as u64);
    let source = [own.memory.slice(..SMALL)];
    own.qp.post(|batch| {
        match inline {
            true => batch.write_inline(&[7; SMALL], remote),
            false => batch.write(&source, remote),
        }
        .wr_id(SEND)
        .signaled();
    })?;
    await_one(pair, 0, SEND)
}

/// SENDs to and fro. Those that fit go in the work request.
fn pingpong(args: &Args, pair: &Pair, size: usize) -> anyhow::Result<Samples> {
    for end in [0, 1] {
        for _ in 0..RECEIVES {
            receive(pair, end)?;
        }
    }
    let mut round = 0;
    let samples = timed(args, || {
        round += 1;
        // One signalled now and then gives the others' room back.
        let signalled = round % 8 == 0;
        hit(pair, 0, size, signalled)?;
        await_one(pair, 1, RECEIVE)?;
        hit(pair, 1, size, signalled)?;
        // While the ball flies.
        receive(pair, 0)?;
        receive(pair, 1)?;
        await_one(pair, 0, RECEIVE)
    })?;
    // The next size finds as many receives as this one.
    for _ in 0..RECEIVES {
        for end in [0, 1] {
            hit(pair, 1 - end, size, true)?;
            await_one(pair, end, RECEIVE)?;
        }
    }
    Ok(samples)
}

fn receive(pair: &Pair, end: usize) -> anyhow::Result<()> {
    let End { qp, memory, .. } = &pair.ends[end];
    qp.post_recv(|batch| {
        batch.recv([memory.slice(LARGE..)]).wr_id(RECEIVE);
    })?;
    Ok(())
}

fn hit(pair: &Pair, end: usize, size: usize, signalled: bool) -> anyhow::Result<()> {
    let End { qp, memory, .. } = &pair.ends[end];
    qp.post(|batch| {
        let send = match size {
            ..=INLINE => batch.send_inline(&[9; INLINE][..size]),
            _ => batch.send([memory.slice(..size)]),
        };
        let send = send.wr_id(SEND);
        if signalled {
            send.signaled();
        }
    })?;
    Ok(())
}

/// WRITEs of one size in one direction: Gbit/s.
fn flow(args: &Args, pair: &Pair, size: usize) -> anyhow::Result<f64> {
    let load = Load {
        size,
        window: 32,
        batch: if size < 4096 { 8 } else { 1 },
    };
    let count = u64::from(args.messages).min(FLOW_BYTES / size as u64).max(64);
    let start = Instant::now();
    let done = pair.write_one_way(load, count)?;
    Ok((done * size as u64 * 8) as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// Large WRITEs and copies of the same bytes in turns: Gbit/s of the median turn of either.
fn large(args: &Args, pair: &Pair) -> anyhow::Result<(f64, f64)> {
    let [own, peer] = &pair.ends;
    let (mut copies, mut writes) = (Samples::default(), Samples::default());
    for _ in 0..=args.turns {
        let start = cycles();
        for _ in 0..TURN {
            copy(&own.memory, &peer.memory);
        }
        copies.push(cycles() - start);
        let start = cycles();
        let (mut posted, mut done) = (0, 0);
        while done < TURN {
            while posted < TURN && posted - done < WINDOW {
                own.qp.post(|batch| {
                    let remote = peer.memory.remote().at(LARGE as u64);
                    batch
                        .write([own.memory.slice(..LARGE)], remote)
                        .wr_id(SEND)
                        .signaled();
                })?;
                posted += 1;
            }
            await_one(pair, 0, SEND)?;
            done += 1;
        }
        writes.push(cycles() - start);
    }
    let hz = cycles_per_second();
    let gbit = |cycles: u64| (TURN * LARGE * 8) as f64 * hz / cycles as f64 / 1e9;
    Ok((gbit(copies.percentile(50)), gbit(writes.percentile(50))))
}

fn copy(from: &Mr, to: &Mr) {
    let (from, to) = (
        from.addr() as *const u8,
        (to.addr() as *mut u8).wrapping_add(LARGE),
    );
    // SAFETY: both regions are 2 * LARGE bytes long and mapped by this process, which nobody else writes to meanwhile:
    // no request of either QP is outstanding.
    unsafe { std::ptr::copy_nonoverlapping(from, to, LARGE) };
}
