//! Client-side benchmarks with perftest's habits: bandwidth and latency of SEND, WRITE, READ and atomics.
//!
//! The client, which is given the server's host, decides what is measured and prints it; the server takes its
//! settings from the client. The two find each other over TCP.
#![forbid(unsafe_code)]

mod args;
mod bandwidth;
mod latency;
mod link;
mod pattern;
mod report;
mod run;
mod server;
mod stats;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use rnic::exchange::{self, Exchange};

use args::{Args, Plan};
use link::Link;
use report::Report;
use run::{Done, Ready, Run, Verdict};

/// How long the client tries to reach a server that is not up yet.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rnic-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for; whether all of it went well.
fn start(args: &Args) -> Result<bool> {
    let plan = args.plan()?;
    if let Some(device) = &args.own_server {
        let listener = exchange::listen("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        return std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(args, device, listener.accept()?));
            let ok = measure(args, &plan, exchange::connect(address, None)?);
            let served = server
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the server side panicked")));
            match (ok, served) {
                (Err(client), Err(server)) => {
                    Err(client.context(format!("server side: {server:#}; client side")))
                }
                (ok, served) => served.context("server side").and(ok),
            }
        });
    }
    match &args.host {
        Some(host) => measure(
            args,
            &plan,
            exchange::connect((host.as_str(), args.port), Some(PATIENCE))?,
        ),
        None => {
            let listener = exchange::listen(("::", args.port))?;
            eprintln!("waiting for a client on TCP port {}", args.port);
            serve(args, &args.device, listener.accept()?)?;
            Ok(true)
        }
    }
}

/// The client: runs the plan and prints what it finds; whether there were no errors.
fn measure(args: &Args, plan: &Plan, mut peer: Exchange) -> Result<bool> {
    peer.send(plan)?;
    let link = Link::open(args, &args.device, plan, &mut peer)?;
    let report = Report::new(args, plan);
    report.head(&link);
    let mut well = true;
    for size in &plan.sizes {
        let run = Run::new(plan, *size);
        link.prepare_client(&run);
        let Ready = peer.receive().context("the server did not get ready")?;
        let mut result = match plan.metric {
            args::Metric::Bw => bandwidth::run(&link, &run),
            args::Metric::Lat => latency::run(&link, &run),
        };
        peer.send(&Done {
            messages: result.messages,
            failed: result.failure.is_some(),
        })?;
        let verdict: Verdict = peer.receive()?;
        result.judge(&verdict);
        report.line(&run, &result)?;
        if let Some(failure) = &result.failure {
            anyhow::bail!("{} bytes: {failure}", run.size);
        }
        well &= result.errors == 0;
    }
    report.foot();
    Ok(well)
}

/// The server: does what the client's plan needs.
fn serve(args: &Args, device: &str, mut peer: Exchange) -> Result<()> {
    let plan: Plan = peer.receive()?;
    plan.check()?;
    let link = Link::open(args, device, &plan, &mut peer)?;
    for size in &plan.sizes {
        server::serve(&link, &Run::new(&plan, *size), &mut peer)?;
    }
    Ok(())
}
