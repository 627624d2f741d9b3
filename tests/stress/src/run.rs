//! Everything at random.
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rnic_tests::Appliance;
use rnic_tests::probe::Rng;
use serde::Serialize;

use crate::daemon::{self, Plan, Sample};
use crate::options::{self, Client, Run};
use crate::process::Process;
use crate::unplug;
use crate::worker::{Done, Home, Worker};

/// How much more anonymous memory the daemon may hold at the end than after a quarter of the run: what its allocator
/// keeps for later.
const SLACK_KIB: u64 = 8 << 10;

/// Descriptors of a sanitizer in the daemon: as it first has a stack to name, for a suppression too, it starts
/// `llvm-symbolizer` and keeps a pipe to and one from it. That may be before or after the first sample.
const SYMBOLIZER_PIPES: usize = 2;

#[derive(Debug, Serialize)]
struct Summary {
    seed: u64,
    seconds: f64,
    kills: u64,
    done: Done,
    start: Sample,
    warm: Sample,
    end: Sample,
}

/// Runs, and prints what happened as JSON.
pub fn run(options: &Run) -> Result<()> {
    let seed = options::seed(options.seed);
    eprintln!("rnic-stress: seed {seed} (RNIC_STRESS_SEED={seed} repeats its choices)");
    let clients = options.threads + options.processes + 2 * options.library;
    let plan = Plan {
        cores: options.cores,
        idle: options.idle.clone(),
        qps: 16 * clients as u32 + 8,
        qps_per_client: 24,
        clients: 4 * clients + 8,
        faults: true,
        ports_go: true,
    };
    let dir = tempfile::tempdir()?;
    let appliance = plan.start(dir.path())?;
    let start = daemon::sample(&appliance)?;
    let began = Instant::now();
    let outcome = stress(options, seed, &plan, &appliance);
    if outcome.is_err() {
        let log = appliance.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- the end of the daemon's log ---");
        eprintln!("{}\n---", lines[lines.len().saturating_sub(400)..].join("\n"));
    }
    let (done, kills, warm) = outcome.with_context(|| format!("seed {seed}"))?;
    let own = if options.sanitized { SYMBOLIZER_PIPES } else { 0 };
    daemon::wait_for_nothing(&appliance, start.descriptors + own)?;
    let end = daemon::sample(&appliance)?;
    let summary = Summary {
        seed,
        seconds: began.elapsed().as_secs_f64(),
        kills,
        done,
        start,
        warm,
        end,
    };
    println!("{}", serde_json::to_string_pretty(&summary)?);
    ensure!(
        options.sanitized || end.anonymous_kib <= warm.anonymous_kib + SLACK_KIB,
        "the daemon's memory grew from {} to {} KiB after a quarter of the run",
        warm.anonymous_kib,
        end.anonymous_kib
    );
    appliance.stop();
    Ok(())
}

fn stress(options: &Run, seed: u64, plan: &Plan, appliance: &Appliance) -> Result<(Done, u64, Sample)> {
    let mut bystanders = (!options.no_bystanders).then(|| daemon::bystanders(appliance));
    let socket = appliance.socket();
    let stop = &AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for index in 0..options.threads {
            let socket = &socket;
            // No run without some who lose their ports, and some who do not.
            let home = [Home::Restless, Home::Steady, Home::Both][index % 3];
            let seed = [seed, index as u64];
            let work = move || wander(socket, home, &seed, || stop.load(Ordering::Relaxed));
            threads.push(scope.spawn(move || noting(stop, work())));
        }
        for index in 0..options.library {
            let socket = &socket;
            let seed = [seed, 1000 + index as u64];
            threads.push(scope.spawn(move || noting(stop, crate::library::run(socket, &seed, stop))));
            threads.push(scope.spawn(move || noting(stop, crate::shared::run(socket, &seed, stop))));
        }
        if options.unplug_every > 0 {
            let seed = [seed, 3000];
            let unplug = move || unplug::run(plan, options.unplug_every, &seed, appliance, stop);
            threads.push(scope.spawn(move || noting(stop, unplug())));
        }
        let supervised = supervise(options, seed, appliance, stop);
        stop.store(true, Ordering::Relaxed);
        let mut all = Ok(Done::default());
        for thread in threads {
            let done = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client panicked")));
            match (&mut all, done) {
                (Ok(all), Ok(done)) => all.merge(&done),
                (all @ Ok(_), Err(error)) => *all = Err(error),
                (Err(_), _) => {}
            }
        }
        // What a client has to say tells more than that it has ended.
        let mut all = all?;
        let (done, kills, warm) = supervised?;
        all.merge(&done);
        Ok::<_, anyhow::Error>((all, kills, warm))
    })?;
    if let Some(bystanders) = &mut bystanders {
        bystanders.check();
    }
    if let Some(bystanders) = bystanders {
        bystanders.finish();
    }
    Ok(ended)
}

/// A client that has failed ends the run.
fn noting(stop: &AtomicBool, result: Result<Done>) -> Result<Done> {
    if result.is_err() {
        stop.store(true, Ordering::Relaxed);
    }
    result
}

/// Client processes come and go until the time is over.
fn supervise(
    options: &Run,
    seed: u64,
    appliance: &Appliance,
    stop: &AtomicBool,
) -> Result<(Done, u64, Sample)> {
    let mut rng = Rng::new(&[seed, u64::MAX]);
    let socket = appliance.socket();
    let mut incarnation = 0;
    let mut start = |index: usize| {
        incarnation += 1;
        Process::start(&socket, &[seed, 2000 + index as u64, incarnation])
    };
    let mut processes = (0..options.processes)
        .map(&mut start)
        .collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let (mut kills, mut warm) = (0, None);
    while began.elapsed() < options.duration() {
        if stop.load(Ordering::Relaxed) {
            bail!("a client has failed");
        }
        let pause = if options.kill_every == 0 {
            100
        } else {
            options.kill_every
        };
        std::thread::sleep(Duration::from_millis(1 + rng.below(2 * pause as usize) as u64));
        for process in &mut processes {
            process.check()?;
        }
        if options.kill_every > 0 && !processes.is_empty() {
            let victim = rng.below(processes.len());
            processes[victim].kill()?;
            processes[victim] = start(victim)?;
            kills += 1;
        }
        if warm.is_none() && began.elapsed() > options.duration() / 4 {
            warm = Some(daemon::sample(appliance)?);
        }
    }
    let mut all = Done::default();
    for process in processes {
        all.merge(&process.finish()?);
    }
    let warm = match warm {
        Some(warm) => warm,
        None => daemon::sample(appliance)?,
    };
    Ok((all, kills, warm))
}

/// One client, until it is told to stop.
fn wander(socket: &Path, home: Home, seed: &[u64], stop: impl Fn() -> bool) -> Result<Done> {
    let mut worker = Worker::new(socket.into(), home, seed)?;
    while !stop() {
        worker.step().with_context(|| format!("client {seed:?}"))?;
    }
    worker
        .finish()
        .with_context(|| format!("client {seed:?}, at its end"))
}

/// The client process.
pub fn client(options: &Client) -> Result<()> {
    let over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
            over.store(true, Ordering::Relaxed);
        });
        let home = Home::any(&mut Rng::new(&options.seed));
        let done = wander(&options.socket, home, &options.seed, || {
            over.load(Ordering::Relaxed)
        });
        if let Err(error) = &done {
            // The other thread waits for the parent, which waits for us.
            eprintln!("rnic-stress: {error:#}");
            std::process::exit(3);
        }
        done
    })?;
    println!("{}", serde_json::to_string(&done)?);
    Ok(())
}
