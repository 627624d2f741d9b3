//! A harness for tests of whole appliances: it starts `rnicd` on a configuration of the test's own, in a network
//! namespace if wanted, runs client processes against it, and looks at its status from outside. Nothing here
//! reaches into the daemon.
//!
//! - [`Appliance`] is a running `rnicd`; [`Setup`] writes its configuration.
//! - [`Wire`] is two network namespaces joined by a veth pair.
//! - [`Probe`] is a client process (`rnic-probe`) that moves seeded data and checks every byte.
//! - [`raw`] speaks the control protocol and writes the shared memory by hand, for what the client library
//!   would never do.
//! - [`Stopped`] is one thread of a daemon in a debugger.
//! - [`Turn`] lets one heavy test at a time run on the machine.

mod appliance;
mod command;
mod debugger;
mod hugepages;
mod namespace;
pub mod probe;
mod process;
pub mod raw;
mod rawport;
mod scene;
mod setup;
mod status;
mod turn;

pub use appliance::Appliance;
pub use command::{program, rnicd};
pub use debugger::Stopped;
pub use hugepages::Hugepages;
pub use namespace::{Namespace, Wire, privileged};
pub use process::{Bystanders, Probe, Report};
pub use rawport::RawPort;
pub use scene::Scene;
pub use setup::{PortSetup, Setup};
pub use status::{CoreStatus, Counts, PortStatus, Status};
pub use turn::Turn;

/// Waits until `done` says something, looking every few milliseconds; `None` when it has not within `limit`.
pub fn poll_until<T>(limit: std::time::Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let end = std::time::Instant::now() + limit;
    loop {
        // The last look comes after the end: a machine that was away meanwhile does not fail a test.
        let over = std::time::Instant::now() >= end;
        if let Some(value) = done() {
            return Some(value);
        }
        if over {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Says that a test was left out, past the harness that hides what tests print.
fn skipped(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {test}: {why} ***\n");
}
