//! `rnic-compare`: latency and bandwidth over message size of rnic beside what else moves bytes between two processes of one
//! machine: kernel TCP (qperf), UCX and libfabric over TCP and shared memory. One after the other, each with both CPUs.
//!
//! Latency is half a round trip. Prints a table and ratios, saves JSON and an SVG.
mod peers;
mod plot;
mod run;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;

use peers::{Metric, PEERS, Peer};

#[derive(Parser)]
#[command(name = "rnic-compare")]
struct Args {
    /// Message sizes in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 512, 4096, 65_536, 1 << 20])]
    sizes: Vec<u64>,
    /// Seconds that each measurement takes, about.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Where `compare.json` and `compare.svg` go.
    #[arg(long, default_value = "target/compare")]
    out: PathBuf,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Name of the peer.
    pub peer: &'static str,
    /// What was measured.
    pub metric: Metric,
    /// Bytes of a message.
    pub size: u64,
    /// Microseconds, or Gbit/s.
    pub value: f64,
    /// How many times better rnic is, one thread being both ends: its bandwidth to the peer's, the peer's latency to its.
    pub rnic_is_better_by: Option<f64>,
}

#[derive(Serialize)]
struct Report<'a> {
    cpus: usize,
    points: &'a [Point],
    /// Why what is missing is.
    skipped: &'a BTreeMap<String, String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out)?;
    let mut points: Vec<Point> = Vec::new();
    let mut skipped = BTreeMap::new();
    for peer in &PEERS {
        if let Err(error) = measure(peer, &args, &mut points) {
            let why = format!("{error:#}");
            println!("SKIPPED {}: {why}", peer.name);
            skipped.insert(peer.name.to_owned(), why);
        }
    }
    compare(&mut points);
    table(&args.sizes, &points);
    let report = Report {
        cpus: rnic_bench::cpus(),
        points: &points,
        skipped: &skipped,
    };
    let json = args.out.join("compare.json");
    fs::write(&json, serde_json::to_vec_pretty(&report)?)?;
    let svg = args.out.join("compare.svg");
    plot::draw(&svg, &points).with_context(|| format!("drawing {}", svg.display()))?;
    println!("\n{}\n{}", shown(&json), shown(&svg));
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// All of one peer. What fails ends the peer's turn; the points so far stay.
fn measure(peer: &Peer, args: &Args, points: &mut Vec<Point>) -> anyhow::Result<()> {
    let mut session = peer.open()?;
    for metric in [Metric::Latency, Metric::Bandwidth] {
        for &size in &args.sizes {
            let Some(value) = session.measure(metric, size, args.seconds)? else {
                continue;
            };
            eprintln!("{} {metric:?} {size} B: {value:.2}", peer.name);
            points.push(Point {
                peer: peer.name,
                metric,
                size,
                value,
                rnic_is_better_by: None,
            });
        }
    }
    Ok(())
}

/// Fills the ratios to the first peer, which is rnic.
fn compare(points: &mut [Point]) {
    let own: Vec<Point> = points
        .iter()
        .filter(|p| p.peer == PEERS[0].name)
        .cloned()
        .collect();
    for point in points {
        let same = |o: &&Point| o.metric == point.metric && o.size == point.size;
        point.rnic_is_better_by = own.iter().find(same).map(|own| {
            let ratio = match point.metric {
                Metric::Latency => point.value / own.value,
                Metric::Bandwidth => own.value / point.value,
            };
            (ratio * 100.0).round() / 100.0
        });
    }
}

fn table(sizes: &[u64], points: &[Point]) {
    for (metric, unit) in [(Metric::Latency, "us"), (Metric::Bandwidth, "Gbit/s")] {
        println!("\n{metric:?} in {unit} (how many times better rnic is)");
        print!("{:<26}", "");
        sizes.iter().for_each(|size| print!("{size:>18}"));
        println!();
        for peer in &PEERS {
            print!("{:<26}", peer.name);
            for size in sizes {
                let same = |p: &&Point| p.peer == peer.name && p.metric == metric && p.size == *size;
                let cell = points.iter().find(same).map_or("-".to_owned(), |point| {
                    let ratio = point
                        .rnic_is_better_by
                        .map_or(String::new(), |r| format!(" ({r})"));
                    format!("{:.2}{ratio}", point.value)
                });
                print!("{cell:>18}");
            }
            println!();
        }
    }
}
