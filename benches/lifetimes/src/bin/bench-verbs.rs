//! What the life of an RC QP costs: five requests (create, INIT, RTR, RTS, destroy), each waited for, against five bare
//! round trips to a process that only answers, interleaved with them and with the same poll core running. Then how
//! many QPs are created and destroyed a second, each by way of RTS: one that no core has got to know would cost less.
//! The live QPs are connected too. One line of JSON for each number of live QPs, with the keys
//! `live_qps`, `p50_us` and `p99_us` (all five requests), `bare_rtt_us` (one bare round trip, the median),
//! `ratio` (`p50_us` to five of those) and `pairs_per_s`.
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Parser;
use rnic_abi::{CreateQp, CreateQpReply, DestroyReply, HandleArg, ModifyQp, ReplyHeader, RequestHeader};
use rnic_bench::{Daemon, Samples, cpus, line, pin, print, rounded};
use rnic_bench_lifetimes::{Client, Echo, echo};
use serde::Serialize;

/// Two ports joined back to back; only the first is used. The poll core never rests.
const SECTIONS: &str = "
eal: {memory: none, memory_size: 64MiB}
cores: {poll: auto, count: 1, idle: {policy: spin}}
ports:
  - {name: rnic0, device: {ring: {peer: rnic1}}, addresses: [10.0.0.1/24]}
  - {name: rnic1, device: {ring: {peer: rnic0}}, addresses: [10.0.0.2/24]}
limits:
  clients: 2
  qps: 262142
  per_client: {qps: 200000, cqs: 1024, mrs: 16, pds: 16, queue_memory: 2GiB}
";
/// QPs that share a CQ.
const QPS_A_CQ: u32 = 256;

#[derive(Parser)]
struct Args {
    /// Live QPs beside the one that is measured.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000])]
    live: Vec<u32>,
    /// Lives of a QP measured at each number.
    #[arg(long, default_value_t = 20_000)]
    lives: usize,
    /// How long pairs of create and destroy are counted.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Units of each work queue.
    #[arg(long, default_value_t = 16)]
    depth: u32,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    rnicd: Option<PathBuf>,
    /// Also print, to standard error, how far the poll core's CPU is, the median of each request and the daemon's memory.
    #[arg(long)]
    detail: bool,
    #[arg(long = "answer-packets", hide = true)]
    answer: bool,
}

#[derive(Serialize)]
struct Line {
    live_qps: u32,
    p50_us: f64,
    p99_us: f64,
    bare_rtt_us: f64,
    ratio: f64,
    pairs_per_s: u64,
}

/// Request and reply of each of the five steps, in bytes.
fn lengths() -> [(usize, usize); 5] {
    let with = |request: usize, reply: usize| {
        (
            size_of::<RequestHeader>() + request,
            size_of::<ReplyHeader>() + reply,
        )
    };
    let modify = with(size_of::<ModifyQp>(), 0);
    [
        with(size_of::<CreateQp>(), size_of::<CreateQpReply>()),
        modify,
        modify,
        modify,
        with(size_of::<HandleArg>(), size_of::<DestroyReply>()),
    ]
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.answer {
        return echo::answer();
    }
    let rnicd = match &args.rnicd {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("rnicd"),
    };
    if args.detail && cpus() > 1 {
        let ns = line::round_trip_ns(0, cpus() - 1);
        eprintln!("{ns:.0} ns for a cache line to the poll core's CPU and one back");
    }
    let daemon = Daemon::start(&rnicd, SECTIONS)?;
    // The poll core has the last CPU to itself; this process and the one that answers share the first with the
    // control thread, so that bare round trips and verbs switch between the same number of threads.
    if cpus() > 1 {
        pin(0);
    }
    let echo = Echo::start()?;
    let mut client = Client::connect(&daemon.socket(), args.depth)?;
    let pd = client.pd()?;
    let own_cq = client.cq()?;
    let (mut live, mut cq) = (0, own_cq);
    let empty = daemon.resident_kib();
    for &wanted in &args.live {
        while live < wanted {
            if live % QPS_A_CQ == 0 {
                cq = client.cq()?;
            }
            client.create_connected(pd, cq)?;
            live += 1;
        }
        if args.detail {
            let each = (daemon.resident_kib() - empty) as f64 / f64::from(live.max(1));
            eprintln!("{live} live QPs, {each:.2} KiB of the daemon's memory each");
        }
        let mut line = lives(&args, &mut client, &echo, (pd, own_cq))?;
        line.live_qps = live;
        line.pairs_per_s = pairs(&mut client, (pd, own_cq), Duration::from_secs(args.seconds))?;
        print(&line)?;
    }
    Ok(())
}

/// Lives and bare round trips, in turn.
fn lives(args: &Args, client: &mut Client, echo: &Echo, (pd, cq): (u32, u32)) -> anyhow::Result<Line> {
    let warm_up = args.lives / 10;
    let mut whole = Samples::with_capacity(args.lives);
    let mut bare = Samples::with_capacity(args.lives);
    let mut steps: [Samples; 5] = Default::default();
    for life in 0..args.lives + warm_up {
        let mut times = [Instant::now(); 6];
        let qp = client.create(pd, cq)?;
        times[1] = Instant::now();
        client.to_init(qp)?;
        times[2] = Instant::now();
        client.to_rtr(qp)?;
        times[3] = Instant::now();
        client.to_rts(qp)?;
        times[4] = Instant::now();
        client.destroy(qp)?;
        times[5] = Instant::now();
        for (request, reply) in lengths() {
            echo.round_trip(request, reply)?;
        }
        let end = Instant::now();
        if life >= warm_up {
            whole.push(nanos(times[5] - times[0]));
            bare.push(nanos(end - times[5]));
            for (step, pair) in steps.iter_mut().zip(times.windows(2)) {
                step.push(nanos(pair[1] - pair[0]));
            }
        }
    }
    let us = |ns: u64| ns as f64 / 1000.0;
    if args.detail {
        let medians = steps.each_mut().map(|step| us(step.percentile(50)));
        eprintln!("medians in us of create, INIT, RTR, RTS, destroy: {medians:.2?}");
    }
    let (p50, five) = (us(whole.percentile(50)), us(bare.percentile(50)));
    Ok(Line {
        live_qps: 0,
        p50_us: rounded(p50),
        p99_us: rounded(us(whole.percentile(99))),
        bare_rtt_us: rounded(five / 5.0),
        ratio: rounded(p50 / five),
        pairs_per_s: 0,
    })
}

fn pairs(client: &mut Client, (pd, cq): (u32, u32), time: Duration) -> anyhow::Result<u64> {
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < time {
        let qp = client.create_connected(pd, cq)?;
        client.destroy(qp)?;
        count += 1;
    }
    Ok((count as f64 / start.elapsed().as_secs_f64()).round() as u64)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
