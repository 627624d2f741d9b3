//! Ports that are removed and added again while clients work on them.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rnic_tests::Appliance;
use rnic_tests::probe::Rng;

use crate::daemon::{FIRST_THAT_GOES, Plan};
use crate::worker::Done;

/// Removes the two ports that come and go, one after the other, and adds them again, until told to stop; then they
/// are there. `every` is the time between two such rounds in milliseconds, on average.
pub fn run(plan: &Plan, every: u64, seed: &[u64], appliance: &Appliance, stop: &AtomicBool) -> Result<Done> {
    let mut rng = Rng::new(seed);
    let mut done = Done::default();
    let file = appliance.dir().join("ports.yaml");
    std::fs::write(&file, plan.ports_that_go()?)?;
    let file = file.to_str().context("a folder with a name in UTF-8")?;
    while !stop.load(Ordering::Relaxed) {
        pause(&mut rng, every);
        let first = rng.below(2) as u32;
        for port in [first, 1 - first] {
            let name = format!("rnic{}", FIRST_THAT_GOES + port);
            ctl(appliance, &["port", "remove", &name])?;
            done.count("ports removed");
            pause(&mut rng, every / 4);
        }
        ctl(appliance, &["port", "add", file])?;
        done.add("ports added", 2);
    }
    Ok(done)
}

fn pause(rng: &mut Rng, milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(
        rng.below(2 * milliseconds as usize + 1) as u64
    ));
}

fn ctl(appliance: &Appliance, args: &[&str]) -> Result<()> {
    let output = appliance.ctl(args);
    ensure!(
        output.status.success(),
        "rnicctl {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
