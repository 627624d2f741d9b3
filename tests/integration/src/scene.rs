//! Two clients that must not notice what a third one does.
use std::path::PathBuf;
use std::time::Duration;

use crate::{Appliance, Bystanders, Counts, Setup, poll_until};

/// An appliance of two ports, back to back, with traffic between them that checks itself.
#[derive(Debug)]
pub struct Scene {
    /// The appliance.
    pub appliance: Appliance,
    /// The traffic.
    pub bystanders: Bystanders,
    /// Where to connect.
    pub socket: PathBuf,
    baseline: Counts,
    descriptors: usize,
}

impl Scene {
    /// Starts everything, on the wire path.
    ///
    /// # Panics
    /// When it does not start.
    pub fn new() -> Scene {
        Self::on(&Setup::back_to_back().with_ports("loopback: wire"))
    }

    /// The same on a configuration with `rnic0` and `rnic1`.
    pub fn on(setup: &Setup) -> Scene {
        let appliance = Appliance::start(setup);
        let socket = appliance.socket();
        let bystanders = Bystanders::start([(&socket, "rnic0"), (&socket, "rnic1")]);
        let (baseline, descriptors) = (appliance.counts(), appliance.descriptors());
        Scene {
            appliance,
            bystanders,
            socket,
            baseline,
            descriptors,
        }
    }

    /// Waits until nothing is left of any client but the bystanders.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_clean(&self) {
        let (baseline, descriptors) = (self.baseline, self.descriptors);
        let now = || (self.appliance.counts(), self.appliance.descriptors());
        let clean = poll_until(Duration::from_secs(5), || {
            (now() == (baseline, descriptors)).then_some(())
        });
        let (counts, open) = now();
        assert!(
            clean.is_some(),
            "{counts:?} and {open} descriptors instead of {baseline:?} and {descriptors}"
        );
    }

    /// Makes sure that nothing is left, that the bystanders were content to the end and that the daemon stops as
    /// it should.
    ///
    /// # Panics
    /// When not.
    pub fn end(mut self) {
        self.bystanders.check();
        self.assert_clean();
        self.bystanders.finish();
        self.appliance.stop();
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}
