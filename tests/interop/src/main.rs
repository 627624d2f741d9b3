//! `rnic-interop`: `rnicd` against the Linux kernel's soft-RoCE, rxe, in an emulated guest.
//!
//! The guest's NIC is a tap device that a port of `rnicd` is on by af_packet; both, and everything else this program
//! starts, live in namespaces of its own ([`sandbox`]). It plays both ends: ours through the client library
//! ([`ours`]), the kernel's through a program in the guest that calls libibverbs as told ([`theirs`]).
mod atomics;
mod end;
mod exchange;
mod guest;
mod matrix;
mod ours;
mod pingpong;
mod report;
mod sandbox;
mod theirs;
mod unreliable;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rnic_guest::Image;
use rnic_tests::{Appliance, PortSetup, Setup, Turn};

use guest::Guest;
use matrix::{Case, Extent, Outcome, Work};
use ours::Ours;
use report::{Report, Trace};
use theirs::Theirs;
use wire::{LINK_MTU, TAP, Wire};

/// Runs rnicd against the Linux kernel's soft-RoCE (rxe) in an emulated guest, and prints what worked.
#[derive(Parser)]
struct Args {
    /// Run a part of the matrix, which takes a few minutes.
    #[arg(long)]
    bounded: bool,
    /// Run only cases whose name contains all of these texts.
    #[arg(long)]
    only: Vec<String>,
    /// Print the names of the cases and run none.
    #[arg(long)]
    list: bool,
    /// Seed of the data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the image, the captures and the results. Default: `interop` beside this program's folder.
    #[arg(long)]
    work: Option<PathBuf>,
    /// For the program itself: it is in its namespaces.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    match work(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("interop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(args: &Args) -> Result<ExitCode> {
    if args.list {
        for wire in &Wire::ALL {
            for case in args.cases(wire) {
                println!("{}", case.name(wire));
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let work = args.work()?;
    if args.inside {
        sandbox::settle()?;
        let report = run(args, &work)?;
        return conclude(&report, &work);
    }
    if let Err(why) = rnic_guest::Guest::available() {
        eprintln!("\n*** SKIPPED interop with the kernel's rxe: {why} ***\n");
        return Ok(ExitCode::SUCCESS);
    }
    if !rnic_tests::privileged("interop with the kernel's rxe") {
        return Ok(ExitCode::SUCCESS);
    }
    let _turn = Turn::take();
    // Out here there is a network to download packages from.
    Image::get(&work)?;
    sandbox::enter()
}

impl Args {
    fn cases(&self, wire: &Wire) -> Vec<Case> {
        let extent = if self.bounded {
            Extent::Bounded
        } else {
            Extent::Full
        };
        let mut cases = matrix::cases(wire, extent, self.seed);
        cases.retain(|case| self.only.iter().all(|text| case.name(wire).contains(text)));
        cases
    }

    fn work(&self) -> Result<PathBuf> {
        let dir = match &self.work {
            Some(dir) => dir.clone(),
            // target/debug/rnic-interop
            None => {
                let program = std::env::current_exe()?;
                let target = program.parent().and_then(Path::parent);
                target.context("this program's folder")?.join("interop")
            }
        };
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir.canonicalize()?)
    }
}

/// Frames of which a wire with losses surely loses some.
const ENOUGH: u64 = 3000;

fn run(args: &Args, work: &Path) -> Result<Report> {
    let image = Image::get(work)?;
    let begin = Instant::now();
    let mut guest = Guest::boot(&image)?;
    println!(
        "guest up after {:.1} s: {}",
        begin.elapsed().as_secs_f32(),
        image.package()
    );
    let mut theirs = Theirs::new(guest.verbs()?);
    let (mut outcomes, mut traces) = (Vec::new(), Vec::new());
    for (number, wire) in Wire::ALL.iter().enumerate() {
        let cases = args.cases(wire);
        if cases.is_empty() {
            continue;
        }
        let capture = work.join(format!("wire-{number}.pcapng"));
        let appliance = appliance(&capture);
        let mut ours = Ours::new(&appliance);
        guest.set_wire(wire)?;
        let mut traffic = guest.traffic()?;
        for case in &cases {
            guest.assert_alive()?;
            let begin = Instant::now();
            let result = match &case.work {
                Work::Exchange(exchange) => exchange.run(&mut ours, &mut theirs),
                Work::Atomics(atomics) => atomics.run(&mut ours, &mut theirs),
                Work::Unreliable(unreliable) => unreliable.run(&mut ours, &mut theirs),
                Work::Pingpong(pingpong) => pingpong.run(&appliance, &guest),
            };
            let mut outcome = Outcome::new(case, wire, begin, result);
            let before = std::mem::replace(&mut traffic, guest.traffic()?);
            outcome.lost = [0, 1].map(|way| traffic[way].lost - before[way].lost);
            let verdict = outcome.error.as_deref().unwrap_or("ok");
            println!("{}: {verdict} ({} ms)", case.name(wire), outcome.milliseconds);
            outcomes.push(outcome);
        }
        guest.set_wire(&Wire::ALL[0])?;
        drop(ours);
        appliance.stop();
        traces.push(Trace::of(wire, &capture)?);
        for (way, traffic) in traffic.iter().enumerate() {
            // A wire that does nothing would prove nothing.
            let right = !wire.loses(way) || traffic.lost > 0 || traffic.passed < ENOUGH;
            ensure!(
                right,
                "the wire \"{}\" does not lose frames: {traffic:?}",
                wire.name
            );
        }
    }
    ensure!(!outcomes.is_empty(), "no case has such a name; --list shows all");
    Ok(Report {
        kernel: image.package(),
        seed: args.seed,
        outcomes,
        traces,
        complaints: guest.complaints()?,
    })
}

/// `rnicd` with a port on the tap.
fn appliance(capture: &Path) -> Appliance {
    let vdev = format!("net_af_packet0,iface={TAP},blocksz=131072,framesz=8192,framecnt=1024,qdisc_bypass=1");
    let device = format!("{{ vdev: \"{vdev}\" }}");
    let port = PortSetup::new(0, &device).mtu(LINK_MTU).with(&format!(
        "capture: {{ file: \"{}\", limit: 256MiB }}",
        capture.display()
    ));
    Appliance::start(&Setup::new([port]))
}

fn conclude(report: &Report, work: &Path) -> Result<ExitCode> {
    let file = work.join("matrix.json");
    report.write(&file)?;
    println!("\n{}\n{}", report.table(), file.display());
    for trace in &report.traces {
        println!("{trace}");
    }
    for complaint in &report.complaints {
        println!("the guest's kernel says: {complaint}");
    }
    for outcome in report.failures() {
        let Outcome {
            test,
            direction,
            family,
            mtu,
            wire,
            ..
        } = outcome;
        let error = outcome.error.as_deref().unwrap_or_default();
        println!("FAILED {test}, {direction}, IP{family}, path MTU {mtu}, {wire}: {error}");
    }
    let wrong = report.traces.iter().map(|trace| trace.ours.len()).sum::<usize>();
    let failed = report.failures().count();
    Ok(if failed + wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
