//! Creations and destructions by the million: each QP is made, brought to RTS, used or not, and destroyed, while
//! others move data. Nothing stale may be seen, and the daemon may not grow.
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Serialize;

use crate::daemon::{self, Plan, Sample};
use crate::options::{self, Pairs};
use crate::worker::{Done, Home, Worker};

/// How much anonymous memory the daemon may gain after the first tenth.
const SLACK_KIB: u64 = 4 << 10;

#[derive(Debug, Serialize)]
struct Summary {
    seed: u64,
    pairs: u64,
    seconds: f64,
    pairs_per_s: f64,
    done: Done,
    /// At the start, then after each tenth, then when all is gone.
    samples: Vec<Sample>,
}

/// Runs, and prints what happened as JSON.
pub fn run(options: &Pairs) -> Result<()> {
    let seed = options::seed(options.seed);
    eprintln!("rnic-stress: seed {seed} (RNIC_STRESS_SEED={seed} repeats its choices)");
    let plan = Plan {
        cores: options.cores,
        idle: options.idle.clone(),
        qps: 8 * options.clients as u32 + 64,
        qps_per_client: 24,
        clients: 2 * options.clients + 8,
        faults: false,
        ports_go: false,
    };
    let dir = tempfile::tempdir()?;
    let appliance = plan.start(dir.path())?;
    let mut samples = vec![daemon::sample(&appliance)?];
    let descriptors = samples[0].descriptors;
    let mut bystanders = daemon::bystanders(&appliance);
    let (made, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let outcome = std::thread::scope(|scope| {
        let socket = appliance.socket();
        let clients: Vec<_> = (0..options.clients)
            .map(|index| {
                let (made, stop, socket) = (&made, &stop, socket.clone());
                scope.spawn(move || {
                    let done = churn(&socket, &[seed, index as u64], options.count, (made, stop));
                    stop.fetch_or(done.is_err(), Ordering::Relaxed);
                    done
                })
            })
            .collect();
        let watched = watch(
            options.count,
            &made,
            &stop,
            || daemon::sample(&appliance),
            &mut samples,
        );
        let mut all = Done::default();
        for client in clients {
            all.merge(
                &client
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a client panicked")))?,
            );
        }
        watched.map(|()| all)
    });
    let done = outcome.with_context(|| format!("seed {seed}"))?;
    let seconds = began.elapsed().as_secs_f64();
    bystanders.check();
    bystanders.finish();
    daemon::wait_for_nothing(&appliance, descriptors)?;
    samples.push(daemon::sample(&appliance)?);
    let pairs = made.load(Ordering::Relaxed);
    let summary = Summary {
        seed,
        pairs,
        seconds,
        pairs_per_s: pairs as f64 / seconds,
        done,
        samples,
    };
    println!("{}", serde_json::to_string_pretty(&summary)?);
    let (warm, end) = (&summary.samples[1], &summary.samples[summary.samples.len() - 1]);
    ensure!(
        end.anonymous_kib <= warm.anonymous_kib + SLACK_KIB,
        "the daemon's memory grew from {} KiB after the first tenth to {} KiB",
        warm.anonymous_kib,
        end.anonymous_kib
    );
    appliance.stop();
    Ok(())
}

/// Takes a sample at each tenth.
fn watch(
    count: u64,
    made: &AtomicU64,
    stop: &AtomicBool,
    sample: impl Fn() -> Result<Sample>,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let began = Instant::now();
    for tenth in 1..=10 {
        while made.load(Ordering::Relaxed) < count * tenth / 10 {
            if stop.load(Ordering::Relaxed) {
                bail!("a client has failed");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let now = sample()?;
        eprintln!(
            "{:3} %: {:9} pairs, {:6.1} s, {} KiB anonymous, {} KiB resident, {} descriptors",
            tenth * 10,
            made.load(Ordering::Relaxed),
            began.elapsed().as_secs_f64(),
            now.anonymous_kib,
            now.rss_kib,
            now.descriptors
        );
        samples.push(now);
    }
    Ok(())
}

/// One client: links are made, used every now and then, and destroyed, until there were `count` QPs in all or another
/// client has failed.
fn churn(socket: &Path, seed: &[u64], count: u64, (made, stop): (&AtomicU64, &AtomicBool)) -> Result<Done> {
    let mut worker = Worker::new(socket.into(), Home::Steady, seed)?;
    worker.furnish()?;
    let mut seen = 0;
    while made.load(Ordering::Relaxed) < count && !stop.load(Ordering::Relaxed) {
        worker.churn().with_context(|| format!("client {seed:?}"))?;
        let now = worker
            .done
            .counts
            .get("QPs destroyed")
            .copied()
            .unwrap_or_default();
        made.fetch_add(now - seen, Ordering::Relaxed);
        seen = now;
    }
    worker
        .finish()
        .with_context(|| format!("client {seed:?}, at its end"))
}
