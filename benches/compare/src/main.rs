//! `rnic-compare`: latency and bandwidth over message size of rnic beside what else moves bytes between two processes of one
//! machine. On this machine: kernel TCP (qperf), UCX and libfabric over TCP and shared memory. In an emulated guest: the
//! kernel's rxe (perftest) and TCP. One after the other.
//!
//! Latency is half a round trip. Prints a table and ratios, saves JSON and an SVG.
mod guest;
mod host;
mod noise;
mod peers;
mod plot;
mod ratios;
mod run;
mod tools;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;

use noise::{Moment, Noise};
use peers::{Metric, Peer, Place, Session};

#[derive(Parser)]
#[command(name = "rnic-compare")]
struct Args {
    /// Message sizes in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 512, 4096, 65_536, 1 << 20])]
    sizes: Vec<u64>,
    /// Message sizes in the guest, which is slow.
    #[arg(long, value_delimiter = ',', default_values_t = [8, 512, 4096, 65_536])]
    guest_sizes: Vec<u64>,
    /// Seconds that each measurement on this machine takes, about.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often everything is measured. The best counts: it was disturbed least.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Measure here alone.
    #[arg(long, value_enum)]
    only: Option<Place>,
    /// The libibverbs of rnic, for programs that know nothing of rnic.  [default: libibverbs.so beside this program]
    #[arg(long)]
    verbs: Option<PathBuf>,
    /// Folder in which the guest's image is kept.  [default: `interop` beside this program's folder]
    #[arg(long)]
    image: Option<PathBuf>,
    /// Where `compare.json` and `compare.svg` go.
    #[arg(long, default_value = "target/compare")]
    out: PathBuf,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Where it was taken.
    pub place: Place,
    /// Name of the peer.
    pub peer: &'static str,
    /// What was measured.
    pub metric: Metric,
    /// Bytes of a message.
    pub size: u64,
    /// Microseconds, or Gbit/s: the best of the tries.
    pub value: f64,
    /// One in each round.
    pub tries: Vec<f64>,
    /// The peer of this place, rnic's, that it is compared with.
    pub beside: &'static str,
    /// How many times better that one is: its bandwidth to the peer's, the peer's latency to its.
    pub rnic_is_better_by: Option<f64>,
}

/// What a place is.
#[derive(Debug, Default, Serialize)]
pub struct About {
    cpus: usize,
    /// The guest's kernel.
    kernel: Option<String>,
    /// Whether instructions are emulated.
    emulated: bool,
    noise: Option<Noise>,
}

#[derive(Default, Serialize)]
struct Report {
    places: BTreeMap<Place, About>,
    points: Vec<Point>,
    /// Why what is missing is.
    skipped: BTreeMap<Place, BTreeMap<&'static str, String>>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out)?;
    let mut report = Report::default();
    for place in Place::ALL {
        if args.only.is_none_or(|only| only == place) {
            let before = Moment::now()?;
            let about = match place {
                Place::Host => Some(on_host(&args, &mut report)?),
                Place::Guest => in_guest(&args, &mut report)?,
            };
            let Some(mut about) = about else { continue };
            let noise = before.noise_since()?;
            println!("{place}: {noise}");
            about.noise = Some(noise);
            report.places.insert(place, about);
        }
    }
    ratios::fill(&mut report.points);
    ratios::print(&report.points);
    let json = args.out.join("compare.json");
    fs::write(&json, serde_json::to_vec_pretty(&report)?)?;
    let svg = args.out.join("compare.svg");
    plot::draw(&svg, &report.points).with_context(|| format!("drawing {}", svg.display()))?;
    println!("\n{}\n{}", json.display(), svg.display());
    Ok(())
}

fn on_host(args: &Args, report: &mut Report) -> anyhow::Result<About> {
    let host = host::Host {
        seconds: args.seconds,
        verbs: args.verbs()?,
    };
    for _ in 0..args.rounds {
        for peer in &host::PEERS {
            report.measure(Place::Host, peer, &args.sizes, || host.open(peer.kind));
        }
    }
    Ok(About {
        cpus: rnic_bench::cpus(),
        ..About::default()
    })
}

/// `None` where no guest can be had.
fn in_guest(args: &Args, report: &mut Report) -> anyhow::Result<Option<About>> {
    let guest = match guest::Guest::boot(&args.image()?, &args.verbs()?) {
        Ok(guest) => guest,
        Err(error) => {
            report.skip(Place::Guest, "all", &error);
            return Ok(None);
        }
    };
    for _ in 0..args.rounds {
        for peer in &guest::PEERS {
            report.measure(Place::Guest, peer, &args.guest_sizes, || guest.open(peer.kind));
        }
    }
    Ok(Some(About {
        cpus: guest::CPUS as usize,
        kernel: Some(guest.kernel.clone()),
        emulated: true,
        noise: None,
    }))
}

impl Args {
    fn verbs(&self) -> anyhow::Result<PathBuf> {
        match &self.verbs {
            Some(file) => Ok(file.clone()),
            None => host::beside("libibverbs.so"),
        }
    }

    fn image(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.image {
            return Ok(dir.clone());
        }
        // target/release/rnic-compare
        let program = std::env::current_exe()?;
        let target = program.parent().and_then(Path::parent);
        Ok(target.context("this program's folder")?.join("interop"))
    }
}

impl Report {
    /// All of one peer, for one round. What fails ends the peer's turn; the points so far stay.
    fn measure<'a, K>(
        &mut self,
        place: Place,
        peer: &Peer<K>,
        sizes: &[u64],
        open: impl FnOnce() -> anyhow::Result<Box<dyn Session + 'a>>,
    ) {
        let all = || -> anyhow::Result<()> {
            let mut session = open()?;
            for metric in Metric::ALL {
                for &size in sizes {
                    if let Some(value) = session.measure(metric, size)? {
                        eprintln!("{place}: {} {metric:?} {size} B: {value:.4}", peer.name);
                        self.add(place, peer, metric, size, value);
                    }
                }
            }
            Ok(())
        };
        if let Err(error) = all() {
            self.skip(place, peer.name, &error);
        }
    }

    fn add<K>(&mut self, place: Place, peer: &Peer<K>, metric: Metric, size: u64, value: f64) {
        let same =
            |p: &&mut Point| p.place == place && p.peer == peer.name && p.metric == metric && p.size == size;
        if let Some(point) = self.points.iter_mut().find(same) {
            point.tries.push(value);
            if metric.better(value, point.value) > 1.0 {
                point.value = value;
            }
            return;
        }
        self.points.push(Point {
            place,
            peer: peer.name,
            metric,
            size,
            value,
            tries: vec![value],
            beside: peer.beside,
            rnic_is_better_by: None,
        });
    }

    fn skip(&mut self, place: Place, peer: &'static str, error: &anyhow::Error) {
        let why = format!("{error:#}");
        let before = self.skipped.entry(place).or_default().insert(peer, why.clone());
        if before.is_none() {
            println!("SKIPPED {place}, {peer}: {why}");
        }
    }
}
