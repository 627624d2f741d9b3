//! What is printed: perftest's tables, or JSON.
use anyhow::Result;
use serde::Serialize;

use crate::args::{Args, Metric, Op, Plan};
use crate::link::Link;
use crate::run::{Outcome, Run};
use crate::stats::Stats;

/// Version of the JSON object.
const VERSION: u32 = 1;
const RULE: &str = "---------------------------------------------------------------------------------------------------------------------";

/// Prints the results of a plan.
pub struct Report<'a> {
    args: &'a Args,
    plan: &'a Plan,
}

/// The object of one run.
#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    op: Op,
    metric: Metric,
    size: usize,
    qps: u32,
    iters: u64,
    path: &'a str,
    msgs_per_s: f64,
    gbit_per_s: f64,
    p50_ns: u64,
    p99_ns: u64,
    errors: u64,
    lost: u64,
}

impl<'a> Report<'a> {
    pub fn new(args: &'a Args, plan: &'a Plan) -> Self {
        Report { args, plan }
    }

    pub fn head(&self, link: &Link) {
        if self.args.json {
            return;
        }
        let Plan {
            op,
            metric,
            qps,
            tx_depth,
            ..
        } = self.plan;
        let test = match metric {
            Metric::Bw => "BW",
            Metric::Lat => "Latency",
        };
        println!("{RULE}\n                    {op} {test} Test");
        println!(
            " Device          : {:<16} Path     : {}",
            self.args.device, self.args.path_label
        );
        println!(" Number of qps   : {qps:<16} TX depth : {tx_depth}");
        println!(" Connection type : {:?}", self.plan.connection);
        println!(
            " Mtu             : {:<16} Verify   : {}",
            link.mtu, self.plan.verify
        );
        println!(
            " local  address  : QPN {:#08x} PSN {:#08x} GID {}",
            link.local.qpn, link.local.psn, link.local.gid
        );
        println!(
            " remote address  : QPN {:#08x} PSN {:#08x} GID {}\n{RULE}",
            link.remote.qpn, link.remote.psn, link.remote.gid
        );
        match metric {
            Metric::Bw => {
                let unit = if self.args.report_gbits {
                    "Gb/sec"
                } else {
                    "MB/sec"
                };
                println!(
                    " {:<10} {:<14} {:<18} {:<20} MsgRate[Mpps]",
                    "#bytes",
                    "#iterations",
                    format!("BW peak[{unit}]"),
                    format!("BW average[{unit}]"),
                );
            }
            Metric::Lat => println!(
                " {:<8} {:<12} {:<12} {:<12} {:<15} {:<12} {:<13} {:<14} 99.9%[usec]",
                "#bytes",
                "#iterations",
                "t_min[usec]",
                "t_max[usec]",
                "t_typical[usec]",
                "t_avg[usec]",
                "t_stdev[usec]",
                "99%[usec]",
            ),
        }
    }

    pub fn line(&self, run: &Run, outcome: &Outcome) -> Result<()> {
        let rate = outcome.messages_per_second();
        let stats = Stats::new(outcome.samples.clone());
        if self.args.json {
            let object = Json {
                version: VERSION,
                op: run.op,
                metric: run.metric,
                size: run.size,
                qps: self.plan.qps,
                iters: outcome.messages,
                path: &self.args.path_label,
                msgs_per_s: rate,
                gbit_per_s: rate * run.size as f64 * 8e-9,
                p50_ns: stats.quantile(0.5),
                p99_ns: stats.quantile(0.99),
                errors: outcome.errors,
                lost: outcome.lost,
            };
            println!("{}", serde_json::to_string(&object)?);
            return Ok(());
        }
        let iters = outcome.messages / u64::from(self.plan.qps);
        match run.metric {
            Metric::Bw => {
                let unit = if self.args.report_gbits {
                    8e-9
                } else {
                    1.0 / f64::from(1 << 20)
                };
                let bytes = run.size as f64 * unit;
                println!(
                    " {:<10} {:<14} {:<18.2} {:<20.2} {:.6}",
                    run.size,
                    iters,
                    outcome.peak.max(rate) * bytes,
                    rate * bytes,
                    rate / 1e6
                );
            }
            Metric::Lat => {
                let us = |nanoseconds: f64| nanoseconds / 1e3;
                let q = |share| us(stats.quantile(share) as f64);
                println!(
                    " {:<8} {:<12} {:<12.2} {:<12.2} {:<15.2} {:<12.2} {:<13.2} {:<14.2} {:.2}",
                    run.size,
                    iters,
                    us(stats.min() as f64),
                    us(stats.max() as f64),
                    q(0.5),
                    us(stats.mean()),
                    us(stats.stdev()),
                    q(0.99),
                    q(0.999)
                );
            }
        }
        if outcome.lost > 0 {
            eprintln!(
                "rnic-perf: {} of {} messages were lost",
                outcome.lost, outcome.messages
            );
        }
        if outcome.errors > 0 {
            eprintln!("rnic-perf: {} errors at {} bytes", outcome.errors, run.size);
        }
        Ok(())
    }

    pub fn foot(&self) {
        if !self.args.json {
            println!("{RULE}");
        }
    }
}
