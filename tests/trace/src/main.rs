//! `rnic-trace`: checks captures of RoCEv2 traffic against the transport's rules.
//!
//! Exit codes: 0 no violation; 1 violations; 2 the command line is wrong or a capture cannot be read.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use rnic_trace::{Near, Options, Report, Rule, check_file};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Checks captures of RoCEv2 traffic against the transport's rules.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 no violation; 1 violations; 2 wrong command line, or a capture that cannot be read."
)]
struct Arguments {
    /// pcap or pcapng files with whole Ethernet frames.
    #[arg(required_unless_present = "rules")]
    captures: Vec<PathBuf>,
    /// Hosts between which and the capture nothing is lost, damaged, doubled or reordered: "sender" (the host that
    /// captured, where the capture says which frames it sent), "all", "none", or addresses separated by commas.
    #[arg(long, default_value = "sender", value_parser = near)]
    near: Near,
    /// Frames may have been damaged before they came by: broken ones count as lost.
    #[arg(long)]
    damage: bool,
    /// Microseconds within which a request may cross an RNR NAK on its way.
    #[arg(long, default_value_t = 1_000)]
    crossing_us: u64,
    /// Least microseconds between two CNPs about one QP.
    #[arg(long, default_value_t = 4)]
    cnp_interval_us: u64,
    /// Demand a CNP within so many microseconds of a marked frame.
    #[arg(long)]
    cnp_within_us: Option<u64>,
    /// Print how often each rule was applied.
    #[arg(short, long)]
    verbose: bool,
    /// Print the rules: what each demands, where in the specification it stands, at which point it holds.
    #[arg(long)]
    rules: bool,
}

fn near(text: &str) -> Result<Near, String> {
    Ok(match text {
        "sender" => Near::Sender,
        "all" => Near::Everybody,
        "none" => Near::Nobody,
        hosts => {
            let address = |host: &str| {
                host.parse::<IpAddr>().map_err(|_| {
                    format!("{host:?} is no IP address, and neither \"sender\", \"all\" nor \"none\"")
                })
            };
            Near::Hosts(hosts.split(',').map(address).collect::<Result<_, _>>()?)
        }
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.rules {
        for rule in Rule::ALL {
            println!(
                "{rule} ({})\n  {}.\n  {}.",
                rule.section(),
                rule.demands(),
                rule.holds()
            );
        }
    }
    match check_all(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("rnic-trace: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The number of violations.
fn check_all(arguments: &Arguments) -> anyhow::Result<usize> {
    let options = Options {
        near: arguments.near.clone(),
        damage: arguments.damage,
        crossing: arguments.crossing_us.saturating_mul(1_000),
        cnp_interval: arguments.cnp_interval_us.saturating_mul(1_000),
        cnp_within: arguments.cnp_within_us.map(|micros| micros.saturating_mul(1_000)),
    };
    let mut violations = 0;
    for path in &arguments.captures {
        let report = check_file(path, &options).with_context(|| path.display().to_string())?;
        violations += report.violations.len();
        print(&path.display().to_string(), &report, arguments.verbose);
    }
    Ok(violations)
}

fn print(name: &str, report: &Report, verbose: bool) {
    for violation in &report.violations {
        println!("{name}: {violation}");
    }
    for note in &report.notes {
        println!("{name}: note: {note}");
    }
    let Report {
        frames,
        roce,
        damaged,
        connections,
        ..
    } = report;
    println!(
        "{name}: {frames} frames, {roce} RoCEv2, {damaged} damaged, {connections} connections, {} violations",
        report.violations.len()
    );
    if verbose {
        for rule in Rule::ALL {
            println!("  {:24} {:>10}", rule.name(), report.applied(rule));
        }
    }
}
