//! `rnic-testpmd`: what the data path of rnicd does a second, and in how many cycles.
mod args;
mod bare;
mod io;
mod plan;
mod queue;
mod report;
mod rig;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use args::{Args, Mode};
use clap::Parser;
use plan::Plan;
use report::{Fixed, Report, Second, cycles};
use rig::Rig;
use rnic_engine::{
    nonblocking::CheckedAllocator,
    port::{DeviceSpec, OpenPort, PortSpec, open_all},
};

/// In debug builds, a pass of the core that touches the heap aborts.
#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

/// Turns between two looks at the clock.
const TURNS: u32 = 256;
const WARM_UP: Duration = Duration::from_secs(1);
/// How long what is in flight at the end may take.
const DRAIN: Duration = Duration::from_secs(10);
/// Beside the payload: Ethernet, IPv6, UDP, every header of RoCE, ICRC.
const LINK_MTU: u16 = 4096 + 256;
/// Packet buffers of each port.
const BUFFERS: u32 = 4096;

fn main() -> Result<()> {
    let args = Args::parse();
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(cpu) = cpus.get(args.cpu % cpus.len().max(1)) {
        core_affinity::set_for_current(*cpu);
    }
    let plan = Plan::new(&args)?;
    let ports = open(&args)?;
    if let Some(messages) = args.messages {
        ensure!(
            args.mode != Mode::Io,
            "--messages: frames without an RNIC are no messages"
        );
        let fixed = run_fixed(messages, plan, ports)?;
        println!("{}", serde_json::to_string(&fixed)?);
        return check(fixed.errors, fixed.verified);
    }
    let report = match args.mode {
        Mode::Io => io::run(&args, plan, ports)?,
        _ => run(&args, plan, ports)?,
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

fn open(args: &Args) -> Result<Vec<OpenPort>> {
    let names = ["rnic0", "rnic1"];
    let (devices, eal): (Vec<DeviceSpec>, Vec<String>) = match args.port.as_str() {
        "ring" => {
            let end = |peer: &str| DeviceSpec::SoftRing { peer: peer.into() };
            (vec![end(names[1]), end(names[0])], Vec::new())
        }
        "dpdk-ring" => {
            let end = |peer: &str| DeviceSpec::Ring { peer: peer.into() };
            (vec![end(names[1]), end(names[0])], eal_args(args))
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
            (devices, eal_args(args))
        }
    };
    let spec = |(name, device): (&str, DeviceSpec)| PortSpec {
        buffers: BUFFERS,
        ..PortSpec::new(name, device, LINK_MTU)
    };
    let specs: Vec<PortSpec> = names.into_iter().zip(devices).map(spec).collect();
    Ok(open_all(&specs, &eal)?)
}

fn eal_args(args: &Args) -> Vec<String> {
    let cpu = args.cpu;
    [
        "--no-huge",
        "-m",
        "300",
        "--no-shconf",
        "--no-pci",
        "--no-telemetry",
    ]
    .map(String::from)
    .into_iter()
    .chain([format!("--lcores=0@{cpu}")])
    .collect()
}

fn run(args: &Args, plan: Plan, ports: Vec<OpenPort>) -> Result<Report> {
    let mut rig = Rig::new(plan, ports)?;
    rig.fill();
    rig.begin();
    drive(&mut rig, WARM_UP);
    let (begin, account) = (Second::at(&rig), rig.spent());
    ensure!(
        !args.stages || account.is_some(),
        "--stages: this build does not look; build with `cargo build --release -p rnic-testpmd --features stages`"
    );
    let mut last = begin;
    for _ in 0..args.seconds {
        drive(&mut rig, Duration::from_secs(1));
        let now = Second::at(&rig);
        if !args.json {
            println!("{}", report::line(&plan, &last, &now));
        }
        last = now;
    }
    let account = account.zip(rig.spent()).filter(|_| args.stages);
    drain(&mut rig)?;
    let verified = rig.verify();
    let mut report = Report::new(args, &plan, &begin, &last, rig.errors, verified);
    report.stages = account.map(|(from, to)| report::stages(&from, &to, last.messages - begin.messages));
    if args.bare {
        report.compare(bare::cycles_per_packet(&plan, rig.data(), WARM_UP)?);
    }
    rig.stop();
    Ok(report)
}

/// So many messages and then none, whatever the time: the same instructions in every run.
fn run_fixed(messages: u64, plan: Plan, ports: Vec<OpenPort>) -> Result<Fixed> {
    let mut rig = Rig::new(plan, ports)?;
    rig.fill();
    rig.begin();
    while rig.messages < messages {
        rig.turn(true);
    }
    drain(&mut rig)?;
    let counters = rig.counters();
    let fixed = Fixed {
        messages: rig.messages,
        frames: counters.tx_roce,
        errors: rig.errors + counters.retransmitted,
        verified: rig.verify(),
    };
    rig.stop();
    Ok(fixed)
}

/// Lets what is in flight end.
fn drain(rig: &mut Rig) -> Result<()> {
    let start = Instant::now();
    while !rig.is_drained() {
        if start.elapsed() > DRAIN {
            let counters = rig.counters();
            bail!(
                "{} messages are not done after {DRAIN:?}; {} requests failed, {} frames were sent again, {} found no buffer",
                rig.unfinished(),
                rig.errors,
                counters.retransmitted,
                counters.gather_errors,
            );
        }
        rig.turn(false);
    }
    // Of a datagram nobody hears that it has arrived.
    for _ in 0..TURNS {
        if rig.has_all() {
            break;
        }
        rig.turn(false);
    }
    rig.count_lost();
    Ok(())
}

fn drive(rig: &mut Rig, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..TURNS {
            rig.turn(true);
        }
    }
}

/// The time stamp counter's rate, measured.
fn tsc_hz() -> u64 {
    let (start, before) = (Instant::now(), cycles());
    while start.elapsed() < Duration::from_millis(50) {}
    let ticks = cycles() - before;
    (ticks as f64 / start.elapsed().as_secs_f64()) as u64
}
