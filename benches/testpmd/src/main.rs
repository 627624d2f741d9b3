//! `rnic-testpmd`: what the data path of rnicd does a second, and in how many cycles.
mod args;
mod bare;
mod burst;
mod drive;
mod forward;
mod io;
mod lane;
mod payload;
mod plan;
mod queue;
mod report;
mod rig;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use args::{Args, Mode};
use clap::Parser;
use core_affinity::CoreId;
use drive::{DRAIN, WARM_UP};
use lane::Lane;
use plan::Plan;
use report::{Fixed, Report, cycles};
use rig::Rig;
use rnic_engine::{
    core::CoreCounters,
    frame::BURST,
    nonblocking::CheckedAllocator,
    port::{DeviceSpec, OpenPort, PortSpec, open_all},
};

/// In debug builds, a pass of the core that touches the heap aborts.
#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

/// Beside the payload: Ethernet, IPv6, UDP, every header of RoCE, ICRC.
const LINK_MTU: u16 = 4096 + 256;
/// Packet buffers of each port, for every core.
const BUFFERS: u32 = 4096;

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = Plan::new(&args)?;
    let cpus = cpus(&args)?;
    let ports = open(&args, &cpus)?;
    if let Some(messages) = args.messages {
        ensure!(
            args.mode != Mode::Io,
            "--messages: frames without an RNIC are no messages"
        );
        let fixed = run_fixed(messages, plan, ports, &cpus)?;
        println!("{}", serde_json::to_string(&fixed)?);
        return check(fixed.errors, fixed.verified);
    }
    let hz = tsc_hz();
    let report = match args.mode {
        Mode::Io => io::run(&args, &plan, ports, &cpus, hz)?,
        _ => run(&args, plan, ports, &cpus, hz)?,
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{report}"),
    }
    check(report.errors, report.verified)
}

fn check(errors: u64, verified: bool) -> Result<()> {
    ensure!(errors == 0, "{errors} requests failed");
    ensure!(verified, "what arrived is not what was sent");
    Ok(())
}

/// The CPUs to run on, one for each core.
fn cpus(args: &Args) -> Result<Vec<CoreId>> {
    let allowed = core_affinity::get_core_ids().context("the CPUs are not known")?;
    let cores = args.cores as usize;
    ensure!(
        cores <= allowed.len(),
        "--cores {cores}: each needs a CPU to itself, and {} may be used",
        allowed.len()
    );
    Ok((0..cores)
        .map(|core| allowed[(args.cpu + core) % allowed.len()])
        .collect())
}

fn open(args: &Args, cpus: &[CoreId]) -> Result<Vec<OpenPort>> {
    let names = ["rnic0", "rnic1"];
    let (devices, eal): (Vec<DeviceSpec>, Vec<String>) = match args.port.as_str() {
        "ring" => {
            let end = |peer: &str| DeviceSpec::SoftRing { peer: peer.into() };
            (vec![end(names[1]), end(names[0])], Vec::new())
        }
        "dpdk-ring" => {
            let end = |peer: &str| DeviceSpec::Ring { peer: peer.into() };
            (vec![end(names[1]), end(names[0])], eal_args(cpus))
        }
        devices => {
            let devices: Vec<_> = devices
                .split('+')
                .map(|vdev| DeviceSpec::Vdev(vdev.into()))
                .collect();
            if devices.len() != 2 {
                bail!(
                    "--port {}: ring, dpdk-ring, or two virtual devices, separated by +",
                    args.port
                );
            }
            (devices, eal_args(cpus))
        }
    };
    let spec = |(name, device): (&str, DeviceSpec)| PortSpec {
        buffers: BUFFERS * args.cores,
        queues: args.cores as u16,
        ..PortSpec::new(name, device, LINK_MTU)
    };
    let specs: Vec<PortSpec> = names.into_iter().zip(devices).map(spec).collect();
    let ports = open_all(&specs, &eal)?;
    let most = args.burst as usize;
    // Frames without an RNIC are taken and given as few at a time as said anyway.
    Ok(match most < BURST && args.mode != Mode::Io {
        true => ports.into_iter().map(|port| burst::limit(port, most)).collect(),
        false => ports,
    })
}

fn eal_args(cpus: &[CoreId]) -> Vec<String> {
    let megabytes = 200 + 100 * cpus.len();
    let fixed = ["--no-huge", "--no-shconf", "--no-pci", "--no-telemetry"].map(String::from);
    let sized = ["-m".into(), megabytes.to_string()];
    // DPDK is started on the first CPU; the threads of the cores are made known to it when they start.
    let first = cpus.first().map(|cpu| format!("--lcores=0@{}", cpu.id));
    fixed.into_iter().chain(sized).chain(first).collect()
}

fn run(args: &Args, plan: Plan, ports: Vec<OpenPort>, cpus: &[CoreId], hz: u64) -> Result<Report> {
    let mut rig = Rig::new(plan, ports)?;
    ensure!(
        !args.stages || rig.lanes.iter().all(Lane::has_stages),
        "--stages: this build does not look; build with `cargo build --release -p rnic-testpmd --features stages`"
    );
    payload::fill(&plan, rig.data());
    let (begin, end) = drive::measure(&mut rig.lanes, cpus, args.seconds, |from, to| {
        if !args.json {
            print!("{}", forward::second(from, to, hz));
        }
    })?;
    let mut report = Report::new(args, &plan, cpus, hz, &begin, &end);
    (report.errors, report.verified) = outcome(&rig.lanes)?;
    if args.bare {
        // Where the core was, which has ended.
        if let Some(cpu) = cpus.first() {
            core_affinity::set_for_current(*cpu);
        }
        report.compare(bare::cycles_per_packet(&plan, rig.data(), WARM_UP)?);
    }
    rig.stop();
    Ok(report)
}

/// So many messages and then none, whatever the time: on one core, the same instructions in every run.
fn run_fixed(messages: u64, plan: Plan, ports: Vec<OpenPort>, cpus: &[CoreId]) -> Result<Fixed> {
    let mut rig = Rig::new(plan, ports)?;
    payload::fill(&plan, rig.data());
    let each = messages.div_ceil(u64::from(plan.cores));
    drive::complete(&mut rig.lanes, cpus, |lane| lane.messages >= each)?;
    let (errors, verified) = outcome(&rig.lanes)?;
    let counters =
        |what: fn(&CoreCounters) -> u64| rig.lanes.iter().map(|lane| what(&lane.counters())).sum::<u64>();
    let fixed = Fixed {
        messages: rig.lanes.iter().map(|lane| lane.messages).sum(),
        frames: counters(|c| c.tx_roce),
        errors: errors + counters(|c| c.retransmitted),
        verified,
    };
    rig.stop();
    Ok(fixed)
}

/// Requests that failed and datagrams that were lost; whether every byte is where it belongs.
fn outcome(lanes: &[Lane]) -> Result<(u64, bool)> {
    let sum = |what: fn(&Lane) -> u64| lanes.iter().map(what).sum::<u64>();
    let (errors, unfinished) = (sum(|lane| lane.errors), sum(Lane::unfinished));
    ensure!(
        unfinished == 0,
        "{unfinished} messages are not done after {DRAIN:?}; {errors} requests failed, {} frames were sent again, {} found no buffer",
        sum(|lane| lane.counters().retransmitted),
        sum(|lane| lane.counters().gather_errors),
    );
    Ok((errors + sum(Lane::lost), lanes.iter().all(Lane::verify)))
}

/// The time stamp counter's rate, measured.
fn tsc_hz() -> u64 {
    let (start, before) = (Instant::now(), cycles());
    while start.elapsed() < Duration::from_millis(50) {}
    let ticks = cycles() - before;
    (ticks as f64 / start.elapsed().as_secs_f64()) as u64
}
